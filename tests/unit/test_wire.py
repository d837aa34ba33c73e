"""OpenFaaS JSON in and out: what clients compare comes back as it went in, what is wrong is named."""

import json

import pytest

from infless_core.errors import InvalidInput
from infless_provider import wire

MINIMAL = {"service": "hello", "image": "infless/hello:latest"}


def parse(**changes):
    """A deployment with some fields changed."""
    return wire.parse_deployment({**MINIMAL, **changes}, "openfaas-fn")


def test_the_least_deployment_is_echoed_without_inventions():
    """faas-cli tells an empty map from none."""
    assert wire.spec_json(parse()) == {
        "name": "hello",
        "image": "infless/hello:latest",
        "namespace": "openfaas-fn",
        "labels": {"faas_function": "hello"},
    }


def test_a_full_deployment_comes_back_unchanged():
    """Quantities as strings, order kept, and faas_function among the labels."""
    fields = {
        "envProcess": "python -m infless_watchdog",
        "envVars": {"a": "1"},
        "constraints": ["b", "a"],
        "secrets": ["s2", "s1"],
        "labels": {"x": "y"},
        "annotations": {"topic": "t"},
        "limits": {"memory": "256Mi", "cpu": "100m"},
        "requests": {"memory": "128Mi"},
        "readOnlyRootFilesystem": True,
    }
    out = wire.spec_json(parse(**fields))
    assert {**out, "labels": {"x": "y"}} == {
        "name": "hello",
        "image": MINIMAL["image"],
        "namespace": "openfaas-fn",
        **fields,
    }
    assert out["labels"] == {"x": "y", "faas_function": "hello"}


@pytest.mark.parametrize("field", ["labels", "annotations", "envVars", "constraints", "secrets", "limits", "requests"])
@pytest.mark.parametrize("nothing", [None, {}, []])
def test_null_and_empty_mean_absent(field, nothing):
    """Older clients send labels and annotations as null."""
    assert parse(**{field: nothing}) == parse()


def test_fields_of_later_versions_are_ignored():
    """OpenFaaS may add some."""
    assert parse(futureField={"a": 1}) == parse()


@pytest.mark.parametrize("namespace", ["", None, "openfaas-fn"])
def test_the_one_namespace(namespace):
    """Empty means the default."""
    assert parse(namespace=namespace).namespace == "openfaas-fn"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"service": "Hello"}, "service 'Hello' is not a function name: use a-z"),
        ({"service": None}, "service None is not a function name"),
        ({"service": "a" * 64}, "at most 63 characters"),
        ({"service": "-a"}, "service '-a' is not"),
        ({"image": ""}, "image is missing"),
        ({"image": 5}, "image is missing"),
        ({"image": "../etc"}, "is not an image reference"),
        ({"image": "a/../b"}, "is not an image reference"),
        ({"namespace": "other"}, "namespace 'other' does not exist; the only one is 'openfaas-fn'"),
        ({"envVars": {"a": 1}}, "envVars must be an object of strings"),
        ({"envVars": {"1a": "x"}}, "'1a' is not a variable name"),
        ({"envVars": {"a": "x\0y"}}, "the value of 'a' is not text"),
        ({"envVars": {"a": "\ud800"}}, "the value of 'a' is not text"),
        ({"envProcess": ["x"]}, "envProcess must be a string"),
        ({"readOnlyRootFilesystem": "no"}, "readOnlyRootFilesystem must be true or false"),
        ({"labels": {"a": True}}, "labels must be an object of strings"),
        ({"labels": ["a"]}, "labels must be an object of strings"),
        ({"secrets": {"a": "b"}}, "secrets must be a list of strings"),
        ({"constraints": [1]}, "constraints must be a list of strings"),
        ({"limits": {"memory": "lots"}}, "limits.memory: 'lots' is not an amount of memory"),
        ({"requests": {"cpu": "x"}}, "requests.cpu: 'x' is not an amount of cpu"),
    ],
)
def test_a_wrong_field_is_named(changes, sentence):
    """With the value and what is allowed."""
    with pytest.raises(InvalidInput) as fault:
        parse(**changes)
    assert sentence in str(fault.value)


def test_all_faults_at_once():
    """One answer, every sentence."""
    with pytest.raises(InvalidInput) as fault:
        parse(service="X", image="", labels=3)
    assert len(str(fault.value).split("; ")) == 3


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'"x"', b"\xff", b"9" * 5000, b"[" * 100_000])
def test_a_body_must_be_a_json_object(body):
    """Whatever came: InvalidInput."""
    with pytest.raises(InvalidInput, match="the request's body"):
        wire.parse_object(body)


def test_status_is_typed_as_go_wants_it():
    """Counts without a fraction, time with a zone."""
    status = wire.status_json(parse(), replicas=2, available=1, invocations=7, created_at_s=1.5)
    assert json.dumps([status["replicas"], status["availableReplicas"], status["invocationCount"]]) == "[2, 1, 7]"
    assert status["createdAt"] == "1970-01-01T00:00:01.500000Z"


@pytest.mark.parametrize("replicas", [0, 1, 1000])
def test_scale(replicas):
    """Zero is legal in the protocol."""
    assert wire.parse_scale({"serviceName": "hello", "replicas": replicas}) == replicas


@pytest.mark.parametrize("replicas", [-1, 1.0, "2", None, True, 1001])
def test_scale_refuses_what_is_no_count(replicas):
    """A boolean is no number either."""
    with pytest.raises(InvalidInput, match="write a whole number from 0 to 1000"):
        wire.parse_scale({"replicas": replicas})


@pytest.mark.parametrize(
    ("text", "name"), [("f", "f"), ("f.openfaas-fn", "f"), ("f.other", "f.other"), (".openfaas-fn", ""), ("", "")]
)
def test_names_with_a_namespace(text, name):
    """The suffix is dropped; a foreign one stays, so that it is not found."""
    assert wire.split_name(text, "openfaas-fn") == name


@pytest.mark.parametrize(
    "text", ["2026-11-23T22:03:59Z", "2026-11-23T23:03:59+01:00", "2026-11-23T22:03:59.000000000Z"]
)
def test_times_with_a_zone(text):
    """RFC 3339, with Go's nanoseconds too."""
    assert wire.rfc3339(wire.parse_rfc3339_s(text)) == "2026-11-23T22:03:59.000000Z"


@pytest.mark.parametrize("text", ["", "now", "2026-11-23", "2026-11-23T22:03:59", "2026-13-01T00:00:00Z"])
def test_times_without_a_zone_are_none(text):
    """Nor is anything else."""
    with pytest.raises(InvalidInput, match="is not a time such as"):
        wire.parse_rfc3339_s(text)
