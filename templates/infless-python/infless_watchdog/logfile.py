"""`log_file`: every line that the instance prints, with its time, in a file that outlives whoever started it."""

from __future__ import annotations

import atexit
import os
import threading
from datetime import UTC, datetime
from pathlib import Path

MAX_BYTES = 8 * 1024 * 1024
"""Then the file becomes `.1`: two files of this size hold days of a quiet function, an hour of a loud one."""
LINE_MAX = 64 * 1024
"""A line without an end must not grow for ever: here it is broken."""


def capture(path: Path) -> None:
    """Send stdout and stderr, also of child processes and native code, through a pipe into `path`.

    Only `os.read` and `os.write` run in the thread, so no lock can be held when gunicorn forks.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    log = _Log(path)
    reader, writer = os.pipe()
    os.dup2(writer, 1)
    os.dup2(writer, 2)
    os.close(writer)
    thread = threading.Thread(target=log.pump, args=(reader,), name="log", daemon=True)
    thread.start()
    atexit.register(_last_words, thread)


def _last_words(thread: threading.Thread) -> None:
    """Close our end of the pipe and wait until what is in it is written. In a forked worker the thread is no more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    thread.join(1.0)


class _Log:
    """The file, and its turning at `MAX_BYTES`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open()

    def pump(self, reader: int) -> None:
        """Copy lines until the last writer is gone."""
        rest = b""
        while chunk := os.read(reader, 65536):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > LINE_MAX:
                lines, rest = [*lines, rest], b""
            self._write(lines)
        self._write([rest] if rest else [])

    def _write(self, lines: list[bytes]) -> None:
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ ").encode()
        try:
            self._size += os.write(self._file, b"".join(stamp + line + b"\n" for line in lines))
            if self._size > MAX_BYTES:
                self._path.replace(f"{self._path}.1")
                os.close(self._file)
                self._open()
        except OSError:
            pass  # a full disk must not stop the function: a pipe that nobody reads would

    def _open(self) -> None:
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._size = os.fstat(self._file).st_size
