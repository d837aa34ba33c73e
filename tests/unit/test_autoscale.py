"""The autoscaler's estimate and patience."""

import random

from infless_scheduler.arrivals import poisson_arrivals_s, wave_rates
from infless_scheduler.autoscale import RateEstimate, ScalingReason, ScalingWatch, needs_plan
from infless_scheduler.rates import RateWindow

FLEET = (RateWindow(28, 80), RateWindow(0, 20))
ABOVE, BELOW = ScalingReason.ABOVE_CAPACITY, ScalingReason.BELOW_THRESHOLD


def _estimate_after(*counts):
    estimate = RateEstimate()
    for count in counts:
        estimate = estimate.after(count)
    return estimate.rate_rps


def test_estimate_without_counts_is_zero():
    """Nothing seen, nothing wanted."""
    assert RateEstimate().rate_rps == 0


def test_estimate_rises_within_five_seconds():
    """A step up is believed in full after five seconds."""
    assert _estimate_after(*[10] * 60, *[100] * 5) == 100


def test_estimate_falls_slowly():
    """Five quiet seconds take away little, two minutes nearly everything."""
    assert _estimate_after(*[100] * 60, *[0] * 5) > 80
    assert _estimate_after(*[100] * 60, *[0] * 120) < 3


def test_rate_above_capacity_needs_a_plan():
    """A few percent above is noise."""
    assert needs_plan(FLEET, 90, 104, 0.8) is ABOVE
    assert needs_plan(FLEET, 90, 102, 0.8) is None


def test_rate_below_threshold_needs_a_plan_unless_planned_so():
    """A plan for this very rate could not do better then, and cannot now."""
    assert needs_plan(FLEET, 90, 50, 0.8) is BELOW
    assert needs_plan(FLEET, 51, 50, 0.8) is None


def test_no_instances_and_no_requests_need_no_plan():
    """A function at zero is at rest; its first request wakes it."""
    assert needs_plan((), 0, 0, 0.8) is None
    assert needs_plan((), 0, 1, 0.8) is ABOVE


def _looks(watch, reason, *times_s):
    """What the watch says at the last of several looks."""
    due = None
    for now_s in times_s:
        watch, due = watch.after(reason, now_s)
    return watch, due


def test_reason_must_last():
    """Above capacity for a second, below the threshold for half a minute."""
    assert _looks(ScalingWatch(), ABOVE, 10.0, 10.9)[1] is None
    assert _looks(ScalingWatch(), ABOVE, 10.0, 11.0)[1] is ABOVE
    assert _looks(ScalingWatch(), BELOW, 10.0, 39.0)[1] is None
    assert _looks(ScalingWatch(), BELOW, 10.0, 40.0)[1] is BELOW


def test_interruption_starts_the_wait_anew():
    """A rate that swings around the threshold leads to no plan."""
    watch, _ = _looks(ScalingWatch(), BELOW, 0.0, 29.0)
    watch, _ = _looks(watch, None, 30.0)
    assert _looks(watch, BELOW, 31.0, 60.0)[1] is None


def test_new_plan_gets_time_to_show_its_effect():
    """Right after a plan even an overload waits until instances had time to start."""
    watch = ScalingWatch().planned(100.0)
    watch, due = _looks(watch, ABOVE, 100.5, 104.0)
    assert due is None
    assert _looks(watch, ABOVE, 105.0)[1] is ABOVE


def test_arrivals_follow_the_rate_and_the_seed():
    """Same seed, same times, in order; as many as the rates say, give or take chance."""
    rates = wave_rates(100)
    arrivals_s = poisson_arrivals_s(rates, random.Random(1))
    assert arrivals_s == sorted(arrivals_s) == poisson_arrivals_s(rates, random.Random(1))
    assert 0.9 * sum(rates) < len(arrivals_s) < 1.1 * sum(rates)
    assert poisson_arrivals_s([0, -1, 5], random.Random(1))[0] >= 2


def test_wave_has_a_burst_and_a_quiet_stretch():
    """The demo's minute goes up to the peak and nearly down to nothing, however stretched."""
    for length_s in (20, 60, 600):
        wave = wave_rates(50, length_s)
        assert len(wave) == length_s
        assert max(wave) == 50
        assert 0 < min(wave) < 3
