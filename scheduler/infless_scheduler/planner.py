"""The only way to a plan: order the problem, let a solver place instances, name them, and prove the result."""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Protocol

from infless_core.clock import Clock, SystemClock
from infless_core.errors import InvalidInput, PlanRejected
from infless_core.model import Plan, PlannedInstance, PlanStatus, Problem
from infless_scheduler.assign import instances_of, stopped, unserved_of
from infless_scheduler.check import check
from infless_scheduler.greedy import better_greedy, greedy
from infless_scheduler.memory import Memory
from infless_scheduler.placement import (
    Placement,
    Prices,
    Solution,
    SolverStatus,
    Task,
    allocated,
    lack,
    objective,
    objective_bound,
    task_of,
    trimmed,
    unserved_rps,
)
from infless_scheduler.uniform import uniform

log = logging.getLogger(__name__)

TIME_LIMIT_S = 10.0
"""The authors' scaling loop runs every 10 s: a plan that takes longer answers a question nobody asks any more."""
_EXACT_COLUMNS = 20_000
"""Up to a model of this size (`Task.columns`) exactness is worth its time under `auto`."""
_FIRST_SHARE = 0.5
"""Of the time limit, what the quick solver may take before the exact one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """What a solver may spend, and what it may know."""

    time_limit_s: float
    clock: Clock
    prices: Prices | None = None


class Solver(Protocol):
    """Places instances for a task. May use less time than allowed, not more (give or take a second)."""

    def __call__(self, task: Task, effort: Effort) -> Solution:
        """Placements that keep the rules, or a solution that says FAILED."""
        ...


def plan(
    problem: Problem,
    solver: str = "auto",
    *,
    time_limit_s: float = TIME_LIMIT_S,
    clock: Clock | None = None,
) -> Plan:
    """The plan for a problem; it has passed `infless_scheduler.check`.

    A solver that fails, or whose placements the check refuses, is replaced by the greedy one.

    Args:
        problem: in any order: a permuted problem has the same plan.
        solver: one of `SOLVERS`.
        time_limit_s: for the solver, in seconds.
        clock: measures the solver; the operating system's by default.

    Raises:
        InvalidInput: when there is no such solver or no time.
        PlanRejected: when even the greedy plan breaks a rule, which is a fault of ours.
    """
    return replan(problem, None, solver, time_limit_s=time_limit_s, clock=clock)[0]


def replan(
    problem: Problem,
    memory: Memory | None,
    solver: str = "auto",
    *,
    time_limit_s: float = TIME_LIMIT_S,
    clock: Clock | None = None,
) -> tuple[Plan, Memory]:
    """As `plan`, with what the last plan has left behind: what is still true of it need not be found again.

    Args:
        problem: as for `plan`.
        memory: from the last call, or None.
        solver: as for `plan`.
        time_limit_s: as for `plan`.
        clock: as for `plan`.

    Returns:
        The plan, and the memory for the next call.

    Raises:
        InvalidInput, PlanRejected: as `plan` does.
    """
    if solver not in SOLVERS:
        raise InvalidInput(f"solver {solver!r} is unknown; allowed are {', '.join(SOLVERS)}")
    if not 0 < time_limit_s < math.inf:
        raise InvalidInput(f"time limit {time_limit_s} s: allowed is a finite number above 0")
    clock = clock or SystemClock()
    with _collector_resting():
        return _replan(problem, memory, solver, time_limit_s, clock)


@contextmanager
def _collector_resting() -> Iterator[None]:
    """Python's collector off meanwhile.

    Large plans are hundreds of thousands of small values and no cycles: to walk through all of them, again and again,
    takes a quarter of a replan's time and finds nothing.
    """
    rests = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if rests:
            gc.enable()


def _replan(
    problem: Problem, memory: Memory | None, solver: str, time_limit_s: float, clock: Clock
) -> tuple[Plan, Memory]:
    begun_s = clock.now_s()
    task = task_of(problem, None if memory is None else memory.task)
    prices = None if memory is None else memory.prices_for(task)
    effort = Effort(time_limit_s=time_limit_s, clock=clock, prices=prices)
    name, solution = _solve(task, solver, effort)
    before = None if memory is None else memory.instances
    while True:
        if solution.status is SolverStatus.FAILED and name != "greedy":
            log.warning("solver %s failed; planning greedily instead", name)
            name, solution = "greedy", _unproven(task, better_greedy(task))
        made = _plan_of(task, name, solution, before, solve_s=clock.now_s() - begun_s)
        try:
            check(problem, made)
        except PlanRejected as rejected:
            if name == "greedy":
                raise
            log.warning("plan of solver %s rejected: %s", name, rejected)
            solution = Solution(status=SolverStatus.FAILED)
        else:
            instances = {instance.id: instance for instance in made.instances}
            kept = Memory(task=task, prices=solution.prices or prices, instances=instances)
            return replace(made, solve_s=clock.now_s() - begun_s), kept


def _solve(task: Task, solver: str, effort: Effort) -> tuple[str, Solution]:
    if solver != "auto":
        return solver, _TABLE[solver](task, effort)
    name = "exact" if task.columns() <= _EXACT_COLUMNS else "patterns"
    return name, _TABLE[name](task, effort)


def _exact(task: Task, effort: Effort) -> Solution:
    """The quick solver's plan first: where it meets its bound, the costliest goal needs no proof any more."""
    begun_s = effort.clock.now_s()
    first = _patterns(task, replace(effort, time_limit_s=_FIRST_SHARE * effort.time_limit_s))
    left_s = effort.time_limit_s - (effort.clock.now_s() - begun_s)
    try:
        # Here and not above: loading the solver library takes longer than most plans and fails where it has no build.
        from infless_scheduler.exact import solve_exactly
    except (ImportError, OSError) as missing:
        log.warning("the solver library cannot be loaded: %s", missing)
        return Solution(status=SolverStatus.FAILED)
    solution = solve_exactly(task, first.placements, time_limit_s=left_s, clock=effort.clock, bound=first.bound)
    return replace(solution, prices=first.prices)


def _patterns(task: Task, effort: Effort) -> Solution:
    try:
        from infless_scheduler.patterns import solve_by_patterns
    except (ImportError, OSError) as missing:
        log.warning("the solver library cannot be loaded: %s", missing)
        return Solution(status=SolverStatus.FAILED)
    end_s = effort.clock.now_s() + effort.time_limit_s
    found = solve_by_patterns(task, time_limit_s=effort.time_limit_s, clock=effort.clock, prices=effort.prices)
    if not lack(task, found.placements):
        return found
    # With too little of everything, whole servers leave no room for small functions; one instance at a time may.
    other = trimmed(task, better_greedy(task, lambda: effort.clock.now_s() > end_s))
    if lack(task, other) >= lack(task, found.placements):
        return found
    bound = objective_bound(task, unserved_rps(task, other))
    return replace(found, placements=other, bound=min(bound, objective(task, other)))


def _greedy(task: Task, effort: Effort) -> Solution:  # noqa: ARG001 - takes less than a second
    return _unproven(task, greedy(task))


def _uniform(task: Task, effort: Effort) -> Solution:  # noqa: ARG001 - takes less than a second
    return _unproven(task, uniform(task), trim=False)


def _unproven(task: Task, placements: tuple[Placement, ...], *, trim: bool = True) -> Solution:
    placements = trimmed(task, placements) if trim else placements
    bound = objective_bound(task, unserved_rps(task, placements))
    return Solution(status=SolverStatus.FEASIBLE, placements=placements, bound=bound)


_TABLE: Mapping[str, Solver] = MappingProxyType(
    {"exact": _exact, "patterns": _patterns, "greedy": _greedy, "uniform": _uniform}
)

SOLVERS = ("auto", *_TABLE)
"""The names that `infless plan --solver` takes; `auto` is the best one for the size of the problem."""


def _plan_of(
    task: Task, solver: str, solution: Solution, before: Mapping[str, PlannedInstance] | None, *, solve_s: float
) -> Plan:
    instances = instances_of(task, solution.placements, before)
    unserved = unserved_of(task, solution.placements)
    worth = objective(task, solution.placements)
    # Whoever found it: what serves everything at an objective that is proven to be the least is optimal.
    proven = solution.status is SolverStatus.OPTIMAL or (not unserved and solution.bound >= worth * (1 - 1e-9))
    status = PlanStatus.OPTIMAL if proven else PlanStatus.FEASIBLE
    used = {placement.server for placement in solution.placements}
    given = allocated(task, solution.placements)
    return Plan(
        status=PlanStatus.INFEASIBLE if unserved and not instances else status,
        solver=solver,
        solve_s=solve_s,
        objective=worth,
        bound=min(solution.bound, worth),
        instances=instances,
        stop=stopped(task, instances),
        unserved=unserved,
        servers_used=len(used),
        allocated=given,
        fragmentation=max(0.0, 1 - given / worth) if worth > 0 else 0.0,
    )
