"""The invocation path: who may ask, how many at once, and what is counted. asyncio end to end."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infless_core.clock import Clock
from infless_provider import auth, forwarding
from infless_provider.controller import Controller
from infless_provider.dispatching import Asked, Dispatch, Patience, Unanswered, let_go, unanswered
from infless_provider.forwarding import INTERNAL, RETRY, CallIds, Passage, passage_of
from infless_provider.functions import FunctionState
from infless_provider.invocation import LEFT, Invocation
from infless_provider.metrics import Metrics
from infless_provider.settings import Settings
from infless_provider.upstream import Header, Reply, UpstreamError

if TYPE_CHECKING:
    from infless_watchdog.http import Exchange

LOG = logging.getLogger("infless.proxy")
_ALLOW: Header = (b"allow", ", ".join(forwarding.METHODS).encode())
_TEXT: Header = (b"content-type", b"text/plain; charset=utf-8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The end of an invocation that the provider made itself."""

    status: int
    """Of the answer; 502, 503 or 504, with `x-openfaas-internal: proxy`, when there was none."""
    headers: tuple[Header, ...]
    """Names in lower case."""
    body: bytes
    """Its beginning, as much as was asked for."""
    body_bytes: int
    """How long it was."""
    took_s: float


class Proxy:
    """Answers `/function/NAME[/PATH]` (OpenFaaS provider protocol).

    Args:
        controller: knows the functions.
        metrics: counts.
        settings: limits.
        clock: for deadlines.
        ours: whether an Authorization header is meant for the provider's control plane, with the right password or a
            wrong one: a function that got the wrong ones only would tell strangers which one is right.
    """

    def __init__(
        self,
        controller: Controller,
        metrics: Metrics,
        settings: Settings,
        clock: Clock,
        ours: Callable[[bytes | None], bool] = lambda _: False,
    ) -> None:
        self._ours = ours
        self.clock = clock
        self.dispatch = Dispatch(controller, clock, settings.waiting_max)
        self.in_flight = 0
        """Invocations under way, of all functions."""
        self._functions = controller.functions
        self._metrics = metrics
        self._settings = settings
        self._call_ids = CallIds(os.urandom(16))
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self, exchange: Exchange) -> None:
        """Take a request whose path begins with `/function/`."""
        head = exchange.head
        passage = head.memo
        if passage is None:
            passage = head.memo = passage_of(head)
            if passage.authorization:
                passage.authorization = tuple(one for one in passage.authorization if not self._ours(one[1]))
        function = self._functions.get(passage.key)
        if function is None:
            exchange.text(404, f"function {passage.name!r} does not exist", [INTERNAL])
        elif passage.method not in forwarding.METHODS:
            allowed = ", ".join(forwarding.METHODS)
            exchange.text(405, f"{passage.method} is not allowed; use {allowed}", [_ALLOW, INTERNAL])
        elif function.tokens and not auth.bears(passage.bearer, function.tokens):
            sentence = f"{function.key} wants a token: send it as Authorization: Bearer TOKEN"
            exchange.text(401, sentence, [(b"www-authenticate", b"Bearer"), INTERNAL])
        elif passage.fault:
            exchange.text(400, passage.fault, [INTERNAL])
        else:
            self._admit(exchange, function, passage)

    def _admit(self, exchange: Exchange, function: FunctionState, passage: Passage) -> None:
        invocation = Invocation(self, exchange, function, passage)
        started_s = self.begun(function)
        if (sentence := self._full()) is not None:
            exchange.text(503, sentence, [RETRY, INTERNAL])
            self.ended(function, 503, started_s)
        else:
            invocation.begin(started_s, min(passage.timeout_s, self._settings.invoke_timeout_s))

    async def call(
        self,
        function: FunctionState,
        method: str,
        target: str,
        headers: Sequence[Header],
        body: bytes,
        *,
        timeout_s: float,
        answer_max_bytes: int,
    ) -> Outcome:
        """Make one invocation, from the provider itself; counted and dispatched as a client's is.

        Args:
            function: whom to ask.
            method: in capitals.
            target: path and query as the function sees them.
            headers: of the request, names in lower case; a call id and a start time are added where they are missing.
            body: whole.
            timeout_s: for everything, cold start included.
            answer_max_bytes: how much of the answer's body is kept; the rest is read and counted.

        Returns:
            The function's answer, or what a client would have been told; no failure of a function raises.
        """
        started_s = self.begun(function)
        passed = forwarding.end_to_end(headers)
        if function.tokens:
            passed = [header for header in passed if header[0] != b"authorization"]
        given = dict(headers)
        passed += [(name, given.get(name, value)) for name, value in self.trace(given.get(b"x-call-id"))]
        asked = Asked(method=method, target=target, headers=passed, body=bytes(body))
        status = LEFT
        try:
            outcome = await self._called(function, asked, started_s, timeout_s, answer_max_bytes)
            status = outcome.status
        except Unanswered as failure:
            status = failure.status
            outcome = self._told(status, str(failure), failure.headers, started_s)
        except Exception:
            LOG.exception("invoking %s failed", function.key)
            status = 500
            outcome = self._told(status, f"invoking {function.key} failed inside the provider", (), started_s)
        finally:
            self.ended(function, status, started_s)
        return outcome

    def _told(self, status: int, sentence: str, headers: tuple[Header, ...], started_s: float) -> Outcome:
        body, took_s = f"{sentence}\n".encode(), self.clock.now_s() - started_s
        return Outcome(
            status=status, headers=(_TEXT, INTERNAL, *headers), body=body, body_bytes=len(body), took_s=took_s
        )  # fmt: skip

    async def _called(
        self, function: FunctionState, asked: Asked, started_s: float, timeout_s: float, most_bytes: int
    ) -> Outcome:
        if (sentence := self._full()) is not None:
            raise Unanswered(503, sentence, (RETRY,))
        patience = Patience(timeout_s=timeout_s, ends_s=started_s + timeout_s, streams=False)
        sent = await self.dispatch.send(function, asked, patience)
        try:
            body, body_bytes = await _beginning(sent.reply, most_bytes)
        except UpstreamError as error:
            raise unanswered(function, error, patience.timeout_s) from error
        finally:
            sent.reply.close()
            let_go(sent)
        headers = tuple(forwarding.answer_headers(sent.reply.headers))
        took_s = self.clock.now_s() - started_s
        return Outcome(status=sent.reply.status, headers=headers, body=body, body_bytes=body_bytes, took_s=took_s)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run it in a task that is kept until it ends."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def trace(self, call_id: bytes | None) -> list[Header]:
        """What OpenFaaS's gateway tells the function and the client of a call.

        Args:
            call_id: the client's own; None makes one.
        """
        start_ns = int(self.clock.wall_s() * 1e9)
        return [(b"x-call-id", call_id or self._call_ids.next()), (b"x-start-time", b"%d" % start_ns)]

    # counting --------------------------------------------------------------------------------------------------------
    #
    # A function may be removed while it is called. Its metrics are dropped then, and what is counted later would bring
    # them back for good, or be told of another function that has its name since.

    def _full(self) -> str | None:
        """Why one more cannot be taken on. What queues without bound answers nobody in time."""
        most = self._settings.streams_max
        return f"{most} invocations are under way already; try again" if self.in_flight > most else None

    def begun(self, function: FunctionState) -> float:
        """An invocation begins.

        Returns:
            When.
        """
        now_s = self.clock.now_s()
        self.in_flight += 1
        function.arrived += 1
        function.invocations += 1
        function.in_flight += 1
        function.wanted_at_s = now_s
        key = function.key
        if self._functions.get(key) is function:
            self._metrics.started(key)
        return now_s

    def ended(self, function: FunctionState, status: int, started_s: float, alone_s: float = 0.0) -> None:
        """An invocation has ended.

        Args:
            function: whose it was.
            status: of its answer; 499 when nobody was there to take one.
            started_s: as `begun` said.
            alone_s: how long it took its instance, if it was alone there; 0 when nobody knows.
        """
        self.in_flight -= 1
        function.in_flight -= 1
        now_s = function.wanted_at_s = self.clock.now_s()
        if alone_s and not function.profile:
            function.observe(alone_s)
        key = function.key
        if self._functions.get(key) is function:
            self._metrics.answered(key, status, now_s - started_s, function.wishes.latency_target_s)


async def _beginning(reply: Reply, most_bytes: int) -> tuple[bytes, int]:
    """The first bytes of an answer's body, and how many it had; it is read to its end.

    Raises:
        UpstreamError: it has no end.
    """
    pieces, kept_bytes, size_bytes = [], 0, 0
    async for piece in reply.chunks():
        size_bytes += len(piece)
        if kept_bytes < most_bytes:
            pieces.append(piece[: most_bytes - kept_bytes])
            kept_bytes += len(pieces[-1])
    return b"".join(pieces), size_bytes
