"""The HTTP edge: every framing at every split, every limit, and clients that do not behave. On loopback, in-process."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, cast

import pytest
import uvloop
from hurried_clock import HurriedView

from infless_watchdog.body_stream import BodyStream, StreamedExchange
from infless_watchdog.http import BodyLostError, Connection, Edge, Exchange, Limits

Scenario = Callable[["Site"], Coroutine[Any, Any, None]]
Run = Callable[..., "Site"]
BIG = 4 * 1024 * 1024


class Client:
    """Raw bytes to an edge, and what comes back."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, *pieces: bytes) -> None:
        """Write pieces; the server may have hung up already."""
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                self._writer.write(piece)
                await self._writer.drain()

    async def rest(self) -> bytes:
        """Everything until the server closes."""
        async with asyncio.timeout(30):
            return await self._reader.read(-1)

    async def answer(self) -> tuple[bytes, bytes]:
        """One answer with a content length: head and body."""
        async with asyncio.timeout(30):
            head = await self._reader.readuntil(b"\r\n\r\n")
            match = re.search(rb"content-length: (\d+)", head)
            return head, await self._reader.readexactly(int(match[1]) if match else 0)

    def leave(self) -> None:
        """Hang up."""
        self._writer.close()


class Site:
    """An edge with an application that echoes, at once, later, in pieces or never."""

    def __init__(self, limits: Limits) -> None:
        self.edge = Edge(self._app, limits, self.refused, streams=lambda head: head.path.startswith("/s/"))
        self.edge.SWEEP_S = 0.01  # type: ignore[misc]
        self.pending: list[Exchange] = []
        self.refusals: list[int] = []
        self.gone = 0
        self.port = 0
        self.failures: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.read: list[Exchange] = []
        self.clock: HurriedView

    async def listen(self, sock: socket.socket) -> None:
        """Serve, by a clock that can be put forward."""
        await self.edge.listen(sock)
        self.clock = HurriedView(self.edge.loop)
        self.edge.loop = cast(asyncio.AbstractEventLoop, self.clock)

    async def forward(self, seconds: float) -> None:
        """Put the edge's clock forward; returns when it has looked for whom that makes late."""
        self.clock.ahead_s += seconds
        now_s = self.clock.time()
        await self.until(lambda: self.edge.now_s >= now_s)

    def refused(self, exchange: Exchange) -> None:
        """Kept for the test to see."""
        self.refusals.append(exchange.status)

    def _app(self, exchange: Exchange) -> None:
        match exchange.path:
            case "/never":
                self.pending.append(exchange)
                exchange.on_gone = self._left
            case "/pieces":
                exchange.begin(200, [(b"content-type", b"text/plain")])
                for piece in (b"one", b"", b"two"):
                    exchange.write(piece)
                exchange.end()
            case "/big":
                exchange.respond(200, bytes(BIG))
            case "/fault":
                raise ZeroDivisionError
            case "/s/read":
                self.read.append(exchange)
                self.tasks.append(asyncio.ensure_future(self._read(exchange)))
            case "/s/early":
                exchange.respond(403, b"no")
            case "/s/never":
                self.pending.append(exchange)
                exchange.on_gone = self._left
            case _:
                exchange.respond(200, echo(exchange))

    async def _read(self, exchange: Exchange) -> None:
        try:
            if exchange.body_stream is not None:
                exchange.body = b"".join([piece async for piece in exchange.body_stream])
        except BodyLostError as lost:
            self.failures.append(str(lost))
        exchange.respond(200, echo(exchange))

    def _left(self) -> None:
        self.gone += 1

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """A connection that is closed at the end."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2 * BIG)
        try:
            yield Client(reader, writer)
        finally:
            writer.close()

    async def ask(self, *pieces: bytes) -> bytes:
        """Send, and read until the server closes."""
        async with self.client() as client:
            await client.send(*pieces)
            return await client.rest()

    async def until(self, true: Callable[[], object]) -> None:
        """Wait for something to become so."""
        async with asyncio.timeout(30):
            while not true():
                await asyncio.sleep(0.001)


def echo(exchange: Exchange) -> bytes:
    """What the server understood."""
    head = f"{exchange.method} {exchange.path} [{exchange.query}] "
    return head.encode() + bytes(exchange.body)


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a scenario against a site, on each kind of event loop."""

    def ran(scenario: Scenario, **limits: Any) -> Site:
        site = Site(Limits(**limits))

        async def play() -> None:
            sock = socket.create_server(("127.0.0.1", 0))
            site.port = sock.getsockname()[1]
            await site.listen(sock)
            try:
                await scenario(site)
            finally:
                site.edge.close()
                await asyncio.sleep(0)
                sock.close()

        factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(play())
        return site

    return ran


class Wire(asyncio.Transport):
    """A transport that keeps what is written: no socket may put split bytes together again."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.closed = False

    def write(self, data: Any) -> None:
        """Keep it."""
        self.sent += data

    def close(self) -> None:
        """Remember it."""
        self.closed = True

    def is_closing(self) -> bool:
        """Whether somebody closed."""
        return self.closed

    def is_reading(self) -> bool:
        """Always."""
        return True

    def can_write_eof(self) -> bool:
        """Never."""
        return False


def fed(*pieces: bytes) -> tuple[bytes, bool]:
    """What a connection answers to these pieces, and whether it closes."""
    site, wire = Site(Limits()), Wire()

    async def play() -> None:
        site.edge.loop = asyncio.get_running_loop()
        connection = Connection(site.edge)
        connection.connection_made(wire)
        for piece in pieces:
            connection.data_received(piece)
            await asyncio.sleep(0)
        for _ in range(30):
            await asyncio.sleep(0)

    asyncio.run(play())
    return wire.sent, wire.closed


GET = b"GET /a?q=1 HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
CHUNKS = b"3;x=1\r\nabc\r\n2\r\nde\r\n0\r\nTrailer: 1\r\n\r\n"
PIPELINE = {
    b"GET /a [q=1] ": GET,
    b"POST /b [] hello": b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
    b"PUT /c [] abcde": b"PUT /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS,
    b"POST /s/read [] streamed": b"POST /s/read HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\nstreamed",
    b"POST /d [] hi": b"POST /d HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nhi",
    b"GET /e [f] ": b"GET http://x/e?f HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /last [] ": LAST,
}
STREAM = b"".join(PIPELINE.values())


def bodies(data: bytes) -> list[bytes]:
    """The bodies of answers with content lengths."""
    found = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        size = int(re.search(rb"content-length: (\d+)", head)[1])  # type: ignore[index]
        found.append(data[:size])
        data = data[size:]
    return found


# framing -------------------------------------------------------------------------------------------------------------


def test_a_pipeline_is_answered_in_order() -> None:
    """All framings in one packet; an upgrade that nobody offers is ignored, its body is not."""
    sent, closed = fed(STREAM)
    assert bodies(sent) == list(PIPELINE)
    assert closed


def test_requests_may_be_split_at_every_byte() -> None:
    """In two pieces at each place, and in pieces of one byte."""

    def answers(*pieces: bytes) -> bytes:
        return re.sub(rb"date: [^\r]*", b"", fed(*pieces)[0])

    whole = answers(STREAM)
    for place in range(1, len(STREAM)):
        assert answers(STREAM[:place], STREAM[place:]) == whole, STREAM[:place]
    assert answers(*(bytes([byte]) for byte in STREAM)) == whole


def test_a_connection_serves_many_requests(run: Run) -> None:
    """Keep-alive is the default of HTTP/1.1."""

    async def scenario(site: Site) -> None:
        async with site.client() as client:
            for _ in range(3):
                await client.send(GET)
                head, body = await client.answer()
                assert body == b"GET /a [q=1] "
                assert b"connection:" not in head

    run(scenario)


def test_a_pipeline_longer_than_the_limit_is_answered(run: Run) -> None:
    """Reading pauses, and goes on as answers leave."""

    async def scenario(site: Site) -> None:
        answer = await site.ask(GET * 2000, LAST)
        assert answer.count(b"GET /a") == 2000
        assert answer.endswith(b"GET /last [] ")

    run(scenario)


def test_big_bodies_sent_ahead_pause_the_reading(run: Run) -> None:
    """What waits behind an answer in the making is held for one body's worth."""
    body = bytes(300_000)
    post = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n" + body

    async def scenario(site: Site) -> None:
        async with site.client() as client:
            sending = asyncio.ensure_future(client.send(b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n", *[post] * 15, LAST))
            await site.until(lambda: site.pending)
            (connection,) = site.edge.connections
            await site.until(lambda: connection._transport and not connection._transport.is_reading())
            assert len(connection._waiting) < 15
            site.pending[0].respond(200, b"")
            assert (await client.rest()).count(b"POST / []") == 15
            await sending

    run(scenario, body_bytes=1_000_000)


@pytest.mark.parametrize("expect", [b"100-continue", b"100-Continue"])
def test_who_asks_before_sending_is_told_to_go_on(run: Run, expect: bytes) -> None:
    """As curl does with large bodies."""

    async def scenario(site: Site) -> None:
        async with site.client() as client:
            await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: " + expect + b"\r\n\r\n")
            assert (await client.answer())[0] == b"HTTP/1.1 100 Continue\r\n\r\n"
            await client.send(b"ab")
            assert (await client.answer())[1] == b"POST / [] ab"

    run(scenario)


def test_go_on_is_not_said_into_another_answer() -> None:
    """Behind an answer in pieces it would become part of it."""
    sent, _ = fed(
        b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n",
    )
    assert sent == b""


def test_an_answer_in_pieces_is_chunked(run: Run) -> None:
    """An empty piece would end it, and is not sent."""

    async def scenario(site: Site) -> None:
        answer = await site.ask(b"GET /pieces HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert answer.endswith(b"\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")

    run(scenario)


def test_trailers_are_no_headers() -> None:
    """Nobody looked at them when the head was judged."""
    seen: list[Exchange] = []

    async def play() -> None:
        edge = Edge(seen.append, Limits())
        edge.loop = asyncio.get_running_loop()
        connection = Connection(edge)
        connection.connection_made(Wire())
        connection.data_received(
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Admin: yes\r\n\r\n"
        )

    asyncio.run(play())
    assert seen[0].headers == [(b"host", b"x"), (b"transfer-encoding", b"chunked")]


def test_head_has_the_length_and_no_body(run: Run) -> None:
    """As long as GET's would be."""

    async def scenario(site: Site) -> None:
        answer = await site.ask(b"HEAD /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert b"content-length: 11\r\n" in answer
        assert answer.endswith(b"\r\n\r\n")

    run(scenario)


def test_http_1_0_is_answered_and_closed(run: Run) -> None:
    """Also an answer in pieces, which its end ends."""

    async def scenario(site: Site) -> None:
        assert (await site.ask(b"GET /a HTTP/1.0\r\n\r\n")).endswith(b"\r\n\r\nGET /a [] ")
        answer = await site.ask(b"GET /pieces HTTP/1.0\r\n\r\n")
        assert answer.endswith(b"connection: close\r\n\r\nonetwo")

    run(scenario)


def test_http_1_0_may_ask_to_be_kept(run: Run) -> None:
    """As `ab` does; it wants to hear that it is."""

    async def scenario(site: Site) -> None:
        async with site.client() as client:
            for _ in range(2):
                await client.send(b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
                assert b"connection: keep-alive\r\n" in (await client.answer())[0]

    run(scenario)


# limits --------------------------------------------------------------------------------------------------------------


def status(answer: bytes) -> int:
    """The status of the only answer, which also closes."""
    assert len(re.findall(rb"HTTP/1.1 \d+ ", answer)) == 1, answer
    assert b"connection: close" in answer
    return int(answer[9:12])


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"a" * 2000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"a" * 2000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 600 + b"\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"A: b\r\n" * 600 + b"\r\n",
    ],
)
def test_too_large_a_head_is_a_431(run: Run, head: bytes) -> None:
    """In the target, in one field, in many fields, or behind the body."""

    async def scenario(site: Site) -> None:
        assert status(await site.ask(head)) == 431

    assert run(scenario, header_bytes=1000).refusals == [431]


@pytest.mark.parametrize(
    "start", [b"GET / HTTP/1.1\r\nX-", b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;"]
)
def test_a_field_without_end_is_not_collected_for_ever(run: Run, start: bytes) -> None:
    """The parser tells nobody of it before its end; its bytes count all the same."""

    async def scenario(site: Site) -> None:
        async with site.client() as client:
            await client.send(start)
            while not site.refusals:
                await client.send(b"a" * 100)
                await asyncio.sleep(0.0005)
            assert status(await client.rest()) == 431

    run(scenario, header_bytes=1000)


def test_a_body_said_to_be_too_long_is_refused_before_it_is_sent(run: Run) -> None:
    """413, with the limit in the sentence, and nothing of it read."""

    async def scenario(site: Site) -> None:
        answer = await site.ask(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\nExpect: 100-continue\r\n\r\n")
        assert status(answer) == 413
        assert b"larger than the allowed 1000 bytes" in answer

    assert run(scenario, body_bytes=1000).refusals == [413]


def test_chunks_that_become_too_long_are_refused(run: Run) -> None:
    """Their length is known only by counting."""

    async def scenario(site: Site) -> None:
        head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        assert status(await site.ask(head, *[b"64\r\n" + b"a" * 100 + b"\r\n"] * 11)) == 413

    assert run(scenario, body_bytes=1000).refusals == [413]


def test_who_sends_on_after_the_refusal_still_reads_it(run: Run) -> None:
    """Closing at once would reset the connection and take the answer away from a client that is still sending."""

    async def scenario(site: Site) -> None:
        head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 30000000\r\n\r\n"
        answer = await site.ask(head, *[bytes(300_000)] * 100)
        assert status(answer) == 413

    run(scenario, body_bytes=1000)


def test_a_body_of_exactly_the_limit_is_served(run: Run) -> None:
    """The limit itself is allowed."""

    async def scenario(site: Site) -> None:
        head = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1000\r\n\r\n"
        assert (await site.ask(head, bytes(1000))).endswith(b"POST / [] " + bytes(1000))

    run(scenario, body_bytes=1000)


@pytest.mark.parametrize("sent", [b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc", b"GET / HTT"])
def test_a_half_sent_request_is_a_408(run: Run, sent: bytes) -> None:
    """Head or body: it must arrive whole within the limit."""

    async def scenario(site: Site) -> None:
        assert status(await site.ask(sent)) == 408

    assert run(scenario, read_timeout_s=0.02).refusals == [408]


def test_a_silent_connection_is_closed(run: Run) -> None:
    """Without a word: nothing was asked."""

    async def scenario(site: Site) -> None:
        assert await site.ask() == b""

    assert run(scenario, idle_timeout_s=0.02).refusals == []


def test_a_refused_client_that_never_stops_sending_is_cut(run: Run) -> None:
    """It has had its time to read why."""

    async def scenario(site: Site) -> None:
        site.edge.LINGER_S = 0.02  # type: ignore[misc]
        async with site.client() as client:
            await client.send(b"nonsense\r\n\r\n")
            await site.until(lambda: not site.edge.connections)

    run(scenario)


def test_a_client_that_does_not_read_is_dropped(run: Run) -> None:
    """Its answer must not be held for ever."""

    async def scenario(site: Site) -> None:
        with socket.create_connection(("127.0.0.1", site.port)) as client:
            client.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n" * 10)
            await site.until(lambda: site.edge.connections)
            await site.until(lambda: not site.edge.connections)

    run(scenario, write_timeout_s=0.05)


def test_a_client_that_reads_slowly_gets_all(run: Run) -> None:
    """As long as it takes something now and then."""

    async def scenario(site: Site) -> None:
        with socket.create_connection(("127.0.0.1", site.port)) as client:
            client.setblocking(False)
            loop, got = asyncio.get_running_loop(), 0
            await loop.sock_sendall(client, b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n" * 4)  # more than the kernel takes
            while got < 4 * BIG:
                piece = await loop.sock_recv(client, 500_000)
                assert piece, f"cut after {got} bytes"
                got += len(piece)
                await site.forward(20)

    run(scenario, write_timeout_s=100)


# what is not HTTP ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"hello\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nA : b\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: b\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\nHost: x\n\n",
        b"GET /\0 HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA\0: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: b\0c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA(B): c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n: c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\nA: b\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: abc\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    ],
)
def test_garbage_is_a_400(run: Run, sent: bytes) -> None:
    """With a sentence, and the end of the connection."""

    async def scenario(site: Site) -> None:
        assert status(await site.ask(sent)) == 400

    assert run(scenario).refusals == [400]


@pytest.mark.parametrize(
    "hosts",
    [b"", b"Host: a\r\nHost: a\r\n", b"Host: a\r\nHost: b\r\n", b"Host: a b\r\n", b"Host: a/b\r\n", b"Host: a@b\r\n"],
)
def test_a_request_has_one_host(run: Run, hosts: bytes) -> None:
    """None, several, or one that is no name: whoever stands in front may mean another one (RFC 9112, section 3.2)."""

    async def scenario(site: Site) -> None:
        assert status(await site.ask(b"GET / HTTP/1.1\r\n" + hosts + b"\r\n")) == 400

    assert run(scenario).refusals == [400]


@pytest.mark.parametrize("host", [b"a", b"a:80", b"[::1]:8080", b"127.0.0.1", b"my_function.openfaas-fn", b""])
def test_hosts_that_are_good(run: Run, host: bytes) -> None:
    """Names, addresses, ports; and nothing, which RFC 9112 allows."""

    async def scenario(site: Site) -> None:
        assert status(await site.ask(b"GET /a HTTP/1.1\r\nHost: " + host + b"\r\nConnection: close\r\n\r\n")) == 200

    run(scenario)


SMUGGLED = b"0\r\n\r\nGET /admin HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    ("framing", "code"),
    [
        (b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", 400),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", 400),
        (b"Content-Length: 3\r\nContent-Length: 40\r\n", 400),
        (b"Content-Length: 3, 40\r\n", 400),
        (b"Content-Length: 3\r\nContent-Length: 3\r\n", 400),
        (b"Content-Length: 18446744073709551619\r\n", 400),
        (b"Content-Length:\r\n", 400),
        (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 400),
        (b"Content-Length: +3\r\n", 400),
        (b"Transfer-Encoding: xchunked\r\n", 501),
        (b"Transfer-Encoding: gzip, chunked\r\n", 501),
        (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", 400),
        (b"Transfer-Encoding : chunked\r\n", 400),
        (b"Transfer-Encoding:\x0bchunked\r\n", 400),
    ],
)
def test_two_meanings_of_one_request_are_refused(run: Run, framing: bytes, code: int) -> None:
    """A proxy in front may have read it the other way: nothing behind it is served."""

    async def scenario(site: Site) -> None:
        answer = await site.ask(b"POST / HTTP/1.1\r\nHost: x\r\n" + framing + b"\r\n" + SMUGGLED)
        assert status(answer) == code
        assert b"admin" not in answer

    assert run(scenario).refusals == [code]


def test_http_1_0_has_no_chunks(run: Run) -> None:
    """An old proxy would have passed them on as they are."""

    async def scenario(site: Site) -> None:
        assert status(await site.ask(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n" + SMUGGLED)) == 400

    run(scenario)


def test_connect_is_not_for_us(run: Run) -> None:
    """We are no proxy."""

    async def scenario(site: Site) -> None:
        assert status(await site.ask(b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n\x16\x03\x01")) == 501

    run(scenario)


def test_a_refusal_waits_for_the_answers_before_it(run: Run) -> None:
    """Who pipelined good requests in front of a bad one gets their answers first."""

    async def scenario(site: Site) -> None:
        async with site.client() as client:
            await client.send(b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n", GET, b"nonsense\r\n\r\n")
            await site.until(lambda: site.pending)
            await asyncio.sleep(0.01)
            site.pending[0].respond(200, b"first")
            answer = await client.rest()
            assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"200", b"200", b"400"]
            assert answer.index(b"first") < answer.index(b"GET /a")

    run(scenario)


# leaving and ending --------------------------------------------------------------------------------------------------


def test_a_client_that_leaves_is_noticed_once(run: Run) -> None:
    """And what is answered to it afterwards goes nowhere."""

    async def scenario(site: Site) -> None:
        async with site.client() as client:
            await client.send(b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n")
            await site.until(lambda: site.pending)
            client.leave()
            await site.until(lambda: site.gone)
        exchange = site.pending[0]
        exchange.respond(200, b"late")
        exchange.write(b"later")
        exchange.end()
        assert exchange.client_gone
        assert not site.edge.connections

    assert run(scenario).gone == 1


def test_a_client_that_leaves_with_its_answer_is_not_gone(run: Run) -> None:
    """The answer was complete."""

    async def scenario(site: Site) -> None:
        async with site.client() as client:
            await client.send(b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n")
            await site.until(lambda: site.pending)
            site.pending[0].respond(200, b"")
            await client.answer()
        await site.until(lambda: not site.edge.connections)

    assert run(scenario).gone == 0


def test_an_exchange_is_answered_once(run: Run) -> None:
    """A second answer would be read as the next one's."""

    async def scenario(site: Site) -> None:
        async with site.client() as client:
            await client.send(b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n", LAST)
            await site.until(lambda: site.pending)
            site.pending[0].respond(200, b"first")
            site.pending[0].respond(200, b"second")
            assert b"second" not in await client.rest()

    run(scenario)


def test_an_application_that_raises_answers_500(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """The connection goes on; the log has the reason."""

    async def scenario(site: Site) -> None:
        answer = await site.ask(b"GET /fault HTTP/1.1\r\nHost: x\r\n\r\n", LAST)
        assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"500", b"200"]

    run(scenario)
    assert "ZeroDivisionError" in caplog.text


def test_an_abort_cuts_the_connection(run: Run) -> None:
    """Half an answer must not look like a whole one."""

    async def scenario(site: Site) -> None:
        async with site.client() as client:
            await client.send(b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n")
            await site.until(lambda: site.pending)
            site.pending[0].begin(200, [])
            site.pending[0].abort()
            with contextlib.suppress(ConnectionResetError):
                assert not (await client.rest()).endswith(b"0\r\n\r\n")

    run(scenario)


def test_draining_answers_what_is_in_the_making(run: Run) -> None:
    """Idle connections close at once, the others behind their answer, which says so."""

    async def scenario(site: Site) -> None:
        async with site.client() as idle, site.client() as busy, site.client() as sending:
            await busy.send(b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n")
            await sending.send(b"POST /half HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nab")
            await site.until(lambda: site.pending and len(site.edge.connections) == 3)
            draining = asyncio.ensure_future(site.edge.drain(5))
            assert await idle.rest() == b""
            await sending.send(b"cd")
            site.pending[0].respond(200, bytes(BIG))
            assert (await sending.rest()).endswith(b"connection: close\r\n\r\nPOST /half [] abcd")
            assert len(await busy.rest()) > BIG
            assert await draining

    run(scenario)


def test_draining_ends_answers_that_began_before(run: Run) -> None:
    """An answer in pieces could not say that it closes; it does so all the same."""

    async def scenario(site: Site) -> None:
        async with site.client() as client:
            await client.send(b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n")
            await site.until(lambda: site.pending)
            site.pending[0].begin(200, [])
            draining = asyncio.ensure_future(site.edge.drain(5))
            await asyncio.sleep(0)
            site.pending[0].end()
            assert (await client.rest()).endswith(b"0\r\n\r\n")
            assert await draining

    run(scenario)


def test_draining_gives_up_after_its_time(run: Run) -> None:
    """An answer that never comes must not hold the instance."""

    async def scenario(site: Site) -> None:
        async with site.client() as client:
            await client.send(b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n")
            await site.until(lambda: site.pending)
            assert not await site.edge.drain(0.02)

    assert run(scenario).gone == 1


# bodies that are served as they come ---------------------------------------------------------------------------------

STREAMED = b"POST /s/read HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
CHUNKED = b"POST /s/read HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
NEVER = STREAMED.replace(b"read", b"never")


def stream_of(exchange: Exchange) -> BodyStream:
    """Its body, as it comes."""
    assert isinstance(exchange, StreamedExchange)
    return exchange.body_stream


def test_the_application_is_called_when_the_head_is_there(run: Run) -> None:
    """It may read while the client sends, and the connection is used again."""

    async def scenario(site: Site) -> None:
        async with site.client() as client:
            await client.send(NEVER % 6, b"abc")
            await site.until(lambda: site.pending)
            stream = stream_of(site.pending[0])
            assert (await anext(stream), stream.left_bytes) == (b"abc", 3)
            await client.send(b"def" + LAST)
            assert await anext(stream) == b"def"
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
            site.pending[0].respond(200, b"read")
            assert (await client.answer())[1] == b"read"
            assert (await client.rest()).endswith(b"GET /last [] ")

    run(scenario)


def test_a_body_that_is_whole_at_once_is_no_stream(run: Run) -> None:
    """The usual case stays as simple as it was."""

    async def scenario(site: Site) -> None:
        async with site.client() as client:
            await client.send(NEVER % 3 + b"abc")
            await site.until(lambda: site.pending)
            assert (site.pending[0].body_stream, bytes(site.pending[0].body)) == (None, b"abc")

    run(scenario)


def test_a_streamed_body_waits_for_its_turn(run: Run) -> None:
    """Behind an answer in the making it is kept, no more of it than the high-water mark and what is in the sockets."""

    async def scenario(site: Site) -> None:
        async with site.client() as client:
            sending = asyncio.ensure_future(
                client.send(b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n", STREAMED % BIG, bytes(BIG))
            )
            await site.until(lambda: site.edge.connections)
            (connection,) = site.edge.connections
            await site.until(lambda: connection._paused)
            assert connection._incoming is not None
            assert connection._incoming.body_stream.received_bytes < 1024 * 1024
            assert site.tasks == []
            site.pending[0].respond(200, b"first")
            assert (await client.answer())[1] == b"first"
            assert len((await client.answer())[1]) == BIG + len("POST /s/read [] ")
            await sending

    run(scenario)


def test_a_slow_reader_holds_back_the_client(run: Run) -> None:
    """Nothing is read beyond the high-water mark; nothing is lost."""

    async def scenario(site: Site) -> None:
        async with site.client() as client:
            sending = asyncio.ensure_future(client.send(NEVER % (4 * BIG), *[bytes(BIG)] * 4))
            await site.until(lambda: site.pending and stream_of(site.pending[0]).full)
            (connection,) = site.edge.connections
            await site.until(lambda: not connection._transport.is_reading())  # type: ignore[union-attr]
            assert stream_of(site.pending[0]).received_bytes < 1024 * 1024
            assert sum([len(piece) async for piece in stream_of(site.pending[0])]) == 4 * BIG
            site.pending[0].respond(200, b"")
            await client.answer()
            await sending

    run(scenario, body_bytes=5 * BIG)


@pytest.mark.parametrize("framing", [b"Content-Length: 4", b"Transfer-Encoding: chunked"])
def test_go_on_is_said_when_somebody_wants_the_body(run: Run, framing: bytes) -> None:
    """Not before, and only to who asked."""
    head = b"POST /s/never HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n" + framing + b"\r\n\r\n"

    async def scenario(site: Site) -> None:
        async with site.client() as client:
            await client.send(head)
            await site.until(lambda: site.pending)
            reading = asyncio.ensure_future(anext(stream_of(site.pending[0])))
            assert (await client.answer())[0] == b"HTTP/1.1 100 Continue\r\n\r\n"
            await client.send(b"4\r\nabcd\r\n0\r\n\r\n" if b"chunked" in framing else b"abcd")
            assert await reading == b"abcd"
            site.pending[0].respond(200, b"x")
            assert (await client.answer())[1] == b"x"
            await client.send(LAST)
            assert status(await client.rest()) == 200

    run(scenario)


def test_who_was_not_told_to_go_on_is_not_waited_for(run: Run) -> None:
    """Refused without a look at the body: the client may send it or not, so the connection ends."""

    async def scenario(site: Site) -> None:
        head = b"POST /s/early HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"
        answer = await site.ask(head)
        assert status(answer) == 403
        assert b"100 Continue" not in answer

    run(scenario)


def test_an_answer_before_the_end_of_a_small_body_keeps_the_connection(run: Run) -> None:
    """The little that comes is dropped; what follows is the next request."""

    async def scenario(site: Site) -> None:
        async with site.client() as client:
            await client.send(STREAMED.replace(b"read", b"early") % 200_000, bytes(10))
            assert (await client.answer())[0].startswith(b"HTTP/1.1 403 ")
            await client.send(bytes(199_990), LAST)
            assert (await client.rest()).endswith(b"GET /last [] ")

    run(scenario)


@pytest.mark.parametrize("head", [STREAMED % BIG, CHUNKED], ids=["length", "chunks"])
def test_an_answer_before_the_end_of_a_long_body_ends_the_connection(run: Run, head: bytes) -> None:
    """The client is told, may send on for a while, and reads the answer; nothing behind it is served."""

    async def scenario(site: Site) -> None:
        chunk = b"400000\r\n"
        answer = await site.ask(head.replace(b"read", b"early") + chunk, bytes(100_000), b"\r\n" + LAST)
        assert status(answer) == 403
        assert b"last" not in answer

    run(scenario)


@pytest.mark.parametrize(
    ("pieces", "code"),
    [
        ([CHUNKED, *[b"64\r\n" + b"a" * 100 + b"\r\n"] * 11], 413),
        ([CHUNKED, b"3\r\nabc\r\n", b"xyz\r\n"], 400),
        ([CHUNKED, b"3\r\nabc\r\n", b"0\r\n" + b"A: bcdefgh\r\n" * 20_000], 431),
    ],
)
def test_a_streamed_body_that_breaks_the_rules(run: Run, pieces: list[bytes], code: int) -> None:
    """The client reads why, and the reader of the body is told; what it answers then goes nowhere."""

    async def scenario(site: Site) -> None:
        async with site.client() as client:
            for piece in pieces:
                await client.send(piece)
                await asyncio.sleep(0)
            assert status(await client.rest()) == code
        await asyncio.gather(*site.tasks)

    site = run(scenario, body_bytes=1000)
    assert site.refusals == [code]
    assert len(site.failures) == len(site.tasks) <= 1


def test_rules_are_broken_behind_the_start_of_an_answer(run: Run) -> None:
    """Half an answer is out: all that is left is to cut it."""

    async def scenario(site: Site) -> None:
        async with site.client() as client:
            await client.send(CHUNKED.replace(b"read", b"never"))
            await site.until(lambda: site.pending)
            site.pending[0].begin(200, [])
            site.pending[0].write(b"half")
            await client.send(b"xyz\r\n")
            with contextlib.suppress(ConnectionResetError):
                assert not (await client.rest()).endswith(b"0\r\n\r\n")
            with pytest.raises(BodyLostError, match="not a valid"):
                await anext(stream_of(site.pending[0]))

    run(scenario)


def test_a_streamed_body_may_take_long(run: Run) -> None:
    """Longer than `read_timeout`, as long as it flows."""

    async def scenario(site: Site) -> None:
        async with site.client() as client:
            await client.send(STREAMED % 80_000)
            await site.until(lambda: site.read)
            stream = stream_of(site.read[0])
            for sent_bytes in range(10_000, 90_000, 10_000):
                await client.send(bytes(10_000))
                await site.until(lambda sent=sent_bytes: stream.received_bytes == sent)
                await site.forward(20)
            assert (await client.answer())[0].startswith(b"HTTP/1.1 200 ")

    assert run(scenario, read_timeout_s=39).refusals == []


@pytest.mark.parametrize("drip", [b"", b"a"], ids=["nothing", "a byte now and then"])
def test_a_streamed_body_that_hardly_comes_is_a_408(run: Run, drip: bytes) -> None:
    """A byte now and then would hold the connection, and an instance, for ever."""

    async def scenario(site: Site) -> None:
        async with site.client() as client:
            await client.send(STREAMED % 8000)
            while not site.refusals:
                await client.send(drip)
                await asyncio.sleep(0.01)
            assert status(await client.rest()) == 408
        await asyncio.gather(*site.tasks)

    site = run(scenario, read_timeout_s=0.1)
    assert (site.refusals, site.failures) == ([408], ["the body came slower than 256 bytes per second for 0.1 s"])


def test_a_client_that_we_hold_back_is_not_late(run: Run) -> None:
    """Nor is one that waits to be told to go on."""

    async def scenario(site: Site) -> None:
        async with site.client() as client, site.client() as polite:
            sending = asyncio.ensure_future(client.send(NEVER % BIG, bytes(BIG)))
            await site.until(lambda: site.pending and stream_of(site.pending[0]).full)
            await polite.send((NEVER % 9).replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
            await site.until(lambda: len(site.pending) == 2)
            for _ in range(5):
                await site.forward(61)
            assert site.refusals == []
            assert sum([len(piece) async for piece in stream_of(site.pending[0])]) == BIG
            await sending

    run(scenario, read_timeout_s=60)


def test_a_client_that_leaves_its_body_is_noticed(run: Run) -> None:
    """By whoever reads it, and by who does not."""

    async def scenario(site: Site) -> None:
        async with site.client() as client:
            await client.send(STREAMED % 9, b"abc")
            await site.until(lambda: site.tasks)
            client.leave()
        await asyncio.gather(*site.tasks)
        async with site.client() as client:
            await client.send(NEVER % 9, b"abc")
            await site.until(lambda: site.pending)
            client.leave()
            await site.until(lambda: site.gone)
        with pytest.raises(BodyLostError, match="left"):
            await anext(stream_of(site.pending[0]))

    assert run(scenario).failures == ["the client left before its request was whole"]


def test_draining_waits_for_a_streamed_body(run: Run) -> None:
    """A request that is being read is answered before the end."""

    async def scenario(site: Site) -> None:
        async with site.client() as client, site.client() as early:
            await client.send(STREAMED % 6, b"abc")
            await early.send(STREAMED.replace(b"read", b"early") % 6, b"abc")
            await site.until(lambda: site.tasks)
            await early.answer()
            draining = asyncio.ensure_future(site.edge.drain(5))
            await asyncio.sleep(0)
            await client.send(b"def")
            assert (await client.rest()).endswith(b"connection: close\r\n\r\nPOST /s/read [] abcdef")
            await early.send(b"def")
            assert await early.rest() == b""
            assert await draining

    run(scenario)


def test_a_body_has_one_reader() -> None:
    """Two would each miss what the other took."""

    async def play() -> None:
        stream = BodyStream(None)
        first = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="one reader"):
            await anext(stream)
        stream.add(b"a")
        stream.add(b"b")
        assert await first == b"ab"

    asyncio.run(play())


# too many connections ------------------------------------------------------------------------------------------------


def test_the_longest_idle_connection_makes_room(run: Run) -> None:
    """Who has nothing in the making for longest is closed in favour of who has something to ask."""

    async def scenario(site: Site) -> None:
        async with site.client() as idle, site.client() as busy:
            await busy.send(b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n")
            await site.until(lambda: site.pending and len(site.edge.connections) == 2)
            assert status(await site.ask(LAST)) == 200
            assert await idle.rest() == b""
            assert len(site.edge.connections) <= 2
            site.pending[0].respond(200, b"there")
            assert (await busy.answer())[1] == b"there"

    assert run(scenario, connections_max=2).edge.turned_away == 0


def test_where_all_are_busy_one_more_is_turned_away(run: Run) -> None:
    """With a 503 that is read, and the busy ones never notice."""

    async def scenario(site: Site) -> None:
        async with site.client() as busy:
            await busy.send(b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n")
            await site.until(lambda: site.pending)
            answer = await site.ask()
            assert status(answer) == 503
            assert b"retry-after: 1\r\n" in answer
            site.pending[0].respond(200, b"there")
            assert (await busy.answer())[1] == b"there"

    assert run(scenario, connections_max=1).edge.turned_away == 1
