"""Many followers of few files: each followed function is read once, and every new line is encoded once.

A single look, four times a second and in a thread, reads what all followed functions have written. What it finds goes
to the followers in pieces; each follower has its own filters and its own bounded buffer, so that one that reads slowly
loses lines, is told so, and holds up nobody.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from infless_core.clock import Clock
from infless_provider.log_files import Follow, Past, Position, instances_of, past_lines
from infless_provider.log_follower import Follower, Piece, pieces_of
from infless_provider.logs import LogQuery

if TYPE_CHECKING:
    from infless_watchdog.http import Exchange

LOG = logging.getLogger("infless.logs")
POLL_S = 0.25
STREAMS_MAX = 512
"""In all. Each may hold a connection for ever, and a buffer."""
STREAMS_PER_FUNCTION_MAX = 256
"""One function's readers must leave room for those of others."""
CLOSE_S = 1.0
"""How long streams may take to end in order when the provider stops."""
_HEADERS = [(b"content-type", b"application/x-ndjson")]


class LogHub:
    """Answers log requests."""

    def __init__(
        self,
        logs_dir: Path,
        clock: Clock,
        *,
        streams_max: int = STREAMS_MAX,
        streams_per_function_max: int = STREAMS_PER_FUNCTION_MAX,
        poll_s: float = POLL_S,
    ) -> None:
        """Nothing is read until somebody asks.

        Args:
            logs_dir: holds a folder for each function, named by its key.
            clock: stamps what the hub itself has to say.
            streams_max: requests served at a time.
            streams_per_function_max: those for one function.
            poll_s: between two looks at the files.
        """
        self._logs_dir = logs_dir
        self._clock = clock
        self._streams_max = streams_max
        self._streams_per_function_max = streams_per_function_max
        self._poll_s = poll_s
        self._channels: dict[str, _Channel] = {}
        self._ended: list[_Channel] = []
        """Of removed functions: read once more, then done."""
        self._streams: dict[asyncio.Task[None], tuple[Exchange, LogQuery]] = {}
        self._wake = asyncio.Event()
        self._is_closed = False
        self._looking: asyncio.Task[None] | None = None
        # The files' past is read in other threads than what is new: a long search must not make streams late.
        self._past_threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="log-past")
        self._look_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="log-look")

    def serve(self, exchange: Exchange, query: LogQuery) -> None:
        """Answer a request: past lines, and with `follow` those to come, until the client leaves.

        Too many streams are answered with 429. The caller has looked whether the function exists.
        """
        of_function = sum(other.key == query.key for _, other in self._streams.values())
        if self._is_closed:
            exchange.text(503, "the provider stops")
        elif len(self._streams) >= self._streams_max:
            exchange.text(429, f"{self._streams_max} clients read logs already; try again when one of them has left")
        elif of_function >= self._streams_per_function_max:
            limit = self._streams_per_function_max
            exchange.text(429, f"{limit} clients read the logs of {query.name!r} already; try again later")
        else:
            task = asyncio.ensure_future(self._stream(exchange, query))
            self._streams[task] = (exchange, query)
            task.add_done_callback(self._streams.pop)
            exchange.on_gone = task.cancel

    def end(self, key: str) -> None:
        """End the streams of a removed function, after what it has said last."""
        if channel := self._channels.pop(key, None):
            self._ended.append(channel)
            self._wake.set()

    async def close(self) -> None:
        """End every stream in order; those that take too long are cut short."""
        self._is_closed = True
        for key in list(self._channels):
            self.end(key)
        if self._streams:
            await asyncio.wait(list(self._streams), timeout=CLOSE_S)
        for task, (exchange, query) in list(self._streams.items()):
            task.cancel()
            if query.follow and exchange.status:
                exchange.end()
            else:
                exchange.abort()  # half of the past must not look like all of it
        if self._looking is not None:
            await self._looking  # without channels it comes to its end
        self._past_threads.shutdown(wait=False, cancel_futures=True)
        self._look_thread.shutdown()

    # one stream ------------------------------------------------------------------------------------------------------

    async def _stream(self, exchange: Exchange, query: LogQuery) -> None:
        try:
            exchange.begin(200, _HEADERS)
            if query.follow:
                await self._follow(exchange, query)
            else:
                await self._send_past(exchange, query, None)
            exchange.end()
        except Exception:
            LOG.exception("the stream of the logs of %s failed", query.key)
            exchange.abort()  # a client must not take half the lines for all of them

    async def _follow(self, exchange: Exchange, query: LogQuery) -> None:
        channel = self._channel(query.key)
        channel.readers += 1
        follower = Follower(query)
        try:
            await channel.opened.wait()
            # At one moment: what is before these positions is past, and what is after them is yet to be handed out.
            positions = channel.positions
            channel.followers.add(follower)
            if channel.is_ended:
                follower.finish(channel.failure)
            await self._send_past(exchange, query, positions)
            await follower.send(exchange, self._clock)
        finally:
            channel.readers -= 1
            channel.followers.discard(follower)

    async def _send_past(self, exchange: Exchange, query: LogQuery, until: dict[str, Position] | None) -> None:
        chunks, loop = past_chunks(self._logs_dir / query.key, query, until), asyncio.get_running_loop()
        step = loop.run_in_executor(self._past_threads, next, chunks, b"")
        try:
            while data := await asyncio.shield(step):
                exchange.write(data)
                await exchange.writable()
                step = loop.run_in_executor(self._past_threads, next, chunks, b"")
        finally:
            # When the client leaves, a thread may be reading still: the files are closed after that.
            step.add_done_callback(lambda _: chunks.close())

    # all files -------------------------------------------------------------------------------------------------------

    def _channel(self, key: str) -> _Channel:
        """The one of a function; a new one is looked at at once."""
        if key not in self._channels:
            self._channels[key] = _Channel(key, self._logs_dir / key)
            self._wake.set()
            if self._looking is None:
                self._looking = asyncio.ensure_future(self._look_on())
        return self._channels[key]

    async def _look_on(self) -> None:
        """Look at the files again and again, while there are followers."""
        loop = asyncio.get_running_loop()
        while self._channels or self._ended:
            self._wake.clear()
            ended, self._ended = self._ended, []
            channels = [*self._channels.values(), *ended]
            await loop.run_in_executor(self._look_thread, _look, channels)
            for channel in channels:
                await channel.hand_out()
            for channel in ended:
                channel.finish()
            for key, channel in list(self._channels.items()):
                if channel.failure or not channel.readers:
                    channel.finish()
                    del self._channels[key]
            with suppress(TimeoutError):
                async with asyncio.timeout(self._poll_s):
                    await self._wake.wait()
        self._looking = None


class _Channel:
    """One function's new lines and those who follow them. Files are touched in the looking thread only."""

    def __init__(self, key: str, folder: Path) -> None:
        self.key = key
        self.follow = Follow(folder)
        self.readers = 0
        """Streams that hold this channel, those too that still wait for the first look."""
        self.followers: set[Follower] = set()
        self.opened = asyncio.Event()
        self.positions: dict[str, Position] = {}
        """Up to where lines were handed out."""
        self.is_ended = False
        self.found: tuple[Piece, ...] = ()
        self.found_until: dict[str, Position] = {}
        self.failure: Exception | None = None

    async def hand_out(self) -> None:
        """Give the followers what the last look has found; those who come meanwhile find it in the past."""
        self.positions = self.found_until
        self.opened.set()
        followers, found, self.found = list(self.followers), self.found, ()
        for piece in found:
            for follower in followers:
                follower.take(piece)
            await asyncio.sleep(0)  # they write, before more comes

    def finish(self) -> None:
        """Nothing more will come."""
        self.is_ended = True
        self.follow.close()
        for follower in self.followers:
            follower.finish(self.failure)


def _look(channels: Sequence[_Channel]) -> None:
    """Read what is new. Runs in the looking thread, while the loop leaves `found` alone."""
    for channel in channels:
        try:
            channel.found = tuple(pieces_of(channel.follow.look(), channel.key))
            channel.found_until = channel.follow.positions()
        except Exception as fault:  # noqa: BLE001 - one function's disk must not end the streams of others
            channel.failure = fault


def past_chunks(folder: Path, query: LogQuery, until: dict[str, Position] | None) -> Generator[bytes]:
    """A query's past lines as records, some at a time. Blocks.

    Args:
        folder: the function's.
        query: what is wanted.
        until: where the past ends in each instance's file; None is all there is now.
    """
    wanted = [query.instance] if query.instance else instances_of(folder) if until is None else list(until)
    with ExitStack() as open_files:
        pasts = [
            open_files.enter_context(
                closing(Past.open(folder, instance, until[instance] if until is not None else None))
            )
            for instance in wanted
            if until is None or instance in until
        ]
        for piece in pieces_of(past_lines(pasts, query.since_s, query.tail), query.key):
            yield piece.data
