"""OpenFaaS JSON: round trips, and nothing but InvalidInput whatever comes."""

import json

from hypothesis import given
from hypothesis import strategies as st

from infless_core.errors import InvalidInput
from infless_core.model import FunctionSpec
from infless_provider import logs, wire

NAMES = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True)
TEXT = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"))
MAPS = st.dictionaries(st.text(), TEXT, max_size=3)
DEPLOYMENTS = st.fixed_dictionaries(
    {
        "service": NAMES,
        "image": st.from_regex(r"[a-z][a-z0-9/:.-]{0,10}[a-z0-9]", fullmatch=True).filter(lambda i: ".." not in i),
    },
    optional={
        "namespace": st.sampled_from(["", "openfaas-fn"]),
        "envProcess": TEXT,
        "envVars": st.dictionaries(st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,9}", fullmatch=True), TEXT, max_size=3),
        "labels": MAPS,
        "annotations": MAPS,
        "constraints": st.lists(st.text(), max_size=3),
        "secrets": st.lists(st.text(), max_size=3),
        "limits": st.fixed_dictionaries({}, optional={"memory": st.just("1Gi"), "cpu": st.just("100m")}),
        "readOnlyRootFilesystem": st.booleans(),
    },
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["service", "image", "namespace", "envProcess", "envVars", "labels", "annotations", "constraints", "secrets",
     "limits", "requests", "readOnlyRootFilesystem", "replicas"]
)  # fmt: skip


@given(DEPLOYMENTS)
def test_what_went_in_comes_out(deployment):
    """Every field that says something, unchanged; labels gain the function's name."""
    out = wire.spec_json(wire.parse_deployment(deployment, "openfaas-fn"))
    said = {key: value for key, value in deployment.items() if value and key not in ("service", "namespace", "labels")}
    labels = {**deployment.get("labels", {}), "faas_function": deployment["service"]}
    assert out == {**said, "name": deployment["service"], "namespace": "openfaas-fn", "labels": labels}


@given(DEPLOYMENTS)
def test_reading_the_echo_gives_the_same_function(deployment):
    """Deploying what `describe` shows changes nothing but that label."""
    spec = wire.parse_deployment(deployment, "openfaas-fn")
    echo = json.loads(json.dumps(wire.spec_json(spec)))
    echo["service"] = echo.pop("name")
    again = wire.parse_deployment(echo, "openfaas-fn")
    assert wire.spec_json(again) == wire.spec_json(spec)


@given(st.dictionaries(FIELDS, JSON) | DEPLOYMENTS.flatmap(lambda d: st.builds(lambda k, v: {**d, k: v}, FIELDS, JSON)))
def test_any_object_is_a_function_or_invalid(data):
    """Never another error; what is taken can be given to a process and written as JSON."""
    try:
        spec = wire.parse_deployment(data, "openfaas-fn")
    except InvalidInput:
        return
    assert isinstance(spec, FunctionSpec)
    json.dumps(wire.spec_json(spec)).encode()
    for key, value in spec.env_vars.items():
        assert b"\0" not in f"{key}={value}".encode()


@given(JSON)
def test_any_scale_request_is_a_count_or_invalid(replicas):
    """Never another error."""
    try:
        assert 0 <= wire.parse_scale({"replicas": replicas}) <= 1000
    except InvalidInput:
        pass


@given(st.binary() | st.text().map(str.encode) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_body_is_an_object_or_invalid(body):
    """Never another error."""
    try:
        assert isinstance(wire.parse_object(body), dict)
    except InvalidInput:
        pass


@given(st.floats(0, 4e9))
def test_times_are_read_again(seconds):
    """To the microsecond."""
    assert abs(wire.parse_rfc3339_s(wire.rfc3339(seconds)) - seconds) < 1e-5


@given(st.text())
def test_any_time_is_one_or_invalid(text):
    """Never another error."""
    try:
        wire.parse_rfc3339_s(text)
    except InvalidInput:
        pass


@given(st.text() | st.builds("name=f&tail={}&since={}&follow={}".format, st.text(), st.text(), st.text()))
def test_any_log_query_is_one_or_invalid(query):
    """Never another error."""
    try:
        assert logs.parse_query(query, 0.0).tail >= 0
    except InvalidInput:
        pass
