"""Instances as local processes: own session, pinned cores, own temporary folder, log file that outlives us."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

import psutil

from infless_core.errors import BackendError
from infless_profiler.measure import child_environment
from infless_provider.backends import procfs
from infless_provider.backends.base import Address, Launch, Usage

LOGS_KEPT = 20
"""Log files of ended instances that are kept for a function: a day of scaling, and no disk full of small files."""
_LAST_WORDS_BYTES = 16 * 1024
_LAST_WORDS = re.compile(r"ERROR|infless-watchdog:|was sent SIG")
_AFTERWORDS = re.compile(r"Shutting down: Master|Reason: |exited with code 3\.")
"""What gunicorn adds to a reason that was told before (3: the worker itself gave up, having said why)."""
_STAMP = re.compile(r"^\[[^]]*\] \[\d+\] \[[A-Z]+\] ")


def pick_cores(cpus: Sequence[int], taken: Counter[int], count: int) -> tuple[int, ...]:
    """The `count` CPUs with the fewest instances on them, lowest number first."""
    ranked = sorted(cpus, key=lambda cpu: (taken[cpu], cpu))
    return tuple(sorted(ranked[:count]))


class ProcessBackend:
    """Each instance is `python -m infless_watchdog` on its bundle, in a session of its own.

    Its two listening sockets are bound here and handed over, so no port can be lost between choosing and binding.
    """

    name = "process"

    def __init__(self, cpus: Sequence[int], state_dir: Path) -> None:
        self._cpus = tuple(cpus)
        self._logs = state_dir / "logs"
        self._scratch = state_dir / "tmp"
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._processes: dict[str, procfs.Identity] = {}
        self._cores: dict[str, tuple[int, ...]] = {}

    def start(self, launch: Launch) -> Address:
        """Fork the watchdog; see `Backend.start`."""
        taken = Counter(cpu for cores in self._cores.values() for cpu in cores)
        cores = pick_cores(self._cpus, taken, launch.configuration.cpu_cores)
        scratch = self._scratch / launch.id
        try:
            scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._prune_logs(launch.function)
            with socket.create_server(("127.0.0.1", 0)) as requests, socket.create_server(("127.0.0.1", 0)) as metrics:
                child = self._fork(launch, (requests.fileno(), metrics.fileno()), scratch)
                port, metrics_port = requests.getsockname()[1], metrics.getsockname()[1]
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            shutil.rmtree(scratch, ignore_errors=True)
            raise BackendError(f"instance {launch.id} could not be started: {error}") from error
        self._children[launch.id] = child
        identity = procfs.identify(child.pid)
        if identity is not None:  # else it has ended already, which `alive` will say
            # Before it has any thread: everything it starts inherits the cores.
            with contextlib.suppress(OSError):
                os.sched_setaffinity(child.pid, cores)
            self._processes[launch.id] = identity
        self._cores[launch.id] = cores
        return Address(
            host="127.0.0.1",
            port=port,
            metrics_port=metrics_port,
            handle={"pid": child.pid, "started": identity.started if identity else "", "cores": list(cores)},
        )

    def _fork(self, launch: Launch, fds: tuple[int, int], scratch: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "infless_watchdog"],
            env=self._environment(launch, fds, scratch),
            cwd=launch.bundle,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=fds,
        )

    def _environment(self, launch: Launch, fds: tuple[int, int], scratch: Path) -> dict[str, str]:
        return {
            **child_environment(launch.bundle, launch.environment),
            "TMPDIR": str(scratch),
            "PYTHONUNBUFFERED": "1",  # what a handler prints is in the log at once, not after eight kilobytes
            "OPENFAAS_NAME": launch.function.partition(".")[0],
            "OPENFAAS_NAMESPACE": launch.function.partition(".")[2],
            "function_name": launch.function.partition(".")[0],
            "listen_fds": f"{fds[0]},{fds[1]}",
            "log_file": str(self.log_path(launch.id, launch.function)),
            "batch_max": str(launch.configuration.batch),
            "cpu_cores": str(launch.configuration.cpu_cores),
            "latency_target": f"{launch.latency_target_s:g}s",
            # The provider stops sending before it asks an instance to end: no load balancer has to notice.
            "healthcheck_interval": "0s",
        }

    def log_path(self, id_: str, function: str) -> Path:
        """The instance's log file."""
        return self._logs / function / f"{id_}.log"

    def _prune_logs(self, function: str) -> None:
        """Remove the oldest logs of instances that have ended; a running one keeps its log open for ever."""
        ended = [path for path in (self._logs / function).glob("*.log") if path.stem not in self._cores]
        ended.sort(key=lambda path: path.stat().st_mtime)
        for path in ended[:-LOGS_KEPT]:
            path.unlink(missing_ok=True)
            path.with_suffix(".log.1").unlink(missing_ok=True)

    def adopt(self, id_: str, address: Address) -> bool:
        """See `Backend.adopt`. A reused process id is told apart by its start time."""
        identity = procfs.Identity(pid=address.handle.get("pid", 0), started=address.handle.get("started", ""))
        if not procfs.runs(identity):
            return False
        self._processes[id_] = identity
        self._cores[id_] = tuple(address.handle.get("cores", ()))
        return True

    def alive(self, id_: str) -> bool:
        """See `Backend.alive`; also reaps children that have ended."""
        child = self._children.get(id_)
        if child is not None:
            return child.poll() is None
        identity = self._processes.get(id_)
        return identity is not None and procfs.runs(identity)

    def last_words(self, id_: str, function: str) -> str:
        """See `Backend.last_words`."""
        try:
            with self.log_path(id_, function).open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - _LAST_WORDS_BYTES))
                lines = file.read().decode(errors="replace").splitlines()[-50:]
        except OSError:
            return ""
        told = [line.partition(" ")[2] for line in lines if not _AFTERWORDS.search(line)]
        return next((_STAMP.sub("", line) for line in reversed(told) if _LAST_WORDS.search(line)), "")

    def terminate(self, id_: str) -> None:
        """SIGTERM to the supervisor, which lets its worker drain."""
        if self.alive(id_) and (identity := self._processes.get(id_)) is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(identity.pid, signal.SIGTERM)

    def kill(self, id_: str) -> None:
        """SIGKILL to the whole session, also when its leader has ended before the others."""
        identity = self._processes.get(id_)
        if identity is not None:
            procfs.kill_group(identity)
        child = self._children.get(id_)
        if child is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=1)

    def forget(self, id_: str) -> None:
        """See `Backend.forget`."""
        self.kill(id_)
        self._children.pop(id_, None)
        self._processes.pop(id_, None)
        self._cores.pop(id_, None)
        shutil.rmtree(self._scratch / id_, ignore_errors=True)

    def sweep(self, known: AbstractSet[str]) -> None:
        """See `Backend.sweep`: an instance's temporary folder exists before the instance does, and names it."""
        if not self._scratch.is_dir():
            return
        left = {str(folder): folder for folder in self._scratch.iterdir() if folder.name not in known}
        for identity, place in procfs.by_variable("TMPDIR") if left else ():
            if place in left:
                procfs.kill_group(identity)
        for folder in left.values():
            shutil.rmtree(folder, ignore_errors=True)

    def usage(self, id_: str) -> Usage:
        """See `Backend.usage`; cpu as the mean since it started."""
        identity = self._processes.get(id_)
        cpu_s, memory_bytes = 0.0, 0
        if identity is None or not self.alive(id_):
            return Usage(cpu_millicores=0.0, memory_bytes=0)
        with contextlib.suppress(psutil.Error):
            leader = psutil.Process(identity.pid)
            for member in [leader, *leader.children(recursive=True)]:
                cpu_s += sum(member.cpu_times()[:2])
                memory_bytes += member.memory_info().rss
        return Usage(cpu_millicores=1000 * cpu_s / max(0.1, procfs.age_s(identity)), memory_bytes=memory_bytes)
