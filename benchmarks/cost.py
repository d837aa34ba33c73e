"""Processor time of one request, ours beside the least server's: `python -m benchmarks.cost`.

The model costs next to nothing, the rate is fixed, and what all processes of a server used is divided by the answers.
Ours also with its metrics asked for once a second, with its log written to a file, and with other forms of request.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click

from benchmarks import forms, record, servers
from benchmarks.models import TASKS, prepare
from benchmarks.peers.catalogue import SERVERS, Server, Start
from benchmarks.serving import UnusableError, serving

_OURS = SERVERS["ours"]
_OIP = "/v2/models/function/infer"
_SETTLE_S = 1.0
"""Of load before what is counted: code that specialises itself has done so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One thing that is measured."""

    name: str
    server: Server
    scraped: bool = False
    log: bool = False


CASES = (
    Case(name="least", server=SERVERS["least"]),
    Case(name="ours", server=_OURS),
    Case(name="ours, metrics scraped every second", server=_OURS, scraped=True),
    Case(name="ours, metrics scraped, log file", server=_OURS, scraped=True, log=True),
    Case(name="ours, JSON", server=replace(_OURS, form=forms.JSON)),
    Case(name="ours, OIP binary", server=replace(_OURS, form=forms.OIP_BINARY, path=_OIP)),
    Case(name="ours, OIP JSON", server=replace(_OURS, form=forms.OIP_JSON, path=_OIP)),
)


@dataclass(slots=True)
class Cost:
    """What one case cost at one rate, a value for each round."""

    us: list[float] = field(default_factory=list)
    trials: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def _scraped(url: str) -> Iterator[None]:
    """Ask for the metrics once a second, as Prometheus would at its most eager."""
    ended = threading.Event()

    def scrape() -> None:
        while not ended.wait(1.0):
            with urllib.request.urlopen(url, timeout=5) as answer:
                answer.read()

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def measure(case: Case, start: Start, rates_rps: tuple[float, ...], costs: dict[float, Cost], seed: int) -> None:
    """One round of one case."""
    log = {"log_file": str(start.example.folder.parent / "log")} if case.log else {}
    with serving(case.server, start, more=log) as running:
        for rate_rps in rates_rps:
            running.trial(rate_rps, 1000 + seed, _SETTLE_S)
            if case.scraped:
                with _scraped(f"http://127.0.0.1:{start.port + 1}/metrics"):
                    trial, as_record = running.trial(rate_rps, seed, 4.0)
            else:
                trial, as_record = running.trial(rate_rps, seed, 4.0)
            us = as_record["server_cpu_us_per_answer"]
            print(f"  {rate_rps:8.0f}/s  {us} us  {trial.share:.2%} in time", file=sys.stderr)
            costs[rate_rps].trials.append(as_record)
            if us is not None:
                costs[rate_rps].us.append(us)


@click.command()
@click.option("--rates", default="1000,10000", show_default=True, help="Requests per second.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
def main(rates: str, rounds: int) -> None:
    """Measure, keep and print."""
    rates_rps = tuple(float(rate) for rate in rates.split(","))
    costs = {case.name: {rate_rps: Cost() for rate_rps in rates_rps} for case in CASES}
    servers.pin_load()
    with tempfile.TemporaryDirectory() as folder:
        task = TASKS["tiny"]
        example = prepare(task, Path(folder) / task.name)
        for turn in range(rounds):
            for case in CASES:
                print(f"[round {turn + 1} of {rounds}] {case.name}", file=sys.stderr)
                start = Start(task=task, example=example, port=servers.free_ports(5), venvs=Path())
                try:
                    measure(case, start, rates_rps, costs[case.name], turn)
                except (UnusableError, OSError) as fault:
                    print(f"  {fault}", file=sys.stderr)
    results = {
        f"{rate_rps:.0f}/s": {
            name: {
                "median_us": statistics.median(by_rate[rate_rps].us) if by_rate[rate_rps].us else None,
                "us": by_rate[rate_rps].us,
                "trials": by_rate[rate_rps].trials,
            }
            for name, by_rate in costs.items()
        }
        for rate_rps in rates_rps
    }
    record.write("cost", " ".join(["python -m benchmarks.cost", *sys.argv[1:]]), results, show=False)
    for rate, cases in results.items():
        for name, case in cases.items():
            print(f"{rate:>8}  {name:40} {case['median_us']} us")


if __name__ == "__main__":
    main()
