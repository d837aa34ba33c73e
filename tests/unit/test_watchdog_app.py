"""Every route of an instance, in-process, on a model of three lines."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from infless_watchdog.app import Watchdog
from infless_watchdog.calls import Call, Reply
from infless_watchdog.isolation import ItemError
from infless_watchdog.settings import Settings


class Upper:
    """Bytes in, the same in capitals out."""

    kind = "upper"
    batched = True

    def decode(self, call: Call) -> bytes:
        """The body; an empty one is refused, a strange one breaks the reader."""
        if not call.body:
            raise ItemError(422, "nothing to do")
        if call.body == b"strange":
            raise ZeroDivisionError("no idea")
        return call.body

    def predict(self, items: list[bytes]) -> list[bytes]:
        """Capitals."""
        return [item.upper() for item in items]

    def encode(self, answer: bytes, item: bytes, call: Call) -> Reply:
        """As it is; one answer breaks the writer."""
        if answer == b"UNWRITABLE":
            raise ZeroDivisionError("no idea")
        return Reply(body=answer)

    def example(self) -> bytes:
        """For warming up."""
        return b"x"

    def metadata(self) -> dict[str, Any]:
        """As a model of the inference protocol has it."""
        return {"name": "f"}

    def close(self) -> None:
        """At the end; fails."""
        raise OSError("not mine")


class Answer:
    """Status, headers and body."""

    def __init__(self, data: bytes) -> None:
        head, _, self.body = data.partition(b"\r\n\r\n")
        self.status = int(head[9:12])
        self.head = head.lower()


class Instance:
    """A started watchdog, and a client of it."""

    def __init__(self, watchdog: Watchdog) -> None:
        self.watchdog = watchdog
        self.sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]

    async def ask(self, method: str, path: str, body: bytes = b"", *, metrics: bool = False) -> Answer:
        """One request on a connection of its own."""
        reader, writer = await asyncio.open_connection(*self.sockets[metrics].getsockname())
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        async with asyncio.timeout(5):
            data = await reader.read(-1)
        writer.close()
        return Answer(data)

    async def counted(self, name: str) -> float:
        """The sum of a metric over its labels."""
        text = (await self.ask("GET", "/metrics", metrics=True)).body.decode()
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))


def run(scenario: Callable[[Instance], Coroutine[Any, Any, None]], model: Any = None, **settings: Any) -> None:
    """Start an instance, play, stop it in order."""
    made = Settings(function_name="f", healthcheck_interval_s=0.0, **settings)

    async def play() -> None:
        instance = Instance(Watchdog(made, load=lambda _: Upper() if model is None else model))
        await instance.watchdog.start(instance.sockets)
        try:
            await scenario(instance)
        finally:
            await instance.watchdog.stop(graceful=True)
            await asyncio.sleep(0)
            for sock in instance.sockets:
                sock.close()

    asyncio.run(play())


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("POST", "/", 200, b"ABC"),
        ("PUT", "/any/path?q=1", 200, b"ABC"),
        ("GET", "/_/health", 200, b"OK"),
        ("HEAD", "/_/health", 200, b""),
        ("POST", "/_/health", 405, b"use GET"),
        ("GET", "/_/ready", 200, b"ready"),
        ("GET", "/v2", 200, b'"binary_tensor_data"'),
        ("GET", "/v2/health/live", 200, b"OK"),
        ("GET", "/v2/health/ready", 200, b"ready"),
        ("GET", "/v2/models/f", 200, b'{"name": "f"}'),
        ("GET", "/v2/models/f/ready", 200, b"ready"),
        ("GET", "/v2/models/f/versions/1/ready", 200, b"ready"),
        ("POST", "/v2/models/f/infer", 200, b"ABC"),
        ("POST", "/v2/models/f/versions/1/infer", 200, b"ABC"),
        ("POST", "/v2/models/g/infer", 404, b'{"error": "the model is f, not g"}'),
        ("POST", "/v2/models/f/train", 404, b"is not a route of this model"),
        ("GET", "/v2/nothing", 404, b"is not a route of the inference protocol"),
    ],
)
def test_the_routes_of_requests(method: str, path: str, status: int, words: bytes) -> None:
    """Port 8080: probes, the inference protocol, and everything else is the function's."""

    async def scenario(instance: Instance) -> None:
        answer = await instance.ask(method, path, b"abc")
        assert (answer.status, words in answer.body) == (status, True), answer.body

    run(scenario)


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "/metrics", 200, b"# TYPE http_requests_in_flight gauge"),
        ("POST", "/metrics", 404, b"here are GET /metrics"),
        ("GET", "/", 404, b"here are GET /metrics"),
        ("PUT", "/_/config", 200, b'{"batch_max": 3, "latency_target_s": 1}'),
    ],
)
def test_the_routes_of_metrics(method: str, path: str, status: int, words: bytes) -> None:
    """Port 8081: nothing of the function."""

    async def scenario(instance: Instance) -> None:
        wish = b'{"batch_max": 3, "latency_target_s": 1}'
        answer = await instance.ask(method, path, wish, metrics=True)
        assert (answer.status, words in answer.body) == (status, True), answer.body

    run(scenario)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 422, "nothing to do"),
        (b"strange", 500, "the request cannot be read: no idea"),
        (b"unwritable", 500, "the answer cannot be written: no idea"),
    ],
)
def test_faults_are_answered_and_counted(body: bytes, status: int, words: str) -> None:
    """As text, or as JSON under /v2; whatever breaks, somebody is answered."""

    async def scenario(instance: Instance) -> None:
        plain = await instance.ask("POST", "/", body)
        protocol = await instance.ask("POST", "/v2/models/f/infer", body)
        assert (plain.status, plain.body.decode()) == (status, f"{words}\n")
        assert (protocol.status, json.loads(protocol.body)) == (status, {"error": words})
        assert await instance.counted("http_requests_total") == 2
        assert await instance.counted("http_requests_in_flight") == 0

    run(scenario)


def test_probes_are_not_counted() -> None:
    """They are nobody's requests (of-watchdog)."""

    async def scenario(instance: Instance) -> None:
        for path in ("/_/health", "/_/ready", "/v2/health/live"):
            await instance.ask("GET", path)
        assert await instance.counted("http_requests_total") == 0

    run(scenario)


def test_what_is_refused_is_counted_by_its_own_status() -> None:
    """A body that is too large is a 413 there, too."""

    async def scenario(instance: Instance) -> None:
        assert (await instance.ask("POST", "/", bytes(100))).status == 413
        assert await instance.counted('http_requests_total{code="413",method="post"}') == 1

    run(scenario, body_max_bytes=10)


def test_warming_up_teaches_the_execution_times() -> None:
    """Of one and of the largest batch; the first user does not pay for it."""

    async def scenario(instance: Instance) -> None:
        assert instance.watchdog.batcher is not None
        assert 0 < instance.watchdog.batcher.times.estimate_s(8) < 1

    run(scenario, batch_max=8)


def test_an_unbatched_model_has_batches_of_one() -> None:
    """Whatever is configured, also later."""
    model = Upper()
    model.batched = False

    async def scenario(instance: Instance) -> None:
        assert await instance.counted("infless_batch_max") == 1
        wish = b'{"batch_max": 16, "latency_target_s": 1}'
        answer = await instance.ask("PUT", "/_/config", wish, metrics=True)
        assert json.loads(answer.body)["batch_max"] == 1

    run(scenario, model)


def test_a_model_that_turns_out_unbatched_has_batches_of_one() -> None:
    """Warming up may show it."""

    class Single(Upper):
        def predict(self, items: list[bytes]) -> list[bytes]:
            self.batched = False
            return super().predict(items)

    async def scenario(instance: Instance) -> None:
        assert await instance.counted("infless_batch_max") == 1

    run(scenario, Single())


def test_a_stopping_instance_says_so() -> None:
    """Health and readiness fail first, so that nobody new is sent here."""

    async def scenario(instance: Instance) -> None:
        instance.watchdog.accepting = False
        assert (await instance.ask("GET", "/_/health")).status == 503
        assert (await instance.ask("GET", "/_/ready")).status == 503
        assert (await instance.ask("POST", "/", b"a")).body == b"A"

    run(scenario)


def test_a_handler_that_cannot_be_closed_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """Its words are in the log."""

    async def scenario(instance: Instance) -> None:
        assert (await instance.ask("POST", "/", b"a")).body == b"A"

    run(scenario)
    assert "close() in handler.py failed" in caplog.text
