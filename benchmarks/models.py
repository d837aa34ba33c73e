"""The models that are served in the benchmarks, what is sent to them, and the right answers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Floats = npt.NDArray[np.float32]

INPUTS = 16
"""Different requests; the n-th carries input `n % INPUTS`."""
HIDDEN = 512
STEPS = 20


def mlp(sizes: tuple[int, ...], seed: int = 0) -> onnx.ModelProto:
    """A chain of MatMul and relu with seeded weights; the batch axis is open."""
    rng = np.random.default_rng(seed)
    nodes, weights, value = [], [], "x"
    for place, (wide, high) in enumerate(itertools.pairwise(sizes)):
        weights.append(_weight(rng, f"w{place}", (wide, high), (2 / wide) ** 0.5))
        nodes.append(helper.make_node("MatMul", [value, f"w{place}"], [f"m{place}"]))
        nodes.append(helper.make_node("Relu", [f"m{place}"], [f"r{place}"]))
        value = f"r{place}"
    return _model(nodes, weights, ("x", (sizes[0],)), (value, (sizes[-1],)))


def matmul(size: int, seed: int = 0) -> onnx.ModelProto:
    """One square MatMul: a model that costs next to nothing."""
    rng = np.random.default_rng(seed)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    return _model(nodes, [_weight(rng, "w", (size, size), size**-0.5)], ("x", (size,)), ("y", (size,)))


def lstm(steps: int, hidden: int, seed: int = 0) -> onnx.ModelProto:
    """One LSTM layer, as wide at its input as inside, over a fixed number of steps; answers its last hidden state."""
    rng = np.random.default_rng(seed)
    weights = [
        _weight(rng, "w", (1, 4 * hidden, hidden), hidden**-0.5),
        _weight(rng, "r", (1, 4 * hidden, hidden), hidden**-0.5),
        numpy_helper.from_array(np.zeros(1, np.int64), "directions"),
    ]
    nodes = [
        helper.make_node("Transpose", ["x"], ["steps_first"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["steps_first", "w", "r"], ["", "last"], hidden_size=hidden),
        helper.make_node("Squeeze", ["last", "directions"], ["y"]),
    ]
    return _model(nodes, weights, ("x", (steps, hidden)), ("y", (hidden,)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A model of the benchmark and what is wanted of it."""

    name: str
    make: Callable[[], onnx.ModelProto]
    shape: tuple[int, ...]
    """Of one input."""
    target_s: float


TASKS = {
    task.name: task
    for task in (
        Task(name="dssm", make=lambda: mlp((2389, 4096, 4096, 1024, 128)), shape=(2389,),
             target_s=0.1),
        Task(name="lstm", make=lambda: lstm(STEPS, HIDDEN), shape=(STEPS, HIDDEN),
             target_s=0.1),
        Task(name="tiny", make=lambda: matmul(16), shape=(16,), target_s=0.05),
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A saved model with inputs and their right answers."""

    folder: Path
    """Holds `model.onnx`, and nothing else."""
    inputs: tuple[Floats, ...]
    right: Floats
    """A row for each input."""

    @property
    def path(self) -> Path:
        """The model itself."""
        return self.folder / "model.onnx"


def prepare(task: Task, folder: Path) -> Example:
    """Save the model, and compute answers with onnxruntime directly, one by one."""
    import onnxruntime

    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(task.make(), folder / "model.onnx")
    rng = np.random.default_rng(1)
    inputs = tuple(rng.normal(0, 1, task.shape).astype(np.float32) for _ in range(INPUTS))
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    right = np.concatenate([session.run(None, {"x": one[None]})[0] for one in inputs])
    return Example(folder=folder, inputs=inputs, right=right)


def _weight(rng: np.random.Generator, name: str, shape: tuple[int, ...], scale: float) -> onnx.TensorProto:
    return numpy_helper.from_array(rng.normal(0, scale, shape).astype(np.float32), name)


def _model(
    nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto],
    takes: tuple[str, tuple[int, ...]], gives: tuple[str, tuple[int, ...]],
) -> onnx.ModelProto:  # fmt: skip
    def info(name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *shape])

    graph = helper.make_graph(nodes, "benchmark", [info(*takes)], [info(*gives)], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
