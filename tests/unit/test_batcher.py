"""The shell around the policy: queue, model thread, timers. Real event loops, models of a few milliseconds."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hurried_clock import HurriedLoop, forward

from infless_watchdog.batcher import Batcher
from infless_watchdog.batching import BatchPolicy
from infless_watchdog.calls import Call, Head
from infless_watchdog.isolation import ItemError, Run
from infless_watchdog.metrics import Metrics
from infless_watchdog.queues import Queue


class Plain:
    """A model under the test's control."""

    kind, batched, concurrency, brief, device = "plain", True, 1, False, "cpu"
    prepare = finish = interrupt = None

    def __init__(self, predict: Callable[[list[Any]], Any]) -> None:
        self.predict = predict


class Bench:
    """A batcher with a model under the test's control."""

    def __init__(
        self, predict: Callable[[list[Any]], Any], exec_timeout_s: float, policy: BatchPolicy, **model: Any
    ) -> None:
        self.sizes: list[int] = []
        self.answers: dict[Any, Any] = {}
        self.hangs = 0
        self.gate = threading.Event()
        self.gate.set()
        self.threads: set[str] = set()
        self.metrics = Metrics()
        self._predict = predict
        made: Any = Plain(self._counted)
        for name, value in model.items():
            setattr(made, name, value)
        self.batcher = Batcher(
            made, policy, self.metrics, self._answer, exec_timeout_s=exec_timeout_s, on_hang=self._hung
        )

    def _counted(self, items: list[Any]) -> Any:
        assert self.gate.wait(30)
        self.threads.add(threading.current_thread().name)
        self.sizes.append(len(items))
        return self._predict(items)

    def _answer(self, call: Call, answer: Any) -> None:
        call.live = False
        if call.item == "undeliverable":
            raise ZeroDivisionError("no way")
        self.answers[call.item] = answer

    def _hung(self) -> None:
        self.hangs += 1

    def submit(self, item: Any, bucket: Any = None, waited_s: float = 0.0) -> Call:
        """Queue an item whose answer is kept under its name."""
        call = Call(Head())
        call.item, call.arrived_s, call.live = item, time.monotonic() - waited_s, True
        call.withdrawn = lambda _: self.batcher.forget_withdrawn()
        self.batcher.submit(call, bucket)
        return call

    async def until(self, count: int) -> None:
        """Wait for that many answers."""
        async with asyncio.timeout(30):
            while len(self.answers) < count:
                await asyncio.sleep(0.001)


def bench(
    scenario: Callable[[Bench], Coroutine[Any, Any, None]],
    predict: Callable[[list[Any]], Any] = lambda items: [item * 2 for item in items],
    *,
    exec_timeout_s: float = 30.0,
    batch_max: int = 4,
    latency_target_s: float = 10.0,
    keep_up_load: float = 0.5,
    **model: Any,
) -> Bench:
    """Run a scenario; returns what came of it."""
    policy = BatchPolicy(batch_max=batch_max, latency_target_s=latency_target_s, keep_up_load=keep_up_load)
    made = Bench(predict, exec_timeout_s, policy, **model)

    async def run() -> None:
        await scenario(made)
        made.gate.set()
        made.batcher.close()

    with asyncio.Runner(loop_factory=HurriedLoop) as runner:
        runner.run(run())
    return made


async def held(made: Bench, items: list[Any]) -> list[Call]:
    """Submit while the model is busy with one item called 0."""
    made.gate.clear()
    made.submit(0)
    await asyncio.sleep(0.005)
    return [made.submit(item) for item in items]


def test_what_comes_while_the_model_runs_forms_the_next_batches() -> None:
    """One runs alone, then the waiting ones by `batch_max`; everybody gets the own answer."""

    async def scenario(made: Bench) -> None:
        await held(made, [1, 2, 3, 4, 5, 6])
        made.gate.set()
        await made.until(7)

    made = bench(scenario)
    assert made.sizes == [1, 4, 2]
    assert made.answers == {n: 2 * n for n in range(7)}


def test_a_full_batch_does_not_wait_for_its_timer() -> None:
    """Nothing is known of the load but that the policy waits; the fourth request ends that."""

    async def scenario(made: Bench) -> None:
        made.batcher.learn(None, 4, Run([], 0.001))
        for item in (1, 2, 3, 4):
            made.submit(item)
        await made.until(4)

    assert bench(scenario, keep_up_load=0.0).sizes == [4]


def test_a_lone_request_waits_only_for_its_slack() -> None:
    """With nobody else coming it is answered within its target all the same."""

    async def scenario(made: Bench) -> None:
        made.batcher.learn(None, 4, Run([], 0.001))
        made.submit(1)
        await made.until(1)

    assert bench(scenario, keep_up_load=0.0, latency_target_s=0.05).sizes == [1]


def test_a_shorter_target_counts_for_those_that_wait_already() -> None:
    """They were queued under ten seconds; the new target ends their wait."""

    async def scenario(made: Bench) -> None:
        made.batcher.learn(None, 4, Run([], 0.001))
        made.submit(1)
        made.submit(2)
        await asyncio.sleep(0.01)
        assert not made.sizes
        made.batcher.reconfigure(BatchPolicy(batch_max=4, latency_target_s=0.02, keep_up_load=0.0))
        await made.until(2)

    assert bench(scenario, keep_up_load=0.0).sizes == [2]


def test_who_leaves_the_queue_is_not_run() -> None:
    """Its place goes to the next; its batch-mates never notice."""

    async def scenario(made: Bench) -> None:
        calls = await held(made, [1, 2, 3])
        calls[1].withdraw()
        made.gate.set()
        await made.until(3)

    made = bench(scenario)
    assert made.sizes == [1, 2]
    assert set(made.answers) == {0, 1, 3}


def test_who_leaves_during_the_run_gets_nothing() -> None:
    """The answer is made and dropped."""

    async def scenario(made: Bench) -> None:
        made.gate.clear()
        call = made.submit(1)
        await asyncio.sleep(0.005)
        call.withdraw()
        made.submit(2)
        made.gate.set()
        await made.until(1)

    assert bench(scenario).answers == {2: 4}


def test_a_bad_item_fails_alone() -> None:
    """Its batch is split until it stands alone."""

    async def scenario(made: Bench) -> None:
        await held(made, [1, "x", 3])
        made.gate.set()
        await made.until(4)

    made = bench(scenario, lambda items: [10 // int(item + 1) for item in items])
    assert isinstance(made.answers["x"], ItemError)
    assert [made.answers[n] for n in (0, 1, 3)] == [10, 5, 2]


def test_a_split_batch_teaches_no_execution_time() -> None:
    """Its seven runs say nothing about what a batch of four takes."""

    async def scenario(made: Bench) -> None:
        await held(made, [1, "x", 3, 4])
        made.gate.set()
        await made.until(5)
        assert made.batcher._queue(None).times.estimate_s(4) == made.batcher._queue(None).times.estimate_s(1) * 4

    bench(scenario, lambda items: [10 // int(item + 1) for item in items])


def test_an_answer_that_cannot_be_delivered_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """The others of the batch get theirs, and the log has the reason."""

    async def scenario(made: Bench) -> None:
        await held(made, [])
        made.submit("undeliverable")
        made.submit(2)
        made.gate.set()
        await made.until(2)

    assert bench(scenario).answers == {0: 0, 2: 4}
    assert "ZeroDivisionError" in caplog.text


def test_a_handler_that_exits_ends_its_request_only() -> None:
    """`sys.exit()` in a handler is that request's fault, not the instance's end."""

    async def scenario(made: Bench) -> None:
        made.submit(1)
        await made.until(1)
        made.submit(2)
        await made.until(2)

    def leave(items: list[int]) -> list[int]:
        raise SystemExit(7)

    answers = bench(scenario, leave).answers
    assert {answer.status for answer in answers.values()} == {500}


def test_a_hanging_handler_is_given_up() -> None:
    """Its batch gets 504, who waits gets 503, and somebody is told to replace the process."""

    async def scenario(made: Bench) -> None:
        await held(made, [])
        for item in (1, 2):
            made.submit(item, waited_s=-30.0)  # not overdue themselves
        await made.until(3)

    made = bench(scenario, exec_timeout_s=0.02)
    assert made.hangs == 1
    assert {item: answer.status for item, answer in made.answers.items()} == {0: 504, 1: 503, 2: 503}


def test_who_waited_longer_than_exec_timeout_is_not_run() -> None:
    """Nobody waits for that answer any more; the model is for the others."""

    async def scenario(made: Bench) -> None:
        await held(made, [])
        made.submit(1, waited_s=60.0)
        made.submit(2)
        await forward(1.0)
        await made.until(1)
        made.gate.set()
        await made.until(3)

    made = bench(scenario)
    assert made.answers[1].status == 504
    assert made.sizes == [1, 1]


def test_draining_waits_for_nobody() -> None:
    """What is queued runs at once, in full batches."""

    async def scenario(made: Bench) -> None:
        made.batcher.learn(None, 4, Run([], 0.001))
        made.submit(1)
        made.batcher.drain()
        await made.until(1)

    assert bench(scenario, keep_up_load=0.0, latency_target_s=100.0).sizes == [1]


def test_the_rate_is_learned_and_forgotten() -> None:
    """A steady stream shows its rate; a second of silence and it starts anew."""
    queue, came = Queue(), Call(Head())
    came.arrived_s = 0.0
    for place in range(300):
        queue.append(came)
        queue.count_rate(place * 0.01)
    assert queue.rate_rps == pytest.approx(100, rel=0.1)
    queue.append(came)
    assert queue.count_rate(10.0) == 1.0


def test_an_absurd_wait_is_cut_into_pieces() -> None:
    """Event loops refuse timers of years; the policy is just asked again."""

    async def scenario(made: Bench) -> None:
        made.batcher.learn(None, 4, Run([], 0.001))
        made.submit(1)
        await asyncio.sleep(0.001)
        assert made.batcher._timer is not None
        assert made.batcher._timer.when() - asyncio.get_running_loop().time() <= Batcher.SLEEP_MAX_S + 1

    bench(scenario, keep_up_load=0.0, latency_target_s=1e12)


def test_what_comes_in_one_turn_of_the_loop_is_one_batch() -> None:
    """The policy is asked when all that the sockets had to say is in, not after the first of them."""

    async def scenario(made: Bench) -> None:
        for item in range(4):
            made.submit(item)
        await made.until(4)

    assert bench(scenario).sizes == [4]


def test_buckets_do_not_share_a_batch() -> None:
    """Who came first is run first, with those of the same bucket."""

    async def scenario(made: Bench) -> None:
        await held(made, [])
        for item, bucket in ((1, "short"), (2, "long"), (3, "short"), (4, "long")):
            made.submit(item, bucket)
        made.gate.set()
        await made.until(5)

    batches: list[list[int]] = []

    def predict(items: list[int]) -> list[int]:
        batches.append(items)
        return items

    bench(scenario, predict)
    assert batches == [[0], [1, 3], [2, 4]]


def test_buckets_of_no_use_any_more_are_forgotten() -> None:
    """Clients choose shapes; memory must not grow with what they think of."""

    async def scenario(made: Bench) -> None:
        for item in range(300):
            made.submit(item, bucket=item)
            await made.until(item + 1)
        assert len(made.batcher._queues) <= Batcher.BUCKETS_MAX

    bench(scenario)


def test_a_brief_run_takes_no_thread() -> None:
    """Where the model allows it and is known to be quick; the first run is a thread's."""

    async def scenario(made: Bench) -> None:
        made.submit(1)
        await made.until(1)
        made.batcher.learn(None, 1, Run([], 1e-5, 1e-5))
        made.submit(2)
        await made.until(2)

    made = bench(scenario, brief=True)
    assert made.answers == {1: 2, 2: 4}
    assert threading.current_thread().name in made.threads
    assert len(made.threads) <= 2
    assert threading.current_thread().name not in bench(scenario).threads


def test_several_runs_at_once_where_the_model_allows_it() -> None:
    """Three slow requests take the time of one."""

    async def scenario(made: Bench) -> None:
        barrier.reset()
        for item in (1, 2, 3):
            made.submit(item)
        await made.until(3)

    barrier = threading.Barrier(3, timeout=30)

    def together(items: list[int]) -> list[int]:
        barrier.wait()
        return items

    assert bench(scenario, together, batch_max=1, concurrency=3).sizes == [1, 1, 1]


def test_a_change_waits_for_the_run_and_holds_back_the_next() -> None:
    """Threads of a model are not changed under its feet."""
    order: list[Any] = []

    async def scenario(made: Bench) -> None:
        await held(made, [])
        change = asyncio.ensure_future(made.batcher.between_runs(lambda: order.append("change")))
        await asyncio.sleep(0)
        made.submit(1)
        made.gate.set()
        await change
        await made.until(2)

    def predict(items: list[Any]) -> list[Any]:
        order.append(items)
        return items

    bench(scenario, predict)
    assert order == [[0], "change", [1]]


def test_a_batch_that_does_not_fit_into_memory_is_not_tried_again() -> None:
    """Halved for those who are in it, and the limit from then on."""

    async def scenario(made: Bench) -> None:
        for item in range(8):
            made.submit(item)
        await made.until(8)

    def small(items: list[int]) -> list[int]:
        if len(items) > 2:
            raise MemoryError
        return items

    made = bench(scenario, small, batch_max=8)
    assert made.answers == {n: n for n in range(8)}
    assert made.batcher.policy.batch_max == made.metrics.batch_max == 2


def test_a_process_that_hangs_is_interrupted() -> None:
    """Its model raises; who waits is served, and the worker stays."""
    interrupted, queued = threading.Event(), threading.Event()

    async def scenario(made: Bench) -> None:
        made.submit("slow")
        await asyncio.to_thread(interrupted.wait, 30)
        made.submit(2, waited_s=-30.0)  # not overdue itself
        queued.set()
        await made.until(2)

    def predict(items: list[Any]) -> list[Any]:
        if "slow" in items:
            assert interrupted.wait(30)
            assert queued.wait(30)
            raise ItemError(504, "too slow")
        return items

    made = bench(scenario, predict, batch_max=1, exec_timeout_s=0.3, interrupt=interrupted.set)
    assert (made.answers["slow"].status, made.answers[2], made.hangs) == (504, 2, 0)
