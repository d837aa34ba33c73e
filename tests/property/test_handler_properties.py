"""What holds for every message between processes and for every measurement of the lock."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from infless_watchdog.channel import LARGE_BYTES, Channel, Ends, large, open_pair
from infless_watchdog.gil import held_share
from infless_watchdog.handler_wire import Failure
from infless_watchdog.isolation import BatchError, ItemError, as_item_error, is_out_of_memory

sizes = st.lists(st.integers(0, 4 * LARGE_BYTES), max_size=6)


@given(st.lists(sizes, min_size=1, max_size=3))
def test_bodies_arrive_whole_and_in_order(messages: list[list[int]]) -> None:
    """Whatever their sizes, and whatever was sent before."""
    one, other = open_pair()
    sender, receiver = Channel(one), Channel(Ends(other.pipe, os.dup(other.outgoing), os.dup(other.incoming)))
    try:
        for counts in messages:
            bodies = [bytes([place % 251]) * count for place, count in enumerate(counts)]
            sender.send([large(body) for body in bodies])
            assert receiver.receive() == bodies
    finally:
        sender.close()
        receiver.close()


moments = st.lists(st.floats(0, 1e6), max_size=50).map(sorted)


@given(moments, st.floats(0, 1e6))
def test_a_share_is_a_share(wakes_s: list[float], unscheduled_s: float) -> None:
    """From 0 to 1; waiting for a processor only ever makes it less."""
    assert 0.0 <= held_share(wakes_s, unscheduled_s) <= held_share(wakes_s) <= 1.0


errors = (
    st.sampled_from([ValueError, KeyError, MemoryError, RuntimeError, UnicodeError])
    | st.just(lambda text: ItemError(415, text))
    | st.just(lambda text: BatchError(503, text))
)


@given(errors, st.text())
def test_a_failure_means_the_same_on_both_sides(kind: type[Exception], text: str) -> None:
    """Status and sentence, whether to bisect, and whether memory was short."""
    error = kind(text)
    there, here = as_item_error(error), Failure.of(error).fault()
    assert (here.status, str(here)) == (there.status, str(there))
    assert isinstance(here, BatchError) == isinstance(error, BatchError)
    assert is_out_of_memory(here) == is_out_of_memory(error)
