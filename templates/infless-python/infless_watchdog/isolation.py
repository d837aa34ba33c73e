"""Run a batch so that what fails, fails alone: bisection around a handler that raises."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


class ItemError(Exception):
    """One request cannot be answered; carries the status and the sentence its client gets."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def run_isolated(predict: Callable[[list[Any]], Any], items: Sequence[Any]) -> list[Any]:
    """Answers for `items`, in order; an exception stands where one failed.

    A batch that raises is split in halves until the failing items are alone: about `2 log2(b)` further runs for one
    bad item. A handler that answers with the wrong number of results has failed for the whole batch: nobody can say
    which answer belongs to whom, and running it again would not help.
    """
    batch = list(items)
    try:
        results = predict(batch)
    except Exception as error:  # noqa: BLE001 - whatever the user's code raises belongs to these items
        if len(batch) == 1:
            return [_as_item_error(error)]
        middle = len(batch) // 2
        return run_isolated(predict, items[:middle]) + run_isolated(predict, items[middle:])
    fault = _contract_fault(results, len(items))
    if fault is not None:
        return [ItemError(500, fault)] * len(items)
    return [_as_item_error(result) if isinstance(result, Exception) else result for result in results]


def _contract_fault(results: Any, expected: int) -> str | None:
    if isinstance(results, (str, bytes, dict)) or not hasattr(results, "__len__"):
        return f"the handler must return a list with one answer per request; it returned {type(results).__name__}"
    if len(results) != expected:
        return f"the handler returned {len(results)} answers for a batch of {expected} requests; they must be as many"
    return None


def _as_item_error(error: Exception) -> ItemError:
    if isinstance(error, ItemError):
        return error
    # ValueError is Python's word for "this input is wrong": the client's fault, not the server's.
    status = 422 if isinstance(error, ValueError) else 500
    return ItemError(status, f"{type(error).__name__}: {error}")
