"""The real provider on an event loop in a thread of this process: with limits that no option sets, and its log at hand."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from provider_process import ProviderProcess

from infless_provider.service import Provider
from infless_provider.settings import Settings
from infless_provider.up import _bind
from infless_watchdog.http import Edge

START_S = 60.0


class ProviderInProcess(ProviderProcess):
    """As a `ProviderProcess`, but its settings are any.

    Args:
        root: a folder of its own, which need not exist.
        settings: other than the defaults.
    """

    def __init__(self, root: Path, **settings: Any) -> None:
        super().__init__(root)
        self.settings = Settings(
            state_dir=self.state, bundles_dir=self.bundles, port=self.port, **{"cpu_cores": 1, **settings}
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._provider = Provider(self.settings)

    def open(self) -> None:
        """Start it; it listens when this returns."""
        logging.getLogger("infless").setLevel(logging.INFO)
        self.state.mkdir(mode=0o700)
        self._thread.start()
        self._run(self._provider.start([_bind(self.settings)]))

    @property
    def edge(self) -> Edge:
        """Where its clients are."""
        return self._provider._edge

    def close(self) -> None:
        """End it and its instances, and remove its files."""
        self._run(self._provider.stop(graceful=False))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self.destroy()

    def _run(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(START_S)


@contextmanager
def provider_in_process(root: Path, **settings: Any) -> Iterator[ProviderInProcess]:
    """A running one; see `ProviderInProcess`."""
    made = ProviderInProcess(root, **settings)
    made.open()
    try:
        yield made
    finally:
        made.close()
