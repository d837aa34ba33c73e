"""Processes as Linux tells of them: who is still the one that we started, whatever happens to clocks and numbers."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A process that can be found again: process ids are reused, and wall clocks are set."""

    pid: int
    started: str
    """Boot id and clock ticks from that boot to its start, `"BOOT/TICKS"`."""


def identify(pid: int) -> Identity | None:
    """The identity of a process; None when it does not exist."""
    fields = _stat(pid)
    return None if fields is None else Identity(pid=pid, started=f"{_boot()}/{fields[19]}")


def runs(identity: Identity) -> bool:
    """Whether that very process exists and has not ended (a zombie has)."""
    fields = _stat(identity.pid)
    return fields is not None and fields[0] not in ("Z", "X") and f"{_boot()}/{fields[19]}" == identity.started


def age_s(identity: Identity) -> float:
    """Seconds since it started."""
    ticks = int(identity.started.rpartition("/")[2])
    uptime_s = float((_PROC / "uptime").read_text().split()[0])
    return uptime_s - ticks / os.sysconf("SC_CLK_TCK")


def kill_group(identity: Identity) -> None:
    """SIGKILL to the group that it leads or has led. Its number stays taken while a member lives."""
    now = identify(identity.pid)
    if now is not None and now != identity:
        return  # the number went to somebody else, so no member is left
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(identity.pid, signal.SIGKILL)


def by_variable(name: str) -> Iterator[tuple[Identity, str]]:
    """Leaders of process groups that have an environment variable, with its value; only processes we may look into."""
    wanted = f"{name}=".encode()
    for folder in _PROC.glob("[0-9]*"):
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
            group = os.getpgid(int(folder.name))
        except OSError:
            continue
        value = next((one[len(wanted) :] for one in variables if one.startswith(wanted)), None)
        identity = identify(group)
        if value is not None:
            yield identity or Identity(pid=group, started=""), os.fsdecode(value)


def _stat(pid: int) -> list[str] | None:
    """The fields of `/proc/PID/stat` from the third one on: the second, the name, may hold anything."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()


@cache
def _boot() -> str:
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
