"""A container's output, copied into its instance's log file by a thread: it resumes where an earlier provider ended.

An engine that is followed through a flood loses its place when it turns its own files: it passes over one, tells
another twice, and may be silent ever after (seen with Docker 20.10). So a flood is not followed: the engine is asked
again and again for what there is, which is whole each time, and is followed anew when little comes.

The file is like the one that a watchdog writes for itself (`log_file`): `RFC3339 text` lines, `.1` when it is full.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path

from infless_core.errors import BackendError
from infless_provider.backends.docker_api import Engine, NoSuch, Stream
from infless_provider.log_files import MISSING, end_of, rotated

LOG = logging.getLogger("infless.docker")
MAX_BYTES = 8 * 1024 * 1024
"""Then the file becomes `.1`, as the watchdog's own does."""
LINE_MAX = 64 * 1024
"""A line without an end must not grow for ever: here it is broken. Docker itself cuts lines into pieces of 16 KiB."""
LINES_AT_ONCE = 500
BYTES_AT_ONCE = 256 * 1024
"""So many lines or bytes are much: those of a flood."""
_FLOOD_S = 0.1
"""Where much comes within so short a time, the log is flooded."""
_LATE_S = 1.0
"""The same where much has come and its last line is older: we are behind already."""
_RESTS = 3.0
"""After much of a flood a pump rests, for so many times the processor's time that it took: it must not take the core
from invocations. The engine keeps 16 MB for it to catch up."""
_LOOK_S = 1.0
"""Between two looks at a flood: for each the engine reads all that it keeps."""
_PATIENCE_S = 2.0
_PATIENCE_MAX_S = 64.0
"""After a flood the engine is believed to be silent for so long, then followed anew, and each time for twice as long;
after the last one for ever."""
_AGAIN_S = 0.5
_TAIL_BYTES = 256 * 1024
_OVERLAP_S = 1.0
"""Times of two streams are not in order to the nanosecond: so much is read again, and what is there is passed over."""
_STAMP = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a container."""

    stamp: bytes
    """As Docker writes times, all of one length: in order of bytes is in order of time."""
    text: bytes

    @property
    def at_s(self) -> float:
        """Its time in seconds since the epoch, not exact to the nanosecond."""
        return datetime.fromisoformat(self.stamp.decode()).timestamp()


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """Where an earlier pump ended."""

    since: bytes = b""
    """Lines from there on are read again; empty reads everything."""
    known: Counter[Line] = field(default_factory=Counter)
    """What of that is in the file already."""

    @property
    def since_s(self) -> float:
        """A little earlier, in seconds since the epoch: as a float it is not exact to the nanosecond."""
        return Line(stamp=self.since, text=b"").at_s - 0.001 if self.since else 0.0

    def is_new(self, line: Line) -> bool:
        """Whether a line is not in the file; asked once for each."""
        if line.stamp < self.since:
            return False
        if self.known[line] > 0:
            self.known[line] -= 1
            return False
        return True

    def news(self, lines: Iterable[Line]) -> Iterator[Line]:
        """Lines that are not in the file; before them one that says so where the engine has lost what is between."""
        has_met = not self.since
        for line in lines:
            if self.is_new(line):
                if not has_met:
                    yield Line(stamp=line.stamp, text=MISSING.encode())
                yield line
            has_met = True


def lines_of(pieces: Iterable[bytes], *, is_all: bool = True) -> Iterator[Line]:
    """Whole lines from what the engine sends: each piece has a time, only a line's last one its end.

    Args:
        pieces: of the engine.
        is_all: nothing comes after them, so that what has no end is a line, too.
    """
    stamp, text = b"", b""
    for piece in pieces:
        at, _, rest = piece.partition(b" ")
        if not _STAMP.fullmatch(at):
            continue  # the engine's own words, about a log that it cannot read
        if stamp and at != stamp:
            yield Line(stamp=stamp, text=text)
            text = b""
        stamp, text = at, text + rest
        if text.endswith(b"\n") or len(text) >= LINE_MAX:
            yield Line(stamp=stamp, text=text.removesuffix(b"\n"))
            stamp, text = b"", b""
    if stamp and is_all:
        yield Line(stamp=stamp, text=text)


class LogFile:
    """One instance's file. A full disk loses lines, and stops nobody."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._size = 0
        self._open()

    def resume(self) -> Resume:
        """What to read again; drops the half of a line that a crash left at the end."""
        with self._path.open("r+b") as file:
            file.truncate(self._size - len(end_of(self._path, _TAIL_BYTES).rpartition(b"\n")[2]))
        self._size = self._path.stat().st_size
        tail = (end_of(rotated(self._path), _TAIL_BYTES) + end_of(self._path, _TAIL_BYTES))[-_TAIL_BYTES:]
        is_cut = len(tail) == _TAIL_BYTES
        found = [
            Line(stamp=stamp, text=text)
            for stamp, _, text in (raw.partition(b" ") for raw in tail.split(b"\n")[is_cut:])
            if _STAMP.fullmatch(stamp)
        ]
        if not found:
            return Resume()
        least_s = found[-1].at_s - _OVERLAP_S
        recent = [line for line in found if line.at_s >= least_s]
        if is_cut:  # what is before the tail is not known, so it must not be read again
            least = max(line.stamp for line in found[: len(found) // 2 + 1])
            recent = [line for line in recent if line.stamp >= least]
        return Resume(since=min(line.stamp for line in recent), known=Counter(recent))

    def write(self, line: Line) -> None:
        """Append a line."""
        with contextlib.suppress(OSError):
            self._size += os.write(self._file, b"%s %s\n" % (line.stamp, line.text))
            if self._size > MAX_BYTES:
                self._path.replace(rotated(self._path))
                os.close(self._file)
                self._open()

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _open(self) -> None:
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._size = os.fstat(self._file).st_size


class LogPump:
    """The thread of one container, until its output has ended."""

    def __init__(self, engine: Engine, container: str, path: Path) -> None:
        self._engine, self._container, self._path = engine, container, path
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._stream: Stream | None = None
        self._thread = threading.Thread(target=self._run, name=f"log-{path.stem}", daemon=True)

    def open(self) -> None:
        """Begin to copy."""
        self._thread.start()

    def wait(self, timeout_s: float) -> None:
        """Until all of a container that has ended is in the file."""
        self._thread.join(timeout_s)

    @property
    def ended(self) -> bool:
        """All is copied, or its container is gone."""
        return not self._thread.is_alive()

    def stop(self) -> None:
        """Copy no more; `wait` then waits for the thread."""
        self._stopped.set()
        with self._lock:
            if self._stream is not None:
                self._stream.close()

    def _run(self) -> None:
        ended, patience_s = False, math.inf
        while not ended and not self._stopped.is_set():
            try:
                # Asked before reading: of a container that had ended by then, what is read is all there will be.
                ended = not self._engine.inspect(self._container).running
                if ended:
                    self._copy(self._engine.printed, is_all=True)
                elif self._copy(partial(self._engine.follow, silence_s=patience_s), is_flood_left=True):
                    patience_s = _PATIENCE_S
                    self._copy_flood()
                else:
                    patience_s = patience_s * 2 if patience_s < _PATIENCE_MAX_S else math.inf
            except NoSuch:
                return
            except (BackendError, OSError):
                ended = False
                self._stopped.wait(_AGAIN_S)
            except Exception:
                LOG.exception("%s is copied no more", self._path)
                return

    def _copy_flood(self) -> None:
        """Look at what there is, until little has come between two looks."""
        self._copy(self._engine.printed)
        while not self._stopped.wait(_LOOK_S) and self._copy(self._engine.printed):
            pass

    def _copy(self, read: Callable[[str, float], Stream], *, is_all: bool = False, is_flood_left: bool = False) -> bool:
        """Copy what is new, to the end of what is read; says whether that was much.

        Args:
            read: the engine's method.
            is_all: nothing can come after it.
            is_flood_left: a flood is not copied to its end; much that comes slowly is none.
        """
        file = LogFile(self._path)
        try:
            resume = file.resume()
            stream = read(self._container, resume.since_s)
            with self._lock:
                self._stream = stream
            if self._stopped.is_set():
                return False
            return self._write(file, resume.news(lines_of(stream, is_all=is_all)), is_flood_left=is_flood_left)
        finally:
            with self._lock:
                stream_, self._stream = self._stream, None
            if stream_ is not None:
                stream_.close()
            file.close()

    def _write(self, file: LogFile, lines: Iterator[Line], *, is_flood_left: bool) -> bool:
        """See `_copy`."""
        is_much, count, size, began_s, used_s = False, 0, 0, time.monotonic(), time.thread_time()
        for line in lines:
            file.write(line)
            count, size = count + 1, size + len(line.text)
            if self._stopped.is_set():
                return False
            if count < LINES_AT_ONCE and size < BYTES_AT_ONCE:
                continue
            if not is_flood_left:
                is_much = True
                self._stopped.wait(_RESTS * (time.thread_time() - used_s))
            elif time.monotonic() - began_s < _FLOOD_S or time.time() - line.at_s > _LATE_S:
                return True
            count, size, began_s, used_s = 0, 0, time.monotonic(), time.thread_time()
        return is_much


def last_line(path: Path) -> str:
    """The newest line of a log that is not empty, without its time."""
    lines = end_of(path, _TAIL_BYTES).decode(errors="replace").splitlines()
    return next((text for line in reversed(lines) if (text := line.partition(" ")[2].strip())), "")
