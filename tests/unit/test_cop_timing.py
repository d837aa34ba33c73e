"""What timings say on a machine that is disturbed, and how far predictions are from them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from infless_profiler.accuracy import accuracy
from infless_profiler.timing import CALL, COLD_OPERATOR, OPERATOR, WHOLE, Effort, Timing, timing_of

ONE = Timing(exec_s=1.0, spread=0.1, samples=5)


class TestTiming:
    """From samples to one number."""

    def test_a_few_interruptions_do_not_count(self) -> None:
        """The lower quartile is what a quiet machine takes."""
        quiet, disturbed = timing_of([0.01] * 10), timing_of([0.01] * 6 + [0.5] * 4)
        assert quiet.exec_s == disturbed.exec_s == 0.01
        assert (quiet.spread, disturbed.samples) == (0.0, 10)
        assert disturbed.spread > 1

    def test_copies_and_overhead_are_taken_off(self) -> None:
        """What starting a run takes is in the call, once."""
        assert timing_of([0.17] * 3, copies=16, overhead_s=0.01).exec_s == pytest.approx(0.01)

    @pytest.mark.parametrize("copies", [1, 16])
    def test_nothing_takes_no_time_at_all(self, copies: int) -> None:
        """Times are positive, even of an operator that is as quick as the overhead."""
        assert timing_of([0.001], copies, 0.002).exec_s == pytest.approx(1e-8)

    def test_a_second_look_keeps_the_quieter_one(self) -> None:
        """And counts both."""
        again = ONE.and_again(replace(ONE, exec_s=2.0, spread=0.5, samples=7))
        assert again == Timing(exec_s=1.0, spread=0.1, samples=12, looks=2)

    def test_doubt_falls_with_every_look_and_never_to_nothing(self) -> None:
        """And runs that disagree leave no less of it than runs that agree."""
        doubts = [replace(ONE, looks=looks).doubt for looks in (1, 2, 3, 4, 5, 100)]
        assert doubts == sorted(doubts, reverse=True)
        assert doubts[0] > doubts[1] > doubts[2] > doubts[5] > 0
        assert replace(ONE, spread=2.0).doubt >= ONE.doubt >= replace(ONE, spread=0.0).doubt > 0


class TestEffort:
    """When to stop."""

    EFFORT = Effort(warm_ups=1, runs_min=3, runs_max=6, least_s=1.0)

    @pytest.mark.parametrize(
        ("runs", "taken_s", "expected"), [(2, 9.0, False), (3, 0.9, False), (3, 1.0, True), (6, 0.0, True)]
    )
    def test_enough(self, runs: int, taken_s: float, expected: bool) -> None:
        """Some runs and some time; but never too many runs."""
        assert self.EFFORT.enough(runs, taken_s) is expected

    @pytest.mark.parametrize("effort", [OPERATOR, COLD_OPERATOR, CALL, WHOLE])
    def test_every_effort_ends(self, effort: Effort) -> None:
        """However quick the runs are, and after at least one."""
        assert 0 < effort.runs_min <= effort.runs_max
        assert effort.enough(effort.runs_max, 0.0)


class TestAccuracy:
    """Every point counts."""

    def test_by_hand(self) -> None:
        """Two points: 10 % too high, 20 % too low."""
        found = accuracy([1.1, 1.6], [1.2, 1.9], [[0.9, 1.0, 1.3], [2.0, 2.0, 2.0]])
        assert found is not None
        assert (found.points, found.mean, found.median) == (2, pytest.approx(0.15), pytest.approx(0.15))
        assert (found.p90, found.max) == (pytest.approx(0.19), pytest.approx(0.2))
        assert found.exceed_share == pytest.approx((1 / 3 + 1) / 2)

    def test_nothing_was_measured(self) -> None:
        """No number is better than one of nothing."""
        assert accuracy([], [], []) is None
