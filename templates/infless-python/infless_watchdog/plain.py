"""Plain answers: bytes as they are, str as text, anything else as JSON."""

from __future__ import annotations

from typing import Any

from infless_watchdog.calls import Reply
from infless_watchdog.isolation import ItemError
from infless_watchdog.json_text import write_json

OCTETS = b"application/octet-stream"
JSON = b"application/json"


def encode_plain(answer: Any) -> Reply:
    """Bytes as they are, str as text, anything else as JSON (see `write_json`).

    Raises:
        ItemError: 500 when the answer is no JSON value.
    """
    if isinstance(answer, (bytes, bytearray, memoryview)):
        return Reply(body=bytes(answer), content_type=OCTETS)
    try:
        if isinstance(answer, str):
            return Reply(body=answer.encode())
        return Reply(body=write_json(answer), content_type=JSON)
    except (TypeError, ValueError, RecursionError) as error:  # NaN is no JSON, a lone surrogate no text
        raise ItemError(500, f"the handler's answer cannot be written as JSON: {error}") from None
