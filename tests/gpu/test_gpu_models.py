"""Models on a real GPU: the same answers as on the CPU, in the fast path and beside it, and within their memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save_model

from infless_watchdog.calls import Call, Head
from infless_watchdog.onnx_model import OnnxModel
from infless_watchdog.settings import Settings

onnxruntime = pytest.importorskip("onnxruntime")
AVAILABLE = onnxruntime.get_available_providers()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif("CUDAExecutionProvider" not in AVAILABLE, reason="this onnxruntime has no CUDA"),
]
OCTETS = (b"content-type", b"application/octet-stream")
DEVICES = [
    "cuda",
    pytest.param(
        "tensorrt",
        marks=pytest.mark.skipif(
            "TensorrtExecutionProvider" not in AVAILABLE, reason="this onnxruntime has no TensorRT"
        ),
    ),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Two layers with relu: rows of 64 in, rows of 16 out."""
    generator = np.random.default_rng(0)
    shapes = {"a": (64, 128), "b": (128, 16)}
    weights = [
        numpy_helper.from_array(generator.normal(0, 0.1, shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "b"], ["y"]),
    ]
    takes, gives = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("x", 64), ("y", 16))
    )
    graph = helper.make_graph(nodes, "g", [takes], [gives], weights)
    save_model(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "model.onnx"
    )
    return tmp_path / "model.onnx"


def answers(model: Any, rows: np.ndarray) -> np.ndarray:
    """Of a batch of raw requests."""
    head = Head("POST", headers=[OCTETS])
    items = [model.decode(Call(head, row.tobytes())) for row in rows]
    return np.stack([np.frombuffer(answer, np.float32) for answer in model.predict(items)])


@pytest.mark.parametrize("device", DEVICES)
def test_a_gpu_answers_as_the_cpu_does(path: Path, device: str) -> None:
    """In batches of every size in use; bound buffers are filled before, and read after the run."""
    gpu, cpu = (OnnxModel(path, Settings(model_device=one, batch_max=8)) for one in (device, "cpu"))
    assert gpu.device == device
    for size in (1, 8, 3, 8):
        rows = np.random.default_rng(size).normal(size=(size, 64)).astype(np.float32)
        np.testing.assert_allclose(answers(gpu, rows), answers(cpu, rows), rtol=1e-2, atol=1e-2)


def test_the_arena_keeps_to_its_limit(path: Path) -> None:
    """A batch beyond it fails as out of memory, and a smaller one is answered afterwards."""
    from infless_watchdog.devices import is_out_of_memory

    model = OnnxModel(path, Settings(model_device="cuda", gpu_memory_bytes=16 * 2**20))
    with pytest.raises(Exception) as caught:  # noqa: PT011 - known by its words
        model.predict([model.decode(Call(Head(headers=[OCTETS]), bytes(4 * 64 * 2**17)))])
    assert is_out_of_memory(caught.value)
    assert answers(model, np.zeros((2, 64), np.float32)).shape == (2, 16)


def test_torch_runs_on_the_gpu(tmp_path: Path) -> None:
    """An exported program is moved there as a whole."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA")
    from infless_watchdog.torch_model import TorchModel

    module = torch.nn.Linear(64, 16).eval()
    program = torch.export.export(module, (torch.zeros(2, 64),), dynamic_shapes={"input": {0: torch.export.Dim("n")}})
    torch.export.save(program, tmp_path / "model.pt2")
    gpu, cpu = (TorchModel(tmp_path / "model.pt2", Settings(model_device=one)) for one in ("cuda", "cpu"))
    assert gpu.device == "cuda"
    rows = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)
    np.testing.assert_allclose(answers(gpu, rows), answers(cpu, rows), rtol=1e-2, atol=1e-2)
