"""Items of different length in one batch: to which lengths they are padded, and how answers are cut back.

Rules stand in the label `com.infless.batch.pad`, separated by `;`: `AXIS=LENGTHS[:VALUE]`. AXIS is the name of a
dynamic axis, or `INPUT.N` with the axis counted as the model does (the batch is axis 0); without it a rule holds for
every dynamic axis. LENGTHS is one number (`64`: multiples of it) or a rising list (`64,128,256`: one of these). VALUE
fills up, else 0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_LENGTHS = re.compile(r"[1-9]\d{0,8}(,[1-9]\d{0,8})*")


class TooLongError(ValueError):
    """An item is longer than anything it could be padded to."""


@dataclass(frozen=True, slots=True)
class PadRule:
    """What one axis is padded to."""

    lengths: tuple[int, ...]
    """One: its multiples. Several, rising: the only ones there are."""
    value: float = 0.0

    def padded(self, length: int) -> int:
        """The least allowed length that holds `length`.

        Raises:
            TooLongError: it is more than the last one.
        """
        if len(self.lengths) == 1:
            return max(1, math.ceil(length / self.lengths[0])) * self.lengths[0]
        for allowed in self.lengths:
            if length <= allowed:
                return allowed
        raise TooLongError(f"length {length} is more than {self.lengths[-1]}, the longest that batch_pad allows")


@dataclass(frozen=True, slots=True)
class PadRules:
    """All rules by axis; the one of '' holds where there is no other."""

    by_axis: Mapping[str, PadRule] = field(default_factory=dict)

    def find(self, tensor: str, number: int, name: str | None) -> PadRule | None:
        """The rule for a dynamic axis of an input: by its place, by its name, or the general one."""
        for axis in (f"{tensor}.{number}", name, ""):
            if axis is not None and axis in self.by_axis:
                return self.by_axis[axis]
        return None

    def unused(self, axes: Sequence[tuple[str, int, str | None]]) -> list[str]:
        """Axes that rules name, but none of these dynamic axes (tensor, number, name) is."""
        known = {""} | {f"{tensor}.{number}" for tensor, number, _ in axes} | {name for *_, name in axes}
        return [axis for axis in self.by_axis if axis not in known]


def parse_pad(text: str) -> PadRules:
    """Rules from a label.

    Raises:
        ValueError: what is wrong, and what is allowed.
    """
    rules: dict[str, PadRule] = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        name, _, wish = part.rpartition("=")
        axis, (lengths, colon, value) = name.strip(), wish.replace(" ", "").partition(":")
        if (part.rfind("=") >= 0 and not axis) or not _LENGTHS.fullmatch(lengths):
            raise ValueError(f"{part!r} is not a rule such as 'seq=64', 'x.1=64,128,256' or '64:0'")
        whole = tuple(int(length) for length in lengths.split(","))
        if list(whole) != sorted(set(whole)):
            raise ValueError(f"{part!r}: the lengths must rise")
        if axis in rules:
            raise ValueError(f"{part!r}: there is a rule for {axis or 'every dynamic axis'} already")
        rules[axis] = PadRule(whole, _number(value, part) if colon else 0.0)
    return PadRules(rules)


def _number(text: str, part: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{part!r}: {text!r} is not a number to fill up with")
    return value


def fill_of(rules: Sequence[PadRule | None], dtype: np.dtype[Any]) -> Any:
    """What an input is filled up with: the value of its first padded axis, as its type; empty strings for strings.

    Raises:
        ValueError: the type cannot hold it.
    """
    value = next((rule.value for rule in rules if rule is not None), 0.0)
    if dtype.hasobject:
        if value:
            raise ValueError(f"strings are filled up with empty ones, not with {value:g}")
        return ""
    with np.errstate(all="ignore"):
        fill = np.float64(value).astype(dtype)
    if dtype.kind == "f":
        held = bool(np.isfinite(fill))
    else:
        limits = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        held = value == int(value) and limits[0] <= value <= limits[1]
    if not held:
        raise ValueError(f"{dtype} cannot hold the fill value {value:g}")
    return fill


def padded_shape(shape: Sequence[int], rules: Sequence[PadRule | None]) -> tuple[int, ...]:
    """A shape without its batch axis, padded: an axis without a rule stays as it is.

    Raises:
        TooLongError: see `PadRule.padded`.
    """
    return tuple(length if rule is None else rule.padded(length) for length, rule in zip(shape, rules, strict=True))


def stack(arrays: Sequence[np.ndarray], shape: tuple[int, ...], fill: Any) -> np.ndarray:
    """Arrays below each other along their first axis, each filled up at its ends to `shape`."""
    if all(array.shape[1:] == shape for array in arrays):
        return np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
    whole = np.full((sum(map(len, arrays)), *shape), fill, arrays[0].dtype)
    start = 0
    for array in arrays:
        stop = start + len(array)
        whole[(slice(start, stop), *map(slice, array.shape[1:]))] = array
        start = stop
    return whole


def cut(array: np.ndarray, axes: Sequence[str | None], lengths: Mapping[str, tuple[int, int]]) -> np.ndarray:
    """An answer without what belongs to the padding.

    Args:
        array: one item's, with its batch axis.
        axes: their names, the batch axis first.
        lengths: of padded axes by name: the item's own, and the padded one. An axis that is not as long as that has
            grown or shrunk in the model, and is left alone.
    """
    where = [slice(None)] * array.ndim
    for number, name in enumerate(axes[: array.ndim]):
        own, padded = lengths.get(name, (0, -1)) if name is not None else (0, -1)
        if number and array.shape[number] == padded:
            where[number] = slice(own)
    return array[tuple(where)]
