"""The exact model as data: columns, capacity rows, what is alike (paper Eq. 2 to 9 with counts instead of 0/1)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from infless_core.model import Configuration, Server
from infless_scheduler.placement import Offer, Task

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
    offers = {function: undominated(task, function, for_capacity=for_capacity) for function in task.wanted_rps}
    columns = tuple(
        Column(function=function, offer=offer, server=server.id, gpu=gpu, most=most)
        for function, rate_rps in task.wanted_rps.items()
        for offer in offers[function]
        for server in task.problem.servers
        for gpu in _slots(offer, server)
        if (most := min(math.ceil(rate_rps / offer.window.up_rps), _room_for(offer, server))) > 0
    )
    rows = tuple(row for server in task.problem.servers for row in _capacity_rows(server, columns))
    return Program(task=task, columns=columns, rows=rows, alike=_alike(task))


def undominated(task: Task, function: str, *, for_capacity: bool = False) -> tuple[Offer, ...]:
    """A function's offers without those that another one beats in every respect that a goal looks at.

    One beats another when it needs no more of each resource, takes no lower a rate, and (unless only capacity counts)
    has no higher a threshold: wherever the other one stands in a plan, it can stand too. Configurations that run now
    stay in, to be kept.
    """
    alpha = None if for_capacity else task.problem.alpha
    runs = {running.configuration for running in task.problem.running if running.function == function}
    offers = task.offers[function]
    return tuple(
        offer
        for index, offer in enumerate(offers)
        if (offer.configuration in runs and not for_capacity)
        or not any(
            _beats(other, offer, alpha) and (place < index or not _beats(offer, other, alpha))
            for place, other in enumerate(offers)
            if place != index
        )
    )


def _beats(one: Offer, other: Offer, alpha: float | None) -> bool:
    if alpha is not None and one.threshold_rps(alpha) > other.threshold_rps(alpha):
        return False
    return (
        one.configuration.cpu_cores <= other.configuration.cpu_cores
        and one.configuration.gpu_percent <= other.configuration.gpu_percent
        and one.point.memory_bytes <= other.point.memory_bytes
        and one.point.gpu_memory_bytes <= other.point.gpu_memory_bytes
        and one.window.up_rps >= other.window.up_rps
    )


def _slots(offer: Offer, server: Server) -> tuple[str | None, ...]:
    if offer.configuration.gpu_percent == 0:
        return (None,)
    return tuple(gpu.id for gpu in server.gpus if offer.point.gpu_memory_bytes <= gpu.memory_bytes)


def _room_for(offer: Offer, server: Server) -> int:
    """How often the offer fits on an empty server, GPU memory aside."""
    most = server.cpu_cores // offer.configuration.cpu_cores
    if offer.point.memory_bytes:
        most = min(most, server.memory_bytes // offer.point.memory_bytes)
    if offer.configuration.gpu_percent:
        most = min(most, 100 // offer.configuration.gpu_percent)
    return most


def _capacity_rows(server: Server, columns: tuple[Column, ...]) -> Iterable[CapacityRow]:
    here = [(index, column) for index, column in enumerate(columns) if column.server == server.id]
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
    """Servers of equal size on which nothing runs (keeping what runs makes servers differ)."""
    busy = {running.server for running in task.problem.running}
    groups: dict[tuple[object, ...], list[str]] = {}
    for server in task.problem.servers:
        if server.id not in busy:
            size = (server.cpu_cores, server.memory_bytes, tuple(gpu.memory_bytes for gpu in server.gpus))
            groups.setdefault(size, []).append(server.id)
    return tuple(tuple(ids) for ids in groups.values() if len(ids) > 1)


def running_counts(task: Task) -> Counter[tuple[str, str, str | None, Configuration]]:
    """How many instances run now, by function, server, GPU and configuration."""
    return Counter((r.function, r.server, r.gpu, r.configuration) for r in task.problem.running)
