"""One reader of new log lines: its filters, and a bounded buffer between the files and its connection."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infless_core.clock import Clock
from infless_core.errors import StateError
from infless_provider.log_files import BLOCK_BYTES, Line
from infless_provider.logs import LogQuery
from infless_provider.wire import rfc3339

if TYPE_CHECKING:
    from infless_watchdog.http import Exchange

BUFFER_BYTES = 512 * 1024
"""What waits for one follower beyond its connection's buffers; followers of one function share these bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Some lines in order of time, encoded once for all who read them."""

    lines: tuple[tuple[Line, bytes], ...]
    data: bytes
    first_s: float
    """The time of the oldest line; seconds since the epoch."""

    def wanted(self, query: LogQuery) -> tuple[bytes, int]:
        """The bytes that a query asks for, and how many lines they are."""
        if not query.instance and query.since_s <= self.first_s:
            return self.data, len(self.lines)
        found = [data for line, data in self.lines if _is_wanted(line, query)]
        return b"".join(found), len(found)


def pieces_of(lines: Iterable[Line], key: str) -> Iterator[Piece]:
    """Lines as pieces of about `BLOCK_BYTES`.

    Args:
        lines: in order of time.
        key: the function's, `name.namespace`.
    """
    held: list[tuple[Line, bytes]] = []
    size = 0
    for line in lines:
        record = line.record(key)
        held.append((line, record))
        size += len(record)
        if size >= BLOCK_BYTES:
            yield _piece(held)
            held, size = [], 0
    if held:
        yield _piece(held)


class Follower:
    """What waits to be written to one client."""

    def __init__(self, query: LogQuery, buffer_bytes: int = BUFFER_BYTES) -> None:
        self._query = query
        self._buffer_bytes = buffer_bytes
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._dropped = 0
        """Lines that did not fit; they belong after what waits, where the client is told of them."""
        self._news = asyncio.Event()
        self._is_finished = False
        self._failure: Exception | None = None

    def take(self, piece: Piece) -> None:
        """Keep what is wanted of a piece; what does not fit is counted."""
        data, count = piece.wanted(self._query)
        if not count:
            return
        fits = self._waiting_bytes + len(data) <= self._buffer_bytes or not self._waiting
        if fits and not self._dropped:
            self._waiting.append(data)
            self._waiting_bytes += len(data)
        else:
            self._dropped += count
        self._news.set()

    def finish(self, failure: Exception | None = None) -> None:
        """Nothing more will come, because of a failure or because there is nothing more."""
        self._is_finished = True
        self._failure = failure
        self._news.set()

    async def send(self, exchange: Exchange, clock: Clock) -> None:
        """Write what comes as fast as the client takes it, until `finish`.

        Args:
            exchange: begun already; the caller ends it.
            clock: gives the time of the line that tells of dropped ones.

        Raises:
            StateError: nothing more will come because of a failure.
        """
        while True:
            self._news.clear()
            while self._waiting:
                data = self._waiting.popleft()
                self._waiting_bytes -= len(data)
                await _write(exchange, data)
            if self._dropped:
                count, self._dropped = self._dropped, 0
                await _write(exchange, self._told(count, clock.wall_s()))
            elif self._failure is not None:
                raise StateError(f"the logs of {self._query.key} can no longer be read") from self._failure
            elif self._is_finished:
                return
            else:
                await self._news.wait()

    def _told(self, count: int, now_s: float) -> bytes:
        text = f"[infless] {count} line(s) were dropped here: this client reads slower than the function logs"
        line = Line(at_s=now_s, timestamp=rfc3339(now_s), instance=self._query.instance, text=text)
        return line.record(self._query.key)


async def _write(exchange: Exchange, data: bytes) -> None:
    exchange.write(data)
    await exchange.writable()


def _piece(lines: list[tuple[Line, bytes]]) -> Piece:
    return Piece(
        lines=tuple(lines), data=b"".join(data for _, data in lines), first_s=min(line.at_s for line, _ in lines)
    )


def _is_wanted(line: Line, query: LogQuery) -> bool:
    return line.at_s >= query.since_s and (not query.instance or line.instance == query.instance)
