"""What an instance tells of its batches: by size and by what it had when they ran."""

from __future__ import annotations

from itertools import pairwise

from prometheus_client.parser import text_string_to_metric_families

from infless_watchdog.metrics import Metrics


def executions(metrics: Metrics) -> dict[tuple[str, str, str], tuple[float, float]]:
    """Count and sum by batch, cores and percent of a GPU."""
    found: dict[tuple[str, str, str], dict[str, float]] = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        for sample in family.samples:
            if sample.name.startswith("infless_batch_exec_seconds_") and "le" not in sample.labels:
                key = (sample.labels["batch"], sample.labels["cpu_cores"], sample.labels["gpu_percent"])
                found.setdefault(key, {})[sample.name.rpartition("_")[2]] = sample.value
    return {key: (value["count"], value["sum"]) for key, value in found.items()}


def test_other_cores_begin_new_series() -> None:
    """What ran before keeps its labels, and going back goes on counting there."""
    metrics = Metrics(cpu_cores=2, gpu_percent=30)
    metrics.ran(4, 0.5)
    metrics.given(1)
    metrics.ran(4, 1.0)
    metrics.given(2)
    metrics.ran(4, 0.25)
    assert executions(metrics) == {("4", "2", "30"): (2, 0.75), ("4", "1", "30"): (1, 1.0)}


def test_the_protocols_statistics_add_them_up() -> None:
    """They know batch sizes only."""
    metrics = Metrics(cpu_cores=2)
    metrics.ran(4, 0.5)
    metrics.given(1)
    metrics.ran(4, 1.0)
    metrics.ran(1, 0.25)
    counts = metrics.counts()
    assert counts.batches == {1: (1, 0.25), 4: (2, 1.5)}
    assert counts.compute == (9, 6.25)


def test_buckets_are_fine_enough_to_learn_from() -> None:
    """Six to a decade, from half a millisecond to twenty seconds."""
    metrics = Metrics()
    metrics.ran(1, 0.002)
    bounds = [float(bound) for bound, _ in metrics.exec_s[1].buckets()]
    assert (bounds[0], bounds[-2], len(bounds)) == (0.0005, 20.0, 30)
    assert all(1.3 < high / low < 1.7 for low, high in pairwise(bounds[:-1]))
