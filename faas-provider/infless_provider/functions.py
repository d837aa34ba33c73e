"""What the provider knows at run time of one function and of one instance. Owned by the event loop's thread."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from infless_core.errors import Infeasible
from infless_core.labels import GpuWish, Wishes
from infless_core.lifecycle import Event, Phase, advance
from infless_core.model import Configuration, FunctionDemand, FunctionSpec, ProfilePoint, Server
from infless_core.units import format_duration
from infless_provider.backends.base import Address, Launch
from infless_provider.state import StoredFunction, StoredInstance
from infless_provider.upstream import Upstream
from infless_scheduler.autoscale import RateEstimate, ScalingWatch
from infless_scheduler.dispatch import TurnDispatcher, dispatch_rates
from infless_scheduler.rates import RateWindow, feasible_points, fixed_shares, nearest_target_s, window

ALPHA = 0.8
"""Paper Eq. 7."""
IDLE_RPS = 0.1
"""Below one request in ten seconds a function counts as idle: its spare instance answers, no cores are planned."""
INFLATION = 1.1
"""As for measured profiles (INFless, section 3.3)."""


HEADROOM = 1.2
"""A plan is for this much more than what arrives: load goes on rising while an instance starts, and a shared machine is
slower than it was when the function was timed."""
SAME_RATE_SHARE = 0.95
"""Of batches that bear nearly the same rate the smallest is best: its answers are earlier."""


def best_batches(demand: FunctionDemand) -> tuple[ProfilePoint, ...]:
    """For each (cores, GPU percent) the point with the highest rate that meets the target; empty when none does.

    A larger batch than the load needs costs no hardware, as our watchdog flushes early (`batching.decide`): resizing a
    running instance to the smallest batch that would do, which the paper's window asks for, only takes its reserve.
    """
    groups: dict[tuple[int, int], list[tuple[float, ProfilePoint]]] = {}
    for point, rates in feasible_points(demand):
        given = point.configuration
        groups.setdefault((given.cpu_cores, given.gpu_percent), []).append((rates.up_rps, point))
    return tuple(
        min(
            (point for up_rps, point in group if up_rps >= SAME_RATE_SHARE * max(group, key=lambda one: one[0])[0]),
            key=lambda point: point.configuration.batch,
        )
        for _, group in sorted(groups.items())
    )


@dataclass(slots=True, kw_only=True)
class Instance:
    """One running copy."""

    id: str
    function: str
    version: str
    configuration: Configuration
    reason: str
    started_at_s: float
    address: Address | None = None
    """None until its backend knows it."""
    upstream: Upstream = field(default_factory=lambda: Upstream("0.0.0.0", 0))  # noqa: S104 - nobody answers there
    """Its connections; until the address is known they lead nowhere."""
    phase: Phase = Phase.STARTING
    replaces: str | None = None
    in_flight: int = 0
    untold: bool = False
    """Its configuration has changed, and it has not been told yet."""
    asked_to_end: bool = False
    drain_until_s: float = 0.0
    doom: str = ""
    """Why we ended it ourselves, when it did not ask for that."""
    planned: Configuration | None = None
    """What the newest plan that has it gives it."""
    unheard: int = 0
    """Questions in a row, since it was ready, that it has not answered."""
    asked_s: float = 0.0
    """When it was asked last whether it lives."""
    adopted: bool = False
    """Found after a restart: before that it may have been ready, or asked to end."""

    def advance(self, event: Event) -> None:
        """Move on in the life of an instance."""
        self.phase = advance(self.phase, event)

    def stored(self, configuration: Configuration | None = None) -> StoredInstance:
        """Its row, with another configuration on wish."""
        return StoredInstance(
            id=self.id,
            function=self.function,
            version=self.version,
            configuration=configuration or self.configuration,
            address=asdict(self.address) if self.address else {},
        )


@dataclass(slots=True, kw_only=True)
class FunctionState:
    """One deployed function at run time."""

    stored: StoredFunction
    wishes: Wishes
    profile: tuple[ProfilePoint, ...]
    """Empty when the function cannot be timed by itself; then `observed_exec_s` is learned from its answers."""
    instances: dict[str, Instance] = field(default_factory=dict)
    dispatcher: TurnDispatcher = field(default_factory=TurnDispatcher)
    estimate: RateEstimate = field(default_factory=RateEstimate)
    watch: ScalingWatch = field(default_factory=ScalingWatch)
    planned_rps: float = 0.0
    arrived: int = 0
    """Requests since the last tick."""
    invocations: int = 0
    in_flight: int = 0
    wanted_at_s: float = -math.inf
    """When it was last wanted: deployed, updated, requested, or found after a restart."""
    observed_exec_s: float = 0.0
    failures: int = 0
    """Instances in a row that ended before they were ready."""
    retry_at_s: float = 0.0
    last_failure: str = ""
    rolled_back: str = ""
    """Why the newest update was undone; empty when it was not."""
    waiters: list[asyncio.Future[None]] = field(default_factory=list)
    tokens: tuple[bytes, ...] = field(default=(), repr=False)
    """What a request must carry one of (`com.infless.auth.secret`); none at all leaves the function open."""

    @property
    def key(self) -> str:
        """`name.namespace`."""
        return self.stored.key

    @property
    def version(self) -> str:
        """`state.Version.id` of what is deployed: instances of another one are to be replaced."""
        return self.stored.version.id

    def launch(self, instance: Instance, server: Server, secrets: Path | None) -> Launch:
        """What a backend needs to start an instance of the newest version."""
        spec = self.stored.spec
        return Launch(
            id=instance.id,
            function=self.key,
            version=instance.version,
            artifact=self.stored.version.artifact,
            environment=self.wishes.environment(spec.env_vars),
            configuration=instance.configuration,
            latency_target_s=self.wishes.latency_target_s,
            server=server.id,
            gpu=server.gpus[0].id if instance.configuration.gpu_percent and server.gpus else None,
            memory_bytes=spec.memory_limit_bytes,
            secrets=secrets,
            read_only_root=spec.read_only_root_filesystem,
            process=spec.env_process,
        )

    @property
    def rate_rps(self) -> float:
        """The rate to plan for, with room to grow; 0 for an idle function."""
        rate_rps = self.estimate.rate_rps
        return HEADROOM * rate_rps if rate_rps >= IDLE_RPS else 0.0

    def demand(self, rate_rps: float) -> FunctionDemand:
        """This function as the planner sees it: for each number of cores the batch that pays most."""
        everything = self._demand(rate_rps)
        return replace(everything, profile=best_batches(everything) or everything.profile)

    def _demand(self, rate_rps: float) -> FunctionDemand:
        return FunctionDemand(
            id=self.key,
            latency_target_s=self.wishes.latency_target_s,
            latency_percentile=self.wishes.latency_percentile,
            rate_rps=rate_rps,
            max_batch=self.wishes.batch_max,
            profile=within_limits(self.stored.spec, self.profile) or (self._assumed_point(),),
            gpu=self.wishes.gpu,
        )

    def _assumed_point(self) -> ProfilePoint:
        """Until answers have been seen: a quarter of the target, one at a time."""
        exec_s = self.observed_exec_s * INFLATION or self.wishes.latency_target_s / 4
        return ProfilePoint(
            configuration=Configuration(batch=1, cpu_cores=1), exec_s=min(exec_s, self.wishes.latency_target_s)
        )

    def observe(self, exec_s: float) -> None:
        """Learn from the answer to a request that was alone in its instance."""
        self.observed_exec_s += (exec_s - self.observed_exec_s) * (0.1 if self.observed_exec_s else 1.0)

    def spare(self) -> Configuration:
        """What an unplanned instance gets: the fewest cores, and there the batch that pays most."""
        points = [point.configuration for point, _ in feasible_points(self.demand(1.0))]
        if not self.profile or not points:
            return Configuration(batch=self.wishes.batch_max, cpu_cores=1)
        return min(points, key=lambda c: (c.gpu_percent, c.cpu_cores, -c.batch))

    def window_of(self, instance: Instance) -> RateWindow | None:
        """The window of rates of an instance's configuration, None where no profile knows it."""
        points = {point.configuration: point.exec_s for point in self.profile}
        exec_s = points.get(instance.configuration)
        if exec_s is None and not self.profile:
            exec_s = self._assumed_point().exec_s
        if exec_s is None:
            return None
        configuration = instance.configuration if self.profile else Configuration(batch=1, cpu_cores=1)
        share = fixed_shares(self.profile).get(instance.configuration, 1.0)
        wishes = self.wishes
        return window(configuration, exec_s, wishes.latency_target_s, wishes.latency_percentile, fixed_share=share)

    def windows(self) -> dict[str, RateWindow]:
        """Windows of the instances that count for planning: starting or ready, of the newest version."""
        found = {i.id: self.window_of(i) for i in self.current()}
        return {id_: rates for id_, rates in found.items() if rates is not None}

    def current(self) -> list[Instance]:
        """Starting and ready instances of the newest version, by id."""
        if not self.instances:
            return []
        version = self.version
        return [i for i in self.undrained() if i.version == version]

    def undrained(self) -> list[Instance]:
        """Starting and ready instances of every version, by id."""
        return by_phase(self.instances.values(), Phase.STARTING, Phase.READY)

    def serving(self) -> list[Instance]:
        """Ready instances. While an update rolls over these are of both versions, so that no capacity is lost."""
        return by_phase(self.instances.values(), Phase.READY)

    def reweigh(self) -> None:
        """Share the arriving rate out among the serving instances (paper section 3.2, three cases)."""
        serving = self.serving()
        windows = {i.id: rates for i in serving if (rates := self.window_of(i)) is not None}
        rates_rps = dispatch_rates(windows, self.estimate.rate_rps, ALPHA).rates_rps
        self.dispatcher.update({i.id: (rates_rps.get(i.id, 0.0), i.configuration.batch) for i in serving})

    def wake(self) -> None:
        """Let requests go on that wait for an instance."""
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def least(self, now_s: float) -> int:
        """Instances it wants at least, whatever the plan says.

        Where that may be none (scaled to zero by hand, or by label), they stay for a while after they were wanted.
        """
        replicas, wishes = self.stored.replicas, self.wishes
        if replicas is None:
            replicas = wishes.scale_min
        may_sleep = replicas == 0 or wishes.scale_to_zero
        awake = self.in_flight > 0 or now_s - self.wanted_at_s < wishes.zero_after_s
        return 0 if may_sleep and not awake else max(1, min(replicas, wishes.scale_max))

    def sleeps(self) -> bool:
        """Whether nothing of it runs, comes, or is about to: what is measured of it would stay as it is."""
        idle = not self.instances and not self.arrived and self.estimate.rate_rps < IDLE_RPS
        return idle and self.planned_rps == 0 and self.retry_at_s == 0 and not self.waiters

    def available(self) -> int:
        """Ready instances."""
        return len(self.serving())

    def wanted(self, now_s: float) -> int:
        """Instances that are meant to run."""
        return max(self.least(now_s), len(self.current()))


def by_phase(instances: Iterable[Instance], *phases: Phase) -> list[Instance]:
    """Instances in one of some phases, by id."""
    return sorted((i for i in instances if i.phase in phases), key=lambda i: i.id)


def within_limits(spec: FunctionSpec, profile: tuple[ProfilePoint, ...]) -> tuple[ProfilePoint, ...]:
    """The configurations that a function's `limits.cpu` allows."""
    most = spec.cpu_cores_limit
    return profile if most is None else tuple(one for one in profile if one.configuration.cpu_cores <= most)


def check_target(spec: FunctionSpec, wishes: Wishes, profile: tuple[ProfilePoint, ...]) -> None:
    """Whether a function that takes so long can meet what is asked of it; nothing is known against an untimed one.

    Raises:
        Infeasible: names the nearest target that it can meet; or it requires a GPU, and was timed on none.
    """
    profile = within_limits(spec, profile)
    if wishes.gpu is GpuWish.REQUIRE and not any(one.configuration.gpu_percent for one in profile):
        raise Infeasible(
            f"label com.infless.gpu: {spec.name!r} requires a GPU, and it is not known how long it takes on one:"
            " functions are timed on CPUs when they are deployed; write allow"
        )
    demand = FunctionDemand(
        id=spec.key,
        latency_target_s=wishes.latency_target_s,
        latency_percentile=wishes.latency_percentile,
        rate_rps=1.0,
        max_batch=wishes.batch_max,
        profile=profile,
    )
    if not profile or feasible_points(demand):
        return
    fastest = min(profile, key=lambda point: point.exec_s)
    nearest_s = nearest_target_s(profile, wishes.batch_max)
    raise Infeasible(
        f"label com.infless.latency.target: {format_duration(wishes.latency_target_s)} cannot be met by"
        f" {spec.name!r}: its fastest configuration {fastest.configuration} takes"
        f" {format_duration(fastest.exec_s)}; the nearest feasible target is"
        f" {format_duration((nearest_s or fastest.exec_s) * 1.01)}"
    )
