"""Every error INFless raises on purpose, split by who must act.

::

    InflessError
    ├── CallerError            the caller must change the request
    │   ├── InvalidInput       a value is wrong: says which, where, and what is allowed
    │   ├── NotFound           the named thing does not exist
    │   ├── Conflict           the named thing exists already, or is busy
    │   ├── QuotaExceeded      there are as many of them as there may be
    │   └── Infeasible         the wish cannot be met: says why and the nearest that can
    ├── PlanRejected           a solver produced a plan that the independent check refuses (our fault)
    ├── StateError             the state could not be written or read (disk full, damaged file)
    └── BackendError           an instance could not be started, reached or stopped (transient)
        └── Unavailable        whoever runs instances does not answer now: the request itself may be right

Status codes live at the HTTP edge (`infless_provider.routes.STATUS`), exit codes at the command line.
"""

from __future__ import annotations


class InflessError(Exception):
    """Base of all errors that INFless raises on purpose."""


class CallerError(InflessError):
    """The caller must change the request; the message is shown to them as it is."""


class InvalidInput(CallerError):  # noqa: N818 - a sentence names the fault, not the class
    """A value is wrong. The message names the place, the value and what is allowed."""


class NotFound(CallerError):  # noqa: N818
    """The named function, instance or file does not exist."""


class Conflict(CallerError):  # noqa: N818
    """The named thing exists already, or is taken."""


class QuotaExceeded(CallerError):  # noqa: N818
    """There are as many as there may be; it can be made when another one is removed, or more are allowed."""


class Infeasible(CallerError):  # noqa: N818
    """No configuration can meet the wish. The message gives the reason and the nearest feasible wish."""


class PlanRejected(InflessError):  # noqa: N818
    """A plan that breaks a rule of the problem; carries every fault that was found."""

    def __init__(self, faults: tuple[str, ...]) -> None:
        super().__init__(f"the plan breaks {len(faults)} rule(s): {'; '.join(faults)}")
        self.faults = faults


class StateError(InflessError):
    """The state database could not be read or written."""


class BackendError(InflessError):
    """An instance could not be started, reached or stopped."""


class Unavailable(BackendError):  # noqa: N818
    """Whoever runs instances does not answer now. The same request may succeed later."""
