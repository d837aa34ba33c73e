"""The smallest batched function: answers each text in capitals."""

from __future__ import annotations


def predict(batch: list[object]) -> list[object]:
    """One answer per request, in order; what is not text fails alone and leaves its batch-mates unharmed."""
    return [item.upper() if isinstance(item, str) else ValueError(_wanted(item)) for item in batch]


def example() -> str:
    """A sample item: readies the instance before its first request, and lets INFless measure its speed."""
    return "hello"


def _wanted(item: object) -> str:
    return f"send text with content-type text/plain; {type(item).__name__} came"
