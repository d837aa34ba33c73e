"""The instances: started, watched until ready, resized, drained, found again. Acts on decisions, makes none."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from infless_core.clock import Clock
from infless_core.errors import BackendError, StateError
from infless_core.lifecycle import Event, Phase
from infless_core.model import Configuration
from infless_provider.backends.base import Address, Backend, Launch
from infless_provider.functions import FunctionState, Instance, by_phase
from infless_provider.settings import Settings
from infless_provider.state import State, StoredInstance
from infless_provider.upstream import Upstream, UpstreamError

LOG = logging.getLogger("infless.fleet")
WATCH_S = 0.1
"""How often starting instances are asked whether they are ready."""
DRAIN_GRACE_S = 35.0
"""of-watchdog's default write_timeout, and five seconds more."""


class Fleet:
    """All instances of all functions. Methods run on the event loop; a backend's calls are short."""

    def __init__(self, backend: Backend, state: State, settings: Settings, clock: Clock) -> None:
        self.instances: dict[str, Instance] = {}
        self.events: deque[dict[str, Any]] = deque(maxlen=1000)
        self.on_change: Callable[[str], None] = lambda _: None
        """Told the function whenever one of its instances became ready or ended."""
        self._backend = backend
        self._state = state
        self._settings = settings
        self._clock = clock
        self._serial = int(clock.wall_s() * 1000)
        self._asking: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def start(
        self, function: FunctionState, configuration: Configuration, reason: str, replaces: str | None = None
    ) -> Instance | None:
        """Begin to start an instance; None when the backend could not, which is logged and tried again later."""
        self._serial += 1
        id_ = f"{function.stored.spec.name}-{self._serial:x}"
        launch = Launch(
            id=id_,
            function=function.key,
            bundle=Path(function.stored.bundle),
            environment=function.stored.spec.env_vars,
            configuration=configuration,
            latency_target_s=function.wishes.latency_target_s,
        )
        try:
            address = self._backend.start(launch)
        except BackendError as error:
            self._failed(function, str(error))
            return None
        instance = self._admit(function, id_, configuration, address, reason)
        instance.replaces = replaces
        try:
            self._state.put_instance(_stored(instance))
        except StateError as error:
            # An instance that a restart would not find again is an orphan in the making.
            self._failed(function, str(error))
            self._backend.kill(id_)
            self._remove(instance)
            return None
        self.record("start", instance, reason)
        return instance

    def adopt(self, functions: dict[str, FunctionState]) -> None:
        """After a restart: take over what still runs, forget what does not, end what belongs to nobody."""
        for stored in self._state.instances():
            address = Address(**stored.address)
            function = functions.get(stored.function)
            if not self._backend.adopt(stored.id, address):
                self._state.delete_instance(stored.id)
            elif function is None:
                self._backend.kill(stored.id)
                self._backend.forget(stored.id)
                self._state.delete_instance(stored.id)
            else:
                instance = self._admit(function, stored.id, stored.configuration, address, "found after a restart")
                instance.digest = stored.digest
                self.record("adopt", instance, instance.reason)

    def resize(self, function: FunctionState, instance: Instance, configuration: Configuration) -> None:
        """Tell an instance its new batch size."""
        old, instance.configuration = instance.configuration, configuration
        self._state.put_instance(_stored(instance))
        self.record("resize", instance, f"{old} becomes {configuration}")
        self._spawn(self._configure(function, instance))

    def drain(self, instance: Instance, reason: str) -> None:
        """Send nothing more; end it when it has answered what it has."""
        if instance.phase in (Phase.DRAINING, Phase.GONE):
            return
        instance.advance(Event.DRAIN)
        instance.drain_until_s = self._clock.now_s() + DRAIN_GRACE_S
        self.record("stop", instance, reason)
        self.on_change(instance.function)
        self._backend.terminate(instance.id)

    async def watch(self) -> None:
        """Notice who became ready and who has ended, for ever."""
        while True:
            try:
                self._look()
            except Exception:
                LOG.exception("watching instances failed; going on")
            await asyncio.sleep(WATCH_S)

    def _look(self) -> None:
        now_s = self._clock.now_s()
        for instance in list(self.instances.values()):
            if not self._backend.alive(instance.id):
                self._ended(instance)
            elif instance.phase is Phase.STARTING:
                if now_s - instance.started_at_s > self._settings.start_timeout_s:
                    self._backend.kill(instance.id)
                elif instance.id not in self._asking:
                    self._asking.add(instance.id)
                    self._spawn(self._ask_ready(instance))
            elif instance.phase is Phase.DRAINING and now_s > instance.drain_until_s:
                LOG.warning("%s did not drain within %.0f s; killed", instance.id, DRAIN_GRACE_S)
                self._backend.kill(instance.id)

    async def _ask_ready(self, instance: Instance) -> None:
        try:
            reply = await instance.upstream.request("GET", "/_/ready", (), b"", timeout_s=2.0)
            await reply.read()
            if reply.status == 200 and instance.phase is Phase.STARTING:
                instance.advance(Event.READY)
                took_s = self._clock.now_s() - instance.started_at_s
                self.record("ready", instance, f"after {took_s:.2f} s")
                self.on_change(instance.function)
        except UpstreamError:
            pass  # not yet; asked again
        finally:
            self._asking.discard(instance.id)

    async def _configure(self, function: FunctionState, instance: Instance) -> None:
        wish = {"batch_max": instance.configuration.batch, "latency_target_s": function.wishes.latency_target_s}
        control = Upstream(instance.address.host, instance.address.metrics_port)
        try:
            reply = await control.request("PUT", "/_/config", (), json.dumps(wish).encode(), timeout_s=5.0)
            if reply.status != 200:
                LOG.warning("%s refused its configuration: %s", instance.id, (await reply.read()).decode())
        except UpstreamError as error:
            LOG.warning("%s could not be told its configuration: %s", instance.id, error)
        finally:
            await control.close()

    def _ended(self, instance: Instance) -> None:
        phase, words = instance.phase, self._backend.last_words(instance.id, instance.function)
        instance.advance(Event.ENDED)
        self._remove(instance)
        self.record("end", instance, "" if phase is Phase.DRAINING else words or "it ended by itself")
        self.on_ended(instance, phase, words)
        self.on_change(instance.function)

    on_ended: Callable[[Instance, Phase, str], None] = staticmethod(lambda *_: None)
    """Told the instance, the phase it ended in, and its last words."""

    def _remove(self, instance: Instance) -> None:
        self.instances.pop(instance.id, None)
        self._backend.forget(instance.id)
        self._spawn(instance.upstream.close())
        with contextlib.suppress(StateError):  # found dead again, and deleted, at the next restart
            self._state.delete_instance(instance.id)

    def _admit(
        self, function: FunctionState, id_: str, configuration: Configuration, address: Address, reason: str
    ) -> Instance:
        instance = Instance(
            id=id_,
            function=function.key,
            digest=function.stored.digest,
            configuration=configuration,
            address=address,
            upstream=Upstream(address.host, address.port),
            reason=reason,
            started_at_s=self._clock.now_s(),
        )
        self.instances[id_] = instance
        function.instances[id_] = instance
        return instance

    def _failed(self, function: FunctionState, words: str) -> None:
        function.failures += 1
        function.retry_at_s = self._clock.now_s() + min(60.0, 2.0**function.failures)
        function.last_failure = words
        LOG.error("%s: %s", function.key, words)

    def failed_to_start(self, function: FunctionState, words: str) -> None:
        """An instance ended before it was ready: wait longer each time before the next try."""
        self._failed(function, words or "an instance ended before it was ready")

    def record(self, what: str, instance: Instance, why: str) -> None:
        """Keep an event for `infless status` and the log."""
        self.events.append(
            {
                "at_s": self._clock.wall_s(),
                "event": what,
                "instance": instance.id,
                "function": instance.function,
                "configuration": asdict(instance.configuration),
                "why": why,
            }
        )
        LOG.info("%s %s %s%s", what, instance.id, instance.configuration, f": {why}" if why else "")

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def end_all(self, timeout_s: float) -> None:
        """Drain everything and wait; kill what does not end in time."""
        for instance in list(self.instances.values()):
            self.drain(instance, "the provider stops")
        ends_s = self._clock.now_s() + timeout_s
        while self.instances and self._clock.now_s() < ends_s:
            self._look()
            await asyncio.sleep(0.02)
        for instance in by_phase(self.instances.values(), Phase.DRAINING):
            self._backend.kill(instance.id)
        self._look()

    async def close(self) -> None:
        """Give connections back; instances go on running."""
        for task in list(self._tasks):
            task.cancel()
        for instance in list(self.instances.values()):
            await instance.upstream.close()


def _stored(instance: Instance) -> StoredInstance:
    return StoredInstance(
        id=instance.id,
        function=instance.function,
        digest=instance.digest,
        configuration=instance.configuration,
        address=asdict(instance.address),
    )
