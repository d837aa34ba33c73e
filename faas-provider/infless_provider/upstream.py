"""HTTP/1.1 client for one address: keep-alive connections, one request at a time on each, httptools parses.

It runs once per proxied request, so the common case (an answer that arrives in one piece) costs one future, one timer
and one parser run.

What it promises about failures (`upstream_reply`) is what a proxy must know before it may send a request again. A
pooled connection is asked, by a poll of its socket, whether the peer has closed it *before* anything is written; a
stale one is dropped and the next one or a fresh one is taken, unseen by the caller. A connection that closes after the
first byte was written is `Broken` even when it was reused: a peer that read the request and died looks the same as one
that never read it, and a prediction must not run twice unknown to the caller.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Iterable
from typing import cast

import httptools

from infless_provider.upstream_reply import Broken, Header, NotSent, Reply, TimedOut, UpstreamError

__all__ = ["Broken", "Header", "NotSent", "Reply", "TimedOut", "Upstream", "UpstreamError"]

_BODILESS = frozenset({204, 304})
_LENGTH_EXPECTED = frozenset({"POST", "PUT", "PATCH"})
"""RFC 9110, section 8.6: these say `content-length: 0` when they carry nothing."""
_STALE = select.POLLIN | select.POLLHUP | select.POLLERR


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
            if exc is None and reply.ends_with_connection() and not reply.failed:
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
        if reply.head_only or status in _BODILESS:
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
        if reply.head_only or reply.status in _BODILESS:
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
        connect_timeout_s: longest time for the TCP handshake. Linux repeats a lost first packet after 1 s; the default
            leaves room for one repetition, as when a burst overflows the peer's accept queue.
    """

    def __init__(self, host: str, port: int, *, connect_timeout_s: float = 1.5) -> None:
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
        if not connection.usable():
            connection.cut()
            raise NotSent(f"{self.address} closed the connection at once")
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
