"""Open-loop load: each request goes out when it is due, whether or not earlier ones have been answered.

The figures of what came back are made in `shots`; arrival times come from `infless_scheduler.arrivals`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from infless_core.errors import InvalidInput
from infless_provider.shots import Shot, Summary, summarise
from infless_provider.upstream import Header, NotSent, TimedOut, Upstream, UpstreamError

__all__ = ["Shot", "Stream", "Summary", "Tick", "replay", "summarise"]

_LEAD_S = 0.05
"""From the call to time zero: the tasks are made and the first timers set."""

Check = Callable[[int, int, bytes], bool]
"""`(index of the body, status, answer) -> right?`; asked for 2xx answers only. Raising says no."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """The requests of one function: the n-th of them carries `bodies[n % len(bodies)]`."""

    function: str
    url: str
    """`http://host:port/path`."""
    arrivals_s: Sequence[float]
    """When each request is due, in seconds from the start, in order."""
    bodies: Sequence[bytes] = (b"",)
    headers: tuple[Header, ...] = ()
    """Names in lower case."""
    check: Check | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """What happened in the last second."""

    at_s: float
    """Seconds from the start."""
    sent: int
    """Requests that became due."""
    finished: tuple[Shot, ...]
    waiting: int
    """Requests due and not answered."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where an `http://` URL points."""

    host: str
    port: int
    target: str


def parse_url(url: str) -> Address:
    """The parts of an `http://` URL.

    Raises:
        InvalidInput: for anything else; TLS ends at a gateway, and so does this client.
    """
    parts = urlsplit(url)
    try:
        port = parts.port or 80
    except ValueError:
        port = 0
    if parts.scheme != "http" or not parts.hostname or not port or not url.isascii() or set(url) & set(" \r\n\t"):
        raise InvalidInput(f"URL {url!r}: write http://HOST[:PORT]/PATH, as in http://127.0.0.1:8080/function/NAME")
    target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
    return Address(parts.hostname, port, target)


async def replay(
    streams: Sequence[Stream],
    *,
    timeout_s: float = 10.0,
    max_connections: int = 512,
    progress: Callable[[Tick], None] | None = None,
) -> list[Shot]:
    """Send every request of every stream when it is due; returns what became of each, in order of due times.

    Args:
        streams: at least one; those to one address share its connections.
        timeout_s: from when a request was due; then it has failed.
        max_connections: to one address. A request that finds none free waits, and its latency counts on.
        progress: called once a second, and at the end.

    Raises:
        InvalidInput: a stream's URL is none.
    """
    run = _Run(streams, timeout_s, max_connections, asyncio.get_running_loop())
    ticking = asyncio.ensure_future(run.tick(progress)) if progress is not None else None
    try:
        await run.fire()
    finally:
        if ticking is not None:
            ticking.cancel()
        await run.close()
    if progress is not None:
        progress(run.take_tick())
    return sorted(run.shots, key=lambda shot: (shot.at_s, shot.function))


class _Gate:
    """One address: its connections, and how many requests may use them at once."""

    def __init__(self, address: Address, max_connections: int) -> None:
        self.upstream = Upstream(address.host, address.port)
        self.free = asyncio.Semaphore(max_connections)


class _Run:
    """One replay in progress."""

    def __init__(
        self, streams: Sequence[Stream], timeout_s: float, max_connections: int, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._streams = streams
        self._addresses = [parse_url(stream.url) for stream in streams]
        self._gates = {(a.host, a.port): _Gate(a, max_connections) for a in self._addresses}
        self._timeout_s = timeout_s
        self._loop = loop
        self._start_s = loop.time() + _LEAD_S
        self._tasks: set[asyncio.Task[None]] = set()
        self.shots: list[Shot] = []
        self._sent = 0
        self._told = (0, 0)

    async def fire(self) -> None:
        """Start each request at its time, then wait for the last answer."""
        for at_s, place, number in _due(self._streams):
            # A timer may fire a little early (loops count milliseconds): never send before the time.
            while (wait_s := self._start_s + at_s - self._loop.time()) > 0:
                await asyncio.sleep(wait_s)
            task = self._loop.create_task(self._shoot(place, number, at_s))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            self._sent += 1
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _shoot(self, place: int, number: int, at_s: float) -> None:
        stream, address = self._streams[place], self._addresses[place]
        gate = self._gates[address.host, address.port]
        due_s = self._start_s + at_s
        index = number % len(stream.bodies)
        status, ok, fault, late_s = 0, False, "", self._timeout_s
        try:
            async with asyncio.timeout_at(due_s + self._timeout_s), gate.free:
                late_s = self._loop.time() - due_s
                reply = await gate.upstream.request(
                    "POST",
                    address.target,
                    stream.headers,
                    stream.bodies[index],
                    timeout_s=self._timeout_s,
                )
                body = reply.body if reply.complete else await reply.read()
            status = reply.status
            ok = 200 <= status < 300 and _is_right(stream, index, status, body)
        except (TimeoutError, TimedOut):
            fault = "timeout"
        except NotSent:
            fault = "not sent"
        except UpstreamError:
            fault = "broken"
        self.shots.append(
            Shot(
                at_s=at_s,
                function=stream.function,
                status=status,
                latency_s=self._loop.time() - due_s,
                ok=ok,
                fault=fault,
                late_s=late_s,
            )
        )

    async def tick(self, progress: Callable[[Tick], None]) -> None:
        """Tell once a second what has happened since."""
        second = 1
        while True:
            await asyncio.sleep(max(0.0, self._start_s + second - self._loop.time()))
            progress(self.take_tick())
            second += 1

    def take_tick(self) -> Tick:
        """What has happened since the last call."""
        sent, finished = self._told
        self._told = (self._sent, len(self.shots))
        return Tick(
            at_s=self._loop.time() - self._start_s,
            sent=self._sent - sent,
            finished=tuple(self.shots[finished:]),
            waiting=self._sent - len(self.shots),
        )

    async def close(self) -> None:
        """End what is still on its way, also when the replay is cancelled."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for gate in self._gates.values():
            await gate.upstream.close()


def _is_right(stream: Stream, index: int, status: int, body: bytes) -> bool:
    try:
        return stream.check is None or stream.check(index, status, body)
    except Exception:  # noqa: BLE001 - an answer that the check cannot even read is wrong
        return False


def _due(streams: Sequence[Stream]) -> Iterable[tuple[float, int, int]]:
    """`(due time, place of the stream, number within it)`, in one order for all streams."""
    return sorted(
        (at_s, place, number) for place, stream in enumerate(streams) for number, at_s in enumerate(stream.arrivals_s)
    )
