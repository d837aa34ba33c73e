"""What the provider knows of a function: how many it wants, which serve, and how fast they are taken to be."""

import math
from dataclasses import replace

import pytest

from infless_core.labels import Wishes
from infless_core.lifecycle import Event, Phase
from infless_core.model import Configuration, FunctionSpec, ProfilePoint
from infless_provider.backends.base import Address
from infless_provider.functions import HEADROOM, FunctionState, Instance, within_limits
from infless_provider.state import StoredFunction, Version
from infless_scheduler.autoscale import RateEstimate

PROFILE = tuple(
    ProfilePoint(configuration=Configuration(batch=b, cpu_cores=c), exec_s=t)
    for b, c, t in ((1, 1, 0.01), (8, 1, 0.04), (16, 1, 0.4), (16, 2, 0.1))
)
VERSION = Version(spec=FunctionSpec(name="f", image="i", namespace="n"), artifact="/b", digest="new")


def function(replicas=None, profile=PROFILE, **wishes):
    """A function at run time."""
    stored = StoredFunction(version=VERSION, created_at_s=0, replicas=replicas)
    return FunctionState(stored=stored, wishes=Wishes(**wishes), profile=profile, wanted_at_s=0.0)


def instance(id_, *events, version=VERSION.id, configuration=PROFILE[0].configuration):
    """An instance after some events."""
    address = Address(host="h", port=1, metrics_port=2, handle={})
    made = Instance(
        id=id_, function="f.n", version=version, configuration=configuration,
        address=address, upstream=None, reason="", started_at_s=0,
    )  # fmt: skip
    for event in events:
        made.advance(event)
    return made


def with_instances(function, *instances):
    """The function with its instances."""
    function.instances = {one.id: one for one in instances}
    return function


@pytest.mark.parametrize(
    ("replicas", "wishes", "idle_s", "least"),
    [
        (None, {}, 10_000, 1),
        (None, {"scale_min": 3}, 10_000, 3),
        (None, {"scale_min": 0}, 899, 1),
        (None, {"scale_min": 0}, 901, 0),
        (None, {"scale_min": 0, "scale_to_zero": True, "zero_after_s": 60}, 59, 1),
        (None, {"scale_min": 0, "scale_to_zero": True, "zero_after_s": 60}, 61, 0),
        (None, {"scale_min": 2, "scale_to_zero": True, "zero_after_s": 60}, 59, 2),
        (None, {"scale_min": 2, "scale_to_zero": True, "zero_after_s": 60}, 61, 0),
        (4, {}, 10_000, 4),
        (4, {"scale_max": 2}, 10_000, 2),
        (4, {"scale_to_zero": True, "zero_after_s": 60}, 61, 0),
        (0, {}, 901, 0),
        (0, {}, 5, 1),
    ],
)
def test_how_many_it_wants_at_least(replicas, wishes, idle_s, least):
    """By hand, by label, and for a while after it was wanted."""
    assert function(replicas, **wishes).least(idle_s) == least


def test_scaled_to_zero_by_hand_takes_effect_at_once():
    """Nobody has wanted it since."""
    sleeping = function(0)
    sleeping.wanted_at_s = -math.inf
    assert sleeping.least(0.0) == 0


def test_a_request_in_the_making_keeps_it_awake():
    """However long it takes."""
    busy = function(scale_min=0)
    busy.in_flight = 1
    assert busy.least(1e6) == 1


def test_current_are_starting_or_ready_ones_of_the_newest_version():
    """By id."""
    f = with_instances(
        function(), instance("c", Event.READY), instance("b"), instance("a", Event.DRAIN), instance("d", version="old")
    )  # fmt: skip
    assert [i.id for i in f.current()] == ["b", "c"]
    assert [i.id for i in f.undrained()] == ["b", "c", "d"]


def test_an_update_is_served_by_both_versions():
    """Whoever is ready."""
    f = with_instances(
        function(), instance("a", Event.READY, version="old"), instance("b", Event.READY), instance("c"), instance("d", Event.DRAIN)
    )  # fmt: skip
    assert [i.id for i in f.serving()] == ["a", "b"]
    assert f.available() == 2


def test_requests_go_to_who_serves():
    """Weights follow the windows; one without a window gets nothing while others are there."""
    unknown = Configuration(batch=3, cpu_cores=7)
    f = with_instances(function(), instance("a", Event.READY), instance("b", Event.READY, configuration=unknown))
    f.estimate = f.estimate.after(10)
    f.reweigh()
    assert {f.dispatcher.choose() for _ in range(20)} == {"a"}


def test_a_spare_has_the_fewest_cores_and_the_largest_batch_in_time():
    """16 on one core would take longer than half of the target."""
    assert function(latency_target_s=0.5).spare() == Configuration(batch=8, cpu_cores=1)


def test_a_spare_without_a_profile():
    """As large a batch as the user allows: nothing speaks against it."""
    assert function(profile=(), batch_max=16).spare() == Configuration(batch=16, cpu_cores=1)


def test_speed_is_learned_where_it_cannot_be_timed():
    """A quarter of the target at first, then what was seen, with a margin."""
    f = function(profile=(), latency_target_s=0.4)
    assert f.demand(1.0).profile[0].exec_s == pytest.approx(0.1)
    f.observe(0.01)
    assert f.demand(1.0).profile[0].exec_s == pytest.approx(0.011)
    f.observe(0.02)
    assert f.observed_exec_s == pytest.approx(0.011)


def test_learned_speed_never_exceeds_the_target():
    """Else the function could not be planned at all."""
    f = function(profile=(), latency_target_s=0.4)
    f.observe(5.0)
    assert f.demand(1.0).profile[0].exec_s == 0.4


def test_a_trickle_counts_as_idle():
    """Below one request in ten seconds no cores are planned."""
    f = function()
    f.estimate = f.estimate.after(1)
    assert f.rate_rps == HEADROOM
    for _ in range(100):
        f.estimate = f.estimate.after(0)
    assert f.rate_rps == 0.0


def test_phases_begin_at_starting():
    """An instance is born so."""
    assert instance("a").phase is Phase.STARTING


@pytest.mark.parametrize(
    "awake",
    [
        {"arrived": 1},
        {"planned_rps": 1.0},
        {"retry_at_s": 5.0},
        {"waiters": [None]},
        {"estimate": RateEstimate((1.0,), 1.0)},
        {"instances": {"a": None}},
    ],
)
def test_who_sleeps(awake):
    """Nothing of it runs, comes, waits or was planned; anything of that wakes it."""
    asleep = function(scale_min=0)
    assert asleep.sleeps()
    assert not replace(asleep, **awake).sleeps()


def test_limits_cpu_is_the_most_cores_of_a_configuration() -> None:
    """Whole ones, and at least one."""
    profile = tuple(
        ProfilePoint(configuration=Configuration(batch=1, cpu_cores=cores), exec_s=0.1 / cores) for cores in (1, 2, 4)
    )
    for limit, most in (("500m", 1), ("1", 1), ("2500m", 2), ("16", 4)):
        spec = FunctionSpec(name="f", image="i", namespace="n", limits={"cpu": limit})
        assert max(one.configuration.cpu_cores for one in within_limits(spec, profile)) == most
    assert within_limits(FunctionSpec(name="f", image="i", namespace="n"), profile) == profile
