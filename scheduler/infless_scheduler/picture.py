"""The servers of a plan, filled with instances: as rows of blocks for a terminal, and (`picture_svg`) as a picture."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

from infless_core.model import Plan, Problem
from infless_scheduler.fillings import Bar, Drawn, Filling, drawn
from infless_scheduler.listing import abbreviated, clipped, printable, rate
from infless_scheduler.picture_svg import servers_as_svg

__all__ = ["letters", "servers_as_svg", "servers_as_text"]

ROWS_MAX = 40
_LABEL = 26
_CELLS = (50, 40, 32, 24, 20, 16)
"""Of a bar, in which cores and percents end up at borders of cells where they can."""
_FREE = "."
_OTHERS = "#"
_BACKGROUNDS = (214, 117, 36, 227, 32, 166, 175, 250)
"""Of the terminal's 256 colours those next to the picture's hues; black is read on each of them."""


def letters() -> str:
    """One for each function: first the small ones that everybody can read out, then Greek ones."""
    latin, greek = "abcdefghijklmnopqrstuvwxyz", "αβγδεζηθικλμνξοπρστυφχψω"
    return latin + greek


def servers_as_text(problem: Problem, made: Plan, *, width: int = 120, colour: bool = False) -> str:
    """A row for all servers that are filled alike: a bar for the cores, one for each GPU, a letter for each function.

    An instance begins with the capital letter.

    Args:
        problem: what was planned.
        made: the plan for it.
        width: of the terminal.
        colour: whether it understands colours; letters stay.
    """
    picture = drawn(problem, made, alike=True)
    symbols = dict(itertools.zip_longest(picture.functions, letters()[: len(picture.functions)], fillvalue=_OTHERS))
    paints = dict(zip(picture.functions, itertools.cycle(_BACKGROUNDS), strict=False)) if colour else {}
    shown, rest = _most_frequent(picture.fillings)
    lines = list(_rows(shown, width, symbols, paints))
    if rest:
        number = sum(len(filling.servers) for filling in rest)
        lines.append(f"and {number} more servers in {len(rest)} other fillings")
    if picture.idle:
        draining = sum(server.draining for server in picture.idle)
        also = f" ({draining} of them being drained)" if draining else ""
        lines.append(f"empty: {abbreviated(server.id for server in picture.idle)}{also}")
    lines += ["", *_legend(picture, symbols, paints), *picture.caption]
    return "\n".join(lines) + "\n"


def _most_frequent(fillings: Sequence[Filling]) -> tuple[Sequence[Filling], Sequence[Filling]]:
    """All in their order, or those that most servers have."""
    if len(fillings) <= ROWS_MAX:
        return fillings, ()
    ordered = sorted(fillings, key=lambda filling: -len(filling.servers))
    return ordered[:ROWS_MAX], ordered[ROWS_MAX:]


def _rows(
    fillings: Sequence[Filling], width: int, symbols: Mapping[str, str], paints: Mapping[str, int]
) -> Iterator[str]:
    if not fillings:
        return
    columns = max(len(filling.bars) for filling in fillings)
    label = min(_LABEL, max(len(filling.label) for filling in fillings))
    room = (width - label) // columns - 3
    cells = next((cells for cells in _CELLS if cells <= room), _CELLS[-1])
    headings = ["cores", *(f"GPU {n}" for n in range(1, columns))]
    yield f"{'':{label}} " + " ".join(f" {heading:{cells}} " for heading in headings).rstrip()
    for filling in fillings:
        bars = " ".join(f"[{_bar(bar, cells, symbols, paints)}]" for bar in filling.bars)
        yield f"{clipped(filling.label, label):{label}} {bars}"


def _bar(bar: Bar, cells: int, symbols: Mapping[str, str], paints: Mapping[str, int]) -> str:
    blocks = []
    for instance, width in zip((i for i, _ in bar.parts), widths(bar, cells), strict=True):
        symbol = symbols[instance.function]
        text = (symbol.upper() + symbol * (width - 1)) if width else ""
        blocks.append(_painted(text, paints.get(instance.function)))
    return "".join(blocks) + _FREE * (cells - sum(widths(bar, cells)))


def widths(bar: Bar, cells: int) -> list[int]:
    """The cells of each part: its borders where they are, rounded, so that the sum is right."""
    borders = [0, *itertools.accumulate(amount for _, amount in bar.parts)]
    places = [(2 * border * cells + bar.size) // (2 * bar.size) for border in borders]
    return [high - low for low, high in itertools.pairwise(places)]


def _painted(text: str, paint: int | None) -> str:
    return text if paint is None or not text else f"\x1b[30;48;5;{paint}m{text}\x1b[0m"


def _legend(picture: Drawn, symbols: Mapping[str, str], paints: Mapping[str, int]) -> Iterator[str]:
    known = [function for function in picture.functions if symbols[function] != _OTHERS]
    entries = []
    for function in known:
        number, rate_rps = picture.instances[function]
        many = f"{number} instance{'s' if number > 1 else ''}, {rate(rate_rps)}"
        entries.append((symbols[function], paints.get(function), f"{printable(function)} ({many})"))
    size = max((len(text) for *_, text in entries), default=0)
    columns = 2 if len(entries) > 10 else 1
    for start in range(0, len(entries), columns):
        row = entries[start : start + columns]
        yield "  ".join(f"{_painted(symbol, paint)} {text:{size}}" for symbol, paint, text in row).rstrip()
    if others := len(picture.functions) - len(known):
        yield f"{_OTHERS} {others} more functions"
