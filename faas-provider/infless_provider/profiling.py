"""Execution times of a deployed function: kept ones, or measured now by the backend that will run it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from infless_core.clock import Clock
from infless_core.model import Configuration, ProfilePoint
from infless_profiler.measure import Measurement, batch_sizes, core_counts, measure_function
from infless_profiler.observe import Level, Observed, Prior
from infless_profiler.store import ProfileStore
from infless_provider.backends.base import CurveOrder

BUDGET_S = 1.5
"""Seconds of timing for each core count: a deployment must answer well within faas-cli's 60 s."""
_BUDGETS_MAX = 20
"""So many budgets may timing take: a batch size is run five times, however long that takes."""


class Profiles:
    """The profile database, and the measuring that fills it. Thread-safe; one measurement at a time.

    Args:
        store: what is known.
        clock: for when it was measured.
        cpus: the most cores that an instance may get.
        curve: a backend's `curve`.
        load_s: how long a function may take to load.
    """

    def __init__(
        self, store: ProfileStore, clock: Clock, cpus: int, curve: Callable[[CurveOrder], str], load_s: float
    ) -> None:
        self._load_s = load_s
        self._curve = curve
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
        artifact: str,
        environment: Mapping[str, str],
        batch_max: int,
        progress: Callable[[str], None] = lambda _: None,
        secrets: Path | None = None,
        memory_bytes: int = 0,
    ) -> tuple[ProfilePoint, ...]:
        """Kept points of a function, else newly measured ones; empty when it cannot be timed.

        Args:
            key: of the function's code and variables.
            artifact: an `Artifact.reference`.
            environment: the function's own variables.
            batch_max: its largest batch.
            progress: told what is being measured.
            secrets: a folder with a file for each of its secrets; None when it has none.
            memory_bytes: what its instances may use; 0 is no limit.

        Raises:
            BackendError: the function cannot be loaded, or fails on its own example.
            StateError: the database cannot be used.
        """
        kept = self.kept(key, batch_max)
        if kept is not None:
            return kept  # who is known need not wait for somebody else's measurement
        with self._measuring:
            kept = self.kept(key, batch_max)  # somebody may have measured the same meanwhile
            if kept is not None:
                return kept
            found = self.measure(
                key,
                artifact,
                environment,
                batch_sizes(batch_max),
                progress,
                secrets=secrets,
                memory_bytes=memory_bytes,
            )
        return self._corrected(key, self._usable(found, batch_max))

    def _usable(self, found: Iterable[Measurement], batch_max: int) -> tuple[Prior, ...]:
        """What fits this machine's share of cores and the function's largest batch."""
        return tuple(
            one.prior for one in found
            if one.configuration.batch <= batch_max and one.configuration.cpu_cores <= self._cpus
        )  # fmt: skip

    def cancel(self) -> None:
        """End a measurement under way, and every later one: the provider stops."""
        self._cancelled.set()

    def measure(
        self,
        key: str,
        artifact: str,
        environment: Mapping[str, str],
        batches: Sequence[int],
        progress: Callable[[str], None] = lambda _: None,
        budget_s: float = BUDGET_S,
        *,
        secrets: Path | None = None,
        memory_bytes: int = 0,
    ) -> list[Measurement]:
        """Time a function now and keep the result.

        Args:
            key: of the function's code and variables.
            artifact: an `Artifact.reference`.
            environment: the function's own variables.
            batches: batch sizes.
            progress: told what is being measured.
            budget_s: seconds of timing for each core count.
            secrets: a folder with a file for each of its secrets; None when it has none.
            memory_bytes: what its instances may use; 0 is no limit.

        Returns:
            Measurements; none when it has no example to be timed with, or holds no watchdog of ours.

        Raises:
            BackendError: the function cannot be loaded, fails on its own example, or the provider stops.
            StateError: the database cannot be used.
        """

        def curve(batches: Sequence[int], cpu_cores: int) -> str:
            return self._curve(
                CurveOrder(
                    artifact=artifact,
                    environment=environment,
                    batches=batches,
                    cpu_cores=cpu_cores,
                    budget_s=budget_s,
                    timeout_s=self._load_s + _BUDGETS_MAX * budget_s,
                    memory_bytes=memory_bytes,
                    secrets=secrets,
                    cancelled=self._cancelled.is_set,
                )
            )

        found = measure_function(curve, batches=batches, cores=core_counts(self._cpus), progress=progress)
        asked = Configuration(batch=max(batches), cpu_cores=self._cpus)
        self._store.save(key, found, asked, self._clock.wall_s())
        return found
