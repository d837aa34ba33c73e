"""Pure: how far predictions are from what was measured. Every point counts; none is left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Errors of predicted against measured execution times, as shares of the measured one."""

    points: int
    mean: float
    """Mean absolute percentage error."""
    median: float
    p90: float
    max: float
    exceed_share: float
    """Of single executions, how many took longer than planned."""


def accuracy(
    expected_s: Sequence[float], planned_s: Sequence[float], executions_s: Sequence[Sequence[float]]
) -> Accuracy | None:
    """Compare point by point; None without any.

    Args:
        expected_s: predicted time of the median execution, for each point.
        planned_s: the time that is planned with, for each point.
        executions_s: what executions took at each point; their median is what was measured.
    """
    if not expected_s:
        return None
    measured_s = np.array([np.median(one) for one in executions_s])
    errors = np.abs(np.asarray(expected_s) / measured_s - 1)
    exceeded = [float(np.mean(np.asarray(one) > most)) for one, most in zip(executions_s, planned_s, strict=True)]
    return Accuracy(
        points=len(errors),
        mean=float(errors.mean()),
        median=float(np.median(errors)),
        p90=float(np.quantile(errors, 0.9)),
        max=float(errors.max()),
        exceed_share=float(np.mean(exceeded)),
    )
