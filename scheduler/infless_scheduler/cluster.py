"""What is free on every server while instances are being placed. Mutable; one owner, as long as one run of a solver."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from infless_core.model import Configuration
from infless_scheduler.placement import Offer, Placement, Task

NOWHERE = -1
"""The slot of an instance without GPU."""


class Cluster:
    """Free cores, memory and GPU shares of all servers as arrays, so that many are looked at in one step.

    Rows are servers: class after class, within a class in the order of ids. Columns are GPU slots; a server with fewer
    GPUs than the largest one has slots in which nothing fits.
    """

    def __init__(self, task: Task, placed: Iterable[Placement] = ()) -> None:
        self.task = task
        self.servers = [server for kind in task.classes for server in kind.servers]
        self.row = {server.id: row for row, server in enumerate(self.servers)}
        self._slots = {(server.id, gpu.id): slot for server in self.servers for slot, gpu in enumerate(server.gpus)}
        sizes = [len(kind.servers) for kind in task.classes]
        self.kind: NDArray[np.int64] = np.repeat(np.arange(len(sizes)), sizes)
        slots = max((len(kind.gpu_memory_bytes) for kind in task.classes), default=0)
        gpus = [[*kind.gpu_memory_bytes, *[NOWHERE] * (slots - len(kind.gpu_memory_bytes))] for kind in task.classes]
        self.cpu_cores = np.repeat(np.array([k.cpu_cores for k in task.classes], dtype=np.int64), sizes)
        self.memory_bytes = np.repeat(np.array([k.memory_bytes for k in task.classes], dtype=np.int64), sizes)
        self.gpu_memory = np.repeat(np.array(gpus, dtype=np.int64).reshape(len(sizes), slots), sizes, axis=0)
        self._has_gpu = self.gpu_memory >= 0
        self.gpu_percent = np.where(self._has_gpu, 100, 0)
        self.instances = np.zeros(len(self.servers), dtype=np.int64)
        self._take_all(list(placed))

    def _take_all(self, placed: list[Placement]) -> None:
        if not placed:
            return
        rows = np.array([self.row[placement.server] for placement in placed])
        kinds = {id(placement.offer): placement.offer for placement in placed}
        place = {key: index for index, key in enumerate(kinds)}
        points = [offer.point for offer in kinds.values()]
        sizes = np.array(
            [
                (p.configuration.cpu_cores, p.memory_bytes, p.configuration.gpu_percent, p.gpu_memory_bytes)
                for p in points
            ]
        )[[place[id(placement.offer)] for placement in placed]]
        np.add.at(self.instances, rows, 1)
        np.subtract.at(self.cpu_cores, rows, sizes[:, 0])
        np.subtract.at(self.memory_bytes, rows, sizes[:, 1])
        on_gpu = [index for index, placement in enumerate(placed) if placement.gpu is not None]
        if on_gpu:
            at = rows[on_gpu], np.array([self.slot(placed[index]) for index in on_gpu])
            np.subtract.at(self.gpu_percent, at, sizes[on_gpu, 2])
            np.subtract.at(self.gpu_memory, at, sizes[on_gpu, 3])

    def slot(self, placement: Placement) -> int:
        """The GPU slot of a placement on its server."""
        return NOWHERE if placement.gpu is None else self._slots[placement.server, placement.gpu]

    def place(self, function: str, offer: Offer, row: int, slot: int) -> Placement:
        """Put one instance there."""
        server = self.servers[row]
        placement = Placement(
            function=function, server=server.id, gpu=None if slot == NOWHERE else server.gpus[slot].id, offer=offer
        )
        self._add(offer, row, slot, 1)
        return placement

    def take(self, placement: Placement) -> None:
        """Count an instance that is placed."""
        self._add(placement.offer, self.row[placement.server], self.slot(placement), 1)

    def free(self, placement: Placement) -> None:
        """Give back what an instance held."""
        self._add(placement.offer, self.row[placement.server], self.slot(placement), -1)

    def _add(self, offer: Offer, row: int, slot: int, sign: int) -> None:
        point = offer.point
        self.instances[row] += sign
        self.cpu_cores[row] -= sign * point.configuration.cpu_cores
        self.memory_bytes[row] -= sign * point.memory_bytes
        if slot != NOWHERE:
            self.gpu_percent[row, slot] -= sign * point.configuration.gpu_percent
            self.gpu_memory[row, slot] -= sign * point.gpu_memory_bytes

    def overdrawn(self) -> list[int]:
        """Rows of the servers that hold more than they have."""
        over = (self.cpu_cores < 0) | (self.memory_bytes < 0)
        if self.gpu_percent.shape[1]:
            over |= (self.gpu_percent < 0).any(axis=1) | ((self.gpu_memory < 0) & self._has_gpu).any(axis=1)
        return [int(row) for row in np.flatnonzero(over)]

    def slot_for(self, offer: Offer, row: int) -> int | None:
        """Where one more instance of an offer has room on a server: of its GPUs the fullest one, `NOWHERE` without GPU.

        None where it has no room. Whether the offer stands on the server's class is not looked at.
        """
        point = offer.point
        percent, memory_bytes = point.configuration.gpu_percent, point.gpu_memory_bytes
        if self.cpu_cores[row] < point.configuration.cpu_cores or self.memory_bytes[row] < point.memory_bytes:
            return None
        if not percent:
            return NOWHERE
        free = [(int(p), slot) for slot, p in enumerate(self.gpu_percent[row]) if p >= percent]
        fitting = [(p, slot) for p, slot in free if self.gpu_memory[row, slot] >= memory_bytes]
        return min(fitting)[1] if fitting else None


def takes_place_of(one: Configuration, other: Configuration) -> bool:
    """Whether a configuration has room, memory aside, where another one stands: on its cores and its GPU, if any."""
    same_kind = (one.gpu_percent > 0) == (other.gpu_percent > 0)
    return same_kind and one.cpu_cores <= other.cpu_cores and one.gpu_percent <= other.gpu_percent
