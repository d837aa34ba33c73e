"""The COP tables: operator times and whole-model times by device. All SQL of the operator database is here.

Rows are keyed by the operator's signature, the device and the runtime's version: a new processor or another
onnxruntime starts tables of its own and never mixes with the old ones. Every write is one transaction.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infless_core.errors import NotFound, StateError
from infless_profiler.correction import WholeTime
from infless_profiler.estimate import Measured
from infless_profiler.operators import Operator, Point
from infless_profiler.sessions import Device
from infless_profiler.timing import Timing

VERSION = 1
"""Of the schema. A database of another version is refused, never rewritten by guess."""
_SCHEMA = """
CREATE TABLE device (
    id INTEGER PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL, runtime TEXT NOT NULL, machine TEXT NOT NULL,
    UNIQUE (kind, name, runtime)
);
CREATE TABLE operator (signature TEXT PRIMARY KEY, description TEXT NOT NULL);
CREATE TABLE operator_time (
    device INTEGER NOT NULL REFERENCES device ON DELETE CASCADE,
    signature TEXT NOT NULL REFERENCES operator ON DELETE CASCADE,
    batch INTEGER NOT NULL, cpu_cores INTEGER NOT NULL, gpu_percent INTEGER NOT NULL, cold INTEGER NOT NULL,
    exec_s REAL NOT NULL CHECK (exec_s > 0), spread REAL NOT NULL, samples INTEGER NOT NULL, looks INTEGER NOT NULL,
    measured_at_s REAL NOT NULL,
    PRIMARY KEY (device, signature, batch, cpu_cores, gpu_percent, cold)
);
CREATE TABLE model (
    device INTEGER NOT NULL REFERENCES device ON DELETE CASCADE,
    digest TEXT NOT NULL, name TEXT NOT NULL, profiled_at_s REAL NOT NULL, about TEXT NOT NULL,
    PRIMARY KEY (device, digest)
);
CREATE TABLE model_time (
    device INTEGER NOT NULL, digest TEXT NOT NULL,
    batch INTEGER NOT NULL, cpu_cores INTEGER NOT NULL, gpu_percent INTEGER NOT NULL,
    composed_s REAL NOT NULL CHECK (composed_s > 0), features TEXT NOT NULL, executions_s TEXT,
    memory_bytes INTEGER NOT NULL,
    PRIMARY KEY (device, digest, batch, cpu_cores, gpu_percent),
    FOREIGN KEY (device, digest) REFERENCES model ON DELETE CASCADE
);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTime:
    """One point of a profiled model."""

    point: Point
    composed_s: float
    features: tuple[float, ...]
    executions_s: tuple[float, ...] = ()
    """What whole executions took; empty where it was not measured whole."""
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfiledModel:
    """A model as the database knows it on one device."""

    digest: str
    name: str
    profiled_at_s: float
    about: dict[str, Any]
    """What was new, reused and saved."""
    times: tuple[ModelTime, ...]


class Tables:
    """Opened for each call: several processes may share the file.

    Args:
        path: the database; made with its folder when it is first written.
        device: whose rows are meant.
        machine: metadata that is kept beside them.
    """

    def __init__(self, path: Path, device: Device, machine: dict[str, Any] | None = None) -> None:
        self.path = path
        self.device = device
        self._machine = machine or {}

    def operators(self, families: Iterable[str] | None = None) -> list[Measured]:
        """Every operator time of this device; with `families`, of these only."""
        wanted = None if families is None else set(families)
        found: list[Measured] = []
        known: dict[str, Operator] = {}
        with open_database(self.path) as db:
            rows = db.execute(
                "SELECT description, batch, cpu_cores, gpu_percent, cold, exec_s, spread, samples, looks"
                " FROM operator_time JOIN operator USING (signature)"
                " WHERE device = ? ORDER BY signature, batch, cpu_cores, gpu_percent, cold",
                (self._id(db),),
            )
            for text, batch, cores, gpu, cold, exec_s, spread, samples, looks in rows:
                operator = known.get(text) or known.setdefault(text, Operator.from_json(json.loads(text)))
                if wanted is None or operator.family in wanted:
                    timing = Timing(exec_s=exec_s, spread=spread, samples=samples, looks=looks)
                    point = Point(batch, cores, gpu, bool(cold))
                    found.append(Measured(operator=operator, point=point, timing=timing))
        return found

    def save_operators(self, rows: Sequence[Measured], now_s: float) -> None:
        """Keep operator times; a newer one replaces an older one."""
        with open_database(self.path) as db:
            device = self._id(db)
            db.executemany(
                _PUT["operator"],
                [(row.operator.signature, json.dumps(row.operator.to_json(), sort_keys=True)) for row in rows],
            )
            db.executemany(
                "INSERT OR REPLACE INTO operator_time VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (device, row.operator.signature, *_key(row.point), int(row.point.cold),
                     row.timing.exec_s, row.timing.spread, row.timing.samples, row.timing.looks, now_s)
                    for row in rows
                ],
            )  # fmt: skip

    def models(self) -> list[ProfiledModel]:
        """Every profiled model of this device, by name."""
        with open_database(self.path) as db:
            device = self._id(db)
            heads = db.execute(
                "SELECT digest, name, profiled_at_s, about FROM model WHERE device = ? ORDER BY name, digest", (device,)
            ).fetchall()
            return [
                ProfiledModel(
                    digest=digest, name=name, profiled_at_s=at_s, about=json.loads(about),
                    times=_model_times(db, device, digest),
                )
                for digest, name, at_s, about in heads
            ]  # fmt: skip

    def model(self, name: str) -> ProfiledModel:
        """The newest profiled model of a name, or of a digest that begins so.

        Raises:
            NotFound: there is none; says which there are.
        """
        models = self.models()
        found = [one for one in models if name == one.name or (len(name) >= 6 and one.digest.startswith(name))]
        if not found:
            names = ", ".join(sorted({one.name for one in models})) or "none"
            raise NotFound(
                f"{name!r} was not profiled on {self.device.name} with {self.device.runtime}; known: {names}"
            )
        return max(found, key=lambda one: one.profiled_at_s)

    def save_model(self, model: ProfiledModel) -> None:
        """Keep a profiled model; whole times that were measured before stay where no new ones come."""
        with open_database(self.path) as db:
            device = self._id(db)
            db.execute(_PUT_MODEL, (device, model.digest, model.name, model.profiled_at_s, json.dumps(model.about)))
            db.executemany(
                _PUT_MODEL_TIME,
                [
                    (device, model.digest, *_key(one.point), one.composed_s, json.dumps(one.features),
                     json.dumps(one.executions_s) if one.executions_s else None, one.memory_bytes)
                    for one in model.times
                ],
            )  # fmt: skip

    def whole_times(self, but_not: str = "", inter_op_threads: int = 1) -> list[WholeTime]:
        """What the correction is learned from: models that were measured whole, executed in one way.

        Args:
            but_not: the model that is to be predicted, by name: in other sizes it is still the same model.
            inter_op_threads: operators that ran at the same time.
        """
        return [
            WholeTime(model=model.name, features=one.features, composed_s=one.composed_s, executions_s=one.executions_s)
            for model in self.models()
            for one in model.times
            if one.executions_s and model.name != but_not and model.about.get("inter_op_threads", 1) == inter_op_threads
        ]

    def _id(self, db: sqlite3.Connection) -> int:
        key = (self.device.kind, self.device.name, self.device.runtime)
        return _device_id(db, key, json.dumps(self._machine))


def _device_id(db: sqlite3.Connection, key: tuple[str, str, str], machine: str) -> int:
    """The number of a device, by kind, name and runtime; a new one gets one."""
    db.execute("INSERT OR IGNORE INTO device VALUES (NULL, ?, ?, ?, ?)", (*key, machine))
    row = db.execute("SELECT id FROM device WHERE kind = ? AND name = ? AND runtime = ?", key).fetchone()
    return int(row[0])


_PUT_MODEL = """
INSERT INTO model VALUES (?, ?, ?, ?, ?) ON CONFLICT (device, digest) DO UPDATE SET
    name = excluded.name, profiled_at_s = excluded.profiled_at_s, about = excluded.about
"""
_PUT_MODEL_TIME = """
INSERT INTO model_time VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (device, digest, batch, cpu_cores, gpu_percent) DO UPDATE SET
    composed_s = excluded.composed_s, features = excluded.features,
    executions_s = coalesce(excluded.executions_s, executions_s),
    memory_bytes = iif(excluded.executions_s IS NULL AND executions_s IS NOT NULL, memory_bytes, excluded.memory_bytes)
"""
"""What was measured whole stays until it is measured whole again."""
_PUT = {
    "operator": "INSERT OR IGNORE INTO operator VALUES (?, ?)",
    "operator_time": """
INSERT INTO operator_time VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (device, signature, batch, cpu_cores, gpu_percent, cold) DO UPDATE SET
    exec_s = excluded.exec_s, spread = excluded.spread, samples = excluded.samples, looks = excluded.looks,
    measured_at_s = excluded.measured_at_s
WHERE excluded.measured_at_s > measured_at_s
""",
    "model": _PUT_MODEL,
    "model_time": _PUT_MODEL_TIME,
}
"""How a row of another database is taken in."""


COLUMNS = {
    "device": ("id", "kind", "name", "runtime", "machine"),
    "operator": ("signature", "description"),
    "operator_time": (
        "device", "signature", "batch", "cpu_cores", "gpu_percent", "cold", "exec_s", "spread", "samples", "looks",
        "measured_at_s",
    ),
    "model": ("device", "digest", "name", "profiled_at_s", "about"),
    "model_time": (
        "device", "digest", "batch", "cpu_cores", "gpu_percent", "composed_s", "features", "executions_s",
        "memory_bytes",
    ),
}  # fmt: skip
Rows = dict[str, list[dict[str, Any]]]
"""A whole database: rows by table."""


def everything(path: Path) -> Rows:
    """All rows of all devices, to be exported."""
    with open_database(path) as db:
        db.execute("BEGIN")  # one moment of it, though others may write
        return {
            table: [
                dict(zip(columns, row, strict=True))
                for row in db.execute(f"SELECT {', '.join(columns)} FROM {table} ORDER BY 1, 2")  # noqa: S608 - our own names
            ]
            for table, columns in COLUMNS.items()
        }


def merge(path: Path, rows: Rows) -> dict[str, int]:
    """Take in the rows of another database; of two times for the same thing the newer one stays.

    Returns:
        How many rows were new or newer, by table.

    Raises:
        StateError: nothing was taken in.
    """
    with open_database(path) as db:
        before = db.total_changes
        taken: dict[str, int] = {}
        devices: dict[int, int] = {}
        for row in rows["device"]:
            devices[row["id"]] = _device_id(db, (row["kind"], row["name"], row["runtime"]), row["machine"])
        taken["device"] = db.total_changes - before
        newer = _newer_models(db, rows["model"], devices)
        for table in ("operator", "operator_time", "model", "model_time"):
            taken[table] = 0
            for row in rows[table]:
                here = {**row, "device": devices[row["device"]]} if "device" in row else row
                if table in ("model", "model_time") and (here["device"], here["digest"]) not in newer:
                    continue
                taken[table] += db.execute(_PUT[table], [here[column] for column in COLUMNS[table]]).rowcount
        return taken


def _newer_models(
    db: sqlite3.Connection, rows: list[dict[str, Any]], devices: dict[int, int]
) -> set[tuple[int, str]]:  # fmt: skip
    known = {
        (device, digest): at_s for device, digest, at_s in db.execute("SELECT device, digest, profiled_at_s FROM model")
    }
    return {
        key for row in rows
        for key in [(devices[row["device"]], row["digest"])]
        if row["profiled_at_s"] > known.get(key, float("-inf"))
    }  # fmt: skip


def prune(
    path: Path, *, measured_before_s: float | None = None, devices: Sequence[Device] = (), model: str | None = None
) -> dict[str, int]:
    """Forget rows.

    Args:
        path: the database.
        measured_before_s: what was measured or profiled before.
        devices: where there are any, what belongs to every other device and runtime.
        model: profiles of this name; their operators stay, other models may use them.

    Returns:
        How many rows went, by table. Operators that have no time left go as well.
    """
    with open_database(path) as db:
        counts = {table: _count(db, table) for table in COLUMNS}
        if measured_before_s is not None:
            db.execute("DELETE FROM operator_time WHERE measured_at_s < ?", (measured_before_s,))
            db.execute("DELETE FROM model WHERE profiled_at_s < ?", (measured_before_s,))
        if devices:
            kept = {(one.kind, one.name, one.runtime) for one in devices}
            known = db.execute("SELECT id, kind, name, runtime FROM device").fetchall()
            gone = [(number,) for number, *key in known if tuple(key) not in kept]
            db.executemany("DELETE FROM device WHERE id = ?", gone)
        if model is not None:
            db.execute("DELETE FROM model WHERE name = ?", (model,))
        db.execute("DELETE FROM operator WHERE signature NOT IN (SELECT signature FROM operator_time)")
        return {table: counts[table] - _count(db, table) for table in COLUMNS}


def _count(db: sqlite3.Connection, table: str) -> int:
    return int(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608 - our own names


def _model_times(db: sqlite3.Connection, device: int, digest: str) -> tuple[ModelTime, ...]:
    rows = db.execute(
        "SELECT batch, cpu_cores, gpu_percent, composed_s, features, executions_s, memory_bytes FROM model_time"
        " WHERE device = ? AND digest = ? ORDER BY gpu_percent, cpu_cores, batch",
        (device, digest),
    )
    return tuple(
        ModelTime(
            point=Point(batch, cores, gpu), composed_s=composed_s, features=tuple(json.loads(features)),
            executions_s=tuple(json.loads(executions)) if executions else (), memory_bytes=memory,
        )
        for batch, cores, gpu, composed_s, features, executions, memory in rows
    )  # fmt: skip


def _key(point: Point) -> tuple[int, int, int]:
    return point.batch, point.cpu_cores, point.gpu_percent


@contextmanager
def open_database(path: Path) -> Iterator[sqlite3.Connection]:
    """One transaction: all of it is written, or nothing.

    Raises:
        StateError: it cannot be opened, is damaged, or is of another version.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with closing(sqlite3.connect(path, timeout=30)) as db:
            db.execute("PRAGMA foreign_keys = ON")
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, VERSION):
                raise StateError(
                    f"the operator database {path} is of version {version}, this INFless works with version {VERSION}:"
                    " update INFless, or move the file away to begin anew"
                )
            with db:
                if version == 0:
                    _create(db)
                yield db
    except (sqlite3.Error, OSError, ValueError, KeyError, TypeError) as error:
        raise StateError(
            f"the operator database {path} cannot be used: {error}; if it is damaged, move it away and profile anew,"
            " or `infless profile import` an export of it"
        ) from error


def _create(db: sqlite3.Connection) -> None:
    """Two processes may come here at once: the second finds everything made."""
    db.execute("BEGIN IMMEDIATE")
    if db.execute("PRAGMA user_version").fetchone()[0] == 0:
        for statement in _SCHEMA.split(";\n"):
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {VERSION}")
