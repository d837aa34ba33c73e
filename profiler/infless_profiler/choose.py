"""Pure: which operators are worth measuring.

A model's time is a sum, and errors of its parts even out: an operator that takes a hundredth of it may be a third off
without anybody noticing. So what is measured next is what the sum is least sure about, until the sum is sure enough.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from infless_profiler.compose import needed_points
from infless_profiler.estimate import Estimate
from infless_profiler.operators import ModelGraph, Point, state

SURE = 0.04
"""A standard deviation of the composed time of 4 %, about what two measurements of a whole model differ by. The next
percent would cost as much again."""
ALIKE = 0.2
"""Correlation of errors within a family: what an estimate is wrong by, its like are wrong by as well, in part."""


class Part(NamedTuple):
    """A term of a model's time: so many calls of an operator at a point."""

    signature: str
    family: str
    point: Point
    calls: float


Parts = Mapping[Point, Sequence[Part]]
"""By configuration."""
Known = Mapping[tuple[str, Point], Estimate]


def parts_of(
    graph: ModelGraph, points: Sequence[Point], cache_bytes: int, inter_op_threads: int = 1
) -> dict[Point, list[Part]]:  # fmt: skip
    """The terms of a model's time in each configuration.

    Args:
        graph: the model.
        points: configurations.
        cache_bytes: of the processor's last level.
        inter_op_threads: operators that run at the same time share the cores.
    """
    found: dict[Point, list[Part]] = {}
    for point in points:
        calls: dict[tuple[str, Point], float] = {}
        own = point._replace(cpu_cores=max(1, point.cpu_cores // inter_op_threads))
        for place, weight in needed_points(graph, own, cache_bytes):
            for signature, count in graph.counts.items():
                key = signature, state(graph.operators[signature], place)
                calls[key] = calls.get(key, 0.0) + weight * count
        found[point] = [
            Part(signature, graph.operators[signature].family, place, count)
            for (signature, place), count in calls.items()
        ]
    return found


def composed(parts: Sequence[Part], known: Known) -> tuple[float, float]:
    """A model's time, and its standard deviation as a share of it."""
    doubt = _Doubt(parts, known)
    return doubt.total_s, doubt.spread


def worth_measuring(parts: Parts, known: Known, sure: float = SURE) -> list[tuple[str, Point]]:
    """What to measure next: operators and points; empty when every configuration is sure enough.

    Args:
        parts: terms of the model's time in each configuration.
        known: what is known of them.
        sure: the spread of the sum that is wanted in every configuration.
    """
    doubts = [_Doubt(terms, known) for terms in parts.values()]
    weights: dict[tuple[str, Point], float] = {}
    for doubt in doubts:
        for key, weight in doubt.weights.items():
            if doubt.spread > sure:
                weights[key] = max(weight, weights.get(key, 0.0))
    chosen: list[tuple[str, Point]] = []
    settled: set[tuple[str, Point]] = set()
    # The heaviest first; of those that weigh about as much, the one that takes least.
    for key in sorted(weights, key=lambda key: (-round(2 * math.log2(weights[key] + 1e-9)), known[key].exec_s, key)):
        unsure = [doubt for doubt in doubts if doubt.spread > sure]
        if not unsure:
            break
        if key in settled or not any(key in doubt.weights for doubt in unsure):
            continue
        chosen.append(key)
        near = {other for other in weights if _tells_of(key, other)}
        settled |= near
        for doubt in doubts:
            doubt.settle(near)
    return chosen


def _tells_of(one: tuple[str, Point], other: tuple[str, Point]) -> bool:
    """Whether measuring one leaves little to learn about the other: the same operator at up to twice the batch."""
    (signature, point), (its_signature, its_point) = one, other
    return (
        signature == its_signature
        and point._replace(batch=its_point.batch) == its_point
        and point.batch <= 2 * its_point.batch
        and its_point.batch <= 2 * point.batch
    )


class _Doubt:
    """What each term adds to the spread of one configuration's sum, and what is left as terms are settled."""

    def __init__(self, parts: Sequence[Part], known: Known) -> None:
        self.total_s = sum(part.calls * known[part.signature, part.point].exec_s for part in parts)
        self.weights: dict[tuple[str, Point], float] = {}
        self._family: dict[str, str] = {}
        self._sums: dict[str, list[float]] = {}
        for part in parts:
            one = known[part.signature, part.point]
            weight = one.spread * part.calls * one.exec_s / self.total_s
            self.weights[part.signature, part.point] = weight
            self._family[part.signature] = part.family
            sums = self._sums.setdefault(part.family, [0.0, 0.0])
            sums[0] += weight
            sums[1] += weight**2

    @property
    def spread(self) -> float:
        """Standard deviation of the whole sum, as a share of it: within a family errors are alike in part."""
        parts = (ALIKE * plain**2 + (1 - ALIKE) * max(0.0, squares) for plain, squares in self._sums.values())
        return math.sqrt(sum(parts))

    def settle(self, keys: Iterable[tuple[str, Point]]) -> None:
        """Count terms as known."""
        for key in keys:
            if key not in self.weights:
                continue
            weight = self.weights.pop(key)
            sums = self._sums[self._family[key[0]]]
            sums[0] -= weight
            sums[1] -= weight**2
