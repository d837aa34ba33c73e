"""A bare `model.onnx` as a function: validated tensors in, one ONNX Runtime call per batch, tensors out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infless_watchdog import oip
from infless_watchdog.calls import Call, LoadError, Reply
from infless_watchdog.handlers import OCTETS, encode_plain, parse_json, refuse_compressed
from infless_watchdog.isolation import ItemError
from infless_watchdog.settings import Settings

LOG = logging.getLogger("infless.watchdog")
_TYPES = {
    "tensor(float)": "FP32", "tensor(double)": "FP64", "tensor(float16)": "FP16", "tensor(bool)": "BOOL",
    "tensor(int8)": "INT8", "tensor(int16)": "INT16", "tensor(int32)": "INT32", "tensor(int64)": "INT64",
    "tensor(uint8)": "UINT8", "tensor(uint16)": "UINT16", "tensor(uint32)": "UINT32", "tensor(uint64)": "UINT64",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One input of the model. `dims` leaves out the batch axis; None is a size that each request chooses."""

    name: str
    dtype: np.dtype[Any]
    dims: tuple[int | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One request's tensors, each with its batch axis, and how the answer is wanted."""

    tensors: dict[str, np.ndarray]
    rows: int
    wanted: oip.Wanted | None
    """None for a request that was not in the Open Inference Protocol."""

    @property
    def signature(self) -> tuple[tuple[int, ...], ...]:
        """Requests with the same signature can be one batch."""
        return tuple(array.shape[1:] for array in self.tensors.values())


class OnnxModel:
    """Serves `model.onnx`. The first axis of every input and output is the batch."""

    kind = "onnx"

    def __init__(self, path: Path, settings: Settings) -> None:
        self._name = settings.function_name
        self._session = _open(path, settings)
        self.inputs = tuple(_input(spec, settings, path) for spec in self._session.get_inputs())
        self.outputs = tuple(_output(spec, path) for spec in self._session.get_outputs())
        fixed = {rows for spec in self._session.get_inputs() if (rows := _fixed_rows(spec)) is not None}
        if len(fixed) > 1:
            raise LoadError(f"{path}: the inputs' first axes are {sorted(fixed)}: no batch axis; write a handler.py")
        # A fixed 1 in front of an output is often only the exporter's word; a batch of more will show.
        odd = any((_fixed_rows(spec) or 1) > 1 for spec in self._session.get_outputs())
        self.batched = not fixed and not odd
        """Without a batch axis that can grow, requests are run one by one."""
        self._fixed_rows = fixed.pop() if fixed else None

    def metadata(self) -> dict[str, Any]:
        """Model metadata of the Open Inference Protocol."""
        inputs = [
            {"name": i.name, "datatype": oip.NAMES[i.dtype], "shape": [-1, *(d or -1 for d in i.dims)]}
            for i in self.inputs
        ]
        outputs = [
            {"name": o.name, "datatype": _TYPES.get(o.type, "BYTES"), "shape": [_dim(d) for d in o.shape]}
            for o in self._session.get_outputs()
        ]
        return {"name": self._name, "platform": "onnxruntime_onnx", "inputs": inputs, "outputs": outputs}

    def decode(self, call: Call) -> Item:
        """Tensors from an inference request, a JSON array, or raw bytes."""
        refuse_compressed(call)
        header_length = next((value for name, value in call.head.headers if name == oip.HEADER_LENGTH), None)
        if header_length is not None or call.head.path.startswith("/v2/"):
            tensors, wanted = oip.parse_infer(call.body, header_length)
            return self._item(tensors, wanted)
        if call.head.content_type == "application/octet-stream":
            return self._item(self._raw(call.body), None)
        value = parse_json(call.body)
        if isinstance(value, dict) and isinstance(value.get("inputs"), list):
            tensors, wanted = oip.parse_request(value, memoryview(b""))
            return self._item(tensors, wanted)
        return self._item(self._plain_json(value), None)

    def predict(self, items: list[Item]) -> list[dict[str, np.ndarray]]:
        """One run for all items of one signature; outputs are cut back to each item's rows."""
        groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}
        for place, item in enumerate(items):
            groups.setdefault(item.signature, []).append(place)
        answers: list[dict[str, np.ndarray]] = [{} for _ in items]
        for places in groups.values():
            chosen = [items[place] for place in places]
            together = self._run_together(chosen) if self.batched and len(chosen) > 1 else None
            found = [self._run(item.tensors) for item in chosen] if together is None else together
            for place, answer in zip(places, found, strict=True):
                answers[place] = answer
        return answers

    def encode(self, answer: dict[str, np.ndarray], item: Item, call: Call) -> Reply:
        """In the form the request came in: inference protocol, raw bytes of the first output, or JSON."""
        if item.wanted is not None:
            body, head_length = oip.answer_infer(self._name, answer, item.wanted)
            if head_length is None:
                return Reply(body=body, content_type=b"application/json")
            length = str(head_length).encode()
            return Reply(body=body, content_type=OCTETS, headers=((oip.HEADER_LENGTH, length),))
        first = answer[self.outputs[0]]
        if call.head.content_type == "application/octet-stream" and first.dtype in oip.NAMES:
            return Reply(body=first.tobytes(), content_type=OCTETS)
        plain = {
            name: array.tolist()[0] if item.rows == 1 and array.shape[:1] == (1,) else array.tolist()
            for name, array in answer.items()
        }
        return encode_plain(next(iter(plain.values())) if len(plain) == 1 else plain)

    def example(self) -> Item:
        """Zeros in the model's shape; unknown sizes that no `input_shape` names are 1."""
        rows = self._fixed_rows or 1
        tensors = {i.name: np.zeros((rows, *(dim or 1 for dim in i.dims)), i.dtype) for i in self.inputs}
        return Item(tensors=tensors, rows=rows, wanted=None)

    def close(self) -> None:
        """Nothing to give back before the process ends."""

    def _run(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(self.outputs, self._session.run(list(self.outputs), feed), strict=True))

    def _run_together(self, items: Sequence[Item]) -> list[dict[str, np.ndarray]] | None:
        """One run, cut into answers; None, now and from then on, if an output has no row for each row that went in."""
        outputs = self._run({i.name: np.concatenate([item.tensors[i.name] for item in items]) for i in self.inputs})
        stops = np.cumsum([item.rows for item in items]).tolist()
        for name, array in outputs.items():
            if array.shape[:1] != (stops[-1],):
                LOG.warning(
                    "output %s has shape %s for a batch of %d: it has no batch axis, so requests are run one by one",
                    name, array.shape, stops[-1],
                )  # fmt: skip
                self.batched = False
                return None
        return [
            {name: array[stop - item.rows : stop] for name, array in outputs.items()}
            for item, stop in zip(items, stops, strict=True)
        ]

    def _item(self, tensors: dict[str, np.ndarray], wanted: oip.Wanted | None) -> Item:
        unknown = sorted(set(tensors) - {i.name for i in self.inputs})
        missing = [i.name for i in self.inputs if i.name not in tensors]
        if unknown or missing:
            raise ItemError(
                422,
                f"the model's inputs are {', '.join(i.name for i in self.inputs)}"
                + (f"; missing: {', '.join(missing)}" if missing else "")
                + (f"; unknown: {', '.join(unknown)}" if unknown else ""),
            )
        checked = {i.name: self._checked(i, tensors[i.name]) for i in self.inputs}
        rows = {len(array) for array in checked.values()}
        if len(rows) != 1:
            raise ItemError(422, f"the inputs have different batch sizes: {sorted(rows)}")
        count = rows.pop()
        unknown = sorted(set(wanted.outputs) - set(self.outputs)) if wanted else []
        if unknown:
            raise ItemError(422, f"the model's outputs are {', '.join(self.outputs)}; unknown: {', '.join(unknown)}")
        if count < 1 or (self._fixed_rows is not None and count != self._fixed_rows):
            raise ItemError(422, f"the batch axis is {count}; the model takes {self._fixed_rows or 'at least 1'}")
        return Item(tensors=checked, rows=count, wanted=wanted)

    def _checked(self, spec: Input, array: np.ndarray) -> np.ndarray:
        came = list(array.shape)
        if array.ndim == len(spec.dims):
            array = array[np.newaxis]
        fits = array.ndim == len(spec.dims) + 1 and all(
            want is None or want == got for want, got in zip(spec.dims, array.shape[1:], strict=True)
        )
        if not fits:
            wanted = [-1, *(dim or -1 for dim in spec.dims)]
            raise ItemError(422, f"input {spec.name}: shape {came} does not fit the model's {wanted}")
        if array.dtype != spec.dtype:
            raise ItemError(
                422,
                f"input {spec.name}: datatype {oip.NAMES[array.dtype]} came, the model takes {oip.NAMES[spec.dtype]}",
            )
        return array

    def _raw(self, body: bytes) -> dict[str, np.ndarray]:
        spec = self._only_input("raw bytes")
        if None in spec.dims:
            shape = [-1, *(dim or -1 for dim in spec.dims)]
            raise ItemError(
                422, f"raw bytes do not say the shape {shape}; set input_shape or send an inference request"
            )
        row_bytes = int(np.prod([dim or 1 for dim in spec.dims])) * spec.dtype.itemsize
        if not body or len(body) % row_bytes:
            raise ItemError(422, f"{len(body)} bytes came; one item of input {spec.name} is {row_bytes} bytes")
        return {spec.name: np.frombuffer(body, spec.dtype).reshape(-1, *(dim or 1 for dim in spec.dims))}

    def _plain_json(self, value: Any) -> dict[str, np.ndarray]:
        named = value if isinstance(value, dict) else {self._only_input("a JSON array").name: value}
        dtypes = {i.name: i.dtype for i in self.inputs}
        # An unknown name is refused a little later, whatever it holds.
        return {
            name: oip.from_json(data, dtypes[name], f"input {name}") if name in dtypes else np.zeros(0)
            for name, data in named.items()
        }

    def _only_input(self, form: str) -> Input:
        if len(self.inputs) != 1:
            names = ", ".join(i.name for i in self.inputs)
            raise ItemError(422, f"{form} fits models with one input; this one has {names}: send an object by name")
        return self.inputs[0]


def _open(path: Path, settings: Settings) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise LoadError(f"{path} needs a runtime: pip install 'infless[cpu]' or 'infless[gpu]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.cpu_cores
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    if settings.model_device == "cuda":
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise LoadError("model_device is cuda, but this onnxruntime has no CUDA: pip install 'infless[gpu]'")
        providers.insert(0, "CUDAExecutionProvider")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:
        raise LoadError(f"{path} is not a model that onnxruntime can load: {error}") from error


def _input(spec: Any, settings: Settings, path: Path) -> Input:
    if spec.type not in _TYPES:
        raise LoadError(f"{path}: input {spec.name} has type {spec.type}; write a handler.py for it")
    if not spec.shape:
        raise LoadError(f"{path}: input {spec.name} is a scalar and has no batch axis; write a handler.py for it")
    given = settings.input_shape.get(spec.name, settings.input_shape.get(""))
    dims = tuple(dim if isinstance(dim, int) else None for dim in spec.shape[1:])
    if given is not None:
        agrees = len(given) == len(dims) and all(d is None or d == g for d, g in zip(dims, given, strict=True))
        if not agrees:
            raise LoadError(f"input_shape {list(given)} does not fit input {spec.name} of {path}: {spec.shape[1:]}")
        dims = given
    return Input(name=spec.name, dtype=oip.DTYPES[_TYPES[spec.type]], dims=dims)


def _output(spec: Any, path: Path) -> str:
    if spec.type not in _TYPES and spec.type != "tensor(string)":
        hint = "export it without ZipMap" if "map" in spec.type else "take it out"
        raise LoadError(f"{path}: output {spec.name} is {spec.type}, no tensor; {hint}, or write a handler.py")
    return str(spec.name)


def _fixed_rows(spec: Any) -> int | None:
    return spec.shape[0] if spec.shape and isinstance(spec.shape[0], int) else None


def _dim(dim: Any) -> int:
    return dim if isinstance(dim, int) else -1
