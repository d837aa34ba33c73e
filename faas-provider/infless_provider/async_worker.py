"""Runs queued calls and posts their answers: one try at a time, each end of a try decided by `async_policy`."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Generic, Protocol, TypeVar

from infless_core.clock import Clock
from infless_core.errors import StateError
from infless_provider import async_policy
from infless_provider.async_books import Books, Ticket
from infless_provider.async_policy import Again, AsyncLimits, Attempt, Final
from infless_provider.async_store import Count, QueuedCall, QueueStore, StoredAnswer
from infless_provider.async_turns import Lane, Turns
from infless_provider.callback_policy import Target
from infless_provider.callbacks import Delivery
from infless_provider.forwarding import INTERNAL, Header

LOG = logging.getLogger("infless.async")
_AFTER_A_FAULT_S = 30.0
"""A call that met a fault of ours comes back after this, so that it is neither lost nor spun on."""
_CUT = b"x-infless-answer-bytes"
"""Tells a callback's target that it got the beginning only, and of how much."""
T = TypeVar("T")


class Function(Protocol):
    """What the queue needs to know of a function."""

    @property
    def key(self) -> str:
        """`name.namespace`."""
        ...

    @property
    def tokens(self) -> tuple[bytes, ...]:
        """Who may call; empty for everybody."""
        ...


class Outcome(Protocol):
    """The end of one invocation."""

    @property
    def status(self) -> int:
        """Of the answer; 502, 503 or 504 when the provider could not get one."""
        ...

    @property
    def headers(self) -> Sequence[Header]:
        """Names in lower case."""
        ...

    @property
    def body(self) -> bytes:
        """As much of it as was asked for."""
        ...

    @property
    def body_bytes(self) -> int:
        """How long it was."""
        ...

    @property
    def took_s(self) -> float:
        """From its start to its end."""
        ...


class Poster(Protocol):
    """What delivers callbacks: `callbacks.Callbacks`."""

    def check(self, url: str) -> Target:
        """The target of a URL; raises InvalidInput."""
        ...

    async def post(self, target: Target, headers: Sequence[Header], body: bytes) -> Delivery:
        """Send one callback; raises nothing."""
        ...

    async def close(self) -> None:
        """Close connections."""
        ...


F = TypeVar("F", bound=Function)


class Worker(Generic[F]):
    """Two lanes: invocations by function, callbacks by host; a slow target of callbacks holds up no invocation.

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
        find: Callable[[str], F | None],
        invoke: Callable[..., Awaitable[Outcome]],
        callbacks: Poster,
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
        turns: Turns[Ticket] = Turns(limits.in_flight_max, limits.in_flight_per_function_max)
        posts: Turns[Ticket] = Turns(limits.callbacks_max, limits.callbacks_per_host_max)
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
            self._posts.add(ticket, ticket.target.origin if ticket.target else "", after_s)
        else:
            self._invocations.add(ticket, ticket.call.function, after_s)

    async def _run(self, ticket: Ticket) -> None:
        """One try of what is next for a call."""
        ticket.queued = False
        if ticket.ended:
            return
        ticket.task = asyncio.current_task()
        try:
            await (self._post(ticket) if ticket.call.answered else self._try(ticket))
        except Exception:
            LOG.exception("a call of %s met a fault; it is tried again", ticket.call.function)
            self.enqueue(ticket, _AFTER_A_FAULT_S)
        finally:
            ticket.task = None

    async def _try(self, ticket: Ticket) -> None:
        call, rules = ticket.call, self._limits.invocations
        function = self._find(call.function)
        if function is None:
            answer = _refusal(404, f"function {call.function} does not exist any more", failed=True)
        else:
            # Nobody reads an answer that has no callback: its status is enough.
            most_bytes = self._limits.answer_max_bytes if ticket.target is not None else 0
            outcome = await self._outcome(function, call, most_bytes)
            attempt = Attempt(
                status=outcome.status,
                attempts=call.attempts + 1,
                age_s=self._clock.now_s() - ticket.since_s,
                retry_after_s=async_policy.retry_after_s(outcome.headers, self._clock.wall_s()),
            )
            verdict = async_policy.after_invocation(attempt, rules, self._random.random())
            if isinstance(verdict, Again):
                await self._later(ticket, attempt, verdict)
                return
            answer = _stored(outcome, verdict)
        if answer.failed:
            LOG.warning(
                "call %s of %s has failed with %d after %d tries", call.id, call.function, answer.status,
                call.attempts + 1,
            )  # fmt: skip
        if ticket.target is None:
            await self._end(ticket, Count.FAILED if answer.failed else Count.DONE)
            return
        await self._on_disk(lambda: self._store.answered(call, answer))
        self._books.answered(ticket, len(answer.body))
        ticket.since_s = self._clock.now_s()
        self.enqueue(ticket)

    async def _outcome(self, function: F, call: QueuedCall, most_bytes: int) -> Outcome:
        request = await self._on_disk(lambda: self._store.request(call))
        headers = [*request.headers, *trace(call)]
        timeout_s = self._limits.invoke_timeout_s
        try:
            return await self._invoke(
                function,
                "POST",
                request.target,
                headers,
                request.body,
                timeout_s=timeout_s,
                answer_max_bytes=most_bytes,
            )
        except Exception:
            LOG.exception("invoking %s failed inside the provider", call.function)
            return _refusal(503, f"invoking {call.function} failed inside the provider", failed=True)

    async def _post(self, ticket: Ticket) -> None:
        call, target = ticket.call, ticket.target
        answer = await self._on_disk(lambda: self._store.answer(call))
        if target is None:
            delivery = Delivery(status=0, fault="its URL cannot be read any more", forbidden=True)
        else:
            headers = async_policy.callback_headers(
                answer.headers, call_id=call.id, function=call.function.rpartition(".")[0], status=answer.status,
                took_s=answer.took_s, accepted_ns=call.accepted_ns,
            )  # fmt: skip
            delivery = await self._callbacks.post(target, headers, answer.body)
        attempt = Attempt(
            status=delivery.status,
            attempts=call.attempts + 1,
            age_s=self._clock.now_s() - ticket.since_s,
            retry_after_s=async_policy.retry_after_s(delivery.headers, self._clock.wall_s()),
        )
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
        self._books.end(ticket, *counts)

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


def _refusal(status: int, sentence: str, *, failed: bool) -> StoredAnswer:
    headers = ((b"content-type", b"text/plain; charset=utf-8"), INTERNAL)
    return StoredAnswer(status=status, failed=failed, took_s=0.0, headers=headers, body=f"{sentence}\n".encode())


def _stored(outcome: Outcome, verdict: Final) -> StoredAnswer:
    """An answer as the callback gets it: where it was too long for the queue, it says so."""
    headers = list(outcome.headers)
    if outcome.body_bytes > len(outcome.body):
        headers.append((_CUT, str(outcome.body_bytes).encode()))
    return StoredAnswer(
        status=outcome.status, failed=verdict.failed, took_s=outcome.took_s, headers=headers, body=bytes(outcome.body)
    )  # fmt: skip
