"""The highest open-loop rate that a server bears, and its latencies at a given one."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import uvloop

from benchmarks import rates
from infless_provider.replay import Check, Stream, replay
from infless_provider.shots import Summary, summarise
from infless_scheduler.arrivals import poisson_arrivals_s

OCTETS = ((b"content-type", b"application/octet-stream"),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is sent, and what counts as in time."""

    bodies: Sequence[bytes]
    target_s: float
    check: Check | None = None
    headers: tuple[tuple[bytes, bytes], ...] = OCTETS


def measure(url: str, rate_rps: float, seconds: int, seed: int, work: Work) -> Summary:
    """Poisson arrivals at one rate; latency counts from when each request was due."""
    arrivals_s = poisson_arrivals_s([rate_rps] * seconds, random.Random(seed))
    stream = Stream(
        function="f", url=url, arrivals_s=arrivals_s, bodies=work.bodies, headers=work.headers, check=work.check
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        shots = runner.run(replay([stream], timeout_s=max(2.0, 10 * work.target_s)))
    return summarise(shots, work.target_s, seconds)


def highest_rate(
    url: str, work: Work, *, start_rps: float, seconds: int = 6, share: float = 0.99, precision: float = 0.04
) -> tuple[float, list[dict[str, object]]]:
    """The highest rate at which `share` of the answers come within the target, and every trial that led to it.

    Doubles from `start_rps` until a trial fails (or halves until one passes), then bisects to `precision`. A failed
    trial is repeated once with other arrivals: a single stall of a shared machine is not the server's limit.
    """
    trials: list[dict[str, object]] = []

    def bears(rate_rps: float) -> bool:
        for seed in (1, 2):
            summary = measure(url, rate_rps, seconds, seed, work)
            trials.append({"rate_rps": round(rate_rps, 1), "seed": seed, **summary.as_json()})
            passed = summary.share_within_target >= share
            print(f"  {rate_rps:8.0f}/s  {summary.share_within_target:7.2%} in time", file=sys.stderr)
            if passed:
                return True
        return False

    return rates.highest_rate(bears, start_rps, precision=precision), trials
