"""The invocation path: admission, dispatch, the instance's answer back to the client. asyncio end to end."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import TYPE_CHECKING

from infless_core.clock import Clock
from infless_provider.controller import Controller
from infless_provider.functions import FunctionState, Instance
from infless_provider.metrics import Metrics
from infless_provider.settings import NAMESPACE, Settings
from infless_provider.upstream import NotSent, Reply, TimedOut, UpstreamError
from infless_provider.wire import split_name

if TYPE_CHECKING:
    from infless_watchdog.http import Exchange, Header

_HOP_BY_HOP = frozenset({
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer",
    b"transfer-encoding", b"upgrade", b"proxy-connection", b"expect",
})  # fmt: skip
"""RFC 9110, section 7.6.1: for one connection only."""
_TRACE = frozenset({b"x-call-id", b"x-start-time"})
_NOT_PASSED_BACK = _HOP_BY_HOP | _TRACE | {b"x-duration-seconds"}
_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})
TRIES = 3
"""Instances that are tried while nothing was sent: enough to pass two that died since the last look."""
_INTERNAL = (b"x-openfaas-internal", b"proxy")


LOG = logging.getLogger("infless.proxy")


class Proxy:
    """Answers `/function/NAME[/PATH]` (OpenFaaS provider protocol)."""

    def __init__(self, controller: Controller, metrics: Metrics, settings: Settings, clock: Clock) -> None:
        self._controller = controller
        self._metrics = metrics
        self._settings = settings
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self, exchange: Exchange) -> None:
        """Take a request whose path begins with `/function/`."""
        name, _, rest = exchange.path.removeprefix("/function/").partition("/")
        function = self._controller.functions.get(f"{split_name(name, NAMESPACE)}.{NAMESPACE}")
        if function is None:
            exchange.text(404, f"function {name!r} does not exist", [_INTERNAL])
        elif exchange.method not in _METHODS:
            exchange.text(405, f"{exchange.method} is not allowed; use {', '.join(sorted(_METHODS))}", [_INTERNAL])
        else:
            task = asyncio.ensure_future(self._invoke(exchange, function, f"/{rest}"))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            exchange.on_gone = task.cancel

    async def _invoke(self, exchange: Exchange, function: FunctionState, path: str) -> None:
        started_s = self._clock.now_s()
        function.arrived += 1
        function.invocations += 1
        function.in_flight += 1
        function.wanted_at_s = started_s
        self._metrics.started(function.key)
        call_id = exchange.header(b"x-call-id") or os.urandom(16).hex().encode()
        trace = [(b"x-call-id", call_id), (b"x-start-time", str(time.time_ns()).encode())]
        try:
            await self._forward(exchange, function, path, trace, started_s)
        except asyncio.CancelledError:
            exchange.status = 499  # nginx's number for a client that left; nobody is there to read it
        except Exception:
            LOG.exception("invoking %s failed", function.key)
            if exchange.status:
                exchange.abort()
            else:
                exchange.text(500, f"invoking {function.key} failed inside the provider", [*trace, _INTERNAL])
        finally:
            function.in_flight -= 1
            function.wanted_at_s = self._clock.now_s()
            took_s = function.wanted_at_s - started_s
            self._metrics.answered(function.key, exchange.status, took_s, function.wishes.latency_target_s)

    async def _forward(
        self, exchange: Exchange, function: FunctionState, path: str, trace: list[Header], started_s: float
    ) -> None:
        headers = _request_headers(exchange, trace)
        target = f"{path}?{exchange.query}" if exchange.query else path
        ends_s = started_s + self._settings.invoke_timeout_s
        refused: set[str] = set()
        for _ in range(TRIES):
            instance = await self._instance(function, refused, ends_s)
            if instance is None:
                break
            instance.in_flight += 1
            try:
                sent_s = self._clock.now_s()
                reply = await instance.upstream.request(
                    exchange.method, target, headers, bytes(exchange.body), timeout_s=max(0.001, ends_s - sent_s)
                )
                await self._answer(exchange, reply, trace, started_s)
            except NotSent:
                # Safe to try elsewhere: the instance has seen nothing. One that has died is taken out at once.
                self._controller.fleet.check(instance)
                if instance.id in function.instances:
                    refused.add(instance.id)
                continue
            except TimedOut:
                self._fail(exchange, 504, f"{function.key} did not answer in time", trace)
                return
            except UpstreamError as error:
                self._fail(exchange, 502, f"the instance of {function.key} failed while answering: {error}", trace)
                return
            finally:
                instance.in_flight -= 1
            if instance.in_flight == 0 and not function.profile:
                function.observe(self._clock.now_s() - sent_s)
            return
        why = function.last_failure or "none became ready in time"
        exchange.text(503, f"No endpoints available for: {function.key}. {why}", [*trace, _INTERNAL])

    async def _instance(self, function: FunctionState, refused: set[str], ends_s: float) -> Instance | None:
        """Whose turn it is; waits for a cold start. None when there is none in time."""
        while True:
            id_ = function.dispatcher.choose(refused) if refused else function.dispatcher.choose()
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
            waiter = asyncio.get_running_loop().create_future()
            function.waiters.append(waiter)
            try:
                await asyncio.wait_for(waiter, max(0.0, ends_s - self._clock.now_s()))
            except TimeoutError:
                return None

    async def _answer(self, exchange: Exchange, reply: Reply, trace: list[Header], started_s: float) -> None:
        took = f"{self._clock.now_s() - started_s:.6f}".encode()
        headers = [(name, value) for name, value in reply.headers if name not in _NOT_PASSED_BACK]
        headers += [*trace, (b"x-duration-seconds", took)]
        if reply.complete:
            fallback = exchange.header(b"content-type") or b"text/plain"
            content_type = next((value for name, value in headers if name == b"content-type"), fallback)
            rest = [h for h in headers if h[0] not in (b"content-type", b"content-length")]
            if exchange.method == "HEAD":
                exchange.begin(reply.status, headers)
                exchange.end()
            else:
                exchange.respond(reply.status, reply.body, content_type, rest)
            return
        try:
            exchange.begin(reply.status, headers)
            async for chunk in reply.chunks():
                exchange.write(chunk)
                await exchange.writable()
            exchange.end()
        finally:
            reply.close()

    @staticmethod
    def _fail(exchange: Exchange, status: int, sentence: str, trace: list[Header]) -> None:
        """A clear error while nothing was sent; a cut connection once half an answer is out."""
        if exchange.status:
            exchange.abort()
        else:
            exchange.text(status, sentence, [*trace, _INTERNAL])


def _request_headers(exchange: Exchange, trace: list[Header]) -> list[Header]:
    dropped = _HOP_BY_HOP | _TRACE | {b"content-length"}
    named = exchange.header(b"connection")
    if named is not None:
        dropped |= {token.strip().lower() for token in named.split(b",")}
    headers = [(name, value) for name, value in exchange.headers if name not in dropped]
    have = {name for name, _ in headers}
    if b"x-forwarded-host" not in have and (host := exchange.header(b"host")) is not None:
        headers.append((b"x-forwarded-host", host))
    if b"x-forwarded-for" not in have:
        headers.append((b"x-forwarded-for", exchange.peer.encode()))
    return headers + trace
