"""What became of each request of a replay, and the figures made of it. Pure: no clock, no network.

Two rules keep the figures honest. Latency counts from the time at which a request *should* have been sent, so a server
that stalls, and a client that waits for it, cannot hide the wait (coordinated omission). And whatever was not answered
rightly has an infinite latency: failing fast never improves a percentile.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """One request that was due."""

    at_s: float
    """When it was due, in seconds from the start."""
    function: str
    status: int
    """HTTP status; 0 when no answer came."""
    latency_s: float
    """From when it was due to the last byte of its answer, or to its failure."""
    ok: bool
    """Answered with 2xx, and rightly."""
    fault: str = ""
    """Why there is no answer: `timeout`, `not sent`, `broken`."""
    late_s: float = 0.0
    """How much after it was due it was written: the load generator's own share of the latency."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The figures of one function's shots. Times in seconds; infinite when that many were not answered rightly."""

    requests: int
    offered_rps: float
    achieved_rps: float
    """Right answers per second until the last one came, stragglers included."""
    p50_s: float
    p95_s: float
    p99_s: float
    target_s: float
    share_within_target: float
    errors: dict[str, int] = field(default_factory=dict)
    """How many failed, by status or by why no answer came."""
    wrong: int = 0
    """Answered with 2xx, but not rightly."""
    late_p99_s: float = 0.0
    """The load generator's own lateness: figures near it say nothing about the server."""

    @property
    def failed(self) -> int:
        """Errors and wrong answers together."""
        return sum(self.errors.values()) + self.wrong

    def as_json(self) -> dict[str, Any]:
        """For `json.dumps`: JSON has no infinity, so null stands for it."""
        values = asdict(self)
        return {key: None if value == math.inf else value for key, value in values.items()}


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of all values do not exceed (nearest rank); 0 of nothing."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[max(0, math.ceil(round(len(ordered) * percent / 100, 6)) - 1)]


def counted_latency_s(shot: Shot) -> float:
    """The latency that enters percentiles: infinite for a request that was not answered rightly."""
    return shot.latency_s if shot.ok else math.inf


def fault_of(shot: Shot) -> str:
    """`""` for an answer, right or wrong; else the status or why there is none."""
    if shot.fault:
        return shot.fault
    return "" if 200 <= shot.status < 300 else str(shot.status)


def summarise(shots: Iterable[Shot], target_s: float, duration_s: float | None = None) -> Summary:
    """The figures of all shots given; errors and wrong answers have an infinite latency in percentiles and target.

    Args:
        shots: of one function, in any order.
        target_s: its latency target in seconds.
        duration_s: length of the load; None takes the last due time.
    """
    taken = list(shots)
    latencies_s = [counted_latency_s(shot) for shot in taken]
    length_s = max([shot.at_s for shot in taken], default=0.0) if duration_s is None else duration_s
    answered_s = max([shot.at_s + shot.latency_s for shot in taken if shot.ok], default=0.0)
    faults = Counter(filter(None, map(fault_of, taken)))
    return Summary(
        requests=len(taken),
        offered_rps=_per_second(len(taken), length_s),
        achieved_rps=_per_second(sum(shot.ok for shot in taken), max(length_s, answered_s)),
        p50_s=percentile(latencies_s, 50),
        p95_s=percentile(latencies_s, 95),
        p99_s=percentile(latencies_s, 99),
        target_s=target_s,
        share_within_target=sum(latency <= target_s for latency in latencies_s) / max(1, len(taken)),
        errors=dict(sorted(faults.items())),
        wrong=sum(not shot.ok and not fault_of(shot) for shot in taken),
        late_p99_s=percentile([shot.late_s for shot in taken], 99),
    )


def _per_second(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0
