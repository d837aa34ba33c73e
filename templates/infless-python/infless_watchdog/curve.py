"""`--curve`: load a function and time its batches, without serving. What the profiler runs in a child process."""

from __future__ import annotations

import copy
import itertools
import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from resource import getpagesize

from infless_watchdog.calls import LoadError, Model
from infless_watchdog.handlers import load_model
from infless_watchdog.isolation import ItemError, run_isolated
from infless_watchdog.settings import Settings

WARM_UPS = 2
TOO_SLOW_S = 1.0
"""Batches larger than one that takes this long are not timed: no usual target needs them, and minutes would pass."""


def write_curve(settings: Settings, batches: Iterable[int], budget_s: float) -> int:
    """Print one JSON line for each batch size: `{"batch", "exec_s": [samples], "memory_bytes"}`.

    A function without an example cannot be timed and prints `{"unknown": reason}`; that is no failure.

    Args:
        settings: of the instance whose execution is timed.
        batches: sizes to time, each for an equal share of the budget, at least 3 runs.
        budget_s: seconds for all sizes together.
    """
    model = load_model(settings)
    try:
        example = model.example()
        if example is not None and model.prepare is not None:
            example = model.prepare(example)
    except Exception as error:
        raise LoadError(f"example() in handler.py raised {type(error).__name__}: {error}") from error
    if example is None:
        _print({"unknown": "handler.py has no example(), so there is nothing to time it with"})
        return 0
    sizes = sorted(set(batches)) if model.batched else [1]
    for size in sizes:
        samples = _time_batch(model, example, size, budget_s / len(sizes))
        _print({"batch": size, "exec_s": samples, "memory_bytes": _resident_bytes()})
        if min(samples) > TOO_SLOW_S:
            break
    model.close()
    return 0


def copies_of(example: object, size: int) -> list[object]:
    """A batch of examples. Each is one of its own where that can be: a handler may take its items apart."""
    try:
        return [copy.deepcopy(example) for _ in range(size)]
    except Exception:  # noqa: BLE001 - a lock, an open file: whatever it is, real requests may well work
        return [example] * size


def _time_batch(model: Model, example: object, size: int, budget_s: float) -> list[float]:
    """Seconds that runs of a batch take, at least 3 of them; two more before are not counted.

    Raises:
        SystemExit: an item fails; says on what.
    """
    samples: list[float] = []
    ends_s = time.perf_counter() + budget_s
    while len(samples) < WARM_UPS + 3 or (time.perf_counter() < ends_s and len(samples) < 200):
        items = copies_of(example, size)
        started_s = time.perf_counter()
        run = run_isolated(model.predict, items)
        samples.append(time.perf_counter() - started_s)
        failed = next((answer for answer in run.answers if isinstance(answer, ItemError)), None)
        if failed is not None:
            raise SystemExit(f"the handler fails on its own example() in a batch of {size}: {failed}")
    return samples[WARM_UPS:]


def _resident_bytes() -> int:
    """Of this process, and of the one that the handler may have."""
    children = (tasks.read_text().split() for tasks in Path("/proc/self/task").glob("*/children"))
    pids = ["self", *itertools.chain.from_iterable(children)]
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids) * getpagesize()


def _print(record: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()
