"""Batches of raw bytes: one row each, gathered, run and cut apart by one call each, whatever the size of the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from struct import Struct
from typing import Any

import numpy as np

from infless_watchdog import oip
from infless_watchdog.tensors import Runtime, Signature


@lru_cache(maxsize=256)
def _rows(row_bytes: int, count: int) -> Struct:
    """`pack_into` copies so many rows into a buffer in one call, `unpack` cuts a buffer into as many."""
    return Struct(f"{row_bytes}s" * count)


@dataclass(frozen=True, slots=True)
class _Bound:
    """All that is the same in each batch of one size."""

    pack_into: Callable[..., None]
    batch: np.ndarray
    run: Callable[[], None] | None
    """Writes into `output`."""
    unpack: Callable[[Any], tuple[bytes, ...]]
    output: np.ndarray


class RawRows:
    """Runs batches of one-row items from one buffer into another; both grow to the largest batch seen, and stay.

    Args:
        runtime: of a model with one input of known shape, whose first output has a type of fixed size.
        signature: of the same model.
    """

    def __init__(self, runtime: Runtime, signature: Signature) -> None:
        self._runtime = runtime
        self._input, self._output = signature.inputs[0], signature.outputs[0]
        dims = self._output.shape[1:]
        self._answer_shape = tuple(dim for dim in dims if isinstance(dim, int))
        self._bindable = bool(self._output.shape) and len(self._answer_shape) == len(dims)
        self.clear()

    @staticmethod
    def fits(signature: Signature) -> bool:
        """Whether a model's raw requests can be run so."""
        first = signature.inputs[0]
        return (
            len(signature.inputs) == 1 and first.known and first.dtype != oip.STRINGS and first.row_bytes > 0
            and signature.outputs[0].dtype != oip.STRINGS and signature.fixed_rows in (None, 1)
        )  # fmt: skip

    def clear(self) -> None:
        """Forget what was bound: the runtime has changed."""
        self._capacity = 0
        self._bound: dict[int, _Bound] = {}

    def run(self, bodies: Sequence[bytes]) -> Sequence[bytes] | None:
        """The first output of each; None if it has not one row for each that went in."""
        bound = self._bound.get(len(bodies)) or self._bind(len(bodies))
        bound.pack_into(self._buffer, 0, *bodies)
        if bound.run is not None:
            try:
                bound.run()
                return bound.unpack(bound.output)
            except Exception:  # noqa: BLE001 - the run without it says what is wrong
                answers = self._run_unbound(bound.batch)
                # So nothing is, but the output's declared shape.
                self._bindable = False
                self.clear()
                return answers
        return self._run_unbound(bound.batch)

    def _run_unbound(self, batch: np.ndarray) -> Sequence[bytes] | None:
        count = len(batch)
        output = np.ascontiguousarray(self._runtime.run({self._input.name: batch})[self._output.name])
        if count == 1:
            return (output.tobytes(),)
        if output.shape[:1] != (count,):
            return None
        return _rows(output.nbytes // count, count).unpack(output.data)

    def _bind(self, count: int) -> _Bound:
        if count > self._capacity:
            self.clear()
            self._capacity = count
            self._buffer = np.empty((count, *self._input.sample), self._input.dtype)
            self._answers = np.empty((count, *self._answer_shape), self._output.dtype)
        batch, output = self._buffer[:count], self._answers[:count]
        run = self._runtime.bind({self._input.name: batch}, self._output.name, output) if self._bindable else None
        pack_into, unpack = _rows(self._input.row_bytes, count).pack_into, _rows(output.nbytes // count, count).unpack
        found = self._bound[count] = _Bound(pack_into, batch, run, unpack, output)
        return found
