"""Bringing a SQLite file up to date; its `user_version` counts the scripts that it has seen."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

from infless_core.errors import StateError


def migrate(db: sqlite3.Connection, path: Path, scripts: Sequence[str]) -> None:
    """Run the scripts that a file has not seen yet, each in a transaction.

    Args:
        db: the file, open.
        path: its name, for the sentence.
        scripts: what leads from each schema version to the next one.

    Raises:
        StateError: it was written by a newer program.
        sqlite3.Error: a script fails; the file is as the last one left it.
    """
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > len(scripts):
        raise StateError(f"{path} was written by a newer INFless (schema {version}); update INFless")
    for number, script in enumerate(scripts[version:], start=version + 1):
        db.executescript(f"BEGIN; {script}; PRAGMA user_version = {number}; COMMIT;")
