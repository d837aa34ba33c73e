"""The instances: started, watched until ready, resized, drained, found again. Acts on decisions, makes none."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import asdict
from pathlib import Path
from typing import Any

from infless_core.clock import Clock
from infless_core.errors import BackendError, StateError
from infless_core.lifecycle import Event, Phase
from infless_core.model import Configuration
from infless_provider.backends.base import Address, Backend, Launch
from infless_provider.functions import FunctionState, Instance
from infless_provider.settings import Settings
from infless_provider.state import State, StoredInstance
from infless_provider.upstream import Upstream, UpstreamError

LOG = logging.getLogger("infless.fleet")
WATCH_S = 0.1
"""How often starting instances are asked whether they are ready."""
DRAIN_GRACE_S = 65.0
"""The longest invocation (`Settings.invoke_timeout_s`) and five seconds more."""
LAST_ANSWERS_S = 1.5
"""An instance's worker notices within a second that its supervisor is gone, and ends."""


class Fleet:
    """All instances of all functions. Methods run on the event loop; a backend's calls are short."""

    def __init__(self, backend: Backend, state: State, settings: Settings, clock: Clock) -> None:
        self.instances: dict[str, Instance] = {}
        self.events: deque[dict[str, Any]] = deque(maxlen=1000)
        self.on_change: Callable[[str], None] = lambda _: None
        """Told the function whenever one of its instances became ready, began to drain, or ended."""
        self.on_ended: Callable[[Instance, Phase, str], None] = lambda *_: None
        """Told the instance, the phase it ended in, and its last words."""
        self.target_s: Callable[[str], float] = lambda _: 0.5
        """The newest latency target of a function."""
        self._backend = backend
        self._state = state
        self._settings = settings
        self._clock = clock
        self._closing = False
        self._serial = int(clock.wall_s() * 1000)
        self._asking: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._leaving: set[asyncio.Task[None]] = set()

    def start(
        self, function: FunctionState, configuration: Configuration, reason: str, replaces: str | None = None
    ) -> Instance | None:
        """Begin to start an instance; None when the backend could not, which is logged and tried again later."""
        if self._closing:
            return None
        self._serial += 1
        id_ = f"{function.stored.spec.name}-{self._serial:x}"
        launch = Launch(
            id=id_,
            function=function.key,
            bundle=Path(function.stored.bundle),
            environment=function.wishes.environment(function.stored.spec.env_vars),
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
            function.instances.pop(id_, None)
            self._remove(instance)
            return None
        self.record("start", instance, reason)
        return instance

    def adopt(self, functions: dict[str, FunctionState]) -> None:
        """After a restart: take over what still runs, forget what does not, end what belongs to nobody."""
        for stored in self._state.instances():
            function = functions.get(stored.function)
            address = Address(**stored.address)
            if not self._backend.adopt(stored.id, address) or function is None:
                self._backend.forget(stored.id)
                self._forget_stored(stored.id)
                continue
            instance = self._admit(function, stored.id, stored.configuration, address, "found after a restart")
            instance.digest = stored.digest
            instance.untold = True  # nobody knows whether it was told before the restart
            self.record("adopt", instance, instance.reason)
        self._backend.sweep(set(self.instances))

    def resize(self, instance: Instance, configuration: Configuration) -> None:
        """Give an instance another batch size, or tell it its function's new latency target.

        Raises:
            StateError: nothing has changed then.
        """
        old = instance.configuration
        self._state.put_instance(_stored(instance, configuration))
        instance.configuration = configuration
        instance.untold = True  # `_look` tells it as soon as it is ready
        self.record("resize", instance, f"{old} becomes {configuration}")

    def drain(self, instance: Instance, reason: str) -> None:
        """Send nothing more; ask it to end when it has answered what it has.

        It is asked only then: a request that is being written to it must not meet a closing connection.
        """
        if instance.phase in (Phase.DRAINING, Phase.GONE):
            return
        instance.advance(Event.DRAIN)
        instance.drain_until_s = self._clock.now_s() + DRAIN_GRACE_S
        self.record("stop", instance, reason)
        self.on_change(instance.function)
        self._end_when_idle(instance)

    def _end_when_idle(self, instance: Instance) -> None:
        if not instance.asked_to_end and (instance.in_flight == 0 or self._closing):
            instance.asked_to_end = True
            self._backend.terminate(instance.id)

    def check(self, instance: Instance) -> None:
        """Look now whether it still lives: somebody could not reach it."""
        if instance.id in self.instances and not self._backend.alive(instance.id):
            self._ended(instance)

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
                limit_s = self._settings.start_timeout_s
                if now_s - instance.started_at_s > limit_s:
                    instance.doom = f"it was not ready within {limit_s:.0f} s"
                    self._backend.kill(instance.id)
                else:
                    self._ask(instance, self._ask_ready)
            elif instance.phase is Phase.READY and instance.untold:
                self._ask(instance, self._configure)
            elif instance.phase is Phase.DRAINING:
                self._end_when_idle(instance)
                if now_s > instance.drain_until_s:
                    LOG.warning("%s did not drain within %.0f s; killed", instance.id, DRAIN_GRACE_S)
                    self._backend.kill(instance.id)

    def _ask(self, instance: Instance, question: Callable[[Instance], Awaitable[None]]) -> None:
        """One question at a time for each instance."""

        async def ask() -> None:
            try:
                await question(instance)
            except UpstreamError as error:
                LOG.debug("%s: %s; asking again", instance.id, error)
            finally:
                self._asking.discard(instance.id)

        if instance.id not in self._asking:
            self._asking.add(instance.id)
            self._spawn(ask())

    async def _ask_ready(self, instance: Instance) -> None:
        reply = await instance.upstream.request("GET", "/_/ready", (), b"", timeout_s=2.0)
        await reply.read()
        if reply.status == 200 and instance.phase is Phase.STARTING:
            instance.advance(Event.READY)
            took_s = self._clock.now_s() - instance.started_at_s
            self.record("ready", instance, f"after {took_s:.2f} s")
            self.on_change(instance.function)

    async def _configure(self, instance: Instance) -> None:
        instance.untold = False
        wish = {"batch_max": instance.configuration.batch, "latency_target_s": self.target_s(instance.function)}
        control = Upstream(instance.address.host, instance.address.metrics_port)
        try:
            reply = await control.request("PUT", "/_/config", (), json.dumps(wish).encode(), timeout_s=5.0)
            said = (await reply.read()).decode(errors="replace").strip()
            if reply.status == 503:
                instance.untold = True  # it is not that far yet
            elif reply.status != 200:
                LOG.warning("%s refused its configuration: %s", instance.id, said)
        except UpstreamError:
            instance.untold = True
            raise
        finally:
            await control.close()

    def _ended(self, instance: Instance) -> None:
        phase = instance.phase
        words = instance.doom or self._backend.last_words(instance.id, instance.function)
        instance.advance(Event.ENDED)
        self._remove(instance)
        self.record("end", instance, "" if phase is Phase.DRAINING else words or "it ended by itself")
        self.on_ended(instance, phase, words)
        self.on_change(instance.function)

    def _remove(self, instance: Instance) -> None:
        self.instances.pop(instance.id, None)
        self._forget_stored(instance.id)
        self._spawn(self._let_go(instance), self._leaving)

    async def _let_go(self, instance: Instance) -> None:
        """A supervisor that was killed leaves a worker that still answers for a moment: let it, then clear up."""
        ends_s = self._clock.now_s() + LAST_ANSWERS_S
        while instance.in_flight and self._clock.now_s() < ends_s:
            await asyncio.sleep(0.02)
        self._backend.forget(instance.id)
        await instance.upstream.close()

    def _forget_stored(self, id_: str) -> None:
        with contextlib.suppress(StateError):  # found dead again, and deleted, at the next restart
            self._state.delete_instance(id_)

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
        function.retry_at_s = self._clock.now_s() + min(60.0, 2.0 ** min(function.failures, 10))
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

    def _spawn(self, work: Coroutine[Any, Any, None], group: set[asyncio.Task[None]] | None = None) -> None:
        group = self._tasks if group is None else group
        task = asyncio.ensure_future(work)
        group.add(task)
        task.add_done_callback(group.discard)

    async def end_all(self, timeout_s: float) -> None:
        """Drain everything and wait; kill what does not end in time."""
        self.close_door()
        for instance in list(self.instances.values()):
            self.drain(instance, "the provider stops")
        ends_s = self._clock.now_s() + timeout_s
        while self.instances and self._clock.now_s() < ends_s:
            self._look()
            await asyncio.sleep(0.02)
        for instance in list(self.instances.values()):
            self._backend.kill(instance.id)
        self._look()
        if self._leaving:
            await asyncio.wait(self._leaving)

    def close_door(self) -> None:
        """Start nothing any more."""
        self._closing = True

    async def close(self) -> None:
        """Give connections back; instances go on running."""
        for task in [*self._tasks, *self._leaving]:
            task.cancel()
        for instance in list(self.instances.values()):
            await instance.upstream.close()


def _stored(instance: Instance, configuration: Configuration | None = None) -> StoredInstance:
    return StoredInstance(
        id=instance.id,
        function=instance.function,
        digest=instance.digest,
        configuration=configuration or instance.configuration,
        address=asdict(instance.address),
    )
