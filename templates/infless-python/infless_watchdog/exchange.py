"""One HTTP request and its answer. What an application sees of a connection."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol

from infless_watchdog.calls import Call, Head, Header

if TYPE_CHECKING:
    from infless_watchdog.body_stream import BodyStream

_REASON = {status.value: f"{status.value} {status.phrase}".encode() for status in HTTPStatus}
_NO_BODY = frozenset({204, 304})
TEXT = b"text/plain; charset=utf-8"
JSON = b"application/json"


def first_line(status: int) -> bytes:
    """The status line of an answer."""
    return b"HTTP/1.1 %b\r\n" % (_REASON.get(status) or str(status).encode())


class Line(Protocol):
    """The connection that an exchange is answered on."""

    peer: str
    draining: bool
    """Whether it is to end soon, so that each answer may be the last."""

    def start_of(self, status: int, content_type: bytes, size: int) -> bytes:
        """The first lines of an answer: status and date, and with a content type that and the body's length."""
        ...

    def send(self, data: bytes) -> None:
        """Write to the client, if it is still there."""
        ...

    def answered(self, exchange: Exchange, data: bytes) -> None:
        """Write the last bytes of an answer."""
        ...

    def ends_after(self) -> bool:
        """Whether the connection closes after the answer in the making."""
        ...

    def cut(self) -> None:
        """Drop the connection without an orderly end."""
        ...

    async def writable(self) -> None:
        """Wait while the client's buffer is full."""
        ...


class Exchange(Call):
    """One request and its answer."""

    body_stream: BodyStream | None = None
    """The body as it comes, where the request is served before it is whole (`StreamedExchange`)."""

    __slots__ = (
        "_chunked",
        "_connection",
        "client_gone",
        "done",
        "keep_alive",
        "on_gone",
        "plain",
        "status",
        "version_1_0",
    )

    def __init__(self, connection: Line, head: Head, body: bytes = b"") -> None:
        self.head = head
        self.body = body
        self.live = False
        self._connection = connection
        self._chunked = False
        self.keep_alive = True
        self.version_1_0 = False
        self.plain = True
        """Whether it is answered as most are: with a body, and without a word on the connection."""
        self.status = 0
        self.done = False
        self.client_gone = False
        self.on_gone: Callable[[], object] | None = None
        """Called once when the client leaves before the answer is complete."""

    @property
    def method(self) -> str:
        """GET, POST and so on."""
        return self.head.method

    @property
    def path(self) -> str:
        """The target without its query, as it was sent."""
        return self.head.path

    @property
    def query(self) -> str:
        """What follows the target's question mark."""
        return self.head.query

    @property
    def headers(self) -> Sequence[Header]:
        """Names in lower case, in the order they came."""
        return self.head.headers

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header, its name in lower case."""
        return self.head.header(name)

    @property
    def peer(self) -> str:
        """The client's `host:port`."""
        return self._connection.peer

    def respond(
        self, status: int, body: bytes = b"", content_type: bytes = TEXT, headers: Sequence[Header] = ()
    ) -> None:
        """Answer at once. An exchange is answered once; the client may have left, which is no error."""
        if self.done:
            return
        self.status = status
        bodiless = status in _NO_BODY
        start = self._connection.start_of(status, b"" if bodiless else content_type, len(body))
        if self.plain and not headers and not bodiless and not self._connection.draining:
            self.done = True
            self.on_gone = None
            self._connection.answered(self, b"%b\r\n%b" % (start, body))
            return
        parts = [start]
        for name, value in headers:
            parts += (name, b": ", value, b"\r\n")
        self._say_how_it_ends(parts)
        if self.method != "HEAD" and not bodiless:
            parts.append(body)
        self._finish(b"".join(parts))

    def text(self, status: int, sentence: str, headers: Sequence[Header] = ()) -> None:
        """Answer with one sentence for a person."""
        self.respond(status, sentence.encode(errors="replace") + b"\n", TEXT, headers)

    def json(self, status: int, value: Any, headers: Sequence[Header] = ()) -> None:
        """Answer with a JSON value."""
        self.respond(status, json.dumps(value).encode(), JSON, headers)

    def begin(self, status: int, headers: Sequence[Header]) -> None:
        """Start an answer in pieces. Without a `content-length` among `headers` it is sent chunked."""
        if self.done:
            return
        self.status = status
        dated = any(name == b"date" for name, _ in headers)
        parts = [first_line(status) if dated else self._connection.start_of(status, b"", 0)]
        sized = status in _NO_BODY or self.method == "HEAD"
        for name, value in headers:
            sized = sized or name == b"content-length"
            parts += (name, b": ", value, b"\r\n")
        self._chunked = not sized and not self.version_1_0
        if not sized and self.version_1_0:
            self.keep_alive = False
        if self._chunked:
            parts.append(b"transfer-encoding: chunked\r\n")
        self._say_how_it_ends(parts)
        self._connection.send(b"".join(parts))

    def write(self, chunk: bytes) -> None:
        """Send a piece of the answer's body."""
        if chunk and self.method != "HEAD" and self.status not in _NO_BODY and not self.done:
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

    def _say_how_it_ends(self, parts: list[bytes]) -> None:
        """The end of an answer's head. A client that knows of the close sends nothing more into it."""
        self.keep_alive = self.keep_alive and not self._connection.ends_after()
        if not self.keep_alive:
            parts.append(b"connection: close\r\n")
        elif self.version_1_0:
            parts.append(b"connection: keep-alive\r\n")
        parts.append(b"\r\n")

    def _finish(self, data: bytes) -> None:
        self.done = True
        self.on_gone = None
        self._connection.answered(self, data)
