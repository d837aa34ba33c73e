"""From a function's folder to a model, and between requests, items and answers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from infless_watchdog.calls import Call, Head, LoadError, Reply
from infless_watchdog.handlers import HandleModel, PredictModel, is_sample, load_model
from infless_watchdog.isolation import ItemError
from infless_watchdog.settings import Settings

TEMPLATE = Path(__file__).parents[2] / "templates/infless-python/function"
Load = Callable[..., Any]


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    """Loads a folder of the given files; forgets their modules and paths afterwards."""
    folder = tmp_path / f"fn_{tmp_path.name}"
    folder.mkdir()
    known, paths = set(sys.modules), list(sys.path)

    def loaded(handler: str | None = None, **files: str | bytes) -> Any:
        if handler is not None:
            (folder / "handler.py").write_text(handler)
        for name, content in files.items():
            path = folder / name.replace("_dot_", ".")
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return load_model(Settings(function_dir=str(folder)))

    yield loaded
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
        ("async def predict(batch): ...\n", "predict in "),
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


def test_a_compressed_body_is_a_415(load: Load) -> None:
    """Not broken JSON; `identity` is no compression."""
    model = load(PREDICT)
    assert model.decode(call(b"1", headers=((b"content-encoding", b"identity"),))) == 1
    with pytest.raises(ItemError, match="Content-Encoding gzip is not supported") as caught:
        model.decode(call(b"\x1f\x8b", headers=((b"content-encoding", b"gzip"),)))
    assert caught.value.status == 415


def test_an_event_is_openfaass(load: Load) -> None:
    """Headers in any case, the query as a dict, the path without its escapes, the body as bytes."""
    model = load("def handle(event, context): ...\n")
    headers = ((b"x-user-id", b"7"), (b"accept", b"*/*"))
    event = model.decode(call(b"{}", method="PUT", path="/a%20b", query="q=1&empty=", headers=headers))
    assert (event.method, event.path, event.body) == ("PUT", "/a b", b"{}")
    assert event.query == {"q": "1", "empty": ""}
    assert event.headers["X-User-ID"] == event.headers.get("x-user-id") == "7"
    assert dict(event.headers) == {"x-user-id": "7", "accept": "*/*"}


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
        ({"a": [1, None]}, b'{"a": [1, null]}', b"application/json"),
        (None, b"null", b"application/json"),
        (np.float32(0.5), b"0.5", b"application/json"),
        ({"scores": np.arange(3)}, b'{"scores": [0, 1, 2]}', b"application/json"),
    ],
)
def test_an_answer_is_written_as_what_it_is(load: Load, answer: Any, body: bytes, content_type: bytes) -> None:
    """Bytes as they are, str as text, the rest as JSON, numpy included."""
    reply = answered(load(PREDICT), answer)
    assert (reply.body, reply.content_type, reply.status) == (body, content_type, 200)


@pytest.mark.parametrize("answer", [object(), float("nan"), {1, 2}, {"x": float("inf")}, "\ud800", {(1, 2): 3}])
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
    assert (reply.status, reply.body, reply.content_type) == (201, b'{"id": 1}', b"a/b")
    assert reply.headers == ((b"x-trace", b"t"),)


@pytest.mark.parametrize("answer", [None, {"statusCode": 200}, {"statusCode": 200, "body": None}])
def test_no_body_is_an_empty_one(load: Load, answer: Any) -> None:
    """Not the word null."""
    assert answered(load(HANDLE), answer).body == b""


def test_a_dict_without_status_or_body_is_the_answer(load: Load) -> None:
    """It goes out as JSON."""
    assert answered(load(HANDLE), {"label": "cat"}).body == b'{"label": "cat"}'


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
