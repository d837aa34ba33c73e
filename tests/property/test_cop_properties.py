"""What holds for every model, every set of measurements and every machine."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infless_profiler.accuracy import accuracy
from infless_profiler.choose import Part, composed, worth_measuring
from infless_profiler.compose import cold_share, makespan_s, model_s, needed_points
from infless_profiler.correction import FEATURES, WholeTime, learn, settle
from infless_profiler.estimate import Estimate, Measured, estimate, rough_s
from infless_profiler.operators import Call, ModelGraph, Operator, Point, Tensor, features, moved_bytes, multiply_adds
from infless_profiler.timing import Timing, timing_of

SECONDS = st.floats(1e-7, 10.0)
LENGTHS = st.tuples(st.integers(0, 64), st.integers(0, 3))
TENSORS = st.builds(
    Tensor, dtype=st.sampled_from(["float32", "int64", "float16", "strange"]),
    dims=st.lists(LENGTHS, max_size=4).map(tuple), constant=st.booleans(),
)  # fmt: skip
ATTRIBUTES = st.dictionaries(
    st.sampled_from(["kernel_shape", "group", "mode", "value"]),
    st.integers(0, 9) | st.floats(0, 9) | st.text(max_size=5) | st.lists(st.integers(1, 5), max_size=3),
    max_size=3,
)
OPERATORS = st.builds(
    Operator, domain=st.sampled_from(["", "com.microsoft"]),
    type=st.sampled_from(["Conv", "MatMul", "Gemm", "Add", "Softmax", "Gather", "LSTM", "Attention", "ConvTranspose"]),
    version=st.integers(1, 28), attributes=ATTRIBUTES,
    inputs=st.lists(st.none() | TENSORS, min_size=1, max_size=4).map(tuple),
    outputs=st.lists(TENSORS, max_size=2).map(tuple),
)  # fmt: skip
POINTS = st.builds(
    Point, st.sampled_from([1, 2, 4, 8, 32]), st.sampled_from([1, 2, 4]), st.sampled_from([0, 10, 50, 100]),
    st.booleans(),
)  # fmt: skip


def matmul(wide: int, high: int) -> Operator:
    """Rows times a weight."""
    takes, gives = (Tensor(dtype="float32", dims=((0, 1), (size, 0))) for size in (wide, high))
    weight = Tensor(dtype="float32", dims=((wide, 0), (high, 0)), constant=True)
    return Operator(domain="", type="MatMul", version=13, inputs=(takes, weight), outputs=(gives,))


MATMULS = st.builds(matmul, st.sampled_from([8, 64, 300, 1024]), st.sampled_from([1, 64, 700]))
WARM = st.builds(Point, st.sampled_from([1, 2, 4, 8, 32]), st.sampled_from([1, 2, 4]), st.just(0), st.just(False))


@st.composite
def measurements(draw: st.DrawFn, most: int = 12) -> list[Measured]:
    """Rows of one family, within a factor of ten of the rough model, each thing once."""
    keys = draw(st.lists(st.tuples(MATMULS, WARM), max_size=most, unique_by=lambda one: (one[0].signature, one[1])))
    return [
        Measured(
            operator=operator, point=point,
            timing=Timing(
                exec_s=rough_s(operator, point) * 10 ** draw(st.floats(-1, 1)), spread=0.1, samples=9,
                looks=draw(st.integers(1, 4)),
            ),
        )
        for operator, point in keys
    ]  # fmt: skip


@st.composite
def graphs(draw: st.DrawFn, most: int = 12) -> tuple[list[Call], list[float]]:
    """Calls that need some of the calls before them, and how long each takes."""
    calls = []
    for place in range(draw(st.integers(0, most))):
        needs = draw(st.sets(st.integers(0, place - 1), max_size=3)) if place else set()
        calls.append(
            Call(operator=Operator(domain="", type=str(place % 5), version=1), needs=tuple(sorted(needs)))
        )  # fmt: skip
    return calls, [draw(st.integers(0, 1000)) / 8 for _ in calls]


class TestCompose:
    """Sums and branches."""

    @given(graphs(), st.integers(1, 5))
    def test_threads_help_within_limits(self, graph: tuple[list[Call], list[float]], threads: int) -> None:
        """Never less than the longest chain or an even share, never more than all one after the other."""
        calls, durations_s = graph
        chains: list[float] = []
        for call, exec_s in zip(calls, durations_s, strict=True):
            chains.append(exec_s + max((chains[need] for need in call.needs), default=0.0))
        found_s = makespan_s(calls, durations_s, threads)
        assert max([sum(durations_s) / threads, *chains]) <= found_s + 1e-9
        assert found_s <= sum(durations_s)
        assert makespan_s(calls, durations_s, 1) == sum(durations_s)
        assert makespan_s(calls, durations_s, len(calls) + 1) == max(chains, default=0.0)

    @given(graphs(), st.integers(1, 4))
    def test_a_model_is_its_calls(self, graph: tuple[list[Call], list[float]], threads: int) -> None:
        """By the operator's signature."""
        calls, _ = graph
        times_s = {call.operator.signature: float(1 + int(call.operator.type)) for call in calls}
        model = ModelGraph(name="m", digest="d", calls=tuple(calls), parameter_bytes=0)
        durations_s = [times_s[call.operator.signature] for call in calls]
        assert model_s(model, times_s, threads) == makespan_s(calls, durations_s, threads)

    @given(st.lists(OPERATORS, max_size=5), st.integers(0, 1 << 20))
    def test_weights_only_get_colder_with_the_batch(self, operators: list[Operator], cache_bytes: int) -> None:
        """From none to all of them."""
        calls = tuple(Call(operator=one) for one in operators)
        model = ModelGraph(name="m", digest="d", calls=calls, parameter_bytes=0)
        shares = [cold_share(model, batch, cache_bytes) for batch in (1, 2, 3, 8, 100)]
        assert shares == sorted(shares)
        assert all(0 <= share <= 1 for share in shares)
        weights = [weight for _, weight in needed_points(model, Point(8, 1), cache_bytes)]
        assert sum(weights) == pytest.approx(1)
        assert all(weight > 0 for weight in weights)


class TestOperators:
    """Whatever a model is made of."""

    @given(OPERATORS)
    def test_json_and_back(self, operator: Operator) -> None:
        """By way of a text, the signature stays."""
        back = Operator.from_json(json.loads(json.dumps(operator.to_json())))
        assert back == operator
        assert back.signature == operator.signature
        assert back.inputs == operator.inputs

    @given(OPERATORS, st.integers(1, 64))
    def test_work_is_counted_without_fail(self, operator: Operator, batch: int) -> None:
        """Finite, never less for more items, and positive in the rough model."""
        sizes, more = (features(operator, count) for count in (batch, batch + 1))
        assert all(map(math.isfinite, sizes))
        assert multiply_adds(operator, batch) >= 0
        assert moved_bytes(operator, batch + 1) >= moved_bytes(operator, batch)
        assert 0 < rough_s(operator, Point(batch, 1)) < math.inf
        assert len(sizes) == len(more)


class TestTiming:
    """Looks and samples."""

    TIMINGS = st.builds(
        Timing, exec_s=SECONDS, spread=st.floats(0, 2), samples=st.integers(1, 99), looks=st.integers(1, 9)
    )

    @given(TIMINGS, TIMINGS)
    def test_two_looks_in_either_order(self, one: Timing, two: Timing) -> None:
        """The same time, as many samples and looks, and less doubt than the worse."""
        found, other = one.and_again(two), two.and_again(one)
        assert (found.exec_s, found.samples, found.looks) == (other.exec_s, other.samples, other.looks)
        assert found.exec_s == min(one.exec_s, two.exec_s)
        assert found.doubt <= max(one.doubt, two.doubt)

    @given(st.lists(SECONDS, min_size=1, max_size=40), st.integers(1, 16), st.floats(0, 0.01), st.randoms())
    def test_the_order_of_samples_is_nothing(
        self, samples_s: list[float], copies: int, overhead_s: float, rng: object
    ) -> None:
        """And a time is positive, and at most the longest."""
        shuffled = list(samples_s)
        rng.shuffle(shuffled)  # type: ignore[attr-defined]
        found = timing_of(samples_s, copies, overhead_s)
        assert found == timing_of(shuffled, copies, overhead_s)
        assert 0 < found.exec_s <= max(*samples_s, 1e-6)


class TestEstimate:
    """Predictions from measurements."""

    @settings(max_examples=60)
    @given(measurements(), st.lists(st.tuples(MATMULS, POINTS), min_size=1, max_size=6), st.randoms())
    def test_times_are_positive_and_do_not_depend_on_the_order(
        self, rows: list[Measured], wanted: list[tuple[Operator, Point]], rng: object
    ) -> None:
        """The same rows give the same numbers; shuffled ones as well, but for the last digits."""
        shuffled = list(rows)
        rng.shuffle(shuffled)  # type: ignore[attr-defined]
        found = estimate(wanted, rows)
        assert found == estimate(wanted, list(rows))
        assert found.keys() == {(operator.signature, point) for operator, point in wanted}
        for key, other in estimate(wanted, shuffled).items():
            assert 0 < found[key].exec_s < math.inf
            assert other.exec_s == pytest.approx(found[key].exec_s, rel=1e-6)
            assert other.spread == pytest.approx(found[key].spread, rel=1e-4, abs=1e-5)
            assert other.measured == found[key].measured

    @settings(max_examples=60)
    @given(measurements(8), MATMULS, WARM, MATMULS, WARM)
    def test_a_measurement_makes_nothing_less_sure(
        self, rows: list[Measured], operator: Operator, point: Point, other: Operator, elsewhere: Point
    ) -> None:
        """Wherever it is taken; and most where it is."""
        more = Measured(operator=operator, point=point, timing=Timing(exec_s=1e-4, spread=0.1, samples=9))
        wanted = [(operator, point), (other, elsewhere)]
        before, after = estimate(wanted, rows), estimate(wanted, [*rows, more])
        assert all(after[key].spread <= before[key].spread + 1e-6 for key in before)
        assert after[operator.signature, point].spread <= 0.11

    @settings(max_examples=60)
    @given(measurements(8), MATMULS, WARM, st.floats(0.3, 2) | st.floats(-2, -0.3), st.integers(1, 4))
    def test_a_prediction_moves_towards_what_is_measured(
        self, rows: list[Measured], operator: Operator, point: Point, power: float, looks: int
    ) -> None:
        """Where that is clearly something else than was thought before; `measured` says so."""
        rows = [row for row in rows if (row.operator, row.point) != (operator, point)]
        before = estimate([(operator, point)], rows)[operator.signature, point]
        exec_s = before.exec_s * 10**power
        timing = Timing(exec_s=exec_s, spread=0.1, samples=9, looks=looks)
        row = Measured(operator=operator, point=point, timing=timing)
        after = estimate([(operator, point)], [*rows, row])[operator.signature, point]
        assert (before.measured, after.measured) == (False, True)
        assert abs(math.log(after.exec_s / exec_s)) < 0.95 * abs(math.log(before.exec_s / exec_s))

    @settings(max_examples=60)
    @given(measurements().filter(len), st.tuples(MATMULS, POINTS), st.floats(-2, 2))
    def test_a_slower_machine(self, rows: list[Measured], wanted: tuple[Operator, Point], power: float) -> None:
        """All times ten times as long, all predictions ten times as long, and as sure."""
        scale = 10**power
        slow = [replace(row, timing=replace(row.timing, exec_s=row.timing.exec_s * scale)) for row in rows]
        key = wanted[0].signature, wanted[1]
        one, other = estimate([wanted], rows)[key], estimate([wanted], slow)[key]
        assert other.exec_s == pytest.approx(one.exec_s * scale, rel=1e-6)
        assert other.spread == pytest.approx(one.spread)


@st.composite
def doubtful(draw: st.DrawFn) -> tuple[dict[Point, list[Part]], dict[tuple[str, Point], Estimate]]:
    """Terms of a model in some configurations, and what is known of each."""
    names = [f"o{place}" for place in range(draw(st.integers(1, 7)))]
    points = draw(st.lists(WARM, min_size=1, max_size=3, unique=True))
    known = {
        (name, point): Estimate(exec_s=draw(SECONDS), spread=draw(st.floats(0.0, 1.0)), measured=False)
        for name in names
        for point in points
    }
    parts = {
        point: [Part(name, draw(st.sampled_from("fg")), point, float(draw(st.integers(1, 9)))) for name in names]
        for point in points
    }
    return parts, known


class TestChoose:
    """What is measured next."""

    @given(doubtful(), st.floats(0.001, 0.3))
    def test_what_is_left_is_sure_enough(
        self, model: tuple[dict[Point, list[Part]], dict[tuple[str, Point], Estimate]], sure: float
    ) -> None:
        """Once all that is chosen is known, and up to twice the batch with it; nothing else is chosen, nor twice."""
        parts, known = model
        chosen = worth_measuring(parts, known, sure)
        assert all(key in known for key in chosen)
        assert len({*chosen}) == len(chosen)
        told = {
            (name, near._replace(batch=batch))
            for name, near in chosen
            for batch in range(near.batch // 2, 2 * near.batch + 1)
            if 2 * batch >= near.batch
        }
        settled = {key: replace(one, spread=0.0) if key in told else one for key, one in known.items()}
        assert all(composed(terms, settled)[1] <= sure * (1 + 1e-6) + 1e-7 for terms in parts.values())
        if all(composed(terms, known)[1] <= sure for terms in parts.values()):
            assert chosen == []
        assert chosen == worth_measuring(parts, known, sure)

    @given(doubtful())
    def test_nothing_is_chosen_when_all_is_known(
        self, model: tuple[dict[Point, list[Part]], dict[tuple[str, Point], Estimate]]
    ) -> None:
        """A spread of zero everywhere."""
        parts, known = model
        assert worth_measuring(parts, {key: replace(one, spread=0.0) for key, one in known.items()}, 0.001) == []

    @given(doubtful(), st.floats(0.01, 0.3))
    def test_rounds_end(
        self, model: tuple[dict[Point, list[Part]], dict[tuple[str, Point], Estimate]], sure: float
    ) -> None:
        """Measuring what is chosen, again and again, comes to an end within one round for each point."""
        parts, known = model
        for _ in range(len(known) + 1):
            chosen = worth_measuring(parts, known, sure)
            if not chosen:
                return
            known = {key: replace(one, spread=0.0) if key in chosen else one for key, one in known.items()}
        raise AssertionError("it does not end")


@st.composite
def whole_times(draw: st.DrawFn) -> list[WholeTime]:
    """Models that were measured whole, at some points each."""
    rows = []
    for place in range(draw(st.integers(1, 5))):
        for _ in range(draw(st.integers(1, 4))):
            values = [1.0, *(draw(st.floats(0, 1)) for _ in FEATURES[1:])]
            executions_s = draw(st.lists(st.floats(0.001, 0.1), min_size=1, max_size=5))
            rows.append(
                WholeTime(
                    model=f"m{place}", features=tuple(values), composed_s=draw(st.floats(0.001, 0.1)),
                    executions_s=tuple(executions_s),
                )
            )  # fmt: skip
    return rows


class TestCorrection:
    """What is learned from whole models."""

    @given(st.integers(2, 8), st.floats(-1, 1))
    def test_a_constant_residual_is_found(self, models: int, log: float) -> None:
        """Nothing else is blamed for it."""
        rows = [
            WholeTime(
                model=f"m{place}", features=(1.0, 0.0, 0.0, 0.0, 0.0), composed_s=0.01,
                executions_s=(0.01 * math.exp(log),) * 3,
            )
            for place in range(models)
        ]  # fmt: skip
        found = learn(rows)
        assert found.corrected_s(1.0, rows[0].features) == pytest.approx(math.exp(log), rel=0.02)
        assert found.models == models

    @given(whole_times(), st.randoms())
    def test_the_order_of_rows_is_nothing(self, rows: list[WholeTime], rng: object) -> None:
        """And a margin is at least 2 %."""
        shuffled = list(rows)
        rng.shuffle(shuffled)  # type: ignore[attr-defined]
        found, other = learn(rows), learn(shuffled)
        assert other.coefficients == pytest.approx(found.coefficients, rel=1e-6, abs=1e-9)
        assert other.margin == pytest.approx(found.margin, rel=1e-6)
        assert found.margin >= 1.02

    @given(whole_times(), st.integers(2, 5))
    def test_points_more_of_a_model_are_no_more_weight(self, rows: list[WholeTime], times: int) -> None:
        """Its points again: the same coefficients."""
        again = [row for row in rows for _ in range(times if row.model == "m0" else 1)]
        assert learn(again).coefficients == pytest.approx(learn(rows).coefficients, rel=1e-6, abs=1e-9)

    @given(whole_times())
    def test_what_is_planned_is_more_than_what_is_expected(self, rows: list[WholeTime]) -> None:
        """Measured or composed."""
        correction = learn(rows)
        for row in rows:
            for executions_s in ((), row.executions_s):
                found = settle(row.composed_s, row.features, executions_s, correction)
                assert 0 < found.expected_s <= found.planned_s


@given(
    st.lists(
        st.tuples(SECONDS, SECONDS, st.lists(SECONDS, min_size=1, max_size=5)), min_size=1, max_size=20
    )
)  # fmt: skip
def test_accuracy_is_what_it_says(points: list[tuple[float, float, list[float]]]) -> None:
    """Against a computation in plain Python."""
    expected_s, planned_s, executions_s = (list(column) for column in zip(*points, strict=True))
    found = accuracy(expected_s, planned_s, executions_s)
    errors = [abs(one - float(np.median(runs))) / float(np.median(runs)) for one, _, runs in points]
    assert found is not None
    assert (found.points, found.max) == (len(points), pytest.approx(max(errors)))
    assert found.mean == pytest.approx(sum(errors) / len(errors))
    assert found.median <= found.p90 + 1e-12
    late = [sum(run > most for run in runs) / len(runs) for _, most, runs in points]
    assert found.exceed_share == pytest.approx(sum(late) / len(late))
