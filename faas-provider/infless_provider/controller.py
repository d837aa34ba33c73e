"""Deploy, update, roll back, remove, scale: what users ask of the provider, on the event loop's thread."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from infless_core.clock import Clock
from infless_core.errors import Conflict, InflessError, InvalidInput, NotFound, QuotaExceeded, StateError
from infless_core.labels import SCALE_MIN, Wishes
from infless_core.lifecycle import Phase
from infless_core.model import Configuration, FunctionSpec, ProfilePoint
from infless_provider import wire
from infless_provider.alerts import parse_alerts, replicas_after
from infless_provider.backends.base import Backend
from infless_provider.fleet import Fleet
from infless_provider.functions import FunctionState, Instance
from infless_provider.housekeeping import Housekeeping
from infless_provider.namespaces import Namespaces
from infless_provider.preparing import Preparing
from infless_provider.profiling import Profiles
from infless_provider.secret_store import SecretStore
from infless_provider.settings import Settings
from infless_provider.state import State, StoredFunction

LOG = logging.getLogger("infless.controller")
TRIES = 2
"""Instances of an updated version that may end before they are ready; then the version before is restored. One that
hung until its start timeout counts as so many."""


class Controller:
    """All functions of the provider. Owns the state; everything runs on one event loop."""

    def __init__(
        self, settings: Settings, state: State, backend: Backend, profiles: Profiles, secrets: SecretStore, clock: Clock
    ) -> None:  # fmt: skip
        self.functions: dict[str, FunctionState] = {}
        self.namespaces = Namespaces(state, settings.namespaces_max)
        self.backend = backend
        self.clock = clock
        self.fleet = Fleet(backend, state, settings, clock)
        self.fleet.on_change = self._instance_changed
        self.fleet.on_ready = self._instance_ready
        self.fleet.on_ended = self._instance_ended
        self.fleet.on_failed = self._start_failed
        self.fleet.secrets_of = secrets.folder_of
        self.fleet.target_s = self._target_s
        self.on_dirty: Callable[[], None] = lambda: None
        """Told when the instances should be planned anew."""
        self.on_removed: Callable[[str], None] = lambda _: None
        """Told the key of a function that is gone."""
        self._settings = settings
        self._state = state
        self._secrets = secrets
        self._busy: set[str] = set()
        self._unserved: dict[str, StoredFunction] = {}
        self._housekeeping = Housekeeping(
            self._everything, self.fleet.versions, secrets, backend, settings.logs_dir
        )  # fmt: skip
        self._preparing = Preparing(backend, profiles, secrets, self.namespaces, settings.default_target_s)

    async def restore(self) -> None:
        """After a start: functions from the state, instances that still run. Nothing is timed here: that may hang."""
        self.namespaces.restore()
        for stored in self._state.functions():
            try:
                wishes = self._preparing.wishes(stored.spec)
            except InflessError as fault:  # one damaged function must not keep the others from running
                LOG.error("%s stays in the state and is not served: %s", stored.key, fault)  # noqa: TRY400
                self._unserved[stored.key] = stored
                continue
            self._install(stored, wishes, self._preparing.kept_profile(stored.version, wishes))
        self.fleet.adopt(self.functions)
        for function in self.functions.values():
            # What slept goes on sleeping.
            function.wanted_at_s = self.clock.now_s() if function.instances else -math.inf
        if self._state.left_out:
            LOG.error("nothing is cleared up: %d rows of the state cannot be read", self._state.left_out)
            self._housekeeping.close()
        else:
            await self._housekeeping.first()

    def _everything(self) -> list[StoredFunction]:
        return [*self._unserved.values(), *(function.stored for function in self.functions.values())]

    # what users ask --------------------------------------------------------------------------------------------------

    async def deploy(self, data: dict[str, Any]) -> None:
        """POST /system/functions.

        Raises:
            InvalidInput, Conflict, QuotaExceeded, Infeasible, StateError: nothing has changed then.
        """
        spec = wire.parse_deployment(data)
        if spec.key in self.functions:
            raise Conflict(f"function {spec.name!r} exists already; update it with PUT")
        most = self._settings.functions_max
        coming = sum(key not in self.functions and key.endswith(f".{spec.namespace}") for key in self._busy)
        if len(self.functions_in(spec.namespace)) + coming >= most:
            raise QuotaExceeded(f"namespace {spec.namespace!r} holds {most} functions, as many as it may")
        await self._accept(spec)

    async def update(self, data: dict[str, Any]) -> None:
        """PUT /system/functions: the old version serves until the new one is ready.

        Raises:
            NotFound, InvalidInput, Conflict, Infeasible, StateError: nothing has changed then.
        """
        spec = wire.parse_deployment(data)
        self.find(spec.name, spec.namespace)
        await self._accept(spec)

    async def _accept(self, spec: FunctionSpec) -> None:
        """In the log, too: whoever asked may have left by the time that it fails."""
        try:
            await self._apply(spec)
        except InflessError as fault:
            LOG.warning("%s is not deployed: %s", spec.key, fault)
            raise
        LOG.info("%s is deployed", spec.key)

    async def _apply(self, spec: FunctionSpec) -> None:
        if spec.key in self._busy:
            raise Conflict(f"function {spec.name!r} is being deployed by another request")
        self._busy.add(spec.key)
        try:
            wishes = self._preparing.wishes(spec)
            async with self._housekeeping.deployment():
                version, profile = await self._preparing.version(spec, wishes)
                function = self.functions.get(spec.key)
                new = StoredFunction(version=version, created_at_s=self.clock.wall_s())
                stored = function.stored.updated(version) if function else new
                self._state.put_function(stored)
                self._unserved.pop(spec.key, None)
        finally:
            self._busy.discard(spec.key)
        told = function.wishes if function else wishes
        function = self._install(stored, wishes, profile)
        function.failures, function.retry_at_s, function.last_failure, function.rolled_back = 0, 0.0, "", ""
        if function.instances or spec.labels.get(SCALE_MIN) != "0":  # else it is started by its first request
            function.wanted_at_s = self.clock.now_s()
        if not function.current() and function.undrained():
            # The first instance of the new version; the old ones are drained once this one is ready.
            self.fleet.start(function, function.spare(), "first instance of the updated version")
        if told != wishes:
            self._tell_wishes(function)
        self._instance_changed(function.key)  # taken back by hand: nobody waits for what was starting instead
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

    def close(self) -> None:
        """Give threads back; a measurement under way ends."""
        self._preparing.close()
        self._housekeeping.close()

    async def remove(self, name: str, namespace: object = None) -> None:
        """DELETE /system/functions.

        Raises:
            NotFound, Conflict: for an unknown function, or one that is being updated.
        """
        key = wire.function_key(name, wire.parse_namespace(namespace))
        if key in self._busy:
            raise Conflict(f"function {name!r} is being deployed by another request")
        if key in self._unserved:
            self._state.delete_function(key)
            del self._unserved[key]
            self._housekeeping.soon()
            return
        function = self.find(name, namespace)
        self._state.delete_function(key)
        del self.functions[key]
        function.wake()
        for instance in list(function.instances.values()):
            self.fleet.drain(instance, "its function was removed")
        self._housekeeping.soon()
        self.on_removed(key)

    async def scale(self, name: str, namespace: object, replicas: int) -> None:
        """POST /system/scale-function: the least number of instances from now on; the planner may run more.

        Raises:
            NotFound, InvalidInput: for an unknown function, or more than `com.openfaas.scale.max`.
        """
        function = self.find(name, namespace)
        if replicas > function.wishes.scale_max:
            raise InvalidInput(f"replicas {replicas} is above com.openfaas.scale.max, {function.wishes.scale_max}")
        self._scale(function, replicas)

    def _scale(self, function: FunctionState, replicas: int | None) -> None:
        self._store(function, replace(function.stored, replicas=replicas))
        if replicas is not None:  # else nobody wants it now
            function.wanted_at_s = -math.inf if replicas == 0 else self.clock.now_s()
        self.on_dirty()

    async def alert(self, data: dict[str, Any]) -> None:
        """POST /system/alert: a firing alert adds instances, a resolved one leaves the number to the planner again.

        Raises:
            InvalidInput: it is no webhook of AlertManager's. An unknown function is no fault of the caller's.
        """
        for alert in parse_alerts(data):
            function = self.functions.get(wire.function_key(alert.function_name))
            if function is None:
                LOG.warning("alert: function %r does not exist", alert.function_name)
                continue
            wanted, most = function.wanted(self.clock.now_s()), function.wishes.scale_max
            more = replicas_after(replicas=wanted, most=most, factor_percent=function.wishes.scale_factor_percent)
            self._scale(function, more if alert.firing else None)

    def find(self, name: str, namespace: object = None) -> FunctionState:
        """A function by `name` or `name.namespace`.

        Raises:
            NotFound: when there is none.
        """
        key = wire.function_key(name, wire.parse_namespace(namespace))
        function = self.functions.get(key)
        if function is None:
            raise NotFound(f"function {name!r} does not exist in namespace {key.rpartition('.')[2]!r}")
        return function

    def functions_in(self, namespace: str) -> list[str]:
        """Names of the functions in a namespace."""
        return [f.stored.spec.name for f in self.functions.values() if f.stored.spec.namespace == namespace]

    # what feeds it ---------------------------------------------------------------------------------------------------

    def correct(self, key: str, profile: tuple[ProfilePoint, ...]) -> None:
        """A function's execution times as they are now."""
        function = self.functions[key]
        function.profile = profile
        function.reweigh()
        self.on_dirty()

    def drifted(self, key: str, configuration: Configuration, why: str) -> None:
        """A configuration takes another time than it did: an event for `infless status`, and the log."""
        self.fleet.note("drift", key, why, configuration)
        LOG.warning("drift %s %s: %s", key, configuration, why)

    def secret_changed(self, namespace: str, name: str) -> None:
        """A secret has another value, or none: functions that it opens are opened by what it holds now."""
        for function in self.functions.values():
            if function.stored.spec.namespace == namespace and function.wishes.auth_secret == name:
                function.tokens = self._tokens(namespace, name)

    # what instances do -----------------------------------------------------------------------------------------------

    def _install(self, stored: StoredFunction, wishes: Wishes, profile: tuple[ProfilePoint, ...]) -> FunctionState:
        """Begin to serve a function, or another version of it."""
        known = self.functions.get(stored.key)
        if known is None:
            known = FunctionState(stored=stored, wishes=wishes, profile=profile)
            self.functions[known.key] = known
        if known.stored.version.digest != stored.version.digest:
            known.observed_exec_s = 0.0
        known.stored, known.wishes, known.profile = stored, wishes, profile
        known.tokens = self._tokens(stored.spec.namespace, wishes.auth_secret) if wishes.auth_secret else ()
        known.reweigh()
        return known

    def _tokens(self, namespace: str, name: str) -> tuple[bytes, ...]:
        try:
            return self._secrets.tokens(namespace, name)
        except InvalidInput as fault:
            LOG.error("a function is closed to everybody: %s", fault)  # noqa: TRY400
            return (os.urandom(32),)

    def _store(self, function: FunctionState, stored: StoredFunction) -> None:
        """First on the disk, then true."""
        self._state.put_function(stored)
        function.stored = stored

    def _target_s(self, key: str) -> float:
        function = self.functions.get(key)
        return function.wishes.latency_target_s if function else self._settings.default_target_s

    def _instance_ready(self, instance: Instance) -> None:
        function = self.functions.get(instance.function)
        if function is None or instance.version != function.version:
            return
        function.failures, function.last_failure = 0, ""
        replaced = function.instances.get(instance.replaces or "")
        if replaced is not None:
            self.fleet.drain(replaced, f"replaced by {instance.id}")
            self.on_dirty()

    def _instance_changed(self, key: str) -> None:
        function = self.functions.get(key)
        if function is None:
            return
        ready = [i for i in function.current() if i.phase is Phase.READY]
        if ready and not function.stored.proven:
            self._prove(function)
        if ready and len(ready) == len(function.current()):
            # Only now: one new instance alone could not carry what several old ones did.
            for old in [i for i in function.undrained() if i.version != function.version]:
                self.fleet.drain(old, "replaced by the updated version")
                self.on_dirty()
        function.reweigh()
        if function.serving():
            function.wake()

    def _prove(self, function: FunctionState) -> None:
        """An instance of this version has been ready: there is nothing to go back for."""
        try:
            self._store(function, replace(function.stored, proven=True, previous=None))
            self._housekeeping.soon()
        except StateError as fault:
            LOG.warning("%s: %s", function.key, fault)  # told again when the next one is ready

    def _start_failed(self, function: FunctionState) -> None:
        """A version that does not get ready is given up for the one before, if that one did."""
        failed = function.stored
        if failed.previous is None or function.failures < TRIES or function.key in self._busy:
            return
        words = function.last_failure
        try:
            wishes = self._preparing.wishes(failed.previous.spec)
            stored = replace(failed, version=failed.previous, previous=None, proven=True)
            self._state.put_function(stored)
        except InflessError as fault:
            LOG.error("%s cannot be rolled back: %s", function.key, fault)  # noqa: TRY400
            return
        self._install(stored, wishes, self._preparing.kept_profile(stored.version, wishes))
        function.failures, function.retry_at_s, function.last_failure, function.rolled_back = 0, 0.0, "", words
        self.fleet.note("rollback", function.key, words)
        LOG.warning("%s is rolled back: %s", function.key, words)
        for instance in [i for i in function.undrained() if i.version == failed.version.id]:
            self.fleet.drain(instance, "its version was rolled back")
        function.wake()
        self.on_dirty()

    def _instance_ended(self, instance: Instance, phase: Phase, words: str) -> None:
        function = self.functions.get(instance.function)
        self._housekeeping.soon()
        if function is None:
            return
        function.instances.pop(instance.id, None)
        if phase is Phase.STARTING and instance.version == function.version and not instance.adopted:
            self.fleet.failed_to_start(function, words, TRIES if instance.doom else 1)
        if phase is Phase.STARTING or not function.current():
            function.wake()  # who waits for it gets the reason now, not at the end of their patience
        if phase is not Phase.DRAINING:
            self.on_dirty()
