"""One client connection of the HTTP edge: bytes to exchanges and back, in order, within limits."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, cast

from infless_watchdog.body_stream import BodyStream, StreamedExchange
from infless_watchdog.calls import Head
from infless_watchdog.exchange import TEXT, Exchange
from infless_watchdog.request_parser import RequestParser

if TYPE_CHECKING:
    from infless_watchdog.http import Edge

LOG = logging.getLogger("infless.http")
_FULL = b"too many connections are open; try again\n"
_TURNED_AWAY = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: %b\r\ncontent-length: %d\r\nretry-after: 1\r\n"
    b"connection: close\r\n\r\n%b" % (TEXT, len(_FULL), _FULL)
)


class Connection(asyncio.Protocol):
    """One client connection: bytes to exchanges and back. Create one per connection through `Edge`."""

    BODY_MIN_BPS = 256
    """Bytes per second at which a body that is served as it comes must come, over each `read_timeout_s`: less than any
    modem, and more than somebody sends who only wants to hold on to the connection."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._transport: asyncio.Transport | None = None
        self._parser = RequestParser(self, edge.limits, edge.heads, edge.streams)
        self.data_received = self._parser.feed  # type: ignore[method-assign] # one call less for each request
        self._waiting: deque[Exchange] = deque()  # the first one is being answered
        self._incoming: StreamedExchange | None = None  # whose body is not whole
        self._body_since_s = 0.0
        self._body_bytes = 0
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
        if self._edge.has_room():
            self._edge.connections.add(self)
        else:
            self._transport.write(_TURNED_AWAY)
            self._transport.close()
            self._transport = None

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left; answers in the making are told, and go nowhere."""
        del exc
        self._edge.connections.discard(self)
        self._transport = None
        self.resume_writing()
        if self._incoming is not None:
            self._incoming.body_stream.fail("the client left before its request was whole")
            self._incoming = None
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
        if not self._waiting or (self._waiting[0] is self._incoming and self._incoming.status == 0):
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

    def opened(self, head: Head, stream: BodyStream, *, keep_alive: bool, version_1_0: bool) -> None:
        """A request has come whose body is still coming."""
        exchange = self._incoming = StreamedExchange(self, head, stream)
        exchange.keep_alive = keep_alive
        exchange.version_1_0 = version_1_0
        stream.on_flow = self._flow
        self._body_since_s, self._body_bytes = self._edge.loop.time(), stream.received_bytes
        self._take(exchange)
        self._flow()

    def closed(self) -> None:
        """The body that was coming is whole."""
        exchange, self._incoming = self._incoming, None
        if exchange is not None and exchange.done:
            self.since_s = self._edge.now_s
            if self._edge.draining and not self._waiting:
                self._end()

    def _take(self, exchange: Exchange) -> None:
        """Serve it when those before it are answered."""
        self._waiting.append(exchange)
        if len(self._waiting) == 1:
            self._serve(exchange)
        else:
            self._flow()

    def _flow(self) -> None:
        """Read from the client, or let it wait: enough is here that is not served yet."""
        full = self._crowded() or (self._incoming is not None and self._incoming.body_stream.full)
        if full == self._paused or self._transport is None or self._transport.is_closing():
            return
        self._paused = full
        if full:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def refuse(self, status: int, sentence: str, head: Head) -> None:
        """Answer what cannot be served, after what is in the making, and close."""
        if self._transport is None or self._transport.is_closing():
            return
        if self._incoming is not None:
            self._spoil(self._incoming, status, sentence)
            return
        refusal = Exchange(self, head)
        refusal.keep_alive = refusal.plain = False
        self._refusal = (refusal, status, sentence)
        self._waiting.append(refusal)
        if len(self._waiting) == 1:
            self._serve(refusal)

    def _spoil(self, exchange: StreamedExchange, status: int, sentence: str) -> None:
        """The body of a request that is served already breaks the rules: say so, if nothing was said yet."""
        exchange.keep_alive = False
        exchange.body_stream.fail(sentence)
        if exchange.done:
            self._end()
        elif exchange.status:
            self.cut()
        else:
            self._refusal = (exchange, status, sentence)
            if self._waiting[0] is exchange:
                self._serve(exchange)

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
        if self._paused:
            self._flow()

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
        """Close. A client that may still be sending is not reset by that before it has read its answer."""
        if self._transport is None or self._lingering:
            return
        sending = self._refusal is not None or self._incoming is not None
        if not sending or self._edge.draining or not self._transport.can_write_eof():
            self._transport.close()
        else:
            self._lingering = True
            self._parser.stop()
            self._transport.write_eof()

    def cut(self) -> None:
        """Drop the connection without an orderly end."""
        if self._transport is not None:
            self._transport.abort()

    @property
    def idle(self) -> bool:
        """Whether nothing is in the making."""
        return self._transport is not None and not self._waiting and not self._parser.in_message

    def close_if_idle(self) -> bool:
        """Close a connection that has nothing in the making; true when it had nothing."""
        if self._transport is None or not self.idle:
            return False
        self._transport.close()
        return True

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
        elif self._lingering:
            return
        elif self._incoming is not None:
            self._expire_body(self._incoming, now_s)
        elif self._waiting:
            return
        elif self._parser.in_message and quiet_s > limits.read_timeout_s:
            self._parser.refuse(408, f"the request did not arrive whole within {limits.read_timeout_s:g} s")
        elif not self._parser.in_message and quiet_s > limits.idle_timeout_s:
            self._transport.close()

    def _expire_body(self, exchange: StreamedExchange, now_s: float) -> None:
        """A body that is served as it comes may take long, but not for ever."""
        stream, limit_s = exchange.body_stream, self._edge.limits.read_timeout_s
        if self._paused or stream.on_wanted is not None:  # the client waits for us
            self._body_since_s, self._body_bytes = now_s, stream.received_bytes
            return
        took_s = now_s - self._body_since_s
        if took_s <= limit_s:
            return
        if stream.received_bytes - self._body_bytes < self.BODY_MIN_BPS * took_s:
            sentence = f"the body came slower than {self.BODY_MIN_BPS} bytes per second for {limit_s:g} s"
            self._parser.refuse(408, sentence)
        self._body_since_s, self._body_bytes = now_s, stream.received_bytes
