"""Instances as local processes: own session, pinned cores, own temporary folder, log file that outlives us."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import psutil

from infless_core.errors import BackendError
from infless_profiler.measure import child_environment
from infless_provider.backends.base import Address, Launch, Usage


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
        self._processes: dict[str, psutil.Process] = {}
        self._cores: dict[str, tuple[int, ...]] = {}

    def start(self, launch: Launch) -> Address:
        """Fork the watchdog; see `Backend.start`."""
        taken = Counter(cpu for cores in self._cores.values() for cpu in cores)
        cores = pick_cores(self._cpus, taken, launch.configuration.cpu_cores)
        scratch = self._scratch / launch.id
        try:
            scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
            with socket.create_server(("127.0.0.1", 0)) as requests, socket.create_server(("127.0.0.1", 0)) as metrics:
                fds = (requests.fileno(), metrics.fileno())
                child = subprocess.Popen(
                    [sys.executable, "-m", "infless_watchdog"],
                    env=self._environment(launch, fds, scratch),
                    cwd=launch.bundle,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                    pass_fds=fds,
                )
                # Before it has any thread: everything it starts inherits the cores.
                os.sched_setaffinity(child.pid, cores)
                process = psutil.Process(child.pid)
                address = Address(
                    host="127.0.0.1",
                    port=requests.getsockname()[1],
                    metrics_port=metrics.getsockname()[1],
                    handle={"pid": child.pid, "started_s": process.create_time(), "cores": list(cores)},
                )
        except (OSError, subprocess.SubprocessError, psutil.Error) as error:
            raise BackendError(f"instance {launch.id} could not be started: {error}") from error
        self._children[launch.id] = child
        self._processes[launch.id] = process
        self._cores[launch.id] = cores
        return address

    def _environment(self, launch: Launch, fds: tuple[int, int], scratch: Path) -> dict[str, str]:
        return {
            **child_environment(launch.bundle, launch.environment),
            "TMPDIR": str(scratch),
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

    def adopt(self, id_: str, address: Address) -> bool:
        """See `Backend.adopt`. A reused process id is told apart by its start time."""
        try:
            process = psutil.Process(address.handle["pid"])
            if abs(process.create_time() - address.handle["started_s"]) > 0.5 or not process.is_running():
                return False
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
        except psutil.Error:
            return False
        self._processes[id_] = process
        self._cores[id_] = tuple(address.handle["cores"])
        return True

    def alive(self, id_: str) -> bool:
        """See `Backend.alive`; also reaps children that have ended."""
        child = self._children.get(id_)
        if child is not None:
            return child.poll() is None
        process = self._processes.get(id_)
        try:
            return process is not None and process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def last_words(self, id_: str, function: str) -> str:
        """See `Backend.last_words`."""
        try:
            lines = self.log_path(id_, function).read_text(errors="replace").splitlines()[-50:]
        except OSError:
            return ""
        told = [line.partition(" ")[2] for line in lines]
        return next((line for line in reversed(told) if "ERROR" in line or "infless-watchdog:" in line), "")

    def terminate(self, id_: str) -> None:
        """SIGTERM to the supervisor, which lets its worker drain."""
        process = self._processes.get(id_)
        if process is not None:
            with contextlib.suppress(psutil.Error):
                process.terminate()

    def kill(self, id_: str) -> None:
        """SIGKILL to the whole session."""
        process = self._processes.get(id_)
        if process is not None and self.alive(id_):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        child = self._children.get(id_)
        if child is not None:
            child.wait(timeout=5)

    def forget(self, id_: str) -> None:
        """See `Backend.forget`."""
        self._children.pop(id_, None)
        self._processes.pop(id_, None)
        self._cores.pop(id_, None)
        shutil.rmtree(self._scratch / id_, ignore_errors=True)

    def usage(self, id_: str) -> Usage:
        """See `Backend.usage`; cpu as the mean since it started."""
        process = self._processes.get(id_)
        if process is None:
            return Usage(cpu_millicores=0.0, memory_bytes=0)
        cpu, memory = 0.0, 0
        with contextlib.suppress(psutil.Error):
            for member in [process, *process.children(recursive=True)]:
                cpu += sum(member.cpu_times()[:2])
                memory += member.memory_info().rss
            lived_s = max(0.1, time.time() - process.create_time())
            return Usage(cpu_millicores=1000 * cpu / lived_s, memory_bytes=memory)
        return Usage(cpu_millicores=0.0, memory_bytes=0)
