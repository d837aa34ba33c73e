"""The planner for large problems: the best mix of server fillings, rounded to whole servers.

Column generation (`columns`) gives the mix and the proven bound; rounding costs a fraction of a server for each
function, whatever the size of the problem, so the larger it is the smaller is the gap. What runs is left as it is, but
for what must change, while that is near enough to the bound; else a new mix is seated where most of it runs already.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from infless_core.clock import Clock
from infless_scheduler.cluster import Cluster
from infless_scheduler.columns import (
    Goods,
    Master,
    Pattern,
    generate,
    goods_of,
    offers_worth_having,
    price_bound,
    start,
)
from infless_scheduler.consolidate import consolidated, lightened
from infless_scheduler.greedy import greedy
from infless_scheduler.placement import (
    NEGLIGIBLE,
    Offer,
    Placement,
    Prices,
    Solution,
    SolverStatus,
    Task,
    capacity_rps,
    counts,
    lack,
    objective,
    objective_bound,
    trimmed,
    unserved_rps,
    whole_servers,
)
from infless_scheduler.repair import enlarged, fitted, released, running_placements, touched
from infless_scheduler.seats import Seat, seated

STAY_GAP = 0.02
"""Servers are emptied only while the objective is more than this above what is proven: moving instances costs answers
now, the gain is small and the next change of a rate may undo it."""
MOVE_GAIN = 0.05
"""So much of the objective a plan from scratch has to save before everything is moved for it; or it serves more."""
_GAP = 0.003
"""Of the mix to its own bound: rounding costs more than what a closer mix would gain."""
_MIX_SHARE, _ROUND_SHARE, _FILL_SHARE, _EMPTY_SHARE = 0.6, 0.8, 0.9, 0.95
"""Of the time limit, when each step has to end."""
_HOLE_SHARE = 0.5
"""Of what a function's instances carry on average, the least that one put into left-over room should."""
_WHOLE = 1e-6


def solve_by_patterns(task: Task, *, time_limit_s: float, clock: Clock, prices: Prices | None = None) -> Solution:
    """Plan on from what runs where that is near enough to the bound, from scratch where it is not.

    Args:
        task: what to place.
        time_limit_s: the mix is cut off at a part of it, and so are the later steps; what is then missing is placed
            greedily, and the bound is what was proven by then.
        clock: measures it.
        prices: from an earlier plan; with them what runs can be judged without finding a mix.
    """
    begun_s = clock.now_s()

    def later_than(share: float) -> Callable[[], bool]:
        return lambda: clock.now_s() - begun_s > share * time_limit_s

    if not task.problem.running:
        return _from_scratch(task, later_than)
    proven = 0.0 if prices is None else price_bound(task, prices)
    carried_on, short = _carried_on(task, proven, later_than)
    worth = objective(task, carried_on)
    # Where something is missing, prices prove nothing of plans that miss as much.
    bound = 0.0 if short else min(whole_servers(task, max(0.0, proven)), worth)
    if worth * (1 - MOVE_GAIN) <= bound:
        return Solution(status=SolverStatus.FEASIBLE, placements=carried_on, bound=bound, prices=prices)
    fresh = _from_scratch(task, later_than)
    if _pays(task, fresh.placements, carried_on):
        return fresh
    bound = fresh.bound if short <= lack(task, fresh.placements) + _WHOLE else 0.0
    if not short:
        carried_on = _emptied(task, carried_on, bound, later_than)
    return replace(fresh, placements=carried_on, bound=min(bound, objective(task, carried_on)))


def _pays(task: Task, fresh: tuple[Placement, ...], carried_on: tuple[Placement, ...]) -> bool:
    """Whether a new plan serves more, or saves what it costs to get there."""
    more = lack(task, carried_on) - lack(task, fresh)
    if abs(more) > _WHOLE * max(1.0, lack(task, carried_on)):
        return more > 0
    churn = task.problem.churn_cost * (touched(task, fresh) - touched(task, carried_on))
    return objective(task, fresh) + churn < objective(task, carried_on) * (1 - MOVE_GAIN)


def _from_scratch(task: Task, later_than: Callable[[float], Callable[[], bool]]) -> Solution:
    goods = goods_of(task, later_than(_MIX_SHARE))
    if goods is None:
        placements = trimmed(task, greedy(task, out_of_time=later_than(_FILL_SHARE)))
        proven = min(objective_bound(task, unserved_rps(task, placements)), objective(task, placements))
        return Solution(status=SolverStatus.FEASIBLE, placements=placements, bound=proven)
    master = Master(task, goods)
    start(master, later_than(_MIX_SHARE))
    mixed = generate(master, gap=_GAP, out_of_time=later_than(_MIX_SHARE))
    uses = _rounded(master, later_than(_ROUND_SHARE))
    placements = trimmed(task, seated(task, _seats(task, goods, master.patterns, uses)))
    placements = trimmed(task, greedy(task, placements, out_of_time=later_than(_FILL_SHARE)))
    offers = offers_worth_having(task, goods)
    late = later_than(_EMPTY_SHARE)
    placements = lightened(task, offers, consolidated(task, offers, placements, lambda _: late()))
    proven = max(mixed.bound - master.lack_cost(placements), objective_bound(task, unserved_rps(task, placements)))
    bound = min(whole_servers(task, proven), objective(task, placements))
    return Solution(status=SolverStatus.FEASIBLE, placements=placements, bound=bound, prices=mixed.prices)


def _carried_on(
    task: Task, proven: float, later_than: Callable[[float], Callable[[], bool]]
) -> tuple[tuple[Placement, ...], float]:
    """What runs, less what is not needed; what is missing goes into larger batches, room there is, servers not in use.

    Servers that hold little are emptied into the others while the objective is not near what is proven.

    Returns:
        The placements, and what they lack.
    """
    running = running_placements(task)
    cluster = Cluster(task, running)
    kept = enlarged(task, released(task, fitted(task, running, cluster), cluster), cluster)
    holes = replace(task, offers=_as_large(task, kept))
    placements = greedy(holes, kept, cluster=cluster, open_servers=False, out_of_time=later_than(_MIX_SHARE))
    rest = _rest(task, placements)
    if rest.functions:
        added = _from_scratch(rest, later_than).placements
        for placement in added:
            cluster.take(placement)
        placements += added
        if lack(rest, added):
            placements = greedy(task, placements, cluster=cluster, out_of_time=later_than(_FILL_SHARE))
    grown = {placement.function for placement in placements[len(kept) :]}
    same = tuple(placement for placement in placements if placement.function not in grown)
    placements = same + trimmed(task, (placement for placement in placements if placement.function in grown))
    short = lack(task, placements)
    return placements if short else _emptied(task, placements, proven, later_than), short


def _as_large(task: Task, running: tuple[Placement, ...]) -> dict[str, tuple[tuple[Offer, ...], ...]]:
    """Offers that carry at least half of what an instance of their function carries now, where any does.

    Room that is left over is often small. To fill it with many small instances saves little and touches much.
    """
    capacity, number = capacity_rps(running), counts(running)
    found = dict(task.offers)
    for function, rate_rps in capacity.items():
        if rate_rps >= task.functions[function].rate_rps:
            continue
        least_rps = _HOLE_SHARE * rate_rps / number[function]
        large = tuple(tuple(o for o in here if o.window.up_rps >= least_rps) for here in task.offers[function])
        found[function] = large if any(large) else task.offers[function]
    return found


def _emptied(
    task: Task, placements: tuple[Placement, ...], proven: float, later_than: Callable[[float], Callable[[], bool]]
) -> tuple[Placement, ...]:
    """With servers that hold little emptied into the others, while the objective is not near what is proven."""
    excess = objective(task, placements) - proven * (1 + STAY_GAP)
    if proven <= 0 or excess <= 0:
        return placements
    late = later_than(_EMPTY_SHARE)
    offers = {function: task.offers[function] for function in task.functions}
    churn_cost = task.problem.churn_cost
    return consolidated(task, offers, placements, lambda saved: saved >= excess or late(), churn_cost)


def _rest(task: Task, placed: tuple[Placement, ...]) -> Task:
    """What is missing, as a task for the servers that are not in use."""
    used = {placement.server for placement in placed}
    capacity, number = capacity_rps(placed), counts(placed)
    functions = {}
    for id_, function in task.functions.items():
        rate_rps = function.rate_rps - capacity.get(id_, 0.0)
        rate_rps = rate_rps if rate_rps > NEGLIGIBLE * function.rate_rps else 0.0
        most = None if function.instances_max is None else function.instances_max - number[id_]
        least = max(0, function.instances_min - number[id_])
        if (rate_rps or least) and (most is None or most >= max(1, least)):
            functions[id_] = replace(function, rate_rps=rate_rps, instances_min=least, instances_max=most)
    classes = tuple(
        replace(kind, servers=tuple(server for server in kind.servers if server.id not in used))
        for kind in task.classes
    )
    return replace(task, problem=replace(task.problem, running=()), functions=functions, classes=classes)


def _rounded(master: Master, out_of_time: Callable[[], bool]) -> Counter[int]:
    """How often each pattern is used, in whole numbers (diving).

    The whole part of the mix first, then one pattern after the other of what is left, always the one that the mix uses
    most, with a new mix in between.
    """
    uses: Counter[int] = Counter()
    while not out_of_time() and master.solve():
        mix = master.mix()
        whole = Counter({index: math.floor(x + _WHOLE) for index, x in enumerate(mix) if x + _WHOLE >= 1})
        if not whole:
            largest = max(mix, default=0.0)
            if largest < _WHOLE:
                break
            whole = Counter({mix.index(largest): 1})
        uses += whole
        master.use(whole)
    return uses


def _seats(task: Task, goods: tuple[Goods, ...], patterns: Sequence[Pattern], uses: Counter[int]) -> list[Seat]:
    """The servers to be filled, none more than there are of a class, and no function beyond its maximum."""
    left = [len(kind.servers) for kind in task.classes]
    room = {id_: math.inf if f.instances_max is None else f.instances_max for id_, f in task.functions.items()}
    seats = []
    for index, times in sorted(uses.items()):
        pattern = patterns[index]
        offers = goods[pattern.kind].offers
        for _ in range(min(times, left[pattern.kind])):
            left[pattern.kind] -= 1
            instances = []
            for item, slot in pattern.items:
                if room[offers[item][0]] >= 1:
                    room[offers[item][0]] -= 1
                    instances.append((*offers[item], slot))
            seats.append(Seat(pattern.kind, tuple(instances)))
    return seats
