"""One SQLite file on a thread of its own, where changes that come together share one transaction and one fsync.

Whatever waits while a transaction is on its way to the disk goes into the next one: under load many share an fsync, a
single change waits for nobody.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from infless_core.errors import StateError
from infless_provider.migrations import migrate

LOG = logging.getLogger("infless.state")
T = TypeVar("T")
_TOGETHER_MAX = 1024
"""Changes in one transaction: enough that an fsync is a small part of it."""
_LOCK_WAIT_S = 5.0
"""A provider that is being replaced may still hold the file while it ends."""


class GroupCommit:
    """Runs changes in order. Used on one event loop.

    Args:
        path: the file; made on first use, for its owner only.
        migrations: scripts that lead from each schema version to the next one.
        what: a noun for sentences, such as "queue".
    """

    def __init__(self, path: Path, migrations: Sequence[str], what: str) -> None:
        self._path = path
        self._migrations = migrations
        self._what = what
        self._work: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False

    async def open(self) -> None:
        """Open the file, and bring its schema up to date.

        Raises:
            StateError: it cannot be opened, is damaged, is newer than this program, or another provider has it.
        """
        opened: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        name = f"infless-{self._what}"
        self._thread = threading.Thread(target=self._run, args=(opened,), name=name, daemon=True)
        self._thread.start()
        await opened

    def do(self, change: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
        """Run a change, or a read, in a transaction.

        Returns:
            What it returns, once that is on the disk; StateError, with nothing changed, when the disk did not take it.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        if self._closed or self._thread is None:
            future.set_exception(StateError(f"the {self._what} {self._path} is closed"))
        else:
            self._work.put(_Job(change, future, loop))
        return future

    async def close(self) -> None:
        """Write what is under way, then close the file. May be called twice."""
        self._closed = True
        if self._thread is not None:
            self._work.put(None)
            await asyncio.get_running_loop().run_in_executor(None, self._thread.join)
            self._thread = None

    # On the thread ----------------------------------------------------------------------------------------------------

    def _run(self, opened: asyncio.Future[Any]) -> None:
        start = _Job(lambda _: None, opened, opened.get_loop())
        try:
            db = self._connect()
        except StateError as error:
            start.error = error
            _tell([start])
            return
        _tell([start])
        more = True
        while more:
            jobs, more = self._next()
            try:
                self._transact(db, jobs)
            finally:
                _tell(jobs)
        db.close()

    def _next(self) -> tuple[list[_Job], bool]:
        """What has come; and whether more may come."""
        job = self._work.get()
        jobs: list[_Job] = []
        try:
            while job is not None:
                jobs.append(job)
                if len(jobs) == _TOGETHER_MAX:
                    return jobs, True
                job = self._work.get_nowait()
        except Empty:
            return jobs, True
        return jobs, False

    def _transact(self, db: sqlite3.Connection, jobs: list[_Job]) -> None:
        """All in one transaction; when that fails each in its own, so that what cannot be added stops no removal."""
        if not self._attempt(db, jobs) and len(jobs) > 1:
            for job in jobs:
                self._attempt(db, [job])

    def _attempt(self, db: sqlite3.Connection, jobs: list[_Job]) -> bool:
        try:
            db.execute("BEGIN")
            try:
                for job in jobs:
                    job.result, job.error = job.change(db), None
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:  # SQLite has rolled back by itself after a full disk
                    db.execute("ROLLBACK")
                raise
        except Exception as error:  # noqa: BLE001 - whatever it was, somebody waits for the answer
            fault = StateError(
                f"the {self._what} {self._path} could not be written or read: {error}; nothing was changed"
            )
            fault.__cause__ = error
            for job in jobs:
                job.error = fault
            return False
        return True

    def _connect(self) -> sqlite3.Connection:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Bodies and headers of users are in it: the mode is right before the first byte is. SQLite's own other
            # files take it over.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._path.chmod(0o600)
            db = sqlite3.connect(self._path, isolation_level=None, timeout=_LOCK_WAIT_S)
        except (sqlite3.Error, OSError) as error:
            raise StateError(f"the {self._what} {self._path} cannot be opened: {error}") from error
        try:
            self._prepare(db)
        except sqlite3.Error as error:
            db.close()
            busy = "locked" in str(error)
            why = "another provider uses it; give this one its own state folder" if busy else str(error)
            raise StateError(f"the {self._what} {self._path} cannot be used: {why}") from error
        except StateError:
            db.close()
            raise
        return db

    def _prepare(self, db: sqlite3.Connection) -> None:
        # Two providers on one queue would run every call twice.
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute(f"PRAGMA journal_size_limit = {64 << 20}")
        migrate(db, self._path, self._migrations)
        # What a flood has left free goes back to the file system.
        db.execute("PRAGMA incremental_vacuum").fetchall()


class _Job:
    """A change, and who waits for it."""

    __slots__ = ("change", "error", "future", "loop", "result")

    def __init__(
        self,
        change: Callable[[sqlite3.Connection], Any],
        future: asyncio.Future[Any],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.change, self.future, self.loop = change, future, loop
        self.result: Any = None
        self.error: StateError | None = None


def _tell(jobs: list[_Job]) -> None:
    """Wake who waits, all with one call of the loop."""

    def wake() -> None:
        for job in jobs:
            if job.future.done():  # whoever waited was cancelled
                continue
            if job.error is None:
                job.future.set_result(job.result)
            else:
                job.future.set_exception(job.error)

    if jobs:
        try:
            jobs[0].loop.call_soon_threadsafe(wake)
        except RuntimeError:
            LOG.warning("the event loop has ended before %d change(s) were told", len(jobs))
