"""Pure: batch histograms as Prometheus has them, and what lies between two readings of them."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from statistics import NormalDist

from infless_core.errors import InvalidInput
from infless_core.model import Configuration

WEIGHT_MAX = 100
"""Batches of one window that count: a busy moment is not to outvote the minutes after it."""
METRIC = "infless_batch_exec_seconds"
"""The histogram that instances publish."""
EXEC_MIN_S, EXEC_MAX_S = 1e-9, 1e6
"""No batch takes less or more."""
_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Series:
    """Batches of one size in one instance, while it had these resources."""

    instance: str
    function: str
    batch: int
    cpu_cores: int
    gpu_percent: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """A series as Prometheus has it: everything since the instance began."""

    series: Series
    buckets: tuple[tuple[float, float], ...]
    """Upper bound in seconds and how many executions took at most that; the last bound is infinite."""
    count: float
    total_s: float

    def fault(self) -> str:
        """Why it cannot be used; empty for a sound one."""
        bounds, counts = [bound for bound, _ in self.buckets], [count for _, count in self.buckets]
        if not all(math.isfinite(value) and value >= 0 for value in (self.count, self.total_s, *counts)):
            return "a value that is negative or no number"
        if not bounds or bounds[-1] != math.inf or counts[-1] != self.count:
            return "not all of its buckets"
        if (
            not all(low < high for low, high in pairwise([EXEC_MIN_S, *bounds]))
            or max(bounds[:-1], default=0) > EXEC_MAX_S
        ):
            return "bounds that do not rise, or are no durations"
        if any(low > high for low, high in pairwise(counts)):
            return "a bucket that holds more than a wider one"
        try:
            Configuration(batch=self.series.batch, cpu_cores=self.series.cpu_cores, gpu_percent=self.series.gpu_percent)
        except InvalidInput:
            return "labels that name no configuration"
        return ""

    def since(self, old: Counted | None) -> Counted | None:
        """What came after an earlier reading; all of it where the counter began anew. None: not comparable."""
        if old is None:
            return self
        if [bound for bound, _ in old.buckets] != [bound for bound, _ in self.buckets]:
            return None
        new_counts = [count for _, count in self.buckets]
        fell = any(new < was for new, (_, was) in zip(new_counts, old.buckets, strict=True))
        if fell or self.total_s < old.total_s:
            return self
        steps = [(bound, count - was) for (bound, count), (_, was) in zip(self.buckets, old.buckets, strict=True)]
        if any(low > high for (_, low), (_, high) in pairwise(steps)):
            return self  # it began anew and has overtaken what it was
        return replace(
            self, buckets=tuple(steps), count=self.count - old.count, total_s=self.total_s - old.total_s
        )  # fmt: skip


Sample = tuple[str, Mapping[str, str], float]
"""Name, labels and value, as every Prometheus library has them."""


def gathered(samples: Iterable[Sample]) -> list[Counted]:
    """Histograms from their samples; what has not the labels of ours is passed over.

    Wanted are `infless_instance`, `function_name`, `batch`, `cpu_cores`, `gpu_percent`; others tell histograms apart.
    """
    parts: dict[tuple[tuple[str, str], ...], dict[str, float]] = {}
    for name, labels, value in samples:
        kind = name.removeprefix(METRIC)
        if kind in ("_bucket", "_count", "_sum"):
            group = tuple(sorted((label, text) for label, text in labels.items() if label not in ("le", "__name__")))
            parts.setdefault(group, {})[labels.get("le", "") if kind == "_bucket" else kind] = value
    found = []
    for group, values in sorted(parts.items()):
        count, total_s = values.pop("_count", math.nan), values.pop("_sum", math.nan)
        try:
            series = _series(dict(group))
            buckets = tuple(sorted((float(bound), value) for bound, value in values.items()))
        except (KeyError, ValueError):
            continue
        found.append(Counted(series=series, buckets=buckets, count=count, total_s=total_s))
    return found


def _series(labels: Mapping[str, str]) -> Series:
    return Series(
        instance=labels["infless_instance"],
        function=labels["function_name"],
        batch=int(labels["batch"]),
        cpu_cores=int(labels["cpu_cores"]),
        gpu_percent=int(labels["gpu_percent"]),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Batches of one configuration between two readings."""

    since_s: float
    at_s: float
    batches: float
    total_s: float
    bounds: tuple[float, ...] = ()
    """None for a level that was kept from earlier."""
    counts: tuple[float, ...] = ()
    """Executions within each bound."""

    mean_s: float = field(init=False)
    """The mean execution, within the buckets that hold its middle nine tenths: a stall is not everybody's."""

    def __post_init__(self) -> None:
        mean_s = self.total_s / self.batches
        if self.bounds:
            low_s, high_s = bucket_of(self, 0.1)[0], bucket_of(self, 0.9)[1]
            mean_s = min(max(mean_s, low_s), high_s)
        object.__setattr__(self, "mean_s", mean_s)

    @property
    def weight(self) -> float:
        """What it counts for."""
        return min(self.batches, WEIGHT_MAX)


def window_of(since_s: float, now_s: float, bounds: tuple[float, ...], parts: Sequence[Counted]) -> Window:
    """What several series have counted between two readings; all have the same bounds."""
    return Window(
        since_s=since_s,
        at_s=now_s,
        batches=sum(part.count for part in parts),
        total_s=math.fsum(part.total_s for part in parts),
        bounds=bounds,
        counts=tuple(sum(column) for column in zip(*([n for _, n in part.buckets] for part in parts), strict=True)),
    )


def level_of(windows: Sequence[Window]) -> float:
    """The execution time that windows agree on."""
    return weighted_median([(window.mean_s, window.weight) for window in windows])


def weighted_median(pairs: Iterable[tuple[float, float]]) -> float:
    """Of `(value, weight)`: half of the weight lies on either side."""
    ranked = sorted(pairs)
    half, below = math.fsum(weight for _, weight in ranked) / 2, 0.0
    for place, (value, weight) in enumerate(ranked):
        below += weight
        if below > half:
            return value
        if below == half and place + 1 < len(ranked):
            return value + (ranked[place + 1][0] - value) / 2
    return ranked[-1][0]


def bucket_of(window: Window, share: float) -> tuple[float, float]:
    """Bounds of the bucket in which a quantile lies."""
    place = bisect_left(window.counts, share * window.counts[-1])
    return (window.bounds[place - 1] if place else 0.0), window.bounds[place]


def spread_of(level_s: float, together: Window) -> tuple[float, bool]:
    """Standard deviation of the logarithm, as if executions were log-normal around the level; whether it was seen.

    It follows from each bound: how far that is from the level, and how many executions are on its other side. A bound
    that none has passed gives the most that it can be.
    """
    found, seen, total = math.inf, False, together.counts[-1]
    for bound, count in zip(together.bounds[:-1], together.counts, strict=False):
        share = min(max(count / total, 0.5 / total), 1 - 0.5 / total)
        z, distance = _NORMAL.inv_cdf(share) if 0 < share < 1 else 0.0, math.log(bound) - math.log(level_s)
        if abs(z) >= 0.5 and z * distance > 0:
            found = min(found, distance / z)
            seen = seen or 0 < count < total
    return found, seen


def pooled(windows: Sequence[Window]) -> Window | None:
    """All that have the newest one's bounds."""
    told = [window for window in windows if window.bounds and window.bounds == windows[-1].bounds]
    if not told:
        return None
    return replace(
        told[-1],
        since_s=told[0].since_s,
        batches=sum(window.batches for window in told),
        total_s=math.fsum(window.total_s for window in told),
        counts=tuple(map(sum, zip(*(window.counts for window in told), strict=True))),
    )
