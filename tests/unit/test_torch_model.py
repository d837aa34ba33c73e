"""A bare model.pt2 or model.pt: small real models in torch, with the same requests and answers as in onnxruntime."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infless_watchdog.calls import Call, Head, LoadError
from infless_watchdog.isolation import ItemError
from infless_watchdog.settings import Settings, shapes
from infless_watchdog.torch_model import TorchModel

torch = pytest.importorskip("torch")
# torch calls its own TorchScript old; people have models in it all the same.
pytestmark = [  # TorchScript is deprecated; there are still such files
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning"),
]

OCTETS = "application/octet-stream"
Load = Callable[..., TorchModel]


class Pooled(torch.nn.Module):  # type: ignore[misc, name-defined] # torch is untyped here
    """Embeddings, a layer over each, and their mean where a mask is 1."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table = torch.nn.Embedding(50, 6)
        self.layer = torch.nn.Linear(6, 3)

    def forward(self, ids: Any, *, mask: Any) -> dict[str, Any]:
        """Two outputs by name."""
        each = self.layer(self.table(ids)) * mask.unsqueeze(-1)
        return {"each": each, "mean": each.sum(1) / mask.sum(1, keepdim=True)}


@pytest.fixture
def exported(tmp_path: Path) -> Load:
    """Exports a module with what is dynamic in its arguments, and loads it."""

    def load(module: Any, args: Any, dynamic: Any = None, kwargs: Any = None, **settings: Any) -> TorchModel:
        program = torch.export.export(module.eval(), args, kwargs, dynamic_shapes=dynamic)
        torch.export.save(program, tmp_path / "model.pt2")
        return TorchModel(tmp_path / "model.pt2", Settings(function_name="m", **settings))

    return load


@pytest.fixture
def linear(exported: Load) -> TorchModel:
    """Rows of three in, rows of two out."""
    torch.manual_seed(0)
    return exported(torch.nn.Linear(3, 2), (torch.zeros(2, 3),), {"input": {0: torch.export.Dim("n")}})


@pytest.fixture
def pooled(exported: Load) -> Callable[[str], TorchModel]:
    """Of sequences of any length."""
    dims = {0: torch.export.Dim("n"), 1: torch.export.Dim("t")}
    args, kwargs = (torch.ones(2, 5, dtype=torch.long),), {"mask": torch.ones(2, 5)}
    return lambda pad: exported(Pooled(), args, {"ids": dims, "mask": dims}, kwargs, batch_pad=pad)


@pytest.fixture
def scripted(tmp_path: Path) -> Load:
    """Traces a module, and loads it."""

    def load(module: Any, *args: Any, shape: str = "", **settings: Any) -> TorchModel:
        torch.jit.trace(module.eval(), args).save(str(tmp_path / "model.pt"))
        return TorchModel(tmp_path / "model.pt", Settings(function_name="m", input_shape=shapes(shape), **settings))

    return load


def call(body: Any, content_type: str = "application/json") -> Call:
    """A request; what is not bytes is sent as JSON."""
    octets = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Call(Head("POST", "/", "", [(b"content-type", content_type.encode())]), octets)


def ask(model: TorchModel, request: Call) -> Any:
    """One request, all the way."""
    item = model.decode(request)
    reply = model.encode(model.predict([item])[0], item, request)
    return reply.body if reply.content_type == OCTETS.encode() else json.loads(reply.body)


def test_an_exported_program_says_what_it_takes(linear: TorchModel) -> None:
    """Names, types and shapes, with the axes that are open."""
    said = linear.metadata()
    assert said["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 3]}]
    assert said["outputs"] == [{"name": "output", "datatype": "FP32", "shape": [-1, 2]}]
    assert linear.batched


def test_raw_rows_are_answered_as_json_ones(linear: TorchModel) -> None:
    """In a batch and alone."""
    rows = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
    calls = [call(row.tobytes(), OCTETS) for row in rows]
    for row, answer in zip(rows, linear.predict([linear.decode(one) for one in calls]), strict=True):
        np.testing.assert_allclose(np.frombuffer(answer, np.float32), ask(linear, call(row.tolist())), rtol=1e-5)


def test_several_inputs_and_outputs_go_by_name(pooled: Any) -> None:
    """Keyword arguments and a dict are found again."""
    answer = ask(pooled(""), call({"ids": [1, 2, 3], "mask": [1, 1, 0]}))
    assert np.shape(answer["each"]) == (3, 3)
    np.testing.assert_allclose(answer["mean"], np.mean(answer["each"][:2], 0), rtol=1e-4)


@pytest.mark.parametrize("pad", ["8", "ids.1=4,8;mask.1=4,8"])
def test_a_padded_batch_answers_as_each_would_alone(pooled: Any, pad: str) -> None:
    """Outputs are cut back to each item's own length."""
    plain, padded = pooled(""), pooled(pad)
    bodies = [{"ids": list(range(1, n + 1)), "mask": [1] * n} for n in (3, 1, 7, 8)]
    calls = [call(body) for body in bodies]
    items = [padded.decode(one) for one in calls]
    for body, item, answer, one in zip(bodies, items, padded.predict(items), calls, strict=True):
        expected, got = ask(plain, call(body)), json.loads(padded.encode(answer, item, one).body)
        assert np.shape(got["each"]) == np.shape(expected["each"])
        for name in expected:
            np.testing.assert_allclose(got[name], expected[name], rtol=1e-4, atol=1e-6)
    assert padded.padding_difference() < 1e-5


def test_a_fixed_batch_axis_is_run_request_by_request(exported: Load) -> None:
    """What was exported for one row takes one row."""
    model = exported(torch.nn.ReLU(), (torch.zeros(1, 3),))
    assert not model.batched
    items = [model.decode(call([n, -n, 0])) for n in (1, 2)]
    assert [answer["output"].tolist() for answer in model.predict(items)] == [[[1, 0, 0]], [[2, 0, 0]]]
    with pytest.raises(ItemError, match="the batch axis is 2; the model takes 1"):
        model.decode(call([[1, 2, 3], [4, 5, 6]]))


def test_half_precision_goes_in_and_out_as_float32(exported: Load) -> None:
    """Numpy has no bfloat16, and float32 holds each of its values."""
    dynamic = {"input": {0: torch.export.Dim("n")}}
    model = exported(torch.nn.ReLU(), (torch.zeros(2, 3, dtype=torch.bfloat16),), dynamic)
    assert ask(model, call([1.5, -1, 0])) == [1.5, 0, 0]


def test_torchscript_takes_the_shape_that_is_said(scripted: Load) -> None:
    """Of its only input, or by name; answers are those of the module."""
    torch.manual_seed(0)
    module = torch.nn.Linear(3, 2)
    expected = module(torch.tensor([[1.0, 2, 3]])).detach().numpy()[0]
    for shape in ("3", "input=3"):
        model = scripted(module, torch.zeros(1, 3), shape=shape)
        assert model.batched
        np.testing.assert_allclose(ask(model, call([1, 2, 3])), expected, rtol=1e-5)
        body = np.array([1, 2, 3], np.float32).tobytes()
        np.testing.assert_allclose(np.frombuffer(ask(model, call(body, OCTETS)), np.float32), expected, rtol=1e-5)
        assert model.metadata()["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 3]}]


def test_torchscript_without_a_shape_is_refused(scripted: Load) -> None:
    """The sentence says which setting is missing."""
    with pytest.raises(LoadError, match="does not say the shape of input input; set input_shape, such as"):
        scripted(torch.nn.ReLU(), torch.zeros(1, 3))


@pytest.mark.parametrize("name", ["model.pt", "model.pt2"])
def test_what_is_no_model_is_refused(tmp_path: Path, name: str) -> None:
    """Weights alone are the usual mistake."""
    torch.save({"weight": torch.zeros(3)}, tmp_path / name)
    with pytest.raises(LoadError, match="is not a model that torch can load"):
        TorchModel(tmp_path / name, Settings(input_shape={"": (3,)}))


def test_threads_can_be_changed(linear: TorchModel) -> None:
    """They are the process's, from the next run on."""
    before = torch.get_num_threads()
    try:
        linear.set_cpu_cores(2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
