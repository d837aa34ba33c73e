"""The loop that keeps profiles current, on sources that say what the test wants."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from batch_counts import Batches, prior
from fakes import World

from infless_core.errors import BackendError, StateError
from infless_core.model import Configuration
from infless_profiler.observe import Level, Prior
from infless_profiler.readings import Counted
from infless_profiler.scrape import Target
from infless_provider import feed as feed_module
from infless_provider.async_books import AsyncStats
from infless_provider.feed import BLIND_TURNS, KEEP_S, Feed, in_thread, moved
from infless_provider.metrics import Metrics, sample

KEY = "f.openfaas-fn"
GRID = (prior(1, 0.01), prior(8, 0.04), prior(8, 0.025, cores=2))
B8 = Configuration(batch=8, cpu_cores=1)
NO_QUEUE = AsyncStats(functions=(), in_flight=0, callbacks_in_flight=0)


class Told:
    """A source that says what it is given, or fails."""

    def __init__(self, name: str = "instances") -> None:
        self.name, self.title = name, name
        self.answer: list[Counted] = []
        self.fault: Exception | None = None
        self.wait: threading.Event | None = None
        self.asked: list[list[str]] = []

    def read(self, targets: Sequence[Target]) -> list[Counted]:
        """As the test wants."""
        self.asked.append([target.instance for target in targets])
        if self.wait is not None:
            self.wait.wait(5)
        if self.fault is not None:
            raise self.fault
        return list(self.answer)


class Database:
    """Priors and observations in memory."""

    def __init__(self) -> None:
        self.grid: tuple[Prior, ...] = GRID
        self.levels: dict[str, dict[Configuration, Level]] = {}
        self.writes, self.reads = 0, 0
        self.fault: StateError | None = None

    def prior(self, key: str, batch_max: int) -> tuple[Prior, ...]:
        """As measured."""
        self.reads += 1
        self._fail()
        return tuple(one for one in self.grid if one.configuration.batch <= batch_max)

    def observed(self, key: str) -> dict[Configuration, Level]:
        """As kept."""
        self._fail()
        return dict(self.levels.get(key, {}))

    def observe(self, key: str, levels: dict[Configuration, Level]) -> None:
        """Keep."""
        self._fail()
        self.writes += 1
        self.levels[key] = dict(levels)

    def _fail(self) -> None:
        if self.fault is not None:
            raise self.fault


class Bench:
    """A feed on a world, with a function that has one ready instance."""

    def __init__(self, world: World, names: Sequence[str]) -> None:
        self.world, self.metrics, self.database = world, Metrics(), Database()
        self.sources = {name: Told(name) for name in names}
        self.feed = Feed(
            world.controller,
            world.views.targets,
            self.database,
            list(self.sources.values()),
            self.metrics,
            world.clock,  # type: ignore[arg-type]
        )
        self.batches: dict[int, Batches] = {}

    async def begin(self) -> Bench:
        """Deploy and start."""
        self.function = await self.world.deploy()
        self.instance = await self.world.running(self.function)
        await self.turn()
        return self

    def count(self, executions_s: list[float], batch: int = 8) -> None:
        """Batches run; every source sees them."""
        one = self.batches.setdefault(batch, Batches(batch, self.instance.id, KEY))
        one.ran(executions_s)
        for source in self.sources.values():
            source.answer = [batches.ran([]) for batches in self.batches.values()]

    async def turn(self, count: int = 1) -> None:
        """Five seconds later."""
        for _ in range(count):
            self.world.clock.advance(5.0)
            await self.feed.turn()

    async def live(self, exec_s: float, turns: int, batch: int = 8) -> None:
        """Twenty batches before each reading."""
        for _ in range(turns):
            self.count([exec_s] * 20, batch)
            await self.turn()

    def planned_s(self, given: Configuration = B8) -> float:
        """What the planner believes."""
        return next(point.exec_s for point in self.function.profile if point.configuration == given)

    def value(self, name: str, **labels: str) -> float | None:
        """A sample of the provider's metrics."""
        return self.metrics.registry.get_sample_value(name, labels)


def check(world: World, scenario: Callable[[Bench], Awaitable[None]], *names: str) -> None:
    """Run it; sources are asked in the order of their names here."""

    async def run() -> None:
        await scenario(await Bench(world, names or ("instances",)).begin())

    asyncio.run(run())


def test_a_wrong_profile_heals(world: World) -> None:
    """The planner is told, metrics and an event say by how much."""

    async def scenario(bench: Bench) -> None:
        dirty = world.dirty
        await bench.live(0.12, 4)
        assert bench.planned_s() == pytest.approx(0.12 * 1.1, rel=0.1)
        assert world.dirty > dirty
        factor = bench.value("infless_profile_factor", function_name=KEY, batch="8", cpu_cores="1", gpu_percent="0")
        assert factor == pytest.approx(3.0, rel=0.1)
        assert bench.value("infless_profile_drift_total", function_name=KEY) == 1
        assert bench.value("infless_profile_source_up", source="instances") == 1
        (event,) = [one for one in (await world.views.overview())["events"] if one["event"] == "drift"]
        assert (event["function"], event["configuration"]["batch"]) == (KEY, 8)
        assert event["why"].startswith("executions take 3.00 times as long as expected, for ")

    check(world, scenario)


def test_noise_does_not_bother_the_planner(world: World) -> None:
    """Less than three percent is no reason to plan anew."""

    async def scenario(bench: Bench) -> None:
        await bench.live(0.0405, 3)
        profile, dirty = bench.function.profile, world.dirty
        await bench.live(0.041, 10)
        assert bench.function.profile is profile
        assert world.dirty == dirty

    check(world, scenario)


def test_corrections_do_not_add_up(world: World) -> None:
    """They start from what was measured, however often they are made."""

    async def scenario(bench: Bench) -> None:
        await bench.live(0.08, 30)
        assert bench.planned_s() == pytest.approx(0.08 * 1.1, rel=0.1)

    check(world, scenario)


def test_an_update_starts_anew(world: World) -> None:
    """What the old code took says nothing of the new, and old instances are not counted."""

    async def scenario(bench: Bench) -> None:
        await bench.live(0.12, 4)
        await world.controller.update(world.bundle(code="2"))
        await bench.live(0.12, 3)
        assert bench.planned_s() == pytest.approx(0.044)
        assert bench.feed.observed.levels(KEY) == {}
        assert bench.value("infless_profile_drift_total", function_name=KEY) == 1

    check(world, scenario)


def test_a_label_alone_forgets_nothing(world: World) -> None:
    """Another largest batch is another set of points, with what was learned."""

    async def scenario(bench: Bench) -> None:
        await bench.live(0.12, 4)
        bench.database.grid = (*GRID, prior(32, 0.1))
        await world.controller.update({**world.bundle(), "labels": {"com.infless.batch.max": "8"}})
        await bench.live(0.12, 1)
        assert {point.configuration.batch for point in bench.function.profile} == {1, 8}
        assert bench.planned_s() == pytest.approx(0.12 * 1.1, rel=0.1)

    check(world, scenario)


def test_a_removed_function_is_forgotten(world: World) -> None:
    """Its gauges go as well."""

    async def scenario(bench: Bench) -> None:
        await bench.live(0.12, 4)
        await world.controller.remove("f")
        await bench.turn()
        assert (bench.feed.observed.priors, bench.feed.observed.regimes) == ({}, {})
        assert b'infless_profile_factor{batch="8"' not in bench.metrics.text(sample([], NO_QUEUE, 0, 0.0))

    check(world, scenario)


def test_only_instances_of_ours_count(world: World) -> None:
    """A Prometheus may scrape several providers, and say a wrong function."""

    async def scenario(bench: Bench) -> None:
        for instance, function in (("stranger", KEY), (bench.instance.id, "g.openfaas-fn")):
            bench.sources["instances"].answer = [Batches(8, instance, function).ran([9.0] * 99)]
            await bench.turn()
        assert bench.feed.observed.levels(KEY) == {}
        assert bench.sources["instances"].asked[-1] == [bench.instance.id]

    check(world, scenario)


def test_a_share_of_a_gpu_that_is_the_functions_own(world: World) -> None:
    """It is a part of what was timed, and no configuration of ours."""

    async def scenario(bench: Bench) -> None:
        bench.count([0.12] * 20)
        (one,) = bench.sources["instances"].answer
        bench.sources["instances"].answer = [replace(one, series=replace(one.series, gpu_percent=50))]
        await bench.turn()
        assert list(bench.feed.observed.levels(KEY)) == [B8]

    check(world, scenario)


def test_a_function_that_cannot_be_timed_is_left_alone(world: World) -> None:
    """It has no profile that could be wrong."""

    async def scenario(bench: Bench) -> None:
        bench.database.grid = ()
        await world.controller.update(world.bundle(code="2"))
        bench.function.profile = ()
        await bench.live(0.12, 3)
        assert bench.function.profile == ()

    check(world, scenario)


class TestSources:
    """Prometheus first, then the instances."""

    def test_who_is_asked(self, world: World, caplog: pytest.LogCaptureFixture) -> None:
        """The second only where the first fails; each change is told once, and no batch counts twice."""

        async def scenario(bench: Bench) -> None:
            first, second = bench.sources.values()
            await bench.live(0.08, 3)
            assert second.asked == []
            first.fault = BackendError("Prometheus cannot be reached")
            await bench.live(0.08, 5)
            assert len(second.asked) == 5
            assert bench.value("infless_profile_source_up", source="prometheus") == 0
            assert bench.value("infless_profile_source_up", source="instances") == 1
            first.fault = None
            await bench.live(0.08, 3)
            assert len(second.asked) == 5
            # The first reading of each is only what its next one is compared with.
            assert bench.feed.observed.levels(KEY)[B8].batches == 20 * (3 + 4 + 2)
            assert [record.message for record in caplog.records if record.name == "infless.feed"] == [
                "Prometheus cannot be reached; the instances are asked themselves",
                "prometheus answers again",
            ]

        caplog.set_level(logging.INFO)
        check(world, scenario, "prometheus", "instances")

    def test_when_nobody_answers_everything_stays(self, world: World, caplog: pytest.LogCaptureFixture) -> None:
        """The last good profile; said once."""

        async def scenario(bench: Bench) -> None:
            await bench.live(0.08, 4)
            profile = bench.function.profile
            for source in bench.sources.values():
                source.fault = BackendError(f"{source.name} is gone")
            await bench.live(0.5, 5)
            assert bench.function.profile is profile
            told = [record.message for record in caplog.records if record.name == "infless.feed"]
            assert told == [
                "prometheus is gone; the instances are asked themselves",
                "instances is gone; profiles stay as they are",
            ]

        caplog.set_level(logging.INFO)
        check(world, scenario, "prometheus", "instances")

    def test_one_that_does_not_scrape_us_is_noticed(self, world: World, caplog: pytest.LogCaptureFixture) -> None:
        """It answers, and knows nothing of batches that did run."""

        async def scenario(bench: Bench) -> None:
            first, _ = bench.sources.values()
            for _ in range(BLIND_TURNS + 3):
                bench.count([0.08] * 20)
                first.answer = []
                await bench.turn()
            assert bench.feed.observed.levels(KEY)[B8].exec_s == pytest.approx(0.08)
            (told,) = [record.message for record in caplog.records if record.name == "infless.feed"]
            assert told.startswith("prometheus has no infless_batch_exec_seconds of the running instances")

        check(world, scenario, "prometheus", "instances")

    def test_silence_is_not_blindness(self, world: World) -> None:
        """Nobody sent a request, so there is nothing to know."""

        async def scenario(bench: Bench) -> None:
            await bench.turn(BLIND_TURNS + 3)
            assert bench.value("infless_profile_source_up", source="prometheus") == 1

        check(world, scenario, "prometheus", "instances")

    def test_one_that_never_answers_is_not_waited_for(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nor asked again while it is busy; the event loop goes on meanwhile."""
        monkeypatch.setattr(feed_module, "READ_MAX_S", 0.05)

        async def scenario(bench: Bench) -> None:
            first, second = bench.sources.values()
            first.wait = threading.Event()
            asked = len(first.asked)
            await bench.live(0.08, 4)
            assert (len(first.asked), len(second.asked)) == (asked + 1, 4)
            assert bench.feed.observed.levels(KEY)[B8].exec_s == pytest.approx(0.08)
            first.wait.set()

        check(world, scenario, "prometheus", "instances")

    def test_a_librarys_own_error_is_one_of_the_source(self, world: World) -> None:
        """Whatever it is."""

        async def scenario(bench: Bench) -> None:
            bench.sources["prometheus"].fault = ZeroDivisionError("oops")
            await bench.live(0.08, 2)
            assert bench.value("infless_profile_source_up", source="prometheus") == 0
            assert bench.feed.observed.levels(KEY)[B8].exec_s == pytest.approx(0.08)

        check(world, scenario, "prometheus", "instances")

    def test_damaged_series_are_told_once(self, world: World, caplog: pytest.LogCaptureFixture) -> None:
        """With one of them as an example."""

        async def scenario(bench: Bench) -> None:
            for _ in range(3):
                bench.count([0.08] * 20)
                (one,) = bench.sources["instances"].answer
                bench.sources["instances"].answer = [
                    Counted(series=one.series, buckets=(), count=1.0, total_s=float("nan"))
                ]
                await bench.turn()
            told = [record.message for record in caplog.records if record.name == "infless.feed"]
            assert told == [
                f"1 histogram(s) cannot be used, for example {bench.instance.id}, batch 8: a value that is negative or no number"
            ]

        check(world, scenario)


class TestDatabase:
    """What a restart knows."""

    def test_levels_are_kept(self, world: World) -> None:
        """When they have moved, and now and then; not at every reading."""

        async def scenario(bench: Bench) -> None:
            await bench.live(0.08, 10)
            digest = bench.function.stored.version.digest
            assert bench.database.writes == 1
            assert bench.database.levels[digest][B8].exec_s == pytest.approx(0.08)
            await bench.live(0.08, int(KEEP_S / 5))
            assert bench.database.writes == 2

        check(world, scenario)

    def test_a_restarted_provider_starts_with_them(self, world: World) -> None:
        """Before anything has run."""

        async def scenario(bench: Bench) -> None:
            bench.database.levels[bench.function.stored.version.digest] = {B8: Level(exec_s=0.12, batches=900.0)}
            again = Bench(world, ["instances"])
            again.database.levels, again.function = bench.database.levels, bench.function
            await again.turn()
            assert again.planned_s() == pytest.approx(0.12 * 1.1, rel=0.1)

        check(world, scenario)

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_a_damaged_one_stops_nothing(self, world: World, caplog: pytest.LogCaptureFixture, when: str) -> None:
        """Before anything is known the profile stays; afterwards it is corrected, and a restart will not know."""

        async def scenario(bench: Bench) -> None:
            bench.database.fault = StateError("the profile database x cannot be used: damaged")
            if when == "before":
                await world.controller.update(world.bundle(code="2"))
                bench.instance.version = bench.function.version
            await bench.live(0.12, 4)
            expected_s = 0.044 if when == "after" else 0.04
            assert (bench.planned_s() > 2 * expected_s) == (when == "after")
            (told,) = [record.message for record in caplog.records if record.name == "infless.feed"]
            assert "damaged" in told
            bench.database.fault = None
            await bench.live(0.12, 3)
            assert bench.database.writes == 1
            assert bench.planned_s() == pytest.approx(0.12 * 1.1, rel=0.1)

        check(world, scenario)


def test_the_loop_survives_its_own_faults(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A turn that raises is told, and the next one comes."""
    monkeypatch.setattr(feed_module, "EVERY_S", 0.0)

    async def scenario(bench: Bench) -> None:
        turns: list[int] = []

        async def turn() -> None:
            turns.append(1)
            raise RuntimeError("a fault of ours")

        monkeypatch.setattr(bench.feed, "turn", turn)
        task = asyncio.ensure_future(bench.feed.run())
        while len(turns) < 3:
            await asyncio.sleep(0)
        task.cancel()
        assert "keeping profiles current failed; they stay as they are" in caplog.text

    check(world, scenario)


def test_prometheus_is_told_where_instances_are(world: World) -> None:
    """Ready ones, with the labels that the feed looks for."""

    async def scenario(bench: Bench) -> None:
        await world.running(bench.function, ready=False)
        found: list[dict[str, Any]] = await world.views.discovery()
        address = bench.instance.address
        assert found == [
            {
                "targets": [f"{address.host}:{address.metrics_port}"],
                "labels": {"function_name": KEY, "infless_instance": bench.instance.id},
            }
        ]

    check(world, scenario)


def test_what_counts_as_moved() -> None:
    """More than three percent at any point, or other points."""
    old = tuple(one.planned() for one in GRID)
    assert not moved(old, tuple(one.planned(1.029) for one in GRID))
    assert moved(old, (*old[:2], GRID[2].planned(0.96)))
    assert moved(old, old[:2])
    assert not moved(old, ())


def test_a_thread_that_is_not_waited_for_tells_nobody() -> None:
    """Its loop has ended, or nobody looks at its error."""

    async def scenario() -> None:
        over = threading.Event()
        future = in_thread(lambda: over.wait(5))
        future.cancel()
        over.set()
        with pytest.raises(StateError):
            await in_thread(lambda: (_ for _ in ()).throw(StateError("x")).send(None))

    asyncio.run(scenario())
