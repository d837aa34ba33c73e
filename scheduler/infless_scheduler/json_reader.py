"""Reading JSON that people wrote: typed values or faults with their JSON path, and all faults in one go."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeVar

_T = TypeVar("_T")


def is_a(value: object, allowed: str) -> str:
    """The sentence that says `value` is not what is allowed."""
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} is not {allowed}"


class JsonObject:
    """One JSON object that is being read.

    Every reader returns a usable value even after a fault, so that reading goes on and finds the other faults too;
    what was built from it counts only when `good`.
    """

    __slots__ = ("_before", "_value", "faults", "path")

    def __init__(
        self, value: object, path: str, faults: list[str], *, known: tuple[str, ...], optional: str = ""
    ) -> None:
        """Args: `known` are the allowed keys, `optional` those of them (separated by spaces) that may be left out."""
        self.path = path
        self.faults = faults
        self._before = len(faults)
        self._value: Mapping[str, object] = value if isinstance(value, Mapping) else {}
        if not isinstance(value, Mapping):
            self.fault("", is_a(value, "an object"))
            return
        for key in value:
            if key not in known:
                self.fault(key, f"unknown key; known are {', '.join(known)}")
        for key in known:
            if key not in value and key not in optional.split():
                self.fault(key, "missing")

    @property
    def good(self) -> bool:
        """Whether nothing is wrong with this object and what it holds."""
        return len(self.faults) == self._before

    def fault(self, key: str, sentence: str) -> None:
        """Note a fault at one of this object's keys, or at the object itself (empty key)."""
        self.faults.append(f"{self.path}{'.' + key if key else ''}: {sentence}")

    def text(self, key: str) -> str:
        """A text that is not empty."""
        value = self._value.get(key, "?")
        if isinstance(value, str) and value:
            return value
        self.fault(key, is_a(value, "a text of at least one letter"))
        return ""

    def text_or_none(self, key: str) -> str | None:
        """A text, or None where the key is absent or null."""
        return None if self._value.get(key) is None else self.text(key)

    def choice(self, key: str, allowed: tuple[str, ...], default: str) -> str:
        """One of some words; the default where the key is absent."""
        value = self._value.get(key, default)
        if isinstance(value, str) and value in allowed:
            return value
        self.fault(key, is_a(value, f"one of {', '.join(allowed)}"))
        return default

    def flag(self, key: str) -> bool:
        """True or false; false where the key is absent."""
        value = self._value.get(key, False)
        if not isinstance(value, bool):
            self.fault(key, is_a(value, "true or false"))
        return value is True

    def get(self, key: str) -> object:
        """The value at a key as it is; None where it is absent."""
        return self._value.get(key)

    def number(
        self, key: str, default: float, *, least: float = 0, most: float = math.inf, inside: bool = False
    ) -> float:
        """A finite number from `least` to `most`, the ends themselves excluded when `inside`."""
        value = _as_float(self._value.get(key, default))
        within = least < value < most if inside else least <= value <= most
        if within and value < math.inf:
            return value
        allowed = f"a number {'above' if inside else 'of at least'} {least:g}"
        if most < math.inf:
            allowed += f" and {'below' if inside else 'at most'} {most:g}"
        self.fault(key, is_a(self._value.get(key), allowed))
        return default

    def whole(self, key: str, default: int, *, least: int = 0, most: int | None = None) -> int:
        """A whole number; `4.0` is one."""
        given = self._value.get(key, default)
        value = _as_float(given)
        if math.isfinite(value) and value == int(value) and least <= value and (most is None or value <= most):
            return given if isinstance(given, int) else int(value)
        allowed = f"a whole number of at least {least}" + ("" if most is None else f" and at most {most}")
        self.fault(key, is_a(given, allowed))
        return default

    def objects(self, key: str, read: Callable[[object, str, list[str]], _T | None]) -> tuple[_T, ...]:
        """The list at `key`, each item read by `read(value, path, faults)`; items with faults are left out."""
        value = self._value.get(key, [])
        if not isinstance(value, list):
            self.fault(key, is_a(value, "a list"))
            return ()
        made = [read(item, f"{self.path}.{key}[{index}]", self.faults) for index, item in enumerate(value)]
        return tuple(item for item in made if item is not None)


def _as_float(value: object) -> float:
    """NaN for what is no number; a bool is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf
