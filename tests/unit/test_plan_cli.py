"""`infless plan`: exit codes, what goes to which stream, and the two forms of output."""

import json

import pytest
from click.testing import CliRunner

from infless_core.errors import PlanRejected
from infless_scheduler import cli
from infless_scheduler.cli import plan_command, plan_command_with
from infless_scheduler.planner import SOLVERS

PROBLEM = {
    "version": 1,
    "servers": [{"id": "s", "cpu_cores": 16, "memory_bytes": 2**34, "gpus": []}],
    "functions": [
        {
            "id": "f",
            "latency_target_s": 0.2,
            "rate_rps": 70,
            "max_batch": 4,
            "profile": [{"batch": 4, "cpu_cores": 2, "gpu_percent": 0, "exec_s": 0.05}],
        }
    ],
}


def _run(problem, *more):
    text = problem if isinstance(problem, str | bytes) else json.dumps(problem)
    return CliRunner().invoke(plan_command, ["--problem", "-", *more], input=text)


def _function(**changes):
    return {**PROBLEM, "functions": [{**PROBLEM["functions"][0], **changes}]}


@pytest.mark.parametrize("solver", SOLVERS)
def test_json_on_standard_output(solver):
    """The plan and nothing but the plan, exit code 0."""
    result = _run(PROBLEM, "--solver", solver, "--json")
    assert result.exit_code == 0
    plan = json.loads(result.stdout)
    assert plan["instances"][0]["id"] == "f-1"
    assert (plan["instances"][0]["rate_low_rps"], plan["instances"][0]["rate_up_rps"]) == (28, 80)


def test_table_for_people():
    """One line for each instance, then the totals."""
    lines = _run(PROBLEM).stdout.splitlines()
    assert lines[0].split()[:3] == ["INSTANCE", "ACTION", "SERVER"]
    assert lines[1].split() == ["f-1", "start", "s", "-", "4", "2", "0", "70", "[28,", "80]"]
    assert lines[-1].startswith("optimal by exact in ")


def test_file_instead_of_standard_input(tmp_path):
    """A path works as well as `-`."""
    (tmp_path / "p.json").write_text(json.dumps(PROBLEM))
    assert CliRunner().invoke(plan_command, ["--problem", str(tmp_path / "p.json")]).exit_code == 0


def test_faults_are_usage_one_line_each():
    """Exit code 2, each fault with its JSON path on standard error, nothing on standard output."""
    result = _run({**_function(rate_rps=-1), "more": 1})
    assert (result.exit_code, result.stdout) == (2, "")
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == ["$.more", "$.functions[0].rate_rps"]


@pytest.mark.parametrize("text", ["", "{", b"\xff", "[]"])
def test_input_that_is_no_problem_is_usage(text):
    """Broken JSON, broken UTF-8 and other JSON are told apart from failures."""
    result = _run(text)
    assert result.exit_code == 2
    assert result.stderr.startswith("$: ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--solver", "simplex"), "'auto', 'exact', 'patterns', 'greedy', 'uniform'"),
        (("--time-limit-s", "0"), "above 0"),
        (("--time-limit-s", "nan"), "above 0"),
        (("--colour",), "No such option"),
    ],
)
def test_wrong_options_are_usage(arguments, said):
    """The message names what is allowed."""
    result = _run(PROBLEM, *arguments)
    assert result.exit_code == 2
    assert said in result.stderr


def test_missing_file_is_usage():
    """No such file: exit code 2 and its name."""
    result = CliRunner().invoke(plan_command, ["--problem", "no-such-file.json"])
    assert result.exit_code == 2
    assert "no-such-file.json" in result.stderr


def test_infeasible_says_why_and_what_would_be_feasible():
    """Exit code 3, the reasons on standard error, and with --json still the plan."""
    result = _run(_function(latency_target_s=0.02), "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["status"] == "infeasible"
    assert result.stderr == (
        "f: no configuration meets 20ms: nearest is (b=4, c=2, g=0%) at 50ms; nearest feasible target 100ms\n"
    )


def test_partly_served_is_done():
    """What can be planned is planned; the rest is said in the plan, exit code 0."""
    result = _run(_function(rate_rps=10_000))
    assert result.exit_code == 0
    assert "unserved f: 9360/s, cpu cores exhausted" in result.stdout


def test_our_own_fault_is_a_failure(monkeypatch):
    """Exit code 1 when even the greedy plan is rejected."""

    def reject(*_args, **_more):
        raise PlanRejected(("for the test",))

    monkeypatch.setattr(cli, "plan", reject)
    result = _run(PROBLEM)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "for the test" in result.stderr


def test_what_if_compares_and_changes_nothing(tmp_path):
    """The plan of the changed problem, and both side by side."""
    file = tmp_path / "p.json"
    file.write_text(json.dumps(PROBLEM))
    result = CliRunner().invoke(plan_command, ["--problem", str(file), "--what-if", "rate.f=2x"])
    assert result.exit_code == 0
    assert "f-2" in result.stdout
    assert "BEFORE" in result.stdout
    assert json.loads(file.read_text()) == PROBLEM
    answer = json.loads(_run(PROBLEM, "--what-if", "rate.f=2x", "--json").stdout)
    assert answer["what_if"]["totals"]


def test_wrong_what_if_is_usage_one_line_each():
    """Every fault of the text at once, and nothing is planned."""
    result = _run(PROBLEM, "--what-if", "rate.g=2x,colour.f=3")
    assert (result.exit_code, result.stdout) == (2, "")
    assert [line.partition(":")[0] for line in result.stderr.splitlines()] == ["rate.g=2x", "colour.f=3"]


def test_explanation_has_reasons_picture_and_totals():
    """For people as text, for programs as JSON."""
    lines = _run(PROBLEM, "--explain").stdout
    assert "why:" in lines
    assert "cores" in lines
    assert "optimal by exact" in lines
    assert json.loads(_run(PROBLEM, "--explain", "--json").stdout)["explanation"]["instances"]


def test_explanation_says_what_would_help():
    """The smallest number of servers that carries the rest."""
    result = _run(_function(rate_rps=700), "--explain")
    assert "one more server" in result.stdout


def test_picture_is_an_svg_file(tmp_path):
    """Written beside the plan; where that is not possible, a sentence says so."""
    assert _run(PROBLEM, "--picture", str(tmp_path / "p.svg")).exit_code == 0
    assert (tmp_path / "p.svg").read_text().startswith("<svg")
    result = _run(PROBLEM, "--picture", str(tmp_path / "no" / "p.svg"))
    assert result.exit_code == 2
    assert "cannot be written: No such file or directory" in result.stderr


def test_ids_do_not_command_the_terminal():
    """What a terminal would obey is replaced in the table; JSON has the id as it is."""
    wild = _function(id="f\x1b[2J\n")
    assert "\x1b" not in _run(wild).stdout
    assert json.loads(_run(wild, "--json").stdout)["instances"][0]["function"] == "f\x1b[2J\n"


def test_live_problem_takes_the_same_way():
    """What a provider answers is read, checked and planned as a file is; one of both has to be named."""
    command = plan_command_with(lambda gateway, state_dir: json.dumps({**PROBLEM, "alpha": 0.5}))
    assert "f-1" in CliRunner().invoke(command, ["--live"]).stdout
    for arguments in ([], ["--live", "--problem", "-"]):
        result = CliRunner().invoke(command, arguments, input=json.dumps(PROBLEM))
        assert result.exit_code == 2
        assert "--problem FILE, or --live" in result.stderr
