"""A hundred thousand requests of clients that leave, dawdle and talk nonsense; the configuration changes, processes die.

Afterwards the books balance, everybody who stayed has the right answer, and nothing is left over.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import signal
import socket
import struct
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
import requests
import uvloop

Start = Callable[..., Any]
REQUESTS = 100_000
CLIENTS = 48
SEED = 20240703
PATIENCE_S = 60.0
"""No answer takes so long, unless it never comes."""

HANDLER = '''
import time

def predict(batch):
    """Each body backwards. Some are refused, some break the run that they are in, some take their time."""
    if any(item.startswith(b"raise") for item in batch):
        raise RuntimeError("one of these is bad")
    if any(item.startswith(b"slow") for item in batch):
        time.sleep(0.004)
    return [ValueError("refused") if item.startswith(b"refuse") else item[::-1] for item in batch]
'''


class Wire:
    """One connection of a client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port: int, receive_bytes: int = 0) -> Wire:
        """Connect; a small receive buffer makes a slow reader felt."""
        sock = socket.socket()
        sock.setblocking(False)
        if receive_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        return cls(*await asyncio.open_connection(sock=sock, limit=1 << 20))

    async def answer(self) -> tuple[int, bytes]:
        """Status and body of the next answer."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        assert length is not None, head
        return int(head[9:12]), await self.reader.readexactly(int(length[1]))

    def close(self) -> None:
        """Leave in order."""
        self.writer.close()

    def reset(self) -> None:
        """Leave as a process that was killed, or a machine that was: with a reset."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


def request(body: bytes, content_type: str = "application/octet-stream") -> bytes:
    """A request, framed by its length."""
    head = f"POST / HTTP/1.1\r\nHost: f\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def chunked(body: bytes, chance: random.Random) -> bytes:
    """The same in chunks, some with an extension, and trailers."""
    parts = [
        b"POST / HTTP/1.1\r\nHost: f\r\nContent-Type: application/octet-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    ]
    while body:
        size = chance.randint(1, len(body))
        parts.append(b"%x%b\r\n%b\r\n" % (size, chance.choice([b"", b";a=b"]), body[:size]))
        body = body[size:]
    return b"".join([*parts, b"0\r\n", chance.choice([b"", b"X-Sum: 1\r\n"]), b"\r\n"])


class Crowd:
    """Clients with a common number of requests to send; each does at random what clients do."""

    def __init__(self, port: int, count: int, seed: int) -> None:
        self.port = port
        self.left = count
        self.seed = seed
        self.done: Counter[str] = Counter()
        self.answers: Counter[int] = Counter()

    def take(self, chance: random.Random, most: int) -> int:
        """How many requests to send now."""
        count = min(chance.randint(1, most), max(1, self.left))
        self.left -= count
        return count

    async def run(self, clients: int = CLIENTS) -> None:
        """All clients, to their end."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(clients):
                tasks.create_task(self._client(random.Random(f"{self.seed}-{number}"), number))

    async def _client(self, chance: random.Random, number: int) -> None:
        names = list(HABITS)
        weights = [HABITS[name] for name in names]
        for turn in range(10**9):
            if self.left <= 0:
                return
            name = chance.choices(names, weights)[0]
            self.done[name] += 1
            habit: Callable[..., Awaitable[None]] = getattr(self, name)
            async with asyncio.timeout(PATIENCE_S):
                await habit(chance, b"%d.%d." % (number, turn))

    def check(self, answer: tuple[int, bytes], body: bytes) -> None:
        """It is the answer to this very body."""
        status, came = answer
        self.answers[status] += 1
        if body.startswith(b"refuse"):
            assert status in (422, 500), (answer, body)
            assert b"refused" in came, (answer, body)
        elif body.startswith(b"raise"):
            assert status == 500, (answer, body)
        else:
            assert (status, came) == (200, body[::-1])

    def body(self, chance: random.Random, tag: bytes) -> bytes:
        """A body that no other request has."""
        kind = chance.choices([b"", b"slow", b"refuse", b"raise"], [960, 20, 15, 5])[0]
        return kind + b"%b%d." % (tag, chance.getrandbits(32)) + b"x" * chance.randint(0, 200)

    # those who stay --------------------------------------------------------------------------------------------------

    async def one_after_another(self, chance: random.Random, tag: bytes) -> None:
        """Keep-alive, as most clients are."""
        wire = await Wire.open(self.port)
        for _ in range(self.take(chance, 30)):
            body = self.body(chance, tag)
            wire.writer.write(request(body) if chance.random() < 0.9 else chunked(body, chance))
            self.check(await wire.answer(), body)
        wire.close()

    async def pipeline(self, chance: random.Random, tag: bytes) -> None:
        """Many requests in one write; the answers come in their order."""
        wire = await Wire.open(self.port)
        for _ in range(chance.randint(1, 4)):
            bodies = [self.body(chance, tag) for _ in range(self.take(chance, 24))]
            wire.writer.write(b"".join(request(body) for body in bodies))
            for body in bodies:
                self.check(await wire.answer(), body)
        wire.close()

    async def dawdle(self, chance: random.Random, tag: bytes) -> None:
        """A slow writer: requests in pieces, cut anywhere."""
        wire = await Wire.open(self.port)
        bodies = [self.body(chance, tag) for _ in range(self.take(chance, 3))]
        data = b"".join(request(body) for body in bodies)
        cuts = sorted(chance.randint(0, len(data)) for _ in range(chance.randint(1, 6)))
        for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
            wire.writer.write(data[start:stop])
            await asyncio.sleep(chance.uniform(0, 0.003))
        for body in bodies:
            self.check(await wire.answer(), body)
        wire.close()

    async def read_slowly(self, chance: random.Random, tag: bytes) -> None:
        """A slow reader of large answers; it gets all of them."""
        wire = await Wire.open(self.port, receive_bytes=4096)
        bodies = [b"%b%d." % (tag, place) + bytes(100_000) for place in range(self.take(chance, 4))]
        for body in bodies:
            wire.writer.write(request(body))
        for body in bodies:
            await asyncio.sleep(chance.uniform(0, 0.02))
            self.check(await wire.answer(), body)
        wire.close()

    async def talk_nonsense(self, chance: random.Random, tag: bytes) -> None:
        """A body that is not what it says is refused; the connection is as good as before."""
        wire = await Wire.open(self.port)
        for _ in range(self.take(chance, 3)):
            wire.writer.write(request(chance.choice([b"{", b"", b"[1,", b"\xff"]), "application/json"))
            status, _ = await wire.answer()
            assert status == 400
            self.answers[status] += 1
            body = self.body(chance, tag)
            wire.writer.write(request(body))
            self.check(await wire.answer(), body)
        wire.close()

    async def talk_gibberish(self, chance: random.Random, tag: bytes) -> None:
        """What is no HTTP is answered with 400 and the end."""
        del tag
        wire = await Wire.open(self.port)
        self.take(chance, 1)
        wire.writer.write(chance.choice([b"\x16\x03\x01\x02\x00\r\n\r\n", b"GET\r\n\r\n", b"POST / HTTP/9.9\r\n\r\n"]))
        status, _ = await wire.answer()
        assert status == 400
        self.answers[status] += 1
        assert await wire.reader.read(-1) == b""
        wire.close()

    # those who leave -------------------------------------------------------------------------------------------------

    def leave(self, chance: random.Random, wire: Wire) -> None:
        """One way or the other."""
        if chance.random() < 0.5:
            wire.reset()
        else:
            wire.close()

    async def leave_at_once(self, chance: random.Random, tag: bytes) -> None:
        """Connects, as a port scanner."""
        del tag
        self.leave(chance, await Wire.open(self.port))

    async def leave_within(self, chance: random.Random, tag: bytes) -> None:
        """Goes in the middle of head or body."""
        wire = await Wire.open(self.port)
        self.take(chance, 1)
        data = request(self.body(chance, tag))
        wire.writer.write(data[: chance.randrange(len(data))])
        await asyncio.sleep(chance.choice([0, 0, 0.001]))
        self.leave(chance, wire)

    async def leave_waiting(self, chance: random.Random, tag: bytes) -> None:
        """Asks, and does not wait for all of the answers."""
        wire = await Wire.open(self.port)
        bodies = [self.body(chance, tag) for _ in range(self.take(chance, 6))]
        wire.writer.write(b"".join(request(body) for body in bodies))
        for body in bodies[: chance.randrange(len(bodies))]:
            self.check(await wire.answer(), body)
        await asyncio.sleep(chance.choice([0, 0, 0.001, 0.003]))
        self.leave(chance, wire)


HABITS = {
    "one_after_another": 30,
    "pipeline": 60,
    "dawdle": 8,
    "read_slowly": 1,
    "talk_nonsense": 6,
    "talk_gibberish": 3,
    "leave_at_once": 4,
    "leave_within": 8,
    "leave_waiting": 12,
}
"""What a client does, and how often."""


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    """On uvloop: the generator has one core with the server."""

    async def played() -> None:
        await scenario()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(played())


async def reconfigure(watchdog: Any, chance: random.Random) -> None:
    """The provider changes its mind all the time."""
    url = f"{watchdog.metrics_url}/_/config"
    with ThreadPoolExecutor(1) as threads:
        while True:
            wish = {"batch_max": chance.choice([1, 2, 7, 32, 64]), "latency_target_s": chance.choice([0.01, 0.1, 1.0])}
            put = asyncio.get_running_loop().run_in_executor(
                threads, lambda w=wish: requests.put(url, json=w, timeout=20)
            )
            answer = await put
            assert answer.status_code == 200, answer.text
            await asyncio.sleep(0.05)


@contextlib.contextmanager
def books_balanced(watchdog: Any) -> Iterator[None]:
    """Around a phase of one worker: every request is accounted for, and nothing is held when all is quiet again."""

    def held() -> dict[str, int]:
        (worker,) = (psutil.Process(pid) for pid in watchdog.workers())
        return {
            "descriptors": worker.num_fds(),
            "threads": worker.num_threads(),
            "children": len(worker.children(recursive=True)),
            "shared memory": sum("infless-" in line.path for line in worker.memory_maps(grouped=False)),
        }

    (worker,) = watchdog.workers()
    before, memory_before = held(), psutil.Process(worker).memory_info().rss
    yield
    assert watchdog.workers() == [worker], "the worker was replaced"
    watchdog.until(lambda: watchdog.metric("http_requests_in_flight") == 0, "an end of all requests")

    def no_more() -> bool:
        now = held()
        return all(now[name] <= before[name] for name in before)

    watchdog.until(no_more, f"as little held as before, {before}, now {held()}")
    received, answered = watchdog.metric("infless_requests_received_total"), watchdog.metric("http_requests_total")
    gone = watchdog.metric("infless_clients_gone_total")
    assert received == answered + gone, (received, answered, gone)
    assert watchdog.metric("infless_queue_length") == 0
    assert psutil.Process(worker).memory_info().rss - memory_before < 64 * 1024 * 1024


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_hundred_thousand_requests(start: Start, isolation: str) -> None:
    """Chaos on one worker: afterwards received = answered + gone, and no thread, descriptor or segment is left."""
    share = REQUESTS if isolation == "thread" else REQUESTS // 10
    watchdog = start(HANDLER, handler_isolation=isolation, read_timeout="10s")
    play(Crowd(watchdog.port, 2000, SEED).run)  # threads and buffers that are made when first needed
    crowd = Crowd(watchdog.port, share, SEED + 1)

    async def chaos() -> None:
        changing = asyncio.ensure_future(reconfigure(watchdog, random.Random(SEED)))
        try:
            await crowd.run()
        finally:
            changing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await changing

    started_s = time.monotonic()
    with books_balanced(watchdog):
        play(chaos)
    took_s = time.monotonic() - started_s
    assert set(crowd.done) == set(HABITS)
    assert crowd.answers[200] > share / 2
    assert watchdog.metric("infless_clients_gone_total") > 0
    raised = set(re.findall(r"^(\w*(?:Error|Exception)\b.*)$", watchdog.log, re.MULTILINE))
    assert raised == {"RuntimeError: one of these is bad"}
    print(f"{share} requests, {took_s:.1f} s: {dict(crowd.answers)}")  # noqa: T201 - shown by -s


async def patient(port: int, body: bytes) -> bytes:
    """A client that asks again when its connection is lost, as a gateway does."""
    while True:
        try:
            with contextlib.closing(await Wire.open(port)) as wire:
                wire.writer.write(request(body))
                async with asyncio.timeout(PATIENCE_S):
                    status, came = await wire.answer()
        except (ConnectionError, asyncio.IncompleteReadError):
            await asyncio.sleep(0.01)
            continue
        if status == 200:
            return came
        assert status in (500, 502, 503), (status, came)  # a process died under it


class Patients:
    """Patient clients, until they are told to stop."""

    COUNT = 16

    def __init__(self, port: int) -> None:
        self.port = port
        self.over = False
        self.answers = 0
        """That came, each the right one."""

    async def run(self) -> None:
        """All of them, to their end."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(self.COUNT):
                tasks.create_task(self._ask(number))

    async def _ask(self, number: int) -> None:
        chance = random.Random(f"{SEED}-{number}")
        while not self.over:
            body = b"%d.%d" % (number, chance.getrandbits(64))
            assert await patient(self.port, body) == body[::-1]
            self.answers += 1
            await asyncio.sleep(0)

    async def more(self) -> None:
        """Wait for more answers than a process that has just ended may have left on the way: one more has served."""
        enough = self.answers + 2 * self.COUNT
        async with asyncio.timeout(PATIENCE_S):
            while self.answers < enough:
                await asyncio.sleep(0.01)


def kill_under_load(watchdog: Any, victims: Callable[[], list[int]], times: int) -> None:
    """Kill a process again and again, each time one that has served; the last one serves, too."""

    async def kill(patients: Patients) -> None:
        for _ in range(times):
            await patients.more()
            (victim,) = victims()
            os.kill(victim, signal.SIGKILL)
            async with asyncio.timeout(PATIENCE_S):
                while victims() in ([], [victim]):
                    await asyncio.sleep(0.01)
        await patients.more()
        patients.over = True

    async def scenario() -> None:
        patients = Patients(watchdog.port)
        async with asyncio.TaskGroup() as tasks:  # whose first failure ends the others
            tasks.create_task(patients.run())
            tasks.create_task(kill(patients))

    play(scenario)


def test_workers_that_are_killed_are_replaced(start: Start) -> None:
    """SIGKILL to the worker, again and again: who asks again is answered, and the supervisor holds no more than before."""
    watchdog = start(HANDLER)
    supervisor = psutil.Process(watchdog.process.pid)
    before = supervisor.num_fds()
    kill_under_load(watchdog, watchdog.workers, 4)
    watchdog.until_ready()
    play(Crowd(watchdog.port, 2000, SEED).run)  # threads and buffers that are made when first needed
    with books_balanced(watchdog):
        play(Crowd(watchdog.port, 3000, SEED + 1).run)
    watchdog.until(lambda: supervisor.num_fds() <= before, f"as few descriptors as {before}")


def test_handler_processes_that_are_killed_are_replaced(start: Start) -> None:
    """SIGKILL to the handler's own process: the worker stays, the books balance, no segment of shared memory is left."""
    watchdog = start(HANDLER, handler_isolation="process")
    (worker,) = watchdog.workers()

    def handlers() -> list[int]:
        found = []
        for child in psutil.Process(worker).children():
            with contextlib.suppress(psutil.Error):
                if child.status() != psutil.STATUS_ZOMBIE and "resource_tracker" not in " ".join(child.cmdline()):
                    found.append(child.pid)
        return found

    play(Crowd(watchdog.port, 2000, SEED).run)
    with books_balanced(watchdog):
        kill_under_load(watchdog, handlers, 4)
        watchdog.until(lambda: len(handlers()) == 1, "a new handler process")
        watchdog.until_ready()
    assert watchdog.metric("infless_handler_process_restarts_total") >= 4
