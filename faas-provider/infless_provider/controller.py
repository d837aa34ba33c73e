"""Deploy, update, remove, scale, list: what users ask of the provider, on the event loop's thread."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from infless_core.clock import Clock
from infless_core.errors import Conflict, Infeasible, InflessError, InvalidInput, NotFound, StateError
from infless_core.labels import GpuWish, Wishes, parse_wishes
from infless_core.lifecycle import Phase
from infless_core.model import Configuration, FunctionDemand, FunctionSpec, ProfilePoint
from infless_core.units import format_duration
from infless_profiler.scrape import Target
from infless_provider import bundles, wire
from infless_provider.backends.base import Backend
from infless_provider.fleet import Fleet
from infless_provider.functions import FunctionState, Instance
from infless_provider.profiling import Profiles
from infless_provider.settings import NAMESPACE, Settings
from infless_provider.state import State, StoredFunction
from infless_scheduler.rates import feasible_points, nearest_target_s

LOG = logging.getLogger("infless.controller")
_T = TypeVar("_T")


class Controller:
    """All functions of the provider. Owns the state; everything runs on one event loop."""

    def __init__(
        self, settings: Settings, state: State, backend: Backend, profiles: Profiles, clock: Clock
    ) -> None:  # fmt: skip
        self.functions: dict[str, FunctionState] = {}
        self.fleet = Fleet(backend, state, settings, clock)
        self.fleet.on_change = self._instance_changed
        self.fleet.on_ended = self._instance_ended
        self.fleet.target_s = self._target_s
        self.on_dirty: Callable[[], None] = lambda: None
        """Told when the instances should be planned anew."""
        self._settings = settings
        self._state = state
        self._backend = backend
        self._profiles = profiles
        self._clock = clock
        self._busy: set[str] = set()
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="deploy")

    async def restore(self) -> None:
        """After a start: functions from the state, instances that still run. Nothing is timed here: that may hang."""
        for stored in self._state.functions():
            try:
                wishes = self._wishes(stored.spec)
            except InflessError as fault:  # one damaged function must not keep the others from running
                LOG.error("%s stays in the state and is not served: %s", stored.spec.key, fault)  # noqa: TRY400
                continue
            function = self._add(stored, wishes, self._kept_profile(stored, wishes))
            if stored.replicas == 0:
                function.wanted_at_s = -math.inf
        self.fleet.adopt(self.functions)
        versions = {function.stored.digest for function in self.functions.values()}
        if all(instance.digest in versions for instance in self.fleet.instances.values()):
            used = {function.stored.bundle for function in self.functions.values()}
            await asyncio.to_thread(bundles.sweep, self._settings.bundles_kept, used)

    def _kept_profile(self, stored: StoredFunction, wishes: Wishes) -> tuple[ProfilePoint, ...]:
        """Without a profile a function is served all the same: its speed is learned from its answers."""
        try:
            kept = self._profiles.kept(stored.digest, wishes.batch_max)
        except StateError as fault:
            LOG.error("%s: %s", stored.spec.key, fault)  # noqa: TRY400 - a sentence, its traceback is noise
            return ()
        if kept is None:
            LOG.warning("%s has lost its profile; deploy it again to have it timed", stored.spec.key)
        return kept or ()

    # what users ask --------------------------------------------------------------------------------------------------

    async def deploy(self, data: dict[str, Any]) -> None:
        """POST /system/functions.

        Raises:
            InvalidInput, Conflict, Infeasible, StateError: nothing has changed then.
        """
        spec = wire.parse_deployment(data, NAMESPACE)
        if spec.key in self.functions:
            raise Conflict(f"function {spec.name!r} exists already; update it with PUT")
        await self._apply(spec)

    async def update(self, data: dict[str, Any]) -> None:
        """PUT /system/functions: the old version serves until the new one is ready.

        Raises:
            NotFound, InvalidInput, Conflict, Infeasible, StateError: nothing has changed then.
        """
        spec = wire.parse_deployment(data, NAMESPACE)
        self.find(spec.name)
        await self._apply(spec)

    async def _apply(self, spec: FunctionSpec) -> None:
        if spec.key in self._busy:
            raise Conflict(f"function {spec.name!r} is being deployed by another request")
        self._busy.add(spec.key)
        try:
            wishes = self._wishes(spec)
            if spec.secrets:
                raise InvalidInput(f"secret {spec.secrets[0]!r} does not exist")
            stored = await self._run(self._keep, spec, wishes)
            profile = await self._run(self._profile, stored, wishes)
            self._check_target(spec, wishes, profile)
            old = self.functions.get(spec.key)
            if old is not None:
                stored = replace(stored, created_at_s=old.stored.created_at_s, replicas=old.stored.replicas)
            self._state.put_function(stored)
            told = old.wishes if old else wishes
            function = self._add(stored, wishes, profile)
        finally:
            self._busy.discard(spec.key)
        if not function.current() and function.undrained():
            # The first instance of the new version; the old ones are drained once this one is ready.
            self.fleet.start(function, function.spare(), "first instance of the updated version")
        if told != wishes:
            self._tell_wishes(function)
        self.on_dirty()

    def _tell_wishes(self, function: FunctionState) -> None:
        """Instances that go on running under an update of labels alone learn of the new target and batch size."""
        spare = function.spare()
        for instance in function.current():
            have = instance.configuration
            batch = spare.batch if spare.cpu_cores == have.cpu_cores else min(have.batch, function.wishes.batch_max)
            try:
                self.fleet.resize(instance, replace(have, batch=batch))
            except StateError as fault:
                LOG.error("%s keeps its old configuration: %s", instance.id, fault)  # noqa: TRY400

    async def _run(self, work: Callable[..., _T], *arguments: Any) -> _T:
        """What takes long (hashing, copying, timing) runs in a thread of its own kind: the planner must not wait."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    def close(self) -> None:
        """Give threads back; a measurement under way ends."""
        self._profiles.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _keep(self, spec: FunctionSpec, wishes: Wishes) -> StoredFunction:
        found = bundles.find_bundle(self._settings.bundles_dir, spec.name, spec.image)
        code, kept = bundles.keep_copy(found, self._settings.bundles_kept)
        digest = bundles.profile_key(code, wishes.environment(spec.env_vars))
        return StoredFunction(spec=spec, bundle=str(kept), digest=digest, created_at_s=self._clock.wall_s())

    def _profile(self, stored: StoredFunction, wishes: Wishes) -> tuple[ProfilePoint, ...]:
        return self._profiles.points(
            stored.digest,
            Path(stored.bundle),
            wishes.environment(stored.spec.env_vars),
            wishes.batch_max,
            lambda told: LOG.info("%s: %s", stored.spec.name, told),
        )

    def _wishes(self, spec: FunctionSpec) -> Wishes:
        wishes = parse_wishes(spec.labels)
        if "com.infless.latency.target" not in spec.labels:
            wishes = replace(wishes, latency_target_s=self._settings.default_target_s)
        if wishes.gpu is GpuWish.REQUIRE:
            raise Infeasible(f"label com.infless.gpu: {spec.name!r} requires a GPU, and no server here has one")
        return wishes

    def _check_target(self, spec: FunctionSpec, wishes: Wishes, profile: tuple[ProfilePoint, ...]) -> None:
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

    async def remove(self, name: str) -> None:
        """DELETE /system/functions.

        Raises:
            NotFound, Conflict: for an unknown function, or one that is being updated.
        """
        function = self.find(name)
        if function.key in self._busy:
            raise Conflict(f"function {name!r} is being updated by another request")
        self._state.delete_function(function.key)
        del self.functions[function.key]
        function.wake()
        for instance in list(function.instances.values()):
            self.fleet.drain(instance, "its function was removed")

    async def scale(self, name: str, replicas: int) -> None:
        """POST /system/scale-function: the least number of instances from now on; the planner may run more.

        Raises:
            NotFound, InvalidInput: for an unknown function, or more than `com.openfaas.scale.max`.
        """
        function = self.find(name)
        if replicas > function.wishes.scale_max:
            raise InvalidInput(f"replicas {replicas} is above com.openfaas.scale.max, {function.wishes.scale_max}")
        stored = replace(function.stored, replicas=replicas)
        self._state.put_function(stored)
        function.stored = stored
        function.wanted_at_s = self._clock.now_s() if replicas else -math.inf
        self.on_dirty()

    def find(self, name: str) -> FunctionState:
        """A function by `name` or `name.namespace`.

        Raises:
            NotFound: when there is none.
        """
        function = self.functions.get(f"{wire.split_name(name, NAMESPACE)}.{NAMESPACE}")
        if function is None:
            raise NotFound(f"function {name!r} does not exist")
        return function

    async def listing(self) -> list[dict[str, Any]]:
        """Every FunctionStatus, by name."""
        return [self._status(function) for _, function in sorted(self.functions.items())]

    async def describe(self, name: str, *, usage: bool) -> dict[str, Any]:
        """One FunctionStatus.

        Raises:
            NotFound: when there is none.
        """
        function = self.find(name)
        status = self._status(function)
        if usage:
            used = [self._backend.usage(id_) for id_ in function.instances]
            status["usage"] = {
                "cpu": sum(one.cpu_millicores for one in used),
                "totalMemoryBytes": float(sum(one.memory_bytes for one in used)),
            }
        return status

    async def overview(self) -> dict[str, Any]:
        """Instances with their configurations and reasons, and what happened: `infless status`."""
        return {
            "instances": [self._instance_json(i) for _, i in sorted(self.fleet.instances.items())],
            "functions": [
                {
                    "function": f.key,
                    "rate_rps": round(f.estimate.rate_rps, 3),
                    "latency_target_s": f.wishes.latency_target_s,
                    "in_flight": f.in_flight,
                    "last_failure": f.last_failure,
                }
                for _, f in sorted(self.functions.items())
            ],
            "events": list(self.fleet.events),
        }

    def _instance_json(self, instance: Instance) -> dict[str, Any]:
        function = self.functions.get(instance.function)
        rates = function.window_of(instance) if function else None
        return {
            "id": instance.id,
            "function": instance.function,
            "phase": instance.phase.value,
            "batch": instance.configuration.batch,
            "cpu_cores": instance.configuration.cpu_cores,
            "gpu_percent": instance.configuration.gpu_percent,
            "rate_low_rps": rates.low_rps if rates else None,
            "rate_up_rps": rates.up_rps if rates else None,
            "why": instance.reason,
            "port": instance.address.port,
            "metrics_port": instance.address.metrics_port,
            "pid": instance.address.handle.get("pid"),
        }

    # what feeds it ---------------------------------------------------------------------------------------------------

    def targets(self) -> list[Target]:
        """Where ready instances publish their metrics."""
        return [
            Target(instance=i.id, function=i.function, host=i.address.host, port=i.address.metrics_port)
            for _, i in sorted(self.fleet.instances.items())
            if i.phase is Phase.READY
        ]

    async def discovery(self) -> list[dict[str, Any]]:
        """Targets in the form of Prometheus's HTTP service discovery."""
        return [
            {"targets": [one.address], "labels": {"function_name": one.function, "infless_instance": one.instance}}
            for one in self.targets()
        ]

    def correct(self, key: str, profile: tuple[ProfilePoint, ...]) -> None:
        """A function's execution times as they are now."""
        function = self.functions[key]
        function.profile = profile
        function.reweigh()
        self.on_dirty()

    def drifted(self, key: str, configuration: Configuration, why: str) -> None:
        """A configuration takes another time than it did: an event for `infless status`, and the log."""
        self.fleet.events.append(
            {
                "at_s": self._clock.wall_s(),
                "event": "drift",
                "instance": "",
                "function": key,
                "configuration": asdict(configuration),
                "why": why,
            }
        )
        LOG.warning("drift %s %s: %s", key, configuration, why)

    def _status(self, function: FunctionState) -> dict[str, Any]:
        return wire.status_json(
            function.stored.spec,
            replicas=function.wanted(self._clock.now_s()),
            available=function.available(),
            invocations=function.invocations,
            created_at_s=function.stored.created_at_s,
        )

    # what instances do -----------------------------------------------------------------------------------------------

    def _add(self, stored: StoredFunction, wishes: Wishes, profile: tuple[ProfilePoint, ...]) -> FunctionState:
        """Begin to serve a function, or its new version."""
        known = self.functions.get(stored.spec.key)
        if known is None:
            known = FunctionState(stored=stored, wishes=wishes, profile=profile)
            self.functions[known.key] = known
        if known.stored.digest != stored.digest:
            known.observed_exec_s = 0.0
        known.stored, known.wishes, known.profile = stored, wishes, profile
        known.failures, known.retry_at_s, known.last_failure = 0, 0.0, ""
        known.wanted_at_s = self._clock.now_s()
        known.reweigh()
        return known

    def _target_s(self, key: str) -> float:
        function = self.functions.get(key)
        return function.wishes.latency_target_s if function else self._settings.default_target_s

    def _instance_changed(self, key: str) -> None:
        function = self.functions.get(key)
        if function is None:
            return
        ready = [i for i in function.current() if i.phase is Phase.READY]
        for instance in ready:
            function.failures, function.last_failure = 0, ""
            replaced, instance.replaces = function.instances.get(instance.replaces or ""), None
            if replaced is not None:
                self.fleet.drain(replaced, f"replaced by {instance.id}")
                self.on_dirty()
        if ready and len(ready) == len(function.current()):
            # Only now: one new instance alone could not carry what several old ones did.
            for old in [i for i in function.undrained() if i.digest != function.stored.digest]:
                self.fleet.drain(old, "replaced by the updated version")
                self.on_dirty()
        function.reweigh()
        if function.serving():
            function.wake()

    def _instance_ended(self, instance: Instance, phase: Phase, words: str) -> None:
        function = self.functions.get(instance.function)
        if function is None:
            return
        function.instances.pop(instance.id, None)
        if phase is Phase.STARTING:
            self.fleet.failed_to_start(function, words)
        if phase is Phase.STARTING or not function.current():
            function.wake()  # who waits for it gets the reason now, not at the end of their patience
        if phase is not Phase.DRAINING:
            self.on_dirty()
