"""Pure: what an operator is, how much work it does, and how a model is made of calls of operators.

An operator is what the runtime executes after its own graph optimisation, described for one item of a batch: every
length of a shape is `fixed + per_item * batch`. So one operator stands for all batch sizes, and two models that do the
same thing share it (COP: INFless, section 3.3).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np

Length = tuple[int, int]
"""`(fixed, per_item)`: an axis is `fixed + per_item * batch` long."""
ITEM_BYTES = {
    "float32": 4, "float64": 8, "float16": 2, "bfloat16": 2, "bool": 1, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2,
    "int32": 4, "uint32": 4, "int64": 8, "uint64": 8, "object": 16,
}  # fmt: skip
COLD_BYTES = 128 << 10
"""Operators with fewer bytes of weights take as long when these lie in the innermost caches as when they do not."""


class Point(NamedTuple):
    """Where an operator's time is known or wanted: a configuration, and where its weights are."""

    batch: int
    cpu_cores: int
    gpu_percent: int = 0
    cold: bool = False
    """Its weights come from memory, because everything else that the model touches has pushed them out of the caches
    since the last batch."""

    @property
    def place(self) -> tuple[int, int]:
        """`(cpu_cores, gpu_percent)`: what a worker is started with."""
        return self.cpu_cores, self.gpu_percent


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One input or output of an operator."""

    dtype: str
    """As numpy calls it."""
    dims: tuple[Length, ...]
    constant: bool = False
    """A weight: it lies in the model, not in the request."""

    def shape(self, batch: int) -> tuple[int, ...]:
        """Lengths in a batch of this size."""
        return tuple(fixed + per_item * batch for fixed, per_item in self.dims)

    def elements(self, batch: int) -> int:
        """How many numbers it holds in a batch of this size."""
        return math.prod(self.shape(batch))

    def size_bytes(self, batch: int) -> int:
        """Memory it takes in a batch of this size."""
        return self.elements(batch) * ITEM_BYTES.get(self.dtype, 4)


@dataclass(frozen=True, kw_only=True, eq=False)
class Operator:
    """One distinct operator: everything that its execution time depends on, but batch, cores and GPU share.

    Equal, and hashed, by `signature`.
    """

    domain: str
    type: str
    version: int
    """Of the operator set."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """JSON values; what is large (a subgraph) as its digest."""
    inputs: tuple[Tensor | None, ...] = ()
    """None where an optional input is left out."""
    outputs: tuple[Tensor | None, ...] = ()

    @cached_property
    def signature(self) -> str:
        """Digest that tables are keyed by: equal for equal operators, whatever model they come from."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:24]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Operator) and other.signature == self.signature

    def __hash__(self) -> int:
        return hash(self.signature)

    @property
    def family(self) -> str:
        """Operators whose times can be compared with each other."""
        return f"{self.domain}:{self.type}" if self.domain else self.type

    def to_json(self) -> dict[str, Any]:
        """As it is kept in the tables."""
        return {
            "domain": self.domain,
            "type": self.type,
            "version": self.version,
            "attributes": dict(self.attributes),
            "inputs": [_tensor_json(one) for one in self.inputs],
            "outputs": [_tensor_json(one) for one in self.outputs],
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Operator:
        """What `to_json` gave.

        Raises:
            KeyError, TypeError, ValueError: it is not such a thing.
        """
        return Operator(
            domain=str(data["domain"]),
            type=str(data["type"]),
            version=int(data["version"]),
            attributes=dict(data["attributes"]),
            inputs=tuple(map(_tensor, data["inputs"])),
            outputs=tuple(map(_tensor, data["outputs"])),
        )

    def __str__(self) -> str:
        shapes = ", ".join("-" if one is None else _shape_text(one) for one in self.inputs)
        return f"{self.family}({shapes})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One node of a model's graph: an operator, and the earlier calls whose results it needs."""

    operator: Operator
    needs: tuple[int, ...] = ()
    """Places in the model's list of calls."""


@dataclass(frozen=True, kw_only=True)
class ModelGraph:
    """A model as the runtime executes it."""

    name: str
    digest: str
    """Of the file's content and the sizes that were chosen for its open axes."""
    calls: tuple[Call, ...]
    parameter_bytes: int
    batch_max: int | None = None
    """1 where the model has no axis for a batch; None: no limit."""
    notes: tuple[str, ...] = ()
    """What is measured as one piece, and why."""

    @cached_property
    def operators(self) -> dict[str, Operator]:
        """Distinct operators by signature, in order of their first call."""
        return {call.operator.signature: call.operator for call in self.calls}

    @cached_property
    def counts(self) -> dict[str, int]:
        """How often each operator is called."""
        counts: dict[str, int] = {}
        for call in self.calls:
            counts[call.operator.signature] = counts.get(call.operator.signature, 0) + 1
        return counts

    def activation_bytes(self, batch: int) -> int:
        """Memory of the largest call's results and inputs: less than this no execution needs."""
        return max((moved_bytes(call.operator, batch, weights=False) for call in self.calls), default=0)

    def traffic_bytes(self, batch: int) -> int:
        """What all calls read and write in one execution, weights included."""
        return sum(moved_bytes(call.operator, batch) for call in self.calls)


@lru_cache(maxsize=1 << 16)
def moved_bytes(operator: Operator, batch: int, *, weights: bool = True) -> int:
    """Bytes that one call reads and writes."""
    return sum(
        one.size_bytes(batch)
        for one in (*operator.inputs, *operator.outputs)
        if one is not None and (weights or not one.constant)
    )


@lru_cache(maxsize=1 << 14)
def weight_bytes(operator: Operator) -> int:
    """Bytes of an operator's own weights."""
    return sum(one.size_bytes(1) for one in operator.inputs if one is not None and one.constant)


def state(operator: Operator, point: Point) -> Point:
    """The point as the tables know it: few weights are never cold."""
    return point._replace(cold=point.cold and weight_bytes(operator) >= COLD_BYTES)


@lru_cache(maxsize=1 << 16)
def multiply_adds(operator: Operator, batch: int) -> float:
    """Arithmetic of one call; for operators without inner products, the elements they write.

    The formulas need not be exact: they make operators of one family comparable (`estimate`).
    """
    inputs = [one for one in operator.inputs if one is not None]
    outputs = [one for one in operator.outputs if one is not None]
    written = float(sum(one.elements(batch) for one in outputs)) or 1.0
    read = float(sum(one.elements(batch) for one in inputs if not one.constant)) or 1.0
    kind = operator.type
    window = next((one.shape(batch)[1:] for one in inputs[1:] if len(one.dims) >= 3), ())
    if "ConvTranspose" in kind:
        return read * math.prod(window)
    if "Conv" in kind:
        return written * math.prod(window)
    if kind in {"LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"} and len(inputs) > 2:
        steps, items = (*inputs[0].shape(batch), 1, 1)[:2]
        return float(steps * items * (inputs[1].elements(batch) + inputs[2].elements(batch)))
    if kind == "Gemm" or "MatMul" in kind:
        return written * _inner_length(operator, batch)
    if "Attention" in kind and len(inputs) > 1:
        return read * (1, *inputs[1].shape(batch))[-1]
    if any(word in kind for word in ("Pool", "Reduce", "ArgMax", "Softmax", "Normalization")):
        return max(read, written * _scale(operator.attributes.get("kernel_shape")))
    return max(written, read) if kind != "Gather" else written


def _inner_length(operator: Operator, batch: int) -> int:
    left = operator.inputs[0] if operator.inputs else None
    if left is None or not left.dims:
        return 1
    transposed = operator.attributes.get("transA", 0) and len(left.dims) >= 2
    return left.shape(batch)[-2 if transposed else -1]


@lru_cache(maxsize=1 << 16)
def features(operator: Operator, batch: int) -> tuple[float, ...]:
    """What `estimate` compares operators of one family by: logarithms of the input size p, and how they compute.

    Returns:
        Logarithms (base 2) of arithmetic, activations read, results written, weights and the length of the innermost
        axis; then the attributes that change how a kernel computes (sizes of the window, steps, groups).
    """
    inputs = [one for one in operator.inputs if one is not None]
    outputs = [one for one in operator.outputs if one is not None]
    read = sum(one.elements(batch) for one in inputs if not one.constant)
    written = sum(one.elements(batch) for one in outputs)
    innermost = outputs[0].shape(batch)[-1] if outputs and outputs[0].dims else 1
    return (
        *(math.log2(1 + size) for size in (multiply_adds(operator, batch), read, written, weight_bytes(operator) / 4)),
        math.log2(1 + innermost),
        *(math.log2(_scale(operator.attributes.get(key))) for key in ("kernel_shape", "strides", "group")),
    )


def _scale(attribute: Any) -> float:
    if isinstance(attribute, (list, tuple)):
        return max(1.0, float(np.prod(attribute)))
    return max(1.0, float(attribute)) if isinstance(attribute, (int, float)) else 1.0


@lru_cache(maxsize=1 << 14)
def variant(operator: Operator) -> str:
    """What makes two operators of one family run different code: types, numbers of axes, which inputs broadcast."""
    words = [
        "-" if one is None else f"{one.dtype}{len(one.dims)}{'w' if one.constant else ''}" for one in operator.inputs
    ]
    return f"{operator.family} {' '.join(words)} {'b' if _broadcasts(operator) else ''}"


def _broadcasts(operator: Operator) -> bool:
    shapes = {one.shape(2) for one in operator.inputs if one is not None}
    return len(shapes) > 1


def _tensor_json(one: Tensor | None) -> list[Any] | None:
    return None if one is None else [one.dtype, [list(length) for length in one.dims], one.constant]


def _tensor(data: Any) -> Tensor | None:
    if data is None:
        return None
    dtype, dims, constant = data
    return Tensor(dtype=str(dtype), dims=tuple((int(a), int(b)) for a, b in dims), constant=bool(constant))


def _shape_text(one: Tensor) -> str:
    lengths = (
        f"{fixed or ''}{'+' if fixed and per else ''}{f'{per}b' if per else ''}" or "0" for fixed, per in one.dims
    )
    return f"{'w' if one.constant else ''}[{','.join(lengths)}]"
