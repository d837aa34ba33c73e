"""Through the provider against the watchdog alone, on a trivial function: `python -m benchmarks.provider`.

The provider has one core; the instance and the load generator share the other, in both cases. Added latency is measured
at half of the highest rate through the provider, interleaved.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from benchmarks import record, servers
from benchmarks.load import Work, highest_rate, measure

ROUNDS = 5
WORK = Work(
    bodies=[b"hello"],
    target_s=0.05,
    check=lambda _index, _status, body: body == b"HELLO",
    headers=((b"content-type", b"text/plain"),),
)


def main() -> None:
    """Measure and keep."""
    servers.pin_load()
    with (
        tempfile.TemporaryDirectory() as work,
        servers.provider(Path("stack.yml"), "hello", Path(work)) as (through, direct),
    ):
        most = {
            "through": highest_rate(through, WORK, start_rps=500)[0],
            "direct": highest_rate(direct, WORK, start_rps=500)[0],
        }
        half_rps = most["through"] / 2
        p50_s: dict[str, list[float]] = {"through": [], "direct": []}
        p99_s: dict[str, list[float]] = {"through": [], "direct": []}
        for seed in range(ROUNDS):
            for name, url in (("through", through), ("direct", direct)):
                summary = measure(url, half_rps, 8, seed, WORK)
                p50_s[name].append(summary.p50_s)
                p99_s[name].append(summary.p99_s)
    record.write(
        "provider",
        "python -m benchmarks.provider",
        {
            "highest_rate_rps": most,
            "ratio_of_highest_rates": most["through"] / most["direct"],
            "rate_for_latency_rps": half_rps,
            "p50_s": p50_s,
            "p99_s": p99_s,
            "added_p50_s": statistics.median(p50_s["through"]) - statistics.median(p50_s["direct"]),
            "added_p99_s": statistics.median(p99_s["through"]) - statistics.median(p99_s["direct"]),
        },
    )


if __name__ == "__main__":
    main()
