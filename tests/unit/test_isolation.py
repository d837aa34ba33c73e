"""A batch in which something fails: who fails with it, and how often the handler is called for that."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from infless_watchdog.isolation import BatchError, ItemError, run_isolated


class Handler:
    """Counts its calls."""

    def __init__(self, bad: set[Any], error: type[BaseException] = KeyError) -> None:
        self.bad = bad
        self.error = error
        self.calls = 0

    def __call__(self, batch: list[Any]) -> list[Any]:
        """Ten times each item; raises when a bad one is in the batch."""
        self.calls += 1
        for item in batch:
            if item in self.bad:
                raise self.error(f"cannot do {item}")
        return [item * 10 for item in batch]


def statuses(answers: list[Any]) -> list[Any]:
    """The status where an item failed, the answer elsewhere."""
    return [answer.status if isinstance(answer, ItemError) else answer for answer in answers]


def test_a_good_batch_is_one_call() -> None:
    """Nothing is spent on isolation as long as nothing fails."""
    handler = Handler(bad=set())
    assert run_isolated(handler, [1, 2, 3]).answers == [10, 20, 30]
    assert handler.calls == 1


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 32, 33])
def test_one_bad_item_fails_alone_wherever_it_is(size: int) -> None:
    """The others get their answers, for at most `2 log2(b) + 2` further calls."""
    for place in range(size):
        handler = Handler(bad={place})
        answers = run_isolated(handler, list(range(size))).answers
        assert statuses(answers) == [500 if n == place else n * 10 for n in range(size)]
        assert handler.calls - 1 <= 2 * math.log2(size) + 2


def test_several_bad_items_fail_alone() -> None:
    """Also side by side."""
    assert statuses(run_isolated(Handler(bad={0, 3, 4}), list(range(6))).answers) == [500, 10, 20, 500, 500, 50]


def test_a_handler_that_always_raises_is_called_twice_an_item_at_most() -> None:
    """What a broken model costs is bounded."""
    handler = Handler(bad=set(range(16)))
    assert statuses(run_isolated(handler, list(range(16))).answers) == [500] * 16
    assert handler.calls == 31


def test_the_sentence_names_the_error() -> None:
    """Its type and its words; the error itself is kept for the log."""
    (answer,) = run_isolated(Handler(bad={1}), [1]).answers
    assert str(answer) == "KeyError: 'cannot do 1'"
    assert isinstance(answer.__cause__, KeyError)


def test_a_value_error_is_the_clients_fault() -> None:
    """422 instead of 500."""
    assert statuses(run_isolated(Handler(bad={1}, error=ValueError), [0, 1]).answers) == [0, 422]


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, MemoryError, RecursionError])
def test_nothing_that_is_raised_escapes(error: type[BaseException]) -> None:
    """Not even what is made to end a process."""
    assert statuses(run_isolated(Handler(bad={1}, error=error), [0, 1]).answers) == [0, 500]


@pytest.mark.parametrize("count", [0, 2, 4])
def test_a_wrong_number_of_answers_fails_the_batch(count: int) -> None:
    """Nobody can say which answer is whose; calling again would not help."""
    calls = []

    def predict(batch: list[Any]) -> list[Any]:
        calls.append(batch)
        return [0] * count

    answers = run_isolated(predict, [1, 2, 3]).answers
    assert statuses(answers) == [500] * 3
    assert f"returned {count} answers for a batch of 3 requests" in str(answers[0])
    assert len(calls) == 1


@pytest.mark.parametrize(
    "result", [None, 3, "abc", b"abc", {"a": 1, "b": 2, "c": 3}, {1, 2, 3}, (n for n in range(3)), np.float32(1)]
)
def test_a_wrong_type_of_answer_fails_the_batch(result: Any) -> None:
    """Three characters, three keys or three things in any order are not three answers."""
    answers = run_isolated(lambda _: result, [1, 2, 3]).answers
    assert statuses(answers) == [500] * 3
    assert f"must return a list with one answer per request; it returned {type(result).__name__}" in str(answers[0])


@pytest.mark.parametrize("make", [list, tuple, np.asarray])
def test_lists_tuples_and_arrays_are_answers(make: Callable[[list[int]], Any]) -> None:
    """An array's rows are in the order of the batch."""
    assert list(run_isolated(lambda batch: make([n + 1 for n in batch]), [1, 2]).answers) == [2, 3]


def test_an_exception_in_an_items_place_fails_that_item() -> None:
    """The handler's own way to say so, without a second call."""
    answers = run_isolated(
        lambda _: [1, ValueError("no face found"), ItemError(404, "no such user")], [0, 0, 0]
    ).answers
    assert statuses(answers) == [1, 422, 404]
    assert str(answers[1]) == "ValueError: no face found"


def test_a_handler_that_changes_its_list_harms_nobody() -> None:
    """The halves are made of the requests, not of what the handler left of them."""

    def predict(batch: list[int]) -> list[int]:
        size = len(batch)
        batch.clear()
        if size > 1:
            raise KeyError("one by one, please")
        return [size]

    assert run_isolated(predict, [1, 2, 3]).answers == [1, 1, 1]


def test_a_batch_error_is_not_split() -> None:
    """Its thrower knows that parts of the batch would fare no better."""
    calls = []

    def predict(batch: list[Any]) -> list[Any]:
        calls.append(len(batch))
        raise BatchError(503, "the process cannot be started")

    run = run_isolated(predict, [1, 2, 3])
    assert (statuses(run.answers), calls, run.exec_s) == ([503] * 3, [3], None)


@pytest.mark.parametrize("failed", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")])
def test_too_large_a_batch_is_halved_and_says_what_fits(failed: Exception) -> None:
    """Eight do not fit, four neither, two do: everybody is answered."""

    def predict(batch: list[int]) -> list[int]:
        if len(batch) > 2:
            raise failed
        return batch

    run = run_isolated(predict, list(range(8)))
    assert (run.answers, run.fits) == (list(range(8)), 2)


@pytest.mark.parametrize("items", [[1], [0, 1, 2, 3]])
def test_one_item_that_does_not_fit_is_its_own_fault(items: list[int]) -> None:
    """One request that asks for too much must not make all later batches small."""
    run = run_isolated(Handler(bad={1}, error=MemoryError), items)
    assert (statuses(run.answers), run.fits) == ([500 if n == 1 else n * 10 for n in items], None)


def test_a_split_batch_says_nothing_of_its_time() -> None:
    """One that failed alone does: it was one call."""
    assert run_isolated(Handler(bad={1}), [0, 1]).exec_s is None
    assert run_isolated(Handler(bad=set()), [0, 1]).exec_s is not None
