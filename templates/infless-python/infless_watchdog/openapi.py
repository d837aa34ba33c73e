"""An OpenAPI 3.1 document of a function: what it takes, what it answers, and how it refuses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

JsonObject = dict[str, Any]

_FAULTS = {
    "400": "The request is broken.",
    "413": "The body is too large.",
    "415": "A content type or coding that is not taken.",
    "422": "The request is well formed, but not what the function takes.",
    "429": "Too many requests at once.",
    "500": "The function has failed on this request.",
    "503": "Not ready, or too many requests are waiting.",
    "504": "The function has taken too long.",
}
_RETRIED = ("429", "503")
_TEXT = {"type": "string"}
_DEFINITION = "#/$defs/"


def document(
    name: str,
    version: str,
    item_schema: JsonObject,
    answer_schema: JsonObject,
    *,
    example: Any = None,
    content_types: Sequence[str] = ("application/json",),
    inference_protocol: bool = True,
    description: str = "",
) -> JsonObject:
    """The document, ready for `json`.

    Args:
        name: of the function.
        version: of the function.
        item_schema: JSON Schema of a request's body; what it refers to is below its `$defs`. `{}` for anything.
        answer_schema: the same of an answer's body.
        example: a request's body, shown if JSON can say it.
        content_types: of requests.
        inference_protocol: whether `/v2/...` is served.
        description: what the function does.
    """
    schemas: JsonObject = {"Fault": {"type": "object", "properties": {"error": _TEXT}, "required": ["error"]}}
    item, answer = _lifted(item_schema, schemas), _lifted(answer_schema, schemas)
    paths: JsonObject = {"/": {"post": _call(item, answer, content_types, _sayable(example))}, **_probes()}
    if inference_protocol:
        schemas |= _TENSORS
        paths |= _inference_paths(name)
    info = {"title": name, "version": version, **({"description": description} if description else {})}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": {"schemas": schemas}}


def _call(item: JsonObject, answer: JsonObject, content_types: Sequence[str], example: Any) -> JsonObject:
    content: JsonObject = {}
    for content_type in content_types:
        content[content_type] = {"schema": _as_sent(item, content_type)}
        if content_type == "application/json" and example is not None:
            content[content_type]["example"] = example
    return {
        "operationId": "call",
        "summary": "Call the function.",
        "requestBody": {"required": True, "content": content},
        "responses": {"200": _ok("The answer.", _answer_content(answer)), **_faults("text/plain", _TEXT)},
    }


def _as_sent(item: JsonObject, content_type: str) -> JsonObject:
    """The schema of a body: JSON's own, and for other types what can be said of bytes."""
    if content_type in ("application/json", "multipart/form-data"):
        return item
    return _TEXT if content_type.startswith("text/") else {}


def _answer_content(answer: JsonObject) -> JsonObject:
    if answer.get("type") != "string":
        return {"application/json": {"schema": answer}}
    return {("application/octet-stream" if "contentEncoding" in answer else "text/plain"): {"schema": _TEXT}}


def _faults(content_type: str, schema: JsonObject) -> JsonObject:
    after = {"headers": {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds to wait."}}}
    return {
        status: {
            "description": sentence,
            "content": {content_type: {"schema": schema}},
            **(after if status in _RETRIED else {}),
        }
        for status, sentence in _FAULTS.items()
    }


def _ok(sentence: str, content: JsonObject | None = None) -> JsonObject:
    return {"description": sentence, **({"content": content} if content else {})}


def _probes() -> JsonObject:
    unready = _ok("Not now.", {"text/plain": {"schema": _TEXT}})

    def probe(operation: str, sentence: str) -> JsonObject:
        return {
            "get": {"operationId": operation, "summary": sentence, "responses": {"200": _ok("Yes."), "503": unready}}
        }

    return {
        "/_/health": probe("health", "Whether the instance runs."),
        "/_/ready": probe("ready", "Whether it takes requests now."),
    }


# the Open Inference Protocol -----------------------------------------------------------------------------------------

_PARAMETERS = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}
_SHAPE = {"type": "array", "items": {"type": "integer", "minimum": -1}}
_TENSORS: JsonObject = {
    "Tensor": {
        "type": "object",
        "properties": {
            "name": _TEXT,
            "datatype": _TEXT,
            "shape": _SHAPE,
            "data": {"type": "array", "description": "Flat, or nested as the shape says. Binary data follow the JSON."},
            "parameters": _PARAMETERS,
        },
        "required": ["name", "datatype", "shape"],
    },
    "InferenceRequest": {
        "type": "object",
        "properties": {
            "id": _TEXT,
            "parameters": _PARAMETERS,
            "inputs": {"type": "array", "items": {"$ref": "#/components/schemas/Tensor"}, "minItems": 1},
            "outputs": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"name": _TEXT, "parameters": _PARAMETERS},
                    "required": ["name"],
                },
            },
        },
        "required": ["inputs"],
    },
    "InferenceAnswer": {
        "type": "object",
        "properties": {
            "model_name": _TEXT,
            "id": _TEXT,
            "outputs": {"type": "array", "items": {"$ref": "#/components/schemas/Tensor"}},
        },
        "required": ["model_name", "outputs"],
    },
}


def _inference_paths(name: str) -> JsonObject:
    fault = {"$ref": "#/components/schemas/Fault"}

    def json_of(schema: str) -> JsonObject:
        return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}

    def told(operation: str, sentence: str) -> JsonObject:
        answers = {
            "200": _ok(sentence, {"application/json": {"schema": {}}}),
            "503": _faults("text/plain", _TEXT)["503"],
        }
        return {"get": {"operationId": operation, "summary": sentence, "responses": answers}}

    model = f"/v2/models/{name}"
    return {
        f"{model}/infer": {
            "post": {
                "operationId": "infer",
                "summary": "Call the function with tensors (Open Inference Protocol v2).",
                "requestBody": {"required": True, "content": json_of("InferenceRequest")},
                "responses": {
                    "200": _ok("Tensors.", json_of("InferenceAnswer")),
                    **_faults("application/json", fault),
                },
            }
        },
        model: told("modelMetadata", "The model's tensors."),
        f"{model}/ready": told("modelReady", "Whether the model takes requests now."),
        f"{model}/stats": told("modelStatistics", "Figures since the start."),
        f"{model}/config": told("modelConfiguration", "The model's configuration."),
        "/v2": told("serverMetadata", "The server and its extensions."),
        "/v2/health/live": told("live", "Whether the instance runs."),
        "/v2/health/ready": told("serverReady", "Whether it takes requests now."),
    }


# schemas -------------------------------------------------------------------------------------------------------------


def _lifted(schema: JsonObject, schemas: JsonObject) -> JsonObject:
    """A schema whose `$defs`, wherever they stand, are moved to the document's own; a taken name gets a number."""
    definitions: JsonObject = {}
    _gather(schema, definitions)
    names = {name: name for name in definitions}
    for name, definition in definitions.items():
        free = name
        while free in _TENSORS or schemas.get(free, _renamed(definition, names)) != _renamed(definition, names):
            free = f"{free}2"
        names[name] = free
    schemas |= {names[name]: _renamed(definition, names) for name, definition in definitions.items()}
    lifted: JsonObject = _renamed(schema, names)
    return lifted


def _gather(node: Any, definitions: JsonObject) -> None:
    if isinstance(node, dict):
        definitions.update(node.get("$defs", {}))
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _gather(value, definitions)


def _renamed(node: Any, names: dict[str, str]) -> Any:
    if isinstance(node, list):
        return [_renamed(value, names) for value in node]
    if isinstance(node, dict):
        return {key: _renamed(value, names) for key, value in node.items() if key != "$defs"}
    if isinstance(node, str) and node.startswith(_DEFINITION):
        return f"#/components/schemas/{names[node.removeprefix(_DEFINITION)]}"
    return node


def _sayable(example: Any) -> Any:
    """An example that JSON can say; None otherwise."""
    try:
        return json.loads(json.dumps(example, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        return None
