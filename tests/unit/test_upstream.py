"""The HTTP client of the proxy: every framing, every split, every way in which a peer can fail."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from hurried_clock import HurriedLoop, forward

from infless_provider.upstream import Broken, HalfSent, NotSent, Reply, TimedOut, Upstream, encode_head

Peer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nContent-Type: text/plain\r\n\r\nhello"


@contextlib.asynccontextmanager
async def served(peer: Peer) -> AsyncIterator[Upstream]:
    """A client of a server whose every connection is handled by `peer`."""
    handlers: set[asyncio.Task[None] | None] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.add(asyncio.current_task())
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await peer(reader, writer)
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, backlog=512)
    client = Upstream("127.0.0.1", server.sockets[0].getsockname()[1])
    try:
        yield client
    finally:
        await client.close()
        server.close()
        await asyncio.gather(*filter(None, handlers))  # they see their clients leave


def replying(*pieces: bytes, then_close: bool = False, seen: list[bytes] | None = None) -> Peer:
    """A peer that answers each request with `pieces`, each in a packet of its own."""

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next((int(v[16:]) for v in head.split(b"\r\n") if v.startswith(b"content-length: ")), 0)
            body = await reader.readexactly(length)
            if seen is not None:
                seen.append(head + body)
            for place, piece in enumerate(pieces):
                if place:
                    await asyncio.sleep(0.0005)
                writer.write(piece)
            await writer.drain()
            if then_close:
                return

    return peer


async def post(client: Upstream, body: bytes = b"x", timeout_s: float = 5.0) -> Reply:
    """A request as the proxy makes it."""
    return await client.request("POST", "/", [(b"content-type", b"text/plain")], body, timeout_s=timeout_s)


def with_peer(peer: Peer, use: Callable[[Upstream], Awaitable[Any]]) -> Any:
    """What `use` returns with a client of `peer`; it may put the clock `forward`."""

    async def run() -> Any:
        async with served(peer) as client:
            return await use(client)

    with asyncio.Runner(loop_factory=HurriedLoop) as runner:
        return runner.run(run())


async def until(true: Callable[[], object]) -> None:
    """Wait for something to become so."""
    async with asyncio.timeout(30):
        while not true():
            await asyncio.sleep(0.001)


def test_an_answer_in_one_piece_is_complete_at_once() -> None:
    """A small answer needs no second wait, and its connection is used again."""

    async def use(client: Upstream) -> None:
        for _ in range(3):
            reply = await post(client)
            assert (reply.status, reply.complete, reply.body) == (200, True, b"hello")
            assert (b"content-type", b"text/plain") in reply.headers
            assert (len(client.connections), client.idle) == (1, 1)

    with_peer(replying(OK), use)


def test_the_request_on_the_wire() -> None:
    """Host and length are added, a caller's own length is not believed, a caller's own host is kept."""
    seen: list[bytes] = []

    async def use(client: Upstream) -> str:
        await client.request("POST", "/a?b=c", [(b"content-length", b"99"), (b"x-a", b"1")], b"ab", timeout_s=5)
        await client.request("GET", "/", [(b"host", b"example.org")], b"", timeout_s=5)
        return client.address

    address = with_peer(replying(OK, seen=seen), use)
    assert seen[0] == (b"POST /a?b=c HTTP/1.1\r\nx-a: 1\r\nhost: %b\r\ncontent-length: 2\r\n\r\nab" % address.encode())
    assert seen[1] == b"GET / HTTP/1.1\r\nhost: example.org\r\n\r\n"


@pytest.mark.parametrize(
    ("method", "target", "header"),
    [
        ("GET", "/ HTTP/1.1\r\nx: y", b"v"),
        ("GET", "/a b", b"v"),
        ("GET / HTTP/1.1\r\n\r\nGET", "/", b"v"),
        ("GET", "/", b"v\r\nx: y"),
        ("GET", "/", b"v\ny"),
    ],
)
def test_a_forged_request_is_refused(method: str, target: str, header: bytes) -> None:
    """Nothing that would smuggle a second request or header gets on the wire."""

    async def run() -> None:
        with pytest.raises(ValueError, match="forges"):
            await Upstream("127.0.0.1", 1).request(method, target, [(b"n", header)], b"", timeout_s=1)

    asyncio.run(run())


CHUNKED = (
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nx-a: b\r\n\r\n"
    b"3\r\nhel\r\n2;e=1\r\nlo\r\n0\r\nx-trailer: t\r\n\r\n"
)


@pytest.mark.parametrize("answer", [OK, CHUNKED], ids=["length", "interim and chunked with trailer"])
def test_an_answer_split_at_every_byte(answer: bytes) -> None:
    """Wherever the network cuts an answer, the same answer comes out, and the connection stays usable."""
    splits = [(answer[:cut], answer[cut:]) for cut in range(1, len(answer))]
    every_byte = tuple(answer[place : place + 1] for place in range(len(answer)))

    async def run() -> None:
        for pieces in [*splits, every_byte]:
            async with served(replying(*pieces)) as client:
                for _ in range(2):
                    reply = await post(client)
                    assert b"".join([piece async for piece in reply.chunks()]) == b"hello"
                    assert (reply.status, len(reply.headers)) == (200, 2)
                assert (len(client.connections), client.idle) == (1, 1)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("method", "answer", "status"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n", 200),
        ("HEAD", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", 200),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", 204),
        ("GET", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 7\r\n\r\n", 304),
        ("GET", b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", 200),
    ],
)
def test_answers_without_a_body(method: str, answer: bytes, status: int) -> None:
    """No body is waited for where none can come, and the connection is used again."""

    async def use(client: Upstream) -> None:
        for _ in range(3):
            reply = await client.request(method, "/", [], b"", timeout_s=2)
            assert (reply.status, reply.complete, await reply.read()) == (status, True, b"")
            assert len(client.connections) == 1

    with_peer(replying(answer), use)


def test_a_body_that_ends_with_the_connection() -> None:
    """Without a length the end of the connection is the end of the body."""

    async def use(client: Upstream) -> None:
        reply = await post(client)
        assert (await reply.read(), len(client.connections)) == (b"hello", 0)

    with_peer(replying(b"HTTP/1.1 200 OK\r\n\r\nhel", b"lo", then_close=True), use)


def test_a_peer_that_wants_to_close_is_not_used_again() -> None:
    """`connection: close` is honoured; the next request opens a new connection."""
    answer = OK.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")

    async def use(client: Upstream) -> None:
        for _ in range(2):
            assert ((await post(client)).body, client.idle) == (b"hello", 0)

    with_peer(replying(answer), use)


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (b"", "without an answer"),
        (b"HTTP/1.1 200 OK\r\nconten", "in the middle"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello", "in the middle"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", "in the middle"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "does not speak"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello", "does not speak"),
        (b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n", "switched"),
        (b"HTTP/1.1 099 Odd\r\ncontent-length: 5\r\n\r\nhello", "status 099"),
        (b"HTTP/2.0 200 OK\r\ncontent-length: 5\r\n\r\nhello", "version 2.0"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "not chunked"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\nhello", "does not speak"),
        (b"HTTP/1.1 200 OK\r\na: b\0c\r\n\r\n", "does not speak"),
        (b"HTTP/1.1 200 OK\r\na: " + b"b" * 1_000_000, "a head of more than"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 50_000, "a head of more than"),
    ],
    ids=[
        "nothing",
        "half a head",
        "half a body",
        "no last chunk",
        "ssh",
        "two lengths",
        "upgrade",
        "status",
        "version",
        "coding",
        "two framings",
        "NUL",
        "endless head",
        "endless beginnings",
    ],
)
def test_a_broken_answer(answer: bytes, sentence: str) -> None:
    """Half answers and garbage are `Broken`, whenever they show, and leave nothing behind; clients do not learn where."""

    async def use(client: Upstream) -> None:
        with pytest.raises(Broken, match=sentence) as told:
            await (await post(client)).read()
        assert client.address not in str(told.value)
        assert (len(client.connections), client.idle) == (0, 0)

    with_peer(replying(answer, then_close=True), use)


def test_garbage_after_an_answer_spoils_the_connection_only() -> None:
    """The answer was whole and counts; what follows unasked must not answer the next request."""

    async def use(client: Upstream) -> None:
        reply = await post(client)
        assert (reply.body, client.idle) == (b"hello", 0)

    with_peer(replying(OK + b"HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n"), use)


def test_a_refused_connection_is_not_sent() -> None:
    """Nobody listens: safe to try elsewhere."""

    async def run() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            client = Upstream("127.0.0.1", taken.getsockname()[1])
            with pytest.raises(NotSent, match="cannot be reached"):
                await post(client)

    asyncio.run(run())


def test_a_connection_closed_on_accept() -> None:
    """Whichever side is faster, the caller gets one of our errors and nothing is left behind."""

    async def peer(*_: Any) -> None:
        """Hang up."""

    async def use(client: Upstream) -> None:
        for _ in range(5):
            with pytest.raises((NotSent, Broken)):
                await post(client)
        assert len(client.connections) == 0

    with_peer(peer, use)


def test_a_closed_client_sends_nothing() -> None:
    """After `close` there are no connections and no requests."""

    async def use(client: Upstream) -> None:
        await post(client)
        await client.close()
        assert (len(client.connections), client.idle) == (0, 0)
        with pytest.raises(NotSent, match="closed"):
            await post(client)

    with_peer(replying(OK), use)


def test_a_connection_closed_while_idle_is_replaced_unseen() -> None:
    """The end that the kernel knows of and the loop does not is noticed before anything is written."""
    listener = socket.create_server(("127.0.0.1", 0))
    answered, closed = threading.Semaphore(0), threading.Semaphore(0)

    def peer() -> None:
        for _ in range(3):
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(OK)
                answered.acquire(timeout=30)
            closed.release()

    async def run() -> None:
        client = Upstream("127.0.0.1", listener.getsockname()[1])
        for _ in range(3):
            assert (await post(client)).body == b"hello"
            assert client.idle == 1
            answered.release()
            assert closed.acquire(timeout=30)  # the loop stands still while the peer closes
        await client.close()

    thread = threading.Thread(target=peer)
    thread.start()
    asyncio.run(run())
    thread.join()
    listener.close()


def test_a_reused_connection_that_closes_after_the_request_is_broken_and_sent_once() -> None:
    """The peer may have done the work: the client must not repeat it unasked."""
    requests: list[bytes] = []

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"x"))
        writer.write(OK)
        requests.append(await reader.readuntil(b"y"))

    async def use(client: Upstream) -> None:
        await post(client, b"x")
        with pytest.raises(Broken, match="without an answer"):
            await post(client, b"y")

    with_peer(peer, use)
    assert len(requests) == 2


@pytest.mark.parametrize("pieces", [(b"",), (b"HTTP/1.1 200 OK\r\n",), (OK[:-2],)], ids=["nothing", "head", "body"])
def test_a_late_answer_times_out(pieces: tuple[bytes, ...]) -> None:
    """The time runs until the last byte; a late connection is cut and not used again."""

    async def whole(client: Upstream) -> bytes:
        return await (await post(client, timeout_s=30)).read()

    async def use(client: Upstream) -> None:
        asking = asyncio.ensure_future(whole(client))
        await until(lambda: client.connections)
        await forward(31)
        with pytest.raises(TimedOut, match=r"within (30|29\.\d+) s"):
            await asking
        assert (client.idle, len(client.connections)) == (0, 0)

    with_peer(replying(*pieces), use)


def test_a_slow_consumer_holds_back_the_sender() -> None:
    """Memory stays bounded however much the peer wants to send, and all of it arrives in the end."""
    size = 8 * 1024 * 1024
    sent = 0

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        while sent < size:
            writer.write(b"z" * 65536)
            await writer.drain()
            sent += 65536

    async def use(client: Upstream) -> None:
        reply = await client.request("GET", "/", [], b"", timeout_s=5)
        await asyncio.sleep(0.05)
        assert len(reply.body) < 1024 * 1024
        assert sent < size
        assert sum([len(piece) async for piece in reply.chunks()]) == size
        assert client.idle == 1

    with_peer(peer, use)


def test_read_takes_a_large_answer_whole() -> None:
    """`read` needs no consumer to keep up with."""
    body = bytes(range(256)) * 8192
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)

    async def use(client: Upstream) -> None:
        assert await (await post(client, body=b"q" * 1_000_000)).read() == body

    with_peer(replying(answer), use)


def test_a_client_that_leaves_cuts_the_connection() -> None:
    """Neither a closed reply, an abandoned stream nor a cancelled request leaves a connection behind."""
    stalled = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello"

    async def use(client: Upstream) -> None:
        reply = await post(client)
        reply.close()
        with pytest.raises(Broken, match="given up"):
            await reply.read()
        stream = (await post(client)).chunks()
        assert await anext(stream) == b"hello"
        await stream.aclose()  # type: ignore[attr-defined]
        reading = asyncio.ensure_future((await post(client)).read())
        await asyncio.sleep(0.01)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert (client.idle, len(client.connections)) == (0, 0)

    with_peer(replying(stalled), use)


def test_many_requests_at_once() -> None:
    """Each gets its own answer; connections grow to the need and all come back."""

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            body = await reader.readexactly(4)
            await asyncio.sleep(0.001)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n" + body)

    async def use(client: Upstream) -> None:
        bodies = [b"%04d" % number for number in range(200)]
        replies = await asyncio.gather(*(post(client, body) for body in bodies))
        assert [await reply.read() for reply in replies] == bodies
        assert client.idle == len(client.connections)

    with_peer(peer, use)


# bodies in pieces ----------------------------------------------------------------------------------------------------


async def pieces(*said: bytes, fault: Exception | None = None, seen: list[bytes] | None = None) -> AsyncIterator[bytes]:
    """A body as it comes."""
    for piece in said:
        if seen is not None:
            seen.append(piece)
        yield piece
    if fault is not None:
        raise fault


def swallowing(seen: list[bytes], end: bytes) -> Peer:
    """A peer that reads until the request ends so, then answers."""

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            seen.append(await reader.readuntil(end))
            writer.write(OK)

    return peer


@pytest.mark.parametrize(
    ("length", "framing", "body"),
    [
        (None, b"transfer-encoding: chunked", b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"),
        (5, b"content-length: 5", b"abcde"),
    ],
)
def test_a_body_in_pieces(length: int | None, framing: bytes, body: bytes) -> None:
    """With its length where that is known, else in chunks; an empty piece ends nothing; the connection is used again."""
    seen: list[bytes] = []

    async def use(client: Upstream) -> None:
        for _ in range(2):
            source = pieces(b"abc", b"", b"de")
            reply = await client.request("POST", "/", [], source, timeout_s=5, content_length=length)
            assert await reply.read() == b"hello"
            assert (len(client.connections), client.idle) == (1, 1)

    with_peer(swallowing(seen, body[-5:]), use)
    assert len(seen) == 2
    head, _, sent = seen[0].partition(b"\r\n\r\n")
    assert head.endswith(framing)
    assert sent == body


def test_an_early_answer_is_heard(tmp_path: Any) -> None:
    """Before the body is out: it is passed on, the source is left, the connection ends."""
    left = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                yield bytes(65536)
        finally:
            left.set()

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(200_000)
        writer.write(OK.replace(b"200 OK", b"413 No"))
        await writer.drain()
        await reader.read(-1)

    async def use(client: Upstream) -> None:
        reply = await client.request("POST", "/", [], endless(), timeout_s=5)
        assert (reply.status, await reply.read()) == (413, b"hello")
        assert (client.idle, len(client.connections)) == (0, 0)
        async with asyncio.timeout(5):
            await left.wait()

    with_peer(peer, use)


@pytest.mark.parametrize(
    ("length", "fault", "words"),
    [
        (None, ValueError("the disk is full"), "broke off: the disk is full"),
        (9, None, "9 bytes were announced, and it has 5"),
        (4, None, "4 bytes were announced, and it has more"),
    ],
)
def test_a_body_that_breaks_off(length: int | None, fault: Exception | None, words: str) -> None:
    """The peer must not take what it has for the whole: its connection is cut, and the caller is told why."""
    rest: list[bytes] = []

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            rest.append(await reader.read(-1))

    async def use(client: Upstream) -> None:
        with pytest.raises(HalfSent, match=words) as raised:
            await client.request(
                "POST", "/", [], pieces(b"abc", b"de", fault=fault), timeout_s=5, content_length=length
            )
        assert fault is None or raised.value.__cause__ is fault
        assert (client.idle, len(client.connections)) == (0, 0)

    with_peer(peer, use)
    assert not any(one.endswith(b"0\r\n\r\n") for one in rest)


def test_a_body_is_not_touched_when_nothing_is_sent() -> None:
    """So that it can be sent elsewhere."""
    seen: list[bytes] = []

    async def run() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            client = Upstream("127.0.0.1", taken.getsockname()[1])
            with pytest.raises(NotSent):
                await client.request("POST", "/", [], pieces(b"a", seen=seen), timeout_s=5)

    asyncio.run(run())
    assert seen == []


def test_a_body_is_sent_no_faster_than_it_is_taken() -> None:
    """What the peer does not read stays with the source."""
    taken = 0
    go_on = asyncio.Event()

    async def source() -> AsyncIterator[bytes]:
        nonlocal taken
        for _ in range(1000):
            taken += 65536
            yield bytes(65536)

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await go_on.wait()
        await reader.readexactly(1000 * 65536)
        writer.write(OK)

    async def use(client: Upstream) -> None:
        asking = asyncio.ensure_future(
            client.request("POST", "/", [], source(), timeout_s=20, content_length=1000 * 65536)
        )
        before = -1
        while before < taken:
            before = taken
            await asyncio.sleep(0.05)
        assert taken < 16 * 1024 * 1024  # what two sockets on loopback hold
        go_on.set()
        assert (await asking).status == 200

    with_peer(peer, use)


# how long ------------------------------------------------------------------------------------------------------------


def test_what_flows_may_last() -> None:
    """With `silence_s` the limit is for the head, and then for each pause, in both directions."""

    async def slowly() -> AsyncIterator[bytes]:
        for _ in range(6):
            await forward(20)
            yield b"x"

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"0\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n")
        for _ in range(6):
            await forward(20)
            writer.write(b"y")

    async def use(client: Upstream) -> None:
        reply = await client.request("POST", "/", [], slowly(), timeout_s=60, silence_s=60)
        assert await reply.read() == b"yyyyyy"

    with_peer(peer, use)


def test_a_peer_that_falls_silent_is_cut() -> None:
    """In the middle of its answer."""

    async def use(client: Upstream) -> None:
        reply = await client.request("GET", "/", [], b"", timeout_s=40, silence_s=60)
        reading = asyncio.ensure_future(reply.read())
        await forward(61)
        with pytest.raises(TimedOut, match="was silent for 60 s"):
            await reading
        assert len(client.connections) == 0

    with_peer(replying(OK[:-2]), use)


def test_a_peer_that_takes_nothing_is_cut() -> None:
    """Its buffers are full, and it does not read on."""
    size = 64 * 1024 * 1024
    over = asyncio.Event()

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await over.wait()

    async def use(client: Upstream) -> None:
        source = pieces(*[bytes(1024 * 1024)] * 64)
        asking = asyncio.ensure_future(
            client.request("POST", "/", [], source, timeout_s=90, silence_s=60, content_length=size)
        )
        await until(lambda: any(connection._writable is not None for connection in client.connections))
        while not asking.done():  # what the kernel still takes counts as progress
            await forward(61)
        with pytest.raises(TimedOut):
            await asking
        over.set()
        assert len(client.connections) == 0

    with_peer(peer, use)


def test_a_peer_that_we_do_not_read_from_is_not_silent() -> None:
    """A slow consumer must not be taken for a slow peer."""
    size = 4 * 1024 * 1024
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (size, bytes(size))

    async def use(client: Upstream) -> None:
        reply = await client.request("GET", "/", [], b"", timeout_s=60, silence_s=60)
        await until(lambda: all(connection._paused for connection in client.connections))
        for _ in range(4):
            await forward(61)
        assert sum([len(piece) async for piece in reply.chunks()]) == size

    with_peer(replying(answer), use)


# at once -------------------------------------------------------------------------------------------------------------


def test_sending_at_once() -> None:
    """Only on a connection that is open; who asked is called back, once, when the head is there or will never be."""
    told: list[Reply] = []

    async def use(client: Upstream) -> None:
        data = encode_head("GET", "/", [(b"host", b"h")]) + b"\r\n"

        def send() -> Reply | None:
            return client.send_now(data, head_only=False, timeout_s=30, silence_s=30, told=told.append)

        assert send() is None
        await post(client)
        reply = send()
        assert reply is not None
        while not told:
            await asyncio.sleep(0)
        assert (told, reply.status, reply.body, client.idle) == ([reply], 200, b"hello", 1)
        cut = send()
        assert cut is not None
        await client.close()
        assert told == [reply, cut]
        with pytest.raises(Broken):
            await cut.head()

    with_peer(replying(OK), use)


def test_nobody_is_told_of_what_was_given_up() -> None:
    """The client has left."""
    told: list[Reply] = []

    async def use(client: Upstream) -> None:
        await post(client)
        data = encode_head("GET", "/", []) + b"\r\n"
        reply = client.send_now(data, head_only=False, timeout_s=5, silence_s=5, told=told.append)
        assert reply is not None
        reply.close()
        assert (told, len(client.connections)) == ([], 0)

    with_peer(replying(OK), use)


def test_late_answers_are_each_found() -> None:
    """One timer serves requests of different patience."""

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)

    async def use(client: Upstream) -> None:
        async def late(place: int, timeout_s: float) -> None:
            with pytest.raises(TimedOut):
                await post(client, timeout_s=timeout_s)
            ended.add(place)

        ended: set[int] = set()
        waits_s = (3000, 1000, 2000, 1000)
        asking = [asyncio.ensure_future(late(*one)) for one in enumerate(waits_s)]
        await until(lambda: len(client.connections) == len(waits_s))
        await forward(900)
        assert ended == set()
        for seconds, gone in ((200, {1, 3}), (1000, {1, 3, 2}), (1000, {1, 3, 2, 0})):
            await forward(seconds)
            await until(lambda gone=gone: len(ended) >= len(gone))
            assert ended == gone
        await asyncio.gather(*asking)
        assert (len(client.connections), client.wakes_s) == (0, float("inf"))

    with_peer(peer, use)
