"""Edge: an ONNX model as the runtime will execute it, taken apart into calls of operators.

ONNX Runtime optimises the graph for this processor (fused convolutions, blocked layouts), saves it, and runs it with
one, two and three items to learn every shape: no shape inference has to know fused operators or layouts.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from infless_core.errors import InvalidInput
from infless_core.units import format_bytes
from infless_profiler.around import MODEL, OURS, around
from infless_profiler.isolate import Case, Feed
from infless_profiler.model_file import ModelFile, input_feeds
from infless_profiler.operators import Call, ModelGraph, Operator, Tensor
from infless_profiler.sessions import Device, open_session

VALUES_MAX = 64
"""Whole numbers up to this many are lengths, axes and conditions; more are data."""
_SUBGRAPHS = {"If", "Loop", "Scan"}
_LARGE_BYTES = 1 << 30
"""Protocol buffers end at 2 GiB: the weights of larger models are kept beside them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extraction:
    """A model's operators, and how to run each alone."""

    graph: ModelGraph
    cases: Mapping[str, Case]
    """By signature."""
    feeds: Mapping[str, Feed]
    """The model's own inputs."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a value in the graph looked like."""

    tensor: Tensor
    values: np.ndarray | None
    slope: np.ndarray | None


class _Unsuited(Exception):  # noqa: N818 - caught in this module
    """The graph cannot be taken apart; the message says why."""


def read_graph(file: ModelFile, device: Device) -> Extraction:
    """Take a model apart.

    A model that cannot be (a value that is no tensor, a length that does not grow evenly) becomes one operator that is
    measured as a whole, and `graph.notes` says so.

    Raises:
        InvalidInput: the runtime refuses the model, or its inputs' shapes.
    """
    import onnx

    feeds, batch_max = input_feeds(file)
    with tempfile.TemporaryDirectory(prefix="infless-graph-") as folder:
        saved = Path(folder) / "optimised.onnx"
        outside = file.size_bytes > min(_LARGE_BYTES, file.path.stat().st_size)  # large, or beside it already
        open_session(file.path, device, 1, saved=saved, outside=outside)
        model = onnx.load(saved)
    try:
        seen, batch_max = _watch(model, feeds, batch_max, device)
        return _take_apart(file, model, feeds, seen, batch_max, device)
    except _Unsuited as reason:
        return as_one_piece(file, feeds, batch_max, str(reason))


def as_one_piece(file: ModelFile, feeds: Mapping[str, Feed], batch_max: int | None, reason: str) -> Extraction:
    """A model as a single operator: the fallback, and exact."""
    inputs = tuple(feed.tensor for feed in feeds.values())
    operator = Operator(domain=OURS, type=MODEL, version=1, attributes={"digest": file.digest}, inputs=inputs)
    graph = ModelGraph(
        name=file.name, digest=file.digest, calls=(Call(operator=operator),),
        parameter_bytes=file.size_bytes, batch_max=batch_max, notes=(f"measured as a whole: {reason}",),
    )  # fmt: skip
    return Extraction(graph=graph, cases={operator.signature: Case(path=file.path, feeds=feeds)}, feeds=feeds)


def _call(operator: Operator) -> Call:
    return Call(operator=operator)


def _watch(
    model: Any, feeds: Mapping[str, Feed], batch_max: int | None, device: Device
) -> tuple[dict[str, _Seen], int | None]:
    """Run the optimised model with every value as an output, for one, two and three items."""
    import onnx
    from google.protobuf.message import EncodeError

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    have = {one.name for one in watched.graph.output}
    names = [name for node in model.graph.node for name in node.output if name and name not in have]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    try:
        session = open_session(watched.SerializeToString(), device, 1, optimise=False)
    except (ValueError, EncodeError) as error:  # the weights of a very large model
        raise _Unsuited(f"its graph cannot be serialised: {error}") from error
    runs: list[dict[str, np.ndarray]] = []
    for batch in (1, 2, 3) if batch_max is None else (1,):
        feed = {name: one.array(batch) for name, one in feeds.items()}
        asked = [one.name for one in session.get_outputs()]
        try:
            found = dict(zip(asked, session.run(asked, feed), strict=True))
        except Exception as error:
            if batch == 1:
                raise InvalidInput(f"the model does not run on inputs of {_shapes(feed)}: {error}") from error
            batch_max = 1  # it states an open axis and cannot use it
            runs = runs[:1]
            break
        runs.append({name: _light(name, value) for name, value in {**feed, **found}.items()})
    return {name: _seen(name, [run[name] for run in runs]) for name in runs[0]}, batch_max


def _light(name: str, value: Any) -> np.ndarray:
    """A value to remember: of floating-point numbers only the shape matters, so they are not kept."""
    if not isinstance(value, np.ndarray):
        raise _Unsuited(f"its value {name!r} is no tensor")
    return np.broadcast_to(np.zeros((), value.dtype), value.shape) if value.dtype.kind == "f" else value


def _seen(name: str, runs: list[np.ndarray]) -> _Seen:
    """Lengths, and whole numbers, as straight lines over the batch.

    Raises:
        _Unsuited: three runs do not lie on a line.
    """
    one, two, three = runs if len(runs) == 3 else runs * 3
    if not one.ndim == two.ndim == three.ndim:
        raise _Unsuited(f"its value {name!r} changes its number of axes with the batch")
    dims = tuple((2 * a - b, b - a) for a, b in zip(one.shape, two.shape, strict=True))
    tensor = Tensor(dtype=one.dtype.name, dims=dims)
    if any(per_item < 0 for _, per_item in dims):  # less than nothing for a larger one
        raise _Unsuited(f"its value {name!r} shrinks with the batch")
    if any(length < 0 for length in tensor.shape(1)) or tensor.shape(3) != three.shape:
        raise _Unsuited(f"the shape of its value {name!r} does not grow evenly with the batch")
    if one.dtype.kind == "f":
        return _Seen(tensor, None, None)
    even = one.shape == two.shape and one.size <= VALUES_MAX and one.dtype.kind in "iu"
    slope = two.astype(np.int64) - one.astype(np.int64) if even else None
    return _Seen(tensor, one, slope)


def _take_apart(
    file: ModelFile,
    model: Any,
    feeds: Mapping[str, Feed],
    seen: Mapping[str, _Seen],
    batch_max: int | None,
    device: Device,
) -> Extraction:
    import onnx

    weights = {one.name: one for one in model.graph.initializer}
    versions = {one.domain: one.version for one in model.opset_import}
    made_by: dict[str, int] = {}
    calls: list[Call] = []
    cases: dict[str, Case] = {}
    pieces: set[str] = set()
    for place, node in enumerate(model.graph.node):
        takes = [*dict.fromkeys([*node.input, *_outer_names(node)])]
        if node.op_type in _SUBGRAPHS:
            pieces.add(node.op_type)
        operator = Operator(
            domain=node.domain,
            type=node.op_type,
            version=versions.get(node.domain, 1),
            attributes={**_attributes(node), **_deciding_values(takes, seen, weights)},
            inputs=tuple(_tensor(name, seen, weights) for name in takes),
            outputs=tuple(_tensor(name, seen, weights) for name in node.output),
        )
        calls.append(Call(operator=operator, needs=tuple(sorted({made_by[name] for name in takes if name in made_by}))))
        made_by.update((name, place) for name in node.output if name)
        if operator.signature not in cases:
            cases[operator.signature] = Case(
                nodes=(node,),
                weights=tuple(weights[name] for name in takes if name in weights),
                feeds={
                    name: Feed(tensor=seen[name].tensor, values=seen[name].values, slope=seen[name].slope)
                    for name in takes if name in seen and name not in weights
                },
                opsets=tuple(model.opset_import), functions=tuple(model.functions), ir_version=model.ir_version,
                gives=tuple(name for name in node.output if name)[:1],
            )  # fmt: skip
    outputs = [seen[out.name].tensor for out in model.graph.output if out.name in seen]
    beside, nothing = around([feed.tensor for feed in feeds.values()], outputs, device)
    cases |= {operator.signature: nothing for operator in beside}
    notes = tuple(f"operator {kind}: measured as one piece with what it contains" for kind in sorted(pieces))
    graph = ModelGraph(
        name=file.name,
        digest=file.digest,
        calls=(*calls, *map(_call, beside)),
        parameter_bytes=sum(onnx.numpy_helper.to_array(one).nbytes for one in weights.values()),
        batch_max=batch_max,
        notes=notes,
    )
    return Extraction(graph=graph, cases=cases, feeds=feeds)


def _tensor(name: str, seen: Mapping[str, _Seen], weights: Mapping[str, Any]) -> Tensor | None:
    from onnx import helper

    if name in weights:
        one = weights[name]
        dtype = helper.tensor_dtype_to_np_dtype(one.data_type).name
        return Tensor(dtype=dtype, dims=tuple((length, 0) for length in one.dims), constant=True)
    return seen[name].tensor if name in seen else None


def _attributes(node: Any) -> dict[str, Any]:
    """An attribute that is no JSON value becomes its digest."""
    from onnx import helper

    found: dict[str, Any] = {}
    for one in sorted(node.attribute, key=lambda attribute: attribute.name):
        value = helper.get_attribute_value(one)
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        elif isinstance(value, (list, tuple)) and all(isinstance(part, (int, float)) for part in value):
            value = list(value)
        elif not isinstance(value, (int, float)):
            value = hashlib.sha256(one.SerializeToString(deterministic=True)).hexdigest()[:16]
        found[one.name] = value
    return found


def _deciding_values(
    takes: list[str], seen: Mapping[str, _Seen], weights: Mapping[str, Any]
) -> dict[str, Any]:  # fmt: skip
    """A condition or a count decides what an operator does: it belongs to what it is."""
    from onnx import numpy_helper

    found = {}
    for place, name in enumerate(takes):
        values = numpy_helper.to_array(weights[name]) if name in weights and _is_single(weights[name]) else None
        if name in seen:
            values = seen[name].values
        if values is not None and values.size == 1 and values.dtype.kind in "biu":
            found[f"value of input {place}"] = int(values.reshape(()))
    return found


def _is_single(weight: Any) -> bool:
    return all(length == 1 for length in weight.dims)


def _outer_names(node: Any) -> Iterator[str]:
    """Values from outside that the subgraphs of a node use."""
    for attribute in node.attribute:
        for graph in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            inside = {one.name for one in (*graph.input, *graph.initializer)}
            for inner in graph.node:
                yield from (name for name in (*inner.input, *_outer_names(inner)) if name and name not in inside)
                inside.update(inner.output)
            yield from (one.name for one in graph.output if one.name not in inside)


def _shapes(feed: Mapping[str, np.ndarray]) -> str:
    return "; ".join(f"{name}={','.join(map(str, array.shape))}" for name, array in feed.items())


def check_file_memory(file: ModelFile, available_bytes: int) -> None:
    """Refuse a file that cannot be taken apart here: it is held in four forms for a moment.

    Raises:
        InvalidInput: says how much there is.
    """
    if 4 * file.size_bytes > available_bytes:
        raise InvalidInput(
            f"{file.name}: taking {format_bytes(file.size_bytes)} of model apart needs four times as much memory, and"
            f" {format_bytes(available_bytes)} are free"
        )


def check_memory(graph: ModelGraph, batch: int, available_bytes: int) -> None:
    """Refuse what cannot fit.

    Raises:
        InvalidInput: weights and the largest operator's activations need more memory than there is.
    """
    needed = 2 * graph.parameter_bytes + graph.activation_bytes(batch)
    if needed > available_bytes:
        raise InvalidInput(
            f"{graph.name}: a batch of {batch} needs at least {format_bytes(needed)} of memory, and"
            f" {format_bytes(available_bytes)} are free; ask for smaller --batches"
        )


def without(extraction: Extraction, file: ModelFile, reason: str) -> Extraction:
    """The same model as one piece, when an operator turns out not to run alone."""
    found = as_one_piece(file, extraction.feeds, extraction.graph.batch_max, reason)
    return replace(found, graph=replace(found.graph, notes=(*extraction.graph.notes, *found.graph.notes)))
