"""Works on a few threads: those of one instance one after another, those of different instances at once."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from infless_core.errors import BackendError
from infless_provider.backends.docker_api import EngineAway

LOG = logging.getLogger("infless.docker")
THREADS = 8
"""An engine starts about so many containers at once; more only wait for its locks."""


class Lanes:
    """A lane for each key. What meets no engine waits for `resume`; any other failure is logged.

    Args:
        on_away: called when something met no engine, so that somebody finds out when it is back.
    """

    def __init__(self, on_away: Callable[[], None] = lambda: None) -> None:
        self._on_away = on_away
        self._pool: ThreadPoolExecutor | None = None
        self._idle = threading.Condition()
        self._waiting: dict[str, deque[Callable[[], None]]] = {}
        self._postponed: list[tuple[str, Callable[[], None]]] = []

    def open(self) -> None:
        """Begin to work."""
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="docker")

    def put(self, key: str, work: Callable[[], None]) -> None:
        """Do something after what is there for the same key; nothing once closed."""
        with self._idle:
            if self._pool is None:
                return
            lane = self._waiting.setdefault(key, deque())
            lane.append(work)
            if len(lane) == 1:
                self._pool.submit(self._run, key)

    def resume(self) -> None:
        """The engine is back: do what met none."""
        with self._idle:
            again, self._postponed = self._postponed, []
        for key, work in again:
            self.put(key, work)

    def close(self, timeout_s: float) -> None:
        """End what is begun, and as much of the rest as can be done in time."""
        with self._idle:
            self._idle.wait_for(lambda: not self._waiting, timeout_s)
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True)

    def _run(self, key: str) -> None:
        """One work of a lane, then the next one in turn with those of other lanes."""
        with self._idle:
            work = self._waiting[key][0] if self._pool is not None else None
        if work is not None:
            self._do(key, work)
        with self._idle:
            lane = self._waiting[key]
            lane.popleft()
            if lane and self._pool is not None:
                self._pool.submit(self._run, key)
                return
            del self._waiting[key]
            self._idle.notify_all()

    def _do(self, key: str, work: Callable[[], None]) -> None:
        try:
            work()
        except EngineAway as error:
            LOG.debug("%s: %s; trying again when it is back", key, error)
            with self._idle:
                self._postponed.append((key, work))
            self._on_away()
        except BackendError as error:
            LOG.error("%s: %s", key or "docker", error)  # noqa: TRY400 - its words are enough
        except Exception:
            LOG.exception("%s: this should not happen", key or "docker")
