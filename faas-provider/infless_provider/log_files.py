"""Log files of instances: lines of the past, found from the files' ends, and new ones as they are written.

An instance writes `<instance>.log`, each line `RFC3339 text`; a file that is full becomes `<instance>.log.1` and a new
one begins. Everything here blocks, and is called in threads; what is missing is empty, other faults of the disk and a
lack of file descriptors are `OSError`.
"""

from __future__ import annotations

import heapq
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from io import FileIO
from pathlib import Path
from typing import Self

import msgspec

READ_BYTES = 1024 * 1024
"""Most that one look takes of a file: a function that floods its log must not take the core from invocations."""
BLOCK_BYTES = 64 * 1024
"""Read at once when the past is searched, and the size of pieces that are sent."""
MISSING = "[infless] lines are missing here: the log is written faster than it can be followed"
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of an instance."""

    at_s: float
    """Seconds since the epoch."""
    timestamp: str
    """The same time as it is written in the file."""
    instance: str
    text: str

    def record(self, key: str) -> bytes:
        """The line as clients read it: one JSON object and a line's end.

        Args:
            key: the function's, `name.namespace`.
        """
        name, _, namespace = key.rpartition(".")
        fields = {
            "name": name,
            "namespace": namespace,
            "instance": self.instance,
            "timestamp": self.timestamp,
            "text": self.text,
        }
        return msgspec.json.encode(fields) + b"\n"


def parse_line(instance: str, raw: bytes) -> Line | None:
    """A line of a file; None when it does not begin with a time that every client can read."""
    stamp, _, text = raw.partition(b" ")
    timestamp = stamp.decode("ascii", "replace")
    if not _RFC3339.fullmatch(timestamp):
        return None
    try:
        at_s = datetime.fromisoformat(timestamp).timestamp()
    except ValueError:  # a 31st of February
        return None
    return Line(at_s=at_s, timestamp=timestamp, instance=instance, text=text.decode(errors="replace"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """How far a file has been read: always to a line's end."""

    inode: int
    offset: int


class Follow:
    """Reads what a function's instances write from the first look on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tails: dict[str, _Tail] = {}
        self._looked = False

    def look(self) -> list[Line]:
        """Lines that are new since the last look, in order of time; the first look finds where the files end."""
        present = instances_of(self._folder)
        for instance in present:
            if instance not in self._tails and (file := _open(log_path(self._folder, instance))):
                self._tails[instance] = _Tail(file, 0 if self._looked else line_end(file, _size(file)))
        self._looked = True
        found = [line for instance in list(self._tails) for line in self._new_lines(instance)]
        return sorted(found, key=lambda line: line.at_s)

    def positions(self) -> dict[str, Position]:
        """By instance, how far its file has been read: what is before is past."""
        return {instance: tail.position() for instance, tail in self._tails.items()}

    def close(self) -> None:
        """Close the files."""
        for tail in self._tails.values():
            tail.file.close()
        self._tails.clear()

    def _new_lines(self, instance: str) -> list[Line]:
        tail, path = self._tails[instance], log_path(self._folder, instance)
        # Asked before reading: once a file is turned nobody writes into it, so that what is read is the rest of it.
        turned = _inode(path) != tail.inode
        data, is_rest = tail.read()
        if turned and is_rest:
            self._turn(instance, path)
        lines = [line for raw in data.split(b"\n") if (line := parse_line(instance, raw))]
        if lines and tail.after_gap:
            tail.after_gap = False
            lines.insert(0, replace(lines[0], text=MISSING))
        return lines

    def _turn(self, instance: str, path: Path) -> None:
        """Go on with the file that has taken the place of one that is read to its end."""
        read, successor = self._tails[instance], _open(path)
        is_kept = _inode(rotated(path)) == read.inode
        if successor is None and is_kept:
            return  # just turned, and the new one is not there yet
        del self._tails[instance]
        read.file.close()
        if successor is not None:
            self._tails[instance] = _Tail(successor, 0, after_gap=not is_kept)


class _Tail:
    """One open file that grows. It stays open when it is turned or removed, so that its rest can be read."""

    def __init__(self, file: FileIO, offset: int, *, after_gap: bool = False) -> None:
        self.file = file
        self.after_gap = after_gap
        """Whether a whole file came and went unread before this one."""
        self.inode = os.fstat(file.fileno()).st_ino
        self._offset = offset

    def position(self) -> Position:
        return Position(inode=self.inode, offset=self._offset)

    def read(self) -> tuple[bytes, bool]:
        """New complete lines, and whether that is all there is."""
        data = os.pread(self.file.fileno(), READ_BYTES, self._offset)
        if not data and _size(self.file) < self._offset:  # emptied by somebody
            self._offset = 0
        whole = data.rfind(b"\n") + 1
        if not whole and len(data) == READ_BYTES:  # a line without an end must not hold up what comes after it
            whole = len(data)
        self._offset += whole
        return data[:whole], len(data) < READ_BYTES


class Past:
    """What one instance has logged until now: the rotated file and the current one, as one run of bytes."""

    def __init__(self, instance: str, files: Sequence[tuple[FileIO, int]]) -> None:
        self.instance = instance
        self._files = files
        """The oldest first, each with the bytes that count."""
        self.size = sum(size for _, size in files)

    @classmethod
    def open(cls, folder: Path, instance: str, until: Position | None) -> Self:
        """Open what there is of an instance's files; what has vanished is empty.

        Args:
            folder: the function's.
            instance: whose.
            until: where the past ends; None is the last complete line there is.
        """
        path = log_path(folder, instance)
        # In this order: between the two a file may be turned, and is then met twice, never missed.
        found = [file for file in (_open(path), _open(rotated(path))) if file]
        if len(found) == 2 and _same(*found):
            found.pop().close()
        if until is not None:
            while found and os.fstat(found[0].fileno()).st_ino != until.inode:
                found.pop(0).close()  # newer than what is asked for
        sizes = [_size(file) for file in found]
        if found:
            sizes[0] = min(sizes[0], until.offset) if until is not None else line_end(found[0], sizes[0])
        return cls(instance, list(zip(found, sizes, strict=True))[::-1])

    def read(self, start: int, count: int) -> bytes:
        """Bytes from anywhere in the run."""
        parts = []
        for file, size in self._files:
            if start < size and count > 0:
                parts.append(os.pread(file.fileno(), min(count, size - start), start))
                count -= len(parts[-1])
            start = max(0, start - size)
        return b"".join(parts)

    def backwards(self) -> Iterator[tuple[int, Line]]:
        """Lines from the last to the first, each with where it starts."""
        end, rest = self.size, b""
        while end > 0:
            start = max(0, end - BLOCK_BYTES)
            data = self.read(start, end - start) + rest
            first = 0 if start == 0 else data.find(b"\n") + 1
            at = start + len(data)
            for raw in reversed(data[first:].split(b"\n")[:-1]):
                at -= len(raw) + 1
                if line := parse_line(self.instance, raw):
                    yield at, line
            end, rest = start, data[:first]

    def start_of(self, since_s: float) -> int:
        """Where a line starts, at or before the first one that is not older; found block by block from the end."""
        start = self.size
        while start > 0:
            start = max(0, start - BLOCK_BYTES)
            data = self.read(start, BLOCK_BYTES)
            cut = data.find(b"\n") + 1
            whole = data[cut:].split(b"\n")[:-1] if cut else []
            first = next(filter(None, (parse_line(self.instance, raw) for raw in whole)), None)
            if first is not None and first.at_s < since_s:
                return start + cut
        return 0

    def forwards(self, start: int) -> Iterator[Line]:
        """Lines from an offset to the end."""
        rest = b""
        for at in range(start, self.size, BLOCK_BYTES):
            *whole, rest = (rest + self.read(at, min(BLOCK_BYTES, self.size - at))).split(b"\n")
            yield from (line for raw in whole if (line := parse_line(self.instance, raw)))

    def close(self) -> None:
        """Close the files."""
        for file, _ in self._files:
            file.close()


def past_lines(pasts: Sequence[Past], since_s: float, tail: int) -> Iterator[Line]:
    """Lines of several instances in order of time, read as they are asked for.

    Args:
        pasts: one for each instance.
        since_s: older lines are left out; seconds since the epoch.
        tail: only the last ones of all; 0 is all.
    """
    starts = [past.size for past in pasts] if tail else [past.start_of(since_s) for past in pasts]
    if tail:
        newest = heapq.merge(
            *(_younger(past, index, since_s) for index, past in enumerate(pasts)), key=lambda found: -found[0]
        )
        for _, (_, index, start) in zip(range(tail), newest, strict=False):
            starts[index] = start
    runs = [past.forwards(start) for past, start in zip(pasts, starts, strict=True)]
    return (line for line in heapq.merge(*runs, key=lambda line: line.at_s) if line.at_s >= since_s)


def _younger(past: Past, index: int, since_s: float) -> Iterator[tuple[float, int, int]]:
    for start, line in past.backwards():
        if line.at_s < since_s:
            return
        yield line.at_s, index, start


def instances_of(folder: Path) -> list[str]:
    """Instances that have a log, by name; none when there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name[:-4] for entry in entries if entry.name.endswith(".log"))
    except (FileNotFoundError, NotADirectoryError):
        return []


def log_path(folder: Path, instance: str) -> Path:
    """An instance's current file."""
    return folder / f"{instance}.log"


def rotated(path: Path) -> Path:
    """What a full file becomes."""
    return path.with_name(f"{path.name}.1")


def end_of(path: Path, most_bytes: int) -> bytes:
    """The last bytes of a file; empty when it cannot be read: who asks for last words wants no other error."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - most_bytes))
            return file.read()
    except OSError:
        return b""


def line_end(file: FileIO, size: int) -> int:
    """Where the last complete line of the first `size` bytes ends."""
    while size > 0:
        start = max(0, size - BLOCK_BYTES)
        at = os.pread(file.fileno(), size - start, start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        size = start
    return 0


def _open(path: Path) -> FileIO | None:
    try:
        return FileIO(path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None


def _inode(path: Path) -> int:
    """0 when there is no such file."""
    try:
        return path.stat().st_ino
    except (FileNotFoundError, NotADirectoryError):
        return 0


def _size(file: FileIO) -> int:
    return os.fstat(file.fileno()).st_size


def _same(one: FileIO, other: FileIO) -> bool:
    return os.path.sameopenfile(one.fileno(), other.fileno())
