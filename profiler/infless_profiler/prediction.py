"""Pure: what is asked of the profiler, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from infless_profiler.correction import Correction
from infless_profiler.operators import ModelGraph, Point
from infless_profiler.sessions import Device
from infless_profiler.tables import ModelTime, ProfiledModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Configurations that are asked for."""

    batches: tuple[int, ...]
    cpu_cores: tuple[int, ...]
    gpu_percents: tuple[int, ...] = (0,)
    inter_op_threads: int = 1
    """Operators that run at the same time (ONNX Runtime's `ORT_PARALLEL`); instances run one after the other."""

    def points(self, batch_max: int | None) -> tuple[Point, ...]:
        """All of them, smallest first; batches beyond `batch_max` are left out."""
        batches = [batch for batch in self.batches if batch_max is None or batch <= batch_max]
        return tuple(
            Point(batch, cores, gpu) for gpu in self.gpu_percents for cores in self.cpu_cores for batch in batches
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A model's time in one configuration."""

    point: Point
    composed_s: float
    """The sum of its operators."""
    expected_s: float
    """With the device's correction."""
    planned_s: float
    """With its margin: about 95 of 100 executions take at most this long."""
    spread: float
    """Of the sum, as far as its operators' times are estimates: 0.02 is 2 %."""
    measured_share: float
    """How much of the sum was measured and not estimated."""
    features: tuple[float, ...]
    memory_bytes: int
    executions_s: tuple[float, ...] = ()
    """What whole executions took, where they were measured (`--verify`)."""

    @property
    def measured_s(self) -> float | None:
        """The median whole execution."""
        return float(np.median(self.executions_s)) if self.executions_s else None


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What is known of a model after it was profiled."""

    graph: ModelGraph
    device: Device
    inter_op_threads: int
    predictions: tuple[Prediction, ...]
    correction: Correction
    new_operators: int = 0
    """Of which nothing was known before."""
    reused_operators: int = 0
    new_points: int = 0
    """Operators times configurations that were measured now."""
    needed_points: int = 0
    """How many there are."""
    profiling_s: float = 0.0
    whole_s: float = 0.0
    """What measuring the whole model in every configuration takes; measured with `--verify`, else worked out."""
    whole_was_measured: bool = False
    warnings: tuple[str, ...] = ()


def kept(profile: Profile, now_s: float) -> ProfiledModel:
    """As the database keeps it."""
    about = {
        "inter_op_threads": profile.inter_op_threads,
        "operators": len(profile.graph.operators),
        "calls": len(profile.graph.calls),
        "new_operators": profile.new_operators,
        "reused_operators": profile.reused_operators,
        "new_points": profile.new_points,
        "needed_points": profile.needed_points,
        "profiling_s": profile.profiling_s,
        "whole_s": profile.whole_s,
        "parameter_bytes": profile.graph.parameter_bytes,
        "warnings": list(profile.warnings),
    }
    times = tuple(
        ModelTime(
            point=one.point, composed_s=one.composed_s, features=one.features, executions_s=one.executions_s,
            memory_bytes=one.memory_bytes,
        )
        for one in profile.predictions
    )  # fmt: skip
    return ProfiledModel(
        digest=profile.graph.digest, name=profile.graph.name, profiled_at_s=now_s, about=about, times=times
    )


def text_of(point: Point) -> str:
    """A configuration for people."""
    gpu = f", {point.gpu_percent} % of the GPU" if point.gpu_percent else ""
    return f"batch {point.batch} on {point.cpu_cores} core{'s' if point.cpu_cores > 1 else ''}{gpu}"
