"""What composed times are wrong by on a machine, and how wide the margin must be."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from infless_profiler.correction import (
    EXCEED_SHARE,
    FEATURES,
    UNLEARNED_MARGIN,
    Correction,
    WholeTime,
    features_of,
    learn,
    settle,
)
from infless_profiler.operators import Call, ModelGraph, Operator, Point, Tensor

ALWAYS = (1.0, 0.0, 0.0, 0.0, 0.0)
MOVED = Tensor(dtype="int8", dims=((0, 100),))
GRAPH = ModelGraph(
    name="m", digest="d", parameter_bytes=0,
    calls=(Call(operator=Operator(domain="", type="Relu", version=13, inputs=(MOVED,))),) * 3,
)  # fmt: skip


def row(model: str, factor: float, features: tuple[float, ...] = ALWAYS, noise: float = 0.0) -> WholeTime:
    """Measured `factor` times what was composed, with some noise."""
    executions_s = 0.01 * factor * np.exp(noise * np.linspace(-1, 1, 21))
    return WholeTime(model=model, features=features, composed_s=0.01, executions_s=tuple(map(float, executions_s)))


class TestFeatures:
    """What the residual may depend on."""

    def test_as_many_as_are_named(self) -> None:
        """The first is always there, and all lie between 0 and 1."""
        for cores, composed_s in ((1, 1.0), (2, 1e-9), (64, 1e-3)):
            found = features_of(GRAPH, Point(1, cores), composed_s, 100)
            assert len(found) == len(FEATURES)
            assert found[0] == 1.0
            assert all(0 <= one <= 1 for one in found)

    def test_by_hand(self) -> None:
        """Three operators of 20 us in 120 us are half start; 300 bytes fill a cache of 400 to three quarters."""
        assert features_of(GRAPH, Point(1, 2), 120e-6, 400) == pytest.approx((1.0, 1.0, 0.5, 0.5, 0.5))
        assert features_of(GRAPH, Point(1, 1), 120e-6, 0) == pytest.approx((1.0, 0.0, 0.5, 0.0, 0.0))


class TestLearning:
    """From models that were measured whole."""

    def test_without_models_nothing_is_corrected(self) -> None:
        """With a wide margin."""
        assert learn([]) == Correction(margin=UNLEARNED_MARGIN)
        assert learn([]).corrected_s(0.2, ALWAYS) == 0.2

    def test_a_single_model_teaches_a_level_but_no_margin(self) -> None:
        """Nobody knows how the next one differs."""
        found = learn([row("a", 1.5)])
        assert found.corrected_s(1.0, ALWAYS) == pytest.approx(1.5, rel=0.02)
        assert (found.margin, found.models) == (UNLEARNED_MARGIN, 1)

    def test_models_that_agree_are_planned_with_a_narrow_margin(self) -> None:
        """But never with less than 2 %."""
        found = learn([row(name, 1.3) for name in "abcdefgh"])
        assert found.corrected_s(1.0, ALWAYS) == pytest.approx(1.3, rel=0.01)
        assert found.margin == pytest.approx(1.02)

    def test_models_that_differ_are_planned_with_a_wide_one(self) -> None:
        """At least as wide as the error of the worst when it is left out."""
        found = learn([row(name, factor) for name, factor in zip("abcdef", (1, 1, 1, 1, 1, 1.6), strict=True)])
        assert found.margin > 1.5

    def test_noise_of_single_executions_is_in_the_margin(self) -> None:
        """A level that is right is not enough where executions are late."""
        quiet, noisy = ([row(name, 1.0, noise=noise) for name in "abcd"] for noise in (0.0, 0.3))
        assert learn(noisy).margin > math.exp(0.25) > 1.1 > learn(quiet).margin

    def test_what_depends_on_a_feature_is_told_from_what_does_not(self) -> None:
        """Models with short operators take 1.5 times as long, others do not."""
        short = (1.0, 0.0, 1.0, 0.0, 0.0)
        rows = [row(f"short{place}", 1.5, short) for place in range(9)] + [row(f"l{place}", 1.0) for place in range(9)]
        found = learn(rows)
        assert found.corrected_s(1.0, short) == pytest.approx(1.5, rel=0.04)
        assert found.corrected_s(1.0, ALWAYS) == pytest.approx(1.0, rel=0.04)

    def test_a_model_with_many_points_counts_like_one_with_few(self) -> None:
        """The level is the same whether it was measured once or fifty times."""
        few = learn([row("a", 2.0), row("b", 1.0)])
        many = learn([*[row("a", 2.0)] * 50, row("b", 1.0)])
        assert many.coefficients == pytest.approx(few.coefficients)


class TestSettling:
    """The time that is planned with."""

    CORRECTION = Correction(coefficients=(math.log(2), 0, 0, 0, 0), margin=1.5, models=3)

    def test_composed_is_corrected_and_takes_the_margin(self) -> None:
        """Twice as long, and half of that more."""
        found = settle(0.1, ALWAYS, (), self.CORRECTION)
        assert (found.expected_s, found.planned_s) == (pytest.approx(0.2), pytest.approx(0.3))

    def test_measured_whole_needs_neither(self) -> None:
        """The median, and the time that 95 of 100 executions take."""
        executions_s = tuple(np.linspace(0.1, 0.2, 101))
        found = settle(9.0, ALWAYS, executions_s, self.CORRECTION)
        assert EXCEED_SHARE == 0.05
        assert (found.expected_s, found.planned_s) == (pytest.approx(0.15), pytest.approx(0.195))

    def test_however_steady_it_was_there_is_some_margin(self) -> None:
        """Tomorrow is another day."""
        assert settle(9.0, ALWAYS, (0.1,) * 20, self.CORRECTION).planned_s == pytest.approx(0.102)


def test_the_residual_is_of_the_median() -> None:
    """One late execution changes nothing."""
    one = row("a", 1.0)
    assert replace(one, executions_s=(0.01, 0.01, 5.0)).residual == 0.0
    assert replace(one, composed_s=0.02).residual == pytest.approx(-math.log(2))
