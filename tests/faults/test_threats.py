"""The threat note against a real provider: who is let in, and what a name may say. Its table names these tests."""

from __future__ import annotations

import base64
import re
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
import requests
import yaml
from provider_process import ROOT, ProviderProcess
from raw_http import Answer, exchange, read_answer, request

pytestmark = pytest.mark.integration

DOCUMENT = yaml.safe_load((ROOT / "docs/reference/openapi.yaml").read_text())
"""Compared with the provider's routes in both directions by `tests/unit/test_provider_openapi.py`."""
PATHS = [path.replace("{name}", "echo").replace("{path}", "x") for path in DOCUMENT["paths"]]
SYSTEM = [path for path in PATHS if path.startswith("/system/")]
UNKNOWN = ["/system/", "/system/nope", "/system/function/", "/system/function/a/b", "/system/logs/x"]
METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"]
OPEN = {"/healthz", "/metrics", "/api/v1/query"}


def basic(user: str, password: str) -> str:
    """A header field."""
    return "Authorization: Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


WRONG = {
    "nothing": lambda _: "X-Nothing: 1",
    "an empty bearer": lambda _: "Authorization: Bearer ",
    "the password as a bearer": lambda right: f"Authorization: Bearer {right}",
    "another password": lambda _: basic("admin", "wrong"),
    "the password's beginning": lambda right: basic("admin", right[:-1]),
    "the password and more": lambda right: basic("admin", f"{right} "),
    "another user": lambda right: basic("root", right),
    "no user": lambda right: basic("", right),
    "no base64": lambda right: f"Authorization: Basic admin:{right}",
}


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProviderProcess]:
    """One with a function."""
    made = ProviderProcess(tmp_path_factory.mktemp("threats")).start("--cpu-cores", "1")
    made.deploy("echo")
    yield made
    made.destroy()


def everything(provider: ProviderProcess) -> dict[str, Any]:
    """What a stranger could have changed: functions, secrets, namespaces, and each file but databases and logs."""
    files = {
        str(path.relative_to(provider.root.parent)): path.read_bytes() if path.is_file() else b""
        for path in provider.root.parent.rglob("*")
        if "sqlite" not in path.name and not {"logs", "tmp", "__pycache__"} & set(path.parts) and path != provider.log
    }
    listed = {path: provider.send("GET", f"/system/{path}").json() for path in ("functions", "secrets", "namespaces")}
    for function in listed["functions"]:
        del function["invocationCount"]
    return {**listed, "files": files}


@pytest.fixture
def unchanged(provider: ProviderProcess) -> Iterator[None]:
    """Whatever the test tries, afterwards all is as it was."""
    before = everything(provider)
    yield
    assert everything(provider) == before


def refuses(answer: Answer, method: str) -> None:
    """401, the challenge, one sentence, and nothing else."""
    assert (answer.status, answer.headers["www-authenticate"]) == (401, 'Basic realm="Restricted"')
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert set(answer.headers) <= {"date", "content-type", "content-length", "www-authenticate", "connection"}
    assert method == "HEAD" or answer.body == b"invalid credentials\n"


def ask(provider: ProviderProcess, method: str, target: str, *fields: str, body: bytes = b"") -> Answer:
    """One request on a connection of its own; the answer to HEAD has a length and no body."""
    more = ("Connection: close",) if method == "HEAD" else ()
    return exchange(provider.port, request(method, target, *fields, *more, body=body))


@pytest.mark.usefixtures("unchanged")
class TestTheGuard:
    """Everything under `/system/`, for those who have said who they are."""

    @pytest.mark.parametrize("wrong", WRONG)
    @pytest.mark.parametrize("method", METHODS)
    def test_every_route_and_method_wants_the_password(self, provider, method, wrong):
        """Known routes and unknown ones: nobody learns which is which."""
        body = b'{"service": "echo", "image": "x", "functionName": "echo", "name": "echo"}'
        for path in SYSTEM + UNKNOWN:
            refuses(ask(provider, method, path, WRONG[wrong](provider.password), body=body), method)

    def test_the_right_password_is_let_in(self, provider):
        """Else the tests above would prove nothing."""
        for path in ("/system/functions", "/system/info", "/system/logs?name=echo&follow=0"):
            answer = exchange(provider.port, request("GET", path, basic("admin", provider.password)))
            assert answer.status == 200

    def test_what_is_open_is_so_on_purpose(self, provider):
        """Probes, metrics, and the one query of a gateway; functions are their owners' business."""
        for path in PATHS:
            status = requests.get(provider.url + path, timeout=20).status_code
            assert (status == 401) == path.startswith("/system/"), path
            assert path in OPEN or path.startswith(("/system/", "/function/", "/async-function/"))

    @pytest.mark.parametrize("target", [
        "/system%2ffunctions", "/%73ystem/functions", "//system/functions", "/system//functions", "/system/./functions",
        "/system/../system/functions", "/system/functions/", "/system/functions;x", "/system/functions?/healthz",
        "/system/functions%00", "http://localhost/system/functions", "http://u:p@other//system/functions",
        "/system%2flogs?name=echo", "//system/logs?name=echo", "/system/healthz", "/system/functions#/healthz",
    ])  # fmt: skip
    @pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
    def test_other_spellings_of_a_route_are_no_way_round(self, provider, method, target):
        """Where a decoder comes to `/system/`, so has the guard."""
        refuses(ask(provider, method, target, body=b'{"functionName": "echo"}'), method)

    @pytest.mark.parametrize("target", [
        "/./system/functions", "/x/../system/functions", "/healthz/../system/functions", "/SYSTEM/functions",
        "/healthz%2f..%2fsystem/functions", "/function/../system/functions", "/function/%2e%2e/system/functions",
        "/async-function/../system/functions", "/system\\functions", "/system;x/functions", "*", "/system",
    ])  # fmt: skip
    @pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
    def test_dots_lead_nowhere(self, provider, method, target):
        """No path is shortened: these are names of nothing, for everybody."""
        for fields in ((), (basic("admin", provider.password),)):
            answer = ask(provider, method, target, *fields, body=b'{"functionName": "echo"}')
            assert answer.status in (404, 405)
            assert "echo" not in answer.text

    @pytest.mark.parametrize("framing", ["Content-Length: 50000000", "Transfer-Encoding: chunked"])
    @pytest.mark.parametrize(
        "path", ["/system/functions", "/system/secrets", "/system/nope", "/system/logs", "//system/x"]
    )
    def test_no_body_is_waited_for(self, provider, path, framing):
        """The refusal comes before the body, and before any word that it should be sent."""
        for fields in ((), ("Expect: 100-continue",)):
            refuses(exchange(provider.port, request("POST", path, framing, *fields)), "POST")
        head = request("POST", path, framing) + b"3\r\n{"
        refuses(exchange(provider.port, head), "POST")

    @pytest.mark.parametrize(("function", "status"), [("nobody", 404), ("echo", 405)])
    def test_no_body_is_waited_for_in_front_of_the_queue(self, provider, function, status):
        """Nor kept: what is wrong with the call is in its head."""
        sent = request("PUT" if status == 405 else "POST", f"/async-function/{function}", "Content-Length: 1000000")
        assert exchange(provider.port, sent).status == status


class TestBrowsers:
    """A browser adds the password that it remembers to whatever any page makes it send."""

    @pytest.mark.usefixtures("unchanged")
    @pytest.mark.parametrize("fields", [
        ["Origin: https://evil.example"], ["Origin: null"], ["Origin: http://localhost:1"], ["Sec-Fetch-Site: cross-site"],
        ["Sec-Fetch-Site: same-site"], ["Sec-Fetch-Site: cross-site", "Origin: http://localhost"],
    ])  # fmt: skip
    @pytest.mark.parametrize(
        ("method", "path"),
        [("POST", "/system/functions"), ("DELETE", "/system/functions"), ("POST", "/system/secrets")],
    )
    def test_a_page_of_another_site_changes_nothing(self, provider, method, path, fields):
        """As a form sends it: with the right password, and in no JSON's content type."""
        body = b'{"functionName": "echo", "service": "echo", "image": "test/echo:latest", "name": "k", "value": "v"}'
        fields = [basic("admin", provider.password), "Content-Type: text/plain", *fields]
        assert exchange(provider.port, request(method, path, *fields, body=body)).status == 403

    @pytest.mark.parametrize("fields", [
        ["Origin: http://localhost"], ["Sec-Fetch-Site: same-origin", "Origin: http://localhost"], ["Sec-Fetch-Site: none"],
        ["Origin: https://gateway.example", "X-Forwarded-Host: gateway.example"],
    ])  # fmt: skip
    def test_its_own_page_may(self, provider, fields):
        """Also behind a gateway, whose name the page has."""
        sent = request(
            "POST", "/system/scale-function/echo", basic("admin", provider.password), *fields, body=b'{"replicas": 1}'
        )
        assert exchange(provider.port, sent).status == 202

    def test_no_page_of_another_site_reads(self, provider):
        """No answer allows another origin."""
        for path in [*PATHS, "/nope"]:
            for method in ("GET", "OPTIONS"):
                fields = [
                    "Origin: https://evil.example",
                    "Access-Control-Request-Method: DELETE",
                    basic("admin", provider.password),
                ]
                if not path.startswith("/function/"):  # a handler may allow it
                    answer = ask(provider, method, path + "?name=echo", *fields)
                    assert not [name for name in answer.headers if name.startswith("access-control")]


BAD_NAMES = [
    "..", "../..", "../x", "a/../../x", "a/b", "/etc/passwd", "..%2f..%2fx", "%2e%2e", ".hidden", "a\0b", "a\nb", "a\\..\\b",
    "A", "*", "a*", "x" * 300, "~", "$HOME", "-", "\u0430", "\ud800", "a\u2028b", "con:", " a", "a ",
]  # fmt: skip


@pytest.mark.usefixtures("unchanged")
class TestNames:
    """What is named by a client and becomes a part of a path."""

    @pytest.mark.parametrize("name", BAD_NAMES)
    def test_in_bodies(self, provider, name):
        """Each is refused in a sentence, wherever it stands; the folder above the provider's is as it was, too."""
        good = {"service": "new", "image": "test/echo:latest"}
        for verb, path, body in (
            ("POST", "functions", {**good, "service": name}),
            ("POST", "functions", {**good, "namespace": name}),
            ("POST", "functions", {**good, "secrets": [name]}),
            ("POST", "functions", {**good, "labels": {"com.infless.auth.secret": name}}),
            ("PUT", "functions", {**good, "service": name}),
            ("DELETE", "functions", {"functionName": name}),
            ("DELETE", "functions", {"functionName": "echo", "namespace": name}),
            ("POST", "scale-function/echo", {"replicas": 1, "namespace": name}),
            ("POST", "secrets", {"name": name, "value": "v"}),
            ("POST", "secrets", {"name": "k", "namespace": name, "value": "v"}),
            ("PUT", "secrets", {"name": name, "value": "v"}),
            ("DELETE", "secrets", {"name": name}),
            ("DELETE", "secrets", {"name": "k", "namespace": name}),
            ("POST", "namespace/", {"name": name}),
        ):
            answer = provider.send(verb, f"/system/{path}", body)
            assert answer.status_code in (400, 404), (verb, path, name, answer.text)
            assert len(answer.text.splitlines()) == 1

    @pytest.mark.parametrize("image", [
        "..", "../echo", "a/../echo", "/etc/passwd", "build/../../x", ".hidden/x", "echo\0", "echo\n", "x" * 300, "-v", "*", "",
        "file:///etc/passwd", "test/echo:latest ../x",
    ])  # fmt: skip
    def test_images(self, provider, image):
        """A bundle is found by what its manifest says, never by a path."""
        answer = provider.send("POST", "/system/functions", {"service": "new", "image": image})
        assert answer.status_code == 400

    @pytest.mark.parametrize("name", [name for name in BAD_NAMES if "\ud800" not in name])
    def test_in_paths_and_queries(self, provider, name):
        """As they are, escaped once, and escaped twice."""
        ascii_name = name.encode("utf-8").decode("latin-1")
        raw = name if re.fullmatch(r"[!-~]+", name) else None
        for told in filter(None, (raw, quote(name, safe=""), quote(quote(ascii_name, safe=""), safe=""))):
            for verb, target in (
                ("GET", f"/system/function/{told}"), ("POST", f"/system/scale-function/{told}"),
                ("GET", f"/system/namespace/{told}"), ("PUT", f"/system/namespace/{told}"), ("DELETE", f"/system/namespace/{told}"),
                ("GET", f"/function/{told}/etc/passwd"), ("POST", f"/async-function/{told}"), ("DELETE", f"/async-function/echo/{told}"),
                ("GET", f"/system/logs?name={told}"), ("GET", f"/system/logs?name=echo&namespace={told}"),
            ):  # fmt: skip
                body = b'{"replicas": 1}' if verb in {"POST", "PUT"} else b""
                answer = ask(provider, verb, target, basic("admin", provider.password), body=body)
                assert answer.status in (400, 404, 405, 422), (verb, target, answer.text)

    @pytest.mark.parametrize(
        "instance", ["../../basic-auth-password", "..", "../echo.openfaas-fn/x", "/etc/passwd", "a%2f..%2fb", "a%00"]
    )
    def test_instances_of_logs(self, provider, instance):
        """A log's file is named by the instance: neither a folder nor another file can be meant."""
        (provider.state / "logs" / "decoy.log").write_text("2026-01-01T00:00:00Z decoy\n")
        for told in (instance, instance.replace("/", "%2f"), "..%2fdecoy"):
            answer = ask(
                provider,
                "GET",
                f"/system/logs?name=echo&since=2000-01-01T00:00:00Z&instance={told}",
                basic("admin", provider.password),
            )
            assert answer.status == 422
        answer = ask(
            provider,
            "GET",
            "/system/logs?name=echo&since=2000-01-01T00:00:00Z&instance=decoy",
            basic("admin", provider.password),
        )
        assert (answer.status, "decoy" in answer.text) == (200, False)


class TestAnswers:
    """What a caller says is not repeated where it would mean something."""

    @pytest.mark.parametrize(
        "target",
        [
            "/function/x%0d%0aSet-Cookie:%20a=b",
            "/async-function/x%0d%0aSet-Cookie:%20a=b",
            "/async-function/echo/x%0d%0aSet-Cookie:%20a=b",
            "/nope%0d%0aSet-Cookie:%20a=b",
        ],
    )
    @pytest.mark.parametrize("method", ["GET", "DELETE"])
    def test_a_name_splits_no_answer(self, provider, method, target):
        """Names stand in bodies, as plain text."""
        answer = ask(provider, method, target)
        assert answer.status in (404, 405)
        assert "set-cookie" not in answer.headers
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"

    @pytest.mark.parametrize("path", ["/function/echo", "/async-function/echo"])
    @pytest.mark.parametrize("call_id", ["a\rSet-Cookie: b=c", "a\nSet-Cookie: b=c", "a\0b", "x" * 129, "a\tb", "\xff"])
    def test_a_call_id_splits_no_answer(self, provider, path, call_id):
        """What is not printable or too long is refused, or replaced by an id of the provider's own."""
        answer = exchange(provider.port, request("POST", path, f"X-Call-Id: {call_id}", body=b"1"))
        assert "set-cookie" not in answer.headers
        assert answer.status == 400 or re.fullmatch(r"[0-9a-f-]{36}", answer.headers["x-call-id"])

    def test_a_function_splits_no_answer(self, provider):
        """A handler that puts what it is told into a header cannot be made to send two."""
        provider.deploy(
            "mirror",
            'def handle(event, context): return {"headers": {"x-said": event.query.get("q", "")}, "body": ""}\n',
        )
        assert provider.invoke("mirror?q=fine").headers["x-said"] == "fine"
        answer = provider.invoke("mirror?q=a%0d%0aSet-Cookie:%20a=b")
        assert (answer.status_code, "set-cookie" in answer.headers) == (500, False)
        assert provider.send("DELETE", "/system/functions", {"functionName": "mirror"}).status_code == 202

    @pytest.mark.parametrize("host", ["evil.example", "", "a, b", "<script>", "x" * 5000])
    def test_a_forwarded_host_only_chooses_the_form(self, provider, host):
        """Two forms of the same facts, for those with the password; the host is repeated nowhere."""
        sent = request("GET", "/system/info", f"X-Forwarded-Host: {host}", basic("admin", provider.password))
        answer = exchange(provider.port, sent)
        assert (answer.status, '"provider":"infless"' in answer.text) == (200, True)
        assert not host or host not in f"{answer.headers}{answer.text}"
        refuses(exchange(provider.port, request("GET", "/system/info", f"X-Forwarded-Host: {host}")), "GET")


class TestWire:
    """Requests that a proxy in front might read in another way."""

    @pytest.mark.parametrize("framing", [
        "Content-Length: 4\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 4",
        "Content-Length: 4\r\nContent-Length: 40", "Content-Length: +4", "Content-Length: 4, 4", "Content-Length: 0x4",
        "Transfer-Encoding: xchunked", "Transfer-Encoding: chunked, identity", "Transfer-Encoding: identity, chunked",
        "Transfer-Encoding : chunked", " Transfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nTransfer-Encoding: x",
        "Transfer-Encoding:\x0bchunked", "Content-Length: 4\n\n", "Host: other",
    ])  # fmt: skip
    @pytest.mark.parametrize("path", ["/function/echo", "/async-function/echo", "/system/functions"])
    def test_nothing_is_smuggled_behind_a_request(self, provider, path, framing):
        """Refused, and the connection ends: what lies behind it is no request of anybody's."""
        hidden = request("POST", "/function/echo/hidden", body=b'"hidden"')
        counted = provider.status("echo")["invocationCount"]
        with socket.create_connection(("127.0.0.1", provider.port), timeout=20) as sock:
            sock.sendall(request("POST", path, framing) + b"0\r\n\r\n" + hidden)
            assert read_answer(sock).status in ((400, 501) if "\n\n" not in framing else (200, 202, 400, 401))
            rest = b""
            if "\n\n" not in framing:
                while piece := sock.recv(65536):
                    rest += piece
        assert rest == b""
        if "\n\n" not in framing:
            assert provider.status("echo")["invocationCount"] == counted

    @pytest.mark.parametrize("head", [["X-Long: " + "x" * 70_000], [f"X-{n}: {'x' * 100}" for n in range(1000)]])
    @pytest.mark.parametrize("path", ["/function/echo", "/async-function/echo", "/system/functions", "/healthz"])
    def test_an_oversized_head(self, provider, path, head):
        """431; whatever it asks for."""
        assert exchange(provider.port, request("GET", path, *head)).status == 431
        assert exchange(provider.port, request("GET", path + "?" + "x" * 70_000)).status == 431

    @pytest.mark.parametrize("url", [
        "http://127.0.0.1/", "http://localhost.:1/../", "http://10.1.2.3/", "http://192.168.0.1/", "http://169.254.169.254/latest/",
        "http://[::1]/", "http://[::ffff:127.0.0.1]/", "http://[fd00::1]/", "http://2130706433/", "http://0x7f.1/", "http://0/",
        "http://[64:ff9b::7f00:1]/", "file:///etc/passwd", "http://u:p@example.com/",
    ])  # fmt: skip
    def test_callbacks_into_the_network_inside(self, provider, url):
        """An address is refused at once; a name, when it is connected to."""
        answer = exchange(provider.port, request("POST", "/async-function/echo", f"X-Callback-Url: {url}", body=b"1"))
        if "localhost" in url:
            assert answer.status == 202
        else:
            assert (answer.status, "X-Callback-Url" in answer.text) == (400, True)
