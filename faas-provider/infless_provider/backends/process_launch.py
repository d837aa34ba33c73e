"""How a local process is started: the command that sets its limits, and its environment. Pure functions."""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence
from pathlib import Path

from infless_profiler.measure import child_environment
from infless_provider.backends.base import Launch

_LAUNCHER = """
umask 077
ulimit -c 0
ulimit -S -n "$3"
[ -z "$1" ] || echo $$ >"$1" || exit 126
[ -z "$2" ] || ulimit -d "$2" || exit 126
shift 3
exec "$@"
"""
"""Sets limits on itself and then becomes the instance, so that they hold before its first line runs and for all that
it starts. We could set them from outside after the fork, but then memory that it takes in between is not counted, and a
`preexec_fn` may deadlock beside threads. Arguments: file of a cgroup to join, or empty; KiB of data, or empty; open
files; the command."""


def command_line(command: Sequence[str], group: Path | None, memory_bytes: int, files_max: int) -> list[str]:
    """A command that limits itself before it runs another.

    `RLIMIT_DATA` is what is left without a cgroup: it holds for each process by itself, and counts what is reserved for
    writing (a thread's stack of 8 MiB, say) whether it is used or not. `RLIMIT_AS` would count mapped files, too.

    Args:
        command: what to run.
        group: the cgroup to join, which limits memory; None limits each process's data instead.
        memory_bytes: the limit; 0 is none.
        files_max: how many files it may have open at once; `resource.RLIM_INFINITY` is no limit.
    """
    data_kib = str(memory_bytes // 1024) if memory_bytes and group is None else ""
    join = "" if group is None else str(group / "cgroup.procs")
    files = "unlimited" if files_max == resource.RLIM_INFINITY else str(files_max)
    return ["/bin/sh", "-c", _LAUNCHER, "sh", join, data_kib, files, *command]


def environment(launch: Launch, fds: tuple[int, int], folder: Path, log: Path) -> dict[str, str]:
    """The variables of an instance: the function's own, and its settings, which win.

    Args:
        launch: what is started.
        fds: its listening sockets, for requests and for metrics.
        folder: its temporary folder.
        log: its log file.
    """
    return {
        **child_environment(Path(launch.artifact), {**_own(launch), "TMPDIR": str(folder)}),
        **launch.settings,
        "listen_fds": f"{fds[0]},{fds[1]}",
        "log_file": str(log),
    }


def _own(launch: Launch) -> Mapping[str, str]:
    own = dict(launch.environment)
    if launch.gpu is not None:
        own.setdefault("model_device", "cuda")  # the function may prefer another
        own |= {"CUDA_VISIBLE_DEVICES": launch.gpu, "gpu_percent": str(launch.configuration.gpu_percent)}
    return own | mounted(launch.secrets)


def mounted(secrets: Path | None) -> dict[str, str]:
    """The variable that says where secrets are, as OpenFaaS names it; none for a function that has no secrets."""
    return {} if secrets is None else {"secret_mount_path": str(secrets)}
