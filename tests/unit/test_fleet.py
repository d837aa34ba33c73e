"""Instances: started, watched, resized, drained, ended; on a backend that only remembers."""

import asyncio
from dataclasses import replace

import pytest
from fakes import Crash

from infless_core.errors import StateError
from infless_core.lifecycle import Phase
from infless_core.model import Configuration, Gpu
from infless_provider import fleet
from infless_provider.fleet import ALIVE_S, DRAIN_GRACE_S, STREAM_MAX_S, UNHEARD_MAX
from infless_provider.state import State

SMALL = Configuration(batch=1, cpu_cores=1)
EVERYONE_EACH = fleet._EVERYONE_EACH


def run(scenario):
    """A coroutine as a test."""
    asyncio.run(scenario)


def test_a_started_instance_is_kept_before_anything_else(world, monkeypatch):
    """Its row is there when the backend hears of it, its address as soon as that is known."""

    async def scenario():
        rows, real = [], world.backend.start

        def start(launch):
            rows.extend(world.state.instances())
            real(launch)

        monkeypatch.setattr(world.backend, "start", start)
        f = await world.deploy()
        one = await world.running(f, SMALL, ready=False)
        (before,), (after,) = rows, world.state.instances()
        assert (before.id, before.version, before.configuration, before.address) == (one.id, f.version, SMALL, {})
        assert (after.id, after.configuration, after.address["handle"]) == (one.id, SMALL, {"pid": 1002})
        assert one.phase is Phase.STARTING

    run(scenario())


class TestKilled:
    """A provider that is killed while it starts an instance: the next one loses and doubles nothing."""

    async def crash(self, world, when):
        """Killed before or after its backend has begun to start it."""
        f = await world.deploy()
        world.backend.crash = when
        with pytest.raises(Crash):
            world.fleet.start(f, SMALL, "test")
        world.backend.crash = ""

    def test_between_the_row_and_the_start(self, world):
        """Nothing runs, so the row goes."""

        async def scenario():
            await self.crash(world, "before")
            (row,) = world.state.instances()
            controller = await world.restart()
            assert (world.state.instances(), controller.find("f").instances, world.backend.running) == ([], {}, {})
            assert world.backend.forgotten == [row.id]

        run(scenario())

    def test_between_the_start_and_the_address(self, world):
        """It is found by its id, its address is kept as soon as it is known, and it serves."""

        async def scenario():
            await self.crash(world, "after")
            (row,) = world.state.instances()
            world.backend.hidden.add(row.id)
            f = (await world.restart()).find("f")
            assert [one.id for one in f.current()] == [row.id]
            await world.look()
            assert (f.current()[0].address, world.state.instances()[0].address) == (None, {})
            world.backend.hidden.clear()
            world.backend.ready.add(row.id)
            await world.look()
            assert [one.id for one in f.serving()] == [row.id]
            assert world.state.instances()[0].address["host"] == row.id
            assert world.backend.swept == {row.id}

        run(scenario())

    def test_after_the_row_was_lost(self, world):
        """Whatever the backend has that the state does not know is for its sweep."""

        async def scenario():
            await self.crash(world, "after")
            world.state.delete_instance(world.state.instances()[0].id)
            await world.restart()
            assert world.backend.swept == set()

        run(scenario())


def test_what_a_launch_says(world):
    """Everything that a backend needs, from the deployment, the wishes and the plan."""

    async def scenario():
        f = await world.deploy(
            envVars={"a": "1"},
            limits={"memory": "1Gi", "cpu": "2"},
            readOnlyRootFilesystem=True,
            envProcess="serve --now",
            labels={"com.infless.latency.target": "200ms"},
        )
        one = await world.running(f, Configuration(batch=4, cpu_cores=2))
        (launch,) = world.backend.launches
        assert (launch.id, launch.function, launch.version) == (one.id, "f.openfaas-fn", f.version)
        assert (launch.artifact, launch.environment) == (f.stored.version.artifact, {"a": "1"})
        assert (launch.configuration, launch.latency_target_s) == (one.configuration, 0.2)
        assert (launch.memory_bytes, launch.read_only_root, launch.process) == (2**30, True, "serve --now")
        assert (launch.server, launch.gpu, launch.secrets) == ("local", None, None)

    run(scenario())


def test_an_instance_with_a_share_of_a_gpu_is_told_which(world):
    """The server's first; none for an instance without a share, nor where no GPU is."""

    async def scenario():
        f = await world.deploy()
        share = Configuration(batch=1, cpu_cores=1, gpu_percent=50)
        await world.running(f, share)
        gpus = (Gpu(id="GPU-7", memory_bytes=1 << 34), Gpu(id="GPU-8", memory_bytes=1 << 34))
        world.backend.servers = (replace(world.backend.servers[0], gpus=gpus),)
        await world.running(f, share)
        await world.running(f, SMALL)
        assert [launch.gpu for launch in world.backend.launches] == [None, "GPU-7", None]

    run(scenario())


def test_an_instance_without_an_address_is_waited_for(world):
    """A container's is known late: nobody asks it, nobody is sent there, and its end is seen all the same."""

    async def scenario():
        f = await world.deploy()
        world.backend.late = True
        one, two = await world.running(f), await world.running(f)
        await world.look()
        assert (one.phase, one.address, f.dispatcher.choose()) == (Phase.STARTING, None, None)
        world.backend.hidden.discard(one.id)
        await world.look()
        assert (one.phase, one.address.host) == (Phase.READY, one.id)
        await world.ended(two)
        assert list(f.instances) == [one.id]

    run(scenario())


def test_a_new_handle_is_kept(world, monkeypatch):
    """A backend may know an instance by another one since a resize; its connections are as good as before."""

    async def scenario():
        one = await world.running(await world.deploy())
        upstream, real = one.upstream, world.backend.see

        def see(id_):
            sight = real(id_)
            return replace(sight, address=replace(sight.address, handle={"pid": 7}))

        monkeypatch.setattr(world.backend, "see", see)
        await world.look()
        assert world.state.instances()[0].address["handle"] == {"pid": 7}
        assert one.upstream is upstream

    run(scenario())


def test_an_address_that_cannot_be_kept_stops_nothing(world, monkeypatch, caplog):
    """The instance serves; that a restart may not find it is told."""

    async def scenario():
        f = await world.deploy()
        real, full = State.put_instance, []

        def put_instance(state, stored):
            if stored.address:
                full.append(stored)
                raise StateError("disk is full")
            real(state, stored)

        monkeypatch.setattr(State, "put_instance", put_instance)
        one = await world.running(f)
        assert (one.phase, len(full)) == (Phase.READY, 1)
        assert f"{one.id} may be ended by the next restart: disk is full" in caplog.text

    run(scenario())


def test_a_backends_event_is_heard_at_once(world):
    """Without waiting for the next look; one about a stranger is no fault."""

    async def scenario():
        f = await world.deploy()
        one = await world.running(f)
        world.backend.running.pop(one.id)
        world.backend.on_event("stranger")
        assert list(f.instances) == [one.id]
        world.backend.on_event(one.id)
        assert (one.phase, f.instances) == (Phase.GONE, {})

    run(scenario())


@pytest.mark.parametrize(
    ("why", "words", "told"), [("out of memory", "x", "out of memory"), ("", "ERROR x", "ERROR x")]
)
def test_what_the_backend_knows_is_told_before_the_log(world, why, words, told):
    """A log that ends in the middle says nothing of a kernel that ran out of memory."""

    async def scenario():
        f = await world.deploy()
        world.backend.why, world.backend.words = why, words
        await world.ended(await world.running(f, ready=False))
        assert f.last_failure == told

    run(scenario())


def test_an_old_versions_instance_that_ends_says_nothing_of_the_new_one(world):
    """Nobody waits longer for the new version because of it."""

    async def scenario():
        f = await world.deploy()
        old = await world.running(f, ready=False)
        await world.update(code="2")
        await world.ended(old)
        assert (f.failures, f.last_failure, f.retry_at_s) == (0, "", 0.0)

    run(scenario())


def test_other_cores_reach_the_backend(world):
    """And are told to the instance, which sets its threads by them; another batch alone is not the backend's."""

    async def scenario():
        one = await world.running(await world.deploy(), SMALL)
        world.fleet.resize(one, Configuration(batch=8, cpu_cores=1))
        assert world.backend.resized == []
        world.fleet.resize(one, Configuration(batch=8, cpu_cores=2))
        await world.look(2)
        assert world.backend.resized == [(one.id, 2)]
        assert world.backend.told[-1] == (one.id, {"batch_max": 8, "cpu_cores": 2, "latency_target_s": 0.5})

    run(scenario())


def test_one_of_somebody_elses_template_is_told_nothing(world, monkeypatch):
    """It publishes no metrics, and has no port to be told on."""

    async def scenario():
        real = world.backend.see

        def see(id_):
            sight = real(id_)
            return replace(sight, address=replace(sight.address, metrics_port=0)) if sight.address else sight

        monkeypatch.setattr(world.backend, "see", see)
        one = await world.running(await world.deploy(), SMALL)
        world.fleet.resize(one, Configuration(batch=8, cpu_cores=1))
        await world.look(3)
        assert (world.backend.told, one.untold) == ([], False)

    run(scenario())


@pytest.mark.parametrize(("status", "phase"), [(404, Phase.READY), (405, Phase.READY), (500, Phase.STARTING)])
def test_who_does_not_know_the_question_serves(world, status, phase):
    """A function of somebody else's template answers, and knows no `/_/ready`."""

    async def scenario():
        f = await world.deploy()
        world.ready_status = status
        one = await world.running(f)
        assert one.phase is phase

    run(scenario())


def test_ready_when_it_says_so(world):
    """Not before."""

    async def scenario():
        f = await world.deploy()
        one = await world.running(f, ready=False)
        await world.look()
        assert one.phase is Phase.STARTING
        world.backend.ready.add(one.id)
        await world.look()
        assert one.phase is Phase.READY
        assert f.dispatcher.choose() == one.id

    run(scenario())


def test_whoever_waits_goes_on_when_one_is_ready(world):
    """A cold start ends for all of them."""

    async def scenario():
        f = await world.deploy()
        waiters = [asyncio.get_running_loop().create_future() for _ in range(2)]
        f.waiters += waiters
        await world.running(f)
        assert all(waiter.done() for waiter in waiters)

    run(scenario())


def test_a_backend_that_cannot_start(world):
    """The reason is kept, and the next try comes later each time."""

    async def scenario():
        f = await world.deploy()
        world.backend.failure = "no more processes"
        assert world.fleet.start(f, SMALL, "x") is None
        assert (f.retry_at_s, f.last_failure) == (1002.0, "no more processes")
        world.fleet.start(f, SMALL, "x")
        assert f.retry_at_s == 1004.0
        assert f.instances == {}

    run(scenario())


def test_waiting_grows_also_while_another_instance_serves(world):
    """One more that never fits must not be started every two seconds for ever, and the reason stays to be read."""

    async def scenario():
        f = await world.deploy()
        one = await world.running(f)
        world.backend.words = "no memory"
        waits_s = []
        for _ in range(4):
            await world.ended(await world.running(f, ready=False))
            waits_s.append(f.retry_at_s - world.clock.now_s())
            world.fleet.drain(world.fleet.start(f, SMALL, "x"), "whatever else changes")
        assert (waits_s, f.last_failure) == ([2.0, 4.0, 8.0, 16.0], "no memory")
        await world.running(f)
        assert (f.failures, f.last_failure, one.phase) == (0, "", Phase.READY)

    run(scenario())


def test_a_backend_that_cannot_start_for_days(world):
    """Once a minute, for ever."""

    async def scenario():
        f = await world.deploy()
        f.failures = 5000
        world.backend.failure = "no"
        world.fleet.start(f, SMALL, "x")
        assert f.retry_at_s == 1060.0

    run(scenario())


def test_an_instance_that_cannot_be_kept_is_ended(world, monkeypatch):
    """A full disk: nobody would find it after a restart."""

    async def scenario():
        f = await world.deploy()
        with monkeypatch.context() as patch:
            patch.setattr(State, "put_instance", lambda *_: (_ for _ in ()).throw(StateError("disk is full")))
            assert world.fleet.start(f, SMALL, "x") is None
        await world.settle()
        assert (world.backend.running, world.fleet.instances, f.instances) == ({}, {}, {})
        assert f.last_failure == "disk is full"
        assert world.fleet.start(f, SMALL, "again") is not None

    run(scenario())


def test_an_instance_that_ends_while_it_starts(world):
    """Its last words are the reason; the planner is told; a ready one clears the slate."""

    async def scenario():
        f = await world.deploy()
        world.backend.words = "ERROR no model"
        before = world.dirty
        await world.ended(await world.running(f, ready=False))
        assert (f.last_failure, f.failures, world.dirty) == ("ERROR no model", 1, before + 1)
        await world.running(f)
        assert (f.last_failure, f.failures) == ("", 0)

    run(scenario())


def test_an_instance_that_ends_while_it_serves(world):
    """It is gone from routes and state at once, and the planner is told."""

    async def scenario():
        f = await world.deploy()
        one = await world.running(f)
        before = world.dirty
        world.backend.running.pop(one.id)
        world.fleet.check(one)
        assert (f.dispatcher.choose(), f.instances, world.state.instances()) == (None, {}, [])
        assert (one.phase, world.dirty, f.failures) == (Phase.GONE, before + 1, 0)
        world.fleet.check(one)  # twice is no fault

    run(scenario())


def test_an_instance_that_hangs_is_ended(world):
    """It would take requests for ever; another one is planned at once, and the reason is told."""

    async def scenario():
        f = await world.deploy()
        one, other = await world.running(f), await world.running(f)
        world.backend.hanging.add(one.id)
        for asked in range(UNHEARD_MAX):
            assert f.serving() == [one, other], asked
            world.clock.advance(ALIVE_S)
            dirty = world.dirty
            await world.look(2)
        assert (f.serving(), world.dirty > dirty) == ([other], True)
        (end,) = [event for event in world.fleet.events if event["event"] == "end"]
        assert end["why"] == "it hangs: 3 times it did not say within 10 s that it lives"
        assert f.failures == 0

    run(scenario())


@pytest.mark.parametrize("busy", [1, UNHEARD_MAX - 1])
def test_one_that_is_only_slow_is_not_ended(world, busy):
    """A word in between is enough, also for what it was not told meanwhile."""

    async def scenario():
        f = await world.deploy()
        one = await world.running(f)
        for _ in range(5):
            world.backend.hanging = {one.id}
            world.fleet.resize(one, replace(one.configuration, batch=one.configuration.batch % 8 + 1))
            for _ in range(busy):
                world.clock.advance(ALIVE_S)
                await world.look(2)
            world.backend.hanging = set()
            world.clock.advance(ALIVE_S)
            await world.look(2)
            assert (f.serving(), one.unheard, one.untold) == ([one], 0, False)

    run(scenario())


def test_an_instance_that_is_never_ready_is_ended(world):
    """With a reason that says so."""

    async def scenario():
        f = await world.deploy()
        await world.running(f, ready=False)
        world.clock.advance(121)
        await world.look(2)
        assert f.last_failure == "it was not ready within 120 s"
        assert world.backend.running == {}

    run(scenario())


def test_resizing_is_kept_and_told(world):
    """In this order."""

    async def scenario():
        one = await world.running(await world.deploy(), SMALL)
        world.fleet.resize(one, Configuration(batch=8, cpu_cores=1))
        assert world.state.instances()[0].configuration.batch == 8
        await world.look(2)
        assert world.backend.told == [(one.id, {"batch_max": 8, "cpu_cores": 1, "latency_target_s": 0.5})]

    run(scenario())


@pytest.mark.parametrize(("refusals", "told"), [([503, 503], 1), ([400], 0)])
def test_telling_goes_on_while_it_is_not_that_far(world, refusals, told):
    """503 is tried again; a refusal is not."""

    async def scenario():
        one = await world.running(await world.deploy(), SMALL)
        world.refusals = refusals
        world.fleet.resize(one, Configuration(batch=8, cpu_cores=1))
        await world.look(5)
        assert len(world.backend.told) == told

    run(scenario())


def test_one_that_starts_is_told_when_it_is_ready(world):
    """It was launched with the old size."""

    async def scenario():
        one = await world.running(await world.deploy(), SMALL, ready=False)
        world.fleet.resize(one, Configuration(batch=8, cpu_cores=1))
        world.backend.ready.add(one.id)
        await world.look(2)
        assert [host for host, _ in world.backend.told] == [one.id]

    run(scenario())


def test_a_resize_that_cannot_be_kept_changes_nothing(world, monkeypatch):
    """Neither here nor there."""

    async def scenario():
        one = await world.running(await world.deploy(), SMALL)
        monkeypatch.setattr(State, "put_instance", lambda *_: (_ for _ in ()).throw(StateError("full")))
        with pytest.raises(StateError):
            world.fleet.resize(one, Configuration(batch=8, cpu_cores=1))
        assert (one.configuration, one.untold) == (SMALL, False)

    run(scenario())


def test_draining_waits_for_what_was_sent(world):
    """Only then is it asked to end: no request meets a closing connection."""

    async def scenario():
        f = await world.deploy()
        one = await world.running(f)
        one.in_flight = 1
        world.fleet.drain(one, "test")
        await world.look()
        assert (f.dispatcher.choose(), world.backend.asked_to_end) == (None, [])
        one.in_flight = 0
        await world.look(2)
        assert world.backend.asked_to_end == [one.id]

    run(scenario())


def test_what_does_not_end_is_killed(world):
    """A while after it was asked to, and not before."""

    async def scenario():
        one = await world.running(await world.deploy())
        world.fleet.drain(one, "test")
        assert one.asked_to_end
        world.clock.advance(DRAIN_GRACE_S - 1)
        await world.look(2)
        assert one.phase is Phase.DRAINING
        world.clock.advance(2)
        await world.look(2)
        assert (world.backend.running, one.phase) == ({}, Phase.GONE)

    run(scenario())


def test_an_answer_in_pieces_is_let_finish(world):
    """An update does not cut a stream that flows; one that never ends is cut after an hour."""

    async def scenario():
        one = await world.running(await world.deploy())
        one.in_flight = 1
        world.fleet.drain(one, "test")
        world.clock.advance(STREAM_MAX_S - 1)
        await world.look(2)
        assert (one.phase, one.asked_to_end) == (Phase.DRAINING, False)
        world.clock.advance(2)
        await world.look(2)
        assert one.phase is Phase.GONE

    run(scenario())


def test_the_end_leaves_nobody(world):
    """Drained, then killed; and nothing is started any more."""

    async def scenario():
        f = await world.deploy()
        await world.running(f)
        await world.running(f, ready=False)
        await world.fleet.end_all(timeout_s=0)
        assert (world.backend.running, world.fleet.instances) == ({}, {})
        assert world.fleet.start(f, SMALL, "late") is None

    run(scenario())


def test_closing_leaves_instances_running(world):
    """SIGTERM: the next provider finds them."""

    async def scenario():
        one = await world.running(await world.deploy())
        await world.fleet.close()
        assert list(world.backend.running) == [one.id]

    run(scenario())


def test_events_tell_what_happened_and_why(world):
    """For `infless status`."""

    async def scenario():
        one = await world.running(await world.deploy())
        world.fleet.drain(one, "no longer wanted")
        await world.ended(one)
        told = [(event["event"], event["why"]) for event in world.fleet.events]
        assert told == [("start", "test"), ("ready", "after 0.00 s"), ("stop", "no longer wanted"), ("end", "")]

    run(scenario())


def test_watching_goes_on_whatever_happens(world, monkeypatch, caplog):
    """A fault of ours is told; those that start are looked at each time, the others now and then."""

    async def scenario():
        f = await world.deploy()
        ready = await world.running(f)
        starting = await world.running(f, ready=False)
        await world.settle()
        looks, real = [], world.backend.see

        def see(id_):
            looks.append(id_)
            if len(looks) == 1:
                raise RuntimeError("a fault of ours")
            return real(id_)

        monkeypatch.setattr(world.backend, "see", see)
        monkeypatch.setattr(fleet, "WATCH_S", 0.0)
        task = asyncio.ensure_future(world.fleet.watch())
        while looks.count(starting.id) < 2 * EVERYONE_EACH:
            await asyncio.sleep(0)
        task.cancel()
        assert "watching instances failed; going on" in caplog.text
        assert 2 <= looks.count(ready.id) <= 4

    run(scenario())


def test_telling_an_instance_that_cannot_be_reached(world, monkeypatch):
    """It is told once it can be."""

    async def scenario():
        one = await world.running(await world.deploy(), SMALL)
        port = world.backend.running.pop(one.id)
        world.fleet.resize(one, Configuration(batch=8, cpu_cores=1))
        world.fleet._ask(one, world.fleet._configure)
        await world.settle()
        assert (world.backend.told, one.untold) == ([], True)
        world.backend.running[one.id] = port
        await world.look(2)
        assert [host for host, _ in world.backend.told] == [one.id]

    run(scenario())


def test_the_last_answers_of_a_killed_instance(world):
    """What is under way is let go on for a moment; then everything of it is cleared up."""

    async def scenario():
        one = await world.running(await world.deploy())
        one.in_flight = 1
        await world.ended(one)
        assert world.backend.forgotten == []
        one.in_flight = 0
        while not world.backend.forgotten:
            await asyncio.sleep(0.01)
        assert world.backend.forgotten == [one.id]

    run(scenario())
