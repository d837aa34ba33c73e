"""Clocks that a test puts forward: with limits of minutes, a machine that pauses for a second changes nothing."""

from __future__ import annotations

import asyncio
from typing import Any


class HurriedLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock goes on as ever, and jumps when `forward` is awaited on it."""

    ahead_s = 0.0

    def time(self) -> float:
        """As all timers of this loop see it."""
        return super().time() + self.ahead_s


async def forward(seconds: float) -> None:
    """Put the running `HurriedLoop` forward; returns when the timers that are due then have run."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, HurriedLoop)
    loop.ahead_s += seconds
    await asyncio.sleep(0.001)  # due after all of them


class HurriedView:
    """Another event loop, in whose place it may stand for one object: for those that own their clock (uvloop)."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.ahead_s = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def time(self) -> float:
        """As the object sees it; timers run by the loop's own clock."""
        return self._loop.time() + self.ahead_s
