"""OpenFaaS JSON in and out: what clients compare comes back as it went in, what is wrong is named."""

import json

import pytest

from infless_core.errors import InvalidInput
from infless_provider import wire

MINIMAL = {"service": "hello", "image": "infless/hello:latest"}


BAD_NAMES = ["..", "a/b", "A", "a.b", "-a", "a-", "a" * 64, "a\n", " a", "*", "a\0", 5, ["a"], {"a": 1}, True]
"""None of these may name a folder."""


def parse(**changes):
    """A deployment with some fields changed."""
    return wire.parse_deployment({**MINIMAL, **changes})


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


@pytest.mark.parametrize(
    ("namespace", "meant"),
    [("", "openfaas-fn"), (None, "openfaas-fn"), ("openfaas-fn", "openfaas-fn"), ("dev", "dev"), ("a" * 63, "a" * 63)],
)
def test_namespaces(namespace, meant):
    """Empty means the default; whether it exists is for others to say."""
    assert parse(namespace=namespace).namespace == wire.parse_namespace(namespace) == meant


@pytest.mark.parametrize("namespace", BAD_NAMES)
def test_what_is_no_namespace(namespace):
    """It would leave its folder, or no client could name it."""
    with pytest.raises(InvalidInput, match="is not a namespace's name: use a-z, 0-9 and '-' inside"):
        wire.parse_namespace(namespace)
    with pytest.raises(InvalidInput, match="is not a namespace's name"):
        parse(namespace=namespace)


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
        ({"envVars": {"a": 1}}, "envVars must be an object of strings"),
        ({"envVars": {"1a": "x"}}, "'1a' is not a variable name"),
        ({"envVars": {"a": "x\0y"}}, "the value of 'a' is not text"),
        ({"envVars": {"a": "\ud800"}}, "the value of 'a' is not text"),
        ({"envProcess": ["x"]}, "envProcess must be a string"),
        ({"envProcess": "\ud800"}, "envProcess must be a string of text"),
        ({"constraints": ["\ud800"]}, r"constraints: '\ud800' is not text"),
        ({"limits": {"\ud800": "1"}}, r"limits: '\ud800' or its value is not text"),
        ({"requests": {"pods": "\ud800"}}, "requests: 'pods' or its value is not text"),
        ({"readOnlyRootFilesystem": "no"}, "readOnlyRootFilesystem must be true or false"),
        ({"labels": {"a": True}}, "labels must be an object of strings"),
        ({"labels": ["a"]}, "labels must be an object of strings"),
        ({"labels": {"": "x"}}, "labels: '' is empty, or it or its value holds a control character"),
        ({"labels": {"a\nb": "x"}}, "labels: 'a\\nb' is empty, or it or its value holds a control character"),
        ({"labels": {"a": "x\x1b[2J"}}, "labels: 'a' is empty, or it or its value holds a control character"),
        ({"labels": {"a": "\ud800"}}, "labels: 'a' is empty, or it or its value holds a control character"),
        ({"annotations": {"a": "\ud800"}}, "annotations: 'a' or its value is not text"),
        ({"secrets": {"a": "b"}}, "secrets must be a list of strings"),
        ({"secrets": ["ok", "../x"]}, "secrets: '../x' is not a secret's name"),
        ({"secrets": ["Key"]}, "secrets: 'Key' is not a secret's name"),
        ({"secrets": [""]}, "secrets: '' is not a secret's name"),
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
    ("text", "namespace", "key"),
    [
        ("f", "", "f.openfaas-fn"),
        ("f", "dev", "f.dev"),
        ("f.dev", "", "f.dev"),
        ("f.dev", "other", "f.dev"),
        ("f.openfaas-fn", "", "f.openfaas-fn"),
        (".openfaas-fn", "", ".openfaas-fn"),
        ("", "", ".openfaas-fn"),
        ("a.b.c", "", "a.b.c"),
    ],
)
def test_keys(text, namespace, key):
    """What stands in the URL wins; what can be no function's name gives a key that no function has."""
    assert wire.function_key(text, namespace) == key


class TestSecrets:
    """Names are checked, values are kept as they are and told to nobody."""

    @pytest.mark.parametrize(
        ("fields", "value"),
        [
            ({"value": "text"}, b"text"),
            ({"value": " gr\u00fc\u00df \n"}, " gr\u00fc\u00df \n".encode()),
            ({"rawValue": "AP8="}, b"\x00\xff"),
            ({"value": "text", "rawValue": "AP8="}, b"\x00\xff"),
            ({"value": "text", "rawValue": ""}, b"text"),
            ({"value": "text", "rawValue": None}, b"text"),
        ],
    )
    def test_values(self, fields, value):
        """`rawValue` wins where both are there, as `faas-cli secret create --from-file` sends them."""
        assert wire.parse_secret({"name": "key", **fields}, valued=True).value == value

    @pytest.mark.parametrize("name", ["key", "a", "tls.crt", "a-b.c-d", "0", "a" * 253])
    def test_names(self, name):
        """DNS subdomains, as Kubernetes has them."""
        wish = wire.parse_secret({"name": name, "namespace": "dev"}, valued=False)
        assert (wish.name, wish.namespace, wish.value) == (name, "dev", b"")

    @pytest.mark.parametrize(
        "name",
        [None, "", 5, ["a"], "..", ".", "a/b", "../key", "Key", "a_b", ".a", "a.", "a..b", "a\0", "a\n", "a" * 254],
    )
    def test_what_is_no_name(self, name):
        """It would leave its folder, or hide in it."""
        with pytest.raises(InvalidInput, match="is not a secret's name: use a-z, 0-9, '-' and '.' inside, at most 253"):
            wire.parse_secret({"name": name, "value": "x"}, valued=True)

    @pytest.mark.parametrize("namespace", BAD_NAMES)
    def test_what_is_no_namespace(self, namespace):
        """It would leave its folder."""
        with pytest.raises(InvalidInput, match="is not a namespace's name"):
            wire.parse_secret({"name": "key", "namespace": namespace, "value": "x"}, valued=True)

    @pytest.mark.parametrize("fields", [{}, {"value": ""}, {"value": None}, {"rawValue": ""}, {"rawValue": None}])
    def test_without_a_value(self, fields):
        """An empty secret is a slip; who removes one need not send its value."""
        with pytest.raises(InvalidInput, match="secret 'key' has no value: send value, or rawValue in base64"):
            wire.parse_secret({"name": "key", **fields}, valued=True)
        assert wire.parse_secret({"name": "key", **fields}, valued=False).value == b""

    @pytest.mark.parametrize(
        ("fields", "sentence"),
        [
            ({"value": 12345}, "value and rawValue of secret 'key' must be strings"),
            ({"rawValue": ["hush"]}, "value and rawValue of secret 'key' must be strings"),
            ({"rawValue": "hush!"}, "rawValue of secret 'key' is not base64"),
            ({"rawValue": "hush\u00fc"}, "rawValue of secret 'key' is not base64"),
        ],
    )
    def test_wrong_values_are_not_repeated(self, fields, sentence):
        """An error ends up in a terminal and in logs."""
        with pytest.raises(InvalidInput) as fault:
            wire.parse_secret({"name": "key", **fields}, valued=True)
        assert str(fault.value) == sentence

    def test_as_large_as_kubernetes_has_them(self):
        """And no larger; what counts is what is kept, not its base64."""
        most = wire.SECRET_BYTES_MAX
        assert len(wire.parse_secret({"name": "key", "value": "x" * most}, valued=True).value) == most
        with pytest.raises(InvalidInput, match="the value of secret 'key' is larger than the allowed 1048576 bytes"):
            wire.parse_secret({"name": "key", "value": "\u00fc" * (most // 2) + "x"}, valued=True)

    def test_a_value_is_in_no_text(self):
        """Who prints a wish gives nothing away."""
        wish = wire.parse_secret({"name": "key", "value": "hush-hush"}, valued=True)
        assert "hush" not in f"{wish} {wish!r}"


class TestFunctionNamespaces:
    """Name, labels and annotations, as `faas-cli namespace` sends them."""

    def test_as_clients_send_it(self):
        """The name is in the body where the path has none."""
        data = {"name": "dev", "labels": {"openfaas": "1"}, "annotations": {"openfaas": "1"}}
        expected = ("dev", {"openfaas": "1"}, {"openfaas": "1"})
        assert wire.parse_function_namespace(data) == wire.parse_function_namespace(data, "dev") == expected

    def test_the_path_is_enough(self):
        """Labels may be absent or null."""
        assert wire.parse_function_namespace({"labels": None}, "dev") == ("dev", {}, {})

    @pytest.mark.parametrize("name", [*BAD_NAMES, None, ""])
    def test_what_is_no_name(self, name):
        """Named with what is allowed; there is no default here."""
        with pytest.raises(InvalidInput, match="is not a namespace's name: use a-z, 0-9 and '-' inside, at most 63"):
            wire.parse_function_namespace({"name": name})

    def test_two_names(self):
        """Which one is meant is not for us to guess."""
        with pytest.raises(InvalidInput, match="the path names namespace 'a' and the body 'b'; they must be the same"):
            wire.parse_function_namespace({"name": "b"}, "a")

    def test_all_faults_at_once(self):
        """One answer, every sentence."""
        with pytest.raises(InvalidInput) as fault:
            wire.parse_function_namespace({"name": "B", "labels": 3, "annotations": {"a": 1}})
        assert len(str(fault.value).split("; ")) == 3


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
