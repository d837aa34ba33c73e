"""The queue of asynchronous calls on disk. All SQL of it is here.

A call is one row from its acceptance to its end. The books are changed in the transaction that changes the rows, so at
any moment, a power cut included, `accepted = done + failed + cancelled + rows` holds.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from infless_provider.group_commit import GroupCommit
from infless_provider.upstream import Header

_MIGRATIONS = (
    """
    CREATE TABLE call (
        seq INTEGER PRIMARY KEY, function TEXT NOT NULL, id TEXT NOT NULL, accepted_ns INTEGER NOT NULL,
        callback TEXT NOT NULL, size_bytes INTEGER NOT NULL, attempts INTEGER NOT NULL, answered INTEGER NOT NULL,
        UNIQUE (function, id)
    );
    CREATE TABLE request (
        seq INTEGER PRIMARY KEY, target TEXT NOT NULL, headers BLOB NOT NULL, body BLOB NOT NULL
    );
    CREATE TABLE answer (
        seq INTEGER PRIMARY KEY, status INTEGER NOT NULL, failed INTEGER NOT NULL, took_s REAL NOT NULL,
        headers BLOB NOT NULL, body BLOB NOT NULL
    );
    CREATE TABLE book (
        function TEXT PRIMARY KEY, accepted INTEGER NOT NULL DEFAULT 0, done INTEGER NOT NULL DEFAULT 0,
        failed INTEGER NOT NULL DEFAULT 0, cancelled INTEGER NOT NULL DEFAULT 0, retried INTEGER NOT NULL DEFAULT 0,
        callbacks_ok INTEGER NOT NULL DEFAULT 0, callbacks_failed INTEGER NOT NULL DEFAULT 0
    ) WITHOUT ROWID;
    """,
    # A call id is a trace, and many calls may have the same one; a constraint goes only with its table.
    """
    CREATE TABLE call_2 (
        seq INTEGER PRIMARY KEY, function TEXT NOT NULL, id TEXT NOT NULL, accepted_ns INTEGER NOT NULL,
        callback TEXT NOT NULL, size_bytes INTEGER NOT NULL, attempts INTEGER NOT NULL, answered INTEGER NOT NULL,
        idempotency_key TEXT NOT NULL DEFAULT '', digest BLOB NOT NULL DEFAULT x''
    );
    INSERT INTO call_2 (seq, function, id, accepted_ns, callback, size_bytes, attempts, answered)
        SELECT seq, function, id, accepted_ns, callback, size_bytes, attempts, answered FROM call;
    DROP TABLE call;
    ALTER TABLE call_2 RENAME TO call;
    """,
)


class Count(StrEnum):
    """What the books count; each is a column."""

    ACCEPTED = "accepted"
    DONE = "done"
    """The function has answered, and a callback has been delivered or given up."""
    FAILED = "failed"
    """No try got an answer that counts."""
    CANCELLED = "cancelled"
    RETRIED = "retried"
    CALLBACKS_OK = "callbacks_ok"
    CALLBACKS_FAILED = "callbacks_failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedCall:
    """A call that waits, without its body."""

    seq: int
    """Its place in the queue; never used twice while it waits."""
    function: str
    """`name.namespace`."""
    id: str
    """A trace: other calls may have the same one."""
    accepted_ns: int
    """Since the epoch."""
    callback: str
    """A URL, or nothing."""
    size_bytes: int
    """Of the request's body, later of the answer's."""
    attempts: int = 0
    """Tries that failed: of the invocation, later of the callback."""
    answered: bool = False
    """Whether only its callback is left to do."""
    idempotency_key: str = ""
    """The client's, if it gave one: another call of the function with it is this one, said again."""
    digest: bytes = b""
    """Of what was asked with that key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRequest:
    """What the function gets."""

    target: str
    """Path and query."""
    headers: Sequence[Header]
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredAnswer:
    """What the callback gets."""

    status: int
    failed: bool
    """Whether this is the last of many failures, not an answer."""
    took_s: float
    headers: Sequence[Header]
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What was in the file."""

    calls: tuple[QueuedCall, ...]
    """In the order in which they came."""
    books: dict[str, dict[Count, int]]
    """By function."""


class QueueStore:
    """The file. Used on one event loop.

    What a method returns becomes true when it is on disk, and raises StateError, with nothing changed, when the disk
    does not take it.
    """

    def __init__(self, path: Path) -> None:
        self._db = GroupCommit(path, _MIGRATIONS, "queue")

    async def open(self) -> Restored:
        """Open the file, or make it, and read what waits.

        Raises:
            StateError: it cannot be opened, is damaged, is newer than this program, or another provider has it.
        """
        await self._db.open()
        return await self._db.do(_restore)

    def accept(self, call: QueuedCall, request: StoredRequest) -> asyncio.Future[None]:
        """Add a call, and count it."""

        def insert(db: sqlite3.Connection) -> None:
            row = asdict(call)
            names, marks = ", ".join(row), ", ".join(f":{name}" for name in row)
            db.execute(f"INSERT INTO call ({names}) VALUES ({marks})", row)  # noqa: S608 - names of our own fields
            db.execute(
                "INSERT INTO request VALUES (?, ?, ?, ?)",
                (call.seq, request.target, _pack(request.headers), request.body),
            )
            _count(db, call.function, Count.ACCEPTED)

        return self._db.do(insert)

    def request(self, call: QueuedCall) -> asyncio.Future[StoredRequest | None]:
        """Read what the function gets; None when that is not there (any more)."""

        def read(db: sqlite3.Connection) -> StoredRequest | None:
            row = db.execute("SELECT target, headers, body FROM request WHERE seq = ?", (call.seq,)).fetchone()
            if row is None:
                return None
            target, headers, body = row
            return StoredRequest(target=target, headers=_unpack(headers), body=body)

        return self._db.do(read)

    def answer(self, call: QueuedCall) -> asyncio.Future[StoredAnswer | None]:
        """Read what the callback gets; None when that is not there."""

        def read(db: sqlite3.Connection) -> StoredAnswer | None:
            row = db.execute(
                "SELECT status, failed, took_s, headers, body FROM answer WHERE seq = ?", (call.seq,)
            ).fetchone()
            if row is None:
                return None
            status, failed, took_s, headers, body = row
            return StoredAnswer(
                status=status, failed=bool(failed), took_s=took_s, headers=_unpack(headers), body=body
            )  # fmt: skip

        return self._db.do(read)

    def retry(self, call: QueuedCall, attempts: int) -> asyncio.Future[None]:
        """Keep how many tries have failed, and count one."""

        def update(db: sqlite3.Connection) -> None:
            db.execute("UPDATE call SET attempts = ? WHERE seq = ?", (attempts, call.seq))
            if not call.answered:
                _count(db, call.function, Count.RETRIED)

        return self._db.do(update)

    def answered(self, call: QueuedCall, answer: StoredAnswer) -> asyncio.Future[None]:
        """Put the answer in the request's place: from now on the function is not invoked again."""

        def update(db: sqlite3.Connection) -> None:
            row = (call.seq, answer.status, answer.failed, answer.took_s, _pack(answer.headers), answer.body)
            db.execute("INSERT INTO answer VALUES (?, ?, ?, ?, ?, ?)", row)
            db.execute("DELETE FROM request WHERE seq = ?", (call.seq,))
            db.execute(
                "UPDATE call SET answered = 1, attempts = 0, size_bytes = ? WHERE seq = ?",
                (len(answer.body), call.seq),
            )

        return self._db.do(update)

    def end(self, call: QueuedCall, *counts: Count) -> asyncio.Future[None]:
        """Remove a call, and count how it ended."""

        def delete(db: sqlite3.Connection) -> None:
            for table in ("call", "request", "answer"):
                db.execute(f"DELETE FROM {table} WHERE seq = ?", (call.seq,))  # noqa: S608
            for count in counts:
                _count(db, call.function, count)

        return self._db.do(delete)

    def forget(self, function: str) -> asyncio.Future[None]:
        """Remove a function's counts, unless calls of it wait."""

        def delete(db: sqlite3.Connection) -> None:
            db.execute(
                "DELETE FROM book WHERE function = ?1 AND NOT EXISTS (SELECT 1 FROM call WHERE function = ?1)",
                (function,),
            )

        return self._db.do(delete)

    async def close(self) -> None:
        """Write what is under way, then close the file. May be called twice."""
        await self._db.close()


def _restore(db: sqlite3.Connection) -> Restored:
    calls = tuple(
        QueuedCall(
            seq=seq, function=function, id=id_, accepted_ns=accepted_ns, callback=callback, size_bytes=size_bytes,
            attempts=attempts, answered=bool(answered), idempotency_key=key, digest=digest,
        )
        for seq, function, id_, accepted_ns, callback, size_bytes, attempts, answered, key, digest in db.execute(
            "SELECT seq, function, id, accepted_ns, callback, size_bytes, attempts, answered, idempotency_key, digest"
            " FROM call ORDER BY seq"
        )
    )  # fmt: skip
    columns = ", ".join(Count)
    books = {
        function: dict(zip(Count, counts, strict=True))
        for function, *counts in db.execute(f"SELECT function, {columns} FROM book")  # noqa: S608
    }
    return Restored(calls=calls, books=books)


def _count(db: sqlite3.Connection, function: str, count: Count) -> None:
    db.execute(
        f"INSERT INTO book (function, {count}) VALUES (?, 1)"  # noqa: S608 - a column of ours
        f" ON CONFLICT (function) DO UPDATE SET {count} = {count} + 1",
        (function,),
    )


def _pack(headers: Sequence[Header]) -> bytes:
    """As they stand in HTTP: no header holds a line break."""
    return b"\r\n".join(b"%b:%b" % header for header in headers)


def _unpack(block: bytes) -> tuple[Header, ...]:
    pairs = (line.partition(b":") for line in block.split(b"\r\n") if line)
    return tuple((name, value) for name, _, value in pairs)
