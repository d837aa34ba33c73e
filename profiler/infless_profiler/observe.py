"""Pure: execution times of what runs now, from its batch histograms.

Prometheus's histograms only grow, so what counts are differences between readings. What all instances of a function
have done in one configuration between two readings is a window; the level is the weighted median of the windows' means,
which one stalled batch does not move. Where several windows in a row leave the level, the regime has changed (a
throttled core, a neighbour, another machine): what was before is forgotten, and a `Drift` says so.

A profile is corrected from its prior (what was measured), never from its last correction. A configuration that nobody
has seen yet borrows the factor of those that were; a few batches move a time only a little.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist, median

from infless_core.model import Configuration, ProfilePoint
from infless_profiler.readings import (
    EXEC_MAX_S,
    EXEC_MIN_S,
    WEIGHT_MAX,
    Counted,
    Series,
    Window,
    bucket_of,
    level_of,
    pooled,
    spread_of,
    weighted_median,
    window_of,
)  # fmt: skip

FEW_BATCHES = 5
"""What the prior weighs against observed batches; also what makes a window whole enough to be judged."""
MARGIN_BATCHES = 20
"""Fewer say nothing of the slowest twentieth."""
EXCEED_SHARE = 0.05
"""Executions that may take longer than planned."""
MARGIN_MIN, MARGIN_MAX, MARGIN_UNSEEN = 1.02, 4.0, 1.15
"""The last where all executions fall into one bucket, which hides how far they are apart."""
AGE_S = 300.0
"""Windows are forgotten that are so much older than the newest of their configuration."""
DRIFT_WINDOWS = 3
DRIFT_SHARE = 0.10
DRIFT_NOISE_MAX = 0.135
"""Of the logarithm; three times that is a factor of 1.5, which is always a drift."""
SEED_BATCHES = 50
"""What a level from an earlier life of the provider weighs."""
_Z95 = NormalDist().inv_cdf(1 - EXCEED_SHARE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """What was measured of one configuration before it ran: `planned = expected_s * margin + extra_s`."""

    configuration: Configuration
    expected_s: float
    margin: float
    extra_s: float = 0.0
    """What serving the batch takes beside its execution."""
    memory_bytes: int = 0
    gpu_memory_bytes: int = 0

    def planned(self, factor: float = 1.0, margin: float | None = None) -> ProfilePoint:
        """The point for the planner, where executions take `factor` times what was measured."""
        return ProfilePoint(
            configuration=self.configuration,
            exec_s=self.expected_s * factor * (self.margin if margin is None else margin) + self.extra_s,
            memory_bytes=self.memory_bytes,
            gpu_memory_bytes=self.gpu_memory_bytes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """How long an execution takes now, and how many batches say so."""

    exec_s: float
    batches: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """A configuration has become slower or faster, and stays so."""

    function: str
    configuration: Configuration
    factor: float
    """New execution time over the one that was expected."""
    since_s: float


_Key = tuple[str, Configuration]


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What was seen so far. Each method gives another one and leaves this as it is."""

    priors: Mapping[str, tuple[Prior, ...]] = field(default_factory=dict)
    regimes: Mapping[_Key, tuple[Window, ...]] = field(default_factory=dict)
    """Windows by function and configuration, oldest first, since the last change of regime."""
    readings: Mapping[Series, tuple[float, Counted | None]] = field(default_factory=dict)
    """When each series was last read, and what it said; None where that was of no use."""
    begun: bool = False
    """Whether there was a reading: a series that comes later has counted from 0 since then."""
    drifted: frozenset[str] = frozenset()
    """Functions of which a drift was told: what their configurations have in common is known."""
    drifts: tuple[Drift, ...] = ()
    """Found by the last reading."""
    faulty: tuple[str, ...] = ()
    """What of the last reading could not be used, and why."""
    faults: int = 0
    """In all readings."""

    # what is known beforehand

    def expecting(self, function: str, priors: Sequence[Prior]) -> Observed:
        """With what was measured of a function."""
        return replace(self, priors={**self.priors, function: tuple(priors)})

    def seeded(self, function: str, levels: Mapping[Configuration, Level], now_s: float) -> Observed:
        """With levels that were kept from an earlier life."""
        windows = {
            (function, configuration): (
                Window(since_s=now_s, at_s=now_s, batches=batches, total_s=level.exec_s * batches),
            )
            for configuration, level in levels.items()
            if 0 < level.exec_s < math.inf and (batches := min(level.batches, SEED_BATCHES)) >= 1
        }
        return replace(self, regimes={**self.regimes, **windows})

    def without(self, function: str) -> Observed:
        """Nothing is known of a function any more: it is gone, or has other code."""
        return replace(
            self,
            priors={key: value for key, value in self.priors.items() if key != function},
            regimes={key: value for key, value in self.regimes.items() if key[0] != function},
            readings={key: value for key, value in self.readings.items() if key.function != function},
            drifted=self.drifted - {function},
        )

    def running(self, instances: Collection[str]) -> Observed:
        """Without the readings of all other instances: they have ended."""
        return replace(
            self, readings={key: value for key, value in self.readings.items() if key.instance in instances}
        )  # fmt: skip

    def rebased(self) -> Observed:
        """Before readings of another source: the first of them is only what later ones are compared with."""
        return replace(self, readings={}, begun=False)

    # readings

    def after(self, now_s: float, counted: Iterable[Counted]) -> Observed:
        """With one reading more; what is of no use in it is told in `faulty`, and never raises."""
        latest: dict[Series, Counted] = {}
        for one in counted:  # two jobs may scrape the same instance: the later count is the one
            if one.series not in latest or not one.count <= latest[one.series].count:
                latest[one.series] = one
        readings = dict(self.readings)
        steps: defaultdict[tuple[_Key, tuple[float, ...]], list[Counted]] = defaultdict(list)
        faulty = []
        for series, one in latest.items():
            why = one.fault()
            if why:
                faulty.append(f"{series.instance}, batch {series.batch}: {why}")
            step = None if why else self._step(one)
            if step is not None and step.count > 0 and EXEC_MIN_S <= step.total_s / step.count <= EXEC_MAX_S:
                steps[_key_of(series), tuple(bound for bound, _ in step.buckets)].append(step)
            readings[series] = (now_s, None if why else one)
        regimes = dict(self.regimes)
        last_s = max((when_s for when_s, _ in self.readings.values()), default=now_s)
        for (key, bounds), parts in sorted(steps.items()):
            since_s = min((self.readings[p.series][0] for p in parts if p.series in self.readings), default=last_s)
            regimes[key] = _joined(regimes.get(key, ()), window_of(since_s, now_s, bounds, parts))
        seen = replace(
            self, regimes=regimes, readings=readings, begun=True, drifts=(), faulty=tuple(sorted(faulty)),
            faults=self.faults + len(faulty),
        )  # fmt: skip
        return seen._judged({key for key, _ in steps})

    def _step(self, one: Counted) -> Counted | None:
        """What a series has counted since it was last read; None where this reading is the first to compare with."""
        if one.series in self.readings:
            old = self.readings[one.series][1]
            return None if old is None else one.since(old)
        return one if self.begun else None

    def _judged(self, keys: Iterable[_Key]) -> Observed:
        """Drifts found, and old regimes forgotten."""
        seen = self
        for key in sorted(keys):
            drift = seen._drift(key)
            if drift is not None:
                seen = replace(
                    seen,
                    regimes=seen._forgotten(drift),
                    drifts=(*seen.drifts, drift),
                    drifted=seen.drifted | {drift.function},
                )
        return seen

    def _drift(self, key: _Key) -> Drift | None:
        windows = self.regimes[key]
        recent = [window for window in windows if window.batches >= FEW_BATCHES and window.bounds][-DRIFT_WINDOWS:]
        if len(recent) < DRIFT_WINDOWS:
            return None
        earlier = [window for window in windows if window.at_s < recent[0].at_s]
        reference_s = level_of(earlier) if earlier else self._predicted_s(*key, recent[0].at_s)
        if reference_s is None:
            return None
        limit = max(math.log1p(DRIFT_SHARE), 3 * min(DRIFT_NOISE_MAX, _noise(earlier, recent)))
        off = [math.log(window.mean_s / reference_s) for window in recent]
        if not (min(off) > limit or max(off) < -limit):
            return None
        factor = level_of(recent) / reference_s
        return Drift(function=key[0], configuration=key[1], factor=factor, since_s=recent[0].since_s)

    def _forgotten(self, drift: Drift) -> dict[_Key, tuple[Window, ...]]:
        """Regimes without what was before a drift.

        What slows one configuration of a function down usually slows them all down: one that has not run since is
        assumed to, with little weight. One that has run since, as ever, has not changed.
        """
        regimes = dict(self.regimes)
        for key, windows in self.regimes.items():
            if key[0] != drift.function:
                continue
            fresh = tuple(window for window in windows if window.since_s >= drift.since_s and window.bounds)
            if key[1] == drift.configuration:
                regimes[key] = fresh
            elif not fresh:
                batches = min(FEW_BATCHES, sum(window.batches for window in windows))
                total_s = level_of(windows) * drift.factor * batches
                since_s = drift.since_s
                regimes[key] = (Window(since_s=since_s, at_s=since_s, batches=batches, total_s=total_s),)
            elif len(fresh) < len(windows):
                change = math.log(level_of(fresh) / level_of(windows[: -len(fresh)]))
                if change * math.copysign(1.0, math.log(drift.factor)) > math.log1p(DRIFT_SHARE):
                    regimes[key] = fresh
        return regimes

    # what follows from them

    def levels(self, function: str) -> dict[Configuration, Level]:
        """Every configuration of a function that was seen."""
        seen = {key[1]: windows for key, windows in self.regimes.items() if key[0] == function and windows}
        return {
            given: Level(exec_s=level_of(seen[given]), batches=sum(window.batches for window in seen[given]))
            for given in sorted(seen)
        }

    def factors(self, function: str) -> dict[Configuration, float]:
        """For every measured configuration: how long an execution takes now over what was measured."""
        levels = self.levels(function)
        logs, found = self._logs(function, levels), {}
        for prior in self.priors.get(function, ()):
            own, borrowed = levels.get(prior.configuration), _borrowed(logs, prior.configuration)
            log = borrowed
            if own is not None:
                seen = math.log(own.exec_s / prior.expected_s) * own.batches
                log = (seen + borrowed * FEW_BATCHES) / (own.batches + FEW_BATCHES)
            found[prior.configuration] = math.exp(log)
        return found

    def correct(self, function: str) -> tuple[ProfilePoint, ...]:
        """A function's profile as it is now: always made from what was measured, so corrections do not add up."""
        factors = self.factors(function)
        points = []
        for prior in self.priors.get(function, ()):
            factor = factors[prior.configuration]
            windows = self.regimes.get((function, prior.configuration), ())
            points.append(prior.planned(factor, _margin(prior, factor, windows)))
        return tuple(points)

    def _logs(self, function: str, levels: Mapping[Configuration, Level]) -> dict[Configuration, tuple[float, float]]:
        """Logarithm of observed over measured time and the number of batches, where both are known."""
        found = {}
        for configuration, level in levels.items():
            prior_s = _interpolated_s(self.priors.get(function, ()), configuration)
            if prior_s is not None:
                found[configuration] = (math.log(level.exec_s / prior_s), level.batches)
        return found

    def _predicted_s(self, function: str, configuration: Configuration, before_s: float) -> float | None:
        """What a configuration should take, by its prior and by what the others did before.

        What they do since then counts only after a drift was told: a prior that is wrong for all of them is one.
        """
        prior_s = _interpolated_s(self.priors.get(function, ()), configuration)
        if prior_s is None:
            return None
        limit_s = math.inf if function in self.drifted else before_s
        regimes = {
            key: earlier
            for key, windows in self.regimes.items()
            if key != (function, configuration) and (earlier := tuple(w for w in windows if w.at_s < limit_s))
        }
        others = replace(self, regimes=regimes)
        return prior_s * math.exp(_borrowed(others._logs(function, others.levels(function)), configuration))


def _key_of(series: Series) -> _Key:
    return series.function, Configuration(
        batch=series.batch, cpu_cores=series.cpu_cores, gpu_percent=series.gpu_percent
    )  # fmt: skip


def _joined(windows: tuple[Window, ...], new: Window) -> tuple[Window, ...]:
    """With a window more: joined to the last where that has too few batches; without those that are too old."""
    if windows and windows[-1].batches < FEW_BATCHES and windows[-1].bounds == new.bounds:
        new, windows = pooled([windows[-1], new]) or new, windows[:-1]
    kept = [*windows, new]
    while kept[0].at_s < new.at_s - AGE_S and sum(window.batches for window in kept[1:]) >= MARGIN_BATCHES:
        kept.pop(0)
    return tuple(kept)


def _noise(earlier: Sequence[Window], recent: Sequence[Window]) -> float:
    """Robust standard deviation of the logarithm of a window's mean."""
    logs = [math.log(window.mean_s) for window in earlier]
    if len(logs) > DRIFT_WINDOWS:
        middle = median(logs)
        return 1.4826 * median(abs(one - middle) for one in logs)
    together = pooled(recent)
    spread = spread_of(level_of(recent), together)[0] if together is not None else 0.0
    return spread / math.sqrt(min(window.batches for window in recent))


def _margin(prior: Prior, factor: float, windows: Sequence[Window]) -> float:
    """By how much to plan above the level, so that a twentieth of the executions takes longer."""
    together = pooled(windows)
    if together is None or together.batches < MARGIN_BATCHES:
        return prior.margin
    level_s = prior.expected_s * factor
    spread, seen = spread_of(level_s, together)
    low_s, high_s = bucket_of(together, 1 - EXCEED_SHARE)
    slow_s = min(max(level_s * math.exp(min(_Z95 * spread, 10.0)), low_s), high_s)
    most = MARGIN_MAX if seen else max(prior.margin, MARGIN_UNSEEN)
    return min(max(slow_s / level_s, MARGIN_MIN), most)


def _interpolated_s(priors: Sequence[Prior], wanted: Configuration) -> float | None:
    """The expected time of a batch between two measured ones, straight in logarithms; None beyond them."""
    row = {
        prior.configuration.batch: prior.expected_s for prior in priors
        if (prior.configuration.cpu_cores, prior.configuration.gpu_percent) == (wanted.cpu_cores, wanted.gpu_percent)
    }  # fmt: skip
    if wanted.batch in row:
        return row[wanted.batch]
    low = max((batch for batch in row if batch < wanted.batch), default=None)
    high = min((batch for batch in row if batch > wanted.batch), default=None)
    if low is None or high is None:
        return None
    share = math.log(wanted.batch / low) / math.log(high / low)
    return math.exp((1 - share) * math.log(row[low]) + share * math.log(row[high]))


def _borrowed(logs: Mapping[Configuration, tuple[float, float]], wanted: Configuration) -> float:
    """The function's factor, as a logarithm: the median of what was seen, near configurations counting for more."""
    total = math.fsum(batches for _, batches in logs.values())
    if not total:
        return 0.0
    pairs = [
        (log, min(batches, WEIGHT_MAX) / 2 ** _distance(configuration, wanted))
        for configuration, (log, batches) in logs.items()
    ]
    return weighted_median(pairs) * total / (total + FEW_BATCHES)


def _distance(one: Configuration, other: Configuration) -> float:
    """In doublings of batch and cores; a GPU is far from none."""
    gpu = 2.0 if (one.gpu_percent == 0) != (other.gpu_percent == 0) else abs(one.gpu_percent - other.gpu_percent) / 50
    return abs(math.log2(one.batch / other.batch)) + abs(math.log2(one.cpu_cores / other.cpu_cores)) + gpu
