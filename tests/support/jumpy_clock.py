"""To be some Python's `sitecustomize`: its wall clock is as far off as a file says, its monotonic one is not."""

from __future__ import annotations

import datetime
import os
import time

_time, _time_ns, _datetime = time.time, time.time_ns, datetime.datetime


def _offset_s() -> int:
    try:
        with open(os.environ["CLOCK_OFFSET_FILE"]) as file:  # noqa: PTH123 - nothing else is imported into each Python
            return int(file.read() or 0)
    except (KeyError, FileNotFoundError):
        return 0


class _Moment(_datetime):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> _Moment:
        return super().now(tz) + datetime.timedelta(seconds=_offset_s())


if __name__ == "sitecustomize":
    time.time = lambda: _time() + _offset_s()
    time.time_ns = lambda: _time_ns() + _offset_s() * 10**9
    datetime.datetime = _Moment  # type: ignore[misc]
