"""What an instance reports: of-watchdog's names for requests, our own for batches."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """One registry per instance; children are looked up once and kept, as labels cost more than counting."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        labels = ("code", "method")
        self._total = Counter("http_requests", "Requests answered.", labels, registry=self.registry)
        self._duration = Histogram(
            "http_request_duration_seconds", "Arrival to answer.", labels, buckets=_SECONDS, registry=self.registry
        )
        self.in_flight = Gauge("http_requests_in_flight", "Requests not yet answered.", registry=self.registry)
        self.batch_size = Histogram(
            "infless_batch_size", "Requests in a batch.", buckets=_SIZES, registry=self.registry
        )
        self._exec = Histogram(
            "infless_batch_exec_seconds", "Execution of one batch.", ("batch",), buckets=_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.wait = Histogram(
            "infless_queue_wait_seconds", "Arrival to start of the batch.", buckets=_SECONDS, registry=self.registry
        )
        self.queue_length = Gauge("infless_queue_length", "Requests waiting.", registry=self.registry)
        self.batch_max = Gauge("infless_batch_max", "Largest batch allowed now.", registry=self.registry)
        self.failed_items = Counter("infless_failed_items", "Requests the handler failed on.", registry=self.registry)
        self.gone = Counter("infless_clients_gone", "Clients that left before the answer.", registry=self.registry)
        self._by_answer: dict[tuple[int, str], tuple[Counter, Histogram]] = {}
        self._by_size: dict[int, Histogram] = {}

    def answered(self, status: int, method: str, duration_s: float) -> None:
        """Count one answer."""
        pair = self._by_answer.get((status, method))
        if pair is None:
            code, verb = str(status), method.lower()
            pair = (self._total.labels(code, verb), self._duration.labels(code, verb))
            self._by_answer[(status, method)] = pair
        pair[0].inc()
        pair[1].observe(duration_s)

    def executed(self, size: int, exec_s: float) -> None:
        """Time one batch."""
        child = self._by_size.get(size)
        if child is None:
            child = self._by_size[size] = self._exec.labels(str(size))
        child.observe(exec_s)

    def text(self) -> bytes:
        """Prometheus text format."""
        return generate_latest(self.registry)
