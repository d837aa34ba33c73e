"""Which share of a run holds the interpreter's lock: seen by a thread that wants to wake up every millisecond."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

PERIOD_S = 0.001
HELD_SHARE = 0.5
"""Above, a run leaves the event loop less than half of the time."""
FELT_S = 0.02
FELT_SHARE = 0.1
"""Shorter runs than 20 ms, or than a tenth of the latency target, hold up nobody for long."""
_TRIES = 3


@dataclass(frozen=True, slots=True)
class Held:
    """What was seen of one run."""

    share: float
    """Of the time, from 0 to 1."""
    exec_s: float

    def is_felt(self, latency_target_s: float) -> bool:
        """Whether requests would notice."""
        return self.share > HELD_SHARE and self.exec_s > min(FELT_S, FELT_SHARE * latency_target_s)


def held_share(wakes_s: Sequence[float], unscheduled_s: float = 0.0, period_s: float = PERIOD_S) -> float:
    """The share of time that a sleeper waited for the lock.

    Args:
        wakes_s: when it woke up, in order, the run's beginning first and its end last.
        unscheduled_s: how long it waited for a processor in all, which is nobody's fault.
        period_s: how long it meant to sleep each time.
    """
    if len(wakes_s) < 2 or wakes_s[-1] <= wakes_s[0]:
        return 0.0
    late_s = sum(max(0.0, after_s - before_s - period_s) for before_s, after_s in pairwise(wakes_s))
    return max(0.0, late_s - unscheduled_s) / (wakes_s[-1] - wakes_s[0])


def measure(run: Callable[[], object], latency_target_s: float) -> Held:
    """Watch a run, and again while it seems to hold the lock: others may have held it, so the least counts."""
    least = _watch(run)
    for _ in range(_TRIES - 1):
        if not least.is_felt(latency_target_s):
            break
        least = min(least, _watch(run), key=lambda held: held.share)
    return least


def _watch(run: Callable[[], object]) -> Held:
    awake, over = threading.Event(), threading.Event()
    wakes_s: list[float] = []
    unscheduled_s = 0.0

    def sample() -> None:
        nonlocal unscheduled_s
        before_s = _unscheduled_s()
        awake.set()
        while not over.is_set():
            time.sleep(PERIOD_S)
            wakes_s.append(time.perf_counter())
        unscheduled_s = _unscheduled_s() - before_s

    sampler = threading.Thread(target=sample, name="lock sampler", daemon=True)
    sampler.start()
    awake.wait()
    started_s = time.perf_counter()
    try:
        run()
    finally:
        ended_s = time.perf_counter()
        over.set()
        sampler.join()
    within = [wake_s for wake_s in wakes_s if started_s < wake_s < ended_s]
    return Held(held_share([started_s, *within, ended_s], unscheduled_s), ended_s - started_s)


def _unscheduled_s() -> float:
    """How long this thread could have run, but had no processor; 0 where the kernel does not tell."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0
