"""The load generator `wrk` (Debian) at a given rate: each connection draws its pauses, so requests come one by one.

What `h2load --rps` sends comes in bursts, and then latency is mostly the burst's own length.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks import h2load, servers

_SCRIPT = """
wrk.method = "POST"
wrk.body = "{body}"
wrk.headers["content-type"] = "text/plain"
math.randomseed({seed})
function delay() return math.floor(-math.log(1 - math.random()) * {pause_ms} + 0.5) end
function done(summary, latency)
    local failed = 0
    for _, count in pairs(summary.errors) do failed = failed + count end
    io.write(string.format("result %d %d %d %d %d\\n", summary.requests, summary.duration, failed,
        latency:percentile(50), latency:percentile(99)))
end
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paced:
    """What came of one run."""

    rate_rps: float
    p50_s: float
    p99_s: float
    failed: int


def run(url: str, *, clients: int, seconds: float, rate_rps: float, seed: int) -> Paced:
    """POST a small body over kept connections, pauses between an answer and the next request drawn exponentially.

    Args:
        url: of the function.
        clients: connections; the more there are, the less an answer's latency matters for the rate.
        seconds: how long.
        rate_rps: in all, if answers took no time.
        seed: of the pauses.
    """
    if shutil.which("wrk") is None:
        raise SystemExit("this benchmark needs wrk (Debian: apt-get install wrk)")
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "paced.lua"
        pause_ms = 1000 * clients / rate_rps
        script.write_text(_SCRIPT.format(body=h2load.BODY.decode(), seed=seed, pause_ms=pause_ms))
        command = ["taskset", "-c", str(servers.LOAD_CPU), "wrk", "-t1", f"-c{clients}", f"-d{seconds:g}s",
                   "-s", str(script), url]  # fmt: skip
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    fields = next(line for line in told.splitlines() if line.startswith("result ")).split()[1:]
    requests, duration_us, failed, p50_us, p99_us = map(int, fields)
    return Paced(rate_rps=requests / duration_us * 1e6, p50_s=p50_us / 1e6, p99_s=p99_us / 1e6, failed=failed)
