"""From type hints of the user's functions to validation and JSON Schema.

msgspec does both: scalars, containers, dataclasses, TypedDict, NamedTuple, Literal, Enum, `Annotated[.., Meta(ge=0)]`,
unions. It is strict (no "1" for an int, no true for one either), but takes whole numbers for a float. Beside that:
pydantic's models, numpy's arrays and Pillow's images, each through the user's own library.
"""

from __future__ import annotations

import base64
import binascii
import collections.abc
import inspect
import logging
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from io import BytesIO
from typing import Any, Literal

import msgspec
import numpy as np
from msgspec import inspect as shapes

from infless_watchdog.forms import UploadedFile
from infless_watchdog.isolation import ItemError
from infless_watchdog.json_text import parse_json
from infless_watchdog.oip import NAMES, leaf_types, to_array

LOG = logging.getLogger("infless.watchdog")

_LISTS = (list, collections.abc.Sequence)
_COLLECTIONS = (shapes.CollectionType, shapes.TupleType)
_OBJECTS = (shapes.AnyType, shapes.DictType, shapes.TypedDictType, shapes.DataclassType, shapes.StructType)


def item_hint(function: Callable[..., Any], parameter: Literal["batch", "item"]) -> Any:
    """The hint of one item: X of `predict(batch: list[X])` ("batch") or of `preprocess(item: X)` ("item").

    Any where there is none, or none that can be checked, which is logged once.
    """
    try:
        hint, _ = _resolved(function)
        hint = _element(hint) if parameter == "batch" else hint
        if hint is object:  # a strict checker's word for "whatever comes"
            return Any
        Typed(hint)
    except Exception as error:  # noqa: BLE001 - hints are the user's code, and `if TYPE_CHECKING` imports are no fault
        name, words = getattr(function, "__qualname__", function), str(error).partition("\n")[0]
        LOG.warning("the items of %s are not checked: %s: %s", name, type(error).__name__, words)
        return Any
    return hint


def answer_hint(function: Callable[..., Any], parameter: Literal["batch", "item"]) -> Any:
    """The hint of one answer: Y of `predict(batch) -> list[Y]` ("batch") or of `handle(event, context) -> Y` ("item").

    Answers are described, not checked; Any where that is not possible.
    """
    try:
        _, hint = _resolved(function)
        hint = _element(hint) if parameter == "batch" else hint
        json_schema(hint)
    except Exception:  # noqa: BLE001 - as above; nothing is lost that somebody would miss
        return Any
    return hint


def validator(hint: Any) -> Callable[[Any], Any]:
    """Turns a plain value into one of the hint's type; it raises ItemError 422 with the path and what is allowed."""
    return _same if hint is Any else Typed(hint).from_value


def json_schema(hint: Any) -> dict[str, Any]:
    """A JSON Schema of a hint; definitions that it refers to are below `$defs`."""
    schema: dict[str, Any] = msgspec.json.schema(hint, schema_hook=_schema_of)
    return schema


class Typed:
    """A hint made ready for requests: what is the same for all of them is worked out once.

    Raises:
        TypeError: it has no JSON form.
    """

    def __init__(self, hint: Any) -> None:
        self.hint = hint
        self.schema = json_schema(hint)
        self.opens_images = "image/*" in str(self.schema)
        """Whether a value may take long to make."""
        self._info = _bare(shapes.type_info(hint))
        self.named = isinstance(self._info, _OBJECTS) or _is_model(_class_of(self._info))
        """Whether it is made of parts with names, so that a form or an inference request is one by itself."""
        self.text = isinstance(self._info, shapes.StrType)
        self.raw = isinstance(self._info, shapes.BytesType)
        """Whether it is the body as it came, whatever that is."""
        self.octets = self.raw or (_class_of(self._info) is not None and not self.named)
        """Whether a body of bytes may be one."""
        self._decode = msgspec.json.Decoder(hint, dec_hook=_built).decode
        self._convert = partial(msgspec.convert, type=hint, dec_hook=_built)

    def from_json(self, octets: bytes) -> Any:
        """A value from JSON text, parsed and checked in one go.

        Raises:
            ItemError: 400 for what is no JSON, 422 for what does not fit.
        """
        try:
            return self._decode(octets)
        except msgspec.ValidationError as fault:
            raise self._misfit(fault) from None
        except (msgspec.DecodeError, ValueError, RecursionError):
            return self.from_value(parse_json(octets))

    def from_value(self, value: Any) -> Any:
        """A value from what JSON, or an inference request, has made of it.

        Raises:
            ItemError: 422 for what does not fit.
        """
        try:
            return self._convert(value)
        except msgspec.ValidationError as fault:
            raise self._misfit(fault) from None

    def from_parts(self, parts: Mapping[str, Any]) -> Any:
        """A value from a form's fields (texts, files) or a request's tensors; a lone part may be the value itself.

        Raises:
            ItemError: 422 for what does not fit.
        """
        if self.named:
            value: Any = {name: _fitted(part, _field(self._info, name)) for name, part in parts.items()}
        elif len(parts) == 1:
            value = _fitted(next(iter(parts.values())), self._info)
        else:
            raise ItemError(422, f"one part is expected; the request has {', '.join(parts) or 'none'}")
        try:
            return self._convert(value, strict=False)  # a form has nothing but texts, for numbers too
        except msgspec.ValidationError as fault:
            raise self._misfit(fault) from None

    def _misfit(self, fault: msgspec.ValidationError) -> ItemError:
        words = str(fault)
        allowed = _allowed(self.schema, words.partition(" - at `$")[2].rstrip("`")) if "enum value" in words else ""
        return ItemError(422, f"the item does not fit: {words}{allowed}")


def _same(value: Any) -> Any:
    return value


# from a function to a hint -------------------------------------------------------------------------------------------


def _resolved(function: Callable[..., Any]) -> tuple[Any, Any]:
    """The hints of the first parameter and of the answer."""
    if not getattr(function, "__annotations__", None):
        return Any, Any
    hints = typing.get_type_hints(function, include_extras=True)
    first = next(iter(inspect.signature(function).parameters), "")
    return hints.get(first, Any), hints.get("return", Any)


def _element(hint: Any) -> Any:
    """X of `list[X]`."""
    arguments = typing.get_args(hint)
    return arguments[0] if typing.get_origin(hint) in _LISTS and arguments else Any


# what msgspec does not know ------------------------------------------------------------------------------------------


def _is_model(cls: Any) -> bool:
    """Whether it is one of pydantic's. That library is the user's, never imported here."""
    return hasattr(cls, "model_validate") and hasattr(cls, "model_json_schema")


def _is_image(cls: Any) -> bool:
    return getattr(cls, "__module__", "") == "PIL.Image" and cls.__name__ == "Image"


def _schema_of(cls: Any) -> dict[str, Any]:
    if cls is object:
        return {"description": "anything"}
    if cls is np.ndarray:
        return {"type": "array", "description": "numbers, nested by axis"}
    if _is_image(cls):
        return {"type": "string", "contentEncoding": "base64", "contentMediaType": "image/*"}
    if _is_model(cls):
        schema: dict[str, Any] = cls.model_json_schema()
        return schema
    raise TypeError(f"{cls.__module__}.{cls.__qualname__} has no form in JSON")


def _built(hint: Any, value: Any) -> Any:
    """A value of a type that msgspec does not know; to what is raised here it adds the place."""
    cls = typing.get_origin(hint) or hint
    if cls is object or (isinstance(value, cls) and cls is not np.ndarray):
        return value
    if cls is np.ndarray:
        return _array(value, _dtype(hint))
    if _is_image(cls):
        return _image(cls, value)
    try:
        return cls.model_validate(value)
    except ValueError as error:
        raise ValueError(_told(error)) from None


def _told(error: ValueError) -> str:
    """The sentences of pydantic on one line, each with its place."""
    errors = getattr(error, "errors", None)
    if not callable(errors):
        return str(error)
    return "; ".join(": ".join(filter(None, (".".join(map(str, one["loc"])), one["msg"]))) for one in errors())


@lru_cache(maxsize=64)
def _dtype(hint: Any) -> np.dtype[Any] | None:
    """float32 of `NDArray[np.float32]`; None where no one type is said."""
    for argument in typing.get_args(hint):
        for scalar in typing.get_args(argument):
            known = [dtype for dtype in NAMES if dtype.type is scalar]
            if known and typing.get_origin(argument) is np.dtype:
                return known[0]
    return None


def _array(value: Any, dtype: np.dtype[Any] | None) -> np.ndarray:
    if isinstance(value, np.ndarray):
        if dtype is not None and not np.can_cast(value.dtype, dtype, "safe"):
            raise ValueError(f"Expected an array of {NAMES[dtype]}, got {NAMES.get(value.dtype, value.dtype)}")
        return value if dtype is None else value.astype(dtype, copy=False)
    if isinstance(value, (bytes, UploadedFile)):
        octets = value if isinstance(value, bytes) else value.data
        if dtype is None or dtype.hasobject or len(octets) % dtype.itemsize:
            kind = "values of a type that the hint does not say" if dtype is None else NAMES[dtype]
            raise ValueError(f"{len(octets)} bytes are no whole number of {kind}")
        return np.frombuffer(octets, dtype).copy()
    if not isinstance(value, list):
        raise TypeError(f"Expected an array of numbers, got `{type(value).__name__}`")
    if dtype is not None:
        try:
            return to_array(value, dtype)
        except ValueError as error:
            raise ValueError(f"the array {error}") from None
    leaves = leaf_types(value)
    array = np.asarray(value) if leaves <= {int, float} or leaves == {bool} else None
    if array is None or array.dtype.hasobject:
        raise ValueError("Expected an array of numbers, all within 64 bits, or one of true and false")
    return array


def _image(cls: Any, value: Any) -> Any:
    if isinstance(value, str):
        try:
            value = base64.b64decode(value.rpartition(",")[2], validate=True)  # browsers: data:image/png;base64,...
        except binascii.Error as error:
            raise ValueError(f"the image is not base64: {error}") from None
    octets = value.data if isinstance(value, UploadedFile) else value
    if not isinstance(octets, bytes):
        raise TypeError(f"Expected an image, got `{type(value).__name__}`")
    pillow: types.ModuleType = sys.modules[cls.__module__]
    try:
        image = pillow.open(BytesIO(octets))
        if image.width * image.height > (pillow.MAX_IMAGE_PIXELS or sys.maxsize):
            raise ValueError(f"{image.width}x{image.height} pixels are more than {pillow.MAX_IMAGE_PIXELS}")  # noqa: TRY301
        image.load()
    except Exception as error:  # noqa: BLE001 - broken files raise whatever the reader of their format stumbles over
        raise ValueError(f"the image cannot be read: {error}") from None
    return image


# parts of a whole ----------------------------------------------------------------------------------------------------


def _bare(info: shapes.Type) -> shapes.Type:
    """Without what does not change its kind: constraints, and that it may be null."""
    if isinstance(info, shapes.Metadata):
        return _bare(info.type)
    if isinstance(info, shapes.UnionType):
        rest = [one for one in info.types if not isinstance(one, shapes.NoneType)]
        return _bare(rest[0]) if len(rest) == 1 else info
    return info


def _class_of(info: shapes.Type) -> Any:
    return info.cls if isinstance(info, shapes.CustomType) else None


def _field(info: shapes.Type, name: str) -> shapes.Type:
    if isinstance(info, shapes.DictType):
        return info.value_type
    if isinstance(info, (shapes.TypedDictType, shapes.DataclassType, shapes.StructType)):
        return next((field.type for field in info.fields if field.encode_name == name), shapes.AnyType())
    return shapes.AnyType()


def _fitted(value: Any, info: shapes.Type) -> Any:
    """A form's field or a tensor in the form that msgspec takes for a type: lists, scalars, texts, bytes."""
    info = _bare(info)
    if isinstance(info, (shapes.AnyType, shapes.CustomType)):
        return value
    several = isinstance(info, _COLLECTIONS)
    if isinstance(value, np.ndarray):
        value = value.tolist() if several or value.size != 1 else value.item()
    if several and not isinstance(value, list):
        value = [value]
    if isinstance(value, list) and not {int, float, bool}.issuperset(map(type, value)):
        element = info.item_type if isinstance(info, shapes.CollectionType) else shapes.AnyType()
        return [_fitted(one, element) for one in value]
    if isinstance(info, shapes.BytesType):
        return value.data if isinstance(value, UploadedFile) else value.encode() if isinstance(value, str) else value
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _allowed(schema: Any, path: str) -> str:
    """What an enum at a path of msgspec's (`.a[0].b`) allows, as the end of a sentence."""
    node = schema
    for step in [*re.findall(r"\[[^\]]*\]|\.[^.\[]+", path), ""]:
        while "$ref" in node:
            node = schema["$defs"][node["$ref"].rpartition("/")[2]]
        if step.startswith("["):
            node = node.get("items", node.get("additionalProperties"))
        elif step:
            node = node.get("properties", {}).get(step[1:])
        if not isinstance(node, dict):
            return ""
    values = node.get("enum")
    return f"; allowed are {', '.join(map(repr, values))}" if values else ""
