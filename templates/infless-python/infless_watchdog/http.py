"""HTTP/1.1 server edge on asyncio: connections, their limits, answers in order. Knows nothing of models or functions.

An application is a plain callable `app(exchange)`. It is called on the event loop once the whole request is there and
answers now or later through `exchange.respond(...)`, or in pieces with `begin`, `write`, `end`. Requests of one
connection are answered in order (RFC 9112, section 9.3); the next one starts when the last answer is complete.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from email.utils import formatdate
from typing import Any, cast

from infless_watchdog.calls import Head, Header
from infless_watchdog.exchange import JSON, TEXT, Exchange, first_line
from infless_watchdog.request_parser import Known, Limits, RequestParser

__all__ = ["JSON", "TEXT", "App", "Connection", "Edge", "Exchange", "Header", "Limits"]

App = Callable[[Exchange], None]
LOG = logging.getLogger("infless.http")


class Connection(asyncio.Protocol):
    """One client connection: bytes to exchanges and back. Create one per connection through `Edge`."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._transport: asyncio.Transport | None = None
        self._parser = RequestParser(self, edge.limits, edge.heads)
        self.data_received = self._parser.feed  # type: ignore[method-assign] # one call less for each request
        self._waiting: deque[Exchange] = deque()  # the first one is being answered
        self._refusal: tuple[Exchange, int, str] | None = None
        self._lingering = False
        self._can_write: asyncio.Future[None] | None = None
        self._paused = False
        self._unsent = 0
        self._sent_s = 0.0
        self.draining = edge.draining
        self.since_s = 0.0
        self.peer = ""

    # asyncio ---------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has come."""
        # uvloop's transport is none of asyncio's classes, but speaks their protocol.
        self._transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        self.peer = f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else ""
        self.since_s = self._sent_s = self._edge.loop.time()
        self._edge.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left; answers in the making are told, and go nowhere."""
        del exc
        self._edge.connections.discard(self)
        self._transport = None
        self.resume_writing()
        for exchange in self._waiting:
            exchange.client_gone = True
            exchange.done = True
            if exchange.on_gone is not None:
                exchange.on_gone()
        self._waiting.clear()

    def pause_writing(self) -> None:
        """The client reads slower than we write."""
        self._can_write = self._edge.loop.create_future()

    def resume_writing(self) -> None:
        """The client has caught up, or is gone."""
        self._sent_s = self._edge.loop.time()
        if self._can_write is not None and not self._can_write.done():
            self._can_write.set_result(None)
        self._can_write = None

    # the parser ------------------------------------------------------------------------------------------------------

    def begun(self) -> None:
        """A new request begins."""
        self.since_s = self._edge.loop.time()

    def awaited(self) -> None:
        """Let the client send its body."""
        # Behind an answer in the making the word would land inside that; the client sends anyway after a while.
        if not self._waiting:
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def again(self, head: Head, body: bytes) -> None:
        """A request has come that is like the last one: the usual case, so it takes no step that it need not."""
        exchange = Exchange(self, head, body)
        if self._waiting:
            self._take(exchange)
            return
        self._waiting.append(exchange)
        try:
            self._edge.app(exchange)
        except Exception as error:  # noqa: BLE001 - logged, and answered
            self._failed(exchange, error)

    def whole(self, head: Head, body: bytes, *, keep_alive: bool, version_1_0: bool) -> None:
        """A request has come."""
        exchange = Exchange(self, head, body)
        exchange.keep_alive = keep_alive
        exchange.version_1_0 = version_1_0
        exchange.plain = keep_alive and not version_1_0 and head.method != "HEAD"
        self._take(exchange)

    def _take(self, exchange: Exchange) -> None:
        """Serve it when those before it are answered."""
        self._waiting.append(exchange)
        if len(self._waiting) == 1:
            self._serve(exchange)
        elif self._crowded() and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def refuse(self, status: int, sentence: str, head: Head) -> None:
        """Answer what cannot be served, after what is in the making, and close."""
        if self._transport is None or self._transport.is_closing():
            return
        refusal = Exchange(self, head)
        refusal.keep_alive = refusal.plain = False
        self._refusal = (refusal, status, sentence)
        self._waiting.append(refusal)
        if len(self._waiting) == 1:
            self._serve(refusal)

    # answers ---------------------------------------------------------------------------------------------------------

    def start_of(self, status: int, content_type: bytes, size: int) -> bytes:
        """The first lines of an answer; see `Edge.start_of`."""
        return self._edge.starts.get((status, content_type, size)) or self._edge.start_of(status, content_type, size)

    def send(self, data: bytes) -> None:
        """Write to the client, if it is still there."""
        if self._transport is not None:
            self._transport.write(data)

    async def writable(self) -> None:
        """Wait while the client's buffer is full."""
        if self._can_write is not None:
            await self._can_write

    def ends_after(self) -> bool:
        """Whether the connection closes after the answer in the making."""
        return self._edge.draining and len(self._waiting) <= 1 and not self._parser.in_message

    def answered(self, exchange: Exchange, data: bytes) -> None:
        """An answer is complete: send its last bytes, then begin the next request of this connection."""
        if self._transport is None or not self._waiting or self._waiting[0] is not exchange:
            return
        if data:
            self._transport.write(data)
        self._waiting.popleft()
        self.since_s = self._edge.now_s
        if not exchange.keep_alive or (self._edge.draining and not self._waiting and not self._parser.in_message):
            self._end()
            return
        if self._waiting:
            # Not a direct call: a long pipeline answered at once must not grow the stack.
            self._edge.loop.call_soon(self._next)
        if self._paused and not self._crowded():
            self._paused = False
            self._transport.resume_reading()

    def _next(self) -> None:
        if self._waiting and not self._waiting[0].done and self._waiting[0].status == 0:
            self._serve(self._waiting[0])

    def _serve(self, exchange: Exchange) -> None:
        if self._refusal is not None and exchange is self._refusal[0]:
            exchange.text(self._refusal[1], self._refusal[2])
            self._edge.on_refused(exchange)
            return
        try:
            self._edge.app(exchange)
        except Exception as error:  # noqa: BLE001 - logged, and answered
            self._failed(exchange, error)

    def _failed(self, exchange: Exchange, error: Exception) -> None:
        LOG.error("%s %s failed", exchange.method, exchange.path, exc_info=error)
        if exchange.status:
            exchange.abort()
        else:
            exchange.text(500, "the server failed on this request; its log says why")

    def _crowded(self) -> bool:
        """Whether this client has sent enough ahead; the bodies that wait count as one client's body does."""
        if len(self._waiting) > self._edge.PIPELINE_MAX:
            return True
        return len(self._waiting) > 1 and sum(len(e.body) for e in self._waiting) > self._edge.limits.body_bytes

    def _end(self) -> None:
        """Close. A refused client may still be sending: closing now would reset it before it reads why."""
        if self._transport is None:
            return
        if self._refusal is None or self._edge.draining or not self._transport.can_write_eof():
            self._transport.close()
        else:
            self._lingering = True
            self._transport.write_eof()

    def cut(self) -> None:
        """Drop the connection without an orderly end."""
        if self._transport is not None:
            self._transport.abort()

    def close_if_idle(self) -> None:
        """Close a connection that has nothing in the making."""
        if self._transport is not None and not self._waiting and not self._parser.in_message:
            self._transport.close()

    def expire(self, now_s: float) -> None:
        """Close what is silent for too long: a half-sent request gets 408."""
        limits, quiet_s = self._edge.limits, now_s - self.since_s
        if self._transport is None:
            return
        unsent = self._transport.get_write_buffer_size()
        if unsent == 0 or unsent < self._unsent:
            self._sent_s = now_s
        self._unsent = unsent
        if now_s - self._sent_s > limits.write_timeout_s or (self._lingering and quiet_s > self._edge.LINGER_S):
            self.cut()
        elif self._waiting or self._lingering:
            return
        elif self._parser.in_message and quiet_s > limits.read_timeout_s:
            self._parser.refuse(408, f"the request did not arrive whole within {limits.read_timeout_s:g} s")
        elif not self._parser.in_message and quiet_s > limits.idle_timeout_s:
            self._transport.close()


class Edge:
    """A listening HTTP server: an application, its limits, and the connections it holds."""

    PIPELINE_MAX = 16
    """Requests one client may send ahead; then it is not read from until answers are out."""
    SWEEP_S = 1.0
    """How often silent connections are looked for: fine enough for limits of seconds."""
    STARTS_MAX = 1024
    """Kinds of answers whose first lines are kept: status, content type, and length."""
    LINGER_S = 5.0
    """How long a refused client may go on sending before it is cut (nginx's `lingering_timeout`)."""

    def __init__(self, app: App, limits: Limits, on_refused: Callable[[Exchange], None] | None = None) -> None:
        self.app = app
        self.limits = limits
        self.on_refused = on_refused or (lambda _: None)
        self.draining = False
        self.connections: set[Connection] = set()
        self.loop: asyncio.AbstractEventLoop
        self._server: asyncio.Server | None = None
        self.now_s = 0.0
        """The loop's time, as of the last sweep: near enough to see who is silent for minutes."""
        self.heads: dict[bytes, Known] = {}
        """See `RequestParser`."""
        self.starts: dict[tuple[int, bytes, int], bytes] = {}
        """See `start_of`."""
        self._sweeper: asyncio.TimerHandle | None = None

    async def listen(self, sock: Any) -> None:
        """Accept clients on a bound socket."""
        self.loop = asyncio.get_running_loop()
        self._server = await self.loop.create_server(lambda: Connection(self), sock=sock, backlog=4096)
        self._sweep()

    def start_of(self, status: int, content_type: bytes, size: int) -> bytes:
        """The first lines of an answer. They are kept until the next sweep: then `date` changes."""
        start = b"%bdate: %b\r\n" % (first_line(status), formatdate(time.time(), usegmt=True).encode())
        if content_type:
            start += b"content-type: %b\r\ncontent-length: %d\r\n" % (content_type, size)
        if len(self.starts) < self.STARTS_MAX:
            self.starts[(status, content_type, size)] = start
        return start

    def _sweep(self) -> None:
        now_s = self.now_s = self.loop.time()
        self.starts.clear()
        for connection in list(self.connections):
            connection.expire(now_s)
        self._sweeper = self.loop.call_later(self.SWEEP_S, self._sweep)

    def stop_accepting(self) -> None:
        """Take no new clients; connections close as their answers go out."""
        self.draining = True
        for connection in self.connections:
            connection.draining = True
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.close_if_idle()

    async def drain(self, timeout_s: float) -> bool:
        """Take no new clients and let every answer go out; True when all connections have ended."""
        self.stop_accepting()
        ends_s = self.loop.time() + timeout_s
        while self.connections and self.loop.time() < ends_s:
            await asyncio.sleep(0.01)
        return not self.connections

    def close(self) -> None:
        """Drop everything."""
        self.stop_accepting()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self.connections):
            connection.cut()
