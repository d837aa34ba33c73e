"""One request of a client to a function, from its arrival to its answer.

Most find an open connection to an instance and get an answer in one piece: those take neither a task nor a future, as
the instance's connection calls back. Everything else (a cold start, a body or an answer in pieces, a second try) goes
on in a task.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterable, Coroutine
from typing import TYPE_CHECKING, Any

from infless_provider.dispatching import Asked, Patience, Sent, Unanswered, let_go, unanswered
from infless_provider.forwarding import INTERNAL, Passage, answer_headers, refuses, whole_answer
from infless_provider.functions import FunctionState, Instance
from infless_provider.upstream import HalfSent, Header, Reply, UpstreamError
from infless_watchdog.http import BodyLostError

if TYPE_CHECKING:
    from infless_provider.proxy import Proxy
    from infless_watchdog.http import Exchange

LOG = logging.getLogger("infless.proxy")
GATHER_MAX_BYTES = 64 * 1024
"""A body that says it is this small is waited for: whole in memory, it can be sent to another instance."""
LEFT = 499
"""nginx's number for a client that left before its answer; nobody is there to read it."""


class Invocation:
    """Owns one exchange until it is answered, cut or left."""

    __slots__ = ("_exchange", "_function", "_passage", "_proxy", "_sent", "_started_s", "_timeout_s", "_trace")

    def __init__(self, proxy: Proxy, exchange: Exchange, function: FunctionState, passage: Passage) -> None:
        self._proxy = proxy
        self._exchange = exchange
        self._function = function
        self._passage = passage
        self._sent: Sent | None = None
        self._trace: list[Header] = proxy.trace(passage.call_id)

    def begin(self, started_s: float, timeout_s: float) -> None:
        """Send the request, or have that done."""
        exchange, passage, function = self._exchange, self._passage, self._function
        self._started_s = started_s
        self._timeout_s = timeout_s
        instance = None
        if exchange.body_stream is None:
            instance = self._proxy.dispatch.now(function)
            if instance is not None:
                body, authorized = bytes(exchange.body), bool(function.tokens)
                reply = instance.upstream.send_now(
                    passage.on_the_wire(self._trace, exchange.peer, body, authorized=authorized),
                    head_only=passage.method == "HEAD",
                    timeout_s=timeout_s,
                    silence_s=timeout_s,
                    told=self._told,
                )
                if reply is not None:
                    instance.in_flight += 1
                    self._sent = Sent(instance, reply, started_s)
                    exchange.on_gone = self._gone
                    return
        self._later(self._send(instance))

    # without a task --------------------------------------------------------------------------------------------------

    def _told(self, reply: Reply) -> None:
        """The head of the answer is there, or there will be none."""
        if not reply.complete or reply.failed or reply.status in (429, 503):
            self._later(self._go_on())
            return
        try:
            self._answer_whole(reply)
        except Exception as error:  # noqa: BLE001 - logged, and answered
            self._broken(error)
        self._end()

    def _gone(self) -> None:
        """The client has left: so does its request."""
        if self._sent is not None:
            self._sent.reply.close()
        self._exchange.status = LEFT
        self._end()

    # in a task -------------------------------------------------------------------------------------------------------

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._proxy.spawn(work)
        # A task that is cancelled before its first step runs nothing of its own, no `finally` either.
        task.add_done_callback(self._over)
        self._exchange.on_gone = task.cancel

    def _over(self, task: asyncio.Task[None]) -> None:
        exchange = self._exchange
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        try:
            if isinstance(error, asyncio.CancelledError):
                exchange.status = LEFT
            elif isinstance(error, BodyLostError):
                exchange.status = exchange.status if exchange.done else LEFT
            elif isinstance(error, Unanswered):
                self._fail(error)
            elif error is not None:
                self._broken(error)
        finally:
            self._end()

    async def _send(self, instance: Instance | None) -> None:
        """Whatever the beginning is."""
        stream = self._exchange.body_stream
        body: bytes | AsyncIterable[bytes] = bytes(self._exchange.body) if stream is None else stream
        if stream is not None and (stream.size_bytes or math.inf) <= GATHER_MAX_BYTES:
            body = b"".join([piece async for piece in stream])
        asked = self._asked(body)
        self._sent = await self._proxy.dispatch.send(self._function, asked, self._patience(), first=instance)
        await self._answer(self._sent.reply)

    async def _go_on(self) -> None:
        """The answer to a request that was sent at once is not as simple as most."""
        sent = self._sent
        assert sent is not None
        try:
            await sent.reply.head()
        except UpstreamError as error:
            raise unanswered(self._function, error, self._timeout_s) from error
        if sent.reply.complete and refuses(sent.reply.status, sent.reply.headers):
            self._sent = None
            let_go(sent)
            asked = self._asked(bytes(self._exchange.body))
            self._sent = sent = await self._proxy.dispatch.send(self._function, asked, self._patience(), refusal=sent)
        await self._answer(sent.reply)

    def _patience(self) -> Patience:
        return Patience(timeout_s=self._timeout_s, ends_s=self._started_s + self._timeout_s, streams=True)

    def _asked(self, body: bytes | AsyncIterable[bytes]) -> Asked:
        exchange, passage = self._exchange, self._passage
        stream = exchange.body_stream
        return Asked(
            method=passage.method,
            target=passage.target,
            headers=passage.fields(self._trace, exchange.peer, authorized=bool(self._function.tokens)),
            body=body,
            content_length=None if stream is None else stream.size_bytes,
        )

    # the answer ------------------------------------------------------------------------------------------------------

    async def _answer(self, reply: Reply) -> None:
        if reply.complete:
            self._answer_whole(reply)
            return
        exchange = self._exchange
        headers = answer_headers(reply.headers) + self._told_by_us()
        if not any(name == b"content-type" for name, _ in headers):
            headers.append((b"content-type", self._passage.content_type))
        try:
            exchange.begin(reply.status, headers)
            async for chunk in reply.chunks():
                exchange.write(chunk)
                await exchange.writable()
                if exchange.done:  # its body broke the rules meanwhile, and that was its answer
                    return
            exchange.end()
        except UpstreamError as error:
            raise unanswered(self._function, error, self._timeout_s) from error
        finally:
            reply.close()

    def _answer_whole(self, reply: Reply) -> None:
        exchange = self._exchange
        headers = answer_headers(reply.headers)
        if exchange.method == "HEAD":
            exchange.begin(reply.status, headers + self._told_by_us())
            exchange.end()
            return
        content_type, rest = whole_answer(headers, self._passage.content_type)
        exchange.respond(reply.status, reply.body, content_type, rest + self._told_by_us())

    def _told_by_us(self) -> list[Header]:
        took_s = self._proxy.clock.now_s() - self._started_s
        return [*self._trace, (b"x-duration-seconds", b"%.6f" % took_s)]

    def _fail(self, failure: Unanswered) -> None:
        """A clear error while nothing was sent; a cut connection once half an answer is out."""
        exchange = self._exchange
        if exchange.done:  # the edge has told the client what was wrong with its body, or it has left
            exchange.status = exchange.status or LEFT
        elif exchange.status:
            exchange.abort()
            exchange.status = failure.status
        elif isinstance(failure.__cause__, HalfSent):
            exchange.abort()
            exchange.status = LEFT
        else:
            exchange.text(failure.status, str(failure), [*self._told_by_us(), INTERNAL, *failure.headers])

    def _broken(self, error: BaseException) -> None:
        LOG.error("invoking %s failed", self._function.key, exc_info=error)
        self._fail(Unanswered(500, f"invoking {self._function.key} failed inside the provider"))

    def _end(self) -> None:
        sent, self._sent = self._sent, None
        observed_s = 0.0
        if sent is not None:
            let_go(sent)
            if sent.instance.in_flight == 0 and sent.reply.complete:
                observed_s = self._proxy.clock.now_s() - sent.sent_s
        self._proxy.ended(self._function, self._exchange.status, self._started_s, observed_s)
