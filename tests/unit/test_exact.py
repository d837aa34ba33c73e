"""The exact planner: each goal in its turn, status, limits, and silence on standard output."""

import ctypes
from dataclasses import replace

import mip
import pytest

from infless_core.clock import ManualClock, SystemClock
from infless_core.model import Configuration, FunctionDemand, Gpu, Problem, ProfilePoint, Running, Server
from infless_scheduler import milp
from infless_scheduler.exact import TIME_SHARE, Goal, goal_value, solve_exactly
from infless_scheduler.milp import STATUS
from infless_scheduler.native_output import stdout_silenced
from infless_scheduler.placement import SolverStatus, objective, task_of, unserved_rps
from infless_scheduler.program import program_of, worth_trying

GIB = 2**30


def _point(batch, cpu_cores, exec_s, gpu_percent=0, memory_bytes=0):
    shape = Configuration(batch=batch, cpu_cores=cpu_cores, gpu_percent=gpu_percent)
    return ProfilePoint(configuration=shape, exec_s=exec_s, memory_bytes=memory_bytes)


def _function(id_, rate_rps, *points):
    return FunctionDemand(id=id_, latency_target_s=0.2, rate_rps=rate_rps, max_batch=32, profile=points)


def _problem(*functions, sizes=(8, 8), gpus=0, **more):
    gpu = tuple(Gpu(id=f"g{n}", memory_bytes=GIB) for n in range(gpus))
    servers = tuple(Server(id=f"s{n}", cpu_cores=cores, memory_bytes=GIB, gpus=gpu) for n, cores in enumerate(sizes))
    return Problem(servers=servers, functions=functions, **more)


def _running(server, shape):
    return Running(id="f-1", function="f", server=server, gpu=None, configuration=shape)


def _solve(problem, time_limit_s=20.0):
    task = task_of(problem)
    return task, solve_exactly(task, (), time_limit_s=time_limit_s, clock=SystemClock())


def _shapes(solution):
    return sorted((p.function, p.server, p.offer.configuration.batch) for p in solution.placements)


def test_status_mapping_is_total():
    """Every status of the library has a meaning here; a new version's new one fails this test."""
    assert set(STATUS) == set(mip.OptimizationStatus)
    assert set(TIME_SHARE) == set(Goal)


def test_serving_comes_before_cost():
    """The dearer server is used when the cheap one cannot carry the rate."""
    task, solution = _solve(_problem(_function("f", 200, _point(4, 4, 0.05)), sizes=(4, 8)))
    assert solution.status is SolverStatus.OPTIMAL
    assert not unserved_rps(task, solution.placements)
    assert {p.server for p in solution.placements} == {"s0", "s1"}


def test_cheapest_servers_are_used():
    """One small server is enough, and the bound proves it."""
    task, solution = _solve(_problem(_function("f", 80, _point(4, 4, 0.05)), sizes=(16, 4, 8)))
    assert {p.server for p in solution.placements} == {"s1"}
    assert objective(task, solution.placements) == solution.bound == pytest.approx(0.45 * 4)


def test_threshold_comes_before_allocation():
    """Three singles keep 50/s above their threshold; one batch of 4 would be lighter but idle (threshold 69.6)."""
    _, solution = _solve(_problem(_function("f", 50, _point(4, 1, 0.05), _point(1, 1, 0.05))))
    assert _shapes(solution) == [("f", "s0", 1)] * 3


def test_unreachable_threshold_idles_the_smallest():
    """With no combination in range the lightest instance idles."""
    _, solution = _solve(_problem(_function("f", 5, _point(4, 1, 0.05), _point(8, 2, 0.05))))
    assert _shapes(solution) == [("f", "s0", 4)]
    assert solution.status is SolverStatus.OPTIMAL


def test_least_allocated():
    """Among plans on one server the one that holds the fewest resources is chosen."""
    _, solution = _solve(_problem(_function("f", 78, _point(4, 4, 0.05), _point(4, 3, 0.05), _point(2, 3, 0.025))))
    assert sum(p.offer.configuration.cpu_cores for p in solution.placements) == 3


def test_what_runs_is_kept():
    """Of two equal servers the one where the instance runs stays in use."""
    shape = Configuration(batch=4, cpu_cores=4)
    running = (_running("s1", shape),)
    _, solution = _solve(_problem(_function("f", 80, _point(4, 4, 0.05)), running=running))
    assert _shapes(solution) == [("f", "s1", 4)]


def test_place_of_a_running_instance_is_kept_when_its_configuration_is_not():
    """Resizing an instance is a smaller change than starting one elsewhere."""
    old = Configuration(batch=8, cpu_cores=1)
    running = (_running("s1", old),)
    _, solution = _solve(_problem(_function("f", 80, _point(4, 4, 0.05)), running=running))
    assert _shapes(solution) == [("f", "s1", 4)]


def test_gpu_memory_and_share_bind():
    """Each GPU carries at most its 100 percent, so three instances of 60 percent need three GPUs."""
    _, solution = _solve(_problem(_function("f", 240, _point(4, 1, 0.05, gpu_percent=60)), gpus=2))
    assert len({(p.server, p.gpu) for p in solution.placements}) == 3


def test_memory_is_counted_exactly_in_odd_bytes():
    """Two instances of half the memory fit, to the byte."""
    half = _point(4, 1, 0.05, memory_bytes=GIB // 2)
    assert not unserved_rps(*_solved_placements(_problem(_function("f", 160, half), sizes=(8,))))
    more = replace(half, memory_bytes=GIB // 2 + 1)
    assert unserved_rps(*_solved_placements(_problem(_function("f", 160, more), sizes=(8,))))


def _solved_placements(problem):
    task, solution = _solve(problem)
    return task, solution.placements


def test_what_cannot_be_served_is_least():
    """With too little room the function with more requests per core is served."""
    task, solution = _solve(
        _problem(_function("f", 100, _point(4, 4, 0.05)), _function("g", 100, _point(4, 2, 0.05)), sizes=(4,))
    )
    assert {p.function for p in solution.placements} == {"g"}
    assert unserved_rps(task, solution.placements) == {"f": 100}


def test_no_time_gives_the_incumbent_back():
    """Without time for a single stage what was known before is returned, and not called optimal."""
    problem = _problem(_function("f", 100, _point(4, 4, 0.05), _point(4, 5, 0.05)))
    task, known = _solve(problem)
    again = solve_exactly(task, known.placements, time_limit_s=1e-12, clock=ManualClock())
    assert again.status in SolverStatus
    assert {Goal(g): goal_value(task, g, again.placements) for g in Goal} == {
        Goal(g): goal_value(task, g, known.placements) for g in Goal
    }


def test_library_failure_is_not_ours(monkeypatch):
    """A solver that breaks at every stage leaves the greedy placements standing, and nothing proven."""

    def broken(*_args, **_more):
        raise mip.InterfacingError

    monkeypatch.setattr(milp.mip.Model, "optimize", broken)
    task, solution = _solve(_problem(_function("f", 100, _point(4, 4, 0.05))))
    assert solution.status is SolverStatus.FEASIBLE
    assert not unserved_rps(task, solution.placements)


def test_standard_output_is_for_results(capfd):
    """What native code prints while solving is not seen, even when C buffers it, and what Python prints after it is."""
    with stdout_silenced():
        ctypes.CDLL(None).puts(b"noise")
    _solve(_problem(_function("f", 100, _point(4, 4, 0.05), _point(1, 1, 0.05)), sizes=(2, 8, 8)))
    print("result")  # noqa: T201
    assert capfd.readouterr() == ("result\n", "")


def test_dominated_offers_are_left_out_unless_they_run():
    """More cores for the same window is never chosen; a running configuration stays, to be kept."""
    points = (_point(4, 2, 0.05), _point(4, 3, 0.05), _point(4, 4, 0.05))
    shape = points[2].configuration
    running = (_running("s0", shape),)
    task = task_of(_problem(_function("f", 10, *points), running=running))
    assert [o.configuration.cpu_cores for o in worth_trying(task, "f", 0)] == [2, 4]
    assert [o.configuration.cpu_cores for o in worth_trying(task, "f", 0, for_capacity=True)] == [2]


def test_only_servers_without_running_instances_are_alike():
    """Keeping what runs makes otherwise equal servers differ."""
    running = (
        Running(id="f-1", function="f", server="s1", gpu=None, configuration=Configuration(batch=1, cpu_cores=1)),
    )
    task = task_of(_problem(_function("f", 10, _point(1, 1, 0.05)), sizes=(8, 8, 8, 4), running=running))
    assert program_of(task).alike == (("s0", "s2"),)


def test_nothing_wanted_is_an_empty_plan():
    """No rate, nothing to place, even when something runs that will stop."""
    running = (
        Running(id="f-1", function="f", server="s1", gpu=None, configuration=Configuration(batch=1, cpu_cores=1)),
    )
    _, solution = _solve(_problem(_function("f", 0, _point(1, 1, 0.05)), running=running))
    assert (solution.status, solution.placements, solution.bound) == (SolverStatus.OPTIMAL, (), 0)
