"""Models without code as a `calls.Model`: tensors in, one call of a runtime per batch, tensors out."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infless_watchdog import padding
from infless_watchdog.raw_rows import RawRows
from infless_watchdog.settings import Settings
from infless_watchdog.tensor_codec import TensorCodec
from infless_watchdog.tensors import Arrays, Item, Runtime, Shape, signature

LOG = logging.getLogger("infless.watchdog")
_RAW = {bytes}


class TensorModel:
    """Serves what a `Runtime` runs. The first axis of every input and output is the batch."""

    kind: str
    platform: str
    device: str
    """What it runs on, which may not be what was wished for."""
    concurrency = 1
    brief = True
    prepare: Callable[[Any], Any] | None = None
    finish: Callable[[Any], Any] | None = None
    prepare_cores: Callable[[int], None] | None = None
    interrupt: Callable[[], None] | None = None
    """A run of a library's cannot be ended."""

    def __init__(self, runtime: Runtime, settings: Settings, path: Path) -> None:
        self._runtime, self.device = runtime, runtime.device
        self._signature = signature(runtime.inputs, runtime.outputs, settings, path)
        self._codec = TensorCodec(self._signature, settings)
        self._outputs = {spec.name: [*map(_name, spec.shape)] for spec in self._signature.outputs}
        self._raw = RawRows(runtime, self._signature) if RawRows.fits(self._signature) else None
        self._one_bucket = self._signature.known
        self.decode, self.encode = self._codec.decode, self._codec.encode
        """A request's item, and an answer's reply; see there."""
        self.batched = self._signature.grows
        """Without a batch axis that can grow, requests are run one by one."""

    def bucket(self, item: Item | bytes) -> Hashable:
        """The padded shapes."""
        return None if self._one_bucket or isinstance(item, bytes) else item.padded

    def predict(self, items: list[Any]) -> Sequence[Any]:
        """One run for all items of a bucket; answers are cut back to each item's rows and lengths."""
        if self._raw is not None and set(map(type, items)) == _RAW and (self.batched or len(items) == 1):
            answers = self._raw.run(items)
            if answers is not None:
                return answers
        return self._predict_tensors(items)

    def example(self) -> Item:
        """Zeros and empty strings in the model's shape; unknown sizes that no `input_shape` names are 1."""
        return self._made(lambda shape, dtype: np.full(shape, "" if dtype.hasobject else 0, dtype))

    def metadata(self) -> dict[str, Any]:
        """Model metadata of the Open Inference Protocol."""
        return self._codec.metadata(self.platform, batched=self.batched)

    def openapi(self) -> dict[str, Any]:
        """From the shapes of inputs and outputs."""
        return self._codec.openapi()

    def set_cpu_cores(self, cpu_cores: int) -> None:
        """Other threads from the next run on."""
        if self._raw is not None:
            self._raw.clear()  # what is bound would keep the old runtime
        self._runtime.set_cpu_cores(cpu_cores)

    def close(self) -> None:
        """Nothing to give back before the process ends."""

    def padding_difference(self) -> float | None:
        """What padding changes: the largest difference between answers to an item padded and as long as it is.

        Infinite where not even their shapes agree; None where nothing is padded.
        """
        if not any(rule for one in self._signature.inputs for rule in one.rules):
            return None
        rng = np.random.default_rng(0)

        def noise(shape: Shape, dtype: np.dtype[Any]) -> np.ndarray:
            if dtype.kind == "f":
                return rng.normal(size=shape).astype(dtype)
            return np.full(shape, "a" if dtype.hasobject else 1, dtype)

        item = self._made(noise, shorter=True)
        alone, padded = self._runtime.run(item.tensors), self._run([item])[0]
        return max(_difference(alone[name], padded[name]) for name in self._outputs)

    # runs ------------------------------------------------------------------------------------------------------------

    def _predict_tensors(self, items: Sequence[Item | bytes]) -> list[Arrays | bytes]:
        """Callers that know of buckets send items of one, others any."""
        whole = [self._codec.raw_item(item) if isinstance(item, bytes) else item for item in items]
        groups: dict[tuple[Shape, ...], list[int]] = {}
        for place, item in enumerate(whole):
            groups.setdefault(item.padded, []).append(place)
        answers: list[Any] = [None] * len(items)
        for places in groups.values():
            chosen = [whole[place] for place in places]
            together = self._run(chosen) if self.batched and len(chosen) > 1 else None
            found = [self._run([item])[0] for item in chosen] if together is None else together
            for place, answer in zip(places, found, strict=True):
                raw = isinstance(items[place], bytes)
                answers[place] = next(iter(answer.values())).tobytes() if raw else answer
        return answers

    def _run(self, items: Sequence[Item]) -> list[Arrays]:
        """One run, cut into answers; one by one from then on, if an output has no row for each row that went in."""
        feed = {
            one.name: padding.stack([item.tensors[one.name] for item in items], shape, one.fill)
            for one, shape in zip(self._signature.inputs, items[0].padded, strict=True)
        }
        outputs = self._runtime.run(feed)
        if len(items) == 1:  # all is its own, whatever shape it has
            return [self._cut(outputs, items[0])]
        stops = np.cumsum([item.rows for item in items]).tolist()
        for name, array in outputs.items():
            if array.shape[:1] != (stops[-1],):
                LOG.warning(
                    "output %s has shape %s for a batch of %d: it has no batch axis, so requests are run one by one",
                    name, array.shape, stops[-1],
                )  # fmt: skip
                self.batched = False
                return [self._run([item])[0] for item in items]
        return [
            self._cut({name: array[stop - item.rows : stop] for name, array in outputs.items()}, item)
            for item, stop in zip(items, stops, strict=True)
        ]

    def _cut(self, outputs: Arrays, item: Item) -> Arrays:
        if not item.lengths:
            return outputs
        return {name: padding.cut(array, self._outputs[name], item.lengths) for name, array in outputs.items()}

    def _made(self, make: Any, *, shorter: bool = False) -> Item:
        """An item of the sample's shapes, or with padded axes about half as long as the least they are padded to."""
        rows = self._signature.fixed_rows or 1
        tensors = {}
        for one in self._signature.inputs:
            shape = [
                (rule.lengths[0] + 1) // 2 if shorter and rule is not None else length
                for length, rule in zip(one.sample, one.rules, strict=True)
            ]
            tensors[one.name] = make((rows, *shape), one.dtype)
        return self._signature.item(tensors, rows)


def _name(dim: int | str | None) -> str | None:
    return dim if isinstance(dim, str) else None


def _difference(alone: np.ndarray, padded: np.ndarray) -> float:
    if alone.shape != padded.shape:
        return math.inf
    if alone.dtype.kind not in "fiub":
        return 0.0 if np.array_equal(alone, padded) else math.inf
    one, other = alone.astype(np.float64), padded.astype(np.float64)
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    with np.errstate(invalid="ignore"):
        gap = np.where(same, 0.0, np.abs(one - other))
    return float(np.nan_to_num(gap, nan=math.inf).max(initial=0.0))
