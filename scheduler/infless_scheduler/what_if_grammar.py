"""What a what-if is made of: the text of one change, what its name means, and what its value does to a number."""

from __future__ import annotations

import difflib
import math
import re
import sys
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Any

from infless_core.errors import InvalidInput
from infless_core.labels import GpuWish
from infless_core.model import ProfilePoint
from infless_core.units import parse_duration_s

_KNOWN_MAX = 8
"""So many names are told where one is unknown."""
_CHANGE = re.compile(r"(?P<place>.*?)\s*(?:(?P<operator>[+-]?=)\s*(?P<value>[^=]*))?", re.DOTALL)
_NUMBER = r"[0-9]{1,18}(?:\.[0-9]{1,18})?"
_PLAIN = re.compile(_NUMBER)
_TIMES = re.compile(rf"({_NUMBER})x")
_PERCENT = re.compile(rf"([+-]{_NUMBER})%")
_WORTH = re.compile(rf"price:({_NUMBER})/({_NUMBER})")

Update = Callable[[Any], Any]
"""What was there to what will be there; raises InvalidInput where that is not allowed."""
Read = Callable[["Change"], Update]
"""Raises InvalidInput where the value of the change is not understood."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change as it was written: `SUBJECT.NAME OPERATOR VALUE`, where all but the subject may be empty."""

    text: str
    subject: str
    name: str
    operator: str
    value: str

    @property
    def factor(self) -> Fraction | None:
        """Of `=2x` and `=+20%`."""
        return _factor(self.value) if self.operator == "=" else None

    @property
    def wrong_value(self) -> str:
        """How the sentence about a wrong value begins."""
        return f"{self.value!r} is not allowed" if self.value else "a value is missing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Which numbers a place may hold."""

    allowed: str
    least: float = 0.0
    most: float = math.inf
    inside: bool = False
    """The ends themselves are excluded."""
    whole: bool = False
    optional: bool = False
    """It may be `none`."""
    seconds: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What a change does to a number: `present * factor + amount`.

    Exact, and on the number as it is written: 1.1x of 30 servers is 33, and 50ms less than 0.2 is 0.15.
    """

    factor: Fraction
    amount: Fraction
    rule: Rule

    def of(self, present: float | None) -> float:
        """The new number.

        Raises:
            InvalidInput: when it breaks the rule.
        """
        if present is None and self.factor:
            raise InvalidInput(f"it is none now; set it with = to {self.rule.allowed}")
        exact = Fraction(str(present or 0)) * self.factor + self.amount
        value = float(exact) if abs(exact) <= Fraction(sys.float_info.max) else math.inf
        rule = self.rule
        within = rule.least < value < rule.most if rule.inside else rule.least <= value <= rule.most
        if not within or value == math.inf or (rule.whole and exact.denominator != 1):
            raise InvalidInput(f"it would be {value:g}; allowed is {rule.allowed}")
        return int(exact) if rule.whole else value


def parsed(text: str) -> Change:
    """One change, whatever it says."""
    text = text.strip()
    found = _CHANGE.fullmatch(text)
    place, operator, value = found.group("place", "operator", "value") if found else (text, None, None)
    subject, _, name = place.partition(".")
    return Change(text=text, subject=subject.strip(), name=name.strip(), operator=operator or "", value=value or "")


# values --------------------------------------------------------------------------------------------------------------


def step(change: Change, rule: Rule) -> Step:
    """What a change does to any number; whether the result is allowed depends on the number.

    Raises:
        InvalidInput: when its value is no number, duration or factor.
    """
    if change.factor is not None:
        return Step(factor=change.factor, amount=Fraction(0), rule=rule)
    amount = _amount(change.value, rule)
    if amount is not None and change.operator:
        kept = Fraction(0 if change.operator == "=" else 1)
        return Step(factor=kept, amount=-amount if change.operator == "-=" else amount, rule=rule)
    if change.operator in ("+=", "-="):
        form = "a duration such as 50ms" if rule.seconds else "a plain number"
        raise InvalidInput(f"{change.wrong_value}; after {change.operator} comes {form}, 2x and +20% go with =")
    none = ", none" if rule.optional else ""
    raise InvalidInput(f"{change.wrong_value}; write = and {rule.allowed}{none}, or a factor such as 2x, +20% or -20%")


def _factor(value: str) -> Fraction | None:
    if found := _TIMES.fullmatch(value):
        return Fraction(found[1])
    found = _PERCENT.fullmatch(value)
    return 1 + Fraction(found[1]) / 100 if found else None


def _amount(value: str, rule: Rule) -> Fraction | None:
    if _PLAIN.fullmatch(value):
        return Fraction(value)
    try:
        return Fraction(str(parse_duration_s(value))) if rule.seconds else None
    except InvalidInput:
        return None


def number(rule: Rule) -> Read:
    """Reads changes of a number."""

    def read(change: Change) -> Update:
        if rule.optional and (change.operator, change.value) == ("=", "none"):
            return lambda _: None
        return step(change, rule).of

    return read


def worth(change: Change) -> Update:
    """What a core is worth: a number, or the ratio of two prices as in a plan file."""
    found = _WORTH.fullmatch(change.value)
    if found is None or change.operator != "=":
        return step(change, Rule(allowed="a number of at least 0, price:CORE/GPU such as price:0.034/2.5")).of
    core, gpu = Fraction(found[1]), Fraction(found[2])
    if gpu == 0:
        raise InvalidInput(f"{change.wrong_value}; the price of a GPU is above 0")
    return lambda _: float(100 * core / gpu)


def slower(change: Change) -> Update:
    """A factor on every execution time of a profile."""
    if change.factor is None or change.factor <= 0:
        raise InvalidInput(f"{change.wrong_value}; write = and a factor above 0 such as 1.2x, 0.5x, +20% or -20%")
    rule = Rule(allowed="a time above 0", inside=True)
    scaled = Step(factor=change.factor, amount=Fraction(0), rule=rule)

    def update(profile: tuple[ProfilePoint, ...]) -> tuple[ProfilePoint, ...]:
        return tuple(replace(point, exec_s=scaled.of(point.exec_s)) for point in profile)

    return update


def wish(change: Change) -> Update:
    """Whether a function runs on GPUs."""
    if change.operator != "=" or change.value not in tuple(GpuWish):
        near = _near(change.value, GpuWish)
        raise InvalidInput(f"{change.wrong_value}{near}; write = and one of {', '.join(GpuWish)}")
    chosen = GpuWish(change.value)
    return lambda _: chosen


def flag(change: Change) -> bool:
    """True where nothing else is said."""
    if (change.operator, change.value) not in (("", ""), ("=", "true"), ("=", "false")):
        raise InvalidInput(f"{change.wrong_value}; write {change.subject}.NAME alone, or with =true or =false")
    return change.value != "false"


# names ---------------------------------------------------------------------------------------------------------------


def matching(what: str, change: Change, ids: Collection[str], *, bare: bool = False) -> tuple[str, ...]:
    """The ids that a name means: itself, else all that a wildcard matches, else (when `bare`) the one `name.namespace`.

    Raises:
        InvalidInput: when it means none, or may mean several.
    """
    name = change.name
    if not name:
        raise InvalidInput(f"it names no {what}; write {change.subject}.{what.upper()}, or {change.subject}.* for all")
    if name in ids:
        return (name,)
    shorter = {id_: short for id_ in ids if (short := id_.rpartition(".")[0])} if bare else {}
    if is_wildcard(name):
        found = [id_ for id_ in ids if fnmatchcase(id_, name) or fnmatchcase(shorter.get(id_, id_), name)]
    else:
        found = [id_ for id_ in ids if shorter.get(id_) == name]
        if len(found) > 1:
            raise InvalidInput(f"{name!r} may be {' or '.join(sorted(found))}; write one of them")
    if not found:
        raise InvalidInput(unknown(what, name, ids, also=shorter.values()))
    return tuple(found)


def is_wildcard(name: str) -> bool:
    """Whether a name stands for all that it matches."""
    return any(letter in name for letter in "*?[")


def unknown(what: str, name: str, known: Iterable[str], *, also: Iterable[str] = ()) -> str:
    """The sentence about a name that is not known: what is near, and what there is (`also` is near at most)."""
    known = tuple(known)
    return f"there is no {what} {name!r}{_near(name, (*also, *known))}; known are {some(known) or 'none'}"


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(dict.fromkeys(known)), n=2)
    return f", did you mean {' or '.join(near)}?" if near else ""


def some(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    names = tuple(names)
    left = len(names) - _KNOWN_MAX
    return ", ".join(names[:_KNOWN_MAX]) + (f" and {left} more" if left > 0 else "")
