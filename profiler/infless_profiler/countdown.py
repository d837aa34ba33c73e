"""How long a list of measurements still takes."""

from __future__ import annotations

import time
from collections.abc import Sequence

from infless_core.units import format_duration


class Countdown:
    """What was expected of the rest, scaled by how it went so far."""

    def __init__(self, expected_s: Sequence[float]) -> None:
        self._expected_s = list(expected_s)
        self._begun_s = time.monotonic()
        self.place = 1

    def done(self) -> None:
        """One more has ended."""
        self.place += 1

    def words(self) -> str:
        """`, about 12s left`, once there is something to tell it from."""
        past = self.place - 1
        done_s, all_s = sum(self._expected_s[:past]), sum(self._expected_s)
        if past < 3 or done_s <= 0:
            return ""
        left_s = (time.monotonic() - self._begun_s) * (all_s - done_s) / done_s
        return f", about {format_duration(left_s)} left" if left_s >= 1 else ""
