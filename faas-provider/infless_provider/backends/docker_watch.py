"""Follows an engine: its events as they come, and all there is whenever some may have been missed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from infless_core.errors import BackendError
from infless_provider.backends.docker_api import Container, ContainerEvent, Engine, Stream

LOG = logging.getLogger("infless.docker")
RELIST_S = 60.0
"""A stream of events ends by itself after this, and everything is listed again."""
_PAUSE_LEAST_S, _PAUSE_MOST_S = 0.1, 2.0
"""Between questions to an engine that does not answer."""


class Watcher:
    """A thread that tells what an owner's containers do.

    `on_list` is told all containers after each (re)connection, before the events that come later; `on_away` once, when
    the engine stops answering.
    """

    def __init__(
        self,
        engine: Engine,
        owner: str,
        *,
        on_list: Callable[[list[Container]], None],
        on_event: Callable[[ContainerEvent], None],
        on_away: Callable[[str], None],
    ) -> None:
        self._engine, self._owner = engine, owner
        self._on_list, self._on_event, self._on_away = on_list, on_event, on_away
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._stream: Stream | None = None
        self._thread = threading.Thread(target=self._run, name="docker-events", daemon=True)

    def open(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def look(self) -> None:
        """Connect anew, now: somebody met no engine."""
        with self._lock:
            if self._stream is not None:
                self._stream.close()

    def close(self, timeout_s: float) -> None:
        """End the thread."""
        self._stopped.set()
        self.look()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        pause_s, away = _PAUSE_LEAST_S, False
        while not self._stopped.is_set():
            began_s = time.monotonic()
            try:
                self._follow()
            except BackendError as error:
                if not away:
                    self._on_away(str(error))
                away = True
                self._stopped.wait(pause_s)
                pause_s = min(2 * pause_s, _PAUSE_MOST_S)
                continue
            except Exception:
                LOG.exception("following the Docker engine failed; going on")
                self._stopped.wait(_PAUSE_MOST_S)
            pause_s, away = _PAUSE_LEAST_S, False
            if time.monotonic() - began_s < _PAUSE_MOST_S:  # an engine that hangs up at once is not asked in a circle
                self._stopped.wait(_PAUSE_LEAST_S)

    def _follow(self) -> None:
        # First the stream, then the list: what happens in between is seen twice, never missed.
        stream = self._engine.events(self._owner, RELIST_S)
        try:
            with self._lock:
                self._stream = stream
            if self._stopped.is_set():
                return
            self._on_list(self._engine.owned(self._owner))
            for event in stream:
                self._on_event(event)
        finally:
            with self._lock:
                self._stream = None
            stream.close()
