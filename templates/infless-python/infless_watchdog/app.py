"""The instance's HTTP edge: every route on one screen, and the way of one request through queue and model."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from infless_watchdog.batcher import Batcher, Ticket
from infless_watchdog.batching import BatchPolicy
from infless_watchdog.calls import Call, Head, Model
from infless_watchdog.exchange import Exchange, Header
from infless_watchdog.handlers import load_model
from infless_watchdog.http import Edge, Limits
from infless_watchdog.isolation import ItemError, run_isolated
from infless_watchdog.metrics import Metrics
from infless_watchdog.settings import Settings

LOG = logging.getLogger("infless.watchdog")
TARGET_MAX_S = 3600.0
"""A latency target above an hour is a slip of units."""


class Watchdog:
    """One instance: loads its model, serves requests in batches, reports, drains. A `worker.Service`."""

    def __init__(self, settings: Settings, load: Callable[[Settings], Model] = load_model) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.model: Model | None = None
        self.batcher: Batcher | None = None
        self.accepting = True
        self.in_flight = 0
        self._load = load
        limits = Limits(
            body_bytes=settings.body_max_bytes,
            read_timeout_s=settings.read_timeout_s,
            write_timeout_s=settings.write_timeout_s,
        )
        self._edge = Edge(self.route, limits, self._refused)
        self._metrics_edge = Edge(self.route_metrics, Limits(body_bytes=64 * 1024))
        self._loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="load")
        self._traced_s = float("-inf")

    # life ------------------------------------------------------------------------------------------------------------

    async def start(self, sockets: list[socket.socket]) -> None:
        """Answer probes at once, requests when the model is loaded and warm."""
        await self._edge.listen(sockets[0])
        await self._metrics_edge.listen(sockets[1])
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        model = await loop.run_in_executor(self._loader, self._load, self.settings)
        policy = BatchPolicy(
            batch_max=self.settings.batch_max if model.batched else 1,
            latency_target_s=self.settings.latency_target_s,
            keep_up_load=self.settings.keep_up_load,
        )
        batcher = Batcher(
            model.predict, policy, self.metrics, exec_timeout_s=self.settings.exec_timeout_s, on_hang=self._replace_me
        )
        await loop.run_in_executor(self._loader, self._warm_up, model, batcher)
        # Warming up may have shown that the model cannot batch.
        batch_max = policy.batch_max if model.batched else 1
        batcher.reconfigure(batch_max=batch_max, latency_target_s=policy.latency_target_s)
        self.model, self.batcher = model, batcher
        LOG.info("ready: %s, batch up to %d, %.2f s to load and warm", model.kind, batch_max, loop.time() - started_s)

    def _warm_up(self, model: Model, batcher: Batcher) -> None:
        """Run the smallest and the largest batch: the first user must not pay for lazy initialisation."""
        try:
            example = model.example()
        except Exception as error:  # noqa: BLE001 - nobody's request
            LOG.warning("example() in handler.py raised %s: %s", type(error).__name__, error)
            return
        if example is None:
            return
        for size in sorted({1, batcher.policy.batch_max}):
            for _ in range(2):
                started_s = time.perf_counter()
                answers = run_isolated(model.predict, [example] * size)
                exec_s = time.perf_counter() - started_s
            failed = next((answer for answer in answers if isinstance(answer, ItemError)), None)
            if failed is not None:
                LOG.warning("the handler fails on its own example() in a batch of %d: %s", size, failed)
            else:
                batcher.times.observe(size, exec_s)

    async def stop(self, *, graceful: bool) -> None:
        """Not ready, still serving for one health interval, then drain (of-watchdog's order)."""
        self.accepting = False
        if graceful:
            await asyncio.sleep(self.settings.healthcheck_interval_s)
            if self.batcher is not None:
                self.batcher.drain()
            if not await self._edge.drain(self.settings.write_timeout_s):
                LOG.warning("%d requests were not answered within write_timeout", self.in_flight)
        self._edge.close()
        self._metrics_edge.close()
        self._loader.shutdown(wait=False, cancel_futures=True)
        if self.batcher is not None:
            self.batcher.close()
        if self.model is not None:
            try:
                self.model.close()
            except Exception:
                LOG.exception("close() in handler.py failed")

    def _replace_me(self) -> None:
        """A hanging handler holds its thread for ever: end the process, gunicorn starts another."""
        LOG.error("the handler hangs; replacing this worker")
        asyncio.get_running_loop().call_later(0.05, os._exit, 1)

    # routes ----------------------------------------------------------------------------------------------------------

    def route(self, exchange: Exchange) -> None:
        """Port 8080."""
        path = exchange.path
        if path == "/_/health":
            self._health(exchange)
        elif path == "/_/ready":
            self._ready(exchange)
        elif path.startswith("/v2"):
            self._inference_protocol(exchange)
        else:
            self._invoke(exchange)

    def route_metrics(self, exchange: Exchange) -> None:
        """Port 8081: not for users' requests."""
        if exchange.path == "/metrics" and exchange.method in ("GET", "HEAD"):
            exchange.respond(200, self.metrics.text(), b"text/plain; version=0.0.4; charset=utf-8")
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
        if not self.accepting:
            exchange.text(503, "stopping")
        elif self.batcher is None:
            exchange.text(503, "the model is still loading")
        elif 0 < self.settings.max_inflight <= self.in_flight:
            exchange.text(429, f"max_inflight, {self.settings.max_inflight}, is reached")
        else:
            exchange.text(200, "ready")

    def _inference_protocol(self, exchange: Exchange) -> None:
        """`/v2/health/...`, `/v2/models/NAME[/ready|/infer]` (kserve/open-inference-protocol)."""
        parts = exchange.path.strip("/").split("/")
        name = self.settings.function_name
        if parts[3:4] == ["versions"]:  # there is one version; Triton's clients may name it
            parts = parts[:3] + parts[5:]
        if parts[1:] in (["health", "live"], ["health", "ready"]):
            self._ready(exchange) if parts[-1] == "ready" else self._health(exchange)
        elif parts == ["v2"]:
            exchange.json(200, {"name": "infless", "version": "2", "extensions": ["binary_tensor_data"]})
        elif parts[:2] != ["v2", "models"] or len(parts) < 3:
            exchange.json(404, {"error": f"{exchange.path} is not a route of the inference protocol"})
        elif parts[2] != name:
            exchange.json(404, {"error": f"the model is {name}, not {parts[2]}"})
        elif parts[3:] == ["infer"]:
            self._invoke(exchange)
        elif parts[3:] == ["ready"]:
            self._ready(exchange)
        elif len(parts) == 3 and (metadata := getattr(self.model, "metadata", None)) is not None:
            exchange.json(200, metadata())
        else:
            exchange.json(404, {"error": f"{exchange.path} is not a route of this model"})

    # one request -----------------------------------------------------------------------------------------------------

    def _invoke(self, exchange: Exchange) -> None:
        started_s = time.monotonic()
        refusal = self._refusal()
        if refusal is not None:
            self._answer_fault(exchange, refusal, [(b"retry-after", b"1")])
            self.metrics.answered(refusal.status, exchange.method, 0.0)
            return
        assert self.model is not None
        assert self.batcher is not None
        call = _call(exchange)
        try:
            item = self.model.decode(call)
        except Exception as error:  # noqa: BLE001 - answered, as every request is
            fault = error if isinstance(error, ItemError) else _internal("the request cannot be read", error)
            self._answer_fault(exchange, fault)
            self.metrics.answered(fault.status, exchange.method, time.monotonic() - started_s)
            return
        self._count(+1)

        def deliver(answer: Any) -> None:
            self._count(-1)
            self._write(exchange, answer, item, call)
            self.metrics.answered(exchange.status, exchange.method, time.monotonic() - started_s)

        ticket = self.batcher.submit(item, deliver)
        exchange.on_gone = lambda: self._gone(ticket)

    def _refusal(self) -> ItemError | None:
        if self.batcher is None:
            return ItemError(503, "the model is still loading")
        if 0 < self.settings.max_inflight <= self.in_flight:
            return ItemError(429, f"max_inflight, {self.settings.max_inflight}, is reached")
        if self.batcher.waiting >= self.settings.queue_max:
            return ItemError(503, f"{self.settings.queue_max} requests are waiting already")
        return None

    def _write(self, exchange: Exchange, answer: Any, item: Any, call: Call) -> None:
        assert self.model is not None
        if isinstance(answer, ItemError):
            self._answer_fault(exchange, answer)
            return
        try:
            reply = self.model.encode(answer, item, call)
        except ItemError as fault:
            self._answer_fault(exchange, fault)
        except Exception as error:  # noqa: BLE001 - an answer that cannot be written is this request's fault alone
            self._answer_fault(exchange, _internal("the answer cannot be written", error))
        else:
            exchange.respond(reply.status, reply.body, reply.content_type, reply.headers)

    def _answer_fault(self, exchange: Exchange, fault: ItemError, headers: Sequence[Header] = ()) -> None:
        if fault.status in (500, 504):
            self._log_fault(exchange, fault)
        if exchange.path.startswith("/v2"):
            exchange.json(fault.status, {"error": str(fault)}, headers)
        else:
            exchange.text(fault.status, str(fault), headers)

    def _log_fault(self, exchange: Exchange, fault: ItemError) -> None:
        """One line each, and once a second where in the handler it came from."""
        now_s = time.monotonic()
        traced = fault.__cause__ if now_s - self._traced_s >= 1.0 else None
        self._traced_s = now_s if traced is not None else self._traced_s
        LOG.warning("%s %s: %s", exchange.method, exchange.path, fault, exc_info=traced)

    def _gone(self, ticket: Ticket) -> None:
        """The client left: its item is dropped or its answer discarded; its batch-mates never notice."""
        if ticket.live:
            ticket.live = False
            self.metrics.gone.inc()
            self._count(-1)

    def _count(self, change: int) -> None:
        self.in_flight += change
        self.metrics.in_flight.set(self.in_flight)

    def _refused(self, exchange: Exchange) -> None:
        self.metrics.answered(exchange.status, exchange.method, 0.0)

    def _reconfigure(self, exchange: Exchange) -> None:
        """`{"batch_max": 8, "latency_target_s": 0.2}` from the provider, applied without a restart."""
        try:
            wish = json.loads(exchange.body)
            batch_max, target_s = wish["batch_max"], wish["latency_target_s"]
        except (ValueError, KeyError, TypeError, RecursionError) as fault:
            exchange.text(400, f"send batch_max and latency_target_s as JSON: {fault!r}")
            return
        if self.batcher is None or self.model is None:
            exchange.text(503, "the model is still loading")
        elif type(batch_max) is not int or batch_max < 1:
            exchange.text(400, f"batch_max is a whole number of at least 1, not {batch_max!r}")
        elif type(target_s) not in (int, float) or not 0 < target_s <= TARGET_MAX_S:
            exchange.text(400, f"latency_target_s is above 0 and at most {TARGET_MAX_S:g}, not {target_s!r}")
        else:
            self.batcher.reconfigure(batch_max=batch_max if self.model.batched else 1, latency_target_s=target_s)
            exchange.json(200, {"batch_max": self.batcher.policy.batch_max, "latency_target_s": target_s})


def _internal(what: str, error: Exception) -> ItemError:
    fault = ItemError(500, f"{what}: {error}")
    fault.__cause__ = error
    return fault


def _call(exchange: Exchange) -> Call:
    head = Head(exchange.method, exchange.path, exchange.query, tuple(exchange.headers))
    return Call(head, bytes(exchange.body))
