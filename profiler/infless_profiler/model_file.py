"""Edge: a model's file, checked before anything is loaded, and the inputs that it is run on."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from infless_core.errors import InvalidInput
from infless_core.units import format_bytes
from infless_profiler.isolate import Feed
from infless_profiler.operators import Length, Tensor

_SHAPE = re.compile(r"(b|\d+)(,(b|\d+))*")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """A model that can be read, and what the user said of its inputs."""

    path: Path
    name: str
    digest: str
    """Of the content (weights beside it included) and of `shapes`."""
    size_bytes: int
    shapes: Mapping[str, tuple[int | None, ...]] = field(default_factory=dict)
    """Of a whole input; None is the batch."""
    samples: Mapping[str, np.ndarray] = field(default_factory=dict)
    """One item for each input: its shape, and its values where they are whole numbers."""


def parse_shapes(texts: tuple[str, ...]) -> dict[str, tuple[int | None, ...]]:
    """Shapes from `x=3,48,192` (of one item) or `state=2,b,128` (b is where the batch goes).

    Raises:
        InvalidInput: one is not such a shape; zero is no length.
    """
    found: dict[str, tuple[int | None, ...]] = {}
    for text in texts:
        name, _, dims = text.replace(" ", "").rpartition("=")
        if not name or not _SHAPE.fullmatch(dims):
            raise InvalidInput(f"--shape: {text!r} is not a shape such as 'x=3,48,192' or 'state=2,b,128'")
        lengths = tuple(None if part == "b" else int(part) for part in dims.split(","))
        if 0 in lengths:
            raise InvalidInput(f"--shape: {text!r} has an axis of length 0; each is at least 1")
        if lengths.count(None) > 1:
            raise InvalidInput(f"--shape: {text!r} has more than one axis for the batch")
        found[name] = lengths if None in lengths else (None, *lengths)
    return found


def read_samples(path: Path) -> dict[str, np.ndarray]:
    """One item for each input from an `.npz` file.

    Raises:
        InvalidInput: it is no such file.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InvalidInput(f"--sample: {path} is not an .npz file of numpy arrays: {error}") from error


def read_model(
    path: Path,
    shapes: Mapping[str, tuple[int | None, ...]] | None = None,
    samples: Mapping[str, np.ndarray] | None = None,
    name: str | None = None,
) -> ModelFile:
    """Check that a file is an ONNX model with all its weights.

    Raises:
        InvalidInput: it does not exist, is no ONNX model, is cut off, or weights are missing.
    """
    shapes, samples = shapes or {}, samples or {}
    digest, size_bytes = hashlib.sha256(), 0
    if path.is_dir() and (path / "model.onnx").is_file():
        path = path / "model.onnx"
    if not path.is_file():
        raise InvalidInput(f"{path}: there is no such file")
    for one in (path, *_weights_beside(path)):
        with one.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
        size_bytes += one.stat().st_size
    wishes = {name: list(lengths) for name, lengths in sorted(shapes.items())}
    items = {name: [array.dtype.name, list(array.shape)] for name, array in sorted(samples.items())}
    digest.update(json.dumps([wishes, items]).encode())
    for _, array in sorted(samples.items()):
        if array.dtype.kind != "f":  # values of whole numbers decide what is done
            digest.update(np.ascontiguousarray(array).tobytes())
    if name is None:
        name = path.parent.name if path.stem == "model" else path.stem
    return ModelFile(
        path=path, name=name, digest=digest.hexdigest()[:24], size_bytes=size_bytes, shapes=shapes, samples=samples
    )


def _weights_beside(path: Path) -> list[Path]:
    """Files with external data, checked."""
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise InvalidInput("profiling a model needs onnx: pip install 'infless[profiler]'") from error
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except (DecodeError, ValueError, RuntimeError) as error:
        raise InvalidInput(f"{path}: this is not an ONNX model, or the file is cut off: {error}") from error
    if not model.graph.node or not model.opset_import:
        raise InvalidInput(f"{path}: this is not an ONNX model, or the file is cut off: it has no operators")
    needed: dict[Path, int] = {}
    for tensor in onnx.external_data_helper._get_all_tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            try:
                about = onnx.external_data_helper.ExternalDataInfo(tensor)
            except ValueError as error:
                raise InvalidInput(f"{path}: where the weights of {tensor.name} lie is damaged: {error}") from error
            beside = path.parent / about.location
            needed[beside] = max(needed.get(beside, 0), (about.offset or 0) + (about.length or 0))
    for beside, length_bytes in needed.items():
        if not beside.is_file():
            raise InvalidInput(f"{path}: its weights are in {beside.name}, which is not beside it")
        if beside.stat().st_size < length_bytes:
            raise InvalidInput(
                f"{path}: its weights in {beside.name} are cut off: {beside.stat().st_size} bytes,"
                f" {length_bytes} are needed"
            )
    return sorted(needed)


def input_feeds(file: ModelFile) -> tuple[dict[str, Feed], int | None]:
    """What each input is given, and the largest batch (1: the model has no axis for it; None: any).

    The batch is the first axis of the first input where it is open, and every axis of that name. Other open axes need a
    size from `shapes` or `samples`. Floating-point inputs are drawn; whole numbers are the sample's, or 1.

    Raises:
        InvalidInput: a name that is no input, a shape that does not fit, an open axis without a size, an axis of length
            0, an input that is no tensor or larger than memory, a sample of another kind.
    """
    import onnx

    model = onnx.load(file.path, format="protobuf", load_external_data=False)
    weights = {one.name for one in model.graph.initializer}
    inputs = [one for one in model.graph.input if one.name not in weights]
    for option, names in (("--shape", file.shapes), ("--sample", file.samples)):
        unknown = [name for name in names if name not in {one.name for one in inputs}]
        if unknown:
            has = ", ".join(one.name for one in inputs) or "none"
            raise InvalidInput(f"{option}: {file.name} has no input {unknown[0]!r}; its inputs are {has}")
    batch_name = _batch_name(inputs)
    feeds: dict[str, Feed] = {}
    for one in inputs:
        if not one.type.tensor_type.elem_type:
            raise InvalidInput(f"{file.name}: input {one.name} is no tensor; profile the function that uses it instead")
        dtype = onnx.helper.tensor_dtype_to_np_dtype(one.type.tensor_type.elem_type)
        if dtype.kind == "O":
            raise InvalidInput(f"{file.name}: input {one.name} holds texts; profile the function that uses it instead")
        tensor = Tensor(dtype=dtype.name, dims=tuple(_dims(file, one, batch_name)))
        _check_size(file, one.name, tensor)
        try:
            feeds[one.name] = _feed(tensor, dtype, file.samples.get(one.name))
        except (ValueError, TypeError) as error:
            raise InvalidInput(f"--sample: input {one.name} of {file.name} is {dtype.name}: {error}") from error
    grows = any(per_item for feed in feeds.values() for _, per_item in feed.tensor.dims)
    return feeds, None if grows else 1


def _batch_name(inputs: list[Any]) -> str:
    """The symbol that the first open first axis has; empty where it has none."""
    for one in inputs:
        axes = one.type.tensor_type.shape.dim
        if len(axes) and _is_open(axes[0]):
            return str(axes[0].dim_param)
    return ""


def _is_open(axis: Any) -> bool:
    """Without a length, or with the -1 that some exporters write for it."""
    return not axis.HasField("dim_value") or axis.dim_value < 0


def _dims(file: ModelFile, one: Any, batch_name: str) -> Iterator[Length]:
    axes = one.type.tensor_type.shape.dim
    stated = file.shapes.get(one.name)
    sample = file.samples.get(one.name)
    if stated is not None and len(stated) != len(axes):
        raise InvalidInput(
            f"--shape: input {one.name} of {file.name} has {len(axes)} axes, {len(stated)} with the batch are given"
        )
    if sample is not None and sample.ndim != len(axes):
        raise InvalidInput(
            f"--sample: input {one.name} of {file.name} has {len(axes)} axes, the sample has {sample.ndim};"
            " it holds one item, with an axis of length 1 for the batch"
        )
    for place, axis in enumerate(axes):
        if not _is_open(axis):
            length: Length = (int(axis.dim_value), 0)
            wished = stated[place] if stated else int(sample.shape[place]) if sample is not None else length[0]
            if wished not in (length[0], None) or (stated and wished is None and length[0] != 1):
                raise InvalidInput(
                    f"axis {place} of input {one.name} of {file.name} is fixed at {length[0]}, not {wished or 'b'}"
                )
        elif stated is not None:
            length = (0, 1) if stated[place] is None else (int(stated[place] or 0), 0)
        elif (axis.dim_param and axis.dim_param == batch_name) or (place == 0 and not axis.dim_param):
            length = (0, 1)
        elif sample is not None:
            length = (int(sample.shape[place]), 0)
        else:
            called = f" ({axis.dim_param})" if axis.dim_param else ""
            raise InvalidInput(
                f"{file.name}: axis {place}{called} of input {one.name} is open; give its size, for example"
                f" --shape {one.name}={_example(axes)}, or a --sample"
            )
        if length == (0, 0):
            raise InvalidInput(f"{file.name}: axis {place} of input {one.name} has length 0; there is nothing to time")
        yield length


def _example(axes: Any) -> str:
    return ",".join("64" if _is_open(axis) else str(axis.dim_value) for axis in [*axes][1:]) or "64"


def _check_size(file: ModelFile, name: str, tensor: Tensor) -> None:
    """Up to three items are made to learn the shapes, and copied once."""
    needed, available = 2 * tensor.size_bytes(3), psutil.virtual_memory().available
    if needed > available:
        raise InvalidInput(
            f"{file.name}: input {name} needs {format_bytes(needed)} of memory for three items, and"
            f" {format_bytes(available)} are free; is its size right?"
        )


def _feed(tensor: Tensor, dtype: Any, sample: np.ndarray | None) -> Feed:
    if dtype.kind == "f":
        return Feed(tensor=tensor, values=None)
    if sample is not None:
        return Feed(tensor=tensor, values=sample.astype(dtype))
    return Feed(tensor=tensor, values=np.ones(tensor.shape(1), dtype))


@contextmanager
def exported(path: Path, folder: Path) -> Iterator[Path]:
    """A `.pt2` program (torch.export) as ONNX; anything else as it is.

    Raises:
        InvalidInput: torch or its exporter is missing, or cannot export it.
    """
    if path.suffix.lower() != ".pt2":
        yield path
        return
    try:
        import torch

        program = torch.export.load(path)
        target = folder / f"{path.stem}.onnx"
        export_torch(program, (), target)
    except ImportError as error:
        raise InvalidInput(f"{path} needs torch and its exporter: pip install 'infless[torch,profiler]'") from error
    except Exception as error:
        raise InvalidInput(f"{path}: torch cannot export this program to ONNX: {error}") from error
    yield target


def export_torch(model: Any, example: tuple[Any, ...], target: Path) -> Path:
    """A `torch.nn.Module`, or an exported program, as an ONNX file whose first axes are open.

    Args:
        model: the module in evaluation mode, or a `torch.export.ExportedProgram` (then no example is needed).
        example: its inputs, two items each.
        target: where it goes.
    """
    import torch

    # It tells about every package that it could also export, were it installed.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    options: dict[str, Any] = {"dynamo": True, "verbose": False, "external_data": False}
    if example:
        axes = {0: torch.export.Dim("batch", min=1, max=4096)}
        options["dynamic_shapes"] = tuple(axes for _ in example)
    torch.onnx.export(model, example, str(target), **options)
    return target
