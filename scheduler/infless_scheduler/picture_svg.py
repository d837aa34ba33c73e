"""The servers of a plan as one SVG without anything from outside, readable on light and dark ground.

A card for each server (in large clusters for all that are filled alike): a bar for its cores, one for each GPU, and a
block for each instance, with a tooltip. Hues are those of Okabe and Ito, who chose them for colour-blind readers;
from the ninth function on a hatching is added.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from infless_core.model import Plan, PlannedInstance, Problem
from infless_scheduler.fillings import Bar, Drawn, Filling, drawn
from infless_scheduler.listing import abbreviated, clipped, printable, rate

SERVERS_MAX = 60
"""More are drawn once for all that are filled alike; of these, too, only so many: those that most servers have."""
_WIDTH, _MARGIN, _GAP = 1200, 24, 16
_BAR_HEIGHT, _BAR_STEP, _TITLE, _PADDING = 20, 25, 22, 12
_LABEL_WIDTH, _SHARE_WIDTH = 42, 40
_LEGEND_STEP, _LEGEND_COLUMN = 24, 288
_COLUMNS, _COLUMNS_MOST = ((4, 2), (12, 3)), 4
"""Up to so many cards in so many columns; then the most."""
_CHARACTER = 6.6
"""About the width of a letter in the small font."""
_HUES = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#a6a6a6")
_INKS = ("#000", "#000", "#fff", "#000", "#fff", "#fff", "#000", "#000")
_HATCHINGS = (
    "",
    "M-2,2l4,-4M0,8l8,-8M6,10l4,-4",
    "M2,2h2v2h-2zM6,6h2v2h-2z",
    "M0,4h8",
    "M4,0v8",
    "M-2,6l4,4M0,0l8,8M6,-2l4,4",
    "M0,0l8,8M0,8l8,-8",
    "M0,4h8M4,0v8",
)
_STYLE = """
svg { --ground: #ffffff; --card: #f6f7f9; --line: #d5d9e0; --free: #e6e9ee; --ink: #1c2128; --faint: #5b6470; }
@media (prefers-color-scheme: dark) {
  svg { --ground: #14171c; --card: #1d2229; --line: #363d48; --free: #2b313a; --ink: #e8ebf0; --faint: #9aa4b2; }
}
text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: var(--ink); }
.title { font-size: 20px; font-weight: 600; }
.name { font-weight: 600; }
.faint { fill: var(--faint); }
.ground { fill: var(--ground); }
.card { fill: var(--card); stroke: var(--line); }
.free { fill: var(--free); }
.block { stroke: var(--card); stroke-width: 1.5; }
.block:hover { stroke: var(--ink); }
.in { font-size: 11px; text-anchor: middle; pointer-events: none; }
.end { text-anchor: end; }
"""


def servers_as_svg(problem: Problem, made: Plan) -> str:
    """The picture of a plan; ids are escaped."""
    picture = drawn(problem, made, alike=len({instance.server for instance in made.instances}) > SERVERS_MAX)
    looks = {function: _look(index) for index, function in enumerate(picture.functions)}
    shown = picture.fillings
    if len(shown) > SERVERS_MAX:
        shown = tuple(sorted(shown, key=lambda filling: -len(filling.servers))[:SERVERS_MAX])
    heading = [
        "Servers and their instances",
        *picture.caption,
        "a block is an instance; b16: its batches are of 16",
    ]
    body = [_text(_MARGIN, _MARGIN + 18 + 22 * n, line, "faint" if n else "title") for n, line in enumerate(heading)]
    legend, top = _legend(picture, looks, _MARGIN + 22 * len(heading) + 12)
    cards, top = _cards(shown, looks, top + 12)
    rest = [_text(_MARGIN, top + 10 + 20 * n, line, "faint") for n, line in enumerate(_rest(picture, shown))]
    top += 20 * len(rest)
    height = top + _MARGIN
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">',
            f"<title>{escape(picture.caption[0])}</title>",
            f"<style>{_STYLE}</style>",
            f"<defs>{''.join(_hatchings(looks.values()))}</defs>",
            f'<rect class="ground" width="{_WIDTH}" height="{height}"/>',
            *body,
            *legend,
            *cards,
            *rest,
            "</svg>",
            "",
        ]
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """How the blocks of a function are filled."""

    hue: str
    ink: str
    hatching: str
    id: str

    @property
    def fill(self) -> str:
        return f"url(#{self.id})" if self.hatching else self.hue


def _look(index: int) -> _Look:
    """By its place among the functions: the first ones, which take most, have plain hues."""
    hue, hatching = index % len(_HUES), index // len(_HUES) % len(_HATCHINGS)
    return _Look(hue=_HUES[hue], ink=_INKS[hue], hatching=_HATCHINGS[hatching], id=f"h{hue}-{hatching}")


def _hatchings(looks: Iterable[_Look]) -> Iterator[str]:
    for look in dict.fromkeys(look for look in looks if look.hatching):
        yield (
            f'<pattern id="{look.id}" width="8" height="8" patternUnits="userSpaceOnUse">'
            f'<rect width="8" height="8" fill="{look.hue}"/>'
            f'<path d="{look.hatching}" stroke="{look.ink}" stroke-opacity="0.55" stroke-width="1.4" fill="none"/>'
            "</pattern>"
        )


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x:g}" y="{y:g}"{named}>{escape(text)}</text>'


def _legend(picture: Drawn, looks: Mapping[str, _Look], top: float) -> tuple[list[str], float]:
    """Swatches with names, numbers and rates in columns; how far down they reach."""
    lines = []
    columns = (_WIDTH - 2 * _MARGIN) // _LEGEND_COLUMN
    for place, function in enumerate(picture.functions):
        x = _MARGIN + place % columns * _LEGEND_COLUMN
        y = top + place // columns * _LEGEND_STEP
        number, rate_rps = picture.instances[function]
        title = f"{printable(function)}: {number} instances, {rate(rate_rps)}"
        lines.append(
            f"<g><title>{escape(title)}</title>"
            f'<rect x="{x}" y="{y}" width="16" height="16" rx="3" fill="{looks[function].fill}"/>'
            f"{_text(x + 23, y + 12.5, clipped(printable(function), 24), 'name')}"
            f"{_text(x + _LEGEND_COLUMN - 18, y + 12.5, f'{number} at {rate(rate_rps / number)}', 'faint end')}</g>"
        )
    rows = -(-len(picture.functions) // columns)
    return lines, top + rows * _LEGEND_STEP


def _cards(fillings: Sequence[Filling], looks: Mapping[str, _Look], top: float) -> tuple[list[str], float]:
    """The cards in rows; how far down they reach."""
    columns = next((columns for most, columns in _COLUMNS if len(fillings) <= most), _COLUMNS_MOST)
    width = (_WIDTH - 2 * _MARGIN - (columns - 1) * _GAP) / columns
    lines = []
    for start in range(0, len(fillings), columns):
        row = fillings[start : start + columns]
        height = 2 * _PADDING + _TITLE + _BAR_STEP * max(len(filling.bars) for filling in row) - 6
        for place, filling in enumerate(row):
            x = _MARGIN + place * (width + _GAP)
            lines.append(f'<g transform="translate({x:g},{top:g})">{_card(filling, looks, width, height)}</g>')
        top += height + _GAP
    return lines, top


def _card(filling: Filling, looks: Mapping[str, _Look], width: float, height: float) -> str:
    server = filling.servers[0]
    kind = f"{printable(server.kind)}, " if server.kind else ""
    ids = abbreviated((server.id for server in filling.servers), shown=20)
    title = f"{kind}{server.cpu_cores} cores, {len(server.gpus)} GPUs: {ids}"
    name = clipped(filling.label, int((width - 2 * _PADDING) / _CHARACTER))
    parts = [
        f'<rect class="card" width="{width:g}" height="{height:g}" rx="8"/>',
        f"<g><title>{escape(title)}</title>{_text(_PADDING, _PADDING + 11, name, 'name')}</g>",
    ]
    for place, bar in enumerate(filling.bars):
        parts += _bar(bar, looks, width - 2 * _PADDING, _PADDING + _TITLE + place * _BAR_STEP)
    return "".join(parts)


def _bar(bar: Bar, looks: Mapping[str, _Look], width: float, top: float) -> Iterator[str]:
    left, length = _PADDING + _LABEL_WIDTH, width - _LABEL_WIDTH - _SHARE_WIDTH
    middle = top + _BAR_HEIGHT / 2 + 4
    yield _text(_PADDING, middle, clipped(bar.label, 6), "faint")
    yield f'<rect class="free" x="{left}" y="{top}" width="{length:g}" height="{_BAR_HEIGHT}" rx="3"/>'
    used = 0
    for instance, amount in bar.parts:
        x, block = left + length * used / bar.size, length * amount / bar.size
        yield _block(instance, looks[instance.function], x, top, block)
        used += amount
    yield _text(_PADDING + width, middle, f"{bar.share:.0%}", "faint end")


def _block(instance: PlannedInstance, look: _Look, x: float, top: float, width: float) -> str:
    """One instance: its function's look, its batch size where there is room, all of it in the tooltip."""
    title = (
        f"{printable(instance.id)}: {printable(instance.function)} {instance.configuration},"
        f" {rate(instance.rate_rps)} of at most {rate(instance.rate_up_rps)}, {instance.action}"
    )
    label = f"b{instance.configuration.batch}"
    inside = ""
    if width >= len(label) * _CHARACTER + 6 and not look.hatching:
        place = f'x="{x + width / 2:.1f}" y="{top + _BAR_HEIGHT / 2 + 4:g}"'
        inside = f'<text class="in" {place} style="fill:{look.ink}">{label}</text>'
    return (
        f"<g><title>{escape(title)}</title>"
        f'<rect class="block" x="{x:.1f}" y="{top}" width="{width:.1f}" height="{_BAR_HEIGHT}" rx="3"'
        f' fill="{look.fill}"/>{inside}</g>'
    )


def _rest(picture: Drawn, shown: Sequence[Filling]) -> Iterator[str]:
    """What is not drawn, in words."""
    total = sum(len(filling.servers) for filling in picture.fillings)
    if rest := total - sum(len(filling.servers) for filling in shown):
        yield f"and {rest} more servers in {len(picture.fillings) - len(shown)} other fillings"
    if picture.idle:
        draining = sum(server.draining for server in picture.idle)
        also = f" ({draining} of them being drained)" if draining else ""
        yield f"{len(picture.idle)} empty: {abbreviated(server.id for server in picture.idle)}{also}"
