"""Servers under test, each in a process of its own, pinned, and ended with it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests

INFLESS = [sys.executable, "-m", "infless_provider.cli"]
CPUS = sorted(os.sched_getaffinity(0))
SERVER_CPU, LOAD_CPU = CPUS[-1], CPUS[0]
"""One core for what is measured, another for the load."""


def pin_load() -> None:
    """Keep the load generator, this process, off the server's core."""
    os.sched_setaffinity(0, {LOAD_CPU})


@contextmanager
def running(
    command: Sequence[str], url: str, *, cpu: int | None = SERVER_CPU, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:  # fmt: skip
    """A server that answers `url`; its output is shown when it does not."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, env={**os.environ, **(env or {})}, stdout=log, stderr=log, start_new_session=True
        )
        os.sched_setaffinity(process.pid, CPUS if cpu is None else {cpu})
        try:
            _wait(url, process, log)
            yield process
        finally:
            process.terminate()
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@dataclass(frozen=True, slots=True, kw_only=True)
class Provided:
    """A provider with one function that is ready."""

    gateway: str
    pid: int
    """Of the supervisor. The provider itself is its child; instances are that one's, and left out unless `deep`."""
    url: str
    """The function, through the provider."""
    instance_url: str
    """Its instance."""


@contextmanager
def gateway(work: Path, *, cpu: int = SERVER_CPU) -> Iterator[tuple[str, int]]:
    """`infless up` on a state of its own, without a password: its address, and its process id."""
    port, state = free_port(), work / "state"
    url = f"http://127.0.0.1:{port}"
    command = [*INFLESS, "up", "--port", str(port), "--state-dir", str(state), "--bundles", str(work / "build"),
               "--cpu-cores", "1", "--no-auth"]  # fmt: skip
    try:
        with running(command, f"{url}/healthz", cpu=cpu) as process:
            yield url, process.pid
    finally:
        subprocess.run([*INFLESS, "down", "--state-dir", str(state)], check=False, capture_output=True)


@contextmanager
def provider(stack: Path, name: str, work: Path, *, cpu: int = SERVER_CPU) -> Iterator[Provided]:
    """`infless up` with one deployed function; its instance shares the load generator's core."""
    subprocess.run([*INFLESS, "build", "-f", str(stack), "-o", str(work / "build"), name], check=True)
    with gateway(work, cpu=cpu) as (url, pid):
        subprocess.run([*INFLESS, "deploy", "-f", str(stack), "-g", url, name], check=True)
        while not (ready := _ready(url)):
            time.sleep(0.02)
        for process in (psutil.Process(ready["pid"]), *psutil.Process(ready["pid"]).children(recursive=True)):
            for thread in process.threads():
                os.sched_setaffinity(thread.id, {LOAD_CPU})
        instance_url = f"http://127.0.0.1:{ready['port']}/"
        yield Provided(gateway=url, pid=pid, url=f"{url}/function/{name}", instance_url=instance_url)


def _ready(gateway: str) -> dict[str, int]:
    overview = requests.get(f"{gateway}/system/overview", timeout=5).json()
    return next((one for one in overview["instances"] if one["phase"] == "ready"), {})


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def free_ports(count: int) -> int:
    """The first of that many ports in a row, all free a moment ago."""
    while True:
        first = free_port()
        try:
            for port in range(first, first + count):
                socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return first


def _wait(url: str, process: subprocess.Popen[bytes], log: object) -> None:
    ends_s = time.monotonic() + 120
    while time.monotonic() < ends_s and process.poll() is None:
        try:
            if requests.get(url, timeout=1).status_code < 500:
                return
        except requests.RequestException:
            pass
        time.sleep(0.05)
    log.seek(0)  # type: ignore[attr-defined]
    raise SystemExit(f"{url} does not answer:\n{log.read().decode()[-2000:]}")  # type: ignore[attr-defined]
