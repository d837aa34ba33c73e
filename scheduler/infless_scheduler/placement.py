"""What solvers work on and give back: server classes, the offers of each function, instances without identity yet.

Everything is in the order of ids, so that no decision depends on the order of the input.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

from infless_core.model import (
    Configuration,
    FunctionDemand,
    Interference,
    Problem,
    ProfilePoint,
    Server,
)
from infless_scheduler.rates import RateWindow, feasible_points

NEGLIGIBLE = 1e-6
"""Share of a function's rate that is not worth an instance, nor a solver's tolerance: one request in a million."""

LEAST_WEIGHT = 1e-3
"""In the goal to serve as much as possible no function's rate counts for less than this share of the largest one:
beside a million requests a second, one in a million seconds would vanish in a solver's tolerance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One configuration that serves a function within its target on some class of servers, and the rates it takes."""

    point: ProfilePoint
    window: RateWindow

    @property
    def configuration(self) -> Configuration:
        """Batch, cores and GPU share."""
        return self.point.configuration

    def weight(self, beta: float) -> float:
        """What it takes of a cluster, in GPU-percent units: `beta * cpu_cores + gpu_percent`."""
        return beta * self.point.configuration.cpu_cores + self.point.configuration.gpu_percent

    def threshold_rps(self, alpha: float) -> float:
        """Its part of the scale-in threshold."""
        return alpha * self.window.up_rps + (1 - alpha) * self.window.low_rps


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerClass:
    """Servers that no rule can tell apart. The same offers stand on each of them."""

    cpu_cores: int
    memory_bytes: int
    """What instances may use of it; a server may have more."""
    gpu_memory_bytes: tuple[int, ...]
    interference: Interference
    servers: tuple[Server, ...]
    """In the order of their ids; the GPUs of each in the order of `gpu_memory_bytes`."""

    @property
    def size(self) -> tuple[object, ...]:
        """What makes servers alike."""
        return self.cpu_cores, self.memory_bytes, self.gpu_memory_bytes, self.interference

    def cost(self, beta: float) -> float:
        """What using one of them counts in the objective."""
        return beta * self.cpu_cores + 100 * len(self.gpu_memory_bytes)

    def fits(self, point: ProfilePoint) -> bool:
        """Whether an empty server could host it."""
        if point.configuration.cpu_cores > self.cpu_cores or point.memory_bytes > self.memory_bytes:
            return False
        on_gpu = point.configuration.gpu_percent > 0
        return not on_gpu or any(point.gpu_memory_bytes <= size for size in self.gpu_memory_bytes)

    def slowdown(self, configuration: Configuration) -> float:
        """By how much the neighbours slow an instance down when the server is full.

        The plan is made for a full server: an instance that is added later then breaks no promise made before.
        """
        others = 1 - configuration.cpu_cores / self.cpu_cores
        factor = interpolated(self.interference.cpu, others)
        if configuration.gpu_percent:
            factor *= interpolated(self.interference.gpu, 1 - configuration.gpu_percent / 100)
        return factor


class Placement(NamedTuple):
    """One instance to be: a function in a configuration on a server, on one of its GPUs or on none.

    A tuple, because a large plan makes tens of thousands, over and over.
    """

    function: str
    server: str
    gpu: str | None
    offer: Offer
    running: str | None = None
    """The id of the running instance that it is, where that is known already."""


class SolverStatus(StrEnum):
    """What a solver knows about its solution. The set is closed: a solver library's own words stay in its module."""

    OPTIMAL = "optimal"
    """No better one exists, for every goal in order."""
    FEASIBLE = "feasible"
    """It keeps the rules; better ones may exist."""
    FAILED = "failed"
    """There is none: time ran out first, or the library failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What a proof says everything is worth; it holds for other rates and numbers of servers, too.

    No plan costs less than its requests and instances are worth, less what the servers there are could be filled with
    beyond their cost.
    """

    request: Mapping[str, float]
    """Of one request a second of each function."""
    instance: Mapping[str, float]
    """Of one instance of each function, beside its requests."""
    most_rps: Mapping[str, float]
    """Up to which rate of each function they hold: where one instance carried the whole rate, it might carry more of a
    higher one. Above it they prove what they prove of this rate."""
    fill: tuple[float, ...]
    """The most that a server of each class can be filled with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """What a solver gives back."""

    status: SolverStatus
    placements: tuple[Placement, ...] = ()
    bound: float = 0.0
    """No plan that serves as much can have a lower objective."""
    prices: Prices | None = None
    """Where the solver has found some."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A problem in the order of ids, its classes of servers, and what each function may run as. Made by `task_of`."""

    problem: Problem
    functions: Mapping[str, FunctionDemand]
    """Those that want something (a rate, or instances) and have an offer, by id."""
    classes: tuple[ServerClass, ...]
    """Without servers that are being drained."""
    offers: Mapping[str, tuple[tuple[Offer, ...], ...]]
    """By function, for each class in order; empty tuples where nothing of it fits."""

    @property
    def wanted_rps(self) -> dict[str, float]:
        """The rates above zero of the functions that have offers."""
        return {id_: function.rate_rps for id_, function in self.functions.items() if function.rate_rps > 0}

    def weights(self) -> dict[str, float]:
        """What leaving a function unserved counts: its part of all rates, at least `LEAST_WEIGHT` of the largest."""
        wanted = self.wanted_rps
        least = LEAST_WEIGHT * max(wanted.values(), default=0.0)
        counted = {function: max(rate_rps, least) for function, rate_rps in wanted.items()}
        total = math.fsum(counted.values())
        return {function: count / total for function, count in counted.items()}

    def columns(self) -> int:
        """The size of the exact model: offers by servers on which they may stand, and by their GPUs."""
        return sum(
            len(kind.servers) * (len(kind.gpu_memory_bytes) if offer.configuration.gpu_percent else 1)
            for function in self.functions
            for kind, offers in zip(self.classes, self.offers[function], strict=True)
            for offer in offers
        )

    def alike(self, classes: tuple[ServerClass, ...]) -> bool:
        """Whether the classes are the same ones, whatever servers they have."""
        return [kind.size for kind in self.classes] == [kind.size for kind in classes]

    def class_of(self) -> dict[str, int]:
        """The index of each server's class; draining servers have none."""
        return {server.id: index for index, kind in enumerate(self.classes) for server in kind.servers}


def task_of(problem: Problem, before: Task | None = None) -> Task:
    """Order everything by id and find each function's offers: within its target, and for some class of servers.

    Args:
        problem: in any order.
        before: an earlier task; offers of functions and classes that are as they were are taken over.
    """
    ordered = replace(
        problem,
        servers=tuple(sorted(problem.servers, key=lambda server: server.id)),
        functions=tuple(sorted(problem.functions, key=lambda function: function.id)),
        running=tuple(sorted(problem.running, key=lambda running: running.id)),
    )
    classes = _classes(ordered)
    known = _still_true(before, ordered.functions, classes)
    offers = {f.id: known[f.id] if f.id in known else _offers(f, classes) for f in ordered.functions}
    functions = {
        function.id: function
        for function in ordered.functions
        if (function.rate_rps > 0 or function.instances_min) and any(offers[function.id])
    }
    return Task(problem=ordered, functions=functions, classes=classes, offers=offers)


def _still_true(
    before: Task | None, functions: tuple[FunctionDemand, ...], classes: tuple[ServerClass, ...]
) -> dict[str, tuple[tuple[Offer, ...], ...]]:
    """Offers of an earlier task, of the functions that are as they were but for what they want."""
    if before is None or not before.alike(classes):
        return {}
    old = {function.id: function for function in before.problem.functions}
    return {f.id: before.offers[f.id] for f in functions if f.id in old and same_speed(f, old[f.id])}


def same_speed(one: FunctionDemand, other: FunctionDemand) -> bool:
    """Whether two demands differ in nothing but their rate and the number of instances."""
    asked = replace(other, rate_rps=one.rate_rps, instances_min=one.instances_min, instances_max=one.instances_max)
    return one is other or one == asked


def interference_of(problem: Problem, server: Server) -> Interference:
    """The table that holds on a server."""
    return problem.interference if server.interference is None else server.interference


def interpolated(table: tuple[tuple[float, float], ...], share: float) -> float:
    """The factor of an interference table at a share; 1 for an empty table."""
    if not table:
        return 1.0
    place = bisect_right(table, (share, math.inf))
    if place == 0 or place == len(table):
        return table[max(0, place - 1)][1]
    (low, below), (high, above) = table[place - 1], table[place]
    return below + (above - below) * (share - low) / (high - low)


def _classes(problem: Problem) -> tuple[ServerClass, ...]:
    """Servers that can be filled alike. Memory that instances on all cores could not use makes no difference."""
    points = [point for function in problem.functions for point in function.profile]
    of_a_core_bytes = max((point.memory_bytes / point.configuration.cpu_cores for point in points), default=0.0)
    groups: defaultdict[tuple[object, ...], list[Server]] = defaultdict(list)
    for server in problem.servers:
        if not server.draining:
            gpus = tuple(sorted(server.gpus, key=lambda gpu: (gpu.memory_bytes, gpu.id)))
            memory_bytes = min(server.memory_bytes, _usable_bytes(server, of_a_core_bytes))
            size = (server.cpu_cores, memory_bytes, tuple(gpu.memory_bytes for gpu in gpus))
            alike = (*size, interference_of(problem, server))
            groups[alike].append(server if gpus == server.gpus else replace(server, gpus=gpus))
    return tuple(
        ServerClass(
            cpu_cores=servers[0].cpu_cores,
            memory_bytes=min(servers[0].memory_bytes, _usable_bytes(servers[0], of_a_core_bytes)),
            gpu_memory_bytes=tuple(gpu.memory_bytes for gpu in servers[0].gpus),
            interference=interference_of(problem, servers[0]),
            servers=tuple(servers),
        )
        for _, servers in sorted(groups.items(), key=lambda group: group[1][0].id)
    )


def _usable_bytes(server: Server, of_a_core_bytes: float) -> int:
    """Memory that instances on all cores could use at most, rounded up."""
    return math.ceil(of_a_core_bytes * server.cpu_cores * (1 + 1e-12)) + 1


def _offers(function: FunctionDemand, classes: tuple[ServerClass, ...]) -> tuple[tuple[Offer, ...], ...]:
    """One value for each offer, also where it stands on several classes: only interference makes them differ."""
    plain: tuple[Offer, ...] | None = None
    found = []
    for kind in classes:
        if kind.interference == Interference():
            plain = plain or tuple(Offer(point=p, window=w) for p, w in feasible_points(function))
            here = plain
        else:
            here = tuple(Offer(point=p, window=w) for p, w in feasible_points(function, kind.slowdown))
        found.append(tuple(offer for offer in here if kind.fits(offer.point)))
    return tuple(found)


def server_cost(server: Server, beta: float) -> float:
    """What using a server counts in the objective: `beta * cpu_cores + 100 * number of GPUs`."""
    return beta * server.cpu_cores + 100 * len(server.gpus)


def capacity_rps(placements: Iterable[Placement]) -> dict[str, float]:
    """R_max of each placed function."""
    rates: defaultdict[str, list[float]] = defaultdict(list)
    for placement in placements:
        rates[placement.function].append(placement.offer.window.up_rps)
    return {function: math.fsum(up_rps) for function, up_rps in rates.items()}


def counts(placements: Iterable[Placement]) -> defaultdict[str, int]:
    """The number of instances of each function."""
    number: defaultdict[str, int] = defaultdict(int)
    for placement in placements:
        number[placement.function] += 1
    return number


def unserved_rps(task: Task, placements: Iterable[Placement]) -> dict[str, float]:
    """What the placements leave unserved of each wanted rate; functions that are served (all but) fully are absent."""
    capacity = capacity_rps(placements)
    missing = {function: rate - capacity.get(function, 0.0) for function, rate in task.wanted_rps.items()}
    return {function: rate for function, rate in missing.items() if rate > NEGLIGIBLE * task.wanted_rps[function]}


def missing_instances(task: Task, placements: Iterable[Placement]) -> dict[str, int]:
    """How many instances functions lack of their `instances_min`; functions that lack none are absent."""
    number = counts(placements)
    lacking = {id_: function.instances_min - number[id_] for id_, function in task.functions.items()}
    return {id_: lack for id_, lack in lacking.items() if lack > 0}


def lack(task: Task, placements: Iterable[Placement]) -> float:
    """What the first goal counts: unserved rates by weight, 1 for all of them, and 1 for each missing instance."""
    placements, weights, wanted = tuple(placements), task.weights(), task.wanted_rps
    unserved = unserved_rps(task, placements)
    rates = math.fsum(weights[function] * rate / wanted[function] for function, rate in unserved.items())
    return rates + sum(missing_instances(task, placements).values())


def objective(task: Task, placements: Iterable[Placement]) -> float:
    """Sum of the costs of the servers in use (paper Eq. 2)."""
    beta = task.problem.beta
    used = {placement.server for placement in placements}
    return math.fsum(kind.cost(beta) for kind in task.classes for server in kind.servers if server.id in used)


def allocated(task: Task, placements: Iterable[Placement]) -> float:
    """What the instances hold, in GPU-percent units."""
    beta = task.problem.beta
    return math.fsum(placement.offer.weight(beta) for placement in placements)


def objective_bound(task: Task, unserved: Mapping[str, float]) -> float:
    """A proven lower bound on the objective of any plan that leaves no more unserved in total.

    An instance takes `beta * c + g` of a server that costs what it has in the same units, so the objective is at
    least the sum of the wanted rates, each at its function's cheapest weight per request. Where all servers cost the
    same, it is a whole number of them.
    """
    beta, wanted = task.problem.beta, task.wanted_rps
    cheapest = {
        function: min(offer.weight(beta) / offer.window.up_rps for here in task.offers[function] for offer in here)
        for function in wanted
    }
    served_rps = math.fsum(wanted.values()) - math.fsum(unserved.values())
    bound = 0.0
    for function in sorted(cheapest, key=lambda function: (cheapest[function], function)):
        part_rps = min(served_rps, wanted[function] * (1 - NEGLIGIBLE))
        if part_rps > 0:
            bound += part_rps * cheapest[function]
            served_rps -= part_rps
    return whole_servers(task, bound)


def whole_servers(task: Task, bound: float) -> float:
    """A bound on the objective, raised to one server at least, and to a whole number where all cost the same."""
    costs = {kind.cost(task.problem.beta) for kind in task.classes}
    if bound <= 0 or not costs:
        return bound
    least = min(costs)
    if len(costs) > 1 or least <= 0:
        return max(bound, least)
    # A plan may leave a millionth unserved, and a proof is a sum of floats.
    return max(bound, least * max(1, math.ceil(bound / least * (1 - NEGLIGIBLE) - 1e-6)))


def trimmed(task: Task, placements: Iterable[Placement]) -> tuple[Placement, ...]:
    """The placements without those that no wanted rate and no minimum needs, the heaviest dropped first.

    Removing one never breaks a rule or a goal.
    """
    beta, placements = task.problem.beta, tuple(placements)
    spare = {function: rate - task.functions[function].rate_rps for function, rate in capacity_rps(placements).items()}
    number = counts(placements)
    kept = []
    for placement in sorted(placements, key=lambda p: -p.offer.weight(beta)):
        function, up_rps = placement.function, placement.offer.window.up_rps
        if up_rps <= spare[function] and number[function] > task.functions[function].instances_min:
            spare[function] -= up_rps
            number[function] -= 1
        else:
            kept.append(placement)
    return tuple(kept)
