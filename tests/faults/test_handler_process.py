"""A handler in a process of its own: what it may do, and that the instance serves on. Nothing of it is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from infless_watchdog.calls import Call, Head, LoadError, Reply
from infless_watchdog.handler_models import PredictModel
from infless_watchdog.handler_process import HandlerProcess
from infless_watchdog.handlers import load_model
from infless_watchdog.isolation import ItemError, Run, run_isolated
from infless_watchdog.settings import Settings

Load = Callable[..., Any]
Start = Callable[..., Any]
JSON = Head("POST", headers=[(b"content-type", b"application/json")])
OCTETS = Head("POST", headers=[(b"content-type", b"application/octet-stream")])

TROUBLE = """
import ctypes, os, sys, time

def preprocess(item):
    if item == "bad":
        raise ValueError("no such thing")
    return item

def predict(batch):
    for item in batch:
        match item:
            case "segfault":
                ctypes.string_at(0)
            case "exit":
                os._exit(3)
            case "raise":
                raise KeyError("k")
            case "memory":
                if len(batch) > 1:
                    raise MemoryError
            case "hang":
                time.sleep(600)
            case "read":
                return [sys.stdin.read()] * len(batch)
            case "quit":
                sys.exit()
            case "child":
                import subprocess
                subprocess.Popen(["sleep", "600"])
    return [{"pid": os.getpid()} if item == "pid" else (item, len(batch)) for item in batch]

def postprocess(answer):
    return answer if isinstance(answer, (dict, str)) else list(answer)

def example():
    return "x"

def close():
    open(os.path.join(os.path.dirname(__file__), "closed"), "w").close()
"""


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    """Loads handlers; afterwards they are closed, and no process, thread or descriptor is left."""
    files = len(list(Path("/proc/self/fd").iterdir()))
    paths, modules, models = list(sys.path), set(sys.modules), []

    def loaded(handler: str = TROUBLE, **settings: Any) -> Any:
        folder = tmp_path / f"fn_{tmp_path.name}_{len(models)}"
        folder.mkdir()
        (folder / "handler.py").write_text(handler)
        models.append(load_model(Settings(**{"function_dir": str(folder), "handler_isolation": "process", **settings})))
        return models[-1]

    yield loaded
    for model in models:
        model.close()
    sys.path[:] = paths
    for name in set(sys.modules) - modules:
        if name.startswith("fn_"):
            del sys.modules[name]
    assert [child.cmdline() for child in psutil.Process().children() if "handler_child" in str(child.cmdline())] == []
    assert len(list(Path("/proc/self/fd").iterdir())) <= files  # a collected one of an earlier test is no leak


def run(model: Any, *words: str) -> Run:
    """One batch of JSON strings, as the batcher runs it."""
    return run_isolated(model.predict, [model.decode(Call(JSON, f'"{word}"'.encode())) for word in words])


def bodies(ran: Run) -> list[Any]:
    """Bodies of answers, status and sentence of failures."""
    return [one.body if isinstance(one, Reply) else (one.status, str(one)) for one in ran.answers]


def until(true: Callable[[], Any], what: str, timeout_s: float = 30.0) -> None:
    """Wait for something to become so."""
    ends_s = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < ends_s, f"{what} did not happen within {timeout_s} s"
        time.sleep(0.01)


# what works ----------------------------------------------------------------------------------------------------------


def test_a_batch_goes_there_and_back(load: Load) -> None:
    """One run for all of it, in another process, with the steps around it."""
    model = load()
    assert (model.kind, model.batched, model.concurrency) == ("predict", True, 1)
    assert bodies(run(model, "a", "b")) == [b'["a",2]', b'["b",2]']
    (body,) = bodies(run(model, "pid"))
    assert body != b'{"pid":%d}' % os.getpid()
    assert run_isolated(model.predict, [model.example()] * 2).exec_s is not None


def test_answers_are_those_of_a_thread(load: Load) -> None:
    """Body, type, status and headers, for either kind."""
    handler = (
        "def handle(event, context):\n"
        "    return {'statusCode': 201, 'headers': {'X-A': event.headers['x-b']}, 'body': event.query}\n"
    )
    call = Call(Head("PUT", "/p", "q=1", [(b"x-b", b"2")]), b"body")
    replies = []
    for isolation in ("process", "thread"):
        model = load(handler, handler_isolation=isolation)
        item = model.decode(Call(Head("PUT", "/p", "q=1", [(b"x-b", b"2")]), b"body"))
        replies.append(model.encode(model.predict([item])[0], item, call))
        assert (model.kind, model.batched) == ("handle", False)
    assert replies[0] == replies[1]
    assert replies[0].status == 201


def test_large_bodies_come_back_whole(load: Load) -> None:
    """100 MB there and back, then a small one."""
    model = load("def predict(batch):\n    return [item[::-1] for item in batch]\n")
    big = os.urandom(1_000_000) * 100
    for body in (big, b"abc"):
        answers = model.predict([model.decode(Call(OCTETS, body))])
        assert answers[0].body == body[::-1]


def test_users_types_need_not_travel(load: Load) -> None:
    """Hints, buckets and answers of types that only handler.py knows."""
    model = load(
        "from dataclasses import dataclass\n"
        "@dataclass\nclass Word:\n    text: str\n"
        "def bucket(item):\n    return len(item.text)\n"
        "def predict(batch: list[Word]) -> list[Word]:\n"
        "    assert len({len(w.text) for w in batch}) == 1\n    return [Word(w.text * len(batch)) for w in batch]\n"
    )
    texts = [b'{"text":"a"}', b'{"text":"bc"}', b'{"text":"d"}', b'{"word":"e"}']
    answers = run_isolated(model.predict, [model.decode(Call(JSON, text)) for text in texts]).answers
    assert [answer.body for answer in answers[:3]] == [b'{"text":"aa"}', b'{"text":"bc"}', b'{"text":"dd"}']
    assert answers[3].status == 422
    assert "Word" in str(model.openapi())


def test_what_a_handler_does_with_its_streams_harms_nobody(load: Load, capfd: pytest.CaptureFixture[str]) -> None:
    """It prints to where the watchdog prints, and reads nothing."""
    model = load("print('hello from the handler')\n" + TROUBLE)
    assert bodies(run(model, "read")) == [b""]
    assert "hello from the handler" in capfd.readouterr().out


def test_close_runs_before_the_end(load: Load, tmp_path: Path) -> None:
    """The user's own; the process is gone when it returns."""
    model = load()
    model.close()
    assert list(tmp_path.glob("*/closed"))
    assert bodies(run(model, "a")) == [(503, "the instance is stopping")]


# what fails alone ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("raise", (500, "KeyError: 'k'")),
        ("bad", (422, "ValueError: no such thing")),
        ("quit", (500, "SystemExit: ")),
        ("segfault", (500, "the handler's process died (signal 11) on this request")),
        ("exit", (500, "the handler's process died (exit code 3) on this request")),
    ],
)
def test_one_bad_item_fails_alone(load: Load, word: str, answer: tuple[int, str]) -> None:
    """Its batch-mates get true answers, and so does the next batch."""
    model = load()
    found = bodies(run(model, *"abcdef", word, "g"))
    assert found.pop(6) == answer
    assert all(isinstance(body, bytes) for body in found)
    assert bodies(run(model, "a")) == [b'["a",1]']
    assert model.restarts == (4 if "died" in answer[1] else 0)


def test_a_failure_says_where_in_the_handler(load: Load) -> None:
    """The traceback of the other process is the cause."""
    (fault,) = run(load(), "raise").answers
    assert 'handler.py", line' in str(fault.__cause__)


def test_a_batch_without_memory_is_halved(load: Load) -> None:
    """And the batcher learns what fits."""
    ran = run(load(), "memory", "a", "b", "c")
    assert ran.fits is not None
    assert all(isinstance(body, bytes) for body in bodies(ran))


@pytest.mark.parametrize(
    ("handler", "sentence"),
    [
        ("def predict(batch):\n    return batch[1:]\n", "returned 1 answers for a batch of 2 requests"),
        ("def predict(batch):\n    return {}\n", "must return a list with one answer per request; it returned dict"),
        ("def predict(batch):\n    return [object()] * len(batch)\n", "cannot be written as JSON"),
        ("def predict(batch):\n    return [iter('ab') for _ in batch]\n", "in pieces needs handler_isolation=thread"),
    ],
)
def test_answers_that_are_none_are_500(load: Load, handler: str, sentence: str) -> None:
    """With the sentences that a thread gives."""
    for status, said in bodies(run(load(handler), "a", "b")):
        assert status == 500
        assert sentence in said


def test_a_handler_that_dies_on_everything_is_not_started_for_ever(load: Load) -> None:
    """About log2(b) times for a batch of b; what is left is answered 503."""
    model = load("import os\ndef predict(batch):\n    os._exit(1)\n")
    found = bodies(run(model, *"abcdefgh"))
    assert found[0] == (500, "the handler's process died (exit code 1) on this request")
    assert found[1:] == [(503, "the handler's process died 5 times on this batch (exit code 1); try again")] * 7
    assert model.restarts == 5


# what hangs ----------------------------------------------------------------------------------------------------------


def test_a_run_that_hangs_is_ended(load: Load) -> None:
    """Its batch gets 504, with whatever it had started; the next is served by a new process."""
    model = load(exec_timeout_s=0.5)
    with ThreadPoolExecutor(1) as thread:
        before = set(_sleepers())
        hanging = thread.submit(run, model, "a", "child", "hang")
        until(lambda: set(_sleepers()) - before, "the child of the handler")
        model.interrupt()
        assert bodies(hanging.result(30)) == [(504, "the handler did not answer within exec_timeout, 0.5 s")] * 3
    until(lambda: not set(_sleepers()) - before, "the end of the handler's child")
    assert bodies(run(model, "a")) == [b'["a",1]']
    assert model.restarts == 1


def test_an_interrupt_between_runs_changes_nothing(load: Load) -> None:
    """The run had ended in the meantime."""
    model = load()
    (first,) = bodies(run(model, "pid"))
    model.interrupt()
    assert bodies(run(model, "pid")) == [first]


def test_a_process_that_ends_between_runs_costs_no_request(load: Load) -> None:
    """Nobody is told that their request killed it."""
    model = load()
    (pid,) = (child.pid for child in psutil.Process().children() if "handler_child" in str(child.cmdline()))
    os.kill(pid, signal.SIGKILL)
    until(lambda: not model._process.lives(), "its end")
    assert bodies(run(model, "a")) == [b'["a",1]']
    assert model.restarts == 1


def test_a_process_that_cannot_start_again_is_a_503(load: Load, tmp_path: Path) -> None:
    """With the reason; it is tried again for the next batch."""
    model = load()
    (handler,) = tmp_path.glob("*/handler.py")
    handler.write_text("raise OSError('weights are gone')\n")
    found = bodies(run(model, "exit", "a"))
    assert [status for status, _ in found] == [503, 503]
    assert "cannot be started again" in found[0][1]
    assert "OSError: weights are gone (handler.py, line 1)" in found[0][1]
    handler.write_text(TROUBLE)
    assert bodies(run(model, "a")) == [b'["a",1]']


def test_a_machine_that_starts_no_process_is_a_503(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """No descriptor is lost over it, and it is tried again."""
    model = load()

    def refuse(*arguments: Any, **more: Any) -> Any:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", refuse)
        assert bodies(run(model, "exit"))[0][0] == 500
        assert "cannot be started again: [Errno 11]" in bodies(run(model, "a"))[0][1]
    assert bodies(run(model, "a")) == [b'["a",1]']


def test_close_does_not_wait_for_a_run(load: Load) -> None:
    """Whoever stops the instance has waited long enough."""
    model = load()
    with ThreadPoolExecutor(1) as thread:
        hanging = thread.submit(run, model, "hang")
        until(lambda: model._under_way, "the run")
        model.close()
        ((status, _),) = bodies(hanging.result(30))
        assert status in (500, 503)


def _sleepers() -> list[int]:
    return [one.pid for one in psutil.process_iter(["cmdline"]) if one.info["cmdline"] == ["sleep", "600"]]


# loading -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("handler", "sentence"),
    [
        ("import no_such_package\n", r"handler\.py cannot be imported: ModuleNotFoundError"),
        ("def load():\n    raise OSError('no weights')\ndef predict(b): ...\n", r"raised OSError: no weights \(handler\.py, line 2\)"),
        ("x = 1\n", r"defines neither predict\(batch\) nor handle\(event, context\)"),
        ("import os\nos._exit(7)\n", r"died while it loaded \(exit code 7\)"),
        ("def handle(e, c):\n    yield 1\n", r"is a generator: an answer in pieces needs handler_isolation=thread"),
        ("async def handle(e, c): ...\n", r"is async: many requests at once need handler_isolation=thread"),
    ],
)  # fmt: skip
def test_what_cannot_be_loaded_is_one_sentence(load: Load, handler: str, sentence: str) -> None:
    """The same as from a thread."""
    with pytest.raises(LoadError, match=sentence) as caught:
        load(handler)
    assert "\n" not in str(caught.value)


LOOP = "def work(n):\n    return sum(i * i for i in range(n))\ndef predict(batch):\n    work(2_000_000)\n"
MATRICES = (
    "import numpy\nA = numpy.ones((700, 700), numpy.float32)\n"
    "def predict(batch):\n    for _ in range(4):\n        A @ A\n"
)
ANSWER = "    return batch\ndef example():\n    return 1\n"


def test_auto_moves_a_handler_that_holds_the_lock(
    load: Load, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one line that says so, and how not to load it twice; nothing of it stays here."""
    caplog.set_level("INFO")
    # Where many want a processor, waiting for one hides the wait for the lock, and the handler may stay.
    monkeypatch.setattr("infless_watchdog.gil._unscheduled_s", lambda: 0.0)
    model = load(LOOP + ANSWER, handler_isolation="auto", batch_max=2)
    assert isinstance(model, HandlerProcess)
    assert bodies(run(model, "a")) == [b"a"]
    (line,) = [record.message for record in caplog.records if "process" in record.message]
    assert "handler_isolation=process saves loading it twice" in line
    assert not [name for name in sys.modules if name.startswith("fn_test_auto_moves")]


@pytest.mark.parametrize(
    "handler",
    [
        pytest.param(MATRICES + ANSWER, id="numpy"),
        pytest.param("import time\ndef predict(batch):\n    time.sleep(0.05)\n" + ANSWER, id="sleep"),
        pytest.param("def predict(batch):\n" + ANSWER, id="brief"),
        pytest.param(LOOP + "    return batch\n", id="no example"),
        pytest.param(LOOP + "    return [iter('a') for _ in batch]\ndef example():\n    return 1\n", id="stream"),
        pytest.param("def predict(batch):\n    raise OSError\ndef example():\n    return 1\n", id="fails"),
    ],
)
def test_auto_leaves_the_others_in_a_thread(load: Load, handler: str) -> None:
    """Those that give way, those that are soon over, and those that nobody can judge."""
    assert isinstance(load(handler, handler_isolation="auto", batch_max=2), PredictModel)


# the end of the watchdog ---------------------------------------------------------------------------------------------

HOLDS_ON = """
import os
def predict(batch):
    if batch == ["fork"] and not os.fork():
        while True:
            pass
    print("busy", os.getpid(), flush=True)
    while batch == ["spin"]:
        sum(range(10**9))  # in C: no other thread of this process gets a turn
    return batch
"""
PARENT = """
import sys
from infless_watchdog.calls import Call, Head
from infless_watchdog.handlers import load_model
from infless_watchdog.settings import Settings
model = load_model(Settings(function_dir=sys.argv[1], handler_isolation="process"))
for word in sys.argv[2:]:
    model.predict([model.decode(Call(Head("POST"), word.encode()))])
"""


def test_a_busy_handler_dies_with_a_killed_watchdog(tmp_path: Path) -> None:
    """Whatever its threads are doing, and with what it has forked."""
    (tmp_path / "fn").mkdir()
    (tmp_path / "fn" / "handler.py").write_text(HOLDS_ON)
    arguments = [sys.executable, "-c", PARENT, str(tmp_path / "fn"), '"fork"', '"spin"']
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as watchdog:
        assert watchdog.stdout is not None
        for _ in range(2):
            assert watchdog.stdout.readline().startswith("busy")
        family = psutil.Process(watchdog.pid).children(recursive=True)
        assert len(family) == 2
        watchdog.kill()
    _, left = psutil.wait_procs(family, timeout=30)
    assert left == []


def test_an_instance_serves_through_crashes_and_hangs(start: Start) -> None:
    """Over HTTP, by setting: the worker stays, its handler's process is replaced."""
    watchdog = start(handler_isolation="process", exec_timeout="5s", latency_target="50ms")
    workers = watchdog.workers()
    died = watchdog.post("die")
    assert (died.status_code, died.text) == (500, "the handler's process died (signal 9) on this request\n")
    assert watchdog.post("echo", 1).json() == {"value": 1, "batch": 1}
    with ThreadPoolExecutor(3) as threads:
        hanging = threads.submit(watchdog.post, "hang")
        watchdog.until(lambda: watchdog.metric("http_requests_in_flight") == 1, "the run")
        time.sleep(2.0)  # it must not be overdue itself when the other one has been ended and the process replaced
        waiting = threads.submit(watchdog.post, "echo", 2)
        assert hanging.result().status_code == 504
        assert waiting.result().json()["value"] == 2
    assert watchdog.workers() == workers
    assert watchdog.stop() == 0
    watchdog.until(lambda: not watchdog.members(), "the end of its processes")


def test_a_stream_arrives_piece_by_piece(start: Start) -> None:
    """The second piece is made after the first has arrived."""
    watchdog = start(
        "import os, time\n"
        "async def handle(event, context):\n"
        "    yield 'one'\n"
        "    while not os.path.exists('open'):\n        time.sleep(0.002)\n"
        "    yield {'n': 2}\n"
    )
    with requests.post(watchdog.url, stream=True, timeout=30) as answer:
        pieces = answer.iter_content(None)
        assert next(pieces) == b"one"
        watchdog.gate.touch()
        assert b"".join(pieces) == b'{"n":2}\n'


def test_threads_do_not_pile_up(load: Load) -> None:
    """Dying and hanging again and again leaves what there was."""
    model = load()
    before = threading.active_count()
    for _ in range(3):
        run(model, "exit")
    assert threading.active_count() <= before  # one of an earlier test may have ended meanwhile
    assert isinstance(run(model, "exit").answers[0], ItemError)
