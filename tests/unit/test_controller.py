"""Deploy, update, remove, scale and restore, on a backend that only remembers."""

import asyncio
from dataclasses import replace

import pytest

from infless_core.errors import BackendError, Conflict, Infeasible, InvalidInput, NotFound, StateError
from infless_core.lifecycle import Phase
from infless_core.model import Configuration
from infless_provider.state import State


def run(scenario):
    """A coroutine as a test."""
    return asyncio.run(scenario)


def full_disk(monkeypatch, call):
    """Every write of one kind fails."""

    def fails(*_):
        raise StateError("the state could not be written: disk is full; nothing was changed")

    monkeypatch.setattr(State, call, fails)


def test_a_deployed_function_is_listed_and_kept(world):
    """Wanted once, not there yet; the planner is told; a restart would find it."""

    async def scenario():
        await world.deploy()
        (status,) = await world.controller.listing()
        assert (status["name"], status["replicas"], status["availableReplicas"]) == ("f", 1, 0)
        assert world.dirty == 1
        assert [stored.spec.name for stored in world.state.functions()] == ["f"]

    run(scenario())


def test_what_cannot_be_deployed_twice_or_updated_before(world):
    """409 and 404, with the name."""

    async def scenario():
        await world.deploy()
        with pytest.raises(Conflict, match="function 'f' exists already; update it with PUT"):
            await world.deploy()
        with pytest.raises(NotFound, match="function 'g' does not exist"):
            await world.controller.update(world.bundle("g"))
        with pytest.raises(NotFound):
            await world.controller.remove("g")

    run(scenario())


def test_one_deployment_of_a_function_at_a_time(world):
    """The second one is told; a removal too."""

    async def scenario():
        await world.deploy()
        updates = [world.controller.update(world.bundle()) for _ in range(2)]
        removal = world.controller.remove("f")
        done = await asyncio.gather(*updates, removal, return_exceptions=True)
        assert [type(one) for one in done] == [type(None), Conflict, Conflict]

    run(scenario())


@pytest.mark.parametrize(
    ("fields", "error", "sentence"),
    [
        (
            {"labels": {"com.infless.latency.target": "5ms"}},
            Infeasible,
            r"5ms cannot be met by 'f': .* takes 10ms; .* 10.1ms",
        ),
        ({"labels": {"com.infless.gpu": "require"}}, Infeasible, "requires a GPU, and no server here has one"),
        ({"labels": {"com.infless.gpu": "x"}}, InvalidInput, "write never, allow or require"),
        ({"secrets": ["key"]}, InvalidInput, "secret 'key' does not exist"),
        ({"image": "other"}, InvalidInput, "no bundle for image 'other'"),
    ],
)
def test_a_refused_deployment_leaves_nothing(world, fields, error, sentence):
    """No function, no row."""

    async def scenario():
        with pytest.raises(error, match=sentence):
            await world.deploy(**fields)
        assert world.controller.functions == {}
        assert world.state.functions() == []

    run(scenario())


def test_the_nearest_feasible_target_is_feasible(world):
    """Who follows the advice is served."""

    async def scenario():
        await world.deploy(labels={"com.infless.latency.target": "10.1ms"})

    run(scenario())


def test_a_refused_update_leaves_the_old_version(world):
    """Also when its handler cannot be timed."""

    async def scenario():
        before = (await world.deploy()).stored
        world.profiles.failure = BackendError("handler.py cannot be imported")
        with pytest.raises(BackendError):
            await world.controller.update(world.bundle(code="broken"))
        assert world.controller.find("f").stored == before

    run(scenario())


@pytest.mark.parametrize("act", ["deploy", "update", "remove", "scale"])
def test_a_full_disk_changes_nothing(world, monkeypatch, act):
    """Every call that has to be kept is refused whole; what is deployed goes on."""

    async def scenario():
        before = (await world.deploy()).stored
        full_disk(monkeypatch, "delete_function" if act == "remove" else "put_function")
        calls = {
            "deploy": lambda: world.deploy("g"),
            "update": lambda: world.controller.update({**world.bundle(), "labels": {"a": "b"}}),
            "remove": lambda: world.controller.remove("f"),
            "scale": lambda: world.controller.scale("f", 3),
        }
        with pytest.raises(StateError, match="nothing was changed"):
            await calls[act]()
        assert [function.stored for function in world.controller.functions.values()] == [before]

    run(scenario())


def test_an_update_goes_over_when_all_new_instances_are_ready(world):
    """Until then both versions serve: one new instance could not carry what two old ones did."""

    async def scenario():
        f = await world.deploy()
        old = [await world.running(f), await world.running(f)]
        await world.controller.update(world.bundle(code="2"))
        (first,) = f.current()
        await world.running(f)
        assert [one.phase for one in old] == [Phase.READY] * 2
        world.backend.ready.add(first.id)
        await world.look()
        assert [one.phase for one in old] == [Phase.DRAINING] * 2
        assert len(f.serving()) == 2

    run(scenario())


def test_an_update_that_cannot_start_leaves_the_old_version_serving(world):
    """It is tried again, later each time, and the reason is kept."""

    async def scenario():
        f = await world.deploy()
        old = await world.running(f)
        world.backend.failure = "no more processes"
        await world.controller.update(world.bundle(code="2"))
        assert f.serving() == [old]
        assert (f.last_failure, f.retry_at_s) == ("no more processes", 1002.0)

    run(scenario())


def test_an_update_of_labels_alone_keeps_the_instances(world):
    """They are told the new target and batch; no process starts."""

    async def scenario():
        f = await world.deploy()
        one = await world.running(f)
        labels = {"com.infless.latency.target": "50ms", "com.infless.batch.max": "1"}
        await world.controller.update({**world.bundle(), "labels": labels})
        await world.look()
        assert world.backend.told == [(one.id, {"batch_max": 1, "latency_target_s": 0.05})]
        assert f.current() == [one]
        assert world.state.instances()[0].configuration.batch == 1

    run(scenario())


def test_padding_reaches_the_instances_and_its_change_makes_a_new_version(world):
    """Beside the function's own variables: another padding is another speed, so the profile is another one, too."""

    async def scenario():
        own = {"key": "x"}
        function = await world.deploy(envVars=own)
        await world.running(function)
        plain = function.stored.digest
        await world.controller.update({**world.bundle(), "envVars": own, "labels": {"com.infless.batch.pad": "16"}})
        assert function.stored.digest != plain
        assert [launch.environment for launch in world.backend.launches] == [own, {**own, "batch_pad": "16"}]

    run(scenario())


def test_an_update_keeps_age_and_scale(world):
    """`createdAt` is the first deployment's, a number set by hand stays."""

    async def scenario():
        await world.deploy()
        await world.controller.scale("f", 3)
        world.clock.advance(60)
        await world.controller.update(world.bundle(code="2"))
        stored = world.controller.find("f").stored
        assert (stored.created_at_s, stored.replicas) == (1000.0, 3)

    run(scenario())


def test_scaling_by_hand(world):
    """Within `com.openfaas.scale.max`; zero counts at once."""

    async def scenario():
        f = await world.deploy(labels={"com.openfaas.scale.max": "2"})
        await world.controller.scale("f.openfaas-fn", 2)
        assert f.least(world.clock.now_s()) == 2
        with pytest.raises(InvalidInput, match=r"replicas 3 is above com.openfaas.scale.max, 2"):
            await world.controller.scale("f", 3)
        await world.controller.scale("f", 0)
        assert f.least(world.clock.now_s()) == 0

    run(scenario())


def test_removing_drains_and_forgets(world):
    """Who waits for an instance is let go."""

    async def scenario():
        f = await world.deploy()
        one = await world.running(f)
        waiter = asyncio.get_running_loop().create_future()
        f.waiters.append(waiter)
        await world.controller.remove("f")
        assert (one.phase, waiter.done()) == (Phase.DRAINING, True)
        await world.ended(one)
        assert (world.state.functions(), world.state.instances(), world.fleet.instances) == ([], [], {})

    run(scenario())


def test_describe_and_overview(world):
    """Usage on wish; every instance with its reason and window."""

    async def scenario():
        f = await world.deploy()
        one = await world.running(f)
        assert (await world.controller.describe("f", usage=True))["usage"] == {"cpu": 5.0, "totalMemoryBytes": 7.0}
        assert "usage" not in await world.controller.describe("f", usage=False)
        overview = await world.controller.overview()
        assert (overview["instances"][0]["id"], overview["instances"][0]["why"]) == (one.id, "test")
        assert overview["instances"][0]["rate_up_rps"] > 0
        assert [event["event"] for event in overview["events"]] == ["start", "ready"]

    run(scenario())


def test_a_restart_finds_everything_again(world):
    """Instances that run are taken over, told their configuration again, and nothing else is started."""

    async def scenario():
        one = await world.running(await world.deploy())
        controller = world.controller = world.new_controller()
        await controller.restore()
        await world.look(3)
        f = controller.find("f")
        assert [(i.id, i.phase, i.reason) for i in f.serving()] == [(one.id, Phase.READY, "found after a restart")]
        assert [host for host, _ in world.backend.told] == [one.id]
        assert world.backend.swept == {one.id}
        assert len(world.backend.launches) == 1

    run(scenario())


def test_a_restart_clears_up_what_ended_meanwhile(world):
    """Rows of dead instances, and instances of functions that are gone."""

    async def scenario():
        f, g = await world.deploy("f"), await world.deploy("g")
        dead, orphan = await world.running(f), await world.running(g)
        world.backend.running.pop(dead.id)
        world.state.delete_function(g.key)
        world.controller = world.new_controller()
        await world.controller.restore()
        assert world.state.instances() == []
        assert set(world.backend.forgotten) == {dead.id, orphan.id}
        assert world.backend.running == {}

    run(scenario())


def test_a_restart_goes_round_a_function_that_cannot_be_restored(world, caplog):
    """The others are served, it stays in the state."""

    async def scenario():
        f = await world.deploy("f")
        await world.deploy("g")
        bad = replace(f.stored, spec=replace(f.stored.spec, labels={"com.infless.gpu": "require"}))
        world.state.put_function(bad)
        world.controller = world.new_controller()
        await world.controller.restore()
        assert list(world.controller.functions) == ["g.openfaas-fn"]
        assert len(world.state.functions()) == 2
        assert "f.openfaas-fn stays in the state and is not served" in caplog.text

    run(scenario())


@pytest.mark.parametrize("lost", ["failure", "nothing"])
def test_a_lost_profile_keeps_nobody_from_being_served(world, caplog, lost):
    """Its speed is learned instead."""

    async def scenario():
        await world.deploy()
        world.profiles.table = None
        world.profiles.kept_failure = StateError("damaged") if lost == "failure" else None
        world.controller = world.new_controller()
        await world.controller.restore()
        assert world.controller.find("f").profile == ()
        assert ("damaged" if lost == "failure" else "has lost its profile") in caplog.text

    run(scenario())


def test_scaled_to_zero_stays_so_over_a_restart(world):
    """Nobody has asked for it since."""

    async def scenario():
        await world.deploy()
        await world.controller.scale("f", 0)
        world.controller = world.new_controller()
        await world.controller.restore()
        assert world.controller.find("f").least(world.clock.now_s()) == 0

    run(scenario())


def test_unused_bundles_go_at_a_restart(world):
    """But not while an instance of an older version still runs on one."""

    async def scenario():
        f = await world.deploy()
        old = await world.running(f)
        await world.controller.update(world.bundle(code="2"))
        kept = world.settings.bundles_kept
        for copies in (2, 1):
            world.controller = world.new_controller()
            await world.controller.restore()
            assert len(list(kept.iterdir())) == copies
            world.backend.running.pop(old.id, None)

    run(scenario())


def test_functions_without_example_are_served(world):
    """Nothing to check a target against."""

    async def scenario():
        world.profiles.table = ()
        f = await world.deploy(labels={"com.infless.latency.target": "1ms"})
        assert f.spare() == Configuration(batch=32, cpu_cores=1)

    run(scenario())
