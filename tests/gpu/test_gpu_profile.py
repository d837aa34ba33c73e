"""A model profiled on a real GPU, with half of it and with all of it."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from benchmarks.models import mlp
from provider_process import infless

onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        "CUDAExecutionProvider" not in onnxruntime.get_available_providers(), reason="this onnxruntime has no CUDA"
    ),
]


def test_shares_of_a_gpu(tmp_path: Path) -> None:
    """Every point is predicted and near what the whole model takes; copies to the GPU and back are operators.

    Without the CUDA MPS daemon a share changes nothing, so more of the GPU is not asked to be faster.
    """
    onnx.save(mlp((1024, 4096, 4096, 256)), tmp_path / "net.onnx")
    done = infless(
        "profile", "net.onnx", "--batches", "1,32", "--cores", "1", "--gpu-percents", "50,100", "--verify",
        "--picture", "x.png", "--json", "--state-dir", "state", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [(one["batch"], one["gpu_percent"]) for one in told["predictions"]] == [
        (1, 50), (32, 50), (1, 100), (32, 100),
    ]  # fmt: skip
    assert all(0.3 < one["expected_s"] / one["measured_s"] < 3 for one in told["predictions"]), told
    assert told["operators"]["new"] >= 5
    again = infless(
        "profile", "net.onnx", "--batches", "1,32", "--cores", "1", "--gpu-percents", "50,100", "--json",
        "--state-dir", "state", cwd=tmp_path,
    )  # fmt: skip
    times = json.loads(again.stdout)["operator_times"]
    assert times["measured"] <= times["needed"] / 4
