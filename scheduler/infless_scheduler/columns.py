"""Column generation: the best mix of server fillings for all rates, and the proof of how good any plan can be.

A pattern is what one server of a class is filled with. The master program chooses how often each pattern is used, so
that every rate is carried and no class has more servers in use than there are; it is solved as a linear program over
the patterns known so far. Its duals say what a request of each function is worth, and the knapsack of each class finds
the filling that is worth most: either it improves the mix, or the mix is the best one (Gilmore and Gomory 1961). The
worth of requests also bounds every plan (Lagrange): no plan costs less than what its requests are worth, less what the
best fillings are worth beyond their servers' cost.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from infless_core.model import Configuration
from infless_scheduler.knapsack import Item, Knapsack, Packed
from infless_scheduler.milp import ElasticRow, GrowingProgram, Sense
from infless_scheduler.placement import Offer, Placement, Prices, Task, missing_instances, unserved_rps

_NEGLIGIBLE_COST = 1e-9
"""Share of the total cost below which a pattern does not improve the mix."""
_LACK_WORTH = 100.0
"""What leaving everything unserved costs, beside serving each function on servers of its own. Serving comes first."""


@dataclass(frozen=True, slots=True)
class Goods:
    """The offers that may stand on a class of servers, and their knapsack."""

    offers: tuple[tuple[str, Offer], ...]
    function: NDArray[np.int64]
    """Index of each offer's function."""
    share: NDArray[np.float64]
    """Part of the function's rate that the offer carries, at most all of it (a mix of parts of instances would else
    serve a small function with a sliver of one); 0 for a function without a rate."""
    knapsack: Knapsack


@dataclass(frozen=True, slots=True)
class Pattern:
    """What one server of a class is filled with: `(item of its goods, GPU slot or None)`, in order."""

    kind: int
    items: Packed


def goods_of(task: Task, out_of_time: Callable[[], bool] = lambda: False) -> tuple[Goods, ...] | None:
    """What may stand on each class: offers that could be part of a best plan, and what runs now.

    None when time is over before all are known: without one of them nothing can be proven.
    """
    runs = {(running.function, running.configuration) for running in task.problem.running}
    found = []
    for kind in range(len(task.classes)):
        if out_of_time():
            return None
        found.append(_goods(task, kind, runs))
    return tuple(found)


def _goods(task: Task, kind: int, runs: Set[tuple[str, Configuration]]) -> Goods:
    servers, functions = task.classes[kind], list(task.functions.values())
    every = [(index, offer) for index, f in enumerate(functions) for offer in task.offers[f.id][kind]]
    knapsack = Knapsack(
        servers.cpu_cores, servers.memory_bytes, servers.gpu_memory_bytes, [_item(offer) for _, offer in every]
    )
    function = np.array([index for index, _ in every], dtype=np.int64)
    up_rps = np.array([offer.window.up_rps for _, offer in every])
    runs_now = np.array([(functions[index].id, offer.configuration) in runs for index, offer in every], dtype=bool)
    useful = knapsack.of_use(up_rps, function, runs_now)
    chosen = useful.kept
    rates = np.array([f.rate_rps for f in functions])[function[chosen]]
    return Goods(
        offers=tuple((functions[every[place][0]].id, every[place][1]) for place in chosen.tolist()),
        function=function[chosen],
        share=np.minimum(1.0, np.divide(up_rps[chosen], rates, out=np.zeros(len(chosen)), where=rates > 0)),
        knapsack=useful,
    )


def offers_worth_having(task: Task, goods: tuple[Goods, ...]) -> dict[str, tuple[tuple[Offer, ...], ...]]:
    """By function, for each class: offers that no other one beats, which needs no more and bears as high a rate.

    Where memory is rounded, those that a table of the knapsack looks at: few, for where many are tried many times.
    """
    found: dict[str, list[list[Offer]]] = {function: [[] for _ in goods] for function in task.functions}
    for kind, here in enumerate(goods):
        for (function, offer), tabled in zip(here.offers, here.knapsack.tabled, strict=True):
            if tabled:
                found[function][kind].append(offer)
    return {function: tuple(tuple(offers) for offers in kinds) for function, kinds in found.items()}


def _item(offer: Offer) -> Item:
    given = offer.configuration
    return Item(
        cpu_cores=given.cpu_cores,
        memory_bytes=offer.point.memory_bytes,
        gpu_percent=given.gpu_percent,
        gpu_memory_bytes=offer.point.gpu_memory_bytes if given.gpu_percent else 0,
    )


class Master:
    """The mix of patterns for a task. Mutable: patterns are added, and while rounding what is left to do shrinks."""

    def __init__(self, task: Task, goods: tuple[Goods, ...]) -> None:
        self.task = task
        self.goods = goods
        self.patterns: list[Pattern] = []
        self._known: set[Pattern] = set()
        self._costs = [kind.cost(task.problem.beta) for kind in task.classes]
        functions = list(task.functions.values())
        self._least = [i for i, f in enumerate(functions) if f.instances_min]
        self._most = [i for i, f in enumerate(functions) if f.instances_max is not None]
        alone = self._alone()
        dear = _LACK_WORTH * (sum(alone) or 1.0)
        weights = task.weights()
        self.lack_costs = [10 * alone[i] + dear * weights.get(f.id, 0.0) for i, f in enumerate(functions)]
        self._instance_cost = 10 * dear
        least, most = Sense.AT_LEAST, Sense.AT_MOST
        self._limits = [float(f.rate_rps > 0) for f in functions]
        self._limits += [float(functions[i].instances_min) for i in self._least]
        self._limits += [float(functions[i].instances_max or 0) for i in self._most]
        self._limits += [float(len(kind.servers)) for kind in task.classes]
        prices = [*self.lack_costs, *[self._instance_cost] * len(self._least)]
        rows = [
            ElasticRow(sense=least, limit=x, price=p, give=math.inf) for x, p in zip(self._limits, prices, strict=False)
        ]
        rows += [ElasticRow(sense=most, limit=x) for x in self._limits[len(prices) :]]
        self._program = GrowingProgram(rows)

    def _alone(self) -> list[float]:
        """What each function would cost on servers of its own with one instance on each: more than it is ever worth."""
        costs = [math.inf] * len(self.task.functions)
        for kind, goods in enumerate(self.goods):
            for function, share in zip(goods.function.tolist(), goods.share.tolist(), strict=True):
                if share > 0:
                    costs[function] = min(costs[function], self._costs[kind] * max(1.0, 1 / share))
        return [cost if cost < math.inf else 0.0 for cost in costs]

    def add(self, pattern: Pattern) -> bool:
        """Make a pattern known; False when it is already."""
        if pattern in self._known:
            return False
        self._known.add(pattern)
        self.patterns.append(pattern)
        self._program.add(self._costs[pattern.kind], self._terms(pattern))
        return True

    def _terms(self, pattern: Pattern) -> list[tuple[int, float]]:
        """A pattern's column: what it carries of each function, how many instances, and its one server."""
        goods = self.goods[pattern.kind]
        carried: defaultdict[int, float] = defaultdict(float)
        number: Counter[int] = Counter()
        for item, _ in pattern.items:
            function = int(goods.function[item])
            carried[function] += float(goods.share[item])
            number[function] += 1
        first = len(self.task.functions)
        terms = [(function, share) for function, share in carried.items() if share > 0]
        for counted in (self._least, self._most):
            terms += [(first + row, float(number[i])) for row, i in enumerate(counted) if number[i]]
            first += len(counted)
        return [*terms, (first + pattern.kind, 1.0)]

    def lack_cost(self, placements: Sequence[Placement]) -> float:
        """What the program charges for what placements leave undone."""
        names = {function: index for index, function in enumerate(self.task.functions)}
        unserved = unserved_rps(self.task, placements)
        rates = [self.lack_costs[names[f]] * rps / self.task.functions[f].rate_rps for f, rps in unserved.items()]
        return math.fsum(rates) + self._instance_cost * sum(missing_instances(self.task, placements).values())

    def solve(self) -> bool:
        """Find the best mix of the patterns known; False when the solver library fails."""
        return self._program.solve()

    @property
    def cost(self) -> float:
        """Of the mix."""
        return self._program.cost

    def mix(self) -> list[float]:
        """How often each pattern is used."""
        return self._program.values()

    def use(self, uses: Counter[int]) -> None:
        """Set patterns (by their index) aside as used so often: the mix is then for what they leave to do."""
        for index, times in uses.items():
            for row, amount in self._terms(self.patterns[index]):
                self._limits[row] -= times * amount
                self._program.limit(row, max(0.0, self._limits[row]))

    def worth(self) -> Worth:
        """What the duals of the last solution say a request and an instance of each function is worth."""
        duals = self._program.duals()
        count = len(self.task.functions)
        request = np.maximum(np.array(duals[:count]), 0.0)
        instance = np.zeros(count)
        for row, i in enumerate([*self._least, *self._most]):
            instance[i] += duals[count + row]
        first = count + len(self._least) + len(self._most)
        constant = sum(dual * limit for dual, limit in zip(duals[:first], self._limits[:first], strict=True))
        return Worth(request, instance, constant, np.minimum(np.array(duals[first:]), 0.0))

    def prices(self, worth: Worth, best: Sequence[float]) -> Prices:
        """What the duals prove, scaled down by the factor with which they prove most.

        Args:
            worth: from the duals; scaled down by any factor it still proves something (Farley 1990).
            best: an upper bound on what a server of each class can be filled with, at this worth.
        """
        numbers = [len(kind.servers) for kind in self.task.classes]

        def proven(factor: float) -> float:
            excess = [n * max(0.0, factor * v - c) for n, v, c in zip(numbers, best, self._costs, strict=True)]
            return factor * worth.constant - math.fsum(excess)

        breaks = [cost / value for cost, value in zip(self._costs, best, strict=True) if value > cost > 0]
        factor = max((1.0, *breaks), key=proven)
        functions = list(self.task.functions.values())
        each = [(w / f.rate_rps if f.rate_rps > 0 else 0.0) for f, w in zip(functions, worth.request, strict=True)]
        return Prices(
            request={f.id: factor * float(price) for f, price in zip(functions, each, strict=True)},
            instance={f.id: factor * float(price) for f, price in zip(functions, worth.instance, strict=True)},
            most_rps=self._carried_whole(),
            fill=tuple(factor * value for value in best),
        )

    def _carried_whole(self) -> dict[str, float]:
        """The rates of functions that one instance carries alone."""
        functions = list(self.task.functions.values())
        whole = {int(i) for goods in self.goods for i in goods.function[goods.share >= 1]}
        return {functions[i].id: functions[i].rate_rps for i in sorted(whole)}


class Worth(NamedTuple):
    """What the duals of a mix say."""

    request: NDArray[np.float64]
    """Of all requests of each function together."""
    instance: NDArray[np.float64]
    """Of one instance of each function, beside what it carries; below 0 where there may be no more."""
    constant: float
    """Of everything that is wanted."""
    server: NDArray[np.float64]
    """Of one more server of each class: 0 or less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixed:
    """How column generation ended."""

    bound: float
    """On cost and lack together."""
    rounds: int
    prices: Prices | None = None
    """What proves the bound."""


def start(master: Master, out_of_time: Callable[[], bool]) -> None:
    """Make known what each function fills a server with on its own: with these the first duals make sense."""
    for kind, goods in enumerate(master.goods):
        for function in range(len(master.task.functions)):
            values = np.where(goods.function == function, goods.share + _NEGLIGIBLE_COST, 0.0)
            if values.any() and not out_of_time():
                master.add(_pattern(master, kind, goods, goods.knapsack.best(values)[1], values))


def generate(master: Master, *, gap: float, out_of_time: Callable[[], bool], rounds_max: int = 400) -> Mixed:
    """Add patterns until the mix is proven to be within `gap` of the best one, or time is over.

    Args:
        master: with some patterns or none.
        gap: share of the bound.
        out_of_time: asked before each filling.
        rounds_max: guard against endless tails.
    """
    proof = Mixed(bound=0.0, rounds=0)
    for number in range(1, rounds_max + 1):
        if not master.solve():
            return proof
        worth = master.worth()
        best, added = _priced(master, worth, out_of_time, exactly=False)
        if not added and not all(goods.knapsack.exact for goods in master.goods):
            # The tables see improvements that rounded memory only pretends: now it pays to look exactly.
            best, added = _priced(master, worth, out_of_time, exactly=True)
        if len(best) < len(master.goods):
            break
        prices = master.prices(worth, best)
        bound = price_bound(master.task, prices)
        proof = (
            Mixed(bound=bound, rounds=number, prices=prices) if bound >= proof.bound else replace(proof, rounds=number)
        )
        if not added or master.cost <= proof.bound * (1 + gap) + _NEGLIGIBLE_COST or out_of_time():
            break
    return proof


def price_bound(task: Task, prices: Prices) -> float:
    """A bound on cost and lack together of any mix of patterns, known or not, from prices found for the same offers.

    Functions that have no price count as worth nothing.
    """
    beta = task.problem.beta
    limited = [task.functions[id_] for id_, price in prices.instance.items() if price < 0 and id_ in task.functions]
    if any(function.instances_max is None for function in limited):
        return 0.0  # they were found under a limit that is gone
    constant = math.fsum(
        prices.request.get(id_, 0.0) * min(f.rate_rps, prices.most_rps.get(id_, math.inf))
        + max(0.0, prices.instance.get(id_, 0.0)) * f.instances_min
        + min(0.0, prices.instance.get(id_, 0.0)) * (f.instances_max or 0)
        for id_, f in task.functions.items()
    )
    surplus = math.fsum(
        len(kind.servers) * max(0.0, fill - kind.cost(beta))
        for kind, fill in zip(task.classes, prices.fill, strict=True)
    )
    return constant - surplus


def _priced(master: Master, worth: Worth, out_of_time: Callable[[], bool], *, exactly: bool) -> tuple[list[float], int]:
    """The most that a server of each class can be worth, and how many patterns that improve the mix have been added.

    Fewer values than classes when time is over.
    """
    best: list[float] = []
    added = 0
    for kind, goods in enumerate(master.goods):
        if out_of_time() and best:
            break
        exact = exactly and not goods.knapsack.exact
        value, patterns = _improving(master, kind, goods, worth, out_of_time, exactly=exact)
        best.append(value)
        added += sum(master.add(pattern) for pattern in patterns)
    return best, added


def _improving(
    master: Master, kind: int, goods: Goods, worth: Worth, out_of_time: Callable[[], bool], *, exactly: bool
) -> tuple[float, list[Pattern]]:
    """The most that a server of a class can be worth, and fillings that improve the mix.

    The first is the best one; each further one is the best without the functions of those before it. The optimum needs
    about as many patterns as there are functions, and this way a round finds some for all of them.
    """
    if not goods.offers:
        return 0.0, []
    cost = master.task.classes[kind].cost(master.task.problem.beta) - float(worth.server[kind])
    threshold = cost + _NEGLIGIBLE_COST * max(1.0, master.cost)
    values = goods.share * worth.request[goods.function] + worth.instance[goods.function]
    best = goods.knapsack.best_exactly if exactly else goods.knapsack.best
    patterns: list[Pattern] = []
    value, items = best(values)
    most = value
    while value > threshold and items:
        pattern = _pattern(master, kind, goods, items, values)
        patterns.append(pattern)
        used = goods.function[[item for item, _ in pattern.items]]
        if out_of_time():
            break
        values = np.where(np.isin(goods.function, used), 0.0, values)
        value, items = best(values)
    return most, patterns


def _pattern(master: Master, kind: int, goods: Goods, items: Packed, values: NDArray[np.float64]) -> Pattern:
    """The filling as a pattern; where memory was rounded too kindly, without what is too much and worth least."""
    kept = list(items)
    if not goods.knapsack.exact:
        servers = master.task.classes[kind]
        free = servers.memory_bytes
        gpu_free = list(servers.gpu_memory_bytes)
        kept = []
        for item, slot in sorted(items, key=lambda one: -values[one[0]]):
            size = goods.knapsack.items[item]
            if size.memory_bytes > free or (slot is not None and size.gpu_memory_bytes > gpu_free[slot]):
                continue
            free -= size.memory_bytes
            if slot is not None:
                gpu_free[slot] -= size.gpu_memory_bytes
            kept.append((item, slot))
    return Pattern(kind, tuple(sorted(kept, key=lambda one: (one[0], -1 if one[1] is None else one[1]))))
