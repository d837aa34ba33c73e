"""One instance as a bulk server: a trace of arrivals, the watchdog's own batching policy, one model thread.

Decides nothing itself: `infless_watchdog.batching.decide` says what runs, and this module moves the clock. It asks when
the watchdog's batcher would: when a run ends, when as many requests wait as the policy wanted, and when its timer is
due. Executions take exactly what was promised, and nothing else takes time. Requests are handled in bulk, as floats,
because tables are made of hundreds of millions of them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from infless_core.errors import InvalidInput
from infless_watchdog.batching import BatchPolicy, ExecutionTimes, Flush, WaitUntil, decide
from infless_watchdog.queues import Queue

TICK_S = 0.001
"""Shortest timer of the batcher's event loop."""
_TOLERANCE = 1e-9
"""Relative: an answer that comes at the target is in time, whatever binary fractions make of the sum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What became of the requests of one simulation."""

    requests: int
    on_time: int
    runs: int
    latency_sum_s: float
    busy_s: float
    end_s: float
    """When the last answer was given."""

    @property
    def on_time_share(self) -> float:
        """Share of the requests that were answered within the target."""
        return self.on_time / self.requests if self.requests else 1.0

    @property
    def mean_latency_s(self) -> float:
        """From arrival to answer."""
        return self.latency_sum_s / self.requests if self.requests else 0.0


def linear_exec_s(batch: int, full_s: float, fixed_share: float) -> tuple[float, ...]:
    """Execution times by size, 0 to `batch`, when `fixed_share` of a full batch's does not depend on the size."""
    return tuple(full_s * (fixed_share + (1 - fixed_share) * size / batch) for size in range(batch + 1))


def learned(exec_s: Sequence[float]) -> ExecutionTimes:
    """What a watchdog knows once it has seen batches of every power of two, and full ones."""
    times = ExecutionTimes()
    full = len(exec_s) - 1
    size = 1
    while size < full:
        times.observe(size, exec_s[size])
        size *= 2
    times.observe(full, exec_s[full])
    return times


def serve(
    arrivals_s: Sequence[float], exec_s: Sequence[float], policy: BatchPolicy, *, runs_max: float = inf
) -> Served:
    """Let one instance answer a trace until nothing waits.

    Args:
        arrivals_s: arrival times, rising, from 0 on.
        exec_s: execution time by batch size; index 0 is not used, the last one is a full batch.
        policy: what the watchdog was told; its `batch_max` is the last index of `exec_s`.
        runs_max: end after so many runs; requests that were not answered by then do not count.

    Raises:
        InvalidInput: when `exec_s` does not fit the policy.
    """
    if len(exec_s) != policy.batch_max + 1:
        raise InvalidInput(f"{len(exec_s)} execution times: a batch of {policy.batch_max} has that many and index 0")
    return _Instance(arrivals_s, exec_s, policy).run(runs_max)


class _Instance:
    """The queue of one bucket, as numbers. `Queue` says the same of calls, one by one."""

    def __init__(self, arrivals_s: Sequence[float], exec_s: Sequence[float], policy: BatchPolicy) -> None:
        self._arrivals_s = arrivals_s
        self._exec_s = exec_s
        self._policy = policy
        self._in_time_s = policy.latency_target_s * (1 + _TOLERANCE)
        self._times = learned(exec_s)
        self._waiting: deque[float] = deque()
        self._late: deque[float] = deque()
        self._came = 0
        """Requests that have arrived, and so the place of the next in the trace."""
        self._rate_rps = self._counted_s = 0.0
        self._timer_s = inf
        self._answered = self._on_time = 0
        self._latency_sum_s = 0.0

    def run(self, runs_max: float) -> Served:
        """Move from one question to the next."""
        now_s = busy_s = 0.0
        runs = 0
        while runs < runs_max:
            answer = self._ask(now_s)
            if isinstance(answer, Flush):
                took_s = self._exec_s[answer.count + answer.late]
                now_s += took_s
                busy_s += took_s
                runs += 1
                self._take(answer, now_s)
            elif answer is not None:
                now_s = self._ask_again_s(answer, now_s)
            elif self._came < len(self._arrivals_s):
                now_s = self._arrivals_s[self._came]
            else:
                break
        return Served(
            requests=self._answered,
            on_time=self._on_time,
            runs=runs,
            latency_sum_s=self._latency_sum_s,
            busy_s=busy_s,
            end_s=now_s,
        )

    def _ask(self, now_s: float) -> Flush | WaitUntil | None:
        """Let come who has, count the rate as `Queue.count_rate` does, and ask the policy."""
        waiting, came = self._waiting, self._came
        due = bisect_right(self._arrivals_s, now_s, came)
        waiting.extend(self._arrivals_s[came:due])
        if not (waiting or self._late):
            return None
        fade = max(0.0, 1.0 - (now_s - self._counted_s) / Queue.RATE_WINDOW_S)
        self._rate_rps = self._rate_rps * fade + (due - came) / Queue.RATE_WINDOW_S
        self._counted_s, self._came = now_s, due
        return decide(waiting, len(self._late), now_s, self._rate_rps, self._times, self._policy)

    def _ask_again_s(self, wait: WaitUntil, now_s: float) -> float:
        """When the batcher does: at its timer, which it only ever moves forward, or when enough wait."""
        self._timer_s = min(self._timer_s if self._timer_s > now_s else inf, max(now_s + TICK_S, wait.at_s))
        wanted = max(1, wait.size - len(self._waiting) - len(self._late))
        enough = self._came + wanted - 1
        return min(self._timer_s, self._arrivals_s[enough]) if enough < len(self._arrivals_s) else self._timer_s

    def _take(self, flush: Flush, done_s: float) -> None:
        """Put aside who is late, as `Queue.take` does, and answer the batch."""
        next_s, late = self._waiting.popleft, self._late
        for _ in range(flush.skip):
            late.append(next_s())
        since_s = done_s - self._in_time_s
        batch_s = [next_s() for _ in range(flush.count)]
        if batch_s and batch_s[0] >= since_s:
            self._on_time += len(batch_s)
        else:
            self._on_time += sum(arrived_s >= since_s for arrived_s in batch_s)
        if flush.late:
            late_s = [late.popleft() for _ in range(flush.late)]
            self._on_time += sum(arrived_s >= since_s for arrived_s in late_s)
            batch_s += late_s
        self._answered += len(batch_s)
        self._latency_sum_s += len(batch_s) * done_s - sum(batch_s)
