"""The placement engine: proofs, sizes, times, stability. `python -m benchmarks.planner [part ...]`.

Each part runs in a process of its own on one core and makes one record, `results/planner-PART.json`; `curves` draws
`docs/reference/planner-curves.png`. Problems are seeded (`benchmarks/problems.py`). Times are of `plan()` and of
`replan()` whole: ordering, solving, naming the instances, the independent check.
"""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.problems import fleet, paper_cluster
from infless_core.clock import SystemClock
from infless_core.model import Plan, PlanAction, Problem, Running
from infless_scheduler.columns import Master, generate, goods_of, start
from infless_scheduler.exact import solve_exactly
from infless_scheduler.greedy import better_greedy
from infless_scheduler.placement import Task, lack, objective, task_of
from infless_scheduler.planner import SOLVERS, plan, replan

ROUNDS = 5
PICTURE = Path(__file__).parent.parent / "docs" / "reference" / "planner-curves.png"
SIZES = ((125, 10), (250, 10), (500, 20), (1000, 20), (2000, 40), (4000, 80), (8000, 160), (16000, 320))
LIMITS_S = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)


def main(parts: list[str]) -> None:
    """Run the parts that are named, or all."""
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        sys.exit(f"unknown: {', '.join(unknown)}; parts are {', '.join(PARTS)}")
    for part in parts or PARTS:
        print(f"planner {part}", file=sys.stderr)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            results = pool.apply(_alone, (part,))
        record.write(f"planner-{part}", f"python -m benchmarks.planner {part}", results)


def _alone(part: str) -> dict[str, Any]:
    """Run a part on one core, with the time that warming up takes left out of it."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    plan(paper_cluster(), "patterns")
    return PARTS[part]()


def paper() -> dict[str, Any]:
    """The paper's cluster: 8 servers of 16 cores and 2 GPUs, six functions (OSVT and Q&A); every solver, two loads."""
    results = {}
    for load in (0.4, 1.0):
        problem = paper_cluster(load)
        solvers = {solver: _timed(lambda solver=solver, problem=problem: plan(problem, solver)) for solver in SOLVERS}
        results[f"load {load}"] = {"solvers": solvers, "mix": _mix(task_of(problem))}
    return results


def scratch() -> dict[str, Any]:
    """2,000 servers, 40 functions, from scratch: of the paper's class, and of three classes with GPU wishes."""
    return {name: _from_scratch(fleet(2000, 40, fill=1.15, mixed=mixed)) for name, mixed in _KINDS}


_KINDS = (("alike", False), ("mixed", True))


def _from_scratch(problem: Problem) -> dict[str, Any]:
    task = task_of(problem)
    patterns, greedy = (_timed(lambda solver=solver: plan(problem, solver)) for solver in ("patterns", "greedy"))
    better = better_greedy(task)
    worth = objective(task, better)
    return {
        "patterns": patterns,
        "greedy": greedy,
        "greedy_by_scarcity": {"objective": worth, "lack": lack(task, better), "instances": len(better)},
        "objective_below_greedy_that_serves_less": 1 - patterns["objective"] / greedy["objective"],
        "objective_below_greedy_by_scarcity": 1 - patterns["objective"] / worth,
        "mix": _mix(task),
    }


def changed() -> dict[str, Any]:
    """The same, running, with one function's rate 20 % up or down: each function in turn."""
    results: dict[str, Any] = {}
    for name, mixed in _KINDS:
        problem = fleet(2000, 40, fill=1.15, mixed=mixed)
        first, memory = replan(problem, None)
        problem = replace(problem, running=_running(first))
        _, memory = replan(problem, memory)  # as a system that has been running has it
        gc.collect()
        rows = []
        for function in problem.functions:
            for factor in (0.8, 1.2):
                after = replace(
                    problem,
                    functions=tuple(
                        replace(f, rate_rps=f.rate_rps * (factor if f is function else 1)) for f in problem.functions
                    ),
                )
                begun_s = time.perf_counter()
                made, _ = replan(after, memory)
                took_s = time.perf_counter() - begun_s
                rows.append(_change(memory.task, first, made, function.id, factor, took_s))
        results[name] = {"instances": len(first.instances), **_changes(rows), "rows": rows}
        results[name]["without_memory_s"] = _timed(lambda after=after: plan(after))["seconds"]
    return results


def _change(task: Task, first: Plan, made: Plan, function: str, factor: float, took_s: float) -> dict[str, Any]:
    own = [i for i in first.instances if i.function == function]
    alpha, rate_rps = task.problem.alpha, factor * math.fsum(i.rate_rps for i in own)
    # Whatever the plan, so many instances have to be touched: a touch adds at most the fastest offer's rate; and until
    # the threshold is met, it takes at most the highest threshold away.
    fastest = max(offer.window.up_rps for here in task.offers[function] for offer in here)
    thresholds = [alpha * i.rate_up_rps + (1 - alpha) * i.rate_low_rps for i in own]
    lacking, excess = rate_rps - math.fsum(i.rate_up_rps for i in own), math.fsum(thresholds) - rate_rps
    needed = max(0, math.ceil(lacking / fastest - 1e-6), math.ceil(excess / max(thresholds) - 1e-6))
    touched = sum(i.action is not PlanAction.KEEP for i in made.instances) + len(made.stop)
    return {
        "function": function,
        "factor": factor,
        "seconds": took_s,
        "own_instances": len(own),
        "touched": touched,
        "touched_share": touched / len(first.instances),
        "needed": needed,
        "gap": made.gap,
        "unserved": len(made.unserved),
    }


def _changes(rows: list[dict[str, Any]]) -> dict[str, Any]:
    shares, seconds = [row["touched_share"] for row in rows], sorted(row["seconds"] for row in rows)
    return {
        "seconds": {"median": statistics.median(seconds), "p95": seconds[int(0.95 * len(seconds))], "max": seconds[-1]},
        "touched_share": {"median": statistics.median(shares), "max": max(shares)},
        "above_1_percent": [
            {key: row[key] for key in ("function", "factor", "touched", "needed")}
            for row in rows
            if row["touched_share"] > 0.01
        ],
        "gap_max": max(row["gap"] for row in rows),
    }


def large() -> dict[str, Any]:
    """20,000 servers, 400 functions, from scratch, with the memory of the process."""
    results = {}
    for name, mixed in _KINDS:
        problem = fleet(20_000, 400, fill=1.15, mixed=mixed)
        results[name] = _timed(lambda problem=problem: plan(problem, "patterns", time_limit_s=60), rounds=1)
    results["peak_memory_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return results


def curves() -> dict[str, Any]:
    """Objective over time for exact, patterns and greedy, and solve time over size, as a picture."""
    problem = fleet(40, 8, fill=1.0)
    anytime = {
        solver: [_row(plan(problem, solver, time_limit_s=limit_s), limit_s) for limit_s in limits]
        for solver, limits in (("exact", LIMITS_S[:8]), ("patterns", LIMITS_S[:8]), ("greedy", LIMITS_S[:1]))
    }
    anytime["Eq. 2 to 9 alone"] = [_alone_row(task_of(problem), limit_s) for limit_s in LIMITS_S[3:]]
    sizes = []
    for servers, functions in SIZES:
        timed = _timed(
            lambda s=servers, f=functions: plan(fleet(s, f, fill=1.15), "patterns", time_limit_s=60), rounds=1
        )
        sizes.append({"servers": servers, "functions": functions, **timed})
        print(f"  {servers} servers: {timed['seconds']['median']:.2f} s", file=sys.stderr)
    exponent = _slope([math.log(r["servers"]) for r in sizes], [math.log(r["seconds"]["median"]) for r in sizes])
    _draw(anytime, sizes, exponent)
    return {"anytime": {"problem": "40 servers, 8 functions", **anytime}, "sizes": sizes, "exponent": exponent}


def _alone_row(task: Task, limit_s: float) -> dict[str, Any]:
    """The paper's model by itself, from the greedy plan on: what patterns save."""
    begun_s = time.perf_counter()
    solution = solve_exactly(task, better_greedy(task), time_limit_s=limit_s, clock=SystemClock())
    return {
        "limit_s": limit_s,
        "seconds": time.perf_counter() - begun_s,
        "objective": objective(task, solution.placements),
        "bound": solution.bound,
        "lack": lack(task, solution.placements),
    }


def _row(made: Plan, limit_s: float) -> dict[str, Any]:
    return {
        "limit_s": limit_s, "seconds": made.solve_s, "objective": made.objective, "bound": made.bound,
        "unserved": len(made.unserved), "solver": made.solver,
    }  # fmt: skip


def _slope(xs: list[float], ys: list[float]) -> float:
    return statistics.linear_regression(xs, ys).slope


def _draw(anytime: dict[str, list[dict[str, Any]]], sizes: list[dict[str, Any]], exponent: float) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import NullFormatter

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
    for (solver, rows), marker in zip(anytime.items(), "os^x", strict=True):
        left.plot([r["seconds"] for r in rows], [r["objective"] for r in rows], marker=marker, label=solver)
    bound = max(row["bound"] for rows in anytime.values() for row in rows)
    left.axhline(bound, color="grey", linestyle=":", label="proven bound")
    left.set(xscale="log", xlabel="seconds", ylabel="objective", title="Objective over time: 40 servers, 8 functions")
    left.xaxis.set_minor_formatter(NullFormatter())
    left.legend()
    servers = [row["servers"] for row in sizes]
    right.plot(servers, [row["seconds"]["median"] for row in sizes], marker="o")
    right.set(xscale="log", yscale="log", xlabel="servers (50 to a function)", ylabel="seconds")
    right.set_title(f"patterns from scratch: time grows as servers^{exponent:.2f}")
    right.grid(visible=True, which="both", alpha=0.3)
    figure.tight_layout()
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=110)


def _running(made: Plan) -> tuple[Running, ...]:
    return tuple(
        Running(id=i.id, function=i.function, server=i.server, gpu=i.gpu, configuration=i.configuration)
        for i in made.instances
    )


def _timed(make: Callable[[], Plan], rounds: int = ROUNDS) -> dict[str, Any]:
    """A plan's figures, and how long it took each time."""
    seconds = []
    for _ in range(rounds):
        gc.collect()
        begun_s = time.perf_counter()
        made = make()
        seconds.append(time.perf_counter() - begun_s)
    return {
        "solver": made.solver, "status": str(made.status), "objective": made.objective, "bound": made.bound,
        "gap": made.gap, "instances": len(made.instances), "servers_used": made.servers_used,
        "fragmentation": made.fragmentation, "unserved_rps": math.fsum(u.rate_rps for u in made.unserved),
        "seconds": {"median": statistics.median(seconds), "all": seconds},
    }  # fmt: skip


def _mix(task: Task) -> dict[str, Any]:
    """What the best mix in parts of servers reaches: the bound on the objective, and what it leaves unallocated."""
    goods = goods_of(task)
    master = Master(task, goods)
    start(master, lambda: False)
    mixed = generate(master, gap=1e-6, out_of_time=lambda: False)
    master.solve()
    beta = task.problem.beta
    capacity = held = 0.0
    for pattern, times in zip(master.patterns, master.mix(), strict=True):
        offers = goods[pattern.kind].offers
        capacity += times * task.classes[pattern.kind].cost(beta)
        held += times * math.fsum(offers[item][1].weight(beta) for item, _ in pattern.items)
    return {"bound": mixed.bound, "cost": master.cost, "fragmentation": 1 - held / capacity, "rounds": mixed.rounds}


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "paper": paper, "scratch": scratch, "changed": changed, "large": large, "curves": curves,
}  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
