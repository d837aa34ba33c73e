"""A server of the benchmark while it runs: started on its core, asked until it answers, loaded, and ended."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from benchmarks import asking, processes, servers, wire
from benchmarks.openloop import Load, fire
from benchmarks.peers.catalogue import Command, Server, Start
from benchmarks.trial import Right, Trial, judge

HOST = "127.0.0.1"
START_LIMIT_S = 90.0


class UnusableError(Exception):
    """A server that did not come to answer rightly; the message says what it did instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """A server that answers."""

    pid: int
    address: tuple[str, int]
    requests: tuple[bytes, ...]
    right: Right
    target_s: float
    keeps_alive: bool
    start_s: float
    """From the start of its process to the first right answer."""
    loaded_bytes: int
    """Resident then."""

    def resident_bytes(self) -> int:
        """Of all its processes, now."""
        return processes.resident_bytes(self.pid)

    def trial(self, rate_rps: float, seed: int, seconds: float) -> tuple[Trial, dict[str, Any]]:
        """One trial, and the same as a record with what it took."""
        rested_s = asking.let_rest(self.address, self.requests[0], self.target_s)
        load = Load(
            address=self.address, requests=self.requests, rate_rps=rate_rps, seed=seed, target_s=self.target_s,
            seconds=seconds, keeps_alive=self.keeps_alive,
        )  # fmt: skip
        cpus = (servers.LOAD_CPU, servers.SERVER_CPU)
        before, cpu_s, own_s = processes.read_busy(cpus), processes.cpu_s(self.pid), time.process_time()
        seen = fire(load)
        after, own_s = processes.read_busy(cpus), time.process_time() - own_s
        cpu_s = processes.cpu_s(self.pid) - cpu_s
        trial = judge(load, seen, self.right)
        answered = sum(answer is not None for answer in seen.answers)
        return trial, {
            **trial.as_json(),
            "rested_s": round(rested_s, 3),
            "server_cpu_us_per_answer": round(1e6 * cpu_s / answered, 1) if answered else None,
            "others_share": round(processes.others_share(before, after, cpu_s + own_s, len(set(cpus))), 4),
        }


@contextmanager
def serving(server: Server, start: Start, *, more: dict[str, str] | None = None) -> Iterator[Serving]:
    """Start it; ended when left.

    Args:
        server: which one.
        start: with what.
        more: environment variables beside its own.

    Raises:
        MissingError: it is not installed.
        UnusableError: it does not come to answer rightly.
    """
    command = server.command(start)
    address = (HOST, start.port)
    requests = requests_of(server, start, address)
    right = Right(rows=start.example.right, decode=server.form.decode)
    with tempfile.TemporaryFile() as log, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        begin_s = time.perf_counter()
        process = _start(command, log, {"TMPDIR": scratch, "RAY_TMPDIR": scratch, **(more or {})})
        try:
            fault = asking.first_right(
                address, requests[0], _is_right(right), lambda: process.poll() is None, START_LIMIT_S
            )
            start_s = time.perf_counter() - begin_s
            if fault:
                log.seek(0)
                raise UnusableError(f"{fault}\n{log.read().decode(errors='replace')[-1500:]}")
            yield Serving(
                pid=process.pid, address=address, requests=requests, right=right, target_s=start.task.target_s,
                keeps_alive=server.keeps_alive, start_s=start_s, loaded_bytes=processes.resident_bytes(process.pid),
            )  # fmt: skip
        finally:
            processes.end(process.pid)
            process.wait()
            with suppress(ProcessLookupError):  # what a server that died had started, and nobody's child any more
                os.killpg(process.pid, signal.SIGKILL)


def requests_of(server: Server, start: Start, address: tuple[str, int]) -> tuple[bytes, ...]:
    """The whole requests, in the server's form."""
    host = f"{address[0]}:{address[1]}"
    messages = [server.form.encode(one) for one in start.example.inputs]
    return tuple(wire.request(host, server.path, message.body, message.headers) for message in messages)


def _start(command: Command, log: IO[bytes], more: dict[str, str]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1", **command.environment, **more}
    # A child inherits the cores of the one that starts it: so not one of its threads is ever elsewhere.
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {servers.SERVER_CPU})
    try:
        return subprocess.Popen(
            command.arguments, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    finally:
        os.sched_setaffinity(0, mine)


def _is_right(right: Right) -> Callable[[bytes], bool]:
    def check(answer: bytes) -> bool:
        parts = wire.read_answer(answer)
        if parts.status != 200:
            return False
        return len(right.of(np.zeros(1, np.int64), [parts.body])) == 1

    return check
