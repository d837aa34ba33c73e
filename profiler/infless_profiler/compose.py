"""Pure: a model's execution time from the times of its operators (COP: INFless, section 3.3).

The paper adds along a chain and takes the longest of parallel branches. ONNX Runtime runs a graph's operators one after
the other unless it is told otherwise (`ORT_SEQUENTIAL`, which instances use): then branches add as well, and cores help
only within an operator. With `ORT_PARALLEL`, `inter_op_threads` threads take whatever operator is ready; what handing
operators over costs (on some machines more than it gains) is left to the correction: it is learned for each number of
threads.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

from infless_profiler.operators import Call, ModelGraph, Point

CACHE_FILLS = 0.5
"""Share of the last-level cache from which on a model begins to push its own weights out of it."""
BESIDE = ("Call", "Transfer")
"""Operators of our own (`around`) that come before and after all others."""


def cold_share(graph: ModelGraph, batch: int, cache_bytes: int) -> float:
    """How much of a model's weights come from memory in each execution, 0 to 1.

    Between two executions of an operator everything else that the model reads and writes passes through the last-level
    cache. While that is little, the weights are still there; once it is more than the cache holds, none are.
    """
    if not cache_bytes:
        return 0.0
    filled = graph.traffic_bytes(batch) / cache_bytes
    return min(1.0, max(0.0, (filled - CACHE_FILLS) / (1 - CACHE_FILLS)))


def needed_points(graph: ModelGraph, point: Point, cache_bytes: int) -> tuple[tuple[Point, float], ...]:
    """Points whose times make up a model's, and their weights: warm, cold, or some of both."""
    share = cold_share(graph, point.batch, cache_bytes)
    both = ((point._replace(cold=False), 1 - share), (point._replace(cold=True), share))
    return tuple((one, weight) for one, weight in both if weight)


def model_s(graph: ModelGraph, exec_s: Mapping[str, float], inter_op_threads: int = 1) -> float:
    """Execution time of a whole model in one configuration.

    Args:
        graph: what is called, and which results each call needs.
        exec_s: seconds of one call, by the operator's signature.
        inter_op_threads: operators that run at the same time.
    """
    inside = [call for call in graph.calls if call.operator.type not in BESIDE]
    beside_s = sum(exec_s[call.operator.signature] for call in graph.calls if call.operator.type in BESIDE)
    durations_s = [exec_s[call.operator.signature] for call in inside]
    if inter_op_threads == 1:
        return beside_s + sum(durations_s)
    return beside_s + makespan_s(inside, durations_s, inter_op_threads)


def makespan_s(calls: Sequence[Call], durations_s: Sequence[float], threads: int) -> float:
    """When the last call ends if each free thread takes the call that has been ready longest (ONNX Runtime's executor).

    Never less than the longest chain or than `sum / threads`, never more than the sum.
    """
    missing = [len(call.needs) for call in calls]
    users: list[list[int]] = [[] for _ in calls]
    for place, call in enumerate(calls):
        for need in call.needs:
            users[need].append(place)
    ready = [(0.0, place) for place, lacks in enumerate(missing) if not lacks]
    heapq.heapify(ready)
    free_s = [0.0] * threads
    running: list[tuple[float, int]] = []
    end_s = 0.0
    while ready or running:
        # What ends before the next start may make an older call ready: it is looked at first.
        if running and (not ready or running[0][0] <= max(ready[0][0], free_s[0])):
            end_s, ended = heapq.heappop(running)
            for user in users[ended]:
                missing[user] -= 1
                if not missing[user]:
                    heapq.heappush(ready, (end_s, user))
            continue
        ready_s, place = heapq.heappop(ready)
        done_s = max(ready_s, heapq.heappop(free_s)) + durations_s[place]
        heapq.heappush(free_s, done_s)
        heapq.heappush(running, (done_s, place))
    return end_s
