"""Plans for changed problems, and what each still lacks: how a remedy is proven before it is named."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from infless_core.model import FunctionDemand, Plan, Problem
from infless_scheduler.listing import rate
from infless_scheduler.placement import Task, task_of

PlanAgain = Callable[[Problem], Plan]

_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Lack:
    """What one function, or all of them, lack."""

    rate_rps: float = 0.0
    instances: int = 0

    def within(self, other: Lack) -> bool:
        """Whether it is no more."""
        return self.rate_rps <= other.rate_rps * (1 + _TOLERANCE) and self.instances <= other.instances

    def below(self, other: Lack) -> bool:
        """Whether it is less."""
        return self.within(other) and (
            self.rate_rps < other.rate_rps * (1 - _TOLERANCE) or self.instances < other.instances
        )


def lacks(problem: Problem, made: Plan) -> dict[str, Lack]:
    """What each unserved function of a plan lacks."""
    least = {function.id: function.instances_min for function in problem.functions}
    number = dict.fromkeys(least, 0)
    for instance in made.instances:
        number[instance.function] += 1
    return {
        u.function: Lack(rate_rps=u.rate_rps, instances=max(0, least[u.function] - number[u.function]))
        for u in made.unserved
    }


def _total(lacking: Mapping[str, Lack]) -> Lack:
    rate_rps = math.fsum(lack.rate_rps for lack in lacking.values())
    return Lack(rate_rps=rate_rps, instances=sum(lack.instances for lack in lacking.values()))


class Trials:
    """Plans for changed problems: as many as allowed, none twice. Mutable; one owner, as long as one explanation."""

    def __init__(self, problem: Problem, made: Plan, plan_again: PlanAgain, plans_max: int) -> None:
        self.problem = problem
        self.task: Task = task_of(problem)
        self.before = lacks(problem, made)
        self.plans_left = plans_max
        self.servers_most = 2 * len(problem.servers) + 64
        self.servers_tried = 0
        self._plan_again = plan_again
        self._known: dict[tuple[Hashable, float], dict[str, Lack]] = {}

    def after(self, key: tuple[Hashable, float], changed: Callable[[], Problem]) -> dict[str, Lack] | None:
        """What is lacking after a change; None when no more plans are allowed.

        Args:
            key: names the change, and says how large it is.
            changed: the problem with it.
        """
        if key not in self._known:
            if self.plans_left <= 0:
                return None
            self.plans_left -= 1
            problem = changed()
            self._known[key] = lacks(problem, self._plan_again(problem))
        return self._known[key]

    def tries(self, most: int) -> int:
        """How many more may be made of so many: what is not tried must not count as what does not help."""
        return min(most, self.plans_left)

    def known(self, name: Hashable, function: str, goal: Lack) -> tuple[int, int | None]:
        """Of the numbers tried of a change: the smallest that reaches a goal, the next below it that does not.

        With more of a change each function need not get more of it: which ones do is the planner's choice.
        """
        tried = {int(key[1]): after for key, after in self._known.items() if key[0] == name}
        high = min((n for n, after in tried.items() if self.reaches(function, goal, after)), default=None)
        low = max((n for n in tried if high is None or n < high), default=0)
        return low, high

    def reaches(self, function: str, goal: Lack, after: Mapping[str, Lack] | None) -> bool:
        """Whether a function lacks no more than the goal, and all together no more than before."""
        return (
            after is not None and after.get(function, Lack()).within(goal) and _total(after).within(_total(self.before))
        )

    def improves(self, function: str, after: Mapping[str, Lack] | None) -> bool:
        """Whether a function lacks less than before, and all together no more."""
        return (
            after is not None
            and after.get(function, Lack()).below(self.before[function])
            and _total(after).within(_total(self.before))
        )

    def goal(self, function: str, after: Mapping[str, Lack] | None) -> Lack | None:
        """What a function still lacks after a change, where that helps at all."""
        if after is None or not self.improves(function, after):
            return None
        return after.get(function, Lack())

    def effect(self, function: FunctionDemand, after: Mapping[str, Lack]) -> str:
        """What a change serves, in words."""
        before, still = self.before[function.id], after.get(function.id, Lack())
        if still == Lack():
            also = ", and everything else" if not after and len(self.before) > 1 else ""
            return f"would serve all of its {rate(function.rate_rps)}{also}"
        gained = f"{rate(before.rate_rps - still.rate_rps)} of the {rate(before.rate_rps)} that it lacks"
        return (
            f"would serve {gained}"
            if still.rate_rps < before.rate_rps
            else "would start more of the instances that it lacks"
        )


class Found(NamedTuple):
    """The smallest number of a search."""

    number: int
    proven: bool
    """Whether the next smaller one was tried and does not serve."""


def smallest(
    serves: Callable[[int], bool], guess: int, most: int, tries: int, known: tuple[int, int | None] = (0, None)
) -> Found | None:
    """The smallest number from 1 to `most` that serves, or the smallest one found in so many tries.

    From a guess upwards by doubling, then by halves.

    Args:
        serves: whether a number is large enough; it is asked at most `tries` times.
        guess: where to begin.
        most: the largest number to try.
        tries: how many.
        known: a number that does not serve, and one that does.
    """
    low, high = known
    for _ in range(tries):
        if low >= most or (high is not None and high - low <= 1):
            break
        if not low < guess < (high or most + 1):
            guess = min(most, max(2 * low, low + 1)) if high is None else (low + high) // 2
        if serves(guess):
            high = guess
        else:
            low = guess
    return None if high is None else Found(high, high - low <= 1)
