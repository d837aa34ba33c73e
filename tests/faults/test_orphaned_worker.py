"""SIGKILL to the supervisor alone: its worker answers what it has taken, and the next command waits for it."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from provider_process import ProviderProcess, environment, processes_of, wait_until

from infless_watchdog.worker import LoopWorker

pytestmark = pytest.mark.integration

GATED = """
import os, time
def handle(event, context):
    open(os.environ["gate"] + ".begun", "w").close()
    while not os.path.exists(os.environ["gate"]):
        time.sleep(0.002)
    return {"statusCode": 200, "body": "through"}
"""
WAITED_FOR = "was killed; waiting until what it had taken is answered, at most 110 s"


@pytest.fixture
def orphaned(tmp_path: Path) -> Iterator[tuple[ProviderProcess, Future[requests.Response]]]:
    """A provider whose supervisor was killed, and a call that its worker runs until the gate opens."""
    made = ProviderProcess(tmp_path / "provider")
    try:
        gate = made.root / "gate"
        made.start("--cpu-cores", "1").deploy("gated", GATED, envVars={"gate": str(gate)})
        with ThreadPoolExecutor(1) as clients:
            try:
                call = clients.submit(made.invoke, "gated", b"")
                wait_until(gate.with_name("gate.begun").exists, "the call is under way")
                assert made.process is not None
                made.process.kill()
                made.process.wait()
                yield made, call
            finally:
                gate.touch()
    finally:
        made.destroy()


def test_the_next_one_waits_and_takes_over(orphaned):
    """The call is answered, no time of it lost; the instance stays; one line says that the supervisor is gone."""
    provider, call = orphaned
    with ThreadPoolExecutor(1) as starters:
        starting = starters.submit(provider.start, "--cpu-cores", "1")
        try:
            wait_until(lambda: WAITED_FOR in provider.log.read_text(), "it says what it waits for")
            assert not call.done()
        finally:
            (provider.root / "gate").touch()
        assert call.result().text == "through"
        starting.result()
    provider.ready("gated")
    assert provider.invoke("gated", b"").text == "through"
    assert provider.log.read_text().count("the supervisor is gone") == 1
    provider.end()


def test_down_waits_and_ends_what_is_left(orphaned):
    """The instance is ended when its call is answered, not before."""
    provider, call = orphaned
    command = [sys.executable, "-m", "infless_provider.cli", "down", "--state-dir", str(provider.state), "--json"]
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as down:  # fmt: skip
        assert down.stdout is not None
        assert down.stderr is not None
        assert WAITED_FOR in down.stderr.readline()
        assert not call.done()
        (provider.root / "gate").touch()
        assert down.stdout.read() == '{"ended": 1}\n'
    assert down.returncode == 0
    assert call.result().text == "through"
    assert processes_of(provider.root) == []


def test_the_worker_notices_once(caplog):
    """It ends in order, says so in one line, and looks no more: nobody is left to tell that it lives."""
    told: list[bool] = []
    beats = SimpleNamespace(ppid=0, notify=lambda: None, log=logging.getLogger("gunicorn.test"))
    worker: Any = beats
    asyncio.run(asyncio.wait_for(LoopWorker._beat(worker, told.append), 30))
    assert (told, caplog.messages) == ([True], ["the supervisor is gone; ending"])
