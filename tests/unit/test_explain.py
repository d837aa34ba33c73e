"""Explanations: every reason where it is the true one, and remedies that hold when they are planned."""

from dataclasses import replace

import pytest
from benchmarks.problems import fleet, paper_cluster

from infless_core.clock import ManualClock
from infless_core.labels import GpuWish
from infless_core.model import Configuration, FunctionDemand, Gpu, Interference, Problem, ProfilePoint, Running, Server
from infless_scheduler.explain import explain
from infless_scheduler.explain_text import explanation_as_text, explanation_to_json
from infless_scheduler.explain_trials import smallest
from infless_scheduler.listing import abbreviated, clipped, natural, number, printable, rate
from infless_scheduler.planner import plan


def _point(batch, cpu_cores, gpu_percent, exec_s, memory_bytes=0, gpu_memory_bytes=0):
    given = Configuration(batch=batch, cpu_cores=cpu_cores, gpu_percent=gpu_percent)
    return ProfilePoint(
        configuration=given, exec_s=exec_s, memory_bytes=memory_bytes, gpu_memory_bytes=gpu_memory_bytes
    )


def _function(rate_rps, *points, id_="f", **wishes):
    values = {"latency_target_s": 0.2, "max_batch": 32} | wishes
    return FunctionDemand(id=id_, rate_rps=rate_rps, profile=points, **values)


def _server(id_="s0", cpu_cores=8, gpus=1, **more):
    gpu = tuple(Gpu(id=f"g{n}", memory_bytes=100) for n in range(gpus))
    return Server(id=id_, cpu_cores=cpu_cores, gpus=gpu, **({"memory_bytes": 100} | more))


def _problem(*functions, servers=None, **more):
    return Problem(servers=servers or (_server(),), functions=functions, **more)


def _again(problem):
    return plan(problem, "greedy", clock=ManualClock())


def _explained(problem, solver="patterns"):
    return explain(problem, plan(problem, solver, clock=ManualClock()), _again)


def _why(problem, solver="patterns"):
    return [entry.configuration_because for entry in _explained(problem, solver).instances]


def _where(problem, solver="patterns"):
    return [entry.server_because for entry in _explained(problem, solver).instances]


def _helped(problem):
    """Each change that is named, after it was planned once more and found to serve more."""
    before = _again(problem)
    unserved = {u.function: u.rate_rps for u in before.unserved}
    changes = []
    for entry in explain(problem, before, _again).unserved:
        for remedy in entry.remedies:
            after = {u.function: u.rate_rps for u in _again(remedy.changed).unserved}
            assert entry.function not in after or after[entry.function] < unserved[entry.function]
            changes.append(remedy.change)
    return changes


def test_only_configuration():
    """Where one configuration meets the target, that is the reason."""
    assert _why(_problem(_function(50, _point(4, 2, 0, 0.05)))) == [
        "the only configuration that meets 200ms on these servers"
    ]


def test_most_for_its_weight():
    """The configuration with most requests for its weight says so, and names the next."""
    problem = _problem(_function(75, _point(4, 2, 0, 0.05), _point(4, 4, 0, 0.05)))
    assert _why(problem) == ["worth 88.9, the most of 2 that meet 200ms (then (b=4, c=4, g=0%): 44.4)"]


def test_better_one_is_too_slow():
    """A batch that takes longer than half the target is ruled out by it; a single one only beyond the whole."""
    problem = _problem(_function(50, _point(4, 2, 0, 0.05), _point(32, 2, 0, 0.15)))
    assert "(b=32, c=2, g=0%) is worth 213 but takes 150ms, more than half of 200ms" in _why(problem)[0]
    problem = _problem(_function(2, _point(1, 8, 0, 0.1), _point(1, 1, 0, 0.3)))
    assert "takes 300ms, more than 200ms" in _why(problem)[0]


def test_better_batch_does_not_fill():
    """A batch is ruled out where the rate is below its window."""
    problem = _problem(_function(75, _point(4, 2, 0, 0.05), _point(32, 2, 0, 0.1)))
    assert (
        "(b=32, c=2, g=0%) is worth 356 but fills its batch from 320/s on, the rate is 75/s"
        in _why(problem, "exact")[0]
    )


def test_less_than_is_kept_would_come():
    """A larger one is ruled out where the rate would be too low to keep it beside the others."""
    made = _problem(_function(40, _point(1, 1, 0, 0.05)))
    problem = _problem(_function(40, _point(1, 1, 0, 0.05), _point(4, 1, 0, 0.09)))
    why = explain(problem, plan(made, "greedy"), _again).instances[0].configuration_because
    assert "(b=4, c=1, g=0%) is worth 97.8 but with it instances would be let go below 59.2/s, the rate is 40/s" in why


@pytest.mark.parametrize(
    ("needs", "server", "names"),
    [
        ((32, 4, 0, 0.076), _server(cpu_cores=4), "cpu cores"),
        ((32, 2, 0, 0.076, 90), _server(), "memory"),
        ((32, 1, 51, 0.076), _server(), "GPU share"),
        ((32, 2, 40, 0.076, 0, 90), _server(), "GPU memory"),
    ],
)
def test_no_room_beside_the_others(needs, server, names):
    """What the neighbour leaves free rules a better configuration out, and the resource is named."""
    neighbour = _function(20, _point(1, 2, 50, 0.05, 20, 20), id_="a")
    problem = _problem(neighbour, _function(400, _point(8, 2, 50, 0.02), _point(*needs)), servers=(server,))
    made = plan(replace(problem, functions=(neighbour, _function(400, _point(8, 2, 50, 0.02)))), "greedy")
    why = explain(problem, made, _again).instances[1].configuration_because
    assert f"such servers in use lack {names}" in why


def test_larger_than_any_server():
    """A configuration that not even an empty server could host is called too large."""
    problem = _problem(_function(50, _point(4, 2, 0, 0.05), _point(32, 12, 0, 0.01)))
    assert "needs more cpu cores than such a server has" in _why(problem)[0]


@pytest.mark.parametrize(
    ("wishes", "says"),
    [
        ({"gpu": GpuWish.REQUIRE}, "the function says gpu: require"),
        ({"max_batch": 4}, "its batch is above the limit of 4"),
    ],
)
def test_wishes_rule_out(wishes, says):
    """What the function itself forbids is said to be forbidden by it."""
    problem = _problem(_function(50, _point(4, 2, 10, 0.05), _point(8, 1, 0, 0.05), **wishes))
    assert says in _why(problem)[0]


def test_gpu_never():
    """A function that must not have a GPU says so where one would be worth more."""
    problem = _problem(_function(50, _point(1, 8, 0, 0.01), _point(32, 1, 1, 0.05), gpu=GpuWish.NEVER))
    assert "the function says gpu: never" in _why(problem)[0]


def test_a_heavier_one_is_not_needed():
    """A configuration that is worth more but weighs more is not needed for a small rate."""
    problem = _problem(_function(20, _point(1, 1, 10, 0.05), _point(1, 1, 12, 0.04)))
    assert "weighs 2 more, for a rate that is carried without" in _why(problem)[0]


def test_what_the_solver_passed_over_is_said():
    """A worse configuration where a better one would fit is not excused."""
    worse = _problem(_function(20, _point(1, 4, 0, 0.05)))
    problem = replace(worse, functions=(_function(20, _point(1, 4, 0, 0.05), _point(1, 1, 0, 0.05)),))
    made = plan(worse, "greedy")
    why = explain(problem, made, _again).instances[0].configuration_because
    assert "would save 1.35 of weight and no server, the solver did not take it" in why
    short = replace(worse, functions=(_function(80, _point(1, 4, 0, 0.05), _point(2, 4, 0, 0.04)),))
    made = plan(replace(short, functions=(replace(worse.functions[0], rate_rps=80),)), "greedy")
    assert (
        "would serve 30/s more, the solver did not take it"
        in explain(short, made, _again).instances[0].configuration_because
    )


def test_a_change_costs_more_than_it_saves():
    """What runs is kept where a change would cost more, and that is the reason."""
    old = Configuration(batch=1, cpu_cores=2)
    running = (Running(id="f-1", function="f", server="s0", gpu=None, configuration=old),)
    problem = _problem(
        _function(10, _point(1, 2, 0, 0.05), _point(1, 1, 0, 0.05)), running=running, churn_cost=50.0
    )  # fmt: skip
    made = plan(replace(problem, functions=(_function(10, _point(1, 2, 0, 0.05)),)), "greedy")
    entry = explain(problem, made, _again).instances[0]
    assert "saves 0.45 of weight, not more than a change costs (50)" in entry.configuration_because
    assert "kept where it ran" in entry.server_because


def test_percentile_and_interference_are_counted():
    """How much a percentile takes from the paper's rate, and how much slower neighbours make it, is said."""
    slow = Interference(cpu=((0.0, 1.0), (0.9, 1.5)))
    problem = _problem(_function(10, _point(4, 2, 0, 0.04), latency_percentile=95.0), interference=slow)
    why = _why(problem)[0]
    assert "times as slow as profiled, for neighbours on a full server" in why
    assert "percentile 95 lowers its rate from " in why


def test_minimum_of_instances():
    """Instances that only a minimum asks for say so."""
    assert (
        "at least 2 instances are asked for" in _why(_problem(_function(1, _point(1, 1, 0, 0.05), instances_min=2)))[0]
    )


def test_server_reasons():
    """Neighbours, how full servers are, and which kinds could host it."""
    both = _problem(_function(20, _point(1, 2, 50, 0.05), id_="a"), _function(20, _point(1, 6, 0, 0.05), id_="b"))
    assert _where(both) == [
        "on its server with b; filled: cores 100%, GPU 50%, memory 0%",
        "on its server with a; filled: cores 100%, GPU 50%, memory 0%",
    ]
    kinds = _problem(
        _function(20, _point(1, 2, 50, 0.05), id_="a"),
        _function(20, _point(1, 2, 0, 0.05), id_="b"),
        servers=(_server(), _server("t0", gpus=0)),
    )
    first, second = _where(kinds)
    assert first.startswith("the only one of 2 kinds of servers that can host it; ")
    assert second.startswith("2 of 2 kinds of servers can host it; ")
    assert "alone on its server" in _where(_problem(_function(20, _point(1, 2, 0, 0.05))))[0]


def test_history_of_instances():
    """Kept, resized in place, and started because another server is drained."""
    old = Configuration(batch=1, cpu_cores=4)
    running = (Running(id="f-1", function="f", server="s0", gpu=None, configuration=old),)
    problem = _problem(_function(20, _point(1, 2, 0, 0.05)), running=running)
    assert "resized in place from (b=1, c=4, g=0%)" in _where(problem)[0]
    drained = replace(problem, servers=(_server(draining=True), _server("s1")))
    assert "started in place of what has to leave s0" in _where(drained)[0]


def test_one_more_server():
    """As many servers as it takes, of the kind that costs least."""
    problem = _problem(
        _function(200, _point(1, 4, 0, 0.05)), servers=(_server(gpus=0, kind="cpu"), _server("g", kind="gpu"))
    )  # fmt: skip
    assert _helped(problem) == ["3 more servers of kind 'cpu' (8 cores)"]
    assert _helped(_problem(_function(60, _point(1, 4, 0, 0.05)))) == ["one more server like s0 (8 cores, 1 GPU)"]


def test_longer_target():
    """The smallest target at which a configuration that serves it all becomes usable."""
    problem = _problem(_function(160, _point(1, 4, 0, 0.05), _point(16, 8, 0, 0.1005)))
    assert "a latency target of 201ms instead of 200ms" in _helped(problem)


def test_longer_target_with_a_percentile():
    """With a percentile the target is found to the millisecond, beyond the first at which it fits at all."""
    problem = _problem(_function(100, _point(8, 8, 0, 0.08), latency_percentile=99.0, latency_target_s=0.1))
    (change,) = [change for change in _helped(problem) if "latency target" in change]
    assert change.endswith(" instead of 100ms")


def test_own_limits_that_bind():
    """A limit of instances, a wish about GPUs, a limit of the batch, a drain: each is named where it helps."""
    assert "com.openfaas.scale.max: 4 instead of 2" in _helped(
        _problem(_function(80, _point(1, 1, 0, 0.05), instances_max=2))
    )
    gpu = _problem(_function(80, _point(4, 1, 10, 0.05), gpu=GpuWish.NEVER))
    assert "com.infless.gpu: allow instead of never" in _helped(gpu)
    batch = _problem(_function(80, _point(4, 8, 0, 0.05), _point(1, 8, 0, 0.05), max_batch=1))
    assert "com.infless.batch.max: 4 instead of 1" in _helped(batch)
    drain = _problem(_function(20, _point(1, 8, 0, 0.05)), servers=(_server(draining=True),))
    assert _helped(drain) == ["not draining s0", "one more server with 8 cores"]


def test_a_server_made_to_measure():
    """Where all servers are too small, the smallest one that would do is named."""
    problem = _problem(_function(20, _point(1, 12, 10, 0.05, 70, 80)))
    assert _helped(problem) == ["one more server with 12 cores, 1 GPU, 70 bytes of memory and 80 bytes on the GPU"]


def test_missing_instances_are_helped():
    """A minimum that finds no room is a lack, too, though all requests are served."""
    assert _helped(_problem(_function(1, _point(1, 8, 0, 0.05), instances_min=2))) == [
        "one more server like s0 (8 cores, 1 GPU)"
    ]


def test_nothing_helps():
    """A profile without a usable configuration has no remedy, and it is said what was tried."""
    entry = _explained(_problem(_function(1)), "greedy").unserved[0]
    assert entry.remedies == ()
    assert entry.in_vain.startswith("no single change was found to help; tried were longer latency targets")


def test_number_of_plans_is_limited():
    """No more plans than allowed are asked for, and the explanation says when it stopped."""
    problem = _problem(_function(900, _point(1, 4, 0, 0.05)), _function(900, _point(1, 4, 0, 0.05), id_="h"))
    asked = []
    explanation = explain(problem, _again(problem), lambda p: asked.append(1) or _again(p), plans_max=3)
    assert len(asked) == 3
    assert explanation.unserved[1].in_vain == "not looked for any further: 3 plans were tried"


@pytest.mark.parametrize("least", [1, 2, 5, 9, 40])
@pytest.mark.parametrize("guess", [0, 1, 4, 30, 99])
def test_smallest_number(least, guess):
    """From any guess the smallest number that serves is found, or none."""
    assert smallest(lambda n: n >= least, guess, 40, 30) == (least, True)
    assert smallest(lambda n: n >= least, guess, 40, 30, (least - 1, 40)) == (least, True)
    assert smallest(lambda _: False, guess, 40, 30) is None


def test_what_was_not_searched_to_the_end_is_an_upper_limit():
    """Where the tries run out the smallest number that serves is given as a limit."""
    assert smallest(lambda n: n >= 30, 1, 40, 8) == (32, False)
    servers = tuple(_server(f"s{n}") for n in range(40))
    problem = _problem(_function(920, _point(1, 8, 0, 0.05)), servers=servers)

    def changes(plans_max):
        explanation = explain(problem, _again(problem), _again, plans_max=plans_max)
        return [remedy.change for remedy in explanation.unserved[0].remedies]

    assert changes(60) == ["6 more servers like s0 (8 cores, 1 GPU)"]
    found = [changes(number) for number in range(1, 7)]
    assert found[0] == []
    assert ["at most 8 more servers like s0 (8 cores, 1 GPU)"] in found


def test_text_whole():
    """What people read of a small plan that does not serve all."""
    problem = _problem(_function(60, _point(1, 4, 0, 0.05)))
    assert explanation_as_text(_explained(problem)) == (
        "worth: requests/s for each unit of weight; a core weighs 0.45, a percent of a GPU 1\n"
        "FUNCTION  INSTANCES    CONFIGURATION     RATE/S  SERVERS\n"
        "f         2: f-1, f-2  (b=1, c=4, g=0%)  40      1: s0\n"
        "    why:   the only configuration that meets 200ms on these servers\n"
        "    where: on its server with no other function; filled: cores 100%, GPU 0%, memory 0%\n"
        "\n"
        "UNSERVED f: 20/s, cpu cores exhausted\n"
        "    help:  one more server like s0 (8 cores, 1 GPU) would serve all of its 60/s\n"
    )
    assert explanation_as_text(_explained(Problem(servers=(), functions=()))) == ""


def test_text_without_remedy():
    """Where nothing helps, that is said in the place of the remedies."""
    assert "    help:  no single change was found to help" in explanation_as_text(
        _explained(_problem(_function(1)), "greedy")
    )


def test_large_plans_stay_readable():
    """Four hundred servers are explained in less than 200 lines; a smaller allowance leaves entries out, and says so."""
    problem = fleet(400, 40, fill=0.2)
    explanation = explain(problem, _again(problem), _again, plans_max=0)
    text = explanation_as_text(explanation)
    assert text.count("\n") < 200
    assert max(map(len, text.splitlines())) <= 120
    short = explanation_as_text(explanation, lines_max=20)
    assert short.count("\n") <= 23
    assert " more: " in short


def test_json():
    """The explanation as JSON has all that the text is made of."""
    values = explanation_to_json(_explained(_problem(_function(60, _point(1, 4, 0, 0.05)))))
    assert values["instances"][0]["instances"] == ["f-1", "f-2"]
    assert values["unserved"][0]["remedies"][0]["change"] == "one more server like s0 (8 cores, 1 GPU)"


def test_an_explanation_of_a_served_plan_plans_nothing():
    """The search for remedies does not begin where nothing is unserved."""

    def never(_):
        raise AssertionError

    problem = paper_cluster()
    made = plan(problem, "patterns", clock=ManualClock())
    explanation = explain(problem, made, never)
    assert not explanation.unserved
    assert explanation.instances


def test_lists_for_people():
    """Ids in natural order, long lists cut, control characters replaced."""
    assert sorted(["s10", "s2", "a"], key=natural) == ["a", "s2", "s10"]
    assert abbreviated(["s2", "s0", "s1"]) == "s0, s1, s2"
    assert abbreviated([f"s{n}" for n in range(16)]) == "s0, s1, ... 14 more"
    assert abbreviated([f"server-{n}" for n in range(16)], width=20) == "server-0, ... 15 more"
    assert printable("a\x1b[1m") == "a\N{REPLACEMENT CHARACTER}[1m"
    assert (clipped("abcdef", 5), clipped("abcdef", 2)) == ("ab...", "..")
    assert (number(0.4567), number(1920.4), rate(14470.2), rate(0.5)) == ("0.457", "1920", "14470/s", "0.5/s")
