"""Planning on from what runs: as few instances as possible are touched.

What runs stays where it still keeps the rules. A function that has too much lets instances go, those first whose
servers hold least; one that has too little gets larger batches first, then instances where there is room, then some on
servers that are not in use.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from infless_core.model import Configuration, Running
from infless_scheduler.cluster import Cluster, takes_place_of
from infless_scheduler.placement import NEGLIGIBLE, Offer, Placement, Task, capacity_rps, counts


def running_placements(task: Task) -> tuple[Placement, ...]:
    """What runs, as placements; not what no longer meets its target, or stands on a server that is being drained."""
    kinds = task.class_of()
    gpus = {(server.id, gpu.id) for kind in task.classes for server in kind.servers for gpu in server.gpus}
    known: dict[tuple[object, ...], Offer | None] = {}
    found = []
    for running in task.problem.running:
        kind, given = kinds.get(running.server), running.configuration
        key = running.function, kind, given.batch, given.cpu_cores, given.gpu_percent
        if key not in known:
            known[key] = _offer(task, running, kind)
        offer = known[key]
        on_gpu = running.gpu is not None
        if offer is None or on_gpu != (given.gpu_percent > 0) or (on_gpu and (running.server, running.gpu) not in gpus):
            continue
        found.append(Placement(running.function, running.server, running.gpu, offer, running.id))
    return tuple(found)


def _offer(task: Task, running: Running, kind: int | None) -> Offer | None:
    if kind is None or running.function not in task.functions:
        return None
    offers = task.offers[running.function][kind]
    return next((offer for offer in offers if offer.configuration == running.configuration), None)


def fitted(task: Task, placements: tuple[Placement, ...], cluster: Cluster) -> tuple[Placement, ...]:
    """The placements that fit (and `cluster` with them alone): of what is too much on a server, the heaviest goes."""
    full = {cluster.servers[row].id for row in cluster.overdrawn()}
    if not full:
        return placements
    dropped: set[int] = set()
    beta = task.problem.beta
    for index in sorted(range(len(placements)), key=lambda i: (-placements[i].offer.weight(beta), i)):
        server = placements[index].server
        if server in full:
            cluster.free(placements[index])
            dropped.add(index)
            if cluster.row[server] not in cluster.overdrawn():
                full.discard(server)
    return tuple(p for index, p in enumerate(placements) if index not in dropped)


def released(task: Task, placements: tuple[Placement, ...], cluster: Cluster) -> tuple[Placement, ...]:
    """Without what functions do not need, taken first from servers that hold least, so that some become empty."""
    spare = {f: rate - task.functions[f].rate_rps for f, rate in capacity_rps(placements).items()}
    number = counts(placements)
    smallest: dict[str, float] = {}
    for placement in placements:
        up_rps = placement.offer.window.up_rps
        smallest[placement.function] = min(smallest.get(placement.function, up_rps), up_rps)
    loose = {
        f
        for f in spare
        if (spare[f] >= smallest[f] and number[f] > task.functions[f].instances_min)
        or number[f] > (task.functions[f].instances_max or number[f])
    }
    if not loose:
        return placements
    beta = task.problem.beta
    held: defaultdict[str, float] = defaultdict(float)
    for placement in placements:
        held[placement.server] += placement.offer.weight(beta)
    gone: set[int] = set()
    candidates = [index for index, placement in enumerate(placements) if placement.function in loose]
    for index in sorted(candidates, key=lambda i: (held[placements[i].server], -placements[i].offer.weight(beta), i)):
        function, up_rps = placements[index].function, placements[index].offer.window.up_rps
        demand = task.functions[function]
        too_many = demand.instances_max is not None and number[function] > demand.instances_max
        if too_many or (up_rps <= spare[function] and number[function] > demand.instances_min):
            gone.add(index)
            cluster.free(placements[index])
            spare[function] -= up_rps
            number[function] -= 1
    return tuple(p for index, p in enumerate(placements) if index not in gone)


def enlarged(task: Task, placements: tuple[Placement, ...], cluster: Cluster) -> tuple[Placement, ...]:
    """Instances of functions that lack something in a configuration that carries more on the same cores and GPU share.

    A running instance takes a larger batch at once, and it costs no hardware.
    """
    capacity = capacity_rps(placements)
    missing = {f: demand.rate_rps - capacity.get(f, 0.0) for f, demand in task.functions.items()}
    lacking = {f for f, rate in missing.items() if rate > NEGLIGIBLE * task.functions[f].rate_rps}
    if not lacking:
        return placements
    kinds, known = task.class_of(), dict[tuple[int, int], list[Offer]]()
    gains: list[tuple[float, int, Offer]] = []
    for index, placement in enumerate(placements):
        if placement.function in lacking:
            key = id(placement.offer), kinds[placement.server]
            if key not in known:
                known[key] = _better(placement.offer, task.offers[placement.function][key[1]])
            gains += [(o.window.up_rps - placement.offer.window.up_rps, index, o) for o in known[key]]
    result, done = list(placements), set[int]()
    for gain_rps, index, offer in sorted(gains, key=lambda gain: (-gain[0], gain[1])):
        old = placements[index]
        if index in done or missing[old.function] <= NEGLIGIBLE * task.functions[old.function].rate_rps:
            continue
        new = Placement(old.function, old.server, old.gpu, offer)
        cluster.free(old)
        cluster.take(new)
        if cluster.row[old.server] in cluster.overdrawn():
            cluster.free(new)
            cluster.take(old)
            continue
        done.add(index)
        result[index] = new
        missing[old.function] -= gain_rps
    return tuple(result)


def _better(old: Offer, offers: Iterable[Offer]) -> list[Offer]:
    """Offers on no more cores and no more of a GPU that carry more."""
    given = old.configuration
    return [
        offer
        for offer in offers
        if offer.window.up_rps > old.window.up_rps and takes_place_of(offer.configuration, given)
    ]


def running_counts(task: Task) -> Counter[tuple[str, str, str | None, Configuration]]:
    """How many instances run now, by function, server, GPU and configuration."""
    return Counter((r.function, r.server, r.gpu, r.configuration) for r in task.problem.running)


def touched(task: Task, placements: tuple[Placement, ...]) -> int:
    """How many instances start, stop or are resized when placements take the place of what runs."""
    now = running_counts(task)
    then = Counter((p.function, p.server, p.gpu, p.offer.configuration) for p in placements)
    started, stopped = then - now, now - then
    places_started = Counter(key[:3] for key in started.elements())
    places_stopped = Counter(key[:3] for key in stopped.elements())
    resized = sum((places_started & places_stopped).values())
    return sum(started.values()) + sum(stopped.values()) - resized
