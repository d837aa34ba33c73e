"""The paper's greedy algorithm, and the cases the paper leaves open."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infless_core.model import Configuration, FunctionDemand, Gpu, Problem, ProfilePoint, Running, Server
from infless_scheduler.greedy import greedy
from infless_scheduler.placement import (
    Placement,
    capacity_rps,
    objective,
    objective_bound,
    task_of,
    trimmed,
    unserved_rps,
)

GIB = 2**30


def _servers(count=2, cpu_cores=8, gpus=1):
    gpu = tuple(Gpu(id=f"g{n}", memory_bytes=GIB) for n in range(gpus))
    return tuple(Server(id=f"s{n}", cpu_cores=cpu_cores, memory_bytes=GIB, gpus=gpu) for n in range(count))


def _task(rate_rps, *points, servers=None, running=(), beta=0.45):
    profile = tuple(
        ProfilePoint(configuration=Configuration(batch=b, cpu_cores=c, gpu_percent=g), exec_s=t)
        for b, c, g, t in points
    )
    function = FunctionDemand(id="f", latency_target_s=0.2, rate_rps=rate_rps, max_batch=32, profile=profile)
    problem = Problem(servers=servers or _servers(), functions=(function,), running=running, beta=beta)
    return task_of(problem)


def _shapes(placements):
    return Counter((p.offer.configuration.batch, p.offer.configuration.cpu_cores) for p in placements)


def test_largest_batch_first_then_what_the_residue_fills():
    """80 by a batch of 4, and the last 15 by a single, as 15 would not fill another batch."""
    placements = greedy(_task(95, (4, 2, 0, 0.05), (1, 1, 0, 0.05)))
    assert _shapes(placements) == {(4, 2): 1, (1, 1): 1}


def test_throughput_per_resource_decides():
    """Of two configurations for the same batch the one with more requests per weight is taken (Eq. 10)."""
    placements = greedy(_task(300, (4, 4, 0, 0.04), (4, 1, 0, 0.05)))
    assert _shapes(placements) == {(4, 1): 4}


def test_instances_gather_on_the_fuller_server():
    """The score's denominator prefers the server on which less would stay free."""
    assert {p.server for p in greedy(_task(160, (4, 2, 0, 0.05)))} == {"s0"}


def test_exact_fit_is_no_division_by_zero():
    """An instance that fills its server completely is the best fit there is."""
    servers = (*_servers(1, cpu_cores=3, gpus=0), Server(id="t", cpu_cores=2, memory_bytes=GIB))
    assert [p.server for p in greedy(_task(60, (4, 2, 0, 0.05), servers=servers))] == ["t"]


def test_weightless_resources_are_no_division_by_zero():
    """A core worth nothing (beta 0) still scores."""
    assert greedy(_task(60, (4, 2, 0, 0.05), beta=0.0, servers=_servers(gpus=0)))


def test_small_residue_idles_an_instance():
    """Too little for any batch and no single at hand: the lightest instance takes it."""
    assert _shapes(greedy(_task(5, (4, 2, 0, 0.05), (8, 4, 0, 0.05)))) == {(4, 2): 1}


def test_full_cluster_leaves_the_rest_unserved():
    """It stops when nothing fits, with every core in use."""
    task = _task(10_000, (4, 2, 0, 0.05))
    placements = greedy(task)
    assert sum(p.offer.configuration.cpu_cores for p in placements) == 16
    assert unserved_rps(task, placements) == pytest.approx({"f": 10_000 - 8 * 80})


def test_gpu_share_is_packed_on_the_fullest_gpu_that_fits():
    """Two shares of 40 percent share a GPU, the third gets the other."""
    placements = greedy(_task(240, (4, 1, 40, 0.05), servers=_servers(1, gpus=2)))
    assert [p.gpu for p in placements] == ["g0", "g0", "g1"]


def test_ties_go_to_where_the_function_runs():
    """Of equal servers the one that need not start anything is taken."""
    shape = Configuration(batch=4, cpu_cores=2)
    running = (Running(id="f-1", function="f", server="s1", gpu=None, configuration=shape),)
    assert [p.server for p in greedy(_task(60, (4, 2, 0, 0.05), running=running))] == ["s1"]


def test_what_is_placed_already_stays_and_counts():
    """Only what the given placements leave unserved is placed, in the room they leave."""
    task = _task(400, (4, 4, 0, 0.05), servers=_servers(2, cpu_cores=8))
    first = greedy(task)[:2]
    assert greedy(task, first)[:2] == first
    assert Counter(p.server for p in greedy(task, first)) == {"s0": 2, "s1": 2}


def test_trimming_drops_what_no_rate_needs():
    """A redundant instance goes, the heaviest first."""
    task = _task(80, (4, 2, 0, 0.05), (4, 4, 0, 0.05))
    light, heavy = (Placement(function="f", server="s0", gpu=None, offer=offer) for offer in task.offers["f"][0])
    assert trimmed(task, (heavy, light)) == trimmed(task, (light, heavy)) == (light,)


points = st.tuples(
    st.sampled_from([1, 2, 4]), st.integers(1, 9), st.sampled_from([0, 0, 30, 100]), st.floats(0.01, 0.3)
)


@given(st.floats(0.1, 2000), st.lists(points, min_size=1, max_size=4, unique_by=lambda p: p[:3]), st.floats(0, 2))
def test_greedy_stops_only_when_served_or_full(rate_rps, profile, beta):
    """What stays unserved fits nowhere, capacity is kept, and the bound is below the objective."""
    task = _task(rate_rps, *profile, beta=beta)
    placements = greedy(task)
    missing = unserved_rps(task, placements)
    assert not missing or greedy(task, placements) == placements
    assert all(sum(p.offer.configuration.cpu_cores for p in placements if p.server == s) <= 8 for s in ("s0", "s1"))
    assert objective_bound(task, missing) <= objective(task, placements) + 1e-6
    trim = trimmed(task, placements)
    assert missing == unserved_rps(task, trim)
    assert sum(capacity_rps(trim).values()) <= sum(capacity_rps(placements).values())
