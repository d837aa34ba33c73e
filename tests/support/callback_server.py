"""Somebody who waits for the results of asynchronous calls."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING

from werkzeug import Request, Response
from werkzeug.datastructures import Headers
from werkzeug.serving import make_server

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

WAIT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One result, as it came."""

    path: str
    headers: Headers
    body: str


class CallbackServer:
    """A context manager: listens on loopback, on a free port where none is given, and takes every POST with 200."""

    def __init__(self, port: int = 0) -> None:
        self._port = port
        self._deliveries: SimpleQueue[Delivery] = SimpleQueue()

    def __enter__(self) -> CallbackServer:
        """Listen."""
        self._server = make_server("127.0.0.1", self._port, self._take, threaded=True)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """Without a slash at the end."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def next(self) -> Delivery:
        """The next result that comes; `queue.Empty` when there is none in time."""
        return self._deliveries.get(timeout=WAIT_S)

    def _take(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        request = Request(environ)
        body = request.get_data(as_text=True)
        self._deliveries.put(Delivery(path=request.path, headers=Headers(request.headers), body=body))
        return Response("")(environ, start_response)
