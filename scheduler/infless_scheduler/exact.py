"""The exact planner: paper Eq. 2 to 9 as a mixed-integer program, its goals in order.

Each goal is solved with the values reached for those before it as limits.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from infless_core.clock import Clock
from infless_core.model import Configuration
from infless_scheduler.greedy import greedy
from infless_scheduler.milp import TOLERANCE, Outcome, Row, Sense, Variable, solve_integer
from infless_scheduler.placement import (
    Placement,
    Solution,
    SolverStatus,
    Task,
    allocated,
    lack,
    objective,
    objective_bound,
    trimmed,
    unserved_rps,
)
from infless_scheduler.program import Program, program_of
from infless_scheduler.repair import running_counts, touched


class Goal(StrEnum):
    """What is minimised, in this order."""

    LACK = "lack"
    """Rates without an instance, and instances below a function's minimum."""
    COST = "cost"
    """Of the servers in use (Eq. 2), and of changing what runs where that has a price."""
    OVERSIZED = "oversized"
    """Functions whose rate is below the scale-in threshold of their instances (Eq. 7)."""
    ALLOCATED = "allocated"
    """Resources that instances hold."""
    CHANGES = "changes"
    """Instances that do not stay as they are; a resized one counts less than a new one."""


_MAIN_GOALS = (Goal.LACK, Goal.COST)
POLISH_COLUMNS, POLISH_NODES = 1000, 300
"""Up to a model of this size the goals after the cost are solved, in a search of so many nodes: they save no hardware,
and where they used up the time limit, the plan would depend on the machine's mood. Larger ones are left as they are."""
TIME_SHARE: Mapping[Goal, float] = {
    Goal.LACK: 0.3,
    Goal.COST: 0.9,
    Goal.OVERSIZED: 0.3,
    Goal.ALLOCATED: 0.7,
    Goal.CHANGES: 1.0,
}
"""Of the time that is left when its turn comes: early goals may not starve the later ones."""


def solve_exactly(
    task: Task, incumbent: tuple[Placement, ...], *, time_limit_s: float, clock: Clock, bound: float = 0.0
) -> Solution:
    """Solve goal after goal until all are proven or the time is over.

    Args:
        task: what to place.
        incumbent: a placement that keeps the rules; never worse than it, by the goals in order, is what comes back.
        time_limit_s: for all goals together.
        clock: measures it.
        bound: on the objective of plans that lack no more than the incumbent, where one is known.

    Returns:
        Placements, OPTIMAL when nothing serves more and, serving as much, nothing costs less. The later goals are
        solved, too, in small problems (`POLISH_COLUMNS`).
    """
    begun_s = clock.now_s()
    programs: dict[bool, Program] = {}
    best, proven, polish = incumbent, True, task.columns() <= POLISH_COLUMNS
    limits: dict[Goal, float] = {}
    known = bound, lack(task, incumbent)
    bound = max(bound, objective_bound(task, unserved_rps(task, incumbent)))
    for goal in Goal:
        if goal not in _MAIN_GOALS and not polish:
            break
        value = goal_value(task, goal, best)
        if value > _least(task, goal, bound) + TOLERANCE:
            narrow = goal is Goal.LACK or (goal is Goal.COST and not task.problem.churn_cost)
            if narrow not in programs:
                programs[narrow] = program_of(task, for_capacity=narrow)
            left_s = begun_s + time_limit_s - clock.now_s()
            nodes_max = None if goal in _MAIN_GOALS else POLISH_NODES
            stage = _solve(programs[narrow], goal, limits, best, left_s * TIME_SHARE[goal], nodes_max)
            placements = _placements(programs[narrow], stage)
            # A solver's answer counts when it still keeps what was reached once it is rounded to whole instances.
            good = stage.status is not SolverStatus.FAILED and _no_worse(task, placements, {**limits, goal: value})
            if good:
                best = placements
            value = goal_value(task, goal, best)
            if goal in _MAIN_GOALS:
                proven = proven and good and stage.status is SolverStatus.OPTIMAL
            if goal is Goal.COST and not task.problem.churn_cost:
                bound = max(bound, min(stage.bound, value))
        if goal is Goal.LACK:
            best = greedy(task, best)
            value = goal_value(task, goal, best)
            bound = objective_bound(task, unserved_rps(task, best))
            if abs(value - known[1]) <= TOLERANCE:
                bound = max(bound, known[0])
        limits[goal] = value
    best = trimmed(task, best)
    worth = objective(task, best)
    # With a churn cost the best plan may be one that does not have the least objective.
    proven = proven and worth <= bound + TOLERANCE * max(1.0, bound)
    status = SolverStatus.OPTIMAL if proven else SolverStatus.FEASIBLE
    return Solution(status=status, placements=best, bound=min(bound, worth))


def goal_value(task: Task, goal: Goal, placements: tuple[Placement, ...]) -> float:
    """What the placements achieve for a goal, counted from them and not from a solver's variables."""
    if goal is Goal.LACK:
        return lack(task, placements)
    if goal is Goal.COST:
        churn_cost = task.problem.churn_cost
        return objective(task, placements) + (churn_cost * touched(task, placements) if churn_cost else 0.0)
    if goal is Goal.OVERSIZED:
        return float(len(_oversized(task, placements)))
    if goal is Goal.ALLOCATED:
        return allocated(task, placements)
    kept, matched = _kept_and_matched(task, placements)
    return -float(kept * _keep_weight(task) + matched)


def _no_worse(task: Task, placements: tuple[Placement, ...], limits: Mapping[Goal, float]) -> bool:
    """Whether the placements keep what was reached."""
    return all(goal_value(task, goal, placements) <= limit + TOLERANCE for goal, limit in limits.items())


def _least(task: Task, goal: Goal, bound: float) -> float:
    """A value that no plan can beat, known without solving."""
    if goal is Goal.COST:
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
    return {f for f, rate in served.items() if threshold.get(f, 0.0) > rate * (1 + TOLERANCE)}


def _keep_weight(task: Task) -> int:
    """One instance kept as it is outweighs any number of resized ones."""
    return len(task.problem.running) + 1


def _kept_and_matched(task: Task, placements: tuple[Placement, ...]) -> tuple[int, int]:
    placed = Counter((p.function, p.server, p.gpu, p.offer.configuration) for p in placements)
    running = running_counts(task)
    kept = sum((placed & running).values())
    places, now = _by_place(placed), _by_place(running)
    return kept, sum((places & now).values())


def _by_place(counts: Mapping[tuple[str, str, str | None, Configuration], int]) -> Counter[tuple[str, str, str | None]]:
    places: Counter[tuple[str, str, str | None]] = Counter()
    for key, number in counts.items():
        places[key[:3]] += number
    return places


def _solve(
    program: Program,
    goal: Goal,
    limits: Mapping[Goal, float],
    start: tuple[Placement, ...],
    time_limit_s: float,
    nodes_max: int | None,
) -> Outcome:
    layout = _layout(program)
    terms = _goal_terms(program, layout)
    costs = dict(terms[goal])
    variables = [
        Variable(cost=costs.get(index, 0.0), most=most, least=least, integer=integer)
        for index, (least, most, integer) in enumerate(_ranges(program, layout, serve_all=limits.get(Goal.LACK) == 0))
    ]
    rows = _rows(program, layout)
    for reached, value in limits.items():
        if reached is not Goal.LACK or value > 0:
            rows.append(_limit(terms[reached], value + TOLERANCE - layout.constant[reached]))
    outcome = solve_integer(variables, rows, _start(program, layout, start), time_limit_s, nodes_max=nodes_max)
    return Outcome(status=outcome.status, values=outcome.values, bound=outcome.bound + layout.constant[goal])


def _limit(terms: Sequence[tuple[int, float]], limit: float) -> Row:
    return Row(terms=tuple(terms), sense=Sense.AT_MOST, limit=limit)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where each kind of variable begins: how many of each column, which servers are used, and so on."""

    used: dict[str, int]
    """By server."""
    share: dict[str, int]
    """Served share of each wanted rate."""
    oversized: dict[str, int]
    missing: dict[str, int]
    """Instances below a function's minimum."""
    same: dict[int, int]
    """By column: of its instances, how many run so now."""
    matched: dict[tuple[str, str, str | None], int]
    """By place: how many instances stay there at all."""
    size: int
    constant: dict[Goal, float]
    """What a goal's value is when its terms are zero."""


def _layout(program: Program) -> _Layout:
    task, numbers = program.task, itertools.count(len(program.columns))
    running = running_counts(task)
    same = [i for i, c in enumerate(program.columns) if (c.function, c.server, c.gpu, c.offer.configuration) in running]
    places = sorted({key[:3] for key in running}, key=str)
    constant = dict.fromkeys(Goal, 0.0)
    constant[Goal.LACK] = math.fsum(task.weights().values())
    constant[Goal.COST] = task.problem.churn_cost * len(task.problem.running)
    return _Layout(
        used={server.id: next(numbers) for kind in task.classes for server in kind.servers},
        share={function: next(numbers) for function in task.wanted_rps},
        oversized={function: next(numbers) for function in task.wanted_rps},
        missing={id_: next(numbers) for id_, function in task.functions.items() if function.instances_min},
        same={index: next(numbers) for index in same},
        matched={place: next(numbers) for place in places},
        size=next(numbers),
        constant=constant,
    )


def _ranges(program: Program, layout: _Layout, *, serve_all: bool) -> list[tuple[float, float, bool]]:
    """Least and most of each variable, and whether it is a whole number."""
    task, running = program.task, running_counts(program.task)
    places = _by_place(running)
    ranges: list[tuple[float, float, bool]] = [(0.0, float(column.most), True) for column in program.columns]
    ranges += [(0.0, 1.0, True)] * len(layout.used)
    ranges += [(1.0 if serve_all else 0.0, 1.0, False)] * len(layout.share)
    ranges += [(0.0, 1.0, True)] * len(layout.oversized)
    ranges += [(0.0, 0.0 if serve_all else float(task.functions[f].instances_min), False) for f in layout.missing]
    for index in layout.same:
        column = program.columns[index]
        key = column.function, column.server, column.gpu, column.offer.configuration
        ranges.append((0.0, float(running[key]), False))
    return ranges + [(0.0, float(places[place]), False) for place in layout.matched]


def _goal_terms(program: Program, layout: _Layout) -> dict[Goal, list[tuple[int, float]]]:
    task = program.task
    beta, churn, keep = task.problem.beta, task.problem.churn_cost, float(_keep_weight(task))
    costs = {server.id: kind.cost(beta) for kind in task.classes for server in kind.servers}
    stay = [*layout.same.values()], [*layout.matched.values()]
    cost = [(index, costs[server]) for server, index in layout.used.items()]
    if churn:  # touched = placed + running - kept - matched
        cost += [(index, churn) for index in range(len(program.columns))]
        cost += [(index, -churn) for group in stay for index in group]
    weights = task.weights()
    return {
        Goal.LACK: [(index, -weights[f]) for f, index in layout.share.items()]
        + [(index, 1.0) for index in layout.missing.values()],
        Goal.COST: cost,
        Goal.OVERSIZED: [(index, 1.0) for index in layout.oversized.values()],
        Goal.ALLOCATED: [(index, column.offer.weight(beta)) for index, column in enumerate(program.columns)],
        Goal.CHANGES: [(index, -keep) for index in stay[0]] + [(index, -1.0) for index in stay[1]],
    }


def _rows(program: Program, layout: _Layout) -> list[Row]:
    rows = [
        _limit((*((i, float(a)) for i, a in row.uses), (layout.used[row.server], -float(row.capacity))), 0.0)
        for row in program.rows
    ]
    for group in program.alike:
        for first, second in itertools.pairwise(group):
            rows.append(_limit(((layout.used[second], 1.0), (layout.used[first], -1.0)), 0.0))
    own: dict[str, list[int]] = {function: [] for function in program.task.functions}
    places: dict[tuple[str, str, str | None], list[int]] = {}
    for index, column in enumerate(program.columns):
        own[column.function].append(index)
        places.setdefault((column.function, column.server, column.gpu), []).append(index)
    for function, indices in own.items():
        rows += _rate_rows(program, layout, function, indices)
        rows += _number_rows(program, layout, function, indices)
    rows += [_limit(((stays, 1.0), (index, -1.0)), 0.0) for index, stays in layout.same.items()]
    for place, stays in layout.matched.items():
        rows.append(_limit(((stays, 1.0), *((index, -1.0) for index in places.get(place, []))), 0.0))
    return rows


def _rate_rows(program: Program, layout: _Layout, function: str, own: Sequence[int]) -> list[Row]:
    """Its R_max carries what is served of it, and its threshold is not above that unless `oversized`.

    All in shares of the function's rate. R_max never needs to exceed the rate by a whole instance.
    """
    task = program.task
    demand = task.functions[function]
    if demand.rate_rps <= 0:
        return []
    alpha, share, oversized = task.problem.alpha, layout.share[function], layout.oversized[function]
    offers = [(index, program.columns[index].offer) for index in own]
    most = [(index, offer.window.up_rps / demand.rate_rps) for index, offer in offers]
    threshold = [(index, offer.threshold_rps(alpha) / demand.rate_rps) for index, offer in offers]
    slack = 1 + max((factor for _, factor in most), default=0.0) * max(1, demand.instances_min)
    return [
        _limit([(share, 1.0), *((index, -factor) for index, factor in most)], 0.0),
        _limit(most, slack),
        _limit([*threshold, (share, -1.0), (oversized, -slack)], 0.0),
    ]


def _number_rows(program: Program, layout: _Layout, function: str, own: Sequence[int]) -> list[Row]:
    demand, rows = program.task.functions[function], []
    if demand.instances_min:
        terms = ((layout.missing[function], 1.0), *((index, 1.0) for index in own))
        rows.append(Row(terms=terms, sense=Sense.AT_LEAST, limit=float(demand.instances_min)))
    if demand.instances_max is not None:
        rows.append(_limit([(index, 1.0) for index in own], float(demand.instances_max)))
    return rows


def _start(program: Program, layout: _Layout, placements: tuple[Placement, ...]) -> list[float]:
    """The incumbent in the model's variables (those that are whole numbers; the solver finds the others)."""
    placed = Counter((p.function, p.server, p.gpu, p.offer.configuration) for p in placements)
    servers = {placement.server for placement in placements}
    oversized = _oversized(program.task, placements)
    start = [0.0] * layout.size
    for index, c in enumerate(program.columns):
        start[index] = float(placed[c.function, c.server, c.gpu, c.offer.configuration])
    for server, index in layout.used.items():
        start[index] = float(server in servers)
    for function, index in layout.oversized.items():
        start[index] = float(function in oversized)
    return start


def _placements(program: Program, outcome: Outcome) -> tuple[Placement, ...]:
    return tuple(
        Placement(function=column.function, server=column.server, gpu=column.gpu, offer=column.offer)
        for column, count in zip(program.columns, outcome.values, strict=False)
        for _ in range(round(count))
    )
