"""The independent proof that a plan keeps the rules. It shares no code with what makes plans: only the words of core.

What it does not prove: that the plan is a good one (see its bound), and that its threshold (paper Eq. 7) is met
wherever some combination of configurations would meet it, which takes a search and is the solvers' goal.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from importlib import resources
from typing import Any

from infless_core.errors import PlanRejected
from infless_core.labels import GpuWish
from infless_core.model import (
    Configuration,
    FunctionDemand,
    Interference,
    Plan,
    PlanAction,
    PlannedInstance,
    PlanStatus,
    Problem,
    ProfilePoint,
    Server,
)

_FLOOR = 0.001
"""The least load that the planner reckons with."""
_RELATIVE = 1e-6
"""One request in a million: above what sums of floats lose, below what anyone can measure."""


def check(problem: Problem, plan: Plan) -> None:
    """Prove every rule of the plan file's contract, or refuse.

    Raises:
        PlanRejected: with every rule that is broken and where.
    """
    facts = _facts(problem, plan)
    faults = [fault for rule in RULES for fault in rule(facts)]
    if faults:
        raise PlanRejected(tuple(faults))


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """A problem and a plan for it, with what the rules look up."""

    problem: Problem
    plan: Plan
    functions: dict[str, FunctionDemand]
    servers: dict[str, Server]
    points: list[ProfilePoint | None]
    """Of each instance of the plan, in their order, the point of its function's profile."""
    on_server: dict[str, list[tuple[PlannedInstance, ProfilePoint | None]]]
    of_function: dict[str, list[PlannedInstance]]


def _facts(problem: Problem, plan: Plan) -> Facts:
    # Keys of plain numbers: configurations are hashed far more slowly, and there are thousands.
    profiled = {
        (f.id, c.batch, c.cpu_cores, c.gpu_percent): point
        for f in problem.functions
        for point in f.profile
        for c in (point.configuration,)
    }
    points = []
    for instance in plan.instances:
        c = instance.configuration
        points.append(profiled.get((instance.function, c.batch, c.cpu_cores, c.gpu_percent)))
    on_server: defaultdict[str, list[tuple[PlannedInstance, ProfilePoint | None]]] = defaultdict(list)
    of_function: defaultdict[str, list[PlannedInstance]] = defaultdict(list)
    for instance, point in zip(plan.instances, points, strict=True):
        on_server[instance.server].append((instance, point))
        of_function[instance.function].append(instance)
    return Facts(
        problem=problem,
        plan=plan,
        functions={function.id: function for function in problem.functions},
        servers={server.id: server for server in problem.servers},
        points=points,
        on_server=dict(on_server),
        of_function=dict(of_function),
    )


def _differs(one: float, other: float) -> bool:
    return not abs(one - other) <= _RELATIVE * max(1e-3, abs(one), abs(other))


def references(facts: Facts) -> Iterator[str]:
    """Every id names something that exists, and no instance's id is used twice."""
    seen: set[str] = set()
    gpus = {(server.id, gpu.id) for server in facts.problem.servers for gpu in server.gpus}
    for instance in facts.plan.instances:
        if instance.id in seen:
            yield f"instance {instance.id}: its id is there twice"
        seen.add(instance.id)
        if instance.function not in facts.functions:
            yield f"instance {instance.id}: there is no function {instance.function}"
        server = facts.servers.get(instance.server)
        if server is None:
            yield f"instance {instance.id}: there is no server {instance.server}"
        elif instance.gpu is not None and (server.id, instance.gpu) not in gpus:
            yield f"instance {instance.id}: server {server.id} has no GPU {instance.gpu}"
    for unserved in facts.plan.unserved:
        if unserved.function not in facts.functions:
            yield f"unserved: there is no function {unserved.function}"


def configurations(facts: Facts) -> Iterator[str]:
    """Each instance has a profiled configuration within its function's batch limit, and a GPU iff it uses one."""
    for instance, point in zip(facts.plan.instances, facts.points, strict=True):
        given = instance.configuration
        function = facts.functions.get(instance.function)
        if (instance.gpu is not None) != (given.gpu_percent > 0):
            yield f"instance {instance.id}: {given} on GPU {instance.gpu}; a GPU is given iff its percent is above 0"
        if function is not None and point is None:
            yield f"instance {instance.id}: {given} is not in the profile of {function.id}"
        if function is not None and given.batch > function.max_batch:
            yield f"instance {instance.id}: batch {given.batch} is above {function.max_batch}"


def wishes(facts: Facts) -> Iterator[str]:
    """GPUs only and always where functions say so, their numbers of instances kept, nothing on servers that drain."""
    for function in facts.problem.functions:
        own = facts.of_function.get(function.id, [])
        on_gpu = sum(instance.gpu is not None for instance in own)
        if function.gpu is GpuWish.NEVER and on_gpu:
            yield f"function {function.id}: {on_gpu} instances have a GPU, it must not have one"
        if function.gpu is GpuWish.REQUIRE and on_gpu < len(own):
            yield f"function {function.id}: {len(own) - on_gpu} instances have no GPU, it requires one"
        if function.instances_max is not None and len(own) > function.instances_max:
            yield f"function {function.id}: {len(own)} instances, at most {function.instances_max} are allowed"
        told = any(unserved.function == function.id for unserved in facts.plan.unserved)
        if len(own) < function.instances_min and not told:
            yield f"function {function.id}: {len(own)} instances, at least {function.instances_min} are wanted"
    for server in facts.problem.servers:
        if server.draining and server.id in facts.on_server:
            yield f"server {server.id}: it is being drained, {len(facts.on_server[server.id])} instances are on it"


def windows(facts: Facts) -> Iterator[str]:
    """Each instance meets its function's target, with the window the formula gives (a smaller one for percentiles)."""
    verdicts: dict[tuple[int, int, int, float, float], list[str]] = {}
    for instance, point in zip(facts.plan.instances, facts.points, strict=True):
        function = facts.functions.get(instance.function)
        server = facts.servers.get(instance.server)
        if function is None or point is None or server is None:
            continue
        table = facts.problem.interference if server.interference is None else server.interference
        # A point is its function's alone, and lives as long as the facts: its identity is a quick key.
        key = (id(point), id(table), server.cpu_cores, instance.rate_up_rps, instance.rate_low_rps)
        verdict = verdicts.get(key)
        if verdict is None:
            slowdown = _slowdown(table, server, point.configuration)
            verdict = verdicts[key] = list(_window_faults(function, point, slowdown, instance))
        for fault in verdict:
            yield f"instance {instance.id}: {fault}"
        if not -_RELATIVE <= instance.rate_rps <= instance.rate_up_rps * (1 + _RELATIVE):
            yield f"instance {instance.id}: rate {instance.rate_rps} is outside [0, {instance.rate_up_rps}]"


def _window_faults(
    function: FunctionDemand, point: ProfilePoint, slowdown: float, instance: PlannedInstance
) -> Iterator[str]:
    formula = _formula(function, point, slowdown)
    if isinstance(formula, str):
        yield formula
        return
    up_rps, low_rps = formula
    if instance.rate_up_rps > up_rps * (1 + _RELATIVE):
        yield f"rate_up {instance.rate_up_rps} is above the formula's {up_rps}"
    if function.latency_percentile is None:
        if _differs(instance.rate_up_rps, up_rps):
            yield f"rate_up {instance.rate_up_rps} is not the formula's {up_rps}"
    else:
        exec_s = point.exec_s * slowdown
        most_rps = _bearable(function, point.configuration.batch, exec_s) * point.configuration.batch / exec_s
        if instance.rate_up_rps > most_rps * (1 + _RELATIVE):
            yield f"rate_up {instance.rate_up_rps} is above {most_rps}, too much for percentile {_percentile(function)}"
    if _differs(instance.rate_low_rps, min(low_rps, instance.rate_up_rps)):
        yield f"rate_low {instance.rate_low_rps} is not the formula's {low_rps}"


def _percentile(function: FunctionDemand) -> float:
    """The share of requests that has to be in time, 100 for all."""
    return 100.0 if function.latency_percentile is None else function.latency_percentile


def _bearable(function: FunctionDemand, batch: int, exec_s: float) -> float:
    """A load that is too much by any reading of the table: the best of its points that are at least as easy."""
    table = _loads()
    kind, beyond = ("ratios_one", 1) if batch == 1 else ("ratios", 2)
    ratio = function.latency_target_s / exec_s
    easier = next((i for i, other in enumerate(table[kind]) if other >= ratio * (1 - _RELATIVE)), None)
    below = [i for i, other in enumerate(table["percentiles"]) if other <= _percentile(function)]
    if easier is None or not below or ratio < beyond * (1 - _RELATIVE):
        return 1.0
    cv = max(i for i, other in enumerate(table["cvs"]) if other <= max(1.0, function.arrival_cv))
    sizes = sorted(int(size) for size in table["loads"])
    around = {max(s for s in sizes if s <= batch), next((s for s in sizes if s >= batch), sizes[-1])}
    found = [sheet[cv][easier][below[-1]] for size in around for sheet in table["loads"][str(size)]]
    return float(max(_FLOOR, *found)) * (1 + 1e-3)


@cache
def _loads() -> dict[str, Any]:
    """The simulated loads, as the file has them."""
    read: dict[str, Any] = json.loads((resources.files(__package__) / "bearable_load.json").read_text())
    return read


def _nine(value: Fraction) -> Fraction:
    """To nine digits after the point: 1/0.09090909090909091 is eleven, as whoever wrote 1/11 meant."""
    return Fraction(round(value * 10**9), 10**9)


def _formula(function: FunctionDemand, point: ProfilePoint, slowdown: float) -> tuple[float, float] | str:
    """The window: `floor(1/t) * b` and `ceil(1/(T - t)) * b`, or a sentence where t is too long for the target.

    Without rounding when 1/t is below 1; no lower end for b = 1.
    """
    batch = point.configuration.batch
    exec_s = Fraction(repr(float(point.exec_s * slowdown)))
    target_s = Fraction(repr(float(function.latency_target_s)))
    if _nine(exec_s * (1 if batch == 1 else 2) / target_s) > 1:
        return f"{float(exec_s)} s per batch cannot meet {function.latency_target_s} s"
    quotient = _nine(1 / exec_s)
    up_rps = math.floor(quotient) * batch if quotient >= 1 else batch / exec_s
    if batch == 1:
        return float(up_rps), 0.0
    filling = 1 / (target_s - exec_s)
    low_rps = math.ceil(_nine(filling)) * batch if quotient >= 1 else batch * filling
    return float(up_rps), float(low_rps)


def _slowdown(table: Interference, server: Server, given: Configuration) -> float:
    """What neighbours cost on a full server: by the share of the cores, and of the GPU, that others could hold."""
    factor = _at(table.cpu, 1 - given.cpu_cores / server.cpu_cores)
    return factor * _at(table.gpu, 1 - given.gpu_percent / 100) if given.gpu_percent else factor


def _at(table: tuple[tuple[float, float], ...], share: float) -> float:
    below = [pair for pair in table if pair[0] <= share]
    above = [pair for pair in table if pair[0] > share]
    if not below or not above:
        return (below[-1][1] if below else above[0][1]) if table else 1.0
    (low, at_low), (high, at_high) = below[-1], above[0]
    part = (share - low) / (high - low)
    return at_low * (1 - part) + at_high * part


def capacities(facts: Facts) -> Iterator[str]:
    """No server's cores or memory, no GPU's 100 percent or memory is exceeded."""
    for id_, here in facts.on_server.items():
        server = facts.servers.get(id_)
        if server is None:
            continue
        cores = sum(instance.configuration.cpu_cores for instance, _ in here)
        memory_bytes = sum(point.memory_bytes for _, point in here if point is not None)
        if cores > server.cpu_cores:
            yield f"server {server.id}: {cores} cpu cores given, it has {server.cpu_cores}"
        if memory_bytes > server.memory_bytes:
            yield f"server {server.id}: {memory_bytes} bytes of memory given, it has {server.memory_bytes}"
        for gpu in server.gpus:
            on_gpu = [(instance, point) for instance, point in here if instance.gpu == gpu.id]
            percent = sum(instance.configuration.gpu_percent for instance, _ in on_gpu)
            gpu_bytes = sum(point.gpu_memory_bytes for _, point in on_gpu if point is not None)
            if percent > 100:
                yield f"server {server.id}, GPU {gpu.id}: {percent} percent given"
            if gpu_bytes > gpu.memory_bytes:
                yield f"server {server.id}, GPU {gpu.id}: {gpu_bytes} bytes given, it has {gpu.memory_bytes}"


def rates(facts: Facts) -> Iterator[str]:
    """What instances receive and what is unserved add up to each function's rate."""
    for function in facts.problem.functions:
        own = facts.of_function.get(function.id, [])
        served = math.fsum(i.rate_rps for i in own)
        unserved = [u for u in facts.plan.unserved if u.function == function.id]
        if len(unserved) > 1:
            yield f"function {function.id}: it is unserved twice"
        if any(u.rate_rps < 0 or not u.reason for u in unserved):
            yield f"function {function.id}: its unserved rate must not be negative and must have a reason"
        if any(u.rate_rps == 0 for u in unserved) and len(own) >= function.instances_min:
            yield f"function {function.id}: it is called unserved but lacks nothing"
        total = served + math.fsum(u.rate_rps for u in unserved)
        if not abs(total - function.rate_rps) <= 2 * _RELATIVE * function.rate_rps:
            yield f"function {function.id}: {total} requests a second in the plan, {function.rate_rps} in the problem"


def actions(facts: Facts) -> Iterator[str]:
    """Kept and resized instances run where and as the plan says; the others are new; what is in neither list stops."""
    running = {r.id: r for r in facts.problem.running}
    for instance in facts.plan.instances:
        now = running.get(instance.id)
        if (now is None) != (instance.action is PlanAction.START):
            yield f"instance {instance.id}: action {instance.action} but it {'does not run' if now is None else 'runs'}"
        if now is None:
            continue
        if (now.function, now.server, now.gpu) != (instance.function, instance.server, instance.gpu):
            yield f"instance {instance.id}: it runs {now.function} on {now.server}, GPU {now.gpu}, and cannot move"
        same = now.configuration is instance.configuration or now.configuration == instance.configuration
        if same != (instance.action is PlanAction.KEEP):
            yield f"instance {instance.id}: action {instance.action}, {now.configuration} to {instance.configuration}"
    planned = {instance.id for instance in facts.plan.instances}
    if sorted(facts.plan.stop) != sorted(set(running) - planned):
        yield f"stop {sorted(facts.plan.stop)}: running and not planned are {sorted(set(running) - planned)}"


def totals(facts: Facts) -> Iterator[str]:
    """Objective, servers used, allocated, fragmentation and bound follow from the instances."""
    plan, beta = facts.plan, facts.problem.beta
    used = [server for id_, server in facts.servers.items() if id_ in facts.on_server]
    capacity = math.fsum(beta * s.cpu_cores + 100 * len(s.gpus) for s in used)
    given = [i.configuration for i in plan.instances]
    allocated = math.fsum(beta * c.cpu_cores + c.gpu_percent for c in given)
    expected = {
        "objective": (plan.objective, capacity),
        "servers_used": (plan.servers_used, len(used)),
        "allocated": (plan.allocated, allocated),
        "fragmentation": (plan.fragmentation, 1 - allocated / capacity if capacity else 0.0),
    }
    for name, (stated, computed) in expected.items():
        if _differs(stated, computed):
            yield f"{name} {stated}: the instances give {computed}"
    if not plan.bound <= plan.objective + _RELATIVE * max(1.0, plan.objective):
        yield f"bound {plan.bound} is above the objective {plan.objective}"


def status(facts: Facts) -> Iterator[str]:
    """A plan is infeasible exactly when it serves nothing though something is wanted."""
    plan = facts.plan
    if plan.status is PlanStatus.OPTIMAL and plan.bound < plan.objective * (1 - _RELATIVE) - _RELATIVE:
        yield f"status optimal, but only {plan.bound} of the objective {plan.objective} is proven"
    wanted = any(function.rate_rps > 0 or function.instances_min for function in facts.problem.functions)
    if (facts.plan.status is PlanStatus.INFEASIBLE) != (wanted and not facts.plan.instances):
        yield f"status {facts.plan.status} with {len(facts.plan.instances)} instances"


RULES: tuple[Callable[[Facts], Iterator[str]], ...] = (
    references, configurations, wishes, windows, capacities, rates, actions, totals, status,
)  # fmt: skip
"""Every rule; a rule skips what an earlier one already refuses."""
