"""What one plan leaves for the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from infless_core.model import PlannedInstance
from infless_scheduler.placement import Prices, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What one plan leaves for the next: offers and prices that are as true then, where nothing but rates changed."""

    task: Task
    prices: Prices | None
    instances: Mapping[str, PlannedInstance]
    """The plan's instances by id: what stays as it is need not be made again."""

    def prices_for(self, task: Task) -> Prices | None:
        """The prices as far as they hold for a task made with `task_of(problem, memory.task)`."""
        if self.prices is None or not task.alike(self.task.classes) or task.problem.beta != self.task.problem.beta:
            return None
        same = {id_ for id_ in task.functions if self.task.offers.get(id_) is task.offers[id_]}
        return Prices(
            request={id_: price for id_, price in self.prices.request.items() if id_ in same},
            instance={id_: price for id_, price in self.prices.instance.items() if id_ in same},
            most_rps=self.prices.most_rps,
            fill=self.prices.fill,
        )
