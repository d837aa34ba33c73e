"""What a Docker host has beside CPUs and memory: its engine, its GPUs."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from infless_core.errors import BackendError
from infless_core.model import Gpu, Server
from infless_provider.backends.allotment import ClusterServer, allot
from infless_provider.backends.docker_api import Engine, HostFacts

LOG = logging.getLogger("infless.docker")
NO_GPUS = "Docker cannot give them to containers; install NVIDIA's container toolkit"
_NVIDIA_SMI = ("nvidia-smi", "--query-gpu=index,memory.total", "--format=csv,noheader,nounits")


def connect() -> Engine:
    """The engine of this machine.

    Raises:
        BackendError: the package is missing, or no engine answers.
    """
    try:
        from infless_provider.backends.docker_engine import DockerEngine
    except ImportError as error:
        raise BackendError(
            f"the docker backend needs the Python package docker: pip install 'infless[docker]' ({error})"
        ) from error
    return DockerEngine.connect()


def check_host(cluster: ClusterServer | None, cpus: Sequence[int]) -> None:
    """Ask the engine whether this machine has what a cluster file says.

    Args:
        cluster: the file's server; None is all there is.
        cpus: that this provider may use.

    Raises:
        InvalidInput: it has not; a sentence for each fault.
        BackendError: no engine answers.
    """
    engine = connect()
    try:
        survey(engine, cluster, cpus)
    finally:
        engine.close()


def survey(
    engine: Engine, cluster: ClusterServer | None, cpus: Sequence[int]
) -> tuple[HostFacts, Server, tuple[int, ...]]:
    """What the engine says of this machine, and what of it instances get (see `allot`).

    Raises:
        InvalidInput, BackendError: as `check_host`.
    """
    facts = engine.facts()
    gpus = found_gpus() if facts.gpu_driver else ()
    return facts, *allot(cluster, cpus, facts.memory_bytes, gpus, "" if facts.gpu_driver else NO_GPUS)


def found_gpus() -> tuple[Gpu, ...]:
    """The GPUs of this machine, by their numbers; none where `nvidia-smi` does not say."""
    try:
        done = subprocess.run(_NVIDIA_SMI, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        LOG.warning("Docker gives GPUs to containers, but nvidia-smi does not say which there are: %s", error)
        return ()
    return parse_gpus(done.stdout)


def mps_pipes() -> str:
    """Where the MPS daemon of this machine listens; empty when none does."""
    pipes = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"))  # noqa: S108 - NVIDIA's default
    return str(pipes) if (pipes / "control").exists() else ""


def parse_gpus(csv: str) -> tuple[Gpu, ...]:
    """GPUs from lines of `index, mebibytes`; others are left out."""
    found = []
    for line in csv.splitlines():
        index, _, mebibytes = (part.strip() for part in line.partition(","))
        if index.isdigit() and mebibytes.isdigit():
            found.append(Gpu(id=index, memory_bytes=int(mebibytes) << 20))
    return tuple(found)
