"""Pure: what composed times are wrong by on this device, learned from models that were measured whole.

Composition leaves out what happens between operators: caches that the last operator has filled, threads that must be
woken, the allocator. How much that is depends on the machine, so it is learned there: a ridge regression of the
logarithm of measured over composed times. Without whole measurements it says "no correction", with a wide margin.

The margin is not a fixed 10 % (INFless, section 3.3) but chosen from errors on models that were left out of the fit: so
wide that 95 of 100 real executions are within the planned time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infless_profiler.compose import cold_share
from infless_profiler.operators import ModelGraph, Point

FEATURES = ("always", "more than one core", "short operators", "short operators, more cores", "cold weights")
EXCEED_SHARE = 0.05
"""Executions that may take longer than planned."""
UNLEARNED_MARGIN = 1.25
"""What is planned with before any model was measured whole here: the usual error of a bare sum."""
_MARGIN_MIN = 1.02
_MANY, _MARGIN_FEW = 20, 1.1
"""Fewer executions say nothing of the slowest twentieth."""
_TRUST = 0.2
"""Ridge penalty, in measured models: a handful of them must not carry every coefficient."""
_SHORT_S = 20e-6
"""Operators of this length are mostly start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeTime:
    """A model that was measured whole at one point, beside what was composed for it."""

    model: str
    features: tuple[float, ...]
    composed_s: float
    executions_s: tuple[float, ...]
    """What each execution took."""

    @property
    def residual(self) -> float:
        """Logarithm of the median execution over the composed time."""
        return math.log(float(np.median(self.executions_s)) / self.composed_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """What to multiply composed times by."""

    coefficients: tuple[float, ...] = (0.0,) * len(FEATURES)
    margin: float = UNLEARNED_MARGIN
    models: int = 0
    """How many it was learned from."""

    def corrected_s(self, composed_s: float, features: Sequence[float]) -> float:
        """The time that the median execution is expected to take."""
        return composed_s * math.exp(float(np.dot(self.coefficients, features)))


def features_of(graph: ModelGraph, point: Point, composed_s: float, cache_bytes: int) -> tuple[float, ...]:
    """What the residual may depend on, in the order of `FEATURES`."""
    short = min(1.0, len(graph.calls) * _SHORT_S / composed_s)
    several = min(1.0, math.log2(point.cpu_cores))
    return 1.0, several, short, short * several, cold_share(graph, point.batch, cache_bytes)


def learn(rows: Sequence[WholeTime]) -> Correction:
    """Fit a device's correction and margin; every model counts the same, however many points it has.

    The margin comes from models predicted by a fit without them (leave one model out), so it holds for the next model.
    """
    models = sorted({row.model for row in rows})
    if not models:
        return Correction()
    margin = UNLEARNED_MARGIN
    if len(models) > 1:
        errors = [_left_out(rows, model) for model in models]
        weights = [np.full(len(one), 1 / len(one) / len(by_point)) for by_point in errors for one in by_point]
        # A little wider while few models are known: the next one may be worse than all of them.
        level = 1 - EXCEED_SHARE * len(models) / (len(models) + 1)
        everything = np.concatenate([one for by_point in errors for one in by_point])
        margin = max(_MARGIN_MIN, math.exp(_quantile(everything, np.concatenate(weights), level)))
    return Correction(coefficients=tuple(_fit(rows)), margin=margin, models=len(models))


def _left_out(rows: Sequence[WholeTime], model: str) -> list[np.ndarray]:
    """Logarithms of each execution of one model over what is expected without having seen it, by point."""
    fit = Correction(coefficients=tuple(_fit([row for row in rows if row.model != model])))
    return [
        np.log(np.asarray(row.executions_s) / fit.corrected_s(row.composed_s, row.features))
        for row in rows
        if row.model == model
    ]


def _quantile(values: np.ndarray, weights: np.ndarray, level: float) -> float:
    order = np.argsort(values)
    shares = np.cumsum(weights[order]) / weights.sum()
    place = int(np.searchsorted(shares, level - 1e-9))  # sums of shares differ in their last digits
    return float(values[order][min(place, len(values) - 1)])


def _fit(rows: Sequence[WholeTime]) -> np.ndarray:
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.model] = counts.get(row.model, 0) + 1
    weights = np.array([1 / counts[row.model] for row in rows])
    matrix = np.array([row.features for row in rows])
    targets = np.array([row.residual for row in rows])
    # The constant is trusted soonest.
    penalty = _TRUST * np.diag([0.1, *([1.0] * (len(FEATURES) - 1))])
    left = matrix.T @ (weights[:, None] * matrix) + penalty
    solution: np.ndarray = np.linalg.solve(left, matrix.T @ (weights * targets))
    return solution


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """The time of one configuration, from the best that is known of it."""

    expected_s: float
    planned_s: float


def settle(
    composed_s: float, features: Sequence[float], executions_s: Sequence[float], correction: Correction
) -> Settled:  # fmt: skip
    """Measured whole is exact, and brings its own margin; composed is corrected, and takes the device's."""
    if executions_s:
        expected_s, late_s = map(float, np.quantile(np.asarray(executions_s), (0.5, 1 - EXCEED_SHARE)))
        least = _MARGIN_MIN if len(executions_s) >= _MANY else _MARGIN_FEW
        return Settled(expected_s=expected_s, planned_s=max(late_s, expected_s * least))
    expected_s = correction.corrected_s(composed_s, features)
    return Settled(expected_s=expected_s, planned_s=expected_s * correction.margin)
