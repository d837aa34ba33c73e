"""What survives a restart, and what happens when the disk does not take it."""

import json
import sqlite3
from dataclasses import asdict, replace

import pytest

from infless_core.errors import StateError
from infless_core.model import Configuration, FunctionSpec
from infless_provider import state as state_module
from infless_provider.state import State, StoredFunction, StoredInstance, StoredNamespace, Version, in_use

SPEC = FunctionSpec(name="f", image="i", namespace="n", secrets=("s",), labels={"a": "b"}, limits={"cpu": "1"})
VERSION = Version(spec=SPEC, artifact="/b", digest="d")
FUNCTION = StoredFunction(version=VERSION, created_at_s=1.5, replicas=2)
INSTANCE = StoredInstance(
    id="f-1", function="f.n", version=VERSION.id, configuration=Configuration(batch=4, cpu_cores=2),
    address={"host": "h", "port": 1, "metrics_port": 2, "handle": {"pid": 3}},
)  # fmt: skip
NAMESPACE = StoredNamespace(name="dev", labels={"openfaas": "1"}, annotations={"owner": "me"})
VERSION_1 = """
    CREATE TABLE function (
        key TEXT PRIMARY KEY, spec TEXT NOT NULL, bundle TEXT NOT NULL, digest TEXT NOT NULL,
        created_at_s REAL NOT NULL, replicas INTEGER
    );
    CREATE TABLE instance (
        id TEXT PRIMARY KEY, function TEXT NOT NULL, digest TEXT NOT NULL, batch INTEGER NOT NULL,
        cpu_cores INTEGER NOT NULL, gpu_percent INTEGER NOT NULL, address TEXT NOT NULL
    );
    PRAGMA user_version = 1;
"""
"""As INFless 0.1 wrote it."""


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


@pytest.fixture
def old_file(file):
    """A state of the first schema, with a function and its instance."""
    file.parent.mkdir()
    with sqlite3.connect(file) as db:
        db.executescript(VERSION_1)
        db.execute("INSERT INTO function VALUES ('f.n', ?, '/b', 'd', 1.5, 2)", (json.dumps(asdict(SPEC)),))
        db.execute("INSERT INTO instance VALUES ('f-1', 'f.n', 'd', 4, 2, 0, ?)", (json.dumps(INSTANCE.address),))
    db.close()
    return file


def reopened(file, read):
    """What another provider would read."""
    state = State(file)
    try:
        return read(state)
    finally:
        state.close()


def execute(file, *statements):
    """What somebody else does to the file."""
    with sqlite3.connect(file) as db:
        for statement in statements:
            db.execute(statement)
    db.close()


def schema(file):
    """Its number, and the columns of its functions."""
    db = sqlite3.connect(file)
    try:
        columns = [row[1] for row in db.execute("PRAGMA table_info(function)")]
        return db.execute("PRAGMA user_version").fetchone()[0], columns
    finally:
        db.close()


def test_everything_comes_back(state, file):
    """As it was put."""
    state.put_function(FUNCTION)
    state.put_instance(INSTANCE)
    state.put_namespace(NAMESPACE)
    assert reopened(file, State.functions) == [FUNCTION]
    assert reopened(file, State.instances) == [INSTANCE]
    assert reopened(file, State.namespaces) == [NAMESPACE]


def test_only_what_users_asked_for_waits_for_the_disk(state):
    """2 is FULL, an fsync for each transaction; 1 is NORMAL, which outlives this program, but not the machine."""

    def after(write):
        write()
        return state._db.execute("PRAGMA synchronous").fetchone()[0]

    assert after(lambda: state.put_function(FUNCTION)) == 2
    assert after(lambda: state.put_instance(INSTANCE)) == 1
    assert after(lambda: state.put_namespace(NAMESPACE)) == 2
    assert after(lambda: state.delete_instance(INSTANCE.id)) == 1
    assert after(lambda: state.delete_function(FUNCTION.key)) == 2


def test_an_update_that_is_not_proven_comes_back(state, file):
    """With all that a rollback needs: a restart in the middle of an update must not lose the way back."""
    old = replace(VERSION, artifact="/old", digest="old", spec=replace(SPEC, env_vars={"x": "y"}))
    updated = replace(FUNCTION, previous=old, proven=False)
    state.put_function(updated)
    state.put_function(replace(updated, version=replace(VERSION, spec=replace(SPEC, name="g")), proven=True))
    assert reopened(file, State.functions) == [
        updated,
        replace(updated, version=replace(VERSION, spec=replace(SPEC, name="g")), proven=True),
    ]


def test_an_instance_without_an_address_comes_back(state, file):
    """It was decided to start it, and the provider ended before its backend knew more."""
    state.put_instance(replace(INSTANCE, address={}))
    assert reopened(file, State.instances)[0].address == {}


def test_putting_again_replaces(state):
    """By key, not by row."""
    state.put_function(FUNCTION)
    state.put_function(replace(FUNCTION, replicas=None))
    state.put_instance(INSTANCE)
    state.put_instance(replace(INSTANCE, version="e"))
    state.put_namespace(NAMESPACE)
    state.put_namespace(replace(NAMESPACE, labels={}))
    assert [function.replicas for function in state.functions()] == [None]
    assert [instance.version for instance in state.instances()] == ["e"]
    assert [namespace.labels for namespace in state.namespaces()] == [{}]


def test_deleting(state):
    """What is not there is no fault; instances outlive their function's row."""
    state.put_function(FUNCTION)
    state.put_instance(INSTANCE)
    state.put_namespace(NAMESPACE)
    for _ in range(2):
        state.delete_function("f.n")
        state.delete_namespace("dev")
    assert (state.functions(), state.instances(), state.namespaces()) == ([], [INSTANCE], [])
    state.delete_instance("f-1")
    assert state.instances() == []


class TestVersions:
    """What an update changes, and what it can go back to."""

    NEW = replace(VERSION, digest="new", artifact="/new")

    @pytest.mark.parametrize(
        "changes",
        [
            {"limits": {"memory": "1Gi"}},
            {"secrets": ("s", "t")},
            {"secrets": ()},
            {"read_only_root_filesystem": True},
            {"env_process": "x"},
        ],
    )
    def test_what_needs_other_instances(self, changes):
        """Whatever a running one cannot be told."""
        assert replace(VERSION, spec=replace(SPEC, **changes)).id != VERSION.id

    @pytest.mark.parametrize(
        "changes", [{"labels": {}}, {"annotations": {"a": "b"}}, {"limits": {"cpu": "2"}}, {"constraints": ("c",)}]
    )
    def test_what_running_instances_can_be_told(self, changes):
        """Or need not know."""
        assert replace(VERSION, spec=replace(SPEC, **changes)).id == VERSION.id

    def test_other_code_is_another_version(self):
        """Or other variables, which are in the digest too."""
        assert self.NEW.id != VERSION.id

    def test_an_update_keeps_age_scale_and_the_version_that_works(self):
        """It has to prove itself."""
        updated = replace(FUNCTION, proven=True).updated(self.NEW)
        assert updated == StoredFunction(version=self.NEW, created_at_s=1.5, replicas=2, previous=VERSION)

    def test_an_update_upon_an_unproven_one_goes_back_to_the_last_that_worked(self):
        """Not to the one in between, which nobody has seen at work."""
        middle = replace(FUNCTION, proven=True).updated(self.NEW)
        last = middle.updated(replace(VERSION, digest="newer"))
        assert (last.previous, last.proven) == (VERSION, False)

    def test_an_update_of_a_first_version_that_never_worked(self):
        """There is nothing to go back to."""
        assert FUNCTION.updated(self.NEW).previous is None

    def test_taking_an_update_back_by_hand(self):
        """The version before is known to work."""
        back = replace(FUNCTION, proven=True).updated(self.NEW).updated(VERSION)
        assert back == replace(FUNCTION, proven=True)

    @pytest.mark.parametrize("proven", [True, False])
    def test_labels_alone_prove_nothing(self, proven):
        """The same instances go on, so what was known stays known."""
        previous = replace(VERSION, digest="old")
        before = replace(FUNCTION, proven=proven, previous=None if proven else previous)
        labelled = replace(VERSION, spec=replace(SPEC, labels={"c": "d"}))
        assert before.updated(labelled) == replace(before, version=labelled)


class TestInUse:
    """What a restart must not clear up."""

    OLD = replace(VERSION, digest="old", artifact="/old")

    def test_what_runs_or_may_be_gone_back_to(self):
        """By function; running ones of those versions are no more than that."""
        functions = [replace(FUNCTION, previous=self.OLD)]
        running = [("f.n", VERSION.id), ("f.n", self.OLD.id)]
        assert in_use(functions, running) == ({"f.n": {VERSION.id, self.OLD.id}}, {"/b", "/old"})

    def test_what_runs_on_nobody_knows_what(self):
        """Its version is kept, and no artifact may be taken for unused."""
        assert in_use([FUNCTION], [("f.n", "older")]) == ({"f.n": {VERSION.id, "older"}}, None)

    def test_nothing(self):
        """An empty state uses nothing."""
        assert in_use([], []) == ({}, set())


class TestSchemas:
    """Files of other versions."""

    def test_the_first_schema_is_read(self, old_file):
        """Its functions and instances are there, unproven, with no way back; namespaces can be made."""

        def read(state):
            state.put_namespace(NAMESPACE)
            return state.functions(), state.instances(), state.namespaces()

        expected = [FUNCTION], [replace(INSTANCE, version="d")], [NAMESPACE]
        assert reopened(old_file, read) == expected
        assert reopened(old_file, lambda state: (state.functions(), state.instances(), state.namespaces())) == expected

    def test_the_first_schema_is_brought_up_once(self, old_file):
        """The second start finds nothing to do."""
        reopened(old_file, State.functions)
        assert schema(old_file)[0] == 2
        reopened(old_file, lambda state: state.put_function(replace(FUNCTION, proven=True)))
        assert reopened(old_file, State.functions) == [replace(FUNCTION, proven=True)]

    def test_a_migration_that_fails_leaves_the_file_as_it_was(self, old_file):
        """The old program can go on with it."""
        before = schema(old_file)
        execute(old_file, "CREATE TABLE namespace (x TEXT)")
        with pytest.raises(StateError, match="cannot be used: table namespace already exists"):
            State(old_file)
        assert schema(old_file) == before
        execute(old_file, "DROP TABLE namespace")
        assert reopened(old_file, State.functions) == [FUNCTION]

    def test_both_ways_lead_to_the_same_schema(self, old_file, tmp_path):
        """Fresh, or from the first one."""
        fresh = tmp_path / "fresh.sqlite"
        for file in (old_file, fresh):
            reopened(file, State.functions)
        assert set(schema(old_file)[1]) == set(schema(fresh)[1])
        assert schema(old_file)[0] == schema(fresh)[0] == len(state_module._MIGRATIONS)

    def test_an_empty_file_becomes_a_state(self, file):
        """The migration starts from nothing, also from what `touch` made."""
        file.parent.mkdir()
        file.touch()
        assert reopened(file, State.functions) == []

    def test_a_newer_schema_is_refused(self, state, file):
        """An old program must not write into it."""
        execute(file, "PRAGMA user_version = 99")
        with pytest.raises(StateError, match=r"newer INFless \(schema 99\); update INFless"):
            State(file)


def test_a_damaged_file_is_refused(file):
    """With its name."""
    file.parent.mkdir()
    file.write_bytes(b"not a database" * 100)
    with pytest.raises(StateError, match=r"state.sqlite cannot be used: file is not a database"):
        State(file)


@pytest.mark.parametrize(("spec", "previous"), [('{"future": 1}', None), (json.dumps(asdict(SPEC)), "{}")])
def test_a_row_that_cannot_be_read_leaves_the_others(state, file, caplog, spec, previous):
    """It is told, and stays for the version that can read it."""
    state.put_function(FUNCTION)
    with sqlite3.connect(file) as db:
        db.execute("INSERT INTO function VALUES ('bad.n', ?, '/b', 'd', 1, NULL, ?, 0)", (spec, previous))
    db.close()
    assert state.functions() == [FUNCTION]
    assert "bad.n cannot be read" in caplog.text


@pytest.mark.parametrize(
    ("table", "read"),
    [("function", State.functions), ("instance", State.instances), ("namespace", State.namespaces)],
)
def test_a_table_that_cannot_be_read(state, file, table, read):
    """One of our errors, with a sentence."""
    execute(file, f"DROP TABLE {table}")
    with pytest.raises(StateError, match="cannot be read: no such table"):
        read(state)


def test_a_full_disk_changes_nothing(state, file):
    """The page limit stands for the disk: a write fails whole, what was there stays, smaller ones go on."""
    state.put_function(FUNCTION)
    pages = state._db.execute("PRAGMA page_count").fetchone()[0]
    state._db.execute(f"PRAGMA max_page_count = {pages}")
    big = replace(FUNCTION, version=replace(VERSION, spec=replace(SPEC, name="big", env_vars={"x": "y" * 100_000})))
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


@pytest.mark.parametrize(
    "write",
    [
        lambda state: state.put_function(replace(FUNCTION, replicas=9)),
        lambda state: state.delete_function("f.n"),
        lambda state: state.put_instance(replace(INSTANCE, address={})),
        lambda state: state.delete_instance("f-1"),
        lambda state: state.put_namespace(replace(NAMESPACE, labels={})),
        lambda state: state.delete_namespace("dev"),
    ],
)
def test_a_read_only_database(state, file, write):
    """A write says so and nothing is lost."""
    state.put_function(FUNCTION)
    state.put_instance(INSTANCE)
    state.put_namespace(NAMESPACE)
    state._db.execute("PRAGMA query_only = 1")
    with pytest.raises(StateError, match="could not be written .* nothing was changed"):
        write(state)
    assert reopened(file, State.functions) == [FUNCTION]
    assert reopened(file, State.instances) == [INSTANCE]
    assert reopened(file, State.namespaces) == [NAMESPACE]


def test_a_damaged_row_is_left_out_and_left_alone(file, caplog):
    """What else there is can be read; the row waits for a version that can read it."""
    state = State(file)
    state.put_instance(INSTANCE)
    state.put_instance(replace(INSTANCE, id="f-2"))
    state.put_namespace(StoredNamespace(name="team", labels={}, annotations={}))
    state._db.execute("UPDATE instance SET address = '{' WHERE id = 'f-1'")
    state._db.execute("UPDATE namespace SET labels = '{'")
    assert [one.id for one in state.instances()] == ["f-2"]
    assert state.namespaces() == []
    assert "f-1 cannot be read" in caplog.text
    assert state._db.execute("SELECT count(*) FROM instance").fetchone() == (2,)
    state.close()
