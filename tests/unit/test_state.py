"""What survives a restart, and what happens when the disk does not take it."""

import sqlite3
from dataclasses import replace

import pytest

from infless_core.errors import StateError
from infless_core.model import Configuration, FunctionSpec
from infless_provider.state import State, StoredFunction, StoredInstance

FUNCTION = StoredFunction(
    spec=FunctionSpec(name="f", image="i", namespace="n", secrets=("s",), labels={"a": "b"}, limits={"cpu": "1"}),
    bundle="/b", digest="d", created_at_s=1.5, replicas=2,
)  # fmt: skip
INSTANCE = StoredInstance(
    id="f-1", function="f.n", digest="d", configuration=Configuration(batch=4, cpu_cores=2),
    address={"host": "h", "port": 1, "metrics_port": 2, "handle": {"pid": 3}},
)  # fmt: skip


@pytest.fixture
def file(tmp_path):
    """Where the state lives."""
    return tmp_path / "state" / "state.sqlite"


@pytest.fixture
def state(file):
    """An open state."""
    state = State(file)
    yield state
    state.close()


def reopened(file, read):
    """What another provider would read."""
    state = State(file)
    try:
        return read(state)
    finally:
        state.close()


def test_functions_and_instances_come_back(state, file):
    """As they were put."""
    state.put_function(FUNCTION)
    state.put_instance(INSTANCE)
    assert reopened(file, State.functions) == [FUNCTION]
    assert reopened(file, State.instances) == [INSTANCE]


def test_putting_again_replaces(state):
    """By key, not by row."""
    state.put_function(FUNCTION)
    state.put_function(replace(FUNCTION, replicas=None))
    state.put_instance(INSTANCE)
    state.put_instance(replace(INSTANCE, digest="e"))
    assert [function.replicas for function in state.functions()] == [None]
    assert [instance.digest for instance in state.instances()] == ["e"]


def test_deleting(state):
    """What is not there is no fault; instances outlive their function's row."""
    state.put_function(FUNCTION)
    state.put_instance(INSTANCE)
    state.delete_function("f.n")
    state.delete_function("f.n")
    assert (state.functions(), state.instances()) == ([], [INSTANCE])
    state.delete_instance("f-1")
    assert state.instances() == []


def test_an_empty_file_becomes_a_state(file):
    """The migration starts from nothing, also from what `touch` made."""
    file.parent.mkdir()
    file.touch()
    assert reopened(file, State.functions) == []


def test_a_newer_schema_is_refused(state, file):
    """An old program must not write into it."""
    with sqlite3.connect(file) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StateError, match=r"newer INFless \(schema 99\); update INFless"):
        State(file)


def test_a_damaged_file_is_refused(file):
    """With its name."""
    file.parent.mkdir()
    file.write_bytes(b"not a database" * 100)
    with pytest.raises(StateError, match=r"state.sqlite cannot be used: file is not a database"):
        State(file)


def test_a_row_that_cannot_be_read_leaves_the_others(state, file, caplog):
    """It is told, and stays for the version that can read it."""
    state.put_function(FUNCTION)
    with sqlite3.connect(file) as db:
        db.execute("INSERT INTO function VALUES ('bad.n', '{\"future\": 1}', '/b', 'd', 1, NULL)")
    db.close()
    assert state.functions() == [FUNCTION]
    assert "bad.n cannot be read" in caplog.text


def test_a_table_that_cannot_be_read(state, file):
    """One of our errors, with a sentence."""
    with sqlite3.connect(file) as db:
        db.execute("DROP TABLE instance")
    db.close()
    with pytest.raises(StateError, match="cannot be read: no such table"):
        state.instances()


def test_a_full_disk_changes_nothing(state, file):
    """The page limit stands for the disk: a write fails whole, what was there stays, smaller ones go on."""
    state.put_function(FUNCTION)
    pages = state._db.execute("PRAGMA page_count").fetchone()[0]
    state._db.execute(f"PRAGMA max_page_count = {pages}")
    big = replace(FUNCTION, spec=replace(FUNCTION.spec, name="big", env_vars={"x": "y" * 100_000}))
    with pytest.raises(StateError, match="database or disk is full; nothing was changed"):
        state.put_function(big)
    assert reopened(file, State.functions) == [FUNCTION]
    state.put_function(replace(FUNCTION, replicas=5))
    assert reopened(file, State.functions)[0].replicas == 5


@pytest.mark.parametrize("folder", ["/proc/infless", "/dev/null/infless"])
def test_a_folder_that_cannot_be_written(folder, tmp_path):
    """Not even by root: the sentence names the file."""
    with pytest.raises(StateError, match="the state database .* cannot be opened"):
        State(tmp_path / folder / "state.sqlite")


def test_a_read_only_database(state, file):
    """A write says so and nothing is lost."""
    state.put_function(FUNCTION)
    state._db.execute("PRAGMA query_only = 1")
    with pytest.raises(StateError, match="could not be written .* nothing was changed"):
        state.delete_function("f.n")
    assert reopened(file, State.functions) == [FUNCTION]
