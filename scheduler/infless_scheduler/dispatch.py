"""Sharing out a function's requests: the rate each instance is meant to get, and whose turn the next request is."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from infless_core.errors import InvalidInput
from infless_scheduler.rates import RateWindow


class DispatchCase(StrEnum):
    """Where the arriving rate lies (paper section 3.2)."""

    SCALE_OUT = "scale-out"
    """Above R_max: every instance is full, and the rest asks for more instances."""
    STEADY = "steady"
    """Between the threshold and R_max: nothing to do."""
    RELEASE = "release"
    """Below the threshold: fewer instances would do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatch:
    """What each instance is meant to receive, and what that says about their number."""

    case: DispatchCase
    rates_rps: Mapping[str, float]
    """By instance id; they add up to the arriving rate less `residue_rps`, each within `[0, rate_up]`."""
    residue_rps: float = 0.0
    """What no instance can take."""
    release: tuple[str, ...] = ()
    """Instances without which the rest is in the steady case, or as near to it as whole instances allow."""


def threshold_rps(windows: Iterable[RateWindow], alpha: float) -> float:
    """`alpha * R_max + (1 - alpha) * R_min` (paper Eq. 7; its running text has the two swapped)."""
    windows = tuple(windows)
    return alpha * math.fsum(w.up_rps for w in windows) + (1 - alpha) * math.fsum(w.low_rps for w in windows)


def dispatch_rates(windows: Mapping[str, RateWindow], rate_rps: float, alpha: float) -> Dispatch:
    """Share `rate_rps` out among the instances of one function.

    Above R_max each gets its rate_up. Below, each gets `up - (R_max - R)/(R_max - R_min) * (up - low)`. Below R_min,
    where that formula would turn negative, each gets its share of R_min: every batch is then sent by its timeout.

    Args:
        windows: by instance id.
        rate_rps: what arrives, R.
        alpha: where between R_min and R_max releasing starts.

    Raises:
        InvalidInput: when `rate_rps` is negative or not finite.
    """
    if not 0 <= rate_rps < math.inf:
        raise InvalidInput(f"rate {rate_rps}: allowed is a finite number, not negative")
    most_rps = math.fsum(w.up_rps for w in windows.values())
    if rate_rps > most_rps:
        rates = {id_: w.up_rps for id_, w in windows.items()}
        return Dispatch(case=DispatchCase.SCALE_OUT, rates_rps=rates, residue_rps=rate_rps - most_rps)
    rates = shares(windows, rate_rps)
    if rate_rps >= threshold_rps(windows.values(), alpha):
        return Dispatch(case=DispatchCase.STEADY, rates_rps=rates)
    return Dispatch(case=DispatchCase.RELEASE, rates_rps=rates, release=_releasable(windows, rate_rps, alpha))


def shares(windows: Mapping[str, RateWindow], rate_rps: float) -> dict[str, float]:
    """What each instance gets of a rate that is not above R_max."""
    most_rps = math.fsum(w.up_rps for w in windows.values())
    least_rps = math.fsum(w.low_rps for w in windows.values())
    if rate_rps < least_rps:
        rates = {id_: w.low_rps * (rate_rps / least_rps) for id_, w in windows.items()}
    elif most_rps > least_rps:
        down = (most_rps - rate_rps) / (most_rps - least_rps)
        rates = {id_: w.up_rps - down * (w.up_rps - w.low_rps) for id_, w in windows.items()}
    else:
        rates = {id_: w.up_rps for id_, w in windows.items()}
    return _settled(windows, rates, rate_rps)


def _settled(windows: Mapping[str, RateWindow], rates: dict[str, float], rate_rps: float) -> dict[str, float]:
    """Give what rounding lost or added to the first instances that have room, so that the sum is the rate."""
    missing_rps = rate_rps - math.fsum(rates.values())
    for id_ in sorted(rates):
        if missing_rps == 0.0:
            break
        settled = min(windows[id_].up_rps, max(0.0, rates[id_] + missing_rps))
        missing_rps -= settled - rates[id_]
        rates[id_] = settled
    return rates


def _releasable(windows: Mapping[str, RateWindow], rate_rps: float, alpha: float) -> tuple[str, ...]:
    """Largest first, as long as the rest can carry the rate.

    One instance always stays: whether a function goes to zero is the cold-start policy's decision.
    """
    staying = dict(windows)
    released = []
    for id_ in sorted(windows, key=lambda id_: (-windows[id_].up_rps, id_)):
        if len(staying) == 1 or rate_rps >= threshold_rps(staying.values(), alpha):
            break
        rest_rps = math.fsum(w.up_rps for other, w in staying.items() if other != id_)
        if rest_rps >= rate_rps:
            del staying[id_]
            released.append(id_)
    return tuple(released)


class _Lane:
    """One instance's place on a wheel: when, in virtual time, its next turn ends."""

    __slots__ = ("batch", "cost", "end", "id")

    def __init__(self, id_: str, batch: int, cost: float, end: float) -> None:
        self.id = id_
        self.batch = batch
        self.cost = cost
        self.end = end


class _Wheel:
    """Self-clocked fair queueing: the turn that ends first goes next, and virtual time jumps to its end.

    Invariant: a lane that is always available never has `end < now`; one that was skipped for a while is lifted to
    `now`, so it comes next but does not make up for all it missed in one burst.
    """

    __slots__ = ("lanes", "now")

    def __init__(self, lanes: tuple[_Lane, ...]) -> None:
        self.lanes = lanes
        self.now = 0.0

    def turn(self, skip: Collection[str]) -> _Lane | None:
        best = None
        for lane in self.lanes:
            if (best is None or lane.end < best.end) and lane.id not in skip:
                best = lane
        if best is not None:
            self.now = max(self.now, best.end)
            best.end = self.now + best.cost
        return best


_NOBODY: frozenset[str] = frozenset()
_IDLE_RPS = 1e-6
"""A weight below one request in eleven days is none; dividing by it would end in infinities."""


class TurnDispatcher:
    """Whose turn the next request is: no clock, no chance, and a batch is filled before the next one is begun.

    A turn is `batch` consecutive requests for one instance. Over a run of requests any two instances' counts divided
    by their weights differ by at most one turn of each. Mutable, because it is asked for every request; one owner,
    one thread. Instances of weight zero get requests only when no other instance is available; among themselves, and
    so when all weights are zero, they share equally.
    """

    __slots__ = ("_lane", "_left", "_planned", "_spare")

    def __init__(self, weights: Mapping[str, tuple[float, int]] | None = None) -> None:
        self._lane: _Lane | None = None
        self._left = 0
        self._planned = _Wheel(())
        self._spare = _Wheel(())
        self.update(weights or {})

    def choose(self, skip: Collection[str] = _NOBODY) -> str | None:
        """The instance for the next request; None when every instance is in `skip` (or there is none)."""
        lane = self._lane
        if self._left and lane is not None and lane.id not in skip:
            self._left -= 1
            return lane.id
        return self._next_turn(skip)

    def update(self, weights: Mapping[str, tuple[float, int]]) -> None:
        """Take new `(rate_rps, batch)` by instance id; the turn under way and everyone's waiting so far are kept.

        Raises:
            InvalidInput: when a weight is negative or not finite, or a batch is below 1; nothing has changed then.
        """
        for id_, (weight, batch) in weights.items():
            if not 0 <= weight < math.inf or batch < 1:
                raise InvalidInput(f"turns of {id_}: weight {weight} is finite, not negative; batch {batch} at least 1")
        waited = self._waited_shares()
        planned: list[_Lane] = []
        spare: list[_Lane] = []
        for id_, (weight, batch) in sorted(weights.items()):
            idle = weight < _IDLE_RPS
            cost = float(batch) if idle else batch / weight
            (spare if idle else planned).append(_Lane(id_, batch, cost, cost * waited.get(id_, 1.0)))
        self._planned, self._spare = _Wheel(tuple(planned)), _Wheel(tuple(spare))
        self._carry_over_turn()

    def _next_turn(self, skip: Collection[str]) -> str | None:
        if self._left and self._lane is not None:
            # The instance became unavailable in the middle of its turn: what it did not get counts as not given.
            self._lane.end -= self._lane.cost * self._left / self._lane.batch
        lane = self._planned.turn(skip) or self._spare.turn(skip)
        self._lane = lane
        if lane is None:
            self._left = 0
            return None
        self._left = lane.batch - 1
        return lane.id

    def _waited_shares(self) -> dict[str, float]:
        """How far each instance is from the end of its next turn, as a share of that turn."""
        return {
            lane.id: min(1.0, max(0.0, (lane.end - wheel.now) / lane.cost))
            for wheel in (self._planned, self._spare)
            for lane in wheel.lanes
        }

    def _carry_over_turn(self) -> None:
        old = self._lane
        lanes = (*self._planned.lanes, *self._spare.lanes)
        self._lane = next((lane for lane in lanes if old is not None and lane.id == old.id), None)
        self._left = 0 if self._lane is None else min(self._left, self._lane.batch - 1)
