"""When to think again: the arriving rate, and whether the present instances still fit it. State in, state out."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from infless_scheduler.dispatch import threshold_rps
from infless_scheduler.rates import RateWindow

SHORT_S = 5
"""Seconds of the short mean: long enough to smooth Poisson noise at tens of requests a second, short enough to react
before a queue of one latency target has built up many times over."""
LONG_S = 30.0
"""Time constant of the slow mean: a lull shorter than this does not cost an instance."""


@dataclass(frozen=True, slots=True)
class RateEstimate:
    """A function's arriving rate from counts per second: quick to rise, slow to fall.

    It is the larger of the mean of the last five seconds and an exponential mean over thirty. Too low an estimate
    costs missed targets at once, too high a one a little hardware for half a minute; hence the bias.
    """

    recent: tuple[int, ...] = ()
    slow_rps: float = 0.0

    def after(self, count: int) -> RateEstimate:
        """The estimate after one more second in which `count` requests arrived; call it for quiet seconds too."""
        recent = (*self.recent, count)[-SHORT_S:]
        kept = math.exp(-1 / LONG_S)
        slow_rps = float(count) if not self.recent else kept * self.slow_rps + (1 - kept) * count
        return RateEstimate(recent, slow_rps)

    @property
    def rate_rps(self) -> float:
        """Requests per second."""
        if not self.recent:
            return 0.0
        return max(sum(self.recent) / len(self.recent), self.slow_rps)


class ScalingReason(StrEnum):
    """Why a new plan is needed."""

    ABOVE_CAPACITY = "rate above what the instances can take"
    BELOW_THRESHOLD = "rate below the scale-in threshold"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingPolicy:
    """How patient the autoscaler is."""

    above_share: float = 0.03
    """Unserved share that is still noise (the authors' code scales out above 3 percent)."""
    same_rate_share: float = 0.05
    """A rate this near to the planned one would only give the same plan again."""
    above_hold_s: float = 1.0
    """Too little hardware hurts at once; one second tells a burst from a single odd count."""
    below_hold_s: float = 30.0
    """Too much hardware is cheap next to a cold start."""
    settle_s: float = 5.0
    """Time a new plan gets to show its effect: instances take seconds to start."""


def needs_plan(
    windows: Iterable[RateWindow],
    planned_rps: float,
    measured_rps: float,
    alpha: float,
    policy: ScalingPolicy | None = None,
) -> ScalingReason | None:
    """Whether the instances fit the measured rate at this moment (None) or not (why).

    A rate below the threshold is no reason when the plan was made for that very rate: no combination of whole
    instances came nearer then, and none will now. A rate above capacity always is one: execution times may have been
    corrected since.
    """
    policy = policy or ScalingPolicy()
    windows = tuple(windows)
    if measured_rps > math.fsum(w.up_rps for w in windows) * (1 + policy.above_share):
        return ScalingReason.ABOVE_CAPACITY
    near_plan = abs(measured_rps - planned_rps) <= policy.same_rate_share * planned_rps
    if not near_plan and measured_rps < threshold_rps(windows, alpha):
        return ScalingReason.BELOW_THRESHOLD
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingWatch:
    """Remembers since when a reason has held, so that only lasting ones lead to a new plan. One per function."""

    policy: ScalingPolicy = ScalingPolicy()
    reason: ScalingReason | None = None
    since_s: float = 0.0
    planned_at_s: float = -math.inf

    def after(self, reason: ScalingReason | None, now_s: float) -> tuple[ScalingWatch, ScalingReason | None]:
        """The watch after one more look, and the reason if it is time to plan.

        The reason is given again at each look until `planned` is called.

        Args:
            reason: what `needs_plan` says now.
            now_s: monotonic seconds.
        """
        since_s = self.since_s if reason is self.reason else now_s
        watch = replace(self, reason=reason, since_s=since_s)
        if reason is None:
            return watch, None
        above = reason is ScalingReason.ABOVE_CAPACITY
        held = now_s - since_s >= (self.policy.above_hold_s if above else self.policy.below_hold_s)
        settled = now_s - self.planned_at_s >= self.policy.settle_s
        return watch, reason if held and settled else None

    def planned(self, now_s: float) -> ScalingWatch:
        """The watch after a new plan was made: the next reason has to hold anew."""
        return replace(self, reason=None, since_s=now_s, planned_at_s=now_s)
