"""Ids as people read them: numbers in their order, long lists cut short, nothing that a terminal would obey."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

_DIGITS = re.compile(r"([0-9]{1,15})")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """A sort key under which `s2` comes before `s10`."""
    parts = _DIGITS.split(text)
    return tuple((1, int(part), part) if index % 2 else (0, 0, part) for index, part in enumerate(parts))


def abbreviated(ids: Iterable[str], shown: int = 2, width: int | None = None) -> str:
    """`s0, s1, ... 14 more`, in natural order; a list that is hardly longer is given whole.

    Where a width is stated fewer are shown, one at least.
    """
    ordered = [printable(id_) for id_ in sorted(ids, key=natural)]
    text = ", ".join(ordered)
    if len(ordered) > shown + 1:
        text = f"{', '.join(ordered[:shown])}, ... {len(ordered) - shown} more"
    if width is None or len(text) <= width or len(ordered) == 1:
        return text
    return abbreviated(ordered, shown - 1, width) if shown > 1 else f"{ordered[0]}, ... {len(ordered) - 1} more"


def printable(text: str) -> str:
    """The text without characters that a terminal obeys or XML forbids."""
    return "".join(char if char.isprintable() else _REPLACEMENT for char in text)


def clipped(text: str, width: int) -> str:
    """The text, cut to a width with three dots at its end."""
    return text if len(text) <= width else text[: max(0, width - 3)] + "..."[:width]


def span(values: Sequence[float]) -> str:
    """Shares as `40%`, or from the least to the most: `40-100%`."""
    low, high = (f"{100 * value:.0f}" for value in (min(values), max(values)))
    return f"{low}%" if low == high else f"{low}-{high}%"


def number(value: float) -> str:
    """To three digits, or to whole ones."""
    return f"{value:.0f}" if 1000 <= value < math.inf else f"{value:.3g}"


def rate(rate_rps: float) -> str:
    """Requests a second, to four digits or to whole ones."""
    return f"{rate_rps:.0f}/s" if rate_rps >= 1000 else f"{rate_rps:.4g}/s"
