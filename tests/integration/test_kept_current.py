"""A wrong profile heals by itself within a minute of traffic, with a real Prometheus and without one."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families
from provider_process import ROOT, ProviderProcess, free_port, wait_until

pytestmark = pytest.mark.integration
PROMETHEUS = shutil.which("prometheus")
EXEC_S = 0.05
"""Long beside what a busy machine adds to it."""
HANDLER = f"""
import time
def example(): return 1
def predict(batch):
    time.sleep({EXEC_S})
    return batch
"""
WRONG = 3.0
CONFIG = """
global: {{scrape_interval: 5s}}
scrape_configs:
  - job_name: infless-instances
    http_sd_configs:
      - url: {url}/system/infless/targets
        refresh_interval: 5s
        basic_auth: {{username: admin, password_file: {password_file}}}
"""


@contextmanager
def prometheus(fresh: ProviderProcess) -> Iterator[str]:
    """A real one that finds the provider's instances; ends with the test."""
    assert PROMETHEUS is not None
    folder, port = fresh.root / "prometheus", free_port()
    folder.mkdir()
    password_file = fresh.state / "basic-auth-password"
    (folder / "prometheus.yml").write_text(CONFIG.format(url=fresh.url, password_file=password_file))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                PROMETHEUS, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log, stderr=log,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: _answers(f"{url}/-/ready"), "Prometheus is ready")
        yield url
    finally:
        process.terminate()
        process.wait(timeout=20)


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=1).ok
    except requests.RequestException:
        return False


@contextmanager
def traffic(provider: ProviderProcess, name: str) -> Iterator[list[int]]:
    """Three clients, one request after the other; gives the status of each."""
    over, statuses = threading.Event(), []

    def ask() -> None:
        with requests.Session() as session:
            while not over.is_set():
                statuses.append(session.post(f"{provider.url}/function/{name}", data=b"1", timeout=30).status_code)

    clients = [threading.Thread(target=ask) for _ in range(3)]
    for client in clients:
        client.start()
    try:
        yield statuses
    finally:
        over.set()
        for client in clients:
            client.join()


def samples(provider: ProviderProcess, name: str) -> list[tuple[dict[str, str], float]]:
    """Of the provider's metrics."""
    text = requests.get(f"{provider.url}/metrics", timeout=10).text
    return [
        (sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    ]


def planned_s(provider: ProviderProcess, name: str) -> dict[tuple[int, int], float]:
    """What the planner believes, by batch and cores."""
    problem = provider.send("GET", "/system/infless/problem").json()
    (function,) = [one for one in problem["functions"] if one["id"] == f"{name}.openfaas-fn"]
    return {(one["batch"], one["cpu_cores"]): one["exec_s"] for one in function["profile"]}


def falsify(profiles: Path, factor: float) -> None:
    """As if it had been timed on another machine."""
    with closing(sqlite3.connect(profiles)) as db, db:
        for rowid, text in db.execute("SELECT rowid, samples_s FROM measurement").fetchall():
            wrong = json.dumps([sample * factor for sample in json.loads(text)])
            db.execute("UPDATE measurement SET samples_s = ? WHERE rowid = ?", (wrong, rowid))
        db.execute("DELETE FROM observation")


def healed(provider: ProviderProcess, factor: float) -> bool:
    """Every point of the profile is near the truth, the margin aside: far nearer than it was, by `WRONG`."""
    told = samples(provider, "infless_profile_factor")
    return bool(told) and all(0.67 < value / factor < 1.5 for _, value in told)


def believes_the_truth(provider: ProviderProcess) -> bool:
    """Every time that is planned with is near the truth, with a margin; a wrong profile's are beyond these bounds."""
    return all(0.8 * EXEC_S < exec_s < 2.5 * EXEC_S for exec_s in planned_s(provider, "sleepy").values())


def events(provider: ProviderProcess) -> list[dict[str, Any]]:
    """Drifts of `infless status --json`."""
    return [one for one in provider.send("GET", "/system/overview").json()["events"] if one["event"] == "drift"]


def heal(fresh: ProviderProcess, factor: float, *options: str) -> float:
    """Start with a profile that is wrong by a factor, and send requests until it is right; gives the seconds."""
    falsify(fresh.state / "profiles.sqlite", 1 / factor)
    fresh.start(*options)
    fresh.ready("sleepy")
    assert not believes_the_truth(fresh)
    started_s = time.monotonic()
    with traffic(fresh, "sleepy") as statuses:
        wait_until(lambda: healed(fresh, factor), "the profile has healed", timeout_s=60.0)
        took_s = time.monotonic() - started_s
        wait_until(lambda: events(fresh), "a drift is told", timeout_s=60.0)
        wait_until(lambda: believes_the_truth(fresh), "the planner believes it", timeout_s=60.0)
    assert statuses
    assert set(statuses) == {200}
    assert "times as long as expected" in events(fresh)[0]["why"]
    assert sum(value for _, value in samples(fresh, "infless_profile_drift_total")) >= 1
    return took_s


@pytest.fixture
def timed(fresh: ProviderProcess) -> ProviderProcess:
    """A provider that has timed a function and has ended."""
    fresh.start("--cpu-cores", "1")
    fresh.deploy("sleepy", HANDLER, labels={"com.infless.batch.max": "8"})
    fresh.stop(signal.SIGINT)
    return fresh


@pytest.mark.parametrize("factor", [WRONG, 1 / WRONG])
def test_heals_by_the_instances_alone(timed: ProviderProcess, factor: float) -> None:
    """Where no Prometheus runs; a restart knows what was learned."""
    took_s = heal(timed, factor, "--cpu-cores", "1")
    print(f"healed in {took_s:.1f} s from the instances")  # noqa: T201 - of interest with -rP
    assert [labels["source"] for labels, _ in samples(timed, "infless_profile_source_up")] == ["instances"]
    timed.stop(signal.SIGINT)
    timed.start("--cpu-cores", "1")
    wait_until(lambda: samples(timed, "infless_profile_factor"), "the profile is told")
    assert believes_the_truth(timed)


@pytest.mark.skipif(PROMETHEUS is None, reason="needs the program prometheus (Debian package of that name)")
def test_heals_by_prometheus(timed: ProviderProcess) -> None:
    """The instances are found by its HTTP service discovery, behind the provider's password."""
    with prometheus(timed) as url:
        took_s = heal(timed, WRONG, "--cpu-cores", "1", "--prometheus", url)
        print(f"healed in {took_s:.1f} s from Prometheus")  # noqa: T201 - of interest with -rP
        up = {labels["source"]: value for labels, value in samples(timed, "infless_profile_source_up")}
        assert up["prometheus"] == 1
        known = requests.get(f"{url}/api/v1/query", {"query": "infless_batch_exec_seconds_count"}, timeout=10).json()
        assert {one["metric"]["function_name"] for one in known["data"]["result"]} == {"sleepy.openfaas-fn"}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian package prometheus)")
@pytest.mark.parametrize("told", [("check", "config", "prometheus.yml"), ("test", "rules", "rules.test.yml")])
def test_what_monitoring_offers_is_sound(told: tuple[str, ...]) -> None:
    """Prometheus takes the configuration, and the alerts come when they should."""
    done = subprocess.run(["promtool", *told], cwd=ROOT / "monitoring", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
