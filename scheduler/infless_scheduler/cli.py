"""`infless plan`: a problem file in, a plan out. Results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from infless_core.errors import InflessError, InvalidInput
from infless_core.model import Plan, PlanStatus, Problem
from infless_scheduler.explain import explain
from infless_scheduler.explain_text import explanation_as_text, explanation_to_json
from infless_scheduler.listing import printable
from infless_scheduler.picture import servers_as_svg, servers_as_text
from infless_scheduler.planner import SOLVERS, TIME_LIMIT_S, plan
from infless_scheduler.problem_file import ProblemFileError, parse_problem_text, plan_to_json
from infless_scheduler.what_if import WhatIfError, apply_changes, compare, comparison_as_text, comparison_to_json

EXIT_FAILED, EXIT_USAGE, EXIT_INFEASIBLE = 1, 2, 3
_COLUMNS = ("INSTANCE", "ACTION", "SERVER", "GPU", "BATCH", "CORES", "GPU%", "RATE/S", "WINDOW/S")
_TRY_S = 1.0
"""For each plan that is made to find out what would help: there are dozens, and patterns are good by then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wish:
    """What the command was asked for."""

    solver: str
    time_limit_s: float
    what_if: str | None
    explain_it: bool
    picture: Path | None
    as_json: bool


Live = Callable[[str | None, Path | None], str]
"""The present problem of a running provider as JSON text, by its address and its state folder (None: the defaults)."""


def plan_command_with(live: Live | None) -> click.Command:
    """The command `plan`.

    Args:
        live: asks a provider for its present problem; without it the command reads files only.
    """

    @click.pass_context
    def run(context: click.Context, /, **options: Any) -> None:
        """Plan where instances run, in which configuration, and at which rates.

        Exit codes: 0 done, 1 failed, 2 wrong usage or problem file, 3 nothing can be planned.
        """
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
        file, from_live = options.pop("file"), options.pop("from_live", False)
        gateway, state_dir = options.pop("gateway", None), options.pop("state_dir", None)
        if (file is None) is not from_live:
            one = "" if live is None else f", or --live{'' if file is None else ', but not both'}"
            raise click.UsageError(f"say what to plan: --problem FILE{one}")
        try:
            text = _decoded(file.read()) if live is None or file is not None else live(gateway, state_dir)
            context.exit(_run(parse_problem_text(text), _Wish(**options)))
        except (ProblemFileError, WhatIfError) as error:
            for fault in error.faults:
                click.echo(fault, err=True)
            context.exit(EXIT_USAGE)
        except InflessError as error:
            click.echo(f"error: {error}", err=True)
            context.exit(EXIT_USAGE if isinstance(error, InvalidInput) else EXIT_FAILED)

    command = click.command("plan")(run)
    command.params = [*_OPTIONS, *(() if live is None else _LIVE_OPTIONS)]
    return command


def _finite(_context: click.Context, _parameter: click.Parameter, value: float) -> float:
    if not 0 < value < math.inf:
        raise click.BadParameter(f"{value:g} is not allowed; write seconds above 0, for example 10")
    return value


_OPTIONS = (
    click.Option(["--problem", "file"], type=click.File("rb"), help="The problem as JSON; - reads stdin."),
    click.Option(
        ["--solver"], type=click.Choice(SOLVERS), default="auto", show_default=True, help="Who places instances."
    ),
    click.Option(
        ["--time-limit-s"],
        type=float,
        default=TIME_LIMIT_S,
        show_default=True,
        callback=_finite,
        help="Seconds the solver may take; then the best plan so far is given.",
    ),
    click.Option(
        ["--what-if"],
        metavar="CHANGES",
        help='Plan a changed problem and compare, such as "rate.resnet=2x,servers.gpu+=2"; nothing is carried out.',
    ),
    click.Option(
        ["--explain", "explain_it"],
        is_flag=True,
        help="Say why each instance is as it is and where, what would help what is unserved, and draw the servers.",
    ),
    click.Option(
        ["--picture"], type=click.Path(dir_okay=False, path_type=Path), help="Draw the servers into this SVG file."
    ),
    click.Option(["--json", "as_json"], is_flag=True, help="Print the plan as one JSON object."),
)
_LIVE_OPTIONS = (
    click.Option(
        ["--live", "from_live"], is_flag=True, help="Plan what a running provider has to plan now; a dry run."
    ),
    click.Option(["-g", "--gateway"], envvar="OPENFAAS_URL", help="The provider of --live."),
    click.Option(
        ["--state-dir"],
        type=click.Path(path_type=Path),
        envvar="INFLESS_STATE",
        help="Where the password of --live is. Default ~/.infless.",
    ),
)


def _run(problem: Problem, wish: _Wish) -> int:
    """Plan, print, and say with which exit code to end."""
    changed = problem if wish.what_if is None else apply_changes(problem, wish.what_if)
    _tell_people(changed, wish.time_limit_s)
    made = plan(changed, wish.solver, time_limit_s=wish.time_limit_s)
    before = None if wish.what_if is None else plan(problem, wish.solver, time_limit_s=wish.time_limit_s)
    compared = None if before is None else compare(before, made, problem, changed)
    because = explain(changed, made, _try) if wish.explain_it else None
    if wish.picture is not None:
        try:
            wish.picture.write_text(servers_as_svg(changed, made))
        except OSError as fault:
            raise InvalidInput(f"--picture: {wish.picture} cannot be written: {fault.strerror}") from fault
        click.echo(f"drawn in {wish.picture}", err=True)
    if wish.as_json:
        result: dict[str, Any] = plan_to_json(made)
        result |= {} if compared is None else {"what_if": comparison_to_json(compared)}
        result |= {} if because is None else {"explanation": explanation_to_json(because)}
        click.echo(json.dumps(result, indent=2, allow_nan=False))
    else:
        parts = [plan_as_text(made)]
        if because is not None:
            colour = sys.stdout.isatty()
            parts = [explanation_as_text(because), servers_as_text(changed, made, colour=colour), _summary(made)]
        if compared is not None:
            parts = ["Plan with the changes:", *parts, "Before and after:\n" + comparison_as_text(compared)]
        click.echo("\n\n".join(parts))
    if made.status is PlanStatus.INFEASIBLE:
        for unserved in made.unserved:
            click.echo(f"{printable(unserved.function)}: {unserved.reason}", err=True)
        return EXIT_INFEASIBLE
    return 0


def _tell_people(problem: Problem, time_limit_s: float) -> None:
    if sys.stderr.isatty():
        size = f"{len(problem.functions)} functions on {len(problem.servers)} servers"
        click.echo(f"planning {size}, at most {time_limit_s:g} s", err=True)


def _try(problem: Problem) -> Plan:
    """A plan to find out whether a change helps: good, and quick."""
    return plan(problem, "patterns", time_limit_s=_TRY_S)


def plan_as_text(made: Plan) -> str:
    """The plan as a table for people, with what is unserved and the totals below."""
    lines = _table(made) if made.instances else []
    lines += [f"stop {printable(id_)}" for id_ in made.stop]
    lines += [f"unserved {printable(u.function)}: {u.rate_rps:g}/s, {u.reason}" for u in made.unserved]
    return "\n".join([*lines, _summary(made)])


def _summary(made: Plan) -> str:
    return (
        f"{made.status} by {made.solver} in {made.solve_s:.2f} s: {made.servers_used} servers, objective"
        f" {made.objective:g} (bound {made.bound:g}, gap {made.gap:.1%}), fragmentation {made.fragmentation:.1%}"
    )


def _table(made: Plan) -> list[str]:
    rows = [_COLUMNS]
    for instance in made.instances:
        given = instance.configuration
        rates = f"[{instance.rate_low_rps:g}, {instance.rate_up_rps:g}]"
        place = (printable(instance.server), printable(instance.gpu or "-"))
        shape = (str(given.batch), str(given.cpu_cores), str(given.gpu_percent))
        id_ = printable(instance.id)
        rows.append((id_, instance.action.value, *place, *shape, f"{instance.rate_rps:.6g}", rates))
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise ProblemFileError((f"$: not UTF-8: {error}",)) from error


plan_command = plan_command_with(None)
