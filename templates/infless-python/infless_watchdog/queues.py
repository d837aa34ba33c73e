"""The requests of one bucket, as the policy wants to see them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from infless_watchdog.batching import ExecutionTimes, Flush
from infless_watchdog.calls import Call, Reply
from infless_watchdog.isolation import ItemError

Deliver = Callable[[Call, Reply | ItemError], None]


class Ticket:
    """One request on its way: what came, what it has become, and who wants the answer."""

    __slots__ = ("_withdrawn", "arrived_s", "call", "deliver", "item", "live")

    def __init__(self, call: Call, deliver: Deliver, arrived_s: float, withdrawn: Callable[[Ticket], None]) -> None:
        self.call = call
        self.deliver = deliver
        """Called once with the call, and the reply or the ItemError."""
        self.arrived_s = arrived_s
        self.item: Any = None
        self.live = True
        """False once answered, or when the client has left: the item is not run, or its answer goes nowhere."""
        self._withdrawn = withdrawn

    def withdraw(self) -> None:
        """The client has left."""
        if self.live:
            self.live = False
            self._withdrawn(self)


class Queue:
    """Punctual requests in the order they came, late ones behind them, and what runs of this bucket take."""

    RATE_WINDOW_S = 1.0
    """Arrivals of about the last second: a few batches' worth at any rate where batching matters."""

    __slots__ = ("_came", "_counted_s", "arrivals_s", "brief", "cpu_times", "late", "rate_rps", "tickets", "times")

    def __init__(self) -> None:
        self.tickets: deque[Ticket] = deque()
        self.arrivals_s: deque[float] = deque()
        """Of `tickets`, in the same order."""
        self.late: deque[Ticket] = deque()
        self.times = ExecutionTimes()
        self.cpu_times = ExecutionTimes()
        """What runs cost the thread that calls them."""
        self.brief = False
        """Whether runs are so short that they take the event loop's own thread."""
        self.rate_rps = 0.0
        self._counted_s = 0.0
        self._came = 0

    def __len__(self) -> int:
        return len(self.tickets) + len(self.late)

    def append(self, ticket: Ticket) -> None:
        """A request has come."""
        self.tickets.append(ticket)
        self.arrivals_s.append(ticket.arrived_s)
        self._came += 1

    def count_rate(self, now_s: float) -> float:
        """Arrivals per second as an exponentially fading count: no timer, and one step for all since the last call."""
        fade = max(0.0, 1.0 - (now_s - self._counted_s) / self.RATE_WINDOW_S)
        self.rate_rps = self.rate_rps * fade + self._came / self.RATE_WINDOW_S
        self._counted_s, self._came = now_s, 0
        return self.rate_rps

    def take(self, flush: Flush) -> list[Ticket]:
        """The tickets that the policy chose."""
        arrivals_s, tickets, late = self.arrivals_s, self.tickets, self.late
        for _ in range(flush.skip):
            arrivals_s.popleft()
            late.append(tickets.popleft())
        chosen = []
        for _ in range(flush.count):
            arrivals_s.popleft()
            chosen.append(tickets.popleft())
        chosen += [late.popleft() for _ in range(flush.late)]
        return chosen

    def remove(self, gone: Callable[[Ticket], bool]) -> list[Ticket]:
        """Take out what need not wait any longer."""
        removed = [ticket for ticket in (*self.late, *self.tickets) if gone(ticket)]
        if removed:
            self.tickets = deque(ticket for ticket in self.tickets if not gone(ticket))
            self.arrivals_s = deque(ticket.arrived_s for ticket in self.tickets)
            self.late = deque(ticket for ticket in self.late if not gone(ticket))
        return removed
