"""Every route of the control plane: verbs, statuses, authentication, and what faas-cli reads into them."""

import asyncio
import base64
import json
import re
import socket
import threading
from types import SimpleNamespace

import pytest

from infless_core.errors import (
    BackendError,
    Conflict,
    Infeasible,
    InflessError,
    InvalidInput,
    NotFound,
    PlanRejected,
    QuotaExceeded,
    StateError,
)
from infless_core.model import Problem, Server
from infless_provider import routes
from infless_provider.auth import Credentials
from infless_provider.routes import Parts, build_app
from infless_provider.wsgi import WsgiBridge
from infless_scheduler.problem_file import parse_problem_text
from infless_watchdog.http import Edge, Limits

ADMIN = Credentials(user="admin", password="secret")
PROBLEM = Problem(servers=(Server(id="local", cpu_cores=4, memory_bytes=2**30),), functions=())
LOGIN = {"Authorization": "Basic " + base64.b64encode(b"admin:secret").decode()}
ANSWERS = {
    "listing": [{"name": "hello"}],
    "overview": {"instances": []},
    "telemetry": {"functions": 1},
    "discovery": [{"targets": ["h:1"], "labels": {}}],
    "invocations": {"hello.openfaas-fn": 7},
    "list_namespaces": ["openfaas-fn"],
    "list_secrets": [{"name": "key", "namespace": "openfaas-fn"}],
    "namespace": {"name": "dev", "labels": {}, "annotations": {}},
    "problem": PROBLEM,
    "metrics": b"# metrics\n",
}


class Everything:
    """Controller, views and tenants in one: keeps what it was asked, knows one function, and fails when told to."""

    def __init__(self):
        self.asked, self.failure, self.observed = [], None, []
        self.backend = SimpleNamespace(name="process")

    def __getattr__(self, name):
        async def do(*what, **how):
            self.asked.append((name, *what, *how.values()))
            if self.failure is not None:
                raise self.failure
            return ANSWERS.get(name)

        return do

    async def update(self, data):
        """PUT."""
        await self.__getattr__("update")(data)
        if data.get("service") != "hello":
            raise NotFound("function 'x' does not exist")

    async def describe(self, name, namespace, *, usage):
        """Status."""
        await self.__getattr__("describe")(name, namespace, usage)
        return {"name": name}

    def metrics(self):
        """Prometheus text."""
        return b"text"

    def observe(self, *what):
        """What metrics are told."""
        self.observed.append(what)

    def parts(self):
        """Every part is this one."""
        return Parts(
            controller=self, views=self, tenants=self, problem=self.problem, metrics=self.metrics, observe=self.observe
        )  # fmt: skip


@pytest.fixture(scope="module")
def app(loop):
    """The application with a password; what it asks is `app.everything`."""
    everything = Everything()
    app = build_app(everything.parts(), loop, ADMIN)
    app.everything = everything
    return app


@pytest.fixture
def controller(app):
    """As new."""
    app.everything.asked, app.everything.failure, app.everything.observed = [], None, []
    return app.everything


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
    ("POST", "/system/secrets", 201),
    ("PUT", "/system/secrets", 200),
    ("DELETE", "/system/secrets", 202),
    ("GET", "/system/telemetry", 200),
    ("POST", "/system/alert", 200),
    ("POST", "/system/namespace/", 201),
    ("GET", "/system/namespace/dev", 200),
    ("POST", "/system/namespace/dev", 201),
    ("PUT", "/system/namespace/dev", 200),
    ("DELETE", "/system/namespace/dev", 202),
]
UNKNOWN = [
    ("GET", "/system/nope", 404), ("POST", "/system/", 404), ("GET", "/system/function/", 404),
    ("GET", "/system/function/a/b", 404), ("PATCH", "/system/functions", 405), ("GET", "/system/alert", 405),
    ("GET", "/system/namespace/", 405), ("DELETE", "/system/info", 405),
]  # fmt: skip
BODY = {"service": "hello", "image": "i", "functionName": "hello", "serviceName": "hello", "replicas": 2}


@pytest.mark.parametrize(("verb", "path", "status"), SYSTEM)
def test_every_system_route(client, verb, path, status):
    """Its status is one that faas-cli and the gateway take."""
    assert client.open(path, method=verb, json=BODY, headers=LOGIN).status_code == status


def test_the_table_is_whole(app):
    """A route that is added belongs into it, and is tried with and without credentials then."""
    told = {(verb, re.sub("(hello|dev)$", "<name>", path)) for verb, path, _ in SYSTEM}
    there = {
        (verb, rule.rule)
        for rule in app.url_map.iter_rules()
        for verb in rule.methods - {"HEAD", "OPTIONS"}
        if rule.rule.startswith("/system/")
    }
    assert there == told


@pytest.mark.parametrize(("verb", "path", "status"), UNKNOWN)
def test_what_is_no_route(client, controller, verb, path, status):
    """In a sentence with verb and path; nothing is done."""
    answer = client.open(path, method=verb, json=BODY, headers=LOGIN)
    assert answer.status_code == status
    assert answer.text.startswith(f"{verb} {path}: ")
    assert controller.asked == []


@pytest.mark.parametrize(("verb", "path", "_"), SYSTEM + UNKNOWN)
@pytest.mark.parametrize(
    "header",
    [{}, {"Authorization": "Bearer "}, {"Authorization": "Basic d3Jvbmc="}, {"Authorization": "Bearer secret"}],
)
def test_every_system_route_wants_credentials(client, controller, verb, path, _, header):
    """An empty bearer (a CLI that never logged in) is none; nothing was done."""
    answer = client.open(path, method=verb, json=BODY, headers=header)
    assert (answer.status_code, answer.text) == (401, "invalid credentials\n")
    assert answer.headers["WWW-Authenticate"] == 'Basic realm="Restricted"'
    assert controller.asked == []


@pytest.mark.parametrize(("verb", "path", "status"), SYSTEM)
def test_a_page_of_another_site_changes_nothing(client, controller, verb, path, status):
    """A browser would send its password along; reading is for the browser to keep from that page."""
    headers = {**LOGIN, "Origin": "http://evil", "Host": "localhost"}
    answer = client.open(path, method=verb, json=BODY, headers=headers)
    assert answer.status_code == (status if verb == "GET" else 403)
    assert bool(controller.asked) == (verb == "GET" and path != "/system/info")


def test_without_a_password_other_sites_are_kept_away_as_well(controller, loop):
    """`--no-auth` is for this machine's users, not for every page that they read."""
    client = build_app(controller.parts(), loop, None).test_client()
    answer = client.post("/system/functions", json=BODY, headers={"Sec-Fetch-Site": "cross-site"})
    assert (answer.status_code, controller.asked) == (403, [])


def test_prometheus_finds_instances(client):
    """Its HTTP service discovery takes JSON of that type only."""
    answer = client.get("/system/infless/targets", headers=LOGIN)
    assert (answer.content_type, answer.json) == ("application/json", [{"targets": ["h:1"], "labels": {}}])


@pytest.mark.parametrize("path", ["/metrics", "/api/v1/query"])
@pytest.mark.parametrize("verb", ["GET", "HEAD"])
def test_probes_are_open(client, path, verb):
    """For load balancers and Prometheus."""
    answer = client.open(path, method=verb)
    assert answer.status_code == 200
    assert answer.content_type.startswith(("text/plain", "application/json"))


@pytest.mark.parametrize("verb", ["HEAD", "OPTIONS"])
def test_other_verbs_are_guarded_as_well(client, controller, verb):
    """What Flask answers by itself is told to nobody else either."""
    assert client.open("/system/functions", method=verb).status_code == 401
    assert controller.asked == []


def test_a_gateway_asks_without_credentials(client):
    """As it asks Prometheus: it has none for that."""
    query = 'sum(gateway_function_invocation_total{function_name=~".*.openfaas-fn"}) by (function_name)'
    answer = client.get("/api/v1/query", query_string={"query": query})
    (found,) = answer.json["data"]["result"]
    assert (found["metric"], found["value"][1]) == ({"function_name": "hello.openfaas-fn"}, "7")
    assert client.get("/api/v1/query").json["data"]["result"] == []


def test_without_authentication_everything_is_open(controller, loop):
    """`--no-auth`."""
    app = build_app(controller.parts(), loop, None)
    assert app.test_client().get("/system/functions").status_code == 200


@pytest.mark.parametrize(
    ("verb", "path", "route", "status"),
    [
        ("GET", "/system/function/hello", "/system/function", 200),
        ("POST", "/system/functions", "/system/functions", 202),
        ("GET", "/nope/123", "other", 404),
        ("GET", "/system/nope/123", "other", 404),
    ],
)
def test_every_answer_is_counted(client, controller, verb, path, route, status):
    """By route, never by what stands in it: that would make a series for each name that somebody tries."""
    client.open(path, method=verb, json=BODY, headers=LOGIN)
    ((*told, seconds),) = controller.observed
    assert told == [status, verb, route]
    assert 0 <= seconds < 60


def test_refused_calls_are_counted(client, controller):
    """Somebody may be guessing passwords."""
    client.get("/system/functions")
    assert controller.observed[0][:3] == (401, "GET", "/system/functions")


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
        (InvalidInput("say why"), 400), (NotFound("say why"), 404), (Conflict("say why"), 409), (QuotaExceeded("say why"), 403),
        (Infeasible("say why"), 422), (BackendError("say why"), 422), (StateError("say why"), 503), (InflessError("say why"), 500),
    ],
)  # fmt: skip
def test_errors_become_a_status_and_their_sentence(client, controller, failure, status):
    """Plain text: clients print it as it is."""
    controller.failure = failure
    answer = client.post("/system/functions", json=BODY, headers=LOGIN)
    assert (answer.status_code, answer.text) == (status, "say why\n")
    assert answer.content_type == "text/plain; charset=utf-8"


@pytest.mark.parametrize(
    ("verb", "path", "does", "status"),
    [
        ("POST", "/system/functions", "deploy", 202),
        ("PUT", "/system/functions", "update", 202),
        ("DELETE", "/system/functions", "remove", 504),
    ],
)
def test_what_takes_longer_than_clients_wait_goes_on(client, controller, loop, monkeypatch, verb, path, does, status):
    """A deployment has been accepted: a model may load for minutes."""
    gate, done = asyncio.Event(), threading.Event()

    async def slow(*_):
        await gate.wait()
        done.set()

    monkeypatch.setattr(routes, "WORK_TIMEOUT_S", 0.05)
    monkeypatch.setattr(controller, does, slow, raising=False)
    answer = client.open(path, method=verb, json={**BODY, "functionName": "hello"}, headers=LOGIN)
    assert (answer.status_code, "goes on; the provider's log says" in answer.text) == (status, True)
    loop.call_soon_threadsafe(gate.set)
    assert done.wait(30)


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
    assert controller.asked == [("scale", "hello", None, 3)]


def test_update_of_an_unknown_function_is_404(client):
    """Exactly that makes faas-cli go on with POST."""
    assert client.put("/system/functions", json={**BODY, "service": "new"}, headers=LOGIN).status_code == 404


def test_remove_reads_the_body(client, controller):
    """`functionName`, and an empty answer."""
    answer = client.delete("/system/functions", json={"functionName": "hello"}, headers=LOGIN)
    assert (answer.status_code, answer.data) == (202, b"")
    assert controller.asked == [("remove", "hello", None)]


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
    assert controller.asked == [("describe", "hello.openfaas-fn", None, usage)]


@pytest.mark.parametrize(
    ("verb", "path", "body"),
    [
        ("GET", "/system/functions?namespace=NS", None),
        ("GET", "/system/function/hello?namespace=NS", None),
        ("GET", "/system/secrets?namespace=NS", None),
        ("DELETE", "/system/functions", {"functionName": "hello", "namespace": "NS"}),
        ("DELETE", "/system/functions?namespace=NS", {"functionName": "hello"}),
        ("DELETE", "/system/functions?namespace=NS", {"functionName": "hello", "namespace": ""}),
        ("DELETE", "/system/functions?namespace=other", {"functionName": "hello", "namespace": "NS"}),
        ("POST", "/system/scale-function/hello", {"replicas": 1, "namespace": "NS"}),
        ("POST", "/system/scale-function/hello?namespace=NS", {"replicas": 1}),
    ],
)
@pytest.mark.parametrize("namespace", ["dev", "", "../x"])
def test_namespaces_travel_in_query_or_body(client, controller, verb, path, body, namespace):
    """Old clients and the gateway name it in the query, new ones in the body, which wins; parts check it."""
    meant = namespace or ("other" if "other" in path else None)
    text = json.dumps(body).replace("NS", namespace)
    client.open(path.replace("NS", namespace), method=verb, data=text, headers=LOGIN)
    (asked,) = controller.asked
    told = asked[1] if asked[0] in ("listing", "list_secrets") else asked[2]
    assert (told or None) == meant


@pytest.mark.parametrize(
    ("verb", "path", "asked"),
    [
        ("POST", "/system/namespace/", ("create_namespace", BODY, "")),
        ("POST", "/system/namespace/dev", ("create_namespace", BODY, "dev")),
        ("PUT", "/system/namespace/dev", ("update_namespace", BODY, "dev")),
        ("DELETE", "/system/namespace/dev", ("delete_namespace", "dev")),
        ("GET", "/system/namespace/dev", ("namespace", "dev")),
        ("POST", "/system/secrets", ("create_secret", BODY)),
        ("PUT", "/system/secrets", ("update_secret", BODY)),
        ("DELETE", "/system/secrets", ("delete_secret", BODY)),
        ("POST", "/system/alert", ("alert", BODY)),
    ],
)
def test_who_is_asked(client, controller, verb, path, asked):
    """Each route its own part, with the body and what stands in the path."""
    client.open(path, method=verb, json=BODY, headers=LOGIN)
    assert controller.asked == [asked]


def test_removing_a_namespace_needs_no_body(client, controller):
    """faas-cli sends one, others do not."""
    assert client.delete("/system/namespace/dev", headers=LOGIN).status_code == 202


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


@pytest.mark.parametrize("path", ["namespaces", "secrets", "functions", "telemetry", "overview"])
def test_answers_are_json(client, path):
    """As the parts give it, with its type."""
    answer = client.get(f"/system/{path}", headers=LOGIN)
    names = {"namespaces": "list_namespaces", "secrets": "list_secrets", "functions": "listing"}
    assert (answer.content_type, answer.json) == ("application/json", ANSWERS[names.get(path, path)])


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
        assert controller.asked == [("remove", "hello", None)]

    def test_escapes_in_the_path(self, send, controller):
        """WSGI applications get it decoded."""
        assert send("GET /system/function/hel%6Co?usage=1").startswith("HTTP/1.1 200 ")
        assert controller.asked == [("describe", "hello", None, True)]

    def test_head(self, send):
        """No body, but its length."""
        answer = send("HEAD /metrics")
        assert re.search(r"content-length: [1-9]\d*\r\n", answer.lower())
        assert answer.endswith("\r\n\r\n")

    def test_headers_come_through(self, send):
        """Both ways."""
        assert '"arch"' not in send("GET /system/info", "X-Forwarded-Host: gateway")
        assert "allow: " in send("PATCH /system/functions", "Content-Length: 0")

    @pytest.mark.parametrize("host", ["[::1]:80", "a:b:c", "host:notaport"])
    def test_a_strange_host(self, send, host):
        """No reason to fail."""
        assert send("GET /metrics", host=host).startswith("HTTP/1.1 200 ")
