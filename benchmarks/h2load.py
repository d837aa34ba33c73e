"""The load generator `h2load` over HTTP/1.1 (Debian: `nghttp2-client`).

It is written in C, so it leaves most of its core to the instance.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks import servers

BODY = b"hello"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What came of one run."""

    rate_rps: float
    latencies_s: tuple[float, ...]
    """Of answers with status 200, sorted; counted from when h2load sent the request."""
    failed: int

    def quantile_s(self, share: float) -> float:
        """The latency that this share stays below."""
        return self.latencies_s[min(len(self.latencies_s) - 1, int(share * len(self.latencies_s)))]

    @property
    def summary(self) -> dict[str, float]:
        """For a record."""
        return {
            "rate_rps": round(self.rate_rps, 1),
            "p50_s": self.quantile_s(0.5),
            "p99_s": self.quantile_s(0.99),
            "failed": self.failed,
        }


def run(url: str, *, clients: int, seconds: float = 0.0, requests: int = 0, rate_rps: float = 0.0) -> Run:
    """POST a small body over kept connections.

    Args:
        url: of the function.
        clients: connections, one request at a time on each.
        seconds: how long; 0 runs until `requests` are answered.
        requests: how many, when `seconds` is 0.
        rate_rps: in all; 0 sends the next request when the last is answered.
    """
    if shutil.which("h2load") is None:
        raise SystemExit("this benchmark needs h2load (Debian: apt-get install nghttp2-client)")
    with tempfile.TemporaryDirectory() as folder:
        body, log = Path(folder) / "body", Path(folder) / "log"
        body.write_bytes(BODY)
        command = ["h2load", "--h1", f"--clients={clients}", "--threads=1", f"--data={body}", f"--log-file={log}",
                   "--header=content-type: text/plain", "--connection-active-timeout=120"]  # fmt: skip
        command += [f"--duration={seconds:g}", "--warm-up-time=1"] if seconds else [f"--requests={requests}"]
        command += [f"--rps={rate_rps / clients:g}"] if rate_rps else []
        subprocess.run(["taskset", "-c", str(servers.LOAD_CPU), *command, url], check=True, capture_output=True)
        rows = [line.split("\t") for line in log.read_text().splitlines()]
    good = sorted(int(row[2]) / 1e6 for row in rows if row[1] == "200")
    if not good:
        raise SystemExit(f"{url} answered none of {len(rows)} requests with 200")
    starts_s = [int(row[0]) / 1e6 for row in rows]
    took_s = max(starts_s) - min(starts_s)
    return Run(rate_rps=len(good) / took_s, latencies_s=tuple(good), failed=len(rows) - len(good))
