"""The HTTP edge: every framing at every split, every limit, and clients that do not behave. On loopback, in-process."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
import uvloop

from infless_watchdog.http import Connection, Edge, Exchange, Limits

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
        async with asyncio.timeout(5):
            return await self._reader.read(-1)

    async def answer(self) -> tuple[bytes, bytes]:
        """One answer with a content length: head and body."""
        async with asyncio.timeout(5):
            head = await self._reader.readuntil(b"\r\n\r\n")
            match = re.search(rb"content-length: (\d+)", head)
            return head, await self._reader.readexactly(int(match[1]) if match else 0)

    def leave(self) -> None:
        """Hang up."""
        self._writer.close()


class Site:
    """An edge with an application that echoes, at once, later, in pieces or never."""

    def __init__(self, limits: Limits) -> None:
        self.edge = Edge(self._app, limits, self.refused)
        self.edge.SWEEP_S = 0.01  # type: ignore[misc]
        self.pending: list[Exchange] = []
        self.refusals: list[int] = []
        self.gone = 0
        self.port = 0

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
            case _:
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
        async with asyncio.timeout(5):
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
            await site.edge.listen(sock)
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
        for _ in range(5):
            await asyncio.sleep(0)

    asyncio.run(play())
    return wire.sent, wire.closed


GET = b"GET /a?q=1 HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
CHUNKS = b"3;x=1\r\nabc\r\n2\r\nde\r\n0\r\nTrailer: 1\r\n\r\n"
PIPELINE = {
    b"GET /a [q=1] ": GET,
    b"POST /b [] hello": b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
    b"PUT /c [] abcde": b"PUT /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS,
    b"POST /d [] hi": b"POST /d HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nhi",
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
        connection.data_received(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Admin: yes\r\n\r\n")

    asyncio.run(play())
    assert seen[0].headers == [(b"transfer-encoding", b"chunked")]


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
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"A: b\r\n" * 600 + b"\r\n",
    ],
)
def test_too_large_a_head_is_a_431(run: Run, head: bytes) -> None:
    """In the target, in one field, in many fields, or behind the body."""

    async def scenario(site: Site) -> None:
        assert status(await site.ask(head)) == 431

    assert run(scenario, header_bytes=1000).refusals == [431]


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\nX-", b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;"])
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
            await loop.sock_sendall(client, b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
            while got < BIG:
                got += len(await loop.sock_recv(client, 500_000))
                await asyncio.sleep(0.02)

    run(scenario, write_timeout_s=0.1)


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


SMUGGLED = b"0\r\n\r\nGET /admin HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    ("framing", "code"),
    [
        (b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", 400),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", 400),
        (b"Content-Length: 3\r\nContent-Length: 40\r\n", 400),
        (b"Content-Length: 3, 40\r\n", 400),
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
