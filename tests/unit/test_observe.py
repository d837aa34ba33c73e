"""Execution times from histograms: levels, resets, drifts, margins, and what was not seen."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from batch_counts import Batches, prior

from infless_core.model import Configuration
from infless_profiler.observe import AGE_S, Drift, Level, Observed
from infless_profiler.readings import METRIC, Counted, gathered

B8 = Configuration(batch=8, cpu_cores=1)
GRID = (prior(1, 0.004), prior(2, 0.005), prior(4, 0.008), prior(8, 0.012))


def noisy(rng: random.Random, mean_s: float, share: float, count: int) -> list[float]:
    """Log-normal executions."""
    return [mean_s * math.exp(rng.gauss(-share * share / 2, share)) for _ in range(count)]


class Life:
    """Readings every five seconds."""

    def __init__(self, *priors: object) -> None:
        self.seen = Observed().expecting("f", priors or GRID).after(0.0, [])  # type: ignore[arg-type]
        self.now_s = 0.0
        self.drifts: list[Drift] = []

    def read(self, *counted: Counted) -> Life:
        """One reading."""
        self.now_s += 5.0
        self.seen = self.seen.after(self.now_s, counted)
        self.drifts += self.seen.drifts
        return self

    def level_s(self, configuration: Configuration = B8) -> float:
        """The level of a configuration."""
        return self.seen.levels("f")[configuration].exec_s

    def planned_s(self) -> dict[int, float]:
        """The corrected profile, by batch."""
        return {point.configuration.batch: point.exec_s for point in self.seen.correct("f")}


def test_without_batches_the_profile_is_what_was_measured() -> None:
    """Nothing is invented."""
    assert Life().planned_s() == pytest.approx({1: 0.0044, 2: 0.0055, 4: 0.0088, 8: 0.0132})
    assert Observed().correct("f") == ()


def test_a_first_reading_is_only_what_later_ones_are_compared_with() -> None:
    """An instance that has run for days says nothing of today."""
    batches = Batches()
    seen = Observed().expecting("f", GRID).after(0.0, [batches.ran([9.0] * 1000)])
    assert seen.levels("f") == {}
    assert seen.after(5.0, [batches.ran([0.02] * 10)]).levels("f")[B8].exec_s == pytest.approx(0.02)


def test_an_instance_that_came_later_counts_from_its_start() -> None:
    """Its first batches are the news."""
    assert Life().read(Batches().ran([0.02] * 10)).level_s() == pytest.approx(0.02)


@pytest.mark.parametrize("share", [0.03, 0.1])
def test_two_hundred_batches_give_the_time_within_five_percent(share: float) -> None:
    """With ten percent of noise, over 40 seeds; a profile three times too slow does not matter."""
    for seed in range(40):
        rng, batches, life = random.Random(seed), Batches(), Life(prior(8, 0.06))
        for _ in range(10):
            life.read(batches.ran(noisy(rng, 0.02, share, 20)))
        assert life.seen.factors("f")[B8] * 0.06 == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("factor", [3.0, 1 / 3])
def test_a_profile_wrong_by_three_heals_within_two_readings(factor: float) -> None:
    """And after three it is a drift."""
    batches, life = Batches(), Life()
    for _ in range(2):
        life.read(batches.ran([0.012 * factor] * 20))
    assert life.seen.factors("f")[B8] == pytest.approx(factor, rel=0.05)
    life.read(batches.ran([0.012 * factor] * 20))
    assert [(drift.configuration, round(drift.factor / factor, 6)) for drift in life.drifts] == [(B8, 1.0)]
    for _ in range(20):
        life.read(batches.ran([0.012 * factor] * 20))
    assert len(life.drifts) == 1


def test_a_few_batches_move_a_time_a_little() -> None:
    """One slow batch is no news yet."""
    life = Life().read(Batches().ran([0.12]))
    assert 1 < life.seen.factors("f")[B8] < 2.5


def test_a_stall_moves_nothing() -> None:
    """Not among its window's batches, nor as a window of its own."""
    batches, life = Batches(), Life()
    for _ in range(5):
        life.read(batches.ran([0.012] * 20))
    before_s = life.level_s()
    life.read(batches.ran([0.012] * 19 + [5.0])).read(batches.ran([5.0] * 5))
    assert life.level_s() == pytest.approx(before_s, rel=0.01)
    assert life.drifts == []


def test_a_stall_in_the_only_window_is_not_its_mean() -> None:
    """It counts as the slowest tenth of the others does, to the next bound."""
    assert Life().read(Batches().ran([0.012] * 19 + [5.0])).level_s() == pytest.approx(0.015)


def test_a_busy_moment_does_not_outvote_the_minutes_around_it() -> None:
    """A hundred batches of a window count."""
    batches, life = Batches(), Life()
    for count in (100, 5000, 100):
        life.read(batches.ran([0.0128 if count > 100 else 0.012] * count))
    assert life.level_s() == pytest.approx(0.012)


def test_a_changed_regime_is_followed_and_told() -> None:
    """Within three readings, although an hour of the old one was seen."""
    rng, batches, life = random.Random(3), Batches(), Life()
    for _ in range(60):
        life.read(batches.ran(noisy(rng, 0.012, 0.1, 30)))
    assert life.drifts == []
    for _ in range(3):
        life.read(batches.ran(noisy(rng, 0.03, 0.1, 30)))
    (drift,) = life.drifts
    assert (drift.function, drift.configuration, drift.since_s) == ("f", B8, 300.0)
    assert drift.factor == pytest.approx(2.5, rel=0.05)
    assert life.level_s() == pytest.approx(0.03, rel=0.05)


def test_restless_executions_are_no_drift() -> None:
    """Thirty percent of noise and few batches: hardly ever, in 6000 readings."""
    found = 0
    for seed in range(100):
        rng, batches, life = random.Random(seed), Batches(), Life()
        for _ in range(60):
            life.read(batches.ran(noisy(rng, 0.012, 0.3, 6)))
        found += len(life.drifts)
    assert found <= 20


def test_a_drift_is_told_once_for_a_function() -> None:
    """Every batch size became slower; those that did not run since are expected to have done so too."""
    sizes = {batch: Batches(batch) for batch in (1, 4, 8)}
    life = Life()
    for _ in range(10):
        life.read(
            *(one.ran([prior_s] * 20) for one, prior_s in zip(sizes.values(), (0.004, 0.008, 0.012), strict=True))
        )
    for _ in range(6):
        life.read(sizes[1].ran([0.008] * 20), sizes[8].ran([0.024] * 20))
    assert len(life.drifts) == 1
    assert life.seen.factors("f")[Configuration(batch=4, cpu_cores=1)] == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize("factor", [3.0, 1 / 3])
def test_a_prior_that_is_wrong_for_all_is_told_once(factor: float) -> None:
    """Although they explain each other; also where one has so few batches that its windows come late."""
    sizes = {batch: Batches(batch) for batch in (1, 2, 4, 8)}
    life = Life()
    for _ in range(12):
        life.read(
            *(
                sizes[one.configuration.batch].ran([one.expected_s * factor] * count)
                for one, count in zip(GRID, (20, 9, 7, 2), strict=True)
            )
        )
    assert [drift.factor for drift in life.drifts] == pytest.approx([factor], rel=0.01)


def test_one_configuration_that_is_wrong_alone_is_told() -> None:
    """The others are as measured."""
    one, eight, life = Batches(1), Batches(8), Life()
    for _ in range(8):
        life.read(one.ran([0.004] * 20))
    for _ in range(4):
        life.read(one.ran([0.004] * 20), eight.ran([0.036] * 20))
    assert [(drift.configuration, drift.factor) for drift in life.drifts] == [(B8, pytest.approx(3.0))]
    assert len(life.seen.regimes["f", Configuration(batch=1, cpu_cores=1)]) == 12


def test_configurations_that_did_not_run_borrow() -> None:
    """The factor of the others; near ones count for more."""
    one, eight, life = Batches(1), Batches(8), Life()
    for _ in range(5):
        life.read(one.ran([0.004] * 40), eight.ran([0.036] * 40))
    factors = {given.batch: factor for given, factor in life.seen.factors("f").items()}
    assert factors[1] == pytest.approx(1.0, rel=0.05)
    assert factors[2] == pytest.approx(1.0, rel=0.05)
    assert factors[4] == pytest.approx(3.0, rel=0.05)


def test_batches_between_two_measured_ones_count() -> None:
    """A batch of 3 is compared with what lies between 2 and 4."""
    three, life = Batches(3), Life()
    between_s = math.exp(math.log(0.005) + math.log(1.5) / math.log(2) * math.log(8 / 5))
    for _ in range(5):
        life.read(three.ran([2 * between_s] * 40))
    assert list(life.seen.factors("f").values()) == pytest.approx([2.0] * 4, rel=0.05)


def test_a_resize_is_another_series() -> None:
    """Cores that no measurement knows say nothing of those it knows."""
    life = Life().read(Batches(cores=4).ran([1.0] * 50))
    assert life.planned_s()[8] == pytest.approx(0.0132)


def test_a_counter_that_fell_begins_anew() -> None:
    """The worker was replaced; also when it has overtaken some of its old counts meanwhile."""
    batches, life = Batches(), Life()
    life.read(batches.ran([0.012] * 50))
    batches.restarted()
    assert life.read(batches.ran([0.024] * 40)).seen.regimes["f", B8][-1].batches == 40
    batches.restarted()
    assert life.read(batches.ran([0.004] * 60)).seen.regimes["f", B8][-1].batches == 60


def test_a_counter_that_fell_within_its_first_bucket() -> None:
    """Every bucket fell by as much, so only their values say it."""
    batches, life = Batches(), Life()
    life.read(batches.ran([0.00005] * 50))
    batches.restarted()
    assert life.read(batches.ran([0.00005] * 10)).seen.regimes["f", B8][-1].batches == 10


def damage(counted: Counted, how: str) -> Counted:
    """A reading that cannot be used."""
    rest = counted.buckets[1:]
    wrong: dict[str, Any] = {
        "sum": {"total_s": math.nan},
        "negative": {"total_s": -1.0},
        "count": {"count": math.inf},
        "no +Inf": {"buckets": counted.buckets[:-1]},
        "no buckets": {"buckets": ()},
        "falling": {"buckets": ((0.0001, 99.0), *rest)},
        "NaN bucket": {"buckets": ((0.0001, math.nan), *rest)},
        "bounds": {"buckets": ((math.nan, 0.0), *rest)},
        "labels": {"series": replace(counted.series, batch=0)},
    }
    return replace(counted, **wrong[how])


@pytest.mark.parametrize(
    "how", ["sum", "negative", "count", "no +Inf", "no buckets", "falling", "NaN bucket", "bounds", "labels"]
)
def test_what_cannot_be_used_is_passed_over_and_told(how: str) -> None:
    """The other series of the reading count; the damaged one goes on from its next sound value."""
    bad, good, life = Batches(), Batches(4), Life()
    life.read(damage(bad.ran([0.1] * 10), how), good.ran([0.016] * 10))
    assert (life.seen.faults, len(life.seen.faulty)) == (1, 1)
    assert set(life.seen.levels("f")) == {Configuration(batch=4, cpu_cores=1)}
    life.read(bad.ran([0.1] * 10)).read(bad.ran([0.024] * 10))
    assert (life.seen.faults, life.seen.faulty) == (1, ())
    assert life.level_s() in (pytest.approx(0.024), pytest.approx(0.1))


def test_two_jobs_that_scrape_the_same_instance_count_once() -> None:
    """The later one is believed."""
    batches, life = Batches(), Life()
    early, late = batches.ran([0.012] * 10), batches.ran([0.012] * 10)
    life.read(late, early)
    assert life.seen.levels("f")[B8].batches == 20


@pytest.mark.parametrize(("share", "most"), [(0.01, 1.2), (0.03, 1.2), (0.1, 1.26), (0.3, 1.75)])
def test_a_twentieth_takes_longer_than_planned(share: float, most: float) -> None:
    """About, whatever the noise and wherever the time lies between two bounds."""
    exceeding = []
    for seed in range(30):
        rng = random.Random(seed)
        mean_s = math.exp(rng.uniform(math.log(0.001), math.log(1.0)))
        batches, life = Batches(), Life(prior(8, mean_s))
        for _ in range(10):
            life.read(batches.ran(noisy(rng, mean_s, share, 40)))
        planned_s = life.planned_s()[8]
        assert planned_s < mean_s * most
        exceeding.append(sum(one > planned_s for one in noisy(rng, mean_s, share, 500)) / 500)
    assert sum(exceeding) / len(exceeding) < 0.08
    assert max(exceeding) < 0.2


def test_few_batches_leave_the_margin_alone() -> None:
    """Nineteen have no twentieth."""
    life = Life(prior(8, 0.012, margin=1.4)).read(Batches().ran([0.012] * 19))
    assert life.planned_s()[8] == pytest.approx(0.012 * 1.4)


def test_what_serving_takes_stays_on_top() -> None:
    """It is not in the histogram."""
    given = replace(prior(8, 0.01), extra_s=0.5)
    assert Life(given).planned_s()[8] == pytest.approx(0.511)
    assert Life(given).read(Batches().ran([0.02] * 10_000)).planned_s()[8] == pytest.approx(0.5 + 0.02 * 1.1, rel=0.01)


def test_old_windows_are_forgotten_when_there_are_newer_ones() -> None:
    """A slow drift that is none at any time is followed all the same; silence forgets nothing."""
    batches, life = Batches(), Life()
    life.read(batches.ran([0.012] * 50))
    life.now_s += 10 * AGE_S
    assert life.read().level_s() == pytest.approx(0.012)
    assert life.read(batches.ran([0.0125] * 50)).level_s() == pytest.approx(0.0125)


def test_a_restart_knows_the_level() -> None:
    """Also of configurations that did not run; real batches outweigh it soon."""
    life = Life()
    life.seen = life.seen.seeded("f", {B8: Level(exec_s=0.036, batches=500)}, 0.0)
    assert 2.5 < life.seen.factors("f")[Configuration(batch=2, cpu_cores=1)] < 3
    assert life.level_s() == pytest.approx(0.036)
    batches = Batches()
    for _ in range(3):
        life.read(batches.ran([0.012] * 20))
    assert life.level_s() == pytest.approx(0.012)
    assert len(life.drifts) == 1


@pytest.mark.parametrize(
    "level", [Level(exec_s=math.nan, batches=5), Level(exec_s=-1, batches=5), Level(exec_s=1, batches=0)]
)
def test_a_damaged_level_is_not_believed(level: Level) -> None:
    """The database may hold anything."""
    assert Observed().seeded("f", {B8: level}, 0.0).levels("f") == {}


def test_a_function_can_be_forgotten() -> None:
    """An update: the other functions stay."""
    life = Life().read(Batches().ran([0.1] * 50), Batches(function="g", instance="j").ran([0.1] * 50))
    seen = replace(life.seen, drifted=frozenset("fg")).without("f")
    assert (seen.correct("f"), seen.levels("f"), seen.drifted) == ((), {}, {"g"})
    assert seen.levels("g")[B8].batches == 50


def test_instances_that_have_ended_are_forgotten() -> None:
    """What they told of the function stays."""
    life = Life().read(Batches().ran([0.012] * 20), Batches(instance="j").ran([0.012] * 20))
    seen = life.seen.running({"j", "k"})
    assert {series.instance for series in seen.readings} == {"j"}
    assert seen.levels("f")[B8].batches == 40


def test_another_source_is_compared_with_itself() -> None:
    """What the first says after the second is no counter reset."""
    batches = Batches()
    early, late = batches.ran([0.012] * 1000), batches.ran([0.012] * 10)
    life = Life().read(late)
    life.seen = life.seen.rebased()
    life.read(early)
    assert life.seen.levels("f")[B8].batches == 1010


LABELS = {"infless_instance": "i", "function_name": "f", "batch": "8", "cpu_cores": "1", "gpu_percent": "0"}


def samples(**labels: str) -> list[tuple[str, dict[str, str], float]]:
    """A histogram of three executions."""
    given = {**LABELS, **labels}
    return [
        (f"{METRIC}_bucket", {**given, "le": "+Inf"}, 3.0),
        (f"{METRIC}_bucket", {**given, "le": "0.1"}, 2.0),
        (f"{METRIC}_count", given, 3.0),
        (f"{METRIC}_sum", given, 0.5),
    ]


def test_samples_become_histograms() -> None:
    """In any order; other metrics and other labels do not disturb."""
    (found,) = gathered([*reversed(samples(job="a")), ("up", {}, 1.0)])
    assert found == Counted(series=Batches().series, buckets=((0.1, 2.0), (math.inf, 3.0)), count=3.0, total_s=0.5)
    assert found.fault() == ""


@pytest.mark.parametrize("change", [lambda one: one.pop("batch"), lambda one: one.update(cpu_cores="two")])
def test_samples_without_our_labels_are_skipped(change: Callable[[dict[str, str]], object]) -> None:
    """Somebody else's metric of that name."""
    wrong = samples()  # its count and its sum have one dict of labels
    change(wrong[-1][1])
    assert gathered(wrong[2:]) == []


def test_a_histogram_without_its_sum_is_faulty() -> None:
    """Half of it is no reading."""
    (found,) = gathered(samples()[:-1])
    assert found.fault() == "a value that is negative or no number"
