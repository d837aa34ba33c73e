"""Why an instance has its configuration and its server: facts computed from the problem and the plan, as sentences.

A plan is the outcome of a search over all instances at once; what can be said of one of them is what stands against
each alternative in its place. That is what is said here, the alternatives with most requests for their weight first.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from infless_core.model import Configuration, FunctionDemand, PlanAction, PlannedInstance, ProfilePoint
from infless_core.units import format_duration
from infless_scheduler.explain_scene import Group, Room, Scene, Standing, changed, copies, lacking
from infless_scheduler.listing import abbreviated, number, printable, rate, span
from infless_scheduler.placement import NEGLIGIBLE, Offer, ServerClass
from infless_scheduler.rates import RateWindow, fixed_shares, gpu_allowed, least_target_s, window

_CLOSE = 1e-9
_RULED_OUT_SHOWN = 3
"""Constraints that are named for one configuration; each with the best one it rules out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Against:
    """What stands against a configuration in place of another."""

    constraint: str
    sentence: str


class _Alternative(NamedTuple):
    worth: float
    point: ProfilePoint
    against: _Against


def configuration_because(scene: Scene, group: Group, standing: Standing) -> str:
    """What the configuration is worth, which better ones there are, and what rules them out."""
    usable = scene.task.offers[group.function.id][group.kind]
    beta = scene.task.problem.beta
    own = _worth(group.offer.window, group.offer.weight(beta))
    better = list(_better(scene, group, standing, own * (1 + _CLOSE)))
    kept = {offer.configuration for offer in usable}
    parts = [_head(own, usable, beta, group, beaten=any(other.point.configuration in kept for other in better))]
    parts += _ruled_out(better)
    parts += _narrowed(scene, group)
    if standing.instances <= group.function.instances_min:
        parts.append(f"at least {group.function.instances_min} instances are asked for")
    return "; ".join(parts)


def _worth(rates: RateWindow, weight: float) -> float:
    return rates.up_rps / weight if weight > 0 else math.inf


def _head(own: float, usable: Sequence[Offer], beta: float, group: Group, *, beaten: bool) -> str:
    target = format_duration(group.function.latency_target_s)
    others = [offer for offer in usable if offer.configuration != group.offer.configuration]
    if not others:
        return f"the only configuration that meets {target} on these servers"
    if beaten:
        return f"worth {number(own)}"
    worths = {offer.configuration: _worth(offer.window, offer.weight(beta)) for offer in others}
    then = max(sorted(worths), key=lambda configuration: worths[configuration])
    return f"worth {number(own)}, the most of {len(usable)} that meet {target} (then {then}: {number(worths[then])})"


def _ruled_out(better: Sequence[_Alternative]) -> Iterator[str]:
    by_constraint: defaultdict[str, list[_Alternative]] = defaultdict(list)
    for other in sorted(better, key=lambda other: (-other.worth, other.point.configuration)):
        by_constraint[other.against.constraint].append(other)
    for constraint in list(by_constraint)[:_RULED_OUT_SHOWN]:
        best, *more = by_constraint[constraint]
        also = f" (and {len(more)} more)" if more else ""
        yield f"{best.point.configuration} is worth {number(best.worth)} but {best.against.sentence}{also}"


def _better(scene: Scene, group: Group, standing: Standing, own: float) -> Iterator[_Alternative]:
    """Every profiled configuration with more requests for its weight, and what stands against it in place of one."""
    kind, function = scene.task.classes[group.kind], group.function
    for point in function.profile:
        exec_s = point.exec_s * kind.slowdown(point.configuration)
        offer = Offer(point=point, window=_window_when_allowed(function, point, exec_s))
        worth = _worth(offer.window, offer.weight(scene.task.problem.beta))
        if worth <= own:
            continue
        against = _barred(function, point, exec_s, kind)
        if against is None:
            needed = max(1, math.ceil(standing.residue_rps(group) / offer.window.up_rps * (1 - NEGLIGIBLE)))
            swap = _Swap(scene=scene, group=group, standing=standing, offer=offer, number=needed)
            against = _unfilled(swap) or _no_room(swap) or _no_gain(swap)
        yield _Alternative(worth, point, against)


def _window_when_allowed(function: FunctionDemand, point: ProfilePoint, exec_s: float) -> RateWindow:
    """Its window; for one that is too slow, that of the nearest target it could meet."""
    nearest_s = least_target_s(point.configuration.batch, exec_s)
    rates = window(
        point.configuration,
        exec_s,
        max(function.latency_target_s, nearest_s),
        percentile=function.latency_percentile,
        arrival_cv=function.arrival_cv,
        fixed_share=fixed_shares(function.profile)[point.configuration],
    )
    if rates is None:
        raise LookupError(f"{point.configuration} has no window at {nearest_s} s")
    return rates


def barred_by(function: FunctionDemand, configuration: Configuration) -> str | None:
    """The wish of a function that forbids a configuration."""
    if configuration.batch > function.max_batch:
        return f"its batch is above the limit of {function.max_batch}"
    if not gpu_allowed(configuration, function.gpu):
        return f"the function says gpu: {function.gpu}"
    return None


def _barred(function: FunctionDemand, point: ProfilePoint, exec_s: float, kind: ServerClass) -> _Against | None:
    if wish := barred_by(function, point.configuration):
        return _Against(constraint=wish, sentence=wish)
    batch, target_s = point.configuration.batch, function.latency_target_s
    if least_target_s(batch, exec_s) > target_s * (1 + _CLOSE):
        half = "" if batch == 1 else "half of "
        takes = f"takes {format_duration(exec_s)}, more than {half}{format_duration(target_s)}"
        return _Against(constraint="target", sentence=takes)
    if not kind.fits(point):
        gpus = tuple((100, size) for size in kind.gpu_memory_bytes)
        names = " and ".join(lacking(Room(kind.cpu_cores, kind.memory_bytes, gpus), point))
        return _Against(constraint="size", sentence=f"needs more {names} than such a server has")
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Swap:
    """One of a group goes, and so many of an offer carry what it had to."""

    scene: Scene
    group: Group
    standing: Standing
    offer: Offer
    number: int

    def against(self, constraint: str, one: str, several: str) -> _Against:
        """The sentence for one in its place, or for several."""
        sentence = one if self.number == 1 else f"takes {self.number} in its place: {several}"
        return _Against(constraint=constraint, sentence=sentence)


def _unfilled(swap: _Swap) -> _Against | None:
    """Whether the rate would be too low: for its batches to fill in time, or to keep so much (paper Eq. 7)."""
    rate_rps, low_rps = swap.group.function.rate_rps, swap.offer.window.low_rps
    if low_rps > rate_rps:
        fills = f"fills its batch from {rate(low_rps)} on, the rate is {rate(rate_rps)}"
        return _Against(constraint="rate", sentence=fills)
    alpha, before_rps = swap.scene.task.problem.alpha, swap.standing.threshold_rps
    added_rps = swap.number * swap.offer.threshold_rps(alpha)
    after_rps = before_rps - swap.group.offer.threshold_rps(alpha) + added_rps
    if after_rps > rate_rps * (1 + NEGLIGIBLE) and after_rps > before_rps:
        wanted = f"with it instances would be let go below {rate(after_rps)}, the rate is {rate(rate_rps)}"
        return _Against(constraint="rate", sentence=wanted)
    return None


def _no_room(swap: _Swap) -> _Against | None:
    """Whether the servers of its class that are in use lack room for it, also where one of the group would go."""
    point, scene = swap.offer.point, swap.scene
    places = {(scene.rooms[i.server], _without(scene, i, swap.group.offer.point)) for i in swap.group.instances}
    gained = max(copies(after, point) - copies(before, point) for before, after in places)
    if gained + scene.left[swap.group.kind].copies(point) >= swap.number:
        return None
    names = min((lacking(after, point, swap.number) for _, after in places), key=lambda names: (len(names), names))
    no_room = f"such servers in use lack {' and '.join(names)}"
    return swap.against("room", no_room, no_room)


def _without(scene: Scene, instance: PlannedInstance, point: ProfilePoint) -> Room:
    return changed(scene.rooms[instance.server], scene.servers[instance.server], instance, point, 1)


def _no_gain(swap: _Swap) -> _Against:
    """It would fit: what it would change in rate and in weight, with all that could go for it."""
    scene, group, standing = swap.scene, swap.group, swap.standing
    beta = scene.task.problem.beta
    more_weight = swap.number * swap.offer.weight(beta) - group.offer.weight(beta)
    more_rps = swap.number * swap.offer.window.up_rps - group.offer.window.up_rps
    if standing.spare_rps < -NEGLIGIBLE * group.function.rate_rps and more_rps > 0:
        return swap.against(
            "search",
            f"would serve {rate(more_rps)} more, the solver did not take it",
            f"they would serve {rate(more_rps)} more, the solver did not take them",
        )
    saved = _freed_weight(beta, group, standing, standing.spare_rps + more_rps) - more_weight
    if saved <= _CLOSE:
        weight = f"{more_weight:.4g} more" if more_weight > _CLOSE else "the same"
        return swap.against("weight", f"weighs {weight}, for a rate that is carried without", f"they weigh {weight}")
    churn = scene.task.problem.churn_cost
    if churn >= saved and all(instance.action is PlanAction.KEEP for instance in group.instances):
        cheap = f"{saved:.4g} of weight, not more than a change costs ({churn:g})"
        return swap.against("churn", f"saves {cheap}", f"they save {cheap}")
    few = f"{saved:.4g} of weight{'' if scene.made.gap > 0 else ' and no server'}, the solver did not take"
    return swap.against("search", f"would save {few} it", f"they would save {few} them")


def _freed_weight(beta: float, group: Group, standing: Standing, slack_rps: float) -> float:
    """The weight of instances that the slack makes superfluous, those worth least first."""
    freed, most = 0.0, standing.instances - max(1, group.function.instances_min)
    for other in sorted(standing.own, key=lambda other: _worth(other.offer.window, other.offer.weight(beta))):
        able = min(most, len(other.instances) - (other is group))
        gone = max(0, min(able, int(slack_rps / other.offer.window.up_rps * (1 + _CLOSE))))
        slack_rps -= gone * other.offer.window.up_rps
        freed += gone * other.offer.weight(beta)
        most -= gone
    return freed


def _narrowed(scene: Scene, group: Group) -> Iterator[str]:
    """What a percentile, and neighbours that interfere, take from its rate."""
    function, point = group.function, group.offer.point
    slowdown = scene.task.classes[group.kind].slowdown(point.configuration)
    if slowdown > 1:
        yield f"planned {slowdown:.3g} times as slow as profiled, for neighbours on a full server"
    if function.latency_percentile is not None:
        plain = window(point.configuration, point.exec_s * slowdown, function.latency_target_s)
        up_rps = group.offer.window.up_rps
        if plain is not None:
            yield (
                f"percentile {function.latency_percentile:g} lowers its rate from {rate(plain.up_rps)} to"
                f" {rate(up_rps)} ({1 - up_rps / plain.up_rps:.0%})"
            )


def server_because(scene: Scene, group: Group) -> str:
    """What ran there, who its neighbours are, and how full that makes the servers."""
    parts = [*_class_choice(scene, group), *_history(scene, group), _neighbours(scene, group)]
    servers = {instance.server for instance in group.instances}
    full = [scene.rooms[id_] for id_ in servers]
    kind = scene.task.classes[group.kind]
    shares = {"cores": [1 - room.cpu_cores / kind.cpu_cores for room in full]}
    if gpus := len(kind.gpu_memory_bytes):
        shares["GPU"] = [1 - sum(percent for percent, _ in room.gpus) / (100 * gpus) for room in full]
    sizes = [scene.servers[id_].memory_bytes for id_ in servers]
    if all(sizes):
        shares["memory"] = [1 - room.memory_bytes / size for room, size in zip(full, sizes, strict=True)]
    parts.append("filled: " + ", ".join(f"{name} {span(values)}" for name, values in shares.items()))
    return "; ".join(parts)


def _class_choice(scene: Scene, group: Group) -> Iterator[str]:
    hosts = sum(
        any(offer.configuration == group.offer.configuration for offer in offers)
        for offers in scene.task.offers[group.function.id]
    )
    if len(scene.task.classes) > 1:
        of = f"of {len(scene.task.classes)} kinds of servers"
        yield f"the only one {of} that can host it" if hosts == 1 else f"{hosts} {of} can host it"


def _history(scene: Scene, group: Group) -> Iterator[str]:
    actions = Counter(instance.action for instance in group.instances)
    several = len(group.instances) > 1
    if kept := actions[PlanAction.KEEP]:
        yield f"{kept} kept where they ran" if several else "kept where it ran"
    resized = [scene.running[i.id].configuration for i in group.instances if i.action is PlanAction.RESIZE]
    if resized:
        before = ", ".join(str(configuration) for configuration in sorted(set(resized))[:2])
        yield f"{f'{len(resized)} ' if several else ''}resized in place from {before}"
    stopped = set(scene.made.stop)
    drained = {
        running.server
        for running in scene.running.values()
        if running.id in stopped and running.function == group.function.id and scene.servers[running.server].draining
    }
    if drained and actions[PlanAction.START]:
        yield f"started in place of what has to leave {abbreviated(drained)}"


def _neighbours(scene: Scene, group: Group) -> str:
    servers = {instance.server for instance in group.instances}
    beside = Counter(i.function for server in servers for i in scene.here[server])
    own = beside.pop(group.function.id)
    names = [printable(function) for function, _ in sorted(beside.items(), key=lambda item: (-item[1], item[0]))]
    on = f"on {len(servers)} servers" if len(servers) > 1 else "on its server"
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        return f"{on} with {', '.join(names[:3])}{more}"
    return f"{on} with no other function" if own > len(servers) or len(servers) > 1 else "alone on its server"
