"""The queue of asynchronous calls in a real process that is killed, starved of disk and told to stop, under load."""

from __future__ import annotations

import os
import random
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

pytestmark = pytest.mark.integration
CHILD = """
import asyncio, os, signal, socket, sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import uvloop

from infless_core.clock import SystemClock
from infless_provider.async_calls import AsyncCalls
from infless_provider.async_policy import AsyncLimits, RetryRules
from infless_provider.async_store import QueueStore
from infless_provider.callback_policy import CallbackPolicy
from infless_provider.callbacks import Callbacks
from infless_provider.upstream import Upstream, UpstreamError
from infless_watchdog.http import Edge, Limits

QUEUE, FD, FUNCTION = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
SOON = RetryRules(attempts_max=10_000, age_max_s=600, backoff_s=0.01, backoff_max_s=0.05)
LIMITS = AsyncLimits(
    invocations=SOON, callbacks=SOON, in_flight_max=16, in_flight_per_function_max=8, callbacks_max=8,
    disk_retry_s=0.05, close_grace_s=5,
)


async def main():
    upstream, clock = Upstream("127.0.0.1", FUNCTION), SystemClock()

    def find(key):
        return SimpleNamespace(key=key, tokens=()) if key in ("f.openfaas-fn", "g.openfaas-fn") else None

    async def invoke(function, method, target, headers, body, *, timeout_s, answer_max_bytes):
        started_s = clock.now_s()
        try:
            reply = await upstream.request(method, target, headers, body, timeout_s=timeout_s)
            status, told, said = reply.status, reply.headers, await reply.read()
        except UpstreamError as error:
            status, told, said = 503, [(b"x-openfaas-internal", b"proxy")], str(error).encode()
        took_s, size_bytes = clock.now_s() - started_s, len(said)
        return SimpleNamespace(
            status=status, headers=told, body=said[:answer_max_bytes], body_bytes=size_bytes, took_s=took_s
        )

    callbacks = Callbacks(CallbackPolicy.parse(("127.0.0.0/8",)), connections_max=LIMITS.callbacks_max)
    calls = AsyncCalls(QueueStore(QUEUE), find, invoke, callbacks, clock, LIMITS, seed=os.getpid())

    def route(exchange):
        if exchange.path == "/stats":
            exchange.json(200, asdict(calls.stats()))
        else:
            calls(exchange)

    edge = Edge(route, Limits(body_bytes=1 << 20))
    await calls.start()
    await edge.listen(socket.socket(fileno=FD))
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    await over.wait()
    edge.stop_accepting()
    await calls.close()
    await upstream.close()
    edge.close()


uvloop.run(main())
"""


class World:
    """A function, a callback target and clients in this process; the queue in a child that may be killed."""

    def __init__(self, folder: Path) -> None:
        self.queue = folder / "queue.sqlite"
        self.log = folder / "output.txt"
        self.happened = threading.Condition()
        self.count = 0
        """Accepts, invocations and callbacks together."""
        self.invoked: Counter[str] = Counter()
        self.told: dict[str, list[tuple[str, bytes]]] = {}
        self.function_says: Callable[[str], int] = lambda _: 200
        self.target_says: Callable[[str], int] = lambda _: 200
        self.door = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.url = f"http://127.0.0.1:{self.door.getsockname()[1]}"
        self.servers = [self._server(self._invoke), self._server(self._tell)]
        self.child: subprocess.Popen[bytes]

    def _server(self, answer: Callable[[BaseHTTPRequestHandler, bytes], tuple[int, bytes]]) -> ThreadingHTTPServer:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if len(body) < int(self.headers["content-length"]):  # the child was killed while it sent
                    self.close_connection = True
                    return
                status, said = answer(self, body)
                self.send_response(status)
                self.send_header("content-length", str(len(said)))
                self.end_headers()
                with suppress(OSError):
                    self.wfile.write(said)

            def handle(self) -> None:
                with suppress(OSError):  # the child was killed
                    super().handle()

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return server

    def event(self, record: Callable[[], Any]) -> None:
        """Something to be counted has happened."""
        with self.happened:
            record()
            self.count += 1
            self.happened.notify_all()

    def _invoke(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
        id_ = request.headers["x-call-id"]
        self.event(lambda: self.invoked.update([id_]))
        return self.function_says(id_), b"answer to " + body

    def _tell(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
        id_ = request.headers["x-call-id"]
        status = self.target_says(id_)
        if status == 200:
            said = (request.headers["x-function-status"], body)
            self.event(lambda: self.told.setdefault(id_, []).append(said))
        return status, b""

    @property
    def callback(self) -> str:
        """Where answers go."""
        return f"http://127.0.0.1:{self.servers[1].server_address[1]}/told"

    def start(self) -> None:
        """A provider on the queue."""
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(
                [sys.executable, "-c", CHILD, self.queue, str(self.door.fileno()), str(self.servers[0].server_address[1])],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                pass_fds=[self.door.fileno()],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def kill(self) -> None:
        """As a power cut of the process."""
        self.child.send_signal(signal.SIGKILL)
        self.child.wait(30)

    def post(self, id_: str, function: str = "f", body: bytes = b"", timeout_s: float = 30) -> int:
        """One try to queue a call; 0 when the child died meanwhile."""
        headers = {"x-call-id": id_, "idempotency-key": id_, "x-callback-url": self.callback}
        try:
            answer = requests.post(
                f"{self.url}/async-function/{function}", data=body or id_.encode(), headers=headers, timeout=timeout_s
            )
        except requests.RequestException:
            return 0
        if answer.status_code == 202:
            assert answer.headers["x-call-id"] == id_
            self.event(lambda: None)
        return answer.status_code

    def queue_it(self, id_: str, function: str) -> None:
        """As a careful client: again, with the same key, until it is accepted."""
        ends_s = time.monotonic() + 60
        while self.post(id_, function) != 202:
            assert time.monotonic() < ends_s, f"{id_} was not accepted:\n{self.log.read_text()}"

    def stats(self) -> dict[str, Any]:
        """The books of the child, summed over functions."""
        functions = requests.get(f"{self.url}/stats", timeout=30).json()["functions"]
        return {key: sum(one[key] for one in functions) for key in functions[0] if key != "function"}

    def serves(self) -> bool:
        """Whether it answers, and so has made its database."""
        with suppress(requests.RequestException):
            return requests.get(f"{self.url}/stats", timeout=5).ok
        return False

    def until(self, true: Callable[[], Any], what: str, timeout_s: float = 60.0) -> None:
        """Wait for something to become so."""
        ends_s = time.monotonic() + timeout_s
        while not true():
            assert time.monotonic() < ends_s, f"{what} did not happen within {timeout_s} s:\n{self.log.read_text()}"
            time.sleep(0.01)

    def books_on_disk(self) -> dict[str, int]:
        """What a dead child has left in the file."""
        with closing(sqlite3.connect(self.queue)) as db:
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            sums = ", ".join(f"coalesce(sum({name}), 0)" for name in ("accepted", "done", "failed", "cancelled"))
            accepted, done, failed, cancelled = db.execute(f"SELECT {sums} FROM book").fetchone()
            waiting = db.execute("SELECT count(*) FROM call").fetchone()[0]
        return {"accepted": accepted, "done": done, "failed": failed, "cancelled": cancelled, "waiting": waiting}

    def end(self) -> None:
        """Leave nothing behind."""
        if self.child.poll() is None:
            self.kill()
        for server in self.servers:
            server.shutdown()
            server.server_close()
        self.door.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A new one, with a child that runs."""
    world = World(tmp_path)
    world.start()
    world.until(world.serves, "the first answer")
    yield world
    world.end()


@pytest.mark.parametrize("seed", [1, 2])
def test_no_accepted_call_is_lost_when_the_provider_is_killed_again_and_again(world: World, seed: int) -> None:
    """Killed at random moments under load, restarted at once: each call runs and is told, and the books always balance."""
    dice, lock = random.Random(seed), threading.Lock()
    ids = [f"{seed}-{number}" for number in range(600)]

    def drawn(*choices: int) -> int:
        with lock:
            return dice.choice(choices)

    world.function_says = lambda _: drawn(200, 200, 200, 200, 500, 503)
    world.target_says = lambda _: drawn(200, 200, 200, 500)
    kills = 0
    with ThreadPoolExecutor(8) as clients:
        queued = [clients.submit(world.queue_it, id_, "fg"[number % 2]) for number, id_ in enumerate(ids)]
        while not all(one.done() for one in queued) or kills < 6:
            with world.happened:
                enough = world.count + drawn(20, 60, 120, 200)
                world.happened.wait_for(lambda enough=enough: world.count >= enough, timeout=2)  # type: ignore[misc]
            time.sleep(drawn(0, 1, 3, 7) / 1000)  # somewhere between two events
            world.kill()
            kills += 1
            books = world.books_on_disk()
            assert books["accepted"] == books["done"] + books["failed"] + books["cancelled"] + books["waiting"], books
            world.start()
        for one in queued:
            one.result()
    world.until(lambda: world.stats()["waiting"] == 0, "the end of the queue")
    stats = world.stats()
    assert kills >= 6
    assert set(world.told) == set(ids)
    assert set(world.invoked) == set(ids)
    # A client whose 202 was lost in a kill asks again; if its call had ended by then, that is a new call.
    assert stats["accepted"] >= len(ids)
    assert stats["accepted"] == stats["done"] + stats["failed"]
    assert stats["callbacks_ok"] + stats["callbacks_failed"] == stats["accepted"]
    assert stats["callbacks_failed"] == stats["failed"] == 0
    for id_, said in world.told.items():
        assert {body for _, body in said} == {b"answer to " + id_.encode()}
        assert {status for status, _ in said} <= {"200", "500"}
    twice = sum(1 for said in world.told.values() if len(said) > 1)
    assert twice < len(ids) / 2, "at least once should be once, mostly"


def test_a_full_disk_refuses_and_recovers(world: World) -> None:
    """503 with a sentence while files may not grow; what was accepted before is not lost, and room is used again."""
    gate = threading.Event()

    def wait(_: str) -> int:
        gate.wait(60)
        return 200

    world.function_says = wait
    world.queue_it("first", "f")
    world.until(lambda: world.invoked["first"], "an invocation")
    _, hard = resource.prlimit(world.child.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(world.child.pid, resource.RLIMIT_FSIZE, (2 << 20, hard))
    statuses = [world.post(f"big-{number}", body=bytes(300_000)) for number in range(12)]
    accepted = statuses.count(202)
    assert set(statuses) == {202, 503}
    refusal = requests.post(f"{world.url}/async-function/f", data=bytes(300_000), timeout=30)
    assert refusal.status_code == 503
    assert "disk is full or fails" in refusal.text
    assert "retry-after" in refusal.headers
    gate.set()
    world.until(lambda: "asked again every" in world.log.read_text(), "a word about the disk")
    resource.prlimit(world.child.pid, resource.RLIMIT_FSIZE, (hard, hard))
    world.queue_it("last", "g")
    world.until(lambda: world.stats()["waiting"] == 0, "the end of the queue")
    stats = world.stats()
    assert stats["accepted"] == stats["done"] == accepted + 2
    assert {"first", "last"} <= set(world.told)
    assert len(world.told) == accepted + 2


def test_sigterm_leaves_the_rest_for_the_next_start(world: World) -> None:
    """Calls that run end; calls that wait stay on disk; nothing runs twice."""
    gate = threading.Event()

    def wait(_: str) -> int:
        gate.wait(60)
        return 200

    world.function_says = wait
    ids = [f"call-{number}" for number in range(30)]
    with ThreadPoolExecutor(8) as clients:
        list(clients.map(lambda id_: world.queue_it(id_, "f"), ids))
    world.until(lambda: sum(world.invoked.values()) == 8, "as many invocations as one function may have")
    world.child.send_signal(signal.SIGTERM)
    gate.set()
    assert world.child.wait(60) == 0
    books = world.books_on_disk()
    assert (books["accepted"], books["failed"]) == (30, 0)
    assert books["waiting"] + books["done"] == 30
    assert books["waiting"] > 0
    world.start()
    world.until(lambda: world.stats()["waiting"] == 0, "the end of the queue")
    assert world.stats()["done"] == 30
    assert world.invoked == Counter(ids)
    assert {id_: len(said) for id_, said in world.told.items()} == dict.fromkeys(ids, 1)


def test_a_function_that_cannot_be_reached_is_tried_until_it_can(world: World) -> None:
    """Connections refused for a while; then every call is answered, once."""
    function = world.servers[0]
    port = function.server_address[1]
    function.shutdown()
    function.server_close()
    for number in range(20):
        world.queue_it(f"call-{number}", "f")
    world.until(lambda: world.stats()["retried"] >= 20, "retries")
    with socket.create_server(("127.0.0.1", port)) as back:
        function.socket = back
        threading.Thread(target=function.serve_forever, args=(0.05,), daemon=True).start()
        world.until(lambda: world.stats()["waiting"] == 0, "the end of the queue")
        stats = world.stats()
    assert (stats["done"], stats["failed"]) == (20, 0)
    assert {len(said) for said in world.told.values()} == {1}
    assert max(world.invoked.values()) == 1
