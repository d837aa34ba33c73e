"""Servers of a what-if: which ones a word means, more of them, fewer of them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from fnmatch import fnmatchcase

from infless_core.errors import InvalidInput
from infless_core.model import Problem, Server
from infless_scheduler.listing import natural
from infless_scheduler.placement import interference_of
from infless_scheduler.what_if_grammar import is_wildcard, some, unknown

SERVERS_MAX = 100_000
"""More would be a slip of the keyboard, and fill the memory before anybody could plan them."""
_ADDED = re.compile(r".*-what-if-[0-9]+", re.DOTALL)
_SELECTORS = ("gpu", "cpu", "all")
_Size = tuple[object, ...]


def selected(problem: Problem, name: str) -> tuple[Server, ...]:
    """The servers that a word means: of a stated kind; with GPUs, without, or all; like the one with that id.

    Raises:
        InvalidInput: when there are none.
    """
    if not name:
        raise InvalidInput(
            "it names no servers; write servers.KIND, servers.all, or servers.ID for those like one server"
        )
    servers = problem.servers
    found = [server for server in servers if server.kind and server.kind == name]
    if not found and name in _SELECTORS:
        found = [server for server in servers if name == "all" or bool(server.gpus) == (name == "gpu")]
    if not found:
        like = {_alike(problem, server) for server in servers if server.id == name}
        found = [server for server in servers if _alike(problem, server) in like]
    if not found and is_wildcard(name):
        found = [server for server in servers if server.kind and fnmatchcase(server.kind, name)]
        found = found or [server for server in servers if fnmatchcase(server.id, name)]
    if not found:
        known = dict.fromkeys([*(s.kind for s in servers if s.kind), *_SELECTORS, *(s.id for s in servers)])
        if name in _SELECTORS:
            raise InvalidInput(f"no server is meant by {name!r}; known are {some(known)}")
        raise InvalidInput(unknown("server or kind of servers", name, known))
    return tuple(found)


def groups(problem: Problem, servers: Iterable[Server]) -> list[tuple[Server, ...]]:
    """Servers of one kind and size each."""
    found: defaultdict[_Size, list[Server]] = defaultdict(list)
    for server in servers:
        found[_alike(problem, server)].append(server)
    return [tuple(group) for group in found.values()]


def _alike(problem: Problem, server: Server) -> _Size:
    return (server.kind, *_size(problem, server))


def _size(problem: Problem, server: Server) -> _Size:
    memories = tuple(sorted(gpu.memory_bytes for gpu in server.gpus))
    return server.cpu_cores, server.memory_bytes, memories, interference_of(problem, server)


def more(problem: Problem, servers: tuple[Server, ...], number: int, prefix: str) -> Problem:
    """The problem with copies of the first of some servers, called `<prefix>-what-if-<n>`.

    Raises:
        InvalidInput: when the servers are of several sizes, or there would be too many.
    """
    sizes = {_size(problem, server): server for server in reversed(servers)}
    if len(sizes) > 1:
        told = "; ".join(sorted(_size_told(server) for server in sizes.values()))
        one = min(server.id for server in sizes.values())
        raise InvalidInput(f"these servers are of {len(sizes)} sizes ({told}); name one of them, as in servers.{one}")
    if len(problem.servers) + number > SERVERS_MAX:
        raise InvalidInput(f"there would be {len(problem.servers) + number} servers; allowed are at most {SERVERS_MAX}")
    return with_copies(problem, servers[0], number, f"{prefix}-what-if")


def with_copies(problem: Problem, server: Server, number: int, prefix: str) -> Problem:
    """The problem with so many more servers like one, called `<prefix>-<n>` with numbers that are free."""
    taken = {other.id for other in problem.servers}
    free = (id_ for n in range(1, len(taken) + number + 1) if (id_ := f"{prefix}-{n}") not in taken)
    added = tuple(replace(server, id=id_, draining=False) for id_, _ in zip(free, range(number), strict=False))
    return replace(problem, servers=(*problem.servers, *added))


def _size_told(server: Server) -> str:
    gpus = f"{len(server.gpus)} GPUs" if len(server.gpus) != 1 else "1 GPU"
    memory = "".join(f" of {gpu.memory_bytes / 2**30:.3g} GiB" for gpu in server.gpus[:1])
    own = " and interference of its own" if server.interference is not None else ""
    return f"{server.id}: {server.cpu_cores} cores, {server.memory_bytes / 2**30:.3g} GiB, {gpus}{memory}{own}"


def fewer(problem: Problem, servers: tuple[Server, ...], number: int) -> Problem:
    """The problem without some of the servers, and without what runs there.

    Those on which nothing runs go first, of these the ones that a what-if has added, then the last ids.
    """
    busy = {running.server for running in problem.running}
    last = sorted(servers, key=lambda server: natural(server.id), reverse=True)
    order = sorted(last, key=lambda server: (server.id in busy, _ADDED.fullmatch(server.id) is None))
    gone = {server.id for server in order[:number]}
    return replace(
        problem,
        servers=tuple(server for server in problem.servers if server.id not in gone),
        running=tuple(running for running in problem.running if running.server not in gone),
    )
