"""An instance that hangs as a whole: it takes connections, and nobody in it answers."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest
from provider_in_process import provider_in_process
from provider_process import wait_until

from infless_provider import fleet

pytestmark = pytest.mark.integration
HANDLER = "import os\ndef handle(event, context):\n    return {'statusCode': 200, 'body': str(os.getppid())}\n"


def test_it_is_ended_and_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for it is told within that time, and whoever comes later is served."""
    monkeypatch.setattr(fleet, "ALIVE_S", 2.0)
    with provider_in_process(tmp_path / "provider") as provider:
        provider.deploy("f", HANDLER)
        (pid,) = provider.pids("f")
        process = psutil.Process(pid)
        for one in [process, *process.children(recursive=True)]:
            os.kill(one.pid, signal.SIGSTOP)
        lost = provider.invoke("f", b"")
        assert (lost.status_code, "failed while answering" in lost.text) == (502, True)
        wait_until(lambda: pid not in provider.pids("f"), "its end is seen")
        assert provider.invoke("f", b"").status_code == 200
        events = provider.send("GET", "/system/overview").json()["events"]
        assert any(event["event"] == "end" and event["why"].startswith("it hangs") for event in events)
