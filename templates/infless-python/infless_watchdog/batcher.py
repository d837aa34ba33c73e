"""The shell around the policy: queues by bucket, runs, timers. Decides nothing itself; its methods run on the loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import sys
import time
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from infless_watchdog.batching import BatchPolicy, Flush, WaitUntil, decide
from infless_watchdog.calls import Call, Model
from infless_watchdog.isolation import ItemError, Run, run_isolated
from infless_watchdog.metrics import Metrics
from infless_watchdog.queues import Queue

LOG = logging.getLogger("infless.watchdog")


class Batcher:
    """Executes what `batching.decide` says."""

    TICK_S = 0.001
    """Shortest timer: the loop's clock has milliseconds, and less than one would be asked again and again."""
    SLEEP_MAX_S = 600.0
    """Longest timer: event loops refuse absurd ones, and asking the policy again costs nothing."""
    BRIEF_S = 200e-6
    """A shorter run takes the loop's own thread, where the model allows it. To hand a batch to a thread and take the
    answers back costs 50 to 100 us, and a few times that is not felt by who waits for the loop."""
    BRIEF_LOAD = 0.25
    """Of the loop's time, the most that brief runs are to take with all that belongs to them; batches grow above it. A
    wait of a millisecond is nothing to a latency target, and a loop that is mostly idle bears a burst."""
    BRIEF_LEARNED = 8
    """Of so many brief runs one is learned from: there are thousands a second, and learning is a part of their cost."""
    BUCKETS_MAX = 64
    """Buckets whose execution times are remembered while nobody waits in them."""

    def __init__(
        self,
        model: Model,
        policy: BatchPolicy,
        metrics: Metrics,
        answer: Callable[[Call, Any], None],
        *,
        exec_timeout_s: float,
        on_hang: Callable[[], None],
    ) -> None:
        self.policy = self._brief_policy = policy
        self.waiting = 0
        """Requests in all queues."""
        self._model = model
        self._metrics = metrics
        self._answer = answer
        self._exec_timeout_s = exec_timeout_s
        self._on_hang = on_hang
        self._queues: dict[Hashable, Queue] = {}
        self._fits = sys.maxsize
        """The largest batch that memory has room for, once there was none for one."""
        self._free = model.concurrency
        self._runs: dict[int, list[Call]] = {}
        self._started = 0
        self._brief_runs = 0
        self._turn_cpu_s = 0.0
        self._turn_queue: Queue | None = None
        self._changing = asyncio.Lock()
        self._asked = False
        self._wanted = 1
        """Requests that must wait before it is of use to ask the policy."""
        self._abandoned = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_s = 0.0
        self._expiry: asyncio.TimerHandle | None = None
        self._executor = ThreadPoolExecutor(max_workers=model.concurrency, thread_name_prefix="model")

    def learn(self, bucket: Hashable, size: int, run: Run) -> None:
        """What a run tells of the next ones of its bucket."""
        self._learn(self._queue(bucket), size, run)

    def reconfigure(self, policy: BatchPolicy) -> None:
        """Apply a new configuration; what waits is judged by it at once."""
        self._apply(policy)
        self._ask()

    def _apply(self, policy: BatchPolicy) -> None:
        """Within what has been found out: what fits into memory, and whether the model can batch at all."""
        batch_max = min(policy.batch_max, self._fits) if self._model.batched else 1
        self.policy = replace(policy, batch_max=batch_max)
        self._brief_policy = replace(self.policy, keep_up_load=min(policy.keep_up_load, self.BRIEF_LOAD))
        self._metrics.batch_max = batch_max

    def drain(self) -> None:
        """From now on run what waits, in full batches and without waiting for more."""
        self.reconfigure(replace(self.policy, wait_max_s=0.0))

    async def between_runs(self, change: Callable[[], None]) -> None:
        """Run `change` in the model's thread while no batch does; requests wait meanwhile."""
        loop, limit_s = asyncio.get_running_loop(), self._exec_timeout_s
        async with self._changing:
            while self._runs:
                await asyncio.sleep(0.001)
            watch = None if math.isinf(limit_s) else loop.call_later(limit_s, self._on_hang)
            try:
                fault = await loop.run_in_executor(self._executor, _fault_of, change)
            finally:
                if watch is not None:
                    watch.cancel()
                loop.call_soon(self._ask)
        if fault is not None:
            raise fault

    def submit(self, call: Call, bucket: Hashable) -> None:
        """Queue an item; `answer(call, answer or ItemError)` follows once, on the loop, unless it is withdrawn."""
        queue = self._queues.get(bucket)
        if queue is None:
            queue = self._queue(bucket)
        queue.append(call)
        self.waiting += 1
        if self.waiting >= self._wanted and self._free and not self._asked:
            self._ask()
        if self._expiry is None:
            self._expire()

    def forget_withdrawn(self) -> None:
        """A client left: its item is not run, or its answer goes nowhere. Its batch-mates never notice."""
        self._abandoned = True

    def close(self) -> None:
        """Give threads and timers back; a running batch is not waited for."""
        for timer in (self._timer, self._expiry):
            if timer is not None:
                timer.cancel()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _queue(self, bucket: Hashable) -> Queue:
        queue = self._queues.get(bucket)
        if queue is None:
            if len(self._queues) >= self.BUCKETS_MAX:
                idle = [name for name, other in self._queues.items() if not len(other)]
                for name in idle[: len(idle) // 2 + 1]:
                    del self._queues[name]
            queue = self._queues[bucket] = Queue()
            self._wanted = 1  # what is known of one bucket's wait says nothing of another's
        return queue

    # the policy ------------------------------------------------------------------------------------------------------

    def _ask(self) -> None:
        """Ask the policy, once all that the sockets had to say in this turn of the loop is in."""
        if not self._asked:
            self._asked = True
            asyncio.get_running_loop().call_soon(self._step)

    def _step(self) -> None:
        """Ask the policy and do what it says."""
        self._asked = False
        self._wanted = 1
        if self._abandoned:
            self._abandoned = False
            self._remove(lambda call: not call.live)
        while self._free and self.waiting and not self._changing.locked():
            chosen = self._most_urgent()
            if isinstance(chosen, WaitUntil):
                self._wake_at(chosen.at_s)
                # With several buckets nobody can say which one the next request fills.
                self._wanted = chosen.size if len(self._queues) == 1 else 1
                return
            self._start(*chosen)

    def _wake_at(self, at_s: float) -> None:
        """Ask again then; or earlier, when there is a timer for that: to let it run costs less than a new one."""
        if self._timer is not None:
            if self._timer_at_s <= at_s:
                return
            self._timer.cancel()
        wait_s = min(max(self.TICK_S, at_s - time.monotonic()), self.SLEEP_MAX_S)
        self._timer = asyncio.get_running_loop().call_later(wait_s, self._woken)
        self._timer_at_s = at_s

    def _woken(self) -> None:
        self._timer = None
        self._step()

    def _most_urgent(self) -> tuple[Queue, Flush] | WaitUntil:
        """Of the queues that may run, the one with the oldest punctual request; or when to ask again."""
        now_s = time.monotonic()
        chosen: tuple[Queue, Flush] | None = None
        chosen_s, wake = math.inf, WaitUntil(math.inf)
        for queue in self._queues.values():
            if not len(queue):
                continue
            rate_rps, policy = queue.count_rate(now_s), self._brief_policy if queue.brief else self.policy
            answer = decide(queue.arrivals_s, len(queue.late), now_s, rate_rps, queue.times, policy)
            if isinstance(answer, WaitUntil):
                wake = answer if answer.at_s < wake.at_s else wake
            elif answer is not None:
                oldest_s = queue.arrivals_s[answer.skip] if answer.count else now_s
                if chosen is None or oldest_s < chosen_s:
                    chosen, chosen_s = (queue, answer), oldest_s
        return wake if chosen is None else chosen

    # runs ------------------------------------------------------------------------------------------------------------

    def _start(self, queue: Queue, flush: Flush) -> None:
        calls = queue.take(flush)
        self.waiting -= len(calls)
        self._metrics.started(calls, time.monotonic())
        items = [call.item for call in calls]
        if queue.brief:
            self._run_here(queue, calls, items)
            return
        self._free -= 1
        self._started += 1
        number, loop = self._started, asyncio.get_running_loop()
        self._runs[number] = calls
        watch = None
        if not math.isinf(self._exec_timeout_s):
            watch = loop.call_later(self._exec_timeout_s, self._hung, number)

        def finished(run: Run) -> None:
            if watch is not None:
                watch.cancel()
            if self._runs.pop(number, None) is not None:
                self._free += 1
                # The model is free: let it have the next batch before the answers are written.
                self._metrics.ran(len(calls), run.exec_s)
                self._learn(queue, len(calls), run)
                self._step()
                self._deliver(calls, run.answers)

        def work() -> None:
            run = run_isolated(self._model.predict, items)
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(finished, run)

        self._executor.submit(work)

    def _run_here(self, queue: Queue, calls: list[Call], items: list[Any]) -> None:
        """A brief run, on the loop.

        Reading requests and writing answers then costs more than the run between them, and all of it keeps the next
        batch waiting: what the process does from the end of one run to the end of the next is what a batch takes.
        """
        run = run_isolated(self._model.predict, items)
        self._metrics.ran(len(calls), run.exec_s)
        self._deliver(calls, run.answers)
        self._brief_runs += 1
        turn = self._brief_runs % self.BRIEF_LEARNED
        if turn == 0:
            self._turn_cpu_s, self._turn_queue = time.process_time(), queue
        elif turn == 1 and queue is self._turn_queue:
            run.exec_s = run.exec_s and time.process_time() - self._turn_cpu_s
            self._learn(queue, len(calls), run)

    def _learn(self, queue: Queue, size: int, run: Run) -> None:
        if run.exec_s is not None:
            queue.times.observe(size, run.exec_s)
            queue.cpu_times.observe(size, run.cpu_s)
            # On a GPU the thread only waits, which costs it no time, and would the loop.
            here = self._model.brief and self._model.device == "cpu"
            queue.brief = here and queue.cpu_times.estimate_s(self.policy.batch_max) < self.BRIEF_S
        if run.fits is not None and run.fits < self._fits:
            LOG.warning("a batch of %d does not fit into memory; from now on at most %d", size, run.fits)
            self._fits = run.fits
            self._apply(self.policy)
        elif not self._model.batched and self.policy.batch_max > 1:
            self._apply(self.policy)

    def _deliver(self, calls: list[Call], answers: list[Any]) -> None:
        for call, answer in zip(calls, answers, strict=True):
            if call.live:
                try:
                    self._answer(call, answer)
                except Exception:  # the others of this batch still get theirs
                    LOG.exception("an answer could not be delivered")

    # what takes too long ---------------------------------------------------------------------------------------------

    def _expire(self) -> None:
        """Answer 504 where no answer came in time, a few times in each `exec_timeout`; rest while nobody waits."""
        self._expiry = None
        if not self.waiting or math.isinf(self._exec_timeout_s):
            return
        overdue_s = time.monotonic() - self._exec_timeout_s
        fault = ItemError(504, f"no answer within exec_timeout, {self._exec_timeout_s:g} s")
        overdue = self._remove(lambda call: call.arrived_s <= overdue_s)
        self._deliver(overdue, [fault] * len(overdue))
        period_s = min(1.0, self._exec_timeout_s / 8)
        self._expiry = asyncio.get_running_loop().call_later(period_s, self._expire)

    def _remove(self, gone: Callable[[Call], bool]) -> list[Call]:
        removed = [call for queue in self._queues.values() for call in queue.remove(gone)]
        self.waiting -= len(removed)
        return removed

    def _hung(self, number: int) -> None:
        """The handler does not come back. A process of its own is ended; a thread only ends with the whole worker."""
        if self._model.interrupt is not None:
            self._model.interrupt()
            return
        calls = self._runs.pop(number, [])
        stuck = ItemError(504, f"the handler did not answer within exec_timeout, {self._exec_timeout_s:g} s")
        self._deliver(calls, [stuck] * len(calls))
        waiting = self._remove(lambda _: True)
        lost = ItemError(503, "the instance is being replaced because its handler hangs; try again")
        self._deliver(waiting, [lost] * len(waiting))
        self._on_hang()


def _fault_of(work: Callable[[], None]) -> Exception | None:
    """What it raised, as a value: Python 3.11 cannot carry a StopIteration through a future."""
    try:
        work()
    except Exception as error:  # noqa: BLE001 - raised again by who waits
        return RuntimeError(f"{type(error).__name__}: {error}") if isinstance(error, StopIteration) else error
    return None
