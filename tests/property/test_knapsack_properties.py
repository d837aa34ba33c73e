"""The filling of one server: as good as trying everything, and a filling that really fits."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infless_scheduler.knapsack import Item, Knapsack, undominated

items = st.builds(
    Item, cpu_cores=st.integers(1, 3), memory_bytes=st.integers(0, 4), gpu_percent=st.sampled_from([0, 0, 25, 50, 100]),
    gpu_memory_bytes=st.integers(0, 3),
)  # fmt: skip
# Beside a memory that binds, a GPU's has 33 granules at least: of 30 none is rounded.
servers = st.tuples(
    st.integers(1, 6), st.sampled_from([3, 8, 100]), st.lists(st.sampled_from([3, 5, 30]), max_size=2).map(tuple)
)


def _by_trying(cpu_cores, memory_bytes, gpu_memory_bytes, goods, values):
    """The best value of any filling."""

    @cache
    def best(cores, memory, gpus):
        found = 0.0
        for item, value in zip(goods, values, strict=True):
            if item.cpu_cores > cores or item.memory_bytes > memory:
                continue
            left = (cores - item.cpu_cores, memory - item.memory_bytes)
            if not item.gpu_percent:
                found = max(found, value + best(*left, gpus))
                continue
            for slot, (percent, size) in enumerate(gpus):
                if item.gpu_percent <= percent and item.gpu_memory_bytes <= size:
                    state = (percent - item.gpu_percent, size - item.gpu_memory_bytes)
                    found = max(found, value + best(*left, (*gpus[:slot], state, *gpus[slot + 1 :])))
        return found

    return best(cpu_cores, memory_bytes, tuple((100, size) for size in gpu_memory_bytes))


@settings(max_examples=150)
@given(servers, st.lists(st.tuples(items, st.floats(0.01, 2)), min_size=1, max_size=5))
def test_best_filling_is_as_good_as_trying_everything(server, goods):
    """With memory in small whole numbers nothing is rounded: the value is the true one, and its items fit."""
    things, values = [item for item, _ in goods], [value for _, value in goods]
    filling = Knapsack(*server, things).fill(np.array(values))
    assert filling.value == pytest.approx(_by_trying(*server, things, values))
    chosen = filling.best()
    assert sum(values[item] for item, _ in chosen) == pytest.approx(filling.value)
    assert sum(things[item].cpu_cores for item, _ in chosen) <= server[0]
    assert sum(things[item].memory_bytes for item, _ in chosen) <= server[1]
    for slot, size in enumerate(server[2]):
        here = [things[item] for item, on in chosen if on == slot]
        assert sum(item.gpu_percent for item in here) <= 100
        assert sum(item.gpu_memory_bytes for item in here) <= size


@settings(max_examples=60)
@given(st.lists(st.tuples(items, st.floats(0.01, 2)), min_size=1, max_size=4), st.integers(10**9, 10**10))
def test_rounded_memory_never_claims_too_little(goods, unit):
    """With odd bytes the value is an upper bound on every real filling."""
    things = [
        Item(
            cpu_cores=i.cpu_cores,
            memory_bytes=i.memory_bytes * unit + n,
            gpu_percent=i.gpu_percent,
            gpu_memory_bytes=i.gpu_memory_bytes * unit + 7 * n,
        )
        for n, (i, _) in enumerate(goods)
    ]
    values = [value for _, value in goods]
    server = (5, 7 * unit + 3, (4 * unit + 1,))
    assert Knapsack(*server, things).fill(np.array(values)).value >= _by_trying(*server, things, values) - 1e-9


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12))
def test_undominated_keeps_exactly_what_nothing_beats(rows):
    """What is left out is beaten by something that is kept; nothing kept is beaten by another kept one."""
    sizes = np.array([row[:2] for row in rows])
    values = np.array([float(row[2]) for row in rows])
    kept = undominated(sizes, values, np.ones(len(rows), dtype=bool)).tolist()

    def beats(one, other):
        return (sizes[one] <= sizes[other]).all() and values[one] >= values[other]

    assert all(index in kept or any(beats(k, index) for k in kept) for index in range(len(rows)))
    assert not any(beats(one, other) for one in kept for other in kept if one != other)
