"""From placements to a plan: who they are, what each is meant to receive, what stops, and why demand is unserved."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping

from infless_core.model import FunctionDemand, PlanAction, PlannedInstance, Running, Server, Unserved
from infless_core.units import format_duration
from infless_scheduler.dispatch import dispatch_rates
from infless_scheduler.placement import Offer, Placement, Task, unserved_rps
from infless_scheduler.rates import nearest_target_s

_Identity = tuple[str, Placement, PlanAction]


def instances_of(task: Task, placements: Iterable[Placement]) -> tuple[PlannedInstance, ...]:
    """The planned instances in the order of their ids, each with its rate by the dispatch formula.

    A placement takes over a running instance of its function on its server and GPU: one in the same configuration is
    kept, else one is resized. What is left starts, as `<function>-<n>` with the smallest n that is free.
    """
    identities = sorted(_identities(task, placements), key=lambda identity: identity[0])
    rates: dict[str, float] = {}
    for function in task.problem.functions:
        windows = {id_: p.offer.window for id_, p, _ in identities if p.function == function.id}
        served_rps = min(function.rate_rps, math.fsum(w.up_rps for w in windows.values()))
        rates |= dispatch_rates(windows, served_rps, task.problem.alpha).rates_rps
    return tuple(
        PlannedInstance(
            id=id_,
            function=placement.function,
            server=placement.server,
            gpu=placement.gpu,
            configuration=placement.offer.configuration,
            rate_low_rps=placement.offer.window.low_rps,
            rate_up_rps=placement.offer.window.up_rps,
            rate_rps=rates[id_],
            action=action,
        )
        for id_, placement, action in identities
    )


def stopped(task: Task, instances: Iterable[PlannedInstance]) -> tuple[str, ...]:
    """Ids of running instances that the plan has no use for."""
    planned = {instance.id for instance in instances}
    return tuple(running.id for running in task.problem.running if running.id not in planned)


def unserved_of(task: Task, placements: tuple[Placement, ...]) -> tuple[Unserved, ...]:
    """Demand that nothing carries, with the constraint that binds."""
    missing = unserved_rps(task, placements)
    unserved = []
    for function in task.problem.functions:
        if function.rate_rps > 0 and function.id not in task.wanted_rps:
            reason = _no_offer(function, task.problem.servers)
            unserved.append(Unserved(function=function.id, rate_rps=function.rate_rps, reason=reason))
        elif function.id in missing:
            reason = _no_room(task, function.id, placements)
            unserved.append(Unserved(function=function.id, rate_rps=missing[function.id], reason=reason))
    return tuple(unserved)


def _identities(task: Task, placements: Iterable[Placement]) -> list[_Identity]:
    placed: defaultdict[tuple[str, str, str], list[Placement]] = defaultdict(list)
    for p in sorted(placements, key=lambda p: p.offer.configuration):
        placed[p.function, p.server, p.gpu or ""].append(p)
    running: defaultdict[tuple[str, str, str], list[Running]] = defaultdict(list)
    for r in task.problem.running:
        running[r.function, r.server, r.gpu or ""].append(r)
    identities: list[_Identity] = []
    new: list[Placement] = []
    for place in sorted(placed):
        taken, left = _take_over(placed[place], running[place])
        identities += taken
        new += left
    names = {running.id for running in task.problem.running}
    for placement in new:
        identities.append((_new_id(placement.function, names), placement, PlanAction.START))
    return identities


def _take_over(placed: list[Placement], running: list[Running]) -> tuple[list[_Identity], list[Placement]]:
    """Keep what can be kept first, so that a resize never uses up an instance that already is as wanted."""
    waiting, free = list(placed), list(running)
    taken: list[_Identity] = []
    for placement in placed:
        same = next((r for r in free if r.configuration == placement.offer.configuration), None)
        if same is not None:
            free.remove(same)
            waiting.remove(placement)
            taken.append((same.id, placement, PlanAction.KEEP))
    resized = min(len(waiting), len(free))
    taken += [(r.id, p, PlanAction.RESIZE) for r, p in zip(free, waiting[:resized], strict=False)]
    return taken, waiting[resized:]


def _new_id(function: str, names: set[str]) -> str:
    number = 1
    while (id_ := f"{function}-{number}") in names:
        number += 1
    names.add(id_)
    return id_


def _no_offer(function: FunctionDemand, servers: tuple[Server, ...]) -> str:
    """Why a function has no configuration at all: the profile, the target, or the size of the servers."""
    points = [point for point in function.profile if point.configuration.batch <= function.max_batch]
    nearest_s = nearest_target_s(points, function.max_batch)
    if nearest_s is None:
        return f"no configuration is profiled with a batch of at most {function.max_batch}"
    if nearest_s > function.latency_target_s:
        fastest = min(points, key=lambda point: (point.exec_s, point.configuration))
        return (
            f"no configuration meets {format_duration(function.latency_target_s)}: fastest is {fastest.configuration}"
            f" at {format_duration(fastest.exec_s)}; nearest feasible target {format_duration(nearest_s)}"
        )
    return f"no server is large enough: the largest of {len(servers)} has " + _largest(servers)


def _largest(servers: tuple[Server, ...]) -> str:
    if not servers:
        return "nothing (there are no servers)"
    cores = max(server.cpu_cores for server in servers)
    gpus = max(len(server.gpus) for server in servers)
    return f"{cores} cpu cores, {max(server.memory_bytes for server in servers)} bytes of memory and {gpus} GPUs"


def _no_room(task: Task, function: str, placements: tuple[Placement, ...]) -> str:
    """The resources whose lack stops the lightest next instance that comes nearest to fitting somewhere."""
    lacking = []
    for server in task.problem.servers:
        free = _Free(server, placements)
        lacking += [(free.lacks(offer), offer) for offer in task.offers[function] if offer.fits(server)]
    beta = task.problem.beta
    names, _ = min(lacking, key=lambda pair: (len(pair[0]), pair[1].weight(beta), pair[0]))
    return f"{' and '.join(names)} exhausted" if names else "time limit reached before room was found"


class _Free:
    """What placements leave free on one server."""

    def __init__(self, server: Server, placements: Iterable[Placement]) -> None:
        here = [p for p in placements if p.server == server.id]
        self._cores = server.cpu_cores - sum(p.offer.configuration.cpu_cores for p in here)
        self._memory_bytes = server.memory_bytes - sum(p.offer.point.memory_bytes for p in here)
        self._gpus: Mapping[str, tuple[int, int]] = {
            gpu.id: (
                100 - sum(p.offer.configuration.gpu_percent for p in here if p.gpu == gpu.id),
                gpu.memory_bytes - sum(p.offer.point.gpu_memory_bytes for p in here if p.gpu == gpu.id),
            )
            for gpu in server.gpus
        }

    def lacks(self, offer: Offer) -> tuple[str, ...]:
        """Names of the resources that one more instance would overdraw."""
        lacks = []
        if offer.configuration.cpu_cores > self._cores:
            lacks.append("cpu cores")
        if offer.point.memory_bytes > self._memory_bytes:
            lacks.append("memory")
        percent, memory_bytes = offer.configuration.gpu_percent, offer.point.gpu_memory_bytes
        if percent and not any(percent <= p and memory_bytes <= m for p, m in self._gpus.values()):
            has_share = any(percent <= p for p, _ in self._gpus.values())
            lacks.append("GPU memory" if has_share else "GPU share")
        return tuple(lacks)
