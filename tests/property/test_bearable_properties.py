"""Bearable loads and the windows made of them keep their order everywhere, on the table's grid and beside it."""

from hypothesis import given
from hypothesis import strategies as st

from infless_core.model import Configuration
from infless_scheduler.bearable import bearable_load
from infless_scheduler.rates import window

batches = st.integers(1, 100)
ratios = st.floats(1.0, 60.0)
percentiles = st.floats(50.0, 99.99999)
cvs = st.floats(0.0, 10.0)
shares = st.floats(0.0, 1.0)
more = st.floats(1.0, 3.0)
NOISE = 1 + 1e-9


@given(batches, ratios, percentiles, cvs, shares)
def test_a_load_is_above_none_and_at_most_all(batch, ratio, percentile, cv, share):
    """It is never zero, never more than the instance can do, wherever it is asked for."""
    assert 0 < bearable_load(batch, ratio, percentile, arrival_cv=cv, fixed_share=share) <= 1


@given(batches, ratios, percentiles, cvs, shares, more)
def test_more_time_bears_more(batch, ratio, percentile, cv, share, factor):
    """A longer target never lowers the load."""
    near = bearable_load(batch, ratio, percentile, arrival_cv=cv, fixed_share=share)
    assert near <= bearable_load(batch, ratio * factor, percentile, arrival_cv=cv, fixed_share=share) * NOISE


@given(batches, ratios, percentiles, cvs, shares, st.floats(0, 1))
def test_a_stricter_percentile_bears_less(batch, ratio, percentile, cv, share, stricter):
    """Fewer late requests never raise the load."""
    strict = percentile + stricter * (99.999999 - percentile)
    loose_load = bearable_load(batch, ratio, percentile, arrival_cv=cv, fixed_share=share)
    assert bearable_load(batch, ratio, strict, arrival_cv=cv, fixed_share=share) <= loose_load * NOISE


@given(batches, ratios, percentiles, cvs, shares, more)
def test_burstier_arrivals_bear_less(batch, ratio, percentile, cv, share, factor):
    """A higher coefficient of variation never raises the load."""
    calm = bearable_load(batch, ratio, percentile, arrival_cv=cv, fixed_share=share)
    assert bearable_load(batch, ratio, percentile, arrival_cv=cv * factor, fixed_share=share) <= calm * NOISE


@given(batches, st.floats(0.0005, 3.0), ratios, percentiles, cvs, shares)
def test_a_percentile_keeps_within_the_papers_window(batch, exec_s, ratio, percentile, cv, share):
    """There is a window when the paper has one, and it lies below the paper's upper rate."""
    shape = Configuration(batch=batch, cpu_cores=1)
    paper = window(shape, exec_s, ratio * exec_s)
    found = window(shape, exec_s, ratio * exec_s, percentile, arrival_cv=cv, fixed_share=share)
    assert (paper is None) == (found is None)
    if paper is not None:
        assert 0 < found.up_rps <= paper.up_rps
        assert found.low_rps == min(paper.low_rps, found.up_rps)


@given(batches, st.floats(0.0005, 3.0), ratios, cvs, shares)
def test_without_a_percentile_the_papers_formulas_hold(batch, exec_s, ratio, cv, share):
    """Then neither burstiness nor the profile's shape counts."""
    shape = Configuration(batch=batch, cpu_cores=1)
    plain = window(shape, exec_s, ratio * exec_s)
    assert window(shape, exec_s, ratio * exec_s, arrival_cv=cv, fixed_share=share) == plain
