"""The real `infless up` as a child process, with a state, bundles and a port of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import requests

from infless_provider.build import build_function
from infless_provider.stackfile import StackFunction

ROOT = Path(__file__).resolve().parents[2]
ECHO = "def predict(batch): return batch\n"
"""Without `example()`: nothing to time, so it is deployed in half a second."""
WAIT_S = 60.0
"""No step takes so long, on a machine that is busy with other things too, unless it never ends."""


def environment() -> dict[str, str]:
    """Of child processes: the rooms of this checkout are importable, and no proxy is in the way."""
    left = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return {**left, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def infless(*arguments: str, cwd: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    """The command, to its end."""
    command = [sys.executable, "-m", "infless_provider.cli", *arguments]
    return subprocess.run(
        command, env={**environment(), **more}, cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def wait_until(true: Callable[[], Any], what: str, timeout_s: float = WAIT_S) -> Any:
    """The first true answer; fails with `what` when there is none in time."""
    ends_s = time.monotonic() + timeout_s
    while True:
        found = true()
        if found:
            return found
        if time.monotonic() > ends_s:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        time.sleep(0.02)


def processes_of(folder: Path) -> list[psutil.Process]:
    """Living processes that work in a folder, or were told of it on their command line."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            told = " ".join([process.cwd(), *process.cmdline()])
            if str(folder) in told and process.status() != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
                found.append(process)
    return found


class ProviderProcess:
    """Start it, ask it, stop it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state = root / "state"
        self.bundles = root / "build"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        self.log = root / "up.log"
        self.variables: dict[str, str] = {}
        """Of the provider's environment, beside those of `environment`."""
        self._earlier = 0
        self.bundles.mkdir(parents=True)

    # life

    def start(self, *options: str) -> ProviderProcess:
        """Run `infless up` until it answers: this one, not what an earlier one left."""
        self._earlier = self._starts()
        command = [
            sys.executable, "-m", "infless_provider.cli", "up", "--port", str(self.port),
            "--state-dir", str(self.state), "--bundles", str(self.bundles), *options,
        ]  # fmt: skip
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, env={**environment(), **self.variables}, cwd=self.root, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        wait_until(self._answers, f"the provider answers; it said:\n{self.log.read_text()}")
        return self

    @property
    def worker(self) -> psutil.Process:
        """The process that serves; the other one supervises it. There is one, or will be soon."""

        def only_one() -> psutil.Process | None:
            found = self._workers()
            return found[0] if len(found) == 1 else None

        worker: psutil.Process = wait_until(only_one, "one process serves")
        return worker

    def _workers(self) -> list[psutil.Process]:
        """Living children of the supervisor that are no instances, as those of a killed worker are."""
        assert self.process is not None
        found = []
        for child in psutil.Process(self.process.pid).children():
            with suppress(psutil.Error):  # it has ended meanwhile, or waits to be reaped
                if "infless_watchdog" not in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                    found.append(child)
        return found

    def kill_worker(self) -> None:
        """SIGKILL to the worker alone; returns when its successor serves."""
        self._earlier, worker = self._starts(), self.worker
        worker.kill()
        wait_until(self._answers, "another worker serves")

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the provider ended:\n{self.log.read_text()}"
        try:
            return self._starts() > self._earlier and requests.get(f"{self.url}/healthz", timeout=1).ok
        except requests.RequestException:
            return False

    def _starts(self) -> int:
        return self.log.read_text().count(" INFO serving ") if self.log.is_file() else 0

    def stop(self, name: signal.Signals = signal.SIGTERM) -> int:
        """Signal the supervisor and wait for its end."""
        assert self.process is not None
        self.process.send_signal(name)
        return self.process.wait(timeout=WAIT_S)

    def kill(self) -> None:
        """SIGKILL to supervisor and worker: what a crash of the machine's memory looks like."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=WAIT_S)

    def end(self) -> None:
        """Ctrl-C; nothing of it or its instances may be left."""
        assert self.stop(signal.SIGINT) == 0, self.log.read_text()
        assert processes_of(self.root) == []
        assert list((self.state / "tmp").iterdir()) == []

    def destroy(self) -> None:
        """Leave nothing, whatever the tests did."""
        if self.process is not None and self.process.poll() is None:
            self.stop(signal.SIGINT)
        left = processes_of(self.root)
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=WAIT_S)
        shutil.rmtree(self.root, ignore_errors=True)

    # functions

    def build(self, name: str, handler: str | Path = ECHO, image: str | None = None) -> None:
        """A bundle of a handler's text, or of a folder."""
        folder = handler if isinstance(handler, Path) else self.root / "src" / name
        if isinstance(handler, str):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "handler.py").write_text(handler)
        image = image or f"test/{name}:latest"
        built = StackFunction(name=name, lang="infless-python", handler=folder, image=image)
        build_function(built, self.bundles, lambda _: None, ROOT / "templates")

    def send(self, verb: str, path: str, body: Any = None, **more: Any) -> requests.Response:
        """One call of the control plane, logged in."""
        data = body if isinstance(body, bytes | None) else json.dumps(body)
        more = {"auth": ("admin", self.password), "timeout": 60, **more}
        return requests.request(verb, self.url + path, data=data, **more)

    @property
    def password(self) -> str:
        """The generated one."""
        return (self.state / "basic-auth-password").read_text().strip()

    def put(self, verb: str, name: str, **fields: Any) -> requests.Response:
        """POST or PUT a function that is built."""
        return self.send(verb, "/system/functions", {"service": name, "image": f"test/{name}:latest", **fields})

    def deploy(self, name: str, handler: str | Path = ECHO, **fields: Any) -> None:
        """Build, deploy, and wait until it is ready."""
        self.build(name, handler)
        answer = self.put("POST", name, **fields)
        assert answer.status_code == 202, answer.text
        self.ready(name)

    def ready(self, name: str, count: int = 1) -> None:
        """Wait until it has that many ready instances."""
        wait_until(lambda: len(self.instances(name)) == count, f"{name} has {count} ready instance(s)")

    def status(self, name: str) -> dict[str, Any]:
        """What `faas-cli describe` reads."""
        return dict(self.send("GET", f"/system/function/{name}").json())

    def instances(self, name: str, phase: str = "ready") -> list[dict[str, Any]]:
        """Of `infless status`."""
        found = self.send("GET", "/system/overview").json()["instances"]
        return [one for one in found if one["function"] == f"{name}.openfaas-fn" and one["phase"] == phase]

    def pids(self, name: str) -> list[int]:
        """Process ids of its ready instances."""
        return [one["pid"] for one in self.instances(name)]

    def invoke(
        self, name: str, body: bytes | Iterable[bytes] = b'"hi"', verb: str = "POST", **more: Any
    ) -> requests.Response:
        """One invocation, not logged in."""
        return requests.request(verb, f"{self.url}/function/{name}", data=body, **{"timeout": 70, **more})
