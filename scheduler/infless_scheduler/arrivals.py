"""Arrival times for load generators and the simulator. The random generator is an argument: same seed, same load."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

WAVE_S = 60
"""Length of the demo's varying minute."""
_WAVE = (
    (0, 0.10),
    (5, 0.10),
    (20, 0.55),
    (25, 0.55),
    (26, 1.0),
    (34, 1.0),
    (35, 0.50),
    (42, 0.30),
    (46, 0.04),
    (60, 0.04),
)
"""The minute as `(second, share of the peak)`: a smooth rise, a burst, a slope down, a quiet stretch."""


def poisson_arrivals_s(rate_per_second: Sequence[float], rng: random.Random) -> list[float]:
    """Arrival times of a Poisson process whose rate is constant within each second, in order.

    Args:
        rate_per_second: the rate in requests per second, one value for each second; 0 or less is silence.
        rng: the only source of chance.

    Returns:
        Seconds from the start, each in `[0, len(rate_per_second))`.
    """
    arrivals_s: list[float] = []
    for second, rate_rps in enumerate(rate_per_second):
        if rate_rps <= 0:
            continue
        # Exponential gaps have no memory, so each second may start afresh at its own rate.
        at_s = second + rng.expovariate(rate_rps)
        while at_s < second + 1:
            arrivals_s.append(at_s)
            at_s += rng.expovariate(rate_rps)
    return arrivals_s


def gamma_arrivals_s(rate_rps: float, cv: float, count: int, rng: random.Random) -> list[float]:
    """Arrival times of a renewal process with gamma-distributed gaps, in order.

    Args:
        rate_rps: mean rate in requests per second, above 0.
        cv: coefficient of variation of the gaps: 0 is evenly spaced, 1 a Poisson process, above it come bursts.
        count: number of arrivals.
        rng: the only source of chance.

    Returns:
        Seconds from the start; the first request comes one gap after it.
    """
    if cv == 0:
        return [(number + 1) / rate_rps for number in range(count)]
    shape = 1 / cv**2
    scale_s = 1 / (rate_rps * shape)
    return list(itertools.accumulate(rng.gammavariate(shape, scale_s) for _ in range(count)))


def wave_rates(peak_rps: float, length_s: int = WAVE_S) -> list[float]:
    """The demo's varying minute as a rate for each second: a smooth rise, a burst, a quiet stretch.

    Args:
        peak_rps: rate of the burst, in requests per second.
        length_s: number of values; the shape is stretched to it, and has all its parts from 20 on.
    """
    return [peak_rps * _wave_share((second + 0.5) * WAVE_S / length_s) for second in range(length_s)]


def _wave_share(at_s: float) -> float:
    for (from_s, before), (to_s, after) in itertools.pairwise(_WAVE):
        if at_s < to_s:
            # Half a cosine between the corners: no kinks, as in measured days.
            return before + (after - before) * (1 - math.cos(math.pi * (at_s - from_s) / (to_s - from_s))) / 2
    return _WAVE[-1][1]
