"""`infless profile MODEL` with real workers: predictions that are near, reuse, torch programs, a plan out of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from benchmarks.models import lstm, mlp
from onnx import TensorProto, helper
from provider_process import infless, processes_of

from infless_profiler.around import TRANSFER, around
from infless_profiler.model_file import input_feeds, read_model
from infless_profiler.operator_times import Worker
from infless_profiler.operators import COLD_BYTES, Point, weight_bytes
from infless_profiler.sessions import this_device
from infless_profiler.timing import Effort
from infless_profiler.worker import ModelJob, OperatorJob, Place

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.integration
FEW = Effort(warm_ups=1, runs_min=3, runs_max=5, least_s=0.0)


def profile(folder: Path, *arguments: str) -> dict[str, Any]:
    """The command to its end, as JSON."""
    done = infless("profile", *arguments, "--json", "--state-dir", "state", cwd=folder)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def in_one_piece(told: dict[str, Any]) -> bool:
    """Whether it could not be taken apart."""
    return any("as a whole" in one or "one piece" in one for one in told["warnings"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of two kinds, and one state for all tests of this module."""
    made = tmp_path_factory.mktemp("profiled")
    onnx.save(mlp((256, 1024, 512, 64)), made / "first.onnx")
    onnx.save(mlp((256, 1024, 512, 128, 64)), made / "second.onnx")
    onnx.save(lstm(10, 64), made / "recurrent.onnx")
    return made


def test_a_model_is_profiled_verified_and_near(folder: Path) -> None:
    """Within a factor of four of what the whole model takes, on a busy machine and without any correction."""
    told = profile(folder, "first.onnx", "--batches", "1,16", "--cores", "1", "--verify", "--picture", "x.png")
    assert told["errors"]["points"] == 2
    assert all(0.25 < one["expected_s"] / one["measured_s"] < 4 for one in told["predictions"]), told
    assert all(one["spread"] <= 0.3 for one in told["predictions"])  # measured: guesses are less sure by far
    assert told["predictions"][0]["expected_s"] < told["predictions"][1]["expected_s"]
    assert told["predictions"][0]["memory_bytes"] > 20 << 20
    assert (folder / "x.png").stat().st_size > 10_000


def test_what_is_known_is_reused(folder: Path) -> None:
    """A second model of mostly the same layers; the first again needs next to nothing."""
    profile(folder, "first.onnx", "--batches", "1,16", "--cores", "1")
    second = profile(folder, "second.onnx", "--batches", "1,16", "--cores", "1")
    assert second["operators"]["reused"] >= 4
    assert second["operators"]["new"] <= 6
    again = profile(folder, "first.onnx", "--batches", "1,16", "--cores", "1")
    assert again["operators"]["reused"] >= 4
    assert again["operator_times"]["measured"] <= again["operator_times"]["needed"] / 4


def test_another_kind_of_layer(folder: Path) -> None:
    """A batch axis in the middle, and values that are left out."""
    told = profile(folder, "recurrent.onnx", "--batches", "1,4", "--cores", "1", "--name", "lstm")
    assert (told["model"], in_one_piece(told)) == ("lstm", False)
    assert all(one["expected_s"] > 0 for one in told["predictions"])


def test_operators_side_by_side(folder: Path) -> None:
    """A profile of its own beside the one in sequence."""
    profile(folder, "recurrent.onnx", "--batches", "1", "--cores", "1", "--name", "lstm")
    told = profile(
        folder, "recurrent.onnx", "--batches", "1", "--cores", "1", "--inter-op-threads", "2", "--verify",
        "--name", "beside", "--picture", "y.png",
    )  # fmt: skip
    assert told["digest"].endswith("-2")
    assert told["predictions"][0]["measured_s"] > 0


def test_from_a_model_to_a_plan(folder: Path) -> None:
    """`problem` prints what `plan` takes."""
    profile(folder, "first.onnx", "--batches", "1,16", "--cores", "1")
    done = infless(
        "profile",
        "problem",
        "first=50@200ms",
        "--cpu-cores",
        "4",
        "--memory",
        "8Gi",
        "--state-dir",
        "state",
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    (folder / "problem.json").write_text(done.stdout)
    planned = infless("plan", "--problem", "problem.json", "--json", cwd=folder)
    assert planned.returncode == 0, planned.stderr
    assert json.loads(planned.stdout)["instances"]


def test_weights_in_a_file_beside_the_model(folder: Path) -> None:
    """Measured like those within, and verified where it lies."""
    (folder / "beside").mkdir()
    onnx.save(
        mlp((64, 96, 32)), folder / "beside" / "model.onnx", save_as_external_data=True, location="w.bin",
        size_threshold=0,
    )  # fmt: skip
    told = profile(folder, "beside/model.onnx", "--batches", "1", "--cores", "1", "--verify", "--picture", "z.png")
    assert (told["model"], in_one_piece(told)) == ("beside", False)
    assert told["predictions"][0]["measured_s"] > 0


def test_a_torch_program(folder: Path) -> None:
    """Exported on the way; its batch axis stays open."""
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    script = (
        "import torch; model = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.ReLU());"
        "n = torch.export.Dim('n', min=1, max=64);"
        "torch.export.save(torch.export.export(model.eval(), (torch.ones(2, 16),), dynamic_shapes=({0: n},)), 'net.pt2')"
    )
    subprocess.run([sys.executable, "-c", script], cwd=folder, check=True, capture_output=True, timeout=120)
    told = profile(folder, "net.pt2", "--batches", "1,8", "--cores", "1")
    assert (told["model"], in_one_piece(told)) == ("net", False)
    assert [one["batch"] for one in told["predictions"]] == [1, 8]


def test_nothing_is_left(folder: Path) -> None:
    """Of all that the tests above have started."""
    assert processes_of(folder) == []


class TestWorker:
    """A real process that times."""

    def test_whole_models_and_parts(self, folder: Path) -> None:
        """Both are told as they come, at the worker's own place, with memory for whole ones."""
        file = read_model(folder / "first.onnx")
        feeds, _ = input_feeds(file)
        inputs = [feed.tensor for feed in feeds.values()]
        heard: list[Point] = []
        with Worker(Place(device=this_device(), cpu_cores=1)) as worker:
            job = ModelJob(path=file.path, feeds=feeds, batches=(1, 2), effort=FEW)
            whole = worker.do(job, lambda timed: heard.append(timed.point))
            beside, case = around(inputs, inputs, this_device())
            parts = [
                worker.do(OperatorJob(operator=operator, case=case, points=(Point(4, 1),)))[0] for operator in beside
            ]
        assert heard == [one.point for one in whole] == [Point(1, 1), Point(2, 1)]
        assert all(3 <= len(one.samples_s) <= 5 and one.memory_bytes > 10 << 20 for one in whole)
        assert len(parts) == 2
        assert all(1e-8 <= one.timing.exec_s < 0.01 for one in parts)

    def test_cold_weights_take_longer_than_warm_ones(self, tmp_path: Path) -> None:
        """By the way of what pushes them out of the caches; the lowest of a few times is that of a quiet moment."""
        from infless_profiler.graph import read_graph

        onnx.save(mlp((256, 1024)), tmp_path / "net.onnx")
        found = read_graph(read_model(tmp_path / "net.onnx"), this_device())
        signature, operator = max(found.graph.operators.items(), key=lambda one: weight_bytes(one[1]))
        assert weight_bytes(operator) >= COLD_BYTES
        points = (Point(1, 1), Point(1, 1, cold=True))
        with Worker(Place(device=this_device(), cpu_cores=1)) as worker:
            job = OperatorJob(operator=operator, case=found.cases[signature], points=points)
            looks = [[one.timing.exec_s for one in worker.do(job)] for _ in range(5)]
        warm_s, cold_s = (min(times_s) for times_s in zip(*looks, strict=True))
        assert cold_s > warm_s

    def test_copies_to_the_caller_grow_with_what_is_copied(self) -> None:
        """A million times as much takes longer."""
        from infless_profiler.operators import Tensor

        small, large = (Tensor(dtype="float32", dims=((0, 1), (size, 0))) for size in (1, 4_000_000))
        beside, case = around((), (small, large), this_device())
        with Worker(Place(device=this_device(), cpu_cores=1)) as worker:
            times = [
                worker.do(OperatorJob(operator=operator, case=case, points=(Point(1, 1),)))[0].timing.exec_s
                for operator in beside
                if operator.type == TRANSFER
            ]
        assert times[1] > 10 * times[0]


def test_a_function_that_looks_rows_up(tmp_path: Path) -> None:
    """Whole numbers as inputs, and an axis of its own: with a shape they are 1."""
    takes = [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", "steps"])]
    table = helper.make_tensor("table", TensorProto.FLOAT, [50, 8], [0.5] * 400)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("ReduceMean", ["rows"], ["y"], axes=[1], keepdims=0),
    ]
    graph = helper.make_graph(nodes, "g", takes, [onnx.ValueInfoProto(name="y")], [table])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "ids.onnx"
    )
    told = profile(tmp_path, "ids.onnx", "--batches", "1,4", "--cores", "1", "--shape", "ids=12")
    assert not in_one_piece(told)
    assert told["operators"]["new"] >= 4
