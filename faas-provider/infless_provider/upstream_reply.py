"""The answer of an upstream, as it arrives, and the ways in which there can be none.

::

    UpstreamError
    ├── NotSent     no byte of the request was written: always safe to send again
    ├── Broken      written, then the connection closed early or spoke garbage: the work may have been done
    ├── TimedOut    written, then no complete answer in time: the work may still be going on
    └── HalfSent    written in part, then the request's own body broke off: the peer is not to blame
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from infless_core.errors import BackendError

Header = tuple[bytes, bytes]

_HIGH_WATER_BYTES = 256 * 1024
"""Unread bytes of one answer after which its connection is no longer read from; four pieces of a 64 KiB socket read."""


class Line(Protocol):
    """The connection that an answer arrives on."""

    def resume(self) -> None:
        """Read on, if reading was paused."""
        ...

    def cut(self) -> None:
        """Drop the connection at once."""
        ...


class UpstreamError(BackendError):
    """The request has no answer. The leaf says whether it may be sent again."""


class NotSent(UpstreamError):  # noqa: N818 - a sentence names the fault, not the class
    """No byte was written: the address refused, could not be reached in time, or the client is closed."""


class Broken(UpstreamError):  # noqa: N818
    """The connection closed before the answer was complete, or what came is not HTTP/1.1.

    Its sentence is about "it" and names no address: clients of functions are told it.
    """


class TimedOut(UpstreamError):  # noqa: N818
    """The answer was not complete in time, or nothing moved for too long; its connection is cut."""


class HalfSent(UpstreamError):  # noqa: N818
    """The source of the request's body failed, or gave another number of bytes than was said; `__cause__` has it."""


class Reply:
    """One answer: its head is there when `request` returns, its body may still be arriving.

    Either look at `body` when `complete`, or call `read()`, or iterate `chunks()` to the end, or `close()`.
    """

    __slots__ = ("_failure", "_line", "_pieces", "_size", "_told", "_waiter", "_whole",
                 "began", "complete", "head_only", "headers", "status")  # fmt: skip

    def __init__(self, line: Line, *, head_only: bool, told: Callable[[Reply], None] | None = None) -> None:
        self.status = 0
        """0 until the head is complete."""
        self.headers: list[Header] = []
        """Names in lower case, in the order they came."""
        self.complete = False
        """The last byte of the body is here."""
        self.began = False
        """Any byte of the answer has come."""
        self.head_only = head_only
        """No body follows the head, whatever the head says (HEAD)."""
        self._line = line
        self._failure: UpstreamError | None = None
        self._pieces: list[bytes] = []
        self._size = 0
        self._whole = False  # `read` takes everything: no back-pressure
        self._waiter: asyncio.Future[None] | None = None
        self._told = told

    @property
    def body(self) -> bytes:
        """The whole body of a `complete` reply that nobody iterates; before that, what has come so far."""
        if len(self._pieces) > 1:
            self._pieces = [b"".join(self._pieces)]
        return self._pieces[0] if self._pieces else b""

    async def read(self) -> bytes:
        """The whole body.

        Raises:
            Broken: the connection closed early.
            TimedOut: the request's `timeout_s` passed.
        """
        self._whole = True
        while not self.complete:
            await self._progress()
        return self.body

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives. A slow consumer holds back the sender, not this process's memory.

        Leaving the iteration early gives the answer up, as `close` does.

        Raises:
            Broken: the connection closed early.
            TimedOut: the request's `timeout_s` passed.
        """
        try:
            while not (self.complete and not self._pieces):
                if self._pieces:
                    piece = self.body
                    self._pieces = []
                    self._size = 0
                    yield piece
                else:
                    await self._progress()
        finally:
            self.close()

    def close(self) -> None:
        """The answer is no longer wanted: cut its connection, unless it is complete. Nobody is told of it any more."""
        self._told = None
        if not self.complete and self._failure is None:
            self.fail(Broken("the answer was given up by its reader"))
            self._line.cut()

    # the connection's side -------------------------------------------------------------------------------------------

    async def _progress(self) -> None:
        """Wait for more of the answer, its end, or its failure."""
        if self._failure is not None:
            raise self._failure
        self._line.resume()
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        except asyncio.CancelledError:
            self.close()
            raise
        finally:
            self._waiter = None
        # Pieces that came before the failure were handed out already; what is left is an unusable rest.
        if self._failure is not None:
            raise self._failure

    @property
    def failed(self) -> bool:
        """There will be no (more) answer."""
        return self._failure is not None

    async def head(self) -> None:
        """Wait until `status` and `headers` are there."""
        while not self.status:
            await self._progress()

    def add(self, piece: bytes) -> bool:
        """Keep a piece of the body; false when the connection should pause."""
        self._pieces.append(piece)
        self._size += len(piece)
        return self._whole or self._size <= _HIGH_WATER_BYTES

    def fail(self, failure: UpstreamError) -> None:
        """There will be no (more) answer."""
        if not self.complete and self._failure is None:
            self._failure = failure
            self.wake()

    def wake(self) -> None:
        """Something has changed."""
        told = self._told
        if told is not None and (self.status or self._failure is not None):
            self._told = None
            told(self)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def ends_with_connection(self) -> bool:
        """Whether the body has no length of its own and lasts until the peer closes (RFC 9112, section 6.3)."""
        fields = dict(self.headers)
        chunked = b"chunked" in fields.get(b"transfer-encoding", b"").lower()
        return self.status > 0 and b"content-length" not in fields and not chunked
