"""One local process as the backend holds it: found again by its handle, and how to do away with what is left of it."""

from __future__ import annotations

import contextlib
import logging
import shutil
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infless_core.units import format_bytes
from infless_provider.backends import cgroups, procfs
from infless_provider.backends.base import Address

LOG = logging.getLogger("infless.process")
HOST = "127.0.0.1"
END_S = 5.0
"""How long killed processes may take to be gone: the kernel frees gigabytes, or a GPU's memory, in a second or two."""


@dataclass(slots=True, kw_only=True)
class ProcessInstance:
    """A process that we started, or took over."""

    identity: procfs.Identity
    port: int
    metrics_port: int
    cores: tuple[int, ...]
    memory_bytes: int = 0
    """Its limit; 0 is none."""
    group: Path | None = None
    """Its own cgroup, when its memory is limited by one."""
    child: subprocess.Popen[bytes] | None = None
    """None when an earlier provider started it."""
    watched: int | None = None
    """A descriptor that tells of its end."""
    killed: bool = False
    """Nothing survives SIGKILL, so it has ended for all that it will do; it may take a moment to be gone."""

    @property
    def runs(self) -> bool:
        """Whether it has not ended; reaps a child that has."""
        if self.killed:
            return False
        return procfs.runs(self.identity) if self.child is None else self.child.poll() is None

    @property
    def starved(self) -> str:
        """A sentence when its processes were killed for their memory, else empty."""
        return starved(self.group, self.memory_bytes)

    @property
    def how_ended(self) -> str:
        """A sentence when it ended by itself and not in order, as far as its parent is told; else empty."""
        code = None if self.child is None else self.child.poll()
        if not code:
            return ""
        if code > 0:
            return f"it ended with exit code {code}"
        return f"it was ended by signal {-code} ({signal.strsignal(-code) or 'unknown'})"

    @property
    def address(self) -> Address:
        """Its handle is all that a later provider needs to take it over."""
        handle = {
            "pid": self.identity.pid,
            "started": self.identity.started,
            "cores": list(self.cores),
            "port": self.port,
            "metrics_port": self.metrics_port,
            "memory_bytes": self.memory_bytes,
            "group": "" if self.group is None else str(self.group),
        }
        return Address(host=HOST, port=self.port, metrics_port=self.metrics_port, handle=handle)


def starved(group: Path | None, memory_bytes: int) -> str:
    """A sentence when processes of a group were killed for their memory, else empty; None is no group."""
    if group is None or not cgroups.kills(group):
        return ""
    return f"it needed more than its memory limit of {format_bytes(memory_bytes)}; raise limits.memory"


def from_handle(handle: Mapping[str, Any], group_name: str) -> ProcessInstance | None:
    """An instance of an earlier provider; None for a handle that does not say enough.

    Args:
        handle: of its address, empty when the earlier provider ended before it was known.
        group_name: what its cgroup is called, if it has one.
    """
    try:
        group = Path(handle["group"])
        return ProcessInstance(
            identity=procfs.Identity(pid=handle["pid"], started=handle["started"]),
            port=handle["port"],
            metrics_port=handle["metrics_port"],
            cores=tuple(handle["cores"]),
            memory_bytes=handle["memory_bytes"],
            group=group if group.name == group_name else None,
        )
    except (KeyError, TypeError):
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Remains:
    """What there is to do away with of an instance."""

    leaders: tuple[procfs.Identity, ...] = ()
    child: subprocess.Popen[bytes] | None = None
    group: Path | None = None
    folder: Path


def bury(remains: Remains) -> None:
    """End processes and remove what was theirs. Blocks until all is gone, for a few times `END_S` at most."""
    struck = {pid for leader in remains.leaders for pid in procfs.end(leader)}
    gone = procfs.wait_ended(struck, END_S)
    if remains.child is not None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            remains.child.wait(timeout=END_S)
    if remains.group is not None:
        gone = cgroups.remove(remains.group, END_S) and gone
    shutil.rmtree(remains.folder, ignore_errors=True)
    if not gone:
        LOG.warning("%s: killed processes are not gone after %.0f s", remains.folder.name, END_S)
