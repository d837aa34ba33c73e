"""The shell around the policy: one queue, one model, one batch at a time; the next forms while one runs."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import Any

from infless_watchdog.batching import BatchPolicy, ExecutionTimes, Flush, WaitUntil, decide
from infless_watchdog.isolation import ItemError, run_isolated
from infless_watchdog.metrics import Metrics

LOG = logging.getLogger("infless.watchdog")
_Run = tuple[list[Any], float | None]
"""Answers of a batch, and how long it took; None when it had to be split, which says nothing of its size."""


class Ticket:
    """One request's place in the queue."""

    __slots__ = ("arrived_s", "deliver", "item", "live")

    def __init__(self, item: Any, arrived_s: float, deliver: Callable[[Any], None]) -> None:
        self.item = item
        self.arrived_s = arrived_s
        self.deliver = deliver
        self.live = True
        """False once the client has left: the item is not run, or its answer goes nowhere. Nobody else notices."""


class Batcher:
    """Executes what `batching.decide` says. All methods run on the event loop; the model runs in a thread."""

    RATE_WINDOW_S = 1.0
    """Arrivals of about the last second: a few batches' worth at any rate where batching matters."""
    SLEEP_MAX_S = 600.0
    """Longest timer: event loops refuse absurd ones, and asking the policy again costs nothing."""

    def __init__(
        self,
        predict: Callable[[list[Any]], Any],
        policy: BatchPolicy,
        metrics: Metrics,
        *,
        exec_timeout_s: float,
        on_hang: Callable[[], None],
    ) -> None:
        self.policy = policy
        self.times = ExecutionTimes()
        self.draining = False
        self._predict = predict
        self._metrics = metrics
        self._exec_timeout_s = exec_timeout_s
        self._on_hang = on_hang
        self._queue: deque[Ticket] = deque()
        self._running: list[Ticket] = []
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_s = 0.0
        self._rate_rps = 0.0
        self._rate_at_s = 0.0
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    def reconfigure(self, *, batch_max: int, latency_target_s: float) -> None:
        """Apply the provider's newest configuration; what waits is judged by it at once."""
        self.policy = replace(self.policy, batch_max=batch_max, latency_target_s=latency_target_s)
        self._metrics.batch_max.set(batch_max)
        self._step()

    def submit(self, item: Any, deliver: Callable[[Any], None]) -> Ticket:
        """Queue one item; `deliver(answer or ItemError)` is called once, on the event loop."""
        now_s = time.monotonic()
        ticket = Ticket(item, now_s, deliver)
        self._queue.append(ticket)
        self._count_arrival(now_s)
        self._step()
        return ticket

    def _count_arrival(self, now_s: float) -> None:
        """An exponentially fading count of arrivals: rate without a timer."""
        fade = max(0.0, 1.0 - (now_s - self._rate_at_s) / self.RATE_WINDOW_S)
        self._rate_rps = self._rate_rps * fade + 1.0 / self.RATE_WINDOW_S
        self._rate_at_s = now_s

    def _step(self) -> None:
        """Ask the policy and do what it says."""
        if self._running:
            return
        self._drop_dead()
        if self.draining and self._queue:
            self._start(min(len(self._queue), self.policy.batch_max))
            return
        target_s = self.policy.latency_target_s
        deadlines_s = [ticket.arrived_s + target_s for ticket in islice(self._queue, self.policy.batch_max)]
        answer = decide(deadlines_s, time.monotonic(), self._rate_rps, self.times, self.policy)
        match answer:
            case Flush(count):
                self._start(count)
            case WaitUntil(at_s):
                self._wake_at(at_s)
            case None:
                pass

    def _drop_dead(self) -> None:
        """Take out clients that left, and answer 504 where no answer can come in time any more."""
        overdue_s = time.monotonic() - self._exec_timeout_s
        kept: deque[Ticket] = deque()
        for ticket in self._queue:
            if not ticket.live:
                continue
            if ticket.arrived_s <= overdue_s:
                self._deliver(ticket, ItemError(504, f"no answer within exec_timeout, {self._exec_timeout_s:g} s"))
            else:
                kept.append(ticket)
        self._queue = kept
        self._metrics.queue_length.set(len(kept))

    def _wake_at(self, at_s: float) -> None:
        if self._timer is not None:
            if self._timer_at_s == at_s:
                return
            self._timer.cancel()
        wait_s = min(max(0.0, at_s - time.monotonic()), self.SLEEP_MAX_S)
        self._timer = asyncio.get_running_loop().call_later(wait_s, self._woken)
        self._timer_at_s = at_s

    def _woken(self) -> None:
        self._timer = None
        self._step()

    def _start(self, count: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._running = [self._queue.popleft() for _ in range(count)]
        now_s = time.monotonic()
        for ticket in self._running:
            self._metrics.wait.observe(now_s - ticket.arrived_s)
        self._metrics.queue_length.set(len(self._queue))
        loop = asyncio.get_running_loop()
        items = [ticket.item for ticket in self._running]
        watch = None if math.isinf(self._exec_timeout_s) else loop.call_later(self._exec_timeout_s, self._hung)
        done = loop.run_in_executor(self._executor, _timed, self._predict, items)
        done.add_done_callback(lambda future: self._finished(future, watch))

    def _finished(self, future: asyncio.Future[_Run], watch: asyncio.TimerHandle | None) -> None:
        if watch is not None:
            watch.cancel()
        batch, self._running = self._running, []
        if future.cancelled() or not batch:
            return
        answers, exec_s = future.result()
        self._metrics.batch_size.observe(len(batch))
        if exec_s is not None:
            self.times.observe(len(batch), exec_s)
            self._metrics.executed(len(batch), exec_s)
        # The model's core is free: let it have the next batch before the answers are written.
        self._step()
        for ticket, answer in zip(batch, answers, strict=True):
            self._deliver(ticket, answer)

    def _deliver(self, ticket: Ticket, answer: Any) -> None:
        if isinstance(answer, ItemError):
            self._metrics.failed_items.inc()
        if ticket.live:
            ticket.live = False
            try:
                ticket.deliver(answer)
            except Exception:  # the others of this batch still get theirs
                LOG.exception("an answer could not be delivered")

    def _hung(self) -> None:
        """The handler does not come back. Its thread cannot be stopped, so the process must be replaced."""
        stuck = ItemError(504, f"the handler did not answer within exec_timeout, {self._exec_timeout_s:g} s")
        lost = ItemError(503, "the instance is being replaced because its handler hangs; try again")
        batch, self._running = self._running, []
        waiting, self._queue = list(self._queue), deque()
        for ticket in batch:
            self._deliver(ticket, stuck)
        for ticket in waiting:
            self._deliver(ticket, lost)
        self._on_hang()

    def drain(self) -> None:
        """From now on run what waits, in full batches and without waiting for more."""
        self.draining = True
        self._step()

    def close(self) -> None:
        """Give the thread back; a running batch is not waited for."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def _timed(predict: Callable[[list[Any]], Any], items: list[Any]) -> _Run:
    runs = 0

    def counted(batch: list[Any]) -> Any:
        nonlocal runs
        runs += 1
        return predict(batch)

    started_s = time.perf_counter()
    answers = run_isolated(counted, items)
    return answers, time.perf_counter() - started_s if runs == 1 else None
