"""Pure: what a set of timings says, on a machine where other work may interrupt any of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

LEVEL = 0.25
"""Interruptions only ever add time. The lower quartile is the time on a quiet machine, and needs few samples; what the
noise adds in practice is the margin's business (`correction`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Execution time of one operator in one configuration, as it was measured."""

    exec_s: float
    """Lower quartile."""
    spread: float
    """Distance of the quartiles of the runs, as a share of their median."""
    samples: int
    looks: int = 1
    """How often it was measured, at different times: what disturbs a machine for a second spoils a whole look."""

    @property
    def doubt(self) -> float:
        """Standard deviation of the logarithm of `exec_s`: what a single look may be off by, and several."""
        return min(DOUBT_MAX, max(DOUBT_MIN, self.spread)) / self.looks

    def and_again(self, other: Timing) -> Timing:
        """Two looks at the same thing: the lower one saw the quieter machine."""
        better = min(self, other, key=lambda one: one.exec_s)
        return replace(better, samples=self.samples + other.samples, looks=self.looks + other.looks)


DOUBT_MIN, DOUBT_MAX = 0.05, 0.12
"""Of a single look: runs that agree may all have met the same disturbance; runs that do not still show their lowest."""


def timing_of(samples_s: Sequence[float], copies: int = 1, overhead_s: float = 0.0) -> Timing:
    """From samples of runs that executed `copies` calls each, after an overhead of their own.

    Args:
        samples_s: seconds of each run, at least one.
        copies: calls in a run.
        overhead_s: what a run takes beside its calls.
    """
    low, middle, high = np.quantile(np.asarray(samples_s, float), (LEVEL, 0.5, 0.75))
    # A timer that ticks in nanoseconds cannot tell an empty operator's time from nothing.
    exec_s = max(float(low) - overhead_s, 1e-8 * copies) / copies
    return Timing(exec_s=exec_s, spread=float((high - low) / middle), samples=len(samples_s))


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How long something is timed."""

    warm_ups: int
    runs_min: int
    runs_max: int
    least_s: float
    """Runs go on until they have taken this long together."""
    long_s: float = math.inf
    """What takes longer is run twice and no more, the warm-up included."""

    def enough(self, runs: int, taken_s: float) -> bool:
        """Whether to stop after so many runs that took so long."""
        if runs and taken_s / runs > self.long_s:
            return runs >= _LONG_RUNS
        return runs >= self.runs_max or (runs >= self.runs_min and taken_s >= self.least_s)

    def given_up(self, runs: int, taken_s: float) -> bool:
        """Whether no undisturbed run is waited for any longer: on a busy machine a long one may never come."""
        patience_s = max(_PATIENCE_S, self.least_s)
        return runs >= self.runs_max or (self.enough(runs, taken_s) and taken_s >= patience_s)


_PATIENCE_S = 0.05
_LONG_RUNS = 2
OPERATOR = Effort(warm_ups=1, runs_min=3, runs_max=60, least_s=0.003, long_s=0.02)
"""Errors of single operators even out in the sum of a model, so a few runs of each are enough."""
COLD_OPERATOR = Effort(warm_ups=1, runs_min=3, runs_max=6, least_s=0.0, long_s=0.02)
"""Pushing weights out of the caches takes longer than most operators."""
CALL = Effort(warm_ups=20, runs_min=100, runs_max=400, least_s=0.003)
"""A few microseconds, but in every execution."""
WHOLE = Effort(warm_ups=2, runs_min=7, runs_max=200, least_s=0.5)
"""One number that stands for itself must be steadier; it is what the watchdog's own timing at a deployment takes."""
