"""How busy an instance may be: the table behind rate windows with a percentile, `python -m benchmarks.bearable_load`.

One instance is simulated under the watchdog's own batching policy, with gamma renewal arrivals, and the highest load at
which a share of the requests is in time is found for every cell of a grid. `--validate` draws points beside the grid,
finds their loads by bisection, and keeps them all beside what the table says.
"""

from __future__ import annotations

import json
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any, TypeVar

import click

import infless_scheduler
from benchmarks import record
from infless_scheduler.arrivals import gamma_arrivals_s
from infless_scheduler.bearable import FLOOR, bearable_load
from infless_scheduler.simulate.bulk_server import linear_exec_s, serve
from infless_watchdog.batching import BatchPolicy

TABLE = Path(infless_scheduler.__file__).with_name("bearable_load.json")

BATCHES = (1, 2, 4, 8, 16, 32, 64)
RATIOS_ONE = (1.0, 1.2, 1.4, 1.6, 1.8, 1.9, 2.0, 2.25, 2.5, 2.8, 3.0, 4.0, 6.0, 10.0, 20.0, 40.0)
"""Target over execution time, where requests run one by one: waits have a kink at each whole one."""
RATIOS = (2.0, 2.2, 2.5, 2.8, 3.0, 3.5, 4.5, 6.0, 9.0, 15.0, 40.0)
PERCENTILES = (50.0, 80.0, 90.0, 95.0, 99.0, 99.9)
CVS = (1.0, 1.5, 2.0, 3.0, 4.0)
FIXED_SHARES = (0.0, 0.5, 1.0)

EXEC_S = 0.03
"""Of a full batch. The policy counts rates over a second, so that the table is not quite free of a scale."""
RUNS_MAX = 45_000
"""Of the model, for one load; a batch of one gets twice as many."""
REQUESTS = 10_000
"""For one load and each place in a batch, at least."""
_FIRST_LOADS = (0.5, 0.85, 1.0)
_LOWEST_LOAD = 0.01
_LOADS_MAX = 10
_NARROW = 0.08
"""Relative: between two loads so close a straight line does."""
_PROCESSES = 2

PICTURE = Path(__file__).parents[1] / "docs" / "reference" / "bearable-load.png"
_LINES = ((1, 1.0), (4, 1.0), (32, 1.0), (4, 3.0), (32, 3.0))
"""Batch sizes and CVs of the picture."""
_LINE_RATIOS = (2.1, 2.7, 3.8, 7.3, 12.0)
_MORE = 5
"""Times as many requests where the truth is sought."""
_NARROW_TRUTH = 0.01
_USEFUL = 0.1
"""Nobody plans an instance that may be less busy."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """An instance and its arrivals, but for their rate."""

    batch: int
    ratio: float
    cv: float
    fixed_share: float
    exec_s: float = EXEC_S


def requests_of(batch: int) -> int:
    """So many that a full batch runs some ten thousand times."""
    return 2 * RUNS_MAX if batch == 1 else max(RUNS_MAX * 2, REQUESTS * batch)


def arrivals_of(point: Point, salt: str = "", more: int = 1) -> list[float]:
    """Arrivals at a rate of one. Each point has its own: what is between cells then averages their chance out."""
    count = more * requests_of(point.batch)
    unit_arrivals = gamma_arrivals_s(1.0, point.cv, count, random.Random(f"bearable load, {point}{salt}"))
    return [at * count / unit_arrivals[-1] for at in unit_arrivals]


def late_share(unit_arrivals: Sequence[float], point: Point, load: float, more: int = 1) -> float:
    """The share of requests that miss the target at a load, never quite none: not all were tried."""
    gap_s = point.exec_s / (load * point.batch)
    served = serve(
        [at * gap_s for at in unit_arrivals],
        linear_exec_s(point.batch, point.exec_s, point.fixed_share),
        BatchPolicy(batch_max=point.batch, latency_target_s=point.ratio * point.exec_s),
        runs_max=more * RUNS_MAX * (2 if point.batch == 1 else 1),
    )
    return max(1 - served.on_time_share, 0.3 / served.requests)


# one cell ------------------------------------------------------------------------------------------------------------


def loads_by_percentile(late: Callable[[float], float]) -> list[float]:
    """For each percentile the highest load it bears, from a dozen loads placed where the percentiles need them."""
    seen = {load: late(load) for load in _FIRST_LOADS}
    while len(seen) < _LOADS_MAX:
        load = _most_wanted(seen)
        if load is None:
            break
        seen[load] = late(load)
    curve = _rising(seen)
    return [_crossing(curve, 1 - percentile / 100) for percentile in PERCENTILES]


def _rising(seen: dict[float, float]) -> list[tuple[float, float]]:
    """Late shares by load that never fall: the mean of the highest so far and the lowest from here on."""
    loads = sorted(seen)
    shares = [seen[load] for load in loads]
    return [(load, math.sqrt(max(shares[: n + 1]) * min(shares[n:]))) for n, load in enumerate(loads)]


def _most_wanted(seen: dict[float, float]) -> float | None:
    """The middle of the widest gap that a percentile's load lies in; None when all are narrow."""
    widest, place = _NARROW, None
    curve = [(0.0, 0.0), *_rising(seen)]
    for percentile in PERCENTILES:
        for (low, low_late), (high, high_late) in pairwise(curve):
            if low_late <= 1 - percentile / 100 < high_late and low != high and (high - low) / high > widest:
                if low == 0.0 and high <= _LOWEST_LOAD:
                    continue
                widest = (high - low) / high
                place = max(_LOWEST_LOAD, (low + high) / 2 if low > high / 3 else math.sqrt(max(low, 1e-4) * high))
    return place


def _crossing(curve: Sequence[tuple[float, float]], share: float) -> float:
    """Where the late share reaches `share`: straight lines in its logarithm; below the lowest load, a power of it."""
    (first, first_late), (second, second_late) = curve[0], curve[1]
    if share < first_late:
        power = max(0.1, math.log(second_late / first_late) / math.log(second / first))
        return max(FLOOR, first * (share / first_late) ** (1 / power))
    for (low, low_late), (high, high_late) in pairwise(curve):
        if share < high_late:
            return low + (high - low) * math.log(share / low_late) / math.log(high_late / low_late)
    return 1.0


# the table -----------------------------------------------------------------------------------------------------------


def ratios_of(batch: int) -> tuple[float, ...]:
    """The grid of ratios of a batch size."""
    return RATIOS_ONE if batch == 1 else RATIOS


def cells(task: tuple[int, float, float]) -> list[list[float]]:
    """Loads by ratio and percentile for one batch size, burstiness and fixed share."""
    batch, cv, fixed_share = task
    points = [Point(batch=batch, ratio=ratio, cv=cv, fixed_share=fixed_share) for ratio in ratios_of(batch)]
    return [loads_by_percentile(partial(late_share, arrivals_of(point), point)) for point in points]


def monotone(loads: list[list[list[float]]]) -> list[list[list[float]]]:
    """Loads by CV, ratio and percentile without chance's steps the wrong way.

    The mean of two tables that have none: for each cell the least of all cells where more must be borne, and the most
    of those where less must be.
    """
    places = list(product(range(len(loads)), range(len(loads[0])), range(len(loads[0][0]))))

    def no_easier(here: tuple[int, ...], there: tuple[int, ...]) -> bool:
        return there[0] >= here[0] and there[1] <= here[1] and there[2] >= here[2]

    smooth = [[[0.0] * len(row) for row in rows] for rows in loads]
    for here in places:
        most = max(loads[c][r][p] for c, r, p in places if no_easier(here, (c, r, p)))
        least = min(loads[c][r][p] for c, r, p in places if no_easier((c, r, p), here))
        smooth[here[0]][here[1]][here[2]] = round((most + least) / 2, 4)
    return smooth


def build() -> None:
    """Simulate all cells and write the table."""
    tasks = [
        (batch, cv, fixed_share)
        for batch, cv in product(BATCHES, CVS)
        for fixed_share in (FIXED_SHARES if batch > 1 else (1.0,))
    ]
    started_s = time.monotonic()
    done = dict(in_processes(cells, tasks))
    loads = {
        str(batch): [
            monotone([done[batch, cv, fixed_share] for cv in CVS])
            for fixed_share in (FIXED_SHARES if batch > 1 else (1.0,))
        ]
        for batch in BATCHES
    }
    about = (
        "Highest load (rate * exec_s / batch) at which a share of requests is in time, under the watchdog's batching "
        f"policy and gamma renewal arrivals; made by python -m benchmarks.bearable_load, exec_s {EXEC_S:g}, at most "
        f"{RUNS_MAX} runs a load. loads: by batch, fixed share (a batch of one: one), CV, ratio, percentile."
    )
    table = {
        "about": about,
        "fixed_shares": FIXED_SHARES,
        "cvs": CVS,
        "ratios_one": RATIOS_ONE,
        "ratios": RATIOS,
        "percentiles": PERCENTILES,
        "loads": loads,
    }
    TABLE.write_text(json.dumps(table, separators=(",", ":")).replace(',"', ',\n"') + "\n")
    print(f"{time.monotonic() - started_s:.0f} s, {TABLE.stat().st_size} bytes", file=sys.stderr)


def in_processes(work: Callable[[Any], Result], tasks: Sequence[Any]) -> Iterator[tuple[Any, Result]]:
    """Each task with its result, as they come; how much is left goes to stderr."""
    started_s = time.monotonic()
    with ProcessPoolExecutor(_PROCESSES) as pool:
        pending = {pool.submit(work, task): task for task in tasks}
        for number, future in enumerate(as_completed(pending), 1):
            yield pending[future], future.result()
            left_s = (time.monotonic() - started_s) / number * (len(tasks) - number)
            print(f"[{number} of {len(tasks)}] about {left_s:.0f} s left", file=sys.stderr)


# validation ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A point beside the grid, and what share of its requests must be in time."""

    point: Point
    percentile: float

    @property
    def interpolated(self) -> float:
        """What the table says."""
        point = self.point
        return bearable_load(
            point.batch, point.ratio, self.percentile, arrival_cv=point.cv, fixed_share=point.fixed_share
        )


def drawn(count: int) -> list[Trial]:
    """Points by chance, the same each time; every other one at another execution time than the table's."""
    rng = random.Random("bearable load, points that no choice was made by")
    found = []
    for number in range(count):
        batch = rng.choice((1, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64))
        point = Point(
            batch=batch,
            ratio=round(math.exp(rng.uniform(math.log(1.05 if batch == 1 else 2.02), math.log(8))), 3),
            cv=round(rng.uniform(1, 4), 2),
            fixed_share=round(rng.uniform(0, 1), 2) if number % 3 else rng.choice((0.0, 1.0)),
            exec_s=rng.choice((0.005, 0.2)) if number % 2 else EXEC_S,
        )
        found.append(Trial(point=point, percentile=rng.choice((95.0, 97.0, 99.0))))
    return found


def along_lines() -> list[Trial]:
    """Points on the lines of the picture."""
    return [
        Trial(point=Point(batch=batch, ratio=ratio, cv=cv, fixed_share=1.0), percentile=99.0)
        for (batch, cv), ratio in product(_LINES, _LINE_RATIOS)
    ]


def true_load(trial: Trial) -> float:
    """The load of a point by bisection, with arrivals of its own, several times as many as the table's."""
    late = partial(late_share, arrivals_of(trial.point, f", {trial.percentile}", _MORE), trial.point, more=_MORE)
    low, high, share = FLOOR, 1.0, 1 - trial.percentile / 100
    probes = [trial.interpolated / 1.1, 1.1 * trial.interpolated, 1.0]
    while high - low > _NARROW_TRUTH * high:
        # What the table says only tells where to look first.
        load = probes.pop() if probes else (low + high) / 2 if low > high / 3 else math.sqrt(low * high)
        if low < load <= high:
            low, high = (load, high) if late(load) <= share else (low, load)
    return (low + high) / 2 if low > FLOOR else FLOOR


def compared(trial: Trial, simulated: float) -> dict[str, Any]:
    """One trial as a record."""
    return {
        **asdict(trial.point),
        "percentile": trial.percentile,
        "simulated": round(simulated, 4),
        "interpolated": round(trial.interpolated, 4),
        "error": round(trial.interpolated - simulated, 4),
        "relative_error": round(trial.interpolated / simulated - 1, 4),
    }


def summary(trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How far off they are; a load too small to be of use is right to within a few hundredths of the whole."""
    relative = [abs(trial["relative_error"]) for trial in trials]
    absolute = [abs(trial["error"]) for trial in trials]
    useful = [abs(trial["relative_error"]) for trial in trials if trial["simulated"] >= _USEFUL]
    return {
        "points": len(trials),
        "points_that_bear_all": sum(trial["simulated"] == 1.0 for trial in trials),
        "median_relative_error": statistics.median(relative),
        "max_relative_error": max(relative),
        "within_5_percent": sum(error <= 0.05 for error in relative),
        "max_error": max(absolute),
        "within_5_percent_or_0.02": sum(a <= 0.02 or r <= 0.05 for a, r in zip(absolute, relative, strict=True)),
        f"points_from_{_USEFUL}_on": len(useful),
        f"max_relative_error_from_{_USEFUL}_on": max(useful),
        f"within_5_percent_from_{_USEFUL}_on": sum(error <= 0.05 for error in useful),
    }


def validate(count: int) -> None:
    """Keep all points beside what the table says of them."""
    random_trials, line_trials = drawn(count), along_lines()
    tasks = list(dict.fromkeys([*random_trials, *line_trials, *map(_at_the_tables_scale, random_trials)]))
    loads = dict(in_processes(true_load, tasks))
    off_grid = [compared(trial, loads[trial]) for trial in random_trials]
    same_scale = [compared(trial, loads[trial]) for trial in map(_at_the_tables_scale, random_trials)]
    lines = [compared(trial, loads[trial]) for trial in line_trials]
    results = {
        "off_grid": {"summary": summary(off_grid), "points": off_grid},
        "off_grid_at_the_tables_exec_s": {"summary": summary(same_scale), "points": same_scale},
        "along_lines": {"summary": summary(lines), "points": lines},
    }
    record.write("bearable-load", "python -m benchmarks.bearable_load --validate", results, show=False)
    for name, result in results.items():
        print(name, json.dumps(result["summary"]))
    draw(lines, off_grid)


def _at_the_tables_scale(trial: Trial) -> Trial:
    return replace(trial, point=replace(trial.point, exec_s=EXEC_S))


def draw(lines: Sequence[dict[str, Any]], off_grid: Sequence[dict[str, Any]]) -> None:
    """The table as lines with simulations as dots; and all points beside the grid, interpolated over simulated."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for number, (batch, cv) in enumerate(_LINES):
        ratios = [(1 if batch == 1 else 2) * 1.01**step for step in range(300)]
        ratios = [ratio for ratio in ratios if ratio <= 20]
        loads = [bearable_load(batch, ratio, 99.0, arrival_cv=cv) for ratio in ratios]
        left.plot(ratios, loads, color=f"C{number}", label=f"b = {batch}, CV {cv:g}")
        dots = [trial for trial in lines if (trial["batch"], trial["cv"]) == (batch, cv)]
        left.plot([t["ratio"] for t in dots], [t["simulated"] for t in dots], "o", color=f"C{number}", markersize=4)
    left.set(xscale="log", xlabel="target over execution time, T/t", ylabel="bearable load at the 99th percentile")
    left.set_xticks([1, 2, 3, 5, 10, 20], ["1", "2", "3", "5", "10", "20"])
    left.minorticks_off()
    left.set_title("Table (lines) and simulations (dots), flat batches", fontsize=10)
    left.legend(fontsize=8)
    right.fill_between([0, 1], [0, 0.95], [0, 1.05], color="0.9", label="within 5 %")
    right.plot([t["simulated"] for t in off_grid], [t["interpolated"] for t in off_grid], "o", markersize=4)
    right.set(xlabel="simulated", ylabel="interpolated", xlim=(0, 1.02), ylim=(0, 1.02))
    right.set_title(f"All {len(off_grid)} points beside the grid", fontsize=10)
    right.legend(fontsize=8)
    figure.savefig(PICTURE, dpi=110)


@click.command()
@click.option("--validate", "points", flag_value=48, default=0, type=int, help="Hold the table against simulations.")
def main(points: int) -> None:
    """Build the table, or hold it against simulations of its own."""
    if points:
        validate(points)
    else:
        build()


if __name__ == "__main__":
    main()
