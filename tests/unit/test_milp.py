"""The solver library behind its two shells."""

import math

import mip
import pytest

from infless_scheduler.milp import (
    STATUS,
    ElasticRow,
    GrowingProgram,
    Row,
    Sense,
    Variable,
    solve_integer,
)
from infless_scheduler.placement import SolverStatus


def test_status_mapping_is_total():
    """Every status of the library has a meaning here; a new version's new one fails this test."""
    assert set(STATUS) == set(mip.OptimizationStatus)


def test_integer_program():
    """Whole numbers where they are asked for, and the bound that proves them."""
    rows = [Row(terms=((0, 1.0), (1, 0.25)), sense=Sense.AT_LEAST, limit=2.5)]
    variables = [Variable(cost=1.0, integer=True), Variable(cost=0.9, most=3.0)]
    outcome = solve_integer(variables, rows, [3.0, 0.0], 5.0)
    assert (outcome.status, outcome.values) == (SolverStatus.OPTIMAL, pytest.approx((3.0, 0.0)))
    assert outcome.bound == pytest.approx(3.0)


def test_no_time_and_no_variables():
    """Neither reaches the library."""
    assert solve_integer([Variable()], [], None, 0.0).status is SolverStatus.FAILED
    assert solve_integer([], [], None, 1.0).status is SolverStatus.OPTIMAL


def test_infeasible_program_is_a_failure():
    """Not an exception."""
    rows = [Row(terms=((0, 1.0),), sense=Sense.AT_LEAST, limit=2.0)]
    assert solve_integer([Variable(most=1.0)], rows, None, 1.0).status is SolverStatus.FAILED


def test_growing_program():
    """Columns come one by one, each solve is the optimum of what is there, and duals price the rows."""
    program = GrowingProgram([ElasticRow(sense=Sense.AT_LEAST, limit=2.0, price=10.0, give=math.inf),
                              ElasticRow(sense=Sense.AT_MOST, limit=3.0)])  # fmt: skip
    assert program.solve()
    assert (program.cost, program.broken()[0]) == (20.0, 2.0)
    program.add(1.0, [(0, 1.0), (1, 2.0)])
    assert program.solve()
    assert program.cost == pytest.approx(1.5 + 5.0)
    assert program.duals() == pytest.approx([10.0, -4.5])
    program.limit(1, 4.0)
    assert program.solve()
    assert (program.cost, program.values()) == (pytest.approx(2.0), pytest.approx([2.0]))


def test_growing_program_without_rows():
    """Nothing wanted, nothing to pay, and nothing said on standard error."""
    program = GrowingProgram([])
    assert program.solve()
    assert program.cost == 0.0


def test_growing_program_survives_its_library(monkeypatch):
    """What the library raises is an answer: it has no solution."""

    def broken(*_args, **_more):
        raise mip.InterfacingError

    program = GrowingProgram([ElasticRow(sense=Sense.AT_LEAST, limit=1.0, price=1.0, give=1.0)])
    monkeypatch.setattr(mip.Model, "optimize", broken)
    assert not program.solve()
