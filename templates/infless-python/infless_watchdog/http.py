"""HTTP/1.1 server edge on asyncio: connections, their limits, answers in order. Knows nothing of models or functions.

An application is a plain callable `app(exchange)`. It is called on the event loop once the whole request is there and
answers now or later through `exchange.respond(...)`, or in pieces with `begin`, `write`, `end`. Requests of one
connection are answered in order (RFC 9112, section 9.3); the next one starts when the last answer is complete.

Where the application wants that for a head (`streams`), it is called before a long body is whole, and reads it from
`exchange.body_stream`.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

from infless_watchdog.body_stream import BodyLostError, BodyStream
from infless_watchdog.calls import Head, Header
from infless_watchdog.connection import Connection
from infless_watchdog.exchange import JSON, TEXT, Exchange, first_line
from infless_watchdog.request_parser import Known, Limits

if TYPE_CHECKING:
    import ssl

__all__ = ["JSON", "TEXT", "App", "BodyLostError", "BodyStream", "Connection", "Edge", "Exchange", "Header", "Limits"]

App = Callable[[Exchange], None]


class Edge:
    """A listening HTTP server: an application, its limits, and the connections it holds."""

    PIPELINE_MAX = 16
    """Requests one client may send ahead; then it is not read from until answers are out."""
    SWEEP_S = 1.0
    """How often silent connections are looked for: fine enough for limits of seconds."""
    SWEEP_SIZE = 256
    """So many are looked at in one go, which takes less than a millisecond."""
    STARTS_MAX = 1024
    """Kinds of answers whose first lines are kept: status, content type, and length."""
    HANDSHAKE_S = 10.0
    """Who has not agreed on TLS by then is cut: a handshake is two round trips."""
    LINGER_S = 5.0
    """How long a refused client may go on sending before it is cut (nginx's `lingering_timeout`)."""

    def __init__(
        self,
        app: App,
        limits: Limits,
        on_refused: Callable[[Exchange], None] | None = None,
        streams: Callable[[Head], bool] | None = None,
    ) -> None:
        self.app = app
        self.limits = limits
        self.streams = streams
        self.on_refused = on_refused or (lambda _: None)
        self.draining = False
        self.connections: set[Connection] = set()
        self.turned_away = 0
        """Connections that got 503 because there were too many."""
        self.loop: asyncio.AbstractEventLoop
        self._server: asyncio.Server | None = None
        self.now_s = 0.0
        """The loop's time, as of the last sweep: near enough to see who is silent for minutes."""
        self.heads: dict[bytes, Known] = {}
        """See `RequestParser`."""
        self.starts: dict[tuple[int, bytes, int], bytes] = {}
        """See `start_of`."""
        self._sweeper: asyncio.TimerHandle | None = None
        self._idle: list[Connection] = []
        """Some that had nothing in the making a while ago, the longest idle one last."""
        self._idle_found = 0
        self._idle_at_s = self._idle_sweep_s = -math.inf

    async def listen(self, sock: Any, tls: ssl.SSLContext | None = None) -> None:
        """Accept clients on a bound socket.

        Args:
            sock: bound; listening begins here.
            tls: with this every client must speak TLS, and has `HANDSHAKE_S` to agree on it.
        """
        self.loop = asyncio.get_running_loop()
        patience: dict[str, Any] = {}
        if tls is not None:
            patience = {"ssl": tls, "ssl_handshake_timeout": self.HANDSHAKE_S, "ssl_shutdown_timeout": self.LINGER_S}
        self._server = await self.loop.create_server(lambda: Connection(self), sock=sock, backlog=4096, **patience)
        self._sweep()

    def has_room(self) -> bool:
        """Whether one more connection may stay; the longest idle one is closed for it where needed."""
        most = self.limits.connections_max
        if not most or len(self.connections) < most or self._close_idlest():
            return True
        self.turned_away += 1
        return False

    def _close_idlest(self) -> bool:
        """Close the connection that has been idle for longest; false when all are busy."""
        for _ in range(2):
            while self._idle:
                connection = self._idle.pop()
                unused = connection in self.connections and connection.since_s <= self._idle_at_s
                if unused and connection.close_if_idle():
                    self.connections.discard(connection)
                    return True
            if self.now_s == self._idle_sweep_s and self._idle_found < len(self.connections) / 8:
                break  # few were idle when all were looked at a moment ago: a crowd must not make us look for each
            self._idle_sweep_s, self._idle_at_s = self.now_s, self.loop.time()
            idle = (connection for connection in self.connections if connection.idle)
            self._idle = sorted(idle, key=lambda connection: connection.since_s, reverse=True)
            self._idle_found = len(self._idle)
        return False

    def start_of(self, status: int, content_type: bytes, size: int) -> bytes:
        """The first lines of an answer. They are kept until the next sweep: then `date` changes."""
        start = b"%bdate: %b\r\n" % (first_line(status), formatdate(time.time(), usegmt=True).encode())
        if content_type:
            start += b"content-type: %b\r\ncontent-length: %d\r\n" % (content_type, size)
        if len(self.starts) < self.STARTS_MAX:
            self.starts[(status, content_type, size)] = start
        return start

    def _sweep(self) -> None:
        now_s = self.now_s = self.loop.time()
        self.starts.clear()
        self._look_at(list(self.connections), now_s)
        self._sweeper = self.loop.call_later(self.SWEEP_S, self._sweep)

    def _look_at(self, connections: list[Connection], now_s: float) -> None:
        """A part of them in each turn of the loop: thousands at once would hold up everybody's requests."""
        for connection in connections[-self.SWEEP_SIZE :]:
            connection.expire(now_s)
        del connections[-self.SWEEP_SIZE :]
        if connections:
            self.loop.call_soon(self._look_at, connections, now_s)

    def stop_accepting(self) -> None:
        """Take no new clients; connections close as their answers go out."""
        self.draining = True
        for connection in self.connections:
            connection.draining = True
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.close_if_idle()

    async def drain(self, timeout_s: float) -> bool:
        """Take no new clients and let every answer go out; True when all connections have ended."""
        self.stop_accepting()
        ends_s = self.loop.time() + timeout_s
        while self.connections and self.loop.time() < ends_s:
            await asyncio.sleep(0.01)
        return not self.connections

    def close(self) -> None:
        """Drop everything."""
        self.stop_accepting()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self.connections):
            connection.cut()
