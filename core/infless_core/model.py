"""The words of INFless as frozen values: configuration, server, profile, problem, plan.

A value that exists is valid: constructors refuse what makes no sense, change is `dataclasses.replace`.
Rules that need several values at once (capacity, rates) are the planner's; `infless_scheduler.check` proves them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise

from infless_core.errors import InvalidInput
from infless_core.labels import GpuWish
from infless_core.units import parse_cpu_cores, parse_memory_bytes


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Configuration:
    """What an instance is given: batch size b, CPU cores c, GPU percent g (paper section 3.2)."""

    batch: int
    cpu_cores: int
    gpu_percent: int = 0

    def __post_init__(self) -> None:
        if self.batch < 1 or self.cpu_cores < 1 or not 0 <= self.gpu_percent <= 100:
            raise InvalidInput(f"configuration {self}: batch and cpu_cores are at least 1, gpu_percent 0 to 100")

    def __str__(self) -> str:
        return f"(b={self.batch}, c={self.cpu_cores}, g={self.gpu_percent}%)"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfilePoint:
    """Execution time of one batch in one configuration, with the memory it needs."""

    configuration: Configuration
    exec_s: float
    memory_bytes: int = 0
    gpu_memory_bytes: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.exec_s < math.inf or self.memory_bytes < 0 or self.gpu_memory_bytes < 0:
            raise InvalidInput(f"profile point {self.configuration}: exec_s is above 0, memory is not negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class Interference:
    """How much co-located instances slow each other down, as a table for each resource.

    A table holds `(share, factor)`: where the others hold that share of the server's cores (of the GPU's percent), an
    execution takes `factor` times as long; straight lines in between, the first and last factor beyond. Factors of
    several resources multiply. An empty table slows nobody down.
    """

    cpu: tuple[tuple[float, float], ...] = ()
    gpu: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        for table in (self.cpu, self.gpu):
            shares = [share for share, _ in table]
            factors = [factor for _, factor in table]
            rising = all(low < high for low, high in pairwise(shares)) and all(a <= b for a, b in pairwise(factors))
            if not (rising and all(0 <= share <= 1 for share in shares) and all(1 <= f < math.inf for f in factors)):
                raise InvalidInput(
                    f"interference {table}: pairs of a rising share (0 to 1) and a factor (1 or more) that never falls"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU of a server: 100 percent of its multiprocessors, and its own memory."""

    id: str
    memory_bytes: int

    def __post_init__(self) -> None:
        if self.memory_bytes < 0:
            raise InvalidInput(f"gpu {self.id}: memory_bytes is not negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A machine that hosts instances."""

    id: str
    cpu_cores: int
    memory_bytes: int
    gpus: tuple[Gpu, ...] = ()
    kind: str = ""
    """What its owner calls machines of this sort; servers of one kind need not be alike."""
    draining: bool = False
    """It is being emptied: nothing is placed on it, and what runs there has to go."""
    interference: Interference | None = None
    """Its own table; None is the problem's."""

    def __post_init__(self) -> None:
        if self.cpu_cores < 1 or self.memory_bytes < 0:
            raise InvalidInput(f"server {self.id}: cpu_cores is at least 1, memory_bytes is not negative")


ARRIVAL_CV_MAX = 8.0
"""Beyond it nobody knows what rate a percentile bears."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionDemand:
    """What one function asks of a plan: its rate, its target, and how fast it runs in each configuration."""

    id: str
    latency_target_s: float
    rate_rps: float
    max_batch: int
    profile: tuple[ProfilePoint, ...]
    latency_percentile: float | None = None
    arrival_cv: float = 1.0
    """Coefficient of variation of the times between arrivals: 1 is Poisson, above it is burstier. It counts where a
    percentile is stated; the paper's window is for even arrivals."""
    gpu: GpuWish = GpuWish.ALLOW
    instances_min: int = 0
    instances_max: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.latency_target_s < math.inf or not 0 <= self.rate_rps < math.inf or self.max_batch < 1:
            raise InvalidInput(
                f"function {self.id}: latency_target_s is above 0, rate_rps not negative, max_batch at least 1"
            )
        if not 0 <= self.arrival_cv <= ARRIVAL_CV_MAX:
            raise InvalidInput(f"function {self.id}: arrival_cv is from 0 to {ARRIVAL_CV_MAX:g}")
        most = math.inf if self.instances_max is None else self.instances_max
        if not 0 <= self.instances_min <= most or most < 1:
            raise InvalidInput(f"function {self.id}: instances_min is 0 to instances_max, which is at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """An instance that runs now, where and how: the planner keeps or resizes before it starts and stops."""

    id: str
    function: str
    server: str
    gpu: str | None
    configuration: Configuration


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Everything a planner may look at. Built by `infless_scheduler.problem_file` or from the live system."""

    servers: tuple[Server, ...]
    functions: tuple[FunctionDemand, ...]
    running: tuple[Running, ...] = ()
    alpha: float = 0.8
    """Where between R_min and R_max scaling in starts (paper Eq. 7)."""
    beta: float = 0.45
    """GPU-percent units that one CPU core is worth: 64 GFLOPS / 142 GFLOPS (authors' code)."""
    interference: Interference = Interference()
    churn_cost: float = 0.0
    """What touching one instance (start, stop, resize) costs, in units of the objective; 0 changes for any saving."""


class PlanStatus(StrEnum):
    """How good a plan is known to be. The set is closed: no solver's own words leave its module."""

    OPTIMAL = "optimal"
    FEASIBLE = "feasible"
    INFEASIBLE = "infeasible"


class PlanAction(StrEnum):
    """What a planned instance means for what runs now."""

    KEEP = "keep"
    START = "start"
    RESIZE = "resize"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedInstance:
    """One instance of a plan, its window of rates and the rate it is meant to receive."""

    id: str
    function: str
    server: str
    gpu: str | None
    configuration: Configuration
    rate_low_rps: float
    rate_up_rps: float
    rate_rps: float
    action: PlanAction


@dataclass(frozen=True, slots=True, kw_only=True)
class Unserved:
    """Demand that no instance of the plan carries, and why."""

    function: str
    rate_rps: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """For every function its instances, configurations, servers and rates."""

    status: PlanStatus
    solver: str
    solve_s: float
    objective: float
    """Sum over used servers of `beta * cpu_cores + 100 * number of GPUs` (paper Eq. 2)."""
    bound: float
    """No plan that serves as much can have a lower objective."""
    instances: tuple[PlannedInstance, ...] = ()
    stop: tuple[str, ...] = ()
    unserved: tuple[Unserved, ...] = ()
    servers_used: int = 0
    allocated: float = 0.0
    """Sum over instances of `beta * cpu_cores + gpu_percent`."""
    fragmentation: float = 0.0
    """`1 - allocated / capacity` over the used servers, in the same beta-weighted units."""

    @property
    def gap(self) -> float:
        """Proven distance from the best possible objective, as a share of it."""
        return 0.0 if self.objective <= self.bound else (self.objective - self.bound) / max(self.objective, 1e-12)


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionSpec:
    """What the user deployed, as it came; the provider echoes it back unchanged (openfaas/faas-provider types)."""

    name: str
    image: str
    namespace: str
    env_process: str = ""
    env_vars: dict[str, str] = field(default_factory=dict)
    constraints: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    limits: dict[str, str] | None = None
    requests: dict[str, str] | None = None
    read_only_root_filesystem: bool = False

    @property
    def key(self) -> str:
        """`name.namespace`, the identity of a function in routes, metrics and the state."""
        return f"{self.name}.{self.namespace}"

    @property
    def memory_limit_bytes(self) -> int:
        """What an instance may hold (`limits.memory`); 0 is no limit."""
        text = (self.limits or {}).get("memory")
        return parse_memory_bytes(text, "limits.memory") if text else 0

    @property
    def cpu_cores_limit(self) -> int | None:
        """The most cores of an instance (`limits.cpu`), whole ones and at least one; None is no limit."""
        text = (self.limits or {}).get("cpu")
        return max(1, math.floor(parse_cpu_cores(text, "limits.cpu"))) if text else None
