"""The batching policy driven only by its own answers, for any arrivals, targets and execution times."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from infless_watchdog.batching import BatchPolicy, ExecutionTimes, Flush, WaitUntil, decide

seconds = st.floats(min_value=0.0001, max_value=2.0)
policies = st.builds(
    BatchPolicy,
    batch_max=st.integers(1, 40),
    latency_target_s=st.floats(min_value=0.001, max_value=5.0),
    keep_up_load=st.floats(min_value=0.0, max_value=1.0),
)
gaps = st.lists(st.floats(min_value=0.0, max_value=0.5), min_size=1, max_size=60)
runs = st.lists(st.tuples(st.integers(1, 64), seconds), max_size=40)
rates = st.floats(min_value=0.0, max_value=1e5)


@dataclass
class Simulation:
    """One queue and one model on a simulated clock: what the watchdog does, without the watchdog."""

    policy: BatchPolicy
    times: ExecutionTimes
    rate_rps: float
    now_s: float = 0.0
    free_at_s: float = 0.0
    queue: list[tuple[int, float]] = field(default_factory=list)
    late: list[tuple[int, float]] = field(default_factory=list)
    batches: list[tuple[float, float, list[tuple[int, float]], list[tuple[int, float]]]] = field(default_factory=list)
    """When the model was free, when the batch began, its punctual and its late requests."""

    def run(self, arrivals_s: list[float]) -> None:
        """Serve all arrivals; ends when the queue is empty."""
        coming = list(enumerate(arrivals_s))
        while coming or self.queue or self.late:
            wake_s = self._step()
            next_s = coming[0][1] if coming else float("inf")
            assert wake_s is not None or coming, "requests are left and nothing will ever wake"
            self.now_s = max(self.now_s, min(next_s, float("inf") if wake_s is None else wake_s))
            while coming and coming[0][1] <= self.now_s:
                self.queue.append(coming.pop(0))

    def _step(self) -> float | None:
        """Ask the policy; returns when to ask again."""
        if not self.queue and not self.late:
            return None
        if self.now_s < self.free_at_s:
            return self.free_at_s
        arrivals_s = [arrived_s for _, arrived_s in self.queue]
        answer = decide(arrivals_s, len(self.late), self.now_s, self.rate_rps, self.times, self.policy)
        assert answer is not None
        if isinstance(answer, WaitUntil):
            assert answer.at_s > self.now_s
            return answer.at_s
        self.late += self.queue[: answer.skip]
        del self.queue[: answer.skip]
        punctual, self.queue = self.queue[: answer.count], self.queue[answer.count :]
        late, self.late = self.late[: answer.late], self.late[answer.late :]
        self.batches.append((self.free_at_s, self.now_s, punctual, late))
        self.free_at_s = self.now_s + self.times.estimate_s(len(punctual) + len(late))
        return self.free_at_s


def simulate(policy: BatchPolicy, runs: list[tuple[int, float]], rate_rps: float, gaps: list[float]) -> Simulation:
    """A simulation that has run to its end."""
    times = ExecutionTimes()
    for size, exec_s in runs:
        times.observe(size, exec_s)
    simulation = Simulation(policy, times, rate_rps)
    arrivals_s = [sum(gaps[: place + 1]) for place in range(len(gaps))]
    simulation.run(arrivals_s)
    return simulation


@given(policies, runs, rates, gaps)
def test_no_request_waits_past_its_slack(
    policy: BatchPolicy, runs: list[tuple[int, float]], rate_rps: float, gaps: list[float]
) -> None:
    """A batch starts when the model is free and its oldest request's slack ends, or earlier."""
    simulation = simulate(policy, runs, rate_rps, gaps)
    full_s = simulation.times.estimate_s(policy.batch_max)
    for free_s, started_s, punctual, late in simulation.batches:
        arrived_s = (punctual or late)[0][1]
        slack_ends_s = arrived_s + policy.latency_target_s - policy.safety_s - full_s
        assert started_s <= max(free_s, arrived_s, slack_ends_s) + 1e-9


@given(policies, runs, rates, gaps)
def test_everyone_is_run_once_and_never_above_the_limit(
    policy: BatchPolicy, runs: list[tuple[int, float]], rate_rps: float, gaps: list[float]
) -> None:
    """Nobody is lost on the way from the queue to the late ones."""
    batches = [punctual + late for _, _, punctual, late in simulate(policy, runs, rate_rps, gaps).batches]
    assert sorted(place for batch in batches for place, _ in batch) == list(range(len(gaps)))
    assert all(1 <= len(batch) <= policy.batch_max for batch in batches)


@given(policies, runs, rates, gaps)
def test_order_is_kept_among_punctual_and_among_late_ones(
    policy: BatchPolicy, runs: list[tuple[int, float]], rate_rps: float, gaps: list[float]
) -> None:
    """First come, first served, but for those whom it would not help any more."""
    batches = simulate(policy, runs, rate_rps, gaps).batches
    for chosen in ([b[2] for b in batches], [b[3] for b in batches]):
        places = [place for batch in chosen for place, _ in batch]
        assert places == sorted(places)


@given(policies, runs, rates, gaps)
def test_only_who_cannot_be_in_time_is_called_late(
    policy: BatchPolicy, runs: list[tuple[int, float]], rate_rps: float, gaps: list[float]
) -> None:
    """And late ones never make a punctual one late: what runs as punctual is in time if runs take what is expected."""
    simulation = simulate(policy, runs, rate_rps, gaps)
    for _, started_s, punctual, late in simulation.batches:
        if punctual:
            exec_s = simulation.times.estimate_s(len(punctual) + len(late))
            assert started_s + exec_s <= punctual[0][1] + policy.latency_target_s + 1e-9


@given(st.lists(st.floats(-10, 10), max_size=50), st.integers(0, 50), st.floats(-10, 10), rates, runs, policies)
def test_only_an_empty_queue_gets_no_answer(
    arrivals_s: list[float],
    late: int,
    now_s: float,
    rate_rps: float,
    runs: list[tuple[int, float]],
    policy: BatchPolicy,
) -> None:
    """Any other is flushed, by a count that it has, or told a time that is still to come."""
    times = ExecutionTimes()
    for size, exec_s in runs:
        times.observe(size, exec_s)
    arrivals_s = sorted(arrivals_s)
    match decide(arrivals_s, late, now_s, rate_rps, times, policy):
        case None:
            assert not arrivals_s
            assert not late
        case Flush(count, of_late, skip):
            assert 1 <= count + of_late <= policy.batch_max
            assert 0 <= skip <= len(arrivals_s) - count
            assert 0 <= of_late <= late + skip
        case WaitUntil(at_s):
            assert at_s > now_s


@given(runs)
def test_estimates_never_fall_as_batches_grow(runs: list[tuple[int, float]]) -> None:
    """More requests never take less time."""
    times = ExecutionTimes()
    for size, exec_s in runs:
        times.observe(size, exec_s)
    estimates_s = [times.estimate_s(size) for size in range(1, 130)]
    assert all(now_s <= then_s + 1e-12 for now_s, then_s in pairwise(estimates_s))


@given(runs.filter(bool))
def test_estimates_stay_within_what_was_seen(runs: list[tuple[int, float]]) -> None:
    """Between the fastest and the slowest run; above the mean of the largest sizes seen, in proportion."""
    times = ExecutionTimes()
    for size, exec_s in runs:
        times.observe(size, exec_s)
    fastest_s, slowest_s = min(s for _, s in runs), max(s for _, s in runs)
    for size in range(1, max(size for size, _ in runs) + 1):
        assert fastest_s - 1e-12 <= times.estimate_s(size) <= 2 * slowest_s + 1e-12


@given(st.integers(1, 64), seconds, seconds)
def test_repeated_runs_are_learned(size: int, first_s: float, then_s: float) -> None:
    """What a batch takes from now on is what is expected after a while."""
    times = ExecutionTimes()
    times.observe(size, first_s)
    for _ in range(100):
        times.observe(size, then_s)
    assert abs(times.estimate_s(size) - then_s) < 0.001
