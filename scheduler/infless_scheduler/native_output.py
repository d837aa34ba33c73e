"""Keeping a process's standard output for results while native code runs that prints on its own."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator

_ONE_AT_A_TIME = threading.Lock()
"""Two overlapping redirections would restore each other's, and standard output would be lost for good."""


@contextlib.contextmanager
def stdout_silenced() -> Iterator[None]:
    """Let what is written to file descriptor 1 vanish meanwhile. Holds a lock: one user at a time.

    CBC announces an empty or infeasible model, and the first solve of each linear program, on standard output whatever
    its verbosity. Nobody wants to know.
    """
    with _ONE_AT_A_TIME:
        try:
            kept = os.dup(1)
        except OSError:  # the process has no standard output
            yield
            return
        c_library = ctypes.CDLL(None)
        target = os.open(os.devnull, os.O_WRONLY)
        try:
            c_library.fflush(None)
            os.dup2(target, 1)
            yield
        finally:
            os.close(target)
            c_library.fflush(None)  # C buffers what it prints; it must leave before the descriptor is back
            os.dup2(kept, 1)
            os.close(kept)
