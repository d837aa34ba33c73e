"""What waits in the queue, and what has become of all calls. In memory; the same counts are on disk."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from infless_provider.async_policy import AsyncLimits
from infless_provider.async_store import Count, QueuedCall
from infless_provider.callback_policy import Target

K = TypeVar("K")


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
    claims: int = 0
    """Tries that run with room kept for their answer; two while a cancelled one, whose cancel failed, still ends."""
    task: asyncio.Task[None] | None = None
    """The try that runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionStats:
    """The books of one function. `accepted = done + failed + cancelled + waiting`, since it was called first."""

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
    """By key; all that were called through the queue and are not forgotten."""
    in_flight: int
    """Invocations that run."""
    callbacks_in_flight: int


class Room:
    """Bytes that are taken, in all and by function."""

    def __init__(self, bytes_max: int, bytes_per_function_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes_per_function_max = bytes_per_function_max
        self._bytes = 0
        self._of_function: Counter[str] = Counter()

    def has(self, function: str, size_bytes: int) -> bool:
        """Whether a function may take so much more."""
        own_bytes = self._of_function[function] + size_bytes
        return self._bytes + size_bytes <= self._bytes_max and own_bytes <= self._bytes_per_function_max

    def take(self, function: str, size_bytes: int) -> None:
        """Take it, whether it is there or not: what is on disk by now is."""
        self._bytes += size_bytes
        self._of_function[function] += size_bytes

    def free(self, function: str, size_bytes: int) -> None:
        """Give it back."""
        self._bytes -= size_bytes
        self._of_function[function] -= size_bytes
        if not self._of_function[function]:
            del self._of_function[function]


class Books:
    """Tickets by function, by call id and by idempotency key; and counts.

    Args:
        limits: how much waits.
        on_empty: told a function whose last call has left.
    """

    def __init__(self, limits: AsyncLimits, on_empty: Callable[[str], None] = lambda _: None) -> None:
        self._limits = limits
        self._on_empty = on_empty
        self._tickets: dict[str, dict[int, Ticket]] = {}
        self._by_id: dict[tuple[str, str], dict[int, Ticket]] = {}
        self._by_key: dict[tuple[str, str], Ticket] = {}
        self._counts: dict[str, dict[Count, int]] = {}
        self._refused: dict[str, int] = {}
        self._calls = 0
        # Rooms of their own: were they one, requests could fill it, none could begin for want of room for its answer,
        # and so none would leave.
        self._requests = Room(limits.bytes_max, limits.bytes_per_function_max)
        self._answers = Room(limits.answers_bytes_max, limits.answers_bytes_per_function_max)

    def restore(self, counts: Mapping[str, Mapping[Count, int]]) -> None:
        """Go on from what is on disk."""
        self._counts = {function: dict(book) for function, book in counts.items()}

    def traced(self, function: str, id_: str) -> list[Ticket]:
        """The calls in the queue that have a call id, in the order in which they came."""
        return list(self._by_id.get((function, id_), {}).values())

    def keyed(self, function: str, key: str) -> Ticket | None:
        """The call in the queue that came with an idempotency key."""
        return self._by_key.get((function, key))

    def waits(self, function: str) -> bool:
        """Whether anything of a function is in the queue."""
        return function in self._tickets

    def counted(self) -> set[str]:
        """The functions that have counts."""
        return {*self._counts, *self._refused}

    def forget(self, function: str) -> None:
        """Drop a function's counts."""
        self._counts.pop(function, None)
        self._refused.pop(function, None)

    def full(self, function: str, size_bytes: int) -> str | None:
        """Why there is no room for one more call: a sentence; None when there is."""
        limits = self._limits
        if len(self._tickets.get(function, ())) >= limits.calls_per_function_max:
            return f"{limits.calls_per_function_max} calls of {function} wait already, which is the most allowed"
        if self._calls >= limits.calls_max:
            return f"{limits.calls_max} calls wait already, which is the most allowed"
        if not self._requests.has(function, size_bytes):
            return (
                f"the bodies of all waiting calls may have {limits.bytes_max} bytes together, those of one function"
                f" {limits.bytes_per_function_max}; this one is too much"
            )
        return None

    def claim(self, ticket: Ticket) -> bool:
        """Keep room for the longest answer, before an invocation begins that could get it; False when there is none.

        An answer that has no callback is not kept, and needs none.
        """
        function, most_bytes = ticket.call.function, self._limits.answer_max_bytes
        if ticket.target is None or ticket.ended:
            return True
        if not self._answers.has(function, most_bytes):
            return False
        self._answers.take(function, most_bytes)
        ticket.claims += 1
        return True

    def unclaim(self, ticket: Ticket) -> None:
        """A try has ended; if there was an answer, it is counted by now."""
        if ticket.claims:
            ticket.claims -= 1
            self._answers.free(ticket.call.function, self._limits.answer_max_bytes)

    def add(self, ticket: Ticket) -> None:
        """Take a call in."""
        call = ticket.call
        self._tickets.setdefault(call.function, {})[call.seq] = ticket
        self._by_id.setdefault((call.function, call.id), {})[call.seq] = ticket
        if call.idempotency_key:
            self._by_key[call.function, call.idempotency_key] = ticket
        self._calls += 1
        self._room(call).take(call.function, call.size_bytes)

    def remove(self, ticket: Ticket) -> None:
        """Let a call go."""
        call = ticket.call
        _drop(self._tickets, call.function, call.seq)
        _drop(self._by_id, (call.function, call.id), call.seq)
        key = (call.function, call.idempotency_key)
        if self._by_key.get(key) is ticket:  # one that is being removed leaves its key to the next one
            del self._by_key[key]
        self._calls -= 1
        self._room(call).free(call.function, call.size_bytes)
        if not self.waits(call.function):
            self._on_empty(call.function)

    def answered(self, ticket: Ticket, size_bytes: int) -> None:
        """The answer has taken the request's place."""
        call = ticket.call
        self._requests.free(call.function, call.size_bytes)
        self._answers.take(call.function, size_bytes)
        ticket.call = replace(call, answered=True, attempts=0, size_bytes=size_bytes)

    def end(self, ticket: Ticket, *counts: Count) -> None:
        """Let a call go, and count how it ended."""
        for count in counts:
            self.count(ticket.call.function, count)
        self.remove(ticket)

    def _room(self, call: QueuedCall) -> Room:
        return self._answers if call.answered else self._requests

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


def _drop(groups: dict[K, dict[int, Ticket]], group: K, seq: int) -> None:
    """Take a ticket out of its group, and the group away when it is empty."""
    del groups[group][seq]
    if not groups[group]:
        del groups[group]
