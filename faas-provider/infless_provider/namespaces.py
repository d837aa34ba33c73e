"""Namespaces: the default one always exists, others are made and removed by their users."""

from __future__ import annotations

from collections.abc import Collection

from infless_core.errors import Conflict, InvalidInput, NotFound, QuotaExceeded
from infless_provider.settings import NAMESPACE
from infless_provider.state import State, StoredNamespace


class Namespaces:
    """What exists. Owned by the event loop's thread."""

    def __init__(self, state: State, most: int) -> None:
        self._state = state
        self._most = most
        default = StoredNamespace(name=NAMESPACE, labels={"openfaas": "1"}, annotations={})
        self._known = {default.name: default}

    def restore(self) -> None:
        """Read what was kept."""
        self._known.update({one.name: one for one in self._state.namespaces()})

    def names(self) -> list[str]:
        """All of them, the default one first: the gateway asks for the functions of each in turn."""
        return sorted(self._known, key=lambda name: (name != NAMESPACE, name))

    def get(self, name: str) -> StoredNamespace:
        """One of them.

        Raises:
            NotFound: it does not exist.
        """
        found = self._known.get(name)
        if found is None:
            raise NotFound(f"namespace {name!r} does not exist; there are {', '.join(self.names()[:20])}")
        return found

    def require(self, name: str) -> None:
        """Whether something may be put there, or asked for.

        Raises:
            InvalidInput: it does not exist.
        """
        try:
            self.get(name)
        except NotFound as fault:
            raise InvalidInput(str(fault)) from None

    def create(self, namespace: StoredNamespace) -> None:
        """Make one.

        Raises:
            Conflict: it exists.
            QuotaExceeded: there are as many as there may be.
            StateError: the disk does not take it.
        """
        if namespace.name in self._known:
            raise Conflict(f"namespace {namespace.name!r} exists already; change it with PUT")
        if len(self._known) >= self._most:
            raise QuotaExceeded(f"there are {self._most} namespaces, as many as there may be")
        self._put(namespace)

    def update(self, namespace: StoredNamespace) -> None:
        """Give it other labels and annotations.

        Raises:
            NotFound: it does not exist.
            StateError: the disk does not take it.
        """
        self.get(namespace.name)
        self._put(namespace)

    def delete(self, name: str, functions: Collection[str], secrets: Collection[str]) -> None:
        """Remove an empty one: nothing is lost that nobody named.

        Args:
            name: of the namespace.
            functions: that are in it.
            secrets: that are in it.

        Raises:
            NotFound: it does not exist.
            InvalidInput: it is the default one.
            Conflict: something is in it.
            StateError: the disk does not take it.
        """
        self.get(name)
        if name == NAMESPACE:
            raise InvalidInput(f"namespace {name!r} is the default one and cannot be removed")
        if functions or secrets:
            raise Conflict(
                f"namespace {name!r} holds {len(functions)} function(s) and {len(secrets)} secret(s); remove them first"
            )
        self._state.delete_namespace(name)
        del self._known[name]

    def _put(self, namespace: StoredNamespace) -> None:
        self._state.put_namespace(namespace)
        self._known[namespace.name] = namespace
