"""The threat note against a real provider: TLS, and an end to everything that a caller can make grow."""

from __future__ import annotations

import re
import resource
import socket
import ssl
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from certificates import self_signed
from provider_in_process import ProviderInProcess, provider_in_process
from provider_process import ProviderProcess, environment, wait_until
from raw_http import Answer, basic, exchange, read_answer, request

from infless_provider.auth import Credentials
from infless_provider.client import Client, Refused
from infless_provider.settings import connections_within
from infless_watchdog.http import Edge

pytestmark = pytest.mark.integration

GATED = """
import os, time
def handle(event, context):
    while event.body == b"wait" and not os.path.exists(os.environ["gate"]):
        time.sleep(0.002)
    return {"statusCode": 200, "body": f"{len(event.body)}"}
"""
BODY_MAX, QUEUED_MAX, CONTROL_MAX = 100_000, 10_000, 4 * 1024 * 1024
STREAMS_MAX, CONNECTIONS_MAX = 3, 6


# limits --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProviderInProcess]:
    """A provider with little room, and a function that runs until the gate opens."""
    limits = {
        "functions_max": 2, "namespaces_max": 3, "secrets_max": 2, "body_max_bytes": BODY_MAX,
        "async_body_max_bytes": QUEUED_MAX, "streams_max": STREAMS_MAX, "connections_max": CONNECTIONS_MAX,
        "waiting_max": 1, "invoke_timeout_s": 30.0,
    }  # fmt: skip
    with provider_in_process(tmp_path_factory.mktemp("limits") / "small", **limits) as made:
        made.deploy("gated", GATED, envVars={"gate": str(made.root / "gate"), "handler_isolation": "thread"})
        yield made


def login(provider: ProviderProcess) -> str:
    """A header field."""
    return basic("admin", provider.password)


class TestLimits:
    """What a caller can make grow ends at a number, and is answered there."""

    def test_functions(self, small):
        """403 for the third, in a sentence; an update is none more, and a place that is free is free."""
        for name in ("one", "two"):
            small.build(name)
        sleeping = {"labels": {"com.openfaas.scale.min": "0"}}
        assert small.put("POST", "one", **sleeping).status_code == 202
        full = small.put("POST", "two", **sleeping)
        assert (full.status_code, "holds 2 functions" in full.text) == (403, True)
        assert small.put("PUT", "one", **sleeping).status_code == 202
        assert small.send("DELETE", "/system/functions", {"functionName": "one"}).status_code == 202
        assert small.put("POST", "two", **sleeping).status_code == 202
        assert small.send("DELETE", "/system/functions", {"functionName": "two"}).status_code == 202

    @pytest.mark.parametrize(("path", "body"), [("namespace/", {}), ("secrets", {"value": "v"})])
    def test_namespaces_and_secrets(self, small, path, body):
        """403 for one more than there may be; the default namespace counts."""
        names = ["a", "b", "c"]
        answers = [small.send("POST", f"/system/{path}", {**body, "name": name}) for name in names]
        assert [answer.status_code for answer in answers] == [201, 201, 403]
        assert re.search("as many as (it|there) may", answers[-1].text)
        for name in names[:2]:
            target = f"/system/{path}{name}" if path.endswith("/") else f"/system/{path}"
            assert small.send("DELETE", target, {"name": name}).status_code == 202

    @pytest.mark.parametrize(
        ("path", "most"),
        [
            ("/function/gated", BODY_MAX),
            ("/async-function/gated", QUEUED_MAX),
            ("/system/functions", BODY_MAX),
            ("/nope", BODY_MAX),
        ],
    )
    @pytest.mark.parametrize("chunked", [False, True])
    def test_bodies(self, small, path, most, chunked):
        """413 as soon as it is known: from the length, or at the first byte too many."""
        right = login(small) if path.startswith(("/system/", "/nope")) else "X-None: 1"
        if chunked:
            sent = request("POST", path, right, "Transfer-Encoding: chunked") + b"%x\r\n%b" % (1 << 30, bytes(most + 1))
        else:
            sent = request("POST", path, right, f"Content-Length: {most + 1}") + bytes(most + 1)
        assert exchange(small.port, sent).status == 413

    def test_a_head(self, small):
        """431; a body that fits is taken."""
        assert exchange(small.port, request("GET", "/function/gated", "X: " + "x" * 70_000)).status == 431
        assert small.invoke("gated", bytes(BODY_MAX)).text == str(BODY_MAX)

    def test_invocations_at_once(self, small):
        """503 with Retry-After for one more; none of them is lost."""
        with ThreadPoolExecutor(STREAMS_MAX) as clients:
            waiting = [clients.submit(small.invoke, "gated", b"wait") for _ in range(STREAMS_MAX)]
            wait_until(lambda: in_flight(small) == STREAMS_MAX, "all are under way")
            refused = small.invoke("gated", b"")
            assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
            opened(small)
            assert [one.result().status_code for one in waiting] == [200] * STREAMS_MAX
        wait_until(lambda: in_flight(small) == 0, "all have ended")
        assert small.invoke("gated", b"").status_code == 200

    def test_connections(self, small):
        """The longest idle one makes room; where all are busy, one more is told 503."""
        wait_until(lambda: not small.edge.connections, "nobody is connected")
        with ExitStack() as open_ones:
            idle = connected(small, open_ones)
            for _ in range(CONNECTIONS_MAX):  # one of them in the place of the idle one
                connected(small, open_ones).sendall(b"POST /function/gated HTTP/1.1\r\n")
                wait_until(lambda: sum(one.idle for one in small.edge.connections) <= 1, "its request has begun")
            assert idle.recv(100) == b""
            assert len(small.edge.connections) == CONNECTIONS_MAX
            assert read_answer(connected(small, open_ones)).status == 503
        wait_until(lambda: not small.edge.connections, "those who have left are gone")
        assert small.invoke("gated", b"").status_code == 200

    def test_an_invocation_ends(self, small):
        """A client may say sooner; nobody holds a place for ever."""
        late = requests.post(f"{small.url}/function/gated", data=b"wait", headers={"X-Timeout": "200ms"}, timeout=20)
        assert late.status_code == 504
        opened(small)

    def test_control_calls(self, tmp_path):
        """Smaller than invocations: the largest is a secret of a mebibyte, twice."""
        with provider_in_process(tmp_path / "control") as made:
            answer = made.send("POST", "/system/secrets", b"x" * (CONTROL_MAX + 1))
            assert (answer.status_code, str(CONTROL_MAX) in answer.text) == (413, True)


def in_flight(provider: ProviderProcess) -> int:
    """Invocations under way."""
    return sum(one["in_flight"] for one in provider.send("GET", "/system/overview").json()["functions"])


def opened(provider: ProviderProcess) -> None:
    """Let those who wait at the gate go, and close it behind them."""
    gate = provider.root / "gate"
    gate.touch()
    wait_until(lambda: in_flight(provider) == 0, "those at the gate have gone")
    gate.unlink()


def connected(provider: ProviderProcess, open_ones: ExitStack) -> socket.socket:
    """A connection that is left open."""
    return open_ones.enter_context(socket.create_connection(("127.0.0.1", provider.port), timeout=20))


# open files ----------------------------------------------------------------------------------------------------------

FILES_SOFT, FILES_HARD = 256, 512
FEW_FILES = f"""
import resource
if resource.getrlimit(resource.RLIMIT_NOFILE)[1] > {FILES_HARD}:
    resource.setrlimit(resource.RLIMIT_NOFILE, ({FILES_SOFT}, {FILES_HARD}))
"""
"""The `sitecustomize` of the provider's Python; instances find the hard limit low, and change nothing."""


@pytest.fixture(scope="module")
def frugal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProviderProcess]:
    """A provider that was started with few open files, and with fewer that it must ask for."""
    made = ProviderProcess(tmp_path_factory.mktemp("files") / "frugal")
    (made.root / "site").mkdir()
    (made.root / "site" / "sitecustomize.py").write_text(FEW_FILES)
    made.variables = {"PYTHONPATH": f"{made.root / 'site'}:{environment()['PYTHONPATH']}"}
    made.start("--cpu-cores", "1").deploy("echo")
    yield made
    made.destroy()


class TestOpenFiles:
    """Clients that only stay connected take no file that the provider needs."""

    def test_as_many_as_there_may_be(self, frugal):
        """The provider's limit is the hard one, its instances' is what it was; what connections lose is said."""
        assert frugal.worker.rlimit(psutil.RLIMIT_NOFILE) == (FILES_HARD, FILES_HARD)
        (pid,) = frugal.pids("echo")
        assert psutil.Process(pid).rlimit(psutil.RLIMIT_NOFILE) == (FILES_HARD, FILES_HARD)
        room = connections_within(FILES_HARD, 4096)
        assert f"at most {room} client connections instead of 16384: this process may open {FILES_HARD} files" in (
            frugal.log.read_text()
        )

    def test_more_clients_than_files(self, frugal):
        """Each is answered when it comes, and stays; the longest idle ones go, and new ones are served."""
        many = FILES_HARD + 100
        if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < many + 100:
            pytest.skip(f"this process may not open {many} files")
        with ExitStack() as open_ones:
            idle: list[socket.socket] = []
            for _ in range(many):  # one after the other: the last one is in when the next one comes
                idle.append(connected(frugal, open_ones))
                idle[-1].sendall(request("GET", "/healthz"))
                assert read_answer(idle[-1]).status == 200
            assert idle[0].recv(100) == b""
            assert requests.get(f"{frugal.url}/healthz", timeout=20).text == "OK"
            assert frugal.invoke("echo").text == "hi"
            assert frugal.send("GET", "/system/functions").status_code == 200
            idle[-1].sendall(request("GET", "/healthz"))
            assert read_answer(idle[-1]).status == 200


# TLS -----------------------------------------------------------------------------------------------------------------


class TlsProvider(ProviderProcess):
    """`infless up` with a certificate."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.signed = self_signed(root)
        self.url = f"https://localhost:{self.port}"
        self.trust = ssl.create_default_context(cafile=str(self.signed.certificate))

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        return self._starts() > self._earlier and self.ask("GET", "/healthz").status == 200

    def ask(self, method: str, target: str, *fields: str) -> Answer:
        """One request over TLS."""
        return exchange(self.port, request(method, target, *fields), self.trust)


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsProvider]:
    """A provider that speaks TLS."""
    made = TlsProvider(tmp_path_factory.mktemp("tls") / "secure")
    signed = made.signed
    made.start("--cpu-cores", "1", "--tls-cert", str(signed.certificate), "--tls-key", str(signed.key))
    yield made
    made.destroy()


def handshake(provider: TlsProvider, version: ssl.TLSVersion) -> str | None:
    """The version that is agreed on with a client that speaks no other, and would take any cipher."""
    context = ssl.create_default_context(cafile=str(provider.signed.certificate))
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it says that the old versions are deprecated
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.maximum_version = version
        context.minimum_version = version
    with (
        socket.create_connection(("127.0.0.1", provider.port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as sock,
    ):
        return sock.version()


class TestTls:
    """`--tls-cert` and `--tls-key`."""

    def test_it_is_spoken(self, secure):
        """By a client that verifies the name; control calls, functions and logs alike; the key is in no log."""
        answer = requests.get(f"{secure.url}/healthz", verify=str(secure.signed.certificate), timeout=20)
        assert (answer.status_code, answer.text) == (200, "OK")
        assert secure.ask("GET", "/system/functions").status == 401
        assert secure.ask("GET", "/system/functions", login(secure)).status == 200
        assert secure.ask("GET", "/function/nobody").status == 404
        with pytest.raises(requests.exceptions.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
            requests.get(f"{secure.url}/healthz", timeout=20)
        assert f"https://127.0.0.1:{secure.port}" in secure.log.read_text()
        assert secure.signed.key.read_text().splitlines()[1] not in secure.log.read_text()

    def test_our_own_client_speaks_it(self, secure, monkeypatch):
        """It trusts whom it is told to, and says what to do where it does not."""
        client = Client(f"https://localhost:{secure.port}", Credentials(user="admin", password=secure.password))
        with pytest.raises(
            Refused,
            match=r"^the certificate of https://localhost:\d+ is not trusted: self.signed certificate; name your own in",
        ):
            client.overview()
        with pytest.raises(
            Refused, match=r"hangs up without an answer; if it speaks https, write https://localhost:\d+$"
        ):
            Client(f"http://localhost:{secure.port}", None).overview()
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(secure.signed.certificate))
        client = Client(f"https://localhost:{secure.port}", Credentials(user="admin", password=secure.password))
        assert client.overview()["functions"] == []

    @pytest.mark.parametrize("path", ["/healthz", "/system/functions", "/function/x"])
    def test_plain_http_is_not(self, secure, path):
        """Not one byte of an answer, so that nobody sends a password in the clear and believes that it worked."""
        with socket.create_connection(("127.0.0.1", secure.port), timeout=20) as sock:
            sock.sendall(request("GET", path, login(secure)))
            with pytest.raises((ConnectionError, IndexError)):
                read_answer(sock)

    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
    def test_old_versions_are_refused(self, secure, version):
        """By the provider, which ends the connection, not by this client's library; the newer ones are spoken."""
        with pytest.raises(OSError, match="(?i)EOF occurred|alert protocol version|reset by peer"):
            handshake(secure, version)
        assert handshake(secure, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
        assert handshake(secure, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"

    def test_half_handshakes_hold_up_nobody(self, secure):
        """Silent ones, and some that stop in the middle of their first word."""
        with ExitStack() as open_ones:
            for index in range(40):
                sock = open_ones.enter_context(socket.create_connection(("127.0.0.1", secure.port), timeout=20))
                sock.sendall(b"\x16\x03\x01\x02\x00\x01"[: index % 7])
            assert [secure.ask("GET", "/healthz").status for _ in range(20)] == [200] * 20

    def test_half_handshakes_are_cut(self, tmp_path, monkeypatch):
        """After `Edge.HANDSHAKE_S`, which is short here."""
        monkeypatch.setattr(Edge, "HANDSHAKE_S", 0.3)
        signed = self_signed(tmp_path)
        tls: dict[str, Any] = {"tls_certificate": signed.certificate, "tls_key": signed.key}
        with (
            provider_in_process(tmp_path / "cut", **tls) as made,
            socket.create_connection(("127.0.0.1", made.port), timeout=20) as sock,
        ):
            assert sock.recv(100) == b""
