"""Execution times of a deployed function: kept ones, or measured now in a child process."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from infless_core.clock import Clock
from infless_core.errors import StateError
from infless_core.model import Configuration, ProfilePoint
from infless_profiler.measure import Measurement, batch_sizes, core_counts, measure_function
from infless_profiler.observe import Level, Observed, Prior
from infless_profiler.store import ProfileStore

BUDGET_S = 1.5
"""Seconds of timing for each core count: a deployment must answer well within faas-cli's 60 s."""


class Profiles:
    """The profile database, and the measuring that fills it. Thread-safe; one measurement at a time.

    Args:
        store: what is known.
        clock: for when it was measured.
        cpus: the most cores that an instance may get.
        scratch: where the children's temporary folders go; a backend's `sweep` finds them there after a crash.
    """

    def __init__(self, store: ProfileStore, clock: Clock, cpus: int, scratch: Path | None = None) -> None:
        self._scratch = scratch
        self._store = store
        self._clock = clock
        self._cpus = cpus
        self._measuring = threading.Lock()
        self._cancelled = threading.Event()

    def kept(self, key: str, batch_max: int) -> tuple[ProfilePoint, ...] | None:
        """Points that are in the database, None when they say too little about batches up to `batch_max`.

        Raises:
            StateError: the database cannot be used.
        """
        asked = self._store.coverage(key)
        if asked is None or asked.batch < batch_max or asked.cpu_cores < self._cpus:
            return None
        return self._corrected(key, self._usable(self._store.load(key), batch_max))

    def prior(self, key: str, batch_max: int) -> tuple[Prior, ...]:
        """What was measured, as it was measured: from here corrections start.

        Raises:
            StateError: the database cannot be used.
        """
        return self._usable(self._store.load(key), batch_max)

    def observed(self, key: str) -> dict[Configuration, Level]:
        """Execution times that were seen in use.

        Raises:
            StateError: the database cannot be used.
        """
        return self._store.observed(key, self._clock.wall_s())

    def observe(self, key: str, levels: Mapping[Configuration, Level]) -> None:
        """Keep execution times that were seen in use, for the next start.

        Raises:
            StateError: the database cannot be used.
        """
        self._store.observe(key, levels, self._clock.wall_s())

    def _corrected(self, key: str, prior: tuple[Prior, ...]) -> tuple[ProfilePoint, ...]:
        """By what was seen in use before: a restarted provider need not learn it again."""
        return Observed().expecting(key, prior).seeded(key, self.observed(key), 0.0).correct(key)

    def points(
        self,
        key: str,
        bundle: Path,
        environment: Mapping[str, str],
        batch_max: int,
        progress: Callable[[str], None] = lambda _: None,
    ) -> tuple[ProfilePoint, ...]:
        """Kept points of a function, else newly measured ones; empty when it has no example to be timed with.

        Raises:
            BackendError: the function cannot be loaded, or fails on its own example.
            StateError: the database cannot be used.
        """
        with self._measuring:
            kept = self.kept(key, batch_max)
            if kept is not None:
                return kept
            found = self.measure(key, bundle, environment, batch_sizes(batch_max), progress)
        return self._corrected(key, self._usable(found, batch_max))

    def _usable(self, found: Iterable[Measurement], batch_max: int) -> tuple[Prior, ...]:
        """What fits this machine's share of cores and the function's largest batch."""
        return tuple(
            one.prior for one in found
            if one.configuration.batch <= batch_max and one.configuration.cpu_cores <= self._cpus
        )  # fmt: skip

    def _folder(self) -> tempfile.TemporaryDirectory[str]:
        try:
            if self._scratch is not None:
                self._scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
            return tempfile.TemporaryDirectory(prefix="profile-", dir=self._scratch, ignore_cleanup_errors=True)
        except OSError as error:
            raise StateError(f"no temporary folder can be made: {error}") from error

    def cancel(self) -> None:
        """End a measurement under way, and every later one: the provider stops."""
        self._cancelled.set()

    def measure(
        self,
        key: str,
        bundle: Path,
        environment: Mapping[str, str],
        batches: Sequence[int],
        progress: Callable[[str], None] = lambda _: None,
        budget_s: float = BUDGET_S,
    ) -> list[Measurement]:
        """Time a function now and keep the result."""
        with self._folder() as folder:
            found = measure_function(
                bundle,
                {**environment, "TMPDIR": folder},
                batches=batches,
                cores=core_counts(self._cpus),
                budget_s=budget_s,
                progress=progress,
                cancelled=self._cancelled.is_set,
            )
        asked = Configuration(batch=max(batches), cpu_cores=self._cpus)
        self._store.save(key, found, asked, self._clock.wall_s())
        return found
