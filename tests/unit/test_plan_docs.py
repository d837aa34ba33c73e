"""What is written about plans: the reference names every key, the example is planned as its README says."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from infless_scheduler import problem_file
from infless_scheduler.cli import plan_command
from infless_scheduler.planner import SOLVERS

ROOT = Path(__file__).parents[2]
REFERENCE = (ROOT / "docs/reference/plan-file.md").read_text()
EXAMPLE = ROOT / "examples/05-plan-a-cluster"


def _named() -> set[str]:
    return set(re.findall(r"`\"?([a-z_]+)\"?`", REFERENCE)) | set(re.findall(r'"([a-z_]+)":', REFERENCE))


def test_reference_names_every_key_of_a_problem():
    """And no solver is missing."""
    lists = [value for name, value in vars(problem_file).items() if re.fullmatch("_[A-Z]+", name)]
    keys = {key for value in lists if isinstance(value, tuple) for key in value}
    assert keys - _named() == set()
    assert set(SOLVERS) <= _named()


def test_reference_names_every_key_of_a_plan():
    """As the command prints it."""
    made = CliRunner().invoke(plan_command, ["--problem", str(EXAMPLE / "cluster.json"), "--json"])
    plan = json.loads(made.stdout)
    assert (set(plan) | set(plan["instances"][0])) - _named() == set()


@pytest.mark.parametrize(
    "line", [line for line in (EXAMPLE / "README.md").read_text().splitlines() if "infless plan" in line]
)
def test_example_runs_as_its_readme_says(line, tmp_path):
    """Every command of it ends well and says something."""
    words = re.findall(r'"[^"]*"|\S+', line.partition("#")[0])[2:]
    places = {"cluster.json": str(EXAMPLE / "cluster.json"), "cluster.svg": str(tmp_path / "cluster.svg")}
    result = CliRunner().invoke(plan_command, [places.get(word, word.strip('"')) for word in words])
    assert result.exit_code == 0, result.stderr
    assert "gpu-1" in result.stdout
