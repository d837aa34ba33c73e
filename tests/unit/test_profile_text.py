"""What `infless profile` prints, word for word."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infless_profiler.correction import Correction
from infless_profiler.operators import Call, ModelGraph, Operator, Point
from infless_profiler.prediction import Prediction, Profile, kept
from infless_profiler.sessions import Device
from infless_profiler.tables import Tables
from infless_provider import profile_text

DEVICE = Device(kind="cpu", name="p x2", runtime="onnxruntime 1.2")
GRAPH = ModelGraph(
    name="net", digest="0123456789", parameter_bytes=4096,
    calls=(Call(operator=Operator(domain="", type="Relu", version=13)),) * 2,
)  # fmt: skip
FEATURES = (1.0, 0.0, 0.5, 0.0, 0.0)


def prediction(batch: int, **more: Any) -> Prediction:
    """10 ms an item, planned with 20 % more."""
    one = Prediction(
        point=Point(batch, 1), composed_s=0.008 * batch, expected_s=0.01 * batch, planned_s=0.012 * batch,
        spread=0.02, measured_share=0.5, features=FEATURES, memory_bytes=150 << 20,
    )  # fmt: skip
    return replace(one, **more)


def profile(*predictions: Prediction, **more: Any) -> Profile:
    """One that was just made."""
    one = Profile(
        graph=GRAPH, device=DEVICE, inter_op_threads=1, predictions=predictions or (prediction(1), prediction(2)),
        correction=Correction(), new_operators=1, reused_operators=2, new_points=5, needed_points=12,
        profiling_s=2.0, whole_s=6.0,
    )  # fmt: skip
    return replace(one, **more)


def lines(*predictions: Prediction, **more: Any) -> list[str]:
    """As people see it."""
    return profile_text.of_profile(profile_text.to_json(profile(*predictions, **more))).splitlines()


def test_a_profile() -> None:
    """Table, cost, and what to do for a correction."""
    assert lines() == [
        "net on p x2, onnxruntime 1.2: 2 calls of 3 operators",
        "",
        " batch  cores   expected  sure to   planned  requests/s     memory",
        "     1      1       10ms     2.0%      12ms          83    150 MiB",
        "     2      1       20ms     2.0%      24ms          83    150 MiB",
        "",
        "operators: 1 new, 2 known before",
        "operator times: 5 of 12 measured in 2s",
        "measuring the whole model at every point would take about 6s: 4s saved, 3.0 times as fast",
        "correction: none yet, planned with a margin of 25%; --verify measures models whole, and the next ones learn from it",
    ]


def test_what_was_verified_stands_beside_it() -> None:
    """Measured times, the error of each, and all of them together."""
    found = lines(
        prediction(1, executions_s=(0.0125,) * 20), prediction(2, executions_s=(0.016,) * 19 + (0.5,)),
        whole_was_measured=True, correction=Correction(margin=1.2, models=3),
    )  # fmt: skip
    assert found[2].split() == [
        "batch", "cores", "expected", "sure", "to", "planned", "requests/s", "memory", "measured", "error",
    ]  # fmt: skip
    assert found[3].split()[-2:] == ["12.5ms", "-20.0%"]
    assert found[4].split()[-2:] == ["16ms", "+25.0%"]
    assert found[8:] == [
        "measuring the whole model at every point took 6s: 4s saved, 3.0 times as fast",
        "correction learned from 3 models, margin 20%",
        (
            "errors over all 2 points: mean 22.5%, median 22.5%, p90 24.5%, max 25.0%;"
            " 52.5% of the executions took longer than planned"
        ),
    ]


def test_shares_of_a_gpu_have_a_column() -> None:
    """Where there are any."""
    found = lines(prediction(1, point=Point(1, 2, 50)))
    assert found[2].split()[:3] == ["batch", "cores", "gpu"]
    assert found[3].split()[:3] == ["1", "2", "50%"]


def test_what_took_longer_is_not_called_saved() -> None:
    """The first small model on a machine costs more than it saves."""
    assert lines(whole_s=1.0)[8].endswith("would take about 1s: nothing saved this time")


def test_one_model_is_not_models() -> None:
    """Grammar."""
    assert lines(correction=Correction(margin=1.02, models=1))[9] == "correction learned from 1 model, margin 2%"


def test_warnings_are_notes_at_the_end() -> None:
    """Each on a line of its own."""
    assert lines(warnings=("one", "two"))[-2:] == ["note: one", "note: two"]


def test_out_of_the_database(tmp_path: Path) -> None:
    """The same table, with the newest correction; measured times are planned with where there are some."""
    tables = Tables(tmp_path / "operators.sqlite", DEVICE)
    tables.save_model(kept(profile(prediction(1, executions_s=(0.02,) * 20), prediction(2)), 0.0))
    told = profile_text.settled_json(tables.model("net"), tables)
    assert told["profiled_at"] == "1970-01-01 00:00"
    assert [(one["expected_s"], one.get("measured_s")) for one in told["predictions"]] == [(0.02, 0.02), (0.016, None)]
    found = profile_text.of_profile(told).splitlines()
    assert found[3].split() == ["1", "1", "20ms", "20.4ms", "49", "150", "MiB", "20ms"]
    assert found[4].split() == ["2", "1", "16ms", "20ms", "100", "150", "MiB"]
    other = replace(GRAPH, digest="other", name="other")
    twice = tuple(prediction(batch, executions_s=(0.016 * batch,) * 20) for batch in (1, 2))
    tables.save_model(kept(profile(*twice, graph=other), 1.0))
    learned = profile_text.settled_json(tables.model("012345"), tables)
    assert learned["correction"]["models"] == 1
    assert learned["predictions"][0]["expected_s"] == 0.02
    assert learned["predictions"][1]["expected_s"] == pytest.approx(0.032, rel=0.05)


def test_a_list(tmp_path: Path) -> None:
    """Names, digests, days, and how much is known."""
    tables = Tables(tmp_path / "operators.sqlite", DEVICE)
    tables.save_model(kept(profile(), 86400.0))
    told = {
        "database": "d", "device": "p", "runtime": "r", "operators": 3, "operator_times": 12,
        "models": [profile_text.model_head(tables.model("net"))],
    }  # fmt: skip
    assert profile_text.of_list(told).splitlines() == [
        "net                      01234567  1970-01-02 00:00     1 operators    2 configurations, 0 measured whole",
        "12 times of 3 operators on p, r (d)",
    ]


def test_functions() -> None:
    """Timed whole; one without an example says so."""
    told = {"a": [{"batch": 4, "cpu_cores": 2, "exec_s": 0.02}], "b": []}
    assert profile_text.of_functions(told).splitlines() == [
        "a: ",
        "  batch   4  cores 2      20ms       200 requests/s",
        "b: it has no example(), so its speed is learned from its answers",
    ]
