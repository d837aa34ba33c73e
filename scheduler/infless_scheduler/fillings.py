"""What servers are filled with, for pictures: servers filled alike are one filling."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from infless_core.model import Plan, PlannedInstance, Problem, Server
from infless_scheduler.listing import abbreviated, natural, printable


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One resource of a server: cores, or the percent of one GPU, and what each instance takes of it."""

    label: str
    size: int
    parts: tuple[tuple[PlannedInstance, int], ...]

    @property
    def share(self) -> float:
        """How full it is."""
        return sum(amount for _, amount in self.parts) / self.size


@dataclass(frozen=True, slots=True, kw_only=True)
class Filling:
    """Servers of one size with the same instances on them; the bars are those of the first."""

    servers: tuple[Server, ...]
    bars: tuple[Bar, ...]
    """Cores first, then each GPU."""

    @property
    def label(self) -> str:
        """Which servers these are."""
        ids = [server.id for server in self.servers]
        return printable(ids[0]) if len(ids) == 1 else f"{len(ids)} like {printable(ids[0])}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A plan ready to be drawn."""

    fillings: tuple[Filling, ...]
    """Of the servers in use, in natural order of the first id."""
    idle: tuple[Server, ...]
    functions: tuple[str, ...]
    """Those with instances; what takes most comes first and gets the clearest colour."""
    instances: dict[str, tuple[int, float]]
    """Of each function the number of instances and the rate they serve."""
    caption: tuple[str, ...]
    """Totals, in lines."""


def drawn(problem: Problem, made: Plan, *, alike: bool) -> Drawn:
    """What a picture shows.

    Args:
        problem: what was planned.
        made: the plan for it.
        alike: whether servers that are filled alike are drawn once.
    """
    here: defaultdict[str, list[PlannedInstance]] = defaultdict(list)
    for instance in made.instances:
        here[instance.server].append(instance)
    servers = sorted(problem.servers, key=lambda server: natural(server.id))
    groups: defaultdict[object, list[tuple[Server, tuple[Bar, ...]]]] = defaultdict(list)
    for server in servers:
        if server.id in here:
            bars = _bars(server, here[server.id])
            groups[_key(bars) if alike else server.id].append((server, bars))
    weight, numbers = _sums(problem, made)
    return Drawn(
        fillings=tuple(
            Filling(servers=tuple(server for server, _ in group), bars=_labelled(group[0][1], alone=len(group) == 1))
            for group in groups.values()
        ),
        idle=tuple(server for server in servers if server.id not in here),
        functions=tuple(sorted(weight, key=lambda function: (-weight[function], function))),
        instances=numbers,
        caption=_caption(problem, made, servers),
    )


def _sums(problem: Problem, made: Plan) -> tuple[dict[str, float], dict[str, tuple[int, float]]]:
    weight: defaultdict[str, float] = defaultdict(float)
    numbers: defaultdict[str, tuple[int, float]] = defaultdict(lambda: (0, 0.0))
    for instance in made.instances:
        given = instance.configuration
        weight[instance.function] += problem.beta * given.cpu_cores + given.gpu_percent
        number, rate_rps = numbers[instance.function]
        numbers[instance.function] = number + 1, rate_rps + instance.rate_rps
    return dict(weight), dict(numbers)


def _bars(server: Server, here: Iterable[PlannedInstance]) -> tuple[Bar, ...]:
    """GPUs that are alike come in the order of what is on them, so that servers filled alike look alike."""
    ordered = sorted(here, key=lambda i: (i.function, i.configuration))
    cores = tuple((instance, instance.configuration.cpu_cores) for instance in ordered)
    gpus = []
    for gpu in server.gpus:
        parts = tuple((i, i.configuration.gpu_percent) for i in ordered if i.gpu == gpu.id)
        gpus.append((gpu.memory_bytes, Bar(label=printable(gpu.id), size=100, parts=parts)))
    gpus.sort(key=lambda entry: (entry[0], [(i.function, i.configuration) for i, _ in entry[1].parts]))
    return Bar(label="cores", size=server.cpu_cores, parts=cores), *(bar for _, bar in gpus)


def _key(bars: Sequence[Bar]) -> object:
    return tuple((bar.size, tuple((i.function, i.configuration) for i, _ in bar.parts)) for bar in bars)


def _labelled(bars: tuple[Bar, ...], *, alone: bool) -> tuple[Bar, ...]:
    """GPUs by their ids; those of several servers at once by number."""
    if alone:
        return bars[0], *sorted(bars[1:], key=lambda bar: natural(bar.label))
    return bars[0], *(Bar(label=f"gpu {n}", size=bar.size, parts=bar.parts) for n, bar in enumerate(bars[1:], 1))


def _caption(problem: Problem, made: Plan, servers: Sequence[Server]) -> tuple[str, ...]:
    used = {instance.server for instance in made.instances}
    cores = sum(server.cpu_cores for server in servers if server.id in used)
    gpus = sum(len(server.gpus) for server in servers if server.id in used)
    full = []
    if cores:
        full.append(f"cores {sum(i.configuration.cpu_cores for i in made.instances) / cores:.0%}")
    if gpus:
        full.append(f"GPUs {sum(i.configuration.gpu_percent for i in made.instances) / gpus:.0f}%")
    first = f"{len(made.instances)} instances on {len(used)} of {len(problem.servers)} servers"
    lines = [f"{first}; those in use are filled: {', '.join(full)}" if full else first]
    if made.unserved:
        rate_rps = sum(unserved.rate_rps for unserved in made.unserved)
        names = abbreviated((unserved.function for unserved in made.unserved), shown=4)
        lines.append(f"unserved: {rate_rps:.6g}/s of {names}")
    return tuple(lines)
