"""What a Docker host gives to instances: what is found there, or what `cluster.yml` says of it."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from infless_core.errors import BackendError
from infless_core.model import Gpu, Server
from infless_core.units import format_bytes
from infless_provider.backends.docker_api import Engine, HostFacts
from infless_provider.cluster import ClusterServer

LOG = logging.getLogger("infless.docker")
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


def allot(
    facts: HostFacts, cpus: Sequence[int], gpus: tuple[Gpu, ...], cluster: ClusterServer | None
) -> tuple[Server, tuple[int, ...]]:
    """The server, and the CPUs that its instances run on.

    Args:
        facts: of the engine.
        cpus: that this provider may use.
        gpus: that were found here.
        cluster: what is wished instead; None takes all there is.

    Raises:
        BackendError: the wish is more than there is; a sentence for each kind.
    """
    if cluster is None:
        memory_bytes = facts.memory_bytes
        return Server(id="local", cpu_cores=len(cpus), memory_bytes=memory_bytes, gpus=gpus), tuple(cpus)
    server, faults = cluster.server, []
    where = f"cluster file, server {server.id!r}"
    strange = [cpu for cpu in cluster.cpus if cpu not in cpus]
    if strange:
        listed = ", ".join(map(str, strange))
        faults.append(f"{where}: cpuset names CPUs that are not there: {listed}; there are {', '.join(map(str, cpus))}")
    elif server.cpu_cores > len(cpus):
        faults.append(f"{where}: cpu_cores is {server.cpu_cores}, and this machine has {len(cpus)} for us")
    if server.memory_bytes > facts.memory_bytes:
        stated, there = format_bytes(server.memory_bytes), format_bytes(facts.memory_bytes)
        faults.append(f"{where}: memory is {stated}, and this machine has {there}")
    if server.gpus and not facts.gpu_driver:
        faults.append(
            f"{where}: it has GPUs, and Docker cannot give them to containers; install NVIDIA's container toolkit"
        )
    if faults:
        raise BackendError("\n".join(faults))
    return server, cluster.cpus or tuple(cpus)[-server.cpu_cores :]
