"""An instance's life is a table: what is in it happens, what is not raises and changes nothing."""

import itertools

import pytest

from infless_core import lifecycle
from infless_core.lifecycle import TRANSITIONS, Event, IllegalTransition, Phase, advance

PAIRS = list(itertools.product(Phase, Event))


@pytest.mark.parametrize(("phase", "event"), [pair for pair in PAIRS if pair in TRANSITIONS])
def test_what_is_in_the_table_happens(phase, event):
    """The next phase is the table's."""
    assert advance(phase, event) is TRANSITIONS[phase, event]


@pytest.mark.parametrize(("phase", "event"), [pair for pair in PAIRS if pair not in TRANSITIONS])
def test_what_is_not_raises_and_changes_nothing(phase, event):
    """Table and phase are as before; the sentence names both."""
    before = dict(TRANSITIONS)
    with pytest.raises(IllegalTransition, match=f"{event} is not possible while {phase}"):
        advance(phase, event)
    assert dict(TRANSITIONS) == before


def test_the_documented_table_is_the_executed_one():
    """The module's docstring is what people read."""
    rows = [line.split() for line in (lifecycle.__doc__ or "").splitlines() if len(line.split()) == 3]
    told = {
        (Phase(phase), Event(event)): Phase(after)
        for phase, event, after in rows
        if not phase.startswith(("=", "phase"))
    }
    assert told == dict(TRANSITIONS)


def test_the_table_cannot_be_changed():
    """It is law, not state."""
    with pytest.raises(TypeError):
        TRANSITIONS[Phase.GONE, Event.READY] = Phase.READY


def test_gone_is_the_end():
    """Every phase but the last one can end, and nothing comes after."""
    assert {phase for (phase, event) in TRANSITIONS if event is Event.ENDED} == set(Phase) - {Phase.GONE}
