"""Settings of the provider, and where it keeps things."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

NAMESPACE = "openfaas-fn"
"""The default namespace: what is meant where none is named (OpenFaaS's own default)."""
START_TIMEOUT_S = 120.0
"""Large models load for a minute."""
OWN_FILES = 512
"""Open files beside clients and what runs for them: calls from the queue (256) and callbacks (64) have connections of
their own; the rest is for databases, logs, threads' pipes, an engine's socket, and the first few instances."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How `infless up` was started."""

    state_dir: Path
    bundles_dir: Path
    """Where `infless build` and `faas-cli build --shrinkwrap` leave functions."""
    host: str = "127.0.0.1"
    port: int = 8080
    auth: bool = True
    cpu_cores: int = 0
    """Cores for instances; 0 is all that this process may use."""
    default_target_s: float = 0.5
    body_max_bytes: int = 64 * 1024 * 1024
    invoke_timeout_s: float = 60.0
    """Longest time of one invocation, cold start included (faas-cli gives up after 60 s)."""
    start_timeout_s: float = START_TIMEOUT_S
    """An instance that is not ready by then has failed; one that is timed gets as long to load."""
    solver: str = "auto"
    prometheus_url: str = ""
    """Where execution times are read; empty asks the instances themselves."""
    waiting_max: int = 1024
    """Requests of one function that wait for a cold start; more get 503."""
    streams_max: int = 4096
    """Invocations under way at once; more get 503: who is shed at once can go elsewhere."""
    connections_max: int = 16_384
    """Open client connections; above it the longest idle one makes room. See also `connections_within`."""
    async_body_max_bytes: int = 1024 * 1024
    """Of a call that is queued: it lies on the disk until it is done."""
    functions_max: int = 2000
    """In one namespace."""
    namespaces_max: int = 100
    secrets_max: int = 1000
    """In one namespace."""
    callbacks_allowed: tuple[str, ...] = ()
    """Hosts and networks that results may be sent to although they are not public; `*` is all of them."""
    credentials: Path | None = None
    """A folder with the credential files, as a gateway may have one; None keeps them in the state folder."""
    backend: str = "process"
    cluster_file: Path | None = None
    """What the machine has to give (`cluster.yml`); None detects it."""
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    """Both or none."""

    @property
    def database(self) -> Path:
        """Functions and instances."""
        return self.state_dir / "state.sqlite"

    @property
    def profiles(self) -> Path:
        """Execution times."""
        return self.state_dir / "profiles.sqlite"

    @property
    def credentials_dir(self) -> Path:
        """Holds `basic-auth-user` and `basic-auth-password`."""
        return self.credentials or self.state_dir

    @property
    def secrets_dir(self) -> Path:
        """Values of secrets, and what functions see of them."""
        return self.state_dir / "secrets"

    @property
    def queue(self) -> Path:
        """Calls that were accepted and are not done."""
        return self.state_dir / "queue.sqlite"

    @property
    def logs_dir(self) -> Path:
        """One file for each instance."""
        return self.state_dir / "logs"


def default_state_dir() -> Path:
    """`$INFLESS_STATE`, else `~/.infless`."""
    return Path(os.environ.get("INFLESS_STATE") or Path.home() / ".infless").expanduser()


def usable_cores(wanted: int) -> tuple[int, ...]:
    """The CPUs that instances may use: the last `wanted` of those this process may use, or all."""
    allowed = sorted(os.sched_getaffinity(0))
    return tuple(allowed[-wanted:] if wanted else allowed)


def connections_within(files_max: int, streams_max: int) -> int:
    """How many clients may be connected so that the provider never runs out of files by them.

    What is kept back: `OWN_FILES`, or a sixteenth where that is more, as each instance takes three (its end, its
    readiness, its metrics), but no more than half; then one file for each invocation under way, its connection to an
    instance, of which there are no more than clients.

    Args:
        files_max: how many files the process may have open at once (its soft `RLIMIT_NOFILE`).
        streams_max: invocations under way at once.
    """
    left = files_max - max(min(OWN_FILES, files_max // 2), files_max // 16)
    return max(left - streams_max, left // 2)
