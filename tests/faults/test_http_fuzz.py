"""The HTTP edge fed with valid requests that were tampered with, beside a reader that knows only what is beyond doubt.

What the strict reader reads must be served, in order; where it no longer knows, nothing more may be: whoever stands in
front of the edge and reads the same bytes another way finds no second request in them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import socket
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infless_watchdog.body_stream import StreamedExchange
from infless_watchdog.exchange import Exchange
from infless_watchdog.http import BodyLostError, Connection, Edge, Limits

Start = Callable[..., Any]
Asked = tuple[str, str, bytes]
LIMITS = Limits(header_bytes=4096, body_bytes=4096)
SEED = 7231

# what a request is beyond doubt --------------------------------------------------------------------------------------

METHODS = {"GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"}
_LINE = re.compile(rb"([A-Z]+) +(/[\x21-\x7e]*|\*) +HTTP/1\.([01])")  # RFC 9112, section 3: spaces may be several
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*((?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?)[ \t]*")  # fmt: skip
_HOST = re.compile(rb"[a-z0-9._~%:\[\]-]*")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})(?:;[!#$%&'*+.^_`|~0-9A-Za-z=;-]*)?")


class DoubtError(Exception):
    """What follows has more than one meaning, or none."""


class Strict:
    """Reads requests by the letter of RFC 9112."""

    def __init__(self, stream: bytes) -> None:
        self._rest = stream
        self.asked: list[Asked] = []
        self.closed = False
        """Whether the last request wanted the end of the connection."""
        self.doubt = b""
        """Why what is left is no request beyond doubt."""
        with contextlib.suppress(IndexError):
            try:
                while self._rest and not self.closed:
                    self._request()
            except DoubtError as doubt:
                self.doubt = doubt.args[0]

    def _until(self, end: bytes) -> bytes:
        found, mark, self._rest = self._rest.partition(end)
        if not mark:
            raise IndexError("incomplete")
        return found

    def _take(self, size: int) -> bytes:
        if len(self._rest) < size:
            raise IndexError("incomplete")
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken

    def _request(self) -> None:
        self._rest = self._rest.lstrip(b"\r\n")  # section 2.2: empty lines before a request are ignored
        if not self._rest:
            return
        first, *lines = self._until(b"\r\n\r\n").split(b"\r\n")
        line = _LINE.fullmatch(first)
        if line is None or line[1].decode() not in METHODS:
            raise DoubtError(first)
        fields = self._fields(lines)
        old, connection = line[3] == b"0", re.split(rb"[ \t]*,[ \t]*", b",".join(fields.get(b"connection", [])))
        if old and b"transfer-encoding" in fields:
            raise DoubtError(b"chunks in HTTP/1.0")
        hosts = fields.get(b"host", [])  # section 3.2
        if len(hosts) > 1 or not (hosts or old) or not all(map(_HOST.fullmatch, hosts)):
            raise DoubtError(b"host")
        self.asked.append((line[1].decode(), line[2].partition(b"?")[0].decode(), self._body(fields)))
        self.closed = b"close" in connection or (old and b"keep-alive" not in connection)

    def _fields(self, lines: list[bytes]) -> dict[bytes, list[bytes]]:
        fields: dict[bytes, list[bytes]] = {}
        for line in lines:
            field = _FIELD.fullmatch(line)
            if field is None:
                raise DoubtError(line)
            fields.setdefault(field[1].lower(), []).append(field[2].lower())
        return fields

    def _body(self, fields: dict[bytes, list[bytes]]) -> bytes:
        lengths, codings = fields.get(b"content-length", []), fields.get(b"transfer-encoding", [])
        if codings:
            if codings != [b"chunked"] or lengths:
                raise DoubtError(b"framing")
            return self._chunks()
        if not lengths:
            return b""
        if len(lengths) > 1 or not re.fullmatch(rb"\d{1,9}", lengths[0]) or int(lengths[0]) > LIMITS.body_bytes:
            raise DoubtError(b"length")
        return self._take(int(lengths[0]))

    def _chunks(self) -> bytes:
        body = b""
        while True:
            line = self._until(b"\r\n")
            chunk = _CHUNK.fullmatch(line)
            if chunk is None:
                raise DoubtError(line)
            size = int(chunk[1], 16)
            if not size:
                break
            body += self._take(size)
            if self._take(2) != b"\r\n":
                raise DoubtError(b"chunk")
        while trailer := self._until(b"\r\n"):
            if {b"content-length", b"transfer-encoding"} & self._fields([trailer]).keys():
                raise DoubtError(trailer)
        return body


# what was answered ---------------------------------------------------------------------------------------------------


def answers(sent: bytes) -> list[tuple[int, bytes]]:
    """Statuses and bodies; whatever is sent must be whole answers, and nothing behind one that closes."""
    found = []
    while sent:
        head, end, sent = sent.partition(b"\r\n\r\n")
        assert end, head
        lines = head.split(b"\r\n")
        assert re.fullmatch(rb"HTTP/1\.1 \d{3} [ -~]+", lines[0]), head
        assert all(re.fullmatch(rb"[a-z-]+: [\x20-\x7e]*", line) for line in lines[1:]), head
        status = int(head[9:12])
        if status == 100:
            continue
        length = re.search(rb"content-length: (\d+)", head)
        assert length is not None, head
        found.append((status, sent[: int(length[1])]))
        bodiless = status >= 400 and not sent  # to HEAD
        assert len(found[-1][1]) == int(length[1]) or bodiless, "an answer that is cut"
        sent = sent[int(length[1]) :]
        assert not (sent and b"connection: close" in lines), f"something behind the end: {sent!r}"
    return found


def check(stream: bytes, asked: list[Asked], sent: bytes) -> None:
    """What was served is what the strict reader reads, in order, and no more; each has one answer, then one refusal."""
    strict = Strict(stream)
    found = answers(sent)
    good = [body for status, body in found if status == 200]
    refused = [status for status, _ in found if status != 200]
    assert asked[: len(strict.asked)] == strict.asked[: len(asked)]
    if strict.doubt or strict.closed:
        assert len(asked) <= len(strict.asked), f"served what is in doubt: {strict.doubt!r}"
    if len(asked) < len(strict.asked):  # more careful than the letter, as with a tab behind `chunked`
        assert refused, "not served, and not told"
    assert [json.loads(body)[:2] for body in good] == [[method, path] for method, path, _ in asked]
    assert len(refused) <= 1, refused
    assert found[len(good) :] == found[-1:] * len(refused), "a refusal ends the connection"
    assert set(refused) <= {400, 413, 431, 501}


class Client:
    """A connection to an edge without a network, whose application reads bodies as they come, if `streams`."""

    def __init__(self, *, streams: bool = False) -> None:
        self.asked: list[Asked] = []
        self.sent = b""
        self.closed = False
        edge = Edge(self._app, LIMITS, streams=lambda _: streams)
        self._reading: tuple[StreamedExchange, list[bytes]] | None = None
        self._soon: list[Any] = []
        edge.loop = cast(Any, SimpleNamespace(time=lambda: 0.0, call_soon=self._soon.append))
        self._connection = Connection(edge)
        self._connection.connection_made(cast(Any, self))

    def _app(self, exchange: Exchange) -> None:
        if isinstance(exchange, StreamedExchange):
            assert self._reading is None, "two bodies at once"
            self._reading = (exchange, [])
        else:
            self._answer(exchange, bytes(exchange.body))

    def _read(self) -> None:
        """Take what has come of a body, as its reader would; a broken one is told by `check`."""
        if self._reading is None:
            return
        exchange, pieces = self._reading
        with contextlib.suppress(StopAsyncIteration, BodyLostError, RuntimeError):
            while True:
                try:
                    exchange.body_stream.__anext__().send(None)
                except StopIteration as piece:
                    pieces.append(piece.value)
        if exchange.done or exchange.body_stream.ended:
            self._reading = None
        if exchange.body_stream.ended:
            self._answer(exchange, b"".join(pieces))

    def _answer(self, exchange: Exchange, body: bytes) -> None:
        self.asked.append((exchange.method, exchange.path, body))
        text = json.dumps([exchange.method, exchange.path])
        # As to GET: an answer to HEAD has no body to compare.
        exchange.head = SimpleNamespace(method="GET", path=exchange.path)  # type: ignore[assignment]
        exchange.respond(200, text.encode())

    def feed(self, data: bytes) -> None:
        """As it comes from the socket."""
        if data and not self.closed:
            self._connection.data_received(data)
        self._read()
        while self._soon:
            self._soon.pop(0)()
            self._read()

    def write(self, data: bytes) -> None:
        """Sent back."""
        assert not self.closed
        self.sent += data

    def close(self) -> None:
        """The connection's end."""
        self.closed = True

    abort = write_eof = close

    def get_extra_info(self, _: str) -> None:
        """Nobody."""

    def is_closing(self) -> bool:
        """Whether it is closed."""
        return self.closed

    def can_write_eof(self) -> bool:
        """For simplicity."""
        return False

    def is_reading(self) -> bool:
        """Always."""
        return True

    def pause_reading(self) -> None:
        """Not needed: what is fed is fed."""

    resume_reading = pause_reading


# valid requests, and what is done to them ----------------------------------------------------------------------------

VALID = [
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nworld",
    b"POST /b?q=1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"PUT /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nSum: 1\r\n\r\n",
    b"POST /d HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nhi",
    b"POST /e HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nhi",
    b"POST /f HTTP/1.1\r\nHost: a\r\nContent-Length: 50\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\nX-Padding: 01\r\n\r\n",
    b"POST /g HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx",
    b"HEAD /h HTTP/1.1\r\nHost: a\r\nAccept: */*\r\n\r\n",
]
TOKENS = [
    b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\0", b" ", b"\t", b"\x0b", b"\x7f", b"\xff", b":", b";", b",", b"0", b"1",
    b"Content-Length: 3\r\n", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: xchunked\r\n",
    b"Transfer-Encoding: identity\r\n", b"Transfer-Encoding : chunked\r\n", b" folded\r\n", b"chunked", b"+", b"-", b"0x",
    b"0\r\n\r\n", b"GET /smuggled HTTP/1.1\r\n\r\n", b"HTTP/1.0", b"Connection: close\r\n", b"A" * 5000,
]  # fmt: skip


def tamper(stream: bytes, chance: random.Random) -> bytes:
    """Insert, delete, repeat, overwrite: one to four times."""
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(len(stream) + 1)
        stop = min(len(stream), start + chance.choice([0, 1, 1, 2, 8, 40]))
        match chance.randrange(4):
            case 0:
                stream = stream[:start] + chance.choice(TOKENS) + stream[start:]
            case 1:
                stream = stream[:start] + stream[stop:]
            case 2:
                stream = stream[:stop] + stream[start:stop] + stream[stop:]
            case _:
                stream = stream[:start] + chance.choice([chance.choice(TOKENS), chance.randbytes(1)]) + stream[stop:]
    return stream


def cut(stream: bytes, chance: random.Random) -> Iterator[bytes]:
    """In one piece, or in some."""
    ends = sorted(chance.randrange(len(stream) + 1) for _ in range(chance.choice([0, 0, 1, 3, 9])))
    for start, stop in zip([0, *ends], [*ends, len(stream)], strict=True):
        yield stream[start:stop]


def fed(pieces: Any, *, streams: bool = False) -> Client:
    """A client that has sent these."""
    client = Client(streams=streams)
    for piece in pieces:
        client.feed(piece)
    return client


# in process ----------------------------------------------------------------------------------------------------------


def test_the_strict_reader_knows_the_valid_requests() -> None:
    """Else it would never object to anything."""
    for one in VALID:
        strict = Strict(one)
        assert len(strict.asked) == 1, one
        assert not strict.doubt
    assert Strict(b"".join(VALID[:8])).asked == [Strict(one).asked[0] for one in VALID[:8]]


@pytest.mark.parametrize("one", VALID)
@pytest.mark.parametrize("streams", [False, True])
def test_every_cut_means_the_same(one: bytes, streams: bool) -> None:
    """A request before, the request in two pieces cut anywhere, and byte by byte: the same is asked and answered."""
    before = VALID[1]
    whole = fed([before, one])
    check(before + one, whole.asked, whole.sent)
    for place in range(1, len(one)):
        pieces = fed([before, one[:place], one[place:]], streams=streams)
        assert (pieces.asked, answers(pieces.sent)) == (whole.asked, answers(whole.sent)), place
    drops = fed((bytes([octet]) for octet in before + one), streams=streams)
    assert (drops.asked, answers(drops.sent)) == (whole.asked, answers(whole.sent))


def test_many_small_requests_in_one_write() -> None:
    """A long pipeline of all kinds is answered in order, whole and in pieces."""
    chance = random.Random(SEED)
    for _ in range(50):
        stream = b"".join(chance.choices(VALID[:8], k=40))
        client = fed(cut(stream, chance))
        assert len(client.asked) == 40
        check(stream, client.asked, client.sent)


@settings(max_examples=1500, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(VALID), min_size=1, max_size=5), st.randoms(use_true_random=False), st.booleans())
def test_tampered_requests_are_read_one_way_or_not_at_all(
    stream: list[bytes], chance: random.Random, streams: bool
) -> None:
    """Never an exception, a broken answer, or a request served that is in doubt."""
    octets = tamper(b"".join(stream), chance)
    client = fed(cut(octets, chance), streams=streams)
    check(octets, client.asked, client.sent)


def test_twenty_thousand_tampered_streams() -> None:
    """The same, more often: Hypothesis takes its time to think."""
    for number in range(20_000):
        chance = random.Random(f"{SEED}-{number}")
        octets = tamper(b"".join(chance.choices(VALID, k=chance.randint(1, 5))), chance)
        client = fed(cut(octets, chance), streams=number % 2 == 0)
        check(octets, client.asked, client.sent)


def test_ten_thousand_tampered_requests_sent_again() -> None:
    """A request at a time, all alike until the last, as most clients send them: heads that are recognised."""
    for number in range(10_000):
        chance = random.Random(f"{SEED}-{number}")
        base = chance.choice(VALID)
        alike = tamper(base, chance) if chance.random() < 0.7 else base
        pieces = [alike] * 3 + [tamper(alike, chance), base]
        client = fed(pieces)
        check(b"".join(pieces), client.asked, client.sent)


# against a process ---------------------------------------------------------------------------------------------------

HANDLER = '''
import json

def handle(event, context):
    """What the watchdog understood."""
    said = [event.method, event.path, event.body.decode("latin-1")]
    return {"statusCode": 200, "body": json.dumps(said), "headers": {"Content-Type": "application/json"}}
'''
QUIET_S = 0.1
"""Who says nothing for so long waits for more."""


async def talk(port: int, pieces: list[bytes], expected: int) -> bytes:
    """Send the pieces, and read until the server ends it, or until it has answered all and says no more."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    sent = b""
    try:
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0)
        async with asyncio.timeout(60):
            while True:
                try:
                    async with asyncio.timeout(QUIET_S):
                        data = await reader.read(65536)
                except TimeoutError:
                    if sent.count(b"HTTP/1.1 200") >= expected or b"HTTP/1.1 4" in sent or b"HTTP/1.1 5" in sent:
                        return sent
                    continue
                if not data:
                    return sent
                sent += data
    except ConnectionError:
        return sent
    finally:
        writer.close()


def test_tampered_requests_to_a_process(start: Start) -> None:
    """Real sockets, cut anywhere: no hang, no traceback, nothing served in doubt; then it serves, and holds no more."""
    watchdog = start(HANDLER, body_max_bytes=str(LIMITS.body_bytes))
    (worker,) = watchdog.workers()
    valid = [one for one in VALID if not one.startswith(b"HEAD")]  # whose answers have no body to compare

    async def one(number: int, slots: asyncio.Semaphore) -> None:
        chance = random.Random(f"{SEED}-{number}")
        octets = tamper(b"".join(chance.choices(valid, k=chance.randint(1, 5))), chance)
        strict = Strict(octets)
        async with slots:
            # Who announces the end and sends on is reset, and may lose the answer: that is not what is asked here.
            pieces = [octets] if strict.closed else [*cut(octets, chance)]
            sent = await talk(watchdog.port, pieces, len(strict.asked))
        asked = [json.loads(body) for status, body in answers(sent) if status == 200]
        check(octets, [(method, path, body.encode("latin-1")) for method, path, body in asked], sent)

    async def scenario() -> None:
        slots = asyncio.Semaphore(64)
        await asyncio.gather(*(one(number, slots) for number in range(2000)))

    asyncio.run(scenario())
    assert watchdog.workers() == [worker]
    assert "Traceback" not in watchdog.log
    assert requests.get(watchdog.url + "/still", timeout=30).json()[1] == "/still"
    watchdog.until(lambda: len(psutil.Process(worker).net_connections()) <= 3, "an end of all connections")
    watchdog.until(lambda: watchdog.metric("http_requests_in_flight") == 0, "an end of all requests")
    received, answered = watchdog.metric("infless_requests_received_total"), watchdog.metric("http_requests_total")
    assert received == answered + watchdog.metric("infless_clients_gone_total")


def ask(watchdog: Any, *pieces: bytes) -> bytes:
    """Send, and read until the server ends the connection."""
    with socket.create_connection(("127.0.0.1", watchdog.port), timeout=30) as sock:
        sent = b""
        with contextlib.suppress(ConnectionError):  # it may have heard enough
            for piece in pieces:
                sock.sendall(piece)
        with contextlib.suppress(ConnectionError):
            while data := sock.recv(65536):
                sent += data
    return sent


def test_a_thousand_requests_in_one_write_to_a_process(start: Start) -> None:
    """Answered in order, although the client reads only when it has written all."""
    watchdog = start(HANDLER)
    stream = b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % place for place in range(999))
    found = answers(ask(watchdog, stream, b"GET /999 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"))
    assert [json.loads(body)[1] for _, body in found] == [f"/{place}" for place in range(1000)]


def test_too_much_of_anything_is_refused_by_a_process(start: Start) -> None:
    """Targets, fields, numbers of fields, extensions of chunks and trailers without end: 431, and it goes on serving."""
    watchdog = start(HANDLER)
    chunks = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    for pieces in (
        [b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n"],
        [b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000 + b"\r\n\r\n"],
        [b"GET / HTTP/1.1\r\n" + b"A: bcdefgh\r\n" * 9000 + b"\r\n"],
        [chunks + b"1;", *[b"a" * 1000] * 600],
        [chunks + b"0\r\n", *[b"A: " + b"a" * 1000 + b"\r\n"] * 100],
    ):
        ((status, _),) = answers(ask(watchdog, *pieces))
        assert status == 431
    assert requests.get(watchdog.url, timeout=30).status_code == 200


def test_a_client_that_asks_first_may_go_on(start: Start) -> None:
    """`Expect: 100-continue` on a real connection: told to go on, then answered; refused at once if it is too much."""
    watchdog = start(HANDLER, body_max_bytes="100")
    head = "POST /x HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", watchdog.port), timeout=30) as sock:
        sock.sendall(head.format(2).encode())
        assert sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"hi")
        ((status, body),) = answers(sock.recv(10_000))
        assert (status, json.loads(body)) == (200, ["POST", "/x", "hi"])
    ((status, _),) = answers(ask(watchdog, head.format(101).encode()))
    assert status == 413
