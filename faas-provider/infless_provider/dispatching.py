"""Finding an instance for a request, waiting for a cold start, and trying another instance where that is safe."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from infless_core.clock import Clock
from infless_core.lifecycle import Phase
from infless_provider.controller import Controller
from infless_provider.forwarding import RETRY, refuses
from infless_provider.functions import FunctionState, Instance
from infless_provider.upstream import HalfSent, Header, NotSent, Reply, TimedOut, UpstreamError

TRIES = 3
"""Instances that are asked: enough to pass two that died since the last look, and too few to drive a crowd of requests
around among instances that are all full."""
DYING_S = 1.0
"""How long an instance that takes no connection may take to be seen to have ended."""
_WHERE_WHY = "`infless status` and the function's log say why"
"""An instance's last words may hold secrets and paths: they are for operators, not for whoever calls a function."""


class Unanswered(Exception):  # noqa: N818 - a sentence names the fault, not the class
    """No instance has answered. Has the status, the sentence and more headers for the client."""

    def __init__(self, status: int, sentence: str, headers: tuple[Header, ...] = ()) -> None:
        super().__init__(sentence)
        self.status = status
        self.headers = headers


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request as an instance gets it."""

    method: str
    target: str
    headers: Sequence[Header]
    body: bytes | AsyncIterable[bytes]
    """In pieces it can be sent once only."""
    content_length: int | None = None
    """Of a body in pieces, where it is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a request may take."""

    timeout_s: float
    ends_s: float
    """When the head of its answer must be there, on the provider's clock."""
    streams: bool
    """Whether it may go on behind that, while something moves; else it ends with it."""


@dataclass(slots=True)
class Sent:
    """A request that an instance has, and counts as in flight until `let_go`. Not frozen: each request has one."""

    instance: Instance
    reply: Reply
    sent_s: float


class Dispatch:
    """Sends requests to instances of their function.

    Args:
        controller: knows the functions.
        clock: for deadlines.
        waiting_max: requests that may wait for a cold start of one function.
    """

    def __init__(self, controller: Controller, clock: Clock, waiting_max: int) -> None:
        self._controller = controller
        self._clock = clock
        self._waiting_max = waiting_max

    def now(self, function: FunctionState) -> Instance | None:
        """Whose turn the next request is, if anybody's."""
        id_ = function.dispatcher.choose()
        return None if id_ is None else function.instances.get(id_)

    async def send(
        self,
        function: FunctionState,
        asked: Asked,
        patience: Patience,
        *,
        first: Instance | None = None,
        refusal: Sent | None = None,
    ) -> Sent:
        """Have a request answered; the head of the answer is there then.

        Args:
            function: whose instances are asked.
            asked: the request.
            patience: how long it may take.
            first: whose turn it is; found out when None, and again when it does not serve any more: a turn of the loop
                may lie between the choice and this, and one that drains is asked to end when it is idle.
            refusal: the answer of an instance that was asked already and does not take it.

        Raises:
            Unanswered: nobody has answered.
        """
        refused = {refusal.instance.id} if refusal is not None else set()
        for _ in range(TRIES - len(refused)):
            instance = first if first is not None and first.phase is Phase.READY else None
            first = None
            instance = instance or await self._instance(function, refused, patience)
            if instance is None and refused and refusal is None:
                await self._news(function, patience)
                refused &= function.instances.keys()
                instance = await self._instance(function, refused, patience)
            if instance is None:
                break
            try:
                sent = await self._ask(function, instance, asked, patience)
            except NotSent:
                # Safe to try elsewhere: the instance has seen nothing. One that has died is taken out at once.
                self._controller.fleet.check(instance)
                if instance.id in function.instances:
                    refused.add(instance.id)
                continue
            reply = sent.reply
            again = isinstance(asked.body, bytes) and reply.complete
            if not again or not refuses(reply.status, reply.headers):
                return sent
            let_go(sent)
            refusal = sent
            refused.add(instance.id)
        if refusal is not None:
            refusal.instance.in_flight += 1  # as for every answer
            return refusal
        raise Unanswered(503, f"No endpoints available for: {function.key}. None became ready; {_WHERE_WHY}")

    async def _ask(self, function: FunctionState, instance: Instance, asked: Asked, patience: Patience) -> Sent:
        sent_s = self._clock.now_s()
        more: dict[str, Any] = {} if isinstance(asked.body, bytes) else {"content_length": asked.content_length}
        if patience.streams:
            more["silence_s"] = patience.timeout_s
        instance.in_flight += 1
        try:
            reply = await instance.upstream.request(
                asked.method,
                asked.target,
                asked.headers,
                asked.body,
                timeout_s=max(0.001, patience.ends_s - sent_s),
                **more,
            )
        except BaseException as error:
            instance.in_flight -= 1
            if isinstance(error, UpstreamError) and not isinstance(error, NotSent):
                raise unanswered(function, error, patience.timeout_s) from error
            raise
        return Sent(instance, reply, sent_s)

    async def _instance(self, function: FunctionState, refused: set[str], patience: Patience) -> Instance | None:
        """Whose turn it is; waits for a cold start. None when there will be none.

        Raises:
            Unanswered: too many wait already, or the time is over.
        """
        while True:
            id_ = function.dispatcher.choose(refused)
            if id_ is not None:
                instance = function.instances.get(id_)
                if instance is not None:
                    return instance
                function.reweigh()
                continue
            if refused or self._controller.functions.get(function.key) is not function:
                return None
            if not function.current():
                if self._clock.now_s() < function.retry_at_s:
                    return None
                # Scale from zero: requests that arrive together share one start.
                if not self._controller.fleet.start(function, function.spare(), "a request came and no instance ran"):
                    return None
            await self._cold_start(function, patience)

    async def _news(self, function: FunctionState, patience: Patience) -> None:
        """Wait a moment: the sockets of an instance that is killed are closed before it can be seen to have ended."""
        ends_s = min(patience.ends_s, self._clock.now_s() + DYING_S)
        with contextlib.suppress(Unanswered):
            await self._cold_start(function, replace(patience, ends_s=ends_s))

    async def _cold_start(self, function: FunctionState, patience: Patience) -> None:
        """Wait until something has changed for a function that has no instance to answer."""
        if len(function.waiters) >= self._waiting_max:
            sentence = f"{self._waiting_max} requests wait for an instance of {function.key} already"
            raise Unanswered(503, sentence, (RETRY,))
        waiter = asyncio.get_running_loop().create_future()
        function.waiters.append(waiter)
        try:
            await asyncio.wait_for(waiter, max(0.0, patience.ends_s - self._clock.now_s()))
        except TimeoutError:
            sentence = f"no instance of {function.key} became ready within {patience.timeout_s:g} s; {_WHERE_WHY}"
            raise Unanswered(504, sentence) from None
        finally:
            if waiter in function.waiters:
                function.waiters.remove(waiter)


def let_go(sent: Sent) -> None:
    """An answer is over."""
    sent.instance.in_flight -= 1


def unanswered(function: FunctionState, error: UpstreamError, timeout_s: float) -> Unanswered:
    """What a client is told of a request that was sent and came to nothing."""
    if isinstance(error, TimedOut):
        return Unanswered(504, f"{function.key} did not answer within {timeout_s:g} s")
    if isinstance(error, HalfSent):
        return Unanswered(502, f"the request to {function.key} was not sent to its end: {error}")
    return Unanswered(502, f"the instance of {function.key} failed while answering: {error}")
