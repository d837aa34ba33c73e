"""stack.yml as faas-cli reads it."""

import pytest

from infless_core.errors import InvalidInput
from infless_provider.stackfile import read_stack

HEAD = "version: 1.0\nprovider:\n  name: openfaas\n  gateway: http://127.0.0.1:8080\n"
HELLO = "functions:\n  hello:\n    lang: infless-python\n    handler: ./hello\n    image: hello:1\n"


@pytest.fixture
def stack(tmp_path):
    """Write a stack file and read it."""

    def read(text, environ=None, only=()):
        (tmp_path / "stack.yml").write_text(text)
        return read_stack(tmp_path / "stack.yml", environ or {}, only)

    return read


def test_the_least_function(stack, tmp_path):
    """Paths are relative to the file; absent fields are not sent."""
    found = stack(HEAD + HELLO)
    assert found.gateway == "http://127.0.0.1:8080"
    assert found.functions[0].handler == tmp_path / "hello"
    assert found.functions[0].deployment == {"service": "hello", "image": "hello:1", "envProcess": ""}


def test_scalars_become_strings(stack):
    """As faas-cli sends them: numbers, booleans, nothing."""
    deployment = (
        stack(HEAD + HELLO + "    labels: {a: 32, b: true, c: 1.5, d: null, e: text}\n").functions[0].deployment
    )
    assert deployment["labels"] == {"a": "32", "b": "true", "c": "1.5", "d": "", "e": "text"}


def test_every_field_travels(stack):
    """With the names of the API; of limits and requests only memory and cpu, as in faas-cli."""
    more = """    fprocess: run
    namespace: openfaas-fn
    environment: {k: v}
    annotations: {topic: t}
    constraints: [gpu]
    secrets: [key]
    limits: {memory: 1Gi, cpu: 2, nvidia.com/gpu: 1}
    requests: {cpu: 500m}
    readonly_root_filesystem: true
"""
    assert stack(HEAD + HELLO + more).functions[0].deployment == {
        "service": "hello", "image": "hello:1", "envProcess": "run", "namespace": "openfaas-fn",
        "envVars": {"k": "v"}, "annotations": {"topic": "t"}, "constraints": ["gpu"], "secrets": ["key"],
        "limits": {"memory": "1Gi", "cpu": "2"}, "requests": {"cpu": "500m"}, "readOnlyRootFilesystem": True,
    }  # fmt: skip


def test_variables_are_filled_in(stack):
    """From the environment, else the default behind `:-`."""
    text = (HEAD + HELLO).replace("hello:1", "${REPO:-mine}/hello:${TAG:-latest}")
    assert stack(text, {"TAG": "7"}).functions[0].image == "mine/hello:7"


def test_environment_files_win(stack, tmp_path):
    """Over `environment`, as in faas-cli."""
    (tmp_path / "env.yml").write_text("environment: {a: 2}\n")
    found = stack(HEAD + HELLO + "    environment: {a: 1, b: 1}\n    environment_file: [env.yml]\n")
    assert found.functions[0].deployment["envVars"] == {"a": "2", "b": "1"}


def test_some_functions_only(stack):
    """By name; an unknown one is told with those that there are."""
    text = HEAD + HELLO + HELLO.removeprefix("functions:\n").replace("hello", "other")
    assert [function.name for function in stack(text, only=("other",)).functions] == ["other"]
    with pytest.raises(InvalidInput, match="no function 'nope'; there are hello, other"):
        stack(text, only=("nope",))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("functions: [", "is not valid YAML"),
        ("[]", "needs 'functions'"),
        (HEAD, "needs 'functions'"),
        (HEAD + "functions: [a]\n", "needs 'functions'"),
        (HELLO, "provider.name must be openfaas, it is None"),
        (HELLO + "provider: openfaas\n", "provider.name must be openfaas"),
        (HEAD + "functions:\n  hello: 1\n", "functions.hello must be an object"),
        (HEAD + "functions:\n  1: {}\n", "functions.1 is not a function name"),
        (HEAD + "functions:\n  ../up: {}\n", "functions.../up is not a function name"),
        (HEAD + HELLO.replace("    image: hello:1\n", ""), "functions.hello.image is missing"),
        (HEAD + HELLO + "    labels: [a]\n", "functions.hello.labels must be an object of single values"),
        (HEAD + HELLO + "    labels: {a: [1]}\n", "functions.hello.labels must be an object of single values"),
        (HEAD + HELLO + "    secrets: key\n", "functions.hello.secrets must be a list of single values"),
        (HEAD + HELLO + "    environment_file: env.yml\n", "environment_file must be a list"),
        (HEAD + HELLO + "    environment_file: [none.yml]\n", "none.yml cannot be read"),
    ],
)
def test_a_fault_is_named_with_its_place(stack, text, sentence):
    """File, place, what is allowed."""
    with pytest.raises(InvalidInput) as fault:
        stack(text)
    assert "stack.yml" in str(fault.value) or "none.yml" in str(fault.value)
    assert sentence in str(fault.value)


def test_an_environment_file_of_another_kind(stack, tmp_path):
    """A list is no environment."""
    (tmp_path / "env.yml").write_text("- a\n")
    with pytest.raises(InvalidInput, match="env.yml: needs 'environment'"):
        stack(HEAD + HELLO + "    environment_file: [env.yml]\n")


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_file_that_cannot_be_read(tmp_path, content):
    """Absent, or no text."""
    if content is not None:
        (tmp_path / "stack.yml").write_bytes(content)
    with pytest.raises(InvalidInput, match=r"stack.yml cannot be read"):
        read_stack(tmp_path / "stack.yml", {})
