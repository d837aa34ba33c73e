"""The exact model as data: columns, capacity rows, what is alike (paper Eq. 2 to 9 with counts instead of 0/1)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from infless_core.model import FunctionDemand, Server
from infless_scheduler.knapsack import undominated
from infless_scheduler.placement import Offer, ServerClass, Task

_GRANULES = 10**6
"""Memory is counted in capacity / 10^6 where its numbers have no common measure: solvers lose whole bytes at 10^11."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """How many instances of a function in one configuration sit on one GPU slot (or none) of one server."""

    function: str
    offer: Offer
    server: str
    gpu: str | None
    most: int
    """More of it than this are never needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityRow:
    """`sum(amount * column) <= capacity`, and 0 on an unused server."""

    server: str
    uses: tuple[tuple[int, int], ...]
    """`(column index, amount)`."""
    capacity: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """Everything the solver has to know, in the order of ids."""

    task: Task
    columns: tuple[Column, ...]
    rows: tuple[CapacityRow, ...]
    alike: tuple[tuple[str, ...], ...]
    """Groups of servers that can be swapped in any plan: only the order of their use would differ."""


def program_of(task: Task, *, for_capacity: bool = False) -> Program:
    """Build the model of a task; only offers that could be part of a best plan are in it.

    Args:
        task: what to place.
        for_capacity: only what the goals need that look at nothing but rates and servers: far fewer columns.
    """
    columns = tuple(
        Column(function=id_, offer=offer, server=server.id, gpu=gpu, most=most)
        for id_, function in task.functions.items()
        for kind, servers in enumerate(task.classes)
        for offer in worth_trying(task, id_, kind, for_capacity=for_capacity)
        for server in servers.servers
        for gpu in _slots(offer, server)
        if (most := min(_most_useful(function, offer), _room_for(offer, servers))) > 0
    )
    here: dict[str, list[tuple[int, Column]]] = {}
    for index, column in enumerate(columns):
        here.setdefault(column.server, []).append((index, column))
    servers = [server for kind in task.classes for server in kind.servers]
    rows = tuple(row for server in servers for row in _capacity_rows(server, here.get(server.id, [])))
    return Program(task=task, columns=columns, rows=rows, alike=_alike(task))


def _most_useful(function: FunctionDemand, offer: Offer) -> int:
    """More instances of an offer than this are never needed."""
    most = max(math.ceil(function.rate_rps / offer.window.up_rps), function.instances_min)
    return most if function.instances_max is None else min(most, function.instances_max)


def worth_trying(task: Task, function: str, kind: int, *, for_capacity: bool = False) -> tuple[Offer, ...]:
    """A function's offers on a class without those that another one beats in every respect that a goal looks at.

    One beats another when it needs no more of each resource, takes no lower a rate, and (unless only capacity counts)
    has no higher a threshold: wherever the other one stands in a plan, it can stand too. Configurations that run now
    stay in, to be kept.
    """
    offers = task.offers[function][kind]
    if not offers:
        return ()
    alpha = task.problem.alpha
    runs = {running.configuration for running in task.problem.running if running.function == function}
    sizes = np.array(
        [
            (
                o.configuration.cpu_cores,
                o.configuration.gpu_percent,
                o.point.memory_bytes,
                o.point.gpu_memory_bytes if o.configuration.gpu_percent else 0,
                0.0 if for_capacity else o.threshold_rps(alpha),
            )
            for o in offers
        ]
    )
    up_rps = np.array([offer.window.up_rps for offer in offers])
    best = set(undominated(sizes, up_rps, np.ones(len(offers), dtype=bool)).tolist())
    return tuple(
        offer
        for place, offer in enumerate(offers)
        if place in best or (offer.configuration in runs and not for_capacity)
    )


def _slots(offer: Offer, server: Server) -> tuple[str | None, ...]:
    if offer.configuration.gpu_percent == 0:
        return (None,)
    return tuple(gpu.id for gpu in server.gpus if offer.point.gpu_memory_bytes <= gpu.memory_bytes)


def _room_for(offer: Offer, servers: ServerClass) -> int:
    """How often the offer fits on an empty server, GPU memory aside."""
    most = servers.cpu_cores // offer.configuration.cpu_cores
    if offer.point.memory_bytes:
        most = min(most, servers.memory_bytes // offer.point.memory_bytes)
    if offer.configuration.gpu_percent:
        most = min(most, 100 // offer.configuration.gpu_percent)
    return most


def _capacity_rows(server: Server, here: list[tuple[int, Column]]) -> Iterable[CapacityRow]:
    cores = [(index, column.offer.configuration.cpu_cores) for index, column in here]
    memory = [(index, column.offer.point.memory_bytes) for index, column in here]
    rows = [(cores, server.cpu_cores), (memory, server.memory_bytes)]
    for gpu in server.gpus:
        on_gpu = [(index, column) for index, column in here if column.gpu == gpu.id]
        rows.append(([(index, column.offer.configuration.gpu_percent) for index, column in on_gpu], 100))
        rows.append(([(index, column.offer.point.gpu_memory_bytes) for index, column in on_gpu], gpu.memory_bytes))
    for uses, capacity in rows:
        used = [(index, amount) for index, amount in uses if amount > 0]
        if used:
            yield _scaled(server.id, used, capacity)


def _scaled(server: str, uses: list[tuple[int, int]], capacity: int) -> CapacityRow:
    """The same row in numbers small enough to be exact for a solver; at worst it claims a millionth too much."""
    measure = math.gcd(*(amount for _, amount in uses))
    if capacity // measure > _GRANULES:
        measure = -(-capacity // _GRANULES)
    scaled = tuple((index, -(-amount // measure)) for index, amount in uses)
    return CapacityRow(server=server, uses=scaled, capacity=capacity // measure)


def _alike(task: Task) -> tuple[tuple[str, ...], ...]:
    """Servers of one class on which nothing runs (keeping what runs makes servers differ)."""
    busy = {running.server for running in task.problem.running}
    groups = [tuple(server.id for server in kind.servers if server.id not in busy) for kind in task.classes]
    return tuple(group for group in groups if len(group) > 1)
