"""`infless profile`: which command is meant, exit codes, streams, and the two forms of output."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from benchmarks.models import mlp
from click.testing import CliRunner, Result

from infless_profiler import cop, plot
from infless_profiler.estimate import rough_s
from infless_profiler.operators import Point
from infless_profiler.sessions import this_device
from infless_profiler.tables import Tables
from infless_profiler.timing import Timing
from infless_profiler.worker import OperatorJob, Timed
from infless_provider import cli, profile_cli
from infless_scheduler.problem_file import parse_problem_text

pytest.importorskip("onnxruntime")
SMALL = ("--batches", "1,2", "--cores", "1")


class FakeWorker:
    """Answers at once; whole models take 1 ms an item."""

    was_cancelled = False

    def __init__(self, place: Any, cancelled: Callable[[], bool]) -> None:
        self.place = place

    def do(self, job: Any, told: Callable[[Timed], None] = lambda _: None) -> list[Timed]:
        """As a worker does."""
        if isinstance(job, OperatorJob):
            return [
                Timed(point=point, timing=Timing(exec_s=rough_s(job.operator, point), spread=0.02, samples=9))
                for point in job.points
            ]
        return [
            Timed(
                point=Point(batch, self.place.cpu_cores), timing=Timing(exec_s=0.001 * batch, spread=0, samples=3),
                samples_s=(0.001 * batch,) * 3, memory_bytes=1 << 20,
            )
            for batch in job.batches
        ]  # fmt: skip

    def close(self) -> None:
        """Nothing to end."""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run the command in a folder with a model and a state of its own, with workers that answer at once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INFLESS_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(cop, "Worker", FakeWorker)
    onnx.save(mlp((8, 16, 4)), tmp_path / "net.onnx")

    def command(*arguments: str) -> Result:
        result = CliRunner().invoke(cli.main, ["profile", *arguments], prog_name="infless")
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return command


@pytest.fixture
def profiled(run: Callable[..., Result]) -> Callable[..., Result]:
    """The same, after `net` was profiled and measured whole."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plot, "draw", lambda *_: None)
        assert run("net.onnx", *SMALL, "--verify").exit_code == 0
    return run


class TestWhichCommand:
    """`infless profile MODEL` and `infless profile -f STACK` need no name."""

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            ((), ["functions"]),
            (("-f", "stack.yml"), ["functions", "-f", "stack.yml"]),
            (("good", "-f", "stack.yml"), ["functions", "good", "-f", "stack.yml"]),
            (("--json",), ["functions", "--json"]),
            (("--batches", "1,2"), ["functions", "--batches", "1,2"]),
            (("net.onnx",), ["model", "net.onnx"]),
            (("net.pt2", "--verify"), ["model", "net.pt2", "--verify"]),
            (("folder/net",), ["model", "folder/net"]),
            (("--batches", "1,2", "net.onnx"), ["model", "--batches", "1,2", "net.onnx"]),
            (("--verify", "NET.ONNX"), ["model", "--verify", "NET.ONNX"]),
            (("list", "--json"), ["list", "--json"]),
            (("model", "list"), ["model", "list"]),
            (("--help",), ["--help"]),
        ],
    )
    def test_is_meant(self, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], expected: list[str]) -> None:
        """By the name, the suffix, or an option that only one of them has."""
        given: list[list[str]] = []
        monkeypatch.setattr("click.Group.parse_args", lambda self, ctx, args: given.append(list(args)) or args)
        profile_cli.profile_command.parse_args(None, list(arguments))  # type: ignore[arg-type]
        assert given == [expected]


class TestModel:
    """Profiling one."""

    def test_a_table_for_people(self, run: Callable[..., Result]) -> None:
        """On standard output; progress is not there."""
        result = run("net.onnx", *SMALL)
        assert result.exit_code == 0, result.stderr
        lines = result.stdout.splitlines()
        assert lines[0].startswith("net on ")
        assert lines[2].split() == ["batch", "cores", "expected", "sure", "to", "planned", "requests/s", "memory"]
        assert [line.split()[:2] for line in lines[3:5]] == [["1", "1"], ["2", "1"]]
        assert "reading the graph" in result.stderr
        assert "reading" not in result.stdout

    def test_json(self, run: Callable[..., Result]) -> None:
        """Nothing but it on standard output."""
        told = json.loads(run("net.onnx", "--json", *SMALL, "--name", "mine").stdout)
        assert told["model"] == "mine"
        assert [one["batch"] for one in told["predictions"]] == [1, 2]
        assert told["errors"] is None
        assert told["operators"]["reused"] == 0
        again = json.loads(run("net.onnx", "--json", *SMALL).stdout)
        assert again["operators"]["reused"] > again["operator_times"]["measured"] == 0

    def test_verifying_shows_errors_and_draws(self, run: Callable[..., Result], tmp_path: Path) -> None:
        """Where is said on the error stream."""
        pytest.importorskip("matplotlib")
        result = run("net.onnx", *SMALL, "--verify")
        assert result.exit_code == 0
        assert "errors over all 2 points: mean " in result.stdout
        assert "measured" in result.stdout.splitlines()[2]
        assert result.stderr.splitlines()[-1] == "picture: net.verify.png"
        assert (tmp_path / "net.verify.png").read_bytes().startswith(b"\x89PNG")

    def test_a_picture_that_cannot_be_written(self, run: Callable[..., Result]) -> None:
        """Wrong usage where it was asked for."""
        pytest.importorskip("matplotlib")
        result = run("net.onnx", *SMALL, "--verify", "--picture", "no/where.png")
        assert result.exit_code == 2
        assert "infless: --picture: no/where.png cannot be written" in result.stderr

    def test_without_matplotlib(self, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
        """A hint where no picture was asked for; a fault where one was."""
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        result = run("net.onnx", *SMALL, "--verify")
        assert (result.exit_code, result.stderr.splitlines()[-1]) == (
            0, "a picture needs matplotlib: pip install 'infless[report]'"
        )  # fmt: skip
        assert run("net.onnx", *SMALL, "--verify", "--picture", "x.png").exit_code == 2

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("none.onnx",), "none.onnx: there is no such file"),
            (("none",), "none: there is no such file"),
            (("net.onnx", "--batches", "1,x"), "--batches: '1,x' is not a list of whole numbers from 1 to 4096"),
            (("net.onnx", "--batches", "0"), "--batches: '0' is not a list"),
            (("net.onnx", "--batches", "4097"), "--batches: '4097' is not a list"),
            (("net.onnx", "--batches", ""), "--batches: '' is not a list"),
            (("net.onnx", "--cores", "1,,2"), "--cores: '1,,2' is not a list"),
            (("net.onnx", "--cores", "100000"), "--cores: '100000' is not a list of whole numbers from 1 to"),
            (("net.onnx", "--shape", "y=3"), "--shape: net has no input 'y'; its inputs are x"),
            (("net.onnx", "--shape", "x"), "--shape: 'x' is not a shape such as"),
            (("net.onnx", "--sample", "none.npz"), "--sample: none.npz is not an .npz file"),
            (("net.onnx", "--inter-op-threads", "0"), "0 is not in the range x>=1"),
            (("net.onnx", "--gpu-percents", "50"), "--gpu-percents: this onnxruntime cannot use a GPU"),
            (("net.onnx", "--gpu-percents", ""), "--gpu-percents: this onnxruntime cannot use a GPU"),
            (("net.onnx", "more.onnx"), "unexpected extra argument"),
        ],
    )
    def test_wrong_usage(
        self, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
    ) -> None:
        """Exit code 2 and one sentence; nothing on standard output, and nothing is written."""
        monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
        result = run(*arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert words in result.stderr
        assert "Traceback" not in result.stderr
        assert not Path("state").exists() or Tables(Path("state/operators.sqlite"), this_device()).models() == []

    def test_a_sample_gives_the_shape(self, run: Callable[..., Result]) -> None:
        """An axis that is open is as long as it is there."""
        model = mlp((8, 4))
        model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "wide"
        onnx.save(model, "open.onnx")
        np.savez("s.npz", x=np.ones((1, 8)))
        assert "axis 1 (wide) of input x is open" in run("open.onnx").stderr
        assert run("open.onnx", *SMALL, "--sample", "s.npz").exit_code == 0
        assert run("open.onnx", *SMALL, "--shape", "x=8").exit_code == 0


class TestDatabase:
    """`list`, `show`, `export`, `import`, `prune`."""

    def test_an_empty_list(self, run: Callable[..., Result]) -> None:
        """Nothing yet, and where it would be."""
        result = run("list")
        assert result.exit_code == 0
        assert result.stdout.startswith("0 times of 0 operators on ")
        assert "state/operators.sqlite" in result.stdout

    def test_list(self, profiled: Callable[..., Result]) -> None:
        """A line for each model, then the tables."""
        lines = profiled("list").stdout.splitlines()
        assert lines[0].startswith("net  ")
        assert lines[0].endswith("2 configurations, 2 measured whole")
        told = json.loads(profiled("list", "--json").stdout)
        assert [one["name"] for one in told["models"]] == ["net"]
        assert lines[1].startswith(f"{told['operator_times']} times of {told['operators']} operators on ")

    def test_show(self, profiled: Callable[..., Result]) -> None:
        """What was measured whole is planned with, by name and by digest."""
        told = json.loads(profiled("show", "net", "--json").stdout)
        assert [one["measured_s"] for one in told["predictions"]] == [0.001, 0.002]
        assert profiled("show", told["digest"][:6]).stdout.splitlines()[0].startswith("net on ")
        unknown = profiled("show", "other")
        assert (unknown.exit_code, unknown.stdout) == (1, "")
        assert unknown.stderr.startswith("infless: 'other' was not profiled on ")
        assert unknown.stderr.endswith("known: net\n")

    def test_export_and_import(self, profiled: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
        """To another machine; twice does nothing more."""
        result = profiled("export", "x.json")
        assert (result.exit_code, result.stdout) == (0, "")
        assert result.stderr.endswith(" operator times, 1 models\n")
        monkeypatch.setenv("INFLESS_STATE", "elsewhere")
        assert profiled("import", "x.json").stderr == result.stderr.replace("x.json", "taken in")
        assert profiled("import", "x.json").stderr == "taken in: 0 operator times, 0 models\n"
        assert profiled("show", "net").exit_code == 0

    def test_a_bad_import(self, profiled: Callable[..., Result]) -> None:
        """Wrong usage, and nothing changes."""
        Path("x.json").write_text("{")
        result = profiled("import", "x.json")
        assert result.exit_code == 2
        assert result.stderr.startswith("infless: x.json is not an exported profile database")
        assert profiled("import", "none.json").exit_code == 2

    def test_prune(self, profiled: Callable[..., Result]) -> None:
        """By age, by name, by device; and nothing without a wish."""
        wrong = profiled("prune")
        assert wrong.exit_code == 2
        assert wrong.stderr == "infless: say what to forget: --older-than, --other-devices or --model\n"
        assert profiled("prune", "--older-than", "soon").exit_code == 2
        for wish in (("--older-than", "1h"), ("--other-devices",), ("--model", "other")):
            assert profiled("prune", *wish).stderr == "forgotten: 0 operator times, 0 models\n"
        assert profiled("prune", "--model", "net").stderr == "forgotten: 0 operator times, 1 models\n"
        assert profiled("prune", "--older-than", "0s").stderr.startswith("forgotten: ")
        assert json.loads(profiled("list", "--json").stdout)["operator_times"] == 0

    def test_a_database_that_cannot_be_used(self, run: Callable[..., Result]) -> None:
        """A failure, in one sentence, for every command."""
        Path("state").mkdir()
        Path("state/operators.sqlite").write_bytes(b"garbage" * 999)
        for arguments in (
            ("net.onnx", *SMALL),
            ("list",),
            ("show", "net"),
            ("export", "x.json"),
            ("problem", "a=1@1s"),
        ):
            result = run(*arguments)
            assert (result.exit_code, result.stdout) == (1, "")
            assert f"infless: the operator database {Path.cwd()}/state/operators.sqlite cannot be used" in result.stderr
        assert not Path("x.json").exists()


class TestProblem:
    """`infless profile problem`."""

    def test_for_the_planner(self, profiled: Callable[..., Result]) -> None:
        """What it prints is a problem that `infless plan` reads."""
        result = profiled("problem", "net=120@200ms", "--servers", "2", "--cpu-cores", "4", "--memory", "2Gi",
                          "--percentile", "99")  # fmt: skip
        assert result.exit_code == 0, result.stderr
        problem = parse_problem_text(result.stdout)
        assert [(server.cpu_cores, server.memory_bytes) for server in problem.servers] == [(4, 2 << 30)] * 2
        function = problem.functions[0]
        assert (function.id, function.rate_rps, function.latency_target_s) == ("net", 120, 0.2)
        assert (function.max_batch, function.latency_percentile) == (2, 99)
        assert [point.configuration.batch for point in function.profile] == [1, 2]
        assert 0.001 < function.profile[0].exec_s < 0.002

    @pytest.mark.parametrize(
        ("wishes", "code", "words"),
        [
            (("net",), 2, "'net' is not NAME=RATE@TARGET, such as resnet-50=120@200ms"),
            (("net=@1s",), 2, "'net=@1s' is not NAME=RATE@TARGET"),
            (("net=-1@1s",), 2, "'net=-1@1s' is not NAME=RATE@TARGET"),
            (("net=1e9@1s",), 2, "'net=1e9@1s' is not NAME=RATE@TARGET"),
            (("net=1@soon",), 2, "net=1@soon: "),
            (("net=1@1s", "net=2@1s"), 2, "'net' is named twice"),
            (("other=1@1s",), 1, "'other' was not profiled on "),
            (("net=1@1s", "--memory", "much"), 2, "--memory: 'much' is not an amount of memory"),
            (("net=1@1s", "--servers", "0"), 2, "0 is not in the range"),
            (("net=1@1s", "--percentile", "100"), 2, "100.0 is not in the range"),
            ((), 2, "Missing argument"),
        ],
    )
    def test_nonsense(self, profiled: Callable[..., Result], wishes: tuple[str, ...], code: int, words: str) -> None:
        """One sentence, and no half of a problem."""
        result = profiled("problem", *wishes)
        assert (result.exit_code, result.stdout) == (code, "")
        assert words in result.stderr


class TestProgress:
    """What is told while it works."""

    def test_a_log_gets_a_line_every_few_seconds(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Not one for every operator."""
        now_s = iter([100.0, 100.0, 101.0, 106.0, 106.0])
        monkeypatch.setattr(profile_cli.time, "monotonic", now_s.__next__)
        tell, done = profile_cli._progress()
        for words in ("one", "two", "three"):
            tell(words)
        done()
        assert capsys.readouterr().err == "one\nthree\n"

    def test_a_terminal_gets_one_line_that_changes(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Cut to its width, and gone at the end."""
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        tell, done = profile_cli._progress()
        tell("a" * 300)
        done()
        assert capsys.readouterr().err == f"\r\x1b[2K{'a' * 110}\r\x1b[2K"
