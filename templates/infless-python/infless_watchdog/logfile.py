"""`log_file`: every line that the instance prints, with its time, in a file that outlives whoever started it."""

from __future__ import annotations

import os
import threading
from datetime import UTC, datetime
from pathlib import Path

MAX_BYTES = 8 * 1024 * 1024
"""Then the file becomes `.1`: two files of this size hold days of a quiet function, an hour of a loud one."""


def capture(path: Path) -> None:
    """Send stdout and stderr, also of child processes and native code, through a pipe into `path`.

    Only `os.read` and `os.write` run in the thread, so no lock can be held when gunicorn forks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    reader, writer = os.pipe()
    os.dup2(writer, 1)
    os.dup2(writer, 2)
    os.close(writer)
    threading.Thread(target=_pump, args=(reader, path), name="log", daemon=True).start()


def _pump(reader: int, path: Path) -> None:
    target, size = _open(path)
    rest = b""
    while chunk := os.read(reader, 65536):
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > 65536:  # a line without an end must not grow for ever
            lines, rest = [*lines, rest], b""
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ ").encode()
        data = b"".join(stamp + line + b"\n" for line in lines)
        try:
            size += os.write(target, data)
        except OSError:
            continue  # a full disk must not stop the function
        if size > MAX_BYTES:
            os.close(target)
            path.replace(path.with_suffix(".log.1"))
            target, size = _open(path)


def _open(path: Path) -> tuple[int, int]:
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    return target, os.fstat(target).st_size
