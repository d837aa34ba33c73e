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
    try:
        results = predict(list(items))  # a copy: a handler may empty its list and then raise
    except BaseException as error:  # noqa: BLE001 - also sys.exit(): the user's code ends its items, not the instance
        if len(items) == 1:
            return [_as_item_error(error)]
        middle = len(items) // 2
        return run_isolated(predict, items[:middle]) + run_isolated(predict, items[middle:])
    if not _is_list(results):
        kind = type(results).__name__
        fault = f"the handler must return a list with one answer per request; it returned {kind}"
    elif len(results) != len(items):
        came = len(results)
        fault = f"the handler returned {came} answers for a batch of {len(items)} requests; they must be as many"
    else:
        return [_as_item_error(result) if isinstance(result, BaseException) else result for result in results]
    return [ItemError(500, fault)] * len(items)


def _is_list(results: Any) -> bool:
    """Whether its elements are answers, in order: lists and tuples, and the arrays of numpy and torch.

    A dict or a set has another order, a str or a data frame has other elements.
    """
    if isinstance(results, (str, bytes, bytearray, memoryview)):
        return False
    return isinstance(results, Sequence) or (hasattr(results, "tolist") and getattr(results, "ndim", 0) > 0)


def _as_item_error(error: BaseException) -> ItemError:
    if isinstance(error, ItemError):
        return error
    # ValueError is Python's word for "this input is wrong": the client's fault, not the server's.
    fault = ItemError(422 if isinstance(error, ValueError) else 500, f"{type(error).__name__}: {error}")
    fault.__cause__ = error
    return fault
