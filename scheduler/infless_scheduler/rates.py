"""Rate windows: between which arrival rates an instance meets its latency target with full batches (paper Eq. 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from infless_core.errors import InvalidInput
from infless_core.model import Configuration, FunctionDemand, ProfilePoint

_TOLERANCE = 1e-9
"""Relative. Execution times are measured to microseconds: a quotient this close to a whole number is that number,
so that 1/0.05 is 20 batches a second and 0.3 - 0.1 leaves five a second, whatever binary fractions make of them."""

_BISECTIONS = 60


@dataclass(frozen=True, slots=True)
class RateWindow:
    """`[low_rps, up_rps]`: below it batches do not fill in time, above it a full batch waits behind a running one."""

    low_rps: float
    up_rps: float

    def __post_init__(self) -> None:
        if not 0 <= self.low_rps <= self.up_rps or not 0 < self.up_rps < math.inf:
            raise InvalidInput(f"rate window [{self.low_rps}, {self.up_rps}]: 0 <= low <= up, and up is above 0")


def window(
    configuration: Configuration, exec_s: float, target_s: float, percentile: float | None = None
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
        percentile: share of requests (50 to below 100) that must meet the target under Poisson arrivals; None plans
            for the evenly spaced arrivals of the paper.

    Raises:
        InvalidInput: when `percentile` is not above 0 and below 100 (no rate meets a target always).
    """
    batch = configuration.batch
    longest_s = target_s if batch == 1 else target_s / 2
    if exec_s > longest_s * (1 + _TOLERANCE):
        return None
    up_rps, low_rps = _paper_window(batch, exec_s, target_s)
    if percentile is not None:
        up_rps = min(up_rps, _bearable_load(batch, exec_s, target_s, percentile) * batch / exec_s)
    return RateWindow(min(low_rps, up_rps), up_rps)


def feasible_points(function: FunctionDemand) -> tuple[tuple[ProfilePoint, RateWindow], ...]:
    """The profile points that can serve the function within its target, with their windows, by configuration."""
    found = []
    for point in sorted(function.profile, key=lambda point: point.configuration):
        if point.configuration.batch > function.max_batch:
            continue
        rates = window(
            point.configuration, point.exec_s, function.latency_target_s, percentile=function.latency_percentile
        )
        if rates is not None:
            found.append((point, rates))
    return tuple(found)


def nearest_target_s(profile: Sequence[ProfilePoint], max_batch: int) -> float | None:
    """The smallest latency target that some point of the profile can meet; None when no point may be used.

    That is t for b = 1 and 2t else. A stated percentile does not change it: some rate, if a small one, meets it.
    """
    targets_s = [
        point.exec_s if point.configuration.batch == 1 else 2 * point.exec_s
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


def _bearable_load(batch: int, exec_s: float, target_s: float, percentile: float) -> float:
    """The largest load rho < 1 at which `percentile` of the requests wait no longer than they can afford.

    First version, an approximation to be replaced by one that is checked against the simulator: a bulk server under
    Poisson arrivals drains like M/D/1 with t/b of work per request, whose waiting time has the tail
    `P(V > x) ~ rho * exp(-2 (1 - rho) x b / (rho t))`. A request can afford to wait T - t when b = 1; a batch may
    also find another one running, which leaves T - 2t, and at least the t/b that one request adds to the work.
    """
    if not 0 < percentile < 100:
        raise InvalidInput(f"latency percentile {percentile}: allowed is a number above 0 and below 100")
    wait_s = max(0.0, target_s - exec_s) if batch == 1 else max(target_s - 2 * exec_s, exec_s / batch)
    late_share = 1 - percentile / 100
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        load = (low + high) / 2
        late = load * math.exp(-2 * (1 - load) * wait_s * batch / (load * exec_s))
        low, high = (load, high) if late <= late_share else (low, load)
    return low
