"""An update that never gets ready is given up for the last version that did: when, for which, and what stays as it was."""

import asyncio

import pytest

from infless_core.errors import StateError, Unavailable
from infless_core.lifecycle import Phase
from infless_provider.controller import TRIES
from infless_provider.state import State


def run(scenario):
    """A coroutine as a test."""
    asyncio.run(scenario)


async def proven(world, **fields):
    """A function with a version that works, and the instance that shows it."""
    f = await world.deploy(**fields)
    one = await world.running(f)
    assert f.stored.proven
    return f, one


async def fails(world, f, times=TRIES, words="ERROR no model"):
    """Instances of the newest version end before they are ready."""
    world.backend.words = words
    for _ in range(times):
        starting = [one for one in f.current() if one.phase is Phase.STARTING]
        await world.ended(starting[0] if starting else await world.running(f, ready=False))


def test_an_update_that_never_gets_ready_is_given_up(world):
    """The version before is what is deployed again, here and on the disk; its instances have served all the time."""

    async def scenario():
        f, old = await proven(world)
        before = f.stored
        await world.update(code="broken")
        assert f.stored.previous == before.version
        dirty = world.dirty
        await fails(world, f)
        assert f.stored == before
        assert world.state.functions() == [before]
        assert (f.serving(), f.current()) == ([old], [old])
        assert (f.failures, f.retry_at_s, f.rolled_back) == (0, 0.0, "ERROR no model")
        assert world.dirty > dirty

    run(scenario())


def test_it_is_told(world):
    """As an event and in the overview, with the reason."""

    async def scenario():
        f, _ = await proven(world)
        await world.update(code="broken")
        await fails(world, f, words="ModuleNotFoundError: numpy")
        overview = await world.views.overview()
        assert overview["functions"][0]["rolled_back"] == "ModuleNotFoundError: numpy"
        (event,) = [one for one in overview["events"] if one["event"] == "rollback"]
        assert (event["function"], event["why"]) == (f.key, "ModuleNotFoundError: numpy")

    run(scenario())


def test_the_next_update_has_its_own_tries(world):
    """And is not called rolled back because an earlier one was."""

    async def scenario():
        f, _ = await proven(world)
        await world.update(code="broken")
        await fails(world, f)
        await world.update(code="better")
        assert (f.rolled_back, f.failures) == ("", 0)
        await fails(world, f, TRIES - 1)
        assert f.stored.previous is not None
        await world.running(f)
        assert (f.stored.proven, f.stored.previous) == (True, None)

    run(scenario())


def test_one_failure_is_no_reason(world):
    """A machine may have been out of memory for a moment."""

    async def scenario():
        f, _ = await proven(world)
        await world.update(code="2")
        updated = f.version
        await fails(world, f, TRIES - 1)
        assert (f.version, f.rolled_back) == (updated, "")

    run(scenario())


def test_one_that_has_been_ready_is_not_given_up(world):
    """It works; whatever happens to it later is no fault of the update's."""

    async def scenario():
        f, _ = await proven(world)
        await world.update(code="2")
        updated = f.version
        await world.ended(await world.running(f))
        await fails(world, f, 3 * TRIES)
        assert (f.version, f.failures) == (updated, 3 * TRIES)

    run(scenario())


def test_a_first_version_has_nothing_to_go_back_to(world):
    """It is tried again and again, later each time."""

    async def scenario():
        f = await world.deploy()
        first = f.stored
        await fails(world, f, 3 * TRIES)
        assert (f.stored, f.rolled_back) == (first, "")

    run(scenario())


def test_a_first_version_that_never_worked_is_nothing_to_go_back_to(world):
    """Going from one that fails to another one that fails helps nobody."""

    async def scenario():
        f = await world.deploy()
        await world.update(code="2")
        updated = f.version
        await fails(world, f, 3 * TRIES)
        assert f.version == updated

    run(scenario())


def test_a_backend_that_cannot_start_it(world):
    """Counts as well: an image that is no program, for instance."""

    async def scenario():
        f, old = await proven(world)
        before = f.stored
        world.backend.failure = "exec format error"
        await world.update(code="2")
        assert f.failures == 1
        world.fleet.start(f, f.spare(), "again")
        assert (f.stored, f.rolled_back, f.serving()) == (before, "exec format error", [old])

    run(scenario())


@pytest.mark.parametrize("why", ["the engine is away", "the disk is full"])
def test_a_machine_that_cannot_start_anything_is_no_fault_of_the_version(world, monkeypatch, why):
    """It was accepted, and is tried until the machine can again."""

    async def scenario():
        f, _ = await proven(world)
        await world.update(code="2")
        updated = f.version
        await fails(world, f, TRIES - 1)
        with monkeypatch.context() as patch:
            if why == "the engine is away":
                patch.setattr(world.backend, "failure", Unavailable(why))
            else:
                patch.setattr(State, "put_instance", lambda *_: (_ for _ in ()).throw(StateError(why)))
            for _ in range(2 * TRIES):
                assert world.fleet.start(f, f.spare(), "again") is None
                assert f.last_failure == why
                assert f.retry_at_s > world.clock.now_s()
        assert (f.version, f.failures, f.rolled_back) == (updated, TRIES - 1, "")
        await world.running(f)
        assert f.stored.proven

    run(scenario())


def test_one_that_was_asked_to_end_before_a_restart_counts_for_nothing(world):
    """Nobody knows of an adopted instance whether it had been ready."""

    async def scenario():
        f, old = await proven(world)
        await world.update(code="2")
        await fails(world, f, TRIES - 1)
        starting = await world.running(f, ready=False)
        f = (await world.restart()).find("f")
        await world.ended(f.instances[starting.id])
        assert (f.failures, f.retry_at_s, f.stored.previous is not None) == (0, 0.0, True)
        assert [one.id for one in f.undrained()] == [old.id]

    run(scenario())


def test_one_that_is_never_ready_in_time(world):
    """It hangs instead of failing: nobody waits for that twice."""

    async def scenario():
        f, _ = await proven(world)
        before = f.stored
        await world.update(code="2")
        world.clock.advance(121)
        await world.look(2)
        assert (f.stored, f.rolled_back) == (before, "it was not ready within 120 s")

    run(scenario())


def test_other_instances_that_still_start_are_ended(world):
    """Their end is then no failure of the version that came back."""

    async def scenario():
        f, _ = await proven(world)
        await world.update(code="2")
        others = [await world.running(f, ready=False) for _ in range(2)]
        await fails(world, f)
        left = [one for one in others if one.id in f.instances]
        assert [one.phase for one in left] == [Phase.DRAINING]
        await world.ended(left[0])
        assert f.failures == 0

    run(scenario())


def test_they_are_ended_also_where_nobody_of_the_old_version_is_left(world):
    """Nobody who becomes ready would send them away later, and they would serve what was given up."""

    async def scenario():
        f, old = await proven(world)
        await world.ended(old)
        await world.update(code="2")
        others = [await world.running(f, ready=False) for _ in range(3)]
        await fails(world, f)
        left = [one for one in others if one.id in f.instances]
        assert [one.phase for one in left] == [Phase.DRAINING]
        assert f.current() == []

    run(scenario())


def test_a_restart_in_the_middle_loses_no_way_back(world):
    """The tries are counted anew, the version to go back to is on the disk."""

    async def scenario():
        f, old = await proven(world)
        before = f.stored
        await world.update(code="2")
        await fails(world, f, TRIES - 1)
        f = (await world.restart()).find("f")
        assert (f.stored.previous, f.failures) == (before.version, 0)
        await fails(world, f)
        assert f.stored == before
        assert [one.id for one in f.current()] == [old.id]
        assert (await world.restart()).find("f").stored == before

    run(scenario())


def test_an_update_of_one_that_sleeps(world):
    """Nobody starts it, so nobody knows until the first request; two failures later the old version answers."""

    async def scenario():
        labels = {"com.openfaas.scale.min": "0"}
        f, old = await proven(world, labels=labels)
        await world.controller.scale("f", None, 0)
        world.fleet.drain(old, "nobody wants it")
        await world.ended(old)
        before = f.stored
        await world.update(code="2", labels=labels)
        assert (f.instances, f.wanted(world.clock.now_s())) == ({}, 0)
        assert (f.stored.replicas, f.stored.previous) == (0, before.version)
        waiter = asyncio.get_running_loop().create_future()
        f.waiters.append(waiter)
        await fails(world, f)
        assert (f.stored, waiter.done()) == (before, True)
        await world.running(f)
        assert world.backend.launches[-1].artifact == before.version.artifact

    run(scenario())


def test_an_update_of_one_that_sleeps_over_a_restart(world):
    """What may be gone back to is kept for as long as nobody knows: days, perhaps."""

    async def scenario():
        labels = {"com.openfaas.scale.min": "0"}
        f, old = await proven(world, labels=labels)
        before = f.stored
        await world.ended(old)
        await world.update(code="2", labels=labels)
        for _ in range(2):
            f = (await world.restart()).find("f")
        assert f.least(world.clock.now_s()) == 0
        await fails(world, f)
        assert f.stored == before
        assert await world.running(f) in f.serving()

    run(scenario())


class TestUpdatesUponUpdates:
    """Whatever comes in between: back to the last version that was seen at work."""

    def test_an_update_upon_an_unfinished_one(self, world):
        """The one in between is skipped."""

        async def scenario():
            f, old = await proven(world)
            before = f.stored
            await world.update(code="2")
            await world.update(code="3")
            await fails(world, f)
            assert (f.stored, f.current()) == (before, [old])

        run(scenario())

    def test_labels_alone_change_no_way_back(self, world):
        """They belong to the version that is being tried; the other one comes back with its own."""

        async def scenario():
            f, _ = await proven(world, labels={"com.infless.latency.target": "1s"})
            before = f.stored
            await world.update(code="2")
            await world.update(code="2", labels={"com.infless.latency.target": "200ms"})
            assert (f.stored.previous, f.stored.proven) == (before.version, False)
            assert f.wishes.latency_target_s == 0.2
            await fails(world, f)
            assert (f.stored, f.wishes.latency_target_s) == (before, 1.0)

        run(scenario())

    def test_labels_of_one_that_works_come_back(self, world):
        """Also those that were changed after it had proved itself."""

        async def scenario():
            f, _ = await proven(world)
            await world.update(code="1", labels={"com.infless.latency.target": "200ms"})
            assert f.stored.proven
            await world.update(code="2")
            await fails(world, f)
            assert (f.wishes.latency_target_s, f.stored.proven) == (0.2, True)

        run(scenario())

    def test_taken_back_by_hand(self, world):
        """The version before is known to work: it is not tried, and its instance goes on."""

        async def scenario():
            f, old = await proven(world)
            before = f.stored
            await world.update(code="2")
            (new,) = [one for one in f.current() if one is not old]
            await world.update(code="1")
            assert (f.stored, f.current()) == (before, [old])
            world.backend.ready.add(new.id)
            await world.look()
            assert (new.phase, f.serving()) == (Phase.DRAINING, [old])

        run(scenario())

    def test_scale_set_meanwhile_stays(self, world):
        """It is said of the function, not of a version."""

        async def scenario():
            f, _ = await proven(world)
            await world.update(code="2")
            await world.controller.scale("f", None, 3)
            await fails(world, f)
            assert (f.stored.replicas, world.state.functions()[0].replicas) == (3, 3)

        run(scenario())


class TestWhatComesBack:
    """Everything that was deployed with the version."""

    def test_its_secrets(self, world):
        """In a folder of their own, whatever the update had."""

        async def scenario():
            world.secret("old", b"1")
            world.secret("new", b"2")
            f, one = await proven(world, secrets=["old"])
            await world.update(code="2", secrets=["new"])
            await fails(world, f)
            await world.ended(one)
            await world.running(f)
            folder = world.backend.launches[-1].secrets
            assert [path.name for path in folder.iterdir()] == ["old"]

        run(scenario())

    def test_its_tokens(self, world):
        """An update that opened the function is undone in this, too."""

        async def scenario():
            world.secret("tokens", b"one")
            f, _ = await proven(world, labels={"com.infless.auth.secret": "tokens"})
            await world.update(code="2")
            assert f.tokens == ()
            await fails(world, f)
            assert f.tokens == (b"one",)

        run(scenario())

    def test_its_profile(self, world):
        """As the database has it; without one its speed is learned."""

        async def scenario():
            f, _ = await proven(world)
            world.profiles.table = world.profiles.table[:1]
            await world.update(code="2")
            assert len(f.profile) == 1
            world.profiles.table = None
            await fails(world, f)
            assert f.profile == ()

        run(scenario())


class TestImpossible:
    """What keeps a version from coming back; the next failure tries again."""

    def test_a_full_disk(self, world, monkeypatch, caplog):
        """What is on the disk is what is deployed."""

        async def scenario():
            f, _ = await proven(world)
            before = f.stored
            await world.update(code="2")
            updated = f.stored
            with monkeypatch.context() as patch:
                patch.setattr(State, "put_function", lambda *_: (_ for _ in ()).throw(StateError("disk is full")))
                await fails(world, f)
                assert (f.stored, f.rolled_back) == (updated, "")
                assert f"{f.key} cannot be rolled back: disk is full" in caplog.text
            await fails(world, f, 1)
            assert f.stored == before

        run(scenario())

    def test_wishes_that_can_be_met_no_more(self, world, monkeypatch, caplog):
        """The GPU is gone: the version could not run."""

        async def scenario():
            f, _ = await proven(world)
            await world.update(code="2")
            updated = f.stored
            monkeypatch.setattr(
                world.controller._preparing, "wishes", lambda _: (_ for _ in ()).throw(StateError("no GPU"))
            )
            await fails(world, f)
            assert f.stored == updated
            assert "cannot be rolled back: no GPU" in caplog.text

        run(scenario())

    def test_while_another_update_is_under_way(self, world, monkeypatch):
        """It decides what is deployed, and has tries of its own."""

        async def scenario():
            f, _ = await proven(world)
            before = f.stored
            await world.update(code="2")
            gate, real = asyncio.Event(), world.controller._preparing._run

            async def slow(work, *arguments):
                await gate.wait()
                return await real(work, *arguments)

            monkeypatch.setattr(world.controller._preparing, "_run", slow)
            update = asyncio.ensure_future(world.update(code="3"))
            await world.settle()
            await fails(world, f)
            assert f.stored.previous == before.version
            gate.set()
            await update
            assert (f.stored.previous, f.failures) == (before.version, 0)
            await fails(world, f)
            assert f.stored == before

        run(scenario())

    def test_a_proof_that_cannot_be_kept(self, world, monkeypatch, caplog):
        """The instance serves; the next one that is ready proves it again."""

        async def scenario():
            f, _ = await proven(world)
            await world.update(code="2")
            with monkeypatch.context() as patch:
                patch.setattr(State, "put_function", lambda *_: (_ for _ in ()).throw(StateError("disk is full")))
                new = await world.running(f)
                assert (new.phase, f.stored.proven) == (Phase.READY, False)
            assert "disk is full" in caplog.text
            await world.running(f)
            assert f.stored.proven
            assert world.state.functions()[0].proven

        run(scenario())
