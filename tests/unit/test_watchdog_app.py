"""Every route of an instance, in-process, on a model of three lines."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

import pytest
from fake_model import FakeModel
from hurried_clock import HurriedLoop, forward

from infless_watchdog.app import Watchdog
from infless_watchdog.calls import Call, Reply
from infless_watchdog.isolation import ItemError
from infless_watchdog.settings import Settings


class Upper(FakeModel):
    """Some bodies are refused, or break the reader or the writer."""

    def decode(self, call: Call) -> bytes:
        """The body; an empty one is refused, a strange one breaks the reader."""
        if not call.body:
            raise ItemError(422, "nothing to do")
        if call.body == b"strange":
            raise ZeroDivisionError("no idea")
        return call.body

    def encode(self, answer: bytes, item: bytes, call: Call) -> Reply:
        """As it is; one answer breaks the writer."""
        if answer == b"UNWRITABLE":
            raise ZeroDivisionError("no idea")
        return Reply(body=answer)

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

    async def ask(
        self, method: str, path: str, body: bytes = b"", *, metrics: bool = False, fields: Sequence[str] = ()
    ) -> Answer:
        """One request on a connection of its own."""
        reader, writer = await asyncio.open_connection(*self.sockets[metrics].getsockname())
        lines = ["Host: x", "Connection: close", f"Content-Length: {len(body)}", *fields]
        writer.write("\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode() + body)
        async with asyncio.timeout(30):
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

    with asyncio.Runner(loop_factory=HurriedLoop) as runner:
        runner.run(play())


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
        ("GET", "/v2/health/live", 200, b'{"live": true}'),
        ("GET", "/v2/health/ready", 200, b'{"ready": true}'),
        ("GET", "/v2/models/f", 200, b'{"name": "f"'),
        ("GET", "/v2/models/f/ready", 200, b'{"name": "f", "ready": true}'),
        ("GET", "/v2/models/f/versions/1/ready", 200, b"ready"),
        ("POST", "/v2/models/f/infer", 200, b"ABC"),
        ("POST", "/v2/models/f/versions/1/infer", 200, b"ABC"),
        ("POST", "/v2/models/g/infer", 404, b'{"error": "the model is f, not g"}'),
        ("POST", "/v2/models/f/train", 404, b"is not a route of the inference protocol"),
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
        assert instance.watchdog.pipeline is not None
        assert 0 < instance.watchdog.pipeline.batcher._queue(None).times.estimate_s(8) < 1

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


# what came with issue 3 -----------------------------------------------------------------------------------------------


def test_preparing_and_finishing_are_beside_the_batch() -> None:
    """Each item by itself, in other threads than the model's; what they raise is their item's own."""
    threads: dict[str, str] = {}

    class Dressed(FakeModel):
        def prepare(self, item: bytes) -> bytes:
            threads["prepare"] = threading.current_thread().name
            if item == b"bad":
                raise ValueError("no")
            return b"<" + item

        def predict(self, items: list[bytes]) -> list[bytes]:
            threads["predict"] = threading.current_thread().name
            return super().predict(items)

        def finish(self, answer: bytes) -> bytes:
            threads["finish"] = threading.current_thread().name
            return answer + b">"

    async def scenario(instance: Instance) -> None:
        good, bad = await asyncio.gather(instance.ask("POST", "/", b"a"), instance.ask("POST", "/", b"bad"))
        assert (good.body, bad.status, bad.body) == (b"<A>", 422, b"ValueError: no\n")
        assert threads["predict"].startswith("model")
        assert threads["prepare"].startswith("prepare")
        assert threads["finish"].startswith("prepare")

    run(scenario, Dressed())


def test_preparing_that_hangs_is_answered_and_ends_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread cannot be ended; who waits for it is not forgotten."""
    gate, ended = threading.Event(), threading.Event()
    monkeypatch.setattr("os._exit", lambda _: ended.set())

    class Stuck(FakeModel):
        def prepare(self, item: bytes) -> bytes:
            assert item == b"x" or gate.wait(5)
            return item

    async def scenario(instance: Instance) -> None:
        assert (await instance.ask("POST", "/", b"abc")).status == 504
        assert await asyncio.to_thread(ended.wait, 5)
        gate.set()

    run(scenario, Stuck(), exec_timeout_s=0.02)


class Streaming(FakeModel):
    """Answers in pieces; `closed` once nobody wants any more."""

    def __init__(self) -> None:
        self.closed = threading.Event()

    def predict(self, items: list[bytes]) -> list[Any]:
        """One generator an item."""
        return [self.pieces(item) for item in items]

    def pieces(self, item: bytes) -> Iterator[bytes]:
        """One for each byte; `!` breaks."""
        try:
            for octet in item:
                if octet == ord("!"):
                    raise KeyError("broken")
                yield bytes([octet])
        finally:
            self.closed.set()

    def encode(self, answer: Any, item: bytes, call: Call) -> Reply:
        """Chunked."""
        return Reply(chunks=answer, content_type=b"text/event-stream")


def test_an_answer_in_pieces_is_streamed() -> None:
    """Chunked, in order, with the model's content type."""

    async def scenario(instance: Instance) -> None:
        answer = await instance.ask("POST", "/", b"abc")
        assert answer.status == 200
        assert b"text/event-stream" in answer.head
        assert answer.body == b"1\r\na\r\n1\r\nb\r\n1\r\nc\r\n0\r\n\r\n"

    run(scenario, Streaming())


def test_a_stream_that_breaks_is_cut() -> None:
    """The client must see that it is not whole: the last chunk never comes. The instance goes on."""

    async def scenario(instance: Instance) -> None:
        answer = await instance.ask("POST", "/", b"ab!c")
        assert answer.body == b"1\r\na\r\n1\r\nb\r\n"
        assert (await instance.ask("POST", "/", b"d")).body.endswith(b"0\r\n\r\n")

    run(scenario, Streaming())


def test_a_stream_that_nobody_reads_is_closed() -> None:
    """The handler's generator is told."""
    model = Streaming()

    async def scenario(instance: Instance) -> None:
        _, writer = await asyncio.open_connection(*instance.sockets[0].getsockname())
        body = bytes(1_000_000)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.transport.abort()
        assert await asyncio.to_thread(model.closed.wait, 5)

    run(scenario, model)


def test_a_compressed_body_is_unpacked() -> None:
    """Whatever the model; a coding that nobody knows is refused."""

    async def scenario(instance: Instance) -> None:
        packed = await instance.ask("POST", "/", gzip.compress(b"abc"), fields=["Content-Encoding: gzip"])
        strange = await instance.ask("POST", "/", b"abc", fields=["Content-Encoding: zip"])
        assert (packed.body, strange.status) == (b"ABC", 415)
        assert await instance.counted("http_requests_total") == await instance.counted(
            "infless_requests_received_total"
        )

    run(scenario)


def test_a_large_text_is_compressed_for_who_accepts_it() -> None:
    """And left alone for everybody else."""

    async def scenario(instance: Instance) -> None:
        body = b"abc" * 1000
        packed = await instance.ask("POST", "/", body, fields=["Accept-Encoding: gzip"])
        plain = await instance.ask("POST", "/", body)
        assert gzip.decompress(packed.body) == plain.body == body.upper()

    run(scenario, compress_min_bytes=1000)


@pytest.mark.parametrize(
    ("wish", "status", "words"),
    [
        ({"batch_max": 2, "latency_target_s": 1, "wait_max_s": 0.5}, 200, '"batch_max": 2'),
        ({"batch_max": 2, "latency_target_s": 1, "cpu_cores": 2}, 200, '"cpu_cores": 2'),
        ({"batch_max": 0, "latency_target_s": 1}, 400, "batch_max is a whole number of at least 1, not 0"),
        ({"batch_max": 1, "latency_target_s": 0}, 400, "latency_target_s is above 0 and at most 3600, not 0"),
        ({"batch_max": 1, "latency_target_s": 1, "wait_max_s": -1}, 400, "wait_max_s is from 0 to 3600, not -1"),
        ({"batch_max": 1, "latency_target_s": 1, "cpu_cores": 0}, 400, "cpu_cores is a whole number of at least 1"),
        ([], 400, "send batch_max and latency_target_s as JSON"),
        ({"batch_max": 1}, 400, "latency_target_s"),
    ],
)
def test_what_the_provider_may_change(wish: Any, status: int, words: str) -> None:
    """Batch, target, wait and threads, or a sentence that says what is allowed."""

    async def scenario(instance: Instance) -> None:
        answer = await instance.ask("PUT", "/_/config", json.dumps(wish).encode(), metrics=True)
        assert (answer.status, words in answer.body.decode()) == (status, True), answer.body

    run(scenario)


def test_batches_are_counted_with_the_cores_they_had() -> None:
    """Whoever learns execution times from them must not mix what ran before a change with what ran after."""

    async def scenario(instance: Instance) -> None:
        for cores in (2, 3):
            wish = {"batch_max": 1, "latency_target_s": 1, "cpu_cores": cores}
            await instance.ask("PUT", "/_/config", json.dumps(wish).encode(), metrics=True)
            await instance.ask("POST", "/", b"a")
        text = (await instance.ask("GET", "/metrics", metrics=True)).body.decode()
        for cores in (2, 3):
            given = f'batch="1",cpu_cores="{cores}",gpu_percent="0"'
            assert f"infless_batch_exec_seconds_count{{{given}}} 1.0" in text

    run(scenario)


def test_threads_that_cannot_be_changed_stay() -> None:
    """The provider is told why."""

    class Fixed(FakeModel):
        def set_cpu_cores(self, cpu_cores: int) -> None:
            raise RuntimeError("welded")

    async def scenario(instance: Instance) -> None:
        wish = b'{"batch_max": 1, "latency_target_s": 1, "cpu_cores": 4}'
        answer = await instance.ask("PUT", "/_/config", wish, metrics=True)
        assert (answer.status, answer.body) == (500, b"cpu_cores could not be changed to 4: welded\n")
        assert (await instance.ask("POST", "/", b"a")).body == b"A"

    run(scenario, Fixed())


def test_readiness_can_be_the_handlers_own() -> None:
    """of-watchdog's `ready_path`: the handler is asked there, and its status counts."""

    class Handle(FakeModel):
        kind = "handle"

        def encode(self, answer: Any, item: Any, call: Call) -> Reply:
            return Reply(status=418 if call.head.path == "/am-i-ready" else 200)

    async def scenario(instance: Instance) -> None:
        assert (await instance.ask("GET", "/_/ready")).status == 418
        assert (await instance.ask("GET", "/")).status == 200

    run(scenario, Handle(), ready_path="/am-i-ready")


def test_a_device_that_is_not_there_shows_in_the_metrics() -> None:
    """The model runs on the CPU though a GPU was asked for."""

    async def scenario(instance: Instance) -> None:
        assert await instance.counted("infless_device_fallback") == 1

    run(scenario, model_device="cuda")


class Small(FakeModel):
    """Has room for batches of two."""

    def predict(self, items: list[bytes]) -> list[bytes]:
        """Too large a batch raises."""
        if len(items) > 2:
            raise MemoryError
        return super().predict(items)


def test_an_instance_starts_though_its_largest_batch_does_not_fit() -> None:
    """The limit that warming up finds stays, whatever the provider wishes later."""

    async def scenario(instance: Instance) -> None:
        assert await instance.counted("infless_batch_max") == 2
        wish = b'{"batch_max": 8, "latency_target_s": 1}'
        answer = await instance.ask("PUT", "/_/config", wish, metrics=True)
        assert json.loads(answer.body)["batch_max"] == 2

    run(scenario, Small(), batch_max=8)


def test_an_example_that_cannot_be_copied_is_no_obstacle() -> None:
    """Locks, open files, generators: real requests may well work."""

    class Locked(FakeModel):
        def example(self) -> Any:
            return threading.Lock()

        def predict(self, items: list[Any]) -> list[bytes]:
            return [b"fine" for _ in items]

    async def scenario(instance: Instance) -> None:
        assert (await instance.ask("POST", "/", b"a")).body == b"fine"

    run(scenario, Locked())


@pytest.mark.parametrize("error", [StopIteration, SystemExit, KeyError])
def test_whatever_preparing_raises_is_answered(error: type[BaseException]) -> None:
    """Also what no future can carry."""

    class Broken(FakeModel):
        def prepare(self, item: bytes) -> bytes:
            if item == b"bad":
                raise error("no")
            return item

    async def scenario(instance: Instance) -> None:
        assert (await instance.ask("POST", "/", b"bad")).status == 500
        assert (await instance.ask("POST", "/", b"a")).body == b"A"

    run(scenario, Broken())


def test_a_backlog_before_preparing_is_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits too long for a free thread gets 504; the threads work, so the worker stays."""
    ended, permits = threading.Event(), threading.Semaphore(10)
    monkeypatch.setattr("os._exit", lambda _: ended.set())

    class Slow(FakeModel):
        def prepare(self, item: bytes) -> bytes:
            if item != b"x":
                assert permits.acquire(timeout=30)
            return item

    async def scenario(instance: Instance) -> None:
        asking = [asyncio.ensure_future(instance.ask("POST", "/", b"a")) for _ in range(40)]
        async with asyncio.timeout(30):
            while sum(one.done() for one in asking) < 10 or instance.watchdog.metrics.in_flight < 30:
                await asyncio.sleep(0.001)
        await forward(21)
        statuses = Counter(answer.status for answer in await asyncio.gather(*asking))
        assert statuses == {200: 10, 504: 30}
        permits.release(30)
        assert (await instance.ask("POST", "/", b"a")).status == 200
        await forward(1)  # an end would come a moment later
        assert not ended.is_set()

    run(scenario, Slow(), exec_timeout_s=20)


def test_threads_that_cannot_be_changed_in_time_end_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else no batch would ever begin again."""
    gate, ended = threading.Event(), threading.Event()
    monkeypatch.setattr("os._exit", lambda _: ended.set())

    class Stuck(FakeModel):
        def set_cpu_cores(self, cpu_cores: int) -> None:
            gate.wait(5)

    async def scenario(instance: Instance) -> None:
        wish = b'{"batch_max": 1, "latency_target_s": 1, "cpu_cores": 4}'
        asking = asyncio.ensure_future(instance.ask("PUT", "/_/config", wish, metrics=True))
        assert await asyncio.to_thread(ended.wait, 5)
        gate.set()
        await asking

    run(scenario, Stuck(), exec_timeout_s=0.02)


def test_an_unpacked_body_is_not_called_packed_any_more() -> None:
    """A handler that looks at the headers would unpack it again."""

    class Told(FakeModel):
        def encode(self, answer: Any, item: Any, call: Call) -> Reply:
            return Reply(body=repr(sorted(name for name, _ in call.head.headers)).encode())

    async def scenario(instance: Instance) -> None:
        answer = await instance.ask("POST", "/", gzip.compress(b"abc"), fields=["Content-Encoding: gzip"])
        assert answer.body == b"[b'connection', b'host']"

    run(scenario, Told())


def test_readiness_asked_by_head_has_no_body() -> None:
    """The handler is asked as the client asked."""

    class Handle(FakeModel):
        kind = "handle"

        def encode(self, answer: Any, item: Any, call: Call) -> Reply:
            return Reply(body=f"{call.head.method} {call.head.path} {call.head.query}".encode())

    async def scenario(instance: Instance) -> None:
        assert (await instance.ask("HEAD", "/_/ready")).body == b""
        assert (await instance.ask("GET", "/_/ready")).body == b"GET /ok q=1"

    run(scenario, Handle(), ready_path="/ok?q=1")
