"""The provider as one process: wiring only. A `worker.Service` under gunicorn, as the watchdog is."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import ssl
from typing import TYPE_CHECKING, Any

from infless_core.clock import SystemClock
from infless_core.errors import InvalidInput
from infless_profiler.scrape import InstanceSource
from infless_profiler.sessions import processor_name
from infless_profiler.store import ProfileStore
from infless_provider import auth, logs
from infless_provider.async_calls import AsyncCalls
from infless_provider.async_policy import AsyncLimits
from infless_provider.async_store import QueueStore
from infless_provider.autoscaler import Autoscaler
from infless_provider.backends.choose import make_backend
from infless_provider.callback_policy import CallbackPolicy
from infless_provider.callbacks import Callbacks
from infless_provider.controller import Controller
from infless_provider.feed import Feed, Source
from infless_provider.log_hub import LogHub
from infless_provider.metrics import Metrics, Sample, SharedText, sample
from infless_provider.profiling import Profiles
from infless_provider.proxy import Proxy
from infless_provider.routes import Parts, build_app
from infless_provider.secret_store import SecretStore
from infless_provider.settings import Settings
from infless_provider.state import State
from infless_provider.tenants import Tenants
from infless_provider.views import Views
from infless_provider.wsgi import WsgiBridge
from infless_watchdog.body_stream import BodyLostError, StreamedExchange
from infless_watchdog.http import Edge, Exchange, Limits

if TYPE_CHECKING:
    from collections.abc import Coroutine

LOG = logging.getLogger("infless.provider")
STOP_S = 45.0
"""What may follow when the last answer is out: callbacks that run, a backend's threads that end."""
CONTROL_BODY_MAX_BYTES = 4 * 1024 * 1024
"""The largest control call is a secret of a mebibyte, sent as text and once more in base64."""


class Provider:
    """Starts everything, routes every request, stops everything."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._clock = SystemClock()
        self._tasks: set[asyncio.Task[None]] = set()
        limits = Limits(body_bytes=settings.body_max_bytes, connections_max=settings.connections_max)
        self._edge = Edge(self.route, limits, streams=lambda _: True)

    async def start(self, sockets: list[socket.socket]) -> None:
        """Open the state, find instances again, then accept clients."""
        settings, clock = self._settings, self._clock
        self._credentials = auth.ensure_credentials(settings.credentials_dir) if settings.auth else None
        tls = tls_context(settings)
        self._state = State(settings.database)
        self._metrics = Metrics()
        self._backend = make_backend(settings)
        await self._backend.open()
        server = self._backend.servers[0]
        store = ProfileStore(settings.profiles, processor_name())
        profiles = Profiles(store, clock, server.cpu_cores, self._backend.curve, settings.start_timeout_s)
        secrets = SecretStore(settings.secrets_dir, settings.secrets_max, self._backend.runs_as)
        self._controller = controller = Controller(settings, self._state, self._backend, profiles, secrets, clock)
        self._proxy = Proxy(controller, self._metrics, settings, clock, self._ours)
        autoscaler = Autoscaler(controller, server, clock, settings.solver)
        self._views = views = Views(controller)
        tenants = Tenants(controller.namespaces, secrets, controller.functions_in)
        tenants.on_secret = controller.secret_changed
        self._log_hub = LogHub(settings.logs_dir, clock)
        controller.on_removed = self._removed
        self._queue = self._make_queue()
        parts = Parts(
            controller=controller,
            views=views,
            tenants=tenants,
            problem=autoscaler.problem,
            metrics=SharedText(self._metrics_text, clock).get,
            observe=self._metrics.control,
        )
        app = build_app(parts, asyncio.get_running_loop(), self._credentials)
        self._control = WsgiBridge(app, self._known)
        await controller.restore()
        await self._queue.start()
        sources: list[Source] = [InstanceSource()]
        if settings.prometheus_url:
            from infless_profiler.prometheus import PrometheusSource  # few have one

            sources.insert(0, PrometheusSource(settings.prometheus_url))
        feed = Feed(controller, views.targets, profiles, sources, self._metrics, clock)
        self._spawn(controller.fleet.watch())
        self._planning = self._spawn(autoscaler.run())
        self._feeding = self._spawn(feed.run())
        await self._edge.listen(sockets[0], tls)
        LOG.info("serving %d function(s) on %d core(s)", len(controller.functions), server.cpu_cores)

    def _make_queue(self) -> AsyncCalls:
        settings = self._settings
        limits = AsyncLimits(body_max_bytes=settings.async_body_max_bytes, invoke_timeout_s=settings.invoke_timeout_s)
        return AsyncCalls(
            QueueStore(settings.queue),
            self._controller.functions.get,
            self._proxy.call,
            Callbacks(CallbackPolicy.parse(settings.callbacks_allowed), connections_max=limits.callbacks_max),
            self._clock,
            limits,
            random.SystemRandom().getrandbits(32),
            self._ours,
        )

    def _removed(self, key: str) -> None:
        self._log_hub.end(key)
        self._metrics.forget(key)
        self._queue.forget(key)

    def route(self, exchange: Exchange) -> None:
        """Invocations, queued calls and log streams are asyncio; the rest of the control plane is Flask."""
        if exchange.path.startswith("/function/"):
            self._proxy(exchange)
        elif exchange.path == "/healthz":  # whatever the control threads wait for
            self._healthz(exchange)
        elif isinstance(exchange, StreamedExchange):
            self._spawn(self._gather(exchange))
        else:
            self._whole(exchange)

    @staticmethod
    def _healthz(exchange: Exchange) -> None:
        if exchange.method in ("GET", "HEAD"):
            exchange.respond(200, b"OK")
        else:
            exchange.text(405, f"{exchange.method} /healthz: use GET", [(b"allow", b"GET, HEAD")])

    async def _gather(self, exchange: StreamedExchange) -> None:
        """Control calls and queued ones are taken whole, within limits of their own, from those who may ask."""
        queued = exchange.path.startswith("/async-function/")
        most_bytes = self._settings.async_body_max_bytes if queued else CONTROL_BODY_MAX_BYTES
        if not (self._queue.door(exchange) if queued else self._admitted(exchange)):
            return
        pieces, size_bytes = [], 0
        try:
            async for piece in exchange.body_stream:
                pieces.append(piece)
                size_bytes += len(piece)
                if size_bytes > most_bytes:
                    exchange.text(413, f"the body is larger than the allowed {most_bytes} bytes")
                    return
        except BodyLostError:
            return  # the client has been told, or has left
        exchange.body = b"".join(pieces)
        self._whole(exchange)

    def _whole(self, exchange: Exchange) -> None:
        if exchange.path.startswith("/async-function/"):
            self._queue(exchange)
        elif exchange.path == "/system/logs":
            self._logs(exchange)
        else:
            self._control(exchange)
            if exchange.status:  # there was no room for it
                self._metrics.control(exchange.status, exchange.method, "other", 0.0)

    def _ours(self, header: bytes | None) -> bool:
        """Whether an Authorization header is meant for the control plane, with the right password or a wrong one."""
        return self._credentials is not None and self._credentials.names((header or b"").decode("latin-1"))

    def _known(self, exchange: Exchange) -> bool:
        """Whether it comes from an operator; without authentication everybody is one."""
        header = (exchange.header(b"authorization") or b"").decode("latin-1")
        return self._credentials is None or self._credentials.admit(header)

    def _admitted(self, exchange: Exchange) -> bool:
        admitted = self._known(exchange)
        if not admitted:
            exchange.text(401, "invalid credentials", [(b"www-authenticate", auth.CHALLENGE.encode())])
            route = exchange.path if exchange.path == "/system/logs" else "other"
            self._metrics.control(401, exchange.method, route, 0.0)  # somebody may be guessing passwords
        return admitted

    def _logs(self, exchange: Exchange) -> None:
        if self._admitted(exchange):
            self._answer_logs(exchange)
            self._metrics.control(exchange.status or 200, exchange.method, "/system/logs", 0.0)

    def _answer_logs(self, exchange: Exchange) -> None:
        if exchange.method != "GET":
            exchange.text(405, f"{exchange.method} /system/logs: use GET", [(b"allow", b"GET")])
            return
        try:
            query = logs.parse_query(exchange.query, self._clock.wall_s())
        except InvalidInput as fault:
            exchange.text(422, str(fault))
            return
        if query.key in self._controller.functions:
            self._log_hub.serve(exchange, query)
        else:
            exchange.text(404, f"function {query.key!r} does not exist")

    def _metrics_text(self) -> bytes:
        """Called in a control thread: only the look at what the event loop owns is the loop's."""

        async def look() -> Sample:
            functions = self._controller.functions.values()
            return sample(functions, self._queue.stats(), self._edge.turned_away, self._clock.now_s())

        return self._metrics.text(asyncio.run_coroutine_threadsafe(look(), self._control.loop).result(10))

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
        if graceful:
            drained = self._edge.drain(self._settings.invoke_timeout_s)
            await asyncio.gather(self._log_hub.close(), self._queue.close(), drained)
            self._controller.close()
        else:
            await asyncio.gather(self._log_hub.close(), self._queue.close())
            self._controller.close()
            await fleet.end_all(timeout_s=5.0)
            await self._edge.drain(1.0)
        for task in list(self._tasks):
            task.cancel()
        await fleet.close()
        await self._backend.close()
        self._control.close()
        self._views.close()
        self._edge.close()
        self._state.close()


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """What clients must speak; None is plain HTTP.

    Raises:
        InvalidInput: the certificate or its key cannot be used.
    """
    if settings.tls_certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)  # TLS 1.2 and newer
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # Without a password for it, a protected key would ask the terminal for one, and wait.
        context.load_cert_chain(settings.tls_certificate, settings.tls_key, password="")
    except (OSError, ssl.SSLError) as error:
        raise InvalidInput(f"--tls-cert {settings.tls_certificate}: no certificate with its key: {error}") from error
    return context
