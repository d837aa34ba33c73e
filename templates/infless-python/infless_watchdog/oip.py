"""Open Inference Protocol v2 over HTTP: tensors in and out, as JSON or binary.

Source: kserve/open-inference-protocol, and Triton's extensions for binary tensors (`Inference-Header-Content-Length`).
What a server says of itself and of its model comes from `oip_about`.

Strings are `BYTES` tensors: arrays of `object`. In a request their elements are `bytes`, which `texts` turns into `str`
where a model wants that; in an answer they may be `str` or `bytes`. `raw` gives the binary form of any tensor.
`FP16` is taken as JSON numbers too; `BF16` only as binary data, and becomes float32, which holds each of its values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, TypedDict

import msgspec
import numpy as np

from infless_watchdog.calls import Head, Reply
from infless_watchdog.isolation import ItemError
from infless_watchdog.json_text import parse_json

__all__ = [
    "DTYPES", "HEADER_LENGTH", "NAMES", "STRINGS", "WANTED_RAW", "Wanted", "answer_infer", "from_json", "is_inference",
    "is_raw", "leaf_types", "parse_infer", "parse_request", "parse_wanted", "raw", "reply", "texts",
    "to_array",
]  # fmt: skip

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
    "BYTES": np.dtype(object),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
STRINGS = DTYPES["BYTES"]
_LEAVES: dict[str, set[type]] = {"b": {bool, int}, "i": {int}, "u": {int}, "f": {int, float}, "O": {str}}
"""By kind of tensor (numpy's letters), the types of JSON values that it is made of."""
_RANGES: dict[np.dtype[Any], tuple[int, int]] = {
    DTYPES["BOOL"]: (0, 1),
    **{dtype: (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)) for dtype in NAMES if dtype.kind in "iu"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """How the client wants its answer."""

    id: str | None = None
    outputs: Mapping[str, bool] = field(default_factory=dict)
    """Names, and which as binary data. Empty means all."""
    binary: bool = False
    """As what all are sent when `outputs` is empty."""


WANTED_RAW = Wanted(binary=True)
"""How a raw request, which has no place to say so, is answered."""


def is_inference(head: Head) -> bool:
    """Whether a request is in this protocol, by its path or by its header."""
    return head.path.startswith("/v2/") or head.header(HEADER_LENGTH) is not None


def is_raw(head: Head) -> bool:
    """Whether the body is nothing but the binary data of the only input (Triton's raw binary request)."""
    return head.header(HEADER_LENGTH) == b"0"


# requests ------------------------------------------------------------------------------------------------------------


def parse_infer(body: bytes, header_length: bytes | None) -> tuple[dict[str, np.ndarray], Wanted]:
    """The tensors of an inference request by name, and how its answer is wanted.

    Raises:
        ItemError: 400 for what is not the protocol, 422 for tensors that contradict themselves.
    """
    head, binary = _split(body, header_length)
    return parse_request(parse_json(head, "the inference request"), binary)


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


def parse_wanted(body: bytes, header_length: bytes | None) -> Wanted:
    """How the answer of a request is wanted, without a look at its tensors: they cost a tenth of being read again."""
    return _wanted(_WISH.decode(_split(body, header_length)[0]))


def from_json(data: Any, dtype: np.dtype[Any], where: str) -> np.ndarray:
    """JSON values as an array of `dtype`; what numpy would bend to fit (1.5 as 1, "7" as 7, null as NaN) is refused.

    Raises:
        ItemError: 422 with what is wrong.
    """
    try:
        return to_array(data, dtype)
    except ValueError as error:
        raise ItemError(422, f"{where}: data {error}") from None


def to_array(data: Any, dtype: np.dtype[Any]) -> np.ndarray:
    """As `from_json`.

    Raises:
        ValueError: what is wrong with the data.
    """
    name, leaves = NAMES[dtype], _leaves(data)
    # Looked at before numpy sees them: of mixed ones it would make strings, each with room for the longest.
    if not set(map(type, leaves)) <= _LEAVES[dtype.kind]:
        raise ValueError(f"is not all {name}")
    if dtype == STRINGS:
        values = np.array(data, object)
        if not all(type(value) is str for value in values.ravel()):
            raise ValueError("is nested unevenly")
        return _objects([text.encode() for text in leaves]).reshape(values.shape)
    low, high = _RANGES.get(dtype, (0, 0))
    if dtype in _RANGES and leaves and not low <= min(leaves) <= max(leaves) <= high:
        raise ValueError(f"is not all {name}: a value is out of its range")
    try:
        if dtype.kind != "f":
            return np.array(data, dtype)
        with np.errstate(over="raise"):
            return np.array(data, np.float64).astype(dtype, copy=False)
    except (ValueError, ArithmeticError) as error:
        raise ValueError(f"is not all {name}: {error}") from None


def leaf_types(data: Any) -> set[type]:
    """The types of what stands in nested lists.

    Raises:
        ValueError: some of it is deeper than the rest.
    """
    return set(map(type, _leaves(data)))


def _leaves(data: Any) -> list[Any]:
    level = data if isinstance(data, list) else [data]
    while (kinds := set(map(type, level))) == {list}:
        level = list(chain.from_iterable(level))
    if list in kinds:
        raise ValueError("is nested unevenly")
    return level


def texts(array: np.ndarray, where: str) -> np.ndarray:
    """A BYTES tensor's elements as `str`.

    Raises:
        ItemError: 422 where one is not UTF-8.
    """
    try:
        found = [text if isinstance(text, str) else bytes(text).decode() for text in array.ravel()]
    except UnicodeDecodeError as error:
        raise ItemError(422, f"{where}: a string is not UTF-8: {error}") from None
    return _objects(found).reshape(array.shape)


def _objects(values: Sequence[Any]) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def _split(body: bytes, header_length: bytes | None) -> tuple[bytes, memoryview]:
    if header_length is None:
        return body, memoryview(b"")
    length = int(header_length) if header_length.isdigit() and len(header_length) < 20 else -1
    if not 0 <= length <= len(body):
        raise ItemError(400, f"Inference-Header-Content-Length: {header_length!r} is not a length within the body")
    return body[:length], memoryview(body)[length:]


def _tensor(spec: Mapping[str, Any], where: str, binary: memoryview) -> tuple[np.ndarray, memoryview]:
    datatype, shape, parameters = str(spec.get("datatype")), spec.get("shape"), _parameters(spec, where)
    if datatype not in DTYPES and datatype != "BF16":
        raise ItemError(422, f"{where}: datatype {spec.get('datatype')!r} is not one of {', '.join(DTYPES)}, BF16")
    if not isinstance(shape, list) or not all(type(dim) is int and dim >= 0 for dim in shape):
        raise ItemError(422, f"{where}: shape {shape!r} is not a list of whole numbers")
    if "shared_memory_region" in parameters:
        raise ItemError(422, f"{where}: shared memory is not offered; send data or binary_data_size")
    size = parameters.get("binary_data_size")
    if size is None:
        return _reshape(_from_data(spec.get("data"), datatype, shape, where), shape, where), binary
    if type(size) is not int or not 0 <= size <= len(binary):
        raise ItemError(422, f"{where}: binary_data_size {size!r} does not fit the {len(binary)} bytes that are left")
    if spec.get("data") is not None:
        raise ItemError(422, f"{where}: has both data and binary_data_size")
    return _reshape(_from_binary(binary[:size], datatype, where), shape, where), binary[size:]


def _from_data(data: Any, datatype: str, shape: Sequence[int], where: str) -> np.ndarray:
    if not isinstance(data, list):
        raise ItemError(422, f"{where}: needs data, a list")
    if datatype == "BF16":
        raise ItemError(422, f"{where}: BF16 has no form in JSON; send binary data")
    values = from_json(data, DTYPES[datatype], where)
    if values.ndim > 1 and list(values.shape) != shape:
        raise ItemError(422, f"{where}: shape {shape} is said, the data have {list(values.shape)}")
    return values


def _from_binary(blob: memoryview, datatype: str, where: str) -> np.ndarray:
    if datatype == "BYTES":
        return _objects(_unpacked(blob, where))
    itemsize = 2 if datatype == "BF16" else DTYPES[datatype].itemsize
    if len(blob) % itemsize:
        raise ItemError(422, f"{where}: {len(blob)} bytes are no whole number of {datatype} values")
    if datatype == "BF16":
        halves = np.frombuffer(blob, "<u2").astype(np.uint32)  # the upper halves of float32
        return (halves << np.uint32(16)).view(np.float32)
    if datatype == "BOOL":
        return np.frombuffer(blob, np.uint8).astype(np.bool_)  # another byte than 0 and 1 is no bool to numpy
    # Behind a JSON head of any length a tensor lies anywhere; the runtime wants it where its type may lie.
    return np.require(np.frombuffer(blob, DTYPES[datatype]), requirements="A")


def _unpacked(blob: memoryview, where: str) -> list[bytes]:
    """Strings, each behind its length in four bytes."""
    found: list[bytes] = []
    start = 0
    while start < len(blob):
        stop = start + 4 + int.from_bytes(blob[start : start + 4], "little")
        if stop > len(blob):
            raise ItemError(422, f"{where}: string {len(found)} goes beyond the {len(blob)} bytes of the tensor")
        found.append(bytes(blob[start + 4 : stop]))
        start = stop
    return found


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


class _Wish(TypedDict, total=False):
    """What a request says of its answer; the rest is skipped unread."""

    id: Any
    outputs: Any
    parameters: Any


_WISH = msgspec.json.Decoder(_Wish)


def _wanted(request: Mapping[str, Any]) -> Wanted:
    specs, id_ = request.get("outputs"), request.get("id")
    if id_ is not None and not isinstance(id_, str):
        raise ItemError(400, '"id" is a string')
    if specs is not None and not isinstance(specs, list):
        raise ItemError(400, '"outputs" is a list of objects with a name')
    binary = _flag(_parameters(request, "the inference request"), "binary_data_output", default=False)
    outputs: dict[str, bool] = {}
    for place, spec in enumerate(specs or ()):
        if not isinstance(spec, dict) or not isinstance(spec.get("name"), str):
            raise ItemError(400, '"outputs" is a list of objects with a name')
        where = f"outputs[{place}] ({spec['name']})"
        parameters = _parameters(spec, where)
        if "shared_memory_region" in parameters:
            raise ItemError(422, f"{where}: shared memory is not offered")
        if parameters.get("classification"):
            raise ItemError(422, f"{where}: classification is not offered; ask for the tensor and sort it")
        outputs[spec["name"]] = _flag(parameters, "binary_data", default=binary)
    return Wanted(id=id_, outputs=outputs, binary=binary)


def _flag(parameters: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise ItemError(400, f"{name} is true or false, not {value!r}")
    return value


# answers -------------------------------------------------------------------------------------------------------------


def reply(name: str, outputs: Mapping[str, np.ndarray], wanted: Wanted) -> Reply:
    """The answer to an inference request of model `name`.

    Raises:
        ItemError: 422 for an output that there is not, 500 for one that cannot be written as wanted.
    """
    body, head_length = answer_infer(name, outputs, wanted)
    if head_length is None:
        return Reply(body=body, content_type=b"application/json")
    length = str(head_length).encode()
    return Reply(body=body, content_type=b"application/octet-stream", headers=((HEADER_LENGTH, length),))


def answer_infer(name: str, outputs: Mapping[str, np.ndarray], wanted: Wanted) -> tuple[bytes, int | None]:
    """As `reply`: the answer's body, and the length of its JSON head when tensors follow it as binary data."""
    unknown = [key for key in wanted.outputs if key not in outputs]
    if unknown:
        raise ItemError(422, f"the model's outputs are {', '.join(outputs)}; unknown: {', '.join(unknown)}")
    specs, blobs = [], []
    for key, binary in (wanted.outputs or dict.fromkeys(outputs, wanted.binary)).items():
        array = _known(outputs[key], key)
        spec: dict[str, Any] = {"name": key, "datatype": NAMES[array.dtype], "shape": array.shape}
        if binary:
            blobs.append(raw(array))
            spec["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            spec["data"] = _json_data(array, key)
        specs.append(spec)
    answer: dict[str, Any] = {"model_name": name, "outputs": specs}
    if wanted.id is not None:
        answer["id"] = wanted.id
    head = msgspec.json.encode(answer)
    return (b"".join([head, *blobs]), len(head)) if blobs else (head, None)


def raw(array: np.ndarray) -> bytes:
    """A tensor's binary form: its values as they lie in memory, or each string behind its length in four bytes."""
    if array.dtype != STRINGS:
        return array.tobytes()
    octets = [text if isinstance(text, bytes) else str(text).encode() for text in array.ravel()]
    return b"".join(part for text in octets for part in (len(text).to_bytes(4, "little"), text))


def _known(array: np.ndarray, name: str) -> np.ndarray:
    """An array of a type that the protocol has."""
    if array.dtype in NAMES:
        return array
    if array.dtype.kind in "US":
        return array.astype(object)
    native = array.dtype.newbyteorder("=")
    if native not in NAMES:
        raise ItemError(500, f"output {name} is {array.dtype}, which is none of {', '.join(DTYPES)}")
    return array.astype(native)


def _json_data(array: np.ndarray, name: str) -> list[Any]:
    if array.dtype == STRINGS:
        try:
            return [text.decode() if isinstance(text, bytes) else str(text) for text in array.ravel()]
        except UnicodeDecodeError:
            raise ItemError(500, f"output {name} is not UTF-8, as JSON must be; ask for binary data") from None
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ItemError(500, f"output {name} is NaN or infinite, which JSON cannot say; ask for binary data")
    values: list[Any] = array.ravel().tolist()
    return values
