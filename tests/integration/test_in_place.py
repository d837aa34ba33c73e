"""Changes while requests come: no request is lost, a bad version never serves, and what can stay a process does."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import provider_books as books
import psutil
import pytest
from open_loop import Load, open_loop
from provider_process import ProviderProcess, wait_until

pytestmark = pytest.mark.integration

VERSIONED = """import os, time

if "listen_fds" in os.environ:  # it serves, and is not only timed
    {serving}

def handle(event, context):
    time.sleep(float(event.body or 0))
    return {{"statusCode": 200, "body": os.environ.get("version", "1")}}
"""
FINE = VERSIONED.format(serving="pass")
HELD_START = VERSIONED.format(
    serving="""while not os.path.exists(os.environ["gates"] + os.environ["version"]):
        time.sleep(0.05)"""
)
"""It is not ready before there is a file for its version."""
NEVER_READY = VERSIONED.format(serving="raise RuntimeError('no weights')")
HANGS = VERSIONED.format(serving="time.sleep(600)")
RATE_RPS = 40.0
ANSWERS = 80
"""More than can be under way at once, so that most of them were asked for after the first was awaited."""


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[ProviderProcess]:
    """A provider of this test alone, not started yet. It is ended in order, and nothing of it may be left then."""
    made = ProviderProcess(tmp_path / "provider")
    try:
        yield made
        made.end()
    finally:
        made.destroy()


def put_version(provider: ProviderProcess, version: str, handler: str = FINE, **variables: str) -> None:
    """Update `f`, and be told that it is accepted."""
    provider.build("f", handler)
    answer = provider.put("PUT", "f", envVars={"version": version, **variables})
    assert answer.status_code == 202, answer.text


class DribbledBody:
    """A body that ends when it is told to, for several requests at once."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        """Released by each request whose head has been sent."""
        self.ends = threading.Event()

    def pieces(self) -> Iterator[bytes]:
        """Ten a second."""
        self.begun.release()
        while not self.ends.wait(0.1):
            yield b"0"


def function(provider: ProviderProcess) -> dict[str, Any]:
    """What `infless status` knows of `f`."""
    (found,) = [one for one in books.overview(provider)["functions"] if one["function"] == "f.openfaas-fn"]
    return found


class TestUpdates:
    """Start the new, switch, drain the old; back to the old one where the new one never gets ready."""

    def test_two_under_load(self, fresh: ProviderProcess) -> None:
        """Two instances, an open loop, and clients that are still sending when their version is replaced."""
        gates = f"{fresh.root}/gate-"
        Path(f"{gates}1").touch()
        fresh.start().deploy("f", HELD_START, envVars={"version": "1", "gates": gates})
        fresh.send("POST", "/system/scale-function/f", {"replicas": 2})
        fresh.ready("f", 2)
        answers: list[tuple[int, str]] = []
        with ThreadPoolExecutor(4) as pool, open_loop(f"{fresh.url}/function/f", rate_rps=RATE_RPS) as load:
            for old, version in (("1", "2"), ("2", "3")):
                older = fresh.pids("f")
                body = DribbledBody()
                asked = [pool.submit(fresh.invoke, "f", body.pieces()) for _ in range(4)]
                assert all(body.begun.acquire(timeout=10) for _ in asked)
                put_version(fresh, version, HELD_START, gates=gates)
                wait_until(lambda: fresh.instances("f", "starting"), f"version {version} starts")
                count = len(load.answers)
                wait_until(lambda n=count: len(load.answers) >= n + ANSWERS, f"nobody waits for {version}")  # type: ignore[misc]
                assert {answer.text for answer in load.answers[count:]} == {old}
                Path(f"{gates}{version}").touch()
                wait_until(lambda v=version: load.last(40) == {v}, f"version {version} alone answers")  # type: ignore[misc]
                assert not any(one.done() for one in asked)
                body.ends.set()
                answers += [(one.result().status_code, one.result().text) for one in asked]
                wait_until(lambda pids=older: not books.leaders(fresh) & set(pids), "the older ones are gone")  # type: ignore[misc]
                fresh.ready("f", 2)
        assert load.statuses() == Counter({200: load.sent})
        assert answers == [(200, "1")] * 4 + [(200, "2")] * 4
        assert books.codes(fresh, "f") == Counter({"200": load.sent + 8})
        books.assert_in_order(fresh)

    def test_that_cannot_be_loaded_is_refused(self, fresh: ProviderProcess) -> None:
        """422 with the handler's own words; nothing has changed for those who ask."""
        fresh.start().deploy("f", FINE)
        pids, before = fresh.pids("f"), fresh.status("f")
        with open_loop(f"{fresh.url}/function/f", rate_rps=RATE_RPS) as load:
            fresh.build("f", "raise RuntimeError('no such weights')\n")
            answer = fresh.put("PUT", "f")
            assert (answer.status_code, "no such weights" in answer.text) == (422, True), answer.text
        assert load.statuses() == Counter({200: load.sent})
        assert fresh.pids("f") == pids
        assert {**fresh.status("f"), "invocationCount": 0} == {**before, "invocationCount": 0}

    def test_that_never_gets_ready_is_rolled_back(self, fresh: ProviderProcess) -> None:
        """It loads where it is timed and fails where it serves: the old one goes on, and the status says why."""
        fresh.start().deploy("f", FINE)
        pids = fresh.pids("f")
        with open_loop(f"{fresh.url}/function/f", rate_rps=RATE_RPS) as load:
            put_version(fresh, "2", NEVER_READY)
            wait_until(lambda: function(fresh)["rolled_back"], "it is rolled back")
        self._check_rolled_back(fresh, pids, load)
        put_version(fresh, "3")
        wait_until(lambda: fresh.invoke("f", b"").text == "3", "a good version serves")
        assert function(fresh)["rolled_back"] == ""

    def test_a_restart_in_between_changes_nothing(self, fresh: ProviderProcess) -> None:
        """The next provider knows the version to go back to, and goes back."""
        fresh.start().deploy("f", FINE)
        pids = fresh.pids("f")
        put_version(fresh, "2", NEVER_READY)
        wait_until(lambda: function(fresh)["last_failure"], "its first instance has failed")
        fresh.kill()
        fresh.start()
        fresh.ready("f")
        with open_loop(f"{fresh.url}/function/f", rate_rps=RATE_RPS) as load:
            wait_until(lambda: function(fresh)["rolled_back"], "it is rolled back")
        self._check_rolled_back(fresh, pids, load)

    def _check_rolled_back(self, fresh: ProviderProcess, pids: list[int], load: Load) -> None:
        assert {(answer.status, answer.text) for answer in load.answers} == {(200, "1")}
        assert "no weights" in function(fresh)["rolled_back"]
        assert "envVars" not in fresh.status("f")
        assert fresh.pids("f") == pids
        books.assert_in_order(fresh)

    def test_one_that_hangs_is_taken_back_by_hand(self, fresh: ProviderProcess) -> None:
        """The old one serves all along, also after a crash; the hanging one ends when nobody wants it any more."""
        fresh.start().deploy("f", FINE)
        pids = fresh.pids("f")
        put_version(fresh, "2", HANGS)
        wait_until(lambda: fresh.instances("f", "starting"), "it starts")
        assert fresh.invoke("f", b"").text == "1"
        fresh.kill()
        fresh.start()
        fresh.ready("f")
        assert (fresh.pids("f"), len(books.leaders(fresh))) == (pids, 2)
        assert fresh.invoke("f", b"").text == "1"
        fresh.build("f", FINE)
        assert fresh.put("PUT", "f").status_code == 202
        wait_until(lambda: books.leaders(fresh) == set(pids), "the hanging one is ended")
        assert fresh.invoke("f", b"").text == "1"
        books.assert_in_order(fresh)


TIMED = """import os, time

def predict(batch):
    # On two cores eight times as fast as on one, so that one instance on two beats two on one.
    time.sleep(0.2 / len(os.sched_getaffinity(0)) ** 3)
    return batch

def example():
    return "x"
"""


CONSTANT = """import time

def predict(batch):
    # As long for one as for many, so that the largest batch is always the best.
    time.sleep(0.02)
    return batch

def example():
    return "x"
"""


class TestResize:
    """Batch size, target and cores change in the process that runs."""

    def test_labels_reach_the_running_instance(self, fresh: ProviderProcess) -> None:
        """The same process has another largest batch at once, and still after a restart of the provider."""
        fresh.start().deploy("f", CONSTANT, labels={"com.infless.batch.max": "32", "com.infless.latency.target": "1s"})
        (pid,) = fresh.pids("f")
        assert batch_max(fresh) == 32
        for batch, target in ((4, "300ms"), (16, "2s")):
            labels = {"com.infless.batch.max": str(batch), "com.infless.latency.target": target}
            with open_loop(f"{fresh.url}/function/f", rate_rps=RATE_RPS, body=b'"x"') as load:
                assert fresh.put("PUT", "f", labels=labels).status_code == 202
                wait_until(lambda b=batch: batch_max(fresh) == b, "the instance has been told")  # type: ignore[misc]
            assert load.statuses() == Counter({200: load.sent})
            assert fresh.pids("f") == [pid]
        fresh.kill()
        fresh.start()
        fresh.ready("f")
        assert (fresh.pids("f"), batch_max(fresh)) == ([pid], 16)
        assert function(fresh)["latency_target_s"] == 2.0

    @pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="cores can change where there are two")
    def test_cores_follow_the_load(self, fresh: ProviderProcess) -> None:
        """The planner gives the running process a second core when one is not enough; no request is lost."""
        fresh.start("--cpu-cores", "2")
        fresh.deploy("f", TIMED, labels={"com.infless.batch.max": "1", "com.infless.latency.target": "1s"})
        (pid,) = fresh.pids("f")
        assert cores(pid) == {1}
        with open_loop(f"{fresh.url}/function/f", rate_rps=12.0, body=b'"x"') as load:
            wait_until(lambda: fresh.instances("f")[0]["cpu_cores"] == 2, "it is given two cores")
            assert fresh.pids("f") == [pid]
            assert cores(pid) == {2}
            count = len(load.answers)
            wait_until(lambda: len(load.answers) > count + 12, "it answers with them")
        assert load.statuses() == Counter({200: load.sent})
        assert fresh.pids("f") == [pid]


def batch_max(provider: ProviderProcess) -> int:
    """What the only instance of `f` says of itself."""
    (instance,) = provider.instances("f")
    told = books.samples(f"http://127.0.0.1:{instance['metrics_port']}")
    return int(next(one.value for one in told if one.name == "infless_batch_max"))


def cores(leader: int) -> set[int]:
    """On how many CPUs the threads of an instance's processes may run; one number where it is the same for all."""
    found = set()
    for member in [psutil.Process(leader), *psutil.Process(leader).children(recursive=True)]:
        for thread in member.threads():
            with suppress(ProcessLookupError):  # it has just ended
                found.add(len(os.sched_getaffinity(thread.id)))
    return found
