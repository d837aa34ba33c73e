"""Time as a value that is passed in: shells take a `Clock`, pure code takes `now_s`."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Two times: monotonic for durations, wall for records that people read."""

    def now_s(self) -> float:
        """Monotonic seconds."""
        ...

    def wall_s(self) -> float:
        """Seconds since the epoch."""
        ...


class SystemClock:
    """The only reader of the operating system's clocks."""

    def now_s(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def wall_s(self) -> float:
        """Seconds since the epoch."""
        return time.time()


class ManualClock:
    """A clock that moves only when told to."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def now_s(self) -> float:
        """Monotonic seconds."""
        return self._now_s

    def wall_s(self) -> float:
        """The same seconds, for tests that need both."""
        return self._now_s

    def advance(self, by_s: float) -> None:
        """Move forward; a clock never goes back."""
        if by_s < 0:
            raise ValueError(f"a clock cannot go back by {-by_s} s")
        self._now_s += by_s
