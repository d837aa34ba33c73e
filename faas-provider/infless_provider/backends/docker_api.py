"""What the Docker backend needs of a Docker engine, in our words: facts, failures, and the Protocol between the two.

`docker_engine` fulfils it with the `docker` package; unit tests with an engine in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from infless_core.errors import BackendError, Unavailable


class EngineAway(Unavailable):
    """No engine answers: nothing was done, or nobody knows whether it was."""


class NoSuch(BackendError):  # noqa: N818
    """The engine has no such container or image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """What an engine says of its machine."""

    cpu_cores: int
    memory_bytes: int
    gpu_driver: str = ""
    """How it gives out NVIDIA's GPUs: `nvidia` (its runtime), `cdi` (the Container Device Interface); else empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A local image."""

    id: str
    """`sha256:...`, of its content."""
    labels: Mapping[str, str]
    has_command: bool
    """It says itself what to run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A container as the engine sees it now."""

    id: str
    labels: Mapping[str, str]
    running: bool
    exit_code: int = 0
    out_of_memory: bool = False
    error: str = ""
    """Why it could not be started, in the engine's words."""
    ports: Mapping[int, int]
    """Inside to outside, of what is published on this machine."""
    cores: tuple[int, ...] = ()
    memory_bytes: int = 0
    """Its limit; 0 is none."""
    stop_signal: str = "SIGTERM"
    started_at_s: float = 0.0
    """Seconds since the epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumption:
    """What a container has used."""

    cpu_s: float
    """Since it started, of all its processes."""
    memory_bytes: int
    """Without files that the kernel keeps in memory only because it can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerEvent:
    """Something happened to a container: `start`, `oom`, `die` or `destroy`."""

    what: str
    container: str
    labels: Mapping[str, str]


class Stream(Protocol):
    """Something that arrives bit by bit, and can be ended from another thread."""

    def __iter__(self) -> Iterator[Any]:
        """Items until the other side, or `close`, ends it; never raises."""
        ...

    def close(self) -> None:
        """End it; whoever waits for an item is woken."""
        ...


class Engine(Protocol):
    """A Docker engine.

    Every call blocks for a bounded time and may raise `EngineAway`, `NoSuch` for what it names, and `BackendError` with
    the engine's words for whatever else it refuses. Errors name no environment variable.
    """

    def facts(self) -> HostFacts:
        """Of its machine."""
        ...

    def image(self, reference: str) -> Image:
        """A local image, by name or id."""
        ...

    def pull(self, reference: str, progress: Callable[[str], None]) -> None:
        """Fetch an image from its registry, with the credentials of the `docker` command.

        Raises:
            InvalidInput: the registry's words.
        """
        ...

    def create(self, name: str, config: Mapping[str, Any]) -> str:
        """Make a container; returns its id.

        Args:
            name: unique on the engine.
            config: as Docker's API wants it (`ContainerCreate`).

        Raises:
            NoSuch: its image does not exist.
        """
        ...

    def start(self, container: str) -> None:
        """Start what was created."""
        ...

    def inspect(self, container: str) -> Container:
        """Look at one, by id or name."""
        ...

    def owned(self, owner: str) -> list[Container]:
        """All with that owner's label, also those that ended; without their ports, cores and ends."""
        ...

    def wait(self, container: str, timeout_s: float) -> int | None:
        """Its exit code, or None when it has not ended by then."""
        ...

    def signal(self, container: str, name: str) -> None:
        """Send a signal to its first process; nothing when it does not run."""
        ...

    def pin(self, container: str, cores: tuple[int, ...]) -> None:
        """Let it run on these CPUs from now on."""
        ...

    def remove(self, container: str) -> None:
        """Kill and remove it, with its volumes; nothing when there is none."""
        ...

    def output(self, container: str, *, stderr: bool) -> bytes:
        """What it has printed on stdout, or on stderr."""
        ...

    def printed(self, container: str, since_s: float) -> Stream:
        """Its output until now as bytes, one `RFC3339 line` after another, old ones first.

        Args:
            container: whose.
            since_s: seconds since the epoch; older lines are left out.
        """
        ...

    def follow(self, container: str, since_s: float, silence_s: float) -> Stream:
        """The same, and then what it prints, until it ends or is silent for `silence_s`, which may be infinite."""
        ...

    def events(self, owner: str, for_s: float) -> Stream:
        """`ContainerEvent`s of an owner's containers, from now on, for at most so long."""
        ...

    def consumption(self, container: str) -> Consumption:
        """What it has used until now."""
        ...

    def close(self) -> None:
        """Close connections."""
        ...
