"""From a plan and what runs to actions. Pure: a decision is a value, only backends act."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from infless_core.model import Configuration, Plan, PlanAction


@dataclass(frozen=True, slots=True, kw_only=True)
class Actual:
    """An instance that is starting or ready, of its function's newest version."""

    id: str
    function: str
    configuration: Configuration


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How many instances a function wants whatever the plan says, and what an unplanned one gets."""

    least: int
    most: int
    spare: Configuration


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Start a new instance."""

    function: str
    configuration: Configuration
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Resize:
    """Change the batch size of a running instance in place."""

    id: str
    configuration: Configuration


@dataclass(frozen=True, slots=True, kw_only=True)
class Replace:
    """Start an instance with another number of cores; drain the old one once the new one is ready."""

    id: str
    function: str
    configuration: Configuration
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Send nothing more to an instance and end it when it has answered everything."""

    id: str
    reason: str


Action = Start | Resize | Replace | Drain


def reconcile(plan: Plan, bounds: Mapping[str, Bounds], actual: Iterable[Actual]) -> tuple[Action, ...]:
    """What to do so that what runs becomes what is planned.

    Instances outside the plan are spares: they hold no planned cores, answer what nobody planned for, and stay while
    a function wants a minimum. Instances of functions without bounds are drained.

    Args:
        plan: passed the independent check.
        bounds: by function key; functions that exist.
        actual: what runs, in any order.

    Returns:
        Starts first, so that nothing is drained before its replacement is on its way.
    """
    running = {instance.id: instance for instance in sorted(actual, key=lambda instance: instance.id)}
    planned = [instance for instance in plan.instances if instance.function in bounds]
    count = dict.fromkeys(bounds, 0)
    starts: list[Action] = []
    others: list[Action] = []
    used: set[str] = set()
    for wanted in planned:
        limit = bounds[wanted.function].most
        if wanted.action is not PlanAction.START and wanted.id in running:
            used.add(wanted.id)
            count[wanted.function] += 1
            others += _adapt(running[wanted.id], wanted.configuration)
        elif count[wanted.function] < limit:
            count[wanted.function] += 1
            reason = f"planned for {wanted.rate_rps:.0f} of at most {wanted.rate_up_rps:.0f} requests/s"
            starts.append(Start(function=wanted.function, configuration=wanted.configuration, reason=reason))
    for id_, instance in running.items():
        if id_ in used:
            continue
        bound = bounds.get(instance.function)
        if bound is not None and count[instance.function] < bound.least:
            count[instance.function] += 1
        else:
            others.append(Drain(id=id_, reason="not in the plan" if bound else "its function was removed"))
    for function, bound in sorted(bounds.items()):
        spare = Start(function=function, configuration=bound.spare, reason=f"keeps the least of {bound.least}")
        starts += [spare] * (bound.least - count[function])
    return (*starts, *others)


def _adapt(instance: Actual, wanted: Configuration) -> list[Action]:
    have = instance.configuration
    if have == wanted:
        return []
    if (have.cpu_cores, have.gpu_percent) == (wanted.cpu_cores, wanted.gpu_percent):
        return [Resize(id=instance.id, configuration=wanted)]
    reason = f"{have} becomes {wanted}"
    return [Replace(id=instance.id, function=instance.function, configuration=wanted, reason=reason)]
