"""Pure: which operators are worth measuring.

A model's time is a sum, and errors of its parts even out: an operator that takes a hundredth of it may be a third off
without anybody noticing. So what is measured next is what the sum is least sure about, until the sum is sure enough.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from infless_profiler.compose import needed_points
from infless_profiler.estimate import Estimate
from infless_profiler.operators import ModelGraph, Point, state

SURE = 0.03
"""A standard deviation of the composed time of 3 %: what two measurements of a whole model differ by."""
ALIKE = 0.3
"""Correlation of errors within a family: what an estimate is wrong by, its like are wrong by as well, in part."""
_ABOUT_AS_MUCH = 0.7


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
    total_s = sum(part.calls * known[part.signature, part.point].exec_s for part in parts)
    return total_s, math.sqrt(sum(_Doubt(parts, known, total_s).by_family.values()))


def worth_measuring(parts: Parts, known: Known, sure: float = SURE) -> dict[str, Point]:
    """The next point to measure for each operator that matters; empty when every configuration is sure enough.

    Args:
        parts: terms of the model's time in each configuration.
        known: what is known of them.
        sure: the spread of the sum that is wanted in every configuration.
    """
    doubts = {
        point: _Doubt(terms, known, sum(part.calls * known[part.signature, part.point].exec_s for part in terms))
        for point, terms in parts.items()
    }
    heaviest: dict[str, float] = {}
    for doubt in doubts.values():
        for signature, by_point in doubt.weights.items():
            heaviest[signature] = max(*by_point.values(), heaviest.get(signature, 0.0))
    chosen: dict[str, Point] = {}
    for signature in sorted(heaviest, key=lambda one: (-heaviest[one], one)):
        unsure = [doubt for doubt in doubts.values() if doubt.variance > sure**2]
        if not unsure:
            break
        matters = {
            place: weight for doubt in unsure for place, weight in doubt.weights.get(signature, {}).items() if weight
        }
        if not matters:
            continue
        most = max(matters.values())
        near_most = [place for place, weight in matters.items() if weight >= _ABOUT_AS_MUCH * most]
        # Of points that say about as much, the one that takes least.
        chosen[signature] = min(near_most, key=lambda place: (known[signature, place].exec_s, place))
        for doubt in doubts.values():
            doubt.settle(signature)
    return chosen


class _Doubt:
    """What each operator adds to the spread of one configuration's sum, and what is left as they are settled."""

    def __init__(self, parts: Sequence[Part], known: Known, total_s: float) -> None:
        self.weights: dict[str, dict[Point, float]] = {}
        self._family: dict[str, str] = {}
        self._sums: dict[str, list[float]] = {}
        for part in parts:
            one = known[part.signature, part.point]
            weight = one.spread * part.calls * one.exec_s / total_s
            self.weights.setdefault(part.signature, {})[part.point] = weight
            self._family[part.signature] = part.family
            sums = self._sums.setdefault(part.family, [0.0, 0.0])
            sums[0] += weight
            sums[1] += weight**2

    @property
    def by_family(self) -> dict[str, float]:
        """Variance that each family adds: its errors are alike in part."""
        return {
            family: ALIKE * plain**2 + (1 - ALIKE) * max(0.0, squares)
            for family, (plain, squares) in self._sums.items()
        }

    @property
    def variance(self) -> float:
        """Of the whole sum."""
        return sum(self.by_family.values())

    def settle(self, signature: str) -> None:
        """Count an operator as measured."""
        for weight in self.weights.get(signature, {}).values():
            sums = self._sums[self._family[signature]]
            sums[0] -= weight
            sums[1] -= weight**2
