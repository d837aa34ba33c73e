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
from infless_core.errors import InflessError, StateError, Unavailable
from infless_core.lifecycle import Event, Phase
from infless_core.model import Configuration
from infless_provider.backends.base import Address, Backend, Stage
from infless_provider.functions import FunctionState, Instance
from infless_provider.settings import Settings
from infless_provider.state import State
from infless_provider.upstream import Upstream, UpstreamError

LOG = logging.getLogger("infless.fleet")
WATCH_S = 0.1
"""How often starting instances are asked whether they are ready."""
_EVERYONE_EACH = 10
"""Those that serve are looked at each so many times, should a backend's event be lost."""
ALIVE_S = 10.0
"""How often an instance that serves is asked whether it lives, and how long it may take to say so."""
UNHEARD_MAX = 3
"""So many times in a row without a word, and it hangs (as many as Kubernetes' liveness probes)."""
STREAM_MAX_S = 3600.0
"""The longest time that an instance which is to go may stay for an answer in pieces. The proxy cuts silent ones long
before; one that flows is let finish."""
DRAIN_GRACE_S = 35.0
"""How long an instance may take to end once it is asked to: of-watchdog's `write_timeout`, and a little."""
LAST_ANSWERS_S = 1.5
"""An instance's worker notices within a second that its supervisor is gone, and ends."""


class Fleet:
    """All instances of all functions. Methods run on the event loop; a backend's calls are short."""

    def __init__(self, backend: Backend, state: State, settings: Settings, clock: Clock) -> None:
        self.instances: dict[str, Instance] = {}
        self.events: deque[dict[str, Any]] = deque(maxlen=1000)
        self.on_change: Callable[[str], None] = lambda _: None
        """Told the function whenever one of its instances became ready, began to drain, or ended."""
        self.on_ready: Callable[[Instance], None] = lambda _: None
        """Told an instance that became ready, before `on_change` is."""
        self.on_ended: Callable[[Instance, Phase, str], None] = lambda *_: None
        """Told the instance, the phase it ended in, and its last words."""
        self.on_failed: Callable[[FunctionState], None] = lambda _: None
        """Told the function when an instance could not be started, or ended before it was ready."""
        self.secrets_of: Callable[[str, str], Path | None] = lambda *_: None
        """Where a function's version finds its secrets; None when it has none."""
        self.target_s: Callable[[str], float] = lambda _: 0.5
        """The newest latency target of a function."""
        self._backend = backend
        backend.on_event = self._event
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
        """Begin to start an instance; None when the backend could not, which is logged and tried again later.

        It is in the state before the backend hears of it: what a crash interrupts here is found again, or swept up.
        """
        if self._closing:
            return None
        id_ = self._new_id(function.stored.spec.name)
        instance = self._admit(function, id_, configuration, reason)
        instance.replaces = replaces
        try:
            self._state.put_instance(instance.stored())
            server, secrets = self._backend.servers[0], self.secrets_of(function.key, instance.version)
            self._backend.start(function.launch(instance, server, secrets))
        except InflessError as error:
            function.instances.pop(id_, None)
            self._remove(instance)
            self.failed_to_start(function, str(error), 0 if isinstance(error, Unavailable | StateError) else 1)
            return None
        self.record("start", instance, reason)
        self.check(instance)
        return instance

    def _new_id(self, name: str) -> str:
        """Also after the clock was set back, and a provider before this one has counted from the same time."""
        while True:
            self._serial += 1
            id_ = f"{name}-{self._serial:x}"
            if id_ not in self.instances:
                return id_

    def adopt(self, functions: dict[str, FunctionState]) -> None:
        """After a restart: take over what still runs, forget what does not, end what belongs to nobody."""
        for stored in self._state.instances():
            function = functions.get(stored.function)
            handle = stored.address.get("handle", {})
            if function is None or not self._backend.adopt(stored.id, stored.function, handle):
                self._backend.forget(stored.id)
                self._forget_stored(stored.id)
                continue
            instance = self._admit(function, stored.id, stored.configuration, "found after a restart")
            instance.version = stored.version
            instance.adopted = instance.untold = True  # nobody knows whether it was told before the restart
            self.record("adopt", instance, instance.reason)
            self.check(instance)
        self._backend.sweep(set(self.instances))

    def resize(self, instance: Instance, configuration: Configuration) -> None:
        """Give an instance another batch size or other cores, or tell it its function's new latency target.

        Raises:
            StateError: nothing has changed then.
        """
        old = instance.configuration
        self._state.put_instance(instance.stored(configuration))
        instance.configuration = configuration
        instance.untold = True  # `_look` tells it as soon as it is ready
        if configuration.cpu_cores != old.cpu_cores:
            self._backend.resize(instance.id, configuration)
        self.record("resize", instance, f"{old} becomes {configuration}")

    def drain(self, instance: Instance, reason: str) -> None:
        """Send nothing more; ask it to end when it has answered what it has.

        It is asked only then: a request that is being written to it must not meet a closing connection.
        """
        if instance.phase in (Phase.DRAINING, Phase.GONE):
            return
        instance.advance(Event.DRAIN)
        instance.drain_until_s = self._clock.now_s() + STREAM_MAX_S
        self.record("stop", instance, reason)
        self.on_change(instance.function)
        self._end_when_idle(instance)

    def _end_when_idle(self, instance: Instance) -> None:
        if not instance.asked_to_end and (instance.in_flight == 0 or self._closing):
            instance.asked_to_end = True
            instance.drain_until_s = self._clock.now_s() + DRAIN_GRACE_S
            self._backend.terminate(instance.id)

    def versions(self) -> list[tuple[str, str]]:
        """Function and version of each instance."""
        return [(instance.function, instance.version) for instance in self.instances.values()]

    async def watch(self) -> None:
        """Notice who became ready and who has ended, for ever. The backend's events only make it sooner."""
        looks = 0
        while True:
            try:
                self._look(everyone=looks % _EVERYONE_EACH == 0)
            except Exception:
                LOG.exception("watching instances failed; going on")
            looks += 1
            await asyncio.sleep(WATCH_S)

    def _look(self, *, everyone: bool = True) -> None:
        for instance in list(self.instances.values()):
            if everyone or instance.untold or instance.phase is not Phase.READY:
                self.check(instance)

    def _event(self, id_: str) -> None:
        instance = self.instances.get(id_)
        if instance is not None:
            self.check(instance)

    def check(self, instance: Instance) -> None:
        """Look now, and go on with one instance from what its backend sees: also when somebody could not reach it."""
        if instance.id not in self.instances:
            return  # it has ended while others were looked at
        sight = self._backend.see(instance.id)
        if sight.stage is Stage.ENDED:
            self._ended(instance, sight.why)
            return
        if sight.address is not None and sight.address != instance.address:
            self._found(instance, sight.address)
        now_s = self._clock.now_s()
        if instance.phase is Phase.STARTING:
            limit_s = self._settings.start_timeout_s
            if now_s - instance.started_at_s > limit_s:
                instance.doom = f"it was not ready within {limit_s:.0f} s"
                self._backend.kill(instance.id)
            elif instance.address is not None:
                self._ask(instance, self._ask_ready)
        elif instance.phase is Phase.READY and now_s - instance.asked_s >= ALIVE_S:
            self._ask(instance, self._ask_alive)
        elif instance.phase is Phase.READY and instance.untold:
            self._ask(instance, self._configure)
        elif instance.phase is Phase.DRAINING:
            self._end_when_idle(instance)
            if now_s > instance.drain_until_s:
                LOG.warning("%s did not come to its end in time; killed", instance.id)
                self._backend.kill(instance.id)

    def _found(self, instance: Instance, address: Address) -> None:
        """Its backend knows where it answers, or knows it by another handle since a resize."""
        old, instance.address = instance.address, address
        if old is None or (old.host, old.port) != (address.host, address.port):
            instance.upstream = Upstream(address.host, address.port)
        try:
            self._state.put_instance(instance.stored())
        except StateError as error:
            LOG.error("%s may be ended by the next restart: %s", instance.id, error)  # noqa: TRY400

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
        # A function of somebody else's template answers, and knows no such path: it serves.
        if reply.status in (200, 404, 405) and instance.phase is Phase.STARTING:
            instance.advance(Event.READY)
            instance.asked_s = self._clock.now_s()
            took_s = instance.asked_s - instance.started_at_s
            self.record("ready", instance, f"after {took_s:.2f} s")
            self.on_ready(instance)
            self.on_change(instance.function)

    async def _ask_alive(self, instance: Instance) -> None:
        """One that hangs is ended: it would take requests for ever and answer none."""
        instance.asked_s = self._clock.now_s()
        instance.unheard += 1
        try:
            # Whatever it says: somebody else's template knows no such path.
            await (await instance.upstream.request("GET", "/_/health", (), b"", timeout_s=ALIVE_S)).read()
            instance.unheard = 0
        except UpstreamError:
            if instance.unheard >= UNHEARD_MAX and instance.phase is Phase.READY:
                instance.doom = f"it hangs: {UNHEARD_MAX} times it did not say within {ALIVE_S:.0f} s that it lives"
                LOG.warning("%s is ended: %s", instance.id, instance.doom)
                self._backend.kill(instance.id)
            raise

    async def _configure(self, instance: Instance) -> None:
        instance.untold = False
        if instance.address is None or not instance.address.metrics_port:
            return
        given = instance.configuration
        wish = {
            "batch_max": given.batch,
            "cpu_cores": given.cpu_cores,
            "latency_target_s": self.target_s(instance.function),
        }
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

    def _ended(self, instance: Instance, why: str) -> None:
        phase = instance.phase
        words = instance.doom or why or self._backend.last_words(instance.id, instance.function)
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

    def _admit(self, function: FunctionState, id_: str, configuration: Configuration, reason: str) -> Instance:
        instance = Instance(
            id=id_,
            function=function.key,
            version=function.version,
            configuration=configuration,
            reason=reason,
            started_at_s=self._clock.now_s(),
        )
        self.instances[id_] = instance
        function.instances[id_] = instance
        return instance

    def failed_to_start(self, function: FunctionState, words: str, counts: int = 1) -> None:
        """An instance ended before it was ready: wait longer each time before the next try.

        Args:
            function: whose.
            words: why.
            counts: as how many failures; 0 where its version is not to blame: a full disk, an engine that is away.
        """
        function.failures += counts
        function.retry_at_s = self._clock.now_s() + min(60.0, 2.0 ** min(max(function.failures, 1), 10))
        function.last_failure = words or "an instance ended before it was ready"
        LOG.error("%s: %s", function.key, function.last_failure)
        self.on_failed(function)

    def record(self, what: str, instance: Instance, why: str) -> None:
        """Keep an event of an instance for `infless status` and the log."""
        self.note(what, instance.function, why, instance.configuration, instance.id)
        LOG.info("%s %s %s%s", what, instance.id, instance.configuration, f": {why}" if why else "")

    def note(
        self, what: str, function: str, why: str, configuration: Configuration | None = None, instance: str = ""
    ) -> None:  # fmt: skip
        """Keep an event for `infless status`."""
        self.events.append(
            {
                "at_s": self._clock.wall_s(),
                "event": what,
                "instance": instance,
                "function": function,
                "configuration": asdict(configuration) if configuration else None,
                "why": why,
            }
        )

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
