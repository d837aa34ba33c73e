"""Dispatch, whatever the instances and rates."""

import itertools
import math
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from infless_scheduler.autoscale import RateEstimate, ScalingReason, ScalingWatch, needs_plan
from infless_scheduler.dispatch import DispatchCase, TurnDispatcher, dispatch_rates, threshold_rps
from infless_scheduler.rates import RateWindow

ids = st.sampled_from("abcdefgh")
windows = st.builds(
    lambda up, share: RateWindow(up * share, up), st.floats(0.1, 1e4), st.one_of(st.just(0.0), st.floats(0, 1))
)
fleets = st.dictionaries(ids, windows, max_size=6)
alphas = st.floats(0, 1)
weights = st.dictionaries(ids, st.tuples(st.floats(0.5, 50), st.sampled_from([1, 2, 4, 8])), min_size=1, max_size=5)


@given(fleets, st.floats(0, 3e4), alphas)
def test_rates_add_up_within_windows(fleet, rate_rps, alpha):
    """Rates and residue are the arriving rate, and nobody gets more than its rate_up."""
    dispatch = dispatch_rates(fleet, rate_rps, alpha)
    total = math.fsum(dispatch.rates_rps.values()) + dispatch.residue_rps
    assert math.isclose(total, rate_rps, rel_tol=1e-9, abs_tol=1e-9)
    assert all(0 <= rate <= fleet[id_].up_rps for id_, rate in dispatch.rates_rps.items())
    assert (dispatch.residue_rps > 0) == (dispatch.case is DispatchCase.SCALE_OUT)


@given(fleets, st.floats(0, 3e4), alphas)
def test_within_r_min_and_r_max_each_rate_is_within_its_window(fleet, rate_rps, alpha):
    """Full batches for everyone wherever that is possible for all."""
    low, up = (math.fsum(getattr(w, side) for w in fleet.values()) for side in ("low_rps", "up_rps"))
    if low <= rate_rps <= up:
        for id_, rate in dispatch_rates(fleet, rate_rps, alpha).rates_rps.items():
            assert fleet[id_].low_rps - 1e-6 <= rate <= fleet[id_].up_rps


@given(fleets, st.floats(0, 3e4), alphas)
def test_released_instances_are_not_missed(fleet, rate_rps, alpha):
    """Without the released ones the rest still carries the rate, and is not empty."""
    release = dispatch_rates(fleet, rate_rps, alpha).release
    rest = [w for id_, w in fleet.items() if id_ not in release]
    if release:
        assert rest
        assert math.fsum(w.up_rps for w in rest) >= rate_rps


@given(weights, st.integers(1, 400))
def test_shares_converge_to_the_weights(planned, requests):
    """Counts divided by weights differ between any two instances by at most one turn of each."""
    turns = TurnDispatcher(planned)
    served = Counter(turns.choose() for _ in range(requests))
    done = {id_: served[id_] / weight for id_, (weight, _) in planned.items()}
    turn = {id_: batch / weight for id_, (weight, batch) in planned.items()}
    for a in planned:
        for b in planned:
            assert done[a] - done[b] <= turn[a] + turn[b] + 1e-9


@given(weights, st.lists(st.one_of(st.sets(ids), weights), max_size=60))
def test_choice_is_available_and_repeatable(planned, events):
    """Whatever is skipped or renewed: the choice is an available instance, None only if there is none."""
    runs = []
    for _ in range(2):
        turns, present, chosen = TurnDispatcher(planned), set(planned), []
        for event in events:
            if isinstance(event, dict):
                turns.update(event)
                present = set(event)
            else:
                chosen.append(turns.choose(event))
                assert (chosen[-1] in present - event) if present - event else chosen[-1] is None
        runs.append(chosen)
    assert runs[0] == runs[1]


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=60))
def test_estimate_is_between_least_and_most(counts):
    """An estimate never leaves what was seen, and covers the last five seconds."""
    estimate = RateEstimate()
    for count in counts:
        estimate = estimate.after(count)
    assert min(counts) - 1e-9 <= estimate.rate_rps <= max(counts) + 1e-9
    assert estimate.rate_rps >= sum(counts[-5:]) / len(counts[-5:]) - 1e-9


@given(st.lists(windows, max_size=5), st.floats(0, 1e4), alphas)
def test_steady_rates_need_no_plan(fleet, rate_rps, alpha):
    """Between the threshold and R_max nothing asks for a plan; outside something does unless it was planned so."""
    reason = needs_plan(fleet, planned_rps=0.0, measured_rps=rate_rps, alpha=alpha)
    up = math.fsum(w.up_rps for w in fleet)
    if threshold_rps(fleet, alpha) <= rate_rps <= up:
        assert reason is None
    elif rate_rps > up * 1.04:
        assert reason is ScalingReason.ABOVE_CAPACITY


@given(st.lists(st.sampled_from([None, *ScalingReason]), max_size=200))
def test_plans_are_never_closer_than_the_settling_time(reasons):
    """However the rate swings, two plans are at least `settle_s` apart."""
    watch, planned_at = ScalingWatch(), []
    for second, reason in enumerate(reasons):
        watch, due = watch.after(reason, float(second))
        if due is not None:
            planned_at.append(second)
            watch = watch.planned(float(second))
    assert all(b - a >= watch.policy.settle_s for a, b in itertools.pairwise(planned_at))
