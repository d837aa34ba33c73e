"""What the demo tells: figures of both runs, the instances and why, and the picture."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests

from infless_core.units import format_duration
from infless_provider.client import Client
from infless_provider.report import Column, Mark, Panel, draw
from infless_provider.shots import Shot, Summary, summarise

if TYPE_CHECKING:
    from examples.demo import Load


class Watch:
    """Looks at the provider's overview and the instances' batch histograms once a second while the load runs."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._seen: dict[str, tuple[float, float]] = {}
        self._start_s = 0.0
        self._start_wall_s = 0.0
        self.batches: dict[str, list[tuple[float, float]]] = {}
        """By function: `(seconds from the start, mean batch size since the look before)`."""
        self.events: list[dict[str, Any]] = []
        self.instances: dict[str, dict[str, Any]] = {}
        """The newest view of every instance that was seen."""
        self.sizes: dict[str, dict[str, float]] = {}
        """By function: batches by upper bound of size."""

    async def run(self) -> None:
        """Until cancelled."""
        self._start_s, self._start_wall_s = time.monotonic(), time.time()
        while True:
            await asyncio.to_thread(self._look)
            await asyncio.sleep(1.0)

    def at_s(self, event: dict[str, Any]) -> float:
        """An event's time in seconds from the start of the load."""
        return float(event["at_s"]) - self._start_wall_s

    def _look(self) -> None:
        overview = self._client.overview()
        self.events = overview["events"]
        means: dict[str, tuple[float, float]] = {}
        for one in overview["instances"]:
            self.instances[one["id"]] = one
            total, count, sizes = _batch_histogram(one["metrics_port"])
            old_total, old_count = self._seen.get(one["id"], (total, count))
            self._seen[one["id"]] = (total, count)
            so_far = means.get(one["function"], (0.0, 0.0))
            means[one["function"]] = (so_far[0] + total - old_total, so_far[1] + count - old_count)
            self.sizes.setdefault(one["id"], {}).update(sizes)
        for key, (requests_run, batches_run) in means.items():
            if batches_run:
                point = (time.monotonic() - self._start_s, requests_run / batches_run)
                self.batches.setdefault(key.partition(".")[0], []).append(point)


def _batch_histogram(port: int) -> tuple[float, float, dict[str, float]]:
    """Sum and count of an instance's batch sizes, and cumulative counts by bound; zeros when it has just ended."""
    try:
        text = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=1).text
    except requests.RequestException:
        return 0.0, 0.0, {}
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("infless_batch_size"))
    bounds = {
        name.partition('le="')[2].partition('"')[0]: float(value)
        for name, value in values.items()
        if name.startswith("infless_batch_size_bucket")
    }
    return float(values["infless_batch_size_sum"]), float(values["infless_batch_size_count"]), bounds


def print_report(
    loads: Sequence[Load], planned: Sequence[Shot], plain: Sequence[Shot], watch: Watch, seconds: int
) -> int:  # fmt: skip
    """Both runs in one table, then batches, then instances and their reasons; returns how many answers were wrong."""
    print(f"\n{'function':16} {'system':12} {'offered':>9} {'achieved':>9} {'p50':>8} {'p95':>8} {'p99':>8}"
          f" {'in target':>16} {'errors':>7} {'wrong':>6}")  # fmt: skip
    wrong = 0
    for load in loads:
        name = load.function.name
        for system, shots in (("INFless", planned), ("one-to-one", plain)):
            summary = summarise([shot for shot in shots if shot.function == name], load.target_s, seconds)
            wrong += summary.wrong
            print(f"{name:16} {system:12} {_row(summary)}")
    print("\nbatches that INFless ran:")
    for load in loads:
        print(f"  {load.function.name:16} {_sizes_text(watch, load.function.name)}")
    print("\ninstances of INFless, the configuration each got, and why:")
    for event in watch.events:
        if event["event"] in ("start", "plan", "resize", "stop"):
            given = event["configuration"]
            size = f"b={given['batch']:<3} c={given['cpu_cores']} g={given['gpu_percent']}%"
            head = f"  {watch.at_s(event):6.1f} s  {event['event']:6} {event['instance']:30}"
            print(f"{head} {size}  {event['why']}")
    print(f"\nevery answer was checked against onnxruntime run directly: {wrong} wrong")
    return wrong


def _row(summary: Summary) -> str:
    share = f"{summary.share_within_target:.1%} of {format_duration(summary.target_s)}"
    times = " ".join(
        f"{format_duration(value) if value != float('inf') else 'none':>8}"
        for value in (summary.p50_s, summary.p95_s, summary.p99_s)
    )
    return (
        f"{summary.offered_rps:7.1f}/s {summary.achieved_rps:7.1f}/s {times} {share:>16}"
        f" {sum(summary.errors.values()):7d} {summary.wrong:6d}"
    )


def _sizes_text(watch: Watch, name: str) -> str:
    totals: dict[str, float] = {}
    for id_, bounds in watch.sizes.items():
        if watch.instances[id_]["function"].partition(".")[0] == name:
            for bound, count in bounds.items():
                totals[bound] = totals.get(bound, 0.0) + count
    ordered = sorted((float(bound), count) for bound, count in totals.items())
    parts, before, low = [], 0.0, 1
    for bound, count in ordered:
        if count > before:
            size = f"{low}" if bound == low else f"{low}-{bound:.0f}"
            parts.append(f"{count - before:.0f} of {size}")
        before, low = count, (int(bound) + 1 if bound != float("inf") else low)
    return ", ".join(parts) or "none"


def write_picture(
    path: Path, loads: Sequence[Load], planned: Sequence[Shot], plain: Sequence[Shot], watch: Watch, seconds: int
) -> None:  # fmt: skip
    """Latency over time against the target, with instance starts and batch sizes; INFless left, one-to-one right."""
    columns = [
        Column(title="INFless", panels=tuple(_panel(load, planned, watch) for load in loads)),
        Column(
            title="one-to-one: equal replicas, no batching, same cores",
            panels=tuple(
                Panel(
                    function=load.function.name,
                    target_s=load.target_s,
                    shots=_of(plain, load),
                    batches=((0.0, 1.0), (float(seconds), 1.0)),
                )
                for load in loads
            ),
        ),
    ]
    draw(path, columns, f"{seconds} s of the same Poisson arrivals on the same cores")


def _panel(load: Load, shots: Sequence[Shot], watch: Watch) -> Panel:
    name = load.function.name
    marks = [
        Mark(
            at_s=max(0.0, watch.at_s(event)),
            started=event["event"] == "start",
            label=f"(b={event['configuration']['batch']},c={event['configuration']['cpu_cores']})",
        )
        for event in watch.events
        if event["function"].partition(".")[0] == name and event["event"] in ("start", "stop")
    ]
    batches = tuple(watch.batches.get(name, ()))
    return Panel(function=name, target_s=load.target_s, shots=_of(shots, load), marks=tuple(marks), batches=batches)


def _of(shots: Sequence[Shot], load: Load) -> tuple[Shot, ...]:
    return tuple(shot for shot in shots if shot.function == load.function.name)
