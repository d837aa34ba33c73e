"""Memory limits by control groups (cgroups): one below our own for each instance, where the system lets us make them.

There are two kinds (Linux, `Documentation/admin-guide/cgroup-v1/memory.rst` and `cgroup-v2.rst`):

* **v1**: a group may hold processes and groups alike, so ours are made below the one that we run in.
* **v2**: only a group without processes of its own can pass the memory controller on ("no internal processes"; the
  system's root alone may hold both). We never move ourselves. So ours are made beside us, in the parent that systemd
  has handed over: a unit with `Delegate=memory` and `DelegateSubgroup=provider` (systemd 254) is that.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from infless_provider.backends import procfs

_DELEGATED = ("user.delegate", "trusted.delegate")
"""Extended attributes by which systemd marks a group that is its owner's to divide (systemd, "Control Group APIs and
Delegation"); the second one only root sees."""
_TRIAL_BYTES = 64 * 1024 * 1024
_RETRY_S = 0.005
"""The kernel takes a group for used until it has done away with its last process; nothing tells when."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where groups can be made."""

    version: int
    """1 or 2."""
    mount: Path
    """Of the memory controller."""
    path: Path
    """The group below which ours are made."""


def find(name: str) -> Place | None:
    """Where this process may make groups with a memory limit, proven by making one; None where it may not.

    Args:
        name: of the group that is made for a moment.
    """
    try:
        own = Path("/proc/self/cgroup").read_text()
        mounts = Path("/proc/self/mountinfo").read_text()
    except OSError:
        return None
    return next((place for place in candidates(own, mounts, delegated) if _works(place, name)), None)


def candidates(own: str, mounts: str, is_delegated: Callable[[Path], bool]) -> Iterator[Place]:
    """Places to try, from what the kernel says of a process.

    Args:
        own: `/proc/self/cgroup`: `NUMBER:CONTROLLERS:PATH` for each hierarchy; v2 has the number 0.
        mounts: `/proc/self/mountinfo`.
        is_delegated: whether a group is its owner's to divide.
    """
    paths = {line.split(":", 2)[1]: line.split(":", 2)[2] for line in own.splitlines() if line.count(":") >= 2}
    for mount, root, kind, options in _cgroup_mounts(mounts):
        if kind == "cgroup2":
            group = _below(mount, root, paths.get("", "/.."))
            if group is not None:
                yield from _places_v2(mount, group, is_delegated)
        elif "memory" in options:
            controllers = next((names for names in paths if "memory" in names.split(",")), None)
            group = None if controllers is None else _below(mount, root, paths[controllers])
            if group is not None:
                yield Place(version=1, mount=mount, path=group)


def _places_v2(mount: Path, own: Path, is_delegated: Callable[[Path], bool]) -> Iterator[Place]:
    if _passes_memory_on(own):  # the root of the system
        yield Place(version=2, mount=mount, path=own)
    elif own != mount and is_delegated(own.parent):
        if not _passes_memory_on(own.parent):
            with contextlib.suppress(OSError):
                (own.parent / "cgroup.subtree_control").write_text("+memory")
        if _passes_memory_on(own.parent):
            yield Place(version=2, mount=mount, path=own.parent)


def _passes_memory_on(group: Path) -> bool:
    try:
        return "memory" in (group / "cgroup.subtree_control").read_text().split()
    except OSError:
        return False


def _cgroup_mounts(mounts: str) -> Iterator[tuple[Path, str, str, list[str]]]:
    """Mount point, its root within the hierarchy, type, and options of the hierarchy."""
    for line in mounts.splitlines():
        head, _, tail = line.partition(" - ")
        fields, kind = head.split(" "), tail.split(" ")
        if kind[0] in ("cgroup", "cgroup2"):
            yield Path(_plain(fields[4])), _plain(fields[3]), kind[0], kind[2].split(",")


def _plain(text: str) -> str:
    """Without the octal escapes of mountinfo."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _below(mount: Path, root: str, path: str) -> Path | None:
    """Where a group of the hierarchy is seen under a mount; None when it is not."""
    if ".." in path.split("/") or not Path(path).is_relative_to(root):
        return None
    return mount / Path(path).relative_to(root)


def delegated(group: Path) -> bool:
    """Whether systemd has handed a group over to whoever runs in it."""
    for attribute in _DELEGATED:
        with contextlib.suppress(OSError):
            if os.getxattr(group, attribute) == b"1":
                return True
    return False


def _works(place: Place, name: str) -> bool:
    try:
        group = make(place, name, _TRIAL_BYTES)
    except OSError:
        return False
    with contextlib.suppress(OSError):
        group.rmdir()
    return True


def make(place: Place, name: str, memory_bytes: int) -> Path:
    """A group whose processes together get no more memory than this, and none of it swapped out.

    Raises:
        OSError: it cannot be made; nothing is left then.
    """
    group = place.path / name
    group.mkdir(exist_ok=True)
    try:
        if place.version == 2:
            (group / "memory.max").write_text(str(memory_bytes))
            _write_where_there(group / "memory.swap.max", "0")
            _write_where_there(group / "memory.oom.group", "1")  # all of the instance, not its largest process
        else:
            (group / "memory.limit_in_bytes").write_text(str(memory_bytes))
            _write_where_there(group / "memory.memsw.limit_in_bytes", str(memory_bytes))  # memory and swap together
    except OSError:
        with contextlib.suppress(OSError):
            group.rmdir()
        raise
    return group


def _write_where_there(file: Path, text: str) -> None:
    if file.exists():  # a kernel without swap accounting, or from before 4.19
        file.write_text(text)


def kills(group: Path) -> int:
    """How many of its processes the kernel has killed for their memory."""
    for name in ("memory.events", "memory.oom_control"):  # v2, v1
        with contextlib.suppress(OSError):
            for line in (group / name).read_text().splitlines():
                word, _, count = line.partition(" ")
                if word == "oom_kill":
                    return int(count)
    return 0


def strays(place: Place, prefix: str) -> list[Path]:
    """Groups of that name, wherever below the mount an earlier provider was allowed to make them."""
    return [Path(folder) for folder, _, _ in os.walk(place.mount) if Path(folder).name.startswith(prefix)]


def remove(group: Path, timeout_s: float) -> bool:
    """End whatever is in a group, and remove it; False when that did not come about within `timeout_s`."""
    ends_s = time.monotonic() + timeout_s
    while True:
        try:
            # Never 0, which stands for a process that we cannot see, and for ourselves when it is killed.
            procfs.strike({int(pid) for pid in (group / "cgroup.procs").read_text().split()} - {0})
            group.rmdir()
        except FileNotFoundError:
            return True
        except OSError:
            if time.monotonic() > ends_s:
                return False
            time.sleep(_RETRY_S)
        else:
            return True
