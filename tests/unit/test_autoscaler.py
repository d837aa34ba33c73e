"""The loop: rates in, plans out, actions done; with the real planner, and a fleet that only remembers."""

import asyncio
from dataclasses import replace

import pytest

from infless_core.errors import StateError
from infless_core.model import Configuration, Server
from infless_provider import autoscaler
from infless_provider.autoscaler import Autoscaler
from infless_provider.reconcile import HandOver, Resize
from infless_provider.state import State
from infless_scheduler.autoscale import RateEstimate
from infless_scheduler.planner import plan
from infless_scheduler.problem_file import parse_problem, problem_to_json

ONE = Configuration(batch=8, cpu_cores=1)


@pytest.fixture
def scaler(world):
    """On a server with two cores."""
    server = Server(id="local", cpu_cores=2, memory_bytes=2**30)
    made = Autoscaler(world.controller, server, world.clock, "greedy")
    yield made
    made._solving.shutdown()


def run(scenario):
    """A coroutine as a test."""
    asyncio.run(scenario)


def newer(stored):
    """The same function after an update."""
    return stored.updated(replace(stored.version, digest="newer"))


def arriving(function, rate_rps):
    """As if that many had come for a while."""
    function.estimate = RateEstimate((rate_rps,) * 5, rate_rps)


def test_the_least_is_started(world, scaler):
    """A new function without traffic: one spare."""

    async def scenario():
        f = await world.deploy()
        await scaler._replan()
        assert [(i.configuration, i.reason) for i in f.current()] == [(ONE, "keeps the least of 1")]
        await scaler._replan()
        assert len(f.current()) == 1

    run(scenario())


def test_traffic_is_planned_for(world, scaler):
    """As many instances as the rate needs, within the server."""

    async def scenario():
        f = await world.deploy()
        arriving(f, 200)
        await scaler._replan()
        assert sum(i.configuration.cpu_cores for i in f.current()) == 2
        assert f.planned_rps == f.rate_rps
        await scaler._replan()
        assert all("plan (greedy)" in i.reason for i in f.current())

    run(scenario())


def test_an_idle_function_is_not_planned_again_and_again(world, scaler):
    """Its planned rate is forgotten with its traffic."""

    async def scenario():
        f = await world.deploy()
        arriving(f, 200)
        await scaler._replan()
        f.estimate = RateEstimate()
        await scaler._replan()
        assert f.planned_rps == 0.0

    run(scenario())


def test_ticks_measure_and_ask_for_a_plan(world, scaler):
    """Arrivals become a rate; a rate that nothing can take asks for a plan after a moment."""

    async def scenario():
        f = await world.deploy()
        for _ in range(8):
            f.arrived = 100
            scaler._tick()
            world.clock.advance(1)
        assert f.estimate.rate_rps == 100
        assert f.arrived == 0
        assert scaler._dirty.is_set()

    run(scenario())


def test_a_failed_start_is_tried_again_when_its_time_has_come(world, scaler):
    """Not before."""

    async def scenario():
        f = await world.deploy()
        world.backend.failure = "no"
        await scaler._replan()
        world.backend.failure = None
        await scaler._replan()
        assert f.current() == []
        world.clock.advance(3)
        scaler._dirty.clear()
        scaler._tick()
        assert scaler._dirty.is_set()
        await scaler._replan()
        assert len(f.current()) == 1

    run(scenario())


def test_a_plan_for_an_older_version_is_dropped(world, scaler, monkeypatch):
    """The function was updated while the solver worked; another plan follows."""

    async def scenario():
        f = await world.deploy()
        real = autoscaler.replan

        def slow(*problem, **how):
            f.stored = newer(f.stored)
            return real(*problem, **how)

        monkeypatch.setattr(autoscaler, "replan", slow)
        scaler._dirty.clear()
        await scaler._replan()
        assert (f.current(), scaler._dirty.is_set()) == ([], True)

    run(scenario())


def test_each_plan_remembers_the_one_before(world, scaler, monkeypatch):
    """The planner is handed what it has left behind, at first nothing."""
    given, real = [], autoscaler.replan

    def spy(problem, memory, *more, **how):
        given.append(memory)
        return real(problem, memory, *more, **how)

    async def scenario():
        await world.deploy()
        await scaler._replan()
        first = scaler._memory
        await scaler._replan()
        assert first is not None
        assert given == [None, first]

    monkeypatch.setattr(autoscaler, "replan", spy)
    run(scenario())


def test_the_problem_is_what_is_planned_and_names_idle_functions(world, scaler):
    """An idle function has rate 0 and none of its spares in it, so that the plan is the same."""

    async def scenario():
        busy, idle = await world.deploy("busy"), await world.deploy("idle")
        await world.running(busy)
        await world.running(idle)
        arriving(busy, 50)
        told, planned = await scaler.problem(), scaler._problem(world.controller.functions)
        assert [(f.id, f.rate_rps > 0) for f in told.functions] == [(busy.key, True), (idle.key, False)]
        assert (told.functions[0], told.running) == (planned.functions[0], planned.running)
        assert [f.id for f in planned.functions] == [one.function for one in told.running] == [busy.key]
        assert parse_problem(problem_to_json(told)) == told
        clock = world.clock
        assert plan(told, "greedy", clock=clock) == plan(planned, "greedy", clock=clock)

    run(scenario())


def test_scale_to_zero(world, scaler):
    """After its time without a request; the older version's instances go, too."""

    async def scenario():
        labels = {"com.openfaas.scale.zero": "true", "com.openfaas.scale.zero-duration": "1m"}
        f = await world.deploy(labels=labels)
        await world.running(f)
        f.stored = newer(f.stored)
        await world.running(f, ready=False)
        world.clock.advance(61)
        scaler._tick()
        await scaler._replan()
        assert f.undrained() == []

    run(scenario())


def test_an_action_that_fails_leaves_the_others(world, scaler, monkeypatch, caplog):
    """The next plan starts from what is."""

    async def scenario():
        one = await world.running(await world.deploy(), Configuration(batch=1, cpu_cores=1))
        monkeypatch.setattr(State, "put_instance", lambda *_: (_ for _ in ()).throw(StateError("full")))
        scaler._act(Resize(id=one.id, configuration=ONE), 0)
        scaler._act(HandOver(id="gone", to="nobody"), 0)
        assert caplog.text.count("was not possible") == 2
        assert one.configuration.batch == 1

    run(scenario())


def test_the_loop_survives_a_failing_planner(world, scaler, monkeypatch, caplog):
    """What runs goes on running, and the next plan is made."""

    async def scenario():
        f = await world.deploy()
        results = [ZeroDivisionError(), None]

        async def replan():
            failure = results.pop(0)
            if failure:
                raise failure

        monkeypatch.setattr(scaler, "_replan", replan)
        task = asyncio.ensure_future(scaler.run())
        await world.settle()
        world.controller.on_dirty()
        await world.settle()
        task.cancel()
        assert results == []
        assert "planning failed" in caplog.text
        assert f.key in world.controller.functions

    run(scenario())


def test_who_sleeps_is_not_measured_until_something_comes(world, scaler):
    """There may be thousands of them; the first request counts all the same."""

    async def scenario():
        f = await world.deploy(labels={"com.openfaas.scale.min": "0"})
        scaler._tick()
        before = f.estimate
        scaler._tick()
        assert f.estimate is before
        f.arrived = 5
        scaler._dirty.clear()
        scaler._tick()
        assert (f.estimate.rate_rps > 0, scaler._dirty.is_set()) == (True, True)

    run(scenario())


def test_each_instance_knows_why_it_runs(world, scaler):
    """In numbers, from the newest plan; `infless status` shows it."""

    async def scenario():
        f = await world.deploy()
        arriving(f, 100)
        await scaler._replan()
        world.backend.ready |= set(f.instances)
        await world.look()
        await scaler._replan()
        assert all(" plan (greedy): " in one.reason and " meets 500ms up to " in one.reason for one in f.current())

    run(scenario())


def test_what_cannot_be_served_is_told(world, scaler, caplog):
    """The server is too small: by how much, and why."""

    async def scenario():
        arriving(await world.deploy(), 100_000)
        await scaler._replan()
        assert "f.openfaas-fn: " in caplog.text
        assert "requests/s are unserved: " in caplog.text

    run(scenario())


def test_what_is_no_longer_needed_goes(world, scaler):
    """Two instances for a load that has passed: the least stays."""

    async def scenario():
        f = await world.deploy()
        for _ in range(2):
            await world.running(f, ONE)
        await scaler._replan()
        assert (len(f.serving()), len(f.current())) == (1, 1)

    run(scenario())


def test_an_heir_takes_over_when_it_is_ready(world, scaler):
    """And not before: nobody would serve meanwhile."""

    async def scenario():
        f = await world.deploy()
        old, heir = await world.running(f, ONE), await world.running(f, ONE, ready=False)
        scaler._act(HandOver(id=old.id, to=heir.id), 0)
        await world.look()
        assert f.serving() == [old]
        world.backend.ready.add(heir.id)
        await world.look()
        assert f.serving() == [heir]

    run(scenario())


def test_a_tick_that_fails_is_told_and_the_next_one_comes(world, scaler, monkeypatch, caplog):
    """Rates are measured for ever."""

    async def scenario():
        ticks = []

        def tick():
            ticks.append(1)
            raise RuntimeError("a fault of ours")

        monkeypatch.setattr(scaler, "_tick", tick)
        monkeypatch.setattr(autoscaler, "TICK_S", 0.0)
        task = asyncio.ensure_future(scaler._tick_forever())
        while len(ticks) < 3:
            await asyncio.sleep(0)
        task.cancel()
        assert "measuring rates failed; what runs goes on running" in caplog.text

    run(scenario())
