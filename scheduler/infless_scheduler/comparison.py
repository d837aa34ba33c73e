"""Two plans beside each other: what a what-if costs, serves and moves."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

from infless_core.model import Plan, PlanAction, Problem

_NOISE = 1e-9
"""Differences of so small a share of the values are rounding."""
_TOTALS = ("objective", "bound", "servers_used", "instances", "allocated", "fragmentation", "unserved_rps")
_OF_FUNCTION = ("rate_rps", "instances", "cpu_cores", "gpu_percent", "unserved_rps")
_WORDS = {
    "servers_used": "servers used", "unserved_rps": "unserved/s", "rate_rps": "RATE/S", "instances": "INSTANCES",
    "cpu_cores": "CORES", "gpu_percent": "GPU%",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One number before and after."""

    before: float
    after: float

    @property
    def difference(self) -> float:
        """After less before; 0 where that is rounding."""
        difference = self.after - self.before
        return 0.0 if abs(difference) <= _NOISE * max(abs(self.before), abs(self.after)) else difference


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionPair:
    """One function in both plans."""

    function: str
    rate_rps: Pair
    instances: Pair
    cpu_cores: Pair
    gpu_percent: Pair
    unserved_rps: Pair

    @property
    def differs(self) -> bool:
        """Whether it is given other instances, or served otherwise."""
        return any(pair.difference for pair in (self.instances, self.cpu_cores, self.gpu_percent, self.unserved_rps))


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What changes do to a plan, and what the new plan does to what runs."""

    objective: Pair
    bound: Pair
    servers_used: Pair
    instances: Pair
    allocated: Pair
    fragmentation: Pair
    unserved_rps: Pair
    functions: tuple[FunctionPair, ...]
    """Those that differ, by id."""
    started: int
    stopped: int
    resized: int
    kept: int
    gone: int
    """Instances that run on servers which the changes take away; they are not among the stopped ones."""

    @property
    def is_proven(self) -> bool:
        """Whether the difference of the objectives has the same sign for the best plans, which may not be these two."""
        difference = self.objective.difference
        if difference > 0:
            return self.bound.after > self.objective.before
        if difference < 0:
            return self.objective.after < self.bound.before
        return self.bound.before == self.objective.before and self.bound.after == self.objective.after


def compare(before: Plan, after: Plan, problem_before: Problem, problem_after: Problem) -> Comparison:
    """Two plans, each with the problem that it is for; the second may have other servers and what runs on them."""
    actions = Counter(instance.action for instance in after.instances)
    return Comparison(
        objective=Pair(before=before.objective, after=after.objective),
        bound=Pair(before=before.bound, after=after.bound),
        servers_used=Pair(before=before.servers_used, after=after.servers_used),
        instances=Pair(before=len(before.instances), after=len(after.instances)),
        allocated=Pair(before=before.allocated, after=after.allocated),
        fragmentation=Pair(before=before.fragmentation, after=after.fragmentation),
        unserved_rps=Pair(before=_unserved_rps(before), after=_unserved_rps(after)),
        functions=_functions(_by_function(problem_before, before), _by_function(problem_after, after)),
        started=actions[PlanAction.START],
        stopped=len(after.stop),
        resized=actions[PlanAction.RESIZE],
        kept=actions[PlanAction.KEEP],
        gone=len({one.id for one in problem_before.running} - {one.id for one in problem_after.running}),
    )


def _unserved_rps(plan: Plan) -> float:
    return sum(unserved.rate_rps for unserved in plan.unserved)


_Numbers = dict[str, float]


def _by_function(problem: Problem, plan: Plan) -> dict[str, _Numbers]:
    found: defaultdict[str, _Numbers] = defaultdict(lambda: dict.fromkeys(_OF_FUNCTION, 0.0))
    for function in problem.functions:
        found[function.id]["rate_rps"] = function.rate_rps
    for instance in plan.instances:
        numbers = found[instance.function]
        numbers["instances"] += 1
        numbers["cpu_cores"] += instance.configuration.cpu_cores
        numbers["gpu_percent"] += instance.configuration.gpu_percent
    for unserved in plan.unserved:
        found[unserved.function]["unserved_rps"] += unserved.rate_rps
    return found


def _functions(before: dict[str, _Numbers], after: dict[str, _Numbers]) -> tuple[FunctionPair, ...]:
    none = dict.fromkeys(_OF_FUNCTION, 0.0)
    pairs = (
        FunctionPair(
            function=id_,
            **{
                name: Pair(before=before.get(id_, none)[name], after=after.get(id_, none)[name])
                for name in _OF_FUNCTION
            },
        )
        for id_ in sorted(before.keys() | after.keys())
    )
    return tuple(pair for pair in pairs if pair.differs)


def comparison_to_json(comparison: Comparison) -> dict[str, Any]:
    """As one JSON object, keys in the order of the tables."""
    return {
        "totals": {name: _pair_to_json(getattr(comparison, name)) for name in _TOTALS},
        "difference_is_proven": comparison.is_proven,
        "functions": [
            {"function": one.function, **{name: _pair_to_json(getattr(one, name)) for name in _OF_FUNCTION}}
            for one in comparison.functions
        ],
        "actions": {name: getattr(comparison, name) for name in ("started", "stopped", "resized", "kept", "gone")},
    }


def _pair_to_json(pair: Pair) -> dict[str, float]:
    return {"before": pair.before, "after": pair.after, "difference": pair.difference}


def comparison_as_text(comparison: Comparison) -> str:
    """For people: the totals, the functions that differ, and what would happen to what runs."""
    totals: list[tuple[str, ...]] = [("", "BEFORE", "AFTER", "DIFFERENCE")]
    for name in _TOTALS:
        pair: Pair = getattr(comparison, name)
        share = name == "fragmentation"
        cells = (_told(pair.before, share), _told(pair.after, share), _told(pair.difference, share, sign=True))
        totals.append((_WORDS.get(name, name).lower(), *cells))
    lines = _table(totals)
    if not comparison.is_proven:
        lines.append("the sign of the objective's difference is not proven: better plans may exist; allow more time")
    if comparison.functions:
        heads = ("FUNCTION", *(_WORDS.get(name, name).upper() for name in _OF_FUNCTION))
        lines += ["", *_table([heads, *(_row(one) for one in comparison.functions)])]
    gone = f", {comparison.gone} gone with their servers" if comparison.gone else ""
    counts = f"{comparison.started} started, {comparison.stopped} stopped, {comparison.resized} resized"
    lines += ["", f"from what runs now: {counts}, {comparison.kept} kept{gone}"]
    return "\n".join(lines)


def _row(one: FunctionPair) -> tuple[str, ...]:
    pairs: list[Pair] = [getattr(one, name) for name in _OF_FUNCTION]
    cells = (f"{_told(pair.before)} -> {_told(pair.after)}" if pair.difference else _told(pair.after) for pair in pairs)
    return (one.function, *cells)


def _told(value: float, share: bool = False, *, sign: bool = False) -> str:
    plus = "+" if sign and value > 0 else ""
    return f"{plus}{value:.1%}" if share else f"{plus}{round(value, 3) + 0.0:.12g}"


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    """The first column to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
