"""Time from `faas-cli deploy` to the first answer: `python -m benchmarks.deploy`.

Uses the faas-cli that INFLESS_FAAS_CLI names, else `infless deploy`, which makes the same calls. A function that was
never seen is timed before it is started; one whose profile is kept is not.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import requests

from benchmarks import record, servers

BODIES = {"hello": (b"hello", "text/plain"), "voice-activity": (bytes(32000), "application/octet-stream")}
ROUNDS = 5


def main() -> None:
    """Measure and keep."""
    cli = os.environ.get("INFLESS_FAAS_CLI")
    results: dict[str, object] = {"client": "faas-cli" if cli else "infless deploy"}
    for name in BODIES:
        first_s, again_s = [], []
        for _ in range(ROUNDS):
            with tempfile.TemporaryDirectory() as work:
                times = _times(name, Path(work), cli)
                first_s.append(times[0])
                again_s.append(times[1])
        results[name] = {
            "never_seen_s": first_s,
            "profile_kept_s": again_s,
            "median_never_seen_s": statistics.median(first_s),
            "median_profile_kept_s": statistics.median(again_s),
        }
    record.write("deploy", "python -m benchmarks.deploy", results)


def _times(name: str, work: Path, cli: str | None) -> tuple[float, float]:
    port, state = servers.free_port(), work / "state"
    gateway = f"http://127.0.0.1:{port}"
    infless = [sys.executable, "-m", "infless_provider.cli"]
    subprocess.run([*infless, "build", "-f", "stack.yml", "-o", str(work / "build"), name], check=True,
                   capture_output=True)  # fmt: skip
    command = [*infless, "up", "--port", str(port), "--state-dir", str(state), "--bundles", str(work / "build"),
               "--no-auth"]  # fmt: skip
    deploy = [cli, "deploy", "-f", "stack.yml", "-g", gateway, "--filter", name] if cli else [
        *infless, "deploy", "-f", "stack.yml", "-g", gateway, name]  # fmt: skip
    try:
        # The provider keeps every core: a deployment is not a load.
        with servers.running(command, f"{gateway}/healthz", cpu=None):
            times = []
            for _ in range(2):
                times.append(_deploy_and_ask(deploy, gateway, name))
                requests.delete(f"{gateway}/system/functions", json={"functionName": name}, timeout=30)
                while requests.get(f"{gateway}/system/overview", timeout=5).json()["instances"]:
                    time.sleep(0.05)
            return times[0], times[1]
    finally:
        subprocess.run([*infless, "down", "--state-dir", str(state)], check=False, capture_output=True)


def _deploy_and_ask(deploy: list[str], gateway: str, name: str) -> float:
    body, content_type = BODIES[name]
    started_s = time.perf_counter()
    subprocess.run(deploy, check=True, capture_output=True)
    while True:
        reply = requests.post(
            f"{gateway}/function/{name}", data=body, headers={"Content-Type": content_type}, timeout=60
        )
        if reply.ok:
            return time.perf_counter() - started_s
        time.sleep(0.01)


if __name__ == "__main__":
    main()
