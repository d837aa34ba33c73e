"""The threat note against a real provider: who is let in, and what a name may say. Its table names these tests."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import provider_books as books
import pytest
import requests
import yaml
from provider_process import ROOT, ProviderProcess
from raw_http import Answer, ask, basic, exchange, request

pytestmark = pytest.mark.integration

DOCUMENT = yaml.safe_load((ROOT / "docs/reference/openapi.yaml").read_text())
"""Compared with the provider's routes in both directions by `tests/unit/test_provider_openapi.py`."""
PATHS = [path.replace("{name}", "echo").replace("{path}", "x") for path in DOCUMENT["paths"]]
SYSTEM = [path for path in PATHS if path.startswith("/system/")]
UNKNOWN = ["/system/", "/system/nope", "/system/function/", "/system/function/a/b", "/system/logs/x"]
METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"]
OPEN = {"/healthz", "/metrics", "/api/v1/query"}


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
    made = ProviderProcess(tmp_path_factory.mktemp("threats") / "provider").start("--cpu-cores", "1")
    made.deploy("echo")
    yield made
    made.destroy()


def everything(provider: ProviderProcess) -> dict[str, Any]:
    """What a stranger could have changed: functions, secrets, namespaces, and each file but databases and logs."""
    files = {
        str(path): data
        for path, data in books.contents(provider.root.parent).items()
        if "sqlite" not in path.name and path != provider.log
        if not {"logs", "tmp", "__pycache__"} & set(path.relative_to(provider.root.parent).parts)
    }
    listed = {path: provider.send("GET", f"/system/{path}").json() for path in ("functions", "secrets", "namespaces")}
    for function in listed["functions"]:
        del function["invocationCount"]
    return {**listed, "files": files}


@pytest.fixture
def unchanged(provider: ProviderProcess) -> Iterator[None]:
    """Whatever the test tries, afterwards all is as it was."""
    before = everything(provider)
    assert str(provider.state / "basic-auth-password") in before["files"]
    yield
    assert everything(provider) == before


def refuses(answer: Answer, method: str) -> None:
    """401, the challenge, one sentence, and nothing else."""
    assert (answer.status, answer.headers["www-authenticate"]) == (401, 'Basic realm="Restricted"')
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert set(answer.headers) <= {"date", "content-type", "content-length", "www-authenticate", "connection"}
    assert method == "HEAD" or answer.body == b"invalid credentials\n"


def refused(provider: ProviderProcess) -> float:
    """Control calls that were answered with 401, as metrics have them."""
    text = requests.get(f"{provider.url}/metrics", timeout=20).text
    return sum(
        float(n) for n in re.findall(r'^provider_http_requests_total\{code="401".*\} (\S+)$', text, re.MULTILINE)
    )


@pytest.mark.usefixtures("unchanged")
class TestTheGuard:
    """Everything under `/system/`, for those who have said who they are."""

    @pytest.mark.parametrize("wrong", WRONG)
    @pytest.mark.parametrize("method", METHODS)
    def test_every_route_and_method_wants_the_password(self, provider, method, wrong):
        """Known routes and unknown ones: nobody learns which is which."""
        body = b'{"service": "echo", "image": "x", "functionName": "echo", "name": "echo"}'
        for path in SYSTEM + UNKNOWN:
            refuses(ask(provider.port, method, path, WRONG[wrong](provider.password), body=body), method)

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
        refuses(ask(provider.port, method, target, body=b'{"functionName": "echo"}'), method)

    @pytest.mark.parametrize("target", [
        "/./system/functions", "/x/../system/functions", "/healthz/../system/functions", "/SYSTEM/functions",
        "/healthz%2f..%2fsystem/functions", "/function/../system/functions", "/function/%2e%2e/system/functions",
        "/async-function/../system/functions", "/system\\functions", "/system;x/functions", "*", "/system",
    ])  # fmt: skip
    @pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
    def test_dots_lead_nowhere(self, provider, method, target):
        """No path is shortened: these are names of nothing, for everybody."""
        for fields in ((), (basic("admin", provider.password),)):
            answer = ask(provider.port, method, target, *fields, body=b'{"functionName": "echo"}')
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

    @pytest.mark.parametrize("method", METHODS)
    def test_a_body_that_comes_changes_nothing(self, provider, method):
        """With every method and route, known or not, a body in pieces behind the head is no way round."""
        for path in SYSTEM + UNKNOWN:
            refuses(ask(provider.port, method, path, "Transfer-Encoding: chunked", body=b"2\r\n{}\r\n"), method)

    def test_every_refusal_is_counted(self, provider):
        """Guesses of the password can be seen, wherever they are tried."""
        before = refused(provider)
        for _ in range(5):
            for method, path, fields in (
                ("GET", "/system/functions", ()), ("GET", "/system/logs?name=echo", ()), ("HEAD", "/system/nope", ()),
                ("POST", "/system/secrets", ("Content-Length: 50",)), ("POST", "/system/nope", ("Transfer-Encoding: chunked",)),
            ):  # fmt: skip
                refuses(ask(provider.port, method, path, *fields), method)
        assert refused(provider) == before + 25

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
                    answer = ask(provider.port, method, path + "?name=echo", *fields)
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
        "test/echo:latest ../x",
    ])  # fmt: skip
    def test_images(self, provider, image):
        """A bundle is found by what its manifest says, never by a path."""
        answer = provider.send("POST", "/system/functions", {"service": "new", "image": image})
        assert answer.status_code == 400
        assert "is not an image reference" in answer.text or "image is missing" in answer.text

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
                answer = ask(provider.port, verb, target, basic("admin", provider.password), body=body)
                assert answer.status in (400, 404, 405, 422), (verb, target, answer.text)

    @pytest.mark.parametrize(
        "instance", ["../../basic-auth-password", "..", "../echo.openfaas-fn/x", "/etc/passwd", "a%2f..%2fb", "a%00"]
    )
    def test_instances_of_logs(self, provider, instance):
        """A log's file is named by the instance: neither a folder nor another file can be meant."""
        (provider.state / "logs" / "decoy.log").write_text("2026-01-01T00:00:00Z decoy\n")
        right, target = basic("admin", provider.password), "/system/logs?name=echo&since=2000-01-01T00:00:00Z&instance="
        for told in (instance, instance.replace("/", "%2f"), "..%2fdecoy"):
            assert ask(provider.port, "GET", target + told, right).status == 422
        answer = ask(provider.port, "GET", f"{target}decoy", right)
        assert (answer.status, "decoy" in answer.text) == (200, False)
