"""A dozen problems small enough to solve by hand, and what each solver makes of them.

All servers of a problem cost the same unless it says so: what is compared is how many are used. A batch of 4 in 50 ms
with a target of 200 ms carries up to 80 requests a second, a batch of 1 carries 20 (paper Eq. 1).
"""

import pytest

from infless_core.clock import ManualClock
from infless_core.labels import GpuWish
from infless_core.model import Configuration, FunctionDemand, Gpu, Interference, Problem, ProfilePoint, Server
from infless_scheduler.planner import plan


def _point(batch, cpu_cores, gpu_percent=0, exec_s=0.05, **memory):
    shape = Configuration(batch=batch, cpu_cores=cpu_cores, gpu_percent=gpu_percent)
    return ProfilePoint(configuration=shape, exec_s=exec_s, **memory)


def _function(id_, rate_rps, *points, **more):
    return FunctionDemand(id=id_, latency_target_s=0.2, rate_rps=rate_rps, max_batch=32, profile=points, **more)


def _servers(count, cpu_cores=8, gpus=0, prefix="s", **more):
    gpu = tuple(Gpu(id=f"g{n}", memory_bytes=10) for n in range(gpus))
    return tuple(
        Server(id=f"{prefix}{n:02}", cpu_cores=cpu_cores, memory_bytes=100, gpus=gpu, **more) for n in range(count)
    )


SLOW_NEIGHBOURS = Interference(cpu=((0.0, 1.0), (1.0, 1.4)))

CASES = {
    "one instance": (
        Problem(servers=_servers(4), functions=(_function("f", 75, _point(4, 2)),)),
        {"exact": 1, "patterns": 1, "greedy": 1, "uniform": 1},
    ),
    "three and five cores fill eight: greedy packs three beside three, and nothing goes beside that": (
        Problem(
            servers=_servers(16), functions=(_function("f", 640, _point(4, 3)), _function("g", 640, _point(4, 5)))
        ),
        {"exact": 8, "patterns": 8, "greedy": 12, "uniform": 12},
    ),
    "by weight a core is nearly free: greedy takes all four for one instance, and the GPU beside them stays empty": (
        Problem(
            servers=_servers(8, cpu_cores=4, gpus=1), functions=(_function("f", 320, _point(4, 4), _point(4, 1, 25)),)
        ),
        {"exact": 1, "patterns": 1, "greedy": 4, "uniform": 4},
    ),
    "the largest batch comes first: greedy fills a server with one of 100/s, four of 80/s would fit": (
        Problem(
            servers=_servers(8), functions=(_function("f", 320, _point(8, 8, exec_s=0.08), _point(4, 2)),)
        ),
        {"exact": 1, "patterns": 1, "greedy": 4, "uniform": 1},
    ),
    "memory binds before cores: two to a server": (
        Problem(servers=_servers(8), functions=(_function("f", 480, _point(4, 2, memory_bytes=40)),)),
        {"exact": 3, "patterns": 3, "greedy": 3, "uniform": 3},
    ),
    "GPU memory binds before GPU share: two to a GPU": (
        Problem(
            servers=_servers(8, gpus=1), functions=(_function("f", 480, _point(4, 1, 10, gpu_memory_bytes=4)),)
        ),
        {"exact": 3, "patterns": 3, "greedy": 3, "uniform": 3},
    ),
    "an instance has one GPU: sixty percent of two GPUs are not one of 120": (
        Problem(servers=_servers(8, gpus=2), functions=(_function("f", 400, _point(4, 1, 60)),)),
        {"exact": 3, "patterns": 3, "greedy": 3, "uniform": 3},
    ),
    "neighbours slow down: 50 ms are 65 on a full server, 15 batches a second instead of 20": (
        Problem(
            servers=_servers(8), functions=(_function("f", 240, _point(4, 2)),), interference=SLOW_NEIGHBOURS
        ),
        {"exact": 1, "patterns": 1, "greedy": 1, "uniform": 1},
    ),
    "one that must have a GPU and one that must not": (
        Problem(
            servers=(*_servers(3, prefix="c"), *_servers(3, prefix="g", gpus=1)),
            functions=(
                _function("f", 160, _point(4, 4), _point(4, 4, 50), gpu=GpuWish.REQUIRE),
                _function("h", 160, _point(4, 4), _point(4, 1, 10), gpu=GpuWish.NEVER),
            ),
        ),
        {"exact": 2, "patterns": 2, "greedy": 2, "uniform": 2},
    ),
    "at least four instances, though one would do": (
        Problem(servers=_servers(8), functions=(_function("f", 10, _point(4, 4), instances_min=4),)),
        {"exact": 2, "patterns": 2, "greedy": 2, "uniform": 2},
    ),
    "at most two instances: the fast configuration, one to a server": (
        Problem(
            servers=_servers(8),
            functions=(_function("f", 160, _point(4, 8), _point(1, 1), instances_max=2),),
        ),
        {"exact": 2, "patterns": 2, "greedy": 2, "uniform": 2},
    ),
    "the first two servers are being drained": (
        Problem(
            servers=(*_servers(2, draining=True), *_servers(2, prefix="t")),
            functions=(_function("f", 320, _point(4, 4)),),
        ),
        {"exact": 2, "patterns": 2, "greedy": 2, "uniform": 2},
    ),
    "ten small functions on one server": (
        Problem(servers=_servers(8, cpu_cores=10), functions=tuple(_function(f"f{n}", 1, _point(1, 1)) for n in range(10))),
        {"exact": 1, "patterns": 1, "greedy": 1, "uniform": 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("solver", ["exact", "patterns", "greedy", "uniform"])
@pytest.mark.parametrize("name", CASES)
def test_servers_used(name, solver):
    """As many as worked out by hand, everything served; the exact planner and the patterns prove it."""
    problem, servers = CASES[name]
    made = plan(problem, solver, clock=ManualClock())
    assert not made.unserved
    assert made.servers_used == servers[solver]
    if solver in ("exact", "patterns"):
        assert made.gap == 0


def test_an_offer_that_needs_less_memory_is_not_forgotten():
    """On 64 cores and shares of 13 percent memory is counted coarsely: 3 and 12 GiB look alike, and are not.

    30 instances of 3 GiB fit on one server of 128 GiB, of those with 12 GiB only ten: one server, not three.
    """
    gib = 2**30
    gpus = tuple(Gpu(id=f"g{n}", memory_bytes=80 * gib) for n in range(2))
    servers = tuple(Server(id=f"s{n:02}", cpu_cores=64, memory_bytes=128 * gib, gpus=gpus) for n in range(20))
    shapes = [
        ProfilePoint(configuration=Configuration(batch=2, cpu_cores=1), exec_s=1 / 51, memory_bytes=12 * gib),
        ProfilePoint(configuration=Configuration(batch=1, cpu_cores=1), exec_s=1 / 100, memory_bytes=3 * gib),
    ]
    small = ProfilePoint(
        configuration=Configuration(batch=1, cpu_cores=1, gpu_percent=13), exec_s=0.02, memory_bytes=2 * gib,
        gpu_memory_bytes=2 * gib,
    )  # fmt: skip
    functions = tuple(
        FunctionDemand(id=id_, latency_target_s=1.0, rate_rps=rate_rps, max_batch=2, profile=tuple(profile))
        for id_, rate_rps, profile in (("f", 3000, shapes), ("g", 10, [small]))
    )
    for solver in ("exact", "patterns"):
        made = plan(Problem(servers=servers, functions=functions), solver, clock=ManualClock())
        assert (made.servers_used, made.gap) == (1, 0)


def test_neighbours_slow_down_by_the_table():
    """Two of eight cores leave 3/4 to others: factor 1.3, 65 ms, floor(1/0.065) = 15 batches of 4."""
    problem, _ = CASES["neighbours slow down: 50 ms are 65 on a full server, 15 batches a second instead of 20"]
    made = plan(problem, "exact", clock=ManualClock())
    assert {instance.rate_up_rps for instance in made.instances} == {60.0}
    assert len(made.instances) == 4


def test_cheap_class_first_then_the_dear_one():
    """Two servers without GPU cost 3.6 each, one with a GPU 103.6: it carries only what is left."""
    servers = (*_servers(2, prefix="c"), *_servers(2, prefix="g", gpus=1))
    problem = Problem(servers=servers, functions=(_function("f", 400, _point(4, 4)),))
    for solver in ("exact", "patterns"):
        made = plan(problem, solver, clock=ManualClock())
        assert made.objective == pytest.approx(2 * 3.6 + 103.6)
        assert (made.gap < 1e-6) == (solver == "exact")  # half a dear server is what the mix of patterns proves


def test_scarce_servers_carry_as_many_requests_as_they_can():
    """Of two functions the one with more requests for each core."""
    functions = (_function("f", 100, _point(4, 4)), _function("g", 100, _point(4, 2)))
    made = plan(Problem(servers=_servers(1, cpu_cores=4), functions=functions), "exact", clock=ManualClock())
    assert [(u.function, u.rate_rps, u.reason) for u in made.unserved] == [("f", 100, "cpu cores exhausted")]


def test_beta_by_price_changes_what_is_cheap():
    """By speed a core is worth 0.45 percent of a GPU, by price (0.034 and 2.5 an hour) 1.36."""
    profile = (_point(4, 4), _point(4, 1, 3))
    problem = Problem(servers=_servers(1, gpus=1), functions=(_function("f", 80, *profile),))
    by_speed = plan(problem, "exact", clock=ManualClock())
    by_price = plan(
        Problem(servers=problem.servers, functions=problem.functions, beta=1.36), "exact", clock=ManualClock()
    )
    assert by_speed.instances[0].gpu is None
    assert by_price.instances[0].gpu == "g0"
