"""Reconciling on a simulated fleet: it arrives at the plan, stays there, and never leaves a function without anybody."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from infless_core.model import Configuration, Plan, PlanAction, PlannedInstance, PlanStatus
from infless_provider.reconcile import Actual, Bounds, Drain, HandOver, Replace, Resize, Start, reconcile

CONFIGURATIONS = [Configuration(batch=b, cpu_cores=c, gpu_percent=g) for b in (1, 8) for c in (1, 2) for g in (0, 50)]
configurations = st.sampled_from(CONFIGURATIONS)
functions = st.sampled_from(["f", "g"])


@st.composite
def situations(draw):
    """A fleet, bounds, and a plan that a planner could have made for it (or for the fleet of a moment ago)."""
    least = {name: draw(st.integers(0, 3)) for name in "fg"}
    bounds = {
        name: Bounds(least=least[name], most=draw(st.integers(max(1, least[name]), 6)), spare=draw(configurations))
        for name in draw(st.sampled_from(["f", "fg"]))
    }
    fleet = {
        f"i{n}": Actual(
            id=f"i{n}", function=draw(functions), configuration=draw(configurations), ready=draw(st.booleans())
        )
        for n in range(draw(st.integers(0, 5)))
    }
    ids = [*fleet, "vanished"]
    keeps = draw(st.lists(st.sampled_from(ids), unique=True, max_size=3)) if ids else []
    planned = [
        _planned(id_, fleet[id_].function if id_ in fleet else "f", draw(configurations), PlanAction.KEEP, n)
        for n, id_ in enumerate(keeps)
    ]
    planned += [
        _planned(f"f-{n}", draw(functions), draw(configurations), PlanAction.START, 10 + n)
        for n in range(draw(st.integers(0, 3)))
    ]
    return _plan(planned), bounds, fleet


def _planned(id_, function, configuration, action, up_rps):
    return PlannedInstance(
        id=id_, function=function, server="s", gpu=None, configuration=configuration,
        rate_low_rps=0, rate_up_rps=up_rps, rate_rps=1, action=action,
    )  # fmt: skip


def _plan(planned):
    return Plan(status=PlanStatus.FEASIBLE, solver="s", solve_s=0, objective=0, bound=0, instances=tuple(planned))


def execute(actions, fleet):
    """What a backend does, up to the moment before the new ones are ready."""
    fleet = dict(fleet)
    for n, action in enumerate(actions):
        match action:
            case Start(function=function, configuration=configuration):
                fleet[f"new{n}"] = Actual(id=f"new{n}", function=function, configuration=configuration, ready=False)
            case Replace(id=id_, function=function, configuration=configuration):
                fleet[f"new{n}"] = Actual(
                    id=f"new{n}", function=function, configuration=configuration, ready=False, replaces=id_
                )  # fmt: skip
            case Resize(id=id_, configuration=configuration):
                fleet[id_] = replace(fleet[id_], configuration=configuration)
            case HandOver(id=id_, to=heir):
                fleet[heir] = replace(fleet[heir], replaces=id_)
            case Drain(id=id_):
                del fleet[id_]
    return fleet


def settled(fleet):
    """Everything that starts has become ready, and what it replaces is gone."""
    gone = {instance.replaces for instance in fleet.values()}
    return {id_: replace(one, ready=True, replaces=None) for id_, one in fleet.items() if id_ not in gone}


def of(fleet, function, *, ready=False):
    """A function's instances."""
    return [one for one in fleet.values() if one.function == function and (one.ready or not ready)]


@given(situations())
def test_the_fleet_becomes_the_plan_plus_spares(situation):
    """Planned configurations run, as many as allowed; the rest is what the least asks for."""
    plan, bounds, fleet = situation
    after = settled(execute(reconcile(plan, bounds, fleet.values()), fleet))
    assert {one.function for one in after.values()} <= set(bounds)
    for function, bound in bounds.items():
        planned = [one for one in plan.instances if one.function == function]
        assert len(of(after, function)) == max(min(len(planned), bound.most), bound.least)
        if len(planned) <= bound.most:
            running = [one.configuration for one in of(after, function)]
            for one in planned:
                running.remove(one.configuration)


@given(situations())
def test_nothing_is_started_beside_what_is_thrown_away(situation):
    """What can be changed in place is; only another share of a GPU needs another process."""
    plan, bounds, fleet = situation
    actions = reconcile(plan, bounds, fleet.values())
    started = {(a.function, a.configuration.gpu_percent) for a in actions if isinstance(a, Start)}
    drained = {(fleet[a.id].function, fleet[a.id].configuration.gpu_percent) for a in actions if isinstance(a, Drain)}
    assert not started & drained


@given(situations())
def test_it_never_drains_below_the_least(situation):
    """Counting what runs or starts."""
    plan, bounds, fleet = situation
    after = execute(reconcile(plan, bounds, fleet.values()), fleet)
    for function, bound in bounds.items():
        assert len(of(after, function)) >= bound.least


@given(situations())
def test_it_never_takes_the_last_ready_instance(situation):
    """As long as the function is to have any: the others have to be ready first."""
    plan, bounds, fleet = situation
    after = execute(reconcile(plan, bounds, fleet.values()), fleet)
    for function in bounds:
        if of(fleet, function, ready=True) and of(after, function):
            assert of(after, function, ready=True)


@given(situations())
def test_reconciling_again_gives_no_action(situation):
    """The plan as the planner would say it now: what it started is kept."""
    plan, bounds, fleet = situation
    after = settled(execute(reconcile(plan, bounds, fleet.values()), fleet))
    planned = []
    for function, bound in bounds.items():
        free = of(after, function)
        wanted = sorted((one for one in plan.instances if one.function == function), key=lambda one: -one.rate_up_rps)
        for one in wanted:
            same = next((i for i in free if i.configuration == one.configuration), None)
            if same is not None and sum(p.function == function for p in planned) < bound.most:
                free.remove(same)
                planned.append(replace(one, id=same.id, action=PlanAction.KEEP))
    assert reconcile(_plan(planned), bounds, after.values()) == ()


@given(situations(), st.randoms(use_true_random=False))
def test_the_order_of_what_runs_does_not_matter(situation, random):
    """Nor that of the plan's instances."""
    plan, bounds, fleet = situation
    actual, instances = list(fleet.values()), list(plan.instances)
    before = reconcile(plan, bounds, actual)
    random.shuffle(actual)
    random.shuffle(instances)
    assert reconcile(_plan(instances), bounds, actual) == before
