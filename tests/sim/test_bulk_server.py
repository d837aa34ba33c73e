"""The bulk server against theory, against the watchdog's own queue, and at the loads that the table promises."""

import random
import statistics
from bisect import bisect_right
from itertools import pairwise
from types import SimpleNamespace

import pytest

from infless_core.errors import InvalidInput
from infless_scheduler.arrivals import gamma_arrivals_s
from infless_scheduler.bearable import bearable_load
from infless_scheduler.simulate.bulk_server import TICK_S, learned, linear_exec_s, serve
from infless_watchdog.batching import BatchPolicy, Flush, decide
from infless_watchdog.queues import Queue

EXEC_S = 0.03


def _arrivals_s(batch, load, cv=1.0, count=50_000, seed=1):
    return gamma_arrivals_s(load * batch / EXEC_S, cv, count, random.Random(seed))


def _policy(batch, ratio, **changes):
    return BatchPolicy(batch_max=batch, latency_target_s=ratio * EXEC_S, **changes)


@pytest.mark.parametrize("cv", [0, 0.5, 1, 3])
def test_gamma_arrivals_have_their_rate_and_burstiness(cv):
    """Mean and coefficient of variation of the gaps are what was asked for, in order, by seed."""
    arrivals_s = gamma_arrivals_s(20.0, cv, 100_000, random.Random(3))
    gaps_s = [after - before for before, after in pairwise([0.0, *arrivals_s])]
    assert min(gaps_s) >= 0
    assert statistics.fmean(gaps_s) == pytest.approx(1 / 20, rel=0.03)
    assert statistics.pstdev(gaps_s) * 20 == pytest.approx(cv, rel=0.03, abs=1e-6)
    assert arrivals_s == gamma_arrivals_s(20.0, cv, 100_000, random.Random(3))


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_by_one_it_waits_as_long_as_an_md1_queue(load):
    """Mean wait of Poisson arrivals at a constant service time: `rho t / (2 (1 - rho))`."""
    served = serve(_arrivals_s(1, load, count=200_000), linear_exec_s(1, EXEC_S, 1.0), _policy(1, 1000))
    wait_s = served.mean_latency_s - EXEC_S
    assert wait_s == pytest.approx(load * EXEC_S / (2 * (1 - load)), rel=0.05)


def test_a_lone_request_in_time_finds_an_idle_instance():
    """With T = t only those that wait for nobody are in time: a share of `1 - rho` of Poisson arrivals."""
    served = serve(_arrivals_s(1, 0.3, count=200_000), linear_exec_s(1, EXEC_S, 1.0), _policy(1, 1.0))
    assert served.on_time_share == pytest.approx(0.7, abs=0.01)


def test_full_batches_of_even_arrivals_wait_for_the_last_to_come():
    """Just under a load of 1 and with time to wait, batches are full and the mean request waits for half of one."""
    batch, load = 8, 0.95
    served = serve(_arrivals_s(batch, load, cv=0), linear_exec_s(batch, EXEC_S, 1.0), _policy(batch, 10))
    assert served.requests / served.runs == pytest.approx(batch, rel=0.01)
    assert served.mean_latency_s == pytest.approx(EXEC_S + (batch - 1) / 2 * EXEC_S / (load * batch), rel=0.02)
    assert served.on_time == served.requests


@pytest.mark.parametrize("load", [0.2, 0.9, 1.5])
@pytest.mark.parametrize("batch", [1, 3, 16])
def test_every_request_is_answered_once(batch, load):
    """Also those that are late, also under overload; and the instance is busy for its runs only."""
    served = serve(_arrivals_s(batch, load, cv=2, count=20_000), linear_exec_s(batch, EXEC_S, 0.5), _policy(batch, 3))
    assert served.requests == 20_000
    assert 0 < served.on_time <= served.requests
    assert served.busy_s <= served.end_s
    assert served.runs * EXEC_S / 2 < served.busy_s <= served.runs * EXEC_S * (1 + 1e-9)


def test_it_ends_after_so_many_runs():
    """What was not answered by then does not count."""
    served = serve(_arrivals_s(4, 0.8), linear_exec_s(4, EXEC_S, 1.0), _policy(4, 3), runs_max=100)
    assert served.runs == 100
    assert 100 <= served.requests <= 400


def test_same_seed_same_result():
    """Chance comes in with the arrivals alone."""
    first, second, third = (
        serve(_arrivals_s(4, 0.7, cv=2, seed=seed), linear_exec_s(4, EXEC_S, 0.5), _policy(4, 3)) for seed in (5, 5, 6)
    )
    assert first == second != third


def test_execution_times_must_fit_the_policy():
    """A batch that no time is known for cannot be run."""
    with pytest.raises(InvalidInput, match="execution times"):
        serve([0.0], linear_exec_s(4, EXEC_S, 1.0), _policy(8, 3))


@pytest.mark.parametrize(("batch", "ratio", "load", "cv", "fixed_share"), [
    (1, 2.3, 0.6, 1, 1.0), (4, 2.0, 0.9, 3, 1.0), (6, 3.5, 0.97, 2, 0.8), (16, 2.5, 1.1, 1.5, 0.0), (8, 4.0, 0.95, 1, 1.0),
])  # fmt: skip
def test_it_does_what_the_watchdogs_queue_does(batch, ratio, load, cv, fixed_share):
    """In bulk and one by one: the same runs, the same answers in time, with the real `Queue` beneath the real policy."""
    arrivals_s = _arrivals_s(batch, load, cv, count=3000)
    exec_s, policy = linear_exec_s(batch, EXEC_S, fixed_share), _policy(batch, ratio)
    served = serve(arrivals_s, exec_s, policy)
    runs, latencies_s = _one_by_one(arrivals_s, exec_s, policy)
    assert (served.runs, served.requests) == (runs, len(latencies_s))
    assert served.on_time == sum(latency_s <= policy.latency_target_s * (1 + 1e-9) for latency_s in latencies_s)
    assert served.latency_sum_s == pytest.approx(sum(latencies_s))


def _one_by_one(arrivals_s, exec_s, policy):
    """As the batcher: it asks when a run ends, when enough wait, and when its timer is due."""
    queue, came, now_s, timer_s, wanted = Queue(), 0, 0.0, float("inf"), 1
    queue.times = learned(exec_s)
    runs, latencies_s = 0, []
    while came < len(arrivals_s) or len(queue):
        while len(queue) < wanted or timer_s <= now_s:
            if timer_s <= now_s or came == len(arrivals_s) or timer_s < arrivals_s[came]:
                now_s, timer_s = max(now_s, timer_s), float("inf")
                break
            now_s = max(now_s, arrivals_s[came])
            queue.append(SimpleNamespace(arrived_s=arrivals_s[came]))
            came += 1
            if len(queue) >= wanted:
                break
        wanted = 1
        if not len(queue):
            continue
        answer = decide(queue.arrivals_s, len(queue.late), now_s, queue.count_rate(now_s), queue.times, policy)
        if not isinstance(answer, Flush):
            wanted = max(answer.size, len(queue) + 1)
            timer_s = min(timer_s, max(now_s + TICK_S, answer.at_s))
            continue
        now_s += exec_s[answer.count + answer.late]
        runs += 1
        latencies_s += [now_s - call.arrived_s for call in queue.take(answer)]
        due = bisect_right(arrivals_s, now_s, came)
        for at_s in arrivals_s[came:due]:
            queue.append(SimpleNamespace(arrived_s=at_s))
        came = due
        if timer_s <= now_s:
            timer_s = float("inf")
    return runs, latencies_s


@pytest.mark.parametrize(("batch", "ratio", "percentile", "cv", "fixed_share"), [
    (1, 4.0, 95.0, 1.0, 1.0), (2, 3.0, 90.0, 1.5, 1.0), (4, 2.5, 99.0, 1.0, 1.0), (8, 3.0, 95.0, 3.0, 0.0),
    (16, 2.2, 95.0, 2.0, 0.5), (32, 2.0, 90.0, 3.0, 1.0),
])  # fmt: skip
def test_the_table_keeps_its_word(batch, ratio, percentile, cv, fixed_share):
    """At the load it promises the share of requests in time is near the percentile, with arrivals of its own."""
    load = bearable_load(batch, ratio, percentile, arrival_cv=cv, fixed_share=fixed_share)
    arrivals_s = _arrivals_s(batch, load, cv, count=150_000, seed=99)
    served = serve(arrivals_s, linear_exec_s(batch, EXEC_S, fixed_share), _policy(batch, ratio))
    late = 1 - percentile / 100
    assert 1 - served.on_time_share == pytest.approx(late, rel=0.3)
