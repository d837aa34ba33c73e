"""What is cleared up, when, and what never is."""

import asyncio

import pytest

from infless_core.errors import Infeasible
from infless_provider import housekeeping


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    """At the next turn of the loop."""
    monkeypatch.setattr(housekeeping, "SOON_S", 0.0)


def run(scenario):
    """On a loop of its own."""
    asyncio.run(asyncio.wait_for(scenario, 10))


async def until_clear(world):
    """It has looked."""
    house = world.controller._housekeeping
    while house._timer is not None or house._work is not None:
        await asyncio.sleep(0.001)


def copies(world):
    """Versions that have copies of secrets."""
    return {path.name for path in (world.settings.secrets_dir / "mounted").glob("*/*")}


def artifacts(world):
    """How many bundles are kept."""
    return len(list((world.settings.state_dir / "bundles").glob("*")))


def test_an_old_version_leaves_nothing(world):
    """Once the new one has been ready and the old one's instances have ended; the new one keeps what is its own."""

    async def scenario():
        world.secret("key")
        function = await world.deploy(secrets=["key"])
        old = await world.running(function)
        await world.update(code="2", secrets=["key"])
        await until_clear(world)
        assert (len(copies(world)), artifacts(world)) == (2, 2)  # it may be gone back to
        await world.running(function)
        await world.ended(old)
        await until_clear(world)
        assert (copies(world), artifacts(world)) == ({function.version}, 1)

    run(scenario())


def test_a_refused_deployment_leaves_nothing(world):
    """Its secrets were there to be timed with."""

    async def scenario():
        world.secret("key")
        with pytest.raises(Infeasible):
            await world.deploy(secrets=["key"], labels={"com.infless.latency.target": "1ms"})
        await until_clear(world)
        assert (copies(world), artifacts(world)) == (set(), 0)

    run(scenario())


def test_nothing_is_cleared_up_under_a_deployment(world):
    """What it has fetched is in no row yet; it is looked at when the deployment has ended."""

    async def scenario():
        house = world.controller._housekeeping
        async with house.deployment():
            kept = world.settings.state_dir / "bundles" / "fetched"
            kept.mkdir(parents=True)
            house.soon()
            await asyncio.sleep(0.01)
            assert kept.is_dir()
        await until_clear(world)
        assert not kept.exists()

    run(scenario())


def test_a_removed_functions_logs_go(world):
    """With its last instance: it may write while it drains. Those of others stay."""

    async def scenario():
        function = await world.deploy()
        instance = await world.running(function)
        logs = [world.settings.logs_dir / key for key in ("f.openfaas-fn", "g.openfaas-fn")]
        await world.deploy("g")
        for folder in logs:
            folder.mkdir(parents=True)
        await world.controller.remove("f")
        await until_clear(world)
        assert logs[0].is_dir()
        await world.ended(instance)
        await until_clear(world)
        assert [folder.is_dir() for folder in logs] == [False, True]

    run(scenario())


def test_nothing_is_cleared_up_beside_a_row_that_cannot_be_read(world):
    """Nobody knows what it needs."""

    async def scenario():
        await world.deploy()
        world.state._db.execute("UPDATE function SET spec = '{'")
        await world.restart()
        world.controller._housekeeping.soon()
        await asyncio.sleep(0.01)
        assert artifacts(world) == 1

    run(scenario())


def test_a_copy_that_missed_an_update_gets_it(world):
    """A crash may come between the value and its copies."""

    async def scenario():
        world.secret("key", b"old")
        function = await world.deploy(secrets=["key"])
        (world.settings.secrets_dir / "values" / "openfaas-fn" / "key").write_bytes(b"new")
        await world.controller._housekeeping.now()
        assert (world.secrets.folder_of("f.openfaas-fn", function.version) / "key").read_bytes() == b"new"

    run(scenario())
