"""What is measured next: what the sum is least sure about, and nothing once it is sure enough."""

from __future__ import annotations

import math

import pytest

from infless_profiler.choose import ALIKE, SURE, Part, composed, parts_of, worth_measuring
from infless_profiler.estimate import Estimate
from infless_profiler.operators import COLD_BYTES, Call, ModelGraph, Operator, Point, Tensor

ONE, TWO = Point(1, 1), Point(2, 1)


def known(**by_name: tuple[float, float]) -> dict[tuple[str, Point], Estimate]:
    """`a=(exec_s, spread)` at batch 1, and twice as long at batch 2."""
    return {
        (name, point): Estimate(exec_s=exec_s * point.batch, spread=spread, measured=spread == 0)
        for name, (exec_s, spread) in by_name.items()
        for point in (ONE, TWO)
    }


def part(name: str, point: Point = ONE, calls: float = 1.0, family: str = "") -> Part:
    """A term; each in a family of its own unless told."""
    return Part(name, family or name, point, calls)


class TestSums:
    """A model's time and how sure it is."""

    def test_calls_add(self) -> None:
        """Each as often as it is called."""
        assert composed([part("a", calls=3), part("b")], known(a=(1.0, 0.0), b=(2.0, 0.0))) == (5.0, 0.0)

    def test_errors_of_different_families_even_out(self) -> None:
        """Squares add: two halves that are 10 % off make a sum that is 7 % off."""
        sums = composed([part("a"), part("b")], known(a=(1.0, 0.1), b=(1.0, 0.1)))
        assert sums == (2.0, pytest.approx(0.1 / math.sqrt(2)))

    def test_errors_within_a_family_are_alike_in_part(self) -> None:
        """So they even out less."""
        sums = composed([part("a", family="f"), part("b", family="f")], known(a=(1.0, 0.1), b=(1.0, 0.1)))
        assert sums[1] == pytest.approx(math.sqrt(ALIKE * 0.1**2 + (1 - ALIKE) * 0.1**2 / 2))


class TestParts:
    """The terms of a model's time."""

    @staticmethod
    def operator(elements: int) -> Operator:
        """With so many weights."""
        weight = Tensor(dtype="float32", dims=((elements, 0),), constant=True)
        return Operator(domain="", type="MatMul", version=13, inputs=(weight,))

    def graph(self, *elements: int) -> ModelGraph:
        """A chain."""
        calls = tuple(Call(operator=self.operator(count)) for count in elements)
        return ModelGraph(name="m", digest="d", calls=calls, parameter_bytes=0)

    def test_equal_calls_are_one_part(self) -> None:
        """Counted, for each configuration."""
        found = parts_of(self.graph(7, 7, 8), [ONE, TWO], 0)
        assert [*found] == [ONE, TWO]
        assert [one.calls for one in found[ONE]] == [2, 1]
        assert {one.point for one in found[TWO]} == {TWO}

    def test_few_weights_are_looked_up_warm(self) -> None:
        """A model half out of the cache: its large operator is half cold, its small one is a single term."""
        small, large = 10, COLD_BYTES // 4
        moved = 4 * (small + large)
        found = {
            (one.signature, one.point.cold): one.calls
            for one in parts_of(self.graph(small, large), [ONE], moved * 4 // 3)[ONE]
        }
        assert found == {
            (self.operator(small).signature, False): pytest.approx(1.0),
            (self.operator(large).signature, False): pytest.approx(0.5, abs=1e-4),
            (self.operator(large).signature, True): pytest.approx(0.5, abs=1e-4),
        }


class TestChoice:
    """Which operators, and where."""

    def test_nothing_when_all_is_sure(self) -> None:
        """Not even a look."""
        assert worth_measuring({ONE: [part("a")]}, known(a=(1.0, 0.0))) == []
        assert worth_measuring({ONE: [part("a")]}, known(a=(1.0, SURE))) == []
        assert worth_measuring({}, {}) == []

    def test_what_hardly_matters_is_never_measured(self) -> None:
        """An operator of a hundredth of the time may be 90 % off."""
        chosen = worth_measuring({ONE: [part("a"), part("b")]}, known(a=(1.0, 0.5), b=(0.01, 0.9)))
        assert chosen == [("a", ONE)]

    def test_many_small_ones_matter_together(self) -> None:
        """As many as it takes until the rest is sure, each once."""
        parts = {ONE: [part(f"o{place}", family="f") for place in range(20)]}
        everything = known(**{f"o{place}": (1.0, 0.2 - place * 0.001) for place in range(20)})
        chosen = worth_measuring(parts, everything)
        assert 10 < len({*chosen}) == len(chosen) < 20

    def test_the_heaviest_is_measured_first(self) -> None:
        """Whatever interrupts it, most is known then."""
        everything = known(a=(0.25, 0.5), b=(4.0, 0.5), c=(1.0, 0.5))
        chosen = worth_measuring({ONE: [part("a"), part("b"), part("c")]}, everything, sure=0.001)
        assert chosen == [("b", ONE), ("c", ONE), ("a", ONE)]

    def test_a_measurement_tells_of_batches_nearby(self) -> None:
        """Of eight batch sizes every other one or fewer is measured in one round."""
        points = [Point(2**place, 1) for place in range(8)]
        everything = {("a", point): Estimate(exec_s=0.01 * point.batch, spread=0.5, measured=False) for point in points}
        chosen = worth_measuring({point: [part("a", point)] for point in points}, everything)
        assert 2 < len(chosen) <= 4

    def test_a_wish_for_less_certainty_measures_less(self) -> None:
        """`sure` is the spread that is wanted."""
        parts = {ONE: [part("a"), part("b")]}
        everything = known(a=(1.0, 0.4), b=(0.5, 0.4))
        assert len(worth_measuring(parts, everything, sure=0.01)) == 2
        assert len(worth_measuring(parts, everything, sure=0.2)) == 1
        assert worth_measuring(parts, everything, sure=0.5) == []

    def test_of_points_that_say_as_much_the_quickest_is_taken(self) -> None:
        """A batch of 1 is measured in half the time."""
        assert worth_measuring({ONE: [part("a")], TWO: [part("a", TWO)]}, known(a=(1.0, 0.5))) == [("a", ONE)]

    def test_a_point_that_says_far_more_is_taken(self) -> None:
        """Where batch 1 is known well, batch 2 is measured."""
        everything = {**known(a=(1.0, 0.5)), ("a", ONE): Estimate(exec_s=1.0, spread=0.1, measured=True)}
        assert worth_measuring({ONE: [part("a")], TWO: [part("a", TWO)]}, everything) == [("a", TWO)]

    def test_only_configurations_that_are_unsure_count(self) -> None:
        """An operator whose configuration is sure already is left alone."""
        parts = {ONE: [part("a"), part("x", calls=100)], TWO: [part("b", TWO)]}
        everything = {**known(a=(1.0, 0.9), x=(1.0, 0.0), b=(0.1, 0.5))}
        assert worth_measuring(parts, everything) == [("b", TWO)]

    def test_shares_of_a_gpu_are_points_like_others(self) -> None:
        """Each share that is unsure is asked for, the quickest first."""
        shares = [Point(8, 1, share) for share in (10, 50, 100)]
        everything = {
            ("a", point): Estimate(exec_s=1e-4 + 1e-2 / point.gpu_percent, spread=0.5, measured=False)
            for point in shares
        }
        chosen = worth_measuring({point: [part("a", point)] for point in shares}, everything)
        assert chosen == [("a", share) for share in reversed(shares)]
