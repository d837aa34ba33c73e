"""A plan explained: why each instance has its configuration and its server, and what would help what is unserved."""

from __future__ import annotations

from dataclasses import dataclass

from infless_core.model import Configuration, Plan, Problem
from infless_scheduler.explain_reasons import configuration_because, server_because
from infless_scheduler.explain_remedies import Remedy, remedies_for
from infless_scheduler.explain_scene import Group, Scene, Standing, scene_of, standings
from infless_scheduler.explain_trials import PlanAgain, Trials

PLANS_MAX = 60
"""So many plans a search for remedies may ask for in total."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedInstances:
    """Instances of one function in one configuration on servers of one kind: the reasons are the same for all."""

    function: str
    configuration: Configuration
    instances: tuple[str, ...]
    servers: tuple[str, ...]
    """Where they are, each server once."""
    rate_rps: float
    """Of all together."""
    rate_low_rps: float
    rate_up_rps: float
    """Each one's window."""
    configuration_because: str
    server_because: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedUnserved:
    """A function that is not served in full."""

    function: str
    rate_rps: float
    constraint: str
    """What binds, in the words of the plan."""
    remedies: tuple[Remedy, ...]
    in_vain: str = ""
    """Where there is no remedy: what was looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Reasons for every instance of a plan, and for all that is unserved."""

    instances: tuple[ExplainedInstances, ...]
    """By function, configuration and kind of servers; each instance of the plan is in exactly one entry."""
    unserved: tuple[ExplainedUnserved, ...]
    beta: float
    """What a core weighs, in percent of a GPU; what a configuration is worth is its rate for each unit of weight."""


def explain(problem: Problem, made: Plan, plan_again: PlanAgain, *, plans_max: int = PLANS_MAX) -> Explanation:
    """The reasons of a plan.

    Args:
        problem: what was planned.
        made: the plan for it.
        plan_again: plans a changed problem. Each remedy has been planned with it, and none is smaller than this
            planner can see: one that is quick and careless finds larger ones.
        plans_max: how often `plan_again` may be called. It is not called when everything is served.
    """
    scene = scene_of(problem, made)
    standing = standings(scene)
    return Explanation(
        instances=tuple(_explained(scene, group, standing[group.function.id]) for group in scene.groups),
        unserved=_unserved(problem, made, plan_again, plans_max) if made.unserved else (),
        beta=problem.beta,
    )


def _explained(scene: Scene, group: Group, standing: Standing) -> ExplainedInstances:
    return ExplainedInstances(
        function=group.function.id,
        configuration=group.offer.configuration,
        instances=tuple(instance.id for instance in group.instances),
        servers=tuple(dict.fromkeys(instance.server for instance in group.instances)),
        rate_rps=sum(instance.rate_rps for instance in group.instances),
        rate_low_rps=group.offer.window.low_rps,
        rate_up_rps=group.offer.window.up_rps,
        configuration_because=configuration_because(scene, group, standing),
        server_because=server_because(scene, group),
    )


def _unserved(problem: Problem, made: Plan, plan_again: PlanAgain, plans_max: int) -> tuple[ExplainedUnserved, ...]:
    """The largest lack first, as the number of plans is limited; the answer is in the order of the plan."""
    trials = Trials(problem, made, plan_again, plans_max)
    functions = {function.id: function for function in problem.functions}
    remedies: dict[str, tuple[Remedy, ...]] = {}
    in_vain: dict[str, str] = {}
    for unserved in sorted(made.unserved, key=lambda unserved: (-unserved.rate_rps, unserved.function)):
        remedies[unserved.function] = remedies_for(trials, functions[unserved.function])
        in_vain[unserved.function] = _in_vain(trials, plans_max) if not remedies[unserved.function] else ""
    return tuple(
        ExplainedUnserved(
            function=unserved.function,
            rate_rps=unserved.rate_rps,
            constraint=unserved.reason,
            remedies=remedies[unserved.function],
            in_vain=in_vain[unserved.function],
        )
        for unserved in made.unserved
    )


def _in_vain(trials: Trials, plans_max: int) -> str:
    if trials.plans_left <= 0:
        return f"not looked for any further: {plans_max} plans were tried"
    servers = f"up to {trials.servers_tried} more servers of a kind, " if trials.servers_tried else ""
    return (
        f"no single change was found to help; tried were {servers}longer latency targets at which more profiled"
        " configurations become usable, and what the function's other limits and wishes forbid"
    )
