"""The bridge from the asyncio edge to a WSGI application (PEP 3333): a few threads, whole answers."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

if TYPE_CHECKING:
    from infless_watchdog.http import Exchange, Header

LOG = logging.getLogger("infless.wsgi")
THREADS = 64
"""Control calls are short, but a deployment may pull an image and time it for minutes: others must get through."""


class WsgiBridge:
    """Answers exchanges with a WSGI application."""

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self._app = app
        self._threads = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="control")
        self.loop = asyncio.get_running_loop()

    def __call__(self, exchange: Exchange) -> None:
        """Hand over to a thread."""
        try:
            self._threads.submit(self._run, exchange)
        except RuntimeError:
            exchange.text(503, "the provider stops")

    def close(self) -> None:
        """Take no more work."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _run(self, exchange: Exchange) -> None:
        try:
            status, headers, body = _call(self._app, _environ(exchange))
        except Exception:
            LOG.exception("%s %s failed", exchange.method, exchange.path)
            status, headers, body = 500, [], b"the provider failed on this request; its log says why\n"
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it the connection
            self.loop.call_soon_threadsafe(_answer, exchange, status, headers, body)


def _answer(exchange: Exchange, status: int, headers: list[Header], body: bytes) -> None:
    if exchange.method == "HEAD":  # the length is that of the body which a GET would have got
        exchange.begin(status, headers)
        exchange.end()
        return
    content_type = next((value for name, value in headers if name == b"content-type"), b"text/plain; charset=utf-8")
    rest = [(name, value) for name, value in headers if name not in (b"content-type", b"content-length")]
    exchange.respond(status, body, content_type, rest)


def _call(app: Callable[..., Iterable[bytes]], environ: dict[str, Any]) -> tuple[int, list[Header], bytes]:
    started: list[tuple[str, list[tuple[str, str]]]] = []
    answer = app(environ, lambda status, headers, _exc=None: started.append((status, headers)))
    try:
        body = b"".join(answer)
    finally:
        close = getattr(answer, "close", None)
        if close is not None:
            close()
    status, headers = started[-1]
    return int(status[:3]), [(n.lower().encode("latin-1"), v.encode("latin-1")) for n, v in headers], body


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
