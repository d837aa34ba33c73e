"""Runs queued calls and posts their answers: one try at a time, each end of a try decided by `async_policy`."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from infless_core.clock import Clock
from infless_core.errors import StateError
from infless_provider import async_policy
from infless_provider.async_books import Books, Ticket
from infless_provider.async_policy import Again, AsyncLimits, Attempt, Final
from infless_provider.async_store import Count, QueuedCall, QueueStore, StoredAnswer
from infless_provider.async_turns import Lane, Turns
from infless_provider.callbacks import Delivery
from infless_provider.forwarding import INTERNAL

if TYPE_CHECKING:
    from infless_provider.callbacks import Callbacks
    from infless_provider.functions import FunctionState
    from infless_provider.upstream import Header
from infless_provider.proxy import Outcome

LOG = logging.getLogger("infless.async")
_AFTER_A_FAULT_S = 30.0
"""A call that met a fault of ours comes back after this, so that it is neither lost nor spun on."""
_CUT = b"x-infless-answer-bytes"
"""Tells a callback's target that it got the beginning only, and of how much."""
T = TypeVar("T")


class Worker:
    """Two lanes: invocations by function, callbacks by function and host; a slow target holds up no invocation.

    Except that answers have room on disk for so much only: while that is full of what a target does not take, no
    invocation begins whose answer would need some.

    Args:
        store: the queue on disk, open.
        books: the queue in memory.
        find: a function by its key, None when there is none.
        invoke: one invocation.
        callbacks: delivers answers.
        clock: of due times.
        limits: how much runs, and how often it is tried.
        seed: of the waits' jitter.
    """

    def __init__(
        self,
        store: QueueStore,
        books: Books,
        find: Callable[[str], FunctionState | None],
        invoke: Callable[..., Awaitable[Outcome]],
        callbacks: Callbacks,
        clock: Clock,
        limits: AsyncLimits,
        seed: int,
    ) -> None:
        self._store = store
        self._books = books
        self._find = find
        self._invoke = invoke
        self._callbacks = callbacks
        self._clock = clock
        self._limits = limits
        self._random = random.Random(seed)  # noqa: S311 - spreads retries, guards nothing
        self._disk_fails = False
        """Told once, not by each call that waits for it."""
        # Invocations know no hosts: all are for the same one, which has every place.
        in_flight_max, each_max = limits.in_flight_max, limits.in_flight_per_function_max
        turns = Turns(in_flight_max, each_max, in_flight_max, books.claim)
        posts: Turns[Ticket] = Turns(
            limits.callbacks_max, limits.callbacks_per_function_max, limits.callbacks_per_host_max
        )  # fmt: skip
        self._invocations = Lane(turns, self._run, clock)
        self._posts = Lane(posts, self._run, clock)

    @property
    def invoking(self) -> int:
        """Invocations that run."""
        return self._invocations.running

    @property
    def posting(self) -> int:
        """Callbacks that run."""
        return self._posts.running

    def start(self) -> None:
        """Begin with what was enqueued."""
        self._invocations.start()
        self._posts.start()

    async def close(self) -> None:
        """Begin nothing more; what runs may end within the grace, then it is given up, and stays in the queue."""
        grace_s = self._limits.close_grace_s
        await asyncio.gather(self._invocations.finish(grace_s), self._posts.finish(grace_s))

    def enqueue(self, ticket: Ticket, after_s: float = 0.0) -> None:
        """Let a call, or its callback, be tried in `after_s`."""
        ticket.queued = True
        if ticket.call.answered:
            self._posts.add(ticket, ticket.call.function, ticket.target.origin if ticket.target else "", after_s)
        else:
            self._invocations.add(ticket, ticket.call.function, "", after_s)

    def ended(self, ticket: Ticket, *counts: Count) -> None:
        """Let a call go that is off the disk; where it was, there may be room for the next one's answer."""
        self._books.end(ticket, *counts)
        self._invocations.pump()

    async def _run(self, ticket: Ticket) -> None:
        """One try of what is next for a call."""
        ticket.queued = False
        ticket.task = asyncio.current_task()
        try:
            if not ticket.ended:
                await (self._post(ticket) if ticket.call.answered else self._try(ticket))
        except Exception:
            LOG.exception("a call of %s met a fault; it is tried again", ticket.call.function)
            self.enqueue(ticket, _AFTER_A_FAULT_S)
        finally:
            ticket.task = None
            self._books.unclaim(ticket)

    async def _try(self, ticket: Ticket) -> None:
        call = ticket.call
        request = await self._on_disk(lambda: self._store.request(call))
        if request is None:
            await self._recover(ticket)
            return
        function = self._find(call.function)
        # Nobody reads an answer that has no callback: its status is enough.
        most_bytes = self._limits.answer_max_bytes if ticket.target is not None else 0
        if function is None:
            answer = _gone(call)
        else:
            outcome = await self._invoke(
                function, "POST", request.target, [*request.headers, *trace(call)], request.body,
                timeout_s=self._limits.invoke_timeout_s, answer_max_bytes=most_bytes,
            )  # fmt: skip
            attempt = self._attempt(ticket, outcome.status, outcome.headers)
            verdict = async_policy.after_invocation(attempt, self._limits.invocations, self._random.random())
            if isinstance(verdict, Again):
                await self._later(ticket, attempt, verdict)
                return
            answer = _stored(outcome, verdict, most_bytes)
        if answer.failed:
            LOG.warning(
                "call %s of %s has failed with %d after %d tries", call.id, call.function, answer.status,
                call.attempts + 1,
            )  # fmt: skip
        if ticket.target is None:
            await self._end(ticket, Count.FAILED if answer.failed else Count.DONE)
            return
        await self._on_disk(lambda: self._store.answered(call, answer))
        self._answered(ticket, answer)

    def _attempt(self, ticket: Ticket, status: int, headers: Sequence[Header]) -> Attempt:
        return Attempt(
            status=status,
            attempts=ticket.call.attempts + 1,
            age_s=self._clock.now_s() - ticket.since_s,
            retry_after_s=async_policy.retry_after_s(headers, self._clock.wall_s()),
        )

    def _answered(self, ticket: Ticket, answer: StoredAnswer) -> None:
        self._books.answered(ticket, len(answer.body))
        ticket.since_s = self._clock.now_s()
        self.enqueue(ticket)

    async def _recover(self, ticket: Ticket) -> None:
        """A call whose request is not there: it was cancelled while its answer was stored, and the disk kept it."""
        call = ticket.call
        answer = await self._on_disk(lambda: self._store.answer(call))
        if answer is None:
            await self._lose(ticket, Count.FAILED)
        else:
            self._answered(ticket, answer)

    async def _lose(self, ticket: Ticket, *counts: Count) -> None:
        call = ticket.call
        LOG.error("call %s of %s has failed: the queue's file has no more of it", call.id, call.function)
        await self._end(ticket, *counts)

    async def _post(self, ticket: Ticket) -> None:
        call, target = ticket.call, ticket.target
        answer = await self._on_disk(lambda: self._store.answer(call))
        if answer is None:
            await self._lose(ticket, Count.FAILED, Count.CALLBACKS_FAILED)
            return
        if target is None:
            delivery = Delivery(status=0, fault="its URL cannot be read any more", forbidden=True)
        else:
            headers = async_policy.callback_headers(
                answer.headers, call_id=call.id, function=call.function.rpartition(".")[0], status=answer.status,
                took_s=answer.took_s, accepted_ns=call.accepted_ns,
            )  # fmt: skip
            delivery = await self._callbacks.post(target, headers, answer.body)
        attempt = self._attempt(ticket, delivery.status, delivery.headers)
        verdict: Again | Final = Final(failed=True)
        if not delivery.forbidden:
            verdict = async_policy.after_callback(attempt, self._limits.callbacks, self._random.random())
        if isinstance(verdict, Again):
            await self._later(ticket, attempt, verdict)
            return
        if verdict.failed:
            why = delivery.fault or f"its target answers {delivery.status}"
            LOG.warning("the callback of call %s of %s is given up: %s", call.id, call.function, why)
        how = Count.FAILED if answer.failed else Count.DONE
        await self._end(ticket, how, Count.CALLBACKS_FAILED if verdict.failed else Count.CALLBACKS_OK)

    async def _later(self, ticket: Ticket, attempt: Attempt, verdict: Again) -> None:
        call = ticket.call
        await self._on_disk(lambda: self._store.retry(call, attempt.attempts))
        if not call.answered:
            self._books.count(call.function, Count.RETRIED)
        ticket.call = replace(call, attempts=attempt.attempts)
        self.enqueue(ticket, verdict.after_s)

    async def _end(self, ticket: Ticket, *counts: Count) -> None:
        ticket.ended = True
        await self._on_disk(lambda: self._store.end(ticket.call, *counts))
        self.ended(ticket, *counts)

    async def _on_disk(self, ask: Callable[[], asyncio.Future[T]]) -> T:
        """Ask until the disk does it: what has happened cannot be taken back."""
        while True:
            try:
                got = await ask()
            except StateError as error:
                if not self._disk_fails:
                    LOG.error("%s; asked again every %g s", error, self._limits.disk_retry_s)  # noqa: TRY400
                self._disk_fails = True
                await asyncio.sleep(self._limits.disk_retry_s)
            else:
                if self._disk_fails:
                    LOG.info("the queue's disk works again")
                self._disk_fails = False
                return got


def trace(call: QueuedCall) -> list[Header]:
    """The headers that OpenFaaS puts on every message about a call."""
    return [(b"x-call-id", call.id.encode()), (b"x-start-time", str(call.accepted_ns).encode())]


def _gone(call: QueuedCall) -> StoredAnswer:
    headers = ((b"content-type", b"text/plain; charset=utf-8"), INTERNAL)
    body = f"function {call.function} does not exist any more\n".encode()
    return StoredAnswer(status=404, failed=True, took_s=0.0, headers=headers, body=body)


def _stored(outcome: Outcome, verdict: Final, most_bytes: int) -> StoredAnswer:
    """An answer as the callback gets it: where it was too long for the queue, it says so."""
    headers, body = list(outcome.headers), bytes(outcome.body[:most_bytes])
    if outcome.body_bytes > len(body):
        headers.append((_CUT, str(outcome.body_bytes).encode()))
    return StoredAnswer(
        status=outcome.status, failed=verdict.failed, took_s=outcome.took_s, headers=headers, body=body
    )  # fmt: skip
