"""The kinds of handler.py: `predict(batch)` and OpenFaaS's `handle(event, context)`, run in threads of the watchdog."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from urllib.parse import parse_qsl, unquote
from wsgiref.headers import Headers

from infless_watchdog import oip_about
from infless_watchdog.bodies import PlainCodec
from infless_watchdog.calls import Call, Head, LoadError, Model, Reply
from infless_watchdog.handler_module import HandlerModule
from infless_watchdog.hints import answer_hint, item_hint
from infless_watchdog.isolation import ItemError, as_item_error
from infless_watchdog.loop_thread import is_async
from infless_watchdog.plain import encode_plain
from infless_watchdog.settings import Settings
from infless_watchdog.streams import Stream, is_stream

Function = Callable[..., Any]
CONCURRENT_MAX = 64
"""Requests that an async `handle` works on at once: each holds a parked thread, and 64 of them cost next to nothing."""
_FIELD_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_FRAMING = frozenset({b"content-length", b"transfer-encoding", b"connection", b"keep-alive"})
"""Ours to say: a handler's word on them would break the connection."""


def model_of(module: HandlerModule, settings: Settings) -> Model:
    """The kind that a handler.py is.

    Raises:
        LoadError: it is none.
    """
    if (predict := module.function("predict")) is not None:
        return PredictModel(predict, module, settings)
    if (handle := module.function("handle")) is not None:
        return HandleModel(handle, module, settings)
    raise LoadError(f"{module.path} defines neither predict(batch) nor handle(event, context)")


class _HandlerModel:
    """What both kinds have in common."""

    kind: str
    batched: bool
    concurrency = 1
    brief = False
    prepare: Callable[[Any], Any] | None = None
    finish: Callable[[Any], Any] | None = None
    prepare_cores: Callable[[int], None] | None = None
    interrupt: Callable[[], None] | None = None
    """A thread cannot be ended."""

    def __init__(self, function: Function, module: HandlerModule, settings: Settings) -> None:
        self.device = settings.model_device  # the handler's own business, so what was wished for stands
        self._module = module
        self._name = settings.function_name
        self._run = module.loop.plain(function, limited=True)

    def bucket(self, item: Any) -> Hashable:
        """All items may be one run."""
        del item
        return None

    def example(self) -> Any | None:
        """The user's `example()`, if there is one."""
        return self._module.example()

    def metadata(self) -> dict[str, Any]:
        """A name; nobody knows what tensors a handler takes."""
        return oip_about.metadata(self._name, "python")

    def set_cpu_cores(self, cpu_cores: int) -> None:
        """The user's `set_cpu_cores(n)`, if there is one."""
        self._module.set_cpu_cores(cpu_cores)

    def close(self) -> None:
        """The user's `close()`, if there is one."""
        self._module.close()


@dataclass(frozen=True, slots=True)
class _Bucketed:
    """An item and the user's word for what it goes together with."""

    item: Any
    bucket: Hashable


class PredictModel(_HandlerModel):
    """`predict(batch: list) -> list` in handler.py, with `preprocess(item)`, `postprocess(answer)`, `bucket(item)`."""

    kind = "predict"
    batched = True

    def __init__(self, predict: Function, module: HandlerModule, settings: Settings) -> None:
        super().__init__(predict, module, settings)
        before, after = module.own("preprocess"), module.own("postprocess")
        self._codec = PlainCodec(
            item_hint(before, "item") if before else item_hint(predict, "batch"),
            answer_hint(after, "item") if after else answer_hint(predict, "batch"),
            name=settings.function_name,
        )
        # User's code never runs on the event loop: what bucket an item has is found out in the pool, too.
        bucket = module.own("bucket")
        self._has_buckets = bucket is not None
        steps = [step for step in (self._codec.prepare, before, bucket and partial(_bucketed, bucket)) if step]
        self.prepare = partial(_through, steps) if steps else None
        self.finish = after and partial(_finished, after)

    def decode(self, call: Call) -> Any:
        """As the content type and the type hint say."""
        return self._codec.decode(call)

    def bucket(self, item: Any) -> Hashable:
        """What the user's `bucket(item)` said of it."""
        return item.bucket if self._has_buckets else None

    def predict(self, items: list[Any]) -> Any:
        """One call of the user's function for the whole batch."""
        answers = self._run([item.item for item in items] if self._has_buckets else items)
        if type(answers) in (list, tuple) and any(map(is_stream, answers)):
            return [self._begun(answer) if is_stream(answer) else answer for answer in answers]
        return answers

    def encode(self, answer: Any, item: Any, call: Call) -> Reply:
        """In the form the request came in; a generator in pieces."""
        if isinstance(answer, Stream):
            return Reply(chunks=answer, content_type=answer.content_type(call))
        return self._codec.encode(answer, item.item if self._has_buckets else item, call)

    def openapi(self) -> dict[str, Any]:
        """From the type hints of `predict`, or of `preprocess` and `postprocess`."""
        return self._codec.openapi(example=self._module.sample)

    def _begun(self, source: Any) -> Any:
        """With its first piece; an exception before that is this item's own."""
        try:
            return Stream(source, self._module.loop)
        except Exception as error:  # noqa: BLE001 - the user's generator
            return as_item_error(error)


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


class HandleModel(_HandlerModel):
    """`handle(event, context)` in handler.py: one request at a time, as in OpenFaaS; an async one many at once."""

    kind = "handle"
    batched = False

    def __init__(self, handle: Function, module: HandlerModule, settings: Settings) -> None:
        super().__init__(handle, module, settings)
        self.concurrency = CONCURRENT_MAX if is_async(handle) else 1
        self._codec = PlainCodec(answer_hint=answer_hint(handle, "item"), name=settings.function_name)

    def decode(self, call: Call) -> Event:
        """The event; the body stays bytes."""
        head = call.head
        if head.memo is None:
            head.memo = _read_head(head)
        headers, query, path = head.memo
        # Copies: what one handler does to its event is not seen by the next.
        return Event(body=call.body, headers=Headers([*headers]), method=head.method, query={**query}, path=path)

    def predict(self, items: list[Any]) -> list[Any]:
        """Each event by itself; a failure is that event's own."""
        return [self._answer(event) for event in items]

    def encode(self, answer: Any, item: Any, call: Call) -> Reply:
        """`{"statusCode", "body", "headers"}`, a bare value, or None for an empty answer."""
        del item
        if not _has_status(answer):
            return _reply("" if answer is None else answer, call)
        body, status = answer.get("body"), answer.get("statusCode", 200)
        if not isinstance(status, int) or not 200 <= status <= 599:
            raise ItemError(500, f"the handler answered with statusCode {status!r}, which is no HTTP status")
        content_type, headers = None, []
        for name, value in dict(answer.get("headers") or {}).items():
            key, text = str(name).lower().encode("latin-1"), str(value).encode("latin-1")
            if not _FIELD_NAME.fullmatch(key) or _CONTROL.search(text):
                raise ItemError(500, f"the handler answered with header {name!r}, which cannot be sent")
            if key == b"content-type":
                content_type = text
            elif key not in _FRAMING:
                headers.append((key, text))
        plain = _reply("" if body is None else body, call, content_type)
        return replace(plain, status=status, headers=tuple(headers))

    def example(self) -> Event | None:
        """The user's example as the body of an event."""
        body = super().example()
        if body is None:
            return None
        octets = (
            body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode()
        )
        return Event(body=octets, headers=Headers([]), method="POST", query={}, path="/")

    def openapi(self) -> dict[str, Any]:
        """What `handle` answers; it takes what comes."""
        return self._codec.openapi(example=self._module.sample)

    def _answer(self, event: Event) -> Any:
        answer = self._run(event, Context())
        if is_stream(answer):
            return Stream(answer, self._module.loop)
        if _has_status(answer) and is_stream(answer.get("body")):
            return {**answer, "body": Stream(answer["body"], self._module.loop)}
        return answer


def _has_status(answer: Any) -> bool:
    """Whether it is the dictionary of OpenFaaS's templates, and not just one."""
    return isinstance(answer, dict) and bool({"body", "statusCode"} & answer.keys())


def _reply(body: Any, call: Call, content_type: bytes | None = None) -> Reply:
    if isinstance(body, Stream):
        return Reply(chunks=body, content_type=body.content_type(call, content_type))
    plain = encode_plain(body)
    return plain if content_type is None else Reply(body=plain.body, content_type=content_type)


def _read_head(head: Head) -> tuple[list[tuple[str, str]], dict[str, str], str]:
    """Headers, query and path as an event has them."""
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in head.headers]
    return headers, dict(parse_qsl(head.query, keep_blank_values=True)), unquote(head.path)


def _through(steps: list[Function], item: Any) -> Any:
    for step in steps:
        item = step(item)
    return item


def _bucketed(bucket_of: Function, item: Any) -> _Bucketed:
    bucket = bucket_of(item)
    try:
        hash(bucket)
    except TypeError:
        kind = type(bucket).__name__
        raise ItemError(500, f"bucket(item) must return something hashable; it returned {kind}") from None
    return _Bucketed(item, bucket)


def _finished(after: Function, answer: Any) -> Any:
    """An answer in pieces is not there yet: nothing can be done to it."""
    return answer if isinstance(answer, Stream) else after(answer)
