"""What `--check` has found, and how it is told: plain words or one JSON object. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

_BAR = 24
"""Characters of the longest bar."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One batch size of the curve."""

    batch: int
    median_s: float
    p95_s: float
    memory_bytes: int
    """The most that the process has had, up to runs of this size."""

    @property
    def items_per_s(self) -> float:
        """With one batch behind the other."""
        return self.batch / self.median_s

    def rate_rps(self, target_s: float) -> float | None:
        """The rate at which one instance meets the target with full batches (INFless, Eq. 1 and 2).

        That is `floor(1/t) * b` where `t <= T/2`, because a batch forms while another runs; a lone request may take
        all of `T`. None where the target is out of reach. Slower than one batch a second, nothing is rounded.
        """
        if self.median_s > (target_s if self.batch == 1 else target_s / 2):
            return None
        batches_per_s = 1 / self.median_s
        return (math.floor(batches_per_s) if batches_per_s >= 1 else batches_per_s) * self.batch


def point(batch: int, samples_s: Sequence[float], memory_bytes: int) -> Point:
    """A point from the raw samples of one batch size."""
    ordered = sorted(samples_s)
    return Point(
        batch=batch,
        median_s=max(ordered[len(ordered) // 2], 1e-9),
        p95_s=max(ordered[math.ceil(0.95 * len(ordered)) - 1], 1e-9),
        memory_bytes=memory_bytes,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one sample is answered with."""

    sample: str
    status: int
    content_type: str
    beginning: str


@dataclass(slots=True, kw_only=True)
class Report:
    """Filled while the function is being tried."""

    file: str
    target_s: float
    kind: str = ""
    device: str = ""
    signature: str = ""
    batch_max: int = 1
    answers: list[Answer] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)
    """What was tried and is as it should be, a sentence each."""
    findings: list[str] = field(default_factory=list)
    """What is wrong, a sentence each."""
    curve: list[Point] = field(default_factory=list)

    def best(self) -> tuple[Point, float] | None:
        """The batch size that carries the highest rate within the target, and that rate; None where none does."""
        rates = [(rate, point) for point in self.curve if (rate := point.rate_rps(self.target_s)) is not None]
        if not rates:
            return None
        rate_rps, chosen = max(rates, key=lambda found: found[0])
        return chosen, rate_rps

    def as_json(self) -> str:
        """One object; times in seconds, memory in bytes."""
        record: dict[str, Any] = asdict(self)
        for told, one in zip(record["curve"], self.curve, strict=True):
            told |= {"items_per_s": one.items_per_s, "rate_rps": one.rate_rps(self.target_s)}
        best = self.best()
        record["best"] = None if best is None else {"batch": best[0].batch, "rate_rps": best[1]}
        return json.dumps({"fine": not self.findings, **record})

    def as_text(self) -> str:
        """For people."""
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        batches = f"in batches of up to {self.batch_max}" if self.batch_max > 1 else "one request at a time"
        if self.kind:
            yield f"{self.file}: {self.signature or self.kind}, {batches}, on {self.device}"
        else:
            yield self.file
        for answer in self.answers:
            yield f"  {answer.sample} -> {answer.status} {answer.content_type}: {answer.beginning}"
        yield from (f"  ok: {sentence}" for sentence in self.passed)
        yield from (f"  WRONG: {sentence}" for sentence in self.findings)
        if self.curve:
            yield ""
            yield from _table(self.curve)
            yield ""
            yield self._verdict()

    def _verdict(self) -> str:
        target = f"latency_target {self.target_s * 1e3:g} ms"
        best = self.best()
        if best is None:
            fastest = min(self.curve, key=lambda point: point.median_s)
            return f"{target} cannot be met: the fastest batch, {fastest.batch}, takes {fastest.median_s * 1e3:.3g} ms"
        chosen, rate_rps = best
        rate = f"{rate_rps:,.0f}" if rate_rps >= 10 else f"{rate_rps:.2g}"
        return f"By the model's own time, one instance meets {target} at up to {rate}/s, in batches of {chosen.batch}"


def _table(curve: Sequence[Point]) -> Iterator[str]:
    yield "  batch  median ms     p95 ms  ms an item    items/s  MiB"
    most = max(point.items_per_s for point in curve)
    for one in curve:
        bar = "#" * max(1, round(_BAR * one.items_per_s / most))
        median_ms, memory_mib = one.median_s * 1e3, one.memory_bytes / 2**20
        yield (
            f"  {one.batch:5}  {median_ms:9.3f}  {one.p95_s * 1e3:9.3f}  {median_ms / one.batch:10.4f}"
            f"  {one.items_per_s:9,.0f}  {memory_mib:3.0f}  {bar}"
        )
