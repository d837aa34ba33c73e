"""Processes as Linux tells of them: who is still the one that we started, whatever happens to clocks and numbers."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_PROC = Path("/proc")
_PASSES = 5
"""A thread that starts while its process is being pinned may be missed: each pass finds the ones of the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A process that can be found again: process ids are reused, and wall clocks are set."""

    pid: int
    started: str
    """Boot id and clock ticks from that boot to its start, `"BOOT/TICKS"`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumption:
    """What the processes of a session use."""

    cpu_share: float = 0.0
    """Cores in the mean since the session began, of those that live now."""
    memory_bytes: int = 0
    """Resident; what they share is counted for each."""


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


def session(leader: int) -> list[int]:
    """Processes of the session that a process leads or has led; also ended ones that nobody has waited for."""
    return [pid for pid in _pids() if _session_of(pid) == leader]


def end(identity: Identity) -> set[int]:
    """SIGKILL to a process, and to the group and the session that it leads or has led.

    Their number stays taken while a member lives, so no stranger can have it.

    Returns:
        Process ids that were killed, or had ended and wait for their parent.
    """
    now = identify(identity.pid)
    if identity.pid <= 1 or (now is not None and now != identity):
        return set()  # the number went to somebody else, so no member is left
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(identity.pid, signal.SIGKILL)
    struck: set[int] = set() if now is None else {identity.pid}
    strike(struck)
    while new := set(session(identity.pid)) - struck:  # whom a member started before it was struck
        strike(new)
        struck |= new
    return struck


def strike(pids: Collection[int]) -> None:
    """SIGKILL to each process."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def watch(pid: int) -> int | None:
    """A descriptor that becomes readable when a process ends; None when it has ended, or this cannot be told."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):  # not in this Python, this kernel, or no descriptor is left
        return None


def wait_ended(pids: Collection[int], timeout_s: float) -> bool:
    """Wait until processes have ended, whoever reaps them; False when one has not within `timeout_s`."""
    ends_s = time.monotonic() + timeout_s
    for pid in pids:
        descriptor = watch(pid)
        if descriptor is None:
            continue
        try:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            if not poll.poll(max(0.0, ends_s - time.monotonic()) * 1000):
                return False
        finally:
            os.close(descriptor)
    return True


def pin(leader: int, cores: Collection[int]) -> None:
    """Let all threads of a session run on these CPUs only; what they start from now on inherits it."""
    wanted = set(cores)
    for _ in range(_PASSES):
        changed = False
        for task in [task for pid in session(leader) for task in _tasks(pid)]:
            with contextlib.suppress(OSError):  # it has just ended
                if os.sched_getaffinity(task) != wanted:
                    os.sched_setaffinity(task, wanted)
                    changed = True
        if not changed:
            return


def consumption(leaders: Sequence[Identity]) -> list[Consumption]:
    """What the session of each leader uses, in their order; one look at all processes."""
    ticks = dict.fromkeys((leader.pid for leader in leaders), 0)
    pages = dict(ticks)
    for pid in _pids():
        leader = _session_of(pid)
        if leader in ticks and (fields := _stat(pid)) is not None:
            ticks[leader] += int(fields[11]) + int(fields[12])
            pages[leader] += int(fields[21])
    tick_s, page_bytes = 1 / os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    return [
        Consumption(
            cpu_share=ticks[leader.pid] * tick_s / max(0.1, age_s(leader)),
            memory_bytes=pages[leader.pid] * page_bytes,
        )
        for leader in leaders
    ]


def by_variable(name: str) -> Iterator[tuple[Identity, str]]:
    """Processes that have an environment variable, with its value; only those that we may look into."""
    wanted = f"{name}=".encode()
    for pid in _pids():
        try:
            variables = (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        value = next((one[len(wanted) :] for one in variables if one.startswith(wanted)), None)
        identity = identify(pid) if value is not None else None
        if value is not None and identity is not None:
            yield identity, os.fsdecode(value)


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir(_PROC) if name.isdecimal())  # noqa: PTH208 - names only, and many


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _tasks(pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(_PROC / str(pid) / "task")]  # noqa: PTH208
    except OSError:
        return []


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
