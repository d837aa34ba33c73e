"""What holds for every history of readings."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from batch_counts import BOUNDS, Batches, prior
from hypothesis import given
from hypothesis import strategies as st

from infless_core.model import Configuration
from infless_profiler.observe import MARGIN_MIN, Observed
from infless_profiler.readings import Counted, Series

CONFIGURATION = Configuration(batch=8, cpu_cores=1)
EXECUTIONS = st.floats(0.00002, 30.0)  # also below the first bound, and above the last
WINDOWS = st.lists(st.lists(EXECUTIONS, min_size=1, max_size=30), min_size=1, max_size=12)
GRID = (prior(1, 0.004), prior(4, 0.008), prior(8, 0.012), prior(8, 0.007, cores=2))


def history(windows: list[list[float]], resets: tuple[int, ...] = ()) -> list[Counted]:
    """What is read after each window; before some of them the process is replaced."""
    batches, found = Batches(), []
    for place, executions_s in enumerate(windows):
        if place in resets:
            batches.restarted()
        found.append(batches.ran(executions_s))
    return found


def watch(readings: list[Counted], grid: tuple[object, ...] = GRID) -> Observed:
    """An estimator that has seen them, five seconds apart."""
    seen = Observed().expecting("f", grid).after(0.0, [])  # type: ignore[arg-type]
    for place, one in enumerate(readings, 1):
        seen = seen.after(5.0 * place, [one])
    return seen


@given(WINDOWS, st.sets(st.integers(0, 11)))
def test_resets_never_give_negative_times(windows: list[list[float]], resets: set[int]) -> None:
    """Nor batches, nor buckets that fall; every window is one that could have been."""
    seen = watch(history(windows, tuple(resets)))
    for kept in seen.regimes.values():
        for window in kept:
            assert window.batches > 0
            assert window.total_s > 0
            assert list(window.counts) == sorted(window.counts)
            assert window.counts[0] >= 0
    assert all(point.exec_s > 0 for point in seen.correct("f"))


@given(WINDOWS, st.integers(-8, 8))
def test_scale_equivariance(windows: list[list[float]], power: int) -> None:
    """A machine that is 2^n times as slow has 2^n times the level, with bounds that are as well."""
    scale = 2.0**power
    slow = tuple(replace(one, expected_s=one.expected_s * scale) for one in GRID)
    plain, scaled = watch(history(windows)), Observed().expecting("f", slow).after(0.0, [])
    batches = Batches(bounds=[bound * scale for bound in BOUNDS])
    for place, executions_s in enumerate(windows, 1):
        scaled = scaled.after(5.0 * place, [batches.ran(exec_s * scale for exec_s in executions_s)])
    level_s, scaled_s = (seen.levels("f")[CONFIGURATION].exec_s for seen in (plain, scaled))
    assert scaled_s == pytest.approx(level_s * scale)
    points = zip(plain.correct("f"), scaled.correct("f"), strict=True)
    assert all(two.exec_s == pytest.approx(one.exec_s * scale) for one, two in points)


@given(WINDOWS)
def test_the_level_is_between_the_windows_means(windows: list[list[float]]) -> None:
    """And between what is in the histogram at all."""
    seen = watch(history(windows))
    means_s = [window.mean_s for window in seen.regimes["f", CONFIGURATION]]
    assert min(means_s) <= seen.levels("f")[CONFIGURATION].exec_s <= max(means_s)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from([1, 4, 8]), EXECUTIONS), min_size=1, max_size=40),
    st.randoms(),
)
def test_the_order_of_series_does_not_matter(ran: list[tuple[int, int, float]], rng: object) -> None:
    """Prometheus and threads give them in any."""
    batches: dict[tuple[int, int], Batches] = {}
    plain = shuffled = Observed().expecting("f", GRID).after(0.0, [])
    for now_s in (5.0, 10.0, 15.0):
        readings = []
        for instance, size, exec_s in ran:
            one = batches.setdefault((instance, size), Batches(size, f"i{instance}"))
            one.ran([exec_s])
        readings = [one.ran([]) for one in batches.values()]
        plain = plain.after(now_s, readings)
        rng.shuffle(readings)  # type: ignore[attr-defined]
        shuffled = shuffled.after(now_s, readings)
    assert shuffled == plain


@given(EXECUTIONS, st.integers(5, 30), st.floats(0.1, 10.0))
def test_the_true_time_is_found(exec_s: float, count: int, wrong: float) -> None:
    """Whatever was measured before; with a margin that is never below the least."""
    seen = watch(history([[exec_s] * count] * 12), (prior(8, exec_s * wrong),))
    assert seen.levels("f")[CONFIGURATION].exec_s == pytest.approx(exec_s, rel=1e-6)
    assert seen.factors("f")[CONFIGURATION] == pytest.approx(1 / wrong, rel=0.03)
    (point,) = seen.correct("f")
    assert point.exec_s >= exec_s * MARGIN_MIN * 0.97


@given(st.floats(0.001, 1.0), st.floats(1.0, 30.0), st.integers(0, 9))
def test_one_stall_does_not_move_the_level(exec_s: float, stall_s: float, place: int) -> None:
    """By more than half a percent, in whichever of ten readings it falls."""
    windows = [[exec_s] * 20 for _ in range(10)]
    windows[place][7] = exec_s + stall_s
    seen = watch(history(windows), (prior(8, exec_s),))
    assert seen.levels("f")[CONFIGURATION].exec_s == pytest.approx(exec_s, rel=0.005)
    assert seen.drifts == ()


ANY = st.floats(allow_nan=True, allow_infinity=True)
NASTY = st.builds(
    Counted,
    series=st.builds(
        Series, instance=st.sampled_from("ij"), function=st.sampled_from("fg"), batch=st.integers(-1, 9),
        cpu_cores=st.integers(0, 2), gpu_percent=st.integers(-1, 101),
    ),
    buckets=st.lists(st.tuples(ANY, ANY), max_size=4).map(tuple)
    | st.lists(st.tuples(st.floats(1e-9, 1e6), st.floats(0, 1e9)), max_size=4).map(
        lambda parts: (*zip(sorted(bound for bound, _ in parts), sorted(n for _, n in parts), strict=True), (math.inf, 1e9))
    ),
    count=ANY | st.just(1e9),
    total_s=ANY | st.floats(0, 1e15),
)  # fmt: skip


@given(st.lists(st.lists(NASTY, max_size=4), max_size=6))
def test_faults_never_raise(readings: list[list[Counted]]) -> None:
    """Whatever a server says; what is planned stays a profile."""
    seen = Observed().expecting("f", GRID)
    for place, some in enumerate(readings):
        before = seen.faults
        seen = seen.after(float(place), some)
        assert seen.faults == before + len(seen.faulty)
        points = seen.correct("f")
        assert len(points) == len(GRID)
        assert all(0 < point.exec_s < math.inf for point in points)
