"""The loop that keeps profiles current: read batch histograms, correct the profiles by them, tell what has drifted.

What is read is decided here, what follows from it in `infless_profiler.observe`. Readings are taken in threads, so the
event loop never waits for a server; everything they change is changed on the event loop. Whatever fails, the planner
keeps the profile it has.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol, TypeVar

from infless_core.clock import Clock
from infless_core.errors import BackendError, StateError
from infless_core.model import Configuration, ProfilePoint
from infless_core.units import format_duration
from infless_profiler.observe import Drift, Level, Observed
from infless_profiler.readings import Counted
from infless_profiler.scrape import Target
from infless_provider.controller import Controller
from infless_provider.metrics import Metrics
from infless_provider.profiling import Profiles

LOG = logging.getLogger("infless.feed")
EVERY_S = 5.0
READ_MAX_S = 4.0
"""Whole reading; a server that sends a byte now and then would never be too late for its own timeout."""
MOVED_SHARE = 0.03
"""A smaller change of a point is not worth a new plan."""
KEEP_S = 300.0
"""Levels that hardly change are written this often."""
BLIND_TURNS = 3
"""A Prometheus may find a new instance that much later than it has answered its first request."""
_T = TypeVar("_T")


class Source(Protocol):
    """Where histograms come from; called in a thread, once at a time."""

    name: str
    title: str

    def read(self, targets: Sequence[Target]) -> list[Counted]:
        """Histograms of these instances, and perhaps of others.

        Raises:
            BackendError: one sentence.
        """
        ...


@dataclass(slots=True)
class _Reader:
    """A source that is asked from the event loop."""

    source: Source
    up: bool | None = None
    """Whether it answered last time; None before the first."""
    blind: int = 0
    """Readings in a row that knew nothing of instances that have worked."""
    pending: asyncio.Future[list[Counted]] | None = None

    async def read(self, targets: Sequence[Target]) -> list[Counted]:
        """As the source does, but never for long.

        Raises:
            BackendError: it cannot be read now.
        """
        if self.pending is not None and not self.pending.done():
            raise BackendError(f"{self.source.title} is busy with an earlier question")
        self.pending = in_thread(partial(self.source.read, targets))
        await asyncio.wait({self.pending}, timeout=READ_MAX_S)
        if not self.pending.done():
            raise BackendError(f"{self.source.title} does not answer within {READ_MAX_S:g} s")
        try:
            return self.pending.result()
        except BackendError:
            raise
        except Exception as error:  # a library's own; it must not stop the loop
            LOG.debug("%s", self.source.title, exc_info=True)
            raise BackendError(f"{self.source.title} cannot be read: {error!r}") from error


@dataclass(slots=True)
class _Known:
    """What the database says of a function's present version, and what was written to it."""

    version: tuple[str, int]
    kept: Mapping[Configuration, Level] = field(default_factory=dict)
    kept_at_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _News:
    """What follows from a reading, by function."""

    observed: Observed
    factors: Mapping[str, Mapping[Configuration, float]]
    points: Mapping[str, tuple[ProfilePoint, ...]]
    levels: Mapping[str, Mapping[Configuration, Level]]


class Feed:
    """Keeps the profiles of all functions current. Sources are asked in order; the first that answers is believed."""

    def __init__(
        self,
        controller: Controller,
        targets: Callable[[], Sequence[Target]],
        profiles: Profiles,
        sources: Sequence[Source],
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self._targets = targets
        self.observed = Observed()
        self._controller = controller
        self._profiles = profiles
        self._readers = [_Reader(source) for source in sources]
        self._believed: _Reader | None = None
        self._metrics = metrics
        self._clock = clock
        self._known: dict[str, _Known] = {}
        self._complaints: dict[str, str] = {}

    async def run(self) -> None:
        """Turn for ever."""
        while True:
            try:
                await self.turn()
            except Exception:
                LOG.exception("keeping profiles current failed; they stay as they are")
            await asyncio.sleep(EVERY_S)

    async def turn(self) -> None:
        """One reading, and what follows from it."""
        await self._learn_versions()
        counted = await self._read(self._targets())
        if counted is None:
            return
        # Pure, but some hundred milliseconds of it where many instances run: not for the event loop.
        news = await in_thread(
            partial(_news, self.observed, list(self._known), self._clock.now_s(), self._running(), self._ours(counted))
        )
        self.observed = news.observed
        self._complain("readings", self._faults())
        for drift in self.observed.drifts:
            self._tell(drift)
        for key, points in news.points.items():
            function = self._controller.functions.get(key)
            current = function is not None and function.stored.version.digest == self._known[key].version[0]
            if function is not None and current and moved(function.profile, points):
                self._controller.correct(key, points)
        self._metrics.profiled(news.factors)
        await self._keep(news.levels)

    def _running(self) -> frozenset[str]:
        return frozenset(self._controller.fleet.instances)

    # functions and their versions ------------------------------------------------------------------------------------

    async def _learn_versions(self) -> None:
        """Begin anew with functions that are new or have other code; forget those that are gone."""
        functions = self._controller.functions
        for key in [key for key in self._known if key not in functions]:
            del self._known[key]
            self.observed = self.observed.without(key)
        for key, function in list(functions.items()):
            version = function.stored.version.digest, function.wishes.batch_max
            known = self._known.get(key)
            if known is not None and known.version == version:
                continue
            digest, batch_max = version
            try:
                prior = await in_thread(partial(self._profiles.prior, digest, batch_max))
                levels = await in_thread(partial(self._profiles.observed, digest))
            except StateError as fault:
                self._complain("database", f"{fault}; profiles are not corrected")
                continue
            if known is None or known.version[0] != digest:
                self.observed = self.observed.without(key).seeded(key, levels, self._clock.now_s())
                known = None
            self.observed = self.observed.expecting(key, prior)
            self._known[key] = _Known(version, known.kept if known else levels, known.kept_at_s if known else 0.0)
            if key in functions:  # it may have been removed meanwhile
                self._metrics.drifts(key, 0)

    def _ours(self, counted: Sequence[Counted]) -> list[Counted]:
        """Of instances that we run, in the version that is deployed."""
        found = []
        for one in counted:
            instance = self._controller.fleet.instances.get(one.series.instance)
            function = self._controller.functions.get(one.series.function)
            known = self._known.get(one.series.function)
            if instance is None or function is None or known is None or instance.function != function.key:
                continue
            if instance.version == function.version and function.stored.version.digest == known.version[0]:
                # A function may set its own share of a GPU; the profile knows the one that we gave.
                given = replace(one.series, gpu_percent=instance.configuration.gpu_percent)
                found.append(replace(one, series=given))
        return found

    # sources ---------------------------------------------------------------------------------------------------------

    async def _read(self, targets: Sequence[Target]) -> list[Counted] | None:
        """From the first source that answers; None when none does."""
        for place, reader in enumerate(self._readers):
            try:
                counted = await reader.read(targets)
                await self._check_sight(reader, self._readers[place + 1 :], counted, targets)
            except BackendError as fault:
                self._state(reader, str(fault))
                continue
            self._state(reader, "")
            if self._believed is not reader:
                # Two sources are never read at the same moment: what one says is not to be compared with the other.
                self.observed = self.observed.rebased() if self._believed is not None else self.observed
                self._believed = reader
            return counted
        return None

    async def _check_sight(
        self, reader: _Reader, others: Sequence[_Reader], counted: Sequence[Counted], targets: Sequence[Target]
    ) -> None:
        """A Prometheus that does not scrape our instances answers, and knows nothing.

        Raises:
            BackendError: it knows nothing while the instances themselves know something.
        """
        ours = {target.instance for target in targets}
        reader.blind = 0 if not ours or any(one.series.instance in ours for one in counted) else reader.blind + 1
        if reader.blind < BLIND_TURNS or not others:
            return
        known: list[Counted] = []
        with suppress(BackendError):
            known = await others[0].read(targets)
        if any(one.count > 0 for one in known):
            raise BackendError(
                f"{reader.source.title} has no infless_batch_exec_seconds of the running instances with the labels"
                " function_name and infless_instance; does it have the job infless-instances?"
            )

    def _state(self, reader: _Reader, fault: str) -> None:
        """Tell once when a source begins to fail, and once when it answers again."""
        up = not fault
        if up and reader.up is False:
            LOG.info("%s answers again", reader.source.title)
        elif not up and reader.up is not False:
            last = reader is self._readers[-1]
            LOG.warning("%s; %s", fault, "profiles stay as they are" if last else "the instances are asked themselves")
        reader.up = up
        self._metrics.source_up(reader.source.name, up)

    # what is told and kept -------------------------------------------------------------------------------------------

    def _tell(self, drift: Drift) -> None:
        if drift.function not in self._controller.functions:
            return
        ago_s = self._clock.now_s() - drift.since_s
        self._controller.drifted(
            drift.function,
            drift.configuration,
            f"executions take {drift.factor:.2f} times as long as expected, for {format_duration(max(ago_s, 0.0))}",
        )
        self._metrics.drifts(drift.function, 1)

    def _faults(self) -> str:
        faulty = self.observed.faulty
        return f"{len(faulty)} histogram(s) cannot be used, for example {faulty[0]}" if faulty else ""

    def _complain(self, about: str, sentence: str) -> None:
        """A warning where there was none before, and nothing until it is over."""
        if sentence and not self._complaints.get(about):
            LOG.warning("%s", sentence)
        self._complaints[about] = sentence

    async def _keep(self, seen: Mapping[str, Mapping[Configuration, Level]]) -> None:
        """Write levels that have changed, for the next start."""
        now_s = self._clock.now_s()
        for key, levels in seen.items():
            known = self._known[key]
            due = now_s - known.kept_at_s >= KEEP_S and levels != known.kept
            if due or any(_level_moved(known.kept.get(given), level) for given, level in levels.items()):
                try:
                    await in_thread(partial(self._profiles.observe, known.version[0], levels))
                except StateError as fault:
                    self._complain("database", f"{fault}; a restart will not know the corrections")
                    return
                known.kept, known.kept_at_s = levels, now_s
                self._complain("database", "")


def _news(
    observed: Observed, functions: Sequence[str], now_s: float, running: frozenset[str], counted: Sequence[Counted]
) -> _News:
    seen = observed.running(running).after(now_s, counted)
    return _News(
        observed=seen,
        factors={key: seen.factors(key) for key in functions},
        points={key: seen.correct(key) for key in functions},
        levels={key: seen.levels(key) for key in functions},
    )


def moved(old: Sequence[ProfilePoint], new: Sequence[ProfilePoint]) -> bool:
    """Whether a profile has changed by so much that plans should know."""
    before = {point.configuration: point.exec_s for point in old}
    if not new:
        return False  # nothing was measured, so there is nothing to correct
    return {point.configuration for point in new} != set(before) or any(
        abs(point.exec_s / before[point.configuration] - 1) > MOVED_SHARE for point in new
    )


def _level_moved(old: Level | None, new: Level) -> bool:
    return old is None or abs(new.exec_s / old.exec_s - 1) > MOVED_SHARE


def in_thread(work: Callable[[], _T]) -> asyncio.Future[_T]:
    """Run it beside the event loop, in a thread that keeps no process from ending."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()
    future.add_done_callback(lambda done: done.cancelled() or done.exception())  # perhaps nobody waits any more

    def settle(result: _T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type] # there is one where there is no error

    def run() -> None:
        result, failed = None, None
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - raised again by who waits
            failed = error
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, result, failed)

    threading.Thread(target=run, daemon=True, name="feed").start()
    return future
