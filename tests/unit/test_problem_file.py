"""The plan file: what is read, every fault with its path, and what is written."""

import copy
import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infless_core.labels import GpuWish
from infless_core.model import Configuration, Interference, Plan, PlanStatus
from infless_scheduler.problem_file import (
    ProblemFileError,
    parse_problem,
    parse_problem_text,
    plan_to_json,
    problem_to_json,
)

GOOD = {
    "version": 1,
    "alpha": 0.7,
    "beta": 0.5,
    "servers": [{"id": "s", "cpu_cores": 16, "memory_bytes": 1000, "gpus": [{"id": "g", "memory_bytes": 500}]}],
    "functions": [
        {
            "id": "f",
            "latency_target_s": 0.2,
            "latency_percentile": 99,
            "rate_rps": 30,
            "max_batch": 4,
            "profile": [{"batch": 4, "cpu_cores": 2, "gpu_percent": 10, "exec_s": 0.05, "memory_bytes": 7}],
        }
    ],
    "running": [{"id": "r", "function": "f", "server": "s", "gpu": "g", "batch": 4, "cpu_cores": 2, "gpu_percent": 10}],
}
REMOVED = object()


def _changed(path, value):
    """GOOD with one place set to a value, or taken away."""
    data = copy.deepcopy(GOOD)
    *way, last = path
    place = data
    for step in way:
        place = place[step]
    if value is REMOVED:
        del place[last]
    else:
        place[last] = value
    return data


def _faults(data):
    with pytest.raises(ProblemFileError) as error:
        parse_problem(data)
    return error.value.faults


def test_everything_is_read():
    """Each value arrives where it belongs."""
    problem = parse_problem(GOOD)
    point = problem.functions[0].profile[0]
    assert (problem.alpha, problem.beta, problem.servers[0].gpus[0].memory_bytes) == (0.7, 0.5, 500)
    assert problem.functions[0].latency_percentile == 99
    assert point.configuration == Configuration(batch=4, cpu_cores=2, gpu_percent=10)
    assert (point.exec_s, point.memory_bytes, point.gpu_memory_bytes) == (0.05, 7, 0)
    assert problem.running[0].gpu == "g"


def test_defaults():
    """The paper's alpha, the authors' beta, nothing running, no percentile."""
    problem = parse_problem({"version": 1, "servers": [], "functions": []})
    assert (problem.alpha, problem.beta, problem.running) == (0.8, 0.45, ())


def test_whole_numbers_may_be_written_as_floats():
    """JSON from other languages says 4.0."""
    problem = parse_problem(_changed(["functions", 0, "max_batch"], 4.0))
    assert isinstance(problem.functions[0].max_batch, int)


POINT = ["functions", 0, "profile", 0]


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        (["version"], 2, "$.version: unknown version"),
        (["version"], REMOVED, "$.version: missing"),
        (["more"], 1, "$.more: unknown key"),
        (["alpha"], 1.5, "$.alpha: 1.5 is not a number of at least 0 and at most 1"),
        (["beta"], -1, "$.beta: -1 is not"),
        (["beta"], math.nan, "$.beta: nan is not"),
        (["servers"], {}, "$.servers: {} is not a list"),
        (["servers", 0], 3, "$.servers[0]: 3 is not an object"),
        (["servers", 0, "id"], "", "$.servers[0].id: '' is not a text"),
        (["servers", 0, "cpu_cores"], True, "$.servers[0].cpu_cores: True is not a whole number"),
        (["servers", 0, "cpu_cores"], 0, "$.servers[0].cpu_cores: 0 is not"),
        (["servers", 0, "memory_bytes"], 1.5, "$.servers[0].memory_bytes: 1.5 is not a whole number"),
        (["servers", 0, "gpus", 0, "memory_bytes"], -1, "$.servers[0].gpus[0].memory_bytes: -1 is not"),
        (["functions", 0, "latency_target_s"], 0, "$.functions[0].latency_target_s: 0 is not a number above 0"),
        (["functions", 0, "latency_percentile"], 100, "$.functions[0].latency_percentile: 100 is not"),
        (["functions", 0, "rate_rps"], math.inf, "$.functions[0].rate_rps: inf is not"),
        (["functions", 0, "rate_rps"], 10**400, "$.functions[0].rate_rps: 1000"),
        (["functions", 0, "rate_rps"], "30", "$.functions[0].rate_rps: '30' is not a number"),
        (["functions", 0, "rate_rps"], None, "$.functions[0].rate_rps: None is not a number"),
        (["functions", 0, "max_batch"], REMOVED, "$.functions[0].max_batch: missing"),
        ([*POINT, "gpu_percent"], 101, "$.functions[0].profile[0].gpu_percent: 101 is not"),
        ([*POINT, "exec_s"], 0, "$.functions[0].profile[0].exec_s: 0 is not a number above 0"),
        ([*POINT, "speed"], 0, "$.functions[0].profile[0].speed: unknown key"),
        (["running", 0, "function"], "x", "$.running[0].function: no function 'x'"),
        (["running", 0, "server"], "x", "$.running[0].server: no server 'x'"),
        (["running", 0, "gpu"], "x", "$.running[0].gpu: server 's' has no GPU 'x'"),
        (["running", 0, "gpu"], None, "$.running[0].gpu: a GPU is named if and only if"),
        (["servers", 0, "gpus"], GOOD["servers"][0]["gpus"] * 2, "$.servers[0].gpus[1].id: 'g' is there twice"),
        (["servers"], GOOD["servers"] * 2, "$.servers[1].id: 's' is there twice"),
        (["functions"], GOOD["functions"] * 2, "$.functions[1].id: 'f' is there twice"),
        (["running"], GOOD["running"] * 2, "$.running[1].id: 'r' is there twice"),
        (["beta"], {"by": "price", "cpu_core": 1}, "$.beta.gpu: missing"),
        (["beta"], {"by": "colour", "cpu_core": 1, "gpu": 2}, "$.beta.by: 'colour' is not one of price, flops"),
        (["beta"], {"by": "price", "cpu_core": 1, "gpu": 0}, "$.beta.gpu: 0 is not a number above 0"),
        (["churn_cost"], -1, "$.churn_cost: -1 is not"),
        (["interference"], 3, "$.interference: 3 is not an object"),
        (["interference"], {"disk": []}, "$.interference.disk: unknown key"),
        (["interference"], {"cpu": [[0, 1, 2]]}, "$.interference.cpu: it is a list of [share, factor] pairs"),
        (["interference"], {"cpu": [[0, 0.5]]}, "$.interference: interference ((0.0, 0.5),)"),
        (["interference"], {"gpu": [[0.5, 1.2], [0.2, 1.3]]}, "$.interference: interference"),
        (["servers", 0, "interference"], {"cpu": 1}, "$.servers[0].interference.cpu: it is a list"),
        (["servers", 0, "draining"], "yes", "$.servers[0].draining: 'yes' is not true or false"),
        (["servers", 0, "kind"], 7, "$.servers[0].kind: 7 is not a text"),
        (["functions", 0, "gpu"], "maybe", "$.functions[0].gpu: 'maybe' is not one of never, allow, require"),
        (["functions", 0, "arrival_cv"], -1, "$.functions[0].arrival_cv: -1 is not"),
        (["functions", 0, "instances_max"], 0, "$.functions[0].instances_max: 0 is not"),
        (["functions", 0, "instances_min"], -1, "$.functions[0].instances_min: -1 is not"),
        (POINT[:-1], GOOD["functions"][0]["profile"] * 2, "$.functions[0].profile: two points for (b=4, c=2, g=10%)"),
    ],
)
def test_each_fault_has_its_path(path, value, fault):
    """One wrong value gives one line that begins with its JSON path (and maybe one for what now dangles)."""
    lines = [line for line in _faults(_changed(path, value)) if not line.endswith("no server 's'")]
    assert [line[: len(fault)] for line in lines] == [fault]


def test_minimum_above_maximum():
    """One line that names both."""
    data = _changed(["functions", 0, "instances_min"], 3)
    data["functions"][0]["instances_max"] = 2
    assert _faults(data) == ("$.functions[0].instances_min: 3 is above instances_max, 2",)


def test_beta_by_price():
    """What a core costs beside one percent of a GPU."""
    problem = parse_problem(_changed(["beta"], {"by": "price", "cpu_core": 0.034, "gpu": 2.5}))
    assert problem.beta == pytest.approx(1.36)


def test_what_is_written_is_read_again():
    """Everything that may be said of a problem survives the way to JSON and back."""
    problem = parse_problem(GOOD)
    slow = Interference(cpu=((0.0, 1.0), (1.0, 1.5)))
    server = replace(problem.servers[0], kind="gpu", draining=True, interference=slow)
    function = replace(
        problem.functions[0], arrival_cv=2.0, gpu=GpuWish.REQUIRE, instances_min=1, instances_max=4
    )  # fmt: skip
    full = replace(problem, servers=(server,), functions=(function,), interference=slow, churn_cost=2.0)
    for one in (problem, full):
        assert parse_problem_text(json.dumps(problem_to_json(one))) == one


def test_all_faults_at_once():
    """Whoever wrote the file mends it in one go."""
    data = _changed(["servers", 0, "cpu_cores"], -1)
    data["functions"][0]["rate_rps"] = data["alpha"] = "x"
    assert len(_faults(data)) == 3


@pytest.mark.parametrize("text", ["", "[1", '{"a": 1, "a": 2}', "[" * 100_000, "9" * 5000])
def test_text_that_is_no_problem(text):
    """Broken JSON and repeated keys are faults, not crashes."""
    with pytest.raises(ProblemFileError, match=r"^\$"):
        parse_problem_text(text)


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(list(GOOD)), inner)),
    max_leaves=10,
)


@given(json_values, st.sampled_from([[], *([key] for key in GOOD), ["servers", 0], ["functions", 0], POINT]))
def test_whatever_comes_is_read_or_refused(value, path):
    """No JSON at any place raises anything but the error with paths."""
    faults = ("$ nothing",)
    try:
        parse_problem(_changed(path, value) if path else value)
    except ProblemFileError as error:
        faults = error.faults
    assert faults
    assert all(fault.startswith("$") for fault in faults)


def test_plan_is_written_in_the_contracts_layout():
    """The keys of version 1, gap included, and nothing else."""
    plan = Plan(status=PlanStatus.FEASIBLE, solver="exact", solve_s=0.1, objective=200.0, bound=100.0)
    written = json.loads(json.dumps(plan_to_json(plan), allow_nan=False))
    assert list(written) == [
        "version",
        "status",
        "solver",
        "solve_s",
        "objective",
        "bound",
        "gap",
        "instances",
        "stop",
        "unserved",
        "servers_used",
        "allocated",
        "fragmentation",
    ]
    assert (written["status"], written["gap"]) == ("feasible", 0.5)
