"""Every route of the control plane: verbs, statuses, authentication, and what faas-cli reads into them."""

import asyncio
import base64
import json
import socket
import threading

import pytest

from infless_core.errors import (
    BackendError,
    Conflict,
    Infeasible,
    InflessError,
    InvalidInput,
    NotFound,
    PlanRejected,
    StateError,
)
from infless_core.model import Problem, Server
from infless_provider.routes import build_app
from infless_provider.wsgi import WsgiBridge
from infless_scheduler.problem_file import parse_problem_text
from infless_watchdog.http import Edge, Limits

PASSWORD = "secret"
PROBLEM = Problem(servers=(Server(id="local", cpu_cores=4, memory_bytes=2**30),), functions=())
LOGIN = {"Authorization": "Basic " + base64.b64encode(b"admin:secret").decode()}


class FakeController:
    """Keeps what it was asked, knows one function, and fails when told to."""

    def __init__(self):
        self.asked, self.failure = [], None

    async def _do(self, *what):
        self.asked.append(what)
        if self.failure is not None:
            raise self.failure

    async def deploy(self, data):
        """POST."""
        await self._do("deploy", data)

    async def update(self, data):
        """PUT."""
        await self._do("update", data)
        if data.get("service") != "hello":
            raise NotFound("function 'x' does not exist")

    async def remove(self, name):
        """DELETE."""
        await self._do("remove", name)

    async def scale(self, name, replicas):
        """Scale."""
        await self._do("scale", name, replicas)

    async def describe(self, name, *, usage):
        """Status."""
        await self._do("describe", name, usage)
        return {"name": name}

    async def listing(self):
        """All."""
        await self._do("list")
        return [{"name": "hello"}]

    async def overview(self):
        """Ours."""
        return {"instances": []}

    async def discovery(self):
        """For Prometheus."""
        await self._do("targets")
        return [{"targets": ["h:1"], "labels": {}}]

    async def problem(self):
        """What is planned for; the autoscaler's, in truth."""
        await self._do("problem")
        return PROBLEM


@pytest.fixture(scope="module")
def loop():
    """An event loop in a thread of its own, as the provider has it."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(scope="module")
def app(loop):
    """The application with a password; its controller is `app.controller`."""
    controller = FakeController()
    app = build_app(controller, loop, PASSWORD, lambda: b"# metrics\n", controller.problem)
    app.controller = controller
    return app


@pytest.fixture
def controller(app):
    """As new."""
    app.controller.asked, app.controller.failure = [], None
    return app.controller


@pytest.fixture
def client(app, controller):
    """Flask's own."""
    return app.test_client()


SYSTEM = [
    ("GET", "/system/functions", 200),
    ("POST", "/system/functions", 202),
    ("PUT", "/system/functions", 202),
    ("DELETE", "/system/functions", 202),
    ("GET", "/system/function/hello", 200),
    ("POST", "/system/scale-function/hello", 202),
    ("GET", "/system/info", 200),
    ("GET", "/system/namespaces", 200),
    ("GET", "/system/overview", 200),
    ("GET", "/system/infless/problem", 200),
    ("GET", "/system/infless/targets", 200),
    ("GET", "/system/secrets", 200),
    ("POST", "/system/secrets", 501),
    ("PUT", "/system/secrets", 501),
    ("DELETE", "/system/secrets", 501),
    ("GET", "/system/telemetry", 501),
    ("POST", "/system/alert", 501),
    ("POST", "/system/namespace/", 501),
    ("GET", "/system/namespace/dev", 501),
    ("PUT", "/system/namespace/dev", 501),
    ("DELETE", "/system/namespace/dev", 501),
]
BODY = {"service": "hello", "image": "i", "functionName": "hello", "serviceName": "hello", "replicas": 2}


@pytest.mark.parametrize(("verb", "path", "status"), SYSTEM)
def test_every_system_route(client, verb, path, status):
    """Its status is one that faas-cli and the gateway take; 501 for what this version lacks."""
    assert client.open(path, method=verb, json=BODY, headers=LOGIN).status_code == status


@pytest.mark.parametrize(("verb", "path", "_"), SYSTEM)
@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer "}, {"Authorization": "Basic d3Jvbmc="}])
def test_every_system_route_wants_credentials(client, controller, verb, path, _, header):
    """An empty bearer (a CLI that never logged in) is none; nothing was done."""
    answer = client.open(path, method=verb, json=BODY, headers=header)
    assert (answer.status_code, answer.text) == (401, "invalid credentials\n")
    assert answer.headers["WWW-Authenticate"] == 'Basic realm="Restricted"'
    assert controller.asked == []


def test_prometheus_finds_instances(client):
    """Its HTTP service discovery takes JSON of that type only."""
    answer = client.get("/system/infless/targets", headers=LOGIN)
    assert (answer.content_type, answer.json) == ("application/json", [{"targets": ["h:1"], "labels": {}}])


@pytest.mark.parametrize("path", ["/healthz", "/metrics"])
@pytest.mark.parametrize("verb", ["GET", "HEAD"])
def test_probes_are_open(client, path, verb):
    """For load balancers and Prometheus."""
    answer = client.open(path, method=verb)
    assert answer.status_code == 200
    assert answer.content_type.startswith("text/plain")


def test_async_invocations_are_refused_openly(client):
    """They need no login in OpenFaaS; 401 would send people to `faas-cli login`."""
    assert client.post("/async-function/hello").status_code == 501


def test_without_authentication_everything_is_open(controller, loop):
    """`--no-auth`."""
    app = build_app(controller, loop, None, bytes, controller.problem)
    assert app.test_client().get("/system/functions").status_code == 200


def test_an_unknown_route(client):
    """404, also for who has not logged in."""
    assert client.get("/nope").status_code == 404


def test_a_wrong_verb_names_the_right_ones(client):
    """405 with Allow, as RFC 9110 wants it."""
    answer = client.patch("/system/functions", headers=LOGIN)
    assert answer.status_code == 405
    assert "POST" in answer.headers["Allow"]


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (InvalidInput("say why"), 400), (NotFound("say why"), 404), (Conflict("say why"), 409), (Infeasible("say why"), 422),
        (BackendError("say why"), 422), (StateError("say why"), 503), (InflessError("say why"), 500),
    ],
)  # fmt: skip
def test_errors_become_a_status_and_their_sentence(client, controller, failure, status):
    """Plain text: clients print it as it is."""
    controller.failure = failure
    answer = client.post("/system/functions", json=BODY, headers=LOGIN)
    assert (answer.status_code, answer.text) == (status, "say why\n")
    assert answer.content_type == "text/plain; charset=utf-8"


def test_faults_of_ours(client, controller):
    """500, and not as a page."""
    controller.failure = PlanRejected(("too full",))
    assert client.get("/system/functions", headers=LOGIN).status_code == 500
    controller.failure = ZeroDivisionError()
    answer = client.get("/system/functions", headers=LOGIN)
    assert answer.status_code == 500
    assert "<html" not in answer.text


@pytest.mark.parametrize("verb", ["POST", "PUT", "DELETE"])
@pytest.mark.parametrize("body", [b"", b"{", b"[]"])
def test_a_body_that_is_no_json_object(client, controller, verb, body):
    """400 and nothing done."""
    answer = client.open("/system/functions", method=verb, data=body, headers=LOGIN)
    assert answer.status_code == 400
    assert controller.asked == []


def test_no_content_type_is_needed(client, controller):
    """The gateway's scale call sends none."""
    client.post("/system/scale-function/hello", data=b'{"replicas": 3}', headers=LOGIN)
    assert controller.asked == [("scale", "hello", 3)]


def test_update_of_an_unknown_function_is_404(client):
    """Exactly that makes faas-cli go on with POST."""
    assert client.put("/system/functions", json={**BODY, "service": "new"}, headers=LOGIN).status_code == 404


def test_remove_reads_the_body(client, controller):
    """`functionName`, and an empty answer."""
    answer = client.delete("/system/functions", json={"functionName": "hello"}, headers=LOGIN)
    assert (answer.status_code, answer.data) == (202, b"")
    assert controller.asked == [("remove", "hello")]


@pytest.mark.parametrize("body", [{}, {"functionName": ""}, {"functionName": 3}])
def test_remove_without_a_name(client, body):
    """400."""
    assert client.delete("/system/functions", json=body, headers=LOGIN).status_code == 400


@pytest.mark.parametrize(
    ("query", "usage"), [("?usage=1", True), ("?usage=true", True), ("?usage=false", False), ("", False)]
)
def test_describe_measures_only_when_asked(client, controller, query, usage):
    """The CLI asks with 1, the gateway with false."""
    assert client.get(f"/system/function/hello.openfaas-fn{query}", headers=LOGIN).json == {"name": "hello.openfaas-fn"}
    assert controller.asked == [("describe", "hello.openfaas-fn", usage)]


@pytest.mark.parametrize(
    ("verb", "path", "body"),
    [
        ("GET", "/system/functions?namespace=NS", None),
        ("GET", "/system/function/hello?namespace=NS", None),
        ("DELETE", "/system/functions", {"functionName": "hello", "namespace": "NS"}),
        ("DELETE", "/system/functions?namespace=NS", {"functionName": "hello"}),
        ("POST", "/system/scale-function/hello", {"replicas": 1, "namespace": "NS"}),
        ("POST", "/system/scale-function/hello?namespace=NS", {"replicas": 1}),
    ],
)
def test_namespaces_travel_in_query_or_body(client, verb, path, body):
    """The default is taken, empty is the default, any other is refused with 400."""

    def status(namespace):
        text = json.dumps(body).replace("NS", namespace)
        return client.open(path.replace("NS", namespace), method=verb, data=text, headers=LOGIN).status_code

    assert status("openfaas-fn") in (200, 202)
    assert status("") in (200, 202)
    assert status("other") == 400


def test_info_in_the_gateways_form(client):
    """For faas-cli, which crashes on nulls here."""
    info = client.get("/system/info", headers=LOGIN).json
    assert info["provider"]["provider"] == "infless"
    assert info["version"]["release"]
    assert info["arch"]


def test_info_in_the_providers_form(client):
    """For a gateway, which sets X-Forwarded-Host."""
    info = client.get("/system/info", headers={**LOGIN, "X-Forwarded-Host": "gateway:8080"}).json
    assert (info["provider"], info["orchestration"]) == ("infless", "process")
    assert set(info["version"]) == {"release", "sha", "commit_message"}


def test_the_problem_is_a_plan_file(client, controller):
    """Asked for once, on the loop, and written as the planner reads it."""
    answer = client.get("/system/infless/problem", headers=LOGIN)
    assert parse_problem_text(answer.text) == PROBLEM
    assert controller.asked == [("problem",)]


def test_lists(client):
    """Namespaces hold the default, secrets are none yet."""
    assert client.get("/system/namespaces", headers=LOGIN).json == ["openfaas-fn"]
    assert client.get("/system/secrets", headers=LOGIN).json == []


class TestBridge:
    """The same application behind the real HTTP edge."""

    @pytest.fixture
    def send(self, app, controller, loop):
        """Send a request to a server that runs on the loop; gives the whole answer."""

        async def serve():
            bridge = WsgiBridge(app)
            edge = Edge(bridge, Limits())
            await edge.listen(listener)
            return bridge, edge

        listener = socket.create_server(("127.0.0.1", 0))
        address = listener.getsockname()
        bridge, edge = asyncio.run_coroutine_threadsafe(serve(), loop).result(5)

        def send(line, *headers, body=b"", host="x"):
            lines = [f"{line} HTTP/1.1", f"Host: {host}", "Connection: close", *headers]
            lines += [f"Authorization: {LOGIN['Authorization']}", "", ""]
            with socket.create_connection(address, timeout=5) as sock:
                sock.sendall("\r\n".join(lines).encode() + body)
                return b"".join(iter(lambda: sock.recv(65536), b"")).decode()

        yield send

        async def close():
            edge.close()
            await asyncio.sleep(0.01)

        asyncio.run_coroutine_threadsafe(close(), loop).result(5)
        bridge.close()

    def test_a_chunked_body(self, send, controller):
        """As everything that a gateway forwards: in pieces and without a length, on DELETE too."""
        pieces = (b'{"function', b'Name": "hello"}')
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
        answer = send("DELETE /system/functions", "Transfer-Encoding: chunked", body=chunks)
        assert answer.startswith("HTTP/1.1 202 ")
        assert controller.asked == [("remove", "hello")]

    def test_escapes_in_the_path(self, send, controller):
        """WSGI applications get it decoded."""
        assert send("GET /system/function/hel%6Co?usage=1").startswith("HTTP/1.1 200 ")
        assert controller.asked == [("describe", "hello", True)]

    def test_head(self, send):
        """No body, but its length."""
        answer = send("HEAD /healthz")
        assert "content-length: 2\r\n" in answer.lower()
        assert answer.endswith("\r\n\r\n")

    def test_headers_come_through(self, send):
        """Both ways."""
        assert '"arch"' not in send("GET /system/info", "X-Forwarded-Host: gateway")
        assert "allow: " in send("PATCH /system/functions", "Content-Length: 0")

    @pytest.mark.parametrize("host", ["[::1]:80", "a:b:c", "host:notaport"])
    def test_a_strange_host(self, send, host):
        """No reason to fail."""
        assert send("GET /healthz", host=host).startswith("HTTP/1.1 200 ")
