"""Clears up what no version of any function needs any more: copies of secrets, artifacts, logs."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from infless_core.errors import InflessError
from infless_provider.backends.base import Backend
from infless_provider.secret_store import SecretStore
from infless_provider.state import StoredFunction, in_use

LOG = logging.getLogger("infless.housekeeping")
SOON_S = 2.0
"""An update ends several instances in a row: one look afterwards does for all."""


class Housekeeping:
    """Runs on the event loop; files are removed in a thread, and never while a deployment is under way.

    Args:
        everything: all functions, also those that cannot be served just now.
        running: function and version of each instance.
        secrets: whose copies are looked at.
        backend: whose artifacts are.
        logs_dir: with a folder for each function.
    """

    def __init__(
        self,
        everything: Callable[[], Iterable[StoredFunction]],
        running: Callable[[], Collection[tuple[str, str]]],
        secrets: SecretStore,
        backend: Backend,
        logs_dir: Path,
    ) -> None:
        self._everything = everything
        self._running = running
        self._secrets = secrets
        self._backend = backend
        self._logs_dir = logs_dir
        self._deployments = 0
        self._timer: asyncio.TimerHandle | None = None
        self._work: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def deployment(self) -> AsyncIterator[None]:
        """What is fetched within has no row that names it yet; what is left over goes when it has ended."""
        self._deployments += 1
        try:
            if self._work is not None:
                await asyncio.wait({self._work})
            yield
        finally:
            self._deployments -= 1
            self.soon()

    def soon(self) -> None:
        """Something may be needed no more."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SOON_S, self._begin)

    def _begin(self) -> None:
        self._timer = None
        if self._work is not None:
            self.soon()  # what it looks at may be of before
        elif not self._deployments:  # else the deployment's end comes here again
            self._work = asyncio.ensure_future(self.now())
            self._work.add_done_callback(self._done)

    def _done(self, work: asyncio.Task[None]) -> None:
        self._work = None
        if not work.cancelled() and (error := work.exception()) is not None:
            LOG.error("clearing up failed; it is tried again later", exc_info=error)

    async def first(self) -> None:
        """At the start: before anything is started, if that can be; a full disk keeps nobody from being served."""
        try:
            await self.now()
        except (InflessError, OSError) as fault:
            LOG.error("clearing up failed; it is tried again later: %s", fault)  # noqa: TRY400
            self.soon()

    async def now(self) -> None:
        """Clear up. No deployment may be under way."""
        running = self._running()
        versions, artifacts = in_use(self._everything(), running)
        await asyncio.to_thread(self._clear, versions, artifacts)

    def _clear(self, versions: Mapping[str, Collection[str]], artifacts: set[str] | None) -> None:
        self._secrets.sweep(versions)
        if artifacts is not None:
            self._backend.tidy(artifacts)
        for folder in self._logs_dir.glob("*"):
            if folder.name not in versions:
                shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Begin nothing more."""
        if self._timer is not None:
            self._timer.cancel()
        self._deployments += 1
