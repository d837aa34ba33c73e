"""The operator database as a file: taken in whole and newest first, or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infless_core.errors import InvalidInput
from infless_profiler.estimate import Measured
from infless_profiler.exchange import bring_in, export
from infless_profiler.operators import Operator, Point, Tensor
from infless_profiler.sessions import Device
from infless_profiler.tables import ModelTime, ProfiledModel, Tables, everything
from infless_profiler.timing import Timing

DEVICE = Device(kind="cpu", name="p x2", runtime="onnxruntime 1.2")
OPERATOR = Operator(domain="", type="MatMul", version=13, inputs=(Tensor(dtype="float32", dims=((0, 1), (4, 0))),))
FEATURES = (1.0, 0.0, 0.5, 0.0, 0.0)


def fill(tables: Tables, at_s: float, exec_s: float = 0.001, points: int = 2) -> Tables:
    """Rows as they are after a profile."""
    timing = Timing(exec_s=exec_s, spread=0.1, samples=9)
    tables.save_operators([Measured(operator=OPERATOR, point=Point(1, 1), timing=timing)], at_s)
    times = tuple(
        ModelTime(point=Point(batch, 1), composed_s=exec_s, features=FEATURES, executions_s=(0.1, 0.2))
        for batch in range(1, points + 1)
    )
    tables.save_model(ProfiledModel(digest="digest", name="m", profiled_at_s=at_s, about={"calls": 1}, times=times))
    return tables


@pytest.fixture
def here(tmp_path: Path) -> Tables:
    """A database that takes in."""
    return Tables(tmp_path / "here.sqlite", DEVICE)


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A file from another machine that was profiled at 10."""
    there = fill(Tables(tmp_path / "there.sqlite", DEVICE, {"cores": 2}), 10.0)
    export(there.path, tmp_path / "exported.json")
    return tmp_path / "exported.json"


def test_there_and_back(here: Tables, exported: Path, tmp_path: Path) -> None:
    """An empty database becomes the other one."""
    counts = bring_in(here.path, exported)
    assert counts == {"device": 1, "operator": 1, "operator_time": 1, "model": 1, "model_time": 2}
    assert everything(here.path) == everything(tmp_path / "there.sqlite")
    assert export(here.path, tmp_path / "again.json") == counts
    assert (tmp_path / "again.json").read_text() == exported.read_text()


def test_twice_is_once(here: Tables, exported: Path) -> None:
    """What is there already is not new."""
    bring_in(here.path, exported)
    assert not any(bring_in(here.path, exported).values())


def test_the_newer_of_two_stays(here: Tables, exported: Path) -> None:
    """Times that were measured here later are not overwritten."""
    fill(here, 11.0, 0.5)
    counts = bring_in(here.path, exported)
    assert (counts["operator_time"], counts["model"], counts["model_time"]) == (0, 0, 0)
    assert here.operators()[0].timing.exec_s == here.models()[0].times[0].composed_s == 0.5


def test_what_is_newer_replaces_and_is_counted_once(here: Tables, exported: Path) -> None:
    """Points that only the older profile has stay, and are not counted."""
    fill(here, 9.0, 0.5, points=4)
    counts = bring_in(here.path, exported)
    assert (counts["operator_time"], counts["model"], counts["model_time"]) == (1, 1, 2)
    assert here.operators()[0].timing.exec_s == 0.001
    assert len(here.models()[0].times) == 4


def test_other_devices_stay_others(here: Tables, tmp_path: Path) -> None:
    """Numbers of devices differ between databases; their names are what counts."""
    fill(here, 10.0)
    there = Tables(tmp_path / "there.sqlite", replace(DEVICE, name="other"))
    fill(there, 20.0, 0.7)
    fill(Tables(there.path, DEVICE), 20.0, 0.9)
    export(there.path, tmp_path / "x.json")
    bring_in(here.path, tmp_path / "x.json")
    assert [row.timing.exec_s for row in here.operators()] == [0.9]
    assert [row.timing.exec_s for row in Tables(here.path, there.device).operators()] == [0.7]


def test_a_file_that_cannot_be_written_leaves_no_half(here: Tables, tmp_path: Path) -> None:
    """The error is the system's; what was there stays."""
    fill(here, 1.0)
    with pytest.raises(OSError, match="directory"):
        export(here.path, tmp_path / "no" / "x.json")
    (tmp_path / "x.json").write_text("old")
    (tmp_path / ".x.json.draft").mkdir()
    with pytest.raises(OSError, match="directory"):
        export(here.path, tmp_path / "x.json")
    assert (tmp_path / "x.json").read_text() == "old"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not an exported profile database: Expecting value"),
        (b'{"format": "infless operator prof', "is not an exported profile database: Unterminated"),
        (b"\xff\xfe", "is not an exported profile database: 'utf-8'"),
        (b"[" * 200_000, "is not an exported profile database: maximum recursion"),
        (b"[]", "is not an exported profile database$"),
        (b"{}", "is not an exported profile database$"),
        (b'{"format": "infless operator profiles"}', "is of version None, this INFless reads version 1"),
        (b'{"format": "infless operator profiles", "version": 2}', "is of version 2, this INFless reads version 1"),
        (b'{"format": "infless operator profiles", "version": 1}', "device is missing"),
    ],
)
def test_a_file_that_is_none(here: Tables, tmp_path: Path, content: bytes, words: str) -> None:
    """One sentence with its name."""
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InvalidInput, match=rf"x\.json:? {words}"):
        bring_in(here.path, tmp_path / "x.json")
    with pytest.raises(InvalidInput, match=r"none\.json is not an exported profile database: .*No such file"):
        bring_in(here.path, tmp_path / "none.json")


def change(table: str, **columns: object) -> Callable[[dict[str, Any]], None]:
    """Other values in the first row."""
    return lambda data: data[table][0].update(columns)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (change("device", id="1"), r"device\[0\]: id is '1'"),
        (change("device", id=True), r"device\[0\]: id is True"),
        (change("device", id=2), r"operator_time\[0\] speaks of something that the file does not hold"),
        (change("device", machine="{"), r"device\[0\]: machine is '\{'"),
        (change("device", name=None), r"device\[0\]: name is None"),
        (change("device", colour="red"), r"device\[0\]: its keys are not id, kind, name, runtime, machine"),
        (change("operator", description="{}"), r"operator\[0\]: its description does not belong to its signature"),
        (change("operator", description="[" * 99_999), r"operator\[0\]: its description does not belong"),
        (change("operator", signature="x"), r"operator_time\[0\] speaks of something"),
        (change("operator_time", exec_s=0), r"operator_time\[0\]: a time of 0"),
        (change("operator_time", exec_s=-1.0), r"operator_time\[0\]: exec_s is -1\.0"),
        (change("operator_time", exec_s=float("nan")), r"operator_time\[0\]: exec_s is nan"),
        (change("operator_time", exec_s=float("inf")), r"operator_time\[0\]: exec_s is inf"),
        (change("operator_time", exec_s="fast"), r"operator_time\[0\]: exec_s is 'fast'"),
        (change("operator_time", batch=0), r"operator_time\[0\]: batch is 0"),
        (change("operator_time", batch=1.5), r"operator_time\[0\]: batch is 1\.5"),
        (change("operator_time", batch=2**70), r"operator_time\[0\]: batch is 1180591620717411303424"),
        (change("operator_time", cpu_cores=0), r"operator_time\[0\]: cpu_cores is 0"),
        (change("operator_time", gpu_percent=101), r"operator_time\[0\]: gpu_percent is 101"),
        (change("operator_time", cold=2), r"operator_time\[0\]: cold is 2"),
        (change("operator_time", looks=0), r"operator_time\[0\]: looks is 0"),
        (change("model", about="[]"), r"model\[0\]: about is '\[\]'"),
        (change("model", digest="x"), r"model_time\[0\] speaks of something"),
        (change("model_time", features="[1]"), r"model_time\[0\]: features is '\[1\]'"),
        (change("model_time", features="x"), r"model_time\[0\]: features is 'x'"),
        (change("model_time", executions_s="[]"), r"model_time\[0\]: executions_s is '\[\]'"),
        (change("model_time", executions_s="[0.1, 0]"), r"model_time\[0\]: executions_s is"),
        (change("model_time", composed_s=0), r"model_time\[0\]: a time of 0"),
        (lambda data: data.update(model={}), "model is missing"),
        (lambda data: data["model"].append(7), r"model\[1\]: its keys are not"),
    ],
)
def test_one_bad_row_and_nothing_is_taken_in(
    here: Tables, exported: Path, damage: Callable[[dict[str, Any]], None], words: str
) -> None:
    """The place is named, and the database is as it was."""
    fill(here, 1.0, 0.25)
    before = everything(here.path)
    data = json.loads(exported.read_text())
    damage(data)
    exported.write_text(json.dumps(data))
    with pytest.raises(InvalidInput, match=words):
        bring_in(here.path, exported)
    assert everything(here.path) == before


def test_a_model_that_was_not_measured_whole(here: Tables, exported: Path) -> None:
    """Null is no damage."""
    data = json.loads(exported.read_text())
    change("model_time", executions_s=None)(data)
    exported.write_text(json.dumps(data))
    bring_in(here.path, exported)
    assert [len(one.executions_s) for one in here.models()[0].times] == [0, 2]
