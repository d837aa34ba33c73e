"""Padding: what is padded and cut again is what it was, and buckets are the padded shapes."""

from __future__ import annotations

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from infless_watchdog import padding
from infless_watchdog.padding import PadRule, TooLongError, parse_pad

RULES = st.builds(
    PadRule,
    st.lists(st.integers(1, 9), min_size=1, max_size=3, unique=True).map(lambda lengths: tuple(sorted(lengths))),
    st.integers(-3, 3).map(float),
)
SHAPES = st.lists(st.integers(0, 9), min_size=1, max_size=3).map(tuple)


@given(st.data())
def test_padded_then_cut_is_identity(data: st.DataObject) -> None:
    """Whatever else is in the batch, and wherever the item stands in it."""
    rank = data.draw(st.integers(1, 3))
    rules = data.draw(st.lists(st.none() | RULES, min_size=rank, max_size=rank))
    shapes = data.draw(st.lists(st.lists(st.integers(0, 9), min_size=rank, max_size=rank), min_size=1, max_size=3))
    items = [data.draw(arrays.arrays(np.int16, (data.draw(st.integers(1, 2)), *shape))) for shape in shapes]
    try:
        buckets = [padding.padded_shape(item.shape[1:], rules) for item in items]
    except TooLongError:
        return
    mates = [item for item, bucket in zip(items, buckets, strict=True) if bucket == buckets[0]]
    whole = padding.stack(mates, buckets[0], np.int16(7))
    assert whole.shape == (sum(map(len, mates)), *buckets[0])
    start, names = 0, [None, *(str(number) for number in range(rank))]
    for item in mates:
        lengths = {str(n): (item.shape[n + 1], buckets[0][n]) for n, rule in enumerate(rules) if rule is not None}
        answer = padding.cut(whole[start : start + len(item)], names, lengths)
        assert np.array_equal(answer, item)
        start += len(item)


@given(SHAPES)
def test_without_a_rule_nothing_is_padded(shape: tuple[int, ...]) -> None:
    """The bucket is the shape itself, and one item's array is not even copied."""
    assert padding.padded_shape(shape, [None] * len(shape)) == shape
    array = np.zeros((1, *shape))
    assert padding.stack([array], shape, 0) is array


@given(RULES, st.integers(0, 40), st.integers(0, 40))
def test_padded_lengths_hold_their_items_and_rise_with_them(rule: PadRule, one: int, other: int) -> None:
    """None is shorter than its item, padding again changes nothing, and a longer item is in no smaller bucket."""
    try:
        padded = rule.padded(one), rule.padded(other)
    except TooLongError:
        assert max(one, other) > rule.lengths[-1]
        return
    assert padded[0] >= one
    assert rule.padded(padded[0]) == padded[0]
    assert one > other or padded[0] <= padded[1]


@given(st.dictionaries(st.text("abc.1", min_size=1), RULES, max_size=3))
def test_rules_are_read_as_they_are_written(rules: dict[str, PadRule]) -> None:
    """Written down in the label's grammar and read again they are the same."""
    assume(all(axis.strip() == axis for axis in rules))
    text = ";".join(f"{axis}={','.join(map(str, rule.lengths))}:{rule.value}" for axis, rule in rules.items())
    assert parse_pad(text).by_axis == rules


@given(st.text())
def test_any_text_is_read_or_refused_in_a_sentence(text: str) -> None:
    """Never another exception."""
    try:
        parse_pad(text)
    except ValueError as error:
        assert str(error)
