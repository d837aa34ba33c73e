"""The planner when what it stands on gives way: the library fails or is missing, time runs out, numbers are extreme."""

import builtins
import math
import sys

import mip
import pytest

from infless_core.clock import ManualClock
from infless_core.model import Configuration, FunctionDemand, Gpu, Problem, ProfilePoint, Running, Server
from infless_scheduler.check import check
from infless_scheduler.planner import SOLVERS, plan, replan

GIB = 2**30


def _point(batch, cpu_cores, gpu_percent, exec_s, **memory):
    shape = Configuration(batch=batch, cpu_cores=cpu_cores, gpu_percent=gpu_percent)
    return ProfilePoint(configuration=shape, exec_s=exec_s, **memory)


def _function(id_, rate_rps, *points, target_s=0.2, **more):
    return FunctionDemand(id=id_, latency_target_s=target_s, rate_rps=rate_rps, max_batch=32, profile=points, **more)


def _servers(count, cpu_cores=16, gpus=2):
    gpu = tuple(Gpu(id=f"g{n}", memory_bytes=11 * GIB) for n in range(gpus))
    return tuple(Server(id=f"s{n:04}", cpu_cores=cpu_cores, memory_bytes=128 * GIB, gpus=gpu) for n in range(count))


PROBLEM = Problem(
    servers=_servers(12),
    functions=(
        _function("f", 1500, _point(4, 3, 0, 0.05), _point(8, 2, 30, 0.06)),
        _function("g", 900, _point(4, 5, 0, 0.05), _point(1, 1, 0, 0.04)),
    ),
)


@pytest.mark.parametrize("solver", SOLVERS)
def test_library_that_raises_at_every_call(monkeypatch, solver):
    """Everything is still planned, and the plan passes the check."""

    def broken(*_args, **_more):
        raise mip.InterfacingError

    monkeypatch.setattr(mip.Model, "optimize", broken)
    made = plan(PROBLEM, solver, clock=ManualClock())
    check(PROBLEM, made)
    assert not made.unserved


@pytest.mark.parametrize("solver", SOLVERS)
def test_library_that_cannot_be_loaded(monkeypatch, solver, caplog):
    """Planning is greedy then, and says why."""
    for name in ("mip", "infless_scheduler.milp", "infless_scheduler.exact", "infless_scheduler.patterns",
                 "infless_scheduler.columns"):  # fmt: skip
        monkeypatch.delitem(sys.modules, name, raising=False)
    real_import = builtins.__import__

    def no_mip(name, *args, **more):
        if name == "mip":
            raise OSError("libCbc.so: cannot open shared object file")
        return real_import(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", no_mip)
    made = plan(PROBLEM, solver, clock=ManualClock())
    assert not made.unserved
    assert made.solver == ("uniform" if solver == "uniform" else "greedy")
    assert solver in ("greedy", "uniform") or "cannot be loaded" in caplog.text


class Hurried(ManualClock):
    """Each look at it costs a second."""

    def now_s(self):
        """A second later than at the last look."""
        self.advance(1.0)
        return super().now_s()


@pytest.mark.parametrize("limit_s", [1e-9, 0.5, 3.0, 8.0, 30.0])
@pytest.mark.parametrize("solver", SOLVERS)
def test_time_that_runs_out_at_any_step(solver, limit_s):
    """Whatever step it catches, there is a plan, it serves everything, and its bound is no higher than it."""
    made = plan(PROBLEM, solver, time_limit_s=limit_s, clock=Hurried())
    check(PROBLEM, made)
    assert not made.unserved
    assert made.bound <= made.objective + 1e-6


@pytest.mark.parametrize("limit_s", [1e-9, 0.5, 3.0, 8.0])
def test_time_that_runs_out_with_an_incumbent(limit_s):
    """What runs is the plan, where there was no time for a better one."""
    first, memory = replan(PROBLEM, None, "patterns", clock=ManualClock())
    running = tuple(
        Running(id=i.id, function=i.function, server=i.server, gpu=i.gpu, configuration=i.configuration)
        for i in first.instances
    )
    problem = Problem(servers=PROBLEM.servers, functions=PROBLEM.functions, running=running)
    made, _ = replan(problem, memory, "patterns", time_limit_s=limit_s, clock=Hurried())
    assert {i.action for i in made.instances} == {"keep"}
    assert not made.stop


NASTY = {
    "one request in eleven days": Problem(servers=_servers(3), functions=(_function("f", 1e-6, _point(1, 1, 0, 0.05)),)),
    "twelve orders of magnitude": Problem(
        servers=_servers(3000),
        functions=(
            _function("f", 1e-6, _point(1, 1, 0, 0.05)),
            _function("g", 1e6, _point(32, 4, 0, 0.05)),
            _function("h", 1.0, _point(1, 1, 10, 0.05)),
        ),
    ),
    "ten microseconds": Problem(
        servers=_servers(3), functions=(_function("f", 1e6, _point(32, 1, 0, 1e-5), target_s=1e-3),)
    ),
    "eight minutes": Problem(servers=_servers(3), functions=(_function("f", 1e-3, _point(1, 1, 0, 500), target_s=1000),)),
    "a core worth nothing": Problem(servers=_servers(3, gpus=0), functions=(_function("f", 99, _point(1, 1, 0, 0.05)),), beta=0),
    "a core worth everything": Problem(servers=_servers(3), functions=(_function("f", 99, _point(1, 1, 0, 0.05)),), beta=1e9),
    "a thousand cores and shares of seven percent": Problem(
        servers=_servers(3, cpu_cores=1024, gpus=8), functions=(_function("f", 2e4, _point(8, 3, 7, 0.05)),)
    ),
    "noise: more is slower": Problem(
        servers=_servers(8),
        functions=(
            _function("f", 700, _point(4, 1, 0, 0.05), _point(4, 2, 0, 0.07), _point(4, 4, 0, 0.06), _point(2, 1, 0, 0.09)),
        ),
    ),
    "memory to the byte": Problem(
        servers=_servers(4), functions=(_function("f", 600, _point(4, 1, 0, 0.05, memory_bytes=128 * GIB // 3 + 1)),)
    ),
}  # fmt: skip


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", NASTY)
def test_extreme_numbers(name, solver):
    """Served in full, checked, and the bound is a number between nothing and the objective."""
    made = plan(NASTY[name], solver, clock=ManualClock())
    assert not made.unserved
    assert 0 <= made.bound <= made.objective + 1e-6 < math.inf
    assert solver not in ("exact", "auto") or made.gap < 0.01


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (Problem(servers=(), functions=(_function("f", 1, _point(1, 1, 0, 0.05)),)), "there are no servers"),
        (Problem(servers=_servers(1), functions=(_function("f", 1),)), "no configuration is profiled"),
        (Problem(servers=_servers(1), functions=(_function("f", 1, _point(1, 99, 0, 0.05)),)), "no server is large enough"),
        (Problem(servers=_servers(1), functions=(_function("f", 1, _point(4, 1, 0, 0.15)),)), "nearest feasible target 300ms"),
    ],
)  # fmt: skip
def test_nothing_can_be_planned(problem, reason, solver):
    """Infeasible, with the reason, by every solver; nothing wanted is not infeasible."""
    made = plan(problem, solver, clock=ManualClock())
    assert made.status == "infeasible"
    assert reason in made.unserved[0].reason
    assert plan(Problem(servers=problem.servers, functions=()), solver, clock=ManualClock()).status != "infeasible"
