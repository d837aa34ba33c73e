"""HTTP as nobody's library would send it: bytes to a port, and what comes back."""

from __future__ import annotations

import base64
import socket
import ssl
from dataclasses import dataclass

WAIT_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer."""

    status: int
    headers: dict[str, str]
    """Names in lower case; of repeated ones the last."""
    body: bytes
    """As its length says, else until the last chunk (with what frames them) or the end of the connection."""

    @property
    def text(self) -> str:
        """The body without the line's end behind it."""
        return self.body.decode().strip()


def exchange(port: int, data: bytes, tls: ssl.SSLContext | None = None) -> Answer:
    """Send bytes to a port of this machine and read one answer.

    Args:
        port: whom to ask.
        data: sent as it is; the connection stays open for the answer.
        tls: how to speak TLS; None is plain.

    Raises:
        ConnectionError: it ended before the head of an answer was whole.
        TimeoutError: nothing came for `WAIT_S`.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as plain:
        if tls is None:
            return _asked(plain, data)
        with tls.wrap_socket(plain, server_hostname="localhost") as secure:
            return _asked(secure, data)


def _asked(sock: socket.socket, data: bytes) -> Answer:
    sock.sendall(data)
    return read_answer(sock)


def read_answer(sock: socket.socket) -> Answer:
    """The next answer on a connection; see `exchange`."""
    got = b""
    while b"\r\n\r\n" not in got:
        piece = sock.recv(65536)
        if not piece:
            raise ConnectionError(f"the connection ended behind {got!r}")
        got += piece
    head, _, body = got.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    length = int(headers.get("content-length", 1 << 62))
    chunked = headers.get("transfer-encoding") == "chunked"
    while not (len(body) >= length or (chunked and body.endswith(b"0\r\n\r\n"))) and (piece := sock.recv(65536)):
        body += piece
    return Answer(status=int(first.split(" ")[1]), headers=headers, body=body)


def request(method: str, target: str, *fields: str, body: bytes = b"") -> bytes:
    """A request with a Host, and with a Content-Length where there is a body and `fields` frame it by nothing else.

    Args:
        method: as it is.
        target: as it is: nothing is normalised.
        fields: header lines.
        body: of the request.
    """
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost", *fields]
    framed = any(field.lower().startswith(("content-length:", "transfer-encoding:")) for field in fields)
    if body and not framed:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def basic(user: str, password: str) -> str:
    """The header field of basic authentication."""
    return "Authorization: Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def ask(port: int, method: str, target: str, *fields: str, body: bytes = b"") -> Answer:
    """One request on a connection of its own; see `request`. That of a HEAD ends with its answer, which has no body."""
    more = ("Connection: close",) if method == "HEAD" else ()
    return exchange(port, request(method, target, *fields, *more, body=body))
