"""Secrets as files: values that only their owner reads, and for each function a folder with those it asked for.

::

    secrets/values/NAMESPACE/NAME           what clients have set, 0600
    secrets/mounted/FUNCTION/VERSION/NAME   copies for the instances of one version, 0600, theirs to read

No value leaves this module but into files and `tokens`: none is listed, logged, put into the state or into an error.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from infless_core.errors import Conflict, InvalidInput, NotFound, QuotaExceeded, StateError
from infless_provider.whole_file import sync_folder, write_whole
from infless_provider.wire import SecretWish


class SecretStore:
    """All secrets of a provider. Thread-safe; a write is whole or not at all, and on the disk when it returns.

    Args:
        folder: whose parent exists already.
        most: how many a namespace may hold.
        reader: user and group id that instances run as, where that is not this process's own.
    """

    def __init__(self, folder: Path, most: int, reader: tuple[int, int] | None = None) -> None:
        self._values = folder / "values"
        self._mounted = folder / "mounted"
        self._most = most
        self._reader = reader
        self._writing = threading.Lock()

    def names(self, namespace: str) -> list[str]:
        """Names of a namespace's secrets."""
        folder = self._values / namespace
        return (
            sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []
        )

    def create(self, wish: SecretWish) -> None:
        """Keep a new secret, also for instances that have kept a removed one of that name.

        Raises:
            Conflict: it exists.
            QuotaExceeded: the namespace holds as many as it may.
            StateError: the disk does not take it, and it does not exist; some of those instances may see it then.
        """
        with self._writing:
            names = self.names(wish.namespace)
            if wish.name in names:
                raise Conflict(
                    f"secret {wish.name!r} exists already in namespace {wish.namespace!r}; change it with PUT"
                )
            if len(names) >= self._most:
                raise QuotaExceeded(f"namespace {wish.namespace!r} holds {self._most} secrets, as many as it may")
            self._write_copies(wish)  # first: while one is missing, the same call may be sent again
            self._write(self._values / wish.namespace / wish.name, wish.value)

    def update(self, wish: SecretWish) -> None:
        """Change a secret, also for the instances that have it already.

        Raises:
            NotFound: it does not exist.
            StateError: the disk does not take it; some of those instances may see the new value then.
        """
        with self._writing:
            path = self._existing(wish.namespace, wish.name)
            self._write(path, wish.value)
            self._write_copies(wish)

    def delete(self, namespace: str, name: str) -> None:
        """Forget a secret.

        A function that names it keeps its copies, for new instances too, until it is deployed without it (see `sweep`).

        Raises:
            NotFound: it does not exist.
            StateError: the disk does not take it.
        """
        with self._writing:
            path = self._existing(namespace, name)
            try:
                path.unlink()
                sync_folder(path.parent)
            except OSError as error:
                raise StateError(f"secret {name!r} could not be removed: {error.strerror}") from error

    def check(self, namespace: str, names: Iterable[str]) -> None:
        """Whether a function may ask for these.

        Raises:
            InvalidInput: names those that do not exist.
        """
        missing = sorted(set(names) - set(self.names(namespace)))
        if missing:
            told = ", ".join(repr(name) for name in missing)
            verb, what = ("does", "it") if len(missing) == 1 else ("do", "them")
            raise InvalidInput(f"secrets: {told} {verb} not exist in namespace {namespace!r}; create {what} first")

    def mount(self, function: str, version: str, namespace: str, names: Collection[str]) -> None:
        """Copy what a version asks for to where its instances look. An older version keeps its own.

        Raises:
            InvalidInput: one has gone since it was checked.
            StateError: the disk does not take it.
        """
        with self._writing:
            for name in names:
                try:
                    value = self._existing(namespace, name).read_bytes()
                except NotFound as fault:
                    raise InvalidInput(f"secrets: {fault}") from None
                except OSError as error:
                    raise StateError(f"secret {name!r} cannot be read: {error.strerror}") from error
                self._write(self._mounted / function / version / name, value, self._reader)

    def folder_of(self, function: str, version: str) -> Path | None:
        """Where a version's instances find their secrets; None when it has none."""
        folder = self._mounted / function / version
        return folder if folder.is_dir() else None

    def sweep(self, versions: Mapping[str, Collection[str]]) -> None:
        """Remove copies that no function asks for, and what a crash left half done: drafts, copies of an older value.

        Args:
            versions: by function, those that run or may be gone back to.
        """
        with self._writing:
            for folder in self._mounted.glob("*/*"):
                if folder.name not in versions.get(folder.parent.name, ()):
                    shutil.rmtree(folder, ignore_errors=True)
            for function in self._mounted.glob("*"):
                with contextlib.suppress(OSError):  # it is not empty
                    function.rmdir()
            for draft in [*self._values.glob("*/.draft-*"), *self._mounted.glob("*/*/.draft-*")]:
                draft.unlink(missing_ok=True)
            for copy in self._mounted.glob("*/*/*"):
                namespace = copy.parent.parent.name.rpartition(".")[2]
                value = self._values / namespace / copy.name
                if value.is_file() and (new := value.read_bytes()) != copy.read_bytes():
                    self._write(copy, new, self._reader)

    def tokens(self, namespace: str, name: str) -> tuple[bytes, ...]:
        """The lines of a secret, each a token that opens a function.

        Raises:
            InvalidInput: it does not exist, or holds none.
        """
        try:
            lines = self._existing(namespace, name).read_bytes().split()
        except (OSError, NotFound):
            raise InvalidInput(
                f"label com.infless.auth.secret: secret {name!r} does not exist; create it first"
            ) from None
        if not lines:
            raise InvalidInput(f"label com.infless.auth.secret: secret {name!r} holds no token; write one on each line")
        return tuple(lines)

    def _existing(self, namespace: str, name: str) -> Path:
        path = self._values / namespace / name
        if not path.is_file():
            raise NotFound(f"secret {name!r} does not exist in namespace {namespace!r}")
        return path

    def _write_copies(self, wish: SecretWish) -> None:
        for copy in self._mounted.glob(f"*.{wish.namespace}/*/{wish.name}"):
            self._write(copy, wish.value, self._reader)

    def _write(self, path: Path, value: bytes, reader: tuple[int, int] | None = None) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_whole(path, value, reader)
        except OSError as error:
            raise StateError(
                f"secret {path.name!r} could not be written: {error.strerror}; make room and send it again"
            ) from error
