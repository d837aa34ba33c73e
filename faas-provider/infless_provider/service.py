"""The provider as one process: wiring only. A `worker.Service` under gunicorn, as the watchdog is."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import TYPE_CHECKING, Any

import psutil

from infless_core.clock import SystemClock
from infless_core.errors import InvalidInput
from infless_core.model import Server
from infless_profiler.scrape import InstanceSource
from infless_profiler.sessions import processor_name
from infless_profiler.store import ProfileStore
from infless_provider import auth, logs
from infless_provider.autoscaler import Autoscaler
from infless_provider.backends.process import ProcessBackend
from infless_provider.controller import Controller
from infless_provider.feed import Feed, Source
from infless_provider.metrics import Metrics
from infless_provider.profiling import Profiles
from infless_provider.proxy import Proxy
from infless_provider.routes import build_app
from infless_provider.settings import Settings, usable_cores
from infless_provider.state import State
from infless_provider.wsgi import WsgiBridge
from infless_watchdog.http import Edge, Exchange, Limits

if TYPE_CHECKING:
    from collections.abc import Coroutine

LOG = logging.getLogger("infless.provider")
DRAIN_S = 10.0
"""What Docker and systemd users expect at least between SIGTERM and the end."""


class Provider:
    """Starts everything, routes every request, stops everything."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._clock = SystemClock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._followers: dict[Exchange, asyncio.Task[None]] = {}
        limits = Limits(body_bytes=settings.body_max_bytes)
        self._edge = Edge(self.route, limits)

    async def start(self, sockets: list[socket.socket]) -> None:
        """Open the state, find instances again, then accept clients."""
        settings, cpus = self._settings, usable_cores(self._settings.cpu_cores)
        self._password = auth.ensure_password(settings.password_file) if settings.auth else None
        self._state = State(settings.database)
        self._metrics = Metrics()
        store = ProfileStore(settings.profiles, processor_name())
        profiles = Profiles(store, self._clock, len(cpus), settings.scratch)
        backend = ProcessBackend(cpus, settings.state_dir)
        self._controller = Controller(settings, self._state, backend, profiles, self._clock)
        self._proxy = Proxy(self._controller, self._metrics, settings, self._clock)
        server = Server(id="local", cpu_cores=len(cpus), memory_bytes=psutil.virtual_memory().total)
        autoscaler = Autoscaler(self._controller, server, self._clock, settings.solver)
        self._control = WsgiBridge(
            build_app(
                self._controller, asyncio.get_running_loop(), self._password, self._metrics_text, autoscaler.problem
            )
        )
        await self._controller.restore()
        sources: list[Source] = [InstanceSource()]
        if settings.prometheus_url:
            from infless_profiler.prometheus import PrometheusSource  # few have one

            sources.insert(0, PrometheusSource(settings.prometheus_url))
        feed = Feed(self._controller, profiles, sources, self._metrics, self._clock)
        self._spawn(self._controller.fleet.watch())
        self._planning = self._spawn(autoscaler.run())
        self._feeding = self._spawn(feed.run())
        await self._edge.listen(sockets[0])
        LOG.info("serving %d function(s) on %d core(s)", len(self._controller.functions), len(cpus))

    def route(self, exchange: Exchange) -> None:
        """Invocations and log streams are asyncio; the rest of the control plane is Flask."""
        if exchange.path.startswith("/function/"):
            self._proxy(exchange)
        elif exchange.path == "/system/logs" and exchange.method == "GET":
            self._logs(exchange)
        else:
            self._control(exchange)

    def _logs(self, exchange: Exchange) -> None:
        header = (exchange.header(b"authorization") or b"").decode("latin-1")
        if self._password is not None and not auth.allowed(header, self._password):
            exchange.text(401, "invalid credentials", [(b"www-authenticate", auth.CHALLENGE.encode())])
            return
        try:
            query = logs.parse_query(exchange.query, self._clock.wall_s())
        except InvalidInput as fault:
            exchange.text(422, str(fault))
            return
        function = self._controller.functions.get(f"{query.name}.openfaas-fn")
        if function is None:
            exchange.text(404, f"function {query.name!r} does not exist")
        elif len(self._followers) >= logs.FOLLOWERS_MAX:
            exchange.text(429, f"{logs.FOLLOWERS_MAX} clients read logs already")
        else:
            reader = logs.LogReader(self._settings.logs_dir / function.key, query)
            task = self._followers[exchange] = self._spawn(logs.stream(exchange, reader, query))
            task.add_done_callback(lambda _: self._followers.pop(exchange, None))
            exchange.on_gone = task.cancel

    def _metrics_text(self) -> bytes:
        """Called in a control thread; the numbers are read on the event loop, which owns them."""

        async def text() -> bytes:
            return self._metrics.text(self._controller.functions, self._clock.now_s())

        return asyncio.run_coroutine_threadsafe(text(), self._control.loop).result(10)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def stop(self, *, graceful: bool) -> None:
        """Answer what has come; SIGTERM leaves the instances for the next provider, Ctrl-C ends them."""
        fleet = self._controller.fleet
        self._edge.stop_accepting()
        self._planning.cancel()
        self._feeding.cancel()
        fleet.close_door()
        for exchange, task in list(self._followers.items()):
            task.cancel()
            exchange.end()
        if graceful:
            await self._edge.drain(DRAIN_S)
            self._controller.close()
        else:
            self._controller.close()
            await fleet.end_all(timeout_s=5.0)
            await self._edge.drain(1.0)
        for task in list(self._tasks):
            task.cancel()
        await fleet.close()
        self._control.close()
        self._edge.close()
        self._state.close()
