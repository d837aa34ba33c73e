"""From placements to a plan: who they are, what each is meant to receive, what stops, and why demand is unserved."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from infless_core.labels import GpuWish
from infless_core.model import FunctionDemand, PlanAction, PlannedInstance, Running, Unserved
from infless_core.units import format_duration
from infless_scheduler.cluster import Cluster
from infless_scheduler.dispatch import shares
from infless_scheduler.placement import Offer, Placement, ServerClass, Task, counts, missing_instances, unserved_rps
from infless_scheduler.rates import RateWindow, gpu_allowed, least_target_s

_Identity = tuple[str, Placement, PlanAction]


def instances_of(
    task: Task, placements: Sequence[Placement], before: Mapping[str, PlannedInstance] | None = None
) -> tuple[PlannedInstance, ...]:
    """The planned instances in the order of their ids, each with its rate by the dispatch formula.

    A placement takes over a running instance of its function on its server and GPU: one in the same configuration is
    kept, else one is resized. What is left starts, as `<function>-<n>` with the smallest n that is free.

    Args:
        task: what was planned.
        placements: the plan.
        before: instances of an earlier plan, by id: what would come out the same is taken from there.
    """
    identities = sorted(_identities(task, placements), key=lambda identity: identity[0])
    windows: defaultdict[str, dict[str, RateWindow]] = defaultdict(dict)
    for id_, placement, _ in identities:
        windows[placement.function][id_] = placement.offer.window
    rates: dict[str, float] = {}
    for function, own in windows.items():
        served_rps = min(task.functions[function].rate_rps, math.fsum(w.up_rps for w in own.values()))
        rates |= shares(own, served_rps)
    before, instances = before or {}, []
    for id_, placement, action in identities:
        offer = placement.offer
        known = before.get(id_)
        if known is not None and known.action is action is PlanAction.KEEP and _is(known, placement, rates[id_]):
            instances.append(known)
            continue
        instances.append(
            PlannedInstance(
                id=id_,
                function=placement.function,
                server=placement.server,
                gpu=placement.gpu,
                configuration=offer.point.configuration,
                rate_low_rps=offer.window.low_rps,
                rate_up_rps=offer.window.up_rps,
                rate_rps=rates[id_],
                action=action,
            )
        )
    return tuple(instances)


def _is(known: PlannedInstance, placement: Placement, rate_rps: float) -> bool:
    """Whether a kept instance is as it was planned before."""
    offer = placement.offer
    return (
        known.rate_rps == rate_rps
        and known.rate_up_rps == offer.window.up_rps
        and known.rate_low_rps == offer.window.low_rps
        and known.configuration == offer.point.configuration
        and (known.function, known.server, known.gpu) == placement[:3]
    )


def stopped(task: Task, instances: Iterable[PlannedInstance]) -> tuple[str, ...]:
    """Ids of running instances that the plan has no use for."""
    planned = {instance.id for instance in instances}
    return tuple(running.id for running in task.problem.running if running.id not in planned)


def unserved_of(task: Task, placements: tuple[Placement, ...]) -> tuple[Unserved, ...]:
    """Demand that nothing carries and instances that are missing, with the constraint that binds."""
    missing, short = unserved_rps(task, placements), missing_instances(task, placements)
    number = counts(placements)
    cluster: Cluster | None = None
    unserved = []
    for function in task.problem.functions:
        if function.id not in task.functions:
            if function.rate_rps > 0 or function.instances_min:
                reason = _no_offer(task, function)
                unserved.append(Unserved(function=function.id, rate_rps=function.rate_rps, reason=reason))
        elif function.id in missing or function.id in short:
            cluster = cluster or Cluster(task, placements)
            if function.instances_max is not None and number[function.id] >= function.instances_max:
                reason = f"its limit of {function.instances_max} instances is reached"
            else:
                reason = binding_constraint(task, function.id, cluster)
            if function.id in short:
                reason = f"{short[function.id]} of at least {function.instances_min} instances are missing: {reason}"
            rate_rps = missing.get(function.id, 0.0)
            unserved.append(Unserved(function=function.id, rate_rps=rate_rps, reason=reason))
    return tuple(unserved)


def _identities(task: Task, placements: Sequence[Placement]) -> list[_Identity]:
    """Keep what can be kept first, so that a resize never uses up an instance that already is as wanted."""
    identities = [(p.running, p, PlanAction.KEEP) for p in placements if p.running is not None]
    known = {id_ for id_, _, _ in identities}
    same: defaultdict[tuple[object, ...], list[Running]] = defaultdict(list)
    for r in reversed(task.problem.running):
        if r.id not in known:
            same[r.function, r.server, r.gpu, r.configuration].append(r)
    changed: defaultdict[tuple[str, str, str], list[Placement]] = defaultdict(list)
    for p in placements:
        if p.running is None:
            candidates = same.get((p.function, p.server, p.gpu, p.offer.configuration))
            if candidates:
                identities.append((candidates.pop().id, p, PlanAction.KEEP))
            else:
                changed[p.function, p.server, p.gpu or ""].append(p)
    free: defaultdict[tuple[str, str, str], list[Running]] = defaultdict(list)
    for r in sorted((r for left in same.values() for r in left), key=lambda r: r.id):
        free[r.function, r.server, r.gpu or ""].append(r)
    new: list[Placement] = []
    for place in sorted(changed):
        here = sorted(changed[place], key=lambda p: p.offer.configuration)
        resized = free[place]
        identities += [(r.id, p, PlanAction.RESIZE) for r, p in zip(resized, here, strict=False)]
        new += here[len(resized) :]
    return identities + _named(new, {running.id for running in task.problem.running})


def _named(new: Iterable[Placement], names: set[str]) -> list[_Identity]:
    last: defaultdict[str, int] = defaultdict(int)
    identities = []
    for placement in new:
        number = last[placement.function] + 1
        while (id_ := f"{placement.function}-{number}") in names:
            number += 1
        last[placement.function] = number
        names.add(id_)
        identities.append((id_, placement, PlanAction.START))
    return identities


def _no_offer(task: Task, function: FunctionDemand) -> str:
    """Why a function has no configuration at all: the profile, its wishes, the target, or the size of the servers."""
    batched = [point for point in function.profile if point.configuration.batch <= function.max_batch]
    if not batched:
        return f"no configuration is profiled with a batch of at most {function.max_batch}"
    points = [point for point in batched if gpu_allowed(point.configuration, function.gpu)]
    if not points:
        how = "with" if function.gpu is GpuWish.REQUIRE else "without"
        return f"no configuration is profiled {how} a GPU (gpu: {function.gpu})"
    if not task.classes:
        return f"all servers ({len(task.problem.servers)}) are being drained" if task.problem.servers else _NO_SERVERS
    large_enough = [(kind, point) for kind in task.classes for point in points if kind.fits(point)]
    if not large_enough:
        return f"no server is large enough: the largest of {len(task.problem.servers)} has " + _largest(task.classes)
    # What a full server makes of the execution time counts, as it does for the offers.
    targets = [
        (least_target_s(point.configuration.batch, point.exec_s * kind.slowdown(point.configuration)), kind, point)
        for kind, point in large_enough
    ]
    nearest_s, kind, point = min(targets, key=lambda one: (one[0], one[2].configuration))
    slowdown = kind.slowdown(point.configuration)
    slower = f" ({slowdown:.3g} times that beside neighbours)" if slowdown > 1 else ""
    return (
        f"no configuration meets {format_duration(function.latency_target_s)}: nearest is {point.configuration}"
        f" at {format_duration(point.exec_s)}{slower}; nearest feasible target {format_duration(nearest_s)}"
    )


_NO_SERVERS = "there are no servers"


def _largest(classes: Sequence[ServerClass]) -> str:
    cores = max(kind.cpu_cores for kind in classes)
    memory_gib = max(server.memory_bytes for kind in classes for server in kind.servers) / 2**30
    gpus = max(len(kind.gpu_memory_bytes) for kind in classes)
    return f"{cores} cpu cores, {memory_gib:.4g} GiB of memory and {gpus} GPUs"


def binding_constraint(task: Task, function: str, cluster: Cluster) -> str:
    """The resources whose lack stops the lightest next instance that comes nearest to fitting somewhere."""
    beta = task.problem.beta
    best: tuple[int, float, tuple[str, ...]] | None = None
    for kind, offers in enumerate(task.offers[function]):
        rows = np.flatnonzero(cluster.kind == kind)
        for offer in offers if len(rows) else ():
            lacking = _lacking(cluster, offer, rows)
            number = sum(lacks.astype(int) for lacks in lacking.values())
            row = int(np.argmin(number))
            names = tuple(name for name, lacks in lacking.items() if lacks[row])
            key = (len(names), offer.weight(beta), names)
            best = key if best is None or key < best else best
    names = best[2] if best else ()
    return f"{' and '.join(names)} exhausted" if names else "room is left, but the solver has not found how to use it"


def _lacking(cluster: Cluster, offer: Offer, rows: NDArray[np.int64]) -> dict[str, NDArray[np.bool_]]:
    """By resource, on which servers one more instance would overdraw it."""
    lacking = {
        "cpu cores": cluster.cpu_cores[rows] < offer.configuration.cpu_cores,
        "memory": cluster.memory_bytes[rows] < offer.point.memory_bytes,
    }
    if percent := offer.configuration.gpu_percent:
        share = cluster.gpu_percent[rows] >= percent
        both = share & (cluster.gpu_memory[rows] >= offer.point.gpu_memory_bytes)
        some: NDArray[np.bool_] = np.asarray(share.any(axis=1))
        lacking["GPU share"] = ~some
        lacking["GPU memory"] = some & ~np.asarray(both.any(axis=1))
    return lacking
