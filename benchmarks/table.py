"""The record of `benchmarks.watchdog` as a Markdown table. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def markdown(results: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """A row for each server: highest rates, and memory and start with the first model; ratios to the least server."""
    models: dict[str, Any] = results["models"]
    first = next(iter(models))
    heads = [f"highest rate at {results['share']:.0%} in time, one core (medians of {results['rounds']})"]
    heads += [f"{name} ({one['target_s'] * 1000:.0f} ms)" for name, one in models.items()]
    heads += [f"memory, {first}", "start to first answer", "form"]
    lines = [heads, ["---"] * len(heads)]
    faults = []
    for name, title in titles.items():
        rows = [model["servers"].get(name, {}) for model in models.values()]
        if not any(rows):
            continue
        faults += sorted({f"{title}: {row['fault'].splitlines()[0]}" for row in rows if "fault" in row})
        lines.append([title, *map(_rate, rows), _memory(rows[0]), _start(rows[0]), results["forms"].get(name, "-")])
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + [""] * bool(faults) + faults)


def _rate(row: Mapping[str, Any]) -> str:
    if row.get("median_rps") is None:
        return "failed" if "fault" in row else "-"
    return f"{row['median_rps']:,.0f}/s{_ratio(row, 'median_rps')}"


def _memory(row: Mapping[str, Any]) -> str:
    """Of the one that has worked: what it needs, not what it begins with."""
    worked = row.get("median_worked_bytes")
    return "-" if worked is None else f"{worked / 2**20:,.0f} MiB{_ratio(row, 'median_worked_bytes')}"


def _start(row: Mapping[str, Any]) -> str:
    start_s = row.get("median_start_s")
    return "-" if start_s is None else f"{start_s:.2f} s{_ratio(row, 'median_start_s')}"


def _ratio(row: Mapping[str, Any], what: str) -> str:
    ratio = row.get("ratios_to_least", {}).get(what)
    return "" if ratio is None else f" ({ratio:.2f})"
