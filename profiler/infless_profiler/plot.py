"""Edge: the picture of `infless profile --verify`: predicted against measured, every point."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from infless_core.errors import InvalidInput
from infless_profiler.prediction import Profile

_INK, _MUTED, _RULE = "#1f2933", "#697586", "#d7dde5"
_COLOURS = ("#3b82c4", "#e08a2e", "#2e8b57", "#7c5cb0", "#9a6a2f", "#d64545")


def draw(profile: Profile, path: Path) -> None:
    """Measured times across, predicted ones up; on the line they are equal, between the dotted ones within 10 %.

    Raises:
        InvalidInput: matplotlib is not installed, or the file cannot be written.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise InvalidInput("a picture needs matplotlib: pip install 'infless[report]'") from error
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 6.4), layout="constrained")
    everything: list[float] = []
    places = sorted({one.point.place for one in profile.predictions})
    for place, colour in zip(places, itertools.cycle(_COLOURS), strict=False):
        points = [one for one in profile.predictions if one.point.place == place and one.measured_s]
        measured = [1000 * float(one.measured_s or 0) for one in points]
        expected = [1000 * one.expected_s for one in points]
        everything += measured + expected
        axes.scatter(measured, expected, s=22, color=colour, label=_place_text(place))
        for one, x, y in zip(points, measured, expected, strict=True):
            axes.annotate(f"b={one.point.batch}", (x, y), (4, -9), textcoords="offset points", fontsize=7)
    _frame(axes, everything, f"{profile.graph.name}: predicted from operators against measured whole")
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise InvalidInput(f"--picture: {path} cannot be written: {error}") from error
    finally:
        plt.close(figure)


def _place_text(place: tuple[int, int]) -> str:
    cores, gpu = place
    return f"{cores} core{'s' if cores > 1 else ''}" + (f", {gpu} % of the GPU" if gpu else "")


def _frame(axes: Any, values: list[float], title: str) -> None:
    low, high = 0.7 * min(values), 1.4 * max(values)
    axes.plot([low, high], [low, high], color=_INK, linewidth=1)
    for factor in (0.9, 1.1):
        axes.plot([low, high], [factor * low, factor * high], color=_MUTED, linewidth=0.8, linestyle=":")
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    axes.set_xlabel("measured whole, ms (median execution)")
    axes.set_ylabel("predicted from operators, ms")
    axes.set_title(title, loc="left", color=_INK, fontsize=11)
    axes.grid(color=_RULE, linewidth=0.6)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
