"""Labels that two rooms read: whoever is let in by the provider must be understood by the watchdog."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from infless_core.errors import InvalidInput
from infless_core.labels import BATCH_PAD, parse_wishes
from infless_watchdog.padding import parse_pad
from infless_watchdog.settings import read_settings

LENGTHS = st.lists(st.integers(1, 10**9 - 1), min_size=1, max_size=4, unique=True).map(sorted)
VALUES = st.none() | st.integers(-(10**9), 10**9) | st.floats(-1e9, 1e9).map(lambda value: f"{value:.3f}")
AXES = st.text(st.characters(blacklist_characters=";=", blacklist_categories=("Z", "C")), min_size=1, max_size=8)


@st.composite
def rules(draw: st.DrawFn) -> str:
    """Right ones, for different axes."""
    written = []
    for axis in draw(st.lists(st.none() | AXES, min_size=1, max_size=4, unique=True)):
        lengths, value = ",".join(map(str, draw(LENGTHS))), draw(VALUES)
        written.append(("" if axis is None else f"{axis}=") + lengths + ("" if value is None else f":{value}"))
    return draw(st.sampled_from([";", " ; "])).join(written)


@given(rules())
def test_right_rules_pass_and_mean_the_same(text: str) -> None:
    """From the label through the environment to the watchdog, one rule for each that was written."""
    environment = parse_wishes({BATCH_PAD: text}).environment({})
    understood = parse_pad(read_settings(environment).batch_pad)
    assert len(understood.by_axis) == len(text.split(";"))


@given(st.text("ab.=,;:0123456789-+e ٣", max_size=24))
@example("x=1e3")
@example("=16")
@example("16:1e400")
@example("16:.")
def test_what_the_provider_lets_in_the_watchdog_understands(text: str) -> None:
    """Else the instance would not start, and nobody would have been told why."""
    try:
        wishes = parse_wishes({BATCH_PAD: text})
    except InvalidInput as fault:
        assert BATCH_PAD in str(fault)
        assert repr(text) in str(fault)
    else:
        assert parse_pad(wishes.batch_pad).by_axis
