"""From times of operators to the time of a model: sums, branches, and weights that fall out of the caches."""

from __future__ import annotations

import pytest

from infless_profiler.compose import CACHE_FILLS, cold_share, makespan_s, model_s, needed_points
from infless_profiler.operators import Call, ModelGraph, Operator, Point, Tensor


def call(name: str, *needs: int, elements: int = 0) -> Call:
    """An operator of a name that moves so many bytes for each item."""
    moved = (Tensor(dtype="int8", dims=((0, elements),)),) if elements else ()
    return Call(operator=Operator(domain="", type=name, version=1, inputs=moved), needs=needs)


def graph(*calls: Call) -> ModelGraph:
    """A model of these calls."""
    return ModelGraph(name="m", digest="d", calls=calls, parameter_bytes=0)


DIAMOND = graph(call("a"), call("b", 0), call("c", 0), call("d", 1, 2))
TIMES_S = {one.operator.signature: exec_s for one, exec_s in zip(DIAMOND.calls, (1.0, 2.0, 3.0, 4.0), strict=True)}


@pytest.mark.parametrize(("threads", "expected"), [(1, 10.0), (2, 8.0), (9, 8.0)])
def test_branches_add_unless_operators_run_side_by_side(threads: int, expected: float) -> None:
    """With two threads only the longer branch counts."""
    assert model_s(DIAMOND, TIMES_S, threads) == expected


def test_a_chain_gains_nothing_from_threads() -> None:
    """Each call waits for the one before."""
    calls = [call("a"), call("b", 0), call("c", 1)]
    assert makespan_s(calls, [1, 2, 3], 4) == 6


def test_free_threads_take_the_call_that_has_waited_longest() -> None:
    """Three calls of 3, 1 and 2 on two threads: the last starts when the short one ends."""
    calls = [call("a"), call("b"), call("c")]
    assert makespan_s(calls, [3, 1, 2], 2) == 3
    assert makespan_s(calls, [1, 1, 2], 2) == 3


def test_a_call_that_became_ready_earlier_goes_first() -> None:
    """`c` is ready at 1 and `d` at 2: a thread that is free at 2 takes `c`, and `d` waits."""
    calls = [call("a"), call("b"), call("long"), call("c", 0), call("d", 1)]
    assert makespan_s(calls, [1, 2, 5, 1, 9], 3) == 11
    assert makespan_s(calls, [1, 2, 5, 1, 9], 2) == 12


def test_no_calls_take_no_time() -> None:
    """An empty model."""
    assert makespan_s([], [], 3) == 0
    assert model_s(graph(), {}) == 0


@pytest.mark.parametrize(("cache_bytes", "expected"), [(0, 0.0), (200, 0.0), (150, 1 / 3), (100, 1.0), (10, 1.0)])
def test_weights_get_cold_as_the_cache_fills(cache_bytes: int, expected: float) -> None:
    """From half of it on, up to all of it; an unknown cache is none that anything falls out of."""
    assert CACHE_FILLS == 0.5
    assert cold_share(graph(call("a", elements=100)), 1, cache_bytes) == pytest.approx(expected)


def test_needed_points_share_the_time() -> None:
    """Warm, cold, or some of both; weights add up to one."""
    model, point = graph(call("a", elements=100)), Point(1, 2, 50)
    assert needed_points(model, point, 1000) == ((point, 1.0),)
    assert needed_points(model, point, 10) == ((point._replace(cold=True), 1.0),)
    warm, cold = needed_points(model, point, 150)
    assert (warm[0], cold[0]) == (point, point._replace(cold=True))
    assert warm[1] + cold[1] == pytest.approx(1)
