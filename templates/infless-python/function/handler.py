"""Your function. Requests that arrive together reach `predict` together; answer them in the same order.

An item is the request's body: parsed JSON, str for text, bytes otherwise. Return bytes, str, or anything JSON can say;
return an exception in an item's place to fail that request alone.

To serve a model.onnx as it is: put it beside this file and leave this file untouched, or delete it.
"""


def predict(batch: list) -> list:
    """Answer every request of the batch."""
    return [f"Hello! You said: {item}" for item in batch]


def example() -> str:
    """One sample item: readies the instance before its first request, and lets INFless measure its speed."""
    return "hi"
