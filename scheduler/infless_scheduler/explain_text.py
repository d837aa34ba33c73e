"""An explanation as text for a terminal: instances with the reasons below each line, then what would help."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from infless_scheduler.explain import ExplainedInstances, ExplainedUnserved, Explanation
from infless_scheduler.listing import abbreviated, clipped, printable, rate

WIDTH = 120
LINES_MAX = 180
"""Of the table: a longer one gets a line for each reason, a still longer one ends with a summary."""
_COLUMNS = ("FUNCTION", "INSTANCES", "CONFIGURATION", "RATE/S", "SERVERS")
_WIDEST = (24, 36, 22, 12, 30)
_INDENT = "    "


def explanation_as_text(explanation: Explanation, *, width: int = WIDTH, lines_max: int = LINES_MAX) -> str:
    """The explanation for people.

    Args:
        explanation: of a plan.
        width: of the terminal; ids and single words may be wider.
        lines_max: what the table may take; reasons are cut, then entries left out, to keep within it. What is unserved
            comes on top.
    """
    lines = _instances(explanation.instances, width, lines_max)
    if lines:
        lines.insert(
            0, f"worth: requests/s for each unit of weight; a core weighs {explanation.beta:g}, a percent of a GPU 1"
        )
    for unserved in explanation.unserved:
        lines += ["", *_unserved(unserved, width)]
    return "\n".join(lines) + "\n" if lines else ""


def _instances(entries: Sequence[ExplainedInstances], width: int, lines_max: int) -> list[str]:
    if not entries:
        return []
    shown = tuple(entries)
    reasons = [
        [*_wrapped("why", e.configuration_because, width), *_wrapped("where", e.server_because, width)] for e in shown
    ]
    if 2 + len(shown) + sum(len(reason) for reason in reasons) > lines_max:
        reasons = [[_first(e.configuration_because, width)] for e in shown]
        shown = shown[: max(1, (lines_max - 3) // 2)]
    rows = [_COLUMNS, *(_row(entry) for entry in shown)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    table = ["  ".join(cell.ljust(size) for cell, size in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines = [table[0]]
    for row, reason in zip(table[1:], reasons, strict=False):
        lines += [row, *reason]
    if rest := entries[len(shown) :]:
        number = sum(len(entry.instances) for entry in rest)
        lines.append(f"and {len(rest)} more: {number} instances of {abbreviated({e.function for e in rest})}")
    return lines


def _row(entry: ExplainedInstances) -> tuple[str, ...]:
    number = len(entry.instances)
    cells = (
        printable(entry.function),
        f"{number}: {abbreviated(entry.instances, width=_WIDEST[1] - 6)}",
        str(entry.configuration),
        rate(entry.rate_rps).removesuffix("/s"),
        f"{len(entry.servers)}: {abbreviated(entry.servers, width=_WIDEST[4] - 6)}",
    )
    return tuple(clipped(cell, size) for cell, size in zip(cells, _WIDEST, strict=True))


def _first(reasons: str, width: int) -> str:
    """As many of the reasons as fit into a line, the first one in any case."""
    worth, *more = reasons.split("; ")
    line = f"{_INDENT}why:   {'; '.join([worth, *more[:1]])}"
    for reason in more[1:]:
        if len(line) + 2 + len(reason) <= width:
            line += f"; {reason}"
    return clipped(line, width)


def _wrapped(label: str, text: str, width: int) -> list[str]:
    first = f"{_INDENT}{label + ':':<7}"
    return textwrap.wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _unserved(unserved: ExplainedUnserved, width: int) -> Iterator[str]:
    yield f"UNSERVED {printable(unserved.function)}: {rate(unserved.rate_rps)}, {printable(unserved.constraint)}"
    if not unserved.remedies:
        yield from _wrapped("help", unserved.in_vain, width)
    for remedy in unserved.remedies:
        yield from _wrapped("help", f"{remedy.change} {remedy.effect}", width)


def explanation_to_json(explanation: Explanation) -> dict[str, Any]:
    """The explanation as JSON values."""
    return {
        "instances": [_instances_to_json(entry) for entry in explanation.instances],
        "unserved": [
            {
                "function": entry.function,
                "rate_rps": entry.rate_rps,
                "constraint": entry.constraint,
                "remedies": [{"change": remedy.change, "effect": remedy.effect} for remedy in entry.remedies],
                "in_vain": entry.in_vain,
            }
            for entry in explanation.unserved
        ],
    }


def _instances_to_json(entry: ExplainedInstances) -> dict[str, Any]:
    given = entry.configuration
    return {
        "function": entry.function,
        "batch": given.batch,
        "cpu_cores": given.cpu_cores,
        "gpu_percent": given.gpu_percent,
        "instances": list(entry.instances),
        "servers": list(entry.servers),
        "rate_rps": entry.rate_rps,
        "rate_low_rps": entry.rate_low_rps,
        "rate_up_rps": entry.rate_up_rps,
        "configuration_because": entry.configuration_because,
        "server_because": entry.server_because,
    }
