"""What a trial was worth: every answer compared with the right one, everything else counted apart. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import wire
from benchmarks.models import Floats
from benchmarks.openloop import Load, Wire

_BUSY = 0.9
"""Above this share of its core the generator may have been what was measured."""
_LAGGING = 0.05
"""So it may when the lag of its sends, at p99, is more than this share of the target."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Right:
    """What every answer is compared with."""

    rows: Floats
    """The n-th request wants row `n % len(rows)`."""
    decode: Callable[[Sequence[bytes]], Floats]

    def of(self, numbers: npt.NDArray[np.int64], bodies: Sequence[bytes]) -> npt.NDArray[np.int64]:
        """Those of the requests that were answered rightly."""
        if not len(numbers):
            return numbers
        try:
            rows = self.decode(bodies)
        except (ValueError, KeyError, IndexError, TypeError):
            rows = np.empty((0, 0), np.float32)
        if rows.shape != (len(bodies), self.rows.shape[1]):  # one of them is no answer: find it
            if len(bodies) == 1:
                return numbers[:0]
            middle = len(bodies) // 2
            halves = (slice(None, middle), slice(middle, None))
            return np.concatenate([self.of(numbers[half], bodies[half]) for half in halves])
        close = np.isclose(rows, self.rows[numbers % len(self.rows)], rtol=1e-3, atol=1e-4).all(axis=1)
        return numbers[close]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """The counted requests of one trial; each is in exactly one of the counts."""

    rate_rps: float
    seed: int
    requests: int
    in_time: int
    """Answered rightly within the target."""
    late: int
    """Answered rightly, but not within it."""
    wrong: int
    """Answered with 200, but not rightly."""
    errors: dict[str, int] = field(default_factory=dict)
    """Other statuses, `refused` and `broken` connections."""
    lost: int
    """Sent, and not answered before the trial ended."""
    unsent: int
    """Not sent any more, the trial being lost already, or for want of a connection."""
    given_up: bool
    p50_s: float
    """Latencies count from when a request was due, and are infinite where it was not answered rightly."""
    p99_s: float
    lag_p50_s: float
    """From when a request was due to when it was sent."""
    lag_p99_s: float
    lag_max_s: float
    cpu_share: float
    """The generator's, of its core."""
    connections: int
    opened: int
    generator_limited: bool
    """The generator was so busy or so late that the server may bear more than this trial shows."""

    @property
    def share(self) -> float:
        """Of all that were due: answered rightly and in time."""
        return self.in_time / self.requests if self.requests else 0.0

    def as_json(self) -> dict[str, Any]:
        """For `json.dumps`: infinite latencies become null."""
        values = {"share_in_time": round(self.share, 5), **asdict(self)}
        return {key: _short(value) for key, value in values.items()}


def _short(value: object) -> object:
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


def judge(load: Load, seen: Wire, right: Right) -> Trial:
    """Compare and count; the arrivals of the warm-up are left out."""
    due, sent, done = (np.array(times) for times in (seen.due_s, seen.sent_s, seen.done_s))
    first = int(np.searchsorted(due, load.warm_s))
    good = np.zeros(len(due), bool)
    errors: Counter[str] = Counter()
    wrong = 0
    bodies: list[tuple[int, bytes]] = []
    for number in range(first, len(due)):
        answer = seen.answers[number]
        if answer is None:
            continue
        try:
            parts = wire.read_answer(answer)
        except wire.NotHttpError:
            wrong += 1
            continue
        if parts.status == 200:
            bodies.append((number, parts.body))
        else:
            errors[str(parts.status)] += 1
    good[right.of(np.array([number for number, _ in bodies], np.int64), [body for _, body in bodies])] = True
    errors.update(fault for number, fault in seen.faults.items() if number >= first)
    counted = slice(first, None)
    latencies = np.where(good, done - due, math.inf)[counted]
    was_sent = sent[counted] > 0
    lags = (sent - due)[counted][was_sent]
    lag = np.quantile(lags, (0.5, 0.99, 1)) if len(lags) else np.zeros(3)
    in_time, answered = int((latencies <= load.target_s).sum()), int(good[counted].sum())
    wrong += len(bodies) - answered
    requests = len(due) - first
    unsent = int((~was_sent).sum())
    return Trial(
        rate_rps=load.rate_rps, seed=load.seed, requests=requests, in_time=in_time, late=answered - in_time,
        wrong=wrong, errors=dict(sorted(errors.items())), unsent=unsent,
        lost=requests - unsent - answered - wrong - errors.total(), given_up=seen.given_up,
        p50_s=_nearest(latencies, 0.5), p99_s=_nearest(latencies, 0.99),
        lag_p50_s=float(lag[0]), lag_p99_s=float(lag[1]), lag_max_s=float(lag[2]),
        cpu_share=seen.cpu_share, connections=seen.connections, opened=seen.opened,
        generator_limited=bool(
            seen.cpu_share > _BUSY
            or (lag[1] > _LAGGING * load.target_s and seen.connections < load.connections_max)
        ),
    )  # fmt: skip


def _nearest(latencies: npt.NDArray[np.float64], share: float) -> float:
    return float(np.quantile(latencies, share, method="inverted_cdf")) if len(latencies) else 0.0
