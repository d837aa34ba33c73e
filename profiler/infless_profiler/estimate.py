"""Pure: execution times of operators that were not measured, from those that were, and how sure that is.

A Gaussian process for each family of operators (Rasmussen and Williams, *Gaussian Processes for Machine Learning*,
chapter 2). It models the logarithm of the time over a rough physical model (arithmetic, traffic, a start), so it only
has to learn how well a kernel does, which changes slowly with sizes. Its parts:

* a level for the family, and one for each variant (types, axes, broadcasting);
* a smooth function of the sizes: how like operators do;
* a smooth function of batch and cores for each single operator: one that was measured at some points carries its own
  deviation to the others.

Where nothing like it was measured the answer's spread is wide, and `choose` has it measured.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infless_profiler.operators import (
    Operator,
    Point,
    features,
    moved_bytes,
    multiply_adds,
    state,
    variant,
    weight_bytes,
)  # fmt: skip
from infless_profiler.timing import Timing

ADDS_PER_S = 2e10
TRAFFIC_BYTES_PER_S = 1e10
START_S = 1e-6
"""The rough model's constants: of a processor of our time; the level of a family corrects them."""
WARM_TRAFFIC = 0.2
"""Weights in a cache are read so much faster than from memory: their bytes count so much."""

_FAMILY, _VARIANT, _SIZES, _OPERATOR, _OPERATOR_SIZES = 0.8, 0.4, 0.4, 0.15, 0.3
"""Standard deviations of the parts, in logarithms: 0.1 is 10 %."""
_KINK = 0.03
"""The same of what no smooth function explains: kernels that suit one size better than its neighbours."""
_LENGTHS = np.array([2.4, 2.4, 2.4, 2.4, 1.2, 1.2, 0.6, 1.8])
"""How far apart (in doublings) sizes are to have little in common, for each of `features`."""
_MACHINE_LENGTHS = np.array([1.5, 2.0, 1.0])
"""The same for doublings of cores and of the GPU share, and from warm to cold."""
START_SHARE_S = 200e-6
"""Around this length starts and hand-overs begin to be a small part of an operator's time."""
CACHES_BYTES = (1 << 20, 32 << 20)
"""About where caches of our time end; only how fast an operator leaves them depends on it."""
_COURSE_LENGTHS = np.array([1.5, 0.4])
"""The same for `_course`."""
_NEAREST = 800
"""Measurements that an answer is based on at most: the work grows with the cube."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What is known of one operator at one point."""

    exec_s: float
    spread: float
    """Standard deviation of its logarithm: 0.1 means about 10 % off."""
    measured: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One row of the tables."""

    operator: Operator
    point: Point
    timing: Timing


def rough_s(operator: Operator, point: Point) -> float:
    """A physical model without any measurement: arithmetic over all cores, traffic, a start."""
    speed = float(point.cpu_cores * max(1.0, point.gpu_percent / 2))
    weights = weight_bytes(operator) * (1.0 if point.cold else WARM_TRAFFIC)
    return (
        multiply_adds(operator, point.batch) / (ADDS_PER_S * speed)
        + (moved_bytes(operator, point.batch, weights=False) + weights) / (TRAFFIC_BYTES_PER_S * math.sqrt(speed))
        + START_S
    )


def estimate(
    wanted: Sequence[tuple[Operator, Point]], measured: Sequence[Measured]
) -> dict[tuple[str, Point], Estimate]:
    """What is known of operators at some points, from their own measurements and those of their like.

    Args:
        wanted: operators and points; a `state` that does not matter is looked up where it is kept.
        measured: rows of the tables, of one device and runtime.
    """
    rows: dict[str, list[Measured]] = defaultdict(list)
    for one in measured:
        rows[one.operator.family].append(one)
    asked: dict[str, list[tuple[Operator, Point]]] = defaultdict(list)
    for operator, point in wanted:
        asked[operator.family].append((operator, point))
    return {
        key: found for family, pairs in asked.items() for key, found in _of_family(pairs, rows.get(family, [])).items()
    }


def _of_family(
    pairs: Sequence[tuple[Operator, Point]], rows: Sequence[Measured]
) -> dict[tuple[str, Point], Estimate]:  # fmt: skip
    """What was measured goes through the process as well: where one look was disturbed, its neighbours tell."""
    own = {(row.operator.signature, row.point) for row in rows}
    columns = _Columns(pairs)
    logs, spreads = _Family(_nearest(columns, rows)).predict(columns)
    return {
        (operator.signature, point): Estimate(
            exec_s=math.exp(log), spread=float(spread), measured=(operator.signature, state(operator, point)) in own
        )
        for (operator, point), log, spread in zip(pairs, logs, spreads, strict=True)
    }


def _nearest(wanted: _Columns, rows: Sequence[Measured]) -> Sequence[Measured]:
    """The rows that say most about what is wanted, where there are many."""
    if len(rows) <= _NEAREST:
        return rows
    columns = _Columns([(row.operator, row.point) for row in rows])
    near = _squares(columns.sizes, wanted.sizes, _LENGTHS).min(1)
    near[np.isin(columns.signature, wanted.signature)] = -1.0
    return [rows[place] for place in np.argsort(near, kind="stable")[:_NEAREST]]


class _Columns:
    """Operators at points, as arrays."""

    def __init__(self, pairs: Sequence[tuple[Operator, Point]]) -> None:
        self.signature = np.array([_number(operator.signature) for operator, _ in pairs])
        self.variant = np.array([_number(variant(operator)) for operator, _ in pairs])
        self.sizes = np.array([features(operator, point.batch) for operator, point in pairs], float).reshape(
            len(pairs), len(_LENGTHS)
        )
        self.machine = np.array([_machine(state(operator, point)) for operator, point in pairs], float).reshape(-1, 3)
        self.course = np.array([_course(operator, point) for operator, point in pairs], float).reshape(-1, 2)
        self.rough = np.array([math.log(rough_s(operator, point)) for operator, point in pairs])


def _number(text: str) -> int:
    """Arrays of numbers are compared a hundred times faster than arrays of texts."""
    return hash(text)


def _machine(point: Point) -> tuple[float, float, float]:
    return math.log2(point.cpu_cores), math.log2(1 + point.gpu_percent / 10), float(point.cold)


def _course(operator: Operator, point: Point) -> tuple[float, float]:
    """Along what a single operator changes with the batch: how much of it is a start, and which caches it fills.

    Where a batch takes long and overflows every cache, or none, twice the batch takes twice as long.
    """
    moved = moved_bytes(operator, point.batch)
    filled = sum(moved / (moved + cache) for cache in CACHES_BYTES)
    return math.log2(1 + START_SHARE_S / rough_s(operator, point)), filled


class _Family:
    """The process of one family, conditioned on what was measured."""

    def __init__(self, rows: Sequence[Measured]) -> None:
        self._columns = _Columns([(row.operator, row.point) for row in rows])
        logs = np.array([math.log(row.timing.exec_s) for row in rows])
        noises = np.array([row.timing.doubt for row in rows])
        deviations = logs - self._columns.rough
        self._level = float(np.median(deviations)) if len(rows) else 0.0
        covariance = _covariance(self._columns, self._columns)
        covariance[np.diag_indices_from(covariance)] += noises**2
        self._lower = np.linalg.cholesky(covariance)
        self._weights = np.linalg.solve(self._lower.T, np.linalg.solve(self._lower, deviations - self._level))

    def predict(self, wanted: _Columns) -> tuple[np.ndarray, np.ndarray]:
        """Logarithms of times, and their standard deviations."""
        across = _covariance(wanted, self._columns)
        explained = np.linalg.solve(self._lower, across.T)
        variance = _VARIANCE - np.einsum("ij,ij->j", explained, explained)
        return wanted.rough + self._level + across @ self._weights, np.sqrt(np.maximum(variance, 1e-6))


_VARIANCE = _FAMILY**2 + _VARIANT**2 + _SIZES**2 + _OPERATOR**2 + _OPERATOR_SIZES**2 + _KINK**2


def _covariance(left: _Columns, right: _Columns) -> np.ndarray:
    """How much two measurements have in common."""
    machine = np.exp(-0.5 * _squares(left.machine, right.machine, _MACHINE_LENGTHS))
    place = machine * np.exp(-0.5 * _squares(left.course, right.course, _COURSE_LENGTHS))
    near = np.exp(-0.5 * _squares(left.sizes, right.sizes, _LENGTHS))
    alike = left.variant[:, None] == right.variant[None, :]
    same = left.signature[:, None] == right.signature[None, :]
    total: np.ndarray = machine * (_FAMILY**2 + _VARIANT**2 * alike + _SIZES**2 * near) + same * (
        _OPERATOR**2 + _OPERATOR_SIZES**2 * place + _KINK**2 * (place > 1 - 1e-9)
    )
    return total


def _squares(left: np.ndarray, right: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    a, b = left / lengths, right / lengths
    squares: np.ndarray = (a**2).sum(1)[:, None] + (b**2).sum(1)[None, :] - 2 * a @ b.T
    squares[squares < 0] = 0.0
    return squares
