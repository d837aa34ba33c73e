"""The Docker backend's threads with an engine in memory; the real engine is in tests/integration."""

import asyncio
import queue
import threading
from dataclasses import replace

import pytest
from docker_fake import FOREIGN, OURS, WAIT_S, Opened, a_launch, opened

from infless_core.errors import BackendError, InvalidInput
from infless_core.model import Configuration, FunctionSpec, Server
from infless_provider.backends import docker
from infless_provider.backends.base import CurveOrder, Stage
from infless_provider.backends.docker_api import Container, ContainerEvent, EngineAway
from infless_provider.backends.docker_work import Lanes


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


def test_a_start_that_is_cut_off_is_begun_anew(tmp_path):
    """The engine made the container, and its answer was lost: that one goes, and nothing is left afterwards."""
    with opened(tmp_path) as (world, runner):
        world.engine.lost_create = True
        runner.run(world.running(a_launch()))
        assert len(world.engine.boxes) == 1
        world.backend.forget("f-1")
        world.engine.until(lambda: world.engine.boxes == {})


@pytest.mark.parametrize("call", ["image", "create", "start", "inspect"])
def test_a_start_that_meets_no_engine_is_done_when_it_is_back(tmp_path, monkeypatch, call):
    """Wherever it was cut off: the instance goes on starting, and runs once, in one container."""
    with opened(tmp_path) as (world, runner):
        met, real = queue.Queue(), getattr(world.engine, call)

        def away(*arguments):
            if met.empty():
                world.engine.away = "no engine answers"
                met.put(call)
                raise EngineAway("no engine answers")
            return real(*arguments)

        monkeypatch.setattr(world.engine, call, away)
        world.backend.start(a_launch())
        assert met.get(timeout=WAIT_S) == call
        assert world.backend.see("f-1").stage is Stage.STARTING
        met.put("once is enough")
        world.engine.away = None
        runner.run(world.until(lambda: world.backend.see("f-1").stage is Stage.RUNNING))
        (box,) = world.engine.boxes.values()
        assert world.backend.see("f-1").address.handle["container"] == box.id


def test_a_start_that_waits_for_the_engine_can_be_given_up(tmp_path, monkeypatch):
    """Nothing is started for it when the engine is back."""
    with opened(tmp_path) as (world, runner):
        met, real = threading.Event(), world.engine.create

        def away(*arguments):
            if not met.is_set():
                world.engine.away = "no engine answers"
                met.set()
                raise EngineAway("no engine answers")
            return real(*arguments)

        monkeypatch.setattr(world.engine, "create", away)
        world.backend.start(a_launch())
        assert met.wait(WAIT_S)
        world.backend.kill("f-1")
        world.engine.away = None
        assert runner.run(world.ended("f-1")) == "it was ended before it was started"
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
        order = CurveOrder(artifact=OURS.id, environment={}, batches=[1], cpu_cores=1, budget_s=0.1, timeout_s=60.0)
        assert world.backend.curve(order) == '{"batch": 1}\n'
        assert world.engine.boxes == {}
        made = len(world.engine.done)
        assert world.backend.curve(replace(order, artifact=FOREIGN.id)) == ""
        assert len(world.engine.done) == made


def test_a_timing_that_needs_too_much_memory_says_so(tmp_path, monkeypatch):
    """The kernel ends it without a word of its own."""
    with opened(tmp_path) as (world, _):
        engine = world.engine

        def killed(container, _):
            engine.boxes[container] = replace(
                engine.boxes[container], running=False, exit_code=137, out_of_memory=True, memory_bytes=64 << 20
            )
            return 137

        monkeypatch.setattr(engine, "wait", killed)
        order = CurveOrder(artifact=OURS.id, environment={}, batches=[1], cpu_cores=1, budget_s=0.1, timeout_s=60.0)
        with pytest.raises(BackendError, match="it needed more memory than its limit, 64 MiB"):
            world.backend.curve(order)
        assert engine.boxes == {}


@pytest.mark.parametrize(
    ("printed", "words"),
    [
        ({"stdout": b'no licence\n{"batch": 1}\n'}, "timing ended with exit code 3: no licence"),
        ({"stdout": b"loading\n", "stderr": b"no licence\n"}, "timing ended with exit code 3: no licence"),
        ({}, "timing ended with exit code 3"),
    ],
)
def test_a_timing_that_dies_says_what_it_printed_last(tmp_path, monkeypatch, printed, words):
    """On stderr, else on stdout, where records are no words."""
    with opened(tmp_path) as (world, _):
        engine = world.engine
        monkeypatch.setattr(engine, "wait", lambda *_: 3)
        monkeypatch.setattr(engine, "output", lambda _, *, stderr: printed.get("stderr" if stderr else "stdout", b""))
        order = CurveOrder(artifact=OURS.id, environment={}, batches=[1], cpu_cores=1, budget_s=0.1, timeout_s=60.0)
        with pytest.raises(BackendError) as fault:
            world.backend.curve(order)
        assert str(fault.value) == words


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
    return lambda image: FunctionSpec(name="f", image=image, namespace="ns")
