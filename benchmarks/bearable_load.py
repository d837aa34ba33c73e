"""How busy an instance may be: the table behind rate windows with a percentile, `python -m benchmarks.bearable_load`.

One instance is simulated under the watchdog's own batching policy, with gamma renewal arrivals, and the highest load at
which a share of the requests is in time is found for every cell of a grid. `--validate` draws points beside the grid,
finds their loads by bisection, and keeps them all beside what the table says.
"""

from __future__ import annotations

import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any, TypeVar

import click

import infless_scheduler
from infless_scheduler.arrivals import gamma_arrivals_s
from infless_scheduler.simulate.bulk_server import linear_exec_s, serve
from infless_watchdog.batching import BatchPolicy

TABLE = Path(infless_scheduler.__file__).with_name("bearable_load.json")

BATCHES = (1, 2, 4, 8, 16, 32, 64)
RATIOS_ONE = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.25, 2.5, 3.0, 4.0, 6.0, 10.0, 20.0, 40.0)
"""Target over execution time, where requests run one by one: waits have a kink at each whole one."""
RATIOS = (2.0, 2.2, 2.5, 3.0, 3.5, 4.5, 6.0, 9.0, 15.0, 40.0)
PERCENTILES = (50.0, 80.0, 90.0, 95.0, 99.0, 99.9)
CVS = (1.0, 1.5, 2.0, 3.0, 4.0)
FIXED_SHARES = (0.0, 0.5, 1.0)

EXEC_S = 0.03
"""Of a full batch. The policy counts rates over a second, so that the table is not quite free of a scale."""
RUNS_MAX = 40_000
"""Of the model, for one load; a batch of one gets twice as many."""
REQUESTS = 10_000
"""For one load and each place in a batch, at least."""
FLOOR = 0.001
"""Smallest load of the table: less is as good as none."""
_FIRST_LOADS = (0.5, 0.85, 1.0)
_LOWEST_LOAD = 0.01
_LOADS_MAX = 12
_NARROW = 0.06
"""Relative: between two loads so close a straight line does."""
_PROCESSES = 2

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


def gaps_of(batch: int, cv: float, salt: str = "", more: int = 1) -> list[float]:
    """Arrivals at a rate of one, the same for all cells of a batch size and burstiness: differences are not chance."""
    rng = random.Random(f"bearable load, batch {batch}, cv {cv:g}{salt}")
    return gamma_arrivals_s(1.0, cv, more * requests_of(batch), rng)


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
    unit_arrivals = gaps_of(batch, cv)
    found = []
    for ratio in ratios_of(batch):
        point = Point(batch=batch, ratio=ratio, cv=cv, fixed_share=fixed_share)
        found.append(loads_by_percentile(lambda load, point=point: late_share(unit_arrivals, point, load)))
    return found


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


@click.command()
def main() -> None:
    """Build the table, or hold it against simulations of its own."""
    build()


if __name__ == "__main__":
    main()
