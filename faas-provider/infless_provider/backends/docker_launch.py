"""How an instance becomes a container: names, labels, limits, environment; and the sentence of how one ended. Pure."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infless_core.errors import BackendError, InvalidInput
from infless_core.units import format_bytes
from infless_provider.backends.base import CurveOrder, Launch
from infless_provider.backends.docker_api import Container, Image

OWNER = "com.infless.owner"
INSTANCE = "com.infless.instance"
CURVE = "com.infless.curve"
WATCHDOG = "com.infless.watchdog"
"""Label of images made from our template: they can be timed, and publish metrics."""
PORT, METRICS_PORT = 8080, 8081
SECRETS = "/var/openfaas/secrets"
MPS_PIPES = "/run/nvidia-mps"
"""Inside; what is outside is the host's own."""
PIDS_MAX = 1024
"""A model runtime starts a few threads a core; a fork bomb must not take the machine."""
TMP_BYTES = 256 * 1024 * 1024
"""Of `/tmp`, which is memory and counts as the instance's own."""
LOG_OPTIONS = {"max-size": "8m", "max-file": "2"}
_LOOPBACK = "127.0.0.1"
_SIGNALS = {one.value: one.name for one in signal.Signals}
# As github.com/distribution/reference documents the grammar of an image's name.
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_WORD = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_HOST = rf"(?:{_WORD}(?:\.{_WORD})*|\[[0-9a-fA-F:]+\])(?::\d+)?"
_REFERENCE = re.compile(
    rf"(?:{_HOST}/)?{_PART}(?:/{_PART})*(?::[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?(?:@sha256:[0-9a-f]{{64}})?"
)
_REFERENCE_MAX = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What is the same for all containers of a provider."""

    owner: str
    """Of this provider's state folder."""
    user: str
    """`uid:gid`; never root."""
    gpu_driver: str = ""
    """See `HostFacts`."""
    mps_pipes: str = ""
    """Where the host's MPS daemon listens; empty when none does."""


def checked_reference(image: str) -> str:
    """The name of an image as it came.

    Raises:
        InvalidInput: it is none.
    """
    if len(image) > _REFERENCE_MAX or not _REFERENCE.fullmatch(image):
        shown = image if len(image) <= 80 else f"{image[:77]}..."
        raise InvalidInput(
            f"image {shown!r} is not the name of an image; write for example 'resnet:1' or"
            " 'registry.example.com:5000/team/resnet@sha256:...'"
        )
    return image


def unprivileged(uid: int, gid: int) -> tuple[int, int]:
    """Who instances run as: this provider's own user, who can read the secrets it keeps; never root."""
    return (uid, gid) if uid else (1000, 1000)


def cpuset(cores: Sequence[int]) -> str:
    """CPUs as Docker writes them."""
    return ",".join(map(str, cores))


def container_name(id_: str) -> str:
    """Of an instance's container."""
    return f"infless-{id_}"


def instance_config(launch: Launch, image: Image, cores: Sequence[int], site: Site) -> dict[str, Any]:
    """An instance's container, as Docker's API wants it (`ContainerCreate`).

    Raises:
        BackendError: a share of a GPU that nobody would enforce, or a variable that no container can have.
    """
    given = launch.configuration
    ports = (PORT, METRICS_PORT) if WATCHDOG in image.labels else (PORT,)
    config = _confined(image, cores, site)
    config["Labels"] |= {  # they stay as they are: what a resize changed, the container's own settings say
        INSTANCE: launch.id,
        "com.infless.function": launch.function,
        "com.infless.digest": launch.version,
        "com.infless.batch": str(given.batch),
        "com.infless.cpu-cores": str(given.cpu_cores),
        "com.infless.gpu-percent": str(given.gpu_percent),
        "com.infless.cores": cpuset(cores),
    }
    host = config["HostConfig"]
    host |= {
        "PortBindings": {f"{port}/tcp": [{"HostIp": _LOOPBACK, "HostPort": ""}] for port in ports},
        "ReadonlyRootfs": launch.read_only_root,
        **_given(launch),
    }
    if given.gpu_percent:
        host["DeviceRequests"] = [_gpu_request(launch, site)]
        if site.mps_pipes:
            host["IpcMode"] = "host"  # MPS shares memory with its clients
            host["Mounts"].append(_mount(site.mps_pipes, MPS_PIPES, read_only=False))
    config["ExposedPorts"] = {f"{port}/tcp": {} for port in ports}
    config["Env"] = _lines(_environment(launch, site))
    if launch.process and not image.has_command:
        config["Cmd"] = launch.process.split()  # as OpenFaaS's watchdogs split it
    return config


def curve_config(order: CurveOrder, image: Image, cores: Sequence[int], site: Site, token: str) -> dict[str, Any]:
    """The container that times a function: with what its instances get, confined as they are, and without a network."""
    config = _confined(image, cores, site)
    config["Labels"][CURVE] = token
    config["HostConfig"] |= {"NetworkMode": "none", **_given(order)}
    settings = {"secret_mount_path": SECRETS, "cpu_cores": str(order.cpu_cores), "PYTHONUNBUFFERED": "1"}
    config["Env"] = _lines({**order.environment, **settings})
    batches = ",".join(map(str, order.batches))
    config["Entrypoint"] = []
    config["Cmd"] = ["python", "-m", "infless_watchdog", "--curve", batches, "--budget-s", str(order.budget_s)]
    return config


def _confined(image: Image, cores: Sequence[int], site: Site) -> dict[str, Any]:
    """What every container of ours may not do."""
    return {
        "Image": image.id,
        "User": site.user,
        "Labels": {OWNER: site.owner},
        "Healthcheck": {
            "Test": ["NONE"]
        },  # the provider asks itself; a Python every 5 s would cost its instance a core
        "HostConfig": {
            "CpusetCpus": cpuset(cores),
            "PidsLimit": PIDS_MAX,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "Init": True,
            "Tmpfs": {"/tmp": f"rw,nosuid,nodev,size={TMP_BYTES},mode=1777"},  # noqa: S108 - its own
            "LogConfig": {"Type": "json-file", "Config": dict(LOG_OPTIONS)},
            "RestartPolicy": {"Name": "no"},
        },
    }


def _given(to: Launch | CurveOrder) -> dict[str, Any]:
    """Memory and secrets of a function."""
    return {
        "Memory": to.memory_bytes,
        "MemorySwap": to.memory_bytes,  # the same: no swap, so that a limit is one
        "Mounts": [_mount(str(to.secrets.absolute()), SECRETS)] if to.secrets else [],
    }


def _mount(source: str, target: str, *, read_only: bool = True) -> dict[str, Any]:
    return {"Type": "bind", "Source": source, "Target": target, "ReadOnly": read_only}


def _gpu_request(launch: Launch, site: Site) -> dict[str, Any]:
    if launch.configuration.gpu_percent < 100 and not site.mps_pipes:
        raise BackendError(
            f"{launch.configuration.gpu_percent} % of a GPU needs NVIDIA's MPS daemon, which does not run here;"
            " start it with nvidia-cuda-mps-control -d"
        )
    gpu = launch.gpu or "0"
    if site.gpu_driver == "cdi":
        return {"Driver": "cdi", "DeviceIDs": [f"nvidia.com/gpu={gpu}"]}
    return {"Driver": "", "DeviceIDs": [gpu], "Capabilities": [["gpu"]]}


def _environment(launch: Launch, site: Site) -> dict[str, str]:
    given = launch.configuration
    percent = str(given.gpu_percent)
    mps = {"CUDA_MPS_PIPE_DIRECTORY": MPS_PIPES, "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": percent} if site.mps_pipes else {}
    return {
        **({"model_device": "cuda"} if given.gpu_percent else {}),  # the function may prefer another
        **launch.environment,
        **({**mps, "gpu_percent": percent} if given.gpu_percent else {}),
        **({"fprocess": launch.process} if launch.process else {}),
        **launch.settings,
        "secret_mount_path": SECRETS,
        "port": str(PORT),  # the ones that are published
        "metrics_port": str(METRICS_PORT),
    }


def _lines(environment: Mapping[str, str]) -> list[str]:
    for name, value in environment.items():
        if not name or "=" in name or "\0" in name + value:  # the engine would say so with the value
            raise BackendError(
                f"environment variable {name!r} cannot be given to a container: rename it, leave out NUL"
            )
    return [f"{name}={value}" for name, value in environment.items()]


def why_ended(container: Container, last_words: str) -> str:
    """One sentence on a container that ended.

    Args:
        container: as the engine sees it afterwards.
        last_words: the newest line of its log that says why; may be empty.
    """
    if container.error:
        return f"its container could not be started: {container.error}"
    if container.out_of_memory:
        limit = format_bytes(container.memory_bytes)
        return (
            f"it needed more memory than its limit, {limit}"
            if container.memory_bytes
            else "the machine ran out of memory"
        )
    code = container.exit_code
    if not code:
        return "its container ended by itself (exit code 0)"
    killed = f", {_SIGNALS[code - 128]}" if code - 128 in _SIGNALS else ""
    return f"its container ended with exit code {code}{killed}{f': {last_words}' if last_words else ''}"
