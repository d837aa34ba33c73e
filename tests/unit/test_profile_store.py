"""The profile database: measurements by digest and machine, and what they cover."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from infless_core.clock import ManualClock
from infless_core.errors import BackendError, StateError
from infless_core.model import Configuration
from infless_profiler.measure import MARGIN_MAX, MARGIN_MIN, REQUEST_S, Measurement
from infless_profiler.observe import Level
from infless_profiler.store import OBSERVED_AGE_S, ProfileStore
from infless_provider import profiling
from infless_provider.profiling import Profiles

ASKED = Configuration(batch=8, cpu_cores=2)


def one(batch, cores=1, exec_s=0.01):
    """A measurement with three samples."""
    configuration = Configuration(batch=batch, cpu_cores=cores)
    return Measurement(configuration=configuration, samples_s=(exec_s, exec_s, 5 * exec_s), memory_bytes=1)


@pytest.fixture
def store(tmp_path):
    """A store in a folder that does not exist yet."""
    return ProfileStore(tmp_path / "state" / "profiles.sqlite", "machine")


def test_measurements_come_back_in_order(store):
    """Smallest configuration first."""
    store.save("d", [one(8), one(1, 2), one(1)], ASKED, 0)
    assert store.load("d") == [one(1), one(1, 2), one(8)]
    assert store.coverage("d") == ASKED


def test_nothing_known(store):
    """Of a digest that was never measured."""
    assert store.load("d") == []
    assert store.coverage("d") is None


def test_a_newer_measurement_replaces_an_older_one(store):
    """Of the same configuration; the others stay."""
    store.save("d", [one(1), one(8)], ASKED, 0)
    store.save("d", [one(1, exec_s=0.5)], ASKED, 1)
    assert store.load("d") == [one(1, exec_s=0.5), one(8)]


def test_another_machine_knows_nothing(store, tmp_path):
    """Times hold for one kind of machine."""
    store.save("d", [one(1)], ASKED, 0)
    assert ProfileStore(tmp_path / "state" / "profiles.sqlite", "other").load("d") == []


@pytest.mark.parametrize("damage", ["not a database", None])
def test_a_database_that_cannot_be_used(tmp_path, damage):
    """A damaged file, or a folder in its place."""
    file = tmp_path / "profiles.sqlite"
    file.mkdir() if damage is None else file.write_text(damage * 100)
    with pytest.raises(StateError, match=r"profiles.sqlite cannot be used"):
        ProfileStore(file, "m").load("d")


def measured(samples_s):
    """A measurement with these samples."""
    return Measurement(configuration=Configuration(batch=8, cpu_cores=1), samples_s=tuple(samples_s), memory_bytes=1)


def test_a_point_is_the_median_with_a_margin():
    """An outlier moves the margin and not the median; the watchdog's own time for each request comes on top."""
    point = one(8).point
    assert point.exec_s == pytest.approx(0.01 * MARGIN_MAX + 8 * REQUEST_S)
    assert point.memory_bytes == 1


def test_the_margin_is_learned_from_many_samples():
    """A steady function is planned tightly, and of a restless one about a twentieth takes longer than planned."""
    assert measured([0.01] * 50).margin == MARGIN_MIN
    restless = measured([0.01 * (1 + 0.004 * place) for place in range(-50, 51)])
    exceeding = sum(sample > restless.prior.expected_s * restless.margin for sample in restless.samples_s)
    assert 4 <= exceeding <= 5
    assert 1.17 < restless.margin < 1.19


def test_few_samples_say_little_of_the_slowest():
    """Then the paper's ten percent are the least."""
    assert measured([0.01] * 3).margin == 1.1
    assert measured([0.01, 0.01, 0.013]).margin == pytest.approx(1.27)


def test_what_was_observed_comes_back(store):
    """By digest and machine, until it is old or measured anew."""
    levels = {Configuration(batch=3, cpu_cores=1): Level(exec_s=0.02, batches=200.0)}
    store.observe("d", levels, 100.0)
    assert store.observed("d", 100.0) == levels
    assert store.observed("other", 100.0) == store.observed("d", 101.0 + OBSERVED_AGE_S) == {}
    store.save("d", [one(1)], ASKED, 0)
    assert store.observed("d", 100.0) == {}


def test_a_newer_observation_replaces_an_older_one(store):
    """Of the same configuration; the others stay."""
    first, second = Configuration(batch=1, cpu_cores=1), Configuration(batch=2, cpu_cores=1)
    store.observe("d", {first: Level(exec_s=1, batches=1), second: Level(exec_s=1, batches=1)}, 0.0)
    store.observe("d", {first: Level(exec_s=2, batches=9)}, 1.0)
    assert store.observed("d", 1.0) == {first: Level(exec_s=2, batches=9), second: Level(exec_s=1, batches=1)}


class TestProfiles:
    """Kept or measured."""

    @pytest.fixture(autouse=True)
    def _measured(self, store):
        self.orders = []
        self.answer = [one(1), one(8), one(1, 2)]
        self.failure = None
        self.store = store

    def curve(self, order):
        """What a backend's watchdog would print, from `answer`."""
        self.orders.append(order)
        if self.failure:
            raise self.failure
        return "".join(
            json.dumps({"batch": m.configuration.batch, "exec_s": m.samples_s, "memory_bytes": m.memory_bytes}) + "\n"
            for m in self.answer
            if m.configuration.cpu_cores == order.cpu_cores
        )

    def profiles(self, cpus=2):
        """Of a machine with so many cores."""
        return Profiles(self.store, ManualClock(), cpus, self.curve, 60.0)

    def points(self, batch_max=8, cpus=2):
        """Configurations that are known afterwards."""
        found = self.profiles(cpus).points("d", "artifact", {"a": "1"}, batch_max)
        return [(point.configuration.batch, point.configuration.cpu_cores) for point in found]

    @property
    def asked(self):
        """Batches and cores of each run."""
        return [(tuple(order.batches), order.cpu_cores) for order in self.orders]

    def test_measured_once(self):
        """The second deployment finds it."""
        assert self.points() == [(1, 1), (8, 1), (1, 2)]
        assert sorted(self.points()) == [(1, 1), (1, 2), (8, 1)]
        assert self.asked == [((1, 2, 4, 8), 1), ((1, 2, 4, 8), 2)]
        assert {(order.artifact, order.environment["a"], order.budget_s) for order in self.orders} == {
            ("artifact", "1", profiling.BUDGET_S)
        }

    def test_measured_again_for_larger_batches_or_more_cores(self):
        """What is kept says nothing about them."""
        self.points(batch_max=8, cpus=1)
        self.points(batch_max=8, cpus=2)
        self.points(batch_max=16, cpus=2)
        eight, sixteen = (1, 2, 4, 8), (1, 2, 4, 8, 16)
        assert self.asked == [(eight, 1), (eight, 1), (eight, 2), (sixteen, 1), (sixteen, 2)]

    def test_points_are_as_seen_in_use(self):
        """Of all configurations, near what was seen; the measurement stays what corrections start from."""
        profiles = self.profiles(1)
        self.answer = [one(1, exec_s=0.01), one(8, exec_s=0.04)]
        measured = profiles.points("d", "a", {}, 8)
        profiles.observe("d", {Configuration(batch=8, cpu_cores=1): Level(exec_s=0.12, batches=1000.0)})
        for points in (profiles.points("d", "a", {}, 8), profiles.kept("d", 8)):
            for point, before in zip(points, measured, strict=True):
                assert 2.4 < point.exec_s / before.exec_s < 3
        assert [prior.expected_s for prior in profiles.prior("d", 8)] == [0.01, 0.04]

    def test_what_is_known_does_not_wait_for_a_measurement(self):
        """A deployment of what is measured already goes through while another function is timed."""
        profiles, timed, gate = self.profiles(1), threading.Event(), threading.Event()
        known = profiles.points("d", "a", {}, 8)
        real = profiles._curve

        def slow(order):
            timed.set()
            assert gate.wait(10)
            return real(order)

        profiles._curve = slow
        with ThreadPoolExecutor(2) as pool:
            other = pool.submit(profiles.points, "other", "a", {}, 8)
            assert timed.wait(10)
            try:
                assert pool.submit(profiles.points, "d", "a", {}, 8).result(10) == known
                assert not other.done()
            finally:
                gate.set()
            assert other.result(10) == known

    def test_two_deployments_of_the_same_measure_once(self):
        """The second one finds, when its turn comes, what the first one measured."""
        profiles, real = self.profiles(1), self.store.coverage
        both = threading.Barrier(2)
        looks = iter(range(99))

        def coverage(key):
            found = real(key)
            if next(looks) < 2:  # both have looked before either measures
                both.wait(10)
            return found

        self.store.coverage = coverage
        with ThreadPoolExecutor(2) as pool:
            one, two = [pool.submit(profiles.points, "d", "a", {}, 8) for _ in range(2)]
            assert one.result(10) == two.result(10) != ()
        assert len(self.orders) == 1

    def test_it_is_timed_with_what_its_instances_get(self, tmp_path):
        """Its secrets and its memory limit, at each number of cores; neither, when nothing is said of them."""
        self.profiles(2).points("d", "a", {}, 8, secrets=tmp_path, memory_bytes=5)
        self.profiles(2).measure("d", "a", {}, (1,), secrets=tmp_path, memory_bytes=5)
        self.profiles(1).measure("d", "a", {}, (1,))
        given = [(order.secrets, order.memory_bytes) for order in self.orders]
        assert given == [(tmp_path, 5)] * 4 + [(None, 0)]

    def test_an_unbatched_function_is_not_measured_each_time(self):
        """It has a time for one request only, whatever was asked."""
        self.answer = [one(1)]
        assert self.points(32, cpus=1) == self.points(32, cpus=1) == [(1, 1)]
        assert len(self.asked) == 1

    def test_a_function_without_example_is_not_tried_each_time(self):
        """Nothing is an answer too."""
        self.answer = []
        assert self.points() == self.points() == []
        assert len(self.asked) == 1

    def test_a_provider_that_stops_ends_the_measurement(self):
        """The backend asks, and is told."""
        profiles = self.profiles()
        profiles.measure("d", "a", {}, (1,))
        assert not self.orders[0].cancelled()
        profiles.cancel()
        assert self.orders[0].cancelled()

    def test_only_what_fits_is_given(self):
        """No larger batch than wished, no more cores than there are."""
        self.points(batch_max=8, cpus=2)
        assert self.points(batch_max=4, cpus=1) == [(1, 1)]

    def test_a_failing_function_leaves_nothing_behind(self):
        """The next deployment, with a better handler, starts afresh."""
        self.failure = BackendError("boom")
        with pytest.raises(BackendError, match="boom"):
            self.points()
        assert self.store.coverage("d") is None
