"""A request's body that is served while it is still coming: pieces, back-pressure, and how it can break off."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from infless_watchdog.calls import Head
from infless_watchdog.exchange import Exchange, Line


class BodyLostError(Exception):
    """The rest of the body will never come, and the client has been told why or has left. The message says which."""


class BodyStream:
    """An async iterator of a body's pieces. Whoever reads slowly holds back the client, not this process's memory.

    Raises from its iteration:
        BodyLostError: the client left, sent nothing for too long, or more than is allowed.
        RuntimeError: two readers at once.

    Args:
        size_bytes: as the client declared it; None for chunks, whose end shows when it comes.
    """

    __slots__ = ("_failure", "_pieces", "_unread_bytes", "_unwanted", "_waiter",
                 "ended", "on_flow", "on_wanted", "received_bytes", "size_bytes")  # fmt: skip

    HIGH_WATER_BYTES = 256 * 1024
    """Unread bytes above which the client is no longer read from: four reads of a socket."""

    def __init__(self, size_bytes: int | None) -> None:
        self.size_bytes = size_bytes
        self.received_bytes = 0
        self.ended = False
        """Its last byte has come."""
        self.on_flow: Callable[[], None] = _nothing
        """Called when it has become full, and when there is room again."""
        self.on_wanted: Callable[[], None] | None = None
        """Called once when somebody waits for the first byte: a client may want to hear that it may send."""
        self._pieces: list[bytes] = []
        self._unread_bytes = 0
        self._unwanted = False
        self._failure = ""
        self._waiter: asyncio.Future[None] | None = None

    @property
    def full(self) -> bool:
        """Whether enough waits to be read."""
        return self._unread_bytes > self.HIGH_WATER_BYTES

    @property
    def left_bytes(self) -> int | None:
        """How much is still to come; None when nobody knows."""
        if self.ended:
            return 0
        return None if self.size_bytes is None else self.size_bytes - self.received_bytes

    def __aiter__(self) -> BodyStream:
        """Itself: a body comes once."""
        return self

    async def __anext__(self) -> bytes:
        """All that has come since the last time; waits for some."""
        while not self._failure and not self._pieces:
            if self.ended or self._unwanted:
                raise StopAsyncIteration
            await self._more()
        if self._failure:
            raise BodyLostError(self._failure)
        piece = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._forget_pieces()
        return piece

    async def _more(self) -> None:
        if self._waiter is not None:
            raise RuntimeError("a body has one reader")
        wanted = self.on_wanted
        if wanted is not None:
            self.on_wanted = None
            wanted()
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    # the connection's side -------------------------------------------------------------------------------------------

    def add(self, piece: bytes) -> None:
        """The next piece has come."""
        self.received_bytes += len(piece)
        self.on_wanted = None
        if self._unwanted:
            return
        was_full = self.full
        self._pieces.append(piece)
        self._unread_bytes += len(piece)
        if self.full and not was_full:
            self.on_flow()
        self._wake()

    def end(self) -> None:
        """The body is whole."""
        self.ended = True
        self._wake()

    def fail(self, sentence: str) -> None:
        """The rest will never come."""
        if not self.ended and not self._failure:
            self._failure = sentence
            self._wake()

    def discard(self) -> None:
        """Nobody reads it any more: what comes is dropped."""
        self._unwanted = True
        self._forget_pieces()
        self._wake()

    def _forget_pieces(self) -> None:
        was_full = self.full
        self._pieces = []
        self._unread_bytes = 0
        if was_full:
            self.on_flow()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class StreamedExchange(Exchange):
    """An exchange that is served before its body is whole; `body` is empty, `body_stream` has it."""

    __slots__ = ("body_stream",)

    LEFT_MAX_BYTES = 256 * 1024
    """Of a body that nobody wants any more, so much is read to keep the connection (as Go's net/http does)."""

    def __init__(self, connection: Line, head: Head, stream: BodyStream) -> None:
        super().__init__(connection, head)
        self.plain = False
        self.body_stream: BodyStream = stream

    def _say_how_it_ends(self, parts: list[bytes]) -> None:
        self.keep_alive = self.keep_alive and self._rest_is_bearable()
        super()._say_how_it_ends(parts)

    def _finish(self, data: bytes) -> None:
        self.keep_alive = self.keep_alive and self._rest_is_bearable()
        self.body_stream.discard()
        super()._finish(data)

    def _rest_is_bearable(self) -> bool:
        """Whether the next request can follow soon. A client that still waits to be let send may never send it."""
        left_bytes = self.body_stream.left_bytes
        return left_bytes == 0 or (
            left_bytes is not None and left_bytes <= self.LEFT_MAX_BYTES and self.body_stream.on_wanted is None
        )


def _nothing() -> None:
    """Nobody listens."""
