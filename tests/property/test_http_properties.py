"""The HTTP edge on any sequence of requests, cut anywhere: a head that is recognised means what it means when parsed."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from infless_watchdog.body_stream import BodyLostError, BodyStream
from infless_watchdog.exchange import Exchange
from infless_watchdog.http import Connection, Edge, Limits

HEADS = [
    b"POST / HTTP/1.1\r\nHost: a\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nX-Trace: 1\r\n",
    b"PUT /b?c=d HTTP/1.1\r\nhost: a\r\nContent-Type: text/plain\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n",
    b"HEAD / HTTP/1.1\r\nHost: a\r\n",
    b"POST / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n",
]
BODIES = [
    b"",
    b"x",
    b"\r\n",
    b"\r\n\r\n",
    b"\n\n",
    b"POST / HTTP/1.1\r\nHost: evil\r\nContent-Length: 0\r\n\r\n",
    bytes(300),
]


def request(head: bytes, body: bytes, form: str) -> bytes:
    """One request, framed by its length or in chunks, or a broken relative of it."""
    match form:
        case "chunked":
            chunks = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
        case "trailing newline":
            return head + b"Content-Length: %d\r\n\r\n" % len(body) + body + b"\r\n"
        case "bare line feeds":
            return (head + b"Content-Length: %d\r\n\r\n" % len(body)).replace(b"\r\n", b"\n") + body
        case _:
            return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


requests = st.builds(
    request,
    st.sampled_from(HEADS),
    st.sampled_from(BODIES),
    st.sampled_from(["plain", "plain", "plain", "chunked", "trailing newline", "bare line feeds"]),
)


class Client:
    """A connection without a network; remembers what the application was asked and what was sent back."""

    def __init__(self, *, recognise: bool) -> None:
        self.asked: list[tuple[str, str, str, list[Any], bytes]] = []
        self.sent: list[bytes] = []
        self.closed = False
        self.edge = Edge(self._app, Limits(header_bytes=1000))
        self._soon: list[Any] = []
        self.edge.loop = cast(Any, SimpleNamespace(time=lambda: 0.0, call_soon=self._soon.append))
        self.connection = Connection(self.edge)
        if not recognise:
            self.connection._parser._remember = lambda *_: None  # type: ignore[method-assign]
        self.connection.connection_made(cast(Any, self))

    def _app(self, exchange: Exchange) -> None:
        head = exchange.head
        self.asked.append((head.method, head.path, head.query, list(head.headers), bytes(exchange.body)))
        exchange.respond(200, b"%d" % len(self.asked))

    def feed(self, data: bytes) -> None:
        """As it comes from the socket."""
        if not self.closed:
            self.connection.data_received(data)
        while self._soon:
            self._soon.pop(0)()

    # a transport -----------------------------------------------------------------------------------------------------

    def get_extra_info(self, _: str) -> None:
        """Nobody."""

    def write(self, data: bytes) -> None:
        """Sent back, without the date."""
        self.sent.append(data[data.find(b"content-type") :])

    def is_closing(self) -> bool:
        """Whether `close` was called."""
        return self.closed

    def close(self) -> None:
        """The connection's end."""
        self.closed = True

    abort = write_eof = close

    def can_write_eof(self) -> bool:
        """For simplicity."""
        return False

    def is_reading(self) -> bool:
        """Always."""
        return True

    def pause_reading(self) -> None:
        """Not needed: what is fed is fed."""


@given(st.lists(requests, max_size=8), st.data())
@example([request(HEADS[0], b"x", "plain")] * 4, None)
def test_a_recognised_head_means_what_it_means_when_parsed(stream: list[bytes], data: Any) -> None:
    """However the bytes are cut, the application is asked the same, and the client told the same."""
    octets = b"".join(stream)
    if data is None:
        pieces = stream
    else:
        cuts = sorted(data.draw(st.lists(st.integers(0, len(octets)), max_size=12)))
        natural, place = [], 0
        for one in stream:  # most clients send a request at a time
            place += len(one)
            natural.append(place)
        ends = sorted({*cuts, *(natural if data.draw(st.booleans()) else []), len(octets)})
        pieces = [octets[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    quick, plain = Client(recognise=True), Client(recognise=False)
    for piece in pieces:
        if piece:
            quick.feed(piece)
            plain.feed(piece)
    assert quick.asked == plain.asked
    assert (quick.sent, quick.closed) == (plain.sent, plain.closed)


def test_nothing_is_recognised_behind_a_refusal() -> None:
    """What follows a broken request is not looked at, however well it is known."""
    client = Client(recognise=True)
    client.feed(request(HEADS[0], b"ab", "plain"))
    client.feed(b"\x00\x00\r\n\r\n")
    client.closed = False  # the client goes on sending
    client.feed(request(HEADS[0], b"cd", "plain"))
    assert [body for *_, body in client.asked] == [b"ab"]


def test_a_head_is_recognised_on_every_connection() -> None:
    """Who opens hundreds of connections has each head parsed once; what clients choose takes no more memory for it."""
    client = Client(recognise=True)
    client.feed(request(HEADS[0], b"ab", "plain"))
    other = Connection(client.edge)
    other.connection_made(cast(Any, client))
    other._parser._parser = cast(Any, None)  # nothing is parsed any more
    other.data_received(request(HEADS[0], b"cd", "plain"))
    assert [body for *_, body in client.asked] == [b"ab", b"cd"]
    for number in range(1000):
        one = Connection(client.edge)
        one.connection_made(cast(Any, client))
        one.data_received(request(HEADS[0] + b"X-Trace: %d\r\n" % number, b"ef", "plain"))
    assert len(client.asked) == 1002
    assert len(client.edge.heads) <= 64


def test_a_head_is_recognised() -> None:
    """Else the test above would compare the parser with itself."""
    client = Client(recognise=True)
    for body in (b"ab", b"cd"):
        client.feed(request(HEADS[0], body, "plain"))
    assert client.connection._parser._known is not None
    client.connection._parser._parser = cast(Any, None)  # nothing is parsed any more
    client.feed(request(HEADS[0], b"ef", "plain") + request(HEADS[0], b"gh", "plain"))
    assert [body for *_, body in client.asked] == [b"ab", b"cd", b"ef", b"gh"]


class Narrow(BodyStream):
    """A stream that a few bytes fill."""

    HIGH_WATER_BYTES = 12


@given(
    st.lists(st.one_of(st.binary(min_size=1, max_size=9), st.just("read"), st.just("many"))),
    st.sampled_from(["ended", "failed", "unwanted"]),
)
def test_a_body_in_pieces_is_read_whole_or_not_at_all(steps: list[bytes | str], end: str) -> None:
    """However writing and reading alternate: in order, nothing twice, and its connection is told of each change."""
    flows: list[bool] = []

    async def play() -> None:
        stream, written, read = Narrow(None), b"", b""
        stream.on_flow = lambda: flows.append(stream.full)
        for step in steps:
            if isinstance(step, bytes):
                stream.add(step)
                written += step
            elif step == "many" or written != read:
                reader = asyncio.ensure_future(anext(stream))
                await asyncio.sleep(0)
                if not reader.done():
                    stream.add(b"x")
                    written += b"x"
                read += await reader
                assert read == written
                assert not stream.full
        assert stream.received_bytes == len(written)
        await _finish(stream, end, written[len(read) :])

    asyncio.run(play())
    assert flows == [place % 2 == 0 for place in range(len(flows))]


async def _finish(stream: BodyStream, end: str, left: bytes) -> None:
    """What its reader is told at the end."""
    if end == "failed":
        stream.fail("gone")
        with pytest.raises(BodyLostError, match="gone"):
            await anext(stream)
    elif end == "unwanted":
        stream.discard()
        stream.add(b"nobody")
        assert [piece async for piece in stream] == []
    else:
        stream.end()
        stream.fail("too late")
        assert b"".join([piece async for piece in stream]) == left
        assert stream.left_bytes == 0
