"""What `infless status` prints of an overview (`views.Views.overview`). Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from infless_core.lifecycle import Phase


def status_lines(overview: Mapping[str, Any]) -> list[str]:
    """A line for each instance, then one for whatever these do not say of a function.

    Args:
        overview: the JSON object of `GET /system/overview`.
    """
    phases: dict[str, set[str]] = defaultdict(set)
    for one in overview["instances"]:
        phases[one["function"]].add(one["phase"])
    told = [_instance(one) for one in overview["instances"]]
    for function in overview["functions"]:
        key = function["function"]
        told += [f"{key:32} {words}" for words in _function(function, phases[key])]
    return told


def _instance(one: Mapping[str, Any]) -> str:
    window = "-" if one["rate_up_rps"] is None else f"{one['rate_low_rps']:.0f}-{one['rate_up_rps']:.0f}/s"
    given = f"b={one['batch']} c={one['cpu_cores']} g={one['gpu_percent']}%"
    return f"{one['id']:32} {one['phase']:9} {given:18} {window:14} {one['why']}"


def _function(one: Mapping[str, Any], phases: Collection[str]) -> Iterator[str]:
    if one["rolled_back"]:
        yield f"rolled back: {_plain(one['rolled_back'])}"
    if one["last_failure"]:
        what = "another instance did not start" if Phase.READY in phases else "not ready"
        yield f"{what}: {_plain(one['last_failure'])}; tried again in {one['retry_in_s']:.0f} s, if it is wanted then"
    elif Phase.READY not in phases and Phase.STARTING not in phases:
        waiting = one["in_flight"]
        state = f"{waiting} request(s) wait for one" if waiting else "asleep, starts with the first request"
        yield f"no instance: {state}"


def _plain(words: str) -> str:
    """On one line, and without what moves a terminal's cursor: they may be a function's own."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in words).split())
