"""Times of operators that were not measured, from those that were; and on a GPU between its shares."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest

from infless_profiler import estimate as estimate_module
from infless_profiler.estimate import Estimate, Measured, estimate, rough_s
from infless_profiler.operators import COLD_BYTES, Operator, Point, Tensor, multiply_adds
from infless_profiler.timing import Timing


def tensor(*lengths: int, grows: bool = True) -> Tensor:
    """A result with the batch in front, or a weight."""
    dims = tuple((length, 0) for length in lengths)
    return Tensor(dtype="float32", dims=((0, 1), *dims) if grows else dims, constant=not grows)


def matmul(wide: int, high: int, kind: str = "MatMul") -> Operator:
    """Rows times a weight."""
    return Operator(
        domain="", type=kind, version=13, inputs=(tensor(wide), tensor(wide, high, grows=False)),
        outputs=(tensor(high),),
    )  # fmt: skip


def measured(operator: Operator, point: Point, exec_s: float, looks: int = 2) -> Measured:
    """A row of the tables."""
    return Measured(
        operator=operator, point=point, timing=Timing(exec_s=exec_s, spread=0.05, samples=9, looks=looks)
    )  # fmt: skip


def known(operator: Operator, point: Point, rows: list[Measured]) -> Estimate:
    """The answer to one question."""
    return estimate([(operator, point)], rows)[operator.signature, point]


SMALL, LARGE = matmul(64, 64), matmul(512, 512)
ONE = Point(1, 1)


class TestRoughModel:
    """What is known of an operator that nobody has seen."""

    def test_more_work_takes_longer_and_more_cores_less(self) -> None:
        """In every direction; and it is never nothing."""
        assert rough_s(LARGE, ONE) > rough_s(SMALL, ONE) > 0
        assert rough_s(LARGE, Point(8, 1)) > rough_s(LARGE, ONE)
        assert rough_s(LARGE, Point(8, 2)) < rough_s(LARGE, Point(8, 1))
        assert rough_s(LARGE, Point(8, 1, 100)) < rough_s(LARGE, Point(8, 1, 50))

    def test_cold_weights_take_longer(self) -> None:
        """They come from memory."""
        assert rough_s(LARGE, Point(1, 1, cold=True)) > rough_s(LARGE, ONE)

    def test_without_a_measurement_it_is_the_answer(self) -> None:
        """With a spread that has everybody measure it."""
        answer = known(SMALL, ONE, [])
        assert answer.exec_s == pytest.approx(rough_s(SMALL, ONE))
        assert (answer.measured, answer.spread) == (False, pytest.approx(0.998, abs=0.1))

    def test_nothing_is_asked(self) -> None:
        """Nothing is answered."""
        assert estimate([], [measured(SMALL, ONE, 1.0)]) == {}


class TestLearning:
    """Measurements of an operator and of its like."""

    def test_a_measured_operator_is_what_was_measured(self) -> None:
        """Within the doubt of a look, however wrong the rough model is."""
        for factor in (0.01, 1.0, 100.0):
            exec_s = factor * rough_s(SMALL, ONE)
            answer = known(SMALL, ONE, [measured(SMALL, ONE, exec_s)])
            assert answer.measured
            assert answer.exec_s == pytest.approx(exec_s, rel=0.01)
            assert answer.spread < 0.05

    def test_more_looks_are_surer(self) -> None:
        """One may have been disturbed."""
        spreads = [known(SMALL, ONE, [measured(SMALL, ONE, 1e-4, looks)]).spread for looks in (1, 2, 3, 4)]
        assert spreads == sorted(spreads, reverse=True)
        assert len({*spreads}) == 4

    def test_its_like_are_expected_to_be_as_wrong(self) -> None:
        """A family that takes three times what the rough model says does so at other sizes as well."""
        rows = [measured(matmul(n, n), ONE, 3 * rough_s(matmul(n, n), ONE)) for n in (64, 128, 512)]
        answer = known(matmul(256, 256), ONE, rows)
        assert not answer.measured
        assert answer.exec_s == pytest.approx(3 * rough_s(matmul(256, 256), ONE), rel=0.02)
        assert answer.spread < known(matmul(256, 256), ONE, []).spread

    def test_other_families_say_nothing(self) -> None:
        """A slow Gemm is no slow MatMul."""
        rows = [measured(matmul(64, 64, "Gemm"), ONE, 1.0)]
        assert known(SMALL, ONE, rows) == known(SMALL, ONE, [])

    def test_an_own_deviation_is_carried_to_other_batches(self) -> None:
        """One operator that is slow for its size is so at every batch; its like are not."""
        usual = [measured(matmul(n, n), ONE, rough_s(matmul(n, n), ONE)) for n in (32, 64, 128, 512)]
        odd = matmul(256, 256)
        rows = [*usual, measured(odd, Point(1, 1), 2 * rough_s(odd, Point(1, 1)))]
        rows += [measured(odd, Point(16, 1), 2 * rough_s(odd, Point(16, 1)))]
        assert known(odd, Point(4, 1), rows).exec_s / rough_s(odd, Point(4, 1)) == pytest.approx(2, rel=0.2)
        assert known(matmul(32, 32), ONE, rows).exec_s == pytest.approx(rough_s(matmul(32, 32), ONE), rel=0.1)

    def test_a_disturbed_look_is_told_by_its_neighbours(self) -> None:
        """One look that took half as long again between quiet ones is not believed fully."""
        rows = [measured(LARGE, Point(batch, 1), rough_s(LARGE, Point(batch, 1)), 4) for batch in (1, 2, 4, 16, 32)]
        true_s = rough_s(LARGE, Point(8, 1))
        answer = known(LARGE, Point(8, 1), [*rows, measured(LARGE, Point(8, 1), 1.5 * true_s, 1)])
        assert answer.measured
        assert true_s < answer.exec_s < 1.4 * true_s

    def test_few_weights_are_never_cold(self) -> None:
        """A cold point of a small operator was measured where its warm one was; a large one is another thing."""
        cold = Point(1, 1, cold=True)
        assert known(SMALL, cold, [measured(SMALL, ONE, 1e-5)]).measured
        assert COLD_BYTES < 4 * 512 * 512
        assert not known(LARGE, cold, [measured(LARGE, ONE, 1e-4)]).measured

    def test_of_very_many_rows_the_nearest_are_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its own are among them."""
        monkeypatch.setattr(estimate_module, "_NEAREST", 5)
        rows = [measured(matmul(n, n), ONE, 2 * rough_s(matmul(n, n), ONE)) for n in range(8, 800, 24)]
        rows.append(measured(SMALL, ONE, 5 * rough_s(SMALL, ONE)))
        answer = known(SMALL, ONE, rows)
        assert answer.measured
        assert answer.exec_s == pytest.approx(5 * rough_s(SMALL, ONE), rel=0.03)
        far = matmul(790, 790)
        assert known(far, ONE, rows).exec_s == pytest.approx(2 * rough_s(far, ONE), rel=0.05)


class TestGpuShares:
    """Synthetic kernels: a start, and work that is shared out: t = a + b / share."""

    @staticmethod
    def exec_s(operator: Operator, point: Point, start_s: float, per_add_s: float) -> float:
        """What such a kernel takes."""
        return start_s + per_add_s * multiply_adds(operator, point.batch) * 100 / point.gpu_percent

    @pytest.mark.parametrize(
        ("start_s", "per_add_s"),
        [*itertools.product((2e-6, 1e-5, 1e-4), (1e-12, 1e-11))],
        ids=lambda value: f"{value:g}",
    )
    def test_between_measured_shares_it_is_within_a_tenth(self, start_s: float, per_add_s: float) -> None:
        """At every share between 10 and 100 % when six of them were measured."""
        rows = [
            measured(LARGE, point, self.exec_s(LARGE, point, start_s, per_add_s))
            for batch in (1, 8, 32)
            for share in (10, 20, 35, 50, 75, 100)
            for point in [Point(batch, 1, share)]
        ]
        for batch, share in itertools.product((1, 8, 32), (15, 30, 40, 60, 90)):
            point = Point(batch, 1, share)
            true_s = self.exec_s(LARGE, point, start_s, per_add_s)
            assert known(LARGE, point, rows).exec_s == pytest.approx(true_s, rel=0.1), point

    def test_spread_grows_with_the_distance_to_what_was_measured(self) -> None:
        """So a share that is far from all of them is measured next."""
        rows = [measured(LARGE, Point(8, 1, share), 1e-4) for share in (90, 100)]
        spreads = [known(LARGE, Point(8, 1, share), rows).spread for share in (80, 50, 20, 10)]
        assert spreads == sorted(spreads)
        assert spreads[0] < spreads[-1]


def test_answers_are_finite_at_the_edges() -> None:
    """The smallest and the largest things that anybody asks for."""
    huge = replace(LARGE, inputs=(tensor(1 << 20), tensor(1 << 20, 1 << 20, grows=False)), outputs=(tensor(1 << 20),))
    nothing = Operator(domain="", type="MatMul", version=13, inputs=(None,))
    rows = [measured(SMALL, ONE, 1e-8), measured(huge, Point(4096, 64), 1000.0)]
    for operator in (huge, nothing, SMALL):
        for point in (ONE, Point(4096, 128, 100, cold=True)):
            answer = known(operator, point, rows)
            assert 0 < answer.exec_s < math.inf
            assert 0 < answer.spread < 2
