"""The names that dashboards read: OpenFaaS's where they exist, ours with a unit."""

from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from infless_core.labels import Wishes
from infless_core.lifecycle import Phase
from infless_core.model import Configuration
from infless_provider.async_books import AsyncStats, FunctionStats
from infless_provider.metrics import Metrics, sample
from infless_scheduler.autoscale import RateEstimate

CONTRACT = {
    "infless_connections_turned_away": ("counter", set()),
    "gateway_function_invocation": ("counter", {"function_name", "code"}),
    "gateway_function_invocation_started": ("counter", {"function_name"}),
    "gateway_functions_seconds": ("histogram", {"function_name", "code"}),
    "gateway_service_count": ("gauge", {"function_name"}),
    "infless_instances": ("gauge", {"function_name", "phase"}),
    "infless_arrival_rate_rps": ("gauge", {"function_name"}),
    "infless_latency_target_seconds": ("gauge", {"function_name"}),
    "infless_within_target": ("counter", {"function_name"}),
    "infless_profile_factor": ("gauge", {"function_name", "batch", "cpu_cores", "gpu_percent"}),
    "infless_profile_drift": ("counter", {"function_name"}),
    "infless_profile_source_up": ("gauge", {"source"}),
    "provider_http_request_duration_seconds": ("histogram", {"code", "method", "path"}),
    "provider_http_requests": ("counter", {"code", "method", "path"}),
    "infless_async_calls": ("counter", {"function_name", "outcome"}),
    "infless_async_callbacks": ("counter", {"function_name", "outcome"}),
    "infless_async_waiting": ("gauge", {"function_name"}),
    "infless_async_waiting_bytes": ("gauge", {"function_name"}),
    "infless_async_oldest_age_seconds": ("gauge", {"function_name"}),
    "infless_async_in_flight": ("gauge", set()),
    "infless_async_callbacks_in_flight": ("gauge", set()),
}
NO_QUEUE = AsyncStats(functions=(), in_flight=0, callbacks_in_flight=0)
QUEUE = AsyncStats(
    functions=(
        FunctionStats(
            function="f.openfaas-fn", accepted=10, done=5, failed=1, cancelled=2, retried=4, callbacks_ok=3,
            callbacks_failed=6, refused=7, waiting=2, waiting_bytes=99, oldest_age_s=1.5,
        ),
    ),
    in_flight=8, callbacks_in_flight=9,
)  # fmt: skip


def function():
    """A function with one ready instance that wants two."""
    ready = SimpleNamespace(phase=Phase.READY)
    return SimpleNamespace(
        key="f.openfaas-fn", wanted=lambda now_s: 2, estimate=RateEstimate((4,), 4.0), wishes=Wishes(latency_target_s=0.2), instances={"a": ready}
    )  # fmt: skip


@pytest.fixture
def families():
    """What Prometheus would read after three answers."""
    metrics = Metrics()
    for status, duration_s in ((200, 0.1), (200, 0.3), (503, 0.1)):
        metrics.started("f.openfaas-fn")
        metrics.answered("f.openfaas-fn", status, duration_s, 0.2)
    metrics.profiled({"f.openfaas-fn": {Configuration(batch=8, cpu_cores=2): 1.5}})
    metrics.drifts("f.openfaas-fn", 0)
    metrics.source_up("prometheus", False)
    metrics.control(202, "POST", "/system/functions", 0.02)
    text = metrics.text(sample([function()], QUEUE, 3, 0.0)).decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


@pytest.mark.parametrize(("name", "contract"), CONTRACT.items())
def test_the_contract(families, name, contract):
    """Name, type and labels."""
    family = families[name]
    labels = {label for sample in family.samples for label in sample.labels} - {"le"}
    assert (family.type, labels) == contract


def test_nothing_else_is_published(families):
    """But the process's own figures."""
    assert {name for name in families if not name.startswith(("process_", "python_"))} == set(CONTRACT)


def value(families, name, **labels):
    """One sample."""
    (found,) = [s.value for f in families.values() for s in f.samples if s.name == name and s.labels == labels]
    return found


def test_the_figures(families):
    """Counted by code; within the target only what was answered in time and not refused."""
    name = {"function_name": "f.openfaas-fn"}
    assert value(families, "gateway_function_invocation_total", code="200", **name) == 2
    assert value(families, "gateway_function_invocation_total", code="503", **name) == 1
    assert value(families, "gateway_function_invocation_started_total", **name) == 3
    assert value(families, "gateway_functions_seconds_count", code="200", **name) == 2
    assert value(families, "infless_within_target_total", **name) == 1
    assert value(families, "gateway_service_count", **name) == 2
    assert value(families, "infless_instances", phase="ready", **name) == 1
    assert value(families, "infless_arrival_rate_rps", **name) == 4
    assert value(families, "infless_profile_factor", batch="8", cpu_cores="2", gpu_percent="0", **name) == 1.5
    assert value(families, "infless_profile_drift_total", **name) == 0
    assert value(families, "infless_profile_source_up", source="prometheus") == 0


def test_the_figures_of_the_control_plane(families):
    """As openfaas/faas-provider has them, in seconds."""
    call = {"code": "202", "method": "POST", "path": "/system/functions"}
    assert value(families, "provider_http_requests_total", **call) == 1
    assert value(families, "provider_http_request_duration_seconds_count", **call) == 1
    assert value(families, "provider_http_request_duration_seconds_sum", **call) == 0.02


@pytest.mark.parametrize(
    ("outcome", "count"),
    [("accepted", 10), ("done", 5), ("failed", 1), ("cancelled", 2), ("retried", 4), ("refused", 7)],
)
def test_the_books_of_the_queue(families, outcome, count):
    """Each outcome is its own, so that what is lost shows."""
    assert value(families, "infless_async_calls_total", function_name="f.openfaas-fn", outcome=outcome) == count


def test_the_figures_of_the_queue(families):
    """What waits, and what became of results."""
    name = {"function_name": "f.openfaas-fn"}
    assert value(families, "infless_async_callbacks_total", outcome="ok", **name) == 3
    assert value(families, "infless_async_callbacks_total", outcome="failed", **name) == 6
    assert value(families, "infless_async_waiting", **name) == 2
    assert value(families, "infless_async_waiting_bytes", **name) == 99
    assert value(families, "infless_async_oldest_age_seconds", **name) == 1.5
    assert value(families, "infless_async_in_flight") == 8
    assert value(families, "infless_async_callbacks_in_flight") == 9


def test_buckets_are_the_gateways(families):
    """5 ms to 10 s, so that its dashboards' quantiles mean the same."""
    bounds = [
        s.labels["le"]
        for s in families["gateway_functions_seconds"].samples
        if s.labels.get("code") == "200" and "le" in s.labels
    ]
    assert (bounds[0], bounds[-2], bounds[-1], len(bounds)) == ("0.005", "10.0", "+Inf", 15)


def test_a_removed_function_leaves_the_gauges():
    """At once, and the counters when the provider forgets it: callers could make them grow for ever."""
    metrics = Metrics()
    metrics.text(sample([function()], QUEUE, 0, 0.0))
    assert b'gateway_service_count{function_name="f.openfaas-fn"}' not in metrics.text(sample([], NO_QUEUE, 0, 0.0))


def test_what_was_counted_of_a_removed_function_goes():
    """Of that function alone; should it come back, it begins anew."""
    metrics = Metrics()
    for key in ("f.n", "g.n"):
        metrics.started(key)
        metrics.answered(key, 200, 0.1, 1.0)
        metrics.drifts(key, 1)
    metrics.profiled({"f.n": {Configuration(batch=1, cpu_cores=1): 2.0}, "g.n": {}})
    metrics.forget("f.n")
    text = metrics.text(sample([], NO_QUEUE, 0, 0.0))
    assert b"f.n" not in text
    assert text.count(b'function_name="g.n"') > 10
    metrics.answered("f.n", 200, 0.1, 1.0)
    found = metrics.text(sample([], NO_QUEUE, 0, 0.0))
    assert b'gateway_function_invocation_total{code="200",function_name="f.n"} 1.0' in found
