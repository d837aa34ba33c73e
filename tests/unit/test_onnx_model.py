"""A bare model.onnx: small real models in onnxruntime, alone and in batches, with right and wrong requests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from infless_watchdog.calls import Call, Head, LoadError
from infless_watchdog.isolation import ItemError, run_isolated
from infless_watchdog.onnx_model import Item, OnnxModel
from infless_watchdog.settings import Settings, shapes

OCTETS = "application/octet-stream"
F32, I64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING
Tensors = dict[str, Any]
Make = Callable[..., OnnxModel]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes a model of the given graph, and loads it."""

    def made(
        inputs: Tensors, nodes: list[Any], outputs: Tensors, weights: dict[str, Any] | None = None, shape: str = ""
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
        return OnnxModel(path, Settings(function_name="m", input_shape=shapes(shape)))

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
    items = [
        Item(tensors={"x": generator.normal(size=(rows, 3)).astype(np.float32)}, rows=rows, wanted=None)
        for rows in (1, 3, 1, 2)
    ]
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
    answers = run_isolated(model.predict, [model.decode(call([n])) for n in (1, 99, 3)])
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


# models that cannot be served ----------------------------------------------------------------------------------------


def test_string_inputs_need_a_handler(make: Make) -> None:
    """There is no tensor of them in JSON that all clients agree on."""
    with pytest.raises(LoadError, match=r"input x has type tensor\(string\); write a handler.py"):
        make({"x": (STRING, ["n"])}, [helper.make_node("Identity", ["x"], ["y"])], {"y": (STRING, ["n"])})


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
