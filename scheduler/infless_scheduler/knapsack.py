"""What one server is filled with when every instance is worth something: the pricing problem of column generation.

A server is several bins at once: cores and memory for all, and each GPU with its percent and its memory. A table over
all states of a bin gives the best filling (dynamic programming). Cores and percent are counted exactly. Memory is left
out where no filling exceeds it, else counted in granules, rounded down: then the value is an upper bound that a real
filling may miss, and `exact` is false.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infless_scheduler.milp import Row, Sense, Variable, solve_integer
from infless_scheduler.placement import SolverStatus

Packed = tuple[tuple[int, int | None], ...]
"""What a server is filled with: items, each with its GPU slot or None."""
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_STATES = 40_000
"""States of one bin that a table may have: some hundred array operations on it take a few milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """What one instance takes of a server."""

    cpu_cores: int
    memory_bytes: int
    gpu_percent: int
    gpu_memory_bytes: int


@dataclass(frozen=True, slots=True)
class _Grid:
    """In what units a server is counted: its capacities, and the items' sizes."""

    sizes: Ints
    """One row for each item: cores, memory, GPU percent, GPU memory."""
    cpu_cores: int
    memory: int
    percent: int
    gpu_memory: tuple[int, ...]
    """Of each GPU."""


class Knapsack:
    """One class of servers with the items that stand on it; asked again and again with other values."""

    def __init__(
        self, cpu_cores: int, memory_bytes: int, gpu_memory_bytes: tuple[int, ...], items: Sequence[Item]
    ) -> None:
        self.items = tuple(items)
        self.kept: Ints = np.arange(len(self.items))
        """Of which items of the knapsack that it was taken from it holds."""
        self._capacity = cpu_cores, memory_bytes, gpu_memory_bytes
        raw = [(i.cpu_cores, i.memory_bytes, i.gpu_percent, i.gpu_memory_bytes if i.gpu_percent else 0) for i in items]
        sizes = np.array(raw, dtype=np.int64).reshape(len(raw), 4)
        unit = math.gcd(100, *(int(percent) for percent in sizes[:, 2]))
        sizes[:, 2] //= unit
        self._on_gpu = sizes[:, 2] > 0
        self.tabled: NDArray[np.bool_] = np.ones(len(raw), dtype=bool)
        """Which items the tables look at."""
        bare = sizes * np.array([1, 0, 1, 0])
        self._grid = _Grid(bare, cpu_cores, 0, 100 // unit, (0,) * len(gpu_memory_bytes))
        memory_binds = self.fill(sizes[:, 1].astype(float)).value > memory_bytes
        gpu_binds = False
        if gpu_memory_bytes:
            fullest = _Bin(self._grid, sizes[:, 3].astype(float), self._on_gpu, on_gpu=True)
            gpu_binds = float(fullest.table[-1, -1, -1, -1]) > min(gpu_memory_bytes)
        self.exact = not (memory_binds or gpu_binds)
        """Whether no memory had to be rounded: then every filling is a real one."""
        self._real = sizes * np.array([1, memory_binds, 1, gpu_binds])
        """Sizes in bytes of what may bind, and 0 of what cannot."""
        if not self.exact:
            states = (cpu_cores + 1) * (self._grid.percent + 1)
            granules = max(8, int((_STATES / states) ** (1 / (memory_binds + gpu_binds))))
            memory, sizes[:, 1] = _granular(sizes[:, 1], (memory_bytes,) if memory_binds else (), granules)
            gpu_memory, sizes[:, 3] = _granular(sizes[:, 3], gpu_memory_bytes if gpu_binds else (), granules)
            self._grid = _Grid(sizes, cpu_cores, sum(memory), 100 // unit, gpu_memory or self._grid.gpu_memory)

    def of_use(self, values: Floats, groups: Ints, always: NDArray[np.bool_]) -> Knapsack:
        """The same class of servers with only the items that may be of use.

        Args:
            values: what items of one group are worth beside each other, whatever a group's items are worth.
            groups: a number for each item.
            always: items that are of use whatever beats them.

        Returns:
            A knapsack of the items that no other one of their group beats; `kept` says which ones they are. Its tables
            leave out more: what is beaten as they count memory. (Without rounding it may be of use after all.)
        """
        kept, tabled = always.copy(), always.copy()
        for group in np.unique(groups):
            kept[undominated(self._real, values, groups == group)] = True
            tabled[undominated(self._grid.sizes, values, groups == group)] = True
        other = copy(self)
        other.kept = np.flatnonzero(kept)
        other.items = tuple(self.items[item] for item in other.kept.tolist())
        other._on_gpu, other._real, other.tabled = self._on_gpu[kept], self._real[kept], tabled[kept]
        other._grid = replace(self._grid, sizes=self._grid.sizes[kept])
        return other

    def best(self, values: Floats) -> tuple[float, Packed]:
        """The best filling by its table.

        Args:
            values: what each item is worth; an item that is worth nothing is left out.

        Returns:
            An upper bound on the value of any filling, and one that has this value (where memory was rounded it may
            take too much of that).
        """
        filling = self.fill(values)
        return filling.value, filling.best()

    def best_exactly(self, values: Floats) -> tuple[float, Packed]:
        """The same by a mixed-integer program, in which memory is not rounded: slower, for where that matters.

        Where its time limit cuts it off, the bound is what is proven by then.
        """
        cpu_cores, memory_bytes, gpus = self._capacity
        sizes = np.array(
            [(i.cpu_cores, i.memory_bytes, i.gpu_percent, i.gpu_memory_bytes) for i in self.items], dtype=np.int64
        )
        useful = undominated(self._real, values, values > 0).tolist()
        places = [
            (item, slot)
            for item in useful
            for slot in (range(len(gpus)) if self._on_gpu[item] else (None,))
            if slot is None or sizes[item, 3] <= gpus[slot]
        ]
        rows = [_at_most(places, sizes, 0, cpu_cores), _at_most(places, sizes, 1, memory_bytes)]
        for slot, gpu_memory in enumerate(gpus):
            rows += [_at_most(places, sizes, 2, 100, slot), _at_most(places, sizes, 3, gpu_memory, slot)]
        variables = [Variable(cost=-float(values[item]), integer=True) for item, _ in places]
        outcome = solve_integer(variables, [row for row in rows if row.terms], None, _EXACT_LIMIT_S)
        if outcome.status is SolverStatus.FAILED:
            return math.inf, ()
        chosen = [place for place, count in zip(places, outcome.values, strict=True) for _ in range(round(count))]
        return -outcome.bound, tuple(chosen)

    def fill(self, values: Floats) -> Filling:
        """The table for these values (one for each item; what is worth nothing is left out)."""
        return Filling(self._grid, np.where(self.tabled, values, 0.0), self._on_gpu)


_EXACT_LIMIT_S = 1.0
"""For one exact filling; it takes about 20 ms."""


def _at_most(
    places: Sequence[tuple[int, int | None]], sizes: Ints, resource: int, capacity: int, slot: int | None = None
) -> Row:
    """A capacity, of the server or of one of its GPUs; as a share of it, since bytes are too large for a solver."""
    terms = [
        (index, float(sizes[item, resource]) / max(capacity, 1))
        for index, (item, on) in enumerate(places)
        if sizes[item, resource] and (slot is None or on == slot)
    ]
    return Row(terms=tuple(terms), sense=Sense.AT_MOST, limit=1.0 if capacity else 0.0)


def _granular(sizes: Ints, capacities: tuple[int, ...], granules: int) -> tuple[tuple[int, ...], Ints]:
    """Capacities and sizes in granules, none of which claims too much."""
    largest = max(capacities, default=0)
    if not largest:
        return capacities, np.zeros_like(sizes)
    measure = math.gcd(*(int(size) for size in sizes)) or 1
    measure = max(measure, -(-largest // granules))
    return tuple(capacity // measure for capacity in capacities), sizes // measure


class _Bin:
    """The best value of every state of one bin: the server without its GPUs, or one GPU. Any number of each item."""

    def __init__(self, grid: _Grid, values: Floats, chosen: NDArray[np.bool_], *, on_gpu: bool) -> None:
        self._index = undominated(grid.sizes, values, chosen & (values > 0))
        self._sizes, self._values = grid.sizes[self._index], values[self._index]
        gpu = (grid.percent, max(grid.gpu_memory)) if on_gpu else (0, 0)
        self.table = np.zeros([size + 1 for size in (grid.cpu_cores, grid.memory, *gpu)])
        for size, value in zip(self._sizes.tolist(), self._values.tolist(), strict=True):
            _add(self.table, size, value)

    def trace(self, state: tuple[int, ...]) -> list[int]:
        """The items that make the value of a state."""
        found: list[int] = []
        here = np.array(state)
        while self.table[tuple(here)] > 0:
            before = here - self._sizes
            possible = (before >= 0).all(axis=1)
            if not possible.any():
                break
            before = np.maximum(before, 0)
            best = int(np.where(possible, self.table[tuple(before.T)] + self._values, -1.0).argmax())
            found.append(int(self._index[best]))
            here = before[best]
        return found


def _add(table: Floats, size: list[int], value: float) -> None:
    """Allow any number of an item: once more, twice more, four times more, ... each on top of what there is."""
    shape = table.shape
    while all(step < length for step, length in zip(size, shape, strict=True)):
        to = tuple(slice(step, None) for step in size)
        frm = tuple(slice(None, length - step) for step, length in zip(size, shape, strict=True))
        np.maximum(table[to], table[frm] + value, out=table[to])
        size, value = [2 * step for step in size], 2 * value


def undominated(sizes: NDArray[Any], values: Floats, chosen: NDArray[np.bool_]) -> Ints:
    """The chosen rows that no other chosen one beats, by being nowhere larger and worth as much. Of equals the first.

    Args:
        sizes: one row for each thing, in any number of respects.
        values: what each is worth.
        chosen: which ones are looked at.
    """
    index = np.flatnonzero(chosen)
    # In the order of sizes and then of falling value, what beats a thing stands before it.
    order = index[np.lexsort((index, -values[index], *sizes[index].T[::-1]))]
    if len(order) > 1:
        order = order[np.concatenate(([True], (sizes[order[1:]] != sizes[order[:-1]]).any(axis=1)))]
    count = 0
    kept = np.empty(len(order), dtype=np.int64)
    kept_sizes, kept_values = np.empty((len(order), sizes.shape[1]), dtype=sizes.dtype), np.empty(len(order))
    for thing in order.tolist():
        beaten = (kept_sizes[:count] <= sizes[thing]).all(axis=1) & (kept_values[:count] >= values[thing])
        if not beaten.any():
            kept[count], kept_sizes[count], kept_values[count] = thing, sizes[thing], values[thing]
            count += 1
    return kept[:count]


class Filling:
    """The best filling of one server for one set of values."""

    def __init__(self, grid: _Grid, values: Floats, on_gpu: NDArray[np.bool_]) -> None:
        self._grid = grid
        self._plain = _Bin(grid, values, ~on_gpu, on_gpu=False)
        self._gpu = _Bin(grid, values, on_gpu, on_gpu=True) if grid.gpu_memory else self._plain
        self._joint = [self._plain.table[:, :, 0, 0]]
        """Best value by cores and memory without a GPU, with the first, with the first two, and so on."""
        for slot in range(len(grid.gpu_memory)):
            self._joint.append(_joined(self._joint[-1], self._gpu.table[(..., *self._empty(slot))]))

    @property
    def value(self) -> float:
        """Of the best filling."""
        return float(self._joint[-1][-1, -1])

    def best(self) -> Packed:
        """The best filling."""
        return self._trace(len(self._grid.gpu_memory), self._grid.cpu_cores, self._grid.memory)

    def _empty(self, slot: int) -> tuple[int, int]:
        """Percent and memory of a GPU on which nothing runs."""
        return self._grid.percent, self._grid.gpu_memory[slot]

    def _trace(self, gpus: int, cores: int, memory: int) -> Packed:
        """The items of the best filling with so many of the GPUs, cores and so much memory."""
        if not gpus:
            return tuple((item, None) for item in self._plain.trace((cores, memory, 0, 0)))
        slot = gpus - 1
        own = self._gpu.table[(slice(cores + 1), slice(memory + 1), *self._empty(slot))]
        total = own + self._joint[slot][cores::-1, memory::-1]
        used_cores, used_memory = divmod(int(total.argmax()), memory + 1)
        here = self._gpu.trace((used_cores, used_memory, *self._empty(slot)))
        rest = self._trace(slot, cores - used_cores, memory - used_memory)
        return (*((item, slot) for item in here), *rest)


def _joined(one: Floats, other: Floats) -> Floats:
    """The best value of two bins together, by the cores and memory that both may use."""
    cores, memory = one.shape
    best = np.zeros_like(one)
    for used_cores in range(cores):
        for used_memory in range(memory):
            here = best[used_cores:, used_memory:]
            np.maximum(
                here, one[: cores - used_cores, : memory - used_memory] + other[used_cores, used_memory], out=here
            )
    return best
