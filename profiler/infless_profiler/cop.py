"""Profile a model: take it apart, measure what is not known well enough, compose, correct, keep.

The steps that decide (`choose`, `estimate`, `compose`, `correction`) are pure; this module measures what they ask for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from types import TracebackType

import psutil

from infless_core.errors import BackendError, InvalidInput
from infless_profiler.choose import SURE, Known, Part, Parts, composed, parts_of, worth_measuring
from infless_profiler.compose import model_s
from infless_profiler.correction import Correction, features_of, learn
from infless_profiler.countdown import Countdown
from infless_profiler.estimate import Estimate, Measured, estimate
from infless_profiler.graph import Extraction, check_file_memory, check_memory, read_graph, without
from infless_profiler.model_file import ModelFile, input_feeds
from infless_profiler.operator_times import Worker
from infless_profiler.operators import ModelGraph, Point, features
from infless_profiler.prediction import Grid, Prediction, Profile, kept, text_of
from infless_profiler.sessions import cache_bytes
from infless_profiler.tables import Tables
from infless_profiler.timing import OPERATOR, WHOLE
from infless_profiler.worker import ModelJob, OperatorJob, Place, Timed

ROUNDS_MAX = 20
"""What is unsure after so many rounds of measuring and thinking again stays an estimate."""
FAR_SHARE = 0.05
"""An extrapolated share of the time that deserves a warning."""
_FAR_DOUBLINGS = 1.0
"""Twice the work of the largest operator that was measured is not far yet."""
_RUNTIME_BYTES = 130 << 20
"""An instance before it loads anything: Python, the watchdog, the runtime."""
_SAVE_S = 1.0
"""How much measuring an interruption may cost."""


class Profiler(AbstractContextManager["Profiler"]):
    """Profiles models on one device. Not thread-safe.

    Args:
        tables: what is known, and where new times go.
        now_s: seconds since the epoch.
        progress: told what is being done.
        cancelled: asked several times a second; True ends what runs with BackendError. What was measured stays.
    """

    def __init__(
        self,
        tables: Tables,
        now_s: Callable[[], float] = time.time,
        progress: Callable[[str], None] = lambda _: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        self._tables = tables
        self._now_s = now_s
        self._progress = progress
        self._cancelled = cancelled
        self._cache_bytes = 0 if tables.device.kind == "cuda" else cache_bytes()
        self._workers: dict[tuple[int, int], Worker] = {}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:  # fmt: skip
        """Its processes end with its use."""
        self.close()

    def close(self) -> None:
        """End its processes; those that are needed again start anew."""
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()

    def profile(self, file: ModelFile, grid: Grid, sure: float = SURE, *, anew: bool = False) -> Profile:
        """Profile a model for every configuration of a grid, and keep the result.

        Args:
            file: the model.
            grid: configurations.
            sure: the spread of the composed time below which no more operators are measured.
            anew: what is kept of this model's operators does not count: the machine has changed.

        Raises:
            InvalidInput: the runtime refuses the model, or it does not fit into memory.
            BackendError: it was cancelled, or cannot be run.
            StateError: the database cannot be used.
        """
        begun_s = time.perf_counter()
        self._progress(f"{file.name}: reading the graph as {self._tables.device.runtime} executes it")
        check_file_memory(file, psutil.virtual_memory().available)
        extraction = read_graph(file, self._tables.device)
        batch_max = extraction.graph.batch_max
        points = grid.points(batch_max)
        if not points:
            raise InvalidInput(f"--batches: {file.name} was exported for batches of {batch_max} only")
        check_memory(extraction.graph, max(point.batch for point in points), psutil.virtual_memory().available)
        try:
            profile = self._profile(extraction, points, grid.inter_op_threads, sure, anew=anew)
        except _NotAlone as reason:
            self._progress(f"{file.name}: {reason}; measuring it as a whole")
            extraction = without(extraction, file, str(reason))
            profile = self._profile(extraction, points, grid.inter_op_threads, sure, anew=anew)
        warnings = profile.warnings
        left_out = sorted({*grid.batches} - {point.batch for point in points})
        if left_out:
            beyond = ", ".join(map(str, left_out))
            warnings += (f"batches of {beyond} are left out: the model was exported for batches of {batch_max} only",)
        profile = replace(profile, warnings=warnings, profiling_s=time.perf_counter() - begun_s)
        self._tables.save_model(kept(profile, self._now_s()))
        return profile

    def verify(self, file: ModelFile, profile: Profile) -> Profile:
        """Measure the whole model at every point of its profile as well, and keep that: corrections learn from it."""
        begun_s = time.perf_counter()
        feeds, _ = input_feeds(file)
        self.close()  # what these processes have loaded would count as the model's memory
        left = Countdown([max(WHOLE.least_s, one.expected_s * WHOLE.runs_min) for one in profile.predictions])

        def measured(timed: Timed) -> None:
            left.done()
            self._progress(f"{file.name}: whole model measured at {text_of(timed.point)}{left.words()}")

        for (cores, gpu), points in _by_place([one.point for one in profile.predictions]).items():
            self._progress(f"{file.name}: whole model at {text_of(points[0])}{left.words()}")
            job = ModelJob(
                path=file.path,
                feeds=feeds,
                batches=tuple(point.batch for point in points),
                inter_op_threads=profile.inter_op_threads,
            )
            found = {one.point: one for one in self._worker(cores, gpu).do(job, measured)}
            self.close()
            profile = replace(
                profile,
                predictions=tuple(
                    _verified(one, found[one.point]) if one.point in found else one for one in profile.predictions
                ),
            )
            self._tables.save_model(kept(profile, self._now_s()))
        profile = replace(profile, whole_s=time.perf_counter() - begun_s, whole_was_measured=True)
        self._tables.save_model(kept(profile, self._now_s()))
        return profile

    # measuring -------------------------------------------------------------------------------------------------------

    def _profile(
        self, extraction: Extraction, points: Sequence[Point], threads: int, sure: float, *, anew: bool
    ) -> Profile:  # fmt: skip
        graph = extraction.graph
        if threads > 1:  # other times than those of the same model in sequence
            graph = replace(graph, digest=f"{graph.digest}-{threads}", name=f"{graph.name}-parallel{threads}")
        parts = parts_of(graph, points, self._cache_bytes, threads)
        rows = self._tables.operators({operator.family for operator in graph.operators.values()})
        if anew:
            rows = [row for row in rows if row.operator.signature not in graph.operators]
        before = {row.operator.signature for row in rows}
        new_points: set[tuple[str, Point]] = set()
        for turn in range(1, ROUNDS_MAX + 1):
            known = self._known(graph, parts, rows)
            chosen = worth_measuring(parts, known, sure)
            if not chosen:
                break
            found = self._measure(extraction, chosen, known, rows, f"{graph.name}: round {turn}")
            keys = {(row.operator.signature, row.point) for row in found}
            rows = [row for row in rows if (row.operator.signature, row.point) not in keys] + found
            new_points |= keys
        known = self._known(graph, parts, rows)
        correction = learn(self._tables.whole_times(graph.name, threads))
        predictions = tuple(self._predict(graph, point, parts[point], known, correction, threads) for point in points)
        return Profile(
            graph=graph,
            device=self._tables.device,
            inter_op_threads=threads,
            predictions=predictions,
            correction=correction,
            new_operators=len(graph.operators.keys() - before),
            reused_operators=len(graph.operators.keys() & before),
            new_points=len(new_points),
            needed_points=len({(part.signature, part.point) for terms in parts.values() for part in terms}),
            whole_s=sum(max(WHOLE.least_s, WHOLE.runs_min * one.expected_s) for one in predictions),
            warnings=(*graph.notes, *_far(graph, parts, known, rows), *_unsure(predictions, sure)),
        )

    def _known(self, graph: ModelGraph, parts: Parts, rows: Sequence[Measured]) -> dict[tuple[str, Point], Estimate]:
        wanted = dict.fromkeys((part.signature, part.point) for terms in parts.values() for part in terms)
        return estimate([(graph.operators[signature], point) for signature, point in wanted], rows)

    def _measure(
        self,
        extraction: Extraction,
        chosen: Sequence[tuple[str, Point]],
        known: Known,
        rows: Sequence[Measured],
        words: str,
    ) -> list[Measured]:
        """Measure operators; what was measured is kept, whatever interrupts it (a lost machine costs a second).

        Raises:
            _NotAlone: one does not run outside its model.
        """
        before = {(row.operator.signature, row.point): row.timing for row in rows}
        found: list[Measured] = []
        saved, saved_s = 0, time.monotonic()
        left = Countdown([_effort_s(known[key].exec_s) for key in chosen])
        try:
            for signature, point in sorted(chosen, key=lambda key: (key[1].place, key)):
                self._progress(f"{words}, {left.place} of {len(chosen)} operator times{left.words()}")
                one = _time_one(self._worker(*point.place), extraction, signature, point)
                old = before.get((signature, point))
                found.append(one if old is None else replace(one, timing=one.timing.and_again(old)))
                left.done()
                if time.monotonic() - saved_s > _SAVE_S:
                    self._tables.save_operators(found[saved:], self._now_s())
                    saved, saved_s = len(found), time.monotonic()
        finally:
            self._tables.save_operators(found[saved:], self._now_s())
        return found

    def _worker(self, cpu_cores: int, gpu_percent: int) -> Worker:
        place = cpu_cores, gpu_percent
        if place not in self._workers:
            where = Place(device=self._tables.device, cpu_cores=cpu_cores, gpu_percent=gpu_percent)
            self._workers[place] = Worker(where, self._cancelled)
        return self._workers[place]

    def _predict(
        self,
        graph: ModelGraph,
        point: Point,
        parts: Sequence[Part],
        known: Known,
        correction: Correction,
        threads: int,
    ) -> Prediction:
        total_s, spread = composed(parts, known)
        composed_s = total_s if threads == 1 else model_s(graph, _call_times(graph, parts, known), threads)
        features = features_of(graph, point, composed_s, self._cache_bytes)
        expected_s = correction.corrected_s(composed_s, features)
        measured_s = sum(
            part.calls * one.exec_s for part in parts if (one := known[part.signature, part.point]).measured
        )
        return Prediction(
            point=point,
            composed_s=composed_s,
            expected_s=expected_s,
            planned_s=expected_s * correction.margin,
            spread=spread,
            measured_share=measured_s / total_s,
            features=features,
            memory_bytes=_RUNTIME_BYTES + 2 * graph.parameter_bytes + 2 * graph.activation_bytes(point.batch),
        )


def _call_times(graph: ModelGraph, parts: Sequence[Part], known: Known) -> dict[str, float]:
    """Seconds of one call of each operator, warm and cold taken together."""
    exec_s = dict.fromkeys(graph.operators, 0.0)
    for part in parts:
        exec_s[part.signature] += part.calls * known[part.signature, part.point].exec_s / graph.counts[part.signature]
    return exec_s


class _NotAlone(Exception):  # noqa: N818 - caught in this module
    """An operator that does not run outside its model; says which and why."""


def _time_one(worker: Worker, extraction: Extraction, signature: str, point: Point) -> Measured:
    operator = extraction.graph.operators[signature]
    try:
        timed = worker.do(OperatorJob(operator=operator, case=extraction.cases[signature], points=(point,)))[0]
    except BackendError as error:
        if worker.was_cancelled or len(extraction.graph.operators) == 1:
            raise
        raise _NotAlone(f"operator {operator} does not run alone: {error}") from error
    return Measured(operator=operator, point=point, timing=timed.timing)


def _by_place(points: Iterable[Point]) -> dict[tuple[int, int], list[Point]]:
    places: dict[tuple[int, int], list[Point]] = {}
    for point in points:
        places.setdefault(point.place, []).append(point)
    return places


def _effort_s(exec_s: float) -> float:
    """About how long timing one operator takes: the runs, and making its session."""
    return 0.005 + max(OPERATOR.least_s, (OPERATOR.runs_min + OPERATOR.warm_ups) * exec_s)


def _far(graph: ModelGraph, parts: Parts, known: Known, rows: Sequence[Measured]) -> Iterator[str]:
    """Warnings about times that are extrapolated: no operator of the family with so much work was measured."""
    largest: dict[str, float] = {}
    for row in rows:
        size = features(row.operator, row.point.batch)[0]
        largest[row.operator.family] = max(size, largest.get(row.operator.family, 0.0))
    for point, terms in parts.items():
        far_s = 0.0
        for part in terms:
            operator = graph.operators[part.signature]
            if features(operator, part.point.batch)[0] > largest.get(operator.family, 0.0) + _FAR_DOUBLINGS:
                far_s += part.calls * known[part.signature, part.point].exec_s
        share = far_s / composed(terms, known)[0]
        if share > FAR_SHARE:
            yield f"{text_of(point)}: {share:.0%} of the time is extrapolated to sizes beyond all that were measured"


def _unsure(predictions: Sequence[Prediction], sure: float) -> Iterator[str]:
    """A note where measuring has ended before the sum was sure."""
    far = [one for one in predictions if one.spread > 1.25 * sure]
    if far:
        worst = max(far, key=lambda one: one.spread)
        yield (
            f"{len(far)} of {len(predictions)} times are less sure than {sure:.0%}, at worst"
            f" {worst.spread:.0%} ({text_of(worst.point)}); run it again, or --verify"
        )


def _verified(one: Prediction, timed: Timed) -> Prediction:
    return replace(one, executions_s=timed.samples_s, memory_bytes=timed.memory_bytes)
