"""The Docker backend's decisions, and its threads with an engine in memory; the real engine is in tests/integration."""

import asyncio
import errno
import queue
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from infless_core.errors import BackendError, InvalidInput
from infless_core.model import Configuration, Gpu, Server
from infless_provider.backends import docker, docker_launch, docker_logs
from infless_provider.backends.base import CurveOrder, Launch, Stage
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
from infless_provider.backends.docker_host import allot, connect, parse_gpus
from infless_provider.backends.docker_launch import Site, checked_reference, curve_config, instance_config, why_ended
from infless_provider.backends.docker_logs import Line, LogFile, Resume, lines_of
from infless_provider.backends.docker_work import Lanes
from infless_provider.cluster import ClusterServer

WAIT_S = 10.0
OURS = Image(id="sha256:1", labels={"com.infless.watchdog": "1"}, has_command=True)
FOREIGN = Image(id="sha256:2", labels={}, has_command=True)
SITE = Site(owner="me", user="1000:1000", gpu_driver="nvidia", mps_pipes="/tmp/nvidia-mps")


def a_launch(id_="f-1", gpu_percent=0, **fields):
    """An instance to be started."""
    fixed = {
        "id": id_, "function": "f.ns", "digest": "d", "artifact": "sha256:1", "environment": {"mine": "1"},
        "configuration": Configuration(batch=8, cpu_cores=2, gpu_percent=gpu_percent), "latency_target_s": 0.25,
    }  # fmt: skip
    return Launch(**{**fixed, **fields})


def variables(config):
    """The environment of a container."""
    return dict(line.split("=", 1) for line in config["Env"])


# what a container is made of -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "image",
    ["a", "f:1", "127.0.0.1:5000/team/f:latest", "ghcr.io/o/r/f", "h.io/f@sha256:" + "a" * 64, "f:1@sha256:" + "0" * 64,
     "a_b/c__d/e-f.g", "[::1]:5000/f", "LOCALHOST/f"],
)  # fmt: skip
def test_names_of_images(image):
    """As Docker takes them."""
    assert checked_reference(image) == image


@pytest.mark.parametrize(
    "image", ["", "A", "f:", "f:-1", "/f", "f/", "f@sha256:12", "f f", "f\n", "h.io/../f", "f" * 600]
)
def test_what_is_no_name_of_an_image(image):
    """The sentence shows it, and what one looks like."""
    with pytest.raises(InvalidInput, match="is not the name of an image; write for example 'resnet:1'"):
        checked_reference(image)


def test_nobody_is_root():
    """The provider's own user, unless that is root."""
    assert docker_launch.unprivileged(0, 0) == "1000:1000"
    assert docker_launch.unprivileged(1234, 99) == "1234:99"


def test_an_instance_is_confined():
    """What it may use, and that it may nothing else."""
    launch = a_launch(memory_bytes=5 << 20, secrets=Path("/s"), read_only_root=True)
    config = instance_config(launch, OURS, (1, 3), SITE)
    host = config["HostConfig"]
    assert config["Image"] == "sha256:1"
    assert config["User"] == "1000:1000"
    assert host["CpusetCpus"] == "1,3"
    assert host["Memory"] == host["MemorySwap"] == 5 << 20
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["ReadonlyRootfs"]
    assert host["Init"]
    assert "size=" in host["Tmpfs"]["/tmp"]
    assert host["Mounts"] == [{"Type": "bind", "Source": "/s", "Target": "/var/openfaas/secrets", "ReadOnly": True}]
    assert host["PortBindings"] == {f"{port}/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}] for port in (8080, 8081)}
    assert "DeviceRequests" not in host
    assert "IpcMode" not in host
    assert "Cmd" not in config
    assert config["Labels"]["com.infless.cores"] == "1,3"


def test_the_settings_of_an_instance_win():
    """Over what the function says of the same."""
    told = variables(
        instance_config(a_launch(environment={"port": "1", "mine": "x", "batch_max": "0"}), OURS, (0,), SITE)
    )
    assert (told["port"], told["mine"], told["batch_max"]) == ("8080", "x", "8")
    assert "fprocess" not in told
    assert "gpu_percent" not in told


def test_a_share_of_a_gpu():
    """One device, and MPS for the share; the function may say on what it runs."""
    config = instance_config(a_launch(gpu_percent=30, gpu="1"), OURS, (0,), SITE)
    told, host = variables(config), config["HostConfig"]
    assert host["DeviceRequests"] == [{"Driver": "", "DeviceIDs": ["1"], "Capabilities": [["gpu"]]}]
    assert host["IpcMode"] == "host"
    assert host["Mounts"] == [
        {"Type": "bind", "Source": "/tmp/nvidia-mps", "Target": told["CUDA_MPS_PIPE_DIRECTORY"], "ReadOnly": False}
    ]
    assert told["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == told["gpu_percent"] == "30"
    assert told["model_device"] == "cuda"
    own = instance_config(a_launch(gpu_percent=30, environment={"model_device": "tensorrt"}), OURS, (0,), SITE)
    assert variables(own)["model_device"] == "tensorrt"


def test_a_whole_gpu_needs_no_mps_and_a_share_does():
    """Nobody would enforce the share."""
    bare = replace(SITE, mps_pipes="", gpu_driver="cdi")
    config = instance_config(a_launch(gpu_percent=100, gpu="0"), OURS, (0,), bare)
    assert config["HostConfig"]["DeviceRequests"] == [{"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=0"]}]
    assert "CUDA_MPS_PIPE_DIRECTORY" not in variables(config)
    with pytest.raises(BackendError, match=r"50 % of a GPU needs NVIDIA's MPS daemon"):
        instance_config(a_launch(gpu_percent=50), OURS, (0,), bare)


def test_images_of_others():
    """They keep their command, are told the process as OpenFaaS tells it, and publish no metrics of ours."""
    config = instance_config(a_launch(process="python index.py"), FOREIGN, (0,), SITE)
    assert "Cmd" not in config
    assert variables(config)["fprocess"] == "python index.py"
    assert list(config["HostConfig"]["PortBindings"]) == ["8080/tcp"]
    assert instance_config(a_launch(process="a  b"), replace(FOREIGN, has_command=False), (0,), SITE)["Cmd"] == [
        "a",
        "b",
    ]


def test_a_timing_has_no_network():
    """And the same limits."""
    order = CurveOrder(artifact="sha256:1", environment={"x": "y"}, batches=[1, 4], cpu_cores=2, budget_s=1.5)
    config = curve_config(order, OURS, (0, 1), SITE, "token")
    assert config["HostConfig"]["NetworkMode"] == "none"
    assert config["HostConfig"]["CapDrop"] == ["ALL"]
    assert config["Cmd"] == ["python", "-m", "infless_watchdog", "--curve", "1,4", "--budget-s", "1.5"]
    assert variables(config) == {"x": "y", "cpu_cores": "2", "PYTHONUNBUFFERED": "1"}
    assert "com.infless.instance" not in config["Labels"]


ENDED = Container(id="c", labels={}, running=False, ports={})


@pytest.mark.parametrize(
    ("container", "words", "why"),
    [
        (replace(ENDED, exit_code=0), "x", "its container ended by itself (exit code 0)"),
        (replace(ENDED, exit_code=1), "", "its container ended with exit code 1"),
        (replace(ENDED, exit_code=1), "no model", "its container ended with exit code 1: no model"),
        (replace(ENDED, exit_code=139), "", "its container ended with exit code 139, SIGSEGV"),
        (
            replace(ENDED, exit_code=137, out_of_memory=True, memory_bytes=64 << 20),
            "x",
            "it needed more memory than its limit, 64 MiB",
        ),
        (replace(ENDED, exit_code=137, out_of_memory=True), "x", "the machine ran out of memory"),
        (replace(ENDED, exit_code=127, error="no such file"), "", "its container could not be started: no such file"),
    ],
)
def test_why_a_container_ended(container, words, why):
    """One sentence."""
    assert why_ended(container, words) == why


# what a host gives ---------------------------------------------------------------------------------------------------

FACTS = HostFacts(cpu_cores=4, memory_bytes=8 << 30)


def wish(cpus=(), gpus=(), cores=2, memory_bytes=1 << 30):
    """Of a cluster file."""
    return ClusterServer(server=Server(id="box", cpu_cores=cores, memory_bytes=memory_bytes, gpus=gpus), cpus=cpus)


def test_without_a_file_all_there_is_counts():
    """Named as the process backend names its machine."""
    gpus = (Gpu(id="0", memory_bytes=5),)
    server, cpus = allot(FACTS, (0, 1, 2, 3), gpus, None)
    assert server == Server(id="local", cpu_cores=4, memory_bytes=8 << 30, gpus=gpus)
    assert cpus == (0, 1, 2, 3)


def test_a_file_takes_the_last_cores_or_names_them():
    """As `--cpu-cores` does."""
    assert allot(FACTS, (0, 1, 2, 3), (), wish())[1] == (2, 3)
    assert allot(FACTS, (0, 1, 2, 3), (), wish(cpus=(0, 2)))[1] == (0, 2)


def test_a_file_cannot_give_more_than_there_is():
    """A line for each."""
    with pytest.raises(BackendError) as caught:
        allot(FACTS, (0, 1), (), wish(cores=3, memory_bytes=9 << 30, gpus=(Gpu(id="0", memory_bytes=1),)))
    assert str(caught.value).splitlines() == [
        "cluster file, server 'box': cpu_cores is 3, and this machine has 2 for us",
        "cluster file, server 'box': memory is 9 GiB, and this machine has 8 GiB",
        "cluster file, server 'box': it has GPUs, and Docker cannot give them to containers; install NVIDIA's container toolkit",
    ]
    with pytest.raises(BackendError, match=r"cpuset names CPUs that are not there: 7; there are 0, 1$"):
        allot(FACTS, (0, 1), (), wish(cpus=(1, 7)))


def test_gpus_from_what_nvidia_smi_prints():
    """Mebibytes; a GPU whose memory it does not know is left out."""
    assert parse_gpus("0, 81920\n1, [N/A]\n\n2, 16\n") == (
        Gpu(id="0", memory_bytes=80 << 30),
        Gpu(id="2", memory_bytes=16 << 20),
    )


def test_a_missing_package_is_told(monkeypatch):
    """With the command that installs it."""
    monkeypatch.setitem(sys.modules, "docker", None)
    monkeypatch.delitem(sys.modules, "infless_provider.backends.docker_engine", raising=False)
    with pytest.raises(BackendError, match=r"pip install 'infless\[docker\]'"):
        connect()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(errno.EACCES, "no"), "permission denied; add this user to the group docker"),
        (FileNotFoundError(errno.ENOENT, "no"), "no Docker engine answers at unix:///x; start it"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "no"), "no Docker engine answers at unix:///x; start it"),
        (TimeoutError("slow"), "does not answer: "),
    ],
)
def test_why_an_engine_does_not_answer(error, words):
    """The package hides the system's error inside others."""
    engine = pytest.importorskip("infless_provider.backends.docker_engine")
    assert words in engine._away("unix:///x", RuntimeError("Error while fetching", ValueError("aborted", error)))


def test_an_engine_elsewhere_is_refused(monkeypatch):
    """Instances answer on the loopback of its machine, not of ours."""
    engine = pytest.importorskip("infless_provider.backends.docker_engine")
    monkeypatch.setenv("DOCKER_HOST", "tcp://192.0.2.1:2375")
    with pytest.raises(
        BackendError, match="DOCKER_HOST is tcp://192.0.2.1:2375: instances are reached on this machine's"
    ):
        engine.DockerEngine.connect()


# logs ----------------------------------------------------------------------------------------------------------------


def at(number):
    """A time as Docker writes it."""
    return b"2026-01-01T00:00:%02d.000000000Z" % number


def test_lines_from_pieces():
    """A piece without an end goes on in the next one of the same time; the engine's own words are none."""
    pieces = [at(1) + b" a\n", at(2) + b" b", at(2) + b"c\n", at(3) + b" cut", b"error grabbing logs", at(4) + b" d\n"]
    pieces[2] = at(2) + b" c\n"
    assert [(line.stamp, line.text) for line in lines_of(pieces)] == [
        (at(1), b"a"), (at(2), b"bc"), (at(3), b"cut"), (at(4), b"d"),
    ]  # fmt: skip
    assert list(lines_of([])) == []


def test_a_line_without_an_end_is_broken():
    """It must not grow for ever."""
    piece = at(1) + b" " + b"x" * (16 * 1024)
    found = list(lines_of([piece] * 5))
    assert [len(line.text) for line in found] == [docker_logs.LINE_MAX, 16 * 1024]


def line(second, text):
    """One line."""
    return Line(stamp=at(second), text=text)


def write_all(path, lines):
    """As one pump does, from where the last one ended."""
    file = LogFile(path)
    resume = file.resume()
    for one in lines:
        if resume.is_new(one):
            file.write(one)
    file.close()
    return resume


def test_a_file_goes_on_where_it_ended(tmp_path):
    """What is read again is not written again, equal lines are counted, and half a line is written anew."""
    path = tmp_path / "f.ns" / "f-1.log"
    lines = [line(1, b"a"), line(5, b"b"), line(5, b"b"), line(5, b"c")]
    assert write_all(path, lines[:3]) == Resume()
    whole = path.read_bytes()
    path.write_bytes(whole + at(5) + b" half of")
    resume = write_all(path, [*lines, line(5, b"b"), line(6, b"d")])
    assert at(5) == resume.since
    assert resume.since_s < 1767225605
    assert path.read_bytes() == whole + b"".join(b"%s %s\n" % (at(s), t) for s, t in ((5, b"c"), (5, b"b"), (6, b"d")))
    assert path.stat().st_mode & 0o077 == 0


def test_a_full_file_is_put_aside(tmp_path, monkeypatch):
    """And what is in it is still known."""
    monkeypatch.setattr(docker_logs, "MAX_BYTES", 100)
    path = tmp_path / "f-1.log"
    lines = [line(second, b"x" * 10) for second in range(3)]
    write_all(path, lines)
    assert (path.read_bytes(), len(path.with_name("f-1.log.1").read_bytes().splitlines())) == (b"", 3)
    write_all(path, [*lines, line(9, b"new")])
    assert path.read_bytes() == at(9) + b" new\n"


# threads -------------------------------------------------------------------------------------------------------------


def test_works_of_one_instance_wait_for_each_other():
    """Those of another one do not."""
    lanes, done, gate, other = Lanes(), [], threading.Event(), threading.Event()
    lanes.open()
    lanes.put("a", lambda: (gate.wait(WAIT_S), done.append(1)))
    lanes.put("a", lambda: done.append(2))
    lanes.put("b", other.set)
    assert other.wait(WAIT_S)
    assert done == []
    gate.set()
    lanes.close(WAIT_S)
    assert done == [1, 2]
    lanes.put("a", lambda: done.append(3))
    assert done == [1, 2]


def test_what_meets_no_engine_is_done_later():
    """And what fails otherwise is not done again."""
    lanes, done, away = Lanes(), queue.Queue(), [True]

    def work():
        done.put("tried")
        if away[0]:
            raise EngineAway("gone")

    def fail():
        done.put("failed")
        raise BackendError("no")

    lanes.open()
    lanes.put("a", work)
    lanes.put("a", fail)
    assert [done.get(timeout=WAIT_S), done.get(timeout=WAIT_S)] == ["tried", "failed"]
    lanes.put("a", lambda: done.put("then"))  # once this is done, the others are
    assert done.get(timeout=WAIT_S) == "then"
    away[0] = False
    lanes.resume()
    assert done.get(timeout=WAIT_S) == "tried"
    lanes.close(WAIT_S)
    assert done.empty()


def test_what_is_left_is_dropped_in_time():
    """A provider that stops waits for what is begun, no longer."""
    lanes, gate, begun, done = Lanes(), threading.Event(), threading.Event(), []
    lanes.open()
    lanes.put("a", lambda: (begun.set(), gate.wait(WAIT_S)))
    lanes.put("a", lambda: done.append("never"))
    assert begun.wait(WAIT_S)
    threading.Timer(0.05, gate.set).start()
    lanes.close(0.0)
    assert done == []


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

    def follow(self, container, since_s):
        """A container that is silent."""
        stream = FakeStream()
        stream.close()
        return stream

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
    assert threading.active_count() == before
    assert made.engine.done[-1] == ("close",)


def test_from_start_to_end(tmp_path):
    """Each step returns at once, and an event tells when there is something to see."""
    with opened(tmp_path) as (world, runner):
        assert world.backend.servers == (Server(id="local", cpu_cores=2, memory_bytes=1 << 30),)
        container = runner.run(world.running(a_launch()))
        address = world.backend.see("f-1").address
        assert (address.host, address.port, address.metrics_port) == ("127.0.0.1", 1, 2)
        assert world.backend.usage(["f-1", "f-9"])[0].memory_bytes == 7
        world.backend.terminate("f-1")
        world.backend.terminate("f-1")
        assert runner.run(world.ended("f-1")) == "its container ended with exit code 143, SIGTERM"
        assert world.engine.done.count(("signal", container, "SIGTERM")) == 1
        world.backend.forget("f-1")
        world.engine.until_done("remove", container)
        assert world.backend.see("f-1").why == "nobody knows it"


def test_what_the_kernel_kills_for_memory_is_ended_as_a_whole(tmp_path):
    """An event of an earlier container of that name is none of its own."""
    with opened(tmp_path) as (world, runner):
        container = runner.run(world.running(a_launch()))
        labels = world.engine.boxes[container].labels
        world.engine.streams[-1].items.put(ContainerEvent(what="oom", container="an earlier one", labels=labels))
        world.engine.tell("start", container)
        assert world.backend.see("f-1").stage is Stage.RUNNING
        world.engine.tell("oom", container)
        assert runner.run(world.ended("f-1")) == "the machine ran out of memory"


def test_cores_are_shared_out(tmp_path):
    """Given back when an instance is forgotten, chosen again when it is resized."""
    one = Configuration(batch=1, cpu_cores=1)
    with opened(tmp_path) as (world, runner):
        for id_ in ("f-1", "f-2"):
            runner.run(world.running(a_launch(id_, configuration=one)))
        cores = {id_: world.backend.see(id_).address.handle["cores"] for id_ in ("f-1", "f-2")}
        assert cores == {"f-1": [0], "f-2": [1]}
        world.backend.forget("f-1")
        runner.run(world.running(a_launch("f-3", configuration=one)))
        assert world.backend.see("f-3").address.handle["cores"] == [0]
        container = world.backend.see("f-3").address.handle["container"]
        world.backend.resize("f-3", Configuration(batch=1, cpu_cores=2))
        world.engine.until_done("pin", container, (0, 1))
        runner.run(world.until(lambda: world.backend.see("f-3").address.handle["cores"] == [0, 1]))
        world.backend.resize("f-9", one)


def test_an_engine_that_goes_away(tmp_path, monkeypatch):
    """What runs is left to run, nothing is started, and what was wished meanwhile is done when it is back."""
    noticed = threading.Event()
    monkeypatch.setattr(docker.LOG, "warning", lambda *_: noticed.set())
    with opened(tmp_path) as (world, runner):
        container = runner.run(world.running(a_launch()))
        world.engine.go("no engine answers")
        assert noticed.wait(WAIT_S)
        with pytest.raises(BackendError, match="no engine answers"):
            world.backend.start(a_launch("f-2"))
        assert world.backend.see("f-1").stage is Stage.RUNNING
        world.backend.terminate("f-1")
        world.engine.away = None
        assert "143" in runner.run(world.ended("f-1"))
        assert ("signal", container, "SIGTERM") in world.engine.done


def test_a_start_that_is_cut_off_leaves_nothing(tmp_path):
    """The engine made the container, and its answer was lost."""
    with opened(tmp_path) as (world, runner):
        world.engine.lost_create = True
        world.backend.start(a_launch())
        assert runner.run(world.ended("f-1")) == "its container could not be started: it timed out"
        world.backend.forget("f-1")
        world.engine.until_done("remove", "infless-f-1")
        assert world.engine.boxes == {}


def test_a_start_that_fails_says_why(tmp_path):
    """The engine's words, without a value of the environment; an image that is gone is deployed again."""
    with opened(tmp_path) as (world, runner):
        world.engine.fail_create = BackendError("Minimum memory limit allowed is 6MB")
        world.backend.start(a_launch(environment={"token": "s3cret"}))
        why = runner.run(world.ended("f-1"))
        assert why == "its container could not be started: Minimum memory limit allowed is 6MB"
        world.backend.start(a_launch("f-2", artifact="sha256:9"))
        assert runner.run(world.ended("f-2")).endswith("is no longer on this machine; deploy the function again")


def test_what_is_ended_before_it_is_started_is_not_started(tmp_path):
    """Nothing is made for it."""
    with opened(tmp_path) as (world, runner):
        gate = threading.Event()
        world.backend._lanes.put("f-1", lambda: gate.wait(WAIT_S))
        world.backend.start(a_launch())
        world.backend.kill("f-1")
        gate.set()
        assert runner.run(world.ended("f-1")) == "it was ended before it was started"
        assert world.engine.boxes == {}


def a_box(id_, instance, owner="me", **fields):
    """A container that somebody left."""
    labels = {"com.infless.owner": owner, "com.infless.instance": instance}
    return Container(id=id_, labels=labels, ports={8080: 5}, **fields)


def test_a_restart_finds_what_runs(tmp_path):
    """It is adopted with its cores; what has ended, or is unknown, is removed, and what is not ours is not."""
    with asyncio.Runner() as runner:
        world = Opened(tmp_path)
        world.engine.boxes = {
            "c1": a_box("c1", "f-1", running=True, cores=(1,)),
            "c2": a_box("c2", "f-2", running=False),
            "c3": a_box("c3", "f-3", running=True),
            "c4": a_box("c4", "f-4", owner="somebody", running=True),
        }
        world.engine.names = {f"infless-f-{n}": f"c{n}" for n in range(1, 5)}
        runner.run(world.backend.open())
        adopted = {id_: runner.run(adopt(world.backend, id_)) for id_ in ("f-1", "f-2", "f-4")}
        assert adopted == {"f-1": True, "f-2": False, "f-4": False}
        assert world.backend.see("f-1").address.handle == {"container": "c1", "cores": [1]}
        runner.run(forget_and_sweep(world.backend))
        world.engine.until(lambda: world.engine.boxes.keys() == {"c1", "c4"})
        one = Configuration(batch=1, cpu_cores=1)
        runner.run(world.running(a_launch("f-5", configuration=one)))
        assert world.backend.see("f-5").address.handle["cores"] == [0]
        runner.run(world.backend.close())
        assert {"c1", "c4"} <= world.engine.boxes.keys()


async def adopt(backend, id_):
    """On the loop, as the fleet does."""
    return backend.adopt(id_, "f.ns", {})


async def forget_and_sweep(backend):
    """What the fleet does with those that were not adopted."""
    backend.forget("f-2")
    backend.forget("f-4")
    backend.sweep({"f-1"})


def test_images_are_found_pulled_or_refused(tmp_path, spec_of):
    """What is here is not pulled."""
    with opened(tmp_path) as (world, _):
        assert world.backend.prepare(spec_of("f:1")).reference == OURS.id
        assert world.backend.prepare(spec_of("pulled:1")).digest == OURS.id
        with pytest.raises(InvalidInput, match="denied"):
            world.backend.prepare(spec_of("secret:1"))
        with pytest.raises(InvalidInput, match="is not the name of an image"):
            world.backend.prepare(spec_of("-"))


def test_a_timing_prints_and_is_removed(tmp_path):
    """Images of others print nothing, and nothing is run."""
    with opened(tmp_path) as (world, _):
        order = CurveOrder(artifact=OURS.id, environment={}, batches=[1], cpu_cores=1, budget_s=0.1)
        assert world.backend.curve(order) == '{"batch": 1}\n'
        assert world.engine.boxes == {}
        made = len(world.engine.done)
        assert world.backend.curve(replace(order, artifact=FOREIGN.id)) == ""
        assert len(world.engine.done) == made


def test_a_backend_that_was_not_opened_closes(tmp_path):
    """After an engine that did not answer."""
    world = Opened(tmp_path)
    world.engine.away = "no engine"
    with asyncio.Runner() as runner:
        with pytest.raises(BackendError, match="no engine"):
            runner.run(world.backend.open())
        runner.run(world.backend.close())


@pytest.fixture
def spec_of():
    """A deployment of an image."""
    from infless_core.model import FunctionSpec

    return lambda image: FunctionSpec(name="f", image=image, namespace="ns")
