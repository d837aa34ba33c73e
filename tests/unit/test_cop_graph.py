"""Models taken apart as the runtime executes them, and each operator run alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from benchmarks.models import lstm, mlp
from onnx import TensorProto, helper, numpy_helper

from infless_core.errors import InvalidInput
from infless_profiler.around import CALL, MODEL, OURS, TRANSFER
from infless_profiler.graph import Extraction, check_memory, read_graph, without
from infless_profiler.model_file import ModelFile, read_model
from infless_profiler.operators import Operator
from infless_profiler.sessions import open_session, this_device

onnxruntime = pytest.importorskip("onnxruntime")
DEVICE = this_device()


def made(
    nodes: list[Any], shape: list[Any], weights: dict[str, Any] | None = None, kind: int = TensorProto.FLOAT
) -> Any:
    """A model from `x` to `y`."""
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in (weights or {}).items()]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", kind, shape)], [onnx.ValueInfoProto(name="y")], initializers
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def node(kind: str, takes: str, gives: str = "y", **attributes: Any) -> Any:
    """By names with spaces between."""
    return helper.make_node(kind, takes.split(), gives.split(), **attributes)


@pytest.fixture
def taken_apart(tmp_path: Path) -> Any:
    """Save a model and take it apart."""

    def take(model: Any, **more: Any) -> tuple[ModelFile, Extraction]:
        onnx.save(model, tmp_path / "net.onnx")
        file = read_model(tmp_path / "net.onnx", **more)
        return file, read_graph(file, DEVICE)

    return take


def own(found: Extraction) -> list[Operator]:
    """Of the model itself, in order of their calls."""
    return [call.operator for call in found.graph.calls if call.operator.domain != OURS]


def run_alone(found: Extraction, batch: int) -> None:
    """Every operator on its own, and more copies of it."""
    for signature, operator in found.graph.operators.items():
        if operator.type == TRANSFER:
            continue
        case = found.cases[signature]
        feed = {name: one.array(batch) for name, one in case.feeds.items()}
        for copies in (1,) if operator.type == MODEL else (1, 3):
            session = open_session(case.path or case.model(copies), DEVICE, 1, optimise=False)
            answers = session.run(None, feed)
            wanted = next((one for one in operator.outputs if one is not None), None)
            if operator.domain != OURS and wanted is not None:
                assert answers[0].shape == wanted.shape(batch), operator


def test_a_chain(taken_apart: Any) -> None:
    """Each call needs the one before; then come the call itself and the copy of its answer."""
    _, found = taken_apart(mlp((8, 16, 4)))
    graph = found.graph
    assert [one.type for one in graph.operators.values()][-2:] == [CALL, TRANSFER]
    calls = [call for call in graph.calls if call.operator.domain != OURS]
    assert [call.needs for call in calls] == [(), *((place,) for place in range(len(calls) - 1))]
    assert (graph.name, graph.batch_max, graph.notes) == ("net", None, ())
    assert graph.parameter_bytes == 4 * (8 * 16 + 16 * 4)
    assert found.cases.keys() == graph.operators.keys()


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_every_operator_of_a_chain_runs_alone(taken_apart: Any, batch: int) -> None:
    """For batches that the model was never run with while it was read."""
    run_alone(taken_apart(mlp((8, 16, 4)))[1], batch)


def test_a_recurrent_layer(taken_apart: Any) -> None:
    """The batch is in the middle, an output is left out."""
    _, found = taken_apart(lstm(5, 8))
    layer = next(one for one in own(found) if one.type == "LSTM")
    assert layer.inputs[0] is not None
    assert layer.inputs[0].shape(3) == (5, 3, 8)
    run_alone(found, 4)


def test_equal_layers_are_one_operator(taken_apart: Any) -> None:
    """Called three times, whatever their weights hold."""
    _, found = taken_apart(mlp((32, 32, 32, 32)))
    first = own(found)[0]
    assert found.graph.counts[first.signature] == 3


def test_two_models_share_what_they_have_in_common(taken_apart: Any) -> None:
    """Signatures are the same in every model, and on every day."""
    small, large = (taken_apart(mlp(sizes))[1].graph.operators for sizes in ((32, 32, 4), (32, 32, 16, 4)))
    assert len(small.keys() & large.keys()) >= 4
    assert small.keys() == taken_apart(mlp((32, 32, 4), seed=7))[1].graph.operators.keys()


def test_branches(taken_apart: Any) -> None:
    """Two calls need the same one, and a third needs both."""
    nodes = [node("Softmax", "x", "a"), node("Exp", "a", "b"), node("Tanh", "a", "c"), node("Add", "b c")]
    _, found = taken_apart(made(nodes, ["n", 4]))
    calls = [(call.operator.type, call.needs) for call in found.graph.calls if call.operator.domain != OURS]
    assert calls[0] == ("Softmax", ())
    assert sorted(calls[1:3]) == [("Exp", (0,)), ("Tanh", (0,))]
    assert calls[3] == ("Add", (1, 2))


def test_lengths_computed_from_the_batch_grow_with_it(taken_apart: Any) -> None:
    """A Reshape to `[batch * 2, 2]` runs alone for any batch."""
    nodes = [
        node("Shape", "x", "shape"), node("Gather", "shape zero", "b"), node("Mul", "b two", "rows"),
        node("Concat", "rows two", "to", axis=0), node("Reshape", "x to"),
    ]  # fmt: skip
    weights = {"zero": np.array([0], np.int64), "two": np.array([2], np.int64)}
    _, found = taken_apart(made(nodes, ["n", 4], weights))
    assert found.graph.batch_max is None
    run_alone(found, 6)


def test_a_condition_is_part_of_what_an_operator_is(taken_apart: Any) -> None:
    """What decides by value is another operator for another value."""
    nodes = [node("TopK", "x k", "y i")]
    found = [own(taken_apart(made(nodes, ["n", 9], {"k": np.array([k], np.int64)}))[1])[0].signature for k in (2, 3, 2)]
    assert found[0] == found[2] != found[1]


def branch(kind: str) -> Any:
    """A graph that uses a value from outside."""
    return helper.make_graph([node(kind, "x", f"{kind}_out")], kind, [], [onnx.ValueInfoProto(name=f"{kind}_out")])


def test_control_flow_is_measured_as_one_piece(taken_apart: Any) -> None:
    """An If with what is in it, and a note that says so; it runs alone."""
    nodes = [
        node("ReduceSum", "x", "sum", keepdims=0), node("Greater", "sum zero", "more"),
        node("If", "more", then_branch=branch("Exp"), else_branch=branch("Tanh")),
    ]  # fmt: skip
    _, found = taken_apart(made(nodes, ["n", 4], {"zero": np.float32(0)}))
    assert found.graph.notes == ("operator If: measured as one piece with what it contains",)
    assert [one.type for one in own(found)] == ["ReduceSum", "Greater", "If"]
    decides = own(found)[2]
    assert decides.attributes["value of input 0"] == 1
    assert len(decides.inputs) == 2
    run_alone(found, 3)


def test_a_shape_that_does_not_grow_evenly_makes_one_piece(taken_apart: Any) -> None:
    """A result of batch times batch: the model is one operator, and a note says why."""
    nodes = [
        node("Transpose", "x", "t", perm=[1, 0]),
        node("MatMul", "x t", "square"),
        node("Flatten", "square", "f", axis=0),
        node("Relu", "f"),
    ]
    file, found = taken_apart(made(nodes, ["n", 4]))
    assert [one.type for one in found.graph.operators.values()] == [MODEL]
    assert found.graph.notes == (
        "measured as a whole: the shape of its value 'y' does not grow evenly with the batch",
    )  # fmt: skip
    assert found.graph.parameter_bytes == file.size_bytes
    run_alone(found, 5)


def test_a_value_that_shrinks_with_the_batch_makes_one_piece(taken_apart: Any) -> None:
    """Four rows less the batch: for eight items it would be less than nothing."""
    nodes = [
        node("Shape", "x", "shape"), node("Gather", "shape zero", "b"), node("Slice", "rows b four", "rest"),
        node("ReduceSum", "rest", "sum", keepdims=0), node("Add", "x sum"),
    ]  # fmt: skip
    weights = {"zero": np.array([0]), "four": np.array([4]), "rows": np.ones((4, 3), np.float32)}
    _, found = taken_apart(made(nodes, ["n", 4], weights))
    assert found.graph.notes == ("measured as a whole: its value 'rest' shrinks with the batch",)
    run_alone(found, 8)


def test_a_value_that_is_no_tensor_makes_one_piece(taken_apart: Any) -> None:
    """A sequence has no shape."""
    nodes = [node("SequenceConstruct", "x x", "s"), node("ConcatFromSequence", "s", axis=1)]
    _, found = taken_apart(made(nodes, ["n", 4]))
    assert found.graph.notes == ("measured as a whole: its value 's' is no tensor",)
    run_alone(found, 2)


def test_an_open_axis_that_the_model_cannot_use(taken_apart: Any) -> None:
    """Exported for one item and said otherwise: batches of one."""
    nodes = [node("Reshape", "x to")]
    _, found = taken_apart(made(nodes, ["n", 4], {"to": np.array([1, 4], np.int64)}))
    assert found.graph.batch_max == 1
    run_alone(found, 1)


def test_a_model_that_does_not_run_at_all(taken_apart: Any) -> None:
    """The shapes are in the sentence."""
    nodes = [node("Reshape", "x to")]
    with pytest.raises(InvalidInput, match="the model does not run on inputs of x=1,4: .*Reshape"):
        taken_apart(made(nodes, ["n", 4], {"to": np.array([1, 5], np.int64)}))


def test_an_operator_that_the_runtime_does_not_know(taken_apart: Any) -> None:
    """A custom operator of a library that is not here."""
    model = made([helper.make_node("Magic", ["x"], ["y"], domain="com.acme")], ["n", 4])
    model.opset_import.append(helper.make_opsetid("com.acme", 1))
    with pytest.raises(
        InvalidInput, match=r"net\.onnx: onnxruntime refuses it: .*com\.acme:Magic.* is not a registered"
    ):
        taken_apart(model)


@pytest.mark.parametrize(("place", "number"), [("opset", 999), ("ir", 99)])
def test_a_model_from_the_future(taken_apart: Any, place: str, number: int) -> None:
    """Which runtime this machine has, and what to do."""
    model = made([node("Relu", "x")], ["n", 4])
    if place == "opset":
        model.opset_import[0].version = number
    else:
        model.ir_version = number
    with pytest.raises(
        InvalidInput, match=rf"{number}.*; onnxruntime {onnxruntime.__version__} is the newest .* older opset"
    ):
        taken_apart(model)


def test_weights_in_a_file_beside_it(tmp_path: Path) -> None:
    """The same operators as with weights inside."""
    for name, more in (("in", {}), ("out", {"save_as_external_data": True, "location": "w.bin", "size_threshold": 0})):
        onnx.save(mlp((32, 64, 16)), tmp_path / f"{name}.onnx", **more)
    inside, outside = (read_graph(read_model(tmp_path / f"{name}.onnx"), DEVICE) for name in ("in", "out"))
    assert outside.graph.operators == inside.graph.operators
    assert outside.graph.parameter_bytes == inside.graph.parameter_bytes
    run_alone(outside, 3)


def test_a_model_that_does_not_fit_is_refused(taken_apart: Any) -> None:
    """Both numbers, and a remedy."""
    graph = taken_apart(mlp((8, 16, 4)))[1].graph
    check_memory(graph, 1, 1 << 30)
    with pytest.raises(
        InvalidInput, match=r"net: a batch of 4 needs at least 2 KiB of memory, and 1 KiB are free; ask"
    ):
        check_memory(graph, 4, 1 << 10)


def test_one_piece_in_place_of_many(taken_apart: Any) -> None:
    """When an operator does not run alone after all: the notes stay, and a reason is added."""
    file, found = taken_apart(mlp((8, 16, 4)))
    whole = without(found, file, "because")
    assert [one.type for one in whole.graph.operators.values()] == [MODEL]
    assert whole.graph.notes == ("measured as a whole: because",)
    assert (whole.graph.digest, whole.graph.batch_max) == (found.graph.digest, None)
    run_alone(whole, 2)
