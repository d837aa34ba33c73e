"""From a function's folder to a model, and between requests, items and answers."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from infless_watchdog.calls import Call, Head, LoadError, Reply
from infless_watchdog.handler_models import HandleModel, PredictModel
from infless_watchdog.handlers import is_sample, load_model
from infless_watchdog.isolation import ItemError
from infless_watchdog.settings import Settings

TEMPLATE = Path(__file__).parents[2] / "templates/infless-python/function"
Load = Callable[..., Any]
EXEC_TIMEOUT_S = 0.05


class FakeTorch:
    """Knows its file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def close(self) -> None:
        """Nothing to give back."""


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    """Loads a folder of the given files; forgets their modules and paths afterwards."""
    folder = tmp_path / f"fn_{tmp_path.name}"
    folder.mkdir()
    known, paths = set(sys.modules), list(sys.path)

    models = []

    def loaded(handler: str | None = None, **files: str | bytes) -> Any:
        if handler is not None:
            (folder / "handler.py").write_text(handler)
        for name, content in files.items():
            path = folder / name.replace("_dot_", ".")
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        models.append(load_model(Settings(function_dir=str(folder), exec_timeout_s=EXEC_TIMEOUT_S)))
        return models[-1]

    yield loaded
    for model in models:
        with suppress(RuntimeError):
            model.close()
    sys.path[:] = paths
    for name in set(sys.modules) - known:
        if name.startswith(folder.name):
            del sys.modules[name]


def doubling_onnx() -> bytes:
    """`y = x + x` on rows of three."""
    spec = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "double", spec[:1], spec[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def call(body: bytes = b"", content_type: str = "application/json", **more: Any) -> Call:
    """A request as the edge hands it over."""
    headers = [(b"content-type", content_type.encode()), *more.get("headers", ())]
    return Call(Head(more.get("method", "POST"), more.get("path", "/"), more.get("query", ""), headers), body)


def answered(model: Any, answer: Any) -> Reply:
    """What is written for an answer of the handler."""
    reply = model.encode(answer, None, call())
    assert isinstance(reply, Reply)
    return reply


# which kind ----------------------------------------------------------------------------------------------------------


def test_predict_is_batched(load: Load) -> None:
    """One call of the user's function for the whole batch."""
    model = load("def predict(batch):\n    return [sum(batch)] * len(batch)\n")
    assert isinstance(model, PredictModel)
    assert model.batched
    assert model.predict([1, 2]) == [3, 3]


def test_handle_is_one_request_at_a_time(load: Load) -> None:
    """As in OpenFaaS: event and context."""
    model = load("def handle(event, context):\n    return event.body + context.hostname[:0].encode()\n")
    assert isinstance(model, HandleModel)
    assert not model.batched
    assert model.predict([model.decode(call(b"a"))]) == [b"a"]


def test_a_bare_onnx_needs_no_code(load: Load) -> None:
    """`model.onnx` alone in the folder."""
    assert load(model_dot_onnx=doubling_onnx()).kind == "onnx"


@pytest.mark.parametrize("name", ["model.pt2", "model.pt"])
def test_torchs_files_are_torchs(load: Load, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Alone, or beside the template's own handler; a handler of somebody's has the last word."""
    torch_model = ModuleType("infless_watchdog.torch_model")
    torch_model.TorchModel = lambda path, settings: FakeTorch(path)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "infless_watchdog.torch_model", torch_model)
    file = {name.replace(".", "_dot_"): b""}
    assert load(**file).path.name == name
    assert load((TEMPLATE / "handler.py").read_text(), **file).path.name == name
    assert load(PREDICT, **file).kind == "predict"


def test_the_templates_own_handler_gives_way_to_an_onnx(load: Load) -> None:
    """A dropped-in model wins as long as nobody has touched handler.py; this pins the hash to the file."""
    sample = (TEMPLATE / "handler.py").read_text()
    assert load(sample).kind == "predict"
    assert load(sample, model_dot_onnx=doubling_onnx()).kind == "onnx"


def test_a_changed_handler_wins_over_an_onnx(load: Load) -> None:
    """Then the model beside it is the handler's own business."""
    sample = (TEMPLATE / "handler.py").read_text()
    assert load(sample + "\nX = 1\n", model_dot_onnx=doubling_onnx()).kind == "predict"


def test_a_checkout_with_other_line_ends_is_the_same_sample(tmp_path: Path) -> None:
    """Git on Windows writes CRLF."""
    copy = tmp_path / "handler.py"
    copy.write_bytes((TEMPLATE / "handler.py").read_bytes().replace(b"\n", b"\r\n"))
    assert is_sample(copy)


def test_two_models_are_one_too_many(load: Load) -> None:
    """Nobody can say which one is meant; a handler can."""
    with pytest.raises(LoadError, match=r"has model\.onnx and model\.pt: keep one of them, or write a handler\.py"):
        load(model_dot_onnx=doubling_onnx(), model_dot_pt=b"")
    assert load(PREDICT).kind == "predict"


# load errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("handler", "sentence"),
    [
        (None, "has neither handler.py nor model.onnx"),
        ("x = 1\n", "handler.py defines neither predict(batch) nor handle(event, context)"),
        ("import no_such_package\n", "handler.py cannot be imported: ModuleNotFoundError: No module named"),
        ("def predict(:\n", "handler.py cannot be imported: SyntaxError: "),
        ("\n\n1 / 0\n", "cannot be imported: ZeroDivisionError: division by zero (handler.py, line 3)"),
        ("raise SystemExit(0)\n", "cannot be imported: SystemExit: 0"),
        ("def load():\n    raise OSError('no weights')\ndef predict(b): ...\n", "load() in "),
        ("def load():\n    exit(1)\ndef predict(b): ...\n", "raised SystemExit: 1 (handler.py, line 2)"),
    ],
)
def test_what_cannot_be_loaded_is_one_sentence(load: Load, handler: str | None, sentence: str) -> None:
    """It names the file and what is wrong in it."""
    with pytest.raises(LoadError) as caught:
        load(handler)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_model_is_a_load_error(load: Load) -> None:
    """Named, with the runtime's own words."""
    with pytest.raises(LoadError, match=r"model\.onnx is not a model that onnxruntime can load"):
        load(model_dot_onnx=b"<html>404</html>")


def test_load_runs_before_the_first_request(load: Load) -> None:
    """The place for weights."""
    model = load("W = []\ndef load():\n    W.append(2)\ndef predict(batch):\n    return [W[0] * n for n in batch]\n")
    assert model.predict([4]) == [8]


def test_a_librarys_load_is_not_the_users(load: Load) -> None:
    """`from joblib import load` wants a file name and is nobody's hook."""
    model = load("from json import load\nfrom glob import glob as example\ndef predict(batch): ...\n")
    assert model.example() is None


def test_a_load_of_the_functions_own_module_counts(load: Load) -> None:
    """Imported from a file beside handler.py."""
    code = "from .weights import load, predict\n"
    model = load(code, weights_dot_py="W = []\ndef load():\n    W.append(1)\ndef predict(batch):\n    return W\n")
    assert model.predict([0]) == [1]


# requests into items -------------------------------------------------------------------------------------------------

PREDICT = "def predict(batch):\n    return batch\ndef example():\n    return [1, 2]\n"


@pytest.mark.parametrize(
    ("content_type", "body", "item"),
    [
        ("application/json", b'{"a": [1]}', {"a": [1]}),
        ("text/plain", "grüß".encode(), "grüß"),
        ("image/png", b"\x89PNG", b"\x89PNG"),
        ("application/octet-stream", b"", b""),
    ],
)
def test_an_item_is_what_the_content_type_says(load: Load, content_type: str, body: bytes, item: Any) -> None:
    """Parsed JSON, str for text, bytes otherwise."""
    assert load(PREDICT).decode(call(body, content_type)) == item


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b"{"),
        ("application/json", b""),
        ("application/json", b"\xff"),
        ("application/json", b"[" * 100_000),
        ("text/plain", b"\xff"),
    ],
)
def test_a_body_that_is_not_what_it_says_is_a_400(load: Load, content_type: str, body: bytes) -> None:
    """Broken JSON, JSON nested without end, text that is none."""
    model = load(PREDICT)
    with pytest.raises(ItemError) as caught:
        model.decode(call(body, content_type))
    assert caught.value.status == 400


def test_an_event_is_openfaass(load: Load) -> None:
    """Headers in any case, the query as a dict, the path without its escapes, the body as bytes."""
    model = load("def handle(event, context): ...\n")
    headers = ((b"x-user-id", b"7"), (b"accept", b"*/*"))
    event = model.decode(call(b"{}", method="PUT", path="/a%20b", query="q=1&empty=", headers=headers))
    assert (event.method, event.path, event.body) == ("PUT", "/a b", b"{}")
    assert event.query == {"q": "1", "empty": ""}
    assert event.headers["X-User-ID"] == event.headers.get("x-user-id") == "7"
    assert dict(event.headers) == {"content-type": "application/json", "x-user-id": "7", "accept": "*/*"}


def test_an_event_belongs_to_its_request_alone(load: Load) -> None:
    """Requests of one client share a head; what a handler does to one event does not show in the next."""
    model = load("def handle(event, context): ...\n")
    request = call(b"", query="a=1")
    first, second = model.decode(request), model.decode(request)
    first.headers["X-Seen"], first.query["b"] = "1", "2"
    assert "x-seen" not in second.headers
    assert second.query == {"a": "1"}


def test_an_example_is_an_event_too(load: Load) -> None:
    """For `handle`, the user's example is the body."""
    model = load("def handle(event, context): ...\ndef example():\n    return {'a': 1}\n")
    assert model.example().body == b'{"a": 1}'


def test_without_example_nobody_knows_one(load: Load) -> None:
    """Then nothing is warmed up, and nothing measured."""
    assert load("def handle(event, context): ...\n").example() is None


# answers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "body", "content_type"),
    [
        (b"\x00\x01", b"\x00\x01", b"application/octet-stream"),
        (bytearray(b"ab"), b"ab", b"application/octet-stream"),
        ("grüß", "grüß".encode(), b"text/plain; charset=utf-8"),
        ({"a": [1, None]}, b'{"a":[1,null]}', b"application/json"),
        (None, b"null", b"application/json"),
        (np.float32(0.5), b"0.5", b"application/json"),
        ({"scores": np.arange(3)}, b'{"scores":[0,1,2]}', b"application/json"),
    ],
)
def test_an_answer_is_written_as_what_it_is(load: Load, answer: Any, body: bytes, content_type: bytes) -> None:
    """Bytes as they are, str as text, the rest as JSON, numpy included."""
    reply = answered(load(PREDICT), answer)
    assert (reply.body, reply.content_type, reply.status) == (body, content_type, 200)


@pytest.mark.parametrize("answer", [object(), float("nan"), {"x": float("inf")}, "\ud800", {(1, 2): 3}])
def test_what_cannot_be_written_is_a_500(load: Load, answer: Any) -> None:
    """With a sentence; NaN is not JSON, whatever Python says."""
    model = load(PREDICT)
    with pytest.raises(ItemError, match="cannot be written as JSON") as caught:
        model.encode(answer, None, call())
    assert caught.value.status == 500


HANDLE = "def handle(event, context): ...\n"


def test_handle_says_status_body_and_headers(load: Load) -> None:
    """The dictionary of OpenFaaS's templates."""
    reply = answered(
        load(HANDLE), {"statusCode": 201, "body": {"id": 1}, "headers": {"X-Trace": "t", "Content-Type": "a/b"}}
    )
    assert (reply.status, reply.body, reply.content_type) == (201, b'{"id":1}', b"a/b")
    assert reply.headers == ((b"x-trace", b"t"),)


@pytest.mark.parametrize("answer", [None, {"statusCode": 200}, {"statusCode": 200, "body": None}])
def test_no_body_is_an_empty_one(load: Load, answer: Any) -> None:
    """Not the word null."""
    assert answered(load(HANDLE), answer).body == b""


def test_a_dict_without_status_or_body_is_the_answer(load: Load) -> None:
    """It goes out as JSON."""
    assert answered(load(HANDLE), {"label": "cat"}).body == b'{"label":"cat"}'


def test_framing_is_not_the_handlers_to_say(load: Load) -> None:
    """A wrong length would break the connection for everybody behind."""
    headers = {"Content-Length": "999", "Transfer-Encoding": "chunked", "Connection": "close", "X-A": "1"}
    assert answered(load(HANDLE), {"body": "a", "headers": headers}).headers == ((b"x-a", b"1"),)


@pytest.mark.parametrize(
    "answer",
    [
        {"statusCode": "200", "body": ""},
        {"statusCode": 99, "body": ""},
        {"statusCode": 101, "body": ""},
        {"body": "", "headers": {"X-A": "1\r\nSet-Cookie: evil"}},
        {"body": "", "headers": {"X A": "1"}},
        {"body": "", "headers": {"": "1"}},
    ],
)
def test_an_answer_that_would_break_http_is_a_500(load: Load, answer: Any) -> None:
    """Statuses that are none, and headers with line ends in them."""
    model = load(HANDLE)
    with pytest.raises(ItemError) as caught:
        model.encode(answer, None, call())
    assert caught.value.status == 500


# around predict ------------------------------------------------------------------------------------------------------


def test_preprocess_and_postprocess_are_steps_of_their_own(load: Load) -> None:
    """The pipeline runs them beside the batches: `predict` alone does neither."""
    model = load(
        "def preprocess(item):\n    return item + 1\n"
        "def predict(batch):\n    return [n * 10 for n in batch]\n"
        "def postprocess(answer):\n    return {'n': answer}\n"
    )
    ready = model.prepare(model.decode(call(b"1")))
    (answer,) = model.predict([ready])
    assert (ready, answer, model.finish(answer)) == (2, 20, {"n": 20})


def test_without_them_there_is_no_step(load: Load) -> None:
    """None says so: nothing goes through a pool for nothing. An imported helper is no step."""
    model = load("from textwrap import dedent as preprocess\ndef predict(batch):\n    return batch\n")
    assert model.prepare is None
    assert model.finish is None


def test_the_users_bucket_says_what_goes_together(load: Load) -> None:
    """It sees the item as `preprocess` left it; `predict` and `encode` see nothing of it."""
    model = load(
        "def preprocess(item):\n    return item.split()\ndef bucket(item):\n    return len(item)\n"
        "def predict(batch):\n    return [' '.join(item) for item in batch]\n"
    )
    one, two, three = (model.prepare(text) for text in ("a b", "c d", "e"))
    assert model.bucket(one) == model.bucket(two) != model.bucket(three)
    assert model.predict([one, two]) == ["a b", "c d"]
    assert model.encode("a b", one, call()).body == b"a b"


def test_a_bucket_that_is_none_is_the_handlers_fault(load: Load) -> None:
    """Found where the item is prepared, never on the event loop."""
    model = load("def bucket(item):\n    return [item]\ndef predict(batch):\n    return batch\n")
    with pytest.raises(ItemError, match="bucket.item. must return something hashable; it returned list") as caught:
        model.prepare(1)
    assert caught.value.status == 500


def test_hints_of_preprocess_say_what_an_item_is(load: Load) -> None:
    """It is the first to see it."""
    model = load("def preprocess(item: int):\n    return item\ndef predict(batch: list[str]):\n    return batch\n")
    assert model.decode(call(b"1")) == 1
    with pytest.raises(ItemError) as caught:
        model.decode(call(b'"a"'))
    assert caught.value.status == 422


def test_cpu_cores_are_the_handlers_business(load: Load) -> None:
    """Its own function, or nothing."""
    load("def predict(batch): ...\n").set_cpu_cores(2)


def test_a_handler_may_set_its_threads(load: Load) -> None:
    """Before the next run, as the provider wishes."""
    model = load("N = []\ndef set_cpu_cores(n):\n    N.append(n)\ndef predict(batch):\n    return N\n")
    model.set_cpu_cores(3)
    assert model.predict([0]) == [3]


def test_what_a_handler_says_of_itself(load: Load) -> None:
    """A name for the inference protocol, and a document with its example once there is one."""
    model = load("def predict(batch: list[int]) -> list[str]: ...\ndef example():\n    return 7\n")
    assert model.metadata()["platform"] == "python"
    assert model.example() == 7
    document = model.openapi()
    assert document["openapi"].startswith("3.1")
    assert "7" in str(document)


# async ---------------------------------------------------------------------------------------------------------------


def test_async_functions_run_on_one_loop_that_is_not_ours(load: Load) -> None:
    """What `load` opens there, `predict` and the others can use."""
    model = load(
        "import asyncio, threading\n"
        "def here():\n    return (id(asyncio.get_running_loop()), threading.get_ident())\n"
        "async def load():\n    global HOME\n    HOME = here()\n"
        "async def preprocess(item):\n    return here()\n"
        "async def predict(batch):\n    await asyncio.sleep(0)\n    return [here() == HOME == one for one in batch]\n"
        "async def example():\n    return 1\n"
    )
    assert model.predict([model.prepare(model.example())]) == [True]
    assert model.batched
    assert model.concurrency == 1


def test_an_async_handle_answers_many_at_once(load: Load) -> None:
    """Each waits in a thread of the watchdog's; here the second lets the first go on."""
    model = load(
        "import asyncio\nGATE = asyncio.Event()\n"
        "async def handle(event, context):\n"
        "    GATE.set() if event.body else await GATE.wait()\n    return event.body\n"
    )
    assert (model.batched, model.concurrency) == (False, 64)
    answers: list[Any] = []
    first = threading.Thread(target=lambda: answers.extend(model.predict([model.decode(call(b""))])))
    first.start()
    assert model.predict([model.decode(call(b"go"))]) == [b"go"]
    first.join(2)
    assert answers == [b""]


def test_an_async_run_is_cancelled_before_the_instance_is_taken_for_hanging(load: Load) -> None:
    """It alone gets 504, and its `finally` runs."""
    model = load(
        "import asyncio\nSEEN = []\n"
        "async def handle(event, context):\n"
        "    if event.body:\n        return {'seen': SEEN}\n"
        "    try:\n        await asyncio.sleep(9)\n    finally:\n        SEEN.append(1)\n"
    )
    with pytest.raises(ItemError, match=r"did not answer within exec_timeout, 0\.05 s") as caught:
        model.predict([model.decode(call(b""))])
    assert caught.value.status == 504
    assert model.predict([model.decode(call(b"1"))]) == [{"seen": [1]}]


def test_a_timeout_of_the_handlers_own_is_no_504(load: Load) -> None:
    """Somebody else was slow, not this handler."""
    model = load("async def predict(batch):\n    raise TimeoutError('database')\n")
    with pytest.raises(TimeoutError, match="database"):
        model.predict([1])


def test_an_async_handler_that_exits_ends_its_request_only(load: Load) -> None:
    """The loop goes on, for plain answers and for those in pieces."""
    model = load(
        "async def words():\n    yield 'a'\n    raise SystemExit(2)\n"
        "async def predict(batch):\n    exit(1) if batch == [0] else None\n    return [words() for _ in batch]\n"
    )
    with pytest.raises(SystemExit, match="1"):
        model.predict([0])
    chunks = model.encode(model.predict([1])[0], 1, call()).chunks
    assert next(chunks) == b"a"
    with pytest.raises(SystemExit, match="2"):
        next(chunks)
    assert len(model.predict([1])) == 1


def test_the_loop_ends_with_the_model(load: Load) -> None:
    """No thread is left."""
    model = load("async def predict(batch):\n    return batch\n")
    assert model.predict([1]) == [1]
    assert [thread.name for thread in threading.enumerate()].count("handler loop") == 1
    model.close()
    assert "handler loop" not in [thread.name for thread in threading.enumerate()]


# answers in pieces ---------------------------------------------------------------------------------------------------

PIECES = "yield b'a'\n    yield 'grüß'\n    yield {'n': 1}\n"


@pytest.mark.parametrize("start", ["def handle(event, context):\n    ", "async def handle(event, context):\n    "])
def test_a_generator_is_an_answer_in_pieces(load: Load, start: str) -> None:
    """Bytes as they are, str as UTF-8, the rest as lines of JSON; plain and async alike."""
    model = load(start + PIECES)
    (answer,) = model.predict([model.decode(call(b""))])
    reply = model.encode(answer, None, call())
    assert (reply.status, reply.content_type) == (200, b"text/plain; charset=utf-8")
    assert list(reply.chunks) == [b"a", "grüß".encode(), b'{"n":1}\n']


def test_pieces_are_events_for_who_asks_for_events(load: Load) -> None:
    """What the handler frames itself stays as it is."""
    model = load("def handle(event, context):\n    yield 'data: a\\n\\n'\n    yield {'n': 1}\n")
    request = call(headers=((b"accept", b"text/event-stream"),))
    (answer,) = model.predict([model.decode(request)])
    reply = model.encode(answer, None, request)
    assert reply.content_type == b"text/event-stream"
    assert list(reply.chunks) == [b"data: a\n\n", b'data: {"n":1}\n\n']


def test_pieces_may_have_a_status_and_headers(load: Load) -> None:
    """A generator as the body of OpenFaaS's dictionary."""
    model = load(
        "def handle(event, context):\n"
        "    return {'statusCode': 201, 'headers': {'Content-Type': 'a/b', 'X-A': '1'}, 'body': iter([b'1', b'2'])}\n"
    )
    (answer,) = model.predict([model.decode(call(b""))])
    reply = model.encode(answer, None, call())
    assert (reply.status, reply.content_type, reply.headers) == (201, b"a/b", ((b"x-a", b"1"),))
    assert list(reply.chunks) == [b"1", b"2"]


def test_what_fails_before_the_first_piece_is_still_an_error(load: Load) -> None:
    """The status has not been sent; in a batch it is one item's own."""
    model = load("def handle(event, context):\n    raise KeyError('k')\n    yield\n")
    with pytest.raises(KeyError):
        model.predict([model.decode(call(b""))])


def test_one_stream_of_a_batch_fails_alone(load: Load) -> None:
    """Its batch-mates begin."""
    model = load(
        "def words(n):\n    if not n:\n        raise ValueError('no words')\n    yield from ['a'] * n\n"
        "def predict(batch):\n    return [words(n) for n in batch]\n"
    )
    good, bad = model.predict([2, 0])
    assert list(model.encode(good, 2, call()).chunks) == [b"a", b"a"]
    assert (bad.status, str(bad)) == (422, "ValueError: no words")


def test_postprocess_has_no_say_in_a_stream(load: Load) -> None:
    """What has not come yet cannot be worked on; whole answers beside it are."""
    model = load(
        "def predict(batch):\n    return [iter('ab') if n else 'c' for n in batch]\n"
        "def postprocess(answer):\n    return answer.upper()\n"
    )
    pieces, whole = map(model.finish, model.predict([1, 0]))
    assert list(model.encode(pieces, 1, call()).chunks) == [b"a", b"b"]
    assert whole == "C"


def test_an_empty_stream_is_an_empty_answer(load: Load) -> None:
    """Not an error."""
    model = load("def predict(batch):\n    return [iter(()) for _ in batch]\n")
    assert list(model.encode(model.predict([0])[0], 0, call()).chunks) == []


@pytest.mark.parametrize("word", ["", "async "])
def test_a_stream_that_nobody_reads_on_is_closed(load: Load, word: str) -> None:
    """The user's `finally` runs."""
    model = load(
        "import threading\nCLOSED = threading.Event()\n"
        f"{word}def words():\n    try:\n        while True:\n            yield 'a'\n    finally:\n        CLOSED.set()\n"
        "def handle(event, context):\n    return {'body': CLOSED.wait(2)} if event.body else words()\n"
    )
    chunks = model.encode(model.predict([model.decode(call(b""))])[0], None, call()).chunks
    assert next(chunks) == b"a"
    chunks.close()
    assert model.predict([model.decode(call(b"?"))]) == [{"body": True}]


def test_an_async_stream_fails_where_it_fails(load: Load) -> None:
    """After the pieces before it, with its own exception."""
    model = load("async def handle(event, context):\n    yield 'a'\n    raise LookupError('later')\n")
    chunks = model.encode(model.predict([model.decode(call(b""))])[0], None, call()).chunks
    assert next(chunks) == b"a"
    with pytest.raises(LookupError, match="later"):
        next(chunks)


def test_an_async_stream_lives_in_one_task(load: Load) -> None:
    """So that what a generator enters around a `yield` (timeouts, task groups) is left where it was entered."""
    model = load(
        "import asyncio\n"
        "async def handle(event, context):\n"
        "    async with asyncio.timeout(5):\n"
        "        for _ in range(3):\n            yield str(asyncio.current_task().get_name())\n"
    )
    chunks = model.encode(model.predict([model.decode(call(b""))])[0], None, call()).chunks
    assert len(set(chunks)) == 1
