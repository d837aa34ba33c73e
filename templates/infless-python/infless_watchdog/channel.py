"""Messages between two processes: small things through a pipe, large ones through memory that both have.

The memory belongs to anonymous files (memfd): when both processes are gone, however they went, so is it.
"""

from __future__ import annotations

import mmap
import os
import pickle
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

LARGE_BYTES = 8 * 1024
"""From here on shared memory is faster than the pipe, which moves about a gigabyte in a second, page by page."""
KEPT_BYTES = 32 * 1024 * 1024
"""Memory above this is given back with the next message."""
_COUNT = struct.Struct("<I")


def large(body: bytes) -> bytes | pickle.PickleBuffer:
    """A part of a message, so that it goes through memory if that is worth it."""
    return pickle.PickleBuffer(body) if len(body) >= LARGE_BYTES else body


@dataclass(frozen=True, slots=True)
class Ends:
    """The file descriptors of one side."""

    pipe: int
    outgoing: int
    """Memory that this side writes."""
    incoming: int


def open_pair() -> tuple[Ends, Ends]:
    """Both ends of a new channel."""
    import socket

    ours, theirs = socket.socketpair()
    forth, back = (os.memfd_create(f"infless-{way}", os.MFD_CLOEXEC) for way in ("forth", "back"))
    return Ends(ours.detach(), forth, back), Ends(theirs.detach(), back, forth)


class Channel:
    """One side. Messages go to and fro in turns: an answer says that the question has been read."""

    def __init__(self, ends: Ends) -> None:
        self._pipe = Connection(ends.pipe)
        self._outgoing = _Memory(ends.outgoing)
        self._incoming = _Memory(ends.incoming)

    def send(self, message: Any) -> None:
        """Send whatever can be pickled; what went through `large` is not copied into the pipe.

        Raises:
            OSError: the other side is gone.
        """
        buffers: list[pickle.PickleBuffer] = []
        text = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
        views = [buffer.raw() for buffer in buffers]
        self._outgoing.write(views)
        sizes = struct.pack(f"<{len(views)}Q", *(view.nbytes for view in views))
        self._pipe.send_bytes(_COUNT.pack(len(views)) + sizes + text)

    def receive(self) -> Any:
        """The next message.

        Raises:
            EOFError: the other side is gone; so does OSError.
        """
        frame = memoryview(self._pipe.recv_bytes())
        (count,) = _COUNT.unpack_from(frame)
        sizes = struct.unpack_from(f"<{count}Q", frame, _COUNT.size)
        parts = self._incoming.read(sizes)
        return pickle.loads(frame[_COUNT.size + 8 * count :], buffers=parts)  # noqa: S301 - our own child

    def close(self) -> None:
        """Close this side's descriptors."""
        self._pipe.close()
        self._outgoing.close()
        self._incoming.close()


class _Memory:
    """Memory that one process writes and another reads, one after the other. It grows as needed."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._size_bytes = 0
        self._map: mmap.mmap | None = None

    def write(self, views: Sequence[memoryview]) -> None:
        """Lay these one after the other."""
        total_bytes = sum(view.nbytes for view in views)
        if total_bytes > self._size_bytes or self._size_bytes > KEPT_BYTES:
            self._size_bytes = 1 << (total_bytes - 1).bit_length() if total_bytes else 0
            os.ftruncate(self._file, self._size_bytes)
        place = 0
        for view in views:
            self._mapped(total_bytes)[place : place + view.nbytes] = view
            place += view.nbytes

    def read(self, sizes_bytes: Sequence[int]) -> list[bytes]:
        """Copies of what lies there."""
        total_bytes, place = sum(sizes_bytes), 0
        parts = []
        for size_bytes in sizes_bytes:
            parts.append(self._mapped(total_bytes)[place : place + size_bytes])
            place += size_bytes
        return parts

    def close(self) -> None:
        """Give it back."""
        if self._map is not None:
            self._map.close()
        os.close(self._file)

    def _mapped(self, size_bytes: int) -> mmap.mmap:
        """A view of at least that much. Where the file has shrunk since, the rest is not touched."""
        if self._map is None or len(self._map) < size_bytes:
            if self._map is not None:
                self._map.close()
            self._map = mmap.mmap(self._file, os.fstat(self._file).st_size)
        return self._map
