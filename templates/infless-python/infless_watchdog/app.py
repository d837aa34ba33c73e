"""The instance's HTTP edge: every route on one screen, and how outcomes become answers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import socket
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from infless_watchdog import oip_about
from infless_watchdog.calls import Call, Head, Model, Reply
from infless_watchdog.exchange import Exchange
from infless_watchdog.handlers import load_model
from infless_watchdog.http import Edge, Limits
from infless_watchdog.isolation import ItemError, Refusal
from infless_watchdog.live_config import read_live_config
from infless_watchdog.metrics import Metrics
from infless_watchdog.pipeline import Pipeline
from infless_watchdog.settings import Settings

if TYPE_CHECKING:
    from infless_watchdog.grpc_edge import GrpcEdge

LOG = logging.getLogger("infless.watchdog")
_RETRY = [(b"retry-after", b"1")]
_REFUSED = [*_RETRY, (b"x-infless-refused", b"1")]
"""Tells the provider that it may ask another instance: the status alone may be a handler's own word."""
_OVER = object()


class Watchdog:
    """One instance: loads its model, serves requests in batches, reports, drains. A `worker.Service`."""

    def __init__(self, settings: Settings, load: Callable[[Settings], Model] = load_model) -> None:
        self.settings = settings
        self.metrics = Metrics(settings.cpu_cores, settings.gpu_percent)
        self.pipeline: Pipeline | None = None
        """None until the model is loaded and warm."""
        self.accepting = True
        self._load = load
        limits = Limits(
            body_bytes=settings.body_max_bytes,
            read_timeout_s=settings.read_timeout_s,
            write_timeout_s=settings.write_timeout_s,
        )
        self._edge = Edge(self.route, limits, self._refused)
        self._metrics_edge = Edge(self.route_metrics, Limits(body_bytes=64 * 1024))
        self._grpc: GrpcEdge | None = None
        self._threads = ThreadPoolExecutor(max_workers=64, thread_name_prefix="stream")
        self._tasks: set[asyncio.Task[None]] = set()
        self._traced_s = float("-inf")

    # life ------------------------------------------------------------------------------------------------------------

    async def start(self, sockets: list[socket.socket]) -> None:
        """Answer probes at once, requests when the model is loaded and warm."""
        await self._edge.listen(sockets[0])
        await self._metrics_edge.listen(sockets[1])
        if self.settings.grpc_port:
            from infless_watchdog.grpc_edge import GrpcEdge  # an extra, and slow to import

            self._grpc = GrpcEdge(self)
            await self._grpc.start(self.settings.grpc_port)
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        model = await loop.run_in_executor(self._threads, self._load, self.settings)
        pipeline = Pipeline(model, self.settings, self.metrics, self._replace_me)
        await loop.run_in_executor(self._threads, pipeline.warm_up)
        pipeline.begin()
        self.pipeline = pipeline
        what, took_s = f"{model.kind} on {model.device}", loop.time() - started_s
        LOG.info("ready: %s, batch up to %d, %.2f s to load and warm", what, pipeline.batcher.policy.batch_max, took_s)

    async def stop(self, *, graceful: bool) -> None:
        """Not ready, still serving for one health interval, then drain (of-watchdog's order)."""
        self.accepting = False
        if graceful:
            await asyncio.sleep(self.settings.healthcheck_interval_s)
            if self.pipeline is not None:
                self.pipeline.batcher.drain()
            if not await self._drain(self.settings.write_timeout_s):
                LOG.warning("%d requests were not answered within write_timeout", self.metrics.in_flight)
        elif self._grpc is not None:
            await self._grpc.stop(0)
        self._edge.close()
        self._metrics_edge.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self.pipeline is not None:
            self.pipeline.close()

    async def _drain(self, limit_s: float) -> bool:
        """Let every answer go out."""
        if self._grpc is None:
            return await self._edge.drain(limit_s)
        drained, _ = await asyncio.gather(self._edge.drain(limit_s), self._grpc.stop(limit_s))
        return drained

    def _replace_me(self) -> None:
        """A hanging handler holds its thread for ever: end the process, gunicorn starts another."""
        LOG.error("the handler hangs; replacing this worker")
        asyncio.get_running_loop().call_later(0.05, os._exit, 1)

    # routes ----------------------------------------------------------------------------------------------------------

    def route(self, exchange: Exchange) -> None:
        """Port 8080."""
        path = exchange.head.path
        if path == "/":
            self._invoke(exchange)
        elif path == "/_/health":
            self._health(exchange)
        elif path == "/_/ready":
            self._ready(exchange)
        elif path == "/openapi.json" and exchange.head.method in ("GET", "HEAD") and self.pipeline is not None:
            exchange.json(200, self.pipeline.model.openapi())
        elif path.startswith("/v2/") or path == "/v2":
            self._inference_protocol(exchange)
        else:
            self._invoke(exchange)

    def route_metrics(self, exchange: Exchange) -> None:
        """Port 8081: not for users' requests."""
        if exchange.path == "/metrics" and exchange.method in ("GET", "HEAD"):
            exchange.respond(200, self._metrics_text(), b"text/plain; version=0.0.4; charset=utf-8")
        elif exchange.path == "/_/config" and exchange.method == "PUT":
            self._reconfigure(exchange)
        else:
            exchange.text(404, "here are GET /metrics and PUT /_/config")

    def _health(self, exchange: Exchange) -> None:
        if exchange.method not in ("GET", "HEAD"):
            exchange.text(405, "use GET")
        elif self.accepting:
            exchange.text(200, "OK")
        else:
            exchange.text(503, "stopping")

    def _ready(self, exchange: Exchange) -> None:
        refusal = self._refusal()
        if not self.accepting:
            exchange.text(503, "stopping")
        elif refusal is not None:
            exchange.text(refusal.status, str(refusal))
        elif self.settings.ready_path and self.pipeline is not None and self.pipeline.model.kind == "handle":
            path, _, query = self.settings.ready_path.partition("?")
            exchange.head = Head(exchange.method, path, query)
            self._invoke(exchange)
        else:
            exchange.text(200, "ready")

    def _inference_protocol(self, exchange: Exchange) -> None:
        """`/v2/...` of the Open Inference Protocol, with Triton's statistics, configuration and index."""
        _, *parts = exchange.path.strip("/").split("/")
        if parts[2:3] == ["versions"]:  # there is one version; Triton's clients may name it
            parts = parts[:2] + parts[4:]
        name = self.settings.function_name
        ready = self.accepting and self._refusal() is None
        if parts == ["health", "live"]:
            exchange.json(200 if self.accepting else 503, {"live": self.accepting})
        elif parts == ["health", "ready"]:
            exchange.json(200 if ready else 503, {"ready": ready})
        elif parts == ["models", name, "ready"]:
            exchange.json(200 if ready else 503, {"name": name, "ready": ready})
        elif parts == ["models", name, "infer"]:
            self._invoke(exchange)
        elif parts[:1] == ["models"] and parts[1:2] not in ([], [name], ["stats"]):
            exchange.json(404, {"error": f"the model is {name}, not {parts[1]}"})
        elif (describe := self._descriptions().get(tuple(parts))) is None:
            exchange.json(404, {"error": f"{exchange.path} is not a route of the inference protocol"})
        elif self.pipeline is None:
            self._answer_fault(exchange, _loading())
        else:
            exchange.json(200, describe(self.pipeline))

    def _descriptions(self) -> dict[tuple[str, ...], Callable[[Pipeline], Any]]:
        """What the protocol tells of the server and its model, by route."""
        name = self.settings.function_name
        return {
            (): lambda _: oip_about.server_metadata(),
            ("repository", "index"): lambda pipeline: oip_about.repository_index(name, pipeline.refusal() is None),
            ("models", name): lambda pipeline: pipeline.model.metadata(),
            ("models", name, "config"): lambda pipeline: pipeline.config(),
            ("models", name, "stats"): lambda pipeline: pipeline.statistics(),
            ("models", "stats"): lambda pipeline: pipeline.statistics(),
        }

    # one request -----------------------------------------------------------------------------------------------------

    def submit(self, call: Call, deliver: Callable[[Call, Any], None]) -> None:
        """Take a request from any edge; `deliver(call, reply or fault)` follows once, unless it is withdrawn."""
        if self.pipeline is None:
            self.metrics.refused(503, call.head.method)
            deliver(call, _loading())
        else:
            self.pipeline.submit(call, deliver)

    def _refusal(self) -> ItemError | None:
        return _loading() if self.pipeline is None else self.pipeline.refusal()

    def _invoke(self, exchange: Exchange) -> None:
        if exchange.head.content_encoding is not None:
            from infless_watchdog.codings import decoded  # few need it, and a start is to be short

            try:
                exchange.body = decoded(exchange, self.settings.body_max_bytes)
            except ItemError as fault:
                self._refused_with(exchange, fault)
                return
            exchange.head = exchange.head.without(b"content-encoding", b"content-length")
        self.submit(exchange, self._deliver)
        if exchange.live:
            exchange.on_gone = exchange.withdraw

    def _deliver(self, call: Call, outcome: Reply | ItemError) -> None:
        exchange: Exchange = call  # type: ignore[assignment] # it was submitted as one
        if isinstance(outcome, ItemError):
            self._answer_fault(exchange, outcome)
        elif outcome.chunks is not None:
            self._run(self._stream(exchange, outcome, outcome.chunks))
        else:
            if len(outcome.body) >= self.settings.compress_min_bytes > 0:
                from infless_watchdog.codings import compressed

                outcome = compressed(outcome, exchange, self.settings.compress_min_bytes)
            exchange.respond(outcome.status, outcome.body, outcome.content_type, outcome.headers)

    async def _stream(self, exchange: Exchange, reply: Reply, chunks: Iterator[bytes]) -> None:
        """Send the pieces as they come, no faster than the client takes them."""
        loop = asyncio.get_running_loop()
        limit_s = None if math.isinf(self.settings.exec_timeout_s) else self.settings.exec_timeout_s
        exchange.begin(reply.status, [(b"content-type", reply.content_type), *reply.headers])
        try:
            while not exchange.client_gone:
                async with asyncio.timeout(limit_s):
                    chunk: Any = await loop.run_in_executor(self._threads, next, chunks, _OVER)
                if chunk is _OVER:
                    exchange.end()
                    return
                exchange.write(chunk)
                await exchange.writable()
        except Exception as error:  # noqa: BLE001 - the user's generator; the status is sent already
            what = "took longer than exec_timeout" if isinstance(error, TimeoutError) else f"failed: {error!r}"
            LOG.warning("%s %s: a streamed answer %s", exchange.method, exchange.path, what)
            exchange.abort()
        finally:
            close = getattr(chunks, "close", None)
            if close is not None:
                loop.run_in_executor(self._threads, _quietly, close)

    def _answer_fault(self, exchange: Exchange, fault: ItemError) -> None:
        if fault.status in (500, 504):
            self.log_fault(exchange, fault)
        headers = _REFUSED if isinstance(fault, Refusal) else _RETRY if fault.status in (429, 503) else ()
        if exchange.path.startswith("/v2/"):
            exchange.json(fault.status, {"error": str(fault)}, headers)
        else:
            exchange.text(fault.status, str(fault), headers)

    def log_fault(self, call: Call, fault: ItemError) -> None:
        """One line each, and once a second where in the handler it came from."""
        now_s = time.monotonic()
        traced = fault.__cause__ if now_s - self._traced_s >= 1.0 else None
        self._traced_s = now_s if traced is not None else self._traced_s
        LOG.warning("%s %s: %s", call.head.method, call.head.path, fault, exc_info=traced)

    def _refused_with(self, exchange: Exchange, fault: ItemError) -> None:
        self._answer_fault(exchange, fault)
        self._refused(exchange)

    def _refused(self, exchange: Exchange) -> None:
        self.metrics.refused(exchange.status, exchange.method)

    # the provider's side ---------------------------------------------------------------------------------------------

    def _metrics_text(self) -> bytes:
        if self.pipeline is not None:
            self.metrics.queue_length = self.pipeline.batcher.waiting
            self.metrics.process_restarts = getattr(self.pipeline.model, "restarts", 0)
        return self.metrics.text()

    def _reconfigure(self, exchange: Exchange) -> None:
        """The provider's newest wishes, applied without a restart; other threads from the next run on."""
        pipeline = self.pipeline
        if pipeline is None:
            self._answer_fault(exchange, _loading())
            return
        try:
            wish = read_live_config(exchange.body)
        except ValueError as fault:
            exchange.text(400, str(fault))
            return
        policy = pipeline.batcher.policy
        wait_max_s = policy.wait_max_s if wish.wait_max_s is None else wish.wait_max_s
        pipeline.reconfigure(
            replace(policy, batch_max=wish.batch_max, latency_target_s=wish.latency_target_s, wait_max_s=wait_max_s)
        )
        answer = {"batch_max": pipeline.batcher.policy.batch_max, "latency_target_s": wish.latency_target_s}
        if wish.cpu_cores is None:
            exchange.json(200, answer)
        else:
            self._run(self._change_cores(exchange, answer, pipeline, wish.cpu_cores))

    async def _change_cores(self, exchange: Exchange, answer: dict[str, Any], pipeline: Pipeline, cores: int) -> None:
        try:
            await pipeline.set_cpu_cores(cores)
        except Exception as error:  # noqa: BLE001 - the user's code or the runtime's; the old threads stay
            exchange.text(500, f"cpu_cores could not be changed to {cores}: {error}")
        else:
            self.metrics.given(cores)
            exchange.json(200, {**answer, "cpu_cores": cores})

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        """As a task that is kept until it ends: the loop itself holds tasks only weakly."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _loading() -> Refusal:
    return Refusal(503, "the model is still loading")


def _quietly(close: Callable[[], None]) -> None:
    """End a generator that nobody reads any more; it may be running still, or raise."""
    with contextlib.suppress(Exception):
        close()
