"""The independent proof that a plan keeps the rules. It shares no code with what makes plans: only the words of core.

What it does not prove: that the plan is a good one (see its bound), and that its threshold (paper Eq. 7) is met
wherever some combination of configurations would meet it, which takes a search and is the solvers' goal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction

from infless_core.errors import PlanRejected
from infless_core.model import (
    FunctionDemand,
    Plan,
    PlanAction,
    PlannedInstance,
    PlanStatus,
    Problem,
    ProfilePoint,
    Server,
)

_RELATIVE = 1e-6
"""One request in a million: above what sums of floats lose, below what anyone can measure."""


def check(problem: Problem, plan: Plan) -> None:
    """Prove every rule of the plan file's contract, or refuse.

    Raises:
        PlanRejected: with every rule that is broken and where.
    """
    faults = [fault for rule in RULES for fault in rule(problem, plan)]
    if faults:
        raise PlanRejected(tuple(faults))


def _differs(one: float, other: float) -> bool:
    return not abs(one - other) <= _RELATIVE * max(1e-3, abs(one), abs(other))


def _function(problem: Problem, id_: str) -> FunctionDemand | None:
    return next((function for function in problem.functions if function.id == id_), None)


def _server(problem: Problem, id_: str) -> Server | None:
    return next((server for server in problem.servers if server.id == id_), None)


def _point(problem: Problem, instance: PlannedInstance) -> ProfilePoint | None:
    function = _function(problem, instance.function)
    points = function.profile if function is not None else ()
    return next((point for point in points if point.configuration == instance.configuration), None)


def references(problem: Problem, plan: Plan) -> Iterator[str]:
    """Every id names something that exists, and no instance's id is used twice."""
    seen: set[str] = set()
    for instance in plan.instances:
        if instance.id in seen:
            yield f"instance {instance.id}: its id is there twice"
        seen.add(instance.id)
        if _function(problem, instance.function) is None:
            yield f"instance {instance.id}: there is no function {instance.function}"
        server = _server(problem, instance.server)
        if server is None:
            yield f"instance {instance.id}: there is no server {instance.server}"
        elif instance.gpu is not None and instance.gpu not in {gpu.id for gpu in server.gpus}:
            yield f"instance {instance.id}: server {server.id} has no GPU {instance.gpu}"
    for unserved in plan.unserved:
        if _function(problem, unserved.function) is None:
            yield f"unserved: there is no function {unserved.function}"


def configurations(problem: Problem, plan: Plan) -> Iterator[str]:
    """Each instance has a profiled configuration within its function's batch limit, and a GPU iff it uses one."""
    for instance in plan.instances:
        given = instance.configuration
        function = _function(problem, instance.function)
        if (instance.gpu is not None) != (given.gpu_percent > 0):
            yield f"instance {instance.id}: {given} on GPU {instance.gpu}; a GPU is given iff its percent is above 0"
        if function is not None and _point(problem, instance) is None:
            yield f"instance {instance.id}: {given} is not in the profile of {function.id}"
        if function is not None and given.batch > function.max_batch:
            yield f"instance {instance.id}: batch {given.batch} is above {function.max_batch}"


def windows(problem: Problem, plan: Plan) -> Iterator[str]:
    """Each instance meets its function's target, with the window the formula gives (a smaller one for percentiles)."""
    for instance in plan.instances:
        function, point = _function(problem, instance.function), _point(problem, instance)
        if function is None or point is None:
            continue
        batch = point.configuration.batch
        exec_s, target_s = Fraction(repr(float(point.exec_s))), Fraction(repr(float(function.latency_target_s)))
        if _nine(exec_s * (1 if batch == 1 else 2) / target_s) > 1:
            yield f"instance {instance.id}: {point.exec_s} s per batch cannot meet {function.latency_target_s} s"
            continue
        up_rps, low_rps = _formula(batch, exec_s, target_s)
        if instance.rate_up_rps > up_rps * (1 + _RELATIVE):
            yield f"instance {instance.id}: rate_up {instance.rate_up_rps} is above the formula's {up_rps}"
        if function.latency_percentile is None and _differs(instance.rate_up_rps, up_rps):
            yield f"instance {instance.id}: rate_up {instance.rate_up_rps} is not the formula's {up_rps}"
        if _differs(instance.rate_low_rps, min(low_rps, instance.rate_up_rps)):
            yield f"instance {instance.id}: rate_low {instance.rate_low_rps} is not the formula's {low_rps}"
        if not -_RELATIVE <= instance.rate_rps <= instance.rate_up_rps * (1 + _RELATIVE):
            yield f"instance {instance.id}: rate {instance.rate_rps} is outside [0, {instance.rate_up_rps}]"


def _nine(value: Fraction) -> Fraction:
    """To nine digits after the point: 1/0.09090909090909091 is eleven, as whoever wrote 1/11 meant."""
    return Fraction(round(value * 10**9), 10**9)


def _formula(batch: int, exec_s: Fraction, target_s: Fraction) -> tuple[float, float]:
    """`floor(1/t) * b` and `ceil(1/(T - t)) * b`, without rounding when 1/t is below 1; no lower end for b = 1."""
    quotient = _nine(1 / exec_s)
    up_rps = math.floor(quotient) * batch if quotient >= 1 else batch / exec_s
    if batch == 1:
        return float(up_rps), 0.0
    filling = 1 / (target_s - exec_s)
    low_rps = math.ceil(_nine(filling)) * batch if quotient >= 1 else batch * filling
    return float(up_rps), float(low_rps)


def capacities(problem: Problem, plan: Plan) -> Iterator[str]:
    """No server's cores or memory, no GPU's 100 percent or memory is exceeded."""
    for server in problem.servers:
        here = [instance for instance in plan.instances if instance.server == server.id]
        points = {instance.id: _point(problem, instance) for instance in here}
        cores = sum(instance.configuration.cpu_cores for instance in here)
        memory_bytes = sum(point.memory_bytes for point in points.values() if point)
        if cores > server.cpu_cores:
            yield f"server {server.id}: {cores} cpu cores given, it has {server.cpu_cores}"
        if memory_bytes > server.memory_bytes:
            yield f"server {server.id}: {memory_bytes} bytes of memory given, it has {server.memory_bytes}"
        for gpu in server.gpus:
            on_gpu = [instance for instance in here if instance.gpu == gpu.id]
            percent = sum(instance.configuration.gpu_percent for instance in on_gpu)
            gpu_bytes = sum(point.gpu_memory_bytes for i in on_gpu if (point := points[i.id]))
            if percent > 100:
                yield f"server {server.id}, GPU {gpu.id}: {percent} percent given"
            if gpu_bytes > gpu.memory_bytes:
                yield f"server {server.id}, GPU {gpu.id}: {gpu_bytes} bytes given, it has {gpu.memory_bytes}"


def rates(problem: Problem, plan: Plan) -> Iterator[str]:
    """What instances receive and what is unserved add up to each function's rate."""
    for function in problem.functions:
        served = math.fsum(i.rate_rps for i in plan.instances if i.function == function.id)
        unserved = [u for u in plan.unserved if u.function == function.id]
        if len(unserved) > 1:
            yield f"function {function.id}: it is unserved twice"
        if any(not u.rate_rps > 0 or not u.reason for u in unserved):
            yield f"function {function.id}: its unserved rate must be above 0 and have a reason"
        total = served + math.fsum(u.rate_rps for u in unserved)
        if not abs(total - function.rate_rps) <= 2 * _RELATIVE * function.rate_rps:
            yield f"function {function.id}: {total} requests a second in the plan, {function.rate_rps} in the problem"


def actions(problem: Problem, plan: Plan) -> Iterator[str]:
    """Kept and resized instances run where and as the plan says; the others are new; what is in neither list stops."""
    running = {r.id: r for r in problem.running}
    for instance in plan.instances:
        now = running.get(instance.id)
        if (now is None) != (instance.action is PlanAction.START):
            yield f"instance {instance.id}: action {instance.action} but it {'does not run' if now is None else 'runs'}"
        if now is None:
            continue
        if (now.function, now.server, now.gpu) != (instance.function, instance.server, instance.gpu):
            yield f"instance {instance.id}: it runs {now.function} on {now.server}, GPU {now.gpu}, and cannot move"
        if (now.configuration == instance.configuration) != (instance.action is PlanAction.KEEP):
            yield f"instance {instance.id}: action {instance.action}, {now.configuration} to {instance.configuration}"
    planned = {instance.id for instance in plan.instances}
    if sorted(plan.stop) != sorted(set(running) - planned):
        yield f"stop {sorted(plan.stop)}: running and not planned are {sorted(set(running) - planned)}"


def totals(problem: Problem, plan: Plan) -> Iterator[str]:
    """Objective, servers used, allocated, fragmentation and bound follow from the instances."""
    used = [s for s in problem.servers if any(i.server == s.id for i in plan.instances)]
    capacity = math.fsum(problem.beta * s.cpu_cores + 100 * len(s.gpus) for s in used)
    given = [i.configuration for i in plan.instances]
    allocated = math.fsum(problem.beta * c.cpu_cores + c.gpu_percent for c in given)
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


def status(problem: Problem, plan: Plan) -> Iterator[str]:
    """A plan is infeasible exactly when it serves nothing though something is wanted."""
    wanted = any(function.rate_rps > 0 for function in problem.functions)
    if (plan.status is PlanStatus.INFEASIBLE) != (wanted and not plan.instances):
        yield f"status {plan.status} with {len(plan.instances)} instances"


RULES: tuple[Callable[[Problem, Plan], Iterator[str]], ...] = (
    references, configurations, windows, capacities, rates, actions, totals, status,
)  # fmt: skip
"""Every rule; a rule skips what an earlier one already refuses."""
