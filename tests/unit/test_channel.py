"""Messages between two ends, large ones through memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from infless_watchdog import channel
from infless_watchdog.channel import KEPT_BYTES, LARGE_BYTES, Channel, large, open_pair

FILES = Path("/proc/self/fd")


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    """Both sides, in one process; their descriptors are given back."""
    before = len(list(FILES.iterdir()))
    one, other = open_pair()
    # In one process both sides have the same memory files: each gets its own number for them, as a child would.
    sides = Channel(one), Channel(channel.Ends(other.pipe, os.dup(other.outgoing), os.dup(other.incoming)))
    yield sides
    for side in sides:
        side.close()
    assert len(list(FILES.iterdir())) == before


def test_a_message_arrives_as_it_was(ends: tuple[Channel, Channel]) -> None:
    """Small and large parts in their places, both ways, again and again."""
    one, other = ends
    big, bigger = os.urandom(LARGE_BYTES), os.urandom(3 * LARGE_BYTES + 1)
    for _ in range(3):
        one.send({"a": [large(big), "x", large(b"small"), large(bigger)]})
        assert other.receive() == {"a": [big, "x", b"small", bigger]}
        other.send((large(bigger), None))
        assert one.receive() == (bigger, None)


def test_a_shorter_message_has_nothing_of_the_longer_before(ends: tuple[Channel, Channel]) -> None:
    """The memory is written over, not cleared."""
    one, other = ends
    for count in (5 * LARGE_BYTES, LARGE_BYTES):
        one.send(large(bytes([count % 251]) * count))
        assert other.receive() == bytes([count % 251]) * count


def test_memory_of_a_huge_message_is_given_back(ends: tuple[Channel, Channel]) -> None:
    """With the next one; what usual ones need stays. The memory may grow again."""
    one, other = ends
    for size_bytes, kept_bytes in (
        (LARGE_BYTES, LARGE_BYTES),
        (KEPT_BYTES + 1, 2 * KEPT_BYTES),
        (LARGE_BYTES + 1, 2 * LARGE_BYTES),
        (LARGE_BYTES, 2 * LARGE_BYTES),
        (KEPT_BYTES + 2, 2 * KEPT_BYTES),
        (1, 0),
    ):
        one.send(large(b"x" * size_bytes))
        assert other.receive() == b"x" * size_bytes
        assert os.fstat(one._outgoing._file).st_size == kept_bytes


def test_the_end_of_the_other_side_is_seen(ends: tuple[Channel, Channel]) -> None:
    """By who waits for a message, and by who sends one."""
    one, other = ends
    closing = threading.Timer(0.01, other._pipe.close)
    closing.start()
    with pytest.raises(EOFError):
        one.receive()
    closing.join()
    with pytest.raises(BrokenPipeError):
        one.send(1)
