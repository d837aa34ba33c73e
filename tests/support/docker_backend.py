"""Real containers for tests: an image of the template, and a `DockerBackend` on an event loop of its own."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import requests

from infless_core.model import Configuration, FunctionSpec
from infless_provider.backends.base import Launch, Sight, Stage
from infless_provider.backends.docker import DockerBackend

TEMPLATE = Path(__file__).parents[2] / "templates/infless-python"
BASE_IMAGE = "INFLESS_TEST_BASE_IMAGE"
WAIT_S = 40.0
HANDLER = '''
import os, sys
from pathlib import Path

HELD = []

def example():
    return {"do": "echo", "value": 1}

def predict(batch):
    """Each item says what it wants to know or to happen."""
    return [answer(item) for item in batch]

def answer(item):
    match item["do"]:
        case "status":
            return Path("/proc/self/status").read_text()
        case "init":
            return Path("/proc/1/cmdline").read_text()
        case "environment":
            return dict(os.environ)
        case "write":
            return Path(item["value"]).write_text("x")
        case "read":
            return Path(item["value"]).read_text()
        case "print":
            for number in range(item["value"]):
                print("line", number)
        case "long line":
            print("x" * item["value"])
        case "hold":
            HELD.append(bytearray(os.urandom(1) * item["value"]))
        case "cores":
            return sorted(os.sched_getaffinity(0))
    return item.get("value")
'''


def missing() -> str | None:
    """Why tests with containers cannot run here."""
    if not os.environ.get(BASE_IMAGE):
        return f"{BASE_IMAGE} names no local image with Python 3.11 or newer"
    if shutil.which("docker") is None:
        return "there is no docker command"
    answers = subprocess.run(["docker", "version"], capture_output=True, check=False, timeout=60).returncode == 0
    return None if answers else "no Docker engine answers"


def docker(*words: str, host: str = "", timeout_s: float = 300.0) -> str:
    """One docker command; its words and errors when it fails."""
    where = ["--host", host] if host else []
    done = subprocess.run(["docker", *where, *words], capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, f"docker {' '.join(words)}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout.strip()


def build(folder: Path, name: str, handler: str = HANDLER) -> None:
    """An image of the template with that handler, without a model runtime."""
    context = folder / name
    shutil.copytree(TEMPLATE, context, ignore=shutil.ignore_patterns("__pycache__"))
    (context / "function" / "handler.py").write_text(handler)
    (context / "function" / "handler_test.py").unlink(missing_ok=True)
    arguments = {"BASE_IMAGE": os.environ[BASE_IMAGE], "RUNTIME": "none", "TEST_ENABLED": "false"}
    words = [f"--build-arg={key}={value}" for key, value in arguments.items()]
    docker("build", "--quiet", "--force-rm", "--tag", name, *words, str(context))


@contextmanager
def template_image(folder: Path, handler: str = HANDLER) -> Iterator[str]:
    """The name of an image of the template, removed at the end; its layers stay for the next run."""
    name = f"infless-test-{uuid.uuid4().hex[:8]}"
    build(folder, name, handler)
    yield name
    subprocess.run(["docker", "image", "rm", "--force", name], capture_output=True, check=False, timeout=60)


def spec(image: str) -> FunctionSpec:
    """A deployment of an image."""
    return FunctionSpec(name="f", image=image, namespace="openfaas-fn")


def launch(artifact: str, id_: str, **fields: Any) -> Launch:
    """An instance to be started."""
    fixed = {
        "id": id_, "function": "f.openfaas-fn", "version": "d", "artifact": artifact, "environment": {},
        "configuration": Configuration(batch=4, cpu_cores=1), "latency_target_s": 0.2,
    }  # fmt: skip
    return Launch(**{**fixed, **fields})


class Driven:
    """A backend, opened, on a loop in a thread."""

    def __init__(self, folder: Path, owner: str, **arguments: Any) -> None:
        self.backend = DockerBackend(folder / "state", owner, **arguments)
        self.events: list[str] = []
        self._heard = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self.backend.on_event = self._hear

    def _hear(self, id_: str) -> None:
        with self._heard:
            self.events.append(id_)
            self._heard.notify_all()

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._run(self.backend.open())
        except BaseException:
            self._end_loop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self.backend.close())
        self._end_loop()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(WAIT_S)

    def on_loop(self, method: str, *arguments: Any) -> Any:
        """Call a method of the backend on its loop."""

        async def call() -> Any:
            return getattr(self.backend, method)(*arguments)

        return self._run(call())

    def until(self, true: Callable[[], Any], what: str, timeout_s: float = WAIT_S) -> Any:
        """The first true answer, asked for after each event; fails with `what` when there is none in time."""
        ends_s = time.monotonic() + timeout_s
        with self._heard:
            while not (found := true()):
                left_s = ends_s - time.monotonic()
                assert left_s > 0, f"not within {timeout_s} s: {what}"
                self._heard.wait(left_s)
        return found

    def until_stage(self, id_: str, stage: Stage) -> Sight:
        """What is seen of an instance once it has come that far."""
        self.until(lambda: self.backend.see(id_).stage is stage, f"{id_} is {stage}: {self.backend.see(id_)}")
        return self.backend.see(id_)

    def running(self, launched: Launch) -> Sight:
        """Start an instance, and wait until its function answers."""
        self.on_loop("start", launched)
        sight = self.until_stage(launched.id, Stage.RUNNING)
        until_ready(sight)
        return sight

    def gone(self, id_: str) -> None:
        """Forget an instance, and wait until its container is no more."""
        self.on_loop("forget", id_)
        wait_until(lambda: not containers(f"name=^infless-{id_}$"), f"the container of {id_} is removed")


def wait_until(true: Callable[[], Any], what: str, timeout_s: float = WAIT_S) -> Any:
    """The first true answer of somebody who cannot tell by himself."""
    ends_s = time.monotonic() + timeout_s
    while not (found := true()):
        assert time.monotonic() < ends_s, f"not within {timeout_s} s: {what}"
        time.sleep(0.05)
    return found


def containers(*filters: str) -> list[str]:
    """Names of containers, running or not."""
    words = [word for one in filters for word in ("--filter", one)]
    return docker("ps", "--all", "--format", "{{.Names}}", *words).split()


def url(sight: Sight, path: str = "/") -> str:
    """Where an instance answers."""
    assert sight.address is not None
    return f"http://{sight.address.host}:{sight.address.port}{path}"


def until_ready(sight: Sight) -> None:
    """Wait until its function is loaded; somebody else's knows no such path."""

    def ready() -> bool:
        try:
            return requests.get(url(sight, "/_/ready"), timeout=2).status_code in (200, 404)
        except (requests.ConnectionError, requests.Timeout):
            return False

    wait_until(ready, "the function answers /_/ready")


def ask(sight: Sight, do: str, value: Any = None) -> Any:
    """What the test's handler answers."""
    answer = requests.post(url(sight), json={"do": do, "value": value}, timeout=20)
    assert answer.status_code == 200, answer.text
    return answer.json() if "json" in answer.headers["content-type"] else answer.text
