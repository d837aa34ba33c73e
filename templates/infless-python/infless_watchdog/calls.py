"""The words between the HTTP edge and what it serves: what was asked, what is answered, and what a model is."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Header = tuple[bytes, bytes]


class LoadError(Exception):
    """The function's folder cannot be served; the message says what is wrong and where."""


class Head:
    """What stands before a request's body. Requests of one client mostly share theirs, so it is read once and kept."""

    __slots__ = ("content_encoding", "content_type", "headers", "memo", "method", "path", "query")

    def __init__(self, method: str = "GET", path: str = "/", query: str = "", headers: Sequence[Header] = ()) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        """Names in lower case, in the order they came."""
        content_type = self.header(b"content-type") or b"application/json"
        self.content_type = content_type.decode("latin-1").partition(";")[0].strip().lower()
        """Without its parameters; JSON where nothing is said."""
        self.content_encoding = self.header(b"content-encoding")
        self.memo: Any = None
        """What the model has found out about requests with this head; None at first."""

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header, its name in lower case."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    def without(self, *names: bytes) -> Head:
        """The same, some headers left out."""
        return Head(self.method, self.path, self.query, [header for header in self.headers if header[0] not in names])


class Call:
    """One request on its way: its head and body, and what it has become."""

    __slots__ = ("arrived_s", "body", "deliver", "head", "item", "live", "withdrawn")

    arrived_s: float
    item: Any
    """What the model made of it."""
    deliver: Callable[[Call, Any], None]
    """Called once with the call, and its Reply or ItemError; not if it is withdrawn before."""
    withdrawn: Callable[[Call], None]

    def __init__(self, head: Head, body: bytes = b"") -> None:
        self.head = head
        self.body = body
        self.live = False
        """True from when it is taken until it is answered, or its client has left."""

    def withdraw(self) -> None:
        """The client has left: the item is not run, or its answer goes nowhere."""
        if self.live:
            self.live = False
            self.withdrawn(self)


@dataclass(slots=True, kw_only=True)
class Reply:
    """One answer, ready to be written. Not frozen: each request has one, and a frozen one takes thrice the time."""

    body: bytes = b""
    content_type: bytes = b"text/plain; charset=utf-8"
    status: int = 200
    headers: tuple[Header, ...] = ()
    chunks: Iterator[bytes] | None = None
    """An answer in pieces, sent as they come; `body` is then empty."""


class Model(Protocol):
    """What the watchdog serves."""

    kind: str
    batched: bool
    """Whether several items may be one run; else batches hold one."""
    concurrency: int
    """Runs that may be under way at once."""
    brief: bool
    """Whether a short run may take the event loop's own thread: never for a user's code, which might not come back."""

    device: str
    """What it runs on: `cpu`, `cuda` or `tensorrt`."""
    prepare: Callable[[Any], Any] | None
    """Work on one item before it is queued, in a pool beside `predict`; None for none."""
    finish: Callable[[Any], Any] | None
    """Work on one answer after `predict`, in the same pool; None for none."""

    prepare_cores: Callable[[int], None] | None
    """What `set_cpu_cores` takes long for and can be done beside `predict`; None for nothing."""

    interrupt: Callable[[], None] | None
    """Ends a run that hangs, so that `predict` raises; None where only ending the whole process would."""

    def decode(self, call: Call) -> Any:
        """The item of one request, on the event loop; raises ItemError when it cannot be one."""
        ...

    def bucket(self, item: Any) -> Hashable:
        """Items with equal buckets may be one run (equal or equally padded shapes). None where all may."""
        ...

    def predict(self, items: list[Any]) -> Any:
        """Answers for a batch of items of one bucket, in order; an exception in an item's place fails it alone.

        Runs in a thread of the watchdog's.
        """
        ...

    def encode(self, answer: Any, item: Any, call: Call) -> Reply:
        """The answer of one request, on the event loop; raises ItemError when it cannot be written."""
        ...

    def example(self) -> Any | None:
        """A sample item for warm-up and profiling; None when nobody knows one."""
        ...

    def metadata(self) -> dict[str, Any]:
        """Model metadata of the Open Inference Protocol: `{"name", "platform", "inputs", "outputs"}`."""
        ...

    def openapi(self) -> dict[str, Any]:
        """An OpenAPI 3.1 document of the function."""
        ...

    def set_cpu_cores(self, cpu_cores: int) -> None:
        """Use this many threads from the next run on. Runs in a thread of the watchdog's, never beside `predict`."""
        ...

    def close(self) -> None:
        """Give resources back."""
        ...
