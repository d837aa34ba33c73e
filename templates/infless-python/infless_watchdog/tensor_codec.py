"""Between requests and tensors, for models without code: raw bytes, JSON arrays, the Open Inference Protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from infless_watchdog import oip, oip_about
from infless_watchdog.calls import Call, Head, Reply
from infless_watchdog.isolation import ItemError
from infless_watchdog.json_text import parse_json
from infless_watchdog.plain import OCTETS, encode_plain
from infless_watchdog.raw_rows import RawRows
from infless_watchdog.settings import Settings
from infless_watchdog.tensors import Arrays, Input, Item, Signature, TensorSpec

_EXAMPLE_MAX = 64
"""Numbers of an example that are shown in the document."""


@dataclass(frozen=True, slots=True)
class _Form:
    """What requests with one head have in common."""

    row_bytes: int
    """A body of so many is one row, and by itself the item; -1 where bodies have to be read."""
    read: Callable[[bytes], Item]


class TensorCodec:
    """What it finds out about a head it keeps in `Head.memo`; a call's own state is in its item."""

    def __init__(self, signature: Signature, settings: Settings) -> None:
        self._signature = signature
        self._name = settings.function_name
        self._row_bytes = signature.inputs[0].row_bytes if RawRows.fits(signature) else -1
        self._first = signature.outputs[0].name

    # requests --------------------------------------------------------------------------------------------------------

    def decode(self, call: Call) -> Item | bytes:
        """A request's item; raw bytes of one row are it themselves. Its body has lost its Content-Encoding.

        Raises:
            ItemError: 400 or 422, when there is none.
        """
        form = call.head.memo
        if type(form) is not _Form:
            form = call.head.memo = self._form(call.head)
        return call.body if len(call.body) == form.row_bytes else form.read(call.body)

    def raw_item(self, body: bytes, wanted: oip.Wanted | None = None) -> Item:
        """Raw bytes of one or more rows as an item."""
        one = self._only_input("raw bytes")
        if one.said is None or one.dtype == oip.STRINGS:
            shape = [-1, *(dim or -1 for dim in one.dims)]
            hint = "send JSON" if one.dtype == oip.STRINGS else "set input_shape or send an inference request"
            raise ItemError(422, f"raw bytes do not say what they are of {shape}: {hint}")
        if not body or len(body) % (one.row_bytes or 1):
            raise ItemError(422, f"{len(body)} bytes came; one item of input {one.name} is {one.row_bytes} bytes")
        array = np.frombuffer(body, one.dtype).reshape(-1, *one.said)
        return self._item({one.name: array}, wanted)

    def _form(self, head: Head) -> _Form:
        if oip.is_inference(head):
            return _Form(-1, self._read_raw_inference if oip.is_raw(head) else partial(self._read_inference, head))
        if head.content_type == "application/octet-stream":
            return _Form(self._row_bytes, self.raw_item)
        return _Form(-1, self._read_json)

    def _read_inference(self, head: Head, body: bytes) -> Item:
        return self._item(*oip.parse_infer(body, head.header(oip.HEADER_LENGTH)))

    def _read_raw_inference(self, body: bytes) -> Item:
        return self.raw_item(body, oip.WANTED_RAW)

    def _read_json(self, body: bytes) -> Item:
        value = parse_json(body)
        if isinstance(value, dict) and isinstance(value.get("inputs"), list):
            return self._item(*oip.parse_request(value, memoryview(b"")))
        named = value if isinstance(value, dict) else {self._only_input("a JSON array").name: value}
        dtypes = {one.name: one.dtype for one in self._signature.inputs}
        # An unknown name is refused a little later, whatever it holds.
        arrays = {
            name: oip.from_json(data, dtypes[name], f"input {name}") if name in dtypes else np.zeros(0)
            for name, data in named.items()
        }
        return self._item(arrays, None)

    def _only_input(self, form: str) -> Input:
        inputs = self._signature.inputs
        if len(inputs) != 1:
            names = ", ".join(one.name for one in inputs)
            raise ItemError(422, f"{form} fits models with one input; this one has {names}: send an object by name")
        return inputs[0]

    def _item(self, tensors: Arrays, wanted: oip.Wanted | None) -> Item:
        _check_names([one.name for one in self._signature.inputs], tensors, "inputs", complete=True)
        checked = {one.name: _checked(one, tensors[one.name]) for one in self._signature.inputs}
        rows = {len(array) for array in checked.values()}
        if len(rows) != 1:
            raise ItemError(422, f"the inputs have different batch sizes: {sorted(rows)}")
        count, fixed = rows.pop(), self._signature.fixed_rows
        if wanted is not None:
            _check_names([spec.name for spec in self._signature.outputs], wanted.outputs, "outputs")
        if count < 1 or (fixed is not None and count != fixed):
            raise ItemError(422, f"the batch axis is {count}; the model takes {fixed or 'at least 1'}")
        try:
            return self._signature.item(checked, count, wanted)
        except ValueError as error:
            raise ItemError(422, str(error)) from None

    # answers ---------------------------------------------------------------------------------------------------------

    def encode(self, answer: Arrays | bytes, item: Item | bytes, call: Call) -> Reply:
        """In the form the request came in: raw bytes of the first output, inference protocol, or JSON.

        Raises:
            ItemError: 500 when it cannot be written.
        """
        if isinstance(answer, bytes):
            return Reply(body=answer, content_type=OCTETS)
        assert isinstance(item, Item)
        if item.wanted is not None:
            return oip.reply(self._name, answer, item.wanted)
        first = answer[self._first]
        if call.head.content_type == "application/octet-stream" and first.dtype != oip.STRINGS:
            return Reply(body=first.tobytes(), content_type=OCTETS)
        plain = {
            name: array.tolist()[0] if item.rows == 1 and array.shape[:1] == (1,) else array.tolist()
            for name, array in answer.items()
        }
        return encode_plain(next(iter(plain.values())) if len(plain) == 1 else plain)

    # descriptions ----------------------------------------------------------------------------------------------------

    def metadata(self, platform: str, *, batched: bool) -> dict[str, Any]:
        """Of the Open Inference Protocol. A batched model's first axes are open, whatever an exporter says of them."""

        def tensor(spec: TensorSpec) -> dict[str, Any]:
            shape = [dim if isinstance(dim, int) else -1 for dim in spec.shape]
            return {
                "name": spec.name,
                "datatype": oip.NAMES[spec.dtype],
                "shape": [-1, *shape[1:]] if batched else shape,
            }

        inputs = [tensor(one.spec) for one in self._signature.inputs]
        for one, said in zip(self._signature.inputs, inputs, strict=True):
            said["shape"] = [said["shape"][0], *(dim or -1 for dim in one.dims)]
        return oip_about.metadata(self._name, platform, inputs, [tensor(spec) for spec in self._signature.outputs])

    def openapi(self) -> dict[str, Any]:
        """A row by itself, or several; of several inputs an object."""
        from infless_watchdog import openapi  # asked for by few: not worth the time of a start

        inputs = self._signature.inputs
        items = {one.name: _rows_schema(one.dtype, one.dims) for one in inputs}
        answers = {
            spec.name: _rows_schema(spec.dtype, [dim if isinstance(dim, int) else None for dim in spec.shape[1:]])
            for spec in self._signature.outputs
        }
        one = inputs[0]
        small = len(inputs) == 1 and 0 < int(np.prod(one.sample)) <= _EXAMPLE_MAX
        return openapi.document(
            self._name,
            "1",
            _together(items),
            _together(answers),
            example=np.zeros(one.sample, one.dtype).tolist() if small and one.dtype != oip.STRINGS else None,
            content_types=("application/json", "application/octet-stream")
            if len(inputs) == 1 and one.said is not None and one.dtype != oip.STRINGS
            else ("application/json",),
        )


def _check_names(known: list[str], came: Mapping[str, Any], what: str, *, complete: bool = False) -> None:
    unknown = sorted(set(came) - set(known))
    missing = [name for name in known if name not in came] if complete else []
    if unknown or missing:
        raise ItemError(
            422,
            f"the model's {what} are {', '.join(known)}"
            + (f"; missing: {', '.join(missing)}" if missing else "")
            + (f"; unknown: {', '.join(unknown)}" if unknown else ""),
        )


def _checked(one: Input, array: np.ndarray) -> np.ndarray:
    """An input's tensor, with its batch axis."""
    came = list(array.shape)
    if array.ndim == len(one.dims):
        array = array[np.newaxis]
    fits = array.ndim == len(one.dims) + 1 and all(
        want is None or want == got for want, got in zip(one.dims, array.shape[1:], strict=True)
    )
    if not fits:
        wanted = [-1, *(dim or -1 for dim in one.dims)]
        raise ItemError(422, f"input {one.name}: shape {came} does not fit the model's {wanted}")
    if array.dtype != one.dtype:
        raise ItemError(
            422, f"input {one.name}: datatype {oip.NAMES[array.dtype]} came, the model takes {oip.NAMES[one.dtype]}"
        )
    return oip.texts(array, f"input {one.name}") if one.dtype == oip.STRINGS else array


_KINDS = {"b": "boolean", "i": "integer", "u": "integer", "f": "number", "O": "string"}


def _rows_schema(dtype: np.dtype[Any], dims: Any) -> dict[str, Any]:
    """A row, or a list of rows."""
    schema: dict[str, Any] = {"type": _KINDS[dtype.kind]}
    for dim in reversed(dims):
        size = {} if dim is None else {"minItems": dim, "maxItems": dim}
        schema = {"type": "array", "items": schema, **size}
    return {"anyOf": [schema, {"type": "array", "items": schema, "minItems": 1}]}


def _together(schemas: dict[str, dict[str, Any]]) -> dict[str, Any]:
    if len(schemas) == 1:
        return next(iter(schemas.values()))
    return {"type": "object", "properties": schemas, "required": list(schemas), "additionalProperties": False}
