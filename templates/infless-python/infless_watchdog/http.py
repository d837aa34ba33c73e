"""HTTP/1.1 server edge on asyncio: httptools parses, `Exchange` answers. Knows nothing of models or functions.

An application is a plain callable `app(exchange)`. It is called on the event loop once the whole request is there and
answers now or later through `exchange.respond(...)`, or in pieces with `begin`, `write`, `end`. Requests of one
connection are answered in order (RFC 9112, section 9.3); the next one starts when the last answer is complete.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast

import httptools

Header = tuple[bytes, bytes]
App = Callable[["Exchange"], None]

_REASON = {status.value: f"{status.value} {status.phrase}".encode() for status in HTTPStatus}
_NO_BODY = frozenset({204, 304})
TEXT = b"text/plain; charset=utf-8"
JSON = b"application/json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one client may make the server hold."""

    header_bytes: int = 64 * 1024
    """Apache allows 8 KiB a field, nginx 32 KiB in all; tokens and trace headers of service meshes need more."""
    body_bytes: int = 64 * 1024 * 1024
    """A batch of images fits; a film does not."""
    read_timeout_s: float = 30.0
    """A request must arrive whole within this time (of-watchdog's `read_timeout`)."""
    idle_timeout_s: float = 120.0
    """A silent keep-alive connection is closed after this time."""


class Exchange:
    """One request and its answer."""

    __slots__ = (
        "_chunked", "_connection", "body", "client_gone", "done", "headers", "keep_alive", "method", "on_gone",
        "path", "query", "status", "version_1_0",
    )  # fmt: skip

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._chunked = False
        self.method = "GET"
        self.path = "/"
        self.query = ""
        self.headers: list[Header] = []
        """Names in lower case, in the order they came."""
        self.body: bytes | bytearray = b""
        self.keep_alive = True
        self.version_1_0 = False
        self.status = 0
        self.done = False
        self.client_gone = False
        self.on_gone: Callable[[], object] | None = None
        """Called once when the client leaves before the answer is complete."""

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header, its name in lower case."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    @property
    def peer(self) -> str:
        """The client's `host:port`."""
        return self._connection.peer

    def respond(
        self, status: int, body: bytes = b"", content_type: bytes = TEXT, headers: Iterable[Header] = ()
    ) -> None:
        """Answer at once. An exchange is answered once; the client may have left, which is no error."""
        if self.done:
            return
        self.status = status
        parts = [b"HTTP/1.1 ", _REASON.get(status) or str(status).encode(), b"\r\n"]
        if status not in _NO_BODY:
            parts += (b"content-length: ", str(len(body)).encode(), b"\r\n")
        if body or content_type is not TEXT:
            parts += (b"content-type: ", content_type, b"\r\n")
        for name, value in headers:
            parts += (name, b": ", value, b"\r\n")
        if not self.keep_alive:
            parts.append(b"connection: close\r\n")
        parts.append(b"\r\n")
        if self.method != "HEAD" and status not in _NO_BODY:
            parts.append(body)
        self._finish(b"".join(parts))

    def text(self, status: int, sentence: str, headers: Iterable[Header] = ()) -> None:
        """Answer with one sentence for a person."""
        self.respond(status, sentence.encode() + b"\n", TEXT, headers)

    def json(self, status: int, value: Any, headers: Iterable[Header] = ()) -> None:
        """Answer with a JSON value."""
        self.respond(status, json.dumps(value).encode(), JSON, headers)

    def begin(self, status: int, headers: Iterable[Header]) -> None:
        """Start an answer in pieces. Without a `content-length` among `headers` it is sent chunked."""
        self.status = status
        parts = [b"HTTP/1.1 ", _REASON.get(status) or str(status).encode(), b"\r\n"]
        sized = status in _NO_BODY or self.method == "HEAD"
        for name, value in headers:
            sized = sized or name == b"content-length"
            parts += (name, b": ", value, b"\r\n")
        self._chunked = not sized and not self.version_1_0
        if not sized and self.version_1_0:
            self.keep_alive = False
        if self._chunked:
            parts.append(b"transfer-encoding: chunked\r\n")
        if not self.keep_alive:
            parts.append(b"connection: close\r\n")
        parts.append(b"\r\n")
        self._connection.send(b"".join(parts))

    def write(self, chunk: bytes) -> None:
        """Send a piece of the answer's body."""
        if chunk and self.method != "HEAD" and not self.done:
            self._connection.send(b"%x\r\n%b\r\n" % (len(chunk), chunk) if self._chunked else chunk)

    async def writable(self) -> None:
        """Wait until the client takes more: a slow reader holds back its own stream only."""
        await self._connection.writable()

    def end(self) -> None:
        """Complete an answer in pieces."""
        if not self.done:
            self._finish(b"0\r\n\r\n" if self._chunked else b"")

    def abort(self) -> None:
        """Cut the connection: the only honest end of an answer that cannot be completed."""
        self.keep_alive = False
        if not self.done:
            self.done = True
            self._connection.cut()

    def _finish(self, data: bytes) -> None:
        self.done = True
        self._connection.answered(self, data)


class Connection(asyncio.Protocol):
    """One client connection: bytes to exchanges and back. Create one per connection through `Edge`."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._current: Exchange | None = None  # being parsed
        self._waiting: deque[Exchange] = deque()  # the first one is being answered
        self._url = b""
        self._body: list[bytes] = []
        self._size = 0
        self._refused = False
        self._can_write: asyncio.Future[None] | None = None
        self.since_s = 0.0
        self.peer = ""

    # asyncio ---------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has come."""
        # uvloop's transport is none of asyncio's classes, but speaks their protocol.
        self._transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        self.peer = f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else ""
        self.since_s = self._edge.loop.time()
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
        """Feed the parser; what is not HTTP gets 400 and the connection's end."""
        if self._refused:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(501, "protocol upgrades are not supported")
        except httptools.HttpParserError as error:
            if not self._refused:
                self._refuse(400, f"this is not a valid HTTP/1.1 request: {error}")

    def pause_writing(self) -> None:
        """The client reads slower than we write."""
        self._can_write = self._edge.loop.create_future()

    def resume_writing(self) -> None:
        """The client has caught up, or is gone."""
        if self._can_write is not None and not self._can_write.done():
            self._can_write.set_result(None)
        self._can_write = None

    # httptools -------------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A new request begins."""
        self._current = Exchange(self)
        self._url = b""
        self._body = []
        self._size = 0
        self.since_s = self._edge.loop.time()

    def on_url(self, url: bytes) -> None:
        """A part of the request target."""
        self._url += url
        self._count_header(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header field."""
        if self._current is not None:
            self._current.headers.append((name.lower(), value))
            self._count_header(len(name) + len(value))

    def on_headers_complete(self) -> None:
        """The head is complete: refuse what is too large before its body is sent."""
        exchange = self._current
        if exchange is None or self._refused:
            return
        exchange.method = self._parser.get_method().decode("ascii")
        exchange.version_1_0 = self._parser.get_http_version() == "1.0"
        exchange.keep_alive = self._parser.should_keep_alive() and not self._edge.draining
        path, _, query = self._url.partition(b"?")
        exchange.path = path.decode("latin-1")
        exchange.query = query.decode("latin-1")
        length = exchange.header(b"content-length")
        self._size = 0
        if length is not None and int(length) > self._edge.limits.body_bytes:
            self._refuse_body()
        elif exchange.header(b"expect") == b"100-continue" and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        """A part of the body."""
        self._size += len(data)
        if self._size > self._edge.limits.body_bytes:
            self._refuse_body()
        else:
            self._body.append(data)

    def on_message_complete(self) -> None:
        """The request is whole."""
        exchange, self._current = self._current, None
        if exchange is None or self._refused:
            return
        exchange.body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body = []
        self._waiting.append(exchange)
        if len(self._waiting) == 1:
            self._edge.app(exchange)
        elif len(self._waiting) > self._edge.PIPELINE_MAX and self._transport is not None:
            self._transport.pause_reading()

    # answers ---------------------------------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Write to the client, if it is still there."""
        if self._transport is not None:
            self._transport.write(data)

    async def writable(self) -> None:
        """Wait while the client's buffer is full."""
        if self._can_write is not None:
            await self._can_write

    def answered(self, exchange: Exchange, data: bytes) -> None:
        """An answer is complete: send its last bytes, then begin the next request of this connection."""
        if self._transport is None or not self._waiting or self._waiting[0] is not exchange:
            return
        if data:
            self._transport.write(data)
        self._waiting.popleft()
        self.since_s = self._edge.loop.time()
        if not exchange.keep_alive or (self._edge.draining and not self._waiting):
            self._transport.close()
        elif self._waiting:
            # Not a direct call: a long pipeline answered at once must not grow the stack.
            self._edge.loop.call_soon(self._next)
        if len(self._waiting) <= self._edge.PIPELINE_MAX:
            self._transport.resume_reading()

    def _next(self) -> None:
        if self._waiting and not self._waiting[0].done and self._waiting[0].status == 0:
            self._edge.app(self._waiting[0])

    def cut(self) -> None:
        """Drop the connection without an orderly end."""
        if self._transport is not None:
            self._transport.abort()

    def close_if_idle(self) -> None:
        """Close a connection that has nothing in the making."""
        if self._transport is not None and not self._waiting and self._current is None:
            self._transport.close()

    def expire(self, now_s: float) -> None:
        """Close what is silent for too long: a half-sent request gets 408."""
        limits = self._edge.limits
        if self._waiting or self._transport is None:
            return
        if self._current is not None and now_s - self.since_s > limits.read_timeout_s:
            self._refuse(408, f"the request did not arrive whole within {limits.read_timeout_s:g} s")
        elif self._current is None and now_s - self.since_s > limits.idle_timeout_s:
            self._transport.close()

    def _count_header(self, size: int) -> None:
        self._size += size
        if self._size > self._edge.limits.header_bytes:
            self._refuse(431, f"the request's head is larger than the allowed {self._edge.limits.header_bytes} bytes")

    def _refuse_body(self) -> None:
        self._refuse(413, f"the body is larger than the allowed {self._edge.limits.body_bytes} bytes")

    def _refuse(self, status: int, sentence: str) -> None:
        """Answer what cannot be served, after what is in the making, and close."""
        if self._refused or self._transport is None:
            return
        self._refused = True
        self._current = None
        self._body = []
        refusal = Exchange(self)
        refusal.keep_alive = False
        self._waiting.append(refusal)
        if len(self._waiting) == 1:
            self._edge.on_refused(refusal)
            refusal.text(status, sentence)
        else:
            self._transport.pause_reading()
            self._transport.close()


class Edge:
    """A listening HTTP server: an application, its limits, and the connections it holds."""

    PIPELINE_MAX = 16
    """Requests one client may send ahead; then it is not read from until answers are out."""

    def __init__(self, app: App, limits: Limits, on_refused: Callable[[Exchange], None] | None = None) -> None:
        self.app = app
        self.limits = limits
        self.on_refused = on_refused or (lambda _: None)
        self.draining = False
        self.connections: set[Connection] = set()
        self.loop: asyncio.AbstractEventLoop
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    async def listen(self, sock: Any) -> None:
        """Accept clients on a bound socket."""
        self.loop = asyncio.get_running_loop()
        self._server = await self.loop.create_server(lambda: Connection(self), sock=sock, backlog=4096)
        self._sweep()

    def _sweep(self) -> None:
        now_s = self.loop.time()
        for connection in list(self.connections):
            connection.expire(now_s)
        self._sweeper = self.loop.call_later(1.0, self._sweep)

    def stop_accepting(self) -> None:
        """Take no new clients; connections close as their answers go out."""
        self.draining = True
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.close_if_idle()

    def close(self) -> None:
        """Drop everything."""
        self.stop_accepting()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self.connections):
            connection.cut()
