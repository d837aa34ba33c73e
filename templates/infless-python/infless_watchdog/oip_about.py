"""What an instance says of itself and of its model in the Open Inference Protocol.

With Triton's extensions: statistics, model configuration, model repository. Plain numbers in, what becomes JSON out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

VERSION = "1"
"""Of every model: there is one, and clients may name it."""

Timed = tuple[int, float]
"""How often, and how many seconds in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What has happened to a model's requests since its start."""

    success: Timed = (0, 0.0)
    fail: Timed = (0, 0.0)
    queue: Timed = (0, 0.0)
    compute: Timed = (0, 0.0)
    """For each request, the run that it was in."""
    last_inference_s: float = 0.0
    """Since the epoch; 0 for never."""
    batches: Mapping[int, Timed] = field(default_factory=dict)
    """Runs by the number of requests in them."""


def server_metadata() -> dict[str, Any]:
    """What serves, and which of Triton's extensions it has."""
    extensions = ["binary_tensor_data", "statistics", "model_configuration", "model_repository"]
    return {"name": "infless-watchdog", "version": VERSION, "extensions": extensions}


def metadata(
    name: str, platform: str, inputs: Sequence[Mapping[str, Any]] = (), outputs: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """A model and its tensors: `{"name", "datatype", "shape"}` each, -1 for sizes that a request chooses."""
    return {"name": name, "versions": [VERSION], "platform": platform, "inputs": [*inputs], "outputs": [*outputs]}


def config(
    name: str, max_batch_size: int, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Triton's model configuration, from the tensors of `metadata`. Without a batch axis the largest batch is 0."""
    has_axis = all(spec["shape"][:1] == [-1] for spec in (*inputs, *outputs))

    def tensor(spec: Mapping[str, Any]) -> dict[str, Any]:
        data_type = "TYPE_STRING" if spec["datatype"] == "BYTES" else f"TYPE_{spec['datatype']}"
        return {"name": spec["name"], "data_type": data_type, "dims": spec["shape"][1 if has_axis else 0 :]}

    return {
        "name": name,
        "platform": "",
        "backend": "infless",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": max_batch_size if has_axis else 0,
        "input": [tensor(spec) for spec in inputs],
        "output": [tensor(spec) for spec in outputs],
        **({"dynamic_batching": {}} if has_axis and max_batch_size > 1 else {}),
    }


def repository_index(name: str, ready: bool) -> list[dict[str, str]]:
    """Triton's index of models, of which there is one."""
    return [{"name": name, "version": VERSION, "state": "READY" if ready else "UNAVAILABLE", "reason": ""}]


def statistics(name: str, counts: Counts) -> dict[str, Any]:
    """Triton's statistics. Input and output are not timed apart from the run, so their times are 0."""
    runs = sorted(counts.batches.items())
    stats = {part: _duration(getattr(counts, part)) for part in ("success", "fail", "queue")}
    one = {
        "name": name,
        "version": VERSION,
        "last_inference": round(counts.last_inference_s * 1000),
        "inference_count": counts.success[0],
        "execution_count": sum(timed[0] for _, timed in runs),
        "inference_stats": {**stats, **_computing(counts.compute), "cache_hit": _duration((0, 0.0))},
        "batch_stats": [{"batch_size": size, **_computing(timed)} for size, timed in runs],
    }
    return {"model_stats": [one]}


def _computing(infer: Timed) -> dict[str, Any]:
    none = _duration((infer[0], 0.0))
    return {"compute_input": none, "compute_infer": _duration(infer), "compute_output": none}


def _duration(timed: Timed) -> dict[str, int]:
    return {"count": timed[0], "ns": round(timed[1] * 1e9)}
