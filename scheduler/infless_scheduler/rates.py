"""Rate windows: between which arrival rates an instance meets its latency target with full batches (paper Eq. 1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from infless_core.errors import InvalidInput
from infless_core.labels import GpuWish
from infless_core.model import Configuration, FunctionDemand, ProfilePoint
from infless_scheduler.bearable import bearable_load

_TOLERANCE = 1e-9
"""Relative. Execution times are measured to microseconds: a quotient this close to a whole number is that number,
so that 1/0.05 is 20 batches a second and 0.3 - 0.1 leaves five a second, whatever binary fractions make of them."""


@dataclass(frozen=True, slots=True)
class RateWindow:
    """`[low_rps, up_rps]`: below it batches do not fill in time, above it a full batch waits behind a running one."""

    low_rps: float
    up_rps: float

    def __post_init__(self) -> None:
        if not 0 <= self.low_rps <= self.up_rps or not 0 < self.up_rps < math.inf:
            raise InvalidInput(f"rate window [{self.low_rps}, {self.up_rps}]: 0 <= low <= up, and up is above 0")


def window(
    configuration: Configuration,
    exec_s: float,
    target_s: float,
    percentile: float | None = None,
    *,
    arrival_cv: float = 1.0,
    fixed_share: float = 1.0,
) -> RateWindow | None:
    """The rates an instance may receive, or None when the target is out of its reach.

    `rate_up = floor(1/t) * b`, `rate_low = ceil(1/(T - t)) * b` and `t <= T/2`; for b = 1 `t <= T` and `rate_low = 0`.
    Slower than one batch a second (`1/t < 1`) both sides stay unrounded, `b/t` and `b/(T - t)`, else a slow model
    could not be planned at all. Rounding pulls the two sides towards each other and, for t just below T/2, past each
    other (t = 95 ms, T = 192 ms: 10 and 11 batches a second); then the window shrinks to the point `rate_up`.

    Args:
        configuration: the batch size is what counts here.
        exec_s: execution time of one full batch.
        target_s: latency target.
        percentile: share of requests (50 to below 100) that must meet the target when they come by chance; None plans
            for the evenly spaced arrivals of the paper.
        arrival_cv: how bursty they come, see `bearable_load`; counts with a percentile.
        fixed_share: share of `exec_s` that smaller batches take, too, see `bearable_load`; counts with a percentile.

    Raises:
        InvalidInput: when `percentile` is not above 0 and below 100 (no rate meets a target always).
    """
    batch = configuration.batch
    longest_s = target_s if batch == 1 else target_s / 2
    if exec_s > longest_s * (1 + _TOLERANCE):
        return None
    up_rps, low_rps = _paper_window(batch, exec_s, target_s)
    if percentile is not None:
        load = bearable_load(batch, target_s / exec_s, percentile, arrival_cv=arrival_cv, fixed_share=fixed_share)
        up_rps = min(up_rps, load * batch / exec_s)
    return RateWindow(min(low_rps, up_rps), up_rps)


def feasible_points(
    function: FunctionDemand, slowdown: Callable[[Configuration], float] | None = None
) -> tuple[tuple[ProfilePoint, RateWindow], ...]:
    """The profile points that can serve the function within its target, with their windows, by configuration.

    Args:
        function: points beyond its largest batch, and those that its wish for a GPU forbids, are left out.
        slowdown: how many times longer than profiled an execution in that configuration takes; None: no longer. The
            points themselves stay as they were profiled.
    """
    found = []
    shares = {} if function.latency_percentile is None else fixed_shares(function.profile)
    for point in sorted(function.profile, key=lambda point: point.configuration):
        if point.configuration.batch > function.max_batch or not gpu_allowed(point.configuration, function.gpu):
            continue
        rates = window(
            point.configuration,
            point.exec_s * (slowdown(point.configuration) if slowdown else 1.0),
            function.latency_target_s,
            percentile=function.latency_percentile,
            arrival_cv=function.arrival_cv,
            fixed_share=shares.get(point.configuration, 1.0),
        )
        if rates is not None:
            found.append((point, rates))
    return tuple(found)


def fixed_shares(profile: Sequence[ProfilePoint]) -> dict[Configuration, float]:
    """For each configuration the share of a batch's execution time that does not depend on its size, 0 to 1.

    From a straight line through its point and the smallest batch that was profiled with the same cores and GPU
    percent. 1, the cautious end, where none is smaller: then nobody knows.
    """
    smallest: dict[tuple[int, int], ProfilePoint] = {}
    for point in sorted(profile, key=lambda point: point.configuration.batch):
        smallest.setdefault((point.configuration.cpu_cores, point.configuration.gpu_percent), point)
    shares = {}
    for point in profile:
        own = point.configuration
        beside = smallest[own.cpu_cores, own.gpu_percent]
        smaller_by = own.batch - beside.configuration.batch
        growing = (point.exec_s - beside.exec_s) / smaller_by * own.batch if smaller_by else 0.0
        shares[own] = min(1.0, max(0.0, 1 - growing / point.exec_s))
    return shares


def gpu_allowed(configuration: Configuration, gpu: GpuWish) -> bool:
    """Whether a function's wish for a GPU allows a configuration."""
    if gpu is GpuWish.ALLOW:
        return True
    return (configuration.gpu_percent > 0) == (gpu is GpuWish.REQUIRE)


def least_target_s(batch: int, exec_s: float) -> float:
    """The smallest latency target that a configuration can meet: t for b = 1; 2t else, or no batch could fill."""
    return exec_s if batch == 1 else 2 * exec_s


def nearest_target_s(profile: Sequence[ProfilePoint], max_batch: int) -> float | None:
    """The smallest latency target that some point of the profile can meet; None when no point may be used.

    That is t for b = 1 and 2t else. A stated percentile does not change it: some rate, if a small one, meets it.
    """
    targets_s = [
        least_target_s(point.configuration.batch, point.exec_s)
        for point in profile
        if point.configuration.batch <= max_batch
    ]
    return min(targets_s, default=None)


def _paper_window(batch: int, exec_s: float, target_s: float) -> tuple[float, float]:
    batches_per_second = 1 / exec_s
    whole = batches_per_second * (1 + _TOLERANCE) >= 1
    up_rps = math.floor(batches_per_second * (1 + _TOLERANCE)) * batch if whole else batch / exec_s
    if batch == 1:
        return float(up_rps), 0.0
    fills_per_second = 1 / (target_s - exec_s)
    low_rps = math.ceil(fills_per_second * (1 - _TOLERANCE)) * batch if whole else batch * fills_per_second
    return float(up_rps), float(low_rps)
