"""Ours beside every peer and the two limits, on one core, in one run: `python -m benchmarks.watchdog`.

For each model the highest rate of seeded Poisson arrivals at which 99 % are answered rightly and in time, counted from
when each was due; the server has one core, the generator another. Rounds are interleaved, so that a machine that
changes its pace changes it for all. Also resident memory, and the time from process start to the first right answer.
Peers are installed by `python -m benchmarks.peers.install`; those that are not there are told so in the record.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from benchmarks import ort_loop, record, servers, table
from benchmarks.models import TASKS, Example, Task, prepare
from benchmarks.peers.catalogue import SERVERS, MissingError, Server, Start
from benchmarks.peers.install import FOLDER
from benchmarks.rates import highest_rate
from benchmarks.serving import UnusableError, serving

ORT_ALONE = "onnxruntime"
"""The first limit. A model that costs nothing has none: its loop would measure NumPy."""
_SHARE = 0.99
_COMPARED = ("median_rps", "median_worked_bytes", "median_start_s")
_ATTEMPTS = 2
"""At each rate: a single stall of a shared machine is not the server's limit."""
_DISTURBED = 0.03
"""When other work takes more than this share of the two cores, a failure says little;"""
_DISTURBED_ATTEMPTS = 1
"""then so many more are allowed. All are in the record."""
_FIRST_STEP = 0.25
"""Of the first round's search, from where the rate is likely to be."""
_PORTS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be measured."""

    tasks: tuple[Task, ...]
    servers: tuple[str, ...]
    rounds: int
    seconds: float
    precision: float
    starts: int
    """For the median time of a start, with the first model."""
    venvs: Path


@dataclass(slots=True)
class Found:
    """What is known of one server with one model."""

    rates_rps: list[float] = field(default_factory=list)
    start_s: list[float] = field(default_factory=list)
    loaded_bytes: list[int] = field(default_factory=list)
    worked_bytes: list[int] = field(default_factory=list)
    trials: list[dict[str, Any]] = field(default_factory=list)
    fault: str = ""

    def as_json(self) -> dict[str, Any]:
        """With medians."""
        if self.fault:
            return {"fault": self.fault, "trials": self.trials}
        return {
            "median_rps": statistics.median(self.rates_rps),
            "rates_rps": self.rates_rps,
            "median_start_s": _median(self.start_s),
            "start_s": self.start_s,
            "median_loaded_bytes": _median(self.loaded_bytes),
            "median_worked_bytes": _median(self.worked_bytes),
            "loaded_bytes": self.loaded_bytes,
            "worked_bytes": self.worked_bytes,
            "trials": self.trials,
        }


def _median(values: list[Any]) -> float | None:
    return statistics.median(values) if values else None


def measure(plan: Plan, folder: Path) -> dict[str, dict[str, Found]]:
    """All rounds; by model, then by server."""
    found = {task.name: {name: Found() for name in plan.servers} for task in plan.tasks}
    examples = {task.name: prepare(task, folder / task.name) for task in plan.tasks}
    turns = [(turn, task, name) for turn in range(plan.rounds) for task in plan.tasks for name in plan.servers]
    begin_s = time.monotonic()
    for done, (turn, task, name) in enumerate(turns):
        so_far = found[task.name][name]
        if so_far.fault or (name == ORT_ALONE and task.name == "tiny"):
            continue
        left_s = (time.monotonic() - begin_s) / done * (len(turns) - done) if done else 0.0
        left = f", about {left_s / 60:.0f} min left" if done else ""
        print(f"[{done + 1}/{len(turns)}{left}] {task.name}: {name}", file=sys.stderr)
        try:
            one_turn(plan, Turn(number=turn, task=task, name=name, example=examples[task.name]), so_far)
        except KeyboardInterrupt:
            print("stopped; what is measured so far is kept", file=sys.stderr)
            break
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One server with one model in one round."""

    number: int
    task: Task
    name: str
    example: Example

    def start(self, venvs: Path) -> Start:
        """On free ports."""
        return Start(task=self.task, example=self.example, port=servers.free_ports(_PORTS), venvs=venvs)


def one_turn(plan: Plan, turn: Turn, found: Found) -> None:
    """Add what one turn finds; a server that cannot be measured is told so and left alone from then on."""
    if turn.name == ORT_ALONE:

        def loop(rate_rps: float, seed: int) -> tuple[bool, dict[str, Any]]:
            return ort_loop.run(turn.example, rate_rps, seed, turn.task.target_s, plan.seconds)

        found.rates_rps.append(search(plan, turn, found, loop, SERVERS["least"]))
        return
    server = SERVERS[turn.name]
    try:
        with serving(server, turn.start(plan.venvs)) as running:

            def load(rate_rps: float, seed: int) -> tuple[bool, dict[str, Any]]:
                trial, as_record = running.trial(rate_rps, seed, plan.seconds)
                return trial.share >= _SHARE, as_record

            rate_rps = search(plan, turn, found, load, server)
            found.worked_bytes.append(running.resident_bytes())
            found.rates_rps.append(rate_rps)
            found.loaded_bytes.append(running.loaded_bytes)
            found.start_s.append(running.start_s)
        if turn.task is plan.tasks[0] and turn.number == plan.rounds - 1:
            more_starts(plan, server, turn, found)
    except (MissingError, UnusableError, OSError) as fault:
        found.fault = str(fault)
        print(f"  {fault}", file=sys.stderr)


def search(
    plan: Plan, turn: Turn, found: Found, trial: Callable[[float, int], tuple[bool, dict[str, Any]]], server: Server
) -> float:
    """The highest rate in this round; the first round begins anywhere, later ones where the last one ended."""

    def bears(rate_rps: float) -> bool:
        disturbed = 0
        for attempt in range(_ATTEMPTS + _DISTURBED_ATTEMPTS):
            passed, as_record = trial(rate_rps, 10 * turn.number + attempt)
            found.trials.append({"round": turn.number, **as_record})
            others = as_record["others_share"]
            print(
                f"  {rate_rps:8.0f}/s  {as_record['share_in_time']:8.2%} in time"
                + f", others took {others:.0%}" * (others > _DISTURBED),
                file=sys.stderr,
            )
            disturbed += others > _DISTURBED
            if passed or attempt + 1 - disturbed >= _ATTEMPTS:
                return bool(passed)
        return False

    if found.rates_rps and found.rates_rps[-1]:
        return highest_rate(bears, found.rates_rps[-1], step=plan.precision, precision=plan.precision)
    return highest_rate(bears, server.likely_rps[turn.task.name], step=_FIRST_STEP, precision=plan.precision)


def more_starts(plan: Plan, server: Server, turn: Turn, found: Found) -> None:
    """Start it until there are enough times for a median."""
    while len(found.start_s) < plan.starts:
        with serving(server, turn.start(plan.venvs)) as running:
            found.start_s.append(running.start_s)
            found.loaded_bytes.append(running.loaded_bytes)


def results_of(plan: Plan, found: dict[str, dict[str, Found]]) -> dict[str, Any]:
    """As it is kept: for each model every server, and its ratio to the least one."""
    results: dict[str, Any] = {
        "rounds": plan.rounds, "seconds": plan.seconds, "precision": plan.precision, "share": _SHARE,
        "starts": "from process start to the first right answer, page cache warm, compiled Python files in place",
        "memory": "sum of PSS of all processes, after the first answer and after all trials",
        "forms": {name: SERVERS[name].form.name for name in plan.servers if name in SERVERS},
        "models": {},
    }  # fmt: skip
    for task in plan.tasks:
        rows = {name: one.as_json() for name, one in found[task.name].items() if one.fault or one.rates_rps}
        least = rows.get("least", {})
        for row in rows.values():
            row["ratios_to_least"] = {
                what: row[what] / least[what] for what in _COMPARED if row.get(what) and least.get(what)
            }
        results["models"][task.name] = {"target_s": task.target_s, "servers": rows}
    return results


@click.command()
@click.option("--models", default=",".join(TASKS), show_default=True)
@click.option("--servers", "names", default=",".join((ORT_ALONE, *SERVERS)), show_default=True)
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
@click.option("--seconds", default=4.0, show_default=True, type=click.FloatRange(0.5), help="Of load in a trial.")
@click.option("--quick", is_flag=True, help="One round of short trials, to 8 %: for looking, not for quoting.")
@click.option("--peers", default=FOLDER, show_default=True, type=click.Path(path_type=Path), help="Where they are.")
@click.option("--name", default="watchdog", show_default=True, help="Of the record in benchmarks/results.")
def main(models: str, names: str, rounds: int, seconds: float, quick: bool, peers: Path, name: str) -> None:
    """Measure, keep and print a table."""
    plan = Plan(
        tasks=tuple(TASKS[one] for one in _chosen(models, tuple(TASKS))),
        servers=_chosen(names, (ORT_ALONE, *SERVERS)),
        rounds=1 if quick else rounds,
        seconds=2.0 if quick else seconds,
        precision=0.08 if quick else 0.04,
        starts=1 if quick else 5,
        venvs=peers.resolve(),
    )
    servers.pin_load()
    with tempfile.TemporaryDirectory() as folder:
        results = results_of(plan, measure(plan, Path(folder)))
    versions = {one: _version(plan, one) for one in plan.servers}
    command = " ".join(["python -m benchmarks.watchdog", *_said(sys.argv[1:])])
    record.write(name, command, {**results, "versions": versions}, show=False)
    print(table.markdown(results, {one: _title(one, versions[one]) for one in plan.servers}))


def _said(arguments: list[str]) -> list[str]:
    """Those that the figures depend on: not where this machine keeps its peers."""
    where = arguments.index("--peers") if "--peers" in arguments else len(arguments)
    return arguments[:where] + arguments[where + 2 :]


def _chosen(text: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
    chosen = tuple(text.split(","))
    for one in chosen:
        if one not in allowed:
            raise click.UsageError(f"{one!r} is not one of {', '.join(allowed)}")
    return chosen


def _version(plan: Plan, name: str) -> str:
    package = SERVERS[name].package if name in SERVERS else ORT_ALONE
    return record.version(package, plan.venvs / name) if package else ""


def _title(name: str, version: str) -> str:
    if name == ORT_ALONE:
        return f"ONNX Runtime {version} alone in a loop, same arrivals"
    server = SERVERS[name]
    return server.title if name in {"ours", "least"} else f"{server.title} {version}".strip()


if __name__ == "__main__":
    main()
