"""Namespaces: which there are, and what keeps one from being made or removed."""

import pytest

from infless_core.errors import Conflict, InvalidInput, NotFound, QuotaExceeded, StateError
from infless_provider.namespaces import Namespaces
from infless_provider.settings import NAMESPACE
from infless_provider.state import State, StoredNamespace

DEV = StoredNamespace(name="dev", labels={"openfaas": "1"}, annotations={"owner": "me"})


@pytest.fixture
def state(tmp_path):
    """An open state."""
    state = State(tmp_path / "state.sqlite")
    yield state
    state.close()


@pytest.fixture
def namespaces(state):
    """At most three, the default one among them."""
    return Namespaces(state, 3)


def again(state):
    """As the next provider has them."""
    made = Namespaces(state, 3)
    made.restore()
    return made


def full_disk(monkeypatch):
    """Every change fails."""
    for call in ("put_namespace", "delete_namespace"):
        monkeypatch.setattr(State, call, lambda *_: (_ for _ in ()).throw(StateError("disk is full")))


def test_the_default_one_always_exists(namespaces):
    """First of all, as the gateway reads the list in its order."""
    for name in ("a", "z"):
        namespaces.create(StoredNamespace(name=name, labels={}, annotations={}))
    assert namespaces.names() == [NAMESPACE, "a", "z"]
    assert namespaces.get(NAMESPACE).labels == {"openfaas": "1"}


def test_what_was_made_comes_back(namespaces, state):
    """With labels and annotations; what was removed does not."""
    namespaces.create(DEV)
    namespaces.create(StoredNamespace(name="gone", labels={}, annotations={}))
    namespaces.delete("gone", (), ())
    found = again(state)
    assert (found.names(), found.get("dev")) == ([NAMESPACE, "dev"], DEV)


def test_labels_of_the_default_one_come_back(namespaces, state):
    """It can be described, and is still there only once."""
    described = StoredNamespace(name=NAMESPACE, labels={"a": "b"}, annotations={})
    namespaces.update(described)
    assert (again(state).names(), again(state).get(NAMESPACE)) == ([NAMESPACE], described)


def test_one_that_exists_is_not_made_again(namespaces):
    """Nor the default one."""
    namespaces.create(DEV)
    for name in ("dev", NAMESPACE):
        with pytest.raises(Conflict, match=f"namespace '{name}' exists already; change it with PUT"):
            namespaces.create(StoredNamespace(name=name, labels={}, annotations={}))
    assert namespaces.get("dev") == DEV


def test_as_many_as_there_may_be(namespaces):
    """The default one counts; removing one makes room."""
    namespaces.create(DEV)
    namespaces.create(StoredNamespace(name="b", labels={}, annotations={}))
    with pytest.raises(QuotaExceeded, match="there are 3 namespaces, as many as there may be"):
        namespaces.create(StoredNamespace(name="c", labels={}, annotations={}))
    namespaces.delete("b", (), ())
    namespaces.create(StoredNamespace(name="c", labels={}, annotations={}))


@pytest.mark.parametrize(
    "call",
    [
        lambda namespaces: namespaces.get("x"),
        lambda namespaces: namespaces.update(StoredNamespace(name="x", labels={}, annotations={})),
        lambda namespaces: namespaces.delete("x", (), ()),
        lambda namespaces: namespaces.delete("", (), ()),
    ],
)
def test_one_that_does_not_exist(namespaces, call):
    """404, with those that do."""
    namespaces.create(DEV)
    with pytest.raises(NotFound, match=f"does not exist; there are {NAMESPACE}, dev"):
        call(namespaces)
    assert namespaces.names() == [NAMESPACE, "dev"]


def test_one_that_something_is_to_be_put_into(namespaces):
    """400 where it is a field of the request: the request is wrong, not the path."""
    namespaces.require(NAMESPACE)
    with pytest.raises(InvalidInput, match="namespace 'dev' does not exist; there are openfaas-fn"):
        namespaces.require("dev")


def test_the_default_one_cannot_be_removed(namespaces):
    """Everything that names no namespace means it."""
    with pytest.raises(InvalidInput, match="namespace 'openfaas-fn' is the default one and cannot be removed"):
        namespaces.delete(NAMESPACE, (), ())


@pytest.mark.parametrize(
    ("functions", "secrets", "told"), [(("f",), (), "1 function(s) and 0"), ((), ("a", "b"), "0 function(s) and 2")]
)
def test_one_in_use_cannot_be_removed(namespaces, state, functions, secrets, told):
    """Nothing is lost that nobody named."""
    namespaces.create(DEV)
    with pytest.raises(Conflict) as fault:
        namespaces.delete("dev", functions, secrets)
    assert str(fault.value) == f"namespace 'dev' holds {told} secret(s); remove them first"
    assert again(state).names() == [NAMESPACE, "dev"]


def test_a_full_disk_changes_nothing(namespaces, monkeypatch):
    """What is on the disk is what there is."""
    namespaces.create(DEV)
    full_disk(monkeypatch)
    for change in (
        lambda: namespaces.create(StoredNamespace(name="b", labels={}, annotations={})),
        lambda: namespaces.update(StoredNamespace(name="dev", labels={}, annotations={})),
        lambda: namespaces.delete("dev", (), ()),
    ):
        with pytest.raises(StateError):
            change()
    assert (namespaces.names(), namespaces.get("dev")) == ([NAMESPACE, "dev"], DEV)
