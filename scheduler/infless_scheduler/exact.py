"""The exact planner: paper Eq. 2 to 9 as a mixed-integer program, its goals in order. The only user of `mip`.

Each goal is solved with the optima of those before it as limits. Deterministic: one thread, a fixed seed, everything
in the order of ids; only a run that its time limit cuts off may differ from machine to machine.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import mip

from infless_core.clock import Clock
from infless_scheduler.greedy import greedy
from infless_scheduler.native_output import stdout_to_stderr
from infless_scheduler.placement import (
    Placement,
    Solution,
    SolverStatus,
    Task,
    objective,
    objective_bound,
    server_cost,
    trimmed,
    unserved_rps,
)
from infless_scheduler.program import Program, program_of, running_counts

_SEED = 1
_TOLERANCE = 1e-6

STATUS: Mapping[mip.OptimizationStatus, SolverStatus] = {
    mip.OptimizationStatus.OPTIMAL: SolverStatus.OPTIMAL,
    mip.OptimizationStatus.FEASIBLE: SolverStatus.FEASIBLE,
    mip.OptimizationStatus.ERROR: SolverStatus.FAILED,
    mip.OptimizationStatus.INFEASIBLE: SolverStatus.FAILED,
    mip.OptimizationStatus.UNBOUNDED: SolverStatus.FAILED,
    mip.OptimizationStatus.INT_INFEASIBLE: SolverStatus.FAILED,
    mip.OptimizationStatus.NO_SOLUTION_FOUND: SolverStatus.FAILED,
    mip.OptimizationStatus.LOADED: SolverStatus.FAILED,
    mip.OptimizationStatus.CUTOFF: SolverStatus.FAILED,
    mip.OptimizationStatus.INF_OR_UNBD: SolverStatus.FAILED,
    mip.OptimizationStatus.TRUNCATED: SolverStatus.FAILED,
    mip.OptimizationStatus.OTHER: SolverStatus.FAILED,
}
"""Total: a test holds it against the library's enum. No model of ours is infeasible, as placing nothing is allowed."""


class Goal(StrEnum):
    """What is minimised, in this order."""

    UNSERVED = "unserved"
    """Requests per second without an instance."""
    OBJECTIVE = "objective"
    """Cost of the servers in use (Eq. 2)."""
    OVERSIZED = "oversized"
    """Functions whose rate is below the scale-in threshold of their instances (Eq. 7)."""
    ALLOCATED = "allocated"
    """Resources that instances hold."""
    CHANGES = "changes"
    """Instances that do not stay as they are; a resized one counts less than a new one."""


_CAPACITY_GOALS = (Goal.UNSERVED, Goal.OBJECTIVE)

TIME_SHARE: Mapping[Goal, float] = {
    Goal.UNSERVED: 0.3,
    Goal.OBJECTIVE: 0.6,
    Goal.OVERSIZED: 0.3,
    Goal.ALLOCATED: 0.7,
    Goal.CHANGES: 1.0,
}
"""Of the time that is left when its turn comes: early goals may not starve the later ones."""


@dataclass(frozen=True, slots=True)
class _Model:
    """The solver's objects for one stage."""

    model: mip.Model
    count: tuple[mip.Var, ...]
    used: Mapping[str, mip.Var]
    oversized: Mapping[str, mip.Var]
    goals: Mapping[Goal, mip.LinExpr]


@dataclass(frozen=True, slots=True)
class _Stage:
    """How one stage ended."""

    status: SolverStatus
    placements: tuple[Placement, ...]
    bound: float


def solve_exactly(task: Task, incumbent: tuple[Placement, ...], *, time_limit_s: float, clock: Clock) -> Solution:
    """Solve goal after goal until all are proven or the time is over.

    Args:
        task: what to place.
        incumbent: a placement that keeps the rules; never worse than it, by the goals in order, is what comes back.
        time_limit_s: for all goals together.
        clock: measures it.
    """
    deadline_s = clock.now_s() + time_limit_s
    narrow, wide = program_of(task, for_capacity=True), program_of(task)
    best, proven = incumbent, True
    limits: dict[Goal, float] = {}
    bound = objective_bound(task, unserved_rps(task, incumbent))
    for goal in Goal:
        value = goal_value(task, goal, best)
        if value > _least(task, goal, bound) + _TOLERANCE:
            left_s = (deadline_s - clock.now_s()) * TIME_SHARE[goal]
            program = narrow if goal in _CAPACITY_GOALS else wide
            stage = _solve(program, goal, limits, best, left_s)
            if stage.status is not SolverStatus.FAILED and _no_worse(task, stage.placements, {**limits, goal: value}):
                best = stage.placements
            value = goal_value(task, goal, best)
            proven = proven and stage.status is SolverStatus.OPTIMAL
            if goal is Goal.OBJECTIVE:
                bound = max(bound, min(stage.bound, value))
        if goal is Goal.UNSERVED:
            best = greedy(task, best)
            value = goal_value(task, goal, best)
            bound = objective_bound(task, unserved_rps(task, best))
        limits[goal] = value
    best = trimmed(task, best)
    status = SolverStatus.OPTIMAL if proven else SolverStatus.FEASIBLE
    return Solution(status=status, placements=best, bound=min(bound, objective(task, best)))


def goal_value(task: Task, goal: Goal, placements: tuple[Placement, ...]) -> float:
    """What the placements achieve for a goal, counted from them and not from a solver's variables."""
    if goal is Goal.UNSERVED:
        return math.fsum(unserved_rps(task, placements).values())
    if goal is Goal.OBJECTIVE:
        return objective(task, placements)
    if goal is Goal.OVERSIZED:
        return float(len(_oversized(task, placements)))
    if goal is Goal.ALLOCATED:
        return math.fsum(placement.offer.weight(task.problem.beta) for placement in placements)
    kept, matched = _kept_and_matched(task, placements)
    return -float(kept * _keep_weight(task) + matched)


def _no_worse(task: Task, placements: tuple[Placement, ...], limits: Mapping[Goal, float]) -> bool:
    """Whether a solver's answer, rounded to whole instances, still keeps what was reached."""
    return all(goal_value(task, goal, placements) <= limit + _TOLERANCE for goal, limit in limits.items())


def _least(task: Task, goal: Goal, bound: float) -> float:
    """A value that no plan can beat, known without solving."""
    if goal is Goal.OBJECTIVE:
        return bound
    if goal is Goal.CHANGES:
        running = len(task.problem.running)
        return -float(running * _keep_weight(task) + running)
    return 0.0


def _oversized(task: Task, placements: tuple[Placement, ...]) -> set[str]:
    alpha, missing = task.problem.alpha, unserved_rps(task, placements)
    threshold: dict[str, float] = {}
    for p in placements:
        threshold[p.function] = threshold.get(p.function, 0.0) + p.offer.threshold_rps(alpha)
    served = {f: rate - missing.get(f, 0.0) for f, rate in task.wanted_rps.items()}
    return {f for f, rps in threshold.items() if rps > served[f] * (1 + _TOLERANCE)}


def _keep_weight(task: Task) -> int:
    """One instance kept as it is outweighs any number of resized ones."""
    return len(task.problem.running) + 1


def _kept_and_matched(task: Task, placements: tuple[Placement, ...]) -> tuple[int, int]:
    same: dict[object, int] = {}
    place: dict[object, int] = {}
    for p in placements:
        key = (p.function, p.server, p.gpu, p.offer.configuration)
        same[key] = same.get(key, 0) + 1
        place[key[:3]] = place.get(key[:3], 0) + 1
    running = running_counts(task)
    places: dict[tuple[str, str, str | None], int] = {}
    for (function, server, gpu, _), count in running.items():
        places[function, server, gpu] = places.get((function, server, gpu), 0) + count
    kept = sum(min(count, same.get(key, 0)) for key, count in running.items())
    return kept, sum(min(count, place.get(key, 0)) for key, count in places.items())


def _solve(
    program: Program, goal: Goal, limits: Mapping[Goal, float], start: tuple[Placement, ...], time_limit_s: float
) -> _Stage:
    if time_limit_s <= 0:
        return _Stage(SolverStatus.FAILED, (), -math.inf)
    built = _build(program, limits)
    built.model.objective = mip.minimize(built.goals[goal])
    built.model.start = _start(program, built, start)
    try:
        with stdout_to_stderr():
            status = STATUS[built.model.optimize(max_seconds=time_limit_s)]
    except mip.exceptions.MipBaseException:
        return _Stage(SolverStatus.FAILED, (), -math.inf)
    if status is SolverStatus.FAILED:
        return _Stage(status, (), -math.inf)
    placements = tuple(
        Placement(function=column.function, server=column.server, gpu=column.gpu, offer=column.offer)
        for column, count in zip(program.columns, built.count, strict=True)
        for _ in range(round(count.x))
    )
    return _Stage(status, placements, float(built.model.objective_bound))


def _build(program: Program, limits: Mapping[Goal, float]) -> _Model:
    """A fresh model for each stage: CBC keeps cuts and bounds of the last solve, which are wrong under a new goal."""
    task = program.task
    model = mip.Model(solver_name=mip.CBC)
    model.verbose = 0
    model.threads = 1
    model.seed = _SEED
    model.max_mip_gap = 1e-9
    model.max_mip_gap_abs = _TOLERANCE / 10
    count = tuple(model.add_var(var_type=mip.INTEGER, ub=column.most) for column in program.columns)
    used = {server.id: model.add_var(var_type=mip.BINARY) for server in task.problem.servers}
    for row in program.rows:
        model += mip.xsum(amount * count[index] for index, amount in row.uses) <= row.capacity * used[row.server]
    for group in program.alike:
        for first, second in itertools.pairwise(group):
            model += used[first] >= used[second]
    serve_all = limits.get(Goal.UNSERVED) == 0
    share = {f: model.add_var(lb=1.0 if serve_all else 0.0, ub=1.0) for f in task.wanted_rps}
    oversized = {f: model.add_var(var_type=mip.BINARY) for f in task.wanted_rps}
    _add_rate_rows(program, model, count, share, oversized)
    beta = task.problem.beta
    goals = {
        Goal.UNSERVED: mip.xsum(rate * (1 - share[f]) for f, rate in task.wanted_rps.items()),
        Goal.OBJECTIVE: mip.xsum(server_cost(s, beta) * used[s.id] for s in task.problem.servers),
        Goal.OVERSIZED: mip.xsum(oversized.values()),
        Goal.ALLOCATED: mip.xsum(c.offer.weight(beta) * x for c, x in zip(program.columns, count, strict=True)),
        Goal.CHANGES: _changes(program, model, count),
    }
    for goal, value in limits.items():
        if goal is not Goal.UNSERVED or not serve_all:
            model += goals[goal] <= value + _TOLERANCE
    return _Model(model, count, used, oversized, goals)


def _add_rate_rows(
    program: Program,
    model: mip.Model,
    count: tuple[mip.Var, ...],
    share: Mapping[str, mip.Var],
    oversized: Mapping[str, mip.Var],
) -> None:
    """Each function's R_max carries what is served of it, and its threshold is not above that unless `oversized`.

    All in shares of the function's rate. R_max never needs to exceed the rate by a whole instance.
    """
    task = program.task
    for function, rate_rps in task.wanted_rps.items():
        own = [(c.offer, x) for c, x in zip(program.columns, count, strict=True) if c.function == function]
        slack = 1 + max((offer.window.up_rps for offer, _ in own), default=0.0) / rate_rps
        most = mip.xsum(offer.window.up_rps / rate_rps * x for offer, x in own)
        threshold = mip.xsum(offer.threshold_rps(task.problem.alpha) / rate_rps * x for offer, x in own)
        model += share[function] <= most
        model += most <= slack
        model += threshold <= share[function] + slack * oversized[function]


def _changes(program: Program, model: mip.Model, count: tuple[mip.Var, ...]) -> mip.LinExpr:
    """Minus what stays: instances kept as they are, and (counting less) places where an instance stays at all."""
    running = running_counts(program.task)
    same = mip.LinExpr()
    here: dict[tuple[str, str, str | None], list[mip.Var]] = {}
    for column, x in zip(program.columns, count, strict=True):
        place = (column.function, column.server, column.gpu)
        here.setdefault(place, []).append(x)
        if kept := running[*place, column.offer.configuration]:
            stays = model.add_var(ub=kept)
            model += stays <= x
            same += stays
    matched = mip.LinExpr()
    for place in sorted({key[:3] for key in running}, key=str):
        total = sum(number for key, number in running.items() if key[:3] == place)
        stays = model.add_var(ub=total)
        model += stays <= mip.xsum(here.get(place, []))
        matched += stays
    return -_keep_weight(program.task) * same - matched


def _start(program: Program, built: _Model, placements: tuple[Placement, ...]) -> list[tuple[mip.Var, float]]:
    """The incumbent in the model's variables."""
    placed: dict[object, int] = {}
    for p in placements:
        key = (p.function, p.server, p.gpu, p.offer.configuration)
        placed[key] = placed.get(key, 0) + 1
    servers = {placement.server for placement in placements}
    oversized = _oversized(program.task, placements)
    start = [
        (x, float(placed.get((c.function, c.server, c.gpu, c.offer.configuration), 0)))
        for c, x in zip(program.columns, built.count, strict=True)
    ]
    start += [(y, float(id_ in servers)) for id_, y in built.used.items()]
    return start + [(v, float(f in oversized)) for f, v in built.oversized.items()]
