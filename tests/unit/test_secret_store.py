"""Secrets as files: whole or not at all, for their owner's eyes only, and where a function's instances look for them."""

import os
import stat
from pathlib import Path

import pytest

from infless_core.errors import Conflict, InvalidInput, NotFound, QuotaExceeded, StateError
from infless_provider.secret_store import SecretStore
from infless_provider.wire import SecretWish

NS = "openfaas-fn"
FUNCTION = f"f.{NS}"
HUSH = b"hush-hush"


@pytest.fixture
def folder(tmp_path):
    """Where the store lives."""
    return tmp_path / "secrets"


@pytest.fixture
def store(folder):
    """One that takes three secrets in a namespace, under a mask that would let others read."""
    before = os.umask(0)
    yield SecretStore(folder, most=3)
    os.umask(before)


def wish(name="key", value=HUSH, namespace=NS):
    """What a client sends."""
    return SecretWish(name=name, namespace=namespace, value=value)


def files(folder):
    """All files below, with their content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def mode(path):
    """Permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


def full_disk(monkeypatch, after=0):
    """Every write fails but the first few."""
    real, written = os.fsync, []

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            real(descriptor)
            return
        written.append(descriptor)
        if len(written) > after:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


class TestValues:
    """What clients set."""

    def test_a_new_secret(self, store, folder):
        """A file with the bytes as they came."""
        store.create(wish(value=b"\x00\xff\n"))
        assert files(folder) == {f"values/{NS}/key": b"\x00\xff\n"}

    def test_its_owner_alone_reads_it(self, store, folder):
        """Whatever the mask is; nobody else sees the names either."""
        store.create(wish())
        path = folder / "values" / NS / "key"
        assert (mode(path), mode(path.parent)) == (0o600, 0o700)
        store.update(wish(value=b"2"))
        assert mode(path) == 0o600

    def test_names(self, store):
        """By namespace, in order; a namespace without any has none."""
        for name, namespace in (("b", NS), ("a.b", NS), ("c", "dev")):
            store.create(wish(name, namespace=namespace))
        assert (store.names(NS), store.names("dev"), store.names("none")) == (["a.b", "b"], ["c"], [])

    def test_the_same_name_in_two_namespaces(self, store):
        """They are two secrets."""
        store.create(wish(value=b"1"))
        store.create(wish(value=b"2", namespace="dev"))
        store.delete(NS, "key")
        assert (store.names(NS), store.tokens("dev", "key")) == ([], (b"2",))

    def test_one_that_exists(self, store):
        """It is not overwritten: faas-cli goes on with PUT where that is meant."""
        store.create(wish(value=b"1"))
        with pytest.raises(Conflict, match=f"secret 'key' exists already in namespace '{NS}'; change it with PUT"):
            store.create(wish(value=b"2"))
        assert store.tokens(NS, "key") == (b"1",)

    def test_as_many_as_a_namespace_may_hold(self, store):
        """Each namespace by itself; changing and removing go on."""
        for name in "abc":
            store.create(wish(name))
        store.create(wish("a", namespace="dev"))
        with pytest.raises(QuotaExceeded, match=f"namespace '{NS}' holds 3 secrets, as many as it may"):
            store.create(wish("d"))
        store.update(wish("a"))
        store.delete(NS, "a")
        store.create(wish("d"))

    @pytest.mark.parametrize(
        "call",
        [
            lambda store: store.update(wish("x")),
            lambda store: store.delete(NS, "x"),
            lambda store: store.delete("dev", "key"),
        ],
    )
    def test_one_that_does_not_exist(self, store, folder, call):
        """404, and nothing is made."""
        store.create(wish())
        before = files(folder)
        with pytest.raises(NotFound, match="does not exist in namespace"):
            call(store)
        assert files(folder) == before

    def test_a_full_disk_leaves_what_was_there(self, store, folder, monkeypatch):
        """No half of a value, no draft; the sentence holds the name and no value."""
        store.create(wish(value=b"1"))
        before = files(folder)
        full_disk(monkeypatch)
        for call in (store.update, lambda _: store.create(wish("new"))):
            with pytest.raises(
                StateError, match="secret '(key|new)' could not be written: No space left on device"
            ) as fault:
                call(wish())
            assert HUSH.decode() not in str(fault.value)
        assert files(folder) == before

    def test_where_no_file_can_be(self, tmp_path):
        """One of our errors."""
        (tmp_path / "secrets").touch()
        with pytest.raises(StateError, match="secret 'key' could not be written: Not a directory"):
            SecretStore(tmp_path / "secrets", most=1).create(wish())

    def test_one_that_cannot_be_removed(self, store, monkeypatch):
        """It is said, and it is still there."""
        store.create(wish())
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
            with pytest.raises(StateError, match="secret 'key' could not be removed: Read-only file system"):
                store.delete(NS, "key")
        assert store.names(NS) == ["key"]

    def test_it_is_on_the_disk_when_the_call_returns(self, store, folder, monkeypatch):
        """The file before it gets its name, and its folder afterwards: also when one is removed."""
        synced, real = [], os.fsync

        def fsync(descriptor):
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            synced.append(
                (path.name.startswith(".draft-"), path.name, sorted(one.name for one in path.parent.iterdir()))
            )
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
        store.create(wish())
        assert [draft for draft, _, _ in synced] == [True, False]
        assert "key" not in synced[0][2]
        store.delete(NS, "key")
        assert [name for _, name, _ in synced[1:]] == [NS, NS]


class TestMounting:
    """What instances see."""

    def test_what_was_asked_for(self, store, folder):
        """Each version has a folder of its own; the order and repetition of names do not matter."""
        store.create(wish("a", b"1"))
        store.create(wish("b", b"2"))
        store.mount(FUNCTION, "v1", NS, ["a"])
        store.mount(FUNCTION, "v2", NS, ["b", "a", "b"])
        assert store.folder_of(FUNCTION, "v1") == folder / "mounted" / FUNCTION / "v1"
        assert files(store.folder_of(FUNCTION, "v1")) == {"a": b"1"}
        assert files(store.folder_of(FUNCTION, "v2")) == {"a": b"1", "b": b"2"}

    def test_nothing_asked_for(self, store):
        """No folder: a backend mounts none."""
        store.mount(FUNCTION, "v1", NS, [])
        assert store.folder_of(FUNCTION, "v1") is None

    def test_only_its_instances_read_it(self, store):
        """As with the values."""
        store.create(wish())
        store.mount(FUNCTION, "v1", NS, ["key"])
        folder = store.folder_of(FUNCTION, "v1")
        assert (mode(folder), mode(folder / "key")) == (0o700, 0o600)

    def test_containers_of_another_user_read_it(self, folder, monkeypatch):
        """The copies are theirs before they get their names, and so is the folder; the values stay ours."""
        owned = []
        monkeypatch.setattr(os, "chown", lambda path, *owner: owned.append((Path(path).name, owner)))
        store = SecretStore(folder, most=3, reader=(1000, 1001))
        store.create(wish())
        assert owned == []
        store.mount(FUNCTION, "v1", NS, ["key"])
        store.update(wish(value=b"2"))
        assert [name.partition("-")[0] for name, _ in owned] == [".draft", "v1"] * 2
        assert {owner for _, owner in owned} == {(1000, 1001)}

    def test_the_secrets_of_another_namespace(self, store):
        """A function sees those of its own only."""
        store.create(wish(namespace="dev"))
        with pytest.raises(InvalidInput, match=f"secrets: secret 'key' does not exist in namespace '{NS}'"):
            store.mount(FUNCTION, "v1", NS, ["key"])
        with pytest.raises(InvalidInput, match="secrets: 'a', 'key' do not exist in namespace"):
            store.check(NS, ["key", "a"])
        store.check("dev", ["key"])
        store.check(NS, [])

    def test_a_new_value_reaches_every_copy(self, store):
        """Of every version that has it, also of the one that may be gone back to; and no others."""
        for name in ("key", "other"):
            store.create(wish(name, b"1"))
        store.create(wish("key", b"theirs", namespace="dev"))
        store.mount(FUNCTION, "v1", NS, ["key", "other"])
        store.mount(FUNCTION, "v2", NS, ["key"])
        store.mount(f"g.{NS}", "v1", NS, ["other"])
        store.mount("f.dev", "v1", "dev", ["key"])
        store.update(wish("key", b"2"))
        assert files(store.folder_of(FUNCTION, "v1")) == {"key": b"2", "other": b"1"}
        assert files(store.folder_of(FUNCTION, "v2")) == {"key": b"2"}
        assert files(store.folder_of(f"g.{NS}", "v1")) == {"other": b"1"}
        assert files(store.folder_of("f.dev", "v1")) == {"key": b"theirs"}

    def test_a_namespace_that_ends_like_another_one(self, store):
        """`dev` is not `my-dev`, nor is a function called so."""
        store.create(wish("key", b"1", namespace="dev"))
        store.create(wish("key", b"1", namespace="my-dev"))
        store.mount("f.my-dev", "v1", "my-dev", ["key"])
        store.update(wish("key", b"2", namespace="dev"))
        assert files(store.folder_of("f.my-dev", "v1")) == {"key": b"1"}

    def test_a_copy_is_never_half_written(self, store, monkeypatch):
        """An instance that reads meanwhile has the old value or the new one."""
        store.create(wish(value=b"1"))
        store.mount(FUNCTION, "v1", NS, ["key"])
        full_disk(monkeypatch, after=1)
        with pytest.raises(
            StateError, match="could not be written: No space left on device; make room and send it again"
        ):
            store.update(wish(value=b"2"))
        assert files(store.folder_of(FUNCTION, "v1")) == {"key": b"1"}

    def test_an_open_file_keeps_what_it_had(self, store):
        """The value is replaced, not written over."""
        store.create(wish(value=b"old"))
        store.mount(FUNCTION, "v1", NS, ["key"])
        with (store.folder_of(FUNCTION, "v1") / "key").open("rb") as file:
            store.update(wish(value=b"much longer"))
            assert file.read() == b"old"

    def test_a_removed_secret_stays_where_it_is_used(self, store):
        """What runs goes on running; the next deployment is refused."""
        store.create(wish())
        store.mount(FUNCTION, "v1", NS, ["key"])
        store.delete(NS, "key")
        assert files(store.folder_of(FUNCTION, "v1")) == {"key": HUSH}
        with pytest.raises(InvalidInput):
            store.check(NS, ["key"])

    def test_a_secret_that_comes_back_reaches_every_copy(self, store):
        """At once, as a new value does: not when something clears up one day. Other namespaces and names keep theirs."""
        for namespace in (NS, "dev"):
            store.create(wish(value=b"old", namespace=namespace))
        store.create(wish("other", b"1"))
        for version, names in (("v1", ["key", "other"]), ("v2", ["key"])):
            store.mount(FUNCTION, version, NS, names)
        store.mount("f.dev", "v1", "dev", ["key"])
        store.delete(NS, "key")
        store.create(wish(value=b"new"))
        assert files(store.folder_of(FUNCTION, "v1")) == {"key": b"new", "other": b"1"}
        assert files(store.folder_of(FUNCTION, "v2")) == {"key": b"new"}
        assert files(store.folder_of("f.dev", "v1")) == {"key": b"old"}

    @pytest.mark.parametrize("written", [0, 1])
    def test_a_secret_that_comes_back_to_a_full_disk(self, store, monkeypatch, written):
        """It is not there before every copy of it is, so that the same call can be sent again, and mends all."""
        store.create(wish(value=b"old"))
        store.mount(FUNCTION, "v1", NS, ["key"])
        store.delete(NS, "key")
        with monkeypatch.context() as patch:
            full_disk(patch, after=written)
            with pytest.raises(StateError, match="make room and send it again"):
                store.create(wish(value=b"new"))
        assert store.names(NS) == []
        store.create(wish(value=b"new"))
        assert files(store.folder_of(FUNCTION, "v1")) == {"key": b"new"}

    def test_a_value_that_cannot_be_read(self, store, monkeypatch):
        """One of our errors, with the name."""
        store.create(wish())
        monkeypatch.setattr(Path, "read_bytes", lambda _: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        with pytest.raises(StateError, match="secret 'key' cannot be read: Input/output error"):
            store.mount(FUNCTION, "v1", NS, ["key"])


class TestSweeping:
    """What a start clears up."""

    def test_copies_that_nobody_asks_for(self, store):
        """By function and version; values stay."""
        store.create(wish())
        for function, version in ((FUNCTION, "v1"), (FUNCTION, "v2"), ("gone.dev", "v1")):
            store.mount(function, version, NS, ["key"])
        store.sweep({FUNCTION: {"v2"}, "new.dev": {"v1"}})
        assert [store.folder_of(*of) is not None for of in ((FUNCTION, "v1"), (FUNCTION, "v2"), ("gone.dev", "v1"))] == [
            False, True, False,
        ]  # fmt: skip
        assert store.names(NS) == ["key"]

    def test_what_a_crash_left_half_written(self, store, folder):
        """It holds a value, and nobody would ever remove it."""
        store.create(wish())
        store.mount(FUNCTION, "v1", NS, ["key"])
        for place in (folder / "values" / NS, store.folder_of(FUNCTION, "v1")):
            (place / ".draft-x").write_bytes(HUSH)
        assert store.names(NS) == ["key"]
        store.sweep({FUNCTION: {"v1"}})
        assert not list(folder.rglob(".draft-*"))
        assert files(store.folder_of(FUNCTION, "v1")) == {"key": HUSH}

    def test_an_empty_store(self, store):
        """Nothing to do, and no fault."""
        store.sweep({})


class TestTokens:
    """The lines of a secret."""

    @pytest.mark.parametrize(
        ("value", "tokens"),
        [
            (b"one", (b"one",)),
            (b"one\n", (b"one",)),
            (b"one\r\ntwo\n\n \nthree", (b"one", b"two", b"three")),
            (b"\xff\xfe", (b"\xff\xfe",)),
        ],
    )
    def test_one_on_each(self, store, value, tokens):
        """Empty ones are none."""
        store.create(wish(value=value))
        assert store.tokens(NS, "key") == tokens

    @pytest.mark.parametrize("value", [b"", b"\n", b" \t\r\n "])
    def test_none_at_all(self, store, value):
        """It is said, instead of letting everybody in, or nobody."""
        store.create(wish(value=value))
        with pytest.raises(InvalidInput, match="label com.infless.auth.secret: secret 'key' holds no token"):
            store.tokens(NS, "key")

    def test_a_secret_that_does_not_exist(self, store):
        """The sentence names the label that asked for it."""
        with pytest.raises(
            InvalidInput, match="label com.infless.auth.secret: secret 'key' does not exist; create it first"
        ):
            store.tokens(NS, "key")
