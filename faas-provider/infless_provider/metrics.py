"""What the provider reports: OpenFaaS gateway's names where they exist, our own start with `infless_`."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

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

from infless_core.clock import Clock
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
        self._collector = _Collector()
        self.registry.register(self._collector)
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

    def forget(self, function: str) -> None:
        """Drop what was counted of a function that is gone: callers could make it grow for ever."""
        self._started_of.pop(function, None)
        for key in [key for key in self._answered_of if key[0] == function]:
            del self._answered_of[key]
        for metric in (self._total, self._started, self._seconds, self._within, self._factor, self._drift):
            for labels in [labels for labels in metric._metrics if labels[0] == function]:
                metric.remove(*labels)

    def text(self, now: Sample) -> bytes:
        """Prometheus text format. Takes tenths of a second for a thousand functions: not for the event loop.

        One thread at a time may ask; see `SharedText`.
        """
        self._collector.now = now
        return generate_latest(self.registry)


class SharedText:
    """A text that many may ask for at once, and that takes long to make: it is made once for all who wait for it.

    Nobody gets one that was begun before they came, unless it took `SLOW_S` or longer (that of a thousand functions):
    such a one is kept for `KEPT_S`, so that a crowd does not have it made all the time.

    Args:
        make: makes it; called in the thread of one who asks.
        clock: tells how long that took.
    """

    SLOW_S = 0.1
    KEPT_S = 1.0

    def __init__(self, make: Callable[[], bytes], clock: Clock) -> None:
        self._make = make
        self._clock = clock
        self._making = threading.Lock()
        self._text = b""
        self._begun_s = self._kept_until_s = -math.inf

    def get(self) -> bytes:
        """The text. Any thread may ask; waits for one that is being made. What `make` raises is raised."""
        came_s = self._clock.now_s()
        with self._making:
            begun_s = self._clock.now_s()
            if self._begun_s < came_s and self._kept_until_s <= begun_s:
                self._text = self._make()
                ended_s = self._clock.now_s()
                self._begun_s = begun_s
                self._kept_until_s = ended_s + self.KEPT_S if ended_s - begun_s >= self.SLOW_S else begun_s
            return self._text


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionSample:
    """What is told of a function."""

    key: str
    wanted: int
    rate_rps: float
    target_s: float
    phases: tuple[int, int, int]
    """Instances that start, serve, drain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What only the event loop knows, at one moment."""

    functions: tuple[FunctionSample, ...] = ()
    queue: AsyncStats = field(default_factory=lambda: AsyncStats(functions=(), in_flight=0, callbacks_in_flight=0))
    turned_away: int = 0
    """Connections that found no room."""


def sample(functions: Iterable[FunctionState], queue: AsyncStats, turned_away: int, now_s: float) -> Sample:
    """Look at everything; quick."""
    found = []
    for function in functions:
        phases = [i.phase for i in function.instances.values()]
        found.append(
            FunctionSample(
                key=function.key,
                wanted=function.wanted(now_s),
                rate_rps=function.estimate.rate_rps,
                target_s=function.wishes.latency_target_s,
                phases=(phases.count(Phase.STARTING), phases.count(Phase.READY), phases.count(Phase.DRAINING)),
            )
        )
    return Sample(functions=tuple(found), queue=queue, turned_away=turned_away)


class _Collector(Collector):
    """Gauges of functions, and the books of the queue."""

    def __init__(self) -> None:
        self.now = Sample()

    def collect(self) -> Iterator[Metric]:
        """As families of Prometheus."""
        yield from self._functions()
        yield from self._queue()
        yield CounterMetricFamily(
            "infless_connections_turned_away", "Connections that found no room.", value=self.now.turned_away
        )

    def _functions(self) -> Iterator[Metric]:
        by_function = ("function_name",)
        count = GaugeMetricFamily("gateway_service_count", "Wanted instances.", labels=by_function)
        phases = GaugeMetricFamily("infless_instances", "Instances by phase.", labels=("function_name", "phase"))
        rate = GaugeMetricFamily("infless_arrival_rate_rps", "Arriving requests per second.", labels=by_function)
        target = GaugeMetricFamily("infless_latency_target_seconds", "The stated target.", labels=by_function)
        for one in self.now.functions:
            count.add_metric([one.key], one.wanted)
            rate.add_metric([one.key], one.rate_rps)
            target.add_metric([one.key], one.target_s)
            for phase, instances in zip((Phase.STARTING, Phase.READY, Phase.DRAINING), one.phases, strict=True):
                phases.add_metric([one.key, phase.value], instances)
        yield from (count, phases, rate, target)

    def _queue(self) -> Iterator[Metric]:
        by_outcome, by_function = ("function_name", "outcome"), ("function_name",)
        calls = CounterMetricFamily("infless_async_calls", "Queued calls by what became of them.", labels=by_outcome)
        callbacks = CounterMetricFamily("infless_async_callbacks", "Results sent, or given up.", labels=by_outcome)
        waiting = GaugeMetricFamily("infless_async_waiting", "Queued calls that are not done.", labels=by_function)
        size = GaugeMetricFamily("infless_async_waiting_bytes", "Bodies of those.", labels=by_function)
        age = GaugeMetricFamily("infless_async_oldest_age_seconds", "Age of the oldest of those.", labels=by_function)
        for one in self.now.queue.functions:
            for outcome in ("accepted", "done", "failed", "cancelled", "retried", "refused"):
                calls.add_metric([one.function, outcome], getattr(one, outcome))
            callbacks.add_metric([one.function, "ok"], one.callbacks_ok)
            callbacks.add_metric([one.function, "failed"], one.callbacks_failed)
            waiting.add_metric([one.function], one.waiting)
            size.add_metric([one.function], one.waiting_bytes)
            age.add_metric([one.function], one.oldest_age_s)
        yield from (calls, callbacks, waiting, size, age)
        yield GaugeMetricFamily("infless_async_in_flight", "Queued calls that run.", value=self.now.queue.in_flight)
        yield GaugeMetricFamily(
            "infless_async_callbacks_in_flight", "Results on their way.", value=self.now.queue.callbacks_in_flight
        )
