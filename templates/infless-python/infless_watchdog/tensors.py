"""What a model without code takes and gives: its tensors, their axes, and one request's share of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from infless_watchdog import oip, padding
from infless_watchdog.calls import LoadError
from infless_watchdog.padding import PadRule, PadRules
from infless_watchdog.settings import Settings

Shape = tuple[int, ...]
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One input or output, as its model declares it."""

    name: str
    dtype: np.dtype[Any]
    """`oip.STRINGS` for strings."""
    shape: tuple[int | str | None, ...]
    """The batch axis first. A name for an axis that each request chooses, None if it has none. Empty if unknown."""


class Runtime(Protocol):
    """A loaded model, run by somebody's library."""

    device: str
    """`cpu`, `cuda` or `tensorrt`."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, feed: Arrays) -> Arrays:
        """Outputs by name; they are the caller's to keep."""
        ...

    def bind(self, feed: Arrays, name: str, into: np.ndarray) -> Callable[[], None] | None:
        """A run prepared once, which reads what is in `feed` then and writes output `name`; None if it cannot be."""
        ...

    def set_cpu_cores(self, cpu_cores: int) -> None:
        """Use this many threads from the next run on."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One input, as requests are held against it. All but `spec` leave out the batch axis."""

    spec: TensorSpec
    dims: tuple[int | None, ...]
    """None is a length that each request chooses."""
    said: Shape | None
    """As `dims`, with `input_shape` for what the model leaves open: what raw bytes are. None if nobody says so."""
    rules: tuple[PadRule | None, ...]
    fill: Any

    @property
    def name(self) -> str:
        """Its name."""
        return self.spec.name

    @property
    def dtype(self) -> np.dtype[Any]:
        """Its type."""
        return self.spec.dtype

    @property
    def known(self) -> bool:
        """Whether all items are as long."""
        return None not in self.dims

    @property
    def sample(self) -> Shape:
        """A shape that will do; lengths that nobody says are 1."""
        return self.said if self.said is not None else tuple(dim or 1 for dim in self.dims)

    @property
    def row_bytes(self) -> int:
        """Of one row in that shape."""
        return math.prod(self.sample) * self.dtype.itemsize

    def axis(self, number: int) -> str:
        """What an axis is known by: its name, else its place; counted without the batch axis."""
        name = self.spec.shape[number + 1]
        return name if isinstance(name, str) else f"{self.name}.{number + 1}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One request's tensors, each with its batch axis, and how the answer is wanted."""

    tensors: Arrays
    rows: int
    wanted: oip.Wanted | None = None
    """None for a request that was not in the Open Inference Protocol."""
    padded: tuple[Shape, ...]
    """What its tensors' shapes are in a batch, without the batch axis: items for which they are equal may share one."""
    lengths: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Of axes with a rule, by name: its own, and the padded one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What a model takes and gives."""

    inputs: tuple[Input, ...]
    outputs: tuple[TensorSpec, ...]
    fixed_rows: int | None
    """The batch axis, where the model leaves no choice."""
    grows: bool
    """Whether the batch axis can, as far as the model says."""

    @property
    def known(self) -> bool:
        """Whether all items have the same shapes."""
        return all(one.known for one in self.inputs)

    def limits(self, batch_max: int) -> dict[str, tuple[Shape, Shape]] | None:
        """The least and the largest shape of each input in batches of up to `batch_max`; None if nobody knows."""
        found = {}
        for one in self.inputs:
            ends = _limits(one)
            if ends is None:
                return None
            least, most = (1, batch_max) if self.fixed_rows is None else (self.fixed_rows, self.fixed_rows)
            found[one.name] = ((least, *ends[0]), (most, *ends[1]))
        return found

    def item(self, tensors: Arrays, rows: int, wanted: oip.Wanted | None = None) -> Item:
        """An item of tensors that fit.

        Raises:
            ValueError: an axis is longer than its rule allows, or of another length in another input.
        """
        padded: list[Shape] = []
        lengths: dict[str, tuple[int, int]] = {}
        for one in self.inputs:
            own = tensors[one.name].shape[1:]
            try:
                padded.append(padding.padded_shape(own, one.rules))
            except padding.TooLongError as error:
                raise ValueError(f"input {one.name}: {error}") from None
            for number, rule in enumerate(one.rules):
                axis, both = one.axis(number), (own[number], padded[-1][number])
                # Padding would hide it, and the model would not fail as it should.
                if rule is not None and lengths.setdefault(axis, both) != both:
                    raise ValueError(f"input {one.name}: axis {axis} is {both[0]}, elsewhere {lengths[axis][0]}")
        return Item(tensors=tensors, rows=rows, wanted=wanted, padded=tuple(padded), lengths=lengths)


def _limits(one: Input) -> tuple[Shape, Shape] | None:
    """The least and the largest shape of one row; None where a length has no limit."""
    ends = [
        (dim, dim) if dim is not None else (rule.lengths[0], rule.lengths[-1]) if rule and rule.lengths[1:] else None
        for dim, rule in zip(one.dims, one.rules, strict=True)
    ]
    if None in ends:
        return None
    return tuple(end[0] for end in ends if end), tuple(end[1] for end in ends if end)


def signature(takes: Sequence[TensorSpec], gives: Sequence[TensorSpec], settings: Settings, path: Path) -> Signature:
    """What a model's own words and the settings say together.

    Raises:
        LoadError: they contradict each other, or the model cannot be served without a handler.
    """
    try:
        rules = padding.parse_pad(settings.batch_pad)
        inputs = tuple(_input(spec, settings, rules) for spec in takes)
        _check_rules(inputs, rules)
    except ValueError as error:
        raise LoadError(f"{path}: {error}") from None
    fixed = {spec.shape[0] for spec in takes if isinstance(spec.shape[0], int)}
    if len(fixed) > 1:
        raise LoadError(f"{path}: the inputs' first axes are {sorted(fixed)}: no batch axis; write a handler.py")
    # A fixed 1 in front of an output is often only the exporter's word; a batch of more will show.
    odd = any(isinstance(rows := spec.shape[0], int) and rows > 1 for spec in gives if spec.shape)
    return Signature(
        inputs=inputs, outputs=tuple(gives), fixed_rows=next(iter(fixed), None), grows=not fixed and not odd
    )


def _input(spec: TensorSpec, settings: Settings, rules: PadRules) -> Input:
    if not spec.shape:
        raise ValueError(f"input {spec.name} is a scalar and has no batch axis; write a handler.py for it")
    own = tuple(dim if isinstance(dim, int) else None for dim in spec.shape[1:])
    said = settings.input_shape.get(spec.name, settings.input_shape.get(""))
    if said is not None and not (
        len(said) == len(own) and all(d is None or d == s for d, s in zip(own, said, strict=True))
    ):
        raise ValueError(f"input_shape {list(said)} does not fit input {spec.name}: {list(spec.shape[1:])}")
    if said is None and None not in own:
        said = tuple(dim or 0 for dim in own)
    found = tuple(
        rules.find(spec.name, number, _name(spec.shape[number])) if dim is None else None
        for number, dim in enumerate(own, 1)
    )
    try:
        fill = padding.fill_of(found, spec.dtype)
    except ValueError as error:
        raise ValueError(f"batch_pad, input {spec.name}: {error}") from None
    # `input_shape` ends the choice of lengths, unless a rule says that there is one.
    dims = own if said is None else tuple(None if rule else dim for rule, dim in zip(found, said, strict=True))
    return Input(spec=spec, dims=dims, said=said, rules=found, fill=fill)


def _check_rules(inputs: Sequence[Input], rules: PadRules) -> None:
    """Rules that mean nothing, and axes of one name with two meanings."""
    axes = [
        (one.name, number, _name(dim))
        for one in inputs
        for number, dim in enumerate(one.spec.shape)
        if number and not isinstance(dim, int)
    ]
    if unused := rules.unused(axes):
        known = sorted({name or f"{tensor}.{number}" for tensor, number, name in axes})
        have = f"its dynamic axes are {', '.join(known)}" if known else "it has no dynamic axis"
        raise ValueError(f"batch_pad: the model has no dynamic axis {' and no '.join(unused)}; {have}")
    seen: dict[str, tuple[int, ...] | None] = {}
    for one in inputs:
        for number, rule in enumerate(one.rules):
            axis, lengths = one.axis(number), None if rule is None else rule.lengths
            if one.spec.shape[number + 1] is not None and seen.setdefault(axis, lengths) != lengths:
                raise ValueError(
                    f"batch_pad: axis {axis} is in several inputs, and must be padded alike in all of them"
                )


def _name(dim: int | str | None) -> str | None:
    return dim if isinstance(dim, str) else None
