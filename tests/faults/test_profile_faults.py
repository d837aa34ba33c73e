"""Everything that goes wrong with `infless profile`: one clear sentence, the right exit code, no table half-written."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
from benchmarks.models import mlp
from click.testing import CliRunner
from onnx import TensorProto, helper
from provider_process import environment, infless, processes_of, wait_until

from infless_core.errors import BackendError
from infless_profiler import cop
from infless_profiler.around import around
from infless_profiler.cop import Profiler
from infless_profiler.model_file import read_model
from infless_profiler.operator_times import Worker
from infless_profiler.operators import Point
from infless_profiler.prediction import Grid
from infless_profiler.sessions import this_device
from infless_profiler.tables import VERSION, Tables, everything
from infless_profiler.worker import OperatorJob, Place
from infless_provider import cli

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.integration
SMALL = ("--batches", "1,2", "--cores", "1")


def made(nodes: list[Any], shape: list[Any], kind: int = TensorProto.FLOAT) -> Any:
    """A model from `x` to `y`."""
    takes = [helper.make_tensor_value_info("x", kind, shape)]
    graph = helper.make_graph(nodes, "g", takes, [onnx.ValueInfoProto(name="y")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


RELU = helper.make_node("Relu", ["x"], ["y"])


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    """What the command writes to."""
    return Tables(tmp_path / "state" / "operators.sqlite", this_device())


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a good model."""
    monkeypatch.chdir(tmp_path)
    onnx.save(mlp((8, 16, 4)), tmp_path / "net.onnx")
    return tmp_path


Refused = Callable[..., None]


@pytest.fixture
def refused(here: Path, tables: Tables) -> Refused:
    """Run the command: it fails with one sentence that holds these words, and writes nothing."""

    def check(words: str, *arguments: str, code: int = 2) -> None:
        result = CliRunner().invoke(
            cli.main, ["profile", *arguments, "--state-dir", str(here / "state")], prog_name="infless"
        )
        assert isinstance(result.exception, SystemExit), result.exception
        assert (result.exit_code, result.stdout) == (code, "")
        sentence = result.stderr.splitlines()[-1]
        assert sentence.startswith("infless: ")
        assert words in sentence
        assert tables.operators() == []
        assert tables.models() == []

    return check


class TestModels:
    """What is no model, or none that this machine can run."""

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"", "this is not an ONNX model, or the file is cut off"),
            (b"\x89PNG\r\n\x1a\n" + bytes(100), "this is not an ONNX model, or the file is cut off"),
            (mlp((8, 16, 4)).SerializeToString()[:-9], "this is not an ONNX model, or the file is cut off"),
            (mlp((8, 16, 4)).SerializeToString()[:40], "this is not an ONNX model, or the file is cut off"),
        ],
        ids=["empty", "a picture", "cut off", "cut off early"],
    )
    def test_no_onnx_file(self, refused: Refused, content: bytes, words: str) -> None:
        """Its name is in the sentence."""
        Path("bad.onnx").write_bytes(content)
        refused(f"bad.onnx: {words}", "bad.onnx")
        Path("bad.pt2").write_bytes(content)
        refused("bad.pt2", "bad.pt2")

    def test_weights_beside_it(self, refused: Refused) -> None:
        """Cut off, and missing."""
        onnx.save(mlp((8, 4)), "out.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
        weights = Path("w.bin")
        weights.write_bytes(weights.read_bytes()[:-1])
        refused("its weights in w.bin are cut off: 127 bytes, 128 are needed", "out.onnx")
        weights.unlink()
        refused("its weights are in w.bin, which is not beside it", "out.onnx")

    def test_an_opset_of_the_future(self, refused: Refused) -> None:
        """What this machine has, and what to do."""
        model = made([RELU], ["n", 3])
        model.opset_import[0].version = 999
        onnx.save(model, "new.onnx")
        refused("is the newest this machine has: export with an older opset, or update it", "new.onnx")

    def test_an_operator_of_a_library_that_is_not_here(self, refused: Refused) -> None:
        """Which one."""
        model = made([helper.make_node("Magic", ["x"], ["y"], domain="com.acme")], ["n", 3])
        model.opset_import.append(helper.make_opsetid("com.acme", 1))
        onnx.save(model, "custom.onnx")
        refused("com.acme:Magic", "custom.onnx")

    @pytest.mark.parametrize(
        ("shape", "more", "words"),
        [
            (["n", "wide"], (), "axis 1 (wide) of input x is open; give its size, for example --shape x=64, or a --sample"),
            (["n", 0], (), "axis 1 of input x has length 0; there is nothing to time"),
            (["n", "wide"], ("--shape", "x=0"), "--shape: 'x=0' has an axis of length 0; each is at least 1"),
            (["n", 3], ("--shape", "x=three"), "--shape: 'x=three' is not a shape such as"),
            (["n", 3], ("--shape", "y=3"), "--shape: bad has no input 'y'; its inputs are x"),
            (["n", 3], ("--shape", "x=3,3"), "--shape: input x of bad has 2 axes, 3 with the batch are given"),
            (["n", 3], ("--shape", "x=4"), "axis 1 of input x of bad is fixed at 3, not 4"),
            (["n", "wide"], ("--shape", "x=999999999999999"), "of memory for three items"),
            (["n", 3], ("--sample", "text.npz"), "--sample: text.npz is not an .npz file"),
            (["n", 3], ("--sample", "rank.npz"), "--sample: input x of bad has 2 axes, the sample has 1"),
            (["n", 3], ("--sample", "other.npz"), "--sample: bad has no input 'z'; its inputs are x"),
            ([1, 3], ("--batches", "2,4"), "--batches: bad was exported for batches of 1 only"),
            (["n", 3], ("--gpu-percents", "50"), "--gpu-percents: "),
        ],
    )  # fmt: skip
    def test_sizes(
        self, refused: Refused, monkeypatch: pytest.MonkeyPatch, shape: list[Any], more: tuple[str, ...], words: str
    ) -> None:
        """Input and axis are named."""
        monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
        onnx.save(made([RELU], shape), "bad.onnx")
        Path("text.npz").write_text("x=3")
        np.savez("rank.npz", x=np.ones(3))
        np.savez("other.npz", z=np.ones((1, 3)))
        refused(words, "bad.onnx", *more)

    def test_more_than_there_is_memory(self, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
        """Both numbers."""
        memory = psutil.virtual_memory()._replace(available=4 << 10)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
        refused("net: a batch of 4096 needs at least ", "net.onnx", "--batches", "1,4096")

    def test_nothing_is_left_of_it_in_a_real_process(self, here: Path) -> None:
        """No traceback, no temporary folder, no process."""
        Path("bad.onnx").write_bytes(b"bad")
        Path("tmp").mkdir()
        done = infless("profile", "bad.onnx", "--state-dir", "state", cwd=here, TMPDIR=str(here / "tmp"))
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.splitlines()[-1].startswith("infless: bad.onnx: this is not an ONNX model")
        assert "Traceback" not in done.stderr
        assert [*Path("tmp").iterdir()] == []
        assert processes_of(here) == []


class Deadly:
    """A job that does something to who takes it out of the pipe."""

    def __init__(self, do: Callable[[Any], Any], value: Any) -> None:
        self.do = do
        self.value = value

    def __reduce__(self) -> tuple[Any, ...]:
        return self.do, (self.value,)


KILLED = Deadly(signal.raise_signal, signal.SIGKILL)


def good_job() -> OperatorJob:
    """The call of a model itself."""
    (call,), case = around((), (), this_device())
    return OperatorJob(operator=call, case=case, points=(Point(1, 1),))


class TestWorkers:
    """Processes that die, hang, or are not wanted any more."""

    @pytest.fixture
    def worker(self) -> Iterator[Worker]:
        """One that has done a job."""
        self.cancel = False
        with Worker(Place(device=this_device(), cpu_cores=1), lambda: self.cancel) as made_worker:
            assert made_worker.do(good_job())[0].timing.exec_s > 0
            yield made_worker

    @pytest.mark.parametrize(
        ("job", "words"),
        [
            (KILLED, "the process that times it ran out of memory or was killed"),
            (Deadly(os._exit, 7), "the process that times it ended with exit code 7"),
            (Deadly(signal.raise_signal, signal.SIGSEGV), "the process that times it ended with exit code -11"),
        ],
    )
    def test_one_that_dies(self, worker: Worker, job: Any, words: str) -> None:
        """Says how, and the next job finds a new one."""
        with pytest.raises(BackendError, match=f"^{words}$"):
            worker.do(job)
        assert worker.do(good_job())
        assert not worker.was_cancelled

    def test_one_that_dies_between_jobs(self, worker: Worker) -> None:
        """Nobody notices."""
        assert worker._process is not None
        worker._process.kill()
        worker._process.join()
        assert worker.do(good_job())

    def test_one_that_hangs(self, worker: Worker) -> None:
        """Is ended after a while."""
        worker._silent_s = 0.5
        with pytest.raises(BackendError, match=r"^it did not end within 0 s$"):
            worker.do(Deadly(time.sleep, 60))  # type: ignore[arg-type]
        assert worker._process is None
        worker._silent_s = 60
        assert worker.do(good_job())

    def test_one_that_is_cancelled(self, worker: Worker) -> None:
        """Before a job and within one; afterwards it may work again."""
        self.cancel = True
        for job in (good_job(), Deadly(time.sleep, 60)):
            with pytest.raises(BackendError, match="^timing was cancelled$"):
                worker.do(job)  # type: ignore[arg-type]
        assert worker.was_cancelled
        self.cancel = False
        assert worker.do(good_job())

    def test_a_job_that_fails(self, worker: Worker) -> None:
        """The runtime's words; the process lives on."""
        process = worker._process
        bad = OperatorJob(operator=good_job().operator, case=Deadly(str, "no case"), points=(Point(1, 1),))  # type: ignore[arg-type]
        with pytest.raises(BackendError, match="has no attribute"):
            worker.do(bad)
        assert worker.do(good_job())
        assert worker._process is process

    def test_an_operator_that_kills_its_process(
        self, here: Path, tables: Tables, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The model is measured in one piece instead, and a note says why."""

        class Fragile(Worker):
            def do(self, job: Any, *more: Any) -> Any:
                return super().do(KILLED if job.operator.type == "Relu" else job, *more)  # type: ignore[arg-type]

        monkeypatch.setattr(cop, "Worker", Fragile)
        with Profiler(tables) as profiler:
            profile = profiler.profile(read_model(here / "net.onnx"), Grid(batches=(1, 2), cpu_cores=(1,)))
        assert len(profile.graph.calls) == 1
        assert re.fullmatch(
            r"measured as a whole: operator Relu\(.*\) does not run alone: .* ran out of memory or was killed",
            profile.warnings[0],
        )
        assert tables.model("net").times[0].composed_s > 0


def test_control_flow_is_one_piece(here: Path) -> None:
    """An If with a note; exit code 0."""

    def branch(kind: str) -> Any:
        nodes = [helper.make_node(kind, ["x"], [kind])]
        return helper.make_graph(nodes, kind, [], [onnx.ValueInfoProto(name=kind)])

    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0), helper.make_node("Cast", ["sum"], ["more"], to=9),
        helper.make_node("If", ["more"], ["y"], then_branch=branch("Exp"), else_branch=branch("Tanh")),
    ]  # fmt: skip
    onnx.save(made(nodes, ["n", 4]), "if.onnx")
    done = infless("profile", "if.onnx", *SMALL, "--state-dir", "state", cwd=here)
    assert done.returncode == 0, done.stderr
    assert "note: operator If: measured as one piece with what it contains" in done.stdout


class TestDatabase:
    """Of another version, damaged, out of reach, or wanted by many at once."""

    def test_of_another_version(self, here: Path, tables: Tables) -> None:
        """Refused before anything is measured, and left as it is."""
        tables.operators()
        with closing(sqlite3.connect(tables.path)) as db:
            db.execute(f"PRAGMA user_version = {VERSION + 1}")
        before = tables.path.read_bytes()
        done = infless("profile", "net.onnx", *SMALL, "--state-dir", "state", cwd=here)
        assert (done.returncode, done.stdout) == (1, "")
        assert f"is of version {VERSION + 1}, this INFless works with version {VERSION}" in done.stderr
        assert "Traceback" not in done.stderr
        assert tables.path.read_bytes() == before

    @pytest.mark.parametrize("damage", ["garbage", "cut off"])
    def test_damaged(self, here: Path, tables: Tables, damage: str) -> None:
        """What to do is in the sentence."""
        tables.operators()
        content = tables.path.read_bytes()
        tables.path.write_bytes(b"garbage" * 2000 if damage == "garbage" else content[: len(content) // 2])
        done = infless("profile", "net.onnx", *SMALL, "--state-dir", "state", cwd=here)
        assert (done.returncode, done.stdout) == (1, "")
        assert "cannot be used: " in done.stderr
        assert "move it away and profile anew" in done.stderr
        assert "Traceback" not in done.stderr

    @pytest.mark.parametrize("place", ["/proc/nowhere", "net.onnx"])
    def test_out_of_reach(self, here: Path, place: str) -> None:
        """A folder that nobody can write, not even root; a file in its place."""
        done = infless("profile", "net.onnx", *SMALL, "--state-dir", place, cwd=here)
        assert (done.returncode, done.stdout) == (1, "")
        assert f"operator database {place}/operators.sqlite cannot be used" in done.stderr
        assert "Traceback" not in done.stderr

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_read_only(self, here: Path) -> None:
        """A sentence as well."""
        Path("state").mkdir(mode=0o500)
        done = infless("profile", "net.onnx", *SMALL, "--state-dir", "state", cwd=here)
        assert (done.returncode, "cannot be used" in done.stderr) == (1, True)

    def test_made_by_several_at_once(self, here: Path, tables: Tables) -> None:
        """Each profiles its model; the rows of all are there."""
        for size in (8, 16):
            onnx.save(mlp((8, size, 4)), f"net{size}.onnx")

        def profile(size: int) -> subprocess.CompletedProcess[str]:
            return infless("profile", f"net{size}.onnx", *SMALL, "--state-dir", "state", cwd=here)

        with ThreadPoolExecutor(2) as pool:
            done = list(pool.map(profile, (8, 16)))
        assert [one.returncode for one in done] == [0, 0], [one.stderr for one in done]
        assert [one.name for one in tables.models()] == ["net16", "net8"]
        assert len(everything(tables.path)["device"]) == 1

    @pytest.mark.parametrize("damage", ["cut off", "other version", "inconsistent", "a picture"])
    def test_a_bad_import(self, here: Path, tables: Tables, damage: str) -> None:
        """Nothing is taken in."""
        assert infless("profile", "net.onnx", *SMALL, "--state-dir", "other", cwd=here).returncode == 0
        assert infless("profile", "export", "x.json", "--state-dir", "other", cwd=here).returncode == 0
        text = Path("x.json").read_text()
        data = json.loads(text)
        match damage:
            case "cut off":
                text = text[: len(text) // 2]
            case "other version":
                text = json.dumps({**data, "version": 2})
            case "inconsistent":
                data["operator"].pop()
                text = json.dumps(data)
            case "a picture":
                text = "\x00PNG"
        Path("x.json").write_text(text)
        done = infless("profile", "import", "x.json", "--state-dir", "state", cwd=here)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("infless: x.json")
        assert len(done.stderr.splitlines()) == 1
        assert not tables.path.exists() or not any(everything(tables.path).values())


def test_ctrl_c_keeps_what_was_measured(here: Path, tables: Tables) -> None:
    """No traceback, no process is left, and the next time less is to be measured."""
    onnx.save(mlp(tuple(range(600, 1400, 57))), here / "large.onnx")
    arguments = ("profile", "large.onnx", "--cores", "1", "--state-dir", "state")
    command = [sys.executable, "-m", "infless_provider.cli", *arguments, "--batches", "1,2,4,8,16,32,64"]
    with (here / "log").open("wb") as log:
        process = subprocess.Popen(
            command, env=environment(), cwd=here, stdout=log, stderr=log, start_new_session=True
        )  # fmt: skip
        wait_until(lambda: tables.operators() or process.poll() is not None, "something is kept")
        assert process.poll() is None, "it was too quick for this test"
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(20) == 1
    told = (here / "log").read_text()
    assert "Traceback" not in told
    assert told.endswith("Aborted!\n")
    wait_until(lambda: not processes_of(here), "nothing is left")
    kept = len(tables.operators())
    assert kept > 0
    assert tables.models() == []
    done = infless(*arguments, "--batches", "1", "--json", cwd=here)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["operators"]["reused"] > 0
