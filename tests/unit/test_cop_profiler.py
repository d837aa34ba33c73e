"""The profiler with workers that answer at once: what it measures, reuses, keeps and says."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import psutil
import pytest
from benchmarks.models import mlp

from infless_core.errors import BackendError, InvalidInput
from infless_profiler import cop
from infless_profiler.choose import SURE
from infless_profiler.cop import Profiler
from infless_profiler.estimate import rough_s
from infless_profiler.model_file import ModelFile, read_model
from infless_profiler.operators import Point
from infless_profiler.prediction import Grid, text_of
from infless_profiler.sessions import Device, this_device
from infless_profiler.tables import Tables
from infless_profiler.timing import Timing, timing_of
from infless_profiler.worker import OperatorJob, Timed

pytest.importorskip("onnxruntime")
GRID = Grid(batches=(1, 2, 4, 8), cpu_cores=(1, 2))
SLOWER = 1.7
"""This machine takes so much longer than the rough model says."""


class FakeWorker:
    """Answers with the rough model, slower; a model takes 2 ms an item."""

    jobs: list[Any] = []  # noqa: RUF012 - emptied by the fixture
    trouble: Callable[[Any], str | None] = staticmethod(lambda job: None)

    def __init__(self, place: Any, cancelled: Callable[[], bool]) -> None:
        self.place, self.cancelled, self.was_cancelled, self.closed = place, cancelled, False, False

    def do(self, job: Any, told: Callable[[Timed], None] = lambda _: None) -> list[Timed]:
        """As a worker does."""
        if self.cancelled():
            self.was_cancelled = True
            raise BackendError("timing was cancelled")
        words = FakeWorker.trouble(job)
        if words:
            raise BackendError(words)
        FakeWorker.jobs.append(job)
        if isinstance(job, OperatorJob):
            return [
                Timed(
                    point=point,
                    timing=Timing(exec_s=SLOWER * rough_s(job.operator, point), spread=0.02, samples=9),
                )
                for point in job.points
            ]
        answers = []
        for batch in job.batches:
            samples_s = tuple(0.002 * batch * (1 + place / 100) for place in range(11))
            point = Point(batch, self.place.cpu_cores, self.place.gpu_percent)
            answers.append(Timed(point=point, timing=timing_of(samples_s), samples_s=samples_s, memory_bytes=9 << 20))
            told(answers[-1])
        return answers

    def close(self) -> None:
        """Nothing to end."""
        self.closed = True


@pytest.fixture(autouse=True)
def _fake_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """No processes."""
    monkeypatch.setattr(cop, "Worker", FakeWorker)
    monkeypatch.setattr(FakeWorker, "jobs", [])
    monkeypatch.setattr(FakeWorker, "trouble", staticmethod(lambda job: None))


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    """Of this processor."""
    return Tables(tmp_path / "operators.sqlite", this_device())


@pytest.fixture
def model(tmp_path: Path) -> Callable[..., ModelFile]:
    """A chain of layers."""

    def make(*sizes: int, name: str = "net") -> ModelFile:
        onnx.save(mlp(sizes or (64, 128, 16)), tmp_path / f"{name}.onnx")
        return read_model(tmp_path / f"{name}.onnx")

    return make


def test_every_configuration_is_predicted(tables: Tables, model: Any) -> None:
    """As sure as was wished, with more measured than not needed at all; and it is kept."""
    with Profiler(tables, now_s=lambda: 99.0) as profiler:
        profile = profiler.profile(model(), GRID)
    assert [one.point for one in profile.predictions] == [Point(b, c) for c in (1, 2) for b in (1, 2, 4, 8)]
    assert all(one.spread <= SURE for one in profile.predictions)
    assert all(one.composed_s == one.expected_s < one.planned_s for one in profile.predictions)
    assert all(0 < one.measured_share <= 1 for one in profile.predictions)
    assert profile.new_operators == len(profile.graph.operators)
    assert profile.reused_operators == 0
    assert 0 < profile.new_points <= profile.needed_points == len(profile.graph.operators) * 8
    assert profile.warnings == ()
    kept = tables.model("net")
    assert (kept.digest, kept.profiled_at_s) == (profile.graph.digest, 99.0)
    assert [one.composed_s for one in kept.times] == [one.composed_s for one in profile.predictions]
    assert kept.about["new_points"] == profile.new_points


def test_predictions_are_the_sum_of_what_was_measured(tables: Tables, model: Any) -> None:
    """On a machine that is slower throughout, within a few percent, also where it was not measured."""
    with Profiler(tables) as profiler:
        profile = profiler.profile(model(), GRID)
    for one in profile.predictions:
        true_s = SLOWER * sum(
            count * rough_s(profile.graph.operators[signature], one.point)
            for signature, count in profile.graph.counts.items()
        )
        assert one.composed_s == pytest.approx(true_s, rel=0.06), one.point


def test_a_model_that_is_known_is_not_measured_again(tables: Tables, model: Any) -> None:
    """No job at all, the same numbers, and all operators that were measured are reused."""
    with Profiler(tables) as profiler:
        first = profiler.profile(model(), GRID)
        FakeWorker.jobs.clear()
        again = profiler.profile(model(), GRID)
    assert FakeWorker.jobs == []
    assert (again.reused_operators, again.new_points) == (len({row.operator for row in tables.operators()}), 0)
    assert again.new_operators + again.reused_operators == first.new_operators
    assert [one.composed_s for one in again.predictions] == pytest.approx([one.composed_s for one in first.predictions])


def test_a_model_with_the_same_parts_costs_less(tables: Tables, model: Any) -> None:
    """Only what it does not share is measured."""
    with Profiler(tables) as profiler:
        first = profiler.profile(model(64, 128, 64, name="first"), GRID)
        second = profiler.profile(model(64, 128, 64, 32, name="second"), GRID)
    assert second.reused_operators >= 4
    assert second.new_points < first.new_points


def test_less_certainty_is_cheaper(tables: Tables, model: Any) -> None:
    """A wish for 30 % measures less than one for 3 %."""
    with Profiler(tables) as profiler:
        few = profiler.profile(model(), GRID, sure=0.3).new_points
        assert profiler.profile(model(), GRID).new_points > 0
    assert few < len(tables.operators())


def test_workers_are_one_for_each_place_and_end_with_it(tables: Tables, model: Any) -> None:
    """Also when something fails."""
    profiler = Profiler(tables)

    def fail() -> None:
        with profiler:
            profiler.profile(model(), GRID)
            raise RuntimeError("elsewhere")

    with pytest.raises(RuntimeError, match="elsewhere"):
        fail()
    workers = profiler._workers
    assert {*workers} <= {(1, 0), (2, 0)}
    assert all(worker.closed for worker in workers.values())  # type: ignore[attr-defined]


def test_verifying_measures_the_whole_model_and_keeps_it(tables: Tables, model: Any) -> None:
    """Predictions stay what they were; the next model learns from it."""
    with Profiler(tables) as profiler:
        file = model()
        profile = profiler.profile(file, GRID)
        verified = profiler.verify(file, profile)
        assert [one.expected_s for one in verified.predictions] == [one.expected_s for one in profile.predictions]
        assert [one.measured_s for one in verified.predictions] == [
            pytest.approx(0.0021 * one.point.batch, rel=0.01) for one in profile.predictions
        ]
        assert verified.whole_was_measured
        assert all(one.memory_bytes == 9 << 20 for one in verified.predictions)
        assert tables.model("net").times[0].executions_s == verified.predictions[0].executions_s
        other = profiler.profile(model(64, 96, 16, name="other"), GRID)
        assert (profile.correction.models, other.correction.models) == (0, 1)
        assert other.predictions[0].expected_s > 2 * other.predictions[0].composed_s
        assert profiler.profile(file, GRID).correction.models == 0


def test_an_interruption_keeps_what_was_measured(tables: Tables, model: Any) -> None:
    """Cancelled after five operators; the next time needs five points fewer."""
    fresh = Tables(tables.path.with_name("fresh.sqlite"), tables.device)
    with Profiler(fresh) as profiler:
        needed = profiler.profile(model(), GRID).new_points
    FakeWorker.jobs.clear()
    with (
        Profiler(tables, cancelled=lambda: len(FakeWorker.jobs) == 5) as profiler,
        pytest.raises(BackendError, match="timing was cancelled"),
    ):
        profiler.profile(model(), GRID)
    assert len(tables.operators()) == 5
    assert tables.models() == []
    with Profiler(tables) as profiler:
        assert profiler.profile(model(), GRID).new_points <= needed - 4


def test_an_operator_that_does_not_run_alone(tables: Tables, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is measured in one piece, and a note says which operator and why."""
    monkeypatch.setattr(
        FakeWorker, "trouble", staticmethod(lambda job: "it wants more" if job.operator.type == "Relu" else None)
    )
    told: list[str] = []
    with Profiler(tables, progress=told.append) as profiler:
        profile = profiler.profile(model(), GRID)
    words = [warning for warning in profile.warnings if warning.startswith("measured as a whole: ")]
    assert len(words) == 1
    assert re.fullmatch(
        r"measured as a whole: operator Relu\(\[1b,\d+\]\) does not run alone: it wants more", words[0]
    )  # fmt: skip
    assert len(profile.graph.calls) == 1
    assert any(one.endswith("does not run alone: it wants more; measuring it as a whole") for one in told)
    assert tables.model("net").about["warnings"] == list(profile.warnings)


def test_a_model_that_does_not_run_either(tables: Tables, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker's words; no profile is kept."""
    monkeypatch.setattr(FakeWorker, "trouble", staticmethod(lambda job: "out of luck"))
    with Profiler(tables) as profiler, pytest.raises(BackendError, match="^out of luck$"):
        profiler.profile(model(), GRID)
    assert tables.models() == []


def test_batches_that_the_model_cannot_take(tables: Tables, tmp_path: Path) -> None:
    """Left out with a warning; with nothing left it is refused."""
    fixed = mlp((8, 4))
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    fixed.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(fixed, tmp_path / "fixed.onnx")
    file = read_model(tmp_path / "fixed.onnx")
    with Profiler(tables) as profiler:
        profile = profiler.profile(file, GRID)
        assert [one.point for one in profile.predictions] == [Point(1, 1), Point(1, 2)]
        assert profile.warnings == (
            "batches of 2, 4, 8 are left out: the model was exported for batches of 1 only",
        )  # fmt: skip
        with pytest.raises(InvalidInput, match="--batches: fixed was exported for batches of 1 only"):
            profiler.profile(file, Grid(batches=(2, 4), cpu_cores=(1,)))


def test_a_model_larger_than_memory(tables: Tables, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before anything is measured."""
    file = model()
    memory = psutil.virtual_memory()._replace(available=64 << 10)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    with (
        Profiler(tables) as profiler,
        pytest.raises(InvalidInput, match=r"needs four times as much memory, and 64 KiB are free"),
    ):
        profiler.profile(file, GRID)
    assert FakeWorker.jobs == []


def test_operators_side_by_side_are_another_profile(tables: Tables, model: Any) -> None:
    """A chain gains nothing from two threads that share the cores, and loses the second core."""
    with Profiler(tables) as profiler:
        plain = profiler.profile(model(256, 512, 512), GRID)
        both = profiler.profile(model(256, 512, 512), Grid(batches=(1, 8), cpu_cores=(2,), inter_op_threads=2))
    assert both.inter_op_threads == 2
    assert both.graph.digest != plain.graph.digest
    alone = {one.point: one.composed_s for one in plain.predictions}
    assert both.predictions[1].composed_s == pytest.approx(alone[Point(8, 1)], rel=0.05)
    assert len(tables.models()) == 2


def test_shares_of_a_gpu_with_a_fake_one(tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies to the device and back are operators; shares are points; more of the GPU takes less time."""
    monkeypatch.setattr(Device, "providers", [("CPUExecutionProvider", {})])
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime.InferenceSession, "get_providers", lambda _: both)
    gpu = Device(kind="cuda", name="fake", runtime="onnxruntime 1.2")
    tables = Tables(tmp_path / "operators.sqlite", gpu)
    with Profiler(tables) as profiler:
        profile = profiler.profile(
            model(256, 512, 64), Grid(batches=(1, 8), cpu_cores=(1,), gpu_percents=(25, 50, 100))
        )
    transfers = [one for one in profile.graph.operators.values() if one.type == "Transfer"]
    assert [one.attributes["to"] for one in transfers] == ["device", "host"]
    assert not any(row.point.cold for row in tables.operators())
    by_share = [one.composed_s for one in profile.predictions if one.point.batch == 8]
    assert by_share == sorted(by_share, reverse=True)
    assert {one.point.gpu_percent for one in profile.predictions} == {25, 50, 100}
    assert text_of(profile.predictions[0].point) == "batch 1 on 1 core, 25 % of the GPU"


def test_sizes_beyond_all_that_were_measured_are_a_warning(tables: Tables, model: Any) -> None:
    """When nothing may be measured, the share of the time that is guessed is told."""
    with Profiler(tables) as profiler:
        profiler.profile(model(16, 16, name="small"), Grid(batches=(1,), cpu_cores=(1,)))
        profile = profiler.profile(model(700, 900, name="large"), Grid(batches=(1, 64), cpu_cores=(1,)), sure=9.0)
    assert profile.new_points == 0
    assert any("of the time is extrapolated to sizes beyond all that were measured" in one for one in profile.warnings)
    assert profile.warnings[0].startswith("batch 1 on 1 core: ")


def test_an_example_of_whole_numbers(tables: Tables, tmp_path: Path) -> None:
    """A model that looks rows up needs values, and gets those of the sample."""
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.ones((10, 4), np.float32), "table")
    takes = helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", "steps"])
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["y"])], "g", [takes], [onnx.ValueInfoProto(name="y")], [weight]
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "ids.onnx"
    )
    file = read_model(tmp_path / "ids.onnx", samples={"ids": np.array([[7, 8, 9]])})
    with Profiler(tables) as profiler:
        profile = profiler.profile(file, Grid(batches=(1, 2), cpu_cores=(1,)))
    assert [one.type for one in profile.graph.operators.values()] == ["Gather", "Call", "Transfer"]
    job = next(job for job in FakeWorker.jobs if job.operator.type == "Gather")
    assert job.case.feeds["ids"].values.tolist() == [[7, 8, 9]]
