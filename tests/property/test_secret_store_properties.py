"""Secrets on a disk, whatever is asked in whatever order: as a dictionary would have them, and nothing beside its folder."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from infless_core.errors import Conflict, InvalidInput, NotFound, QuotaExceeded
from infless_provider.secret_store import SecretStore
from infless_provider.wire import SecretWish

MOST = 2
NAMES = st.sampled_from(["key", "a.b", "key.b"])
NAMESPACES = st.sampled_from(["dev", "my-dev"])
FUNCTIONS = st.sampled_from(["f", "dev"])
VERSIONS = st.sampled_from(["v1", "v2"])
VALUES = st.binary(min_size=1, max_size=8)


class Secrets(RuleBasedStateMachine):
    """A store beside what it ought to hold."""

    @initialize()
    def begin(self) -> None:
        """An empty folder."""
        self.folder = tempfile.TemporaryDirectory()
        self.store = SecretStore(Path(self.folder.name) / "secrets", MOST)
        self.values: dict[tuple[str, str], bytes] = {}
        self.mounted: dict[tuple[str, str, str], dict[str, bytes]] = {}

    def teardown(self) -> None:
        """Nothing stays."""
        self.folder.cleanup()

    @rule(namespace=NAMESPACES, name=NAMES, value=VALUES)
    def create(self, namespace: str, name: str, value: bytes) -> None:
        """New ones only, and no more than a namespace may hold; copies of an earlier one of that name get its value."""
        full = sum(place == namespace for place, _ in self.values) >= MOST
        try:
            self.store.create(SecretWish(name=name, namespace=namespace, value=value))
        except Conflict:
            assert (namespace, name) in self.values
        except QuotaExceeded:
            assert full
            assert (namespace, name) not in self.values
        else:
            assert not full
            assert (namespace, name) not in self.values
            self._everywhere(namespace, name, value)

    @rule(namespace=NAMESPACES, name=NAMES, value=VALUES)
    def update(self, namespace: str, name: str, value: bytes) -> None:
        """Those that exist, and every copy of them."""
        try:
            self.store.update(SecretWish(name=name, namespace=namespace, value=value))
        except NotFound:
            assert (namespace, name) not in self.values
            return
        self._everywhere(namespace, name, value)

    def _everywhere(self, namespace: str, name: str, value: bytes) -> None:
        self.values[namespace, name] = value
        for (place, _, _), copies in self.mounted.items():
            if place == namespace and name in copies:
                copies[name] = value

    @rule(namespace=NAMESPACES, name=NAMES)
    def delete(self, namespace: str, name: str) -> None:
        """The value goes, copies stay."""
        try:
            self.store.delete(namespace, name)
        except NotFound:
            assert (namespace, name) not in self.values
        else:
            del self.values[namespace, name]

    @rule(namespace=NAMESPACES, function=FUNCTIONS, version=VERSIONS, names=st.sets(NAMES, min_size=1))
    def mount(self, namespace: str, function: str, version: str, names: set[str]) -> None:
        """What there is in the namespace; what was mounted before under this version stays beside it."""
        asked = sorted(names)
        try:
            self.store.mount(f"{function}.{namespace}", version, namespace, asked)
        except InvalidInput:
            assert any((namespace, name) not in self.values for name in asked)
            asked = asked[: [(namespace, name) in self.values for name in asked].index(False)]
        for name in asked:
            copies = self.mounted.setdefault((namespace, function, version), {})
            copies[name] = self.values[namespace, name]

    @rule(kept=st.sets(st.tuples(NAMESPACES, FUNCTIONS, VERSIONS)))
    def sweep(self, kept: set[tuple[str, str, str]]) -> None:
        """Copies that nobody asks for go."""
        versions: dict[str, set[str]] = {}
        for namespace, function, version in kept:
            versions.setdefault(f"{function}.{namespace}", set()).add(version)
        self.store.sweep(versions)
        self.mounted = {where: copies for where, copies in self.mounted.items() if where in kept}

    @invariant()
    def it_holds_what_it_ought_to(self) -> None:
        """Read by its own calls and from the disk; every file is its owner's alone."""
        for namespace in ("dev", "my-dev"):
            assert self.store.names(namespace) == sorted(name for place, name in self.values if place == namespace)
        expected = {f"values/{namespace}/{name}": value for (namespace, name), value in self.values.items()}
        for (namespace, function, version), copies in self.mounted.items():
            place = f"mounted/{function}.{namespace}/{version}"
            expected |= {f"{place}/{name}": value for name, value in copies.items()}
        root = Path(self.folder.name) / "secrets"
        found = [path for path in Path(self.folder.name).rglob("*") if path.is_file()]
        assert {str(path.relative_to(root)): path.read_bytes() for path in found} == expected
        assert all(path.stat().st_mode & 0o777 == 0o600 for path in found)


Secrets.TestCase.settings = settings(max_examples=25, stateful_step_count=20)
TestSecrets = Secrets.TestCase
