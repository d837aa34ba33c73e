"""What survives a restart: functions and instances, in SQLite. All SQL of the provider's state is here."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from infless_core.errors import StateError
from infless_core.model import Configuration, FunctionSpec

LOG = logging.getLogger("infless.state")
_MIGRATIONS = (
    """
    CREATE TABLE function (
        key TEXT PRIMARY KEY, spec TEXT NOT NULL, bundle TEXT NOT NULL, digest TEXT NOT NULL,
        created_at_s REAL NOT NULL, replicas INTEGER
    );
    CREATE TABLE instance (
        id TEXT PRIMARY KEY, function TEXT NOT NULL, digest TEXT NOT NULL, batch INTEGER NOT NULL,
        cpu_cores INTEGER NOT NULL, gpu_percent INTEGER NOT NULL, address TEXT NOT NULL
    );
    """,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFunction:
    """A deployed function."""

    spec: FunctionSpec
    bundle: str
    """Folder of the immutable copy that instances run."""
    digest: str
    created_at_s: float
    replicas: int | None = None
    """Set by a scale call; None leaves the number to the planner."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredInstance:
    """A running instance and how its backend finds it again."""

    id: str
    function: str
    digest: str
    configuration: Configuration
    address: dict[str, Any]


class State:
    """One connection, used on one thread. Each call is a transaction that is on disk when it returns."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._db = sqlite3.connect(path, isolation_level=None)
        except (sqlite3.Error, OSError) as error:
            raise StateError(f"the state database {path} cannot be opened: {error}") from error
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._migrate()
        except sqlite3.Error as error:
            self._db.close()
            raise StateError(f"the state database {path} cannot be used: {error}") from error
        except StateError:
            self._db.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def functions(self) -> list[StoredFunction]:
        """All functions, by name. A row that this version cannot read is told in the log and left as it is."""
        found = []
        for key, spec, bundle, digest, created_at_s, replicas in self._rows(
            "SELECT key, spec, bundle, digest, created_at_s, replicas FROM function ORDER BY key"
        ):
            try:
                function = StoredFunction(
                    spec=_spec_from_json(spec),
                    bundle=bundle,
                    digest=digest,
                    created_at_s=created_at_s,
                    replicas=replicas,
                )
            except (ValueError, TypeError, KeyError) as error:
                LOG.error("%s cannot be read from %s and is not served: %r", key, self._path, error)  # noqa: TRY400
            else:
                found.append(function)
        return found

    def put_function(self, function: StoredFunction) -> None:
        """Add or replace."""
        with self._transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO function VALUES (?, ?, ?, ?, ?, ?)",
                (
                    function.spec.key,
                    json.dumps(asdict(function.spec)),
                    function.bundle,
                    function.digest,
                    function.created_at_s,
                    function.replicas,
                ),
            )

    def delete_function(self, key: str) -> None:
        """Forget a function; its instances' rows stay until they have ended."""
        with self._transaction() as db:
            db.execute("DELETE FROM function WHERE key = ?", (key,))

    def instances(self) -> list[StoredInstance]:
        """All instances, by id."""
        rows = self._rows(
            "SELECT id, function, digest, batch, cpu_cores, gpu_percent, address FROM instance ORDER BY id"
        )  # fmt: skip
        return [
            StoredInstance(
                id=id_,
                function=function,
                digest=digest,
                configuration=Configuration(batch=batch, cpu_cores=cores, gpu_percent=gpu),
                address=json.loads(address),
            )
            for id_, function, digest, batch, cores, gpu, address in rows
        ]

    def put_instance(self, instance: StoredInstance) -> None:
        """Add or replace."""
        c = instance.configuration
        with self._transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO instance VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    instance.id,
                    instance.function,
                    instance.digest,
                    c.batch,
                    c.cpu_cores,
                    c.gpu_percent,
                    json.dumps(instance.address),
                ),
            )

    def delete_instance(self, id_: str) -> None:
        """Forget an instance that has ended."""
        with self._transaction() as db:
            db.execute("DELETE FROM instance WHERE id = ?", (id_,))

    def _migrate(self) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > len(_MIGRATIONS):
            raise StateError(f"{self._path} was written by a newer INFless (schema {version}); update INFless")
        for number, script in enumerate(_MIGRATIONS[version:], start=version + 1):
            self._db.executescript(f"BEGIN; {script}; PRAGMA user_version = {number}; COMMIT;")

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(query).fetchall()
        except sqlite3.Error as error:
            raise StateError(f"the state database {self._path} cannot be read: {error}") from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._db:
                yield self._db
        except sqlite3.Error as error:
            raise StateError(f"the state could not be written to {self._path}: {error}; nothing was changed") from error


def _spec_from_json(text: str) -> FunctionSpec:
    data = json.loads(text)
    return FunctionSpec(**{**data, "constraints": tuple(data["constraints"]), "secrets": tuple(data["secrets"])})
