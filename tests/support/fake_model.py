"""A model of three lines for tests of what is around models."""

from __future__ import annotations

from typing import Any

from infless_watchdog.calls import Call, Reply


class FakeModel:
    """Bytes in, the same in capitals out; subclasses change what their test is about."""

    kind, batched, concurrency, brief, device = "fake", True, 1, False, "cpu"
    prepare_cores = None
    prepare: Any = None
    finish: Any = None
    interrupt: Any = None

    def decode(self, call: Call) -> Any:
        """The body."""
        return call.body

    def bucket(self, item: Any) -> Any:
        """One for all."""
        del item

    def predict(self, items: list[Any]) -> Any:
        """Capitals."""
        return [item.upper() for item in items]

    def encode(self, answer: Any, item: Any, call: Call) -> Reply:
        """As it is."""
        del item, call
        return Reply(body=answer)

    def example(self) -> Any:
        """For warming up."""
        return b"x"

    def metadata(self) -> dict[str, Any]:
        """As a model of the inference protocol has it."""
        return {"name": "f", "platform": "fake", "inputs": [], "outputs": []}

    def openapi(self) -> dict[str, Any]:
        """Nearly a document."""
        return {"openapi": "3.1.0"}

    def set_cpu_cores(self, cpu_cores: int) -> None:
        """Kept for the test."""
        self.cpu_cores = cpu_cores

    def close(self) -> None:
        """Nothing to give back."""
