"""What survives a restart: functions, instances, namespaces, in SQLite. All SQL of the provider's state is here."""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from infless_core.errors import InvalidInput, StateError
from infless_core.model import Configuration, FunctionSpec
from infless_provider.migrations import migrate

LOG = logging.getLogger("infless.state")
_T = TypeVar("_T")
BUSY_S = 0.25
"""Nobody else writes while a provider runs. Whoever does, a backup, must not keep the event loop waiting for long."""
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
    """
    ALTER TABLE function RENAME COLUMN bundle TO artifact;
    ALTER TABLE function ADD COLUMN previous TEXT;
    ALTER TABLE function ADD COLUMN proven INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE instance RENAME COLUMN digest TO version;
    CREATE TABLE namespace (name TEXT PRIMARY KEY, labels TEXT NOT NULL, annotations TEXT NOT NULL);
    """,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """What an update changes and a rollback restores."""

    spec: FunctionSpec
    artifact: str
    """What instances run, as the backend finds it (`Artifact.reference`)."""
    digest: str
    """Of all that execution times depend on: the code and its variables."""

    @property
    def id(self) -> str:
        """Differs where running instances have to be replaced: also for another memory limit, secret or root."""
        spec = self.spec
        rest = (spec.secrets, spec.memory_limit_bytes, spec.read_only_root_filesystem, spec.env_process)
        return f"{self.digest}-{hashlib.sha256(repr(rest).encode()).hexdigest()[:8]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFunction:
    """A deployed function."""

    version: Version
    created_at_s: float
    replicas: int | None = None
    """Set by a scale call; None leaves the number to the planner."""
    previous: Version | None = None
    """The version to go back to if this one never becomes ready; None once it has."""
    proven: bool = False
    """Whether an instance of this version has been ready."""

    @property
    def spec(self) -> FunctionSpec:
        """As deployed last."""
        return self.version.spec

    @property
    def key(self) -> str:
        """`name.namespace`."""
        return self.version.spec.key

    def updated(self, version: Version) -> StoredFunction:
        """What an update makes of it: it keeps its age, its scale, and a version to go back to."""
        if version.id == self.version.id:
            return replace(self, version=version)
        if self.previous is not None and version.id == self.previous.id:  # taken back by hand
            return replace(self, version=version, previous=None, proven=True)
        return StoredFunction(
            version=version,
            created_at_s=self.created_at_s,
            replicas=self.replicas,
            previous=self.version if self.proven else self.previous,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredNamespace:
    """A namespace beside the default one, or what was said of that."""

    name: str
    labels: dict[str, str]
    annotations: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredInstance:
    """A running instance and how its backend finds it again."""

    id: str
    function: str
    version: str
    """A `Version.id`."""
    configuration: Configuration
    address: dict[str, Any]
    """Empty from when it was decided to start it until its backend knew where it answers."""


def in_use(
    everything: Iterable[StoredFunction], running: Iterable[tuple[str, str]]
) -> tuple[dict[str, set[str]], set[str] | None]:
    """What must not be cleared up: it runs, may be gone back to, or is of a function that cannot be served just now.

    Args:
        everything: all functions of the state.
        running: function and version of each instance.

    Returns:
        Versions by function, and artifacts: None while a version runs that is in the state no more, as nobody knows
        what that runs on.
    """
    versions: dict[str, set[str]] = {}
    artifacts: set[str] = set()
    for stored in everything:
        kept = [one for one in (stored.version, stored.previous) if one is not None]
        versions[stored.key] = {one.id for one in kept}
        artifacts |= {one.artifact for one in kept}
    older = [(function, version) for function, version in running if version not in versions.get(function, ())]
    for function, version in older:
        versions.setdefault(function, set()).add(version)
    return versions, None if older else artifacts


class State:
    """One connection, used on one thread. Each call is a transaction.

    What users asked for is on the disk when a call returns. Rows of instances outlive this program, not the machine,
    and neither do the instances: an fsync for each would keep the event loop waiting for nothing.
    """

    def __init__(self, path: Path) -> None:
        self.left_out = 0
        """Rows that could not be read: nobody knows what they need."""
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._db = sqlite3.connect(path, isolation_level=None, timeout=BUSY_S)
        except (sqlite3.Error, OSError) as error:
            raise StateError(f"the state database {path} cannot be opened: {error}") from error
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            migrate(self._db, path, _MIGRATIONS)
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
        """All functions, by key."""

        def read(key: str, spec: str, artifact: str, digest: str, created_at_s: float, *rest: Any) -> StoredFunction:
            del key
            replicas, previous, proven = rest
            return StoredFunction(
                version=Version(spec=msgspec.json.decode(spec, type=FunctionSpec), artifact=artifact, digest=digest),
                created_at_s=created_at_s,
                replicas=replicas,
                previous=msgspec.json.decode(previous, type=Version) if previous else None,
                proven=bool(proven),
            )

        return self._readable(
            "SELECT key, spec, artifact, digest, created_at_s, replicas, previous, proven FROM function ORDER BY key",
            read,
        )

    def put_function(self, function: StoredFunction) -> None:
        """Add or replace."""
        with self._transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO function"
                " (key, spec, artifact, digest, created_at_s, replicas, previous, proven)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    function.key,
                    msgspec.json.encode(function.spec).decode(),
                    function.version.artifact,
                    function.version.digest,
                    function.created_at_s,
                    function.replicas,
                    msgspec.json.encode(function.previous).decode() if function.previous else None,
                    function.proven,
                ),
            )

    def delete_function(self, key: str) -> None:
        """Forget a function; its instances' rows stay until they have ended."""
        with self._transaction() as db:
            db.execute("DELETE FROM function WHERE key = ?", (key,))

    def instances(self) -> list[StoredInstance]:
        """All instances, by id."""

        def read(
            id_: str, function: str, version: str, batch: int, cores: int, gpu: int, address: str
        ) -> StoredInstance:
            return StoredInstance(
                id=id_,
                function=function,
                version=version,
                configuration=Configuration(batch=batch, cpu_cores=cores, gpu_percent=gpu),
                address=json.loads(address),
            )

        return self._readable(
            "SELECT id, function, version, batch, cpu_cores, gpu_percent, address FROM instance ORDER BY id", read
        )

    def put_instance(self, instance: StoredInstance) -> None:
        """Add or replace."""
        c = instance.configuration
        with self._transaction(durable=False) as db:
            db.execute(
                "INSERT OR REPLACE INTO instance VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    instance.id,
                    instance.function,
                    instance.version,
                    c.batch,
                    c.cpu_cores,
                    c.gpu_percent,
                    json.dumps(instance.address),
                ),
            )

    def delete_instance(self, id_: str) -> None:
        """Forget an instance that has ended."""
        with self._transaction(durable=False) as db:
            db.execute("DELETE FROM instance WHERE id = ?", (id_,))

    def namespaces(self) -> list[StoredNamespace]:
        """All that were created or described, by name."""

        def read(name: str, labels: str, annotations: str) -> StoredNamespace:
            return StoredNamespace(name=name, labels=json.loads(labels), annotations=json.loads(annotations))

        return self._readable("SELECT name, labels, annotations FROM namespace ORDER BY name", read)

    def put_namespace(self, namespace: StoredNamespace) -> None:
        """Add or replace."""
        with self._transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO namespace VALUES (?, ?, ?)",
                (namespace.name, json.dumps(namespace.labels), json.dumps(namespace.annotations)),
            )

    def delete_namespace(self, name: str) -> None:
        """Forget a namespace."""
        with self._transaction() as db:
            db.execute("DELETE FROM namespace WHERE name = ?", (name,))

    def _readable(self, query: str, read: Callable[..., _T]) -> list[_T]:
        """What the rows hold. One that this version cannot read is told in the log and left as it is."""
        found = []
        for row in self._rows(query):
            try:
                found.append(read(*row))
            except (ValueError, TypeError, InvalidInput) as error:
                LOG.error("%s cannot be read from %s and is left out: %r", row[0], self._path, error)  # noqa: TRY400
                self.left_out += 1
        return found

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(query).fetchall()
        except sqlite3.Error as error:
            raise StateError(f"the state database {self._path} cannot be read: {error}") from error

    @contextmanager
    def _transaction(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """In WAL mode, FULL is an fsync for each transaction, NORMAL one for each checkpoint (SQLite's PRAGMA)."""
        try:
            self._db.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            with self._db:
                yield self._db
        except sqlite3.Error as error:
            raise StateError(f"the state could not be written to {self._path}: {error}; nothing was changed") from error
