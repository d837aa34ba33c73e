"""The watchdog as a process, and what can go wrong around it. Afterwards it serves, and the books balance."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

Start = Callable[..., Any]


@pytest.fixture
def threads() -> Any:
    """Many clients at once."""
    with ThreadPoolExecutor(max_workers=64) as pool:
        yield pool


def together(watchdog: Any, threads: ThreadPoolExecutor, *items: tuple[Any, Any]) -> list[Future[requests.Response]]:
    """Requests that form one batch: they queue while another one holds the model."""
    holder = held(watchdog, threads)
    futures = [threads.submit(watchdog.post, *item) for item in items]
    watchdog.until(lambda: waiting(watchdog) == len(items) + 1, "all requests")
    watchdog.gate.touch()
    assert holder.result().status_code == 200
    return futures


def held(watchdog: Any, threads: ThreadPoolExecutor) -> Future[requests.Response]:
    """A request that holds the model until the gate is opened."""
    watchdog.gate.unlink(missing_ok=True)
    holder = threads.submit(watchdog.post, "gate")
    watchdog.until(lambda: waiting(watchdog) == 1, "the first request")
    return holder


def waiting(watchdog: Any) -> int:
    """Requests not yet answered."""
    return int(watchdog.metric("http_requests_in_flight"))


# a batch -------------------------------------------------------------------------------------------------------------


def test_one_bad_item_fails_alone(start: Start, threads: ThreadPoolExecutor) -> None:
    """Its batch-mates get their answers; the log has the line of the handler that raised."""
    watchdog = start()
    items = [("echo", n) for n in range(8)] + [("raise", 0), ("value error", 0)]
    answers = [future.result() for future in together(watchdog, threads, *items)]
    assert [answer.status_code for answer in answers] == [200] * 8 + [500, 422]
    assert [answer.json()["value"] for answer in answers[:8]] == list(range(8))
    assert answers[8].text == "RuntimeError: this item is bad\n"
    assert re.search(r'handler\.py", line \d+, in predict', watchdog.log)


def test_a_wrong_number_of_answers_fails_its_batch_only(start: Start, threads: ThreadPoolExecutor) -> None:
    """With a sentence that says how many came; the next batch is served."""
    watchdog = start()
    answers = [future.result() for future in together(watchdog, threads, ("echo", 1), ("lose one", 0), ("echo", 2))]
    assert [answer.status_code for answer in answers] == [500] * 3
    assert "returned 2 answers for a batch of 3 requests" in answers[0].text
    assert watchdog.post("echo", 5).json() == {"value": 5, "batch": 1}


def test_an_answer_that_is_no_json_is_a_500(start: Start) -> None:
    """NaN from a model is not sent as if it were a number."""
    watchdog = start()
    answer = watchdog.post("nan")
    assert answer.status_code == 500
    assert "cannot be written as JSON" in answer.text


def test_a_client_that_leaves_mid_batch_harms_nobody(start: Start, threads: ThreadPoolExecutor) -> None:
    """Whether it waits or its item runs: the others are answered, and it is counted."""
    watchdog = start()
    with send(watchdog, {"do": "gate"}), send(watchdog, {"do": "echo", "value": 0}):
        watchdog.until(lambda: waiting(watchdog) == 2, "both clients")
        futures = [threads.submit(watchdog.post, "echo", n) for n in range(4)]
        watchdog.until(lambda: waiting(watchdog) == 6, "all requests")
    watchdog.until(lambda: waiting(watchdog) == 4, "their leaving")
    watchdog.gate.touch()
    assert [future.result().json() for future in futures] == [{"value": n, "batch": 4} for n in range(4)]
    assert watchdog.metric("infless_clients_gone_total") == 2
    assert waiting(watchdog) == 0


def send(watchdog: Any, item: Any) -> socket.socket:
    """A whole request on a connection of its own; closing it leaves without the answer."""
    client = socket.create_connection(("127.0.0.1", watchdog.port))
    body = json.dumps(item).encode()
    client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    return client


# loading -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        ("import no_such_package\n", "cannot be imported: ModuleNotFoundError: No module named 'no_such_package'"),
        ("def load():\n    raise OSError('no weights')\ndef predict(b): ...\n", "load() in "),
        ("x = 1\n", "defines neither predict(batch) nor handle(event, context)"),
        ("import os\ndef load():\n    os._exit(5)\ndef predict(b): ...\n", "the worker died before it could serve"),
        (
            "import os\ndef load():\n    os.kill(os.getpid(), 9)\ndef predict(b): ...\n",
            "the worker died before it could",
        ),
    ],
)
def test_what_cannot_be_loaded_ends_the_process(start: Start, handler: str, words: str) -> None:
    """With an exit code, and a sentence for its author in the log; it is not tried for ever."""
    watchdog = start(handler, ready=False)
    assert watchdog.process.wait(30) != 0
    assert words in watchdog.log
    assert "Traceback" not in watchdog.log


def test_wrong_settings_end_the_process(start: Start, tmp_path: Path) -> None:
    """All of them are in the log file, although it ended a moment later."""
    log = tmp_path / "instance.log"
    watchdog = start(ready=False, batch_max="many", latency_target="soon", log_file=str(log))
    assert watchdog.process.wait(30) == 1
    assert re.findall(r"Z .*environment variable (\w+)", log.read_text()) == ["batch_max", "latency_target"]


def test_a_taken_port_ends_the_process(tmp_path: Path) -> None:
    """At once, with the port in the sentence."""
    with socket.create_server(("0.0.0.0", 0)) as taken:
        environment = {**os.environ, "port": str(taken.getsockname()[1])}
        done = subprocess.run(
            [sys.executable, "-m", "infless_watchdog"],
            env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert f"port {environment['port']} cannot be listened on: Address already in use" in done.stderr


GATED_LOAD = (
    "import os, time\ndef load():\n    while not os.path.exists('open'):\n        time.sleep(0.01)\n"
    "def predict(batch):\n    return batch\n"
)


def test_it_is_not_ready_until_the_model_is_loaded(start: Start) -> None:
    """Alive, not ready, and a request says why; then ready."""
    watchdog = start(GATED_LOAD, ready=False)
    watchdog.until(lambda: watchdog.status("/_/health") == 200, "health")
    assert watchdog.status("/_/ready") == 503
    answer = requests.post(watchdog.url, json=1, timeout=30)
    assert (answer.status_code, answer.text) == (503, "the model is still loading\n")
    assert watchdog.status("/metrics", watchdog.metrics_url) == 200
    watchdog.gate.touch()
    watchdog.until_ready()
    assert requests.post(watchdog.url, json=1, timeout=30).json() == 1


def test_a_failing_example_is_no_reason_not_to_serve(start: Start) -> None:
    """It is for warming up only; the log tells."""
    watchdog = start("def predict(batch):\n    return batch\ndef example():\n    raise KeyError('sample')\n")
    assert requests.post(watchdog.url, json=1, timeout=30).json() == 1
    assert "example() in handler.py raised KeyError" in watchdog.log


def test_the_runtime_reports_to_nobody(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """The telemetry of onnxruntime is off before a handler can import it."""
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    watchdog = start("import os\nV = os.environ['ORT_DISABLE_TELEMETRY']\ndef predict(b):\n    return [V] * len(b)\n")
    assert requests.post(watchdog.url, json=1, timeout=30).text == "1"


# ending --------------------------------------------------------------------------------------------------------------


def test_sigterm_answers_what_is_in_flight(start: Start, threads: ThreadPoolExecutor) -> None:
    """What runs, what waits, and a request of which half has come; then exit code 0."""
    watchdog = start(batch_max="4")
    with socket.create_connection(("127.0.0.1", watchdog.port)) as half:
        half.sendall(b'POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 26\r\n\r\n{"do": "echo"')
        futures = together(watchdog, threads, *[("sleep", 0.05)] * 20)
        watchdog.process.send_signal(signal.SIGTERM)
        assert [future.result().status_code for future in futures] == [200] * 20
        half.sendall(b', "value": 3}')
        assert b'"value":3' in half.recv(10_000)
    assert watchdog.process.wait(30) == 0


def test_sigterm_is_told_to_load_balancers_first(start: Start) -> None:
    """For `healthcheck_interval` it is unhealthy and serves all the same."""
    watchdog = start(healthcheck_interval="4s")
    watchdog.process.send_signal(signal.SIGTERM)
    watchdog.until(lambda: watchdog.status("/_/health") == 503, "unhealthiness")
    assert watchdog.status("/_/ready") == 503
    assert watchdog.post("echo", 1).status_code == 200
    assert watchdog.process.wait(30) == 0


def test_sigterm_while_loading_ends_at_once(start: Start) -> None:
    """Nobody waits for a model that nobody will use."""
    watchdog = start(GATED_LOAD, ready=False)
    watchdog.until(lambda: watchdog.status("/_/health") == 200, "health")
    assert watchdog.stop() == 0


def test_sigint_ends_without_waiting(start: Start, threads: ThreadPoolExecutor) -> None:
    """Ctrl-C: who is in flight is cut."""
    watchdog = start()
    future = held(watchdog, threads)
    assert watchdog.stop(signal.SIGINT) == 0
    assert isinstance(future.exception(), requests.ConnectionError)


def test_a_worker_without_supervisor_ends(start: Start) -> None:
    """No orphan serves on."""
    watchdog = start()
    watchdog.process.kill()
    watchdog.process.wait(30)
    watchdog.until(lambda: not watchdog.members(), "the end of the worker")


def test_a_big_answer_goes_out_whole_before_the_end(start: Start, threads: ThreadPoolExecutor) -> None:
    """To a client that reads slowly, too."""
    watchdog = start(
        "import os, time\ndef predict(batch):\n    while not os.path.exists('open'):\n        time.sleep(0.002)\n"
        "    return [b'x' * 8_000_000]\n"
    )
    future = threads.submit(requests.post, watchdog.url, json=1, timeout=30, stream=True)
    watchdog.until(lambda: waiting(watchdog) == 1, "the request")
    watchdog.process.send_signal(signal.SIGTERM)
    watchdog.gate.touch()
    answer = future.result()
    time.sleep(0.3)
    assert len(answer.content) == 8_000_000
    assert watchdog.process.wait(30) == 0


# hanging and dying ---------------------------------------------------------------------------------------------------


def test_a_hanging_handler_is_replaced(start: Start, threads: ThreadPoolExecutor) -> None:
    """504 for its requests, 503 for who waited behind, and a new worker serves."""
    watchdog = start(exec_timeout="3s", batch_max="2")
    stuck = threads.submit(watchdog.post, "hang")
    watchdog.until(lambda: waiting(watchdog) == 1, "the request")
    time.sleep(1.5)  # it must not be overdue itself when the other one is
    behind = threads.submit(watchdog.post, "echo", 1)
    before = watchdog.workers()
    assert (stuck.result().status_code, behind.result().status_code) == (504, 503)
    assert "did not answer within exec_timeout, 3 s" in stuck.result().text
    watchdog.until(lambda: watchdog.workers() not in ([], before), "the replacement")
    watchdog.until_ready()
    assert watchdog.post("echo", 2).json()["value"] == 2
    assert watchdog.stop() == 0


def test_a_worker_that_dies_mid_batch_is_replaced(start: Start) -> None:
    """Its client sees the connection end; who comes while it starts again is told to try again."""
    watchdog = start()
    with pytest.raises(requests.ConnectionError):
        watchdog.post("die")
    watchdog.until(lambda: watchdog.status("/_/ready") == 200, "the replacement")
    assert watchdog.post("echo", 2).json()["value"] == 2
    assert "SIGKILL" in watchdog.log


# limits --------------------------------------------------------------------------------------------------------------


def test_a_full_queue_is_a_503_with_retry_after(start: Start, threads: ThreadPoolExecutor) -> None:
    """What waits already is served."""
    watchdog = start(queue_max="3")
    holder = held(watchdog, threads)
    queued = [threads.submit(watchdog.post, "echo", n) for n in range(3)]
    watchdog.until(lambda: waiting(watchdog) == 4, "the queue")
    refused = watchdog.post("echo", 9)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert "3 requests are waiting already" in refused.text
    watchdog.gate.touch()
    assert {future.result().status_code for future in [holder, *queued]} == {200}


def test_max_inflight_is_a_429(start: Start, threads: ThreadPoolExecutor) -> None:
    """And readiness says so, as of-watchdog's does."""
    watchdog = start(max_inflight="1")
    holder = held(watchdog, threads)
    refused = watchdog.post("echo")
    assert (refused.status_code, "max_inflight, 1, is reached" in refused.text) == (429, True)
    assert watchdog.status("/_/ready") == 429
    watchdog.gate.touch()
    assert holder.result().status_code == 200
    assert watchdog.status("/_/ready") == 200


def test_an_oversized_body_is_a_413(start: Start) -> None:
    """Said by its length, or found while counting; the client that sends on reads it all the same."""
    watchdog = start(body_max_bytes="1000")
    assert requests.post(watchdog.url, data=bytes(5_000_000), timeout=30).status_code == 413
    chunks = (bytes(100_000) for _ in range(50))
    assert requests.post(watchdog.url, data=chunks, timeout=30).status_code == 413
    assert watchdog.post("echo", 1).status_code == 200


def test_broken_json_is_a_400(start: Start) -> None:
    """With the place of the fault."""
    watchdog = start()
    for body in (b"", b"{", b'{"do": ', b"\xff\xfe"):
        answer = requests.post(watchdog.url, data=body, headers={"content-type": "application/json"}, timeout=30)
        assert (answer.status_code, answer.text[:28]) == (400, "the body is not valid JSON: ")


# reconfiguration -----------------------------------------------------------------------------------------------------


def test_it_is_reconfigured_without_a_restart(start: Start, threads: ThreadPoolExecutor) -> None:
    """The next batches are of the new size, in the same process."""
    watchdog = start(batch_max="8")
    before = watchdog.workers()
    wish = {"batch_max": 2, "latency_target_s": 0.2}
    assert requests.put(f"{watchdog.metrics_url}/_/config", json=wish, timeout=30).json() == wish
    futures = together(watchdog, threads, *[("echo", n) for n in range(6)])
    assert {future.result().json()["batch"] for future in futures} == {2}
    assert watchdog.metric("infless_batch_max") == 2
    assert watchdog.workers() == before


WRONG_WISHES = [
    b"", b"[]", b"{}", b'{"batch_max": 8}', b'{"batch_max": 0, "latency_target_s": 1}',
    b'{"batch_max": 1.5, "latency_target_s": 1}', b'{"batch_max": true, "latency_target_s": 1}',
    b'{"batch_max": 1e999, "latency_target_s": 1}', b'{"batch_max": 8, "latency_target_s": 0}',
    b'{"batch_max": 8, "latency_target_s": NaN}', b'{"batch_max": 8, "latency_target_s": "1s"}',
    b'{"batch_max": 8, "latency_target_s": 1e9}',
]  # fmt: skip


def test_a_wrong_configuration_changes_nothing(start: Start) -> None:
    """400 with a sentence; the old one holds."""
    watchdog = start()
    for wish in WRONG_WISHES:
        answer = requests.put(f"{watchdog.metrics_url}/_/config", data=wish, timeout=30)
        assert (answer.status_code, bool(answer.text.strip())) == (400, True), wish
    assert watchdog.metric("infless_batch_max") == 32


# all at once ---------------------------------------------------------------------------------------------------------

CLIENTS, REQUESTS_EACH = 40, 50


async def chaotic_client(port: int, chance: random.Random, books: dict[str, int]) -> None:
    """Requests of every kind on connections that end in every way; `books` counts what the server must have seen."""
    for _ in range(REQUESTS_EACH):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                await one_request(reader, writer, chance, books)
            finally:
                writer.close()


async def one_request(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, chance: random.Random, books: dict[str, int]
) -> None:
    """One of: good, failing, split, not JSON, too large, garbage, half, or whole and gone."""
    do = chance.choice(["echo", "echo", "echo", "sleep", "raise", "value error", "lose one"])
    body = json.dumps({"do": do, "value": 0.002}).encode()
    kind = chance.choice(["whole"] * 4 + ["split", "broken", "large", "garbage", "half", "leave", "leave"])
    body = b"{" if kind == "broken" else body
    data = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    data = {"large": b"POST / HTTP/1.1\r\nContent-Length: 9999999999\r\n\r\n", "garbage": b"?\r\n\r\n"}.get(kind, data)
    if kind == "half":
        writer.write(data[: chance.randrange(1, len(data))])
        return
    books["sent"] += 1
    if kind == "split":
        place = chance.randrange(1, len(data))
        writer.write(data[:place])
        await asyncio.sleep(0.001)
        data = data[place:]
    writer.write(data)
    await writer.drain()
    if kind == "leave":
        return
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
    status = int(head[9:12])
    books["answered"] += 1
    expected = {"broken": {400}, "large": {413}, "garbage": {400}}.get(kind, {200, 422, 500})
    books["surprises"] += status not in expected


def test_after_chaos_the_books_balance(start: Start) -> None:
    """2,000 requests of every kind: each was answered, refused or left behind, and none twice."""
    watchdog = start(body_max_bytes="100000", batch_max="8")
    books = {"sent": 0, "answered": 0, "surprises": 0}

    async def play() -> None:
        chances = [random.Random(seed) for seed in range(CLIENTS)]
        await asyncio.gather(*(chaotic_client(watchdog.port, chance, books) for chance in chances))

    asyncio.run(play())
    assert books["sent"] > 1500
    assert books["surprises"] == 0

    def accounted_for() -> int:
        return int(watchdog.metric("http_requests_total") + watchdog.metric("infless_clients_gone_total"))

    # Who sent and left at once may not have been read yet.
    watchdog.until(lambda: accounted_for() >= books["sent"], "the end of all requests")
    watchdog.until(lambda: waiting(watchdog) == 0, "the end of all requests")
    answered = watchdog.metric("http_requests_total")
    assert accounted_for() == books["sent"]
    assert books["answered"] <= answered
    assert watchdog.metric("infless_queue_length") == 0
    assert watchdog.post("echo", 7).json()["value"] == 7
    assert len(watchdog.workers()) == 1
    assert watchdog.stop() == 0
    assert not watchdog.members()
    assert not psutil.pid_exists(watchdog.process.pid)
