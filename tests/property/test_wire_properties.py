"""OpenFaaS JSON: round trips, and nothing but InvalidInput whatever comes."""

import base64
import contextlib
import json
import posixpath
from pathlib import PurePosixPath

from hypothesis import assume, given
from hypothesis import strategies as st

from infless_core.errors import InvalidInput
from infless_core.model import FunctionSpec
from infless_provider import logs, wire

NAMES = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True)
TEXT = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"))
LINE = st.text(st.characters(blacklist_categories=["Cc", "Cs"]))
SECRET_NAMES = st.lists(NAMES, min_size=1, max_size=3).map(".".join)
TRICKY = st.sampled_from(
    [".", "..", "/", "\\", "\0", "\n", "~", "*", "%2e%2e", "a", "0", "-", "A", "\u0660", "\uff0e", ""]
)
PATHS = st.lists(TRICKY, max_size=6).map("".join) | st.text() | NAMES | SECRET_NAMES
"""What somebody might send to leave a folder, and what is right."""
DEPLOYMENTS = st.fixed_dictionaries(
    {
        "service": NAMES,
        "image": st.from_regex(r"[a-z][a-z0-9/:.-]{0,10}[a-z0-9]", fullmatch=True).filter(lambda i: ".." not in i),
    },
    optional={
        "namespace": st.just("") | NAMES,
        "envProcess": TEXT,
        "envVars": st.dictionaries(st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,9}", fullmatch=True), TEXT, max_size=3),
        "labels": st.dictionaries(LINE.filter(bool), LINE, max_size=3),
        "annotations": st.dictionaries(TEXT, TEXT, max_size=3),
        "constraints": st.lists(TEXT, max_size=3),
        "secrets": st.lists(SECRET_NAMES, max_size=3),
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
    out = wire.spec_json(wire.parse_deployment(deployment))
    said = {key: value for key, value in deployment.items() if value and key not in ("service", "namespace", "labels")}
    namespace = deployment.get("namespace") or "openfaas-fn"
    labels = {**deployment.get("labels", {}), "faas_function": deployment["service"]}
    assert out == {**said, "name": deployment["service"], "namespace": namespace, "labels": labels}


@given(DEPLOYMENTS)
def test_reading_the_echo_gives_the_same_function(deployment):
    """Deploying what `describe` shows changes nothing but that label."""
    spec = wire.parse_deployment(deployment)
    echo = json.loads(json.dumps(wire.spec_json(spec)))
    echo["service"] = echo.pop("name")
    again = wire.parse_deployment(echo)
    assert wire.spec_json(again) == wire.spec_json(spec)


@given(st.dictionaries(FIELDS, JSON) | DEPLOYMENTS.flatmap(lambda d: st.builds(lambda k, v: {**d, k: v}, FIELDS, JSON)))
def test_any_object_is_a_function_or_invalid(data):
    """Never another error; what is taken can be given to a process and written as JSON."""
    try:
        spec = wire.parse_deployment(data)
    except InvalidInput:
        return
    assert isinstance(spec, FunctionSpec)
    json.dumps(wire.spec_json(spec)).encode()
    for key, value in spec.env_vars.items():
        assert b"\0" not in f"{key}={value}".encode()
    for key, value in spec.labels.items():
        assert "\n" not in key + value


def stays_within(*parts):
    """Whether a path of these parts is exactly so deep below where it begins, and none is hidden or a pattern."""
    path = PurePosixPath("/base", *parts)
    return (
        posixpath.normpath(path) == str(path)
        and path.parts == ("/", "base", *parts)
        and not any(part.startswith(".") or set(part) & set("*?[]\0\n\\") for part in parts)
        and all(len(part.encode()) <= 255 for part in parts)
    )


@given(PATHS, PATHS, PATHS, st.lists(PATHS, max_size=3))
def test_no_deployment_leaves_its_folder(name, image, namespace, secrets):
    """Whatever names are taken can be parts of paths: of its own folder, and of a file for each secret."""
    try:
        spec = wire.parse_deployment({"service": name, "image": image, "namespace": namespace, "secrets": secrets})
    except InvalidInput:
        return
    assert spec.namespace == (namespace or "openfaas-fn")
    assert all(stays_within(spec.namespace, spec.key, one) for one in spec.secrets or ["x"])
    assert ".." not in spec.image
    assert not spec.image.startswith("/")


@given(PATHS, PATHS)
def test_no_secret_leaves_its_folder(name, namespace):
    """Nor hides in it, nor stands for others."""
    try:
        wish = wire.parse_secret({"name": name, "namespace": namespace, "value": "x"}, valued=True)
    except InvalidInput:
        return
    assert (wish.name, wish.namespace) == (name, namespace or "openfaas-fn")
    assert stays_within(wish.namespace, wish.name)


@given(PATHS, PATHS)
def test_no_namespace_leaves_its_folder(name, path):
    """By either way to name one."""
    with contextlib.suppress(InvalidInput):
        assert stays_within(wire.parse_namespace(name))
    with contextlib.suppress(InvalidInput):
        assert stays_within(wire.parse_function_namespace({"name": name}, path)[0])


SOME = st.sampled_from(["a", "b", "openfaas-fn"])
"""So few that they meet."""


@given(SOME | st.builds("{}.{}".format, SOME, SOME) | PATHS, SOME | st.just(""), SOME, SOME)
def test_a_key_finds_only_what_was_meant(text, namespace, name, other):
    """Whatever stands in a URL: the function of that name, in the namespace that it names or that was named beside it."""
    named = text == f"{name}.{other}"
    beside = text == name and (namespace or "openfaas-fn") == other
    assert (wire.function_key(text, namespace) == f"{name}.{other}") == (named or beside)


@given(st.text(min_size=8), SECRET_NAMES, st.dictionaries(st.sampled_from(["name", "namespace", "rawValue"]), JSON))
def test_a_secrets_value_is_in_no_text(value, name, wrong):
    """Neither where it is taken nor where something beside it is wrong."""
    beside = f"{name}{wrong}{wrong!r}"
    assume(value not in beside and repr(value)[1:-1] not in beside)  # else it is told as something else
    sent = {"name": name, "value": value, **wrong}
    try:
        told = repr(wire.parse_secret(sent, valued=True))
    except InvalidInput as fault:
        told = str(fault)
    assert value not in told
    assert repr(value)[1:-1] not in told


@given(st.binary(min_size=1), SECRET_NAMES, st.text())
def test_secrets_come_out_as_they_went_in(value, name, text):
    """Bytes for bytes in base64, which wins over the text."""
    raw = base64.b64encode(value).decode()
    assert wire.parse_secret({"name": name, "rawValue": raw, "value": text}, valued=True).value == value


@given(st.dictionaries(st.sampled_from(["name", "namespace", "value", "rawValue"]), JSON), st.booleans())
def test_any_object_is_a_secret_or_invalid(data, valued):
    """Never another error."""
    try:
        wish = wire.parse_secret(data, valued=valued)
    except InvalidInput:
        return
    assert wish.value or not valued


@given(st.dictionaries(st.sampled_from(["name", "labels", "annotations"]), JSON), st.text())
def test_any_object_is_a_namespace_or_invalid(data, path):
    """Never another error; what is taken can be written as JSON."""
    with contextlib.suppress(InvalidInput):
        json.dumps(wire.parse_function_namespace(data, path)).encode()


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
