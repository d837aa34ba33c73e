"""The search for the highest rate that a server bears. Pure: what `bears` means is the caller's."""

from __future__ import annotations

from collections.abc import Callable

LOWEST_RPS = 1.0
"""A server that does not bear this bears nothing."""


def highest_rate(
    bears: Callable[[float], bool], start_rps: float, *, step: float = 1.0, precision: float = 0.04
) -> float:
    """The highest rate found to be borne, such that one higher by `precision` or less was not; 0 when none is.

    Args:
        bears: whether a rate is borne; asked once for each rate.
        start_rps: where to begin. The nearer to the answer, the fewer rates are tried.
        step: the first step away from there, as a share of it: 1 doubles and halves until the rate is between two.
            A small one suits a start near the answer; each further step is twice as long, up to 1.
        precision: share by which the bounds may differ in the end.
    """
    low, high = 0.0, 0.0
    rate_rps = start_rps
    while low == 0.0 or high == 0.0:
        if bears(rate_rps):
            low = rate_rps
            rate_rps = low * (1 + step)
        else:
            high = rate_rps
            rate_rps = high / (1 + step)
        if low == 0.0 and rate_rps < LOWEST_RPS:
            return 0.0
        step = min(1.0, 2 * step)
    while high > low * (1 + precision) * (1 + 1e-9):
        middle_rps = (low + high) / 2
        if bears(middle_rps):
            low = middle_rps
        else:
            high = middle_rps
    return low
