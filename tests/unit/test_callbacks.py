"""Callbacks go where the policy permits, and nowhere else: real sockets on loopback, scripted name servers."""

import asyncio
import ipaddress
import shutil
import socket
import ssl
import subprocess
from contextlib import asynccontextmanager

import pytest

from infless_core.errors import InvalidInput
from infless_provider.callback_policy import CallbackPolicy, parse_url
from infless_provider.callbacks import Callbacks

LOOPBACK = ("127.0.0.0/8",)
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"

PUBLIC = [
    "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1",
]  # fmt: skip
PRIVATE = [
    "127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "169.254.169.254", "224.0.0.1", "0.0.0.0",
    "255.255.255.255", "240.0.0.1", "192.0.0.1", "198.18.0.1", "192.88.99.1", "203.0.113.1",
    "::1", "::", "fe80::1", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "ff0e::1", "2001:db8::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "::ffff:0:127.0.0.1", "64:ff9b::a00:1", "64:ff9b::7f00:1",
    "64:ff9b:1::1", "2002:a00:1::1", "2002:7f00:1::1", "2001:0:7f00:1::1",
]  # fmt: skip


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_permitted(address):
    """Also those that embed a public IPv4 one."""
    assert CallbackPolicy().permits("name", ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PRIVATE)
def test_other_addresses_are_not(address):
    """In whatever coat they come, as an address in the URL too; unless everything is allowed."""
    assert not CallbackPolicy().permits("name", ipaddress.ip_address(address))
    url = f"http://[{address}]/" if ":" in address else f"http://{address}/"
    with pytest.raises(InvalidInput, match="not a public one"):
        CallbackPolicy().check(url)
    assert CallbackPolicy.parse(("*",)).check(url).host == address


@pytest.mark.parametrize("host", ["2130706433", "127.1", "0x7f.1", "0177.0.0.1", "0", "[::ffff:7f00:1]"])
def test_old_spellings_of_loopback_are_loopback(host):
    """The C library understands them, so an attacker uses them."""
    with pytest.raises(InvalidInput, match="not a public one"):
        CallbackPolicy().check(f"http://{host}/")


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("ftp://example.com/", "http:// or https://"),
        ("file:///etc/passwd", "http:// or https://"),
        ("example.com/x", "http:// or https://"),
        ("http://user@example.com/", "user or a password"),
        ("https://user:secret@example.com/", "user or a password"),
        ("http://@example.com/", "user or a password"),
        ("http:///path", "no valid host"),
        ("http://exa%6dple.com/", "no valid host"),
        ("http://exam ple.com/", "without spaces"),
        ("http://example.com/\r\nx: y", "without spaces"),
        ("http://ex\u00e4mple.com/", "printable ASCII"),
        ("http://example.com\\@127.0.0.1/", "user or a password"),
        ("http://example.com\\.internal/", "no valid host"),
        ("http://example.com:0/", "port 0"),
        ("http://example.com:65536/", "not a URL"),
        ("http://example.com:x/", "not a URL"),
        ("http://[::1/", "not a URL"),
        ("http://" + "x" * 2048, "2048 printable"),
    ],
)
def test_a_url_that_is_none_is_refused_with_a_sentence(url, sentence):
    """Which never repeats a password."""
    with pytest.raises(InvalidInput, match=sentence) as told:
        CallbackPolicy.parse(("*",)).check(url)
    assert "secret" not in str(told.value)


def test_the_parts_of_a_url():
    """The query goes along, a fragment stays, ports have defaults."""
    target = parse_url("https://Example.COM/a%20b?c=d#e")
    assert (target.scheme, target.host, target.port, target.path) == ("https", "example.com", 443, "/a%20b?c=d")
    assert parse_url("http://h").path == "/"
    assert parse_url("http://[2606::1]:81/").origin == "[2606::1]:81"


def test_what_an_operator_allows():
    """Names for whatever they mean, addresses and networks for whoever means them; nothing else with them."""
    policy = CallbackPolicy.parse(("127.0.0.0/8", "fd00::/8", "Callbacks.Internal"))
    address = ipaddress.ip_address
    assert policy.permits("anything", address("127.1.2.3"))
    assert policy.permits("anything", address("::ffff:127.1.2.3"))
    assert policy.permits("anything", address("fd00::1"))
    assert policy.permits("callbacks.internal.", address("10.0.0.1"))
    assert not policy.permits("not-callbacks.internal", address("10.0.0.1"))
    assert not policy.permits("callbacks.internal.evil.example", address("10.0.0.1"))
    assert not policy.permits("anything", address("2002:7f00:1::1"))


@pytest.mark.parametrize("entry", ["10.0.0.1/8", "http://x", "127.1", "*.internal", "", "a b", "::1/x"])
def test_an_allowance_that_means_nothing_is_named(entry):
    """Before it silently allows nothing."""
    with pytest.raises(InvalidInput, match="no host name, address or network"):
        CallbackPolicy.parse((entry,))


class Listener:
    """A server that says what it is told to, and keeps what it heard."""

    def __init__(self, says):
        self.says, self.heard, self.connections = says, [], 0
        self.left, self.tasks = asyncio.Event(), set()

    async def serve(self, reader, writer):
        """One connection, many requests."""
        self.connections += 1
        self.tasks.add(asyncio.current_task())
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(
                    int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
                )
                self.heard.append((head.decode().split("\r\n"), await reader.readexactly(length)))
                await self.says(writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.left.set()
            writer.close()


async def ok(writer):
    """A short answer."""
    writer.write(OK)
    await writer.drain()


@asynccontextmanager
async def listening(says=ok, tls=None):
    """A listener and its port."""
    listener = Listener(says)
    server = await asyncio.start_server(listener.serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield listener, server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in listener.tasks:
            task.cancel()
        await asyncio.gather(*listener.tasks, return_exceptions=True)


def post(url, allowed=LOOPBACK, says=ok, *, times=1, server_tls=None, after=None, **more):
    """Post to a listener; `{}` in the URL is its port. Gives the last delivery and the listener."""

    async def run():
        callbacks = Callbacks(CallbackPolicy.parse(allowed), connections_max=8, **more)
        async with listening(says, server_tls) as (listener, port):
            try:
                for _ in range(times):
                    target = parse_url(url.format(port))
                    delivery = await callbacks.post(target, [(b"x-function-name", b"f")], b"body")
                if after is not None:
                    await after(listener)
            finally:
                await callbacks.close()
            return delivery, listener

    return asyncio.run(run())


@pytest.fixture
def names(monkeypatch):
    """A name server: names to lists of addresses, one list for each look-up."""
    known, real = {}, socket.getaddrinfo

    def getaddrinfo(host, port, *args, **kwargs):
        if host not in known:
            return real(host, port, *args, **kwargs)
        found = known[host].pop(0)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return known


def test_a_callback_is_posted_as_it_is():
    """Host, length and agent are ours; connections are used again."""
    delivery, listener = post("http://127.0.0.1:{}/done?key=1", times=3)
    assert (delivery.status, delivery.fault) == (200, "")
    assert (listener.connections, len(listener.heard)) == (1, 3)
    head, body = listener.heard[0]
    assert head[0] == "POST /done?key=1 HTTP/1.1"
    assert body == b"body"
    headers = dict(line.split(": ", 1) for line in head[1:-2])
    assert headers.pop("user-agent").startswith("infless/")
    assert headers.pop("host").startswith("127.0.0.1:")
    assert headers == {"x-function-name": "f", "content-length": "4"}


def test_proxies_of_the_environment_are_not_used(monkeypatch):
    """A proxy would look the name up again, out of sight of the policy."""
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1/")
    assert post("http://127.0.0.1:{}/")[0].status == 200


def test_a_redirect_is_not_followed():
    """It could lead anywhere."""

    async def away(writer):
        writer.write(b"HTTP/1.1 302 Found\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n")

    delivery, listener = post("http://127.0.0.1:{}/", says=away)
    assert (delivery.status, len(listener.heard)) == (302, 1)


def test_a_name_that_means_a_private_address_is_not_connected_to(names):
    """Not even for a moment; and trying again would not help."""
    names["public.example"] = [["127.0.0.1"]]
    delivery, listener = post("http://public.example:{}/", allowed=())
    assert delivery.forbidden
    assert "public.example is not a public address" in delivery.fault
    assert listener.connections == 0


def test_localhost_is_not_connected_to_either():
    """By its real look-up."""
    delivery, listener = post("http://localhost:{}/", allowed=())
    assert (delivery.forbidden, listener.connections) == (True, 0)


def test_a_name_is_looked_up_once_and_what_was_judged_is_connected_to(names):
    """A name server that gives another answer a moment later (DNS rebinding) is not asked a second time."""
    names["rebinding.example"] = [["127.0.0.1"], ["127.0.0.2"]]
    delivery, listener = post("http://rebinding.example:{}/", allowed=("127.0.0.1",))
    assert delivery.status == 200
    assert listener.connections == 1
    assert names["rebinding.example"] == [["127.0.0.2"]]
    assert any(line.startswith("host: rebinding.example:") for line in listener.heard[0][0])


def test_every_new_connection_is_judged_anew(names):
    """A name that meant a permitted address may mean another one now."""

    async def closing(writer):
        writer.write(OK.replace(b"OK\r\n", b"OK\r\nconnection: close\r\n"))
        await writer.drain()

    names["rebinding.example"] = [["127.0.0.1"], ["127.0.0.2"]]
    delivery, listener = post("http://rebinding.example:{}/", allowed=("127.0.0.1",), says=closing, times=2)
    assert delivery.forbidden
    assert listener.connections == 1


def test_of_several_addresses_the_permitted_ones_are_tried(names):
    """In order; one that refuses is followed by the next."""
    names["many.example"] = [["10.0.0.1", "127.0.0.9", "127.0.0.1"]]
    assert post("http://many.example:{}/")[0].status == 200


@pytest.mark.parametrize("name", ["gone.example", "x" * 64 + ".example"])
def test_a_name_that_means_nothing_is_a_fault(monkeypatch, name):
    """Which may pass."""

    def nobody(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    delivery, _ = post(f"http://{name}:{{}}/", allowed=("*",))
    assert (delivery.status, delivery.forbidden) == (0, False)
    assert "means no address" in delivery.fault


def test_a_target_that_never_answers_is_left():
    """After the time that was given, with a sentence that tells no path."""

    async def silence(_):
        await asyncio.Event().wait()

    delivery, listener = post("http://127.0.0.1:{}/secret", says=silence, timeout_s=0.1)
    assert delivery.status == 0
    assert "did not answer within 0.1 s" in delivery.fault
    assert "secret" not in delivery.fault
    assert len(listener.heard) == 1


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH\r\n\r\n", b"", b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000])
def test_an_answer_that_is_none_is_a_fault(answer):
    """Garbage, nothing, a head without an end."""

    async def garbage(writer):
        writer.write(answer)
        await writer.drain()
        writer.close()

    delivery, _ = post("http://127.0.0.1:{}/", says=garbage)
    assert (delivery.status, delivery.forbidden) == (0, False)
    assert "gave no answer" in delivery.fault


def test_a_target_that_refuses_is_a_fault():
    """Nobody listens there."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        delivery, _ = post(f"http://127.0.0.1:{unused.getsockname()[1]}/")
    assert delivery.status == 0
    assert "127.0.0.1" in delivery.fault


def test_an_endless_answer_is_not_read():
    """The status is what counts; the connection is closed after a few KiB."""
    sent = []

    async def endless(writer):
        writer.write(b"HTTP/1.1 202 Accepted\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"400\r\n%b\r\n" % (b"x" * 1024))
            await writer.drain()
            sent.append(1024)

    async def left(listener):
        await asyncio.wait_for(listener.left.wait(), 10)

    assert post("http://127.0.0.1:{}/", says=endless, after=left)[0].status == 202
    assert sum(sent) < 32 << 20


@pytest.fixture
def tls(tmp_path):
    """Contexts of a server named callbacks.example, and of a client that trusts it."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-keyout", key, "-out", certificate, "-subj", "/CN=callbacks.example",
         "-addext", "subjectAltName=DNS:callbacks.example"],
        check=True, capture_output=True,
    )  # fmt: skip
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    return server, ssl.create_default_context(cafile=certificate)


def test_tls_verifies_the_name_and_not_the_address(names, tls):
    """The connection goes to a checked address, the certificate is asked for the name."""
    server, client = tls
    names.update({"callbacks.example": [["127.0.0.1"]], "other.example": [["127.0.0.1"]]})
    delivery, listener = post("https://callbacks.example:{}/", server_tls=server, tls=client)
    assert delivery.status == 200
    assert listener.heard[0][0][1].startswith("host: callbacks.example:")
    delivery, listener = post("https://other.example:{}/", server_tls=server, tls=client)
    assert delivery.status == 0
    assert "CERTIFICATE_VERIFY_FAILED" in delivery.fault
    assert listener.heard == []
