"""From a plan and what runs to actions. Pure: a decision is a value, only backends act."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from infless_core.model import Configuration, Plan, PlanAction, PlannedInstance


@dataclass(frozen=True, slots=True, kw_only=True)
class Actual:
    """An instance that is starting or ready, of its function's newest version."""

    id: str
    function: str
    configuration: Configuration
    ready: bool = True
    replaces: str | None = None
    """The instance that will be drained as soon as this one is ready."""


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
    """Change the batch size or the cores of a running instance in place."""

    id: str
    configuration: Configuration


@dataclass(frozen=True, slots=True, kw_only=True)
class Replace:
    """Start an instance with another share of a GPU; drain the old one once the new one is ready.

    The share is fixed when a process first calls CUDA (`CUDA_MPS_ACTIVE_THREAD_PERCENTAGE`).
    """

    id: str
    function: str
    configuration: Configuration
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HandOver:
    """Drain an instance once another one, which is starting already, is ready."""

    id: str
    to: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Send nothing more to an instance and end it when it has answered everything."""

    id: str
    reason: str


Action = Start | Resize | Replace | HandOver | Drain


def reconcile(plan: Plan, bounds: Mapping[str, Bounds], actual: Iterable[Actual]) -> tuple[Action, ...]:
    """What to do so that what runs becomes what is planned.

    Instances outside the plan take the place of planned starts, where the GPU share is the same; else they are spares:
    they hold no planned cores, answer what nobody planned for, and stay while a function wants a minimum. Instances of
    functions without bounds are drained. Never more than `most` are kept or started, and the last ready instance goes
    only when one that is starting has become ready.

    Args:
        plan: passed the independent check.
        bounds: by function key; functions that exist.
        actual: what runs, in any order.

    Returns:
        Starts first, so that nothing is drained before its replacement is on its way.
    """
    running: dict[str, list[Actual]] = {function: [] for function in bounds}
    for instance in sorted(actual, key=lambda instance: instance.id):
        running.setdefault(instance.function, []).append(instance)
    planned: dict[str, list[PlannedInstance]] = {function: [] for function in bounds}
    for wanted in plan.instances:
        planned.setdefault(wanted.function, []).append(wanted)
    actions: list[Action] = []
    for function, here in sorted(running.items()):
        bound = bounds.get(function)
        if bound is None:
            actions += [Drain(id=instance.id, reason="its function was removed") for instance in here]
        else:
            actions += _reconcile_function(function, bound, planned[function], here)
    return tuple(sorted(actions, key=lambda action: not isinstance(action, Start | Replace)))


def _reconcile_function(
    function: str, bound: Bounds, planned: Sequence[PlannedInstance], running: Sequence[Actual]
) -> list[Action]:
    """The actions of one function: keep, start, fill up with spares, let go."""
    by_id = {instance.id: instance for instance in running}
    actions: list[Action] = []
    starts: list[Start] = []
    kept: list[Actual] = []
    new: list[PlannedInstance] = []
    for wanted in sorted(planned, key=lambda wanted: (-wanted.rate_up_rps, wanted.id)):
        instance = by_id.get(wanted.id)
        if instance is None or wanted.action is PlanAction.START:
            new.append(wanted)
        elif len(kept) < bound.most:
            kept.append(instance)
            actions += _adapt(instance, wanted.configuration)
    left = [instance for instance in sorted(running, key=lambda i: (not i.ready, i.id)) if instance not in kept]
    for wanted in new[: bound.most - len(kept)]:
        # One that the plan does not know was started since, or would go: it is there sooner than a new one.
        same = (i for i in left if i.configuration.gpu_percent == wanted.configuration.gpu_percent)
        instance = next(same, None)
        if instance is not None:
            left.remove(instance)
            kept.append(instance)
            actions += _adapt(instance, wanted.configuration)
        else:
            reason = f"planned for {wanted.rate_rps:.0f} of at most {wanted.rate_up_rps:.0f} requests/s"
            starts.append(Start(function=function, configuration=wanted.configuration, reason=reason))
    count = len(kept) + len(starts)
    spares = left[: max(0, bound.least - count)]
    missing = bound.least - count - len(spares)
    spare = Start(function=function, configuration=bound.spare, reason=f"keeps the least of {bound.least}")
    starts += [spare] * missing
    return [*actions, *_let_go(left[len(spares) :], kept + spares, starts), *starts]


def _let_go(leaving: Sequence[Actual], staying: Sequence[Actual], starts: list[Start]) -> list[Action]:
    """Drain what nobody wants, but never the last ready instance before another one is ready.

    A start that has to take the place of one is taken out of `starts`.
    """
    replaced = {instance.replaces for instance in staying}
    heirs = [instance for instance in staying if not instance.ready and instance.replaces is None]
    needs_heir = not any(instance.ready for instance in staying)
    actions: list[Action] = []
    for instance in leaving:
        if instance.id in replaced:
            continue  # it is drained when that one is ready
        if needs_heir and instance.ready and heirs:
            actions.append(HandOver(id=instance.id, to=heirs.pop(0).id))
        elif needs_heir and instance.ready and starts:
            new = starts.pop(0)
            actions.append(
                Replace(id=instance.id, function=new.function, configuration=new.configuration, reason=new.reason)
            )
        else:
            actions.append(Drain(id=instance.id, reason="not in the plan"))
    return actions


def _adapt(instance: Actual, wanted: Configuration) -> list[Action]:
    have = instance.configuration
    if have == wanted:
        return []
    if have.gpu_percent == wanted.gpu_percent:
        return [Resize(id=instance.id, configuration=wanted)]
    reason = f"{have} becomes {wanted}"
    return [Replace(id=instance.id, function=instance.function, configuration=wanted, reason=reason)]
