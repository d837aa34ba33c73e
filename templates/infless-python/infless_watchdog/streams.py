"""Answers in pieces: from what a generator yields to what is sent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from infless_watchdog.calls import Call
from infless_watchdog.loop_thread import LoopThread
from infless_watchdog.plain import encode_plain

_END = object()
_EVENTS = b"text/event-stream"
_TEXT = b"text/plain; charset=utf-8"


def is_stream(answer: Any) -> bool:
    """Whether an answer is a generator of any kind, or another iterator."""
    return hasattr(answer, "__next__") or hasattr(answer, "__anext__")


class Stream:
    """The pieces of one answer. The first is taken at once: what fails before it, fails before the status is sent.

    Args:
        source: iterator or async iterator of the user's.
        loop: where an async one runs.
    """

    def __init__(self, source: Any, loop: LoopThread) -> None:
        self._pieces: Iterator[Any] = loop.iterate(source) if hasattr(source, "__anext__") else source
        self._first = next(self._pieces, _END)
        self._events = False

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> bytes:
        """Bytes as they are, str as UTF-8, anything else as a line of JSON (or an event with it)."""
        piece, self._first = (next(self._pieces), _END) if self._first is _END else (self._first, _END)
        body = encode_plain(piece).body
        if isinstance(piece, (bytes, bytearray, memoryview, str)):
            return body
        return b"data: %b\n\n" % body if self._events else body + b"\n"

    def content_type(self, call: Call, said: bytes | None = None) -> bytes:
        """What the handler said, else events for clients that ask for them, else text."""
        accept = call.head.header(b"accept") or b""
        kind = said or (_EVENTS if _EVENTS in accept else _TEXT)
        self._events = kind.startswith(_EVENTS)
        return kind

    def close(self) -> None:
        """Not all pieces are wanted: the user's generator ends where it stands."""
        close = getattr(self._pieces, "close", None)
        if close is not None:
            close()
