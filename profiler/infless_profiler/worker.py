"""Edge: the process that runs operators and models and times them, on the cores and the GPU share it was given.

A process of its own, because a kernel may crash or run out of memory, cores are pinned before any thread exists, and
CUDA reads its share of the GPU once.
"""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from infless_profiler.around import CALL, OURS, TRANSFER, empty_model
from infless_profiler.isolate import COPIES_BYTES, Case, Feed
from infless_profiler.operators import Operator, Point, moved_bytes
from infless_profiler.sessions import Device, cache_bytes, open_session, runner
from infless_profiler.timing import CALL as CALL_EFFORT
from infless_profiler.timing import COLD_OPERATOR, OPERATOR, WHOLE, Effort, Timing, timing_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a worker runs."""

    device: Device
    cpu_cores: int
    gpu_percent: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorJob:
    """Time one operator for some batch sizes."""

    operator: Operator
    case: Case
    points: tuple[Point, ...]
    """All of the worker's own place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelJob:
    """Time a whole model for some batch sizes."""

    path: Path
    feeds: dict[str, Feed]
    batches: tuple[int, ...]
    effort: Effort = WHOLE
    inter_op_threads: int = 1


Job = OperatorJob | ModelJob


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """Times at one point."""

    point: Point
    timing: Timing
    samples_s: tuple[float, ...] = ()
    """Of whole models."""
    memory_bytes: int = 0
    """Of the whole worker, with a model loaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The job could not be done; the words are the runtime's."""

    words: str


def serve(pipe: Connection, place: Place) -> None:
    """Answer jobs until the pipe closes: `Timed` for each batch, then None; or `Failed`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; who started this process ends it
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-place.cpu_cores :])
    if place.gpu_percent:
        os.environ["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = str(place.gpu_percent)

    overhead_s = _overhead_s(place)
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        try:
            for answer in _do(job, place, overhead_s):
                pipe.send(answer)
            pipe.send(None)
        except Exception as error:  # noqa: BLE001 - onnxruntime raises classes of its own
            pipe.send(Failed(words=str(error) or type(error).__name__))


def _do(job: Job, place: Place, overhead_s: float) -> Iterator[Timed]:
    match job:
        case OperatorJob(operator=operator, case=case, points=points):
            for point in points:
                yield Timed(point=point, timing=_time_operator(operator, case, point, place, overhead_s))
        case ModelJob(path=path, feeds=feeds, batches=batches, effort=effort, inter_op_threads=threads):
            session = open_session(path, place.device, place.cpu_cores, inter_op_threads=threads)
            names = [one.name for one in session.get_outputs()]
            for batch in batches:
                feed = {name: one.array(batch) for name, one in feeds.items()}
                samples_s = _time(lambda feed=feed: session.run(names, feed), effort)  # type: ignore[misc]
                yield Timed(
                    point=Point(batch, place.cpu_cores, place.gpu_percent),
                    timing=timing_of(samples_s),
                    samples_s=tuple(samples_s),
                    memory_bytes=_resident_bytes(),
                )


def _time_operator(
    operator: Operator, case: Case, point: Point, place: Place, overhead_s: float
) -> Timing:  # fmt: skip
    """Time one call, as a model meets it: its inputs were just written, its weights are where the point says."""
    ours = operator.domain == OURS
    if ours and operator.type == TRANSFER:
        return _time_transfer(operator, point, place)
    copies = 1 if ours or point.cold else _copies(operator, point.batch)
    session = open_session(case.path or case.model(copies), place.device, place.cpu_cores, optimise=ours)
    feed = {name: one.array(point.batch) for name, one in case.feeds.items()}
    if ours and operator.type == CALL:
        return timing_of(_time_alone(lambda: session.run(None, feed), CALL_EFFORT))
    run = runner(session, feed, place.device)
    samples_s = _time_alone(run, COLD_OPERATOR, _chiller(feed)) if point.cold else _time_alone(run, OPERATOR)
    return timing_of(samples_s, copies, overhead_s)


def _copies(operator: Operator, batch: int) -> int:
    """More calls in one run where one is over too soon to be timed."""
    moved = moved_bytes(operator, batch)
    return 16 if moved < COPIES_BYTES else 4 if moved < 10 * COPIES_BYTES else 1


def _nothing() -> None:
    """Weights stay where the last run has left them."""


def _chiller(feed: Mapping[str, np.ndarray]) -> Callable[[], None]:
    """What pushes everything out of the caches and brings the inputs back."""

    def chill() -> None:
        _junk().sum()
        for array in feed.values():
            if array.dtype != object:
                array.sum()

    return chill


@lru_cache(maxsize=1)
def _junk() -> np.ndarray:
    """More than the caches hold."""
    return np.ones(max(cache_bytes(), 8 << 20) * 5 // 4 // 4, np.float32)


def _time(run: Callable[[], Any], effort: Effort) -> list[float]:
    """Seconds of each run, after the warm-ups."""
    for _ in range(effort.warm_ups):
        run()
    samples_s: list[float] = []
    while not effort.enough(len(samples_s), sum(samples_s)):
        samples_s.append(_run_s(run))
    return samples_s


def _time_alone(run: Callable[[], Any], effort: Effort, before: Callable[[], None] = _nothing) -> list[float]:
    """Seconds of the runs in which nobody took the processor away; of all, where these are too few."""
    runs_s: list[float] = []
    alone_s: list[float] = []
    for _ in range(effort.warm_ups):
        warm_s = _run_s(run)
        if warm_s > effort.long_s:  # of something long the first run counts as well, wherever its weights were
            runs_s.append(warm_s)
            alone_s.append(warm_s)
    while not effort.enough(len(alone_s), sum(alone_s)) and not effort.given_up(len(runs_s), sum(runs_s)):
        before()
        switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
        runs_s.append(_run_s(run))
        if resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw == switches:
            alone_s.append(runs_s[-1])
    return alone_s if effort.enough(len(alone_s), sum(alone_s)) else runs_s


def _run_s(run: Callable[[], Any]) -> float:
    started_s = time.perf_counter()
    run()
    return time.perf_counter() - started_s


def _overhead_s(place: Place) -> float:
    """What starting a run takes: one of a model that hands its input on, less what 16 more such calls add."""
    case = empty_model(1, 1)
    feed = {name: one.array(1) for name, one in case.feeds.items()}
    effort = Effort(warm_ups=20, runs_min=200, runs_max=400, least_s=0.002)
    one, many = (
        timing_of(
            _time(runner(open_session(case.model(n), place.device, 1, optimise=False), feed, place.device), effort)
        ).exec_s
        for n in (1, 17)
    )
    return max(0.0, one - max(0.0, many - one) / 16)


def _time_transfer(operator: Operator, point: Point, place: Place) -> Timing:
    """A copy of a model's inputs to the device, of its outputs back, or of these into the caller's own memory."""
    import onnxruntime

    array = np.ones(moved_bytes(operator, point.batch), np.uint8)
    if operator.attributes.get("to") == "caller":
        return timing_of(_time_alone(array.copy, OPERATOR))
    value = onnxruntime.OrtValue.ortvalue_from_numpy(array, place.device.kind, 0)
    if operator.attributes.get("to") == "host":
        return timing_of(_time(value.numpy, OPERATOR))
    return timing_of(_time(lambda: value.update_inplace(array), OPERATOR))


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
