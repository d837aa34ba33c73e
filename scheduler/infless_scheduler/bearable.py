"""How busy an instance may be so that a share of its requests is in time: a table of simulations, interpolated.

The table comes from the watchdog's own batching policy, `python -m benchmarks.bearable_load` makes it. In between,
lines are straight where theory has them so. In heavy traffic `(1 - load) / load`, nearly `-log(load)`, goes with
`CV^2 log(1 / late share) / (batch * slack)`: that is a straight line in the logarithm of the late share, and its
logarithm one in those of CV, batch and target over execution time. Beyond the table's edges the safe side is taken.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from infless_core.errors import InvalidInput

FLOOR = 0.001
"""The least load there is: a target that is out of reach at a thousandth of the rate is so at any."""
_CEILING = 1.05
"""A load of this has depth 0. A little above 1, which the table does reach, for depths have logarithms."""
_CV_MAX = 8.0
"""Burstiness is extrapolated up to here."""
_LATE_MIN = 1e-6
"""Share of late requests that percentiles above the table are extrapolated down to."""
_TOLERANCE = 1e-6

Sheet = list[list[list[float]]]
"""Depths, `log(_CEILING / load)`, by CV, target over execution time, and percentile."""
Place = tuple[int, float]
"""Between a grid's value of this index and the next, this share of the way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """The grid, in the coordinates that are interpolated in, and what belongs to each of its points."""

    batches: tuple[float, ...]
    """Logarithms, from 2 on."""
    fixed_shares: tuple[float, ...]
    cvs: tuple[float, ...]
    ratios: tuple[float, ...]
    ratios_one: tuple[float, ...]
    late_shares: tuple[float, ...]
    one: Sheet
    sheets: list[list[Sheet]]
    """By batch size and fixed share."""


def bearable_load(
    batch: int, target_over_exec: float, percentile: float, *, arrival_cv: float = 1.0, fixed_share: float = 1.0
) -> float:
    """The highest load, `rate * exec_s / batch`, at which `percentile` of the requests is answered in time.

    Never rises with the percentile or with burstiness, never falls with a longer target. Below the table's edges its
    first value counts (arrivals steadier than Poisson count as Poisson), above them its last (a larger batch or a
    longer target bears a little more); percentiles and burstiness above it are extrapolated.

    Args:
        batch: the largest batch.
        target_over_exec: latency target over execution time of a full batch. No load is borne below 1, and
            below 2 by batches.
        percentile: above 0 and below 100.
        arrival_cv: coefficient of variation of the times between arrivals.
        fixed_share: share of a full batch's execution time that a batch of any size takes, 0 to 1.

    Returns:
        At least `FLOOR`, which stands for none, and at most 1.

    Raises:
        InvalidInput: when `percentile` is not above 0 and below 100 (no rate meets a target always).
    """
    if not 0 < percentile < 100:
        raise InvalidInput(f"latency percentile {percentile}: allowed is a number above 0 and below 100")
    if target_over_exec < (1 if batch == 1 else 2) - _TOLERANCE:
        return FLOOR
    table = _table()
    ratio = _place(table.ratios_one if batch == 1 else table.ratios, math.log(target_over_exec))
    cv = _place(table.cvs, math.log(max(1.0, arrival_cv)))
    late = _place(table.late_shares, -math.log1p(-percentile / 100))
    if batch == 1:
        return _load(_log_depth(table.one, cv, ratio, late))
    (size, size_part), (fixed, fixed_part) = (
        _place(table.batches, math.log(batch)),
        _place(table.fixed_shares, fixed_share),
    )
    log_depth = 0.0
    for place, size_weight in ((size, 1 - size_part), (size + 1, size_part)):
        for column, fixed_weight in ((fixed, 1 - fixed_part), (fixed + 1, fixed_part)):
            weight = size_weight * fixed_weight
            if weight:
                log_depth += weight * _log_depth(table.sheets[place][column], cv, ratio, late)
    return _load(log_depth)


def _place(grid: Sequence[float], value: float) -> Place:
    """Where a value lies in a rising grid; at its ends when beyond."""
    low = min(max(bisect_right(grid, value) - 1, 0), len(grid) - 2)
    return low, min(1.0, max(0.0, (value - grid[low]) / (grid[low + 1] - grid[low])))


def _log_depth(sheet: Sheet, cv: Place, ratio: Place, late: Place) -> float:
    (cv_low, cv_part), (ratio_low, ratio_part), (late_low, late_part) = cv, ratio, late
    log_depth = 0.0
    for rows, weight in ((sheet[cv_low], 1 - cv_part), (sheet[cv_low + 1], cv_part)):
        if weight:
            near, far = rows[ratio_low], rows[ratio_low + 1]
            at_near = math.log(near[late_low] + late_part * (near[late_low + 1] - near[late_low]))
            at_far = math.log(far[late_low] + late_part * (far[late_low + 1] - far[late_low]))
            log_depth += weight * (at_near + ratio_part * (at_far - at_near))
    return log_depth


def _load(log_depth: float) -> float:
    return min(1.0, max(FLOOR, _CEILING * math.exp(-math.exp(log_depth))))


# the table -----------------------------------------------------------------------------------------------------------


@cache
def _table() -> _Table:
    """Read once, when it is first asked."""
    read: dict[str, Any] = json.loads((resources.files(__package__) / "bearable_load.json").read_text())
    late_shares = [-math.log1p(-percentile / 100) for percentile in read["percentiles"]]
    cvs = [math.log(cv) for cv in read["cvs"]]
    sheets = {
        int(batch): [_extended(sheet, cvs, late_shares) for sheet in by_fixed_share]
        for batch, by_fixed_share in read["loads"].items()
    }
    batches = sorted(batch for batch in sheets if batch > 1)
    return _Table(
        batches=tuple(math.log(batch) for batch in batches),
        fixed_shares=tuple(read["fixed_shares"]),
        cvs=(*cvs, math.log(_CV_MAX)),
        ratios=tuple(math.log(ratio) for ratio in read["ratios"]),
        ratios_one=tuple(math.log(ratio) for ratio in read["ratios_one"]),
        late_shares=(*late_shares, -math.log(_LATE_MIN)),
        one=sheets[1][0],
        sheets=[sheets[batch] for batch in batches],
    )


def _extended(loads: Sheet, cvs: Sequence[float], late_shares: Sequence[float]) -> Sheet:
    """Depths with one more percentile and one more CV, where straight lines through the last two lead."""
    late_shares = (*late_shares, -math.log(_LATE_MIN))
    rows = [[_row(loads_of, late_shares) for loads_of in by_ratio] for by_ratio in loads]
    columns = [_deepest([[row[place] for row in by_ratio] for by_ratio in rows]) for place in range(len(late_shares))]
    depths = [_turned([column[place] for column in columns]) for place in range(len(cvs))]
    further = (math.log(_CV_MAX) - cvs[-1]) / (cvs[-1] - cvs[-2])
    burstier = [
        [last * (last / before) ** further for last, before in zip(*rows, strict=True)]
        for rows in zip(depths[-1], depths[-2], strict=True)
    ]
    return [*depths, _turned(_deepest(_turned(burstier)))]


def _row(loads: Sequence[float], late_shares: Sequence[float]) -> list[float]:
    """Depths by percentile. What the table does not hold, or only as less than it can say, is extrapolated."""
    depths = [math.log(_CEILING / load) for load in loads]
    for place in range(2, len(late_shares)):
        before, last = depths[place - 2 : place]
        low, high, here = late_shares[place - 2 : place + 1]
        beyond = last + (last - before) * (here - high) / (high - low)
        if place == len(depths):
            depths.append(beyond)
        elif loads[place] <= FLOOR:
            depths[place] = max(depths[place], beyond)
    return depths


def _deepest(grid: Sequence[Sequence[float]]) -> list[list[float]]:
    """Each depth, or the greatest of those that may not be above it: of earlier rows and of later columns."""
    return [
        [max(max(earlier[column:]) for earlier in grid[: row + 1]) for column in range(len(grid[row]))]
        for row in range(len(grid))
    ]


def _turned(grid: Sequence[Sequence[float]]) -> list[list[float]]:
    return [list(column) for column in zip(*grid, strict=True)]
