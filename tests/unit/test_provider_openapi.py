"""The provider's OpenAPI document: valid, and of the same routes as the provider."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openapi_spec_validator
import pytest
import yaml

from infless_provider import forwarding
from infless_provider.routes import STATUS, build_app
from infless_provider.version import VERSION

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = yaml.safe_load((ROOT / "docs" / "reference" / "openapi.yaml").read_text())
FORWARDED = {method.lower() for method in forwarding.METHODS}
ON_THE_LOOP = {
    "/function/{name}": FORWARDED,
    "/function/{name}/{path}": FORWARDED,
    "/async-function/{name}": {"post"},
    "/async-function/{name}/{path}": {"post", "delete"},
    "/system/logs": {"get"},
    "/healthz": {"get"},
}
"""What `service.Provider` answers without Flask."""
OPEN = {"/healthz", "/metrics", "/api/v1/query"}


class Parts:
    """Stands for everything that answers; nothing is asked here."""

    def __getattr__(self, name: str) -> Parts:
        """All of it."""
        return Parts()


def documented() -> dict[str, set[str]]:
    """Methods of each path, with path parameters as `{}`."""
    return {unnamed(path): methods_of(item) for path, item in DOCUMENT["paths"].items()}


def methods_of(item: dict[str, Any]) -> set[str]:
    """A path item's methods."""
    return set(item) - {"parameters"}


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Path, method and operation."""
    for path, item in DOCUMENT["paths"].items():
        for method in methods_of(item):
            yield path, method, item[method]


def unnamed(path: str) -> str:
    """A path without the names of its parameters."""
    return re.sub(r"[<{][^>}]+[>}]", "{}", path)


@pytest.fixture(scope="module")
def served() -> dict[str, set[str]]:
    """Methods of each path of the provider."""
    loop = asyncio.new_event_loop()
    app = build_app(Parts(), loop, None)  # type: ignore[arg-type]
    loop.close()
    found: dict[str, set[str]] = {unnamed(path): set(methods) for path, methods in ON_THE_LOOP.items()}
    for rule in app.url_map.iter_rules():
        if rule.endpoint != "static":
            # Flask adds HEAD and OPTIONS of its own; they say nothing that GET and the document do not.
            added = {method.lower() for method in rule.methods or ()} - {"head", "options"}
            found.setdefault(unnamed(rule.rule), set()).update(added)
    return found


def test_the_document_is_valid() -> None:
    """By the validator that the watchdog's documents pass, too."""
    openapi_spec_validator.validate(DOCUMENT)


def test_every_route_is_documented_and_nothing_else(served: dict[str, set[str]]) -> None:
    """Both ways, with their methods."""
    assert documented() == served


def test_what_needs_credentials() -> None:
    """All of /system does, what watches and invokes does not."""
    for path, method, operation in operations():
        security = operation.get("security", DOCUMENT["security"])
        if path.startswith("/system/"):
            assert security == [{"basicAuth": []}], (method, path)
            assert "401" in operation["responses"], (method, path)
        else:
            assert security == ([] if path in OPEN else [{}, {"functionToken": []}]), (method, path)


def test_statuses_of_errors_are_those_of_the_table() -> None:
    """What the provider can raise where something is changed is documented there."""
    allowed = {str(status) for status in STATUS.values()} | {"401", "403", "413", "422", "429"}
    for path, method, operation in operations():
        errors = {status for status in operation["responses"] if status[0] in "45"}
        if path.startswith("/system/"):
            assert errors <= allowed, (method, path)
            if method != "get":
                assert {"400", "401", "403", "503"} <= errors, (method, path)


def test_operations_can_be_named_and_found() -> None:
    """Each has a summary and a known tag, and those with an id of their own have one id each."""
    tags = {tag["name"] for tag in DOCUMENT["tags"]}
    ids = [operation["operationId"] for _, _, operation in operations() if "operationId" in operation]
    assert len(ids) == len(set(ids))
    for path, method, operation in operations():
        assert operation["summary"], (method, path)
        assert set(operation["tags"]) <= tags, (method, path)


def test_it_is_of_this_version() -> None:
    """A release changes both."""
    assert DOCUMENT["info"]["version"] == VERSION
