"""The backend that a provider was started with."""

from __future__ import annotations

import hashlib

from infless_core.errors import InvalidInput
from infless_provider.backends.allotment import ClusterServer
from infless_provider.backends.base import Backend
from infless_provider.settings import Settings, usable_cores

BACKENDS = ("process", "docker")


def make_backend(settings: Settings) -> Backend:
    """The backend, not yet open.

    Raises:
        InvalidInput: there is no such backend, or the cluster file cannot be used.
    """
    if settings.backend == "process":
        from infless_provider.backends.process import ProcessBackend

        cpus = usable_cores(settings.cpu_cores)
        return ProcessBackend(cpus, settings.state_dir, settings.bundles_dir, cluster=_cluster(settings))
    if settings.backend == "docker":
        from infless_provider.backends.docker import DockerBackend

        cpus = usable_cores(settings.cpu_cores) if settings.cpu_cores else ()
        return DockerBackend(settings.state_dir, owner_of(settings), _cluster(settings), cpus=cpus)
    raise InvalidInput(f"--backend: {settings.backend!r} is unknown; allowed are {', '.join(BACKENDS)}")


def check(settings: Settings) -> None:
    """Refuse what the backend could not be opened with; blocks while a Docker engine is asked.

    Raises:
        InvalidInput: there is no such backend, or the machine does not have what the cluster file says.
        BackendError: no Docker engine answers.
    """
    make_backend(settings)
    if settings.backend == "docker":
        from infless_provider.backends.docker_host import check_host

        check_host(_cluster(settings), usable_cores(settings.cpu_cores))


def _cluster(settings: Settings) -> ClusterServer | None:
    if not settings.cluster_file:
        return None
    from infless_provider.cluster import read_cluster  # few have one

    return read_cluster(settings.cluster_file)


def owner_of(settings: Settings) -> str:
    """Whose containers are whose: two providers may share a Docker engine, never a state folder."""
    return hashlib.sha256(str(settings.state_dir).encode()).hexdigest()[:12]
