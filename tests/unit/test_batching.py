"""The batching policy: when a queue is flushed, and what a batch is expected to take."""

from __future__ import annotations

from typing import Any

import pytest

from infless_watchdog.batching import BatchPolicy, ExecutionTimes, Flush, WaitUntil, decide

POLICY = BatchPolicy(batch_max=8, latency_target_s=0.1)


def learned(**exec_s: float) -> ExecutionTimes:
    """Execution times by size: `learned(_1=0.01, _8=0.02)`."""
    times = ExecutionTimes()
    for size, seconds in exec_s.items():
        times.observe(int(size[1:]), seconds)
    return times


SLOW = learned(_1=0.02, _8=0.04)


def ask(arrivals_s: list[float], now_s: float, rate_rps: float = 200.0, **more: Any) -> Any:
    """The policy's answer; everything that a test does not speak of is usual."""
    return decide(arrivals_s, more.get("late", 0), now_s, rate_rps, more.get("times", SLOW), more.get("policy", POLICY))


def test_an_empty_queue_has_nothing_to_decide() -> None:
    """None, and no time to wake up at."""
    assert ask([], 5.0) is None


def test_a_full_batch_runs_at_once() -> None:
    """Waiting for more cannot help, however much time is left."""
    assert ask([0.0] * 8, 0.0) == Flush(8)


def test_a_longer_queue_is_cut_to_the_largest_batch() -> None:
    """The rest stays for the next decision."""
    assert ask([0.0] * 20, 0.0) == Flush(8)


def test_a_quiet_function_does_not_wait() -> None:
    """At one request a second a batch of one keeps up: its answer leaves at once."""
    assert ask([0.0], 0.0, 1.0) == Flush(1)


def test_a_busy_function_waits_for_more() -> None:
    """At 200 requests a second single ones (20 ms each) cannot keep up."""
    assert isinstance(ask([0.0], 0.0), WaitUntil)


def test_waiting_ends_when_the_oldest_requests_slack_does() -> None:
    """Slack: the deadline, less what is kept for safety (10 ms), less what the full batch takes (40 ms)."""
    answer = ask([0.0, 0.045], 0.045)
    assert isinstance(answer, WaitUntil)
    assert answer.at_s == pytest.approx(0.05)


def test_waiting_ends_at_its_own_limit() -> None:
    """Where the provider wants less waiting than the target would allow."""
    policy = BatchPolicy(batch_max=8, latency_target_s=0.1, wait_max_s=0.02)
    answer = ask([0.0], 0.0, policy=policy)
    assert isinstance(answer, WaitUntil)
    assert answer.at_s == 0.02
    assert ask([0.0], 0.02, policy=policy) == Flush(1)


def test_at_the_end_of_the_slack_what_is_there_runs() -> None:
    """The moment that was asked for is late enough: no second wait."""
    answer = ask([0.0, 0.045], 0.045)
    assert isinstance(answer, WaitUntil)
    assert ask([0.0, 0.045], answer.at_s) == Flush(2)


def test_a_target_that_cannot_be_met_is_not_made_worse() -> None:
    """Past the deadline the batch runs at once, instead of waiting for company."""
    assert ask([0.0], 0.5) == Flush(0, late=1, skip=1)


def test_late_requests_give_way_to_punctual_ones() -> None:
    """Eight that can be in time run before three that cannot, though these came first."""
    assert ask([0.0] * 3 + [0.45] * 8, 0.5) == Flush(8, late=0, skip=3)


def test_late_requests_fill_what_is_left() -> None:
    """Two punctual ones leave room for six."""
    assert ask([0.48] * 2, 0.5, late=20) == Flush(2, late=6)


def test_late_requests_do_not_make_a_punctual_one_late() -> None:
    """Two alone take less than 30 ms, with six others 40 ms; the older one has 35 ms."""
    times = learned(_2=0.02, _8=0.04)
    assert ask([0.435, 0.44], 0.5, late=6, times=times, rate_rps=50.0) == Flush(2, late=0)


def test_late_requests_alone_run_in_full_batches() -> None:
    """Nobody is forgotten, and there is nothing to wait for."""
    assert ask([], 9.0, late=20) == Flush(0, late=8)
    assert ask([], 9.0, late=3) == Flush(0, late=3)


def test_a_batch_that_has_grown_enough_to_keep_up_runs() -> None:
    """At 60 requests a second one alone (20 ms) is too slow; five together (32 ms) leave time free."""
    assert isinstance(ask([0.0], 0.0, 60.0), WaitUntil)
    assert ask([0.0] * 5, 0.0, 60.0) == Flush(5)


def test_nobody_waits_for_clients_that_wait_themselves() -> None:
    """At 200 a second a request comes each 5 ms; after 20 ms without one, those who ask in turns have all asked."""
    answer = ask([0.0, 0.002], 0.002)
    assert isinstance(answer, WaitUntil)
    assert answer.at_s == pytest.approx(0.022)
    assert ask([0.0, 0.002], 0.0221) == Flush(2)


def test_a_wait_says_how_many_would_end_it() -> None:
    """At 100 a second four keep up, and two do not; at 1000 only a full batch is enough."""
    assert ask([0.0], 0.0, 100.0).size == 4
    assert isinstance(ask([0.0] * 4, 0.0, 100.0), Flush)
    assert ask([0.0], 0.0, 1000.0).size == 8


def test_keep_up_load_zero_waits_as_the_paper_does() -> None:
    """Then only a full batch or the end of the slack flush."""
    policy = BatchPolicy(batch_max=8, latency_target_s=0.1, keep_up_load=0.0)
    assert isinstance(ask([0.0], 0.0, 1.0, policy=policy), WaitUntil)


def test_without_any_knowledge_the_first_request_runs() -> None:
    """It is how the first execution time is learned."""
    assert ask([0.0], 0.0, 1000.0, times=ExecutionTimes()) == Flush(1)


def test_nothing_known_is_estimated_as_nothing() -> None:
    """Zero seconds, not a guess."""
    assert ExecutionTimes().estimate_s(8) == 0.0


def test_between_known_sizes_a_straight_line_is_drawn() -> None:
    """Half way from four to eight, half of the difference."""
    assert learned(_4=0.02, _8=0.04).estimate_s(6) == pytest.approx(0.03)


def test_below_the_smallest_known_size_nothing_is_faster() -> None:
    """Three runs of five do not say what one takes."""
    assert learned(_5=0.03).estimate_s(1) == 0.03


def test_a_smaller_batch_is_not_slower_than_a_larger_one() -> None:
    """A slow first run of one must not outlive the knowledge of what eight take."""
    assert learned(_1=0.5, _8=0.03).estimate_s(1) == 0.03


def test_beyond_what_is_known_estimates_grow_in_proportion() -> None:
    """Batching never costs more than one by one."""
    assert learned(_2=0.01).estimate_s(16) == pytest.approx(0.08)


def test_a_slower_run_counts_at_once_for_half() -> None:
    """Being late costs an answer."""
    times = learned(_4=0.1)
    times.observe(4, 0.18)
    assert times.estimate_s(4) == pytest.approx(0.14)


def test_one_very_slow_run_does_not_count_for_more_than_twice() -> None:
    """A neighbour's stall of a second must not make the next hundred batches flush early."""
    times = learned(_4=0.1)
    times.observe(4, 9.0)
    assert times.estimate_s(4) == pytest.approx(0.15)


def test_a_faster_run_counts_for_an_eighth() -> None:
    """Being early costs nothing, so one lucky run is no reason to wait longer."""
    times = learned(_4=0.1)
    times.observe(4, 0.02)
    assert times.estimate_s(4) == pytest.approx(0.09)


def test_safety_is_a_share_of_the_target() -> None:
    """Ten percent, for what no execution time contains."""
    assert BatchPolicy(batch_max=1, latency_target_s=2.0).safety_s == pytest.approx(0.2)
