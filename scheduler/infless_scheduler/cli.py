"""`infless plan`: a problem file in, a plan out. Results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import logging
import math
from typing import BinaryIO

import click

from infless_core.errors import InflessError
from infless_core.model import Plan, PlanStatus
from infless_scheduler.planner import SOLVERS, TIME_LIMIT_S, plan
from infless_scheduler.problem_file import ProblemFileError, parse_problem_text, plan_to_json

EXIT_FAILED, EXIT_USAGE, EXIT_INFEASIBLE = 1, 2, 3

_COLUMNS = ("INSTANCE", "ACTION", "SERVER", "GPU", "BATCH", "CORES", "GPU%", "RATE/S", "WINDOW/S")


def _finite(_context: click.Context, _parameter: click.Parameter, value: float) -> float:
    if not 0 < value < math.inf:
        raise click.BadParameter(f"{value:g} is not allowed; write seconds above 0, for example 10")
    return value


@click.command("plan")
@click.option("--problem", "file", type=click.File("rb"), required=True, help="The problem as JSON; - reads stdin.")
@click.option("--solver", type=click.Choice(SOLVERS), default="auto", show_default=True, help="Who places instances.")
@click.option(
    "--time-limit-s",
    type=float,
    default=TIME_LIMIT_S,
    show_default=True,
    callback=_finite,
    help="Seconds the solver may take; then the best plan so far is given.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the plan as one JSON object.")
@click.pass_context
def plan_command(context: click.Context, file: BinaryIO, solver: str, time_limit_s: float, as_json: bool) -> None:
    """Plan where instances run, in which configuration, and at which rates.

    Exit codes: 0 done, 1 failed, 2 wrong usage or problem file, 3 nothing can be planned.
    """
    try:
        problem = parse_problem_text(_decoded(file.read()))
    except ProblemFileError as error:
        for fault in error.faults:
            click.echo(fault, err=True)
        context.exit(EXIT_USAGE)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        made = plan(problem, solver, time_limit_s=time_limit_s)
    except InflessError as error:
        click.echo(f"error: {error}", err=True)
        context.exit(EXIT_FAILED)
    click.echo(json.dumps(plan_to_json(made), indent=2, allow_nan=False) if as_json else plan_as_text(made))
    if made.status is PlanStatus.INFEASIBLE:
        for unserved in made.unserved:
            click.echo(f"{unserved.function}: {unserved.reason}", err=True)
        context.exit(EXIT_INFEASIBLE)


def plan_as_text(made: Plan) -> str:
    """The plan as a table for people, with what is unserved and the totals below."""
    lines = _table(made) if made.instances else []
    lines += [f"stop {id_}" for id_ in made.stop]
    lines += [f"unserved {u.function}: {u.rate_rps:g}/s, {u.reason}" for u in made.unserved]
    lines.append(
        f"{made.status} by {made.solver} in {made.solve_s:.2f} s: {made.servers_used} servers, objective"
        f" {made.objective:g} (bound {made.bound:g}, gap {made.gap:.1%}), fragmentation {made.fragmentation:.1%}"
    )
    return "\n".join(lines)


def _table(made: Plan) -> list[str]:
    rows = [_COLUMNS]
    for instance in made.instances:
        given = instance.configuration
        rates = f"[{instance.rate_low_rps:g}, {instance.rate_up_rps:g}]"
        place = (instance.server, instance.gpu or "-")
        shape = (str(given.batch), str(given.cpu_cores), str(given.gpu_percent))
        rows.append((instance.id, instance.action.value, *place, *shape, f"{instance.rate_rps:.6g}", rates))
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise ProblemFileError((f"$: not UTF-8: {error}",)) from error
