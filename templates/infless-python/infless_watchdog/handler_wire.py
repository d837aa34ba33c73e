"""What the watchdog and the process of a handler tell each other."""

from __future__ import annotations

import pickle
import traceback
from dataclasses import dataclass
from typing import Any

from infless_watchdog.calls import Reply
from infless_watchdog.channel import large
from infless_watchdog.devices import is_out_of_memory
from infless_watchdog.isolation import BatchError, ItemError, as_item_error

HeadKey = tuple[Any, ...]
"""The arguments of a `Head`."""
Request = tuple[HeadKey | None, Any]
"""A head and a body; no head stands for the handler's own example."""
EXAMPLE: Request = (None, b"")


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """A handler that has been loaded."""

    kind: str
    batched: bool
    metadata: dict[str, Any]
    openapi: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An exception, in words: its type may exist over there only."""

    status: int
    sentence: str
    trace: str
    """Empty where nobody needs one."""
    is_final: bool
    """Running the batch in parts would not help."""
    out_of_memory: bool

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """What is to be said of an exception."""
        fault = as_item_error(error)
        return cls(
            status=fault.status,
            sentence=str(fault),
            trace="" if fault.__cause__ is None else "".join(traceback.format_exception(fault.__cause__)),
            is_final=isinstance(fault, BatchError),
            out_of_memory=is_out_of_memory(error),
        )

    def fault(self) -> ItemError:
        """As an exception here, the words of the other process's traceback behind it."""
        kind = _OutOfMemoryError if self.out_of_memory else BatchError if self.is_final else ItemError
        fault = kind(self.status, self.sentence)
        fault.__cause__ = TracebackThere(self.trace) if self.trace else None
        return fault


class _OutOfMemoryError(ItemError, MemoryError):
    """The batch was too large for the handler's memory; see `devices.is_out_of_memory`."""


class TracebackThere(Exception):  # noqa: N818 - nobody raises it
    """A traceback of another process, as its text."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


def packed(outcome: Reply | ItemError) -> Any:
    """An answer on its way back."""
    if isinstance(outcome, ItemError):
        return Failure.of(outcome)
    return outcome.status, outcome.content_type, outcome.headers, large(outcome.body)


def unpacked(answer: Any) -> Reply | ItemError:
    """An answer that has arrived."""
    if isinstance(answer, Failure):
        return answer.fault()
    status, content_type, headers, body = answer
    return Reply(body=body, content_type=content_type, status=status, headers=headers)


def packed_request(request: Request) -> tuple[HeadKey | None, bytes | pickle.PickleBuffer]:
    """A request on its way there."""
    key, body = request
    return key, large(body)
