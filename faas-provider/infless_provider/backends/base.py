"""The backend Protocol: what runs instances. It fits processes, containers of one Docker host, and Kubernetes.

::

    start ──► STARTING ──► RUNNING ──► ENDED
              no address   address     why
                 └────────────────────►┘

A call that changes something returns at once and only begins the work; what has come of it is what `see` says, and
`on_event` tells when to look. Instances die by themselves, servers have names, and a restarted provider finds what
runs: by the backend's own `handle`, kept in the state, and by whatever marks it leaves on what it starts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from infless_core.model import Configuration, FunctionSpec, Server


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """What a deployment runs, fixed at deploy time so that a later build cannot change it."""

    reference: str
    """How the backend finds it again: a folder, an image's id."""
    digest: str
    """Of its content: execution times are kept under it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Everything a backend needs to start one instance."""

    id: str
    function: str
    """`name.namespace`."""
    version: str
    """A `state.Version.id`."""
    artifact: str
    """An `Artifact.reference`."""
    environment: Mapping[str, str] = field(repr=False)
    """The function's own variables; the instance's settings win over them."""
    configuration: Configuration
    latency_target_s: float
    server: str = "local"
    gpu: str | None = None
    memory_bytes: int = 0
    """`limits.memory`; 0 is no limit."""
    secrets: Path | None = None
    """A folder with a file for each secret of the function, kept up to date by its owner; None when it has none."""
    read_only_root: bool = False
    process: str = ""
    """`envProcess`: what to run instead of the image's own command, where the backend runs images."""

    @property
    def settings(self) -> dict[str, str]:
        """Variables of the watchdog that are the same on every backend; they win over the function's own."""
        given = self.configuration
        name, _, namespace = self.function.partition(".")
        return {
            "PYTHONUNBUFFERED": "1",  # what a handler prints is in the log at once, not after eight kilobytes
            "OPENFAAS_NAME": name,
            "OPENFAAS_NAMESPACE": namespace,
            "function_name": name,
            "batch_max": str(given.batch),
            "cpu_cores": str(given.cpu_cores),
            "latency_target": f"{self.latency_target_s:g}s",
            # The provider stops sending before it asks an instance to end: no load balancer has to notice.
            "healthcheck_interval": "0s",
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where an instance answers, and what its backend knows it by (a value that JSON can say)."""

    host: str
    port: int
    metrics_port: int
    """0 when it publishes no metrics."""
    handle: dict[str, Any]


class Stage(StrEnum):
    """How far an instance has come, as its backend sees it."""

    STARTING = "starting"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What a backend knows of an instance now."""

    stage: Stage
    address: Address | None = None
    """There while it is RUNNING. Whether it is ready to serve is for its own `/_/ready` to say."""
    why: str = ""
    """Why it has ended, as far as the backend itself knows; its log may know more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What an instance uses now."""

    cpu_millicores: float
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveOrder:
    """One run of `infless-watchdog --curve`: which batches to time, on what."""

    artifact: str
    environment: Mapping[str, str] = field(repr=False)
    batches: Sequence[int]
    cpu_cores: int
    budget_s: float
    """Seconds of timing, start not included."""
    timeout_s: float
    """What has not ended by then, start included, hangs."""
    memory_bytes: int = 0
    """As of a `Launch`: it is timed within the limit that its instances get."""
    secrets: Path | None = None
    """As of a `Launch`: it may read them when it is loaded, or for its example."""
    cancelled: Callable[[], bool] = lambda: False
    """Asked several times a second; True ends the run."""


class Backend(Protocol):
    """Starts, finds, watches and ends instances.

    `prepare`, `curve`, `tidy` and `usage` may take long and are called in threads. Everything else is called on the
    event loop and returns at once.
    """

    name: str
    servers: tuple[Server, ...]
    """What there is to place instances on; known after `open`."""
    runs_as: tuple[int, int] | None
    """User and group of the instances, who have to read their secrets; None where they are this process's."""
    on_event: Callable[[str], None]
    """Set by who watches; told, on the event loop, the id of an instance of which `see` now says something else."""

    async def open(self) -> None:
        """Connect, find what an earlier provider left running, and begin to watch.

        Raises:
            BackendError: when there is nothing to run instances with; the sentence says what is missing.
        """
        ...

    async def close(self) -> None:
        """Stop watching; instances go on running."""
        ...

    def prepare(self, spec: FunctionSpec) -> Artifact:
        """Find what a deployment is to run, fetching it where needed.

        Raises:
            InvalidInput: there is no such image or bundle; carries the registry's words where one was asked.
            StateError: the disk is full, or a folder cannot be read.
            BackendError: whoever could tell does not answer.
        """
        ...

    def curve(self, order: CurveOrder) -> str:
        """Time a function in a copy of its own, with the cores, memory and secrets it would get.

        Returns:
            What the watchdog printed, one JSON object a line; empty when the artifact holds no watchdog of ours.

        Raises:
            BackendError: it could not be run, failed (carries its last line), or was cancelled.
        """
        ...

    def start(self, launch: Launch) -> None:
        """Begin to start an instance.

        Raises:
            BackendError: when it cannot even begin.
        """
        ...

    def adopt(self, id_: str, function: str, handle: Mapping[str, Any]) -> bool:
        """Take over an instance that an earlier provider started; False when it no longer runs.

        Args:
            id_: its id.
            function: `name.namespace`.
            handle: of its address; empty when the earlier provider ended before it was known.
        """
        ...

    def see(self, id_: str) -> Sight:
        """What is known of an instance; ENDED for one that nobody knows."""
        ...

    def last_words(self, id_: str, function: str) -> str:
        """The newest line of its log that says why it ended; empty when there is none."""
        ...

    def resize(self, id_: str, configuration: Configuration) -> None:
        """Give a running instance another number of cores; the watchdog inside is told by others."""
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

    def tidy(self, used: AbstractSet[str]) -> None:
        """Remove what `prepare` kept and nobody runs any more.

        Args:
            used: references of artifacts.
        """
        ...

    def usage(self, ids: Sequence[str]) -> list[Usage]:
        """In the order of `ids`; zeros for an instance that does not run."""
        ...
