"""Planning problems for benchmarks: the paper's cluster, and fleets of any size. Seeded: same arguments, same problem.

The profiles are made by formulas, not taken from anywhere: a batch takes a fixed time, and a time for each request that
falls with cores and GPU share, each less than in proportion; then each point is off by a few percent, as measured
tables are. The models differ as the paper's do: by two orders of magnitude in work, and in how much a batch gains.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from infless_core.labels import GpuWish
from infless_core.model import Configuration, FunctionDemand, Gpu, Problem, ProfilePoint, Server

GIB = 2**30
MIB = 2**20
BATCHES = (1, 2, 4, 8, 16, 32)
CORES = (2, 4, 8)
PERCENTS = (0, 10, 20, 30, 40, 50)
NOISE = 0.03
"""Standard deviation of a point's error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What decides the execution times of a function."""

    name: str
    target_s: float
    fixed_s: float
    """Of a batch, whatever its size."""
    core_s: float
    """Of one request on one core."""
    gpu_s: float
    """Of one request on a whole GPU."""
    memory_bytes: int
    gpu_memory_bytes: int


PAPER = tuple(
    Model(
        name=name,
        target_s=target_s,
        fixed_s=fixed_s,
        core_s=core_s,
        gpu_s=gpu_s,
        memory_bytes=memory_mib * MIB,
        gpu_memory_bytes=(memory_mib + 200) * MIB,
    )
    for name, target_s, fixed_s, core_s, gpu_s, memory_mib in (
        ("ssd", 0.2, 0.012, 0.052, 0.0021, 900),
        ("mobilenet", 0.2, 0.008, 0.016, 0.0009, 600),
        ("resnet-50", 0.2, 0.014, 0.075, 0.0027, 1000),
        ("textcnn-69", 0.05, 0.0022, 0.0035, 0.0003, 400),
        ("lstm-2365", 0.05, 0.009, 0.0042, 0.0006, 500),
        ("dssm-2389", 0.05, 0.0018, 0.0024, 0.0002, 450),
    )
)
"""OSVT (200 ms) and the Q&A robot (50 ms), INFless section 5.1."""


def exec_s(model: Model, given: Configuration) -> float:
    """How long a batch takes, before noise."""
    speed = given.cpu_cores**0.85 / model.core_s
    if given.gpu_percent:
        # A core feeds the GPU: a share beside one core is worth less than beside four.
        feeding = min(1.0, 0.55 + 0.15 * given.cpu_cores)
        speed = feeding * (given.gpu_percent / 100) ** 0.8 / model.gpu_s
    return model.fixed_s + given.batch / speed


def demand(model: Model, rate_rps: float, rng: random.Random, batches: Sequence[int] = BATCHES) -> FunctionDemand:
    """A function with a full profile."""
    grid = [(b, c, g) for g in PERCENTS for c in CORES for b in batches]
    points = []
    for batch, cpu_cores, gpu_percent in grid:
        given = Configuration(batch=batch, cpu_cores=cpu_cores, gpu_percent=gpu_percent)
        points.append(
            ProfilePoint(
                configuration=given,
                exec_s=round(exec_s(model, given) * math.exp(rng.gauss(0, NOISE)), 6),
                memory_bytes=model.memory_bytes + 8 * MIB * batch,
                gpu_memory_bytes=model.gpu_memory_bytes + 12 * MIB * batch if gpu_percent else 0,
            )
        )
    return FunctionDemand(
        id=model.name, latency_target_s=model.target_s, rate_rps=rate_rps, max_batch=max(batches), profile=tuple(points)
    )


def paper_servers(count: int, prefix: str = "s") -> tuple[Server, ...]:
    """16 cores, 128 GiB, two GPUs of 11 GiB each (INFless section 5.1)."""
    width = len(str(count - 1))
    gpus = (Gpu(id="g0", memory_bytes=11 * GIB), Gpu(id="g1", memory_bytes=11 * GIB))
    return tuple(
        Server(id=f"{prefix}{n:0{width}}", cpu_cores=16, memory_bytes=128 * GIB, gpus=gpus, kind="paper")
        for n in range(count)
    )


def mixed_servers(count: int) -> tuple[Server, ...]:
    """Three classes: the paper's (seven tenths), without GPU but with 32 cores (one), with four larger GPUs (two)."""
    plain, large = count // 10, count // 5
    four = tuple(Gpu(id=f"g{n}", memory_bytes=24 * GIB) for n in range(4))
    return (
        *paper_servers(count - plain - large, "p"),
        *(Server(id=f"c{n:05}", cpu_cores=32, memory_bytes=128 * GIB, kind="cpu") for n in range(plain)),
        *(Server(id=f"l{n:05}", cpu_cores=32, memory_bytes=256 * GIB, gpus=four, kind="large") for n in range(large)),
    )


def paper_cluster(load: float = 1.0, seed: int = 1) -> Problem:
    """8 servers and six functions; at load 1 about two thirds of the cluster are needed."""
    rng = random.Random(seed)
    rates_rps = (700, 2500, 600, 6000, 4000, 9000)
    functions = tuple(demand(model, load * rate, rng) for model, rate in zip(PAPER, rates_rps, strict=True))
    return Problem(servers=paper_servers(8), functions=functions)


def fleet(servers: int, functions: int, *, mixed: bool = False, fill: float = 0.8, seed: int = 1) -> Problem:
    """A large cluster. Functions are variations of the paper's, a few of them popular, most not.

    Args:
        servers: how many.
        functions: how many.
        mixed: three classes of servers instead of the paper's one; then some functions must not or must use a GPU.
        fill: about the share of the servers that a good plan needs.
        seed: of every random choice.
    """
    rng = random.Random(f"{servers} {functions} {mixed} {seed}")
    hosts = mixed_servers(servers) if mixed else paper_servers(servers)
    popularity = [rng.paretovariate(1.2) for _ in range(functions)]
    made = []
    for number in range(functions):
        base = PAPER[number % len(PAPER)]
        size, target = math.exp(rng.gauss(0, 0.5)), rng.choice((0.75, 1.0, 1.5, 2.0))
        model = Model(
            name=f"f{number:03}-{base.name}",
            target_s=base.target_s * target * max(1.0, size),
            fixed_s=base.fixed_s * size,
            core_s=base.core_s * size,
            gpu_s=base.gpu_s * size * math.exp(rng.gauss(0, 0.2)),
            memory_bytes=int(base.memory_bytes * size),
            gpu_memory_bytes=int(base.gpu_memory_bytes * min(2.0, size)),
        )
        share = min(popularity[number] / sum(popularity), 5 / functions) * servers
        made.append(_sized(model, share * fill, rng, mixed=mixed))
    return Problem(servers=hosts, functions=tuple(made))


def _sized(model: Model, servers: float, rng: random.Random, *, mixed: bool) -> FunctionDemand:
    """A function whose rate needs about so many of the paper's servers."""
    whole = Configuration(batch=16, cpu_cores=4, gpu_percent=50)
    per_server_rps = 16 / exec_s(model, whole) * 2 * 1.6
    function = demand(model, round(servers * per_server_rps, 1), rng)
    wish = rng.choice((GpuWish.ALLOW,) * 8 + (GpuWish.NEVER, GpuWish.REQUIRE)) if mixed else GpuWish.ALLOW
    return replace(function, gpu=wish)
