"""Plans worked out by hand, whole: what people read must not change unnoticed."""

import pytest

from infless_core.clock import ManualClock
from infless_scheduler.planner import plan
from infless_scheduler.problem_file import parse_problem, plan_to_json

GIB = 2**30


def _point(batch, cpu_cores, gpu_percent, exec_s):
    return {"batch": batch, "cpu_cores": cpu_cores, "gpu_percent": gpu_percent, "exec_s": exec_s}


def _problem(rate_rps, *profile, servers=1, gpus=0, target_s=0.2, running=()):
    gpu = [{"id": f"g{n}", "memory_bytes": 11 * GIB} for n in range(gpus)]
    server = {"cpu_cores": 16, "memory_bytes": 128 * GIB, "gpus": gpu}
    function = {"id": "f", "latency_target_s": target_s, "rate_rps": rate_rps, "max_batch": 32, "profile": [*profile]}
    return {
        "version": 1,
        "servers": [{"id": f"s{n}", **server} for n in range(servers)],
        "functions": [function],
        "running": list(running),
    }


def _planned(problem, solver="exact"):
    return plan_to_json(plan(parse_problem(problem), solver, clock=ManualClock()))


def _shapes(made):
    return [(i["id"], i["batch"], i["rate_rps"], i["action"]) for i in made["instances"]]


def test_paper_check_value_whole():
    """SLO 200 ms, t 50 ms, b 4: the window is [28, 80], and 75/s lie above the threshold 69.6."""
    assert _planned(_problem(75, _point(4, 2, 0, 0.05), gpus=2)) == {
        "version": 1,
        "status": "optimal",
        "solver": "exact",
        "solve_s": 0.0,
        "objective": pytest.approx(207.2),
        "bound": pytest.approx(207.2),
        "gap": 0.0,
        "instances": [
            {
                "id": "f-1",
                "function": "f",
                "server": "s0",
                "gpu": None,
                "batch": 4,
                "cpu_cores": 2,
                "gpu_percent": 0,
                "rate_low_rps": 28.0,
                "rate_up_rps": 80.0,
                "rate_rps": 75.0,
                "action": "start",
            }
        ],
        "stop": [],
        "unserved": [],
        "servers_used": 1,
        "allocated": pytest.approx(0.9),
        "fragmentation": pytest.approx(1 - 0.9 / 207.2),
    }


def test_dispatch_formula_shares_the_rate_out():
    """150/s on two windows [28, 80] and one [0, 20]: (180 - 150)/(180 - 56) of each width is taken off."""
    made = _planned(_problem(150, _point(4, 2, 0, 0.05), _point(1, 1, 0, 0.05)))
    assert [i["rate_rps"] for i in made["instances"]] == pytest.approx([75, 75])
    made = _planned(_problem(165, _point(4, 2, 0, 0.05), _point(1, 1, 0, 0.05)))
    down = (180 - 165) / (180 - 56)
    assert [i["rate_rps"] for i in made["instances"]] == pytest.approx([20 - 20 * down, *[80 - 52 * down] * 2])


def test_gpu_is_used_when_cores_run_out():
    """Nine batches of 4 need 18 of 16 cores; one of them moves to a GPU share that costs more than two cores."""
    made = _planned(_problem(720, _point(4, 2, 0, 0.05), _point(4, 1, 10, 0.05), gpus=1))
    assert sorted((i["cpu_cores"], i["gpu"]) for i in made["instances"]) == [(1, "g0")] * 2 + [(2, None)] * 7


def test_what_runs_is_kept_resized_and_stopped():
    """One instance is as wanted, one is resized where it is, one has no use; a new one has a free name."""
    here = {"function": "f", "server": "s0", "gpu": None, "cpu_cores": 2, "gpu_percent": 0}
    running = [{"id": "f-1", "batch": 4, **here}, {"id": "f-7", "batch": 2, **here}]
    elsewhere = [{"id": "f-8", "batch": 2, **here, "server": "s1"}]
    made = _planned(_problem(160, _point(4, 2, 0, 0.05), servers=2, running=running + elsewhere))
    assert _shapes(made) == [("f-1", 4, 80.0, "keep"), ("f-7", 4, 80.0, "resize")]
    assert made["stop"] == ["f-8"]
    more = _planned(_problem(240, _point(4, 2, 0, 0.05), servers=1, running=running))
    assert _shapes(more)[1:] == [("f-2", 4, 80.0, "start"), ("f-7", 4, 80.0, "resize")]


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (
            _problem(5, _point(1, 2, 0, 0.031), _point(2, 2, 0, 0.04), target_s=0.02),
            "no configuration meets 20ms: nearest is (b=1, c=2, g=0%) at 31ms; nearest feasible target 31ms",
        ),
        (_problem(5, _point(64, 2, 0, 0.01)), "no configuration is profiled with a batch of at most 32"),
        (
            _problem(5, _point(1, 17, 0, 0.1)),
            "no server is large enough: the largest of 1 has 16 cpu cores, 128 GiB of memory and 0 GPUs",
        ),
        (_problem(5, _point(1, 17, 0, 0.1), servers=0), "there are no servers"),
    ],
)
def test_nothing_can_be_planned_and_why(problem, reason):
    """The constraint that binds, and the nearest wish that can be met."""
    made = _planned(problem)
    assert (made["status"], made["instances"], made["objective"]) == ("infeasible", [], 0)
    assert reason in made["unserved"][0]["reason"]


@pytest.mark.parametrize(
    ("point", "gpus", "served", "reason"),
    [
        (_point(4, 2, 0, 0.05), 0, 640, "cpu cores exhausted"),
        (_point(4, 1, 60, 0.05), 2, 160, "GPU share exhausted"),
        ({**_point(4, 1, 0, 0.05), "memory_bytes": 50 * GIB}, 0, 160, "memory exhausted"),
        ({**_point(4, 1, 10, 0.05), "gpu_memory_bytes": 6 * GIB}, 1, 80, "GPU memory exhausted"),
    ],
)
def test_partly_served_names_the_binding_resource(point, gpus, served, reason):
    """What fits is served in full windows; the rest says which resource ran out."""
    made = _planned(_problem(1000, point, gpus=gpus))
    assert sum(i["rate_rps"] for i in made["instances"]) == pytest.approx(served)
    assert made["unserved"] == [{"function": "f", "rate_rps": 1000 - served, "reason": reason}]


def test_greedy_gives_what_the_paper_describes():
    """95/s: a batch of 4 first, then a single for the residue of 15; one server, which the bound proves."""
    made = _planned(_problem(95, _point(4, 2, 0, 0.05), _point(1, 1, 0, 0.05)), "greedy")
    assert [(i["batch"], i["rate_up_rps"]) for i in made["instances"]] == [(1, 20), (4, 80)]
    assert (made["status"], made["gap"]) == ("optimal", 0.0)
    odd = _planned(_problem(240, _point(4, 9, 0, 0.05), servers=3), "greedy")
    assert (odd["status"], odd["servers_used"], odd["bound"] < odd["objective"]) == ("feasible", 3, True)
