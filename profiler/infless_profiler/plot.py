"""Edge: the picture of `infless profile --verify`: predicted against measured, every point."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from infless_core.errors import InvalidInput
from infless_profiler.prediction import Profile

_INK, _MUTED, _RULE = "#1f2933", "#697586", "#d7dde5"
_COLOURS = ("#3b82c4", "#e08a2e", "#2e8b57", "#7c5cb0", "#9a6a2f", "#d64545")


def draw(profiles: list[Profile], path: Path, title: str) -> None:
    """Measured times across, predicted ones up; on the line they are equal, between the dotted ones within 10 %.

    Raises:
        InvalidInput: matplotlib is not installed, or the file cannot be written.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise InvalidInput("--picture needs matplotlib: pip install 'infless[report]'") from error
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 6.4), layout="constrained")
    everything: list[float] = []
    for place, profile in enumerate(profiles):
        for cores in sorted({one.point.place for one in profile.predictions}):
            points = [one for one in profile.predictions if one.point.place == cores and one.measured_s]
            measured = [1000 * float(one.measured_s or 0) for one in points]
            expected = [1000 * one.expected_s for one in points]
            everything += measured + expected
            label = profile.graph.name if len(profiles) > 1 else _place_text(cores)
            first = cores == profile.predictions[0].point.place or len(profiles) == 1
            axes.scatter(
                measured,
                expected,
                s=22,
                color=_COLOURS[place % len(_COLOURS)] if len(profiles) > 1 else _COLOURS[cores[0] % len(_COLOURS)],
                marker=("o", "s", "^", "D")[(place // len(_COLOURS) + cores[0] - 1) % 4],
                label=label if first else None,
            )
            if len(profiles) == 1:
                for one, x, y in zip(points, measured, expected, strict=True):
                    axes.annotate(f"b={one.point.batch}", (x, y), (4, -9), textcoords="offset points", fontsize=7)
    _frame(axes, everything, title)
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
