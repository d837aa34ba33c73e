"""A Prometheus in every bad state, and a damaged database, while a function serves: a sentence, and nothing else stops."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
import requests
from provider_process import ProviderProcess, processes_of, wait_until

from infless_profiler.readings import METRIC

pytest.importorskip("prometheus_api_client", reason="needs prometheus-api-client: pip install 'infless[profiler]'")
pytestmark = pytest.mark.integration
HANDLER = """
import time
def example(): return 1
def predict(batch):
    time.sleep(float(open({path!r}).read()))
    return batch
"""


class BadPrometheus:
    """A server on Prometheus's API that misbehaves as it is told."""

    def __init__(self) -> None:
        self.mood, self.instance, self.asked = "html", "", 0
        self.over = threading.Event()
        self.answers: Callable[[], int] = lambda: 0
        """How many the function has given so far."""
        self.answers_meanwhile = 0
        """The most that it gave while somebody waited here, in vain."""
        bad = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                bad.asked += 1
                status, body = bad.say(self.connection)
                with suppress(OSError):
                    self.send_response(status)
                    self.send_header("content-length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def say(self, asker: socket.socket) -> tuple[int, bytes]:
        """Something that is of no use."""
        if self.mood == "html":
            return 200, b"<html>log in</html>"
        if self.mood == "500":
            return 500, b"oops"
        if self.mood == "slow":
            before = self.answers()
            while not self.over.is_set() and not select.select([asker], [], [], 0.05)[0]:  # until it has hung up
                pass
            self.answers_meanwhile = max(self.answers_meanwhile, self.answers() - before)
            return 200, b""
        given = {
            "infless_instance": self.instance,
            "function_name": "f.openfaas-fn",
            "batch": "1",
            "cpu_cores": "1",
            "gpu_percent": "0",
        }
        values = {"_count": ("NaN", {}), "_sum": ("5", {}), "_bucket": ("5", {"le": "+Inf"})}
        result = [
            {"metric": {"__name__": METRIC + name, **given, **more}, "value": [0, value]}
            for name, (value, more) in values.items()
        ]
        return 200, json.dumps({"data": {"result": result}}).encode()

    def close(self) -> None:
        """End it."""
        self.over.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def prometheus() -> Iterator[BadPrometheus]:
    """One for each test."""
    made = BadPrometheus()
    yield made
    made.close()


@pytest.fixture
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProviderProcess]:
    """A provider of this test alone, not started; nothing of it is left afterwards."""
    made = ProviderProcess(tmp_path_factory.mktemp("feed"))
    yield made
    made.destroy()
    assert processes_of(made.root) == []


class Clients:
    """Requests one after the other, until the end."""

    def __init__(self, provider: ProviderProcess) -> None:
        self.statuses: list[int] = []
        self._over = threading.Event()
        self._url = f"{provider.url}/function/f"
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def _ask(self) -> None:
        with requests.Session() as session:
            while not self._over.is_set():
                self.statuses.append(session.post(self._url, data=b"1", timeout=60).status_code)

    def end(self) -> None:
        """The last answer has come."""
        self._over.set()
        self._thread.join()


def gauge(provider: ProviderProcess, line: str) -> float | None:
    """A value of the provider's metrics."""
    text = requests.get(f"{provider.url}/metrics", timeout=20).text
    return next((float(one.rpartition(" ")[2]) for one in text.splitlines() if one.startswith(line)), None)


def said(provider: ProviderProcess, words: str) -> int:
    """How many lines of the provider's log have these words."""
    return provider.log.read_text().count(words)


def take(seconds: str, sleep: Path) -> None:
    """The function takes this long from now on; in one step, as it reads the file at every call."""
    sleep.with_suffix(".new").write_text(seconds)
    sleep.with_suffix(".new").replace(sleep)


def deploy(provider: ProviderProcess, sleep: Path, *options: str) -> None:
    """A function that takes as long as a file says."""
    take("0.01", sleep)
    provider.start("--cpu-cores", "1", *options)
    provider.deploy("f", HANDLER.format(path=str(sleep)), labels={"com.infless.batch.max": "1"})


def test_a_bad_prometheus_stops_nothing(provider: ProviderProcess, prometheus: BadPrometheus, tmp_path: Path) -> None:
    """Pages, errors, silence, no numbers, gone: requests are answered, execution times come from the instances."""
    deploy(provider, tmp_path / "sleep", "--prometheus", prometheus.url)
    clients = Clients(provider)
    prometheus.answers = lambda: len(clients.statuses)
    try:
        told = f"Prometheus at {prometheus.url} answers something that is no JSON; the instances are asked themselves"
        wait_until(lambda: said(provider, told), "the page is told")
        for mood in ("500", "slow"):
            prometheus.mood, asked = mood, prometheus.asked
            wait_until(lambda asked=asked: prometheus.asked > asked, f"asked while {mood}")  # type: ignore[misc]
        wait_until(lambda: prometheus.answers_meanwhile >= 10, "requests are answered while Prometheus is waited for")
        take("0.1", tmp_path / "sleep")  # a throttled core, seen without Prometheus
        wait_until(lambda: (gauge(provider, "infless_profile_factor{") or 0) > 3, "the change is followed", 120.0)
        assert gauge(provider, 'infless_profile_source_up{source="prometheus"}') == 0
        assert gauge(provider, 'infless_profile_source_up{source="instances"}') == 1
        assert said(provider, "the instances are asked themselves") == 1
        prometheus.instance, prometheus.mood = provider.instances("f")[0]["id"], "nan"
        wait_until(lambda: said(provider, "cannot be used, for example"), "what is no number is told")
        assert gauge(provider, "infless_profile_factor{") > 3  # type: ignore[operator]
    finally:
        clients.end()
    assert set(clients.statuses) == {200}
    assert said(provider, "Traceback") == 0


def test_a_damaged_database_stops_nothing(provider: ProviderProcess, tmp_path: Path) -> None:
    """Profiles are corrected all the same; only a restart will not know."""
    deploy(provider, tmp_path / "sleep")
    clients = Clients(provider)
    try:
        wait_until(lambda: gauge(provider, "infless_profile_factor{"), "the profile is known")
        (tmp_path / "damaged").write_bytes(b"no database " * 1000)
        # In one step: a write that is under way just now would heal half of the file.
        (tmp_path / "damaged").replace(provider.state / "profiles.sqlite")
        take("0.1", tmp_path / "sleep")
        wait_until(lambda: (gauge(provider, "infless_profile_factor{") or 0) > 3, "the change is followed", 120.0)
        wait_until(lambda: said(provider, "a restart will not know the corrections"), "the damage is told")
    finally:
        clients.end()
    assert set(clients.statuses) == {200}
    assert said(provider, "Traceback") == 0


def test_an_instance_that_hangs_does_not_hide_the_others(provider: ProviderProcess, tmp_path: Path) -> None:
    """A stopped process takes connections and says nothing; the others are read."""
    deploy(provider, tmp_path / "sleep")
    provider.send("POST", "/system/scale-function/f", {"replicas": 2})
    provider.ready("f", 2)
    stopped = processes_of_instance(provider)
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: gauge(provider, 'infless_profile_source_up{source="instances"}') == 1, "the other is read")
        time.sleep(6.0)
        assert gauge(provider, 'infless_profile_source_up{source="instances"}') == 1
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    assert said(provider, "can be read") == 0


def processes_of_instance(provider: ProviderProcess) -> list[int]:
    """The supervisor and the workers of one of two instances."""
    process = psutil.Process(provider.pids("f")[0])
    return [process.pid, *(child.pid for child in process.children(recursive=True))]
