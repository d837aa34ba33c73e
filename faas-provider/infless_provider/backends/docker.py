"""Instances as containers of the Docker engine on this machine.

The loop's thread only notes what is wished; a few threads ask the engine (`docker_work`), one follows its events
(`docker_watch`), and one for each container copies its output (`docker_logs`). What a container is made of is in
`docker_launch`. A restarted provider finds its containers by their labels.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from infless_core.errors import BackendError, InflessError
from infless_core.model import Configuration, FunctionSpec, Server
from infless_provider import log_files
from infless_provider.backends import instance_logs
from infless_provider.backends.allotment import ClusterServer, pick_cores
from infless_provider.backends.base import Address, Artifact, CurveOrder, Launch, Sight, Stage, Usage
from infless_provider.backends.docker_api import Container, ContainerEvent, Engine, EngineAway, NoSuch
from infless_provider.backends.docker_host import connect, mps_pipes, survey
from infless_provider.backends.docker_images import Images, Timings, gone
from infless_provider.backends.docker_launch import (
    CURVE,
    INSTANCE,
    METRICS_PORT,
    OWNER,
    PORT,
    WATCHDOG,
    Site,
    container_name,
    instance_config,
    unprivileged,
    why_ended,
)
from infless_provider.backends.docker_logs import LogPump, last_line
from infless_provider.backends.docker_watch import Watcher
from infless_provider.backends.docker_work import Lanes

LOG = logging.getLogger("infless.docker")
CLOSE_S = 10.0
"""For what is begun when the provider stops; the rest is swept up by the next one."""
OUTPUT_S = 2.0
"""For the last lines of a container to be copied before its end is told, and before it is removed."""
_USAGE_THREADS = 16
"""Older engines (20.10) answer when they next look at the container, within a second."""


@dataclass(slots=True, kw_only=True)
class _Held:
    """An instance of ours. Its stage only ever goes on."""

    id: str
    function: str
    cores: tuple[int, ...]
    sight: Sight = field(default_factory=partial(Sight, stage=Stage.STARTING))
    container: str = ""
    started_at_s: float = 0.0
    stop_signal: str = "SIGTERM"
    out_of_memory: bool = False
    asked: str = ""
    """The last signal that it was to be sent."""
    pump: LogPump | None = None


class DockerBackend:
    """See `Backend`.

    Args:
        state_dir: log files go into its folder `logs`.
        owner: an id of the state folder: containers of other owners are left alone.
        cluster: what the machine gives to instances; None is all it has.
        cpus: that instances may run on where `cluster` names none; empty is those that this process may use.
        connect: makes the engine.
    """

    name = "docker"

    def __init__(
        self,
        state_dir: Path,
        owner: str,
        cluster: ClusterServer | None = None,
        *,
        cpus: Sequence[int] = (),
        connect: Callable[[], Engine] = connect,
    ) -> None:
        self.servers: tuple[Server, ...] = ()
        self.on_event: Callable[[str], None] = lambda _: None
        self._cpus = tuple(cpus) or tuple(sorted(os.sched_getaffinity(0)))
        self._logs = state_dir / "logs"
        self._cluster = cluster
        self._connect = connect
        self.runs_as: tuple[int, int] | None = unprivileged(os.getuid(), os.getgid())
        self._site = Site(owner=owner, user=f"{self.runs_as[0]}:{self.runs_as[1]}")
        self._lock = threading.Lock()
        self._held: dict[str, _Held] = {}
        self._found: dict[str, Container] = {}
        self._away = ""
        self._swept = False
        self._lanes = Lanes(self._met_nobody)
        self._watcher: Watcher | None = None

    async def open(self) -> None:
        """See `Backend.open`."""
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._open)

    def _open(self) -> None:
        self._engine = self._connect()
        try:
            facts, server, self._cpus = survey(self._engine, self._cluster, self._cpus)
            owned = self._engine.owned(self._site.owner)
            found = [self._engine.inspect(one.id) for one in owned if one.running and INSTANCE in one.labels]
        except InflessError:
            self._engine.close()
            raise
        self._found = {one.labels[INSTANCE]: one for one in found if one.running}
        self._site = replace(self._site, gpu_driver=facts.gpu_driver, mps_pipes=mps_pipes())
        self.servers = (server,)
        self._images, self._timings = Images(self._engine), Timings(self._engine)
        self._lanes.open()
        self._usage = ThreadPoolExecutor(_USAGE_THREADS, thread_name_prefix="docker-usage")
        self._watcher = Watcher(
            self._engine,
            self._site.owner,
            on_list=self._listed,
            on_event=self._happened,
            on_away=self._gone_away,
        )
        self._watcher.open()

    async def close(self) -> None:
        """See `Backend.close`."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        if self._watcher is None:
            return  # it was not opened
        self._watcher.close(CLOSE_S)
        self._lanes.close(CLOSE_S)
        self._usage.shutdown(wait=True, cancel_futures=True)
        pumps = [held.pump for held in self._held.values() if held.pump is not None]
        for pump in pumps:
            pump.stop()
        for pump in pumps:
            pump.wait(CLOSE_S)
        self._engine.close()

    # what a deployment runs ------------------------------------------------------------------------------------------

    def prepare(self, spec: FunctionSpec) -> Artifact:
        """See `Backend.prepare`."""
        return self._images.prepare(spec)

    def tidy(self, used: AbstractSet[str]) -> None:
        """See `Backend.tidy`: images belong to whoever built or pulled them."""

    def curve(self, order: CurveOrder) -> str:
        """See `Backend.curve`; on the last cores, as instances begin with the first ones."""
        cores = self._cpus[-order.cpu_cores :]
        return self._timings.run(self._images.find(order.artifact), order, cores, self._site)

    # from start to end -----------------------------------------------------------------------------------------------

    def start(self, launch: Launch) -> None:
        """See `Backend.start`."""
        if self._away:
            raise EngineAway(self._away)
        with self._lock:
            cores = pick_cores(self._cpus, self._taken(), launch.configuration.cpu_cores)
            held = self._held[launch.id] = _Held(id=launch.id, function=launch.function, cores=cores)
        self._lanes.put(launch.id, partial(self._start, held, launch))

    def _taken(self) -> Counter[int]:
        return Counter(cpu for held in self._held.values() for cpu in held.cores)

    def _start(self, held: _Held, launch: Launch) -> None:
        if held.asked or self._held.get(held.id) is not held:
            self._tell(held, Sight(stage=Stage.ENDED, why="it was ended before it was started"))
            return
        try:
            instance_logs.prune(self._logs / launch.function, set(self._held))
            config = instance_config(launch, self._images.find(launch.artifact), held.cores, self._site)
            held.container = self._create(container_name(held.id), config)
            self._engine.start(held.container)
            self._learn(held, self._engine.inspect(held.container))
        except EngineAway:
            held.container = ""  # begun anew when the engine is back, on what this try may have left
            raise
        except (BackendError, OSError) as error:
            self._images.forget(launch.artifact)  # it may be the reason
            self._tell(held, Sight(stage=Stage.ENDED, why=f"its container could not be started: {error}"))

    def _create(self, name: str, config: Mapping[str, Any]) -> str:
        try:
            return self._engine.create(name, config)
        except EngineAway:
            raise
        except NoSuch:
            raise NoSuch(gone(config["Image"])) from None
        except BackendError:
            if not self._remove_own(name):
                raise
        return self._engine.create(name, config)  # an earlier try had come that far

    def adopt(self, id_: str, function: str, handle: Mapping[str, Any]) -> bool:  # noqa: ARG002 - labels say it all
        """See `Backend.adopt`."""
        found = self._found.pop(id_, None)
        if found is None:
            return False
        with self._lock:
            held = self._held[id_] = _Held(id=id_, function=function, cores=found.cores, container=found.id)
        self._learn(held, found)
        self._lanes.put(id_, partial(self._look_at, held))  # it may have ended since it was found
        return True

    def see(self, id_: str) -> Sight:
        """See `Backend.see`."""
        held = self._held.get(id_)
        return Sight(stage=Stage.ENDED, why="nobody knows it") if held is None else held.sight

    def last_words(self, id_: str, function: str) -> str:
        """See `Backend.last_words`."""
        return instance_logs.last_words(log_files.log_path(self._logs / function, id_))

    def resize(self, id_: str, configuration: Configuration) -> None:
        """See `Backend.resize`."""
        with self._lock:
            held = self._held.get(id_)
            if held is None:
                return
            others = self._taken() - Counter(held.cores)
            held.cores = pick_cores(self._cpus, others, configuration.cpu_cores, held.cores)
        self._lanes.put(id_, partial(self._pin, held))

    def _pin(self, held: _Held) -> None:
        if held.sight.stage is Stage.RUNNING:
            self._engine.pin(held.container, held.cores)
            self._look_at(held)

    def terminate(self, id_: str) -> None:
        """See `Backend.terminate`: the signal of `docker stop`, and no other one after it."""
        held = self._held.get(id_)
        if held is not None and not held.asked:
            held.asked = held.stop_signal
            self._lanes.put(id_, partial(self._signal, held))

    def kill(self, id_: str) -> None:
        """See `Backend.kill`."""
        held = self._held.get(id_)
        if held is not None and held.asked != "SIGKILL":
            held.asked = "SIGKILL"
            self._lanes.put(id_, partial(self._signal, held))

    def _signal(self, held: _Held) -> None:
        if held.container:
            self._engine.signal(held.container, held.asked)

    def forget(self, id_: str) -> None:
        """See `Backend.forget`."""
        held = self._held.pop(id_, None)
        self._found.pop(id_, None)
        self._lanes.put(id_, partial(self._bury, id_, held))

    def _bury(self, id_: str, held: _Held | None) -> None:
        if held is not None and held.pump is not None:
            self._engine.signal(held.container, "SIGKILL")
            held.pump.wait(OUTPUT_S)  # its last lines, before they are removed with it
            held.pump.stop()
        self._remove_own(held.container if held is not None and held.container else container_name(id_))

    def _remove_own(self, name: str) -> bool:
        """Remove a container, if it is there and ours."""
        try:
            if self._engine.inspect(name).labels.get(OWNER) != self._site.owner:
                return False
        except NoSuch:
            return False
        self._engine.remove(name)
        return True

    def sweep(self, known: AbstractSet[str]) -> None:
        """See `Backend.sweep`."""
        kept = set(known)
        self._lanes.put("", lambda: self._remove_strays(self._engine.owned(self._site.owner), kept))

    def _remove_strays(self, listed: Sequence[Container], known: AbstractSet[str] = frozenset()) -> None:
        """What nobody here started or took over: left by an earlier provider, or by a call that was cut off."""
        self._swept = True
        for one in listed:
            id_, token = one.labels.get(INSTANCE), one.labels.get(CURVE)
            if not (id_ in known or id_ in self._held or token in self._timings.running):
                LOG.info("removing the container of %s, which nobody knows", id_ or "a measurement")
                self._engine.remove(one.id)

    def usage(self, ids: Sequence[str]) -> list[Usage]:
        """See `Backend.usage`; cpu as the mean since it started."""
        return list(self._usage.map(self._usage_of, ids))

    def _usage_of(self, id_: str) -> Usage:
        held = self._held.get(id_)
        if held is not None and held.sight.stage is Stage.RUNNING and not self._away:
            with contextlib.suppress(BackendError):
                used = self._engine.consumption(held.container)
                age_s = max(0.1, time.time() - held.started_at_s)
                return Usage(cpu_millicores=1000 * used.cpu_s / age_s, memory_bytes=used.memory_bytes)
        return Usage(cpu_millicores=0.0, memory_bytes=0)

    # what the engine says --------------------------------------------------------------------------------------------

    def _met_nobody(self) -> None:
        if self._watcher is not None:
            self._watcher.look()

    def _gone_away(self, sentence: str) -> None:
        self._away = sentence
        LOG.warning("%s; instances that run are left to run", sentence)

    def _listed(self, listed: list[Container]) -> None:
        """All there is, now: what was missed is found out."""
        back, self._away = bool(self._away), ""
        if back:
            LOG.warning("the Docker engine is back")
        self._lanes.resume()
        running = {one.id for one in listed if one.running}
        for held in list(self._held.values()):
            if held.container and (back or held.container not in running):
                self._lanes.put(held.id, partial(self._look_at, held))
        if self._swept:
            self._lanes.put("", partial(self._remove_strays, listed))

    def _happened(self, event: ContainerEvent) -> None:
        held = self._held.get(event.labels.get(INSTANCE, ""))
        if held is not None:
            self._lanes.put(held.id, partial(self._hear, held, event))

    def _hear(self, held: _Held, event: ContainerEvent) -> None:
        if event.container != held.container:
            return  # an earlier one of that name
        if event.what == "oom":
            held.out_of_memory = True
            self.kill(held.id)  # one process of it is gone: what is left would not serve, or be killed again and again
        self._look_at(held)

    def _look_at(self, held: _Held) -> None:
        if held.sight.stage is Stage.ENDED or not held.container:
            return
        try:
            self._learn(held, self._engine.inspect(held.container))
        except NoSuch:
            self._tell(held, Sight(stage=Stage.ENDED, why="its container was removed"))
        except EngineAway:
            return  # it may well run; all is listed when the engine is back

    def _learn(self, held: _Held, seen: Container) -> None:
        """From one look at its container."""
        if held.pump is None or (seen.running and held.pump.ended):
            held.pump = LogPump(self._engine, seen.id, log_files.log_path(self._logs / held.function, held.id))
            held.pump.open()
        if not seen.running:
            held.pump.wait(OUTPUT_S)
            words = self.last_words(held.id, held.function)
            if not words and WATCHDOG not in seen.labels:  # nobody knows what its errors look like
                words = last_line(log_files.log_path(self._logs / held.function, held.id))
            after = replace(seen, out_of_memory=seen.out_of_memory or held.out_of_memory)
            self._tell(held, Sight(stage=Stage.ENDED, why=why_ended(after, words)))
        elif PORT not in seen.ports:
            self._tell(held, Sight(stage=Stage.ENDED, why=f"its container runs, but port {PORT} is not published"))
        else:
            held.started_at_s, held.stop_signal = seen.started_at_s, seen.stop_signal
            address = Address(
                host="127.0.0.1",
                port=seen.ports[PORT],
                metrics_port=seen.ports.get(METRICS_PORT, 0),
                handle={"container": seen.id, "cores": list(held.cores)},
            )
            self._tell(held, Sight(stage=Stage.RUNNING, address=address))

    def _tell(self, held: _Held, sight: Sight) -> None:
        with self._lock:
            if held.sight == sight or held.sight.stage is Stage.ENDED:
                return
            held.sight = sight
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(lambda: self.on_event(held.id))
