"""The independent check: a good plan passes, and each broken rule is caught."""

from dataclasses import replace

import pytest

from infless_core.errors import PlanRejected
from infless_core.labels import GpuWish
from infless_core.model import (
    Configuration,
    FunctionDemand,
    Gpu,
    Interference,
    Plan,
    PlanAction,
    PlannedInstance,
    PlanStatus,
    Problem,
    ProfilePoint,
    Running,
    Server,
    Unserved,
)
from infless_scheduler.check import check

CPU = Configuration(batch=4, cpu_cores=2)
ON_GPU = Configuration(batch=4, cpu_cores=1, gpu_percent=60)
SLOW = Configuration(batch=8, cpu_cores=1)
PROBLEM = Problem(
    beta=0.5,
    servers=(
        Server(id="s", cpu_cores=4, memory_bytes=100, gpus=(Gpu(id="g", memory_bytes=50), Gpu(id="h", memory_bytes=1))),
        Server(id="t", cpu_cores=4, memory_bytes=100),
    ),
    functions=(
        FunctionDemand(
            id="f", latency_target_s=0.2, rate_rps=100, max_batch=4,
            profile=(
                ProfilePoint(configuration=CPU, exec_s=0.05, memory_bytes=60),
                ProfilePoint(configuration=ON_GPU, exec_s=0.05, memory_bytes=40, gpu_memory_bytes=30),
                ProfilePoint(configuration=SLOW, exec_s=0.15),
            ),
        ),
    ),
    running=(
        Running(id="f-1", function="f", server="s", gpu=None, configuration=CPU),
        Running(id="f-9", function="f", server="t", gpu=None, configuration=CPU),
    ),
)  # fmt: skip
KEPT = PlannedInstance(
    id="f-1", function="f", server="s", gpu=None, configuration=CPU,
    rate_low_rps=28, rate_up_rps=80, rate_rps=50, action=PlanAction.KEEP,
)  # fmt: skip
STARTED = replace(KEPT, id="f-2", gpu="g", configuration=ON_GPU, rate_rps=45, action=PlanAction.START)
GOOD = Plan(
    status=PlanStatus.FEASIBLE, solver="by hand", solve_s=0, objective=202, bound=200, instances=(KEPT, STARTED),
    stop=("f-9",), unserved=(Unserved(function="f", rate_rps=5, reason="for the test"),),
    servers_used=1, allocated=61.5, fragmentation=1 - 61.5 / 202,
)  # fmt: skip


def _with_first(**changes):
    return replace(GOOD, instances=(replace(KEPT, **changes), STARTED))


def _with_second(**changes):
    return replace(GOOD, instances=(KEPT, replace(STARTED, **changes)))


def test_good_plan_passes():
    """It keeps every rule."""
    check(PROBLEM, GOOD)


@pytest.mark.parametrize(
    ("plan", "fault"),
    [
        (_with_second(id="f-1"), "its id is there twice"),
        (_with_second(function="x"), "there is no function x"),
        (_with_second(server="x"), "there is no server x"),
        (_with_second(gpu="x"), "has no GPU x"),
        (_with_second(server="t"), "server t has no GPU g"),
        (_with_second(gpu=None), "a GPU is given iff"),
        (_with_first(gpu="g"), "a GPU is given iff"),
        (_with_first(configuration=Configuration(batch=4, cpu_cores=3)), "is not in the profile"),
        (_with_first(configuration=SLOW), "batch 8 is above 4"),
        (_with_first(configuration=SLOW), "cannot meet 0.2 s"),
        (_with_first(rate_up_rps=84), "above the formula's 80"),
        (_with_first(rate_up_rps=76), "not the formula's 80"),
        (_with_first(rate_low_rps=24), "not the formula's 28"),
        (_with_first(rate_rps=81), "outside [0, 80]"),
        (_with_first(rate_rps=-1), "outside [0, 80]"),
        (_with_first(rate_rps=51), "101.0 requests a second in the plan, 100 in the problem"),
        (replace(GOOD, unserved=()), "95.0 requests a second in the plan"),
        (replace(GOOD, unserved=GOOD.unserved * 2), "unserved twice"),
        (replace(GOOD, unserved=(Unserved(function="f", rate_rps=5, reason=""),)), "have a reason"),
        (replace(GOOD, unserved=(*GOOD.unserved, Unserved(function="x", rate_rps=5, reason="r"))), "no function x"),
        (_with_second(id="f-3", gpu="h"), "server s, GPU h: 30 bytes given"),
        (replace(GOOD, instances=(KEPT, STARTED, replace(STARTED, id="f-3"))), "GPU g: 120 percent"),
        (replace(GOOD, instances=(KEPT, STARTED, replace(STARTED, id="f-3"))), "140 bytes of memory given"),
        (replace(GOOD, instances=(KEPT, *[replace(KEPT, id=f"f-{n}") for n in (3, 4)])), "6 cpu cores given"),
        (_with_first(action=PlanAction.START), "action start but it runs"),
        (_with_second(action=PlanAction.RESIZE), "but it does not run"),
        (_with_first(action=PlanAction.RESIZE), "action resize, (b=4, c=2, g=0%) to (b=4, c=2, g=0%)"),
        (_with_first(server="t"), "and cannot move"),
        (replace(GOOD, stop=()), "stop []"),
        (replace(GOOD, stop=("f-1", "f-9")), "running and not planned are ['f-9']"),
        (replace(GOOD, objective=204.0), "objective 204.0"),
        (replace(GOOD, servers_used=2), "servers_used 2"),
        (replace(GOOD, allocated=61.0), "allocated 61.0"),
        (replace(GOOD, fragmentation=0.5), "fragmentation 0.5"),
        (replace(GOOD, bound=203.0), "bound 203.0"),
        (replace(GOOD, status=PlanStatus.INFEASIBLE), "status infeasible with 2 instances"),
    ],
)  # fmt: skip
def test_each_broken_rule_is_caught(plan, fault):
    """A plan that breaks one rule is refused, and the fault says which."""
    with pytest.raises(PlanRejected) as rejected:
        check(PROBLEM, plan)
    assert any(fault in line for line in rejected.value.faults), rejected.value.faults


SLOWER = Interference(cpu=((0.0, 1.0), (1.0, 1.5)), gpu=((0.0, 1.0), (0.4, 1.2)))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"gpu": GpuWish.NEVER}, "function f: 1 instances have a GPU, it must not have one"),
        ({"gpu": GpuWish.REQUIRE}, "function f: 1 instances have no GPU, it requires one"),
        ({"instances_max": 1}, "function f: 2 instances, at most 1 are allowed"),
    ],
)
def test_wishes_of_functions(changes, fault):
    """A plan that is good in every other respect is refused when it breaks a wish."""
    wished = replace(PROBLEM, functions=(replace(PROBLEM.functions[0], **changes),))
    with pytest.raises(PlanRejected, match=fault):
        check(wished, GOOD)


def test_missing_instances_are_refused_unless_the_plan_says_so():
    """Below the minimum without a word is a fault; with a reason it is what could be had."""
    wished = replace(PROBLEM, functions=(replace(PROBLEM.functions[0], instances_min=3, rate_rps=95),))
    with pytest.raises(PlanRejected, match="2 instances, at least 3 are wanted"):
        check(wished, replace(GOOD, unserved=()))
    told = (Unserved(function="f", rate_rps=0, reason="1 of at least 3 instances are missing: no room"),)
    check(wished, replace(GOOD, unserved=told))
    with pytest.raises(PlanRejected, match="called unserved but lacks nothing"):
        check(replace(PROBLEM, functions=(replace(PROBLEM.functions[0], rate_rps=95),)), replace(GOOD, unserved=told))


def test_nothing_is_placed_on_a_server_that_drains():
    """However much room it has."""
    draining = replace(PROBLEM, servers=(replace(PROBLEM.servers[0], draining=True), PROBLEM.servers[1]))
    with pytest.raises(PlanRejected, match="server s: it is being drained, 2 instances are on it"):
        check(draining, GOOD)


def test_neighbours_are_counted_by_the_servers_table():
    """Half the cores to others: factor 1.25, 62.5 ms, 16 batches of 4; on the GPU 1.375 times 1.2: 82.5 ms, 12."""
    slow = replace(PROBLEM, interference=SLOWER)
    with pytest.raises(PlanRejected, match="rate_up 80 is above the formula's 64"):
        check(slow, GOOD)
    first = replace(KEPT, rate_up_rps=64, rate_low_rps=32)
    second = replace(STARTED, rate_up_rps=48, rate_low_rps=36)
    check(slow, replace(GOOD, instances=(first, second)))
    own = replace(slow, servers=(replace(PROBLEM.servers[0], interference=Interference()), PROBLEM.servers[1]))
    check(own, GOOD)


def test_percentile_may_only_lower_the_window():
    """With a stated percentile a smaller rate_up passes, a larger one does not."""
    strict = replace(PROBLEM, functions=(replace(PROBLEM.functions[0], latency_percentile=99.0),))
    check(strict, replace(GOOD, instances=(replace(KEPT, rate_up_rps=60), replace(STARTED, rate_up_rps=60))))
    with pytest.raises(PlanRejected, match="above the formula"):
        check(strict, _with_first(rate_up_rps=84))


def test_percentile_must_lower_the_window():
    """The paper's own rate is too much where arrivals come by chance, and far too much where they come in bursts."""
    strict = replace(PROBLEM, functions=(replace(PROBLEM.functions[0], latency_percentile=99.0, arrival_cv=4.0),))
    with pytest.raises(PlanRejected, match=r"rate_up 80 is above .* too much for percentile 99"):
        check(strict, GOOD)


def test_optimal_means_proven():
    """A gap and the word do not go together."""
    with pytest.raises(PlanRejected, match="only 200 of the objective 202 is proven"):
        check(PROBLEM, replace(GOOD, status=PlanStatus.OPTIMAL))
    check(PROBLEM, replace(GOOD, status=PlanStatus.OPTIMAL, bound=202))


def test_nothing_served_must_be_called_infeasible():
    """An empty plan for a rate above zero is no plan."""
    empty = Plan(
        status=PlanStatus.FEASIBLE, solver="by hand", solve_s=0, objective=0, bound=0, stop=("f-1", "f-9"),
        unserved=(Unserved(function="f", rate_rps=100, reason="for the test"),),
    )  # fmt: skip
    check(PROBLEM, replace(empty, status=PlanStatus.INFEASIBLE))
    with pytest.raises(PlanRejected, match="status feasible with 0 instances"):
        check(PROBLEM, empty)


@pytest.mark.parametrize(
    ("batch", "exec_s", "target_s", "low", "up"),
    [(1, 1 / 11, 1.0, 0, 11), (4, 2.0, 5.0, 4 / 3, 2.0), (4, 0.1, 0.3, 20, 40), (4, 0.095, 0.192, 40, 40)],
)
def test_check_knows_the_formulas_edges(batch, exec_s, target_s, low, up):
    """It computes windows by itself, at whole quotients and for slow models too."""
    shape = Configuration(batch=batch, cpu_cores=2)
    point = ProfilePoint(configuration=shape, exec_s=exec_s, memory_bytes=60)
    function = replace(PROBLEM.functions[0], profile=(point,), latency_target_s=target_s, rate_rps=up)
    instance = replace(
        KEPT, configuration=shape, rate_low_rps=low, rate_up_rps=up, rate_rps=up, action=PlanAction.START
    )
    totals = {"allocated": 1.0, "fragmentation": 1 - 1 / 202}
    plan = replace(GOOD, instances=(instance,), unserved=(), stop=(), **totals)
    check(replace(PROBLEM, functions=(function,), running=()), plan)
