"""Patterns: rounding, seats, emptying servers, and planning on from what runs."""

from collections import Counter
from dataclasses import replace

import pytest

from infless_core.clock import ManualClock
from infless_core.model import Configuration, FunctionDemand, Gpu, Problem, ProfilePoint, Running, Server
from infless_scheduler.cluster import Cluster
from infless_scheduler.columns import goods_of, offers_worth_having
from infless_scheduler.consolidate import consolidated, lightened
from infless_scheduler.patterns import solve_by_patterns
from infless_scheduler.placement import Placement, lack, objective, task_of, unserved_rps
from infless_scheduler.planner import plan, replan
from infless_scheduler.repair import fitted, released, running_placements, touched
from infless_scheduler.seats import Seat, seated

GIB = 2**30


def _point(batch, cpu_cores, exec_s, gpu_percent=0, memory_bytes=0):
    shape = Configuration(batch=batch, cpu_cores=cpu_cores, gpu_percent=gpu_percent)
    return ProfilePoint(configuration=shape, exec_s=exec_s, memory_bytes=memory_bytes)


def _function(id_, rate_rps, *points, **more):
    return FunctionDemand(id=id_, latency_target_s=0.2, rate_rps=rate_rps, max_batch=32, profile=points, **more)


def _problem(*functions, sizes=(8,) * 4, gpus=0, **more):
    gpu = tuple(Gpu(id=f"g{n}", memory_bytes=GIB) for n in range(gpus))
    servers = tuple(Server(id=f"s{n:02}", cpu_cores=cores, memory_bytes=GIB, gpus=gpu) for n, cores in enumerate(sizes))
    return Problem(servers=servers, functions=functions, **more)


def _solve(problem, time_limit_s=10.0):
    task = task_of(problem)
    return task, solve_by_patterns(task, time_limit_s=time_limit_s, clock=ManualClock())


def _run(plan_or_placements):
    return tuple(
        Running(id=f"{p.function}-{n}", function=p.function, server=p.server, gpu=p.gpu, configuration=p.offer.configuration)
        for n, p in enumerate(plan_or_placements)
    )  # fmt: skip


QUAD, SMALL = _point(4, 4, 0.05), _point(1, 1, 0.05)


def _at(task, server, function="f", cpu_cores=4, gpu=None):
    offer = next(o for o in task.offers[function][task.class_of()[server]] if o.configuration.cpu_cores == cpu_cores)
    return Placement(function=function, server=server, gpu=gpu, offer=offer)


def test_complementary_functions_share_servers():
    """3 and 5 cores fill a server of 8; greedy packs the first function closely and has no room for the second."""
    problem = _problem(
        _function("f", 80 * 8, _point(4, 3, 0.05)), _function("g", 80 * 8, _point(4, 5, 0.05)), sizes=(8,) * 16
    )
    task, solution = _solve(problem)
    assert solution.bound == objective(task, solution.placements) == pytest.approx(8 * 0.45 * 8)
    assert plan(problem, "greedy", clock=ManualClock()).objective > solution.bound


def test_time_that_is_over_still_gives_a_plan():
    """Everything that fits is placed greedily when not even a first mix could be found."""
    problem = _problem(_function("f", 320, QUAD))
    clock = ManualClock()
    task = task_of(problem)

    class Late(ManualClock):
        def now_s(self):
            clock.advance(100.0)
            return clock.now_s()

    solution = solve_by_patterns(task, time_limit_s=1.0, clock=Late())
    made = plan(problem, "patterns", time_limit_s=1.0, clock=Late())
    assert not made.unserved
    assert solution.bound <= made.objective


def test_limits_on_instances_hold():
    """At most two instances take the fast configuration; at least three are there though one would do."""
    fast = _point(1, 4, 0.0125)
    task, solution = _solve(_problem(_function("f", 120, SMALL, fast, instances_max=2)))
    assert not lack(task, solution.placements)
    assert len(solution.placements) == 2
    _, solution = _solve(_problem(_function("f", 5, SMALL, fast, instances_min=3)))
    assert len(solution.placements) == 3


def test_small_function_beside_one_that_takes_everything():
    """With too few servers a function of one request a second gets the core that whole fillings leave."""
    problem = _problem(_function("a", 1, SMALL), _function("b", 10_000, QUAD), sizes=(9,) * 4)
    made = plan(problem, "patterns", clock=ManualClock())
    assert [unserved.function for unserved in made.unserved] == ["b"]


def test_seat_goes_where_most_of_it_runs():
    """The server that runs two of three is taken before one that runs one; the rest fills what is empty."""
    task = task_of(_problem(_function("f", 320, SMALL, QUAD)))
    one, four = _at(task, "s00", cpu_cores=1).offer, _at(task, "s00").offer
    running = _run([_at(task, "s01", cpu_cores=1), _at(task, "s02", cpu_cores=1), _at(task, "s02")])
    task = task_of(replace(task.problem, running=running))
    seats = [Seat(0, (("f", one, None), ("f", four, None))), Seat(0, (("f", four, None),))]
    placements = seated(task, seats)
    assert Counter((p.server, p.offer.configuration.cpu_cores) for p in placements) == {
        ("s02", 1): 1, ("s02", 4): 1, ("s00", 4): 1,
    }  # fmt: skip


def test_seat_keeps_its_gpu():
    """Of equal GPUs the one on which it runs."""
    task = task_of(_problem(_function("f", 80, _point(4, 4, 0.05, gpu_percent=60)), gpus=2))
    running = _run([_at(task, "s01", gpu="g1")])
    task = task_of(replace(task.problem, running=running))
    placements = seated(task, [Seat(0, (("f", _at(task, "s00").offer, 0),))])
    assert [(p.server, p.gpu) for p in placements] == [("s01", "g1")]


def test_emptying_a_server():
    """One instance on a server of its own moves beside another, not the other way round."""
    task = task_of(_problem(_function("f", 240, QUAD)))
    placements = [_at(task, "s00"), _at(task, "s00"), _at(task, "s01")]
    fewer = replace(task.functions["f"], rate_rps=240)
    assert len({p.server for p in consolidated(task, task.offers, placements, lambda _: False)}) == 2
    two = [_at(task, "s00"), _at(task, "s01")]
    less = task_of(replace(task.problem, functions=(replace(fewer, rate_rps=160),)))
    assert len({p.server for p in consolidated(less, less.offers, two, lambda _: False)}) == 1


def test_emptying_stops_when_told():
    """With what has been saved so far, so that no more moves than needed."""
    task = task_of(_problem(_function("f", 160, QUAD)))
    two = [_at(task, "s00"), _at(task, "s01")]
    assert consolidated(task, task.offers, two, lambda saved: saved >= 0) == tuple(two)


def test_lighter_configuration_in_the_same_place():
    """What a function does not need is given back, without moving anything."""
    task = task_of(_problem(_function("f", 85, SMALL, QUAD)))
    offers = offers_worth_having(task, goods_of(task))
    before = [_at(task, "s00"), _at(task, "s01")]
    after = lightened(task, offers, before)
    assert [(p.server, p.offer.configuration.cpu_cores) for p in after] == [("s00", 1), ("s01", 4)]
    assert not unserved_rps(task, after)


def test_threshold_comes_before_the_higher_rate():
    """Of two batches that hold the same, the one whose threshold the rate reaches, though the other bears more."""
    problem = _problem(_function("f", 75, _point(4, 2, 0.05), _point(32, 2, 0.1)))
    made = plan(problem, "patterns", clock=ManualClock())
    assert [instance.configuration.batch for instance in made.instances] == [4]


def test_what_runs_is_known_again():
    """Not on a server that is being drained, nor in a configuration that no longer meets the target."""
    problem = _problem(_function("f", 80, QUAD))
    task = task_of(problem)
    running = _run([_at(task, "s00"), _at(task, "s01")])
    other = Running(id="x", function="f", server="s02", gpu=None, configuration=Configuration(batch=9, cpu_cores=4))
    servers = (replace(problem.servers[0], draining=True), *problem.servers[1:])
    task = task_of(replace(problem, servers=servers, running=(*running, other)))
    assert [p.server for p in running_placements(task)] == ["s01"]


def test_a_server_that_shrank_keeps_what_fits():
    """The heaviest goes first."""
    task = task_of(_problem(_function("f", 400, SMALL, QUAD), sizes=(6,)))
    placements = (_at(task, "s00"), _at(task, "s00"), _at(task, "s00", cpu_cores=1))
    kept = fitted(task, placements, Cluster(task, placements))
    assert [p.offer.configuration.cpu_cores for p in kept] == [4, 1]


def test_surplus_is_released_where_least_is_held():
    """So that a server becomes empty."""
    task = task_of(_problem(_function("f", 160, QUAD)))
    placements = (_at(task, "s00"), _at(task, "s00"), _at(task, "s01"))
    assert {p.server for p in released(task, placements, Cluster(task, placements))} == {"s00"}


def test_resizing_touches_once_and_moving_twice():
    """A start, a stop, a resize count one each."""
    problem = _problem(_function("f", 80, SMALL, QUAD))
    task = task_of(problem)
    task = task_of(replace(problem, running=_run([_at(task, "s00", cpu_cores=1)])))
    assert touched(task, (_at(task, "s00", cpu_cores=1),)) == 0
    assert touched(task, (_at(task, "s00"),)) == 1
    assert touched(task, (_at(task, "s01", cpu_cores=1),)) == 2
    assert touched(task, ()) == 1


def test_near_enough_is_left_alone():
    """A plan within two percent of the bound is carried on, whatever else would be a little better."""
    problem = _problem(_function("f", 80 * 200, QUAD), sizes=(8,) * 102)
    first, memory = replan(problem, None, "patterns", clock=ManualClock())
    running = [Running(id=i.id, function="f", server=i.server, gpu=None, configuration=i.configuration)
               for i in first.instances]  # fmt: skip
    running[0] = replace(running[0], server="s99")  # by id the last one, and empty
    made, _ = replan(replace(problem, running=tuple(running)), memory, "patterns", clock=ManualClock())
    assert {i.action for i in made.instances} == {"keep"}
    assert made.objective == pytest.approx(first.objective + 0.45 * 8)


def test_instances_that_stay_as_they_are_are_taken_over():
    """The very values of the plan before, once they are kept ones; not those whose rate has changed."""
    problem = _problem(_function("f", 150, QUAD), _function("g", 150, QUAD))
    first, memory = replan(problem, None, "patterns", clock=ManualClock())
    running = tuple(Running(id=i.id, function=i.function, server=i.server, gpu=None, configuration=i.configuration)
                    for i in first.instances)  # fmt: skip
    second, memory = replan(replace(problem, running=running), memory, "patterns", clock=ManualClock())
    less = (replace(problem.functions[0], rate_rps=145), problem.functions[1])
    third, _ = replan(replace(problem, running=running, functions=less), memory, "patterns", clock=ManualClock())
    same = {i.function: any(i is old for old in second.instances) for i in third.instances}
    assert same == {"f": False, "g": True}
    assert [i.rate_rps for i in third.instances if i.function == "f"] == [72.5, 72.5]


def test_larger_batches_come_before_new_instances():
    """On the same cores: one resize instead of a start. A larger batch that does not fit by memory is no help."""
    problem = _problem(_function("f", 130, _point(4, 4, 0.05), _point(8, 4, 0.055, memory_bytes=GIB // 2)))
    task = task_of(problem)
    running = _run([_at(task, "s00")])
    made = plan(replace(problem, running=running), "patterns", clock=ManualClock())
    assert [(i.id, i.action, i.configuration.batch) for i in made.instances] == [("f-0", "resize", 8)]
    two = replace(problem, running=_run([_at(task, "s00"), _at(task, "s00")]),
                  functions=(replace(problem.functions[0], rate_rps=288),))  # fmt: skip
    made = plan(two, "patterns", clock=ManualClock())
    assert [i.action for i in made.instances] == ["resize", "resize"]
    full = (replace(problem.functions[0].profile[1], memory_bytes=GIB + 1),)
    tight = replace(two, functions=(replace(two.functions[0], profile=problem.functions[0].profile[:1] + full),))
    made = plan(tight, "patterns", clock=ManualClock())
    assert Counter(i.action for i in made.instances) == {"keep": 2, "start": 2}


def test_what_is_far_from_the_bound_is_planned_anew_unless_churn_costs_more():
    """Half-empty servers are given up; not when touching an instance costs more than a server."""
    problem = _problem(_function("f", 80 * 4, QUAD), sizes=(8,) * 8)
    task = task_of(problem)
    spread = replace(problem, running=_run([_at(task, f"s0{n}") for n in range(4)]))
    assert plan(spread, "patterns", clock=ManualClock()).servers_used == 2
    dear = replace(spread, churn_cost=100.0)
    assert plan(dear, "patterns", clock=ManualClock()).servers_used == 4
    assert plan(dear, "exact", clock=ManualClock()).servers_used == 4
    assert plan(spread, "exact", clock=ManualClock()).servers_used == 2


def test_only_the_changed_function_is_touched():
    """More of one function starts instances of it, and nothing else changes."""
    problem = _problem(_function("f", 800, QUAD), _function("g", 80 * 9, _point(4, 3, 0.05)), sizes=(8,) * 20)
    first, memory = replan(problem, None, "patterns", clock=ManualClock())
    running = tuple(Running(id=i.id, function=i.function, server=i.server, gpu=None, configuration=i.configuration)
                    for i in first.instances)  # fmt: skip
    more = replace(problem.functions[0], rate_rps=960)
    after = replace(problem, functions=(more, problem.functions[1]), running=running)
    made, _ = replan(after, memory, "patterns", clock=ManualClock())
    assert Counter(i.action for i in made.instances if i.function == "g") == {"keep": 9}
    assert Counter(i.action for i in made.instances if i.function == "f") == {"keep": 10, "start": 2}
    assert not made.stop


def test_servers_that_differ_in_memory_nobody_can_use_are_one_class():
    """Eight cores of four with half a GiB each use one GiB at most; less than that makes a class of its own."""
    point = _point(4, 4, 0.05, memory_bytes=GIB // 2)
    servers = tuple(
        Server(id=f"s{n}", cpu_cores=8, memory_bytes=size)
        for n, size in enumerate((GIB + 5, 2 * GIB + 1, 9 * GIB, GIB - 1))
    )
    task = task_of(Problem(servers=servers, functions=(_function("f", 80, point),)))
    assert [[server.id for server in kind.servers] for kind in task.classes] == [["s0", "s1", "s2"], ["s3"]]


def test_many_equal_seats_keep_what_runs():
    """Hundreds of servers that run the same are matched at once, and every instance stays."""
    problem = _problem(_function("f", 80 * 300, QUAD), sizes=(8,) * 300)
    task = task_of(problem)
    running = [_at(task, f"s{n:02}") for n in range(150, 300) for _ in range(2)]
    task = task_of(replace(problem, running=_run(running)))
    offer = running[0].offer
    placements = seated(task, [Seat(0, (("f", offer, None), ("f", offer, None)))] * 150)
    assert touched(task, placements) == 0
