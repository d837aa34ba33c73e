"""The operator database: what goes in comes out, by device; several processes; versions; forgetting."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from infless_core.errors import NotFound, StateError
from infless_profiler.estimate import Measured
from infless_profiler.operators import Operator, Point, Tensor
from infless_profiler.sessions import Device
from infless_profiler.tables import VERSION, ModelTime, ProfiledModel, Tables, everything, open_database, prune
from infless_profiler.timing import Timing

DEVICE = Device(kind="cpu", name="p x2", runtime="onnxruntime 1.2")
NEWER = replace(DEVICE, runtime="onnxruntime 1.3")
GPU = Device(kind="cuda", name="g", runtime="onnxruntime 1.2")
TIMING = Timing(exec_s=0.001, spread=0.1, samples=9, looks=2)
FEATURES = (1.0, 0.0, 0.5, 0.0, 0.0)
ONE = Point(1, 1)


def operator(kind: str = "MatMul", size: int = 4) -> Operator:
    """One of a family."""
    tensor = Tensor(dtype="float32", dims=((0, 1), (size, 0)))
    return Operator(domain="", type=kind, version=13, attributes={"a": [1, 2]}, inputs=(tensor, None))


def measured(one: Operator | None = None, point: Point = ONE, exec_s: float = 0.001) -> Measured:
    """A row."""
    return Measured(operator=one or operator(), point=point, timing=replace(TIMING, exec_s=exec_s))


def model(name: str = "m", at_s: float = 10.0, whole: Sequence[float] = (), **more: object) -> ProfiledModel:
    """Two points; the first is measured whole if wished."""
    times = (
        ModelTime(point=Point(1, 1), composed_s=0.1, features=FEATURES, executions_s=tuple(whole), memory_bytes=7),
        ModelTime(point=Point(2, 1), composed_s=0.2, features=FEATURES),
    )
    one = ProfiledModel(digest=f"digest-of-{name}", name=name, profiled_at_s=at_s, about={"calls": 3}, times=times)
    return replace(one, **more)  # type: ignore[arg-type]


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    """Of a folder that does not exist yet."""
    return Tables(tmp_path / "state" / "operators.sqlite", DEVICE, {"cores": 2})


class TestOperators:
    """Times of operators."""

    def test_what_goes_in_comes_out(self, tables: Tables) -> None:
        """With everything that belongs to it, in a steady order."""
        rows = [
            measured(point=Point(8, 2, 50, cold=True)),
            measured(point=Point(1, 1)),
            measured(operator("Relu"), exec_s=0.5),
        ]
        tables.save_operators(rows, 5.0)
        found = tables.operators()
        assert sorted(found, key=repr) == sorted(rows, key=repr)
        assert found == tables.operators()

    def test_by_family(self, tables: Tables) -> None:
        """Only what is needed is read."""
        tables.save_operators([measured(), measured(operator("Relu"))], 5.0)
        assert [row.operator.family for row in tables.operators({"Relu"})] == ["Relu"]
        assert tables.operators(()) == []
        assert len(tables.operators({"Relu", "MatMul", "Conv"})) == 2

    def test_a_newer_time_replaces_an_older_one(self, tables: Tables) -> None:
        """Of the same operator at the same point."""
        tables.save_operators([measured()], 5.0)
        tables.save_operators([measured(exec_s=0.7), measured(point=Point(1, 1, cold=True))], 6.0)
        assert [row.timing.exec_s for row in tables.operators()] == [0.7, 0.001]

    def test_devices_and_runtimes_never_mix(self, tables: Tables) -> None:
        """Another onnxruntime begins anew, and the old rows stay."""
        tables.save_operators([measured()], 5.0)
        tables.save_model(model())
        for device in (NEWER, GPU, replace(DEVICE, name="q")):
            other = Tables(tables.path, device)
            assert (other.operators(), other.models(), other.whole_times()) == ([], [], [])
            other.save_operators([measured(exec_s=3.0)], 5.0)
        assert [row.timing.exec_s for row in tables.operators()] == [0.001]

    def test_a_batch_of_rows_is_written_whole_or_not_at_all(self, tables: Tables) -> None:
        """A time of 0 is refused, and what came with it is not kept."""
        with pytest.raises(StateError, match="CHECK"):
            tables.save_operators([measured(operator("Relu")), measured(exec_s=0.0)], 5.0)
        assert tables.operators() == []


class TestModels:
    """Profiles of whole models."""

    def test_what_goes_in_comes_out(self, tables: Tables) -> None:
        """Ordered by name."""
        two, one = model("b"), model("a", whole=[0.1, 0.2])
        tables.save_model(two)
        tables.save_model(one)
        assert tables.models() == [one, two]
        assert tables.model("a") == one

    def test_by_digest(self, tables: Tables) -> None:
        """Six letters are enough, fewer are a name."""
        tables.save_model(model("a"))
        assert tables.model("digest-of").name == "a"
        with pytest.raises(NotFound, match="'diges' was not profiled on p x2 with onnxruntime 1.2; known: a"):
            tables.model("diges")

    def test_of_two_with_one_name_the_newer_one_is_meant(self, tables: Tables) -> None:
        """A model that was trained again keeps its name."""
        tables.save_model(model(at_s=20.0, digest="newer"))
        tables.save_model(model(at_s=10.0, digest="older"))
        assert tables.model("m").digest == "newer"

    def test_an_empty_database_knows_nothing(self, tables: Tables) -> None:
        """And says so."""
        with pytest.raises(NotFound, match="known: none"):
            tables.model("m")

    def test_profiling_again_keeps_what_was_measured_whole(self, tables: Tables) -> None:
        """A profile without --verify forgets no measurement, and other configurations stay."""
        tables.save_model(model(whole=[0.1, 0.3]))
        once_more = model(at_s=11.0, times=(replace(model().times[0], composed_s=0.4, memory_bytes=99),))
        tables.save_model(once_more)
        found = tables.model("m")
        assert [one.composed_s for one in found.times] == [0.4, 0.2]
        assert (found.times[0].executions_s, found.times[0].memory_bytes) == ((0.1, 0.3), 7)
        tables.save_model(model(whole=[0.5]))
        assert tables.model("m").times[0].executions_s == (0.5,)

    def test_a_correction_is_learned_from_others(self, tables: Tables) -> None:
        """From whole measurements only, and not from the model itself."""
        tables.save_model(model("a", whole=[0.1]))
        tables.save_model(model("b", whole=[0.2]))
        assert [one.model for one in tables.whole_times()] == ["a", "b"]
        assert [one.executions_s for one in tables.whole_times("a")] == [(0.2,)]


class TestForgetting:
    """`prune`."""

    @pytest.fixture(autouse=True)
    def _filled(self, tables: Tables) -> None:
        """Old and new rows, of two runtimes."""
        tables.save_operators([measured(), measured(operator("Relu"))], 5.0)
        tables.save_operators([measured(exec_s=0.5)], 50.0)
        tables.save_model(model("a", at_s=5.0))
        tables.save_model(model("b", at_s=50.0))
        Tables(tables.path, NEWER).save_operators([measured()], 50.0)

    def test_what_is_old(self, tables: Tables) -> None:
        """Operators without any time go as well, and times of models with these."""
        gone = prune(tables.path, measured_before_s=10.0)
        assert gone == {"device": 0, "operator": 1, "operator_time": 1, "model": 1, "model_time": 2}
        assert [one.name for one in tables.models()] == ["b"]

    def test_other_devices(self, tables: Tables) -> None:
        """Of this one all stays."""
        gone = prune(tables.path, devices=[DEVICE])
        assert gone == {"device": 1, "operator": 0, "operator_time": 1, "model": 0, "model_time": 0}

    def test_a_model_by_name(self, tables: Tables) -> None:
        """Its operators stay: others may use them."""
        gone = prune(tables.path, model="a")
        assert gone == {"device": 0, "operator": 0, "operator_time": 0, "model": 1, "model_time": 2}

    def test_nothing_that_fits(self, tables: Tables) -> None:
        """Nothing goes."""
        assert not any(prune(tables.path, measured_before_s=1.0, model="z").values())


class TestTheFile:
    """Versions, damage, several processes."""

    def test_another_version_is_refused_and_left_alone(self, tables: Tables) -> None:
        """It says both versions and what to do."""
        tables.save_operators([measured()], 5.0)
        with closing(sqlite3.connect(tables.path)) as db:
            db.execute(f"PRAGMA user_version = {VERSION + 1}")
        before = tables.path.read_bytes()
        with pytest.raises(StateError, match=rf"is of version {VERSION + 1}, .* version {VERSION}: .*move the file"):
            tables.operators()
        assert tables.path.read_bytes() == before

    @pytest.mark.parametrize("content", [b"garbage" * 1000, b"SQLite format 3\x00" + b"\xff" * 4000])
    def test_a_damaged_file_is_refused_and_left_alone(self, tables: Tables, content: bytes) -> None:
        """A sentence with its name."""
        tables.path.parent.mkdir()
        tables.path.write_bytes(content)
        with pytest.raises(StateError, match=r"operators\.sqlite cannot be used: .*; if it is damaged, move it away"):
            tables.save_operators([measured()], 5.0)
        assert tables.path.read_bytes() == content

    def test_a_damaged_row_is_a_sentence(self, tables: Tables) -> None:
        """Descriptions are read with care."""
        tables.save_operators([measured()], 5.0)
        with closing(sqlite3.connect(tables.path)) as db, db:
            db.execute("UPDATE operator SET description = '{'")
        with pytest.raises(StateError, match="cannot be used"):
            tables.operators()

    def test_a_place_that_is_no_folder(self, tmp_path: Path) -> None:
        """What cannot be opened is a sentence as well."""
        (tmp_path / "file").write_text("")
        for path in (tmp_path / "file" / "operators.sqlite", tmp_path):
            with pytest.raises(StateError, match="cannot be used"):
                Tables(path, DEVICE).operators()

    def test_an_error_in_between_takes_everything_back(self, tables: Tables) -> None:
        """One transaction."""
        tables.save_operators([measured()], 5.0)

        def interrupted() -> None:
            with open_database(tables.path) as db:
                db.execute("DELETE FROM operator_time")
                raise RuntimeError("power cut")

        with pytest.raises(RuntimeError, match="power cut"):
            interrupted()
        assert len(tables.operators()) == 1

    def test_several_may_make_it_at_once(self, tables: Tables) -> None:
        """Each finds it made or makes it, and every row is there."""
        together = threading.Barrier(4)

        def write(place: int) -> None:
            together.wait(20)
            tables.save_operators([measured(point=Point(1 + place, 1))], 5.0)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(write, range(4)))
        assert len(tables.operators()) == 4
        assert len(everything(tables.path)["device"]) == 1
