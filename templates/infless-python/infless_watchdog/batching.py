"""The batching policy as a pure function: arrivals, execution times and configuration in; flush or wait out.

The paper's watchdog waits until a batch is full or until `target - exec` has passed (INFless, section 3.2).
Ours differs twice. It flushes earlier where waiting cannot pay, and a request that can no longer be in time gives way
to those that can. No clock, no thread, no event loop: the simulator drives the same function.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf

SILENCE = 4.0
"""After so many mean gaps between arrivals without one, nobody is coming. Poisson arrivals pause so long twice in a
hundred times, and lose a fuller batch by it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPolicy:
    """One instance's batching configuration."""

    batch_max: int
    latency_target_s: float
    wait_max_s: float = inf
    """Longest wait for a fuller batch, where the target would allow more."""
    safety_share: float = 0.1
    """Share of the target kept back for what no execution time contains: scheduling, network, garbage collection."""
    keep_up_load: float = 0.9
    """Flush early while the batch in hand would keep the model at most this busy. 0 always waits, as the paper does.
    Below it waiting saves no hardware that is not there anyway, it only spends the slack that a late batch, a busy
    neighbour or a burst will need; above it the queue would grow, and larger batches are what stops that."""

    @property
    def safety_s(self) -> float:
        """Seconds kept back from every deadline."""
        return self.safety_share * self.latency_target_s


@dataclass(frozen=True, slots=True)
class Flush:
    """Run now: the oldest `count` requests that can be in time, and behind them `late` ones that cannot."""

    count: int
    late: int = 0
    skip: int = 0
    """So many of the oldest can be in time no more: they become late ones first."""


@dataclass(frozen=True, slots=True)
class WaitUntil:
    """Nothing to do before this time, unless so many requests wait. To ask earlier does no harm."""

    at_s: float
    size: int = 1


class ExecutionTimes:
    """What a batch of each size takes, learned from every run.

    Runs are kept by power of two of their size, as mean size and time, with straight lines in between. A longer run
    than expected counts at once for half, a shorter one only for an eighth: being late costs an answer, being early
    costs nothing. One run in a hundred meets a busy neighbour: no single one counts for more than twice what was known.
    """

    __slots__ = ("_by_bucket", "_line")

    RISE, FALL, OUTLIER = 0.5, 0.125, 2.0

    def __init__(self) -> None:
        self._by_bucket: dict[int, tuple[float, float]] = {}
        self._line: list[tuple[float, float]] = []

    def observe(self, size: int, exec_s: float) -> None:
        """Learn from a run of `size` requests that took `exec_s`."""
        bucket = (size - 1).bit_length()
        known = self._by_bucket.get(bucket)
        if known is None:
            self._by_bucket[bucket] = (size, exec_s)
        else:
            mean_size, mean_s = known
            weight = self.RISE if exec_s > self.estimate_s(size) else self.FALL
            exec_s = min(exec_s, self.OUTLIER * mean_s)
            self._by_bucket[bucket] = (
                mean_size + self.FALL * (size - mean_size),
                mean_s + weight * (exec_s - mean_s),
            )
        self._line = self._monotone()

    def _monotone(self) -> list[tuple[float, float]]:
        """Points by rising size. A smaller batch is not slower: each takes at most what a larger one does."""
        line: list[tuple[float, float]] = []
        least_s = inf
        for size, exec_s in sorted(self._by_bucket.values(), reverse=True):
            least_s = min(least_s, exec_s)
            line.append((size, least_s))
        return line[::-1]

    def estimate_s(self, size: int) -> float:
        """Seconds a batch of `size` will take; 0 while nothing is known. Never falls as `size` grows.

        Below the smallest known size: what that takes; beyond the largest: scaled up from it (linear: batching never
        costs more than one by one).
        """
        line = self._line
        if not line:
            return 0.0
        first_size, first_s = line[0]
        if size <= first_size:
            return first_s
        for (low, low_s), (high, high_s) in pairwise(line):
            if size <= high:
                return high_s - (high_s - low_s) * (high - size) / (high - low)
        last_size, last_s = line[-1]
        return last_s * size / last_size


def decide(
    arrivals_s: Sequence[float],
    late: int,
    now_s: float,
    rate_rps: float,
    times: ExecutionTimes,
    policy: BatchPolicy,
) -> Flush | WaitUntil | None:
    """What an idle model does with the queue of one bucket.

    Args:
        arrivals_s: when each waiting request came, oldest first; late ones left out.
        late: requests that wait without hope of being in time.
        now_s: the present, on the same clock.
        rate_rps: arrivals per second, as measured lately.
        times: execution time by batch size.
        policy: the instance's configuration.

    Returns:
        `Flush` when full, when the oldest request's slack equals the expected execution time, or when waiting cannot
        pay; `WaitUntil` the moment when slack runs out; None for an empty queue. Driven only by its own answers, no
        request waits past its slack, and those that can be in time are run in the order they came.
    """
    skip = _hopeless(arrivals_s, now_s, times, policy)
    size, late = len(arrivals_s) - skip, late + skip
    if size >= policy.batch_max:
        return Flush(policy.batch_max, 0, skip)
    if size == 0:
        return Flush(0, min(late, policy.batch_max), skip) if late else None
    oldest_s, full = arrivals_s[skip], min(size + late, policy.batch_max)
    # Late requests fill what is left of the batch, unless the longer run would make a punctual one late.
    if oldest_s + policy.latency_target_s < now_s + times.estimate_s(full):
        full = size
    flush = Flush(size, full - size, skip)
    if full == policy.batch_max or rate_rps * times.estimate_s(full) <= policy.keep_up_load * full:
        return flush
    # The batch may still grow while we wait: leave the time that the full one takes.
    slack_ends_s = oldest_s + policy.latency_target_s - policy.safety_s - times.estimate_s(policy.batch_max)
    wait_ends_s = min(slack_ends_s, oldest_s + policy.wait_max_s)
    if policy.keep_up_load > 0.0:
        # Clients that wait for their answers before they ask again send no more: then nor do we wait.
        wait_ends_s = min(wait_ends_s, arrivals_s[-1] + SILENCE / rate_rps)
    return flush if now_s >= wait_ends_s else WaitUntil(wait_ends_s, _enough(full, rate_rps, times, policy))


def _enough(size: int, rate_rps: float, times: ExecutionTimes, policy: BatchPolicy) -> int:
    """How many requests would be flushed, roughly: `size` is too few, twice as many are tried next."""
    while size < policy.batch_max and rate_rps * times.estimate_s(size) > policy.keep_up_load * size:
        size = min(2 * size, policy.batch_max)
    return size


def _hopeless(arrivals_s: Sequence[float], now_s: float, times: ExecutionTimes, policy: BatchPolicy) -> int:
    """How many of the oldest will be late in the batch that could run now."""
    exec_s = times.estimate_s(min(len(arrivals_s), policy.batch_max))
    came_too_early_s = now_s + exec_s - policy.latency_target_s
    for place, arrived_s in enumerate(arrivals_s):
        if arrived_s >= came_too_early_s:
            return place
    return len(arrivals_s)
