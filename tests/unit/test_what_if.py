"""What-if: every subject and operator, what names mean, every fault of a text, and the comparison of two plans."""

from dataclasses import replace

import pytest

from infless_core.errors import InvalidInput
from infless_core.labels import GpuWish
from infless_core.model import (
    Configuration,
    FunctionDemand,
    Gpu,
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
from infless_scheduler import what_if_servers
from infless_scheduler.comparison import Pair, compare, comparison_as_text, comparison_to_json
from infless_scheduler.planner import plan
from infless_scheduler.problem_file import parse_problem, problem_to_json
from infless_scheduler.what_if import WhatIfError, apply_changes

ONE = Configuration(batch=4, cpu_cores=2)
PROFILE = (ProfilePoint(configuration=ONE, exec_s=0.05), ProfilePoint(configuration=replace(ONE, batch=1), exec_s=0.02))


def function(id_, **fields):
    """A function that one instance serves."""
    common = {"latency_target_s": 0.2, "rate_rps": 40.0, "max_batch": 4, "profile": PROFILE}
    return FunctionDemand(id=id_, **{**common, **fields})


def server(id_, gpus=0, **fields):
    """A server of 16 cores."""
    own = tuple(Gpu(id=f"g{n}", memory_bytes=2**34) for n in range(gpus))
    return Server(**{"id": id_, "cpu_cores": 16, "memory_bytes": 2**36, "gpus": own, **fields})


PROBLEM = Problem(
    servers=(server("s9"), server("s10"), server("b0", gpus=2, kind="big"), server("b1", gpus=2, kind="big")),
    functions=(
        function("resnet.prod", latency_percentile=95.0, instances_max=3),
        function("resnet.test", rate_rps=0.0),
        function("lstm.prod", instances_min=1),
    ),
    running=(
        Running(id="lstm-1", function="lstm.prod", server="s10", gpu=None, configuration=ONE),
        Running(id="lstm-2", function="lstm.prod", server="b1", gpu=None, configuration=ONE),
    ),
)


def changed(text, id_="lstm.prod", problem=PROBLEM):
    """A function after changes; the changed problem is one that a plan file can hold."""
    made = apply_changes(problem, text)
    assert parse_problem(problem_to_json(made)) == made
    return next(function for function in made.functions if function.id == id_)


def servers(text, problem=PROBLEM):
    """Ids of the servers after changes."""
    made = apply_changes(problem, text)
    assert parse_problem(problem_to_json(made)) == made
    return [one.id for one in made.servers]


def faults(text, problem=PROBLEM):
    """The lines about a wrong text."""
    with pytest.raises(InvalidInput) as caught:
        apply_changes(problem, text)
    assert isinstance(caught.value, WhatIfError)
    assert str(caught.value) == "\n".join(caught.value.faults)
    return list(caught.value.faults)


@pytest.mark.parametrize(
    ("text", "attribute", "value"),
    [
        ("rate.lstm=20", "rate_rps", 20.0),
        (" rate.lstm  =  2.5x ", "rate_rps", 100.0),
        ("rate.lstm=+20%", "rate_rps", 48.0),
        ("rate.lstm=-20%", "rate_rps", 32.0),
        ("rate.lstm+=2.5", "rate_rps", 42.5),
        ("rate.lstm-=40", "rate_rps", 0.0),
        ("rate.lstm=0", "rate_rps", 0.0),
        ("target.lstm=150ms", "latency_target_s", 0.15),
        ("target.lstm=2", "latency_target_s", 2.0),
        ("target.lstm-=50ms", "latency_target_s", 0.15),
        ("target.lstm=1.5x", "latency_target_s", 0.3),
        ("percentile.lstm=99", "latency_percentile", 99.0),
        ("cv.lstm=2x", "arrival_cv", 2.0),
        ("batch.lstm=2x", "max_batch", 8),
        ("batch.lstm-=3", "max_batch", 1),
        ("gpu.lstm=never", "gpu", GpuWish.NEVER),
        ("min.lstm+=2", "instances_min", 3),
        ("max.lstm=7", "instances_max", 7),
        ("exec.lstm=2x", "profile", tuple(replace(point, exec_s=2 * point.exec_s) for point in PROFILE)),
        ("rate.lstm=2x,rate.lstm+=1", "rate_rps", 81.0),
        ("min.lstm=5,max.lstm=4,min.lstm=3", "instances_min", 3),
    ],
)
def test_what_a_change_does_to_a_function(text, attribute, value):
    """It sets that attribute, and nothing else of any function."""
    made = changed(text)
    assert getattr(made, attribute) == value
    before = PROBLEM.functions[2]
    most = made.instances_max if "max." in text else None
    assert made == replace(before, **{"instances_max": most, attribute: value})
    assert apply_changes(PROBLEM, text).functions[:2] == PROBLEM.functions[:2]


@pytest.mark.parametrize("text", ["percentile.resnet.prod=none", "max.resnet.prod=none"])
def test_none_takes_a_limit_away(text):
    """Of functions that have one."""
    made = changed(text, "resnet.prod")
    assert None in (made.latency_percentile, made.instances_max)


@pytest.mark.parametrize(
    ("text", "attribute", "value"),
    [
        ("alpha=0.5", "alpha", 0.5),
        ("beta=1", "beta", 1.0),
        ("beta=price:0.034/2.5", "beta", 1.36),
        ("churn_cost+=3", "churn_cost", 3.0),
    ],
)
def test_what_a_change_does_to_all(text, attribute, value):
    """Settings of the problem have no name."""
    assert apply_changes(PROBLEM, text) == replace(PROBLEM, **{attribute: value})


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("resnet.test", ["resnet.test"]),
        ("lstm", ["lstm.prod"]),
        ("*", ["resnet.prod", "resnet.test", "lstm.prod"]),
        ("*.prod", ["resnet.prod", "lstm.prod"]),
        ("resne?", ["resnet.prod", "resnet.test"]),
        ("[l]stm", ["lstm.prod"]),
    ],
)
def test_names_of_functions(name, ids):
    """The id, the name without its namespace, or a wildcard for either."""
    assert [f.id for f in apply_changes(PROBLEM, f"rate.{name}=7").functions if f.rate_rps == 7] == ids


def test_an_id_that_looks_like_a_wildcard():
    """It means itself first; equals signs are part of it, too."""
    problem = replace(PROBLEM, functions=(function("a*"), function("ab"), function("x=y")), running=())
    assert [f.rate_rps for f in apply_changes(problem, "rate.a*=1,rate.x=y=2").functions] == [1, 40, 2]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("servers.big+=2", ["s9", "s10", "b0", "b1", "big-what-if-1", "big-what-if-2"]),
        ("servers.gpu=3", ["s9", "s10", "b0", "b1", "gpu-what-if-1"]),
        ("servers.s9=2x", ["s9", "s10", "b0", "b1", "s9-what-if-1", "s9-what-if-2"]),
        ("servers.all=2x", ["s9", "s10", "b0", "b1", "s9-what-if-1", "s9-what-if-2", "b0-what-if-1", "b0-what-if-2"]),
        ("servers.b*+=1", ["s9", "s10", "b0", "b1", "b0-what-if-1"]),
        ("servers.s*+=1", ["s9", "s10", "b0", "b1", "s9-what-if-1"]),
        ("servers.cpu+=1,servers.cpu+=1", ["s9", "s10", "b0", "b1", "cpu-what-if-1", "cpu-what-if-2"]),
        ("servers.cpu=0", ["b0", "b1"]),
        ("servers.cpu=0.5x", ["s10", "b0", "b1"]),
        ("servers.big-=1", ["s9", "s10", "b1"]),
        ("servers.all=1", ["b1"]),
        ("servers.cpu+=1,servers.cpu-=2", ["s10", "b0", "b1"]),
        ("servers.all=+50%", ["s9", "s10", "b0", "b1", "s9-what-if-1", "b0-what-if-1"]),
    ],
)
def test_servers(text, ids):
    """Copies are added; those without instances go first, of these the added ones and then the last ids."""
    assert servers(text) == ids


def test_added_servers_are_copies():
    """But never drained ones."""
    made = apply_changes(PROBLEM, "drain.b0,servers.b0+=1")
    assert made.servers[-1] == replace(PROBLEM.servers[2], id="b0-what-if-1")


def test_what_runs_on_removed_servers_is_gone():
    """The rest goes on running."""
    assert [one.id for one in apply_changes(PROBLEM, "servers.big=0").running] == ["lstm-1"]


def test_last_means_the_highest_number():
    """Not the last in the alphabet: s10 comes after s9."""
    assert servers("servers.cpu-=1", replace(PROBLEM, running=())) == ["s9", "b0", "b1"]


@pytest.mark.parametrize(
    ("text", "ids"), [("drain.s9", {"s9"}), ("drain.b*", {"b0", "b1"}), ("drain.*=true,drain.b*=false", {"s9", "s10"})]
)
def test_drains(text, ids):
    """By id or wildcard, undone with false."""
    assert {one.id for one in apply_changes(PROBLEM, text).servers if one.draining} == ids


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "'': a change is missing; write for example rate.resnet=2x, and a comma only between changes"),
        ("rat.lstm=2", "rat.lstm=2: there is no subject 'rat', did you mean rate?; known are rate, target,"),
        ("rate.lstn=2", "rate.lstn=2: there is no function 'lstn', did you mean lstm?; known are resnet.prod,"),
        ("rate.x*=2", "rate.x*=2: there is no function 'x*'; known are resnet.prod, resnet.test, lstm.prod"),
        ("rate.resnet=2", "rate.resnet=2: 'resnet' may be resnet.prod or resnet.test; write one of them"),
        ("rate=2", "rate=2: it names no function; write rate.FUNCTION, or rate.* for all"),
        ("rate.lstm", "rate.lstm: a value is missing; write = and requests/s of at least 0, or a factor such as 2x,"),
        ("rate.lstm=-5", "rate.lstm=-5: '-5' is not allowed; write = and requests/s of at least 0"),
        ("rate.lstm-=50", "rate.lstm-=50: for lstm.prod it would be -10; allowed is requests/s of at least 0"),
        ("rate.lstm+=20%", "rate.lstm+=20%: '20%' is not allowed; after += comes a plain number, 2x and +20% go with ="),
        ("rate.lstm=-200%", "rate.lstm=-200%: for lstm.prod it would be -40; allowed is"),
        ("rate.lstm=150ms", "rate.lstm=150ms: '150ms' is not allowed"),
        ("target.lstm=0ms", "target.lstm=0ms: for lstm.prod it would be 0; allowed is a duration above 0 such as 150ms"),
        ("target.lstm+=x", "target.lstm+=x: 'x' is not allowed; after += comes a duration such as 50ms"),
        ("percentile.lstm=100", "percentile.lstm=100: for lstm.prod it would be 100; allowed is a number above 0 and"),
        ("percentile.lstm+=1", "percentile.lstm+=1: for lstm.prod it is none now; set it with = to a number above 0"),
        ("percentile.lstm=no", "percentile.lstm=no: 'no' is not allowed; write = and a number above 0 and below 100, none,"),
        ("batch.lstm=1.1x", "batch.lstm=1.1x: for lstm.prod it would be 4.4; allowed is a whole number of at least 1"),
        ("gpu.lstm=alow", "gpu.lstm=alow: 'alow' is not allowed, did you mean allow?; write = and one of never, allow,"),
        ("exec.lstm=5ms", "exec.lstm=5ms: '5ms' is not allowed; write = and a factor above 0 such as 1.2x"),
        ("exec.lstm=0x", "exec.lstm=0x: '0x' is not allowed; write = and a factor above 0"),
        ("max.lstm=2,min.lstm=3", "min.lstm=3: min of lstm.prod would be 3, its max 2; allowed is a min of at most max"),
        ("alpha=2", "alpha=2: it would be 2; allowed is a number from 0 to 1"),
        ("alpha.x=1", "alpha.x=1: it is the same for all functions and servers; write alpha=VALUE"),
        ("beta=price:1/0", "beta=price:1/0: 'price:1/0' is not allowed; the price of a GPU is above 0"),
        ("beta=price:1", "beta=price:1: 'price:1' is not allowed; write = and a number of at least 0, price:CORE/GPU"),
        ("drain.s1=maybe", "drain.s1=maybe: there is no server 's1'"),
        ("drain.s9=maybe", "drain.s9=maybe: 'maybe' is not allowed; write drain.NAME alone, or with =true or =false"),
        ("servers.bg+=1", "servers.bg+=1: there is no server or kind of servers 'bg', did you mean"),
        ("servers+=1", "servers+=1: it names no servers; write servers.KIND, servers.all, or servers.ID for those like"),
        ("servers.cpu-=3", "servers.cpu-=3: 2 now (s9, s10); it would be -1; allowed is a whole number of at least 0"),
        ("servers.cpu=1.2x", "servers.cpu=1.2x: 2 now (s9, s10); it would be 2.4; allowed is"),
        ("servers.cpu=99999999x", "servers.cpu=99999999x: 2 now (s9, s10); there would be 200000000 servers; allowed"),
        ("servers.all+=1", "servers.all+=1: 4 now (s9, s10, b0, b1); these servers are of 2 sizes (b0: 16 cores, 64 GiB, 2 GPUs of"),
    ],
)  # fmt: skip
def test_a_fault_says_what_is_wrong_and_what_is_allowed(text, line):
    """In one line that begins with the change."""
    found = faults(text)
    assert found[0].startswith(line)


def test_all_faults_are_told_at_once():
    """Both of one change, and those of all others; the same one only once."""
    found = faults("rate.nobody=abc,,cpu.x=1,rate.lstm=7,batch.*=0.1x,alpha.z=9,rate.*=abc")
    assert [line.partition(":")[0] for line in found] == [
        "rate.nobody=abc", "rate.nobody=abc", "''", "cpu.x=1", "batch.*=0.1x", "batch.*=0.1x", "batch.*=0.1x",
        "alpha.z=9", "alpha.z=9", "rate.*=abc",
    ]  # fmt: skip


def test_servers_that_a_word_means_in_vain():
    """Where there is no GPU, there is nothing to copy."""
    assert faults("servers.gpu+=1,servers.big=0,servers.gpu+=1", replace(PROBLEM, servers=PROBLEM.servers[:2])) == [
        "servers.gpu+=1: no server is meant by 'gpu'; known are gpu, cpu, all, s9, s10",
        "servers.big=0: there is no server or kind of servers 'big'; known are gpu, cpu, all, s9, s10",
    ]


def test_many_names_are_not_all_told(monkeypatch):
    """A cluster has thousands of servers."""
    problem = Problem(servers=tuple(server(f"n{n}") for n in range(30)), functions=())
    assert faults("drain.x", problem)[0].endswith("known are n0, n1, n2, n3, n4, n5, n6, n7 and 22 more")
    assert faults("rate.x=1", problem) == ["rate.x=1: there is no function 'x'; known are none"]
    monkeypatch.setattr(what_if_servers, "SERVERS_MAX", 50)
    one = replace(problem, servers=problem.servers[:1])
    assert len(servers("servers.all=50", one)) == 50
    assert faults("servers.all=51", one) == [
        "servers.all=51: 1 now (n0); there would be 51 servers; allowed are at most 50"
    ]


def test_numbers_are_exact():
    """1.1 times 30 servers are 33, which floating point would not say."""
    problem = Problem(servers=tuple(server(f"n{n}") for n in range(30)), functions=())
    assert len(servers("servers.all=1.1x", problem)) == len(servers("servers.all=+10%", problem)) == 33


def instance(id_, action=PlanAction.START, function="f", **given):
    """One of a plan."""
    return PlannedInstance(
        id=id_, function=function, server="s", gpu=None, configuration=replace(ONE, **given), rate_low_rps=0,
        rate_up_rps=80, rate_rps=40, action=action,
    )  # fmt: skip


def made(objective, *instances, bound=None, **fields):
    """A plan."""
    bound = objective if bound is None else bound
    return Plan(
        status=PlanStatus.FEASIBLE, solver="greedy", solve_s=0, objective=objective, bound=bound, instances=instances, **fields
    )  # fmt: skip


BEFORE = made(10, instance("f-1"), instance("g-1", function="g"), servers_used=1, fragmentation=0.25)
AFTER = made(
    17.5, instance("f-1", PlanAction.KEEP), instance("f-2"), instance("f-3", PlanAction.RESIZE),
    instance("g-1", PlanAction.KEEP, function="g"), bound=12, servers_used=2, fragmentation=0.125, stop=("h-1",),
    unserved=(Unserved(function="f", rate_rps=4.5, reason="cpu cores exhausted"),),
)  # fmt: skip
NOW = Problem(servers=(server("s"),), functions=(function("f"), function("g")), running=PROBLEM.running)
THEN = replace(NOW, functions=(function("f", rate_rps=90.0), function("g")), running=PROBLEM.running[:1])


def test_the_comparison_as_text():
    """Totals, the functions that differ, and what happens to what runs."""
    assert comparison_as_text(compare(BEFORE, AFTER, NOW, THEN)).splitlines() == [
        "               BEFORE  AFTER  DIFFERENCE",
        "objective          10   17.5        +7.5",
        "bound              10     12          +2",
        "servers used        1      2          +1",
        "instances           2      4          +2",
        "allocated           0      0           0",
        "fragmentation   25.0%  12.5%      -12.5%",
        "unserved/s          0    4.5        +4.5",
        "",
        "FUNCTION    RATE/S  INSTANCES   CORES  GPU%  UNSERVED/S",
        "f         40 -> 90     1 -> 3  2 -> 6     0    0 -> 4.5",
        "",
        "from what runs now: 1 started, 1 stopped, 1 resized, 2 kept, 1 gone with their servers",
    ]


def test_the_comparison_as_json():
    """The same numbers for programs."""
    data = comparison_to_json(compare(BEFORE, AFTER, NOW, THEN))
    assert data["totals"]["objective"] == {"before": 10, "after": 17.5, "difference": 7.5}
    assert data["totals"]["unserved_rps"] == {"before": 0, "after": 4.5, "difference": 4.5}
    assert [one["function"] for one in data["functions"]] == ["f"]
    assert data["functions"][0]["rate_rps"] == {"before": 40, "after": 90, "difference": 50}
    assert data["actions"] == {"started": 1, "stopped": 1, "resized": 1, "kept": 2, "gone": 1}
    assert data["difference_is_proven"] is True


def test_other_cores_are_a_difference():
    """Also where the number of instances stays."""
    found = compare(made(1, instance("f-1")), made(1, instance("f-1", cpu_cores=4)), NOW, NOW)
    assert [(one.function, one.cpu_cores.difference, one.instances.difference) for one in found.functions] == [
        ("f", 2, 0)
    ]


@pytest.mark.parametrize(
    ("before", "after", "proven"),
    [((10, 10), (10, 10), True), ((10, 10), (10, 0), False), ((10, 8), (12, 11), True), ((10, 8), (12, 9), False), ((10, 9), (8, 8), True),
     ((10, 7), (8, 8), False)],
)  # fmt: skip
def test_a_difference_within_what_the_solvers_left_open(before, after, proven):
    """It is said where the best plans might differ the other way round."""
    plans = [made(objective, bound=bound) for objective, bound in (before, after)]
    found = compare(*plans, NOW, NOW)
    assert found.is_proven is proven
    assert ("not proven" in comparison_as_text(found)) is not proven


def test_rounding_is_no_difference():
    """Nobody wants to read +1.7e-16."""
    assert Pair(before=0.1 + 0.2, after=0.3).difference == 0


def test_a_what_if_from_end_to_end():
    """Twice the load and half the servers: planned the same way as the problem itself."""
    then = apply_changes(PROBLEM, "rate.*=4x,servers.cpu-=1,drain.b1")
    found = compare(plan(PROBLEM, "greedy"), plan(then, "greedy"), PROBLEM, then)
    assert found.objective.after > 0
    assert {one.function for one in found.functions} >= {"lstm.prod"}
