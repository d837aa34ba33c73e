"""The requests of one bucket, as the policy wants to see them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from infless_watchdog.batching import ExecutionTimes, Flush
from infless_watchdog.calls import Call


class Queue:
    """Punctual requests in the order they came, late ones behind them, and what runs of this bucket take."""

    RATE_WINDOW_S = 1.0
    """Arrivals of about the last second: a few batches' worth at any rate where batching matters."""

    __slots__ = ("_came", "_counted_s", "arrivals_s", "brief", "calls", "cpu_times", "late", "rate_rps", "times")

    def __init__(self) -> None:
        self.calls: deque[Call] = deque()
        self.arrivals_s: deque[float] = deque()
        """Of `calls`, in the same order."""
        self.late: deque[Call] = deque()
        self.times = ExecutionTimes()
        self.cpu_times = ExecutionTimes()
        """What runs cost the thread that calls them."""
        self.brief = False
        """Whether runs are so short that they take the event loop's own thread."""
        self.rate_rps = 0.0
        self._counted_s = 0.0
        self._came = 0

    def __len__(self) -> int:
        return len(self.calls) + len(self.late)

    def append(self, call: Call) -> None:
        """A request has come."""
        self.calls.append(call)
        self.arrivals_s.append(call.arrived_s)
        self._came += 1

    def count_rate(self, now_s: float) -> float:
        """Arrivals per second as an exponentially fading count: no timer, and one step for all since the last call."""
        fade = max(0.0, 1.0 - (now_s - self._counted_s) / self.RATE_WINDOW_S)
        self.rate_rps = self.rate_rps * fade + self._came / self.RATE_WINDOW_S
        self._counted_s, self._came = now_s, 0
        return self.rate_rps

    def take(self, flush: Flush) -> list[Call]:
        """The calls that the policy chose."""
        arrivals_s, calls, late = self.arrivals_s, self.calls, self.late
        for _ in range(flush.skip):
            arrivals_s.popleft()
            late.append(calls.popleft())
        chosen = []
        for _ in range(flush.count):
            arrivals_s.popleft()
            chosen.append(calls.popleft())
        chosen += [late.popleft() for _ in range(flush.late)]
        return chosen

    def remove(self, gone: Callable[[Call], bool]) -> list[Call]:
        """Take out what need not wait any longer."""
        removed = [call for call in (*self.late, *self.calls) if gone(call)]
        if removed:
            self.calls = deque(call for call in self.calls if not gone(call))
            self.arrivals_s = deque(call.arrived_s for call in self.calls)
            self.late = deque(call for call in self.late if not gone(call))
        return removed
