"""Clocks: the system's goes forward, the manual one only when told."""

import pytest

from infless_core.clock import ManualClock, SystemClock


def test_manual_clock_moves_when_told():
    """Both its times are the same."""
    clock = ManualClock(5)
    clock.advance(2.5)
    assert (clock.now_s(), clock.wall_s()) == (7.5, 7.5)


def test_no_clock_goes_back():
    """A negative step is a mistake of the caller's."""
    with pytest.raises(ValueError, match="cannot go back"):
        ManualClock().advance(-1)


def test_system_clock():
    """Monotonic seconds do not fall, wall seconds are since the epoch."""
    clock = SystemClock()
    first_s = clock.now_s()
    assert clock.now_s() >= first_s
    assert clock.wall_s() > 1.7e9
