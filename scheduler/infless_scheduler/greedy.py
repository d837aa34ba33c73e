"""The paper's Algorithm 1: place one instance after the other, each where it scores best (Eq. 10).

What the paper leaves open, and what holds here:

* Nothing fits with the largest batch: the next smaller one is tried, as when no configuration qualifies.
* The score's denominator is 0 when an instance fills its server exactly: it is kept above a small epsilon, so an
  exact fit wins, and among exact fits the higher throughput per resource.
* A last residue too small for every batch above 1 and no batch of 1 at hand: the lightest instance that carries it
  is taken though it will idle, or the fastest one if none does.
* Nothing fits at all: the rest stays unserved and the next function has its turn.
* Fewer instances than the function's minimum: the lightest are added. Its maximum is never exceeded.
* Ties: the smaller configuration, then a server where the function already runs so, then the first server.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from infless_core.model import Configuration, FunctionDemand
from infless_scheduler.cluster import Cluster
from infless_scheduler.placement import NEGLIGIBLE, Offer, Placement, Task, capacity_rps, counts, lack, objective

_EPSILON = 1e-9
_UNFIT = -1.0


def greedy(
    task: Task,
    placed: tuple[Placement, ...] = (),
    *,
    core_worth: float | None = None,
    cluster: Cluster | None = None,
    open_servers: bool = True,
    out_of_time: Callable[[], bool] = lambda: False,
) -> tuple[Placement, ...]:
    """Place every wanted rate as far as it fits, function after function in the order of ids.

    Args:
        task: what to place.
        placed: instances that are there already and stay; they come first in the answer.
        core_worth: what the score counts a core in GPU percent; the problem's beta, as in the paper, by default.
        cluster: with `placed` on it, where the caller has one; what is placed is added to it.
        open_servers: whether servers on which nothing is placed yet may be used.
        out_of_time: asked before each function; the rest is then left unserved.
    """
    cluster = cluster or Cluster(task, placed)
    worth = task.problem.beta if core_worth is None else core_worth
    placements = list(placed)
    capacity, number = capacity_rps(placed), counts(placed)
    for id_, function in task.functions.items():
        if out_of_time():
            break
        if not _lacks(function, capacity.get(id_, 0.0), number[id_]):
            continue
        run = Run(cluster, id_, task.offers[id_], worth, open_servers=open_servers)
        room = None if function.instances_max is None else function.instances_max - number[id_]
        placements += run.serve(function.rate_rps - capacity.get(id_, 0.0), room)
        have = number[id_] + len(run.placements)
        placements += run.add(function.instances_min - have)
    return tuple(placements)


def _lacks(function: FunctionDemand, capacity_rps: float, number: int) -> bool:
    return function.rate_rps - capacity_rps > NEGLIGIBLE * function.rate_rps or number < function.instances_min


def better_greedy(task: Task, out_of_time: Callable[[], bool] = lambda: False) -> tuple[Placement, ...]:
    """The better of two greedy placements: the paper's, and one that counts a core at what it is worth here.

    By peak speed a core is worth so little that the paper's score takes cores for everything until they are gone and
    the GPUs beside them stand idle. Counting all cores of the cluster as much as all its GPUs halves the servers.

    Args:
        task: what to place.
        out_of_time: then the paper's alone has to do; it is never cut off, for half a plan is no answer.
    """
    cores = sum(kind.cpu_cores * len(kind.servers) for kind in task.classes)
    gpu_percent = sum(100 * len(kind.gpu_memory_bytes) * len(kind.servers) for kind in task.classes)
    both = [greedy(task)]
    if gpu_percent and cores and not out_of_time():
        both.append(greedy(task, core_worth=gpu_percent / cores))
    return min(both, key=lambda placements: (lack(task, placements), objective(task, placements)))


class Run:
    """The placing of one function."""

    def __init__(
        self,
        cluster: Cluster,
        function: str,
        offers: tuple[tuple[Offer, ...], ...],
        worth: float,
        *,
        open_servers: bool,
    ) -> None:
        self.placements: list[Placement] = []
        self._cluster = cluster
        self._function = function
        self._worth = worth
        self._open = open_servers
        self._configurations = sorted({offer.configuration for here in offers for offer in here})
        self._offers = [{offer.configuration: offer for offer in here} for here in offers]
        self._running: dict[Configuration, NDArray[np.bool_]] = {}
        """On which servers the function runs in a configuration now."""
        for r in cluster.task.problem.running:
            if r.function == function and r.server in cluster.row:
                where = self._running.setdefault(r.configuration, np.zeros(len(cluster.servers), dtype=bool))
                where[cluster.row[r.server]] = True

    def serve(self, residue_rps: float, most: int | None) -> list[Placement]:
        """Algorithm 1 for what the function lacks, with at most so many instances."""
        start = len(self.placements)
        negligible = NEGLIGIBLE * self._cluster.task.functions[self._function].rate_rps

        def wanting() -> bool:
            return residue_rps > negligible and (most is None or len(self.placements) - start < most)

        for batch in sorted({c.batch for c in self._configurations}, reverse=True):
            if not wanting():
                break
            scores = self._scores([c for c in self._configurations if c.batch == batch])
            while wanting() and (offer := self._place_best(scores, residue_rps)) is not None:
                residue_rps -= offer.window.up_rps
        while wanting() and (offer := self._place_rest(residue_rps)) is not None:
            residue_rps -= offer.window.up_rps
        return self.placements[start:]

    def add(self, number: int) -> list[Placement]:
        """So many more instances, whatever they are for: the lightest."""
        start = len(self.placements)
        while len(self.placements) - start < number and self._place_rest(0.0) is not None:
            pass
        return self.placements[start:]

    def _scores(self, configurations: list[Configuration]) -> _Scores:
        shapes = [tuple(offers.get(c) for offers in self._offers) for c in configurations]
        return _Scores(self._cluster, shapes, self._worth, open_servers=self._open)

    def _place_best(self, scores: _Scores, residue_rps: float) -> Offer | None:
        while True:
            shape, row, score = scores.best()
            if score <= _UNFIT:
                return None
            offer = scores.offer(shape, row)
            if residue_rps < offer.window.low_rps:
                scores.drop(shape, row)
                continue
            running = self._running.get(offer.configuration)
            row = row if running is None else scores.preferred(shape, row, running)
            self._put(offer, row)
            scores.refresh(row)
            return offer

    def _place_rest(self, residue_rps: float) -> Offer | None:
        """The lightest instance that carries a residue which no batch above 1 may have, or the fastest."""
        scores, chosen = self._scores(self._configurations), None
        for shape, row in scores.best_rows():
            offer = scores.offer(shape, row)
            left_rps = max(0.0, residue_rps - offer.window.up_rps)
            key = (left_rps, offer.weight(self._worth), -scores.of(shape, row))
            if chosen is None or key < chosen[0]:
                chosen = key, offer, row
        if chosen is None:
            return None
        self._put(chosen[1], chosen[2])
        return chosen[1]

    def _put(self, offer: Offer, row: int) -> None:
        slot = self._cluster.slot_for(offer, row)
        if slot is None:
            raise LookupError(f"no room for {offer.configuration} on server {row}")
        self.placements.append(self._cluster.place(self._function, offer, row, slot))


class _Scores:
    """Scores of some shapes on all servers, kept up to date while one server after the other changes.

    A shape is one configuration: an offer for each class of servers, None where it does not stand.
    """

    def __init__(
        self, cluster: Cluster, shapes: list[tuple[Offer | None, ...]], worth: float, *, open_servers: bool
    ) -> None:
        self._cluster = cluster
        self._shapes = shapes
        self._worth = worth
        self._open = open_servers
        some = [next(offer for offer in shape if offer is not None) for shape in shapes]
        self._cores = np.array([offer.configuration.cpu_cores for offer in some])[:, None]
        self._memory = np.array([offer.point.memory_bytes for offer in some])[:, None]
        self._percent = np.array([offer.configuration.gpu_percent for offer in some])[:, None]
        self._gpu_memory = np.array([offer.point.gpu_memory_bytes for offer in some])[:, None]
        self._weight = np.maximum(np.array([offer.weight(worth) for offer in some])[:, None], _EPSILON)
        self._up_rps = np.array([[_UNFIT if o is None else o.window.up_rps for o in shape] for shape in shapes])
        used = np.flatnonzero((cluster.instances > 0) & (cluster.cpu_cores > 0))
        self._rows: NDArray[np.int64] = np.sort(np.concatenate((used, self._empty()))) if open_servers else used
        self._table = self._score(self._rows)

    def best(self) -> tuple[int, int, float]:
        """Shape, server and score; ties go to the smaller configuration, then to the first server."""
        if not self._table.size:
            return 0, 0, _UNFIT
        shape, column = divmod(int(self._table.argmax()), self._table.shape[1])
        return shape, int(self._rows[column]), float(self._table[shape, column])

    def best_rows(self) -> list[tuple[int, int]]:
        """For each shape its best server, where it fits on any."""
        if not self._table.size:
            return []
        columns = self._table.argmax(axis=1)
        fitting = [(shape, column) for shape, column in enumerate(columns) if self._table[shape, column] > _UNFIT]
        return [(shape, int(self._rows[column])) for shape, column in fitting]

    def of(self, shape: int, row: int) -> float:
        """The score of a shape on a server that is in the table."""
        return float(self._table[shape, self._column(row)])

    def offer(self, shape: int, row: int) -> Offer:
        """The offer of a shape on a server where it fits."""
        offer = self._shapes[shape][int(self._cluster.kind[row])]
        if offer is None:
            raise LookupError(f"shape {shape} does not stand on server {row}")
        return offer

    def preferred(self, shape: int, row: int, wanted: NDArray[np.bool_]) -> int:
        """The first of the wanted servers that is as good for a shape as this one; this one if there is none."""
        cluster = self._cluster
        if cluster.instances[row] == 0:
            alike = np.flatnonzero(wanted & (cluster.instances == 0) & (cluster.kind == cluster.kind[row]))
        else:
            alike = np.sort(self._rows[wanted[self._rows] & (self._table[shape] == self.of(shape, row))])
        return int(alike[0]) if len(alike) else row

    def refresh(self, row: int) -> None:
        """An instance has been placed on a server."""
        if self._open and self._cluster.instances[row] == 1:
            # It was the first empty server of its class, perhaps: the next one takes its place in the table.
            new = np.setdiff1d(np.append(self._empty(), row), self._rows)
            if len(new):
                self._rows = np.concatenate((self._rows, new))
                self._table = np.concatenate((self._table, self._score(new)), axis=1)
        column = self._column(row)
        self._table[:, column : column + 1] = self._score(np.array([row]))

    def drop(self, shape: int, row: int) -> None:
        """What is left is below a shape's window: on servers of this class it is out."""
        kind = self._cluster.kind[row]
        self._up_rps[shape, kind] = _UNFIT
        self._table[shape, self._cluster.kind[self._rows] == kind] = _UNFIT

    def _column(self, row: int) -> int:
        return int(np.flatnonzero(self._rows == row)[0])

    def _empty(self) -> NDArray[np.int64]:
        """The first empty server of each class; the others score the same."""
        empty = np.flatnonzero(self._cluster.instances == 0)
        return empty[np.unique(self._cluster.kind[empty], return_index=True)[1]]

    def _score(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Eq. 10 by shape and server: throughput per resource, by the share of the free room that stays unused."""
        cluster = self._cluster
        cores, percent = cluster.cpu_cores[rows], cluster.gpu_percent[rows]
        up_rps = self._up_rps[:, cluster.kind[rows]]
        fits = (cores >= self._cores) & (cluster.memory_bytes[rows] >= self._memory) & (up_rps > 0)
        on_gpu = (percent >= self._percent[:, :, None]) & (cluster.gpu_memory[rows] >= self._gpu_memory[:, :, None])
        fits &= on_gpu.any(axis=2) | (self._percent == 0)
        free = np.maximum(self._worth * cores + percent.sum(axis=1), self._weight)
        unused = np.maximum(1 - self._weight / free, _EPSILON)
        scores: NDArray[np.float64] = np.where(fits, up_rps / self._weight / unused, _UNFIT)
        return scores
