"""What solvers work on and give back: the offers of each function, and instances without identity yet.

Everything is in the order of ids, so that no decision depends on the order of the input.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from infless_core.model import Configuration, Problem, ProfilePoint, Server
from infless_scheduler.rates import RateWindow, feasible_points

NEGLIGIBLE = 1e-6
"""Share of a function's rate that is not worth an instance, nor a solver's tolerance: one request in a million."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One configuration that serves a function within its target, and the rates it takes."""

    point: ProfilePoint
    window: RateWindow

    @property
    def configuration(self) -> Configuration:
        """Batch, cores and GPU share."""
        return self.point.configuration

    def weight(self, beta: float) -> float:
        """What it takes of a cluster, in GPU-percent units: `beta * cpu_cores + gpu_percent`."""
        return beta * self.configuration.cpu_cores + self.configuration.gpu_percent

    def threshold_rps(self, alpha: float) -> float:
        """Its part of the scale-in threshold."""
        return alpha * self.window.up_rps + (1 - alpha) * self.window.low_rps

    def fits(self, server: Server) -> bool:
        """Whether the server could host it if it were empty."""
        if self.configuration.cpu_cores > server.cpu_cores or self.point.memory_bytes > server.memory_bytes:
            return False
        on_gpu = self.configuration.gpu_percent > 0
        return not on_gpu or any(self.point.gpu_memory_bytes <= gpu.memory_bytes for gpu in server.gpus)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """One instance to be: a function in a configuration on a server, on one of its GPUs or on none."""

    function: str
    server: str
    gpu: str | None
    offer: Offer


class SolverStatus(StrEnum):
    """What a solver knows about its solution. The set is closed: a solver library's own words stay in its module."""

    OPTIMAL = "optimal"
    """No better one exists, for every goal in order."""
    FEASIBLE = "feasible"
    """It keeps the rules; better ones may exist."""
    FAILED = "failed"
    """There is none: time ran out first, or the library failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """What a solver gives back."""

    status: SolverStatus
    placements: tuple[Placement, ...] = ()
    bound: float = 0.0
    """No plan that serves as much can have a lower objective."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A problem in the order of ids, and for each function the offers it has. Made by `task_of`."""

    problem: Problem
    offers: Mapping[str, tuple[Offer, ...]]
    wanted_rps: Mapping[str, float]
    """The rates above zero of the functions that have offers."""


def task_of(problem: Problem) -> Task:
    """Order everything by id and find each function's offers: within its target, and for some server of the cluster."""
    ordered = replace(
        problem,
        servers=tuple(
            replace(server, gpus=tuple(sorted(server.gpus, key=lambda gpu: gpu.id)))
            for server in sorted(problem.servers, key=lambda server: server.id)
        ),
        functions=tuple(sorted(problem.functions, key=lambda function: function.id)),
        running=tuple(sorted(problem.running, key=lambda running: running.id)),
    )
    offers = {
        function.id: tuple(
            offer
            for offer in (Offer(point=point, window=rates) for point, rates in feasible_points(function))
            if any(offer.fits(server) for server in ordered.servers)
        )
        for function in ordered.functions
    }
    wanted = {f.id: f.rate_rps for f in ordered.functions if f.rate_rps > 0 and offers[f.id]}
    return Task(problem=ordered, offers=offers, wanted_rps=wanted)


def server_cost(server: Server, beta: float) -> float:
    """What using a server counts in the objective: `beta * cpu_cores + 100 * number of GPUs`."""
    return beta * server.cpu_cores + 100 * len(server.gpus)


def capacity_rps(placements: Iterable[Placement]) -> dict[str, float]:
    """R_max of each placed function."""
    rates: defaultdict[str, list[float]] = defaultdict(list)
    for placement in placements:
        rates[placement.function].append(placement.offer.window.up_rps)
    return {function: math.fsum(up_rps) for function, up_rps in rates.items()}


def unserved_rps(task: Task, placements: Iterable[Placement]) -> dict[str, float]:
    """What the placements leave unserved of each wanted rate; functions that are served (all but) fully are absent."""
    capacity = capacity_rps(placements)
    missing = {function: rate - capacity.get(function, 0.0) for function, rate in task.wanted_rps.items()}
    return {function: rate for function, rate in missing.items() if rate > NEGLIGIBLE * task.wanted_rps[function]}


def objective(task: Task, placements: Iterable[Placement]) -> float:
    """Sum of the costs of the servers in use (paper Eq. 2)."""
    used = {placement.server for placement in placements}
    return math.fsum(server_cost(server, task.problem.beta) for server in task.problem.servers if server.id in used)


def objective_bound(task: Task, unserved: Mapping[str, float]) -> float:
    """A proven lower bound on the objective of any plan that leaves no more unserved in total.

    An instance takes `beta * c + g` of a server that costs what it has in the same units, so the objective is at
    least the sum of the wanted rates, each at its function's cheapest weight per request. Where all servers cost the
    same, it is a whole number of them.
    """
    beta = task.problem.beta
    cheapest = {
        function: min(offer.weight(beta) / offer.window.up_rps for offer in task.offers[function])
        for function in task.wanted_rps
    }
    served_rps = math.fsum(task.wanted_rps.values()) - math.fsum(unserved.values())
    bound = 0.0
    for function in sorted(cheapest, key=lambda function: (cheapest[function], function)):
        part_rps = min(served_rps, task.wanted_rps[function] * (1 - NEGLIGIBLE))
        if part_rps > 0:
            bound += part_rps * cheapest[function]
            served_rps -= part_rps
    costs = {server_cost(server, beta) for server in task.problem.servers}
    if bound > 0 and len(costs) == 1:
        cost = costs.pop()
        bound = cost * math.ceil(bound / cost - 1e-9)
    return bound


def trimmed(task: Task, placements: Iterable[Placement]) -> tuple[Placement, ...]:
    """The placements without those that no wanted rate needs, the heaviest dropped first.

    Solvers stopped by their time limit may hold some; removing one never breaks a rule or a goal.
    """
    beta = task.problem.beta
    placements = tuple(placements)
    spare = {function: rate - task.wanted_rps[function] for function, rate in capacity_rps(placements).items()}
    kept = []
    for placement in sorted(placements, key=lambda p: -p.offer.weight(beta)):
        if placement.offer.window.up_rps <= spare[placement.function]:
            spare[placement.function] -= placement.offer.window.up_rps
        else:
            kept.append(placement)
    return tuple(kept)
