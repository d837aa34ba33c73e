"""One HTTP request and its answer. What an application sees of a connection."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any, Protocol

Header = tuple[bytes, bytes]

_REASON = {status.value: f"{status.value} {status.phrase}".encode() for status in HTTPStatus}
_NO_BODY = frozenset({204, 304})
TEXT = b"text/plain; charset=utf-8"
JSON = b"application/json"


class Line(Protocol):
    """The connection that an exchange is answered on."""

    peer: str

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


class Exchange:
    """One request and its answer."""

    __slots__ = (
        "_chunked", "_connection", "body", "client_gone", "done", "headers", "keep_alive", "method", "on_gone",
        "path", "query", "status", "version_1_0",
    )  # fmt: skip

    def __init__(self, connection: Line) -> None:
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
        self._say_how_it_ends(parts)
        if self.method != "HEAD" and status not in _NO_BODY:
            parts.append(body)
        self._finish(b"".join(parts))

    def text(self, status: int, sentence: str, headers: Iterable[Header] = ()) -> None:
        """Answer with one sentence for a person."""
        self.respond(status, sentence.encode(errors="replace") + b"\n", TEXT, headers)

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
