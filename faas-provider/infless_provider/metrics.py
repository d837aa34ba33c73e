"""What the provider reports: OpenFaaS gateway's names where they exist, our own start with `infless_`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from infless_core.lifecycle import Phase
from infless_core.model import Configuration
from infless_provider.async_books import AsyncStats
from infless_provider.functions import FunctionState

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""Prometheus's default buckets, as the gateway has them."""


class Metrics:
    """One registry; gauges are filled when somebody asks."""

    def __init__(self) -> None:
        # A gauge beside each counter, which the gateway does not have.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        by_code = ("function_name", "code")
        self._total = Counter(
            "gateway_function_invocation", "Invocations answered.", by_code, registry=self.registry
        )  # fmt: skip
        self._started = Counter(
            "gateway_function_invocation_started", "Invocations begun.", ("function_name",), registry=self.registry
        )
        self._seconds = Histogram(
            "gateway_functions_seconds", "Arrival to answer.", by_code, buckets=_SECONDS, registry=self.registry
        )
        self._count = Gauge("gateway_service_count", "Wanted instances.", ("function_name",), registry=self.registry)
        self._ready = Gauge(
            "infless_instances", "Instances by phase.", ("function_name", "phase"), registry=self.registry
        )
        self._rate = Gauge(
            "infless_arrival_rate_rps", "Arriving requests per second.", ("function_name",), registry=self.registry
        )
        self._target = Gauge(
            "infless_latency_target_seconds", "The stated target.", ("function_name",), registry=self.registry
        )
        self._within = Counter(
            "infless_within_target", "Answers within the latency target.", ("function_name",), registry=self.registry
        )
        self._factor = Gauge(
            "infless_profile_factor",
            "Execution time now over the one that was measured.",
            ("function_name", "batch", "cpu_cores", "gpu_percent"),
            registry=self.registry,
        )
        self._drift = Counter(
            "infless_profile_drift", "Changes of regime in execution times.", ("function_name",), registry=self.registry
        )
        self._source_up = Gauge(
            "infless_profile_source_up",
            "1: execution times could be read there last time.",
            ("source",),
            registry=self.registry,
        )
        self._control = Histogram(
            "provider_http_request_duration_seconds",
            "Control calls, arrival to answer.",
            ("code", "method", "path"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._control_total = Counter(
            "provider_http_requests", "Control calls answered.", ("code", "method", "path"), registry=self.registry
        )
        self._queue = _QueueCollector()
        self.registry.register(self._queue)
        # To look a child up by its labels takes a microsecond or two each.
        self._started_of: dict[str, Counter] = {}
        self._answered_of: dict[tuple[str, int], tuple[Counter, Histogram, Counter]] = {}

    def started(self, function: str) -> None:
        """Count a request that has come."""
        child = self._started_of.get(function)
        if child is None:
            child = self._started_of[function] = self._started.labels(function)
        child.inc()

    def answered(self, function: str, status: int, duration_s: float, target_s: float) -> None:
        """Count an answer."""
        children = self._answered_of.get((function, status))
        if children is None:
            code = str(status)
            children = (
                self._total.labels(function, code), self._seconds.labels(function, code), self._within.labels(function),
            )  # fmt: skip
            self._answered_of[(function, status)] = children
        total, seconds, within = children
        total.inc()
        seconds.observe(duration_s)
        if duration_s <= target_s and status < 500:
            within.inc()

    def control(self, status: int, method: str, path: str, duration_s: float) -> None:
        """Count an answer of the control plane (names as openfaas/faas-provider has them). Any thread may call it."""
        self._control_total.labels(str(status), method, path).inc()
        self._control.labels(str(status), method, path).observe(duration_s)

    def profiled(self, factors: Mapping[str, Mapping[Configuration, float]]) -> None:
        """Keep how far every function's execution times are from what was measured."""
        self._factor.clear()
        for key, by_configuration in factors.items():
            for given, factor in by_configuration.items():
                self._factor.labels(key, str(given.batch), str(given.cpu_cores), str(given.gpu_percent)).set(factor)

    def drifts(self, function: str, count: int) -> None:
        """Count drifts; none at all makes the counter, so that the first one is a step that rules can see."""
        self._drift.labels(function).inc(count)

    def source_up(self, source: str, up: bool) -> None:
        """Keep whether a source of execution times answers."""
        self._source_up.labels(source).set(up)

    def text(self, functions: Mapping[str, FunctionState], queue: AsyncStats, now_s: float) -> bytes:
        """Prometheus text format."""
        self._queue.stats = queue
        for gauge in (self._count, self._ready, self._rate, self._target):
            gauge.clear()
        for key, function in functions.items():
            self._count.labels(key).set(function.wanted(now_s))
            self._rate.labels(key).set(function.estimate.rate_rps)
            self._target.labels(key).set(function.wishes.latency_target_s)
            for phase in (Phase.STARTING, Phase.READY, Phase.DRAINING):
                count = sum(1 for i in function.instances.values() if i.phase is phase)
                self._ready.labels(key, phase.value).set(count)
        return generate_latest(self.registry)


class _QueueCollector(Collector):
    """The books of the queue, as they were last told."""

    def __init__(self) -> None:
        self.stats = AsyncStats(functions=(), in_flight=0, callbacks_in_flight=0)

    def collect(self) -> Iterator[Metric]:
        """As families of Prometheus."""
        by_outcome, by_function = ("function_name", "outcome"), ("function_name",)
        calls = CounterMetricFamily("infless_async_calls", "Queued calls by what became of them.", labels=by_outcome)
        callbacks = CounterMetricFamily("infless_async_callbacks", "Results sent, or given up.", labels=by_outcome)
        waiting = GaugeMetricFamily("infless_async_waiting", "Queued calls that are not done.", labels=by_function)
        size = GaugeMetricFamily("infless_async_waiting_bytes", "Bodies of those.", labels=by_function)
        age = GaugeMetricFamily("infless_async_oldest_age_seconds", "Age of the oldest of those.", labels=by_function)
        for one in self.stats.functions:
            for outcome in ("accepted", "done", "failed", "cancelled", "retried", "refused"):
                calls.add_metric([one.function, outcome], getattr(one, outcome))
            callbacks.add_metric([one.function, "ok"], one.callbacks_ok)
            callbacks.add_metric([one.function, "failed"], one.callbacks_failed)
            waiting.add_metric([one.function], one.waiting)
            size.add_metric([one.function], one.waiting_bytes)
            age.add_metric([one.function], one.oldest_age_s)
        yield from (calls, callbacks, waiting, size, age)
        yield GaugeMetricFamily("infless_async_in_flight", "Queued calls that run.", value=self.stats.in_flight)
        yield GaugeMetricFamily(
            "infless_async_callbacks_in_flight", "Results on their way.", value=self.stats.callbacks_in_flight
        )
