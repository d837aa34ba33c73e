"""The profile database: execution times by function digest and configuration, measured and observed; all its SQL."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

from infless_core.errors import InvalidInput, StateError
from infless_core.model import Configuration
from infless_profiler.measure import Measurement
from infless_profiler.observe import Level

_SCHEMA = """
CREATE TABLE IF NOT EXISTS measurement (
    digest TEXT NOT NULL, machine TEXT NOT NULL,
    batch INTEGER NOT NULL, cpu_cores INTEGER NOT NULL, gpu_percent INTEGER NOT NULL,
    samples_s TEXT NOT NULL, memory_bytes INTEGER NOT NULL, measured_at_s REAL NOT NULL,
    PRIMARY KEY (digest, machine, batch, cpu_cores, gpu_percent)
);
CREATE TABLE IF NOT EXISTS coverage (
    digest TEXT NOT NULL, machine TEXT NOT NULL, batch INTEGER NOT NULL, cpu_cores INTEGER NOT NULL,
    PRIMARY KEY (digest, machine)
);
CREATE TABLE IF NOT EXISTS observation (
    digest TEXT NOT NULL, machine TEXT NOT NULL,
    batch INTEGER NOT NULL, cpu_cores INTEGER NOT NULL, gpu_percent INTEGER NOT NULL,
    exec_s REAL NOT NULL, batches REAL NOT NULL, updated_at_s REAL NOT NULL,
    PRIMARY KEY (digest, machine, batch, cpu_cores, gpu_percent)
);
"""
OBSERVED_AGE_S = 7 * 24 * 3600.0
"""What was observed longer ago says less than the measurement."""


class ProfileStore:
    """Opened for each call: several processes (the provider, `infless profile`) share the file."""

    def __init__(self, path: Path, machine: str) -> None:
        self._path = path
        self._machine = machine

    def load(self, digest: str) -> list[Measurement]:
        """Every measurement of one function on this machine, smallest configuration first."""
        with self._open() as db:
            rows = db.execute(
                "SELECT batch, cpu_cores, gpu_percent, samples_s, memory_bytes FROM measurement"
                " WHERE digest = ? AND machine = ? ORDER BY batch, cpu_cores, gpu_percent",
                (digest, self._machine),
            )
            return [
                Measurement(
                    configuration=Configuration(batch=batch, cpu_cores=cores, gpu_percent=gpu),
                    samples_s=tuple(json.loads(samples)),
                    memory_bytes=memory,
                )
                for batch, cores, gpu, samples, memory in rows
            ]

    def coverage(self, digest: str) -> Configuration | None:
        """The largest batch and the most cores that were asked for when a function was timed; None if it never was."""
        with self._open() as db:
            row = db.execute(
                "SELECT batch, cpu_cores FROM coverage WHERE digest = ? AND machine = ?", (digest, self._machine)
            ).fetchone()
        return Configuration(batch=row[0], cpu_cores=row[1]) if row else None

    def save(
        self, digest: str, measurements: Iterable[Measurement], coverage: Configuration, now_s: float
    ) -> None:  # fmt: skip
        """Keep measurements; a newer one replaces an older one of the same configuration, and what was observed before.

        Args:
            digest: the function's code and variables.
            measurements: none when the function has no example to be timed with.
            coverage: what was asked for. Unbatched and slow functions have measurements of smaller batches only.
            now_s: since the epoch.

        Raises:
            StateError: when the database cannot be written.
        """
        rows = [
            (
                digest, self._machine, m.configuration.batch, m.configuration.cpu_cores, m.configuration.gpu_percent,
                json.dumps(m.samples_s), m.memory_bytes, now_s,
            )
            for m in measurements
        ]  # fmt: skip
        with self._open() as db:
            db.executemany("INSERT OR REPLACE INTO measurement VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
            db.execute(
                "INSERT OR REPLACE INTO coverage VALUES (?, ?, ?, ?)",
                (digest, self._machine, coverage.batch, coverage.cpu_cores),
            )
            db.execute("DELETE FROM observation WHERE digest = ? AND machine = ?", (digest, self._machine))

    def observed(self, digest: str, now_s: float) -> dict[Configuration, Level]:
        """Execution times that were seen in use here, without those that are too old."""
        with self._open() as db:
            rows = db.execute(
                "SELECT batch, cpu_cores, gpu_percent, exec_s, batches FROM observation"
                " WHERE digest = ? AND machine = ? AND updated_at_s >= ? ORDER BY batch, cpu_cores, gpu_percent",
                (digest, self._machine, now_s - OBSERVED_AGE_S),
            ).fetchall()
        return {
            Configuration(batch=batch, cpu_cores=cores, gpu_percent=gpu): Level(exec_s=exec_s, batches=batches)
            for batch, cores, gpu, exec_s, batches in rows
        }

    def observe(self, digest: str, levels: Mapping[Configuration, Level], now_s: float) -> None:
        """Keep what was seen in use; a newer time replaces an older one of the same configuration.

        Raises:
            StateError: when the database cannot be written.
        """
        rows = [
            (
                digest, self._machine, given.batch, given.cpu_cores, given.gpu_percent,
                level.exec_s, level.batches, now_s,
            )
            for given, level in levels.items()
        ]  # fmt: skip
        with self._open() as db:
            db.executemany("INSERT OR REPLACE INTO observation VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with closing(sqlite3.connect(self._path, timeout=10)) as db:
                db.executescript(_SCHEMA)
                with db:
                    yield db
        except (sqlite3.Error, OSError, ValueError, TypeError, InvalidInput) as error:
            raise StateError(f"the profile database {self._path} cannot be used: {error}") from error
