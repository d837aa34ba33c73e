"""Rate windows: the paper's formula, its edges, what a percentile leaves of them, and which points are of use."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infless_core.errors import InvalidInput
from infless_core.labels import GpuWish
from infless_core.model import Configuration, FunctionDemand, ProfilePoint
from infless_scheduler.bearable import bearable_load
from infless_scheduler.rates import RateWindow, feasible_points, fixed_shares, nearest_target_s, window


def _configuration(batch, cpu_cores=1, gpu_percent=0):
    return Configuration(batch=batch, cpu_cores=cpu_cores, gpu_percent=gpu_percent)


def _point(batch, exec_s, cpu_cores=1, gpu_percent=0):
    return ProfilePoint(configuration=_configuration(batch, cpu_cores, gpu_percent), exec_s=exec_s)


def _function(*profile, **changes):
    known = {"id": "f", "latency_target_s": 0.2, "rate_rps": 1, "max_batch": 32, "profile": profile}
    return FunctionDemand(**(known | changes))


times_s = st.floats(0.0005, 3.0)
batches = st.sampled_from([1, 2, 4, 8, 32])


def test_paper_check_value():
    """SLO 200 ms, 50 ms for a batch of 4: 28 to 80 requests a second."""
    assert window(_configuration(4), 0.05, 0.2) == RateWindow(28, 80)


@pytest.mark.parametrize(
    ("batch", "exec_s", "target_s", "expected"),
    [
        (1, 0.05, 0.05, RateWindow(0, 20)),
        (1, 0.051, 0.05, None),
        (2, 0.1, 0.2, RateWindow(20, 20)),
        (2, 0.101, 0.2, None),
        (4, 0.1, 0.3, RateWindow(20, 40)),  # 0.3 - 0.1 is a little below 0.2 in binary
        (4, 1 / 11, 1.0, RateWindow(8, 44)),  # 1/(1/11) is a little above or below 11
        (4, 2.0, 5.0, RateWindow(4 / 3, 2.0)),  # slower than one batch a second: no rounding
        (1, 4.0, 5.0, RateWindow(0, 0.25)),
        (4, 0.095, 0.192, RateWindow(40, 40)),  # rounding would put the low end above the up end
    ],
)
def test_window_at_its_edges(batch, exec_s, target_s, expected):
    """The formula holds at whole quotients, at the target's limit and for slow models."""
    assert window(_configuration(batch), exec_s, target_s) == expected


@given(batches, times_s, times_s)
def test_window_is_sane(batch, exec_s, target_s):
    """A window exists exactly when the batch is fast enough, and never promises more than b/t."""
    rates = window(_configuration(batch), exec_s, target_s)
    if rates is None:
        assert exec_s > target_s / (1 if batch == 1 else 2)
    else:
        assert 0 <= rates.low_rps <= rates.up_rps <= batch / exec_s * (1 + 1e-6)


@given(batches, times_s, times_s, st.floats(50, 99.9), st.floats(0, 0.09))
def test_stricter_percentile_means_less_rate(batch, exec_s, target_s, percentile, more):
    """A percentile only ever lowers the window, and a stricter one lowers it further."""
    plain = window(_configuration(batch), exec_s, target_s)
    loose = window(_configuration(batch), exec_s, target_s, percentile=percentile)
    strict = window(_configuration(batch), exec_s, target_s, percentile=percentile + more)
    assert (plain is None) == (loose is None) == (strict is None)
    if plain is not None:
        assert 0 < strict.up_rps <= loose.up_rps <= plain.up_rps
        assert loose.low_rps <= plain.low_rps


@given(batches, times_s, times_s, st.floats(1.0, 4.0))
def test_longer_target_never_means_less_rate(batch, exec_s, target_s, factor):
    """Giving requests more time never lowers the rate that meets it, with or without a percentile."""
    for percentile in (None, 99.0):
        near = window(_configuration(batch), exec_s, target_s, percentile=percentile)
        far = window(_configuration(batch), exec_s, target_s * factor, percentile=percentile)
        if near is not None:
            assert far is not None
            assert far.up_rps >= near.up_rps * (1 - 1e-9)


@pytest.mark.parametrize("percentile", [0, 100, 101, math.nan])
def test_impossible_percentile_is_refused(percentile):
    """No rate meets a target always, and a share is above zero."""
    with pytest.raises(InvalidInput, match="percentile"):
        window(_configuration(4), 0.05, 0.2, percentile=percentile)


@pytest.mark.parametrize(("low", "up"), [(-1, 2), (3, 2), (0, 0), (0, math.inf), (math.nan, 2)])
def test_nonsense_window_cannot_be_built(low, up):
    """A window that exists is valid."""
    with pytest.raises(InvalidInput):
        RateWindow(low, up)


def test_feasible_points_are_those_within_target_and_batch_limit():
    """Too large a batch and too slow a point are left out; the rest is in the order of configurations."""
    function = _function(_point(4, 0.05), _point(1, 0.02), _point(2, 0.2), _point(8, 0.05), max_batch=4)
    assert [p.configuration.batch for p, _ in feasible_points(function)] == [1, 4]


@pytest.mark.parametrize(
    ("wish", "expected"), [(GpuWish.NEVER, [0]), (GpuWish.ALLOW, [0, 30]), (GpuWish.REQUIRE, [30])]
)
def test_feasible_points_heed_the_wish_for_a_gpu(wish, expected):
    """What the function may not use is no point of it."""
    function = _function(_point(1, 0.02), _point(1, 0.01, gpu_percent=30), gpu=wish)
    assert [p.configuration.gpu_percent for p, _ in feasible_points(function)] == expected


def test_a_slowdown_lengthens_executions_and_not_the_profile():
    """The window is that of the slower execution; what becomes too slow is left out."""
    function = _function(_point(1, 0.02), _point(4, 0.08), _point(8, 0.08, cpu_cores=2))
    factors = {1: 2.0, 4: 1.3, 8: 1.0}
    found = feasible_points(function, slowdown=lambda configuration: factors[configuration.batch])
    assert [(p.exec_s, w) for p, w in found] == [(0.02, RateWindow(0, 25)), (0.08, RateWindow(72, 96))]


def test_a_percentile_takes_burstiness_and_the_profiles_shape_into_account():
    """The load that the table bears at the function's CV, and at the share of the time that is fixed."""
    function = _function(_point(1, 0.04), _point(4, 0.07), latency_percentile=99.0, arrival_cv=2.0)
    one, four = (rates.up_rps for _, rates in feasible_points(function))
    assert one == pytest.approx(bearable_load(1, 5.0, 99.0, arrival_cv=2.0) / 0.04)
    load = bearable_load(4, 0.2 / 0.07, 99.0, arrival_cv=2.0, fixed_share=3 / 7)
    assert four == pytest.approx(load * 4 / 0.07)


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        ([_point(1, 0.04), _point(4, 0.07)], 3 / 7),
        ([_point(1, 0.04), _point(2, 0.001), _point(4, 0.07)], 3 / 7),  # the smallest batch is asked, no other
        ([_point(2, 0.05), _point(4, 0.07)], 3 / 7),
        ([_point(4, 0.07)], 1.0),
        ([_point(8, 0.09), _point(4, 0.07)], 1.0),
        ([_point(1, 0.04, cpu_cores=2), _point(1, 0.04, gpu_percent=10), _point(4, 0.07)], 1.0),
        ([_point(1, 0.01), _point(4, 0.07)], 0.0),  # slower together than one by one
        ([_point(1, 0.09), _point(4, 0.07)], 1.0),  # faster together than one alone
    ],
)
def test_fixed_share_is_read_off_the_profile(profile, expected):
    """A straight line through the smallest batch beside it, kept within 0 and 1; 1 where nothing is known."""
    own = _point(4, 0.07)
    assert fixed_shares([*profile, own])[own.configuration] == pytest.approx(expected)


@given(st.lists(st.tuples(batches, times_s), max_size=5), st.sampled_from([1, 4, 32]))
def test_nearest_target_can_be_met_and_nothing_below_it(points, max_batch):
    """At the nearest target some point has a window, a little below it none has."""
    profile = [_point(batch, exec_s) for batch, exec_s in points]
    nearest_s = nearest_target_s(profile, max_batch)
    usable = [p for p in profile if p.configuration.batch <= max_batch]
    assert (nearest_s is None) == (not usable)
    if nearest_s is not None:
        assert any(window(p.configuration, p.exec_s, nearest_s) for p in usable)
        assert not any(window(p.configuration, p.exec_s, nearest_s * 0.999) for p in usable)
