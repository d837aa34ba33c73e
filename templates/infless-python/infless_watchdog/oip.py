"""Open Inference Protocol v2 over HTTP: tensors in and out, as JSON or binary.

Source: kserve/open-inference-protocol, and Triton's binary tensor data extension (`Inference-Header-Content-Length`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
_FITTING_KINDS = {"b": "bui", "i": "iu", "u": "iu", "f": "iuf"}
"""By kind of tensor (numpy's letters), the kinds of JSON values that it is made of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """How the client wants its answer."""

    id: str | None = None
    outputs: Mapping[str, bool] = field(default_factory=dict)
    """Names, and which as binary data. Empty means all."""
    binary: bool = False
    """As what all are sent when `outputs` is empty."""


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
        if spec["name"] in tensors:
            raise ItemError(422, f"inputs[{place}]: {spec['name']} is there twice")
        tensors[spec["name"]], binary = _tensor(spec, f"inputs[{place}] ({spec['name']})", binary)
    if len(binary):
        raise ItemError(422, f"{len(binary)} bytes follow the last binary tensor")
    return tensors, _wanted(request)


def answer_infer(name: str, outputs: Mapping[str, np.ndarray], wanted: Wanted) -> tuple[bytes, int | None]:
    """The answer's body, and the length of its JSON head when tensors follow it as binary data."""
    specs, blobs = [], []
    for key, binary in (wanted.outputs or dict.fromkeys(outputs, wanted.binary)).items():
        array = outputs[key]
        spec: dict[str, Any] = {
            "name": key, "datatype": NAMES.get(array.dtype, "BYTES"), "shape": list(array.shape)
        }  # fmt: skip
        if binary:
            blob = array.tobytes() if array.dtype in NAMES else _strings(array)
            spec["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        else:
            spec["data"] = array.ravel().tolist()
        specs.append(spec)
    answer: dict[str, Any] = {"model_name": name, "outputs": specs}
    if wanted.id is not None:
        answer["id"] = wanted.id
    try:
        head = json.dumps(answer, allow_nan=False).encode()
    except ValueError:
        raise ItemError(500, "an output is NaN or infinite, which JSON cannot say; ask for binary data") from None
    return (b"".join([head, *blobs]), len(head)) if blobs else (head, None)


def _strings(array: np.ndarray) -> bytes:
    """Each string behind its length in four bytes (Triton's binary BYTES)."""
    octets = [str(text).encode() for text in array.ravel()]
    return b"".join(len(text).to_bytes(4, "little") + text for text in octets)


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
    size = _parameters(spec, where).get("binary_data_size")
    if size is None:
        if not isinstance(spec.get("data"), list):
            raise ItemError(422, f"{where}: needs data, a list")
        values = from_json(spec["data"], dtype, where)
        if values.ndim > 1 and list(values.shape) != shape:
            raise ItemError(422, f"{where}: shape {shape} is said, the data have {list(values.shape)}")
        return _reshape(values, shape, where), binary
    if type(size) is not int or not 0 <= size <= len(binary):
        raise ItemError(422, f"{where}: binary_data_size {size!r} does not fit the {len(binary)} bytes that are left")
    if size % dtype.itemsize:
        raise ItemError(422, f"{where}: {size} bytes are no whole number of {spec['datatype']} values")
    # Behind a JSON head of any length a tensor lies anywhere; the runtime wants it where its type may lie.
    values = np.require(np.frombuffer(binary[:size], dtype), requirements="A")
    return _reshape(values, shape, where), binary[size:]


def from_json(data: Any, dtype: np.dtype[Any], where: str) -> np.ndarray:
    """JSON numbers as an array of `dtype`; what numpy would bend to fit (1.5 as 1, "7" as 7, null as NaN) is refused.

    Raises:
        ItemError: 422 with what is wrong.
    """
    try:
        natural = np.asarray(data)
        with np.errstate(over="raise"):
            values = natural.astype(dtype)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ItemError(422, f"{where}: data is not all {NAMES[dtype]}: {error}") from None
    fits = natural.dtype.kind in _FITTING_KINDS[dtype.kind]
    if natural.size and not (fits and (dtype.kind == "f" or np.array_equal(values, natural))):
        raise ItemError(422, f"{where}: data is not all {NAMES[dtype]}, or a value is out of its range")
    return values


def _reshape(values: np.ndarray, shape: Sequence[int], where: str) -> np.ndarray:
    expected = math.prod(shape)
    if values.size != expected:
        raise ItemError(422, f"{where}: shape {list(shape)} needs {expected} values, {values.size} came")
    try:
        return values.reshape(shape)
    except ValueError as error:  # [0, 2**62] is empty and still too large
        raise ItemError(422, f"{where}: shape {list(shape)}: {error}") from None


def _parameters(spec: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    parameters = spec.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise ItemError(400, f"{where}: parameters is an object")
    return parameters or {}


def _wanted(request: Mapping[str, Any]) -> Wanted:
    specs, id_ = request.get("outputs"), request.get("id")
    if id_ is not None and not isinstance(id_, str):
        raise ItemError(400, '"id" is a string')
    binary = bool(_parameters(request, "the inference request").get("binary_data_output"))
    outputs: dict[str, bool] = {}
    for place, spec in enumerate(specs if isinstance(specs, list) else [specs] if specs else []):
        if not isinstance(spec, dict) or not isinstance(spec.get("name"), str):
            raise ItemError(400, '"outputs" is a list of objects with a name')
        outputs[spec["name"]] = bool(_parameters(spec, f"outputs[{place}]").get("binary_data", binary))
    return Wanted(id=id_, outputs=outputs, binary=binary)
