"""The whole control plane on a backend that only remembers: the calls of real clients in their order, and every refusal."""

import asyncio
import base64

import pytest
from fakes import World

from infless_core.errors import BackendError, StateError
from infless_core.model import Problem
from infless_provider import fleet
from infless_provider.routes import Parts, build_app
from infless_provider.state import State
from infless_provider.tenants import Tenants


class Plane:
    """A client, and the world behind it, which lives on an event loop in a thread of its own."""

    def __init__(self, world, client):
        self.world, self.client = world, client

    def __call__(self, verb, path, body=None):
        """Status and text of an answer."""
        answer = (
            self.client.open(path, method=verb, json=body) if body is not None else self.client.open(path, method=verb)
        )
        return answer.status_code, answer.text

    def status(self, verb, path, body=None):
        """Its status alone."""
        return self(verb, path, body)[0]

    def get(self, path):
        """What a GET shows."""
        answer = self.client.get(path)
        assert (answer.status_code, answer.content_type) == (200, "application/json")
        return answer.json


@pytest.fixture
def plane(tmp_path, monkeypatch, loop):
    """Parts as the provider wires them."""

    async def begin():
        world = World(tmp_path)
        monkeypatch.setattr(fleet, "Upstream", world.upstream)
        tenants = Tenants(world.controller.namespaces, world.secrets, world.controller.functions_in)
        tenants.on_secret = world.controller.secret_changed

        async def problem():
            return Problem(servers=world.backend.servers, functions=())

        return world, Parts(
            controller=world.controller, views=world.views, tenants=tenants, problem=problem, metrics=bytes
        )

    async def end():
        await world.fleet.close()
        world.controller.close()
        world.state.close()

    world, parts = asyncio.run_coroutine_threadsafe(begin(), loop).result(5)
    world.bundle("hello")
    yield Plane(world, build_app(parts, loop, None).test_client())
    asyncio.run_coroutine_threadsafe(end(), loop).result(5)


HELLO = {"service": "hello", "image": "hello"}
KEY = {"name": "key", "value": "hush-hush"}
DEV = {"name": "dev", "labels": {"openfaas": "1"}, "annotations": {"openfaas": "1"}}


def full_disk(monkeypatch):
    """Every change of the state fails."""
    for call in ("put_function", "delete_function", "put_namespace", "delete_namespace"):
        monkeypatch.setattr(State, call, lambda *_: (_ for _ in ()).throw(StateError("the disk is full")))


def test_faas_cli_deploy(plane):
    """PUT first; exactly 404 makes it go on with POST; the next time PUT is enough."""
    assert plane("PUT", "/system/functions", HELLO) == (
        404,
        "function 'hello' does not exist in namespace 'openfaas-fn'\n",
    )
    assert plane("POST", "/system/functions", HELLO) == (202, "")
    assert plane("PUT", "/system/functions", HELLO) == (202, "")
    assert plane.status("POST", "/system/functions", HELLO) == 409
    assert [one["name"] for one in plane.get("/system/functions")] == ["hello"]
    assert plane.get("/system/function/hello?usage=1")["usage"] == {"cpu": 0, "totalMemoryBytes": 0.0}


def test_a_gateway_scales(plane):
    """It names the namespace in the query, and says nothing of the body's type."""
    plane("POST", "/system/functions", HELLO)
    answer = plane.client.post(
        "/system/scale-function/hello?namespace=openfaas-fn", data=b'{"serviceName": "hello", "replicas": 4}'
    )  # fmt: skip
    assert answer.status_code == 202
    assert plane.get("/system/function/hello")["replicas"] == 4
    assert plane.status("POST", "/system/scale-function/hello", {"serviceName": "hello", "replicas": 0}) == 202
    assert plane.get("/system/function/hello")["replicas"] == 0


def test_faas_cli_remove(plane):
    """202 once, 404 afterwards; old clients name the namespace in the query."""
    plane("POST", "/system/namespace/", DEV)
    for namespace in ("openfaas-fn", "dev"):
        plane("POST", "/system/functions", {**HELLO, "namespace": namespace})
    assert plane.status("DELETE", "/system/functions?namespace=dev", {"functionName": "hello"}) == 202
    assert plane.status("DELETE", "/system/functions?namespace=dev", {"functionName": "hello"}) == 404
    assert plane.status("DELETE", "/system/functions", {"functionName": "hello", "namespace": "dev"}) == 404
    assert plane.status("DELETE", "/system/functions", {"functionName": "hello"}) == 202
    assert plane.get("/system/functions") == []


def test_faas_cli_secret(plane):
    """POST, 409, PUT, DELETE; values are shown nowhere."""
    assert plane.get("/system/secrets") == []
    assert plane.status("POST", "/system/secrets", KEY) == 201
    assert plane.status("POST", "/system/secrets", KEY) == 409
    raw = base64.b64encode(b"\x00\xff").decode()
    assert plane.status("PUT", "/system/secrets", {**KEY, "rawValue": raw}) == 200
    assert plane.get("/system/secrets?namespace=openfaas-fn") == [{"name": "key", "namespace": "openfaas-fn"}]
    assert plane.world.secrets.tokens("openfaas-fn", "key") == (b"\x00\xff",)
    assert plane.status("DELETE", "/system/secrets", {"name": "key"}) == 202
    assert plane.status("DELETE", "/system/secrets", {"name": "key"}) == 404


def test_faas_cli_namespace(plane):
    """Made with the name in the body only, shown, changed, removed."""
    assert plane.status("POST", "/system/namespace/", DEV) == 201
    assert plane.status("POST", "/system/namespace/", DEV) == 409
    assert plane.get("/system/namespaces") == ["openfaas-fn", "dev"]
    assert plane.get("/system/namespace/dev") == DEV
    assert plane.status("PUT", "/system/namespace/dev", {**DEV, "labels": {}}) == 200
    assert plane.get("/system/namespace/dev")["labels"] == {}
    assert plane.status("DELETE", "/system/namespace/dev", {"name": "dev"}) == 202
    assert plane.status("GET", "/system/namespace/dev") == 404


def test_alertmanager(plane):
    """200 with nothing in it, also about a function that is gone."""
    plane("POST", "/system/functions", HELLO)
    alert = {"status": "firing", "labels": {"function_name": "hello.openfaas-fn"}}
    gone = {"status": "firing", "labels": {"function_name": "gone.openfaas-fn"}}
    assert plane("POST", "/system/alert", {"alerts": [gone, alert]}) == (200, "")
    assert plane.get("/system/function/hello")["replicas"] == 3
    assert plane("POST", "/system/alert", {"alerts": [{**alert, "status": "resolved"}]}) == (200, "")
    assert plane.get("/system/function/hello")["replicas"] == 1


def test_the_list_that_faas_cli_diff_compares(plane):
    """What was said as it was said; what was not said is not there."""
    plane("POST", "/system/secrets", KEY)
    said = {
        "envVars": {"a": "1"}, "constraints": ["x"], "secrets": ["key"], "annotations": {"b": "c"}, "envProcess": "serve",
        "limits": {"memory": "128Mi"}, "requests": {"cpu": "100m"}, "readOnlyRootFilesystem": True,
    }  # fmt: skip
    plane("POST", "/system/functions", HELLO)
    (bare,) = plane.get("/system/functions")
    assert not set(said) & set(bare)
    plane("PUT", "/system/functions", {**HELLO, **said})
    (full,) = plane.get("/system/functions")
    assert {key: full[key] for key in said} == said


@pytest.mark.parametrize(
    ("verb", "path", "body", "status", "sentence"),
    [
        ("POST", "/system/functions", {**HELLO, "service": "A"}, 400, "service 'A' is not a function name"),
        ("POST", "/system/functions", {"service": "hello"}, 400, "image is missing"),
        ("POST", "/system/functions", {**HELLO, "image": "none"}, 400, "no bundle for image 'none'"),
        ("POST", "/system/functions", {**HELLO, "secrets": ["x"]}, 400, "secrets: 'x' does not exist"),
        ("POST", "/system/functions", {**HELLO, "namespace": "none"}, 400, "namespace 'none' does not exist"),
        ("POST", "/system/functions", {**HELLO, "namespace": "../x"}, 400, "is not a namespace's name"),
        ("POST", "/system/functions", {**HELLO, "labels": {"com.infless.gpu": "x"}}, 400, "label com.infless.gpu: 'x'"),
        ("POST", "/system/functions", {**HELLO, "labels": {"com.infless.latency.target": "1ms"}}, 422, "cannot be met"),
        ("PUT", "/system/functions", HELLO, 404, "function 'hello' does not exist"),
        ("PUT", "/system/functions", {**HELLO, "namespace": "none"}, 404, "does not exist in namespace 'none'"),
        ("DELETE", "/system/functions", {}, 400, "functionName is missing"),
        ("DELETE", "/system/functions", {"functionName": "x"}, 404, "function 'x' does not exist"),
        ("DELETE", "/system/functions", {"functionName": "x", "namespace": ".."}, 400, "is not a namespace's name"),
        (
            "GET",
            "/system/functions?namespace=none",
            None,
            400,
            "namespace 'none' does not exist; there are openfaas-fn",
        ),
        ("GET", "/system/function/x", None, 404, "function 'x' does not exist"),
        ("POST", "/system/scale-function/x", {"replicas": 1}, 404, "function 'x' does not exist"),
        ("POST", "/system/scale-function/x", {"replicas": -1}, 400, "replicas -1 is not allowed"),
        ("POST", "/system/alert", {}, 400, "alerts must be a list of objects"),
        ("GET", "/system/secrets?namespace=none", None, 400, "namespace 'none' does not exist"),
        ("POST", "/system/secrets", {**KEY, "name": "../key"}, 400, "is not a secret's name"),
        ("POST", "/system/secrets", {**KEY, "namespace": "none"}, 400, "namespace 'none' does not exist"),
        ("POST", "/system/secrets", {"name": "key"}, 400, "secret 'key' has no value"),
        ("PUT", "/system/secrets", KEY, 404, "secret 'key' does not exist"),
        ("DELETE", "/system/secrets", {"name": "key"}, 404, "secret 'key' does not exist"),
        ("DELETE", "/system/secrets", {"name": "key", "namespace": "none"}, 404, "secret 'key' does not exist"),
        ("GET", "/system/namespace/none", None, 404, "namespace 'none' does not exist"),
        ("GET", "/system/namespace/..", None, 404, "does not exist"),
        ("POST", "/system/namespace/", {"name": "A"}, 400, "name 'A' is not a namespace's name"),
        ("POST", "/system/namespace/a", {"name": "b"}, 400, "they must be the same"),
        ("POST", "/system/namespace/", {"name": "openfaas-fn"}, 409, "exists already"),
        ("PUT", "/system/namespace/none", DEV, 404, "namespace 'none' does not exist"),
        ("DELETE", "/system/namespace/none", None, 404, "namespace 'none' does not exist"),
        ("DELETE", "/system/namespace/" + "a" * 5000, None, 404, "does not exist"),
        ("DELETE", "/system/namespace/openfaas-fn", None, 400, "is the default one and cannot be removed"),
    ],
)
def test_refusals(plane, verb, path, body, status, sentence):
    """The status that clients act upon, and a sentence that they print as it is; nothing has changed."""
    answer = plane(verb, path, body)
    assert answer[0] == status
    assert sentence in answer[1]
    assert answer[1].endswith("\n")
    assert "hush" not in answer[1]
    assert (plane.get("/system/functions"), plane.get("/system/namespaces")) == ([], ["openfaas-fn"])
    assert plane.get("/system/secrets") == []


def test_a_namespace_in_use(plane):
    """409 with what is in it; empty it can go."""
    plane("POST", "/system/namespace/", DEV)
    plane("POST", "/system/secrets", {**KEY, "namespace": "dev"})
    plane("POST", "/system/functions", {**HELLO, "namespace": "dev", "secrets": ["key"]})
    answer = plane("DELETE", "/system/namespace/dev")
    assert answer == (409, "namespace 'dev' holds 1 function(s) and 1 secret(s); remove them first\n")
    plane("DELETE", "/system/functions", {"functionName": "hello", "namespace": "dev"})
    plane("DELETE", "/system/secrets", {"name": "key", "namespace": "dev"})
    assert plane.status("DELETE", "/system/namespace/dev") == 202


def test_a_full_disk(plane, monkeypatch):
    """503: it is our disk, and a later try may be taken."""
    plane("POST", "/system/namespace/", DEV)
    plane("POST", "/system/functions", HELLO)
    full_disk(monkeypatch)
    for verb, path, body in (
        ("PUT", "/system/functions", HELLO),
        ("DELETE", "/system/functions", {"functionName": "hello"}),
        ("POST", "/system/scale-function/hello", {"replicas": 2}),
        ("POST", "/system/namespace/", {"name": "new"}),
        ("PUT", "/system/namespace/dev", {"labels": {}}),
        ("DELETE", "/system/namespace/dev", None),
    ):
        assert plane(verb, path, body) == (503, "the disk is full\n")
    assert plane.get("/system/namespaces") == ["openfaas-fn", "dev"]
    assert plane.get("/system/function/hello")["replicas"] == 1


def test_a_handler_that_cannot_be_timed(plane):
    """422 with its words: the request is understood, the function does not run."""
    plane.world.profiles.failure = BackendError("handler.py: No module named 'numpy'")
    assert plane("POST", "/system/functions", HELLO) == (422, "handler.py: No module named 'numpy'\n")
