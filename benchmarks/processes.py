"""What a server under test takes, all its processes together: memory and processor time; and what others took."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

_TICK_S = 0.01
"""Of the counters in /proc/stat."""


def tree(pid: int, *, deep: bool = True) -> list[psutil.Process]:
    """A process and all its descendants (its children only, unless `deep`); nothing when it is gone."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=deep)]
    except psutil.NoSuchProcess:
        return []


def resident_bytes(pid: int, *, deep: bool = True) -> int:
    """Sum of PSS: what the processes share is counted once."""
    total = 0
    for process in tree(pid, deep=deep):
        try:
            total += process.memory_full_info().pss
        except psutil.Error:  # it has ended meanwhile
            continue
    return total


def cpu_s(pid: int, *, deep: bool = True) -> float:
    """User and system time of all that live, and of children that have been waited for."""
    total = 0.0
    for process in tree(pid, deep=deep):
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


@dataclass(frozen=True, slots=True)
class Busy:
    """A reading of a core's clock."""

    at_s: float
    busy_s: float


def read_busy(cpus: Sequence[int]) -> Busy:
    """Time in which the cores did anything, or were taken away by the machine's host."""
    busy = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *counts = line.split()
        if name.removeprefix("cpu") in {str(cpu) for cpu in cpus}:
            user, nice, system, _idle, _io, irq, soft_irq, steal = (int(count) for count in counts[:8])
            busy += user + nice + system + irq + soft_irq + steal
    return Busy(time.perf_counter(), busy * _TICK_S)


def others_share(before: Busy, after: Busy, ours_s: float, cores: int) -> float:
    """Share of the cores that was taken by neither the server nor the generator: other work on a shared machine."""
    length_s = (after.at_s - before.at_s) * cores
    return max(0.0, (after.busy_s - before.busy_s - ours_s) / length_s) if length_s > 0 else 0.0


def end(pid: int, grace_s: float = 5.0) -> None:
    """SIGTERM to the first, then SIGKILL to whatever of its descendants is left."""
    family = tree(pid)
    if not family:
        return
    family[0].terminate()
    psutil.wait_procs(family[:1], timeout=grace_s)
    _, left = psutil.wait_procs(family, timeout=0.5)
    for process in left:
        try:
            process.kill()
        except psutil.Error:
            continue
    psutil.wait_procs(left, timeout=5)
