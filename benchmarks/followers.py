"""What 200 log followers and 500 slow clients do to everybody else: `python -m benchmarks.followers`.

The p99 of invocations at half load, alone and beside them, interleaved. The provider has one core; the load generator,
the instance and all those clients share the other.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from benchmarks import h2load, record, servers

ROUNDS = 5
CLIENTS = 32
FOLLOWERS, SLOW = 200, 500
SLOW_BYTES_PER_S = 400
"""Each sends its request so slowly that none is ever whole within the run, and just fast enough not to be refused."""
HANDLER = """
said = 0

def predict(batch: list[str]) -> list[str]:
    global said
    said += len(batch)
    if said >= 200:  # some twenty lines a second: what a busy function logs
        print("answered", said)
        said = 0
    return [item.upper() for item in batch]

def example():
    return "hello"
"""


def main() -> None:
    """Measure and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each run")
    parser.add_argument("--followers", type=int, default=FOLLOWERS)
    parser.add_argument("--slow", type=int, default=SLOW)
    options = parser.parse_args()
    servers.pin_load()
    with tempfile.TemporaryDirectory() as work, servers.provider(talker(Path(work)), "talker", Path(work)) as through:
        most_rps = h2load.run(through.url, clients=CLIENTS, seconds=options.seconds).rate_rps
        alone, beside = [], []
        lines = 0
        for _ in range(ROUNDS):
            alone.append(h2load.run(through.url, clients=CLIENTS, seconds=options.seconds, rate_rps=most_rps / 2))
            with crowd(through, options.followers, options.slow) as heard:
                beside.append(h2load.run(through.url, clients=CLIENTS, seconds=options.seconds, rate_rps=most_rps / 2))
            lines += heard.value
        if lines < options.followers:
            raise SystemExit(f"{options.followers} followers heard {lines} lines only: nothing was followed")
    p99_s = {
        "alone": statistics.median(run.quantile_s(0.99) for run in alone),
        "beside": statistics.median(run.quantile_s(0.99) for run in beside),
    }
    record.write(
        "followers",
        "python -m benchmarks.followers",
        {
            "followers": options.followers,
            "slow_clients": options.slow,
            "lines_followed": lines,
            "rate_rps": most_rps / 2,
            "p99_s": p99_s,
            "p99_ratio": p99_s["beside"] / p99_s["alone"],
            "runs": {"alone": [run.summary for run in alone], "beside": [run.summary for run in beside]},
        },
    )


def talker(work: Path) -> Path:
    """A stack file with a function that logs while it answers."""
    folder = work / "talker"
    folder.mkdir()
    (folder / "handler.py").write_text(HANDLER)
    function = {"lang": "infless-python", "handler": str(folder), "image": "talker:latest"}
    stack = work / "stack.yml"
    functions = {"talker": {**function, "labels": {"com.infless.latency.target": "50ms"}}}
    stack.write_text(yaml.safe_dump({"version": 1.0, "provider": {"name": "openfaas"}, "functions": functions}))
    return stack


@contextmanager
def crowd(through: servers.Provided, followers: int, slow: int) -> Iterator[multiprocessing.sharedctypes.Synchronized]:
    """All of them in a process of their own, connected when this yields; counts the lines that were followed."""
    heard, ready, done = multiprocessing.Value("q", 0), multiprocessing.Event(), multiprocessing.Event()
    process = multiprocessing.Process(target=_crowd, args=(through, followers, slow, heard, ready, done))
    process.start()
    try:
        if not ready.wait(60):
            raise SystemExit("the crowd did not connect within 60 s")
        yield heard
    finally:
        done.set()
        process.join(20)
        process.kill()


def _crowd(through, followers, slow, heard, ready, done) -> None:  # type: ignore[no-untyped-def]
    os.sched_setaffinity(0, {servers.LOAD_CPU})
    address = urlsplit(through.gateway)

    async def follow() -> None:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(b"GET /system/logs?name=talker&follow=true&tail=1 HTTP/1.1\r\nHost: i\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
        connected()
        while data := await reader.read(65536):
            heard.value += data.count(b'{"name"')

    async def dawdle() -> None:
        _, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(b"POST /function/talker HTTP/1.1\r\nHost: i\r\nContent-Length: 1000000\r\n\r\n")
        connected()
        while True:
            writer.write(b"x" * (SLOW_BYTES_PER_S // 4))
            await asyncio.sleep(0.25)

    waiting = followers + slow

    def connected() -> None:
        nonlocal waiting
        waiting -= 1
        if waiting == 0:
            ready.set()

    async def run() -> None:
        tasks = [asyncio.ensure_future(follow()) for _ in range(followers)]
        tasks += [asyncio.ensure_future(dawdle()) for _ in range(slow)]
        await asyncio.to_thread(done.wait, 300)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())


if __name__ == "__main__":
    main()
