"""An instance's life as a table; whoever moves an instance does it through `advance`.

====================  ==========  =========
phase                 event       next
====================  ==========  =========
starting              ready       ready
starting              drain       draining
starting              ended       gone
ready                 drain       draining
ready                 ended       gone
draining              ended       gone
====================  ==========  =========
"""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType


class Phase(StrEnum):
    """Where an instance is in its life."""

    STARTING = "starting"
    """Its process runs; the model is being loaded and warmed."""
    READY = "ready"
    """It is sent requests."""
    DRAINING = "draining"
    """It is sent nothing more and answers what it has."""
    GONE = "gone"
    """It has ended."""


class Event(StrEnum):
    """What moves an instance on."""

    READY = "ready"
    DRAIN = "drain"
    ENDED = "ended"


TRANSITIONS = MappingProxyType({
    (Phase.STARTING, Event.READY): Phase.READY,
    (Phase.STARTING, Event.DRAIN): Phase.DRAINING,
    (Phase.STARTING, Event.ENDED): Phase.GONE,
    (Phase.READY, Event.DRAIN): Phase.DRAINING,
    (Phase.READY, Event.ENDED): Phase.GONE,
    (Phase.DRAINING, Event.ENDED): Phase.GONE,
})  # fmt: skip


class IllegalTransition(Exception):  # noqa: N818 - a programming error, never shown to a user
    """An event that the table does not allow; nothing was changed."""


def advance(phase: Phase, event: Event) -> Phase:
    """The next phase.

    Raises:
        IllegalTransition: for what is not in the table.
    """
    try:
        return TRANSITIONS[phase, event]
    except KeyError:
        raise IllegalTransition(f"{event} is not possible while {phase}") from None
