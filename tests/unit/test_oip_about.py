"""What an instance says of itself and of its model: metadata, configuration, index, statistics."""

from __future__ import annotations

import pytest

from infless_watchdog.oip_about import Counts, config, metadata, repository_index, server_metadata, statistics

ROWS = [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
TEXTS = [{"name": "y", "datatype": "BYTES", "shape": [-1]}]


def test_a_model_is_described_with_its_tensors() -> None:
    """And with its one version."""
    described = metadata("m", "python", ROWS, TEXTS)
    assert (described["name"], described["platform"], described["versions"]) == ("m", "python", ["1"])
    assert (described["inputs"], described["outputs"]) == (ROWS, TEXTS)
    assert "statistics" in server_metadata()["extensions"]


def test_a_configuration_has_no_batch_axis_in_its_shapes() -> None:
    """As Triton's clients expect it."""
    made = config("m", 8, ROWS, TEXTS)
    assert made["max_batch_size"] == 8
    assert made["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [3]}]
    assert made["output"] == [{"name": "y", "data_type": "TYPE_STRING", "dims": []}]
    assert "dynamic_batching" in made


def test_a_model_without_a_batch_axis_has_a_largest_batch_of_0() -> None:
    """And its shapes are whole."""
    made = config("m", 1, [{"name": "x", "datatype": "FP32", "shape": [2, 3]}], [])
    assert (made["max_batch_size"], made["input"][0]["dims"]) == (0, [2, 3])


@pytest.mark.parametrize(("ready", "state"), [(True, "READY"), (False, "UNAVAILABLE")])
def test_the_index_names_the_model_and_its_state(ready: bool, state: str) -> None:
    """There is one."""
    (entry,) = repository_index("m", ready)
    assert (entry["name"], entry["version"], entry["state"]) == ("m", "1", state)


def test_statistics_count_requests_and_runs() -> None:
    """Runs by their size; times in nanoseconds."""
    counts = Counts(
        success=(5, 0.5), fail=(1, 0.1), queue=(6, 0.06), compute=(6, 0.3), batches={4: (1, 0.2), 2: (1, 0.1)}
    )
    (made,) = statistics("m", counts)["model_stats"]
    assert (made["inference_count"], made["execution_count"], made["last_inference"]) == (5, 2, 0)
    assert made["inference_stats"]["success"] == {"count": 5, "ns": 500_000_000}
    assert made["inference_stats"]["compute_infer"] == {"count": 6, "ns": 300_000_000}
    assert [(one["batch_size"], one["compute_infer"]["ns"]) for one in made["batch_stats"]] == [
        (2, 100_000_000),
        (4, 200_000_000),
    ]
