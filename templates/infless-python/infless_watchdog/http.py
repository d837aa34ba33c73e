"""HTTP/1.1 server edge on asyncio: httptools parses, `Exchange` answers. Knows nothing of models or functions.

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
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any, cast

import httptools

from infless_watchdog.calls import Head, Header
from infless_watchdog.exchange import CONTENT_LENGTH, JSON, TEXT, Exchange, first_line

__all__ = ["JSON", "TEXT", "App", "Connection", "Edge", "Exchange", "Header", "Limits"]

App = Callable[[Exchange], None]
LOG = logging.getLogger("infless.http")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one client may make the server hold."""

    header_bytes: int = 64 * 1024
    """Apache allows 8 KiB a field, nginx 32 KiB in all; tokens and trace headers of service meshes need more."""
    body_bytes: int = 64 * 1024 * 1024
    """A batch of images fits; a film does not."""
    read_timeout_s: float = 30.0
    """A request must arrive whole within this time (of-watchdog's `read_timeout`)."""
    write_timeout_s: float = 30.0
    """A client that takes nothing of its answer for this long is dropped."""
    idle_timeout_s: float = 120.0
    """A silent keep-alive connection is closed after this time."""


@dataclass(frozen=True, slots=True)
class _Known:
    """The head of a connection's last request, to recognise the next one that is sent with the same bytes."""

    octets: bytes
    head: Head
    total_bytes: int
    """Of a whole request: head and body."""


class Connection(asyncio.Protocol):
    """One client connection: bytes to exchanges and back. Create one per connection through `Edge`."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._current: Exchange | None = None  # its head is parsed, its body is not
        self._in_message = False
        self._in_body = False
        self._replaying = False
        self._known: _Known | None = None
        self._last: Exchange | None = None  # the last one that the parser completed
        self._waiting: deque[Exchange] = deque()  # the first one is being answered
        self._url = b""
        self._headers: list[Header] = []
        self._body: list[bytes] = []
        self._head_size = 0
        self._body_size = 0
        self._heard = False  # the parser said something about the bytes just fed
        self._unheard_size = 0
        self._refusal: tuple[Exchange, int, str] | None = None
        self._lingering = False
        self._can_write: asyncio.Future[None] | None = None
        self._unsent = 0
        self._sent_s = 0.0
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

    def data_received(self, data: bytes) -> None:
        """Take requests that begin as the last one did; feed the parser with everything else."""
        if self._refusal is not None:
            return
        known = self._known
        if known is not None and not self._in_message:
            # Most clients send one request at a time, all with the same head: what it says is known already.
            while data.startswith(known.octets) and len(data) >= known.total_bytes:
                body = data[len(known.octets) : known.total_bytes]
                data = data[known.total_bytes :]
                self._whole(Exchange(self, known.head, body))
                if not data:
                    return
        self._parse(data)

    def _parse(self, data: bytes) -> None:
        """What is not HTTP gets 400 and the connection's end."""
        fresh, self._last, self._heard = not self._in_message, None, False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as stop:
            self._ignore_upgrade(data[stop.args[0] :])
        except httptools.HttpParserError as error:
            self._refuse(400, f"this is not a valid HTTP/1.1 request: {error}")
        # A field without an end is kept by the parser and told to nobody.
        self._unheard_size = 0 if self._heard else self._unheard_size + len(data)
        if self._unheard_size > self._edge.limits.header_bytes:
            self._refuse_head()
        if fresh and self._last is not None and not self._in_message:
            self._remember(data, self._last)

    def _remember(self, data: bytes, exchange: Exchange) -> None:
        """Know the head again, if `data` were one plain request, framed by its length, and nothing else.

        Every line of the head must end in CRLF: then its end is the first empty line, and no other reading of the same
        bytes is possible.
        """
        size = data.find(b"\r\n\r\n") + 4
        octets = data[:size]
        plain = size + len(exchange.body) == len(data) and octets.count(b"\n") == octets.count(b"\r\n")
        odd = exchange.header(b"transfer-encoding") or exchange.header(b"expect") or exchange.header(b"upgrade")
        if plain and not odd and exchange.keep_alive and not exchange.version_1_0:
            self._known = _Known(octets, exchange.head, len(data))

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Answer as if nobody had asked for another protocol (RFC 9110, section 7.8).

        Java's HTTP client asks for h2c with its first request. The parser gives up behind such a head, so another one
        is told how long the body is, and takes over.
        """
        if self._current is None or self._refusal is not None:
            return
        framing = (b"content-length", b"transfer-encoding")
        fields = [b"%b: %b\r\n" % header for header in self._current.head.headers if header[0] in framing]
        if not self._current.keep_alive:
            fields.append(b"connection: close\r\n")
        self._parser = httptools.HttpRequestParser(self)
        self._replaying = True
        self._parser.feed_data(b"POST / HTTP/1.1\r\n" + b"".join(fields) + b"\r\n")
        if rest:
            self._parse(rest)

    def pause_writing(self) -> None:
        """The client reads slower than we write."""
        self._can_write = self._edge.loop.create_future()

    def resume_writing(self) -> None:
        """The client has caught up, or is gone."""
        self._sent_s = self._edge.loop.time()
        if self._can_write is not None and not self._can_write.done():
            self._can_write.set_result(None)
        self._can_write = None

    # httptools -------------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A new request begins."""
        if self._replaying:
            return
        self._in_message = True
        self._current = None
        self._in_body = False
        self._url = b""
        self._headers = []
        self._body = []
        self._head_size = 0
        self._body_size = 0
        self.since_s = self._edge.loop.time()

    def on_url(self, url: bytes) -> None:
        """A part of the request target."""
        if not self._replaying:
            self._url += url
            self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header field. Trailers are counted and dropped (RFC 9110, section 6.5.1)."""
        if not self._replaying:
            if not self._in_body:
                self._headers.append((name.lower(), value))
            self._count_head(len(name) + len(value))

    def on_headers_complete(self) -> None:
        """The head is complete: refuse what cannot be served before its body is sent."""
        self._in_body = True
        if self._replaying or self._refusal is not None:
            self._replaying = False
            return
        url = self._url
        if url.startswith((b"http://", b"https://")):  # absolute form, as to a proxy
            url = b"/" + url.split(b"/", 3)[3] if url.count(b"/") > 2 else b"/"
        path, _, query = url.partition(b"?")
        method = self._parser.get_method().decode("ascii")
        head = Head(method, path.decode("latin-1"), query.decode("latin-1"), self._headers)
        self._current = exchange = Exchange(self, head)
        exchange.version_1_0 = self._parser.get_http_version() == "1.0"
        exchange.keep_alive = self._parser.should_keep_alive()
        codings = [value.strip().lower() for name, value in head.headers if name == b"transfer-encoding"]
        length = head.header(b"content-length")
        if method == "CONNECT":
            self._refuse(501, "this is not a proxy: CONNECT is not supported")
        elif codings and exchange.version_1_0:
            self._refuse(400, "HTTP/1.0 has no Transfer-Encoding")
        elif codings not in ([], [b"chunked"]):
            self._refuse(501, "the only Transfer-Encoding supported is chunked")
        elif length is not None and int(length) > self._edge.limits.body_bytes:
            self._refuse_body()
        elif (head.header(b"expect") or b"").lower() == b"100-continue" and not self._waiting:
            # Behind an answer in the making it would land inside that; the client sends anyway after a while.
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        """A part of the body."""
        self._heard = True
        self._body_size += len(data)
        if self._body_size > self._edge.limits.body_bytes:
            self._refuse_body()
        elif self._refusal is None:
            self._body.append(data)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._heard = True
        exchange = self._current
        if exchange is None or self._parser.should_upgrade():  # `_ignore_upgrade` follows
            return
        self._in_message = False
        self._current = None
        exchange.body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body = []
        self._last = exchange
        self._whole(exchange)

    def _whole(self, exchange: Exchange) -> None:
        self._waiting.append(exchange)
        if len(self._waiting) == 1:
            self._serve(exchange)
        elif self._crowded() and self._transport is not None:
            self._transport.pause_reading()

    # answers ---------------------------------------------------------------------------------------------------------

    def start_of(self, status: int, content_type: bytes) -> bytes:
        """The first bytes of an answer; see `Edge.start_of`."""
        return self._edge.start_of(status, content_type)

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
        return self._edge.draining and len(self._waiting) <= 1 and not self._in_message

    def answered(self, exchange: Exchange, data: bytes) -> None:
        """An answer is complete: send its last bytes, then begin the next request of this connection."""
        if self._transport is None or not self._waiting or self._waiting[0] is not exchange:
            return
        if data:
            self._transport.write(data)
        self._waiting.popleft()
        self.since_s = self._edge.loop.time()
        if not exchange.keep_alive or (self._edge.draining and not self._waiting and not self._in_message):
            self._end()
            return
        if self._waiting:
            # Not a direct call: a long pipeline answered at once must not grow the stack.
            self._edge.loop.call_soon(self._next)
        if not self._transport.is_reading() and not self._crowded():
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
        except Exception:
            LOG.exception("%s %s failed", exchange.method, exchange.path)
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
        if self._transport is not None and not self._waiting and not self._in_message:
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
        elif self._in_message and quiet_s > limits.read_timeout_s:
            self._refuse(408, f"the request did not arrive whole within {limits.read_timeout_s:g} s")
        elif not self._in_message and quiet_s > limits.idle_timeout_s:
            self._transport.close()

    def _count_head(self, size: int) -> None:
        self._heard = True
        self._head_size += size
        if self._head_size > self._edge.limits.header_bytes:
            self._refuse_head()

    def _refuse_head(self) -> None:
        self._refuse(431, f"the request's head is larger than the allowed {self._edge.limits.header_bytes} bytes")

    def _refuse_body(self) -> None:
        self._refuse(413, f"the body is larger than the allowed {self._edge.limits.body_bytes} bytes")

    def _refuse(self, status: int, sentence: str) -> None:
        """Answer what cannot be served, after what is in the making, and close."""
        if self._refusal is not None or self._transport is None or self._transport.is_closing():
            return
        head = self._current.head if self._current is not None else Head()
        refusal = Exchange(self, head)
        refusal.keep_alive = False
        self._refusal = (refusal, status, sentence)
        self._current = None
        self._body = []
        self._waiting.append(refusal)
        if len(self._waiting) == 1:
            self._serve(refusal)


class Edge:
    """A listening HTTP server: an application, its limits, and the connections it holds."""

    PIPELINE_MAX = 16
    """Requests one client may send ahead; then it is not read from until answers are out."""
    SWEEP_S = 1.0
    """How often silent connections are looked for: fine enough for limits of seconds."""
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
        self._starts: dict[tuple[int, bytes], bytes] = {}
        self._sweeper: asyncio.TimerHandle | None = None

    async def listen(self, sock: Any) -> None:
        """Accept clients on a bound socket."""
        self.loop = asyncio.get_running_loop()
        self._server = await self.loop.create_server(lambda: Connection(self), sock=sock, backlog=4096)
        self._sweep()

    def start_of(self, status: int, content_type: bytes) -> bytes:
        """The first bytes of an answer, up to its length. They are kept for a second, as long as `date` is the same."""
        start = self._starts.get((status, content_type))
        if start is None:
            start = b"%bdate: %b\r\n" % (first_line(status), formatdate(time.time(), usegmt=True).encode())
            if content_type:
                start += b"content-type: %b\r\n%b" % (content_type, CONTENT_LENGTH)
            self._starts[(status, content_type)] = start
        return start

    def _sweep(self) -> None:
        now_s = self.loop.time()
        self._starts.clear()
        for connection in list(self.connections):
            connection.expire(now_s)
        self._sweeper = self.loop.call_later(self.SWEEP_S, self._sweep)

    def stop_accepting(self) -> None:
        """Take no new clients; connections close as their answers go out."""
        self.draining = True
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
