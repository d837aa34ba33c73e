"""What an instance reports: of-watchdog's names for requests, our own for batches.

Counting costs an addition: plain numbers become Prometheus's metrics only when it asks.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from infless_watchdog.oip_about import Counts

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from infless_watchdog.calls import Call

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_EXEC_SECONDS = tuple(
    seconds
    for power in range(-4, 2)
    for step in (1, 1.5, 2, 3, 5, 7)
    if 0.0005 <= (seconds := float(f"{step}e{power}")) <= 20
)
"""From 0.5 ms to 20 s, six to a decade: a provider that learns from them must see by how much executions differ."""
_GIVEN = ("batch", "cpu_cores", "gpu_percent")
"""What a batch had when it ran; so another number of cores begins new series."""
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Histogram:
    """Counts by upper bound. Values are kept as they come and counted in bulk, which takes a tenth of the time."""

    KEPT_MAX = 1024

    __slots__ = ("_counts", "_total", "bounds", "kept")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = np.asarray(bounds, float)
        self.kept: list[float] = []
        self._counts = np.zeros(len(bounds) + 1, np.int64)
        self._total = 0.0

    def observe(self, values: Iterable[float]) -> None:
        """Count some values."""
        self.kept += values
        if len(self.kept) > self.KEPT_MAX:
            self._count()

    def _count(self) -> None:
        values = np.asarray(self.kept, float)
        self.kept = []
        self._counts += np.bincount(np.searchsorted(self.bounds, values), minlength=len(self._counts))
        self._total += float(values.sum())

    @property
    def timed(self) -> tuple[int, float]:
        """How many, and their sum."""
        self._count()
        return int(self._counts.sum()), self._total

    def buckets(self) -> list[tuple[str, float]]:
        """Prometheus's form: bounds as text, counts that add up."""
        self._count()
        names = [*(str(float(bound)) for bound in self.bounds), "+Inf"]
        return list(zip(names, np.cumsum(self._counts).tolist(), strict=True))


class Metrics:
    """The figures of one instance since its start."""

    def __init__(self, cpu_cores: int = 1, gpu_percent: int = 0) -> None:
        self.received = 0
        """Requests that came whole. Each is answered, or its client leaves."""
        self.in_flight = 0
        self.gone = 0
        self.failed_items = 0
        self.queue_length = 0
        self.batch_max = 0
        self.last_run_s = 0.0
        """When the last batch had run, since the epoch."""
        self.fallback = 0
        """1 where the model does not run on the device that was asked for."""
        self.process_restarts = 0
        self.durations: dict[tuple[int, str], Histogram] = {}
        """By status and method."""
        self.exec_s: dict[int, Histogram] = {}
        """By batch size, with the resources there are now."""
        self._gpu_percent = gpu_percent
        self._exec_s_given = {(cpu_cores, gpu_percent): self.exec_s}
        """By cores and percent of a GPU, the present ones too."""
        self.wait_s = Histogram(_SECONDS)
        self.batch_size = Histogram(_SIZES)

    def answered(self, status: int, method: str, duration_s: float) -> None:
        """Count one answer."""
        histogram = self.durations.get((status, method))
        if histogram is None:
            histogram = self.durations[(status, method)] = Histogram(_SECONDS)
        kept = histogram.kept
        kept.append(duration_s)
        if len(kept) > Histogram.KEPT_MAX:
            histogram.observe(())

    def refused(self, status: int, method: str) -> None:
        """Count a request that is answered before anybody takes it."""
        self.received += 1
        self.answered(status, method, 0.0)

    def started(self, calls: Iterable[Call], now_s: float) -> None:
        """Count the waiting of a batch that begins."""
        self.wait_s.observe([now_s - call.arrived_s for call in calls])

    def given(self, cpu_cores: int) -> None:
        """From the next batch on it has so many cores."""
        self.exec_s = self._exec_s_given.setdefault((cpu_cores, self._gpu_percent), {})

    def ran(self, size: int, exec_s: float | None) -> None:
        """Count a batch; its time where that says something of its size."""
        self.last_run_s = time.time()
        self.batch_size.observe((size,))
        if exec_s is not None:
            histogram = self.exec_s.get(size)
            if histogram is None:
                histogram = self.exec_s[size] = Histogram(_EXEC_SECONDS)
            histogram.observe((exec_s,))

    def counts(self) -> Counts:
        """As the inference protocol's statistics want them."""
        good = [histogram for (status, _), histogram in self.durations.items() if status < 400]
        bad = [histogram for (status, _), histogram in self.durations.items() if status >= 400]
        sizes = {size for by_size in self._exec_s_given.values() for size in by_size}
        runs = {
            size: _timed(by_size[size] for by_size in self._exec_s_given.values() if size in by_size)
            for size in sorted(sizes)
        }
        return Counts(
            success=_timed(good),
            fail=_timed(bad),
            queue=_timed([self.wait_s]),
            compute=(sum(size * n for size, (n, _) in runs.items()), sum(size * s for size, (_, s) in runs.items())),
            last_inference_s=self.last_run_s,
            batches=runs,
        )

    def text(self) -> bytes:
        """Prometheus text format."""
        # Imported when first asked for: it costs every start of an instance more than its first scrape.
        from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(self)
        return generate_latest(registry)

    def collect(self) -> Iterator[Metric]:
        """For prometheus_client."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        labels = ("code", "method")
        total = CounterMetricFamily("http_requests", "Requests answered.", labels=labels)
        duration = HistogramMetricFamily("http_request_duration_seconds", "Arrival to answer.", labels=labels)
        for (status, method), histogram in sorted(self.durations.items()):
            values = (str(status), method.lower())
            count, total_s = histogram.timed
            total.add_metric(values, count)
            duration.add_metric(values, histogram.buckets(), total_s)
        exec_s = HistogramMetricFamily("infless_batch_exec_seconds", "Execution of one batch.", labels=_GIVEN)
        for (cores, percent), by_size in sorted(self._exec_s_given.items()):
            for size, histogram in sorted(by_size.items()):
                given = (str(size), str(cores), str(percent))
                exec_s.add_metric(given, histogram.buckets(), histogram.timed[1])
        yield from (total, duration, exec_s)
        yield _plain(HistogramMetricFamily, "infless_batch_size", "Requests in a batch.", self.batch_size)
        yield _plain(HistogramMetricFamily, "infless_queue_wait_seconds", "Arrival to start of the batch.", self.wait_s)
        for name, text, count in (
            ("infless_requests_received", "Requests that came whole.", self.received),
            ("infless_clients_gone", "Clients that left before the answer.", self.gone),
            ("infless_failed_items", "Requests the handler failed on.", self.failed_items),
            ("infless_handler_process_restarts", "Handler processes replaced.", self.process_restarts),
        ):
            yield CounterMetricFamily(name, text, value=count)
        for name, text, count in (
            ("http_requests_in_flight", "Requests not yet answered.", self.in_flight),
            ("infless_queue_length", "Requests waiting.", self.queue_length),
            ("infless_batch_max", "Largest batch allowed now.", self.batch_max),
            ("infless_device_fallback", "1: the model is not on the device asked for.", self.fallback),
        ):
            yield GaugeMetricFamily(name, text, value=count)


def _timed(histograms: Iterable[Histogram]) -> tuple[int, float]:
    parts = [histogram.timed for histogram in histograms]
    return sum(count for count, _ in parts), sum(total for _, total in parts)


def _plain(family: Any, name: str, text: str, histogram: Histogram) -> Metric:
    metric: Metric = family(name, text)
    metric.add_metric((), histogram.buckets(), histogram.timed[1])  # type: ignore[attr-defined]
    return metric
