"""Values that cannot be built invalid."""

import math

import pytest

from infless_core.errors import InvalidInput, PlanRejected
from infless_core.model import Configuration, FunctionDemand, FunctionSpec, Gpu, Plan, PlanStatus, ProfilePoint, Server

ONE = Configuration(batch=1, cpu_cores=1)


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"cpu_cores": 0}, {"gpu_percent": -1}, {"gpu_percent": 101}])
def test_configuration(wrong):
    """At least one request and one core, a GPU share is a percentage."""
    with pytest.raises(InvalidInput):
        Configuration(**{"batch": 1, "cpu_cores": 1, **wrong})


@pytest.mark.parametrize("wrong", [{"exec_s": 0}, {"exec_s": math.nan}, {"exec_s": math.inf}, {"memory_bytes": -1}])
def test_profile_point(wrong):
    """Execution takes time, and a finite one."""
    with pytest.raises(InvalidInput):
        ProfilePoint(**{"configuration": ONE, "exec_s": 1.0, **wrong})


@pytest.mark.parametrize(
    "wrong",
    [{"latency_target_s": 0}, {"rate_rps": -1}, {"rate_rps": math.nan}, {"rate_rps": math.inf}, {"max_batch": 0}],
)
def test_function_demand(wrong):
    """A demand is finite, a target above zero."""
    with pytest.raises(InvalidInput):
        FunctionDemand(**{"id": "f", "latency_target_s": 1, "rate_rps": 1, "max_batch": 1, "profile": (), **wrong})


def test_servers_and_gpus():
    """No machine without cores, no negative memory."""
    with pytest.raises(InvalidInput):
        Server(id="s", cpu_cores=0, memory_bytes=0)
    with pytest.raises(InvalidInput):
        Gpu(id="g", memory_bytes=-1)


def test_a_function_is_known_by_name_and_namespace():
    """The key in routes, metrics and state."""
    assert FunctionSpec(name="f", image="i", namespace="n").key == "f.n"


@pytest.mark.parametrize(("objective", "bound", "gap"), [(2.0, 2.0, 0.0), (2.0, 1.0, 0.5), (0.0, 0.0, 0.0)])
def test_gap(objective, bound, gap):
    """The proven distance from the best possible objective."""
    plan = Plan(status=PlanStatus.FEASIBLE, solver="s", solve_s=0, objective=objective, bound=bound)
    assert plan.gap == gap


def test_a_rejected_plan_carries_every_fault():
    """As data, not only as text."""
    rejected = PlanRejected(("too full", "too slow"))
    assert rejected.faults == ("too full", "too slow")
    assert "2 rule(s): too full; too slow" in str(rejected)
