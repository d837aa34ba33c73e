"""Which server is filled with what: servers of a class are alike, but what runs on them is worth keeping."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from infless_core.model import Configuration, Server
from infless_scheduler.placement import Offer, Placement, Task

_Key = tuple[str, Configuration]
_Runs = Counter[tuple[str, Configuration, str | None]]
_SLOTS_TRIED = 4
"""GPUs of a server that are tried in every order; more have too many."""


class Seat(NamedTuple):
    """What one server of a class is to be filled with: function, offer, GPU slot or None."""

    kind: int
    instances: tuple[tuple[str, Offer, int | None], ...]


def seated(task: Task, seats: Sequence[Seat]) -> tuple[Placement, ...]:
    """Give every seat a server of its class, so that many running instances may stay as they are.

    A seat gets the server on which most of it runs already; servers on which nothing runs come last, by id.
    """
    running: defaultdict[str, _Runs] = defaultdict(Counter)
    for r in task.problem.running:
        running[r.server][r.function, r.configuration, r.gpu] += 1
    placements: list[Placement] = []
    for kind, servers in enumerate(task.classes):
        here = [seat for seat in seats if seat.kind == kind]
        busy = {server.id: running[server.id] for server in servers.servers if server.id in running}
        chosen = _matched(here, busy)
        empty = iter(server for server in servers.servers if server.id not in busy)
        spare = iter(server for server in servers.servers if server.id in busy and server.id not in chosen.values())
        by_id = {server.id: server for server in servers.servers}
        for place, seat in enumerate(here):
            server = by_id[chosen[place]] if place in chosen else next(empty, None) or next(spare)
            placements += _placed(seat, server, running[server.id])
    return tuple(placements)


def _matched(seats: Sequence[Seat], busy: dict[str, _Runs]) -> dict[int, str]:
    """For seats of which something runs somewhere, the server where most does; the best matches first."""
    where: defaultdict[_Key, list[str]] = defaultdict(list)
    counted: dict[str, Counter[_Key]] = {}
    for server, runs in busy.items():
        counted[server] = Counter()
        for (function, configuration, _), number in runs.items():
            counted[server][function, configuration] += number
        for key in counted[server]:
            where[key].append(server)
    wanted = [Counter((function, offer.configuration) for function, offer, _ in seat.instances) for seat in seats]
    matches = []
    for place, counts in enumerate(wanted):
        kept: Counter[str] = Counter()
        for key, number in counts.items():
            for server in where[key]:
                kept[server] += min(number, counted[server][key])
        matches += [(-number, place, server) for server, number in kept.items()]
    chosen: dict[int, str] = {}
    taken: set[str] = set()
    for _, place, server in sorted(matches):
        if place not in chosen and server not in taken:
            chosen[place] = server
            taken.add(server)
    return chosen


def _placed(seat: Seat, server: Server, runs: _Runs) -> Iterable[Placement]:
    """The seat's instances on a server, its GPUs in the order in which most stays as it is."""
    order = tuple(range(len(server.gpus)))
    if runs and 1 < len(order) <= _SLOTS_TRIED:
        sizes = [gpu.memory_bytes for gpu in server.gpus]
        alike = [other for other in itertools.permutations(order) if [sizes[slot] for slot in other] == sizes]
        order = max(alike, key=lambda other: (_staying(seat, server, other, runs), [-slot for slot in other]))
    for function, offer, slot in seat.instances:
        gpu = None if slot is None else server.gpus[order[slot]].id
        yield Placement(function=function, server=server.id, gpu=gpu, offer=offer)


def _staying(seat: Seat, server: Server, order: tuple[int, ...], runs: _Runs) -> int:
    placed = Counter(
        (function, offer.configuration, None if slot is None else server.gpus[order[slot]].id)
        for function, offer, slot in seat.instances
    )
    return sum((placed & runs).values())
