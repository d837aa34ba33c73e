"""A bare model.onnx: small real models in onnxruntime, alone and in batches, with right and wrong requests."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from infless_watchdog.calls import Call, Head, LoadError
from infless_watchdog.isolation import ItemError, run_isolated
from infless_watchdog.onnx_model import OnnxModel
from infless_watchdog.settings import Settings, shapes

OCTETS = "application/octet-stream"
F32, I64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING
Tensors = dict[str, Any]
Make = Callable[..., OnnxModel]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes a model of the given graph, and loads it."""

    def made(
        inputs: Tensors,
        nodes: list[Any],
        outputs: Tensors,
        weights: dict[str, Any] | None = None,
        shape: str = "",
        pad: str = "",
    ) -> OnnxModel:
        infos = [
            [
                helper.make_tensor_value_info(name, *spec) if isinstance(spec, tuple) else spec
                for name, spec in tensors.items()
            ]
            for tensors in (inputs, outputs)
        ]
        initial = [numpy_helper.from_array(np.asarray(array), name) for name, array in (weights or {}).items()]
        graph = helper.make_graph(nodes, "g", infos[0], infos[1], initial)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        path = tmp_path / "model.onnx"
        path.write_bytes(model.SerializeToString())
        return OnnxModel(path, Settings(function_name="m", input_shape=shapes(shape), batch_pad=pad))

    return made


@pytest.fixture
def dense(make: Make) -> OnnxModel:
    """`softmax(x W)`: rows of three in, rows of two out."""
    weights = {"w": np.array([[1, -1], [0.5, 2], [-3, 0.25]], np.float32)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Softmax", ["h"], ["y"])]
    return make({"x": (F32, ["n", 3])}, nodes, {"y": (F32, ["n", 2])}, weights)


@pytest.fixture
def pair(make: Make) -> OnnxModel:
    """`a + float(b)`: two inputs of different types."""
    nodes = [helper.make_node("Cast", ["b"], ["c"], to=F32), helper.make_node("Add", ["a", "c"], ["y"])]
    return make({"a": (F32, ["n", 2]), "b": (I64, ["n", 2])}, nodes, {"y": (F32, ["n", 2])})


def call(body: Any, content_type: str = "application/json", path: str = "/") -> Call:
    """A request; what is not bytes is sent as JSON."""
    octets = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Call(Head("POST", path, "", [(b"content-type", content_type.encode())]), octets)


def ask(model: OnnxModel, request: Call) -> Any:
    """One request, all the way."""
    item = model.decode(request)
    (answer,) = model.predict([item])
    reply = model.encode(answer, item, request)
    return reply.body if reply.content_type == OCTETS.encode() else json.loads(reply.body)


def refused(model: OnnxModel, request: Call) -> str:
    """The sentence of a 422."""
    with pytest.raises(ItemError) as caught:
        model.decode(request)
    assert caught.value.status == 422
    return str(caught.value)


# forms ---------------------------------------------------------------------------------------------------------------


def test_a_json_array_is_one_item(dense: OnnxModel) -> None:
    """The answer has no batch axis, as the request had none."""
    assert ask(dense, call([1, 2, 3])) == pytest.approx([2.1445e-5, 1], rel=1e-4)


def test_a_json_array_of_rows_is_answered_row_by_row(dense: OnnxModel) -> None:
    """One request may carry several rows."""
    answer = ask(dense, call([[1, 2, 3], [1, 0, 0]]))
    assert np.shape(answer) == (2, 2)
    assert answer[0] == ask(dense, call([1, 2, 3]))


def test_raw_bytes_are_answered_with_raw_bytes(dense: OnnxModel) -> None:
    """As long as the model's shape says what they are."""
    body = np.array([[1, 2, 3], [1, 0, 0]], np.float32).tobytes()
    answer = np.frombuffer(ask(dense, call(body, OCTETS)), np.float32).reshape(2, 2)
    np.testing.assert_allclose(answer[0], ask(dense, call([1, 2, 3])), rtol=1e-6)


def test_the_inference_protocol_is_answered_in_kind(dense: OnnxModel) -> None:
    """By its path, or by its form alone."""
    body = {"id": "7", "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}]}
    answer = ask(dense, call(body, path="/v2/models/m/infer"))
    assert answer == ask(dense, call(body))
    assert (answer["model_name"], answer["id"], answer["outputs"][0]["shape"]) == ("m", "7", [1, 2])


def test_several_inputs_come_by_name(pair: OnnxModel) -> None:
    """As an object of arrays."""
    assert ask(pair, call({"a": [0.5, 1.5], "b": [1, 2]})) == [1.5, 3.5]


def test_metadata_tell_names_types_and_shapes(pair: OnnxModel) -> None:
    """-1 is the batch."""
    metadata = pair.metadata()
    assert metadata["inputs"][1] == {"name": "b", "datatype": "INT64", "shape": [-1, 2]}
    assert metadata["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}]


# batches -------------------------------------------------------------------------------------------------------------


def test_a_batch_answers_as_each_would_alone(dense: OnnxModel) -> None:
    """Whatever number of rows each request carries."""
    generator = np.random.default_rng(1)
    items = [dense.decode(call(generator.normal(size=(rows, 3)).tolist())) for rows in (1, 3, 1, 2)]
    together = dense.predict(items)
    for item, answer in zip(items, together, strict=True):
        np.testing.assert_allclose(answer["y"], dense.predict([item])[0]["y"], rtol=1e-5, atol=1e-7)


def test_a_batch_may_mix_shapes(make: Make) -> None:
    """Requests of one shape run together; the answers come in the order of the requests."""
    model = make(
        {"x": (F32, ["n", "t"])},
        [helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)],
        {"y": (F32, ["n"])},
        {"axes": np.array([1], np.int64)},
    )
    items = [model.decode(call([[1.0] * length])) for length in (3, 5, 3, 1, 5)]
    assert [float(answer["y"][0]) for answer in model.predict(items)] == [3, 5, 3, 1, 5]


def test_a_fixed_batch_axis_is_run_request_by_request(make: Make) -> None:
    """A model exported for one row takes one row; its example has one, too."""
    model = make({"x": (F32, [1, 3])}, [helper.make_node("Neg", ["x"], ["y"])], {"y": (F32, [1, 3])})
    assert not model.batched
    items = [model.decode(call([n, 0, 0])) for n in (1, 2)]
    assert [answer["y"].tolist() for answer in model.predict(items)] == [[[-1, 0, 0]], [[-2, 0, 0]]]
    assert "batch axis is 2" in refused(model, call([[1, 2, 3], [4, 5, 6]]))


def test_a_fixed_batch_of_more_has_an_example_of_as_many(make: Make) -> None:
    """Warming up must not fail on the model's own shape."""
    model = make({"x": (F32, [4, 3])}, [helper.make_node("Neg", ["x"], ["y"])], {"y": (F32, [4, 3])})
    assert model.predict([model.example()])[0]["y"].shape == (4, 3)


@pytest.mark.parametrize("said", [["d", 3], [1, 3], None])
def test_an_output_without_batch_axis_ends_batching(make: Make, said: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody can say whose part is whose: requests run one by one, and the log says so once."""
    nodes = [helper.make_node("ReduceMax", ["x"], ["y"], axes=[0], keepdims=1)]
    model = make({"x": (F32, ["n", 3])}, nodes, {"y": (F32, said)})
    items = [model.decode(call([n, 0, 0])) for n in (1, 2, 3)]
    for _ in range(2):
        assert [float(answer["y"].max()) for answer in model.predict(items)] == [1, 2, 3]
    assert not model.batched
    assert caplog.text.count("one by one") == 1


def test_an_output_of_a_fixed_size_is_never_cut(make: Make) -> None:
    """Two requests and two classes would fit by accident."""
    nodes = [helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)]
    model = make({"x": (F32, ["n", 2])}, nodes, {"y": (F32, [2])}, {"axes": np.array([0], np.int64)})
    items = [model.decode(call([n, n])) for n in (1, 2)]
    assert [answer["y"].tolist() for answer in model.predict(items)] == [[1, 1], [2, 2]]


def test_an_answer_of_several_rows_for_one_item_is_whole(make: Make) -> None:
    """Such as boxes: how many there are is the model's answer."""
    nodes = [helper.make_node("Concat", ["x", "x"], ["y"], axis=0)]
    model = make({"x": (F32, ["n", 2])}, nodes, {"y": (F32, ["boxes", 2])})
    assert ask(model, call([1, 2])) == [[1, 2], [1, 2]]


def test_a_request_on_which_the_runtime_fails_fails_alone(make: Make) -> None:
    """An index out of range is found only by running."""
    model = make(
        {"i": (I64, ["n"])},
        [helper.make_node("Gather", ["table", "i"], ["y"])],
        {"y": (F32, ["n"])},
        {"table": np.arange(4, dtype=np.float32)},
    )
    answers = run_isolated(model.predict, [model.decode(call([n])) for n in (1, 99, 3)]).answers
    assert [answers[0]["y"].tolist(), answers[2]["y"].tolist()] == [[1.0], [3.0]]
    assert isinstance(answers[1], ItemError)


def test_sizes_that_nobody_names_are_one_in_the_example(make: Make) -> None:
    """With `input_shape` it has the size that will be served."""
    graph = ({"x": (F32, ["n", 2, "t"])}, [helper.make_node("Neg", ["x"], ["y"])], {"y": (F32, ["n", 2, "t"])})
    assert make(*graph).example().tensors["x"].shape == (1, 2, 1)
    assert make(*graph, shape="x=2,5").example().tensors["x"].shape == (1, 2, 5)


# wrong requests ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([1, 2], "input x: shape [2] does not fit the model's [-1, 3]"),
        ([[[1, 2, 3]]], "does not fit"),
        ([], "does not fit"),
        ([1, "2", 3], "is not all FP32"),
        ([1, None, 3], "is not all FP32"),
        ([[1, 2, 3], [1]], "is not all FP32"),
        ("abc", "is not all FP32"),
        (None, "is not all FP32"),
        ({"y": [1, 2, 3]}, "the model's inputs are x; missing: x; unknown: y"),
        ({"x": [1, 2, 3], "z": 1}, "unknown: z"),
        ({}, "missing: x"),
    ],
)
def test_a_wrong_json_tensor_is_a_422(dense: OnnxModel, value: Any, words: str) -> None:
    """The sentence names the input, what came and what is wanted."""
    assert words in refused(dense, call(value))


@pytest.mark.parametrize("size", [0, 4, 13])
def test_raw_bytes_must_be_whole_items(dense: OnnxModel, size: int) -> None:
    """Twelve bytes each."""
    assert "one item of input x is 12 bytes" in refused(dense, call(bytes(size), OCTETS))


def test_raw_bytes_need_a_known_shape_and_one_input(make: Make, pair: OnnxModel) -> None:
    """Else nobody knows what they are."""
    nodes = [helper.make_node("Neg", ["x"], ["y"])]
    model = make({"x": (F32, ["n", "t"])}, nodes, {"y": (F32, ["n", "t"])})
    assert "set input_shape" in refused(model, call(bytes(8), OCTETS))
    assert "send an object by name" in refused(pair, call(bytes(8), OCTETS))


def test_a_tensor_of_another_type_is_a_422(dense: OnnxModel) -> None:
    """The protocol's own types are not converted in silence."""
    tensor = {"name": "x", "datatype": "FP64", "shape": [1, 3], "data": [1, 2, 3]}
    assert "FP64 came, the model takes FP32" in refused(dense, call({"inputs": [tensor]}))


def test_a_float_for_a_whole_number_is_a_422(pair: OnnxModel) -> None:
    """1.5 is not 1."""
    assert "input b: data is not all INT64" in refused(pair, call({"a": [1, 2], "b": [1.5, 2]}))


def test_inputs_must_agree_on_their_rows(pair: OnnxModel) -> None:
    """One batch axis for all."""
    assert "different batch sizes: [1, 2]" in refused(pair, call({"a": [1, 2], "b": [[1, 2], [3, 4]]}))


def test_no_rows_are_refused(dense: OnnxModel) -> None:
    """An empty tensor has no answer."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [0, 3], "data": []}
    assert "the batch axis is 0" in refused(dense, call({"inputs": [tensor]}))


def test_an_unknown_output_is_a_422(dense: OnnxModel) -> None:
    """Instead of an answer without it."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}
    assert "unknown: z" in refused(dense, call({"inputs": [tensor], "outputs": [{"name": "z"}]}))


def test_an_array_is_not_an_inference_request(dense: OnnxModel) -> None:
    """Under /v2 only the protocol is spoken."""
    with pytest.raises(ItemError) as caught:
        dense.decode(call([1, 2, 3], path="/v2/models/m/infer"))
    assert caught.value.status == 400


# raw rows: the fast path ----------------------------------------------------------------------------------------------


def raw_batch(model: OnnxModel, rows: np.ndarray) -> tuple[list[Any], list[bytes]]:
    """Items of one client, and their answers."""
    head = Head("POST", headers=[(b"content-type", OCTETS.encode())])
    calls = [Call(head, row.tobytes()) for row in rows]
    items = [model.decode(one) for one in calls]
    answers = model.predict(items)
    replies = [model.encode(*each) for each in zip(answers, items, calls, strict=True)]
    assert {reply.content_type for reply in replies} == {OCTETS.encode()}
    return items, [reply.body for reply in replies]


@pytest.mark.parametrize("sizes", [(1, 4, 2, 9, 1), (9, 3)])
def test_raw_rows_of_any_number_are_answered_as_alone(dense: OnnxModel, sizes: tuple[int, ...]) -> None:
    """Buffers that are used again leave nothing of earlier batches; answers handed out stay as they were."""
    generator, kept = np.random.default_rng(2), []
    for size in sizes:
        rows = generator.normal(size=(size, 3)).astype(np.float32)
        items, answers = raw_batch(dense, rows)
        assert all(type(item) is bytes for item in items)
        kept += [(answer, ask(dense, call(row.tolist()))) for answer, row in zip(answers, rows, strict=True)]
    for answer, alone in kept:
        np.testing.assert_allclose(np.frombuffer(answer, np.float32), alone, rtol=1e-6)


def test_a_batch_may_mix_raw_rows_and_other_requests(dense: OnnxModel) -> None:
    """They share a bucket, and each is answered in its own form."""
    body = np.array([1, 2, 3], np.float32).tobytes()
    calls = [call(body, OCTETS), call([1, 2, 3]), call(body * 2, OCTETS)]
    items = [dense.decode(one) for one in calls]
    assert len({dense.bucket(item) for item in items}) == 1
    replies = [dense.encode(*each) for each in zip(dense.predict(items), items, calls, strict=True)]
    assert replies[2].body == replies[0].body * 2
    np.testing.assert_allclose(np.frombuffer(replies[0].body, np.float32), json.loads(replies[1].body), rtol=1e-6)


def test_what_a_head_means_is_found_once(dense: OnnxModel) -> None:
    """A client's later requests have its head, with what is known of it."""
    request = call(bytes(12), OCTETS)
    dense.decode(request)
    memo = request.head.memo
    assert dense.decode(Call(request.head, bytes(24))).rows == 2
    assert memo is not None
    assert request.head.memo is memo


def test_an_output_of_another_shape_than_declared_is_still_answered(make: Make) -> None:
    """The exporter wrote three, there are six: the buffer made for three is given up."""
    nodes = [helper.make_node("Concat", ["x", "x"], ["y"], axis=1)]
    model = make({"x": (F32, ["n", "t"])}, nodes, {"y": (F32, ["n", 3])}, shape="3")
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    for _ in range(2):
        assert raw_batch(model, rows)[1] == [row.tobytes() * 2 for row in rows]


def test_raw_rows_without_a_batch_axis_in_the_output_run_one_by_one(make: Make, caplog: Any) -> None:
    """As other requests do."""
    nodes = [helper.make_node("ReduceMax", ["x"], ["y"], axes=[0], keepdims=1)]
    model = make({"x": (F32, ["n", 3])}, nodes, {"y": (F32, ["d", 3])})
    rows = np.arange(9, dtype=np.float32).reshape(3, 3)
    for _ in range(2):
        assert raw_batch(model, rows)[1] == [row.tobytes() for row in rows]
    assert not model.batched


def test_raw_rows_that_fail_fail_with_the_runtimes_words(make: Make) -> None:
    """And those after them are answered."""
    graph = ({"i": (I64, ["n"])}, [helper.make_node("Gather", ["table", "i"], ["y"])], {"y": (F32, ["n"])})
    model = make(*graph, {"table": np.arange(4, dtype=np.float32)})
    with pytest.raises(Exception, match="out of data bounds"):
        raw_batch(model, np.array([1, 99], np.int64))
    assert np.frombuffer(b"".join(raw_batch(model, np.array([1, 3], np.int64))[1]), np.float32).tolist() == [1, 3]


def test_a_raw_inference_request_is_answered_with_binary_tensors(dense: OnnxModel) -> None:
    """Triton's form without any JSON: the header says that it is 0 bytes long."""
    head = Head("POST", "/v2/models/m/infer", "", [(b"inference-header-content-length", b"0")])
    request = Call(head, np.array([1, 2, 3], np.float32).tobytes())
    item = dense.decode(request)
    reply = dense.encode(dense.predict([item])[0], item, request)
    length = int(dict(reply.headers)[b"inference-header-content-length"])
    assert json.loads(reply.body[:length])["outputs"][0]["shape"] == [1, 2]
    np.testing.assert_allclose(np.frombuffer(reply.body[length:], np.float32), ask(dense, call([1, 2, 3])), rtol=1e-6)


def test_other_threads_give_the_same_answers(dense: OnnxModel) -> None:
    """A new session takes the old one's place, in the fast path, too."""
    rows = np.random.default_rng(3).normal(size=(3, 3)).astype(np.float32)
    before = raw_batch(dense, rows)[1]
    dense.set_cpu_cores(2)
    assert raw_batch(dense, rows)[1] == before


# padding --------------------------------------------------------------------------------------------------------------


def weights_of(*shape: int) -> np.ndarray:
    """Seeded numbers."""
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


@pytest.fixture
def lstm(make: Make) -> Callable[[str], OnnxModel]:
    """Sequences of four numbers in, of eight out."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["steps", "w", "r"], ["all", "last"], hidden_size=8),
        helper.make_node("Squeeze", ["all", "directions"], ["flat"]),
        helper.make_node("Transpose", ["flat"], ["y"], perm=[1, 0, 2]),
        helper.make_node("Squeeze", ["last", "first"], ["h"]),
    ]
    weights = {
        "w": weights_of(1, 32, 4),
        "r": weights_of(1, 32, 8),
        "directions": np.array([1]),
        "first": np.array([0]),
    }
    return lambda pad, output="y": make(  # type: ignore[misc]
        {"x": (F32, ["n", "t", 4])}, nodes,
        {"y": (F32, ["n", "t", 8])} if output == "y" else {"h": (F32, ["n", 8])}, weights, pad=pad,
    )  # fmt: skip


@pytest.fixture
def conv(make: Make) -> Callable[[str], OnnxModel]:
    """As long as its input, zeros beyond its ends."""
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1], kernel_shape=[3])]
    return lambda pad: make(
        {"x": (F32, ["n", 2, "t"])}, nodes, {"y": (F32, ["n", 3, "t"])}, {"w": weights_of(3, 2, 3)}, pad=pad
    )


@pytest.fixture
def pooled(make: Make) -> Callable[[str], OnnxModel]:
    """The mean of embeddings where a mask is 1."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"]),
        helper.make_node("Cast", ["mask"], ["m"], to=F32),
        helper.make_node("Unsqueeze", ["m", "last"], ["m3"]),
        helper.make_node("Mul", ["e", "m3"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "one"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["m", "one"], ["count"], keepdims=1),
        helper.make_node("Div", ["sum", "count"], ["y"]),
    ]
    weights = {"table": weights_of(50, 6), "last": np.array([2]), "one": np.array([1])}
    tensors = {"ids": (I64, ["n", "t"]), "mask": (I64, ["n", "t"])}
    return lambda pad: make(tensors, nodes, {"y": (F32, ["n", 6])}, weights, pad=pad)


def requests_of(model: OnnxModel, lengths: tuple[int, ...]) -> list[Call]:
    """Random ones, as long as said where the model leaves it open."""
    generator, found = np.random.default_rng(4), []
    for length in lengths:
        tensors = {
            spec["name"]: [length if dim == -1 else dim for dim in spec["shape"][1:]]
            for spec in model.metadata()["inputs"]
        }
        value = {
            name: (np.ones(shape) if name == "mask" else generator.integers(1, 50, shape) / (2 if name == "x" else 1))
            for name, shape in tensors.items()
        }
        found.append(call({
            name: array.tolist() if name == "x" else array.astype(int).tolist() for name, array in value.items()
        }))  # fmt: skip
    return found


@pytest.mark.parametrize("kind", ["lstm", "conv", "pooled"])
@pytest.mark.parametrize("pad", ["t=8", "t=4,8,16", "8"])
def test_a_padded_batch_answers_as_each_would_alone(kind: str, pad: str, request: pytest.FixtureRequest) -> None:
    """On real models: recurrent, convolutional, and pooled under a mask."""
    build = request.getfixturevalue(kind)
    plain, padded = build(""), build(pad)
    lengths = (3, 8, 5, 1, 7, 12)
    alone = [ask(plain, one) for one in requests_of(plain, lengths)]
    calls = requests_of(padded, lengths)
    items = [padded.decode(one) for one in calls]
    assert len({padded.bucket(item) for item in items}) == (2 if "4" not in pad else 3)
    for item, answer, expected, one in zip(items, padded.predict(items), alone, calls, strict=True):
        got = json.loads(padded.encode(answer, item, one).body)
        assert np.shape(got) == np.shape(expected)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_a_check_tells_what_padding_changes(lstm: Any, pooled: Any) -> None:
    """Nothing for a sequence; much for the last state, which saw the padding."""
    assert lstm("").padding_difference() is None
    assert lstm("t=8").padding_difference() < 1e-5
    assert pooled("t=8").padding_difference() < 1e-5
    assert lstm("t=8", output="h").padding_difference() > 1e-3


def test_an_item_longer_than_any_bucket_is_a_422(lstm: Any) -> None:
    """The limit is in the sentence."""
    model = lstm("t=4,8")
    assert "input x: length 9 is more than 8, the longest" in refused(model, requests_of(model, (9,))[0])


def test_inputs_that_disagree_on_a_padded_axis_are_a_422(pooled: Any) -> None:
    """Padding would make them fit, and the answer wrong."""
    assert "axis t is 3, elsewhere 2" in refused(pooled("t=8"), call({"ids": [1, 2], "mask": [1, 1, 1]}))


@pytest.mark.parametrize(
    ("pad", "words"),
    [
        ("seq=8", "no dynamic axis seq; its dynamic axes are t"),
        ("ids.2=8", "no dynamic axis ids.2"),
        ("ids.1=8", "axis t is in several inputs, and must be padded alike"),
        ("t=8:0.5", "batch_pad, input ids: int64 cannot hold the fill value 0.5"),
        ("t=x", "is not a rule such as"),
    ],
)
def test_pad_rules_that_do_not_fit_the_model_are_refused(pooled: Any, pad: str, words: str) -> None:
    """When it is loaded."""
    with pytest.raises(LoadError, match=re.escape(words)):
        pooled(pad)


def test_a_padded_axis_stays_open_beside_an_input_shape(make: Make) -> None:
    """The shape is that of raw bodies and of the example; other lengths are padded."""
    nodes = [helper.make_node("Neg", ["x"], ["y"])]
    model = make({"x": (F32, ["n", "t"])}, nodes, {"y": (F32, ["n", "t"])}, shape="x=6", pad="t=4")
    assert model.example().tensors["x"].shape == (1, 6)
    assert ask(model, call([1, 2])) == [-1, -2]
    assert len(ask(model, call(bytes(24), OCTETS))) == 24


# strings --------------------------------------------------------------------------------------------------------------


def test_strings_go_in_and_out(make: Make) -> None:
    """As JSON, in the inference protocol, and in a batch."""
    model = make({"x": (STRING, ["n", 2])}, [helper.make_node("Identity", ["x"], ["y"])], {"y": (STRING, ["n", 2])})
    assert ask(model, call(["a", "ä"])) == ["a", "ä"]
    tensor = {"name": "x", "datatype": "BYTES", "shape": [1, 2], "data": ["b", "c"]}
    assert ask(model, call({"inputs": [tensor]}))["outputs"][0]["data"] == ["b", "c"]
    items = [model.decode(call([text, text])) for text in "de"]
    assert [answer["y"].tolist() for answer in model.predict(items)] == [[["d", "d"]], [["e", "e"]]]
    assert "raw bytes do not say" in refused(model, call(b"ab", OCTETS))
    assert model.metadata()["inputs"][0]["datatype"] == "BYTES"
    assert model.predict([model.example()])[0]["y"].tolist() == [["", ""]]


# what it says of itself -------------------------------------------------------------------------------------------------


def test_the_document_says_what_a_body_is(pair: OnnxModel, dense: OnnxModel) -> None:
    """A row or several; of several inputs an object."""
    body = dense.openapi()["paths"]["/"]["post"]["requestBody"]["content"]
    row = {"type": "array", "items": {"type": "number"}, "minItems": 3, "maxItems": 3}
    assert body["application/json"]["schema"]["anyOf"][0] == row
    assert "application/octet-stream" in body
    two = pair.openapi()["paths"]["/"]["post"]["requestBody"]["content"]
    assert list(two) == ["application/json"]
    assert two["application/json"]["schema"]["required"] == ["a", "b"]


def test_metadata_of_a_fixed_batch_say_so(make: Make) -> None:
    """So that no client tries another."""
    model = make({"x": (F32, [4, 3])}, [helper.make_node("Neg", ["x"], ["y"])], {"y": (F32, [4, 3])})
    assert model.metadata()["inputs"][0]["shape"] == [4, 3]


# models that cannot be served ----------------------------------------------------------------------------------------


def test_a_scalar_input_needs_a_handler(make: Make) -> None:
    """It has no batch axis."""
    with pytest.raises(LoadError, match="is a scalar and has no batch axis"):
        make({"x": (F32, [])}, [helper.make_node("Neg", ["x"], ["y"])], {"y": (F32, [])})


def test_inputs_of_different_fixed_batches_need_a_handler(make: Make) -> None:
    """Their first axes are no batch."""
    nodes = [helper.make_node("Add", ["a", "b"], ["y"])]
    with pytest.raises(LoadError, match=r"first axes are \[1, 2\]"):
        make({"a": (F32, [1, 2]), "b": (F32, [2, 2])}, nodes, {"y": (F32, [2, 2])})


def test_an_output_that_is_no_tensor_needs_another_export(make: Make) -> None:
    """Classifiers from scikit-learn come so."""
    nodes = [helper.make_node("SequenceConstruct", ["x"], ["y"])]
    with pytest.raises(LoadError, match=r"output y is seq\(tensor\(float\)\), no tensor"):
        make({"x": (F32, ["n"])}, nodes, {"y": helper.make_tensor_sequence_value_info("y", F32, None)})


def test_an_input_shape_that_contradicts_the_model_is_refused(make: Make) -> None:
    """Both shapes are in the sentence."""
    nodes = [helper.make_node("Neg", ["x"], ["y"])]
    with pytest.raises(LoadError, match=r"input_shape \[4\] does not fit input x"):
        make({"x": (F32, ["n", 3])}, nodes, {"y": (F32, ["n", 3])}, shape="x=4")


def test_string_outputs_are_labels(make: Make) -> None:
    """Plain JSON has them as they are."""
    model = make(
        {"i": (I64, ["n"])},
        [helper.make_node("Gather", ["names", "i"], ["y"])],
        {"y": (STRING, ["n"])},
        {"names": np.array(["cat", "dog"], object)},
    )
    assert ask(model, call([1, 0])) == ["dog", "cat"]
