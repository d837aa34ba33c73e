"""The only way to a plan: order the problem, let a solver place instances, name them, and prove the result."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Protocol

from infless_core.clock import Clock, SystemClock
from infless_core.errors import InvalidInput, PlanRejected
from infless_core.model import Plan, PlanStatus, Problem
from infless_scheduler.assign import instances_of, stopped, unserved_of
from infless_scheduler.check import check
from infless_scheduler.greedy import better_greedy, greedy
from infless_scheduler.placement import (
    Placement,
    Solution,
    SolverStatus,
    Task,
    objective,
    objective_bound,
    server_cost,
    task_of,
    trimmed,
    unserved_rps,
)

log = logging.getLogger(__name__)

TIME_LIMIT_S = 10.0
"""The authors' scaling loop runs every 10 s: a plan that takes longer answers a question nobody asks any more."""
_EXACT_COLUMNS = 20_000
"""Up to about so many integer variables (offers x servers x GPUs) the exact model is worth its time under `auto`."""


class Solver(Protocol):
    """Places instances for a task. May use less time than allowed, not more (give or take a second)."""

    def __call__(self, task: Task, *, time_limit_s: float, clock: Clock) -> Solution:
        """Placements that keep the rules, or a solution that says FAILED."""
        ...


def plan(
    problem: Problem, solver: str = "auto", *, time_limit_s: float = TIME_LIMIT_S, clock: Clock | None = None
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
    if solver not in SOLVERS:
        raise InvalidInput(f"solver {solver!r} is unknown; allowed are {', '.join(SOLVERS)}")
    if not 0 < time_limit_s < math.inf:
        raise InvalidInput(f"time limit {time_limit_s} s: allowed is a finite number above 0")
    clock = clock or SystemClock()
    begun_s = clock.now_s()
    task = task_of(problem)
    name, solution = _solve(task, solver, time_limit_s=time_limit_s, clock=clock)
    while True:
        if solution.status is SolverStatus.FAILED and name != "greedy":
            log.warning("solver %s failed; planning greedily instead", name)
            name, solution = "greedy", _unproven(task, better_greedy(task))
        made = _plan_of(task, name, solution, solve_s=clock.now_s() - begun_s)
        try:
            check(problem, made)
        except PlanRejected as rejected:
            if name == "greedy":
                raise
            log.warning("plan of solver %s rejected: %s", name, rejected)
            solution = Solution(status=SolverStatus.FAILED)
        else:
            return made


def _solve(task: Task, solver: str, *, time_limit_s: float, clock: Clock) -> tuple[str, Solution]:
    if solver != "auto":
        return solver, _TABLE[solver](task, time_limit_s=time_limit_s, clock=clock)
    if _is_small(task):
        return "exact", _TABLE["exact"](task, time_limit_s=time_limit_s, clock=clock)
    return "greedy", _unproven(task, better_greedy(task))


def _is_small(task: Task) -> bool:
    columns = sum(
        max(1, len(server.gpus)) if offer.configuration.gpu_percent else 1
        for function in task.wanted_rps
        for offer in task.offers[function]
        for server in task.problem.servers
        if offer.fits(server)
    )
    return columns <= _EXACT_COLUMNS


def _exact(task: Task, *, time_limit_s: float, clock: Clock) -> Solution:
    try:
        # Here and not above: loading the solver library takes longer than most plans and fails where it has no build.
        from infless_scheduler.exact import solve_exactly
    except (ImportError, OSError) as missing:
        log.warning("the solver library cannot be loaded: %s", missing)
        return Solution(status=SolverStatus.FAILED)
    return solve_exactly(task, trimmed(task, better_greedy(task)), time_limit_s=time_limit_s, clock=clock)


def _greedy(task: Task, *, time_limit_s: float, clock: Clock) -> Solution:  # noqa: ARG001 - takes milliseconds
    return _unproven(task, greedy(task))


def _unproven(task: Task, placements: tuple[Placement, ...]) -> Solution:
    placements = trimmed(task, placements)
    bound = objective_bound(task, unserved_rps(task, placements))
    return Solution(status=SolverStatus.FEASIBLE, placements=placements, bound=bound)


_TABLE: Mapping[str, Solver] = MappingProxyType({"exact": _exact, "greedy": _greedy})

SOLVERS = ("auto", *_TABLE)
"""The names that `infless plan --solver` takes; `auto` is the best one for the size of the problem."""


def _plan_of(task: Task, solver: str, solution: Solution, *, solve_s: float) -> Plan:
    instances = instances_of(task, solution.placements)
    unserved = unserved_of(task, solution.placements)
    status = PlanStatus.OPTIMAL if solution.status is SolverStatus.OPTIMAL else PlanStatus.FEASIBLE
    made = Plan(
        status=PlanStatus.INFEASIBLE if unserved and not instances else status,
        solver=solver,
        solve_s=solve_s,
        objective=objective(task, solution.placements),
        bound=min(solution.bound, objective(task, solution.placements)),
        instances=instances,
        stop=stopped(task, instances),
        unserved=unserved,
    )
    return _with_totals(task, solution.placements, made)


def _with_totals(task: Task, placements: tuple[Placement, ...], made: Plan) -> Plan:
    beta = task.problem.beta
    used = {placement.server for placement in placements}
    capacity = math.fsum(server_cost(server, beta) for server in task.problem.servers if server.id in used)
    allocated = math.fsum(placement.offer.weight(beta) for placement in placements)
    fragmentation = max(0.0, 1 - allocated / capacity) if capacity > 0 else 0.0
    return replace(made, servers_used=len(used), allocated=allocated, fragmentation=fragmentation)
