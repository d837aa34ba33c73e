"""A provider without processes, sockets and time: backend, upstream and profiles that only remember."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest

from infless_core.clock import ManualClock
from infless_core.errors import BackendError
from infless_core.model import Configuration, ProfilePoint, Server
from infless_provider import fleet
from infless_provider.backends.base import Address, Artifact, Sight, Stage, Usage
from infless_provider.bundles import find_bundle, keep_copy, sweep, write_manifest
from infless_provider.controller import Controller
from infless_provider.secret_store import SecretStore
from infless_provider.settings import NAMESPACE, Settings
from infless_provider.state import State
from infless_provider.upstream import NotSent, TimedOut
from infless_provider.views import Views
from infless_provider.wire import SecretWish

PROFILE = tuple(
    ProfilePoint(configuration=Configuration(batch=b, cpu_cores=c), exec_s=t)
    for b, c, t in ((1, 1, 0.01), (8, 1, 0.04), (8, 2, 0.025))
)


class Crash(BaseException):
    """The provider is killed here: nothing of it may be caught, nor cleared up."""


class FakeBackend:
    """Instances are names in a dict; `hidden` ones have no address yet, as all new ones while it is `late`."""

    name = "fake"

    def __init__(self, bundles_dir, kept_dir):
        self.servers = (Server(id="local", cpu_cores=2, memory_bytes=1 << 33),)
        self.running, self.ready, self.told, self.launches, self.hidden = {}, set(), [], [], set()
        self.asked_to_end, self.forgotten, self.failure, self.words = [], [], None, ""
        self.runs_as = None
        self.swept, self.resized, self.why, self.on_event = None, [], "", lambda _: None
        self.crash, self.late, self.hanging = "", False, set()
        self._bundles, self._kept = bundles_dir, kept_dir

    async def open(self):
        """Nothing to find."""

    async def close(self):
        """Nothing to release."""

    def prepare(self, spec):
        """A bundle, as the process backend has it."""
        digest, kept = keep_copy(find_bundle(self._bundles, spec.name, spec.image), self._kept)
        return Artifact(reference=str(kept), digest=digest)

    def curve(self, order):
        """Nothing to time."""
        return ""

    def start(self, launch):
        """A name more, unless told to fail, or to be killed `before` or `after` it."""
        if self.failure:
            raise self.failure if isinstance(self.failure, Exception) else BackendError(self.failure)
        if self.crash == "before":
            raise Crash
        self.launches.append(launch)
        self.running[launch.id] = 1000 + 2 * len(self.launches)
        if self.late:
            self.hidden.add(launch.id)
        if self.crash == "after":
            raise Crash

    def adopt(self, id_, function, handle):
        """What still runs."""
        return id_ in self.running

    def see(self, id_):
        """Running while it is in the dict."""
        port = self.running.get(id_)
        if port is None:
            return Sight(stage=Stage.ENDED, why=self.why)
        if id_ in self.hidden:
            return Sight(stage=Stage.STARTING)
        address = Address(host=id_, port=port, metrics_port=port + 1, handle={"pid": port})
        return Sight(stage=Stage.RUNNING, address=address)

    def last_words(self, id_, function):
        """The same for all."""
        return self.words

    def resize(self, id_, configuration):
        """Remembered."""
        self.resized.append((id_, configuration.cpu_cores))

    def terminate(self, id_):
        """Remembered; the test decides when it ends."""
        self.asked_to_end.append(id_)

    def kill(self, id_):
        """Ends at once."""
        self.running.pop(id_, None)

    def forget(self, id_):
        """Ends what is left."""
        self.running.pop(id_, None)
        self.forgotten.append(id_)

    def sweep(self, known):
        """Remembered."""
        self.swept = set(known)

    def tidy(self, used):
        """As the process backend does."""
        sweep(self._kept, used)

    def usage(self, ids):
        """Something for each."""
        return [Usage(cpu_millicores=5.0, memory_bytes=7) for _ in ids]


class FakeProfiles:
    """Knows one table, or fails."""

    def __init__(self):
        self.table, self.failure, self.kept_failure = PROFILE, None, None

    def points(self, *_):
        """As after a measurement."""
        if self.failure:
            raise self.failure
        return self.table

    def kept(self, *_):
        """As from the database."""
        if self.kept_failure:
            raise self.kept_failure
        return self.table

    def cancel(self):
        """Nothing is under way."""


class World:
    """Everything that a controller needs."""

    def __init__(self, folder):
        self.folder, self.clock, self.backend, self.profiles = (
            folder,
            ManualClock(1000.0),
            FakeBackend(folder / "build", folder / "state" / "bundles"),
            FakeProfiles(),
        )
        self.settings = Settings(state_dir=folder / "state", bundles_dir=folder / "build")
        self.secrets = SecretStore(self.settings.secrets_dir, self.settings.secrets_max)
        self.refusals, self.dirty, self.ready_status = [], 0, 200
        self.state = State(self.settings.database)
        self.controller = self.new_controller()

    async def restart(self):
        """The provider ends where it is, and a second later another one starts on what it left; gives its controller."""
        self.clock.advance(1)
        await self.fleet.close()
        self.controller.close()
        self.controller = self.new_controller()
        await self.controller.restore()
        return self.controller

    def new_controller(self):
        """A provider that starts on the same state."""
        controller = Controller(self.settings, self.state, self.backend, self.profiles, self.secrets, self.clock)
        controller.on_dirty = self._count
        self.fleet, self.views = controller.fleet, Views(controller)
        return controller

    def _count(self):
        self.dirty += 1

    def bundle(self, name="f", code="1"):
        """Build a function."""
        folder = self.folder / "build" / name
        for part in ("function", "infless_watchdog"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / "function" / "handler.py").write_text(code)
        write_manifest(folder, name)
        return {"service": name, "image": name}

    async def deploy(self, name="f", **fields):
        """Build and deploy; gives the function."""
        await self.controller.deploy({**self.bundle(name), **fields})
        return self.controller.find(name, fields.get("namespace"))

    async def update(self, name="f", code="2", **fields):
        """Build anew and update."""
        await self.controller.update({**self.bundle(name, code), **fields})

    def secret(self, name, value=b"value", namespace=NAMESPACE):
        """Keep one."""
        self.secrets.create(SecretWish(name=name, namespace=namespace, value=value))

    async def look(self, times=1):
        """The fleet looks, and what it asks is answered."""
        for _ in range(times):
            self.fleet._look()
            await self.settle()

    async def settle(self):
        """Let every task that can go on do so."""
        for _ in range(20):
            await asyncio.sleep(0)

    async def running(self, function, configuration=None, ready=True):
        """A started instance, ready on wish."""
        instance = self.fleet.start(function, configuration or function.spare(), "test")
        if ready:
            self.backend.ready.add(instance.id)
            await self.look()
        return instance

    async def ended(self, instance):
        """It has ended, and the fleet knows."""
        self.backend.running.pop(instance.id, None)
        await self.look()

    def upstream(self, host, port, **_):
        """An instance's two ports."""

        async def request(method, target, headers, body, *, timeout_s):
            if host not in self.backend.running:
                raise NotSent(f"{host} cannot be reached")
            if host in self.backend.hanging:
                raise TimedOut(f"{host} did not answer within {timeout_s:g} s")
            status = self.ready_status if host in self.backend.ready else 503
            if target == "/_/config":
                status = self.refusals.pop() if self.refusals else 200
                if status == 200:
                    self.backend.told.append((host, json.loads(body)))
            return SimpleNamespace(status=status, read=read)

        async def read():
            return b"said"

        async def close():
            pass

        return SimpleNamespace(request=request, close=close)


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A world of its own for each test."""
    made = World(tmp_path)
    monkeypatch.setattr(fleet, "Upstream", made.upstream)
    yield made
    made.controller.close()
    made.state.close()
