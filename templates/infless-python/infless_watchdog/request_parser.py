"""From bytes to requests: httptools (llhttp) parses, limits are kept, and a head that was just seen is recognised."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import httptools

from infless_watchdog.body_stream import BodyStream
from infless_watchdog.calls import Head, Header

_HOST = re.compile(rb"[A-Za-z0-9._~%:\[\]-]*")
"""What names, addresses and ports are written with; an empty one is allowed (RFC 9112, section 3.2)."""
_ORIGIN = re.compile(rb"https?://[^/?#]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one client may make the server hold."""

    header_bytes: int = 64 * 1024
    """Apache allows 8 KiB a field, nginx 32 KiB in all; tokens and trace headers of service meshes need more."""
    body_bytes: int = 64 * 1024 * 1024
    """A batch of images fits; a film does not."""
    read_timeout_s: float = 30.0
    """A request must arrive whole within this time (of-watchdog's `read_timeout`); one whose body is served as it comes
    may take longer, as long as something comes (`Connection.BODY_MIN_BPS`)."""
    write_timeout_s: float = 30.0
    """A client that takes nothing of its answer for this long is dropped."""
    idle_timeout_s: float = 120.0
    """A silent keep-alive connection is closed after this time."""
    connections_max: int = 0
    """Open connections at once; 0 is no limit. One more takes the place of the longest idle one, or gets 503."""


class Taker(Protocol):
    """Who gets what is parsed."""

    def begun(self) -> None:
        """The first bytes of a request have come."""
        ...

    def awaited(self) -> None:
        """The client waits for a word before it sends the body (`Expect: 100-continue`)."""
        ...

    def whole(self, head: Head, body: bytes, *, keep_alive: bool, version_1_0: bool) -> None:
        """A request has come."""
        ...

    def again(self, head: Head, body: bytes) -> None:
        """A request has come with the very head of the one before."""
        ...

    def opened(self, head: Head, stream: BodyStream, *, keep_alive: bool, version_1_0: bool) -> None:
        """A request has come whose body is still coming, into the stream."""
        ...

    def closed(self) -> None:
        """The body that was opened is whole."""
        ...

    def refuse(self, status: int, sentence: str, head: Head) -> None:
        """What comes cannot be served, nor anything behind it."""
        ...


@dataclass(frozen=True, slots=True)
class Known:
    """A head that was parsed, to recognise the next one that is sent with the same bytes."""

    octets: bytes
    head: Head
    head_bytes: int
    total_bytes: int
    """Of a whole request: head and body."""


class RequestParser:
    """Feed it what a connection receives.

    Args:
        taker: who gets the requests.
        limits: of one client.
        heads: by their bytes, those that were parsed on any connection; a client often opens many that send the same.
        streams: whether a request with this head is to be served while its body is still coming.
    """

    HEADS_MAX = 64
    """Clients choose heads: the memory that is spent on them is not theirs to choose."""

    def __init__(
        self, taker: Taker, limits: Limits, heads: dict[bytes, Known], streams: Callable[[Head], bool] | None = None
    ) -> None:
        self.in_message = False
        """Whether a request has begun and is not whole."""
        self._taker = taker
        self._limits = limits
        self._heads = heads
        self._streams = streams
        self._may_stream = False  # the request that is in its body
        self._stream: BodyStream | None = None
        self._expects = False
        self._parser = httptools.HttpRequestParser(self)
        self._head: Head | None = None  # of the request that is in its body
        self._in_body = False
        self._keep_alive = True
        self._version_1_0 = False
        self._replaying = False
        self._refused = False
        self._known: Known | None = None
        self._last: tuple[Head, int] | None = None  # head and body size of the last whole request
        self._url = b""
        self._headers: list[Header] = []
        self._body: list[bytes] = []
        self._head_size = 0
        self._body_size = 0
        self._heard = False  # the parser said something about the bytes just fed
        self._unheard_size = 0

    def feed(self, data: bytes) -> None:
        """Take requests that begin as the last one did; let httptools parse everything else."""
        known = self._known
        if known is None and not self.in_message:
            known = self._known = self._heads.get(data[: data.find(b"\r\n\r\n") + 4])
        if known is not None and not self.in_message:
            # Most clients send one request at a time, all with the same head: what it says is known already.
            while data.startswith(known.octets) and len(data) >= known.total_bytes:
                self._taker.again(known.head, data[known.head_bytes : known.total_bytes])
                if len(data) == known.total_bytes:
                    return
                data = data[known.total_bytes :]
        self._parse(data)

    def refuse(self, status: int, sentence: str) -> None:
        """Take nothing more; once."""
        if not self._refused:
            self.stop()
            self._taker.refuse(status, sentence, self._head or Head())

    def stop(self) -> None:
        """Take nothing more, whatever comes."""
        self._refused = True
        self._body = []
        self._known, self._heads = None, {}  # nothing is recognised any more, either

    def _parse(self, data: bytes) -> None:
        """What is not HTTP gets 400."""
        if self._refused:
            return
        fresh, self._last, self._heard = not self.in_message, None, False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as stop:
            self._ignore_upgrade(data[stop.args[0] :])
        except httptools.HttpParserError as error:
            self.refuse(400, f"this is not a valid HTTP/1.1 request: {error}")
        # A field without an end is kept by the parser and told to nobody.
        self._unheard_size = 0 if self._heard else self._unheard_size + len(data)
        if self._unheard_size > self._limits.header_bytes:
            self._refuse_head()
        if fresh and self._last is not None and not self.in_message:
            self._remember(data, *self._last)
        elif self._may_stream and self.in_message and not self._refused and self._stream is None:
            self._open()

    def _open(self) -> None:
        """Have the request served, though its body is not whole."""
        assert self._head is not None
        length = self._head.header(b"content-length")
        stream = self._stream = BodyStream(None if length is None else int(length))
        if self._expects and not self._body:
            stream.on_wanted = self._taker.awaited
        for piece in self._body:
            stream.add(piece)
        self._body = []
        self._taker.opened(self._head, stream, keep_alive=self._keep_alive, version_1_0=self._version_1_0)

    def _remember(self, data: bytes, head: Head, body_size: int) -> None:
        """Know the head again, if `data` were one plain request, framed by its length, and nothing else.

        Every line of the head must end in CRLF: then its end is the first empty line, and no other reading of the same
        bytes is possible.
        """
        size = data.find(b"\r\n\r\n") + 4
        octets = data[:size]
        plain = size + body_size == len(data) and octets.count(b"\n") == octets.count(b"\r\n")
        odd = head.header(b"transfer-encoding") or head.header(b"expect") or head.header(b"upgrade")
        if plain and not odd and self._keep_alive and not self._version_1_0 and head.method != "HEAD":
            self._known = Known(octets, head, size, len(data))
            if len(self._heads) >= self.HEADS_MAX:
                self._heads.clear()
            self._heads[octets] = self._known

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Answer as if nobody had asked for another protocol (RFC 9110, section 7.8).

        Java's HTTP client asks for h2c with its first request. The parser gives up behind such a head, so another one
        is told how long the body is, and takes over.
        """
        if self._head is None or self._refused:
            return
        framing = (b"content-length", b"transfer-encoding")
        fields = [b"%b: %b\r\n" % header for header in self._head.headers if header[0] in framing]
        if not self._keep_alive:
            fields.append(b"connection: close\r\n")
        self._parser = httptools.HttpRequestParser(self)
        self._replaying = True
        self._parser.feed_data(b"POST / HTTP/1.1\r\n" + b"".join(fields) + b"\r\n")
        if rest:
            self._parse(rest)

    # httptools -------------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A new request begins."""
        if self._replaying:
            return
        self.in_message = True
        self._head = None
        self._in_body = self._may_stream = False
        self._url = b""
        self._headers = []
        self._body = []
        self._head_size = 0
        self._body_size = 0
        self._taker.begun()

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
        if self._replaying or self._refused:
            self._replaying = False
            return
        url = self._url
        if (origin := _ORIGIN.match(url)) is not None:  # absolute form, as to a proxy
            url = url[origin.end() :] if url[origin.end() :].startswith(b"/") else b"/" + url[origin.end() :]
        path, _, query = url.partition(b"?")
        method = self._parser.get_method().decode("ascii")
        head = Head(method, path.decode("latin-1"), query.decode("latin-1"), self._headers)
        self._head = head
        version = self._parser.get_http_version()
        self._version_1_0 = version == "1.0"
        self._keep_alive = self._parser.should_keep_alive()
        if version not in ("1.0", "1.1"):  # llhttp takes HTTP/0.9, which has no version
            self.refuse(400, "the request's first line does not end in HTTP/1.1")
        elif method == "CONNECT":
            self.refuse(501, "this is not a proxy: CONNECT is not supported")
        else:
            self._judge(head)

    def _judge(self, head: Head) -> None:
        """Refuse a head that has two meanings or none, or a body that is too large; else let the body come."""
        codings = [value.strip().lower() for name, value in head.headers if name == b"transfer-encoding"]
        hosts = [value for name, value in head.headers if name == b"host"]
        length = head.header(b"content-length")
        self._expects = (head.header(b"expect") or b"").lower() == b"100-continue" and not self._version_1_0
        if codings and self._version_1_0:
            self.refuse(400, "HTTP/1.0 has no Transfer-Encoding")
        elif codings not in ([], [b"chunked"]):
            self.refuse(501, "the only Transfer-Encoding supported is chunked")
        elif length is not None and int(length) > self._limits.body_bytes:
            self._refuse_body()
        elif len(hosts) > 1 or not (hosts or self._version_1_0) or not all(map(_HOST.fullmatch, hosts)):
            self.refuse(
                400, "an HTTP/1.1 request has one Host header, which is a name or an address, and perhaps a port"
            )
        elif self._streams is not None and self._streams(head):
            self._may_stream = True
        elif self._expects:
            self._taker.awaited()

    def on_body(self, data: bytes) -> None:
        """A part of the body."""
        self._heard = True
        self._body_size += len(data)
        if self._body_size > self._limits.body_bytes:
            self._refuse_body()
        elif self._stream is not None:
            self._stream.add(data)
        elif not self._refused:
            self._body.append(data)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._heard = True
        head = self._head
        if head is None or self._refused or self._parser.should_upgrade():  # `_ignore_upgrade` follows
            return
        self.in_message = False
        self._head = None
        if self._stream is not None:
            stream, self._stream = self._stream, None
            stream.end()
            self._taker.closed()
            return
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body = []
        self._last = (head, len(body))
        self._taker.whole(head, body, keep_alive=self._keep_alive, version_1_0=self._version_1_0)

    def _count_head(self, size: int) -> None:
        self._heard = True
        self._head_size += size
        if self._head_size > self._limits.header_bytes:
            self._refuse_head()

    def _refuse_head(self) -> None:
        self.refuse(431, f"the request's head is larger than the allowed {self._limits.header_bytes} bytes")

    def _refuse_body(self) -> None:
        self.refuse(413, f"the body is larger than the allowed {self._limits.body_bytes} bytes")
