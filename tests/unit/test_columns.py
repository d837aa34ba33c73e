"""Column generation: the mix, its proof, and what the proof says of other rates."""

from dataclasses import replace

import pytest

from infless_core.model import Configuration, FunctionDemand, Gpu, Problem, ProfilePoint, Server
from infless_scheduler.columns import Master, generate, goods_of, offers_worth_having, price_bound, start
from infless_scheduler.milp import GrowingProgram
from infless_scheduler.placement import task_of


def _point(batch, cpu_cores, exec_s, gpu_percent=0):
    shape = Configuration(batch=batch, cpu_cores=cpu_cores, gpu_percent=gpu_percent)
    return ProfilePoint(configuration=shape, exec_s=exec_s)


def _function(id_, rate_rps, *points, **more):
    return FunctionDemand(id=id_, latency_target_s=0.2, rate_rps=rate_rps, max_batch=32, profile=points, **more)


def _problem(*functions, servers=10, cpu_cores=8, gpus=0):
    gpu = tuple(Gpu(id=f"g{n}", memory_bytes=100) for n in range(gpus))
    return Problem(
        servers=tuple(Server(id=f"s{n:02}", cpu_cores=cpu_cores, memory_bytes=100, gpus=gpu) for n in range(servers)),
        functions=functions,
    )


def _generated(problem, gap=1e-9):
    task = task_of(problem)
    master = Master(task, goods_of(task))
    start(master, lambda: False)
    return task, master, generate(master, gap=gap, out_of_time=lambda: False)


def test_mix_of_two_complementary_functions():
    """5 + 3 cores fill a server of 8: neither function alone does, so the mix of both needs 4 servers for 4 of each."""
    problem = _problem(_function("f", 320, _point(4, 5, 0.05)), _function("g", 320, _point(4, 3, 0.05)))
    _, master, mixed = _generated(problem)
    assert master.cost == pytest.approx(4 * 0.45 * 8)
    assert mixed.bound == pytest.approx(master.cost)


def test_sliver_of_an_instance_serves_nobody():
    """A function that one instance carries alone counts with a whole instance, not with the part of it that is used."""
    _, _, mixed = _generated(_problem(_function("f", 1, _point(1, 4, 0.05))))
    assert mixed.bound == pytest.approx(0.5 * 0.45 * 8)


def test_prices_prove_other_rates():
    """What the duals of one plan prove of a higher or lower rate is what a new mix would find."""
    problem = _problem(_function("f", 320, _point(4, 5, 0.05)), _function("g", 320, _point(4, 3, 0.05)), servers=40)
    _, _, mixed = _generated(problem)
    for factor in (0.5, 1.0, 2.0):
        other = replace(problem, functions=tuple(replace(f, rate_rps=f.rate_rps * factor) for f in problem.functions))
        assert price_bound(task_of(other), mixed.prices) == pytest.approx(_generated(other)[2].bound)


def test_prices_of_a_function_that_one_instance_carried_prove_no_more():
    """Of a higher rate they prove what they prove of the old one: the instance may carry more of it."""
    small = _problem(_function("f", 1, _point(1, 4, 0.05)))
    _, _, mixed = _generated(small)
    larger = replace(small, functions=(replace(small.functions[0], rate_rps=19),))
    assert price_bound(task_of(larger), mixed.prices) <= _generated(larger)[2].bound + 1e-9


def test_prices_found_under_a_limit_prove_nothing_without_it():
    """A price below zero for each instance needs the maximum that it comes from."""
    limited = _problem(_function("f", 60, _point(1, 1, 0.05), _point(1, 4, 0.025), instances_max=2))
    _, _, mixed = _generated(limited)
    assert min(mixed.prices.instance.values()) < 0
    free = replace(limited, functions=(replace(limited.functions[0], instances_max=None),))
    assert price_bound(task_of(free), mixed.prices) == 0.0


def test_too_few_servers_are_a_lack_not_a_failure():
    """What one server cannot carry is unserved in the mix, and the bound counts it as the mix does."""
    _, master, mixed = _generated(_problem(_function("f", 1000, _point(4, 4, 0.05)), servers=1))
    assert master.cost == pytest.approx(mixed.bound)
    assert master.cost > 10 * 0.45 * 8


def test_beaten_offers_are_not_tried():
    """More cores for the same rate are of no use; memory that never binds does not keep an offer."""
    task = task_of(_problem(_function("f", 100, _point(4, 2, 0.05), _point(4, 3, 0.05), _point(8, 2, 0.1))))
    found = offers_worth_having(task, goods_of(task))
    assert [offer.configuration.cpu_cores for offer in found["f"][0]] == [2]


def test_library_that_fails_proves_nothing(monkeypatch):
    """No exception, and a bound of 0."""
    monkeypatch.setattr(GrowingProgram, "solve", lambda self: False)
    _, _, mixed = _generated(_problem(_function("f", 100, _point(4, 4, 0.05))))
    assert (mixed.bound, mixed.prices) == (0.0, None)
