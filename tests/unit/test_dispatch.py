"""Dispatch: the paper's three cases, and whose turn it is."""

import math

import pytest

from infless_core.errors import InvalidInput
from infless_scheduler.dispatch import DispatchCase, TurnDispatcher, dispatch_rates, threshold_rps
from infless_scheduler.rates import RateWindow

TWO = {"a": RateWindow(28, 80), "b": RateWindow(0, 20)}


def test_threshold_is_equation_seven():
    """It is alpha * R_max + (1 - alpha) * R_min, not the swapped one of the paper's running text."""
    assert threshold_rps(TWO.values(), 0.8) == pytest.approx(0.8 * 100 + 0.2 * 28)


def test_above_capacity_every_instance_is_full():
    """The rest asks for scaling."""
    dispatch = dispatch_rates(TWO, 130, 0.8)
    assert (dispatch.case, dispatch.rates_rps, dispatch.residue_rps) == (
        DispatchCase.SCALE_OUT,
        {"a": 80, "b": 20},
        30,
    )


def test_between_the_formula_holds():
    """Each gets up - (R_max - R)/(R_max - R_min) * (up - low)."""
    dispatch = dispatch_rates(TWO, 90, 0.8)
    assert dispatch.case is DispatchCase.STEADY
    assert dispatch.rates_rps == pytest.approx({"a": 80 - 10 / 72 * 52, "b": 20 - 10 / 72 * 20})


@pytest.mark.parametrize(("rate_rps", "release"), [(84, ()), (79, ("b",)), (20, ("a",)), (10, ("a",)), (0, ("a",))])
def test_below_the_threshold_instances_are_released(rate_rps, release):
    """Largest first while the rest carries the rate; one always stays."""
    dispatch = dispatch_rates(TWO, rate_rps, 0.8)
    assert dispatch.case is DispatchCase.RELEASE
    assert dispatch.release == release
    assert math.fsum(dispatch.rates_rps.values()) == pytest.approx(rate_rps)


def test_no_instances_at_all():
    """Whatever arrives asks for scaling; silence asks for nothing."""
    assert dispatch_rates({}, 5, 0.8).residue_rps == 5
    assert dispatch_rates({}, 0, 0.8).case is DispatchCase.STEADY


@pytest.mark.parametrize("rate_rps", [-1, math.inf, math.nan])
def test_impossible_rate_is_refused(rate_rps):
    """A rate is finite and not negative."""
    with pytest.raises(InvalidInput):
        dispatch_rates(TWO, rate_rps, 0.8)


def test_a_turn_fills_a_batch():
    """Consecutive requests go to one instance until its batch is full."""
    turns = TurnDispatcher({"a": (10, 4), "b": (10, 2)})
    assert "".join(turns.choose() for _ in range(12)) == "bbaaaabbbbaaaa"[:12]


def test_weight_zero_gets_nothing_while_others_can():
    """An idle instance is a spare: it serves only when the others are unavailable."""
    turns = TurnDispatcher({"a": (10, 1), "z": (5e-324, 1)})
    assert {turns.choose() for _ in range(50)} == {"a"}
    assert turns.choose({"a"}) == "z"


def test_all_weights_zero_share_equally():
    """Nothing is planned yet, but requests arrive: everyone takes part."""
    turns = TurnDispatcher({"a": (0, 2), "b": (0, 2)})
    assert [turns.choose() for _ in range(6)] == list("aabbaa")


def test_nobody_available():
    """All skipped, or none there: None, and the next request is served as if nothing had been."""
    turns = TurnDispatcher({"a": (1, 2)})
    assert turns.choose({"a"}) is None
    assert turns.choose() == "a"
    assert TurnDispatcher().choose() is None


def test_new_weights_keep_the_turn_under_way():
    """A batch that is half full is filled before anyone else begins one."""
    turns = TurnDispatcher({"a": (10, 4), "b": (10, 4)})
    first = [turns.choose(), turns.choose()]
    turns.update({"a": (1, 4), "b": (50, 4), "c": (50, 4)})
    assert [*first, turns.choose(), turns.choose()] == ["a"] * 4
    assert turns.choose() != "a"


def test_vanished_instance_is_never_chosen_again():
    """Its turn ends with it."""
    turns = TurnDispatcher({"a": (10, 4), "b": (10, 4)})
    assert turns.choose() == "a"
    turns.update({"b": (10, 4)})
    assert {turns.choose() for _ in range(9)} == {"b"}


def test_slow_instance_is_not_starved_by_frequent_updates():
    """Waiting counts across updates: a rare turn comes though weights are renewed each second."""
    turns = TurnDispatcher({"fast": (9, 1), "slow": (1, 1)})
    chosen = []
    for _ in range(100):
        chosen += [turns.choose() for _ in range(3)]
        turns.update({"fast": (9, 1), "slow": (1, 1)})
    assert 25 <= chosen.count("slow") <= 35


def test_returning_instance_does_not_catch_up_in_a_burst():
    """What an instance missed while unavailable is lost, not owed."""
    turns = TurnDispatcher({"a": (10, 1), "b": (10, 1)})
    for _ in range(1000):
        turns.choose({"b"})
    assert [turns.choose() for _ in range(20)].count("b") <= 11


@pytest.mark.parametrize("weight", [(-1, 1), (math.nan, 1), (math.inf, 1), (1, 0)])
def test_nonsense_weights_change_nothing(weight):
    """They are refused, and dispatch goes on as before."""
    turns = TurnDispatcher({"a": (1, 1)})
    with pytest.raises(InvalidInput):
        turns.update({"b": weight})
    assert turns.choose() == "a"
