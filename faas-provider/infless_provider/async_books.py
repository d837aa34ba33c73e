"""What waits in the queue, and what has become of all calls. In memory; the same counts are on disk."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from infless_provider.async_policy import AsyncLimits
from infless_provider.async_store import Count, QueuedCall
from infless_provider.callback_policy import Target


@dataclass(slots=True, kw_only=True, eq=False)
class Ticket:
    """A call in the queue, at run time."""

    call: QueuedCall
    target: Target | None
    accepted_s: float
    """Monotonic; before this process's start for what an earlier one has accepted."""
    since_s: float
    """When its first try could begin in this process: of the invocation, later of the callback."""
    accepted: bool = False
    """It is on disk."""
    decided: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the disk has taken or refused it."""
    ended: bool = False
    """It is being removed."""
    queued: bool = False
    """It waits for its turn."""
    task: asyncio.Task[None] | None = None
    """The try that runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionStats:
    """The books of one function. `accepted = done + failed + cancelled + waiting`, since the queue's file was made."""

    function: str
    """`name.namespace`."""
    accepted: int
    done: int
    """Delivered: answered by the function, whatever it said, and the callback delivered or given up."""
    failed: int
    """Reported lost: no try got an answer that counts."""
    cancelled: int
    retried: int
    """Tries of invocations after the first."""
    callbacks_ok: int
    callbacks_failed: int
    """Given up."""
    refused: int
    """Since this process began; calls of unknown functions are nowhere."""
    waiting: int
    """In the queue: to be invoked, being invoked, or with a callback to deliver."""
    waiting_bytes: int
    oldest_age_s: float
    """Of what waits; 0 when nothing does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AsyncStats:
    """The books at one moment."""

    functions: tuple[FunctionStats, ...]
    """By key; all that were ever called through the queue."""
    in_flight: int
    """Invocations that run."""
    callbacks_in_flight: int


class Books:
    """Tickets by function and call id, and counts."""

    def __init__(self, limits: AsyncLimits) -> None:
        self._limits = limits
        self._tickets: dict[str, dict[str, Ticket]] = {}
        self._counts: dict[str, dict[Count, int]] = {}
        self._refused: dict[str, int] = {}
        self._calls = 0
        self._bytes = 0

    def restore(self, counts: Mapping[str, Mapping[Count, int]]) -> None:
        """Go on from what is on disk."""
        self._counts = {function: dict(book) for function, book in counts.items()}

    def find(self, function: str, id_: str) -> Ticket | None:
        """A call in the queue."""
        return self._tickets.get(function, {}).get(id_)

    def full(self, function: str, size_bytes: int) -> str | None:
        """Why there is no room for one more call: a sentence; None when there is."""
        limits = self._limits
        if len(self._tickets.get(function, ())) >= limits.calls_per_function_max:
            return f"{limits.calls_per_function_max} calls of {function} wait already, which is the most allowed"
        if self._calls >= limits.calls_max:
            return f"{limits.calls_max} calls wait already, which is the most allowed"
        if self._bytes + size_bytes > limits.bytes_max:
            return f"the bodies of all waiting calls may have {limits.bytes_max} bytes together; this one is too much"
        return None

    def add(self, ticket: Ticket) -> None:
        """Take a call in."""
        self._tickets.setdefault(ticket.call.function, {})[ticket.call.id] = ticket
        self._calls += 1
        self._bytes += ticket.call.size_bytes

    def remove(self, ticket: Ticket) -> None:
        """Let a call go."""
        function = ticket.call.function
        del self._tickets[function][ticket.call.id]
        if not self._tickets[function]:
            del self._tickets[function]
        self._calls -= 1
        self._bytes -= ticket.call.size_bytes

    def answered(self, ticket: Ticket, size_bytes: int) -> None:
        """The answer has taken the request's place."""
        self._bytes += size_bytes - ticket.call.size_bytes
        ticket.call = replace(ticket.call, answered=True, attempts=0, size_bytes=size_bytes)

    def end(self, ticket: Ticket, *counts: Count) -> None:
        """Let a call go, and count how it ended."""
        self.remove(ticket)
        for count in counts:
            self.count(ticket.call.function, count)

    def count(self, function: str, count: Count) -> None:
        """Count what is on disk by now."""
        book = self._counts.setdefault(function, {})
        book[count] = book.get(count, 0) + 1

    def refuse(self, function: str) -> None:
        """Count a call that was not taken."""
        self._refused[function] = self._refused.get(function, 0) + 1

    def stats(self, now_s: float, *, in_flight: int, callbacks_in_flight: int) -> AsyncStats:
        """All of it, as a value."""
        keys = sorted({*self._counts, *self._refused, *self._tickets})
        return AsyncStats(
            functions=tuple(self._of(key, now_s) for key in keys),
            in_flight=in_flight,
            callbacks_in_flight=callbacks_in_flight,
        )

    def _of(self, function: str, now_s: float) -> FunctionStats:
        counts = self._counts.get(function, {})
        waiting = [ticket for ticket in self._tickets.get(function, {}).values() if ticket.accepted]
        return FunctionStats(
            function=function,
            **{count.value: counts.get(count, 0) for count in Count},
            refused=self._refused.get(function, 0),
            waiting=len(waiting),
            waiting_bytes=sum(ticket.call.size_bytes for ticket in waiting),
            oldest_age_s=max((now_s - ticket.accepted_s for ticket in waiting), default=0.0),
        )
