"""The batching policy: when a queue is flushed, and what a batch is expected to take."""

from __future__ import annotations

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


def test_an_empty_queue_has_nothing_to_decide() -> None:
    """None, and no time to wake up at."""
    assert decide([], 5.0, 100.0, SLOW, POLICY) is None


def test_a_full_batch_runs_at_once() -> None:
    """Waiting for more cannot help, however much time is left."""
    assert decide([10.0] * 8, 0.0, 1000.0, SLOW, POLICY) == Flush(8)


def test_a_longer_queue_is_cut_to_the_largest_batch() -> None:
    """The rest stays for the next decision."""
    assert decide([10.0] * 20, 0.0, 1000.0, SLOW, POLICY) == Flush(8)


def test_a_quiet_function_does_not_wait() -> None:
    """At one request a second a batch of one keeps up: its answer leaves at once."""
    assert decide([0.1], 0.0, 1.0, SLOW, POLICY) == Flush(1)


def test_a_busy_function_waits_for_more() -> None:
    """At 200 requests a second single ones (20 ms each) cannot keep up."""
    assert isinstance(decide([0.1], 0.0, 200.0, SLOW, POLICY), WaitUntil)


def test_waiting_ends_when_the_oldest_requests_slack_does() -> None:
    """Slack: the deadline, less what is kept for safety (10 ms), less what the full batch takes (40 ms)."""
    answer = decide([0.1, 0.15], 0.0, 200.0, SLOW, POLICY)
    assert isinstance(answer, WaitUntil)
    assert answer.at_s == pytest.approx(0.05)


def test_at_the_end_of_the_slack_what_is_there_runs() -> None:
    """The moment that was asked for is late enough: no second wait."""
    answer = decide([0.1, 0.15], 0.0, 200.0, SLOW, POLICY)
    assert isinstance(answer, WaitUntil)
    assert decide([0.1, 0.15], answer.at_s, 200.0, SLOW, POLICY) == Flush(2)


def test_a_target_that_cannot_be_met_is_not_made_worse() -> None:
    """Past the deadline the batch runs at once, instead of waiting for company."""
    assert decide([0.1], 0.5, 200.0, SLOW, POLICY) == Flush(1)


def test_the_most_urgent_request_counts_wherever_it_stands() -> None:
    """A later request with an earlier deadline ends the wait."""
    assert decide([9.0, 0.05], 0.01, 200.0, SLOW, POLICY) == Flush(2)


def test_a_batch_that_has_grown_enough_to_keep_up_runs() -> None:
    """At 60 requests a second one alone (20 ms) is too slow; five together (40 ms) leave half of the time free."""
    assert isinstance(decide([0.1], 0.0, 60.0, SLOW, POLICY), WaitUntil)
    assert decide([0.1] * 5, 0.0, 60.0, SLOW, POLICY) == Flush(5)


def test_keep_up_load_zero_waits_as_the_paper_does() -> None:
    """Then only a full batch or the end of the slack flush."""
    policy = BatchPolicy(batch_max=8, latency_target_s=0.1, keep_up_load=0.0)
    assert isinstance(decide([0.1], 0.0, 1.0, SLOW, policy), WaitUntil)


def test_without_any_knowledge_the_first_request_runs() -> None:
    """It is how the first execution time is learned."""
    assert decide([0.1], 0.0, 1000.0, ExecutionTimes(), POLICY) == Flush(1)


def test_nothing_known_is_estimated_as_nothing() -> None:
    """Zero seconds, not a guess."""
    assert ExecutionTimes().estimate_s(8) == 0.0


def test_sizes_share_a_power_of_two() -> None:
    """Five to eight requests are one bucket."""
    assert learned(_5=0.03).estimate_s(8) == 0.03


def test_a_smaller_batch_is_not_slower_than_a_larger_one() -> None:
    """A slow first run of one must not outlive the knowledge of what eight take."""
    assert learned(_1=0.5, _8=0.03).estimate_s(1) == 0.03


def test_beyond_what_is_known_estimates_grow_in_proportion() -> None:
    """Batching never costs more than one by one."""
    assert learned(_2=0.01).estimate_s(16) == pytest.approx(0.08)


def test_a_slower_run_counts_at_once_for_half() -> None:
    """Being late costs an answer."""
    times = learned(_4=0.1)
    times.observe(4, 0.3)
    assert times.estimate_s(4) == pytest.approx(0.2)


def test_a_faster_run_counts_for_an_eighth() -> None:
    """Being early costs nothing, so one lucky run is no reason to wait longer."""
    times = learned(_4=0.1)
    times.observe(4, 0.02)
    assert times.estimate_s(4) == pytest.approx(0.09)


def test_safety_is_a_share_of_the_target() -> None:
    """Ten percent, for what no execution time contains."""
    assert BatchPolicy(batch_max=1, latency_target_s=2.0).safety_s == pytest.approx(0.2)
