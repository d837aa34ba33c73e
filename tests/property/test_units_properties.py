"""Quantities: what is written is read again, and no text gives anything but a number or InvalidInput."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infless_core.errors import InvalidInput
from infless_core.labels import parse_wishes
from infless_core.units import format_duration, parse_cpu_cores, parse_duration_s, parse_memory_bytes

UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


@given(st.floats(min_value=1e-6, max_value=1e6))
def test_a_formatted_duration_is_read_again(seconds):
    """To three digits."""
    assert parse_duration_s(format_duration(seconds)) == pytest.approx(seconds, rel=0.006)


@given(st.lists(st.tuples(st.integers(0, 10**9), st.sampled_from(sorted(UNITS))), min_size=1, max_size=4))
def test_a_duration_is_the_sum_of_its_parts(parts):
    """As in Go."""
    text = "".join(f"{number}{unit}" for number, unit in parts)
    assert parse_duration_s(text) == pytest.approx(sum(number * UNITS[unit] for number, unit in parts))


@given(st.integers(0, 2**50), st.sampled_from(["", "k", "M", "Ki", "Mi", "Gi"]))
def test_memory_is_exact(number, unit):
    """Whole bytes, however large."""
    factor = {"": 1, "k": 10**3, "M": 10**6, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}[unit]
    assert parse_memory_bytes(f"{number}{unit}") == (number * factor)


@given(st.integers(0, 10**6))
def test_a_thousand_milli_cores_are_a_core(number):
    """Both forms agree."""
    assert parse_cpu_cores(f"{1000 * number}m") == parse_cpu_cores(str(number)) == number


@given(st.text() | st.from_regex(r"[0-9.]{1,500}[a-zA-Zµ]{0,3}"))
def test_any_text_is_a_finite_number_or_invalid(text):
    """Never another error, never infinity."""
    for parse in (parse_duration_s, parse_memory_bytes, parse_cpu_cores):
        try:
            value = parse(text)
        except InvalidInput as fault:
            assert repr(text) in str(fault)
        else:
            assert 0 <= value < math.inf


LABELS = st.sampled_from(
    ["com.infless.latency.target", "com.infless.latency.percentile", "com.infless.batch.max", "com.infless.gpu",
     "com.openfaas.scale.min", "com.openfaas.scale.max", "com.openfaas.scale.zero", "com.openfaas.scale.zero-duration"]
)  # fmt: skip


@given(st.dictionaries(LABELS | st.text(), st.text() | st.from_regex(r"[0-9]{1,6}m?s?", fullmatch=True)))
def test_any_labels_are_wishes_or_invalid(labels):
    """And wishes are sound."""
    try:
        wishes = parse_wishes(labels)
    except InvalidInput as fault:
        assert any(label in str(fault) for label in labels)
    else:
        assert 0.001 <= wishes.latency_target_s <= 600
        assert wishes.scale_min <= wishes.scale_max
