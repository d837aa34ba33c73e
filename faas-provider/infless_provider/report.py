"""One picture of a replay: every request against its target, with the load, the instances and the batches below.

Needs matplotlib (`pip install 'infless[report]'`). Columns are runs of the same load, rows are functions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infless_core.errors import InvalidInput
from infless_core.units import format_duration
from infless_provider.shots import Shot, percentile, summarise

INK, MUTED, RULE = "#1f2933", "#697586", "#d7dde5"
DOT, P99, TARGET, LATE = "#3b82c4", "#12395c", "#d64545", "#e08a2e"
LOAD, START, STOP, BATCH = "#c9d6e3", "#2e8b57", "#9a6a2f", "#7c5cb0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """An instance that started or stopped."""

    at_s: float
    started: bool
    label: str
    """Its configuration, short: `(b=8,c=1)`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One function under one system."""

    function: str
    target_s: float
    shots: tuple[Shot, ...]
    marks: tuple[Mark, ...] = ()
    batches: tuple[tuple[float, float], ...] | None = None
    """`(seconds from the start, mean size of the batches since the point before)`; empty: this system makes none;
    None: nobody looked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One system under the load; its panels are drawn in the order given."""

    title: str
    panels: tuple[Panel, ...]


def require() -> Any:
    """Matplotlib, drawing to files only.

    Raises:
        InvalidInput: it is not installed; the message is the line that installs it.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        raise InvalidInput("a picture needs matplotlib: pip install 'infless[report]'") from None
    mpl.use("Agg")
    return mpl


def draw(path: Path, columns: Sequence[Column], title: str = "") -> None:
    """Write the picture as a PNG, about 1400 pixels wide and 1000 high for two functions.

    Args:
        path: folders above it are made.
        columns: one, or two to compare; the same functions in the same order in each.
        title: above everything.

    Raises:
        InvalidInput: matplotlib is missing, or there is nothing to draw.
    """
    mpl = require()
    rows = max((len(column.panels) for column in columns), default=0)
    if not rows:
        raise InvalidInput("there is nothing to draw: no column has a panel")
    from matplotlib.figure import Figure

    top = _TOP if title else _TOP - 0.45
    height = top + 4.1 * rows + _BOTTOM
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(14, height), dpi=100)
        spaced = figure.add_gridspec(
            rows, len(columns), hspace=0.30, wspace=0.07,
            left=0.068, right=0.985, top=1 - top / height, bottom=_BOTTOM / height,
        )  # fmt: skip
        for place, column in enumerate(columns):
            for row in range(len(column.panels)):
                _panel(figure, spaced[row, place], row, place, columns)
        figure.text(0.068, 1 - 0.15 / height, title, size=15, weight="bold", va="top")
        _legend(figure)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)


_TOP, _BOTTOM = 1.35, 0.85
"""Inches above the first panel (title, column titles, figures, labels) and below the last (axis, legend)."""

_STYLE = {
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
}


def rolling_p99(shots: Sequence[Shot], width_s: float = 3.0, step_s: float = 0.5) -> list[tuple[float, float]]:
    """`(time, p99 of the right answers due within `width_s` around it)`; times without answers are left out."""
    points: list[tuple[float, float]] = []
    ordered = sorted((shot.at_s, shot.latency_s) for shot in shots if shot.ok)
    if not ordered:
        return points
    first = last = 0
    for step in range(int(ordered[-1][0] / step_s) + 1):
        centre_s = step * step_s
        while last < len(ordered) and ordered[last][0] < centre_s + width_s / 2:
            last += 1
        while first < last and ordered[first][0] < centre_s - width_s / 2:
            first += 1
        if last > first:
            points.append((centre_s, percentile([latency for _, latency in ordered[first:last]], 99)))
    return points


def offered_per_second(shots: Sequence[Shot]) -> list[int]:
    """How many requests were due in each second."""
    counts = [0] * (int(max((shot.at_s for shot in shots), default=0.0)) + 1)
    for shot in shots:
        counts[int(shot.at_s)] += 1
    return counts


def spread_labels(at_s: Sequence[float], gap_s: float, rows: int) -> list[int]:
    """A row for each label so that neighbours in a row are `gap_s` apart where that is possible; -1 for no room."""
    free_s = [-math.inf] * rows
    places = []
    for time_s in at_s:
        row = next((row for row in range(rows) if free_s[row] <= time_s), -1)
        if row >= 0:
            free_s[row] = time_s + gap_s
        places.append(row)
    return places


def _legend(figure: Any) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    def dot(colour: str, sign: str = "o") -> Any:
        return Line2D([], [], linestyle="", marker=sign, markersize=5, color=colour)

    entries = {
        "answered in time": dot(DOT), "late": dot(LATE), "failed or wrong": dot(TARGET, "x"),
        "p99 of answers (3 s)": Line2D([], [], color=P99),
        "target": Line2D([], [], color=TARGET, linestyle=(0, (5, 3))),
        "offered, in time": Patch(color=LOAD), "offered, not in time": Patch(color=TARGET),
        "instance started": Line2D([], [], color=START), "stopped": Line2D([], [], color=STOP),
    }  # fmt: skip
    figure.legend(
        entries.values(), entries.keys(), loc="lower center", ncols=len(entries), frameon=False, fontsize=9,
        handletextpad=0.5, columnspacing=1.8, labelcolor=MUTED,
    )  # fmt: skip


def _panel(figure: Any, spaced: Any, row: int, place: int, columns: Sequence[Column]) -> None:
    """The three strips of one function under one system; strips of one function share their scales."""
    panel = columns[place].panels[row]
    same = [column.panels[row] for column in columns if row < len(column.panels)]
    length_s = max(1.0, *(math.ceil(shot.at_s) for p in same for shot in p.shots), 1.0)
    strips = spaced.subgridspec(3, 1, height_ratios=(4.0, 1.0, 0.9), hspace=0.14)
    latency, load, batch = (figure.add_subplot(strip) for strip in strips)
    for axes in (latency, load, batch):
        axes.set_xlim(0, length_s)
        axes.grid(axis="x", color=RULE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(length=0, labelleft=place == 0, labelbottom=axes is batch)
    _draw_latency(latency, panel, same)
    _draw_marks(latency, panel, length_s)
    _draw_load(load, panel, same)
    _draw_batches(batch, panel, same)
    if place == 0:
        for axes, text in ((latency, "latency"), (load, "req/s"), (batch, "batch")):
            axes.set_ylabel(text)
    if row == len(columns[place].panels) - 1:
        batch.set_xlabel("seconds")
    if row == 0:
        latency.text(0, 1.25, columns[place].title, transform=latency.transAxes, size=12.5, weight="bold", color=P99)
    _headline(latency, panel)


def _headline(axes: Any, panel: Panel) -> None:
    figures = summarise(panel.shots, panel.target_s)
    # Infinite: more than one in a hundred was not answered rightly, so there is no 99th percentile to name.
    p99 = [f"p99 {format_duration(figures.p99_s)}"] if figures.p99_s < math.inf else []
    parts = [*p99, f"{_share(figures.share_within_target)} within {format_duration(panel.target_s)}"]
    parts += [f"{sum(figures.errors.values())} failed"] * bool(figures.errors)
    parts += [f"{figures.wrong} wrong"] * bool(figures.wrong)
    good = figures.share_within_target >= 0.99
    axes.text(0, 1.135, panel.function, transform=axes.transAxes, size=10.5, weight="bold", color=INK)
    axes.text(
        1, 1.135, "   ".join(parts), transform=axes.transAxes, size=10.5, ha="right", color=START if good else TARGET
    )


def _share(share: float) -> str:
    """Never rounded up to a whole 100 %."""
    return "100 %" if share == 1 else f"{min(share, 0.9999):.2%}".replace("%", " %")


_ROUND_MS = tuple(10.0**power for power in range(-1, 6))


def _draw_latency(axes: Any, panel: Panel, same: Sequence[Panel]) -> None:
    seen_ms = [shot.latency_s * 1000 for p in same for shot in p.shots if shot.ok and shot.latency_s > 0]
    target_ms = panel.target_s * 1000
    low = min([target_ms / 20, *([percentile(seen_ms, 0.5)] if seen_ms else [])]) * 0.8
    high = max([target_ms * 2.5, *seen_ms]) * 1.6
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    ticks_ms = [tick for tick in _ROUND_MS if low <= tick <= high and not target_ms / 1.6 < tick < target_ms * 1.6]
    axes.set_yticks([*ticks_ms, target_ms], [format_duration(tick / 1000) for tick in [*ticks_ms, target_ms]])
    for label in axes.get_yticklabels()[-1:]:  # only the first column has labels
        label.set(color=TARGET, weight="bold")
    axes.minorticks_off()
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    right = [shot for shot in panel.shots if shot.ok]
    for shots, colour in (
        ([shot for shot in right if shot.latency_s <= panel.target_s], DOT),
        ([shot for shot in right if shot.latency_s > panel.target_s], LATE),
    ):
        # More dots, fainter dots: the density stays readable from ten to a thousand requests a second.
        size = 3.6 if len(panel.shots) > 1000 else 5.0
        alpha = min(0.7, max(0.12, 1500 / max(1, len(panel.shots))))
        axes.plot(
            [shot.at_s for shot in shots], [max(low, shot.latency_s * 1000) for shot in shots],
            ".", markersize=size, color=colour, alpha=alpha, markeredgewidth=0, rasterized=True,
        )  # fmt: skip
    failed_s = [shot.at_s for shot in panel.shots if not shot.ok]
    axes.plot(failed_s, [high / 1.15] * len(failed_s), "x", color=TARGET, markersize=4, markeredgewidth=0.9)
    rolling = rolling_p99(panel.shots)
    axes.plot([at_s for at_s, _ in rolling], [p99_s * 1000 for _, p99_s in rolling], color=P99, linewidth=1.5)
    axes.axhline(target_ms, color=TARGET, linewidth=1.3, linestyle=(0, (5, 3)))


def _draw_marks(axes: Any, panel: Panel, length_s: float) -> None:
    """Starts and stops as lines through the panel, their configurations above it."""
    marks = sorted(panel.marks, key=lambda mark: mark.at_s)
    rows = spread_labels([mark.at_s for mark in marks], length_s * 0.13, 2)
    for mark, row in zip(marks, rows, strict=True):
        colour = START if mark.started else STOP
        at_s = min(max(mark.at_s, 0.0), length_s)
        axes.axvline(at_s, color=colour, linewidth=0.9, alpha=0.75)
        if row >= 0:
            sign = "+" if mark.started else "\u2212"
            axes.text(
                min(at_s, length_s * 0.885), 1.01 + 0.055 * row, f"{sign}{mark.label}",
                transform=axes.get_xaxis_transform(), size=7.5, color=colour, va="bottom",
            )  # fmt: skip


def _draw_load(axes: Any, panel: Panel, same: Sequence[Panel]) -> None:
    highest = max(max(offered_per_second(p.shots), default=0) for p in same)
    offered = offered_per_second(panel.shots)
    in_time = offered_per_second([s for s in panel.shots if s.ok and s.latency_s <= panel.target_s])
    axes.set_ylim(0, max(1, highest) * 1.1)
    for counts, colour in ((offered, TARGET), (in_time, LOAD)):
        # What is not in time stays visible as the red rim between the two areas.
        axes.fill_between(range(len(counts) + 1), [*counts, 0], step="post", color=colour, linewidth=0)
    axes.yaxis.set_major_locator(_few_ticks())


def _draw_batches(axes: Any, panel: Panel, same: Sequence[Panel]) -> None:
    highest = max([size for p in same for _, size in p.batches or ()], default=1.0)
    axes.set_ylim(0, max(2.0, highest * 1.15))
    if panel.batches:
        axes.plot([at_s for at_s, _ in panel.batches], [size for _, size in panel.batches],
                  ".-", markersize=4, linewidth=1, color=BATCH)  # fmt: skip
    else:
        text = "batch sizes were not recorded" if panel.batches is None else "one request at a time"
        axes.text(0.5, 0.45, text, transform=axes.transAxes, ha="center", va="center", color=MUTED)
    axes.yaxis.set_major_locator(_few_ticks())


def _few_ticks() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(2, integer=True)
