"""The first limit: ONNX Runtime alone, in a loop, given the same arrivals. No HTTP, no copies but the batch itself."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from benchmarks import processes, servers
from benchmarks.models import Example
from benchmarks.openloop import Load

BATCH_MAX = 32
WAIT_S = 0.02
"""A batch that is not full goes when its oldest request is this old."""


def run(example: Example, rate_rps: float, seed: int, target_s: float, seconds: float) -> tuple[bool, dict[str, Any]]:
    """One trial on the servers' core: whether 99 % were done in time, and its record."""
    import onnxruntime

    load = Load(address=("", 0), requests=(), rate_rps=rate_rps, seed=seed, target_s=target_s, seconds=seconds)
    due_s = load.arrivals_s()
    with _on_the_servers_core():
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(example.path), options, providers=["CPUExecutionProvider"])
        cpus = (servers.SERVER_CPU,)
        before, own_s = processes.read_busy(cpus), time.process_time()
        done_s = _replay(session, np.stack(example.inputs), due_s, load)
        after, own_s = processes.read_busy(cpus), time.process_time() - own_s
    first = int(np.searchsorted(due_s, load.warm_s))
    latencies = (done_s - np.array(due_s))[first:]
    share = float((latencies <= target_s).mean())
    return share >= 0.99, {
        "rate_rps": rate_rps, "seed": seed, "requests": len(latencies), "share_in_time": round(share, 5),
        "p50_s": _finite(np.quantile(latencies, 0.5, method="inverted_cdf")),
        "p99_s": _finite(np.quantile(latencies, 0.99, method="inverted_cdf")),
        "others_share": round(processes.others_share(before, after, own_s, 1), 4),
    }  # fmt: skip


def _replay(session: Any, inputs: Any, due_s: list[float], load: Load) -> Any:
    """When each was done; those that were not begun when the trial was lost never are."""
    done_s = np.full(len(due_s), np.inf)
    count, begun, arrived, late = len(due_s), 0, 0, 0
    most_late = load.give_up_share * load.rate_rps * load.seconds
    zero_s = time.perf_counter()
    while begun < count and late <= most_late:
        now_s = time.perf_counter() - zero_s
        while arrived < count and due_s[arrived] <= now_s:
            arrived += 1
        size = min(BATCH_MAX, arrived - begun)
        if size < BATCH_MAX and now_s < due_s[begun] + WAIT_S and arrived < count:
            until_s = min(due_s[arrived], due_s[begun] + WAIT_S)
            time.sleep(max(0.0, until_s - now_s))
            continue
        numbers = np.arange(begun, begun + size)
        session.run(None, {"x": inputs[numbers % len(inputs)]})
        done_s[numbers] = time.perf_counter() - zero_s
        if done_s[begun] - due_s[begun] > load.target_s and due_s[begun] >= load.warm_s:
            late += size
        begun += size
    return done_s


def _finite(value: float) -> float | None:
    return round(float(value), 6) if np.isfinite(value) else None


@contextmanager
def _on_the_servers_core() -> Iterator[None]:
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {servers.SERVER_CPU})
    try:
        yield
    finally:
        os.sched_setaffinity(0, mine)
