"""The planner, whatever the problem: every plan is proven, repeatable, and no worse for more hardware."""

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infless_core.clock import ManualClock
from infless_core.labels import GpuWish
from infless_core.model import (
    Configuration,
    FunctionDemand,
    Gpu,
    Interference,
    PlanStatus,
    Problem,
    ProfilePoint,
    Running,
    Server,
)
from infless_scheduler import knapsack, planner
from infless_scheduler.check import check
from infless_scheduler.dispatch import threshold_rps
from infless_scheduler.placement import Solution, SolverStatus
from infless_scheduler.planner import SOLVERS, plan, replan
from infless_scheduler.rates import RateWindow

FEW = settings(max_examples=15)
configurations = st.builds(
    Configuration, batch=st.sampled_from([1, 2, 4, 8]), cpu_cores=st.integers(1, 4),
    gpu_percent=st.sampled_from([0, 0, 25, 50, 100]),
)  # fmt: skip
points = st.builds(
    ProfilePoint, configuration=configurations, exec_s=st.sampled_from([0.004, 0.01, 0.03, 0.05, 0.09, 0.4, 1.5]),
    memory_bytes=st.integers(0, 40), gpu_memory_bytes=st.integers(0, 40),
)  # fmt: skip


SLOWER = Interference(cpu=((0.0, 1.0), (0.9, 1.3)), gpu=((0.5, 1.1),))


@st.composite
def _problems(draw, plain=False):
    """One to three servers, one or two functions, and instances that run somewhere in some way.

    Unless plain, with all that may be said of servers and functions.
    """

    def rarely(*values):
        return values[0] if plain else draw(st.sampled_from([values[0]] * 3 + list(values)))

    servers = tuple(
        Server(id=f"s{n}", cpu_cores=draw(st.integers(1, 8)), memory_bytes=100, gpus=tuple(
            Gpu(id=f"g{m}", memory_bytes=rarely(60, 30)) for m in range(draw(st.integers(0, 2)))
        ), draining=rarely(False, True), interference=rarely(None, SLOWER))
        for n in range(draw(st.integers(1, 3)))
    )  # fmt: skip
    functions = tuple(
        FunctionDemand(
            id=f"f{n}", latency_target_s=draw(st.sampled_from([0.05, 0.2, 4.0])),
            rate_rps=draw(st.sampled_from([0.0, 0.5, 7.0, 40.0, 333.3])), max_batch=draw(st.sampled_from([1, 8])),
            latency_percentile=draw(st.sampled_from([None, None, 95.0])), arrival_cv=rarely(1.0, 2.5),
            gpu=rarely(*GpuWish.__members__.values()), instances_min=rarely(0, 1, 2), instances_max=rarely(None, 2, 3),
            profile=tuple(draw(st.lists(points, max_size=4, unique_by=lambda p: p.configuration))),
        )
        for n in range(draw(st.integers(1, 2)))
    )  # fmt: skip
    running = []
    for n in range(draw(st.integers(0, 2))):
        server, function, shape = (
            draw(st.sampled_from(servers)),
            draw(st.sampled_from(functions)),
            draw(configurations),
        )
        gpu = draw(st.sampled_from(server.gpus)).id if server.gpus and shape.gpu_percent else None
        shape = shape if gpu else replace(shape, gpu_percent=0)
        running.append(Running(id=f"f0-{n}", function=function.id, server=server.id, gpu=gpu, configuration=shape))
    return Problem(
        servers=servers, functions=functions, running=tuple(running), churn_cost=rarely(0.0, 1.0),
        interference=rarely(Interference(), SLOWER),
    )  # fmt: skip


def _plan(problem, solver):
    return plan(problem, solver, clock=ManualClock())


def _unserved_rps(made):
    return math.fsum(u.rate_rps for u in made.unserved)


@FEW
@given(_problems(), st.sampled_from(SOLVERS))
def test_every_plan_passes_the_check_and_is_what_was_asked_for(problem, solver):
    """Every solver's plan keeps every rule, and small problems are solved by the solver that was named."""
    made = _plan(problem, solver)
    check(problem, made)
    assert made.solver == ("exact" if solver == "auto" else solver)
    solved = made.status in (PlanStatus.OPTIMAL, PlanStatus.INFEASIBLE)
    assert made.solver != "exact" or solved or problem.churn_cost


@FEW
@given(_problems(), st.sampled_from(SOLVERS), st.randoms(use_true_random=False))
def test_permuted_problem_has_the_same_plan(problem, solver, rng):
    """No decision depends on the order of the input."""

    def shuffled(values):
        return tuple(rng.sample(values, len(values)))

    permuted = replace(
        problem,
        servers=shuffled([replace(server, gpus=shuffled(server.gpus)) for server in problem.servers]),
        functions=shuffled([replace(f, profile=shuffled(f.profile)) for f in problem.functions]),
        running=shuffled(problem.running),
    )
    assert _plan(permuted, solver) == _plan(problem, solver)


@FEW
@given(_problems(plain=True))
def test_another_server_never_serves_less(problem):
    """More hardware leaves no more unserved, and costs no more where all was served before."""
    before = _plan(problem, "exact")
    larger = replace(problem, servers=(*problem.servers, Server(id="more", cpu_cores=4, memory_bytes=100)))
    after = _plan(larger, "exact")
    assert _unserved_rps(after) <= _unserved_rps(before) + 1e-6
    if not before.unserved:
        assert after.objective <= before.objective + 1e-6


@FEW
@given(_problems(plain=True), st.sampled_from(["greedy", "patterns", "uniform"]))
def test_no_plan_beats_the_proven_bound(problem, solver):
    """No solver serves more than the exact one; serving as much, none costs less than its bound, nor claims it does."""
    exact, other = _plan(problem, "exact"), _plan(problem, solver)
    assert _unserved_rps(other) >= _unserved_rps(exact) - 1e-6
    if _unserved_rps(other) <= _unserved_rps(exact) + 1e-6:
        assert other.objective >= exact.bound - 1e-6
        assert other.bound <= exact.objective + 1e-6


@FEW
@given(_problems())
def test_no_bound_is_above_any_plan(problem):
    """Whatever may be said of servers and functions: of plans that lack nothing none is below the bound of another."""
    made = [_plan(problem, solver) for solver in SOLVERS]
    whole = [one for one in made if not one.unserved]
    assert all(one.objective >= other.bound - 1e-6 for one in whole for other in whole)


@FEW
@given(_problems(), st.integers(10**9, 10**10))
def test_no_bound_is_above_any_plan_where_memory_is_counted_coarsely(problem, unit):
    """The same with memory in odd bytes and tables of a few states, so that much is rounded."""

    def scaled(bytes_, odd):
        return bytes_ * unit + odd if bytes_ else 0

    servers = tuple(
        replace(s, memory_bytes=scaled(s.memory_bytes, 3), gpus=tuple(
            replace(g, memory_bytes=scaled(g.memory_bytes, 1)) for g in s.gpus
        ))
        for s in problem.servers
    )  # fmt: skip
    functions = tuple(
        replace(f, profile=tuple(
            replace(p, memory_bytes=scaled(p.memory_bytes, n), gpu_memory_bytes=scaled(p.gpu_memory_bytes, 7 * n))
            for n, p in enumerate(f.profile)
        ))
        for f in problem.functions
    )  # fmt: skip
    problem = replace(problem, servers=servers, functions=functions)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knapsack, "_STATES", 50)
        made = [_plan(problem, solver) for solver in SOLVERS]
    whole = [one for one in made if not one.unserved]
    assert all(one.objective >= other.bound - 1e-6 for one in whole for other in whole)


@FEW
@given(_problems(plain=True), st.integers(2, 4), st.sampled_from(["exact", "patterns"]))
def test_larger_problems_cost_in_proportion(problem, k, solver):
    """k times the rates on k times the servers cost at most k times as much, and what rounding costs a function."""
    problem = replace(problem, running=())
    servers = tuple(replace(s, id=f"{s.id}-{n}") for s in problem.servers for n in range(k))
    functions = tuple(replace(f, rate_rps=k * f.rate_rps) for f in problem.functions)
    small = _plan(problem, solver)
    large = _plan(replace(problem, servers=servers, functions=functions), solver)
    if not small.unserved:
        dearest = max(problem.beta * s.cpu_cores + 100 * len(s.gpus) for s in problem.servers)
        rounding = 0.0 if solver == "exact" else (len(problem.functions) + len(problem.servers)) * dearest
        assert large.objective <= k * small.objective + rounding + 1e-6
        assert large.bound <= k * small.objective + 1e-6
        assert not large.unserved


@FEW
@given(_problems(), st.sampled_from(["exact", "patterns"]), st.floats(0.5, 2.0))
def test_planning_on_after_a_rate_has_changed(problem, solver, factor):
    """From a running plan with its memory: every rule is kept, and no bound is above what a plan from scratch costs."""
    first, memory = replan(problem, None, solver, clock=ManualClock())
    running = tuple(
        Running(id=i.id, function=i.function, server=i.server, gpu=i.gpu, configuration=i.configuration)
        for i in first.instances
    )
    changed = tuple(replace(f, rate_rps=f.rate_rps * (factor if f.id == "f0" else 1)) for f in problem.functions)
    after = replace(problem, running=running, functions=changed)
    made, _ = replan(after, memory, solver, clock=ManualClock())
    check(after, made)
    fresh = _plan(replace(after, running=(), churn_cost=0.0), "exact")
    assert made.unserved or fresh.unserved or made.bound <= fresh.objective + 1e-6


@FEW
@given(_problems(), st.sampled_from(["exact", "patterns", "greedy"]))
def test_plan_of_a_carried_out_plan_changes_nothing(problem, solver):
    """With the plan running as it says, every instance is kept; greedy may move some."""
    first = _plan(problem, solver)
    running = tuple(
        Running(id=i.id, function=i.function, server=i.server, gpu=i.gpu, configuration=i.configuration)
        for i in first.instances
    )
    again = _plan(replace(problem, running=running), solver)
    assert again.objective == pytest.approx(first.objective)
    if solver != "greedy":
        assert {i.action for i in again.instances} <= {"keep"}
        assert not again.stop


@FEW
@given(_problems(plain=True))
def test_threshold_holds_or_no_lighter_instance_would_do(problem):
    """An exact plan below its threshold could not drop or shrink to any single smaller configuration."""
    made = _plan(problem, "exact")
    for function in problem.functions:
        own = [RateWindow(i.rate_low_rps, i.rate_up_rps) for i in made.instances if i.function == function.id]
        served = math.fsum(i.rate_rps for i in made.instances if i.function == function.id)
        if own and served < threshold_rps(own, problem.alpha) * (1 - 1e-6):
            assert all(math.fsum(w.up_rps for w in own) - w.up_rps < served for w in own)


def _achieved(problem, counts, windows):
    """What a search by hand knows of counts per server: unserved, objective, oversized or not, allocated."""
    function = problem.functions[0]
    totals = [sum(per_server[n] for per_server in counts) for n in range(len(windows))]
    most = sum(w.up_rps * n for w, n in zip(windows, totals, strict=True))
    least = sum(w.low_rps * n for w, n in zip(windows, totals, strict=True))
    cores = sum(p.configuration.cpu_cores * n for p, n in zip(function.profile, totals, strict=True))
    used = sum(s.cpu_cores for s, per_server in zip(problem.servers, counts, strict=True) if any(per_server))
    served = min(function.rate_rps, most)
    oversized = problem.alpha * most + (1 - problem.alpha) * least > served * (1 + 1e-6)
    return (function.rate_rps - served, problem.beta * used, oversized, problem.beta * cores)


@FEW
@given(st.lists(st.integers(1, 5), min_size=1, max_size=2), st.floats(1, 250), st.integers(1, 3), st.integers(1, 3))
def test_exact_is_as_good_as_trying_everything(sizes, rate_rps, single_cores, batch_cores):
    """On small problems all counts are tried: none is better in the order of the goals."""
    shapes = [Configuration(batch=1, cpu_cores=single_cores), Configuration(batch=4, cpu_cores=batch_cores)]
    profile = tuple(ProfilePoint(configuration=shape, exec_s=0.05) for shape in shapes)
    function = FunctionDemand(id="f", latency_target_s=0.2, rate_rps=rate_rps, max_batch=4, profile=profile)
    servers = tuple(Server(id=f"s{n}", cpu_cores=cores, memory_bytes=1) for n, cores in enumerate(sizes))
    problem = Problem(servers=servers, functions=(function,))
    windows = [RateWindow(0, 20), RateWindow(28, 80)]
    fitting = [
        [c for c in itertools.product(range(6), repeat=2) if c[0] * single_cores + c[1] * batch_cores <= cores]
        for cores in sizes
    ]
    best = min(_achieved(problem, counts, windows) for counts in itertools.product(*fitting))
    placed = _plan(problem, "exact").instances
    counts = [[sum((i.server, i.configuration) == (s.id, shape) for i in placed) for shape in shapes] for s in servers]
    assert _achieved(problem, counts, windows) == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize("failure", ["status", "rejected"])
def test_failed_solver_falls_back_to_greedy(monkeypatch, failure):
    """A solver that finds nothing, or whose placements break a rule, is replaced and the plan says by whom."""
    point = ProfilePoint(configuration=Configuration(batch=4, cpu_cores=2), exec_s=0.05)
    function = FunctionDemand(id="f", latency_target_s=0.2, rate_rps=100, max_batch=4, profile=(point,))
    problem = Problem(servers=(Server(id="s", cpu_cores=4, memory_bytes=1),), functions=(function,))

    def broken(task, _effort):
        good = planner.greedy(task)
        status = SolverStatus.FAILED if failure == "status" else SolverStatus.OPTIMAL
        return Solution(status=status, placements=good * 9, bound=0.0)

    monkeypatch.setattr(planner, "_TABLE", {**planner._TABLE, "exact": broken})
    made = plan(problem, "exact")
    assert (made.solver, made.status, len(made.instances)) == ("greedy", PlanStatus.OPTIMAL, 2)
