"""A thousand functions that sleep, and what they cost the provider: `python -m benchmarks.many_functions`.

All run the same bundle, so it is timed once.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import requests

from benchmarks import processes, record, servers

ROUNDS = 50
LABELS = {"com.openfaas.scale.min": "0", "com.openfaas.scale.zero": "true", "com.infless.latency.target": "100ms"}


def main() -> None:
    """Measure and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--functions", type=int, default=1000)
    count = parser.parse_args().functions
    servers.pin_load()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        subprocess.run([*servers.INFLESS, "build", "-f", "stack.yml", "-o", str(work / "build"), "hello"], check=True)
        with servers.gateway(work) as (gateway, pid), requests.Session() as session:
            session.trust_env = False
            deploy_s = [deploy(session, gateway, number) for number in range(count)]
            listed = session.get(f"{gateway}/system/functions", timeout=60).json()
            assert len(listed) == count, f"{len(listed)} of {count} functions are listed"
            awake = sum(one["replicas"] for one in listed)
            list_s = timed(lambda: session.get(f"{gateway}/system/functions", timeout=60))
            middle = f"{gateway}/system/function/f{count // 2}"
            status_s = timed(lambda: session.get(middle, timeout=60))
            usage_s = timed(lambda: session.get(f"{middle}?usage=1", timeout=60))
            resident_bytes = processes.resident_bytes(pid, deep=False)
            before_s = processes.cpu_s(pid, deep=False)
            time.sleep(10)
            idle_share = (processes.cpu_s(pid, deep=False) - before_s) / 10
    record.write(
        "many-functions",
        "python -m benchmarks.many_functions",
        {
            "functions": count,
            "replicas": awake,
            "deploy_s": summary(deploy_s),
            "list_s": summary(list_s),
            "status_s": summary(status_s),
            "status_with_usage_s": summary(usage_s),
            "resident_bytes": resident_bytes,
            "idle_share_of_a_core": idle_share,
        },
    )


def deploy(session: requests.Session, gateway: str, number: int) -> float:
    """One more function; seconds that it took."""
    body = {"service": f"f{number}", "image": "infless/hello:latest", "labels": LABELS}
    start_s = time.perf_counter()
    reply = session.post(f"{gateway}/system/functions", json=body, timeout=120)
    if reply.status_code != 202:
        raise SystemExit(f"f{number} was refused: {reply.text}")
    if number % 100 == 0:
        print(f"  {number} deployed", file=sys.stderr)
    return time.perf_counter() - start_s


def timed(ask: Callable[[], requests.Response]) -> list[float]:
    """Seconds of each of many calls on a kept connection."""
    found = []
    for _ in range(ROUNDS):
        start_s = time.perf_counter()
        reply = ask()
        found.append(time.perf_counter() - start_s)
        reply.raise_for_status()
    return found


def summary(seconds: list[float]) -> dict[str, float]:
    """Median and worst."""
    return {"p50": statistics.median(seconds), "max": max(seconds)}


if __name__ == "__main__":
    main()
