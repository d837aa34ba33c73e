"""A Docker engine in memory, and a `DockerBackend` on it."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from infless_core.errors import BackendError, InvalidInput
from infless_core.model import Configuration
from infless_provider.backends.base import Launch, Stage
from infless_provider.backends.docker import DockerBackend
from infless_provider.backends.docker_api import (
    Consumption,
    Container,
    ContainerEvent,
    EngineAway,
    HostFacts,
    Image,
    NoSuch,
)

WAIT_S = 10.0
OURS = Image(id="sha256:1", labels={"com.infless.watchdog": "1"}, has_command=True)
FOREIGN = Image(id="sha256:2", labels={}, has_command=True)


def a_launch(id_="f-1", gpu_percent=0, **fields):
    """An instance to be started."""
    fixed = {
        "id": id_, "function": "f.ns", "version": "d", "artifact": "sha256:1", "environment": {"mine": "1"},
        "configuration": Configuration(batch=8, cpu_cores=2, gpu_percent=gpu_percent), "latency_target_s": 0.25,
    }  # fmt: skip
    return Launch(**{**fixed, **fields})


class FakeStream:
    """Items that a test puts in."""

    def __init__(self):
        self.items = queue.Queue()

    def __iter__(self):
        return iter(self.items.get, None)

    def close(self):
        """Wakes whoever waits."""
        self.items.put(None)


class FakeEngine:
    """An engine in memory; see `docker_api.Engine`."""

    def __init__(self):
        self.images = {"f:1": OURS, OURS.id: OURS, "other": FOREIGN, FOREIGN.id: FOREIGN}
        self.boxes, self.names, self.done, self.streams = {}, {}, [], []
        self.away, self.fail_create, self.lost_create, self.listening = None, None, False, threading.Event()
        self.changed = threading.Condition()

    def _ask(self):
        if self.away:
            raise EngineAway(self.away)

    def _note(self, *what):
        with self.changed:
            self.done.append(what)
            self.changed.notify_all()

    def until(self, true):
        """Look after each call that changes something."""
        with self.changed:
            assert self.changed.wait_for(true, WAIT_S), self.done

    def until_done(self, *what):
        """Wait for a call."""
        self.until(lambda: what in self.done)

    def facts(self):
        """Two cores."""
        self._ask()
        return HostFacts(cpu_cores=2, memory_bytes=1 << 30)

    def image(self, reference):
        """One of two."""
        self._ask()
        if reference not in self.images:
            raise NoSuch(f"no such image: {reference}")
        return self.images[reference]

    def pull(self, reference, progress):
        """A registry that has one image."""
        progress("half of it")
        if reference != "pulled:1":
            raise InvalidInput(f"image {reference!r} could not be pulled: denied")
        self.images[reference] = OURS

    def create(self, name, config):
        """Named once."""
        self._ask()
        if self.fail_create:
            raise self.fail_create
        if name in self.names:
            raise BackendError(f"the name {name} is already in use")
        id_ = f"c{len(self.done)}"
        self.names[name] = id_
        self.boxes[id_] = Container(
            id=id_, labels=config["Labels"], running=False, ports={8080: 1, 8081: 2}, started_at_s=1
        )
        if self.lost_create:
            self.lost_create = False
            raise EngineAway("it timed out")
        self._note("create", name)
        return id_

    def start(self, container):
        """It runs."""
        self._ask()
        self.boxes[container] = replace(self.boxes[container], running=True)
        self._note("start", container)

    def inspect(self, container):
        """By id or name."""
        self._ask()
        found = self.boxes.get(self.names.get(container, container))
        if found is None:
            raise NoSuch(f"no such container: {container}")
        return found

    def owned(self, owner):
        """All of an owner."""
        self._ask()
        return [one for one in self.boxes.values() if one.labels["com.infless.owner"] == owner]

    def signal(self, container, name):
        """Ends it."""
        self._ask()
        if container in self.boxes:
            self.boxes[container] = replace(self.boxes[container], running=False, exit_code=143)
        self._note("signal", container, name)
        self.tell("die", container)

    def pin(self, container, cores):
        """Remembered."""
        self._note("pin", container, cores)

    def remove(self, container):
        """Gone."""
        self._ask()
        self.boxes.pop(self.names.get(container, container), None)
        self.names = {name: id_ for name, id_ in self.names.items() if id_ in self.boxes}
        self._note("remove", container)

    def wait(self, container, timeout_s):
        """Already over."""
        return 0

    def output(self, container, *, stderr):
        """What a timing prints."""
        return b'{"batch": 1}\n'

    def printed(self, container, since_s):
        """A container that is silent."""
        stream = FakeStream()
        stream.close()
        return stream

    def follow(self, container, since_s, silence_s):
        """The same, that is told to have ended."""
        return self.printed(container, since_s)

    def events(self, owner, for_s):
        """What a test tells."""
        self._ask()
        self.streams.append(FakeStream())
        return self.streams[-1]

    def consumption(self, container):
        """A second."""
        return Consumption(cpu_s=1.0, memory_bytes=7)

    def tell(self, what, container):
        """An event."""
        labels = self.boxes[container].labels
        self.streams[-1].items.put(ContainerEvent(what=what, container=container, labels=labels))

    def go(self, sentence):
        """Answer nobody any more."""
        self.away = sentence
        self.streams[-1].close()

    def close(self):
        """Remembered."""
        self.done.append(("close",))


class Opened:
    """A backend on a loop, with the engine in memory."""

    def __init__(self, folder):
        self.engine, self.heard = FakeEngine(), asyncio.Event()
        self.backend = DockerBackend(folder, "me", cpus=(0, 1), connect=lambda: self.engine)
        self.backend.on_event = lambda _: self.heard.set()

    async def until(self, true):
        """Look after each event."""
        async with asyncio.timeout(WAIT_S):
            while not true():
                self.heard.clear()
                await self.heard.wait()

    async def running(self, launch):
        """Start one; gives its container."""
        self.backend.start(launch)
        assert self.backend.see(launch.id).stage is Stage.STARTING
        await self.until(lambda: self.backend.see(launch.id).stage is Stage.RUNNING)
        return self.backend.see(launch.id).address.handle["container"]

    async def ended(self, id_):
        """Wait for its end; gives the reason."""
        await self.until(lambda: self.backend.see(id_).stage is Stage.ENDED)
        return self.backend.see(id_).why


@contextmanager
def opened(folder) -> Iterator[tuple[Opened, asyncio.Runner]]:
    """Opened, and closed with all its threads."""
    before = threading.active_count()
    with asyncio.Runner() as runner:
        made = Opened(folder)
        runner.run(made.backend.open())
        yield made, runner
        runner.run(made.backend.close())
        runner.run(runner.get_loop().shutdown_default_executor())
    assert threading.active_count() <= before  # one of an earlier test may have ended meanwhile
    assert made.engine.done[-1] == ("close",)
