"""Pad rules: what they say, what they do to shapes, and how wrong ones are refused."""

from __future__ import annotations

import re

import numpy as np
import pytest

from infless_watchdog import padding
from infless_watchdog.padding import PadRule, TooLongError, parse_pad


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("64", {"": PadRule((64,))}),
        ("64:1", {"": PadRule((64,), 1.0)}),
        ("seq=64,128,256:-1.5", {"seq": PadRule((64, 128, 256), -1.5)}),
        (" seq = 8 , 16 ; x.2 = 4 ; ", {"seq": PadRule((8, 16)), "x.2": PadRule((4,))}),
        ("2*s=8", {"2*s": PadRule((8,))}),
    ],
)
def test_rules_are_read(text: str, expected: dict[str, PadRule]) -> None:
    """By name, by place, or for every axis; a fill value behind a colon."""
    assert parse_pad(text).by_axis == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seq", "is not a rule such as"),
        ("seq=", "is not a rule such as"),
        ("=64", "is not a rule such as"),
        ("seq=0", "is not a rule such as"),
        ("seq=64;;x=1.5", "'x=1.5' is not a rule"),
        ("seq=128,64", "the lengths must rise"),
        ("seq=64,64", "the lengths must rise"),
        ("seq=64:", "'' is not a number to fill up with"),
        ("seq=64:nan", "'nan' is not a number"),
        ("seq=64;seq=32", "there is a rule for seq already"),
        ("64;32", "there is a rule for every dynamic axis already"),
    ],
)
def test_wrong_rules_are_refused(text: str, words: str) -> None:
    """The sentence names the rule and what is wrong with it."""
    with pytest.raises(ValueError, match=re.escape(words)):
        parse_pad(text)


@pytest.mark.parametrize(
    ("lengths", "own", "expected"),
    [((64,), 1, 64), ((64,), 64, 64), ((64,), 65, 128), ((64,), 0, 64), ((8, 16), 8, 8), ((8, 16), 9, 16)],
)
def test_a_length_is_padded_to_the_next_allowed_one(lengths: tuple[int, ...], own: int, expected: int) -> None:
    """One number: its multiples; several: one of these."""
    assert PadRule(lengths).padded(own) == expected


def test_an_item_beyond_the_last_length_is_refused() -> None:
    """The limit is in the sentence."""
    with pytest.raises(TooLongError, match="length 17 is more than 16, the longest"):
        PadRule((8, 16)).padded(17)


def test_the_nearest_rule_wins() -> None:
    """Place before name before the general one."""
    rules = parse_pad("1;seq=2;x.1=3")
    found = [rules.find(*axis) for axis in (("x", 1, "seq"), ("y", 1, "seq"), ("y", 2, None))]
    assert [rule and rule.lengths for rule in found] == [(3,), (2,), (1,)]
    assert rules.unused([("x", 1, "seq")]) == []
    assert rules.unused([("x", 2, "t")]) == ["seq", "x.1"]


@pytest.mark.parametrize(
    ("value", "dtype", "words"),
    [
        (0.5, np.int64, "int64 cannot hold the fill value 0.5"),
        (-1, np.uint8, "uint8 cannot hold"),
        (300, np.uint8, "uint8 cannot hold"),
        (1e5, np.float16, "float16 cannot hold"),
        (2, np.bool_, "bool cannot hold"),
        (1, np.object_, "strings are filled up with empty ones"),
    ],
)
def test_a_fill_value_must_be_of_the_inputs_type(value: float, dtype: type, words: str) -> None:
    """Found when the model is loaded, not by the first short item."""
    with pytest.raises(ValueError, match=words):
        padding.fill_of([None, PadRule((8,), value)], np.dtype(dtype))


def test_items_are_filled_up_at_their_ends() -> None:
    """Each has its rows; what is none's is the fill value."""
    whole = padding.stack([np.array([[1, 2]]), np.array([[3, 4, 5], [6, 7, 8]])], (4,), 9)
    assert whole.tolist() == [[1, 2, 9, 9], [3, 4, 5, 9], [6, 7, 8, 9]]


def test_an_answer_is_cut_only_where_it_is_as_long_as_the_padding() -> None:
    """An axis that the model has shortened is not the padded one any more; the batch axis never is."""
    answer = np.zeros((4, 4, 2, 4))
    assert padding.cut(answer, ["t", "t", "t", None], {"t": (3, 4)}).shape == (4, 3, 2, 4)
