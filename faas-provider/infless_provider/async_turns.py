"""Whose turn it is: groups (functions, hosts) take turns, so that the flood of one does not starve another."""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from itertools import count
from typing import Any, Generic, TypeVar

from infless_core.clock import Clock

LOG = logging.getLogger("infless.async")
Item = TypeVar("Item")


class Turns(Generic[Item]):
    """Items by group: at most so many run in all and of one group; groups with work that may run go round.

    It does nothing by itself: times are arguments.
    """

    def __init__(self, running_max: int, running_per_group_max: int) -> None:
        self._running_max = running_max
        self._per_group_max = running_per_group_max
        self._ready: dict[str, deque[Item]] = {}
        self._rotation: deque[str] = deque()
        """Groups with a ready item and room to run it, each once."""
        self._running: dict[str, int] = {}
        self._later: list[tuple[float, int, str, Item]] = []
        self._numbers = count()
        self.running = 0

    def add(self, item: Item, group: str, due_s: float) -> None:
        """Let an item run from `due_s` on."""
        heapq.heappush(self._later, (due_s, next(self._numbers), group, item))

    def take(self, now_s: float) -> tuple[Item, str] | None:
        """The item whose turn it is, which runs from now on; None when there is none, or no room."""
        while self._later and self._later[0][0] <= now_s:
            _, _, group, item = heapq.heappop(self._later)
            waiting = self._ready.setdefault(group, deque())
            waiting.append(item)
            if len(waiting) == 1 and self._running.get(group, 0) < self._per_group_max:
                self._rotation.append(group)
        if self.running >= self._running_max or not self._rotation:
            return None
        group = self._rotation.popleft()
        item = self._ready[group].popleft()
        self._running[group] = self._running.get(group, 0) + 1
        self.running += 1
        if not self._ready[group]:
            del self._ready[group]
        elif self._running[group] < self._per_group_max:
            self._rotation.append(group)
        return item, group

    def done(self, group: str) -> None:
        """An item of a group has ended."""
        was_full = self._running[group] >= self._per_group_max
        self.running -= 1
        self._running[group] -= 1
        if not self._running[group]:
            del self._running[group]
        if was_full and group in self._ready:
            self._rotation.append(group)

    def next_due_s(self) -> float | None:
        """When the next item becomes ready; None when all are."""
        return self._later[0][0] if self._later else None


class Lane(Generic[Item]):
    """Runs items in turns as tasks of the event loop.

    Args:
        turns: the order.
        run: what is done with an item; it raises nothing, and adds the item again if that is to run again.
        clock: due times are its monotonic ones.
    """

    def __init__(self, turns: Turns[Item], run: Callable[[Item], Coroutine[Any, Any, None]], clock: Clock) -> None:
        self._turns = turns
        self._run = run
        self._clock = clock
        self._tasks: dict[asyncio.Task[None], str] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._open = False

    @property
    def running(self) -> int:
        """Items that run."""
        return self._turns.running

    def start(self) -> None:
        """Run what is due."""
        self._open = True
        self._pump()

    def add(self, item: Item, group: str, after_s: float = 0.0) -> None:
        """Let an item run in `after_s`."""
        self._turns.add(item, group, self._clock.now_s() + after_s)
        if self._open:
            self._pump()

    def _pump(self) -> None:
        """Start all whose turn it is, and look again when the next is due."""
        now_s = self._clock.now_s()
        while self._open and (taken := self._turns.take(now_s)) is not None:
            item, group = taken
            task = asyncio.ensure_future(self._run(item))
            self._tasks[task] = group
            task.add_done_callback(self._ended)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due_s = self._turns.next_due_s()
        if self._open and due_s is not None and due_s > now_s:
            self._timer = asyncio.get_running_loop().call_later(due_s - now_s, self._pump)

    def _ended(self, task: asyncio.Task[None]) -> None:
        group = self._tasks.pop(task)
        self._turns.done(group)
        if not task.cancelled() and (fault := task.exception()) is not None:
            LOG.error("an asynchronous call of %s is stuck until the next start", group, exc_info=fault)
        self._pump()

    def stop(self) -> None:
        """Start nothing more; what runs goes on."""
        self._open = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def finish(self, grace_s: float) -> None:
        """Wait for what runs; after `grace_s` it is cancelled."""
        self.stop()
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=grace_s)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
