"""Open Inference Protocol v2 over HTTP: tensors in and out, as JSON or binary.

Source: kserve/open-inference-protocol, and Triton's binary tensor data extension (`Inference-Header-Content-Length`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infless_watchdog.isolation import ItemError

HEADER_LENGTH = b"inference-header-content-length"

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """How the client wants its answer."""

    id: str | None = None
    outputs: tuple[str, ...] = ()
    """Empty means all."""
    binary: bool = False


def parse_infer(body: bytes, header_length: bytes | None) -> tuple[dict[str, np.ndarray], Wanted]:
    """The tensors of an inference request by name, and how its answer is wanted.

    Raises:
        ItemError: 400 for what is not the protocol, 422 for tensors that contradict themselves.
    """
    head, binary = _split(body, header_length)
    try:
        request = json.loads(head)
    except (ValueError, RecursionError) as error:
        raise ItemError(400, f"the inference request is not valid JSON: {error}") from None
    return parse_request(request, binary)


def parse_request(request: Any, binary: memoryview) -> tuple[dict[str, np.ndarray], Wanted]:
    """As `parse_infer`, from the parsed JSON object and the binary data behind it."""
    if not isinstance(request, dict) or not isinstance(request.get("inputs"), list) or not request["inputs"]:
        raise ItemError(400, 'the inference request needs "inputs", a list of tensors')
    tensors: dict[str, np.ndarray] = {}
    for place, spec in enumerate(request["inputs"]):
        if not isinstance(spec, dict) or not isinstance(spec.get("name"), str):
            raise ItemError(400, f"inputs[{place}] needs a name")
        tensors[spec["name"]], binary = _tensor(spec, f"inputs[{place}] ({spec['name']})", binary)
    if len(binary):
        raise ItemError(422, f"{len(binary)} bytes follow the last binary tensor")
    return tensors, _wanted(request)


def answer_infer(name: str, outputs: Mapping[str, np.ndarray], wanted: Wanted) -> tuple[bytes, int | None]:
    """The answer's body, and the length of its JSON head when tensors follow it as binary data."""
    chosen = {key: outputs[key] for key in (wanted.outputs or outputs) if key in outputs}
    specs, blobs = [], []
    for key, array in chosen.items():
        spec: dict[str, Any] = {"name": key, "datatype": NAMES[array.dtype], "shape": list(array.shape)}
        if wanted.binary:
            blob = np.ascontiguousarray(array).tobytes()
            spec["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        else:
            spec["data"] = array.ravel().tolist()
        specs.append(spec)
    answer: dict[str, Any] = {"model_name": name, "outputs": specs}
    if wanted.id is not None:
        answer["id"] = wanted.id
    head = json.dumps(answer).encode()
    return (b"".join([head, *blobs]), len(head)) if wanted.binary else (head, None)


def _split(body: bytes, header_length: bytes | None) -> tuple[bytes, memoryview]:
    if header_length is None:
        return body, memoryview(b"")
    if not header_length.isdigit() or int(header_length) > len(body):
        raise ItemError(400, f"Inference-Header-Content-Length: {header_length!r} is not a length within the body")
    return body[: int(header_length)], memoryview(body)[int(header_length) :]


def _tensor(spec: Mapping[str, Any], where: str, binary: memoryview) -> tuple[np.ndarray, memoryview]:
    dtype, shape = DTYPES.get(str(spec.get("datatype"))), spec.get("shape")
    if dtype is None:
        raise ItemError(422, f"{where}: datatype {spec.get('datatype')!r} is not one of {', '.join(DTYPES)}")
    if not isinstance(shape, list) or not all(type(dim) is int and dim >= 0 for dim in shape):
        raise ItemError(422, f"{where}: shape {shape!r} is not a list of whole numbers")
    size = (spec.get("parameters") or {}).get("binary_data_size")
    if size is None:
        return _reshape(_from_json(spec.get("data"), dtype, where), shape, where), binary
    if type(size) is not int or not 0 <= size <= len(binary):
        raise ItemError(422, f"{where}: binary_data_size {size!r} does not fit the {len(binary)} bytes that are left")
    if size % dtype.itemsize:
        raise ItemError(422, f"{where}: {size} bytes are no whole number of {spec['datatype']} values")
    return _reshape(np.frombuffer(binary[:size], dtype), shape, where), binary[size:]


def _from_json(data: Any, dtype: np.dtype[Any], where: str) -> np.ndarray:
    if not isinstance(data, list):
        raise ItemError(422, f"{where}: needs data, a list")
    try:
        return np.asarray(data, dtype=dtype).ravel()
    except (ValueError, TypeError, OverflowError) as error:
        raise ItemError(422, f"{where}: data is not all {NAMES[dtype]}: {error}") from None


def _reshape(values: np.ndarray, shape: Sequence[int], where: str) -> np.ndarray:
    expected = int(np.prod(shape, dtype=np.int64))
    if values.size != expected:
        raise ItemError(422, f"{where}: shape {list(shape)} needs {expected} values, {values.size} came")
    return values.reshape(shape)


def _wanted(request: Mapping[str, Any]) -> Wanted:
    outputs = request.get("outputs") or []
    if not isinstance(outputs, list) or not all(
        isinstance(o, dict) and isinstance(o.get("name"), str) for o in outputs
    ):
        raise ItemError(400, '"outputs" is a list of objects with a name')
    asked = [(spec.get("parameters") or {}).get("binary_data") for spec in outputs]
    binary = bool((request.get("parameters") or {}).get("binary_data_output")) or any(asked)
    return Wanted(id=request.get("id"), outputs=tuple(spec["name"] for spec in outputs), binary=binary)
