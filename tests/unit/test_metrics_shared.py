"""A text that takes long to make: made once for all who wait, new for who comes later, kept where it was slow."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from infless_core.clock import ManualClock
from infless_provider.metrics import SharedText

GENEROUS_S = 60.0
"""Longer than any machine takes to run a thread."""


class Maker:
    """Makes numbered texts; takes as long as it is told, by the clock, and waits for the gate."""

    def __init__(self, clock):
        self.clock, self.made, self.takes_s, self.failure = clock, 0, 0.0, None
        self.gate, self.entered = threading.Event(), threading.Semaphore(0)
        self.gate.set()

    def __call__(self):
        """The next one."""
        self.entered.release()
        assert self.gate.wait(GENEROUS_S), "nobody opened the gate"
        self.clock.advance(self.takes_s)
        if self.failure is not None:
            raise self.failure
        self.made += 1
        return b"%d" % self.made


class ToldClock(ManualClock):
    """Tells when it has been looked at: who asks for a text does so first."""

    def __init__(self):
        super().__init__()
        self.looks = threading.Semaphore(0)

    def now_s(self):
        """As it stands."""
        now_s = super().now_s()
        self.looks.release()
        return now_s


def test_all_who_wait_share_the_next_one():
    """Not the one that was begun before they came: what they know of may be missing there."""
    clock = ToldClock()
    maker = Maker(clock)
    shared = SharedText(maker, clock)
    maker.gate.clear()
    with ThreadPoolExecutor(21) as threads:
        first = threads.submit(shared.get)
        assert maker.entered.acquire(timeout=GENEROUS_S)
        for _ in range(2):  # it came, and it has begun
            clock.looks.acquire()
        clock.advance(0.05)
        others = [threads.submit(shared.get) for _ in range(20)]
        for _ in others:
            assert clock.looks.acquire(timeout=GENEROUS_S)
        maker.gate.set()
        assert first.result() == b"1"
        assert {one.result() for one in others} == {b"2"}
    assert maker.made == 2


def test_a_quick_one_is_new_for_whoever_comes():
    """One after the other: who has just invoked a function finds that in the next text."""
    clock = ManualClock()
    maker = Maker(clock)
    shared = SharedText(maker, clock)
    for expected in (b"1", b"2", b"3"):
        clock.advance(0.001)
        maker.takes_s = 0.05
        assert shared.get() == expected


def test_a_slow_one_is_kept():
    """For a second from its end on: also those who come meanwhile get it."""
    clock = ManualClock()
    maker = Maker(clock)
    shared = SharedText(maker, clock)
    maker.takes_s = 0.25
    assert shared.get() == b"1"
    for by_s in (0.125, 0.75):
        clock.advance(by_s)
        assert shared.get() == b"1"
    clock.advance(0.125)
    maker.takes_s = 0.0
    assert shared.get() == b"2"
    clock.advance(0.001)
    assert shared.get() == b"3"


def test_a_failure_is_not_kept():
    """Who asked is told; the next one has it made anew, and gets no older one."""
    clock = ManualClock()
    maker = Maker(clock)
    shared = SharedText(maker, clock)
    assert shared.get() == b"1"
    clock.advance(1.0)
    maker.failure = TimeoutError("the event loop does not answer")
    with pytest.raises(TimeoutError):
        shared.get()
    maker.failure = None
    assert shared.get() == b"2"
