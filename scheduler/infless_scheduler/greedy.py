"""The paper's Algorithm 1: place one instance after the other, each where it scores best (Eq. 10).

What the paper leaves open, and what holds here:

* Nothing fits with the largest batch: the next smaller one is tried, as when no configuration qualifies.
* The score's denominator is 0 when an instance fills its server exactly: it is kept above a small epsilon, so an
  exact fit wins, and among exact fits the higher throughput per resource.
* A last residue too small for every batch above 1 and no batch of 1 at hand: the lightest instance that carries it
  is taken though it will idle, or the fastest one if none does.
* Nothing fits at all: the rest stays unserved and the next function has its turn.
* Ties: the smaller configuration, then a server where the function already runs so, then the smaller server id.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from infless_core.model import Problem
from infless_scheduler.placement import (
    NEGLIGIBLE,
    Offer,
    Placement,
    Task,
    capacity_rps,
    objective,
    unserved_rps,
)

_EPSILON = 1e-9


class _Room(NamedTuple):
    """What is free on a server. Servers with equal room are alike to the score, so they are looked at once."""

    cpu_cores: int
    memory_bytes: int
    gpus: tuple[tuple[int, int], ...]
    """`(percent, memory_bytes)` of each."""


class _Spot(NamedTuple):
    room: _Room
    gpu: int | None
    offer: Offer


def greedy(task: Task, placed: tuple[Placement, ...] = (), *, core_worth: float | None = None) -> tuple[Placement, ...]:
    """Place every wanted rate as far as it fits, function after function in the order of ids.

    Args:
        task: what to place.
        placed: instances that are there already and stay; they come first in the answer.
        core_worth: what the score counts a core in GPU percent; the problem's beta, as in the paper, by default.
    """
    cluster = _Cluster(task.problem, placed, task.problem.beta if core_worth is None else core_worth)
    placements = list(placed)
    capacity = capacity_rps(placed)
    for function, rate_rps in task.wanted_rps.items():
        residue_rps = rate_rps - capacity.get(function, 0.0)
        while residue_rps > NEGLIGIBLE * rate_rps:
            spot = _next_spot(task.offers[function], residue_rps, cluster)
            if spot is None:
                break
            placements.append(cluster.take(function, spot))
            residue_rps -= spot.offer.window.up_rps
    return tuple(placements)


def better_greedy(task: Task) -> tuple[Placement, ...]:
    """The better of two greedy placements: the paper's, and one that counts a core at what it is worth here.

    By peak speed a core is worth so little that the paper's score takes cores for everything until they are gone and
    the GPUs beside them stand idle. Counting all cores of the cluster as much as all its GPUs halves the servers.
    """
    cores = sum(server.cpu_cores for server in task.problem.servers)
    gpu_percent = sum(100 * len(server.gpus) for server in task.problem.servers)
    both = [greedy(task)]
    if gpu_percent and cores:
        both.append(greedy(task, core_worth=gpu_percent / cores))

    def loss(placements: tuple[Placement, ...]) -> tuple[float, float]:
        return math.fsum(unserved_rps(task, placements).values()), objective(task, placements)

    return min(both, key=loss)


class _Cluster:
    """The free room, server by server. Lives as long as one run of `greedy`."""

    def __init__(self, problem: Problem, placed: tuple[Placement, ...], core_worth: float) -> None:
        self.core_worth = core_worth
        self._gpu_ids = {server.id: tuple(gpu.id for gpu in server.gpus) for server in problem.servers}
        self._running = {(r.function, r.server, r.configuration) for r in problem.running}
        self._servers: dict[_Room, set[str]] = {}
        for server in problem.servers:
            room = _Room(server.cpu_cores, server.memory_bytes, tuple((100, gpu.memory_bytes) for gpu in server.gpus))
            for p in placed:
                if p.server == server.id:
                    room = _less(room, None if p.gpu is None else self._gpu_ids[server.id].index(p.gpu), p.offer)
            self._servers.setdefault(room, set()).add(server.id)

    def spots(self, offers: Iterable[Offer]) -> Iterator[_Spot]:
        """Where each offer fits, in the order that settles ties; of a server's GPUs the fullest that it fits on."""
        rooms = sorted(self._servers, key=lambda room: min(self._servers[room]))
        for offer in offers:
            for room in rooms:
                gpu = _fullest_gpu(offer, room)
                if offer.configuration.cpu_cores > room.cpu_cores or offer.point.memory_bytes > room.memory_bytes:
                    continue
                if offer.configuration.gpu_percent == 0 or gpu is not None:
                    yield _Spot(room, gpu, offer)

    def score(self, spot: _Spot) -> float:
        """Eq. 10: throughput per resource, divided by the share of the free room that would stay unused."""
        weight = max(spot.offer.weight(self.core_worth), _EPSILON)
        free = self.core_worth * spot.room.cpu_cores + sum(percent for percent, _ in spot.room.gpus)
        return spot.offer.window.up_rps / weight / max(1 - weight / max(free, weight), _EPSILON)

    def take(self, function: str, spot: _Spot) -> Placement:
        """Put one instance on one of the servers with that room."""
        room, gpu, offer = spot
        alike = self._servers[room]
        server = min(alike, key=lambda id_: ((function, id_, offer.configuration) not in self._running, id_))
        alike.remove(server)
        if not alike:
            del self._servers[room]
        self._servers.setdefault(_less(room, gpu, offer), set()).add(server)
        gpu_id = None if gpu is None else self._gpu_ids[server][gpu]
        return Placement(function=function, server=server, gpu=gpu_id, offer=offer)


def _next_spot(offers: tuple[Offer, ...], residue_rps: float, cluster: _Cluster) -> _Spot | None:
    for batch in sorted({offer.configuration.batch for offer in offers}, reverse=True):
        qualified = [o for o in offers if o.configuration.batch == batch and residue_rps >= o.window.low_rps]
        best = max(cluster.spots(qualified), key=cluster.score, default=None)
        if best is not None:
            return best
    return min(
        cluster.spots(offers),
        key=lambda spot: (
            max(0.0, residue_rps - spot.offer.window.up_rps),
            spot.offer.weight(cluster.core_worth),
            -cluster.score(spot),
        ),
        default=None,
    )


def _fullest_gpu(offer: Offer, room: _Room) -> int | None:
    percent, memory_bytes = offer.configuration.gpu_percent, offer.point.gpu_memory_bytes
    fitting = [i for i, gpu in enumerate(room.gpus) if percent <= gpu[0] and memory_bytes <= gpu[1]]
    return min(fitting, key=lambda index: room.gpus[index][0], default=None) if percent else None


def _less(room: _Room, gpu: int | None, offer: Offer) -> _Room:
    gpus = list(room.gpus)
    if gpu is not None:
        percent, memory_bytes = gpus[gpu]
        gpus[gpu] = (percent - offer.configuration.gpu_percent, memory_bytes - offer.point.gpu_memory_bytes)
    cpu_cores = room.cpu_cores - offer.configuration.cpu_cores
    return _Room(cpu_cores, room.memory_bytes - offer.point.memory_bytes, tuple(gpus))
