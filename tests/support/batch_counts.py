"""An instance's batch histogram that tests fill by hand."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate

from infless_core.model import Configuration
from infless_profiler.observe import Prior
from infless_profiler.readings import Counted, Series

BOUNDS = tuple(float(f"{step}e{power}") for power in range(-4, 2) for step in (1, 1.5, 2, 3, 5, 7))


def prior(batch: int, expected_s: float, cores: int = 1, margin: float = 1.1) -> Prior:
    """What was measured of one configuration."""
    return Prior(configuration=Configuration(batch=batch, cpu_cores=cores), expected_s=expected_s, margin=margin)


class Batches:
    """Batches of one size in one instance."""

    def __init__(
        self, batch: int = 8, instance: str = "i", function: str = "f", cores: int = 1, bounds: Sequence[float] = BOUNDS
    ) -> None:
        self.series = Series(instance=instance, function=function, batch=batch, cpu_cores=cores)
        self.bounds = (*bounds, math.inf)
        self.counts = [0] * len(self.bounds)
        self.total_s = 0.0

    def ran(self, executions_s: Iterable[float]) -> Counted:
        """Count some executions; gives what Prometheus reads then."""
        for exec_s in executions_s:
            self.counts[bisect_left(self.bounds, exec_s)] += 1
            self.total_s += exec_s
        buckets = tuple(zip(self.bounds, (float(count) for count in accumulate(self.counts)), strict=True))
        return Counted(series=self.series, buckets=buckets, count=buckets[-1][1], total_s=self.total_s)

    def restarted(self) -> None:
        """The process was replaced: everything begins at 0."""
        self.counts, self.total_s = [0] * len(self.bounds), 0.0
