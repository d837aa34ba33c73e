"""The watchdog alone against the one-to-one baseline, on one core: `python -m benchmarks.watchdog`.

A MatMul-heavy model (2389-4096-4096-1024-128, relu, float32 raw bytes in and out), target 100 ms; and a trivial model
(one 16x16 MatMul), target 50 ms. Server and load generator have a core each; every answer is checked.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks import record, servers
from benchmarks.load import Work, highest_rate

MLP = (2389, 4096, 4096, 1024, 128)
TINY = (16, 16)
ROUNDS = 3


def model(sizes: tuple[int, ...], seed: int = 0) -> onnx.ModelProto:
    """A chain of MatMul and relu with seeded weights; the batch axis is open."""
    rng = np.random.default_rng(seed)
    nodes, weights, value = [], [], "x"
    for place, (wide, high) in enumerate(itertools.pairwise(sizes)):
        weights.append(numpy_helper.from_array(
            rng.normal(0, (2 / wide) ** 0.5, (wide, high)).astype(np.float32), f"w{place}"
        ))  # fmt: skip
        nodes.append(helper.make_node("MatMul", [value, f"w{place}"], [f"m{place}"]))
        nodes.append(helper.make_node("Relu", [f"m{place}"], [f"r{place}"]))
        value = f"r{place}"
    graph = helper.make_graph(
        nodes, "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", sizes[0]])],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, ["n", sizes[-1]])],
        weights,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def work_for(path: Path, width: int, target_s: float) -> Work:
    """Random inputs, and their answers computed with onnxruntime directly, one by one."""
    import onnxruntime

    rng = np.random.default_rng(1)
    inputs = [rng.normal(0, 1, (1, width)).astype(np.float32) for _ in range(16)]
    session = onnxruntime.InferenceSession(str(path))
    right = [session.run(None, {"x": one})[0] for one in inputs]

    def check(index: int, _status: int, body: bytes) -> bool:
        return np.allclose(np.frombuffer(body, np.float32), right[index].ravel(), rtol=1e-3, atol=1e-4)

    return Work(bodies=[one.tobytes() for one in inputs], target_s=target_s, check=check)


def compare(sizes: tuple[int, ...], target_s: float, start_rps: float) -> dict[str, object]:
    """Interleaved rounds of both servers; medians, the ratio, and every trial."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "function" / "model.onnx"
        path.parent.mkdir()
        onnx.save(model(sizes), path)
        work = work_for(path, sizes[0], target_s)
        rates: dict[str, list[float]] = {"watchdog": [], "one-to-one": []}
        trials: dict[str, list[object]] = {"watchdog": [], "one-to-one": []}
        for _ in range(ROUNDS):
            with servers.watchdog(path.parent, batch_max=32, target_s=target_s) as url:
                _note(rates, trials, "watchdog", highest_rate(url, work, start_rps=start_rps * 4))
            with servers.one_to_one(path.parent) as url:
                _note(rates, trials, "one-to-one", highest_rate(url, work, start_rps=start_rps))
    best = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "target_s": target_s,
        "highest_rate_rps": rates,
        "median_rps": best,
        "ratio": best["watchdog"] / best["one-to-one"],
        "trials": trials,
    }


def _note(rates: dict[str, list[float]], trials: dict[str, list[object]], name: str, found: tuple[float, list]) -> None:  # type: ignore[type-arg]
    rates[name].append(found[0])
    trials[name] += found[1]


if __name__ == "__main__":
    servers.pin_load()
    record.write(
        "watchdog",
        "python -m benchmarks.watchdog",
        {"mlp": compare(MLP, 0.1, 80), "tiny": compare(TINY, 0.05, 800)},
    )
