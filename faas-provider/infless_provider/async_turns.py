"""Whose turn it is: functions take turns, and so do the hosts of one: a flood starves nobody."""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Coroutine
from itertools import count
from typing import Any, Generic, TypeVar

from infless_core.clock import Clock

LOG = logging.getLogger("infless.async")
Item = TypeVar("Item")


class Turns(Generic[Item]):
    """Items of functions, for hosts: at most so many run in all, of one function and for one host.

    It does nothing by itself: times are arguments. The look for the next item passes over what is at its limit: at most
    `running_max / running_per_host_max` hosts of a function, as each of these runs so many, however many more wait.

    Args:
        running_max: in all.
        running_per_function_max: of one function, whatever its hosts.
        running_per_host_max: for one host, whatever the functions.
        claim: takes what an item needs beside its turn; False, with nothing taken, while that is not there.
    """

    def __init__(
        self,
        running_max: int,
        running_per_function_max: int,
        running_per_host_max: int,
        claim: Callable[[Item], bool] = lambda _: True,
    ) -> None:
        self._running_max = running_max
        self._per_function_max = running_per_function_max
        self._per_host_max = running_per_host_max
        self._claim = claim
        self._ready: OrderedDict[str, OrderedDict[str, deque[Item]]] = OrderedDict()
        """By function and host; who had the last turn is last. No deque is empty."""
        self._of_function: Counter[str] = Counter()
        self._for_host: Counter[str] = Counter()
        self._later: list[tuple[float, int, str, str, Item]] = []
        self._numbers = count()
        self.running = 0

    def add(self, item: Item, function: str, host: str, due_s: float) -> None:
        """Let an item run from `due_s` on."""
        heapq.heappush(self._later, (due_s, next(self._numbers), function, host, item))

    def take(self, now_s: float) -> tuple[Item, str, str] | None:
        """Whose turn it is, which runs from now on: an item, its function and host; None when none is, or may."""
        while self._later and self._later[0][0] <= now_s:
            _, _, function, host, item = heapq.heappop(self._later)
            self._ready.setdefault(function, OrderedDict()).setdefault(host, deque()).append(item)
        if self.running >= self._running_max:
            return None
        for function, hosts in self._ready.items():
            if self._of_function[function] < self._per_function_max:
                for host, items in hosts.items():
                    if self._for_host[host] < self._per_host_max and self._claim(items[0]):
                        return self._begin(function, host), function, host
        return None

    def _begin(self, function: str, host: str) -> Item:
        hosts = self._ready[function]
        item = hosts[host].popleft()
        hosts.move_to_end(host)
        self._ready.move_to_end(function)
        if not hosts[host]:
            del hosts[host]
        if not hosts:
            del self._ready[function]
        self._of_function[function] += 1
        self._for_host[host] += 1
        self.running += 1
        return item

    def done(self, function: str, host: str) -> None:
        """An item of a function, for a host, has ended."""
        self.running -= 1
        for counter, key in ((self._of_function, function), (self._for_host, host)):
            counter[key] -= 1
            if not counter[key]:
                del counter[key]

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
        self._tasks: dict[asyncio.Task[None], tuple[str, str]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._open = False

    @property
    def running(self) -> int:
        """Items that run."""
        return self._turns.running

    def start(self) -> None:
        """Run what is due."""
        self._open = True
        self.pump()

    def add(self, item: Item, function: str, host: str, after_s: float = 0.0) -> None:
        """Let an item run in `after_s`."""
        self._turns.add(item, function, host, self._clock.now_s() + after_s)
        self.pump()

    def pump(self) -> None:
        """Start all whose turn it is, and look again when the next is due. To be called when there is more to claim."""
        now_s = self._clock.now_s()
        while self._open and (taken := self._turns.take(now_s)) is not None:
            item, function, host = taken
            task = asyncio.ensure_future(self._run(item))
            self._tasks[task] = (function, host)
            task.add_done_callback(self._ended)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due_s = self._turns.next_due_s()
        if self._open and due_s is not None and due_s > now_s:
            self._timer = asyncio.get_running_loop().call_later(due_s - now_s, self.pump)

    def _ended(self, task: asyncio.Task[None]) -> None:
        function, host = self._tasks.pop(task)
        self._turns.done(function, host)
        if not task.cancelled() and (fault := task.exception()) is not None:
            LOG.error("an asynchronous call of %s is stuck until the next start", function, exc_info=fault)
        self.pump()

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
