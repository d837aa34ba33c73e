"""Execution times of a deployed function: kept ones, or measured now in a child process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from infless_core.clock import Clock
from infless_core.model import ProfilePoint
from infless_profiler.measure import Measurement, batch_sizes, core_counts, measure_function
from infless_profiler.store import ProfileStore

BUDGET_S = 1.5
"""Seconds of timing for each core count: a deployment must answer well within faas-cli's 60 s."""


TOO_SLOW_S = 1.0
"""`infless_watchdog.curve` stops after the first batch size that takes longer."""


class Profiles:
    """The profile database, and the measuring that fills it. Thread-safe; one measurement at a time."""

    def __init__(self, store: ProfileStore, clock: Clock, cpus: int) -> None:
        self._store = store
        self._clock = clock
        self._cpus = cpus
        self._measuring = threading.Lock()

    def points(
        self,
        key: str,
        bundle: Path,
        environment: Mapping[str, str],
        batch_max: int,
        progress: Callable[[str], None] = lambda _: None,
    ) -> tuple[ProfilePoint, ...]:
        """Kept points of a function that cover `batch_max`, else newly measured ones; empty when it has no example.

        Raises:
            BackendError: the function cannot be loaded, or fails on its own example.
            StateError: the database cannot be used.
        """
        with self._measuring:
            kept = self._store.load(key)
            if not _covers(kept, batch_max):
                kept = self.measure(key, bundle, environment, batch_sizes(batch_max), progress)
        return tuple(measurement.point for measurement in kept)

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
        found = measure_function(
            bundle,
            environment,
            batches=batches,
            cores=core_counts(self._cpus),
            budget_s=budget_s,
            progress=progress,
        )
        self._store.save(key, found, self._clock.wall_s())
        return found


def _covers(measurements: Sequence[Measurement], batch_max: int) -> bool:
    """Whether the measured batches say enough: they reach `batch_max`, or ended where a batch became too slow."""
    return any(m.configuration.batch >= batch_max or max(m.samples_s) > TOO_SLOW_S for m in measurements)
