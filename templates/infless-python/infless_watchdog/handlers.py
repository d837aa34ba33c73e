"""From a function's folder to a `Model`: `handler.py` with `predict` or `handle`, or a bare `model.onnx`.

Everything of the user's code is called through this module; what it raises is turned into one clear sentence.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol
from urllib.parse import parse_qsl

from infless_watchdog.http import Header
from infless_watchdog.isolation import ItemError
from infless_watchdog.settings import Settings

SAMPLE_SHA256 = "d63b5499d9486b585d9a915045a7ba499334ad9c88e07c59f73048a021f84df6"
"""The template's own handler.py: as long as nobody has changed it, it gives way to a `model.onnx` beside it."""

OCTETS = b"application/octet-stream"


class LoadError(Exception):
    """The function's folder cannot be served; the message says what is wrong and where."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a handler may know of one request."""

    method: str
    path: str
    query: str
    headers: tuple[Header, ...]
    body: bytes
    content_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One answer, ready to be written."""

    body: bytes
    content_type: bytes = b"text/plain; charset=utf-8"
    status: int = 200
    headers: tuple[Header, ...] = ()


class Model(Protocol):
    """What the watchdog serves."""

    kind: str
    batched: bool

    def decode(self, call: Call) -> Any:
        """The item of one request; raises ItemError when it cannot be one."""
        ...

    def predict(self, items: list[Any]) -> Any:
        """Answers for a batch of items, in order. Runs in the model's thread."""
        ...

    def encode(self, answer: Any, item: Any, call: Call) -> Reply:
        """The answer of one request; raises ItemError when it cannot be written."""
        ...

    def example(self) -> Any | None:
        """A sample item for warm-up and profiling; None when nobody knows one."""
        ...

    def close(self) -> None:
        """Give resources back."""
        ...


def load_model(settings: Settings) -> Model:
    """Find and load what a folder serves.

    Raises:
        LoadError: names the folder or file and what is wrong.
    """
    folder = Path(settings.function_dir).resolve()
    handler, onnx = folder / "handler.py", folder / "model.onnx"
    if not handler.is_file() and not onnx.is_file():
        raise LoadError(f"{folder} has neither handler.py nor model.onnx")
    sample = handler.is_file() and hashlib.sha256(handler.read_bytes()).hexdigest() == SAMPLE_SHA256
    if onnx.is_file() and (sample or not handler.is_file()):
        from infless_watchdog.onnx_model import OnnxModel

        return OnnxModel(onnx, settings)
    module = _import_handler(folder)
    if callable(getattr(module, "load", None)):
        try:
            module.load()
        except Exception as error:
            raise LoadError(f"load() in {handler} raised {type(error).__name__}: {error}") from error
    if callable(getattr(module, "predict", None)):
        return PredictModel(module)
    if callable(getattr(module, "handle", None)):
        return HandleModel(module)
    raise LoadError(f"{handler} defines neither predict(batch) nor handle(event, context)")


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
        raise LoadError(f"{folder / 'handler.py'} cannot be imported: {type(error).__name__}: {error}") from error


class _HandlerModule:
    """What `predict` and `handle` have in common: the user's module and its optional parts."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def example(self) -> Any | None:
        """The user's `example()`, if there is one."""
        make: Callable[[], Any] | None = getattr(self._module, "example", None)
        return make() if callable(make) else None

    def close(self) -> None:
        """The user's `close()`, if there is one."""
        end: Callable[[], None] | None = getattr(self._module, "close", None)
        if callable(end):
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
        if call.content_type == "application/json":
            return parse_json(call.body)
        if call.content_type.startswith("text/"):
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
    headers: dict[str, str]
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
        headers = {name.decode("latin-1").title(): value.decode("latin-1") for name, value in call.headers}
        query = dict(parse_qsl(call.query, keep_blank_values=True))
        return Event(body=bytes(call.body), headers=headers, method=call.method, query=query, path=call.path)

    def predict(self, items: list[Any]) -> list[Any]:
        """Each event by itself; a failure is that event's own."""
        return [self._module.handle(event, Context()) for event in items]

    def encode(self, answer: Any, item: Any, call: Call) -> Reply:
        """`{"statusCode", "body", "headers"}`, or a bare value."""
        del item, call
        if not (isinstance(answer, dict) and "body" in answer):
            return encode_plain(answer)
        plain = encode_plain(answer["body"])
        headers: dict[str, str] = {str(k).lower(): str(v) for k, v in (answer.get("headers") or {}).items()}
        content_type = headers.pop("content-type", plain.content_type.decode()).encode("latin-1")
        return Reply(
            body=plain.body,
            content_type=content_type,
            status=int(answer.get("statusCode", 200)),
            headers=tuple((k.encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()),
        )

    def example(self) -> Event | None:
        """The user's example as the body of an event."""
        body = super().example()
        if body is None:
            return None
        octets = (
            body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode()
        )
        return Event(body=octets, headers={}, method="POST", query={}, path="/")


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
    if isinstance(answer, str):
        return Reply(body=answer.encode())
    try:
        return Reply(body=json.dumps(answer, default=_numpy_to_python).encode(), content_type=b"application/json")
    except (TypeError, ValueError) as error:
        raise ItemError(500, f"the handler's answer cannot be written as JSON: {error}") from None


def _numpy_to_python(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"an answer of type {type(value).__name__}")
