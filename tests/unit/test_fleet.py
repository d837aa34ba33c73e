"""Instances: started, watched, resized, drained, ended; on a backend that only remembers."""

import asyncio

import pytest

from infless_core.errors import StateError
from infless_core.lifecycle import Phase
from infless_core.model import Configuration
from infless_provider.state import State

SMALL = Configuration(batch=1, cpu_cores=1)


def run(scenario):
    """A coroutine as a test."""
    asyncio.run(scenario)


def test_a_started_instance_is_kept_before_anything_else(world):
    """A provider that dies now finds it again."""

    async def scenario():
        one = await world.running(await world.deploy(), SMALL, ready=False)
        (stored,) = world.state.instances()
        assert (stored.id, stored.configuration, stored.address["handle"]) == (one.id, SMALL, {"pid": 1002})
        assert one.phase is Phase.STARTING

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
        assert world.backend.told == [(one.id, {"batch_max": 8, "latency_target_s": 0.5})]

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


def test_what_does_not_drain_is_killed(world):
    """After the longest invocation."""

    async def scenario():
        one = await world.running(await world.deploy())
        world.fleet.drain(one, "test")
        world.clock.advance(66)
        await world.look(2)
        assert (world.backend.running, one.phase) == ({}, Phase.GONE)

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
