"""Which server is filled with what: servers of a class are alike, but what runs on them is worth keeping."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from infless_core.model import Configuration, Server
from infless_scheduler.placement import Offer, Placement, Task

_Key = tuple[str, Configuration]
_Contents = tuple[tuple[_Key, int], ...]
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
        taken = set(chosen.values())
        empty = iter(server for server in servers.servers if server.id not in busy)
        spare = iter(server for server in servers.servers if server.id in busy and server.id not in taken)
        by_id = {server.id: server for server in servers.servers}
        for place, seat in enumerate(here):
            server = by_id[chosen[place]] if place in chosen else next(empty, None) or next(spare)
            placements += _placed(seat, server, running[server.id])
    return tuple(placements)


def _matched(seats: Sequence[Seat], busy: Mapping[str, _Runs]) -> dict[int, str]:
    """For seats of which something runs somewhere, the server where most does; the best matches first.

    Seats that are alike, and servers that run the same, are looked at once: there are thousands of them, of few sorts.
    """
    wanted: defaultdict[_Contents, list[int]] = defaultdict(list)
    for place, seat in enumerate(seats):
        wanted[_contents(Counter((function, offer.configuration) for function, offer, _ in seat.instances))].append(
            place
        )
    there: defaultdict[_Contents, list[str]] = defaultdict(list)
    for server, runs in busy.items():
        there[_contents(Counter(key[:2] for key in runs.elements()))].append(server)
    where: defaultdict[_Key, list[_Contents]] = defaultdict(list)
    for contents in there:
        for key, _ in contents:
            where[key].append(contents)
    matches = []
    for order, want in enumerate(wanted):
        kept: Counter[_Contents] = Counter()
        for key, number in want:
            for contents in where[key]:
                kept[contents] += min(number, dict(contents)[key])
        matches += [(-number, order, there[contents][0], want, contents) for contents, number in kept.items()]
    chosen: dict[int, str] = {}
    for *_, want, contents in sorted(matches, key=lambda match: match[:3]):
        places, servers = wanted[want], there[contents]
        both = min(len(places), len(servers))
        chosen |= dict(zip(places[:both], servers[:both], strict=True))
        wanted[want], there[contents] = places[both:], servers[both:]
    return chosen


def _contents(counted: Counter[_Key]) -> _Contents:
    return tuple(sorted(counted.items()))


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
