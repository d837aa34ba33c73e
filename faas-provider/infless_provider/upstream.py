"""HTTP/1.1 client for one address: keep-alive connections, one request at a time on each, httptools parses.

It runs once per proxied request, so the common case (an answer that arrives in one piece) costs one future, one timer
and one parser run. What it promises about failures is what a proxy must know before it may send a request again:

::

    UpstreamError
    ├── NotSent     no byte of the request was written: always safe to send again
    ├── Broken      written, then the connection closed early or spoke garbage: the work may have been done
    └── TimedOut    written, then no complete answer in time: the work may still be going on

A pooled connection is asked, by a poll of its socket, whether the peer has closed it *before* anything is written; a
stale one is dropped and the next one or a fresh one is taken, unseen by the caller. A connection that closes after the
first byte was written is `Broken` even when it was reused: a peer that read the request and died looks the same as one
that never read it, and a prediction must not run twice unknown to the caller.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import AsyncIterator, Iterable
from typing import cast

import httptools

from infless_core.errors import BackendError

Header = tuple[bytes, bytes]

_HIGH_WATER_BYTES = 256 * 1024
"""Unread bytes of one answer after which its connection is no longer read from; four pieces of a 64 KiB socket read."""
_BODILESS = frozenset({204, 304})
_LENGTH_EXPECTED = frozenset({"POST", "PUT", "PATCH"})
"""RFC 9110, section 8.6: these say `content-length: 0` when they carry nothing."""
_STALE = select.POLLIN | select.POLLHUP | select.POLLERR


class UpstreamError(BackendError):
    """The request has no answer. The leaf says whether it may be sent again."""


class NotSent(UpstreamError):  # noqa: N818 - a sentence names the fault, not the class
    """No byte was written: the address refused, could not be reached in time, or the client is closed."""


class Broken(UpstreamError):  # noqa: N818
    """The connection closed before the answer was complete, or what came is not HTTP/1.1."""


class TimedOut(UpstreamError):  # noqa: N818
    """The answer was not complete in time; its connection is cut."""


class Reply:
    """One answer: its head is there when `request` returns, its body may still be arriving.

    Either look at `body` when `complete`, or call `read()`, or iterate `chunks()` to the end, or `close()`.
    """

    __slots__ = ("_connection", "_failure", "_head_only", "_pieces", "_size", "_waiter", "_whole",
                 "began", "complete", "headers", "status")  # fmt: skip

    def __init__(self, connection: _Connection, *, head_only: bool) -> None:
        self.status = 0
        """0 until the head is complete."""
        self.headers: list[Header] = []
        """Names in lower case, in the order they came."""
        self.complete = False
        """The last byte of the body is here."""
        self.began = False
        """Any byte of the answer has come."""
        self._connection = connection
        self._head_only = head_only
        self._failure: UpstreamError | None = None
        self._pieces: list[bytes] = []
        self._size = 0
        self._whole = False  # `read` takes everything: no back-pressure
        self._waiter: asyncio.Future[None] | None = None

    @property
    def body(self) -> bytes:
        """The whole body of a `complete` reply that nobody iterates; before that, what has come so far."""
        if len(self._pieces) > 1:
            self._pieces = [b"".join(self._pieces)]
        return self._pieces[0] if self._pieces else b""

    async def read(self) -> bytes:
        """The whole body.

        Raises:
            Broken: the connection closed early.
            TimedOut: the request's `timeout_s` passed.
        """
        self._whole = True
        while not self.complete:
            await self._progress()
        return self.body

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives. A slow consumer holds back the sender, not this process's memory.

        Leaving the iteration early gives the answer up, as `close` does.

        Raises:
            Broken: the connection closed early.
            TimedOut: the request's `timeout_s` passed.
        """
        try:
            while not (self.complete and not self._pieces):
                if self._pieces:
                    piece = self.body
                    self._pieces = []
                    self._size = 0
                    yield piece
                else:
                    await self._progress()
        finally:
            self.close()

    def close(self) -> None:
        """The answer is no longer wanted: cut its connection, unless it is complete."""
        if not self.complete and self._failure is None:
            self.fail(Broken("the answer was given up by its reader"))
            self._connection.cut()

    # the connection's side -------------------------------------------------------------------------------------------

    async def _progress(self) -> None:
        """Wait for more of the answer, its end, or its failure."""
        if self._failure is not None:
            raise self._failure
        self._connection.resume()
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        except asyncio.CancelledError:
            self.close()
            raise
        finally:
            self._waiter = None
        # Pieces that came before the failure were handed out already; what is left is an unusable rest.
        if self._failure is not None:
            raise self._failure

    async def head(self) -> None:
        """Wait until `status` and `headers` are there."""
        while not self.status:
            await self._progress()

    def add(self, piece: bytes) -> bool:
        """Keep a piece of the body; false when the connection should pause."""
        self._pieces.append(piece)
        self._size += len(piece)
        return self._whole or self._size <= _HIGH_WATER_BYTES

    def fail(self, failure: UpstreamError) -> None:
        """There will be no (more) answer."""
        if not self.complete and self._failure is None:
            self._failure = failure
            self.wake()

    def wake(self) -> None:
        """Something has changed."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def ends_with_connection(self) -> bool:
        """Whether the body has no length of its own and lasts until the peer closes (RFC 9112, section 6.3)."""
        fields = dict(self.headers)
        chunked = b"chunked" in fields.get(b"transfer-encoding", b"").lower()
        return self.status > 0 and b"content-length" not in fields and not chunked


class _Connection(asyncio.Protocol):
    """One TCP connection: takes a request, feeds its reply, goes back to the pool."""

    def __init__(self, pool: Upstream) -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._readable = select.poll()
        self._reply: Reply | None = None
        self._headers: list[Header] = []
        self._head_done = False
        self._reusable = True
        self._paused = False
        self._timer: asyncio.TimerHandle | None = None

    # asyncio ---------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The peer has accepted."""
        # uvloop's transport is none of asyncio's classes, but speaks their protocol.
        self._transport = cast("asyncio.Transport", transport)
        self._readable.register(transport.get_extra_info("socket").fileno(), _STALE)
        self._pool.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The peer has closed, or we have cut."""
        self._transport = None
        reply = self._reply
        if reply is not None:
            if exc is None and reply.ends_with_connection() and reply._failure is None:
                self._reusable = False
                self._finish()
            else:
                where = "in the middle of its answer" if reply.began else "without an answer"
                reply.fail(Broken(f"{self._pool.address} closed the connection {where}"))
        self._forget()

    def data_received(self, data: bytes) -> None:
        """Feed the parser; what is not HTTP breaks the connection."""
        reply = self._reply
        if reply is None:  # a peer that speaks unasked cannot be trusted with the next request
            self.cut()
            return
        reply.began = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            reply.fail(Broken(f"{self._pool.address} switched the protocol unasked"))
            self._reusable = False
        except httptools.HttpParserError as error:
            reply.fail(Broken(f"{self._pool.address} does not speak HTTP/1.1: {error}"))
            self._reusable = False
        if self._reply is None:
            self._release()
        elif not self._reusable:
            self.cut()
        if reply.status:
            reply.wake()

    # httptools -------------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """An answer begins; one that nobody asked for spoils the connection."""
        self._headers = []
        self._head_done = False
        if self._reply is None:
            self._reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header field; trailers after a chunked body are dropped."""
        if not self._head_done:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The head is complete; interim answers (1xx) are skipped."""
        status = self._parser.get_status_code()
        self._head_done = True
        reply = self._reply
        if reply is None or status < 200:
            return
        reply.status = status
        reply.headers = self._headers
        if reply._head_only or status in _BODILESS:
            # The parser cannot be told that no body follows a content-length; the next answer gets a new one.
            self._finish()

    def on_body(self, data: bytes) -> None:
        """A part of the body."""
        reply = self._reply
        if reply is None:
            self._reusable = False
        elif not reply.add(data) and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        """The answer is whole, unless it was an interim one."""
        if self._reply is not None and self._reply.status:
            self._finish()

    # requests --------------------------------------------------------------------------------------------------------

    def usable(self) -> bool:
        """Whether a request may be written: open, and nothing (not even an end) waits to be read."""
        return self._transport is not None and not self._transport.is_closing() and not self._readable.poll(0)

    def send(self, data: bytes, *, head_only: bool, timeout_s: float) -> Reply:
        """Write a request; its reply fails when it is not complete within `timeout_s`."""
        assert self._transport is not None
        reply = self._reply = Reply(self, head_only=head_only)
        self._timer = self._pool.loop.call_later(timeout_s, self._expire, reply, timeout_s)
        self._transport.write(data)
        return reply

    def resume(self) -> None:
        """The consumer has caught up."""
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    def cut(self) -> None:
        """Drop the connection at once; a reply in the making fails."""
        if self._transport is not None:
            self._transport.abort()
        self._forget()

    def _expire(self, reply: Reply, timeout_s: float) -> None:
        reply.fail(TimedOut(f"{self._pool.address} did not answer within {timeout_s:g} s"))
        self.cut()

    def _finish(self) -> None:
        """The reply is complete; called by the parser, so the connection itself is released after its run."""
        reply, self._reply = self._reply, None
        if reply is None:
            return
        reply.complete = True
        self._reusable = self._reusable and self._parser.should_keep_alive()
        if reply._head_only or reply.status in _BODILESS:
            self._parser = httptools.HttpResponseParser(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._pool.in_flight -= 1
        reply.wake()

    def _release(self) -> None:
        """Back to the pool, or closed when the peer wants that or has not taken the whole request."""
        if self._transport is None:
            return
        self.resume()
        if self._reusable and not self._transport.is_closing() and not self._transport.get_write_buffer_size():
            self._pool.put(self)
        else:
            self.cut()

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._reply is not None:
            self._reply.fail(Broken(f"the connection to {self._pool.address} was cut"))
            self._reply = None
            self._pool.in_flight -= 1
        self._pool.drop(self)


class Upstream:
    """All connections to one address. Use it on one event loop.

    Args:
        host: name or address.
        port: TCP port.
        connect_timeout_s: longest time for the TCP handshake; on one machine or rack a second is an age.
    """

    def __init__(self, host: str, port: int, *, connect_timeout_s: float = 1.0) -> None:
        self.address = f"{host}:{port}"
        self._host = host
        self._port = port
        self._connect_timeout_s = connect_timeout_s
        self._host_line = b"host: %b\r\n" % (f"[{host}]:{port}" if ":" in host else self.address).encode("idna")
        self._idle: list[_Connection] = []
        self._closed = False
        self.connections: set[_Connection] = set()
        self.in_flight = 0
        """Requests written whose answer is not complete."""
        self.loop: asyncio.AbstractEventLoop

    @property
    def idle(self) -> int:
        """Open connections that wait for a request."""
        return len(self._idle)

    async def request(
        self, method: str, target: str, headers: Iterable[Header], body: bytes, *, timeout_s: float
    ) -> Reply:
        """Send a request and wait for the head of its answer; a small answer is then `complete` already.

        Args:
            method: in capitals.
            target: path and query as they go on the wire.
            headers: end-to-end ones, names in lower case; `host` (if absent) and `content-length` are added here.
            body: the whole body.
            timeout_s: from now to the last byte of the answer.

        Raises:
            NotSent: nothing was written; the request may be sent again, here or elsewhere.
            Broken: the connection closed, or spoke garbage, before the head was complete.
            TimedOut: `timeout_s` passed.
            ValueError: a line break or space where it would forge another request.
        """
        data = self._encode(method, target, headers, body)
        while self._idle:
            connection = self._idle.pop()
            if connection.usable():
                break
            connection.cut()
        else:
            start_s = asyncio.get_running_loop().time()
            connection = await self._connect(min(timeout_s, self._connect_timeout_s))
            timeout_s -= self.loop.time() - start_s
        self.in_flight += 1
        reply = connection.send(data, head_only=method == "HEAD", timeout_s=timeout_s)
        await reply.head()
        return reply

    def _encode(self, method: str, target: str, headers: Iterable[Header], body: bytes) -> bytes:
        parts = [f"{method} {target} HTTP/1.1\r\n".encode("latin-1")]
        host = self._host_line
        for name, value in headers:
            if name == b"content-length":
                continue
            if name == b"host":
                host = b""
            parts.append(b"%b: %b\r\n" % (name, value))
        if host:
            parts.append(host)
        if body or method in _LENGTH_EXPECTED:
            parts.append(b"content-length: %d\r\n" % len(body))
        head = b"".join(parts)
        if head.count(b"\n") != len(parts) or head.count(b"\r") != len(parts) or parts[0].count(b" ") != 2:
            raise ValueError("method, target or a header holds a line break or a space: refused, it forges a request")
        return b"%b\r\n%b" % (head, body)

    async def _connect(self, timeout_s: float) -> _Connection:
        if self._closed:
            raise NotSent(f"the client of {self.address} is closed")
        self.loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s):
                _, connection = await self.loop.create_connection(lambda: _Connection(self), self._host, self._port)
        except TimeoutError as error:
            raise NotSent(f"{self.address} did not accept a connection within {timeout_s:g} s") from error
        except OSError as error:
            raise NotSent(f"{self.address} cannot be reached: {error.strerror or error}") from error
        if self._closed:
            connection.cut()
            raise NotSent(f"the client of {self.address} is closed")
        return connection

    def put(self, connection: _Connection) -> None:
        """Take back a connection whose answer is complete; the latest is used first, so that spare ones grow old."""
        if self._closed:
            connection.cut()
        else:
            self._idle.append(connection)

    def drop(self, connection: _Connection) -> None:
        """Forget a connection that is closed."""
        if connection in self.connections:
            self.connections.discard(connection)
            if connection in self._idle:
                self._idle.remove(connection)

    async def close(self) -> None:
        """Cut every connection; replies in the making fail with `Broken`. May be called twice."""
        self._closed = True
        for connection in list(self.connections):
            connection.cut()
        # One turn of the loop lets the transports close their sockets.
        await asyncio.sleep(0)
