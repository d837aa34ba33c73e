"""From a function's folder to a `Model`: `handler.py` with `predict` or `handle`, or a bare `model.onnx`.

Everything of the user's code is called through this module; what it raises is turned into one clear sentence.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import re
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import parse_qsl, unquote
from wsgiref.headers import Headers

from infless_watchdog.calls import Call, LoadError, Model, Reply
from infless_watchdog.isolation import ItemError
from infless_watchdog.settings import Settings

SAMPLE_SHA256 = "d63b5499d9486b585d9a915045a7ba499334ad9c88e07c59f73048a021f84df6"
"""The template's own handler.py: as long as nobody has changed it, it gives way to a `model.onnx` beside it."""

OCTETS = b"application/octet-stream"
_FIELD_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_FRAMING = frozenset({b"content-length", b"transfer-encoding", b"connection", b"keep-alive"})
"""Ours to say: a handler's word on them would break the connection."""


def load_model(settings: Settings) -> Model:
    """Find and load what a folder serves.

    Raises:
        LoadError: names the folder or file and what is wrong.
    """
    folder = Path(settings.function_dir).resolve()
    handler, onnx = folder / "handler.py", folder / "model.onnx"
    if not handler.is_file() and not onnx.is_file():
        raise LoadError(f"{folder} has neither handler.py nor model.onnx")
    if onnx.is_file() and (not handler.is_file() or is_sample(handler)):
        from infless_watchdog.onnx_model import OnnxModel

        return OnnxModel(onnx, settings)
    module = _import_handler(folder)
    if (load := _own(module, "load")) is not None:
        try:
            load()
        except (Exception, SystemExit) as error:
            raise LoadError(f"load() in {handler} raised {_told(error, folder)}") from error
    for name, kind in (("predict", PredictModel), ("handle", HandleModel)):
        function = getattr(module, name, None)
        if inspect.iscoroutinefunction(function):
            raise LoadError(f"{name} in {handler} is async; it runs in a thread of its own: write a plain function")
        if callable(function):
            return kind(module)
    raise LoadError(f"{handler} defines neither predict(batch) nor handle(event, context)")


def is_sample(handler: Path) -> bool:
    """Whether nobody has changed the template's handler.py."""
    return hashlib.sha256(handler.read_bytes().replace(b"\r\n", b"\n")).hexdigest() == SAMPLE_SHA256


def _own(module: ModuleType, name: str) -> Callable[[], Any] | None:
    """A function of the user's folder. `from joblib import load` brings another one of that name."""
    function = getattr(module, name, None)
    home = str(getattr(function, "__module__", "")).partition(".")[0]
    return function if callable(function) and home == module.__name__.partition(".")[0] else None


def _told(error: BaseException, folder: Path) -> str:
    """What went wrong, and the last line of the user's own code that was on the way there."""
    own = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(f"{folder}/")]
    place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {error}{place}"


def _import_handler(folder: Path) -> ModuleType:
    parent = str(folder.parent)
    if parent not in sys.path:
        sys.path.insert(0, parent)
    packages = folder.parent / "packages"  # what `infless build` installed for this function alone
    if packages.is_dir() and str(packages) not in sys.path:
        sys.path.insert(1, str(packages))
    try:
        return importlib.import_module(f"{folder.name}.handler")
    except (Exception, SystemExit) as error:
        raise LoadError(f"{folder / 'handler.py'} cannot be imported: {_told(error, folder)}") from error


class _HandlerModule:
    """What `predict` and `handle` have in common: the user's module and its optional parts."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def example(self) -> Any | None:
        """The user's `example()`, if there is one."""
        make = _own(self._module, "example")
        return None if make is None else make()

    def close(self) -> None:
        """The user's `close()`, if there is one."""
        if (end := _own(self._module, "close")) is not None:
            end()


class PredictModel(_HandlerModule):
    """`predict(batch: list) -> list` in handler.py."""

    kind = "predict"
    batched = True

    def predict(self, items: list[Any]) -> Any:
        """One call of the user's function for the whole batch."""
        return self._module.predict(items)

    def decode(self, call: Call) -> Any:
        """Parsed JSON, str for text, bytes otherwise."""
        refuse_compressed(call)
        if call.head.content_type == "application/json":
            return parse_json(call.body)
        if call.head.content_type.startswith("text/"):
            try:
                return call.body.decode()
            except UnicodeDecodeError as error:
                raise ItemError(400, f"the body is not UTF-8 text, as its content type says: {error}") from None
        return bytes(call.body)

    def encode(self, answer: Any, item: Any, call: Call) -> Reply:
        """Bytes as they are, str as text, anything else as JSON."""
        del item, call
        return encode_plain(answer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """The request as OpenFaaS's python3-http template hands it to `handle` (openfaas/python-flask-template)."""

    body: bytes
    headers: Headers
    """Found whatever their case, as there."""
    method: str
    query: dict[str, str]
    path: str


@dataclass(frozen=True, slots=True)
class Context:
    """Where the function runs."""

    hostname: str = field(default_factory=socket.gethostname)


class HandleModel(_HandlerModule):
    """`handle(event, context)` in handler.py: one request at a time, as in OpenFaaS."""

    kind = "handle"
    batched = False

    def decode(self, call: Call) -> Event:
        """The event; the body stays bytes."""
        headers = Headers([(name.decode("latin-1"), value.decode("latin-1")) for name, value in call.head.headers])
        query = dict(parse_qsl(call.head.query, keep_blank_values=True))
        return Event(
            body=call.body, headers=headers, method=call.head.method, query=query, path=unquote(call.head.path)
        )

    def predict(self, items: list[Any]) -> list[Any]:
        """Each event by itself; a failure is that event's own."""
        return [self._module.handle(event, Context()) for event in items]

    def encode(self, answer: Any, item: Any, call: Call) -> Reply:
        """`{"statusCode", "body", "headers"}`, a bare value, or None for an empty answer."""
        del item, call
        if not (isinstance(answer, dict) and {"body", "statusCode"} & answer.keys()):
            return encode_plain("" if answer is None else answer)
        body, status = answer.get("body"), answer.get("statusCode", 200)
        if not isinstance(status, int) or not 200 <= status <= 599:
            raise ItemError(500, f"the handler answered with statusCode {status!r}, which is no HTTP status")
        plain = encode_plain("" if body is None else body)
        content_type, headers = plain.content_type, []
        for name, value in dict(answer.get("headers") or {}).items():
            key, text = str(name).lower().encode("latin-1"), str(value).encode("latin-1")
            if not _FIELD_NAME.fullmatch(key) or _CONTROL.search(text):
                raise ItemError(500, f"the handler answered with header {name!r}, which cannot be sent")
            if key == b"content-type":
                content_type = text
            elif key not in _FRAMING:
                headers.append((key, text))
        return Reply(body=plain.body, content_type=content_type, status=status, headers=tuple(headers))

    def example(self) -> Event | None:
        """The user's example as the body of an event."""
        body = super().example()
        if body is None:
            return None
        octets = (
            body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode()
        )
        return Event(body=octets, headers=Headers([]), method="POST", query={}, path="/")


def refuse_compressed(call: Call) -> None:
    """Say so instead of calling compressed bytes broken JSON.

    Raises:
        ItemError: 415 with the coding.
    """
    coding = next((value for name, value in call.head.headers if name == b"content-encoding"), b"identity")
    if coding.lower() != b"identity":
        raise ItemError(415, f"Content-Encoding {coding.decode('latin-1')} is not supported; send the body as it is")


def parse_json(body: bytes) -> Any:
    """The body as JSON.

    Raises:
        ItemError: 400 with the place of the fault.
    """
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ItemError(400, f"the body is not valid JSON: {error}") from None


def encode_plain(answer: Any) -> Reply:
    """Bytes as they are, str as text, anything else as JSON (numpy values included).

    Raises:
        ItemError: 500 when the answer is no JSON value.
    """
    if isinstance(answer, (bytes, bytearray, memoryview)):
        return Reply(body=bytes(answer), content_type=OCTETS)
    try:
        if isinstance(answer, str):
            return Reply(body=answer.encode())
        text = json.dumps(answer, default=_numpy_to_python, allow_nan=False)
        return Reply(body=text.encode(), content_type=b"application/json")
    except (TypeError, ValueError, RecursionError) as error:  # NaN is no JSON, a lone surrogate no text
        raise ItemError(500, f"the handler's answer cannot be written as JSON: {error}") from None


def _numpy_to_python(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"an answer of type {type(value).__name__}")
