"""Answers as a client sees them, for `--check`: whole, their beginning, and whether two say the same."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from infless_watchdog.calls import Reply

_SHOWN = 100
"""Characters of an answer that are shown."""
_RELATIVE, _ABSOLUTE = 1e-3, 1e-5
"""Numbers this close are the same answer: a batch is added up in another order than its items alone."""


def whole(reply: Reply) -> Reply:
    """A streamed answer as one body."""
    if reply.chunks is None:
        return reply
    chunks = reply.chunks
    body = asyncio.run(_gathered(chunks)) if isinstance(chunks, AsyncIterator) else b"".join(chunks)
    return replace(reply, body=body, chunks=None)


async def _gathered(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


def beginning(reply: Reply) -> str:
    """Its first characters; octets in hexadecimal digits."""
    textual = not reply.content_type.startswith(b"application/octet-stream")
    text = reply.body[: 4 * _SHOWN].decode(errors="replace") if textual else reply.body[:_SHOWN].hex(" ")
    shown = "".join(char if char.isprintable() else " " for char in text[:_SHOWN])
    return shown if len(reply.body) <= _SHOWN and shown == text else f"{shown}... ({len(reply.body)} bytes)"


def same(one: Reply, other: Reply) -> bool:
    """Whether two answers say the same: numbers within a tolerance, everything else exactly."""
    if (one.status, one.content_type) != (other.status, other.content_type):
        return False
    if one.body == other.body:
        return True
    if one.content_type.startswith(b"application/json"):
        return _same_values(json.loads(one.body), json.loads(other.body))
    return any(_same_floats(one.body, other.body, dtype) for dtype in ("<f4", "<f8"))


def _same_values(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same_values(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same_values, one, other))
    if {type(one), type(other)} in ({float}, {float, int}):
        with suppress(OverflowError):  # a whole number that is too large for a float is close to none
            return math.isclose(one, other, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)
    return type(one) is type(other) and bool(one == other)


def _same_floats(one: bytes, other: bytes, dtype: str) -> bool:
    """Bytes are compared as the numbers that they most likely are."""
    if len(one) != len(other) or len(one) % np.dtype(dtype).itemsize:
        return False
    first, second = np.frombuffer(one, dtype), np.frombuffer(other, dtype)
    with np.errstate(all="ignore"):
        return bool(np.allclose(first, second, rtol=_RELATIVE, atol=_ABSOLUTE, equal_nan=True))
