"""The threat note against a real provider: answers that mean what they say, and requests that mean one thing."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator

import pytest
from provider_process import ProviderProcess
from raw_http import ask, basic, exchange, read_answer, request

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProviderProcess]:
    """One with a function."""
    made = ProviderProcess(tmp_path_factory.mktemp("wire")).start("--cpu-cores", "1")
    made.deploy("echo")
    yield made
    made.destroy()


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
        answer = ask(provider.port, method, target)
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
        assert ask(provider.port, "GET", "/system/info", f"X-Forwarded-Host: {host}").status == 401


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
