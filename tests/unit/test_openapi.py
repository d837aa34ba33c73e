"""The generated OpenAPI document: complete, valid, and free of references into nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from infless_watchdog.hints import json_schema
from infless_watchdog.openapi import document


@dataclass
class Inner:
    """A part."""

    size: int


@dataclass
class Item:
    """A whole."""

    inner: Inner
    more: list[Inner]


ITEM = json_schema(Item)


def references(node: Any) -> set[str]:
    """All that a document refers to."""
    if isinstance(node, dict):
        own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
        return own.union(*map(references, node.values()))
    return set().union(*map(references, node)) if isinstance(node, list) else set()


@pytest.mark.parametrize(
    ("item", "answer", "more"),
    [
        ({}, {}, {}),
        (ITEM, ITEM, {"example": {"inner": {"size": 1}, "more": []}, "description": "Sizes."}),
        ({"type": "string"}, {"type": "string"}, {"content_types": ("text/plain", "image/*", "multipart/form-data")}),
        (ITEM, {"type": "string", "contentEncoding": "base64"}, {"inference_protocol": False}),
    ],
)
def test_a_document_is_valid(item: dict[str, Any], answer: dict[str, Any], more: dict[str, Any]) -> None:
    """By the specification's own schema, and each reference leads somewhere."""
    made = document("f", "1", item, answer, **more)
    pytest.importorskip("openapi_spec_validator").validate(json.loads(json.dumps(made)))
    known = {f"#/components/schemas/{name}" for name in made["components"]["schemas"]}
    assert references(made) <= known


def test_every_refusal_is_described() -> None:
    """With the status that a client may see; those that may be tried again say when."""
    made = document("f", "1", {}, {})
    for path in ("/", "/v2/models/f/infer"):
        answers = made["paths"][path]["post"]["responses"]
        assert set(answers) == {"200", "400", "413", "415", "422", "429", "500", "503", "504"}
        assert "Retry-After" in answers["503"]["headers"]
    infer = made["paths"]["/v2/models/f/infer"]["post"]["responses"]
    assert infer["422"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Fault"}


def test_without_the_inference_protocol_its_routes_are_not_there() -> None:
    """Nor its schemas."""
    made = document("f", "1", {}, {}, inference_protocol=False)
    assert not [path for path in made["paths"] if path.startswith("/v2")]
    assert "Tensor" not in made["components"]["schemas"]
    assert {"/", "/_/health", "/_/ready"} <= set(made["paths"])


def test_equal_names_of_different_things_are_kept_apart() -> None:
    """The user's `Item` of the answer is not the item's, and no `Tensor` of the user's is the protocol's."""
    answer = {"$ref": "#/$defs/Item", "$defs": {"Item": {"$ref": "#/$defs/Tensor"}, "Tensor": {"type": "integer"}}}
    made = document("f", "1", ITEM, answer)
    schemas = made["components"]["schemas"]
    assert schemas["Item"]["properties"]["inner"] == {"$ref": "#/components/schemas/Inner"}
    assert schemas["Item2"] == {"$ref": "#/components/schemas/Tensor2"}
    assert schemas["Tensor2"] == {"type": "integer"}
    sent = made["paths"]["/"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert sent == {"$ref": "#/components/schemas/Item2"}


def test_definitions_are_found_wherever_they_stand() -> None:
    """In pydantic's schemas they are inside."""
    item = {"type": "array", "items": {"$ref": "#/$defs/A", "$defs": {"A": {"type": "integer"}}}}
    made = document("f", "1", item, {})
    assert made["components"]["schemas"]["A"] == {"type": "integer"}
    assert "$defs" not in json.dumps(made)


def test_an_example_that_json_cannot_say_is_left_out() -> None:
    """As is none."""
    for example in (b"x", object(), float("nan"), None):
        made = document("f", "1", {}, {}, example=example)
        assert "example" not in made["paths"]["/"]["post"]["requestBody"]["content"]["application/json"]
