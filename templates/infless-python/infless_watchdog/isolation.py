"""Run a batch so that what fails, fails alone: bisection around a handler that raises."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from infless_watchdog.devices import is_out_of_memory


class ItemError(Exception):
    """One request cannot be answered; carries the status and the sentence its client gets."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Refusal(ItemError):  # noqa: N818 - it is one, and nothing has failed
    """Nothing was done for a request, so another instance may take it."""


class BatchError(ItemError):
    """A whole batch has failed, and running it in parts would not help."""


@dataclass(slots=True)
class Run:
    """What came of a batch."""

    answers: list[Any]
    """In order; an ItemError stands where one failed."""
    exec_s: float | None
    """None when the batch had to be split, which says nothing of its size."""
    cpu_s: float = 0.0
    """What the calling thread did of it: without waiting for the interpreter, other processes or a GPU."""
    fits: int | None = None
    """The largest part that memory had room for, where it had none for the whole."""


def run_isolated(predict: Callable[[list[Any]], Any], items: Sequence[Any]) -> Run:
    """Run a batch.

    A batch that raises is split in halves until the failing items are alone: about `2 log2(b)` further runs for one
    bad item. A handler that answers with the wrong number of results has failed for the whole batch: nobody can say
    which answer belongs to whom, and running it again would not help.
    """
    run, parts = Run([], None), _Parts()
    started_s, cpu_started_s = time.perf_counter(), time.thread_time()
    whole = _run(predict, items, run, parts)
    exec_s, run.cpu_s = time.perf_counter() - started_s, time.thread_time() - cpu_started_s
    if whole:
        run.exec_s = exec_s
    if parts.too_large and not parts.one_too_large:
        run.fits = parts.largest
    return run


@dataclass(slots=True)
class _Parts:
    """What became of the parts of a batch."""

    too_large: bool = False
    """Memory had no room for one."""
    one_too_large: bool = False
    """Not even for a single item: then it is the item."""
    largest: int = 1
    """That was answered."""


def _run(predict: Callable[[list[Any]], Any], items: Sequence[Any], run: Run, parts: _Parts) -> bool:
    """Append the answers for `items`; whether one call gave them all."""
    count = len(items)
    failed: BaseException | None = None
    results: Any = None
    try:
        results = predict(list(items))  # a copy: a handler may empty its list and then raise
        if not isinstance(results, list) and _is_list(results):
            results = list(results)  # here, as it may be lazy, and raise
    except BaseException as error:  # noqa: BLE001 - also sys.exit(): the user's code ends its items, not the instance
        failed = error
    if failed is not None:
        return _split(failed, predict, items, run, parts)
    parts.largest = max(parts.largest, count)
    if not isinstance(results, list):
        kind = type(results).__name__
        fault = ItemError(500, f"the handler must return a list with one answer per request; it returned {kind}")
        run.answers += [fault] * count
    elif len(results) != count:
        sentence = f"the handler returned {len(results)} answers for a batch of {count} requests; they must be as many"
        run.answers += [ItemError(500, sentence)] * count
    else:
        run.answers += [as_item_error(one) if isinstance(one, BaseException) else one for one in results]
    return True


def _split(
    failed: BaseException, predict: Callable[[list[Any]], Any], items: Sequence[Any], run: Run, parts: _Parts
) -> bool:
    """What is answered where a batch has raised."""
    count = len(items)
    if isinstance(failed, BatchError):
        run.answers += [failed] * count
        return False
    too_large = is_out_of_memory(failed)
    parts.too_large |= too_large
    if count == 1:
        parts.one_too_large |= too_large
        run.answers.append(as_item_error(failed))
        return True
    middle = count // 2
    _run(predict, items[:middle], run, parts)
    _run(predict, items[middle:], run, parts)
    return False


def _is_list(results: Any) -> bool:
    """Whether its elements are answers, in order: lists and tuples, and the arrays of numpy and torch.

    A dict or a set has another order, a str or a data frame has other elements.
    """
    if isinstance(results, (str, bytes, bytearray, memoryview)):
        return False
    return isinstance(results, Sequence) or (hasattr(results, "tolist") and getattr(results, "ndim", 0) > 0)


def as_item_error(error: BaseException) -> ItemError:
    """What the client is told of an exception of the user's code."""
    if isinstance(error, ItemError):
        return error
    # ValueError is Python's word for "this input is wrong": the client's fault, not the server's.
    fault = ItemError(422 if isinstance(error, ValueError) else 500, f"{type(error).__name__}: {error}")
    fault.__cause__ = error
    return fault
