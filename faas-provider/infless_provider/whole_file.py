"""Small files that are there whole or not at all, whatever is killed or full meanwhile."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_whole(path: Path, content: bytes, owner: tuple[int, int] | None = None) -> None:
    """Write a file, or replace it; it is on the disk when this returns, and for its owner's eyes only from the start.

    Args:
        path: in a folder that exists.
        content: all of it.
        owner: user and group that the file, and the folder it is in, are given to.

    Raises:
        OSError: the disk does not take it; nothing has changed then.
    """
    descriptor, draft = tempfile.mkstemp(prefix=".draft-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if owner is not None:
            os.chown(draft, *owner)
            os.chown(path.parent, *owner)
        Path(draft).replace(path)
        sync_folder(path.parent)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """A file's new name, or that it has none, is on the disk only once its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
