"""Log files of instances: how many are kept, and what the newest lines say of an end."""

from __future__ import annotations

import os
import re
from collections.abc import Container, Sequence
from pathlib import Path

from infless_provider.log_files import end_of, rotated

LOGS_KEPT = 20
"""Log files of ended instances that are kept for a function: a day of scaling, and no disk full of small files."""
LOGS_KEPT_BYTES = 64 * 1024 * 1024
"""Nor of large ones: together they take no more, but for the newest. A running instance holds two of 8 MiB at most."""
_LAST_BYTES = 16 * 1024
_LAST_LINES = 50
_STAMPED = re.compile(r"\d{4}-\d\d-\d\dT\S+ ")
_TOLD = re.compile(r"ERROR|infless-watchdog:|was sent SIG|MemoryError|bad_alloc")
_AFTERWORDS = re.compile(r"Shutting down: Master|Reason: |exited with code 3\.")
"""What gunicorn adds to a reason that was told before (3: the worker itself gave up, having said why)."""
_HEAD = re.compile(r"^\[[^]]*\] \[\d+\] \[[A-Z]+\] ")


def open_log(path: Path) -> int:
    """A descriptor that appends to a log: what an instance says before it opens it by itself must not be lost.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def prune(folder: Path, running: Container[str]) -> None:
    """Remove the oldest logs of a function's ended instances; a running one keeps its log open for ever.

    Args:
        folder: the function's logs.
        running: ids of instances.
    """
    ended = [(path.stat(), path) for path in folder.glob("*.log") if path.stem not in running]
    ended.sort(key=lambda one: one[0].st_mtime, reverse=True)
    kept_bytes = 0
    for place, (stat, path) in enumerate(ended):
        full = rotated(path)
        kept_bytes += stat.st_size + (full.stat().st_size if full.exists() else 0)
        if place >= LOGS_KEPT or (place > 0 and kept_bytes > LOGS_KEPT_BYTES):
            path.unlink(missing_ok=True)
            full.unlink(missing_ok=True)


def last_words(path: Path) -> str:
    """The newest line of a log that says why its instance ended; empty when there is none."""
    lines = _tail(path)
    if len(lines) < _LAST_LINES:  # it was put aside just before
        lines = [*_tail(rotated(path)), *lines]
    return _words(lines[-_LAST_LINES:])


def _tail(path: Path) -> list[str]:
    return end_of(path, _LAST_BYTES).decode(errors="replace").splitlines()


def _words(lines: Sequence[str]) -> str:
    """Lines have a time before them, but for what was said before the watchdog opened its log, or it never did."""
    if lines and not _STAMPED.match(lines[-1]):
        return lines[-1].strip()
    told = [line.partition(" ")[2] for line in lines if not _AFTERWORDS.search(line)]
    return next((_HEAD.sub("", line) for line in reversed(told) if _TOLD.search(line)), "")
