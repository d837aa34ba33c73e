"""The bridge from the asyncio edge to a WSGI application (PEP 3333): a few threads, whole answers."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from werkzeug.wrappers import Response

if TYPE_CHECKING:
    from infless_watchdog.http import Exchange, Header

LOG = logging.getLogger("infless.wsgi")
THREADS = 64
"""Control calls are short, but a deployment may pull an image and time it for minutes: others must get through."""
CALLS_MAX = 512
"""Calls of operators that have a thread or wait for one: each may hold a body of megabytes."""
STRANGERS_THREADS = 4
"""Of their own, so that no flood of theirs takes an operator's, and few, as all threads take turns on one core."""
STRANGERS_MAX = 32
"""Their calls that have a thread or wait for one."""
RETRY = ((b"retry-after", b"1"),)


Answer = tuple[int, "list[Header]", bytes]
"""Status, headers with names in lower case, body."""


class _Lane:
    """Threads, and how many calls may have one or wait for one."""

    def __init__(self, threads: int, calls_max: int, name: str) -> None:
        self.threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self.room = threading.BoundedSemaphore(calls_max)


class WsgiBridge:
    """Answers exchanges with a WSGI application.

    Args:
        app: called in threads.
        known: whether an exchange is from somebody who may call everything. Called on the event loop.
    """

    def __init__(
        self, app: Callable[..., Iterable[bytes]], known: Callable[[Exchange], bool] = lambda _: True
    ) -> None:  # fmt: skip
        self._app = app
        self._known = known
        self._operators = _Lane(THREADS, CALLS_MAX, "control")
        self._strangers = _Lane(STRANGERS_THREADS, STRANGERS_MAX, "strangers")
        self.loop = asyncio.get_running_loop()

    def __call__(self, exchange: Exchange) -> None:
        """Hand over to a thread, or say at once that there is no room (`exchange.status` is set then)."""
        lane = self._operators if self._known(exchange) else self._strangers
        if not lane.room.acquire(blocking=False):
            exchange.text(503, "too many control calls wait for their answers; try again in a second", RETRY)
            return
        try:
            work = lane.threads.submit(self._run, exchange)
        except RuntimeError:
            lane.room.release()
            exchange.text(503, "the provider stops")
        else:
            work.add_done_callback(lambda work: self._done(lane.room, exchange, work))

    def close(self) -> None:
        """Take no more work."""
        for lane in (self._operators, self._strangers):
            lane.threads.shutdown(wait=False, cancel_futures=True)

    def _run(self, exchange: Exchange) -> Answer | None:
        if exchange.client_gone:  # nobody would read the answer, and what was to be changed has not been begun
            return None
        try:
            return _call(self._app, _environ(exchange))
        except Exception:
            LOG.exception("%s %s failed", exchange.method, exchange.path)
            return 500, [], b"the provider failed on this request; its log says why\n"

    def _done(self, room: threading.Semaphore, exchange: Exchange, work: Future[Answer | None]) -> None:
        room.release()  # before the answer: who has read it may call again
        if not work.cancelled() and (answer := work.result()) is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it the connection
                self.loop.call_soon_threadsafe(_answer, exchange, *answer)


def _answer(exchange: Exchange, status: int, headers: list[Header], body: bytes) -> None:
    if exchange.method == "HEAD":  # the length is that of the body which a GET would have got
        exchange.begin(status, headers)
        exchange.end()
        return
    content_type = next((value for name, value in headers if name == b"content-type"), b"text/plain; charset=utf-8")
    rest = [(name, value) for name, value in headers if name not in (b"content-type", b"content-length")]
    exchange.respond(status, body, content_type, rest)


def _call(app: Callable[..., Iterable[bytes]], environ: dict[str, Any]) -> Answer:
    answer = Response.from_app(app, environ, buffered=True)
    headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers]
    return answer.status_code, headers, answer.get_data()


def _environ(exchange: Exchange) -> dict[str, Any]:
    host, _, port = (exchange.header(b"host") or b"localhost:80").decode("latin-1").partition(":")
    environ = {
        "REQUEST_METHOD": exchange.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(exchange.path.encode("latin-1")).decode("latin-1"),
        "QUERY_STRING": exchange.query,
        "SERVER_NAME": host,
        "SERVER_PORT": port or "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": exchange.peer.rpartition(":")[0],
        "CONTENT_LENGTH": str(len(exchange.body)),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(bytes(exchange.body)),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for name, value in exchange.headers:
        key = name.decode("latin-1").upper().replace("-", "_")
        if key == "CONTENT_TYPE":
            environ[key] = value.decode("latin-1")
        elif key not in ("CONTENT_LENGTH", "TRANSFER_ENCODING"):
            environ[f"HTTP_{key}"] = value.decode("latin-1")
    return environ
