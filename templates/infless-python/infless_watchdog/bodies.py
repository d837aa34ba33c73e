"""From requests to items, and from answers to replies: what a body is by its head, and how its answer is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from infless_watchdog import oip, openapi
from infless_watchdog.calls import Call, Head, Reply
from infless_watchdog.forms import charset_of, decode_text, parse_multipart
from infless_watchdog.hints import Typed, json_schema
from infless_watchdog.isolation import ItemError
from infless_watchdog.json_text import parse_json
from infless_watchdog.plain import encode_plain

FORM = "multipart/form-data"
OUTPUT = "output"
"""Name of an answer's only tensor, where the handler has given it none."""
_NUMBERS = (int, float, np.generic, np.ndarray)


@dataclass(frozen=True, slots=True)
class _Form:
    """What requests with one head have in common."""

    read: Callable[[bytes], Any]
    """From a body to an item."""
    inference: bool
    """Whether answers go in the Open Inference Protocol."""


@dataclass(frozen=True, slots=True)
class _Unread:
    """A body whose reading takes its time; `PlainCodec.prepare` does it."""

    read: Callable[[bytes], Any]
    body: bytes


def _finished(item: Any) -> Any:
    return item.read(item.body) if isinstance(item, _Unread) else item


class PlainCodec:
    """Between requests and a handler's items, which are plain values or of the type that the handler hints.

    What it finds out about a head it keeps in `Head.memo`; a call's own state is in the call alone.
    """

    prepare: Callable[[Any], Any] | None
    """What is left to do for a decoded item in a pool, before the user's `preprocess`: opening images. Else None."""

    def __init__(self, hint: Any = Any, answer_hint: Any = Any, *, name: str) -> None:
        self._typed = None if hint is Any else Typed(hint)
        self._answer_hint = answer_hint
        self._name = name
        self.prepare = _finished if self._typed is not None and self._typed.opens_images else None

    def decode(self, call: Call) -> Any:
        """The item of one request, whose body has lost its Content-Encoding (see `decoded`).

        JSON; `str` of text; a dict of a form; a dict of arrays by name of an inference request; else bytes. With a
        hint it is what that says: the above is checked, and a lone file or tensor may be the item by itself.

        Raises:
            ItemError: 400, 413 (a form of too many parts), 415 or 422, when there is none.
        """
        form = call.head.memo
        if type(form) is not _Form:
            form = call.head.memo = self._form(call.head)
        return form.read(call.body)

    def encode(self, answer: Any, item: Any, call: Call) -> Reply:
        """The answer of one request, in the protocol it came in.

        Raises:
            ItemError: 500 when it cannot be written, 422 when it is not what an inference request asked for.
        """
        del item
        form = call.head.memo
        if type(form) is not _Form:
            form = call.head.memo = self._form(call.head)
        if not form.inference:
            return encode_plain(answer)
        if oip.is_raw(call.head):
            return oip.reply(self._name, _outputs(answer), oip.WANTED_RAW)
        # Asked again rather than carried along: what a handler gets are plain values.
        wanted = oip.parse_wanted(call.body, call.head.header(oip.HEADER_LENGTH))
        return oip.reply(self._name, _outputs(answer), wanted)

    def openapi(self, *, version: str = "1", example: Any = None, description: str = "") -> dict[str, Any]:
        """An OpenAPI 3.1 document of the function."""
        return openapi.document(
            self._name,
            version,
            {} if self._typed is None else self._typed.schema,
            json_schema(self._answer_hint),
            example=example,
            content_types=self.content_types,
            inference_protocol=True,
            description=description,
        )

    @property
    def content_types(self) -> tuple[str, ...]:
        """What requests may be; with a hint, not everything is."""
        typed = self._typed
        if typed is None:
            return ("application/json", "text/plain", FORM, "application/octet-stream")
        if typed.raw:
            return ("application/octet-stream", FORM)
        return (
            "application/json",
            *(("text/plain",) if typed.text else ()),
            *((FORM,) if typed.named or typed.octets else ()),
            *(("image/*",) if typed.opens_images and typed.octets else ()),
            *(("application/octet-stream",) if typed.octets else ()),
        )

    # readers, one for each kind of head ------------------------------------------------------------------------------

    def _form(self, head: Head) -> _Form:
        inference = oip.is_inference(head)
        read = self._inference_reader(head) if inference else self._reader(head)
        if self.prepare is not None:
            read = partial(_Unread, read)
        return _Form(read, inference)

    def _reader(self, head: Head) -> Callable[[bytes], Any]:
        kind, said, typed = head.content_type, head.header(b"content-type"), self._typed
        if kind == FORM and said is not None:
            return partial(self._read_form, said)
        if typed is not None and (typed.raw or (typed.octets and said is None)):
            return typed.from_value  # nothing is said, but nothing else than bytes can be meant
        if kind == "application/json" or kind.endswith("+json"):
            return parse_json if typed is None else typed.from_json
        if kind.startswith("text/") and (typed is None or typed.text):
            return partial(self._read_text, head)
        if typed is None:
            return bytes
        if typed.octets:
            return typed.from_value
        return partial(self._refuse, kind)

    def _inference_reader(self, head: Head) -> Callable[[bytes], Any]:
        if oip.is_raw(head):
            return bytes if self._typed is None else self._typed.from_value
        return partial(self._read_tensors, head.header(oip.HEADER_LENGTH))

    def _read_text(self, head: Head, body: bytes) -> Any:
        said = head.header(b"content-type") or b""
        text = decode_text(body, charset_of(said.decode("latin-1")), "the body")
        return text if self._typed is None else self._typed.from_value(text)

    def _read_form(self, said: bytes, body: bytes) -> Any:
        parts = parse_multipart(said, body)
        return parts if self._typed is None else self._typed.from_parts(parts)

    def _read_tensors(self, header_length: bytes | None, body: bytes) -> Any:
        tensors, _ = oip.parse_infer(body, header_length)
        # Binary ones lie in the body, where nobody may write; a handler may well normalise in place.
        own = {name: array if array.flags.writeable else array.copy() for name, array in tensors.items()}
        return own if self._typed is None else self._typed.from_parts(own)

    def _refuse(self, kind: str, body: bytes) -> Any:
        del body
        raise ItemError(415, f"Content-Type {kind} is not taken; allowed are {', '.join(self.content_types)}")


def _outputs(answer: Any) -> Mapping[str, np.ndarray]:
    """A handler's answer as tensors: a dict of arrays by its names, anything else as one named `output`."""
    if isinstance(answer, dict) and answer and all(hasattr(value, "__array__") for value in answer.values()):
        return {str(name): np.asarray(value) for name, value in answer.items()}
    return {OUTPUT: _tensor(answer)}


def _tensor(answer: Any) -> np.ndarray:
    """Numbers and strings, also in lists, as what they are; anything else as a string of JSON."""
    if hasattr(answer, "__array__"):
        return np.atleast_1d(np.asarray(answer))
    values = list(answer) if isinstance(answer, (list, tuple)) else [answer]
    try:
        leaves = oip.leaf_types(values)
        if all(issubclass(leaf, _NUMBERS) for leaf in leaves):
            array = np.asarray(values)
            if not array.dtype.hasobject:
                return array
        elif leaves <= {str, bytes}:
            return np.array(values, object)
    except ValueError:  # lists of unequal length are no tensor, but JSON has them
        pass
    return np.array([encode_plain(answer).body], object)
