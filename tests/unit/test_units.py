"""Quantities as people write them: durations, memory, cpu."""

import pytest

from infless_core.errors import InvalidInput
from infless_core.units import format_duration, parse_cpu_cores, parse_duration_s, parse_memory_bytes


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("200ms", 0.2), ("1.5s", 1.5), ("1m30s", 90), ("20", 20), ("0", 0), (" 2h ", 7200), ("3us", 3e-6), ("5ns", 5e-9)],
)
def test_durations(text, seconds):
    """Go's form and bare seconds."""
    assert parse_duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "fast", "-1s", "1 s", "1d", "s", "1s2", "1e3s", "٣s", "9" * 400 + "h", "inf"])
def test_what_is_no_duration_is_named(text):
    """The sentence holds the place, the text and an example; nothing overflows."""
    with pytest.raises(InvalidInput, match=r"^here: .* is not a duration; write for example '200ms'"):
        parse_duration_s(text, "here")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "200ms"), (0.0105, "10.5ms"), (1, "1s"), (1.5, "1.5s"), (0.9999, "1s"), (999.9, "1000s"), (3600, "3600s")],
)
def test_durations_for_people(seconds, text):
    """Three digits, never in powers of ten."""
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "size"),
    [("256Mi", 2**28), ("1G", 10**9), ("1.5Gi", 3 * 2**29), ("1048576", 2**20), ("2Pi", 2**51), ("0", 0)],
)
def test_memory(text, size):
    """Kubernetes quantities, decimal and binary."""
    assert parse_memory_bytes(text) == size


@pytest.mark.parametrize("text", ["", "lots", "1mb", "-1", "1 Gi", "1kib", "9" * 5000])
def test_what_is_no_memory_is_named(text):
    """The sentence names the place."""
    with pytest.raises(InvalidInput, match="^limits: .* is not an amount of memory"):
        parse_memory_bytes(text, "limits")


@pytest.mark.parametrize(("text", "cores"), [("500m", 0.5), ("2", 2), ("0.25", 0.25), ("1500m", 1.5)])
def test_cpu(text, cores):
    """Whole, broken and milli cores."""
    assert parse_cpu_cores(text) == cores


@pytest.mark.parametrize("text", ["", "two", "1k", "-500m", "500 m", "9" * 400])
def test_what_is_no_cpu_is_named(text):
    """The sentence names the place."""
    with pytest.raises(InvalidInput, match="^requests: .* is not an amount of cpu"):
        parse_cpu_cores(text, "requests")
