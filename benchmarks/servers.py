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
from pathlib import Path

import requests

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


@contextmanager
def provider(stack: Path, name: str, work: Path, *, cpu: int = SERVER_CPU) -> Iterator[tuple[str, str]]:
    """`infless up` with one deployed function; URLs of the function through the provider and of its instance."""
    port, state = free_port(), work / "state"
    gateway = f"http://127.0.0.1:{port}"
    infless = [sys.executable, "-m", "infless_provider.cli"]
    subprocess.run([*infless, "build", "-f", str(stack), "-o", str(work / "build"), name], check=True)
    command = [*infless, "up", "--port", str(port), "--state-dir", str(state), "--bundles", str(work / "build"),
               "--cpu-cores", "1", "--no-auth"]  # fmt: skip
    try:
        with running(command, f"{gateway}/healthz", cpu=cpu):
            subprocess.run([*infless, "deploy", "-f", str(stack), "-g", gateway, name], check=True)
            while not (ready := _ready(gateway)):
                time.sleep(0.02)
            os.sched_setaffinity(ready["pid"], {LOAD_CPU})
            for child in subprocess.run(["pgrep", "-P", str(ready["pid"])], capture_output=True, text=True,
                                        check=False).stdout.split():  # fmt: skip
                for thread in Path(f"/proc/{child}/task").iterdir():
                    os.sched_setaffinity(int(thread.name), {LOAD_CPU})
            yield f"{gateway}/function/{name}", f"http://127.0.0.1:{ready['port']}/"
    finally:
        subprocess.run([*infless, "down", "--state-dir", str(state)], check=False, capture_output=True)


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
