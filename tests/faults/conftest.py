"""A real watchdog process for each test, and the promise that nothing of it is left."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

PATIENCE_S = 30.0
"""Nothing here takes so long, on a machine that is busy with other things too, unless it never ends."""
TROUBLE = '''
import os, time

def predict(batch):
    """Each item says what trouble it makes: {"do": ..., "value": ...}."""
    for item in batch:
        match item["do"]:
            case "sleep":
                time.sleep(item["value"])
            case "gate":
                while not os.path.exists("open"):
                    time.sleep(0.002)
            case "raise":
                raise RuntimeError("this item is bad")
            case "value error":
                raise ValueError("this item is wrong")
            case "lose one":
                return batch[1:]
            case "hang":
                time.sleep(600)
            case "die":
                os.kill(os.getpid(), 9)
            case "nan":
                return [float("nan")] * len(batch)
    return [{"value": item["value"], "batch": len(batch)} for item in batch]
'''


class Watchdog:
    """A running `python -m infless_watchdog`."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.log_path = folder / "output.txt"
        self.gate = folder / "open"
        """While this file is missing, an item that says "gate" holds the model."""
        with (
            socket.create_server(("127.0.0.1", 0), backlog=512) as requests_socket,
            socket.create_server(("127.0.0.1", 0)) as metrics_socket,
            self.log_path.open("wb") as log,
        ):
            fds = (requests_socket.fileno(), metrics_socket.fileno())
            self.port: int = requests_socket.getsockname()[1]
            self.url = f"http://127.0.0.1:{self.port}"
            self.metrics_url = f"http://127.0.0.1:{metrics_socket.getsockname()[1]}"
            self.process = subprocess.Popen(
                [sys.executable, "-m", "infless_watchdog"],
                env={**os.environ, "listen_fds": f"{fds[0]},{fds[1]}", "healthcheck_interval": "0", **environment},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=fds,
            )

    @property
    def log(self) -> str:
        """What it has printed so far."""
        return self.log_path.read_text(errors="replace")

    def until(self, true: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> None:
        """Wait for something to become so."""
        ends_s = time.monotonic() + timeout_s
        while not true():
            assert time.monotonic() < ends_s, f"{what} did not happen within {timeout_s} s:\n{self.log}"
            time.sleep(0.01)

    def status(self, path: str, url: str = "") -> int:
        """The status of a GET; 0 when nobody answers, at all or in time."""
        try:
            return requests.get((url or self.url) + path, timeout=5).status_code
        except requests.RequestException:
            return 0

    def until_ready(self) -> None:
        """Wait until it serves."""
        self.until(lambda: self.status("/_/ready") == 200, "readiness")

    def post(self, do: Any, value: Any = 0, **more: Any) -> requests.Response:
        """One request that makes some trouble."""
        return requests.post(self.url, json={"do": do, "value": value}, timeout=PATIENCE_S, **more)

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        text = requests.get(f"{self.metrics_url}/metrics", timeout=PATIENCE_S).text
        lines = [line for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
        assert lines, f"no metric {name}"
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    def workers(self) -> list[int]:
        """Process ids below the supervisor."""
        return [child.pid for child in psutil.Process(self.process.pid).children()]

    def members(self) -> list[psutil.Process]:
        """Every process of its session that is alive."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, ProcessLookupError):
                alive = process.status() != psutil.STATUS_ZOMBIE
                if alive and os.getsid(process.pid) == self.process.pid:
                    found.append(process)
        return found

    def stop(self, signal_: int = signal.SIGTERM, timeout_s: float = PATIENCE_S) -> int:
        """Signal it, wait, and return its exit code."""
        self.process.send_signal(signal_)
        return self.process.wait(timeout_s)

    def end(self) -> None:
        """End it whatever it takes."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(PATIENCE_S)


Start = Callable[..., Watchdog]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts watchdogs on a handler; ends them, and asserts that no process of theirs is left."""
    started: list[Watchdog] = []

    def starting(handler: str = TROUBLE, *, ready: bool = True, **environment: str) -> Watchdog:
        folder = tmp_path / f"w{len(started)}"
        (folder / "function").mkdir(parents=True)
        (folder / "function" / "handler.py").write_text(handler)
        watchdog = Watchdog(folder, environment)
        started.append(watchdog)
        if ready:
            watchdog.until_ready()
        return watchdog

    yield starting
    for watchdog in started:
        watchdog.end()
        watchdog.until(lambda w=watchdog: not w.members(), "the end of its processes")  # type: ignore[misc]
