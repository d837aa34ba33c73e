"""Less hardware for the same service: servers emptied into the room that others have, instances made lighter."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from infless_scheduler.cluster import Cluster, takes_place_of
from infless_scheduler.greedy import Run
from infless_scheduler.placement import NEGLIGIBLE, Offer, Placement, Task, capacity_rps, counts

Offers = Mapping[str, tuple[tuple[Offer, ...], ...]]

_MISSES_MAX = 8
"""Servers in a row that could not be emptied: fuller ones will not be either."""


def consolidated(
    task: Task,
    offers: Offers,
    placements: Sequence[Placement],
    enough: Callable[[float], bool],
    churn_cost: float = 0.0,
) -> tuple[Placement, ...]:
    """Empty servers into the others, the least filled ones first, as long as everything stays served.

    Args:
        task: what has to stay served.
        offers: by function, for each class, what may be started.
        placements: what there is.
        enough: asked before each server, with what the ones emptied so far have saved of the objective.
        churn_cost: what starting or stopping one instance costs of what a server saves.
    """
    beta = task.problem.beta
    cluster = Cluster(task, placements)
    here: defaultdict[int, list[Placement]] = defaultdict(list)
    for placement in placements:
        here[cluster.row[placement.server]].append(placement)
    spare = {f: rate - task.functions[f].rate_rps for f, rate in capacity_rps(placements).items()}
    number = counts(placements)
    costs = [kind.cost(beta) for kind in task.classes]

    def held(row: int) -> float:
        weight = math.fsum(placement.offer.weight(beta) for placement in here[row])
        return weight / max(costs[int(cluster.kind[row])], 1e-9)

    misses, saved = 0, 0.0
    for row in sorted(here, key=lambda row: (held(row), row)):
        if misses >= _MISSES_MAX or enough(saved):
            break
        saves = costs[int(cluster.kind[row])]
        moved = _moved(cluster, here[row], spare, number, offers, saves / churn_cost if churn_cost else math.inf)
        if moved is None:
            misses += 1
            continue
        misses, saved = 0, saved + saves
        for placement in here.pop(row):
            spare[placement.function] -= placement.offer.window.up_rps
            number[placement.function] -= 1
        for placement in moved:
            spare[placement.function] += placement.offer.window.up_rps
            number[placement.function] += 1
            here[cluster.row[placement.server]].append(placement)
    return tuple(placement for row in sorted(here) for placement in here[row])


def _moved(
    cluster: Cluster,
    leaving: Sequence[Placement],
    spare: dict[str, float],
    number: dict[str, int],
    offers: Offers,
    touched_max: float,
) -> list[Placement] | None:
    """Instances on other servers in use that make those that leave superfluous.

    None, and nothing has changed, if there is no room for them or more than `touched_max` would come and go.
    """
    functions = cluster.task.functions
    for placement in leaving:
        cluster.free(placement)
    moved: list[Placement] = []
    served = True
    for function in sorted({placement.function for placement in leaving}):
        own = [placement for placement in leaving if placement.function == function]
        missing_rps = math.fsum(p.offer.window.up_rps for p in own) - spare[function]
        staying = number[function] - len(own)
        most, least = functions[function].instances_max, functions[function].instances_min
        run = Run(cluster, function, offers[function], cluster.task.problem.beta, open_servers=False)
        run.serve(missing_rps, None if most is None else most - staying)
        run.add(least - staying - len(run.placements))
        moved += run.placements
        carried = math.fsum(p.offer.window.up_rps for p in run.placements)
        lacking = missing_rps - carried > NEGLIGIBLE * functions[function].rate_rps
        if lacking or staying + len(run.placements) < min(least, number[function]):
            served = False
            break
    if served and len(leaving) + len(moved) <= touched_max:
        return moved
    for placement in moved:
        cluster.free(placement)
    for placement in leaving:
        cluster.take(placement)
    return None


def lightened(task: Task, offers: Offers, placements: Sequence[Placement]) -> tuple[Placement, ...]:
    """Give instances that their functions need less of a lighter configuration in the same place.

    The scale-in threshold comes first (Eq. 7: no function should hold much more than it needs), then what is allocated.

    Args:
        task: what has to stay served.
        offers: by function, for each class, those that no other one beats by rate; for the threshold all are tried.
        placements: what there is.
    """
    kinds = task.class_of()
    result = list(placements)
    places: defaultdict[str, list[int]] = defaultdict(list)
    for place, placement in enumerate(result):
        places[placement.function].append(place)
    for function, own in places.items():
        while (
            change := _best_change(task, function, [(p, result[p]) for p in own], offers[function], kinds)
        ) is not None:
            place, offer = change
            old = result[place]
            result[place] = Placement(function=function, server=old.server, gpu=old.gpu, offer=offer)
    return tuple(result)


def _best_change(
    task: Task,
    function: str,
    own: list[tuple[int, Placement]],
    offers: Sequence[Sequence[Offer]],
    kinds: dict[str, int],
) -> tuple[int, Offer] | None:
    alpha, beta, rate_rps = task.problem.alpha, task.problem.beta, task.functions[function].rate_rps
    spare_rps = math.fsum(p.offer.window.up_rps for _, p in own) - rate_rps
    excess_rps = math.fsum(p.offer.threshold_rps(alpha) for _, p in own) - rate_rps
    best: tuple[tuple[float, float], int, Offer] | None = None
    seen: set[tuple[int, int]] = set()
    for place, placement in own:
        old, kind = placement.offer, kinds[placement.server]
        if (id(old), kind) in seen:
            continue
        seen.add((id(old), kind))
        for offer in task.offers[function][kind] if excess_rps > 0 else offers[kind]:
            if not _within(offer, old) or old.window.up_rps - offer.window.up_rps > spare_rps:
                continue
            gain = old.weight(beta) - offer.weight(beta)
            after_rps = excess_rps - old.threshold_rps(alpha) + offer.threshold_rps(alpha)
            relief = max(0.0, excess_rps) - max(0.0, after_rps)
            if (relief > 1e-9 * rate_rps or gain > 0) and relief >= 0:
                key = (-relief, -gain)
                if best is None or key < best[0]:
                    best = key, place, offer
    return None if best is None else best[1:]


def _within(offer: Offer, old: Offer) -> bool:
    """Whether it needs no more than the other of anything."""
    return (
        takes_place_of(offer.configuration, old.configuration)
        and offer.point.memory_bytes <= old.point.memory_bytes
        and offer.point.gpu_memory_bytes <= old.point.gpu_memory_bytes
    )
