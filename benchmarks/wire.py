"""Just enough HTTP/1.1 for a load generator: requests as bytes, and where an answer ends. Pure."""

from __future__ import annotations

from dataclasses import dataclass

_HEAD_END = b"\r\n\r\n"


class NotHttpError(ValueError):
    """What came is no HTTP answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, whole."""

    status: int
    body: bytes
    headers: bytes
    """In lower case, between CRLFs."""


def request(host: str, path: str, body: bytes, headers: tuple[tuple[str, str], ...] = ()) -> bytes:
    """A POST, ready to be sent."""
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def closes(data: bytes) -> bool:
    """Whether the connection ends with this answer."""
    head = data[: data.find(_HEAD_END) + 2].lower()
    return b"\r\nconnection: close\r\n" in head or data.startswith(b"HTTP/1.0")


def end_of_answer(data: bytes) -> int | None:
    """Length of the answer that `data` begins with; None when there is more to come.

    An answer with neither length nor chunks ends with its connection: None for as long as that lasts.

    Raises:
        NotHttpError: this can never become an answer.
    """
    if not data.startswith(b"HTTP/1."[: len(data)]):
        raise NotHttpError(f"the answer begins with {data[:20]!r}")
    head_end = data.find(_HEAD_END)
    if head_end < 0:
        return None
    head, start = data[: head_end + 2].lower(), head_end + len(_HEAD_END)
    if _status(head) in {204, 304}:
        return start
    length = _header(head, b"content-length")
    if length is not None:
        if not length.isdigit():
            raise NotHttpError(f"content-length {length!r}")
        return start + int(length) if len(data) >= start + int(length) else None
    return _end_of_chunks(data, start) if _header(head, b"transfer-encoding") == b"chunked" else None


def read_answer(data: bytes) -> Answer:
    """The parts of a whole answer.

    Raises:
        NotHttpError: it is none, or not just one.
    """
    head_end = data.find(_HEAD_END)
    if head_end < 0:
        raise NotHttpError("no end of the head")
    head, start = data[: head_end + 2].lower(), head_end + len(_HEAD_END)
    body = data[start:]
    if _header(head, b"transfer-encoding") == b"chunked":
        body = _joined(data, start)
    elif (length := _header(head, b"content-length")) is not None and length != b"%d" % len(body):
        raise NotHttpError(f"content-length {length!r}, body of {len(body)}")
    return Answer(_status(head), body, head)


def _status(head: bytes) -> int:
    text = head[9:12]
    if not text.isdigit():
        raise NotHttpError(f"the answer begins with {head[:20]!r}")
    return int(text)


def _header(head: bytes, name: bytes) -> bytes | None:
    at = head.find(b"\r\n" + name + b":")
    return None if at < 0 else head[at + len(name) + 3 : head.index(b"\r\n", at + 2)].strip()


def _chunk(data: bytes, at: int) -> tuple[int, int] | None:
    """`(start, end)` of the chunk at a place; None when its size is not there yet."""
    line_end = data.find(b"\r\n", at)
    if line_end < 0:
        return None
    try:
        size = int(data[at:line_end].partition(b";")[0], 16)
    except ValueError:
        raise NotHttpError(f"chunk size {data[at:line_end]!r}") from None
    return line_end + 2, line_end + 2 + size


def _end_of_chunks(data: bytes, at: int) -> int | None:
    while (chunk := _chunk(data, at)) is not None:
        start, end = chunk
        if len(data) < end + 2:
            return None
        if start == end:  # trailers: none of the servers sends any
            return end + 2
        at = end + 2
    return None


def _joined(data: bytes, at: int) -> bytes:
    pieces = []
    while (chunk := _chunk(data, at)) is not None and chunk[0] < chunk[1]:
        pieces.append(data[chunk[0] : chunk[1]])
        at = chunk[1] + 2
    return b"".join(pieces)
