"""What OpenFaaS does: each function has equal replicas of one configuration. The baseline to compare with.

OpenFaaS leaves the configuration to its users and the placement to Kubernetes. Here both are as good as equal replicas
allow: the configuration that holds least for the whole rate, and first-fit on servers that are already in use.
"""

from __future__ import annotations

import math

import numpy as np

from infless_core.model import Configuration
from infless_scheduler.cluster import Cluster
from infless_scheduler.placement import Offer, Placement, Task


def uniform(task: Task) -> tuple[Placement, ...]:
    """Place equal replicas of each function, in the order of ids; what does not fit stays unserved."""
    cluster = Cluster(task)
    placements: list[Placement] = []
    for function in task.functions:
        by_class = [{offer.configuration: offer for offer in here} for here in task.offers[function]]
        for _, configuration, replicas in _choices(task, function):
            placed = _first_fit(cluster, function, [here.get(configuration) for here in by_class], replicas)
            if placed:
                placements += placed
                break
    return tuple(placements)


def _choices(task: Task, function: str) -> list[tuple[float, Configuration, int]]:
    """Configurations with the number of replicas that the rate needs, by what all of them hold.

    A replica is planned for the class where it is slowest: equal replicas are equal wherever they stand.
    """
    demand, slowest = task.functions[function], dict[Configuration, Offer]()
    for here in task.offers[function]:
        for offer in here:
            known = slowest.get(offer.configuration)
            if known is None or offer.window.up_rps < known.window.up_rps:
                slowest[offer.configuration] = offer
    choices = []
    for configuration, offer in slowest.items():
        replicas = max(math.ceil(demand.rate_rps / offer.window.up_rps * (1 - 1e-9)), demand.instances_min)
        most = demand.instances_max or replicas
        short = max(0, replicas - most)
        weight = replicas * offer.weight(task.problem.beta)
        choices.append((short * offer.window.up_rps, weight, configuration, min(replicas, most)))
    return [(weight, configuration, replicas) for _, weight, configuration, replicas in sorted(choices)]


def _first_fit(cluster: Cluster, function: str, offers: list[Offer | None], replicas: int) -> list[Placement]:
    placed: list[Placement] = []
    used_first = np.argsort(cluster.instances == 0, kind="stable")
    for row in used_first.tolist():
        offer = offers[int(cluster.kind[row])]
        while offer is not None and len(placed) < replicas and (slot := cluster.slot_for(offer, row)) is not None:
            placed.append(cluster.place(function, offer, row, slot))
        if len(placed) == replicas:
            break
    return placed
