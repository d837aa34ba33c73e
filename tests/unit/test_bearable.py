"""The table of bearable loads: its own cells, its edges, and what lies beyond them."""

import json
import math
from importlib import resources
from itertools import product

import pytest

from infless_core.errors import InvalidInput
from infless_scheduler.bearable import FLOOR, bearable_load

TABLE = json.loads((resources.files("infless_scheduler") / "bearable_load.json").read_text())


@pytest.mark.parametrize("batch", [1, 2, 16, 64])
def test_at_a_cell_it_says_what_the_cell_says(batch):
    """Interpolation changes nothing where there is nothing between."""
    ratios = TABLE["ratios_one" if batch == 1 else "ratios"]
    for fixed, cv, ratio, percentile in product(range(1 if batch == 1 else 3), range(5), range(len(ratios)), range(6)):
        load = bearable_load(
            batch, ratios[ratio], TABLE["percentiles"][percentile],
            arrival_cv=TABLE["cvs"][cv], fixed_share=TABLE["fixed_shares"][fixed],
        )  # fmt: skip
        assert load == pytest.approx(TABLE["loads"][str(batch)][fixed][cv][ratio][percentile])


def test_between_cells_it_lies_between():
    """A batch of 3 bears more than one of 2, less than one of 4."""
    two, three, four = (bearable_load(batch, 2.7, 97.0, arrival_cv=1.2, fixed_share=0.7) for batch in (2, 3, 4))
    assert two < three < four


def test_it_knows_the_lone_request():
    """With T = t and one by one, Poisson arrivals find an idle instance in a share of `1 - rho`."""
    assert bearable_load(1, 1.0, 90.0) == pytest.approx(0.1, abs=0.01)


def test_nothing_is_borne_out_of_reach():
    """No request is in time when one execution takes longer than the target, no batch when two do."""
    assert bearable_load(1, 0.99, 50.0) == bearable_load(2, 1.99, 50.0) == FLOOR
    assert bearable_load(2, 2 - 1e-9, 50.0) > FLOOR


@pytest.mark.parametrize(("beyond", "edge"), [
    ({"batch": 100}, {"batch": 64}), ({"target_over_exec": 1000.0}, {"target_over_exec": 40.0}),
    ({"percentile": 20.0}, {"percentile": 50.0}), ({"arrival_cv": 0.0}, {"arrival_cv": 1.0}),
    ({"arrival_cv": 100.0}, {"arrival_cv": 8.0}), ({"percentile": 99.99999999}, {"percentile": 99.9999}),
    ({"fixed_share": 1.5}, {"fixed_share": 1.0}),
])  # fmt: skip
def test_beyond_the_edge_the_edge_counts(beyond, edge):
    """On every axis there is a last value."""
    point = {"batch": 8, "target_over_exec": 3.0, "percentile": 95.0}
    assert bearable_load(**(point | beyond)) == pytest.approx(bearable_load(**(point | edge)))


def test_above_the_simulated_it_goes_on_falling():
    """Percentiles above 99.9 and a CV above 4 bear less than these do."""
    loads = [bearable_load(32, 2.5, percentile) for percentile in (99.9, 99.95, 99.99, 99.999)]
    assert loads == sorted(set(loads), reverse=True)
    loads = [bearable_load(32, 2.5, 90.0, arrival_cv=cv) for cv in (4.0, 5.0, 6.0, 8.0)]
    assert loads == sorted(set(loads), reverse=True)


@pytest.mark.parametrize("percentile", [0, 100, -1, 101, math.nan])
def test_impossible_percentile_is_refused(percentile):
    """No load meets a target always."""
    with pytest.raises(InvalidInput, match="percentile"):
        bearable_load(4, 3.0, percentile)
