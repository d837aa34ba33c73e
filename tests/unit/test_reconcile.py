"""From a plan and what runs to actions, case by case."""

import pytest

from infless_core.model import Configuration, Plan, PlanAction, PlannedInstance, PlanStatus
from infless_provider.reconcile import Actual, Bounds, Drain, HandOver, Replace, Resize, Start, reconcile

SMALL, LARGE, WIDE = (Configuration(batch=b, cpu_cores=c) for b, c in ((1, 1), (8, 1), (8, 2)))
SHARED = Configuration(batch=1, cpu_cores=1, gpu_percent=20)
BOUNDS = {"f": Bounds(least=0, most=5, spare=SMALL)}


def planned(id_, action=PlanAction.KEEP, configuration=SMALL, up_rps=10.0):
    """One instance of a plan."""
    return PlannedInstance(
        id=id_, function="f", server="s", gpu=None, configuration=configuration,
        rate_low_rps=0, rate_up_rps=up_rps, rate_rps=5, action=action,
    )  # fmt: skip


def plan(*instances):
    """A plan of these instances."""
    return Plan(status=PlanStatus.OPTIMAL, solver="s", solve_s=0, objective=0, bound=0, instances=instances)


def runs(id_, configuration=SMALL, function="f", ready=True, replaces=None):
    """One running instance."""
    return Actual(id=id_, function=function, configuration=configuration, ready=ready, replaces=replaces)


def bounded(least=0, most=5):
    """Bounds of `f`."""
    return {"f": Bounds(least=least, most=most, spare=SMALL)}


def kinds(actions):
    """The actions' types and whom they are about."""
    return [
        (type(action).__name__, getattr(action, "id", action.function if isinstance(action, Start) else None))
        for action in actions
    ]


def test_what_is_as_planned_stays():
    """Nothing to do."""
    assert reconcile(plan(planned("a")), BOUNDS, [runs("a")]) == ()


def test_a_planned_start():
    """With its configuration and the reason in numbers."""
    (start,) = reconcile(plan(planned("f-1", PlanAction.START, LARGE)), BOUNDS, [])
    assert start == Start(function="f", configuration=LARGE, reason="planned for 5 of at most 10 requests/s")


@pytest.mark.parametrize("wanted", [LARGE, WIDE])
def test_another_batch_size_or_other_cores_are_changed_in_place(wanted):
    """The process stays."""
    assert reconcile(plan(planned("a", PlanAction.RESIZE, wanted)), BOUNDS, [runs("a")]) == (
        Resize(id="a", configuration=wanted),
    )


def test_another_share_of_a_gpu_needs_another_process():
    """It is fixed when a process first calls CUDA; the old one serves until the new one is ready."""
    (replace,) = reconcile(plan(planned("a", PlanAction.RESIZE, SHARED)), BOUNDS, [runs("a")])
    assert replace == Replace(id="a", function="f", configuration=SHARED, reason=f"{SMALL} becomes {SHARED}")


def test_a_kept_instance_that_has_vanished_is_started_anew():
    """It died while the solver worked."""
    assert kinds(reconcile(plan(planned("a")), BOUNDS, [])) == [("Start", "f")]


def test_what_nobody_planned_is_drained():
    """After the starts."""
    given = planned("f-1", PlanAction.START, SHARED)
    actions = reconcile(plan(given), BOUNDS, [runs("a"), runs("b", ready=False)])
    assert kinds(actions) == [("Replace", "a"), ("Drain", "b")]


@pytest.mark.parametrize("ready", [True, False])
def test_one_that_the_plan_does_not_know_serves_instead_of_a_new_one(ready):
    """A request has started it while the solver worked: two would start, and one be thrown away."""
    wanted = planned("f-1", PlanAction.START, WIDE)
    assert reconcile(plan(wanted), BOUNDS, [runs("a", ready=ready)]) == (Resize(id="a", configuration=WIDE),)
    assert kinds(reconcile(plan(wanted), BOUNDS, [runs("a"), runs("b", ready=False)])) == [
        ("Resize", "a"),
        ("Drain", "b"),
    ]


def test_spares_stay_up_to_the_least():
    """Ready ones first, the rest goes."""
    actions = reconcile(plan(), bounded(least=1), [runs("a", ready=False), runs("b")])
    assert kinds(actions) == [("Drain", "a")]


def test_the_least_is_filled_up_with_spares():
    """Each with the spare's configuration."""
    actions = reconcile(plan(), bounded(least=2), [])
    assert actions == (Start(function="f", configuration=SMALL, reason="keeps the least of 2"),) * 2


def test_never_more_than_the_most():
    """Kept ones count first, whatever their names, and the largest stay."""
    wanted = plan(planned("a", up_rps=1), planned("b", up_rps=2), planned("0", PlanAction.START))
    assert kinds(reconcile(wanted, bounded(most=2), [runs("a"), runs("b")])) == []
    assert kinds(reconcile(wanted, bounded(most=1), [runs("a"), runs("b")])) == [("Drain", "a")]


def test_a_removed_function_is_drained():
    """Whatever the plan says of it."""
    assert reconcile(plan(planned("a")), {}, [runs("a")]) == (Drain(id="a", reason="its function was removed"),)


def test_the_last_ready_instance_waits_for_its_heir():
    """A plan may keep one that still starts; dropping the other one now would leave nobody."""
    actions = reconcile(plan(planned("b")), BOUNDS, [runs("a"), runs("b", ready=False)])
    assert actions == (HandOver(id="a", to="b"),)


def test_an_instance_that_is_being_replaced_is_left_alone():
    """It is drained when the new one is ready, not before."""
    actual = [runs("a"), runs("b", WIDE, ready=False, replaces="a")]
    assert reconcile(plan(planned("b", configuration=WIDE)), BOUNDS, actual) == ()


def test_a_replacement_that_nobody_wants_any_more():
    """The plan went back to the old one."""
    actual = [runs("a"), runs("b", WIDE, ready=False, replaces="a")]
    assert kinds(reconcile(plan(planned("a")), BOUNDS, actual)) == [("Drain", "b")]


def test_where_nothing_is_wanted_everything_goes():
    """Scale to zero."""
    assert kinds(reconcile(plan(), BOUNDS, [runs("a"), runs("b", ready=False)])) == [("Drain", "a"), ("Drain", "b")]


@pytest.mark.parametrize("order", [1, -1])
def test_the_order_of_what_runs_does_not_matter(order):
    """A decision depends on the situation only."""
    actual = [runs("a"), runs("b"), runs("c", ready=False)][::order]
    assert reconcile(plan(planned("b")), bounded(least=2), actual) == (Drain(id="c", reason="not in the plan"),)


def test_starts_come_before_drains():
    """Of all functions."""
    bounds = {**bounded(least=1), "a": Bounds(least=0, most=1, spare=SMALL)}
    actions = reconcile(plan(), bounds, [runs("x", function="a")])
    assert kinds(actions) == [("Start", "f"), ("Drain", "x")]
