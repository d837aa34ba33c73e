"""The backend Protocol: asynchronous starts, instances that die by themselves, addresses that survive a restart."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from infless_core.model import Configuration


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Everything a backend needs to start one instance."""

    id: str
    function: str
    bundle: Path
    environment: Mapping[str, str]
    """The function's own variables; the instance's settings win over them."""
    configuration: Configuration
    latency_target_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where an instance answers, and what its backend knows it by (a value that JSON can say)."""

    host: str
    port: int
    metrics_port: int
    handle: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What an instance uses now."""

    cpu_millicores: float
    memory_bytes: int


class Backend(Protocol):
    """Starts, finds, watches and ends instances. No call blocks for longer than a process takes to fork."""

    name: str

    def start(self, launch: Launch) -> Address:
        """Begin to start an instance; it is ready when its `/_/ready` says so.

        Raises:
            BackendError: when it cannot even begin.
        """
        ...

    def adopt(self, id_: str, address: Address) -> bool:
        """Take over an instance that an earlier provider started; False when it no longer runs."""
        ...

    def alive(self, id_: str) -> bool:
        """Whether the instance still runs."""
        ...

    def last_words(self, id_: str, function: str) -> str:
        """The newest line of its log that says why it ended; empty when there is none."""
        ...

    def terminate(self, id_: str) -> None:
        """Ask it to drain and end."""
        ...

    def kill(self, id_: str) -> None:
        """End it and all its processes now."""
        ...

    def forget(self, id_: str) -> None:
        """End what is left of an instance, and release what is held for it."""
        ...

    def sweep(self, known: AbstractSet[str]) -> None:
        """After a restart: end and clear up what an earlier provider started and had no time to write down.

        Args:
            known: ids of the instances that were taken over.
        """
        ...

    def usage(self, id_: str) -> Usage:
        """Zeros for an instance that does not run."""
        ...
