"""The real provider against its OpenAPI document: what it says happens, whatever is sent."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import pytest
import requests
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from openapi_schema_validator import OAS31Validator
from provider_process import ROOT, ProviderProcess
from requests.auth import HTTPBasicAuth

schemathesis = pytest.importorskip("schemathesis")
from schemathesis import GenerationMode  # noqa: E402
from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.specs.openapi.checks import (  # noqa: E402
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

pytestmark = pytest.mark.integration

PATH = ROOT / "docs" / "reference" / "openapi.yaml"
DOCUMENT = yaml.safe_load(PATH.read_text())
OPERATIONS = [found.ok() for found in schemathesis.openapi.from_path(PATH).get_all_operations()]
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
CASES = 20
"""For each operation and each way to make them: 90 s are allowed for all."""
KNOWN, MADE = "echo", "made"
"""A function that is there, and stays; what is made and removed again."""
HANDLER = 'def handle(event, context): return {"statusCode": 200, "body": f"{len(event.body)} bytes"}\n'
"""Takes everything."""
NEVER = {"DELETE /async-function/{name}/{path}"}
"""Succeeds only while the call waits, which chance does not meet; the queue's own tests do."""


def label(operation: Any) -> str:
    """As people say it."""
    return f"{operation.method.upper()} {operation.path}"


@pytest.fixture(scope="module")
def api(provider: ProviderProcess) -> ProviderProcess:
    """A provider with one function."""
    provider.deploy(KNOWN, HANDLER)
    return provider


@pytest.fixture(scope="module")
def seen() -> dict[str, set[int]]:
    """Statuses by operation, of all cases."""
    return defaultdict(set)


def steer(case: Any) -> None:
    """Make a valid case about something that exists; chance alone would meet 404 only."""
    name = label(case.operation)
    if "name" in case.path_parameters:
        case.path_parameters["name"] = MADE if "/namespace/" in name else KNOWN
    if name.startswith("GET /system/logs"):
        case.query["name"] = KNOWN
    case.query.pop("namespace", None)
    case.headers.pop("X-Callback-Url", None)
    if isinstance(case.body, dict) and name.startswith(("POST /system", "PUT /system", "DELETE /system")):
        case.body.pop("namespace", None)
        case.body.update({key: MADE for key in ("service", "functionName", "name") if key in case.body})
        if "service" in case.body:
            case.body |= {"image": f"test/{KNOWN}:latest", "secrets": [], "labels": None, "limits": {}, "requests": {}}
        if "replicas" in case.body:
            case.body["replicas"] = min(case.body["replicas"], 1)


def tame(case: Any) -> None:
    """Take out what would last for ever or is meant to fail."""
    case.query.pop("follow", None)
    if "X-Timeout" in case.headers:
        case.headers["X-Timeout"] = "20s"


def try_out(api: ProviderProcess, operation: Any, mode: GenerationMode, seen: set[int]) -> None:
    """Send cases and check the answers."""
    auth = HTTPBasicAuth("admin", api.password) if operation.path.startswith("/system/") else None

    @seed(20260131)
    @settings(
        max_examples=CASES,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode), about_known=st.booleans())
    def one(case: Any, about_known: bool) -> None:
        tame(case)
        if about_known and mode is GenerationMode.POSITIVE:
            steer(case)
        response = case.call(base_url=api.url, auth=auth, timeout=30)
        seen.add(response.status_code)
        case.validate_response(response, checks=CHECKS)

    one()


@pytest.mark.parametrize("operation", OPERATIONS, ids=label)
def test_valid_requests(api: ProviderProcess, operation: Any, seen: dict[str, set[int]]) -> None:
    """Statuses, content types, headers and bodies are as documented, and each operation succeeds at least once."""
    statuses = seen[label(operation)]
    try_out(api, operation, GenerationMode.POSITIVE, statuses)
    assert any(status < 400 for status in statuses) or label(operation) in NEVER, statuses


@pytest.mark.parametrize("operation", OPERATIONS, ids=label)
def test_invalid_requests(api: ProviderProcess, operation: Any, seen: dict[str, set[int]]) -> None:
    """They are answered as documented, and nothing breaks."""
    if not (operation.body or any(True for _ in operation.iter_parameters())):
        pytest.skip("it takes nothing")
    try_out(api, operation, GenerationMode.NEGATIVE, seen[label(operation)])


GUARDED = [operation for operation in OPERATIONS if operation.path.startswith("/system/")]


@pytest.mark.parametrize("header", ["", "Bearer ", "Basic YWRtaW46d3Jvbmc="])
@pytest.mark.parametrize("operation", GUARDED, ids=label)
def test_without_credentials(api: ProviderProcess, operation: Any, header: str) -> None:
    """401 with a challenge, before anything else is looked at."""
    url = api.url + operation.path.replace("{name}", KNOWN)
    answer = requests.request(operation.method, url, data=b"{", headers={"Authorization": header}, timeout=10)
    assert (answer.status_code, answer.text) == (401, "invalid credentials\n")
    assert answer.headers["www-authenticate"] == 'Basic realm="Restricted"'


@pytest.mark.parametrize("operation", [one for one in GUARDED if one.method != "get"], ids=label)
def test_from_a_page_of_another_site(api: ProviderProcess, operation: Any) -> None:
    """A browser that remembers the password must not be made to use it."""
    url = operation.path.replace("{name}", KNOWN)
    answer = api.send(operation.method, url, {}, headers={"Origin": "http://elsewhere.example"})
    assert answer.status_code == 403
    assert answer.headers["content-type"].startswith("text/plain")


def test_a_refusal_is_plain_text(api: ProviderProcess) -> None:
    """As every other error is."""
    answer = requests.get(f"{api.url}/system/functions", timeout=10)
    assert answer.status_code == 401
    assert answer.headers["content-type"].startswith("text/plain")


def test_log_lines(api: ProviderProcess) -> None:
    """Each line of the stream is a `LogLine`."""
    lines = api.send("GET", f"/system/logs?name={KNOWN}").text.splitlines()
    validator = OAS31Validator(
        DOCUMENT["components"]["schemas"]["LogLine"], format_checker=OAS31Validator.FORMAT_CHECKER
    )
    assert lines
    for line in lines:
        validator.validate(json.loads(line))


def test_it_still_works(api: ProviderProcess) -> None:
    """After all that, in the same process."""
    assert api.invoke(KNOWN).text == "4 bytes"
    assert api.process is not None
    assert api.process.poll() is None
    assert "Traceback" not in api.log.read_text()
