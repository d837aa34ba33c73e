"""The batching policy as a pure function: arrivals, deadlines, execution times in; flush or wait out.

The paper's watchdog waits until a batch is full or until `target - exec` has passed (INFless, section 3.2).
Ours flushes earlier where waiting cannot pay: a batch that keeps up with the arrivals as it stands needs no
more requests in it. No clock, no thread, no event loop: the simulator drives the same function.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPolicy:
    """One instance's batching configuration."""

    batch_max: int
    latency_target_s: float
    safety_share: float = 0.1
    """Share of the target kept back for what no execution time contains: scheduling, network, garbage collection."""
    keep_up_load: float = 0.9
    """Flush early while the batch in hand would keep the model at most this busy. 0 always waits, as the paper does.
    0.9: below it waiting saves no hardware that is not there anyway, it only spends the slack that a late batch, a
    busy neighbour or a burst will need; above it the queue would grow, and larger batches are what stops that."""

    @property
    def safety_s(self) -> float:
        """Seconds kept back from every deadline."""
        return self.safety_share * self.latency_target_s


@dataclass(frozen=True, slots=True)
class Flush:
    """Run the oldest `count` requests now."""

    count: int


@dataclass(frozen=True, slots=True)
class WaitUntil:
    """Nothing to do before this time, unless a request arrives or the model becomes free."""

    at_s: float


class ExecutionTimes:
    """What a batch of each size takes, learned from every run; sizes are kept by power of two.

    A longer run than expected counts at once for half, a shorter one only for an eighth: being late costs an answer,
    being early costs nothing.
    """

    __slots__ = ("_by_bucket",)

    RISE, FALL = 0.5, 0.125

    def __init__(self) -> None:
        self._by_bucket: dict[int, float] = {}

    def observe(self, size: int, exec_s: float) -> None:
        """Learn from a run of `size` requests that took `exec_s`."""
        bucket = (size - 1).bit_length()
        known_s = self._by_bucket.get(bucket)
        if known_s is None:
            self._by_bucket[bucket] = exec_s
        else:
            weight = self.RISE if exec_s > known_s else self.FALL
            self._by_bucket[bucket] = known_s + weight * (exec_s - known_s)

    def estimate_s(self, size: int) -> float:
        """Seconds a batch of `size` will take; 0 while nothing is known. Never falls as `size` grows.

        The least that this or a larger size takes (a smaller batch is not slower); beyond the largest known size,
        scaled up from that (linear: batching never costs more than one by one).
        """
        bucket = (size - 1).bit_length()
        known = self._by_bucket
        if not known:
            return 0.0
        largest = max(known)
        if bucket > largest:
            return known[largest] * 2.0 ** (bucket - largest)
        return min(exec_s for other, exec_s in known.items() if other >= bucket)


def decide(
    deadlines_s: Sequence[float],
    now_s: float,
    rate_rps: float,
    times: ExecutionTimes,
    policy: BatchPolicy,
) -> Flush | WaitUntil | None:
    """What an idle model does with its queue.

    Args:
        deadlines_s: when each waiting request must be answered, oldest request first.
        now_s: the present, on the same clock.
        rate_rps: arrivals per second, as measured lately.
        times: execution time by batch size.
        policy: the instance's configuration.

    Returns:
        `Flush` when full, when the most urgent request's slack equals the expected execution time, or when waiting
        cannot pay; `WaitUntil` the moment when slack runs out; None for an empty queue. Driven only by its own
        answers, no request waits past its slack.
    """
    size = len(deadlines_s)
    if size == 0:
        return None
    if size >= policy.batch_max:
        return Flush(policy.batch_max)
    exec_s = times.estimate_s(size)
    if rate_rps * exec_s <= policy.keep_up_load * size:
        return Flush(size)
    # The batch may still grow while we wait: leave the time that the full one takes.
    slack_ends_s = min(deadlines_s) - policy.safety_s - times.estimate_s(policy.batch_max)
    return Flush(size) if now_s >= slack_ends_s else WaitUntil(slack_ends_s)
