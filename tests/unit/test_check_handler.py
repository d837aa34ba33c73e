"""`--check`: a function is tried as requests would come, and told in plain words."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_model import FakeModel
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from infless_watchdog import curve
from infless_watchdog.calls import Call, Reply
from infless_watchdog.check import Trial, batch_sizes, check
from infless_watchdog.check_answers import same
from infless_watchdog.check_report import Report, point
from infless_watchdog.settings import Settings

Try = Callable[..., tuple[int, str]]
GOOD = """
def predict(batch):
    return [{"twice": item["x"] * 2} for item in batch]

def example():
    return {"x": 1.5}
"""


@pytest.fixture
def tried(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Try]:
    """Checks a handler; gives the exit code and what was printed."""
    folder = tmp_path / f"check_{tmp_path.name}"
    folder.mkdir()
    monkeypatch.setattr(sys, "path", list(sys.path))

    def forget() -> None:
        for name in [name for name in sys.modules if name.startswith(folder.name)]:
            del sys.modules[name]

    def run(handler: str, samples: dict[str, bytes] | None = None, **options: Any) -> tuple[int, str]:
        forget()
        (folder / "handler.py").write_text(handler)
        paths = []
        for name, body in (samples or {}).items():
            paths.append(tmp_path / name)
            paths[-1].write_bytes(body)
        settings = Settings(function_dir=str(folder), batch_max=4)
        code = check(settings, paths, budget_s=0.0, **options)
        return code, capsys.readouterr().out

    yield run
    forget()


def wrong(told: str) -> str:
    """The one thing that is wrong."""
    (sentence,) = re.findall(r"WRONG: (.*)", told)
    return str(sentence)


def test_a_good_handler_is_told_with_its_curve(tried: Try) -> None:
    """What was found, the answer, that batches change nothing, and each batch size up to the largest."""
    code, told = tried(GOOD)
    assert code == 0
    assert "handler.py: predict(batch), in batches of up to 4, on cpu" in told
    assert 'example() -> 200 application/json: {"twice":3.0}' in told
    assert "ok: the answers alone and in batches of 2 and 4 are the same" in told
    assert re.findall(r"^ +(\d+) .*#$", told, re.MULTILINE) == ["1", "2", "4"]
    assert "meets latency_target 500 ms at up to" in told


def test_json_is_one_object(tried: Try) -> None:
    """For programs; what the handler prints is not part of it."""
    code, told = tried("print('hello')\n" + GOOD, as_json=True)
    record = json.loads(told)
    assert code == 0
    assert record["fine"] is True
    assert [one["batch"] for one in record["curve"]] == [1, 2, 4]
    assert record["best"]["rate_rps"] == max(one["rate_rps"] for one in record["curve"])


def test_type_hints_are_shown(tried: Try) -> None:
    """As they are written."""
    hinted = "from __future__ import annotations\n" + GOOD.replace("(batch)", "(batch: list[dict]) -> list[dict]")
    assert "predict(batch: list[dict]) -> list[dict]" in tried(hinted)[1]


def test_samples_go_through_decode(tried: Try) -> None:
    """The ending says the content type; several make mixed batches."""
    code, told = tried(GOOD, {"a.json": b'{"x": 1}', "b.json": b'{"x": 2}'})
    assert code == 0
    assert 'a.json -> 200 application/json: {"twice":2}' in told
    assert 'b.json -> 200 application/json: {"twice":4}' in told
    code, told = tried(GOOD, {"a.json": b"{"})
    assert code == 1
    assert "a.json is answered 400: the body is not valid JSON" in wrong(told)


def test_other_endings_are_bytes(tried: Try) -> None:
    """And so is what no ending says."""
    echo = "def predict(batch):\n    return [type(item).__name__ for item in batch]\n"
    _, told = tried(echo, {"a.bin": b"x", "b": b"x"})
    assert "a.bin -> 200 text/plain; charset=utf-8: bytes" in told
    assert "b -> 200 text/plain; charset=utf-8: bytes" in told


def test_without_an_example_loading_is_all(tried: Try) -> None:
    """No failure: there may be none to give."""
    code, told = tried("def predict(batch): ...\n")
    assert code == 0
    assert "without example() or --sample there is nothing to try it with" in told


def test_handle_is_tried_alone(tried: Try) -> None:
    """It never gets a batch."""
    code, told = tried("def handle(event, context):\n    return event.body\ndef example():\n    return b'hi'\n")
    assert code == 0
    assert "handle(event, context), one request at a time" in told
    assert re.findall(r"^ +(\d+) .*#$", told, re.MULTILINE) == ["1"]


@pytest.mark.parametrize(
    ("handler", "sentence"),
    [
        ("def predict(batch)", r"handler.py cannot be imported: SyntaxError"),
        ("x = 1", r"defines neither predict\(batch\) nor handle\(event, context\)"),
        (GOOD.replace("return {", "raise KeyError({"), r"example\(\) raised .*"),
        (GOOD.replace('["x"]', '["y"]'), r"example\(\) is answered 500: KeyError: 'y' \(handler.py, line 3\)"),
        (GOOD.replace("for item in batch]", "for item in batch][1:]"), r"returned 0 answers for a batch of 1"),
        (GOOD.replace("for item in batch]", "for item in batch[:1]]"),
         r"in a batch of 2: .* returned 1 answers for a batch of 2 .* \(handler.py, predict in line 2\)"),
        (GOOD.replace('item["x"] * 2', 'item["x"] * len(batch)'), r'answered \{"twice":3.0\} in a batch of 2, but \{"twice":1.5\} alone'),
        (GOOD.replace("for item in batch]", "for item in batch if item]"),
         r"a good request beside one with body 'null' is answered 500 .* 2 answers for a batch of 3"),
        (GOOD.replace('"twice": item["x"] * 2', '"sum": sum(i["x"] if i else 9 for i in batch) / len(batch)'),
         r"a good request beside one with body 'null' is answered 200 \{\"sum\":4"),
        ("def predict(batch):\n    return 7\ndef example():\n    return 1\n", "must return a list .* returned int"),
        (GOOD.replace('item["x"] * 2', "object()"), "answer cannot be written as JSON"),
    ],
)  # fmt: skip
def test_each_fault_is_one_sentence(tried: Try, handler: str, sentence: str) -> None:
    """With its place, where it has one; exit code 1."""
    if "KeyError({" in handler:
        handler = handler.replace("1.5}", "1.5})")
    code, told = tried(handler)
    assert code == 1
    assert re.search(sentence, wrong(told)), told


def test_an_item_that_is_used_up_does_not_spoil_the_next(tried: Try) -> None:
    """Each request has an item of its own, as over HTTP."""
    handler = (
        "def predict(batch):\n    return [item.pop() if item and isinstance(item, list) else 0 for item in batch]\n"
    )
    code, told = tried(f"{handler}def example():\n    return [1]\n")
    assert code == 0, told
    assert re.findall(r"^ +(\d+) .*#$", told, re.MULTILINE) == ["1", "2", "4"]


def test_an_item_that_is_used_up_before_its_mate_fails_is_found(tried: Try) -> None:
    """What is run again, after a batch was split, is not what came."""
    code, told = tried(GOOD.replace('item["x"]', 'item.pop("x")'))
    assert code == 1
    assert "body 'null' is answered 500 KeyError: 'x' (handler.py, line 3)" in wrong(told)


def test_a_fault_that_comes_and_goes_is_found(tried: Try) -> None:
    """While the batches are timed."""
    flaky = GOOD.replace(
        "    return [", "    global n\n    n += 1\n    if n > 30: raise OSError('gone')\n    return [", 1
    )
    code, told = tried("n = 0\n" + flaky)
    assert code == 1
    assert "fails now and then" in wrong(told)


def test_answers_by_chance_are_not_compared(tried: Try) -> None:
    """A model that draws samples is no broken one."""
    code, told = tried(
        "import itertools\nn = itertools.count()\ndef predict(batch):\n    return [next(n) for _ in batch]\ndef example():\n    return 1\n"
    )
    assert code == 0
    assert "answers change from run to run and were not compared" in told


def test_a_slow_function_is_not_timed_further(tried: Try, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first size that is too slow is the last."""
    monkeypatch.setattr(curve, "TOO_SLOW_S", 0.0)
    assert re.findall(r"^ +(\d+) .*#$", tried(GOOD)[1], re.MULTILINE) == ["1"]


def test_what_is_not_there_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2 and one sentence."""
    assert check(Settings(function_dir=str(tmp_path / "none"))) == 2
    assert "none is not a folder" in capsys.readouterr().err
    assert check(Settings(function_dir=str(tmp_path)), [tmp_path / "a.json"]) == 2
    assert re.search("sample .*a.json cannot be read: No such file", capsys.readouterr().err)


def try_model(model: FakeModel) -> Report:
    """What is found about a model without code."""
    report = Report(file="model.onnx", target_s=0.5, batch_max=4)
    Trial(model, report, Path("/none")).run({}, 0.0)
    return report


def test_a_model_with_open_axes_is_not_blamed_for_a_made_up_example() -> None:
    """An image is built without the `input_shape` that its function will have."""

    class Open(FakeModel):
        def metadata(self) -> dict[str, Any]:
            return {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3, -1]}]}

        def predict(self, items: list[Any]) -> Any:
            raise RuntimeError("kernel is larger than the image")

    report = try_model(Open())
    assert report.findings == []
    assert "for want of a sample or input_shape" in report.passed[0]
    assert "kernel is larger than the image" in report.passed[0]


def test_a_model_that_turns_out_to_have_no_batches_is_timed_alone() -> None:
    """Its first batch shows that it has no batch axis."""

    class Single(FakeModel):
        def predict(self, items: list[Any]) -> Any:
            self.batched = len(items) == 1 and self.batched
            return super().predict(items)

    report = try_model(Single())
    assert [point.batch for point in report.curve] == [1]
    assert "requests are run one by one" in report.passed[-1]


def test_answers_in_pieces_are_put_together() -> None:
    """From a plain and from an async generator; and what is done before and after `predict` is done."""

    class Pieces(FakeModel):
        def __init__(self) -> None:
            self.prepare, self.finish = bytes.strip, lambda answer: answer + b"!"

        def example(self) -> Any:
            return b" x "

        def encode(self, answer: Any, item: Any, call: Call) -> Reply:
            assert item == b"x"
            return Reply(chunks=iter([answer, b"?"]))

    class AsyncPieces(Pieces):
        def encode(self, answer: Any, item: Any, call: Call) -> Reply:
            async def pieces() -> AsyncIterator[bytes]:
                yield answer
                yield b"?"

            return Reply(chunks=pieces())

    for model in (Pieces(), AsyncPieces()):
        report = try_model(model)
        assert report.findings == []
        assert report.answers[0].beginning == "X!?"


@pytest.mark.parametrize(
    ("operator", "outcome"),
    [
        ("ReduceSum", "ok: an item padded as batch_pad says has the answer of an unpadded one"),
        ("ReduceMean", "WRONG: padding as batch_pad says changes answers, by up to"),
    ],
)
def test_padding_is_tried_on_the_model_itself(
    operator: str, outcome: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sum does not mind zeros, a mean does."""
    tensors = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "time"])]
    answers = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])]
    axes = numpy_helper.from_array(np.array([1]), "axes")
    graph = helper.make_graph([helper.make_node(operator, ["x", "axes"], ["y"])], "g", tensors, answers, [axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    code = check(Settings(function_dir=str(tmp_path), batch_pad="time=16", batch_max=2), budget_s=0.0)
    told = capsys.readouterr().out
    assert outcome in told
    assert code == ("WRONG" in outcome)


# what is compared, and what is told ----------------------------------------------------------------------------------


def reply(value: Any) -> Reply:
    """As the watchdog would encode it."""
    if isinstance(value, bytes):
        return Reply(body=value, content_type=b"application/octet-stream")
    return Reply(body=json.dumps(value).encode(), content_type=b"application/json")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(values, values)
def test_the_same_is_the_same_both_ways(one: Any, other: Any) -> None:
    """An answer equals itself, and order does not matter."""
    assert same(reply(one), reply(one))
    assert same(reply(one), reply(other)) == same(reply(other), reply(one))


@given(st.lists(st.floats(0.5, 2**20, width=32), min_size=1, max_size=8), st.sampled_from(["<f4", "<f8"]))
def test_numbers_may_differ_in_the_last_places(numbers: list[float], dtype: str) -> None:
    """In JSON and in bytes; a hundredth is a difference."""
    exact = np.array(numbers, dtype)
    near, far = exact * np.float64(1.00001), exact * np.float64(1.01)
    assert same(reply(exact.tolist()), reply(near.tolist()))
    assert same(reply(exact.tobytes()), reply(near.astype(dtype).tobytes()))
    assert not same(reply(exact.tolist()), reply(far.tolist()))


def test_what_is_no_number_is_compared_exactly() -> None:
    """Types, lengths, status and content type too."""
    different = [
        (1, "1"), (1.0, True), (1, True), (10**400, 1.0), ([1], [1, 1]), ({"a": 1}, {"b": 1}), ("a", "b"), (b"a", b"b"),
    ]  # fmt: skip
    assert not any(same(reply(one), reply(other)) for one, other in different)
    assert not same(reply(1), replace(reply(1), status=201))
    assert not same(reply(1), replace(reply(1), content_type=b"text/plain"))


@given(st.integers(1, 2000))
def test_batch_sizes_are_powers_of_two_and_the_largest(batch_max: int) -> None:
    """Rising, from 1."""
    sizes = batch_sizes(batch_max)
    assert sizes[0] == 1
    assert sizes[-1] == batch_max
    assert all(math.log2(size).is_integer() for size in sizes[:-1])
    assert sizes == sorted(set(sizes))


@given(st.integers(1, 64), st.floats(1e-4, 20), st.floats(1e-3, 40))
def test_the_rate_is_the_papers(batch: int, exec_s: float, target_s: float) -> None:
    """`floor(1/t) * b` where `t <= T/2` (`T` for one); never more than the batches can carry."""
    rate = point(batch, [exec_s], 0).rate_rps(target_s)
    if exec_s > target_s / (1 if batch == 1 else 2):
        assert rate is None
    else:
        assert rate is not None
        assert 0 < rate <= batch / exec_s * (1 + 1e-9)
        assert exec_s > 1 or rate == math.floor(1 / exec_s) * batch


def test_a_target_out_of_reach_is_told() -> None:
    """With the fastest that there is."""
    report = Report(file="f", target_s=0.01, kind="predict", device="cpu", batch_max=2)
    report.curve += [point(1, [0.02], 0), point(2, [0.03], 0)]
    assert "latency_target 10 ms cannot be met: the fastest batch, 1, takes 20 ms" in report.as_text()
    assert json.loads(report.as_json())["best"] is None


@given(st.lists(st.floats(1e-6, 10), min_size=1, max_size=50))
def test_a_point_is_the_middle_and_the_slow_end(samples_s: list[float]) -> None:
    """Median and 95th percentile are samples, in this order."""
    one = point(4, samples_s, 0)
    assert one.median_s in samples_s
    assert one.p95_s in samples_s
    assert one.median_s <= one.p95_s
