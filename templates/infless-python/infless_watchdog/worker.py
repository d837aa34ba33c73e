"""A gunicorn worker class of our own: gunicorn keeps sockets, signals and supervision, uvloop runs the service."""

from __future__ import annotations

import mmap
import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from gunicorn.app.base import BaseApplication
from gunicorn.errors import HaltServer
from gunicorn.workers.base import Worker

if TYPE_CHECKING:
    import asyncio

# asyncio and uvloop are imported in the worker: the supervisor has no need of them, nor of their memory.

BOOT_FAILED = 3
"""gunicorn's WORKER_BOOT_ERROR: the arbiter stops instead of restarting a worker that can never start."""


_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - gunicorn makes its file there by mkstemp


class Service(Protocol):
    """What runs in the worker."""

    async def start(self, sockets: list[Any]) -> None:
        """Begin to serve on the bound sockets; raise to refuse the start."""
        ...

    async def stop(self, *, graceful: bool) -> None:
        """Finish what is in the making (graceful) or end at once."""
        ...


class LoopWorker(Worker):  # type: ignore[misc] # gunicorn has no types
    """Runs one `Service` on uvloop."""

    START_GRACE_S = 1.0
    """A service told to end while it starts gets this long to become one that can be stopped in order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Made before the fork, so that the supervisor sees what the worker writes.
        self._shared = mmap.mmap(-1, 1)

    @property
    def lived(self) -> bool:
        """Whether the worker has come as far as serving, or was told to end before."""
        return self._shared[0] != 0

    def init_signals(self) -> None:
        """Signals are taken by the event loop in `run`; until then the defaults end the worker."""
        for name in self.SIGNALS:
            signal.signal(name, signal.SIG_DFL)

    def run(self) -> None:
        """The main loop of a gunicorn worker."""
        import asyncio

        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            code = runner.run(self._serve())
        if code:
            raise SystemExit(code)

    async def _serve(self) -> int:
        import asyncio

        loop = asyncio.get_running_loop()
        ended: asyncio.Future[bool] = loop.create_future()

        def end(graceful: bool) -> None:
            self._shared[0] = 1
            if not ended.done():
                ended.set_result(graceful)

        for name in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(name, end, True)
        for name in (signal.SIGINT, signal.SIGQUIT):
            loop.add_signal_handler(name, end, False)
        loop.add_signal_handler(signal.SIGABRT, os._exit, 1)
        service: Service = self.wsgi
        beat = asyncio.ensure_future(self._beat(end))
        starting = asyncio.ensure_future(service.start([listener.sock for listener in self.sockets]))
        waited: set[asyncio.Future[Any]] = {starting, ended}
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            await asyncio.wait({starting}, timeout=self.START_GRACE_S)
        if not starting.done():
            self.log.warning("told to end while starting")
            os._exit(0)  # a model that loads holds its thread: nothing gentler ends it
        try:
            starting.result()
        except Exception as error:  # noqa: BLE001 - whatever it is, the instance cannot serve
            self.log.error("%s", error)  # noqa: TRY400 - LoadError is a sentence, its traceback is noise
            beat.cancel()
            return BOOT_FAILED
        self._shared[0] = 1
        graceful = await ended
        await service.stop(graceful=graceful)
        beat.cancel()
        if not graceful:
            os._exit(0)  # the interpreter would wait for the batch that runs
        return 0

    async def _beat(self, end: Callable[[bool], None]) -> None:
        """Tell the arbiter that we live, and leave when it no longer does."""
        import asyncio

        while True:
            self.notify()
            if os.getppid() != self.ppid:
                self.log.error("the supervisor is gone; ending")
                end(True)
                return  # nobody is left to tell, and once is enough for the log
            await asyncio.sleep(1.0)


class ServiceApplication(BaseApplication):  # type: ignore[misc] # gunicorn has no types
    """Runs a `Service` under gunicorn with one worker: one process owns the queue."""

    def __init__(self, factory: Callable[[], Service], **options: Any) -> None:
        self._factory = factory
        self._options = {
            "worker_class": LoopWorker,
            "workers": 1,
            "timeout": 0,  # a long batch or model load is no reason to kill; exec_timeout is the watchdog's own
            "accesslog": None,
            "errorlog": "-",
            "loglevel": "warning",
            "control_socket_disable": True,  # gunicorn 25.1: one path for all instances of a user
            "child_exit": _halt_if_it_never_lived,
            **options,
        }
        if os.access(_SHARED_MEMORY, os.W_OK):  # the heartbeat file works on a read-only root, too
            self._options["worker_tmp_dir"] = _SHARED_MEMORY
        super().__init__()

    def load_config(self) -> None:
        """Set gunicorn's settings; nothing is read from files or the command line."""
        for name, value in self._options.items():
            if name in self.cfg.settings:
                self.cfg.set(name, value)

    def load(self) -> Service:
        """Build the service in the worker process."""
        return self._factory()


def _halt_if_it_never_lived(arbiter: Any, worker: LoopWorker) -> None:
    """A worker that dies while it loads would die again: end, and let whoever started us see it.

    The arbiter has no listeners any more when it is stopping by itself.
    """
    if not worker.lived and arbiter.LISTENERS:
        raise HaltServer("the worker died before it could serve", BOOT_FAILED)
