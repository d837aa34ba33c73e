"""What users ask about namespaces and secrets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from infless_core.errors import NotFound
from infless_provider import wire
from infless_provider.namespaces import Namespaces
from infless_provider.secret_store import SecretStore
from infless_provider.state import StoredNamespace


class Tenants:
    """Namespaces and the secrets in them. Runs on the event loop; files are written in threads.

    Args:
        namespaces: that there are.
        secrets: that there are.
        functions_in: names of the functions in a namespace.
    """

    def __init__(
        self, namespaces: Namespaces, secrets: SecretStore, functions_in: Callable[[str], list[str]]
    ) -> None:  # fmt: skip
        self.namespaces = namespaces
        self.secrets = secrets
        self._functions_in = functions_in
        self.on_secret: Callable[[str, str], None] = lambda *_: None
        """Told namespace and name of a secret that may have another value now, or none."""

    async def list_namespaces(self) -> list[str]:
        """GET /system/namespaces."""
        return self.namespaces.names()

    async def namespace(self, name: str) -> dict[str, Any]:
        """GET /system/namespace/{name}.

        Raises:
            NotFound: it does not exist.
        """
        found = self.namespaces.get(name)
        return {"name": found.name, "labels": found.labels, "annotations": found.annotations}

    async def create_namespace(self, data: dict[str, Any], name: str = "") -> None:
        """POST /system/namespace/.

        Raises:
            InvalidInput, Conflict, QuotaExceeded, StateError: nothing has changed then.
        """
        said, labels, annotations = wire.parse_function_namespace(data, name)
        self.namespaces.create(StoredNamespace(name=said, labels=labels, annotations=annotations))

    async def update_namespace(self, data: dict[str, Any], name: str) -> None:
        """PUT /system/namespace/{name}.

        Raises:
            InvalidInput, NotFound, StateError: nothing has changed then.
        """
        self.namespaces.get(name)
        said, labels, annotations = wire.parse_function_namespace(data, name)
        self.namespaces.update(StoredNamespace(name=said, labels=labels, annotations=annotations))

    async def delete_namespace(self, name: str) -> None:
        """DELETE /system/namespace/{name}.

        Raises:
            InvalidInput, NotFound, Conflict, StateError: nothing has changed then.
        """
        self.namespaces.get(name)  # before anything is looked for under a name that may be no name
        self.namespaces.delete(name, self._functions_in(name), self.secrets.names(name))

    async def list_secrets(self, namespace: object) -> list[dict[str, str]]:
        """GET /system/secrets: names, never values.

        Raises:
            InvalidInput: there is no such namespace.
        """
        asked = wire.parse_namespace(namespace)
        self.namespaces.require(asked)
        names = await asyncio.to_thread(self.secrets.names, asked)
        return [{"name": name, "namespace": asked} for name in names]

    async def create_secret(self, data: dict[str, Any]) -> None:
        """POST /system/secrets.

        Raises:
            InvalidInput, Conflict, QuotaExceeded: nothing has changed then.
            StateError: it does not exist then; instances that kept a removed one of that name may see it.
        """
        wish = wire.parse_secret(data, valued=True)
        self.namespaces.require(wish.namespace)
        await asyncio.to_thread(self.secrets.create, wish)
        if wish.namespace not in self.namespaces.names():  # it was removed meanwhile: what was put there goes with it
            await asyncio.to_thread(self.secrets.delete, wish.namespace, wish.name)
            self.namespaces.require(wish.namespace)
        self.on_secret(wish.namespace, wish.name)  # a function may have lost it earlier, and be closed since

    async def update_secret(self, data: dict[str, Any]) -> None:
        """PUT /system/secrets: instances that have it see the new value.

        Raises:
            InvalidInput, NotFound: nothing has changed then.
            StateError: some instances may see the new value then.
        """
        wish = wire.parse_secret(data, valued=True)
        self.namespaces.require(wish.namespace)
        try:
            await asyncio.to_thread(self.secrets.update, wish)
        finally:  # what could not be written may be the copy of one instance only
            self.on_secret(wish.namespace, wish.name)

    async def delete_secret(self, data: dict[str, Any]) -> None:
        """DELETE /system/secrets.

        Raises:
            InvalidInput, NotFound, StateError: nothing has changed then.
        """
        wish = wire.parse_secret(data, valued=False)
        if wish.namespace not in self.namespaces.names():
            raise NotFound(f"secret {wish.name!r} does not exist in namespace {wish.namespace!r}")
        await asyncio.to_thread(self.secrets.delete, wish.namespace, wish.name)
        self.on_secret(wish.namespace, wish.name)
