"""The operator database as one JSON file, to carry it to another machine or to keep it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from infless_core.errors import InvalidInput
from infless_profiler import tables
from infless_profiler.correction import FEATURES
from infless_profiler.operators import Operator

_FORMAT = "infless operator profiles"
_TEXTS = {"kind", "name", "runtime", "signature", "description", "digest"}
_JSONS = {"machine", "about", "features", "executions_s"}
_REALS = {"exec_s", "spread", "measured_at_s", "profiled_at_s", "composed_s"}
_REAL_MAX = 1e300
"""Beyond it, and where nothing can be compared, is no number of ours."""
_LEAST = {"batch": 1, "cpu_cores": 1, "samples": 1, "looks": 1}
_MOST = {"gpu_percent": 100, "cold": 1}


def export(database: Path, target: Path) -> dict[str, int]:
    """Write all rows of a database to a file; whole or not at all.

    Returns:
        How many rows of each table.
    """
    rows = tables.everything(database)
    draft = target.with_name(f".{target.name}.draft")
    draft.write_text(json.dumps({"format": _FORMAT, "version": tables.VERSION, **rows}, indent=1) + "\n")
    draft.replace(target)
    return {table: len(found) for table, found in rows.items()}


def bring_in(database: Path, source: Path) -> dict[str, int]:
    """Take in an exported file. Everything in it is checked first: it is taken whole or not at all.

    Returns:
        How many rows of each table were new or newer.

    Raises:
        InvalidInput: it is no such file, or of another version.
    """
    try:
        data = json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{source} is not an exported profile database: {error}") from error
    if not isinstance(data, dict) or data.get("format") != _FORMAT:
        raise InvalidInput(f"{source} is not an exported profile database")
    if data.get("version") != tables.VERSION:
        raise InvalidInput(
            f"{source} is of version {data.get('version')!r}, this INFless reads version {tables.VERSION}"
        )
    return tables.merge(database, _checked(source, data))


def _checked(source: Path, data: Mapping[str, Any]) -> tables.Rows:
    rows: tables.Rows = {}
    for table, columns in tables.COLUMNS.items():
        found = data.get(table)
        if not isinstance(found, list):
            raise InvalidInput(f"{source}: {table} is missing")
        for place, row in enumerate(found):
            fault = _fault(row, columns)
            if fault:
                raise InvalidInput(f"{source}: {table}[{place}]: {fault}")
        rows[table] = found
    devices = {row["id"] for row in rows["device"]}
    operators = {row["signature"] for row in rows["operator"]}
    models = {(row["device"], row["digest"]) for row in rows["model"]}
    known: dict[str, Callable[[dict[str, Any]], bool]] = {
        "operator_time": lambda row: row["device"] in devices and row["signature"] in operators,
        "model": lambda row: row["device"] in devices,
        "model_time": lambda row: (row["device"], row["digest"]) in models,
    }
    for table, is_known in known.items():
        for place, row in enumerate(rows[table]):
            if not is_known(row):
                raise InvalidInput(f"{source}: {table}[{place}] speaks of something that the file does not hold")
    for place, row in enumerate(rows["operator"]):
        try:
            right = Operator.from_json(json.loads(row["description"])).signature == row["signature"]
        except (ValueError, KeyError, TypeError, RecursionError):
            right = False
        if not right:
            raise InvalidInput(f"{source}: operator[{place}]: its description does not belong to its signature")
    return rows


def _fault(row: Any, columns: tuple[str, ...]) -> str:
    """What is wrong with one row; empty when nothing is."""
    if not isinstance(row, dict) or set(row) != set(columns):
        return f"its keys are not {', '.join(columns)}"
    for key, value in row.items():
        if key in _JSONS:
            good = (value is None and key == "executions_s") or _is_good_json(key, value)
        elif key in _TEXTS:
            good = isinstance(value, str)
        elif key in _REALS:
            good = type(value) in (int, float) and 0 <= value < _REAL_MAX
        else:
            good = type(value) is int and _LEAST.get(key, 0) <= value <= _MOST.get(key, 2**63 - 1)
        if not good:
            return f"{key} is {value!r}"
    if row.get("exec_s") == 0 or row.get("composed_s") == 0:
        return "a time of 0"
    return ""


def _is_good_json(key: str, text: Any) -> bool:
    """Whether a text is what the tables keep in such a column: who reads it there checks no more."""
    try:
        value = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return False
    if key in ("machine", "about"):
        return isinstance(value, dict)
    numbers = isinstance(value, list) and all(type(one) in (int, float) and abs(one) < _REAL_MAX for one in value)
    if key == "features":
        return numbers and len(value) == len(FEATURES)
    return numbers and len(value) > 0 and min(value) > 0
