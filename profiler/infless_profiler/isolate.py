"""One operator as a model of its own, with inputs like those it had: what `operator_times` runs and times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from infless_profiler.operators import Tensor

if TYPE_CHECKING:
    import onnx

COPIES_BYTES = 100_000
"""Below this traffic a call is too short to be told from the time that starting a run takes: it is put in 16 times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """One input of an isolated operator."""

    tensor: Tensor
    values: np.ndarray | None
    """What the model had there for one item, where values decide what is done (whole numbers, truth values)."""
    slope: np.ndarray | None = None
    """How `values` grow with each further item, for lengths that were computed from the batch."""

    def array(self, batch: int) -> np.ndarray:
        """An input for a batch of this size; numbers are even in 0.1 to 1, which no function finds hard."""
        shape, dtype = self.tensor.shape(batch), np.dtype(self.tensor.dtype)
        if self.values is None:
            return np.resize(_numbers(dtype.name), shape)
        if self.slope is not None:
            grown: np.ndarray = (self.values + self.slope * (batch - 1)).reshape(shape).astype(dtype)
            return grown
        return np.resize(self.values.astype(dtype), shape)


@lru_cache(maxsize=8)
def _numbers(dtype: str) -> np.ndarray:
    """Repeated where more are needed: to draw a million takes longer than to run most operators on them."""
    drawn: np.ndarray = np.random.default_rng(0).uniform(0.1, 1.0, 1 << 18).astype(dtype)
    return drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """How to run one operator alone."""

    feeds: Mapping[str, Feed]
    path: Path | None = None
    """Of a whole model that is measured as one piece; nothing else is said then."""
    nodes: tuple[Any, ...] = ()
    """`onnx.NodeProto`."""
    weights: tuple[Any, ...] = ()
    """`onnx.TensorProto`."""
    opsets: Sequence[Any] = ()
    functions: Sequence[Any] = ()
    ir_version: int = 8
    gives: tuple[str, ...] = ()
    """Names of results that are asked for."""

    def model(self, copies: int = 1) -> bytes:
        """A serialised model that executes the operator `copies` times on the same inputs."""
        from onnx import NodeProto, ValueInfoProto, helper

        nodes: list[onnx.NodeProto] = []
        gives: list[str] = []
        for copy in range(copies):
            for one in self.nodes:
                node = NodeProto()
                node.CopyFrom(one)
                if copies > 1:
                    node.name = f"copy{copy}"
                    node.output[:] = [f"{name}__{copy}" if name else "" for name in one.output]
                nodes.append(node)
            gives += [f"{name}__{copy}" if copies > 1 else name for name in self.gives]
        takes = [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(np.dtype(feed.tensor.dtype)), [None] * len(feed.tensor.dims)
            )
            for name, feed in self.feeds.items()
        ]
        # Only one result leaves the session: what nobody asks for is freed at once, as inside a model.
        wanted = gives if copies == 1 else gives[-1:]
        graph = helper.make_graph(
            nodes, "operator", takes, [ValueInfoProto(name=name) for name in wanted], self.weights
        )
        made = helper.make_model(
            graph, opset_imports=self.opsets, functions=self.functions, ir_version=self.ir_version
        )  # fmt: skip
        content: bytes = made.SerializeToString()
        return content
