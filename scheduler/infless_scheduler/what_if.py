"""What if: a problem with changes such as `rate.resnet=2x,servers.gpu+=2`, to plan before anything is changed.

`docs/how-to/ask-what-if.md` has the grammar; `compare` tells what the changes do to a plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from infless_core.errors import InvalidInput
from infless_core.model import ARRIVAL_CV_MAX, Problem, Server
from infless_scheduler import what_if_servers as some_servers
from infless_scheduler.comparison import Comparison, compare, comparison_as_text, comparison_to_json
from infless_scheduler.what_if_grammar import (
    Change,
    Read,
    Rule,
    Step,
    Update,
    flag,
    is_wildcard,
    matching,
    number,
    parsed,
    slower,
    some,
    step,
    unknown,
    wish,
    worth,
)

__all__ = ["Comparison", "WhatIfError", "apply_changes", "compare", "comparison_as_text", "comparison_to_json"]

_NUMBER = Rule(allowed="a number of at least 0")
_CV = Rule(allowed=f"a number from 0 to {ARRIVAL_CV_MAX:g}", most=ARRIVAL_CV_MAX)
_COUNT = Rule(allowed="a whole number of at least 0", whole=True)
_FROM_ONE = Rule(allowed="a whole number of at least 1", least=1, whole=True)
_LIMIT = replace(_FROM_ONE, optional=True)
_TARGET = Rule(allowed="a duration above 0 such as 150ms", inside=True, seconds=True)
_PERCENTILE = Rule(allowed="a number above 0 and below 100", most=100, inside=True, optional=True)

_OF_FUNCTIONS: Mapping[str, tuple[str, Read]] = MappingProxyType(
    {
        "rate": ("rate_rps", number(replace(_NUMBER, allowed="requests/s of at least 0"))),
        "target": ("latency_target_s", number(_TARGET)),
        "percentile": ("latency_percentile", number(_PERCENTILE)),
        "cv": ("arrival_cv", number(_CV)),
        "batch": ("max_batch", number(_FROM_ONE)),
        "gpu": ("gpu", wish),
        "min": ("instances_min", number(_COUNT)),
        "max": ("instances_max", number(_LIMIT)),
        "exec": ("profile", slower),
    }
)
_OF_ALL: Mapping[str, Read] = MappingProxyType(
    {
        "alpha": number(Rule(allowed="a number from 0 to 1", most=1)),
        "beta": worth,
        "churn_cost": number(_NUMBER),
    }
)


class WhatIfError(InvalidInput):
    """A text of changes with faults; `faults` has a line for each, which begins with the change."""

    def __init__(self, faults: tuple[str, ...]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


def apply_changes(problem: Problem, text: str) -> Problem:
    """The problem with changes, made one after the other: a later one sees what an earlier one has left.

    Args:
        problem: as it is now.
        text: changes `SUBJECT.NAME OPERATOR VALUE`, separated by commas.

    Raises:
        WhatIfError: an InvalidInput, with every fault of the text.
    """
    draft = _Draft(problem)
    for part in text.split(","):
        change = parsed(part)
        with draft.noting(change):
            _make_for(change)(draft, change)
    return draft.finished()


class _Draft:
    """A problem that is being changed. Functions are built at the end: their limits may pass each other on the way."""

    __slots__ = ("faults", "fields", "functions", "limits", "problem")

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        """Up to date but for its functions."""
        self.functions = {function.id: function for function in problem.functions}
        self.fields: dict[str, dict[str, Any]] = {id_: {} for id_ in self.functions}
        """The changed attributes of each function."""
        self.limits: dict[str, str] = {}
        """By function, the last change of its least or greatest number of instances."""
        self.faults: list[str] = []

    @contextmanager
    def noting(self, change: Change, of: str = "") -> Iterator[None]:
        """A fault inside is noted and ends the block; what comes after it is tried all the same."""
        try:
            yield
        except InvalidInput as fault:
            self.faults.append(f"{change.text or repr('')}: {of}{fault}")

    def finished(self) -> Problem:
        """The changed problem.

        Raises:
            WhatIfError: when any fault was noted.
        """
        for id_, function in self.functions.items():
            least = self.fields[id_].get("instances_min", function.instances_min)
            most = self.fields[id_].get("instances_max", function.instances_max)
            if most is not None and least > most:
                sentence = f"min of {id_} would be {least}, its max {most}; allowed is a min of at most max"
                self.faults.append(f"{self.limits[id_]}: {sentence}")
        if self.faults:
            raise WhatIfError(tuple(dict.fromkeys(self.faults)))
        changed = (replace(f, **self.fields[id_]) if self.fields[id_] else f for id_, f in self.functions.items())
        return replace(self.problem, functions=tuple(changed))


_Make = Callable[[_Draft, Change], None]


def _make_for(change: Change) -> _Make:
    if not change.text:
        raise InvalidInput("a change is missing; write for example rate.resnet=2x, and a comma only between changes")
    if change.subject not in _MAKE:
        raise InvalidInput(unknown("subject", change.subject, _MAKE))
    return _MAKE[change.subject]


def _change_functions(draft: _Draft, change: Change) -> None:
    attribute, read = _OF_FUNCTIONS[change.subject]
    update: Update | None = None
    ids: tuple[str, ...] = ()
    with draft.noting(change):
        update = read(change)
    with draft.noting(change):
        ids = matching("function", change, draft.functions, bare=True)
    if update is None:
        return
    for id_ in ids:
        fields = draft.fields[id_]
        with draft.noting(change, f"for {id_} "):
            fields[attribute] = update(fields.get(attribute, getattr(draft.functions[id_], attribute)))
        if change.subject in ("min", "max"):
            draft.limits[id_] = change.text


def _change_all(draft: _Draft, change: Change) -> None:
    attribute = change.subject
    with draft.noting(change):
        if change.name:
            raise InvalidInput(f"it is the same for all functions and servers; write {attribute}=VALUE")
    value = _OF_ALL[attribute](change)(getattr(draft.problem, attribute))
    new: dict[str, Any] = {attribute: value}
    draft.problem = replace(draft.problem, **new)


def _change_drains(draft: _Draft, change: Change) -> None:
    chosen: frozenset[str] = frozenset()
    with draft.noting(change):
        chosen = frozenset(matching("server", change, [server.id for server in draft.problem.servers]))
    draining = flag(change)
    servers = (replace(s, draining=draining) if s.id in chosen else s for s in draft.problem.servers)
    draft.problem = replace(draft.problem, servers=tuple(servers))


def _change_servers(draft: _Draft, change: Change) -> None:
    """A factor is for each size of server on its own; a number is for all of them together."""
    counting: Step | None = None
    chosen: tuple[Server, ...] = ()
    with draft.noting(change):
        counting = step(change, _COUNT)
    with draft.noting(change):
        chosen = some_servers.selected(draft.problem, change.name)
    if counting is None or not chosen:
        return
    groups = [chosen] if change.factor is None else some_servers.groups(draft.problem, chosen)
    alone = len(groups) == 1 and not is_wildcard(change.name)
    for servers in groups:
        with draft.noting(change, f"{len(servers)} now ({some(s.id for s in servers)}); "):
            missing = int(counting.of(len(servers))) - len(servers)
            if missing > 0:
                prefix = change.name if alone else servers[0].id
                draft.problem = some_servers.more(draft.problem, servers, missing, prefix)
            elif missing < 0:
                draft.problem = some_servers.fewer(draft.problem, servers, -missing)


_MAKE: Mapping[str, _Make] = MappingProxyType(
    {
        **dict.fromkeys(_OF_FUNCTIONS, _change_functions),
        "servers": _change_servers,
        "drain": _change_drains,
        **dict.fromkeys(_OF_ALL, _change_all),
    }
)
