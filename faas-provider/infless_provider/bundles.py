"""Functions as folders: found by image or name, copied once so that a later build cannot change what runs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

from infless_core.errors import InvalidInput, StateError

MANIFEST = "bundle.json"
_IGNORED = ("__pycache__", ".git", ".venv", ".pytest_cache")


def find_bundle(bundles_dir: Path, name: str, image: str) -> Path:
    """The built function for a deployment: a bundle whose manifest names the image, else the folder of that name.

    A folder without a manifest is one of `faas-cli build --shrinkwrap`; one whose manifest names another image is not
    what was asked for. Names with a leading dot are builds that are not finished.

    Raises:
        InvalidInput: says where it was looked for and which commands make one.
    """
    for manifest in sorted(bundles_dir.glob(f"[!.]*/{MANIFEST}")):
        if _image_of(manifest) == image:
            return manifest.parent
    folder = bundles_dir / name
    whole = (folder / "infless_watchdog").is_dir() and (folder / "function").is_dir()
    if whole and not (folder / MANIFEST).exists():
        return folder
    raise InvalidInput(
        f"no bundle for image {image!r} (function {name!r}) in {bundles_dir.resolve()}:"
        " build it with `infless build -f stack.yml` or `faas-cli build --shrinkwrap`"
    )


def write_manifest(folder: Path, image: str) -> None:
    """Name the image that a bundle stands for."""
    (folder / MANIFEST).write_text(json.dumps({"image": image}, indent=1) + "\n")


def _image_of(manifest: Path) -> object:
    try:
        data = json.loads(manifest.read_text())
    except (OSError, ValueError):
        return None
    return data.get("image") if isinstance(data, dict) else None


def digest_of(bundle: Path) -> str:
    """SHA-256 over names and contents of a bundle's files.

    Raises:
        StateError: when a file cannot be read, for instance because the bundle is being built anew.
    """
    total = hashlib.sha256()
    try:
        for path in sorted(_files(bundle)):
            total.update(os.fsencode(path.relative_to(bundle)) + b"\0")
            with path.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
        raise StateError(f"the bundle {bundle} cannot be read: {error}") from error
    return total.hexdigest()


def profile_key(bundle_digest: str, environment: Mapping[str, str]) -> str:
    """What execution times depend on: the code and its variables."""
    variables = json.dumps(sorted(environment.items())).encode()
    return hashlib.sha256(bundle_digest.encode() + variables).hexdigest()


def keep_copy(bundle: Path, kept_dir: Path) -> tuple[str, Path]:
    """The bundle's digest and an immutable copy named by it; made once, whole or not at all.

    The digest is the copy's own: a build that runs meanwhile cannot put other code under it.

    Raises:
        StateError: when the disk is full or a folder cannot be read or written.
    """
    digest = digest_of(bundle)
    target = kept_dir / digest[:24]
    if target.is_dir():
        return digest, target
    draft = None
    try:
        kept_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=kept_dir))
        ignored = shutil.ignore_patterns(*_IGNORED)
        shutil.copytree(bundle, draft, ignore=ignored, symlinks=False, dirs_exist_ok=True)
        digest = digest_of(draft)
        target = kept_dir / digest[:24]
        _rename_unless_there(draft, target)
    except OSError as error:
        raise StateError(f"the bundle could not be kept in {kept_dir}: {_told(error)}") from error
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)
    return digest, target


def _rename_unless_there(draft: Path, target: Path) -> None:
    try:
        draft.rename(target)
    except OSError:
        if not target.is_dir():  # else another deployment has just kept the same
            raise


def sweep(kept_dir: Path, used: Collection[str]) -> None:
    """Remove copies that nothing runs any more, and drafts that a crash left behind.

    Args:
        kept_dir: where `keep_copy` keeps them.
        used: folders, as `keep_copy` returned them.
    """
    for folder in kept_dir.glob("*"):
        if str(folder) not in used:
            shutil.rmtree(folder, ignore_errors=True)


def _told(error: OSError) -> str:
    """`copytree` gathers its errors in a list: the first one says it."""
    first = error.args[0] if isinstance(error, shutil.Error) and error.args else error
    return str(first[0][2]) if isinstance(first, list) and first else str(error)


def _files(folder: Path) -> list[Path]:
    return [
        path for path in folder.rglob("*")
        if path.is_file() and not any(part in _IGNORED for part in path.relative_to(folder).parts)
    ]  # fmt: skip
