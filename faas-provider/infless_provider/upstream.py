"""HTTP/1.1 client for one address: keep-alive connections, one request at a time on each, httptools parses.

It runs once per proxied request, so the common case (an answer that arrives in one piece) costs one parser run: the
connections share one timer, and who wants that is called back instead of waiting for a future.

What it promises about failures (`upstream_reply`) is what a proxy must know before it may send a request again. A
pooled connection is asked, by a poll of its socket, whether the peer has closed it *before* anything is written; a
stale one is dropped and the next one or a fresh one is taken, unseen by the caller. A connection that closes after the
first byte was written is `Broken` even when it was reused: a peer that read the request and died looks the same as one
that never read it, and a prediction must not run twice unknown to the caller.

A body may be given in pieces: they are written as they come and no faster than the peer takes them. A peer that answers
before it has all of them is heard at once; its connection is not used again.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterable, Callable, Iterable

from infless_provider.upstream_connection import Connection
from infless_provider.upstream_reply import Broken, HalfSent, Header, NotSent, Reply, TimedOut, UpstreamError

__all__ = [
    "Broken",
    "HalfSent",
    "Header",
    "NotSent",
    "Reply",
    "TimedOut",
    "Upstream",
    "UpstreamError",
    "encode_head",
]

LENGTH_EXPECTED = frozenset({"POST", "PUT", "PATCH"})
"""RFC 9110, section 8.6: these say `content-length: 0` when they carry nothing."""


def encode_head(method: str, target: str, headers: Iterable[Header]) -> bytes:
    """A request's first line and headers as they go on the wire, without the empty line at their end.

    Args:
        method: in capitals.
        target: path and query.
        headers: a `content-length` among them is left out.

    Raises:
        ValueError: a line break or space where it would forge another request.
    """
    parts = [f"{method} {target} HTTP/1.1\r\n".encode("latin-1")]
    parts += [b"%b: %b\r\n" % header for header in headers if header[0] != b"content-length"]
    head = b"".join(parts)
    if head.count(b"\n") != len(parts) or head.count(b"\r") != len(parts) or parts[0].count(b" ") != 2:
        raise ValueError("method, target or a header holds a line break or a space: refused, it forges a request")
    return head


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
        self._idle: list[Connection] = []
        self._closed = False
        self.connections: set[Connection] = set()
        self.loop: asyncio.AbstractEventLoop
        self.wakes_s = math.inf
        """When late answers are looked for next."""
        self._timer: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> int:
        """Open connections that wait for a request; the others are busy. A probe: only tests look."""
        return len(self._idle)

    async def request(
        self,
        method: str,
        target: str,
        headers: Iterable[Header],
        body: bytes | AsyncIterable[bytes],
        *,
        timeout_s: float,
        silence_s: float | None = None,
        content_length: int | None = None,
    ) -> Reply:
        """Send a request and wait for the head of its answer; a small answer is then `complete` already.

        Args:
            method: in capitals.
            target: path and query as they go on the wire.
            headers: end-to-end ones, names in lower case; `host` (if absent) and the framing are added here.
            body: the whole body, or its pieces as they come; these are not touched before something was written.
            timeout_s: from now to the last byte of the answer.
            silence_s: when given, `timeout_s` is only for the head; behind that, and while a body in pieces is being
                sent, nothing may move for so long.
            content_length: bytes of a body in pieces; None sends it chunked.

        Raises:
            NotSent: nothing was written; the request may be sent again, here or elsewhere.
            Broken: the connection closed, or spoke garbage, before the head was complete.
            TimedOut: `timeout_s` passed.
            HalfSent: the pieces of the body broke off.
            ValueError: a line break or space where it would forge another request.
        """
        head = encode_head(method, target, headers)
        if b"\r\nhost: " not in head:
            head += self._host_line
        pieces: AsyncIterable[bytes] | None = None
        if not isinstance(body, bytes):
            pieces, body = body, b""
            framing = (
                b"transfer-encoding: chunked\r\n"
                if content_length is None
                else b"content-length: %d\r\n" % content_length
            )
        else:
            framing = b"content-length: %d\r\n" % len(body) if body or method in LENGTH_EXPECTED else b""
        data = b"%b%b\r\n%b" % (head, framing, body)
        connection = self._idle_one()
        if connection is None:
            start_s = asyncio.get_running_loop().time()
            connection = await self._connect(min(timeout_s, self._connect_timeout_s))
            timeout_s -= self.loop.time() - start_s
        reply = connection.send(data, head_only=method == "HEAD", timeout_s=timeout_s, silence_s=silence_s)
        if pieces is not None:
            connection.send_pieces(pieces, content_length)
        await reply.head()
        return reply

    def send_now(
        self, data: bytes, *, head_only: bool, timeout_s: float, silence_s: float, told: Callable[[Reply], None]
    ) -> Reply | None:
        """Send a whole request at once, if a connection is open: for who cannot wait, or need not.

        Args:
            data: as it goes on the wire (`encode_head`, the framing, an empty line, the body).
            head_only: whether it is a HEAD.
            timeout_s: as in `request`.
            silence_s: as in `request`.
            told: called once with the reply, when its head is there (see `request`) or it has failed.

        Returns:
            None when no connection is open; nothing was written then.
        """
        connection = self._idle_one()
        if connection is None:
            return None
        return connection.send(data, head_only=head_only, timeout_s=timeout_s, silence_s=silence_s, told=told)

    def _idle_one(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable():
                return connection
            connection.cut()
        return None

    def wake_at(self, at_s: float) -> None:
        """Look for late answers then. One timer serves all: few are ever late, and most wait equally long."""
        if self._timer is not None:
            self._timer.cancel()
        self.wakes_s = at_s
        self._timer = self.loop.call_at(at_s, self._expire)

    def _expire(self) -> None:
        self._timer, self.wakes_s = None, math.inf
        now_s = self.loop.time()
        next_s = min([connection.expire(now_s) for connection in list(self.connections)], default=math.inf)
        if next_s < self.wakes_s:  # a failure that was told may have led to another request
            self.wake_at(next_s)

    async def _connect(self, timeout_s: float) -> Connection:
        if self._closed:
            raise NotSent(f"the client of {self.address} is closed")
        self.loop = asyncio.get_running_loop()
        connection = Connection(self)
        try:
            async with asyncio.timeout(timeout_s):
                await self.loop.create_connection(lambda: connection, self._host, self._port)
        except asyncio.CancelledError:
            connection.abandon()
            raise
        except TimeoutError as error:
            connection.abandon()
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

    def put(self, connection: Connection) -> None:
        """Take back a connection whose answer is complete; the latest is used first, so that spare ones grow old."""
        if self._closed:
            connection.cut()
        else:
            self._idle.append(connection)

    def drop(self, connection: Connection) -> None:
        """Forget a connection that is closed."""
        if connection in self.connections:
            self.connections.discard(connection)
            if connection in self._idle:
                self._idle.remove(connection)

    async def close(self) -> None:
        """Cut every connection; replies in the making fail with `Broken`. May be called twice."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self.wakes_s = None, math.inf
        for connection in list(self.connections):
            connection.cut()
        # One turn of the loop lets the transports close their sockets.
        await asyncio.sleep(0)
