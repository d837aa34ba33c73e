"""Deploy, update, remove, scale, list: what users ask of the provider, on the event loop's thread."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from infless_core.clock import Clock
from infless_core.errors import Conflict, Infeasible, InvalidInput, NotFound
from infless_core.labels import GpuWish, Wishes, parse_wishes
from infless_core.lifecycle import Phase
from infless_core.model import FunctionDemand, FunctionSpec, ProfilePoint
from infless_core.units import format_duration
from infless_provider import bundles, wire
from infless_provider.backends.base import Backend
from infless_provider.fleet import Fleet
from infless_provider.functions import FunctionState, Instance
from infless_provider.profiling import Profiles
from infless_provider.settings import NAMESPACE, Settings
from infless_provider.state import State, StoredFunction
from infless_scheduler.rates import feasible_points, nearest_target_s

LOG = logging.getLogger("infless.controller")


class Controller:
    """All functions of the provider. Owns the state; everything runs on one event loop."""

    def __init__(
        self, settings: Settings, state: State, backend: Backend, profiles: Profiles, clock: Clock
    ) -> None:  # fmt: skip
        self.functions: dict[str, FunctionState] = {}
        self.fleet = Fleet(backend, state, settings, clock)
        self.fleet.on_change = self._instance_changed
        self.fleet.on_ended = self._instance_ended
        self.on_dirty: Callable[[], None] = lambda: None
        """Told when the instances should be planned anew."""
        self._settings = settings
        self._state = state
        self._backend = backend
        self._profiles = profiles
        self._clock = clock
        self._busy: set[str] = set()

    async def restore(self) -> None:
        """After a start: functions from the state, instances that still run."""
        for stored in self._state.functions():
            try:
                wishes = self._wishes(stored.spec)
                profile = await self._profile(stored, wishes)
            except Exception:  # one damaged function must not keep the others from running
                LOG.exception("%s cannot be restored; it stays in the state and is not served", stored.spec.key)
                continue
            self._add(stored, wishes, profile)
        self.fleet.adopt(self.functions)

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
            stored = await asyncio.get_running_loop().run_in_executor(None, self._keep, spec)
            profile = await self._profile(stored, wishes)
            self._check_target(spec, wishes, profile)
            old = self.functions.get(spec.key)
            if old is not None:
                stored = replace(stored, created_at_s=old.stored.created_at_s, replicas=old.stored.replicas)
            self._state.put_function(stored)
            function = self._add(stored, wishes, profile)
        finally:
            self._busy.discard(spec.key)
        if old is not None and not function.current():
            # The first instance of the new version; the old one is drained once this one is ready.
            self.fleet.start(function, function.spare(), "first instance of the updated version")
        self.on_dirty()

    def _keep(self, spec: FunctionSpec) -> StoredFunction:
        found = bundles.find_bundle(self._settings.bundles_dir, spec.name, spec.image)
        code, kept = bundles.keep_copy(found, self._settings.state_dir / "bundles")
        digest = bundles.profile_key(code, spec.env_vars)
        return StoredFunction(spec=spec, bundle=str(kept), digest=digest, created_at_s=self._clock.wall_s())

    async def _profile(self, stored: StoredFunction, wishes: Wishes) -> tuple[ProfilePoint, ...]:
        return await asyncio.get_running_loop().run_in_executor(
            None,
            lambda: self._profiles.points(
                stored.digest,
                Path(stored.bundle),
                stored.spec.env_vars,
                wishes.batch_max,
                lambda told: LOG.info("%s: %s", stored.spec.name, told),
            ),
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
            NotFound: for an unknown function.
        """
        function = self.find(name)
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
            known = FunctionState(stored=stored, wishes=wishes, profile=profile, created_s=self._clock.now_s())
            self.functions[known.key] = known
        known.stored, known.wishes, known.profile = stored, wishes, profile
        known.failures, known.retry_at_s, known.last_failure = 0, 0.0, ""
        known.reweigh()
        return known

    def _instance_changed(self, key: str) -> None:
        function = self.functions.get(key)
        if function is None:
            return
        for instance in function.serving():
            if instance.digest == function.stored.digest:
                function.failures = 0
                self._hand_over(function, instance)
        function.reweigh()
        if function.serving():
            function.wake()

    def _hand_over(self, function: FunctionState, instance: Instance) -> None:
        """A ready instance takes the place of what it replaces, and of every older version."""
        for old in list(function.instances.values()):
            if old.id == instance.replaces:
                self.fleet.drain(old, f"replaced by {instance.id}")
            elif old.digest != function.stored.digest and old.phase is not Phase.DRAINING:
                self.fleet.drain(old, "replaced by the updated version")
        instance.replaces = None

    def _instance_ended(self, instance: Instance, phase: Phase, words: str) -> None:
        function = self.functions.get(instance.function)
        if function is None:
            return
        function.instances.pop(instance.id, None)
        if phase is Phase.STARTING:
            self.fleet.failed_to_start(function, words)
            function.wake()  # who waits for it gets the reason now, not at the end of their patience
        if phase is not Phase.DRAINING:
            self.on_dirty()
