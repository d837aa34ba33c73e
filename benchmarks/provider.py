"""A trivial function through the provider, through nginx, and asked directly: `python -m benchmarks.provider`.

The provider (nginx) has one core; the instance and the load generator share the other, in all cases. Those two may take
more of theirs than the proxy takes of its own, and then the rate is theirs: so the processor time of a request in the
proxy itself is given beside it. Latency is measured at half of the provider's highest rate, interleaved, with requests
that come one by one (`wrk`).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from benchmarks import h2load, nginx, processes, record, servers, wrk

CLIENTS = 32
PACED_CLIENTS = 128
ROUNDS = 5
MEMORY_REQUESTS = 1_000_000


def main() -> None:
    """Measure and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each run")
    parser.add_argument("--requests", type=int, default=MEMORY_REQUESTS, help="over which memory has to stay flat")
    options = parser.parse_args()
    servers.pin_load()
    with (
        tempfile.TemporaryDirectory() as work,
        tempfile.TemporaryDirectory() as folder,
        servers.provider(Path("stack.yml"), "hello", Path(work)) as through,
        nginx.proxying(through.instance_url, Path(folder)) as (nginx_url, nginx_pid),
    ):
        routes = {"provider": through.url, "nginx": nginx_url, "direct": through.instance_url}
        pids = {"provider": through.pid, "nginx": nginx_pid}
        results = rates(routes, pids, options.seconds)
        results |= latencies(routes, results["rate_rps"]["provider"] / 2, options.seconds)
        results |= memory(through, options.requests)
    record.write("provider", "python -m benchmarks.provider", results)


def rates(routes: dict[str, str], pids: dict[str, int], seconds: float) -> dict[str, object]:
    """Closed loop, a request at a time on each connection."""
    runs: dict[str, list[h2load.Run]] = {name: [] for name in routes}
    cost_s: dict[str, list[float]] = {name: [] for name in pids}
    for _ in range(ROUNDS):
        for name, url in routes.items():
            before_s = processes.cpu_s(pids[name], deep=False) if name in pids else 0.0
            run = h2load.run(url, clients=CLIENTS, seconds=seconds)
            runs[name].append(run)
            if name in pids:  # h2load's second of warm-up is in the processor time, not in the log
                answered = len(run.latencies_s) * (seconds + 1) / seconds
                cost_s[name].append((processes.cpu_s(pids[name], deep=False) - before_s) / answered)
            print(f"  {name:9} {run.rate_rps:8.0f}/s", file=sys.stderr)
    rate_rps = {name: statistics.median(run.rate_rps for run in made) for name, made in runs.items()}
    cpu_s = {name: statistics.median(made) for name, made in cost_s.items()}
    return {
        "rate_rps": rate_rps,
        "rate_of_nginx": rate_rps["provider"] / rate_rps["nginx"],
        "failed": {name: sum(run.failed for run in made) for name, made in runs.items()},
        "cpu_s_per_request": cpu_s,
        "rate_of_nginx_per_cpu_second": cpu_s["nginx"] / cpu_s["provider"],
    }


def latencies(routes: dict[str, str], rate_rps: float, seconds: float) -> dict[str, object]:
    """At a rate that all of them bear."""
    runs: dict[str, list[wrk.Paced]] = {name: [] for name in routes}
    for seed in range(ROUNDS):
        for name, url in routes.items():
            run = wrk.run(url, clients=PACED_CLIENTS, seconds=seconds, rate_rps=rate_rps, seed=seed)
            runs[name].append(run)
            print(f"  {name:9} {run.rate_rps:8.0f}/s  p50 {1e3 * run.p50_s:.2f} ms", file=sys.stderr)
    p50_s = {name: statistics.median(run.p50_s for run in made) for name, made in runs.items()}
    p99_s = {name: statistics.median(run.p99_s for run in made) for name, made in runs.items()}
    return {
        "latency_at_rps": rate_rps,
        "p50_s": p50_s,
        "p99_s": p99_s,
        "added_p50_s": {name: p50_s[name] - p50_s["direct"] for name in ("provider", "nginx")},
        "added_p99_s": {name: p99_s[name] - p99_s["direct"] for name in ("provider", "nginx")},
        "runs": {name: [asdict(run) for run in made] for name, made in runs.items()},
    }


def memory(through: servers.Provided, requests: int) -> dict[str, object]:
    """Resident memory of the provider along many requests."""
    shares = [0.0]
    resident_bytes = [processes.resident_bytes(through.pid, deep=False)]
    failed = 0
    for share in (0.05, 0.1, 0.25, 0.5, 0.75, 1.0):
        failed += h2load.run(through.url, clients=CLIENTS, requests=int(requests * (share - shares[-1]))).failed
        shares.append(share)
        resident_bytes.append(processes.resident_bytes(through.pid, deep=False))
        print(f"  {share:4.0%} of {requests}: {resident_bytes[-1] / 2**20:.1f} MiB", file=sys.stderr)
    return {
        "memory": {
            "requests": [int(share * requests) for share in shares],
            "resident_bytes": resident_bytes,
            "failed": failed,
            "growth_of_last_three_quarters": resident_bytes[-1] / resident_bytes[3] - 1,
        }
    }


if __name__ == "__main__":
    main()
