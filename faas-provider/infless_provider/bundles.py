"""Functions as folders: found by image or name, copied once so that a later build cannot change what runs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from infless_core.errors import InvalidInput, StateError

MANIFEST = "bundle.json"
_IGNORED = ("__pycache__", ".git", ".venv", ".pytest_cache")


def find_bundle(bundles_dir: Path, name: str, image: str) -> Path:
    """The built function for a deployment: a bundle whose manifest names the image, else the folder of that name.

    Raises:
        InvalidInput: says where it was looked for and which commands make one.
    """
    for manifest in sorted(bundles_dir.glob(f"*/{MANIFEST}")):
        try:
            if json.loads(manifest.read_text()).get("image") == image:
                return manifest.parent
        except (OSError, ValueError):
            continue
    folder = bundles_dir / name
    if (folder / "infless_watchdog").is_dir() and (folder / "function").is_dir():
        return folder
    raise InvalidInput(
        f"no bundle for image {image!r} (function {name!r}) in {bundles_dir.resolve()}:"
        " build it with `infless build -f stack.yml` or `faas-cli build --shrinkwrap`"
    )


def write_manifest(folder: Path, image: str) -> None:
    """Name the image that a bundle stands for."""
    (folder / MANIFEST).write_text(json.dumps({"image": image}, indent=1) + "\n")


def digest_of(bundle: Path) -> str:
    """SHA-256 over names and contents of a bundle's files."""
    total = hashlib.sha256()
    for path in sorted(_files(bundle)):
        total.update(str(path.relative_to(bundle)).encode() + b"\0")
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def profile_key(bundle_digest: str, environment: Mapping[str, str]) -> str:
    """What execution times depend on: the code and its variables."""
    variables = json.dumps(sorted(environment.items())).encode()
    return hashlib.sha256(bundle_digest.encode() + variables).hexdigest()


def keep_copy(bundle: Path, digest: str, kept_dir: Path) -> Path:
    """An immutable copy by digest; made once, whole or not at all.

    Raises:
        StateError: when the disk is full or the folder cannot be written.
    """
    target = kept_dir / digest[:24]
    if target.is_dir():
        return target
    draft = kept_dir / f".{digest[:24]}.{os.getpid()}"
    try:
        shutil.rmtree(draft, ignore_errors=True)
        kept_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        shutil.copytree(bundle, draft, ignore=shutil.ignore_patterns(*_IGNORED), symlinks=False)
        draft.rename(target)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise StateError(f"the bundle could not be kept in {kept_dir}: {error}") from error
    return target


def _files(folder: Path) -> list[Path]:
    return [
        path for path in folder.rglob("*")
        if path.is_file() and not any(part in _IGNORED for part in path.relative_to(folder).parts)
    ]  # fmt: skip
