"""The solver library behind two small shells: a linear program that grows by columns, and a mixed-integer one.

The only user of `mip` (python-mip, CBC inside). Deterministic: one thread, a fixed seed, variables and rows in the
order they are given; only a run that its time limit cuts off may differ from machine to machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import mip

from infless_scheduler.native_output import stdout_silenced
from infless_scheduler.placement import SolverStatus

SEED = 1
TOLERANCE = 1e-6

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


class Sense(StrEnum):
    """How a row's sum stands to its right-hand side."""

    AT_MOST = "<"
    AT_LEAST = ">"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """One variable of a mixed-integer program."""

    cost: float = 0.0
    least: float = 0.0
    most: float = math.inf
    integer: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """`sum(factor * variable) sense limit`, with `(variable index, factor)` pairs."""

    terms: tuple[tuple[int, float], ...]
    sense: Sense
    limit: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a mixed-integer run ended."""

    status: SolverStatus
    values: tuple[float, ...] = ()
    bound: float = -math.inf
    """No solution has a lower cost."""


FAILURE = Outcome(status=SolverStatus.FAILED)


def solve_integer(
    variables: Sequence[Variable],
    rows: Sequence[Row],
    start: Sequence[float] | None,
    time_limit_s: float,
    *,
    nodes_max: int | None = None,
) -> Outcome:
    """Minimise the variables' cost. A fault of the library is an outcome, not an exception.

    Args:
        variables: in the order that `rows` and `start` speak of.
        rows: what must hold.
        start: a solution to begin with, if there is one.
        time_limit_s: wall-clock seconds; with none left the run fails at once.
        nodes_max: of the search tree. A run that this ends is the same on every machine.
    """
    if time_limit_s <= 0:
        return FAILURE
    if not variables:
        return Outcome(status=SolverStatus.OPTIMAL, bound=0.0)
    model = _model()
    model.max_mip_gap, model.max_mip_gap_abs = 1e-9, TOLERANCE / 10
    made = [
        model.add_var(
            obj=v.cost, lb=v.least, ub=min(v.most, mip.INF), var_type=mip.INTEGER if v.integer else mip.CONTINUOUS
        )
        for v in variables
    ]
    for row in rows:
        total = mip.LinExpr([made[index] for index, _ in row.terms], [factor for _, factor in row.terms])
        model.add_constr(total <= row.limit if row.sense is Sense.AT_MOST else total >= row.limit)
    if start is not None:
        model.start = [(x, value) for x, v, value in zip(made, variables, start, strict=True) if v.integer]
    try:
        with stdout_silenced():
            limits = {} if nodes_max is None else {"max_nodes": nodes_max}
            status = STATUS[model.optimize(max_seconds=time_limit_s, **limits)]
    except mip.exceptions.MipBaseException:
        return FAILURE
    if status is SolverStatus.FAILED:
        return FAILURE
    return Outcome(status=status, values=tuple(x.x for x in made), bound=float(model.objective_bound))


@dataclass(frozen=True, slots=True, kw_only=True)
class ElasticRow:
    """A row of a growing program, with what it costs to break it by one unit and by how much it may be broken."""

    sense: Sense
    limit: float
    price: float = 0.0
    give: float = 0.0


class GrowingProgram:
    """A linear program whose rows are fixed at first and whose columns come one after the other (column generation).

    Mutable: each solve starts from the basis of the last one, which is what makes column generation quick. The first
    columns are what each row is broken by: CBC takes no column for a row that has never had one.
    """

    def __init__(self, rows: Sequence[ElasticRow]) -> None:
        self._model = _model()
        broken = [self._model.add_var(obj=row.price, ub=min(row.give, mip.INF)) for row in rows]
        self._rows = [
            self._model.add_constr(x >= row.limit if row.sense is Sense.AT_LEAST else -1 * x <= row.limit)
            for x, row in zip(broken, rows, strict=True)
        ]

    def add(self, cost: float, terms: Sequence[tuple[int, float]], most: float = math.inf) -> None:
        """Add a column with `(row index, factor)` pairs."""
        column = mip.Column([self._rows[index] for index, _ in terms], [factor for _, factor in terms])
        self._model.add_var(obj=cost, ub=min(most, mip.INF), column=column)

    def limit(self, row: int, limit: float) -> None:
        """Change a row's right-hand side."""
        self._rows[row].rhs = limit

    def solve(self) -> bool:
        """Minimise; False when the library fails. Then `values`, `duals` and `cost` are not to be used."""
        if not self._rows:
            return True
        try:
            with stdout_silenced():
                return bool(self._model.optimize(relax=True) is mip.OptimizationStatus.OPTIMAL)
        except mip.exceptions.MipBaseException:
            return False

    @property
    def cost(self) -> float:
        """Of the last solution."""
        return float(self._model.objective_value) if self._rows else 0.0

    def values(self) -> list[float]:
        """Of the columns in the order they were added."""
        return [float(x.x) for x in self._model.vars[len(self._rows) :]]

    def broken(self) -> list[float]:
        """By how much each row is broken."""
        return [float(x.x) for x in self._model.vars[: len(self._rows)]]

    def duals(self) -> list[float]:
        """Of the rows: how much the cost rises for one more unit of the right-hand side."""
        return [float(row.pi) for row in self._rows]


def _model() -> mip.Model:
    model = mip.Model(solver_name=mip.CBC)
    model.verbose, model.threads, model.seed = 0, 1, SEED
    return model
