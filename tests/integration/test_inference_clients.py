"""The clients that people have, unchanged, against a running watchdog: tritonclient over HTTP and gRPC, and KServe's."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from provider_process import wait_until

pytestmark = pytest.mark.integration
httpclient = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http,grpc]")
grpcclient = pytest.importorskip("tritonclient.grpc", reason="needs tritonclient[http,grpc]")
from tritonclient.utils import InferenceServerException  # noqa: E402

NAME = "m"
ONNX = {
    "FP32": TensorProto.FLOAT, "FP64": TensorProto.DOUBLE, "FP16": TensorProto.FLOAT16, "BOOL": TensorProto.BOOL,
    "INT8": TensorProto.INT8, "INT16": TensorProto.INT16, "INT32": TensorProto.INT32, "INT64": TensorProto.INT64,
    "UINT8": TensorProto.UINT8, "UINT16": TensorProto.UINT16, "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
}  # fmt: skip
NUMPY = {
    "FP32": np.float32, "FP64": np.float64, "FP16": np.float16, "BOOL": np.bool_, "INT8": np.int8, "INT16": np.int16,
    "INT32": np.int32, "INT64": np.int64, "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32,
    "UINT64": np.uint64, "BYTES": np.object_,
}  # fmt: skip
HANDLER = '''
import os
import time

import numpy as np

def predict(batch):
    """Tensors by name: `a + b`, and the text in capitals. A negative `a` is refused. No run ends while it is held."""
    time.sleep(0.01)
    while os.path.exists(os.environ["hold_file"]):
        time.sleep(0.01)
    answers = []
    for item in batch:
        if item["a"].min() < 0:
            answers.append(ValueError("a must not be negative"))
            continue
        texts = [text.decode().upper() for text in item["text"].ravel()] if "text" in item else ["none"]
        answers.append({"sum": item["a"] + item["b"], "text": np.array(texts, object), "batch": np.array([len(batch)])})
    return answers
'''


class Served:
    """A running `python -m infless_watchdog`, HTTP and gRPC."""

    def __init__(self, folder: Path, **environment: str) -> None:
        with (
            socket.create_server(("127.0.0.1", 0), backlog=512) as requests_socket,
            socket.create_server(("127.0.0.1", 0)) as metrics_socket,
            socket.create_server(("127.0.0.1", 0)) as grpc_socket,
        ):
            self.http = f"127.0.0.1:{requests_socket.getsockname()[1]}"
            self.metrics = f"127.0.0.1:{metrics_socket.getsockname()[1]}"
            grpc_port = grpc_socket.getsockname()[1]
            grpc_socket.close()
            self.grpc = f"127.0.0.1:{grpc_port}"
            fds = (requests_socket.fileno(), metrics_socket.fileno())
            self.hold = folder / "hold"
            mine = {
                "listen_fds": f"{fds[0]},{fds[1]}", "grpc_port": str(grpc_port), "function_name": NAME,
                "hold_file": str(self.hold),
            }  # fmt: skip
            self.log = folder / "log.txt"
            with self.log.open("wb") as log:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "infless_watchdog"],
                    env={**os.environ, "healthcheck_interval": "0", **mine, **environment},
                    cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, pass_fds=fds,
                )  # fmt: skip

    def until_ready(self) -> None:
        """Wait until the model is loaded."""
        wait_until(self._is_ready, "it is ready")

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with suppress(OSError), urllib.request.urlopen(f"http://{self.http}/_/ready", timeout=5):
            return True
        return False

    @contextmanager
    def held(self) -> Iterator[None]:
        """No run of HANDLER ends in this context."""
        self.hold.touch()
        try:
            yield
        finally:
            self.hold.unlink()

    @contextmanager
    def held_until(self, in_flight: int) -> Iterator[None]:
        """No run of HANDLER ends before so many requests are in flight: those that came after the first wait together."""

        def hold() -> None:
            with self.held():
                self.until("http_requests_in_flight", in_flight)

        with ThreadPoolExecutor(1) as pool:
            holding = pool.submit(hold)
            wait_until(self.hold.exists, "it is held")
            yield
        holding.result()

    def until(self, name: str, value: float) -> None:
        """Wait until a metric has a value."""
        wait_until(lambda: self.metric(name) == value, f"{name} is {value}")

    def listens(self) -> bool:
        """Whether a connection for requests can be made."""
        host, _, port = self.http.partition(":")
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except ConnectionError:
            return False
        return True

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))

    def end(self) -> None:
        """Stop it in order, and see that it does."""
        self.process.terminate()
        try:
            code = self.process.wait(30)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        assert code == 0, self.log.read_text()
        assert "Traceback" not in self.log.read_text(), self.log.read_text()


def serve(folder: Path, files: dict[str, bytes], **environment: str) -> Iterator[Served]:
    """Serve a function until the module's tests are over."""
    (folder / "function").mkdir()
    for name, content in files.items():
        (folder / "function" / name).write_bytes(content)
    served = Served(folder, **environment)
    try:
        served.until_ready()
        yield served
    finally:
        served.end()


def identity(**tensors: int) -> bytes:
    """A model that hands each input `in_X` on as `out_X`: rows of three."""
    inputs = [helper.make_tensor_value_info(f"in_{name}", kind, ["n", 3]) for name, kind in tensors.items()]
    outputs = [helper.make_tensor_value_info(f"out_{name}", kind, ["n", 3]) for name, kind in tensors.items()]
    nodes = [helper.make_node("Identity", [f"in_{name}"], [f"out_{name}"]) for name in tensors]
    return _model(inputs, nodes, outputs)


def _model(inputs: list[Any], nodes: list[Any], outputs: list[Any], *weights: Any) -> bytes:
    graph = helper.make_graph(nodes, "g", inputs, outputs, [*weights])
    opset = [helper.make_opsetid("", 17)]
    octets: bytes = helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
    return octets


def dense() -> bytes:
    """A model `y = x W`, four in and two out."""
    weights = numpy_helper.from_array(np.arange(8, dtype=np.float32).reshape(4, 2), "w")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])
    return _model([x], [helper.make_node("MatMul", ["x", "w"], ["y"])], [y], weights)


def product(x: np.ndarray) -> np.ndarray:
    """What `dense` answers."""
    y: np.ndarray = x @ np.arange(8, dtype=np.float32).reshape(4, 2)
    return y


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A bare model.onnx."""
    yield from serve(tmp_path_factory.mktemp("dense"), {"model.onnx": dense()})


@pytest.fixture(scope="module")
def types(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A bare model.onnx with an input of each numeric type."""
    yield from serve(tmp_path_factory.mktemp("types"), {"model.onnx": identity(**ONNX)})


@pytest.fixture(scope="module")
def strings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A bare model.onnx that takes strings."""
    yield from serve(tmp_path_factory.mktemp("strings"), {"model.onnx": identity(BYTES=TensorProto.STRING)})


@pytest.fixture(scope="module")
def handler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A handler.py with predict."""
    yield from serve(tmp_path_factory.mktemp("handler"), {"handler.py": HANDLER.encode()})


class Client:
    """tritonclient over one of its transports; the two differ in how they return what is told."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.module: ModuleType = httpclient if kind == "http" else grpcclient
        self._open: dict[str, Any] = {}

    def of(self, served: Served) -> Any:
        """A connected client."""
        url = served.http if self.kind == "http" else served.grpc
        if url not in self._open:
            options = {"concurrency": 64} if self.kind == "http" else {}
            self._open[url] = self.module.InferenceServerClient(url, **options)
        return self._open[url]

    def close(self) -> None:
        """Hang up."""
        for client in self._open.values():
            client.close()

    def told(self, served: Served, what: str, *arguments: Any) -> Any:
        """What a `get_...` method tells, as plain values."""
        more = {} if self.kind == "http" else {"as_json": True}
        return getattr(self.of(served), f"get_{what}")(*arguments, **more)

    def inputs(self, *, binary: bool = True, **arrays: np.ndarray) -> list[Any]:
        """Input tensors by name."""
        made = []
        for name, array in arrays.items():
            datatype = next(key for key, kind in NUMPY.items() if kind == array.dtype.type)
            one = self.module.InferInput(name, [*array.shape], datatype)
            one.set_data_from_numpy(array, **({} if binary else {"binary_data": False}))
            made.append(one)
        return made

    def infer(self, served: Served, inputs: list[Any], **options: Any) -> Any:
        """One request and its answer."""
        return self.of(served).infer(NAME, inputs, **options)


@pytest.fixture(params=["http", "grpc"])
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    """tritonclient, over HTTP and over gRPC."""
    made = Client(request.param)
    yield made
    made.close()


@pytest.fixture
def over_http() -> Iterator[Client]:
    """tritonclient over HTTP."""
    made = Client("http")
    yield made
    made.close()


@pytest.fixture
def over_grpc() -> Iterator[Client]:
    """tritonclient over gRPC."""
    made = Client("grpc")
    yield made
    made.close()


X = np.array([[1, 2, 3, 4]], np.float32)

# what is told --------------------------------------------------------------------------------------------------------


def test_the_server_and_its_model_are_live_and_ready(client: Client, model: Served) -> None:
    """Health as tritonclient asks for it; a model of another name is not ready."""
    triton = client.of(model)
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready(NAME)
    assert triton.is_model_ready(NAME, "1")
    assert not triton.is_model_ready("another")


def test_metadata_name_the_tensors(client: Client, model: Served) -> None:
    """Server and model metadata."""
    server = client.told(model, "server_metadata")
    assert server["name"] == "infless-watchdog"
    assert {"binary_tensor_data", "statistics", "model_configuration"} <= {*server["extensions"]}
    said = client.told(model, "model_metadata", NAME)
    assert (said["name"], said["versions"]) == (NAME, ["1"])
    assert [(one["name"], one["datatype"], [int(d) for d in one["shape"]]) for one in said["inputs"]] == [
        ("x", "FP32", [-1, 4])
    ]
    assert [(one["name"], one["datatype"], [int(d) for d in one["shape"]]) for one in said["outputs"]] == [
        ("y", "FP32", [-1, 2])
    ]


def test_the_configuration_says_the_largest_batch(client: Client, model: Served) -> None:
    """Model configuration, as performance tools read it before they measure."""
    told = client.told(model, "model_config", NAME)
    config = told if client.kind == "http" else told["config"]
    assert (config["name"], config["max_batch_size"]) == (NAME, 32)
    tensors = [(one["name"], one["data_type"], [int(dim) for dim in one["dims"]]) for one in config["input"]]
    assert tensors == [("x", "TYPE_FP32", [4])]
    assert "dynamic_batching" in config


def test_the_repository_has_one_model(client: Client, model: Served) -> None:
    """The index of models."""
    index = client.told(model, "model_repository_index")
    models = index if client.kind == "http" else index["models"]
    assert [(one["name"], one["state"]) for one in models] == [(NAME, "READY")]


def test_statistics_count_requests(client: Client, model: Served) -> None:
    """Two requests more are two successes more."""

    def successes() -> int:
        (one,) = client.told(model, "inference_statistics", NAME)["model_stats"]
        return int(one.get("inference_stats", {}).get("success", {}).get("count", 0))

    before = successes()
    for _ in range(2):
        client.infer(model, client.inputs(x=X))
    assert successes() == before + 2
    (everything,) = client.told(model, "inference_statistics")["model_stats"]
    assert int(everything["last_inference"]) > 1_500_000_000_000


# tensors -------------------------------------------------------------------------------------------------------------


def test_tensors_of_every_type_come_back_as_they_went(client: Client, types: Served) -> None:
    """Twelve inputs and outputs in binary form, each with the extremes of its type."""
    sent = {}
    for name in ONNX:
        kind = NUMPY[name]
        if name == "BOOL":
            values: Any = [True, False, True]
        elif name.startswith("FP"):
            values = [np.finfo(kind).max, np.nan, -0.0]
        else:
            values = [np.iinfo(kind).max, np.iinfo(kind).min, 1]
        sent[name] = np.array([values, values[::-1]], kind)
    result = client.infer(types, client.inputs(**{f"in_{name}": array for name, array in sent.items()}))
    for name, array in sent.items():
        came = result.as_numpy(f"out_{name}")
        assert came.dtype == array.dtype, name
        np.testing.assert_array_equal(came, array, err_msg=name)


def test_tensors_as_json_come_back_as_they_went(over_http: Client, types: Served) -> None:
    """The same in JSON both ways; halves go in binary form, for which tritonclient has no JSON, and come in JSON."""
    sent = {name: np.array([[0, 1, 1]], NUMPY[name]) for name in ONNX}
    inputs = [
        *over_http.inputs(**{"in_FP16": sent["FP16"]}),
        *over_http.inputs(binary=False, **{f"in_{name}": array for name, array in sent.items() if name != "FP16"}),
    ]
    outputs = [httpclient.InferRequestedOutput(f"out_{name}", binary_data=False) for name in ONNX]
    result = over_http.infer(types, inputs, outputs=outputs)
    for name, array in sent.items():
        np.testing.assert_array_equal(result.as_numpy(f"out_{name}"), array, err_msg=name)
    assert "data" in result.get_output("out_FP32")


def test_brain_floats_are_taken_as_floats(client: Client, model: Served) -> None:
    """BF16 in binary form, which numpy has only by ml_dtypes (onnx brings it)."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = client.module.InferInput("x", [1, 4], "BF16")
    x.set_data_from_numpy(X.astype(ml_dtypes.bfloat16))
    np.testing.assert_array_equal(client.infer(model, [x]).as_numpy("y"), product(X))


TEXTS = np.array([["", "plain", "größer, 大きい"]], np.object_)


def test_strings_through_a_model(client: Client, strings: Served) -> None:
    """BYTES into a model of strings and back."""
    came = client.infer(strings, client.inputs(in_BYTES=TEXTS)).as_numpy("out_BYTES")
    assert [text.decode() for text in came.ravel()] == TEXTS.ravel().tolist()
    assert came.shape == TEXTS.shape


def test_strings_as_json(over_http: Client, strings: Served) -> None:
    """BYTES as JSON strings both ways."""
    outputs = [httpclient.InferRequestedOutput("out_BYTES", binary_data=False)]
    result = over_http.infer(strings, over_http.inputs(binary=False, in_BYTES=TEXTS), outputs=outputs)
    assert result.get_output("out_BYTES")["data"] == TEXTS.ravel().tolist()


def test_a_handler_gets_tensors_by_name(client: Client, handler: Served) -> None:
    """Several inputs and outputs of a handler, strings among them."""
    inputs = client.inputs(a=X, b=X * 2, text=np.array(["abc", "dé"], np.object_))
    result = client.infer(handler, inputs)
    np.testing.assert_array_equal(result.as_numpy("sum"), X * 3)
    assert [text.decode() for text in result.as_numpy("text")] == ["ABC", "DÉ"]
    assert result.as_numpy("batch").tolist() == [1]


def test_a_handler_takes_json(over_http: Client, handler: Served) -> None:
    """JSON both ways."""
    outputs = [httpclient.InferRequestedOutput(name, binary_data=False) for name in ("sum", "text")]
    result = over_http.infer(handler, over_http.inputs(binary=False, a=X, b=X), outputs=outputs)
    assert result.get_output("sum")["data"] == (X * 2).ravel().tolist()
    assert result.get_output("text")["data"] == ["NONE".lower()]
    assert result.get_output("batch") is None


def test_the_id_and_the_outputs_asked_for(client: Client, types: Served) -> None:
    """The answer has the request's id, and of the outputs what was asked for, in that order."""
    arrays = {f"in_{name}": np.ones((2, 3), NUMPY[name]) for name in ONNX}
    outputs = [client.module.InferRequestedOutput(name) for name in ("out_INT8", "out_FP32")]
    result = client.infer(types, client.inputs(**arrays), outputs=outputs, request_id="my-id")
    answer = result.get_response() if client.kind == "http" else result.get_response(as_json=True)
    assert answer["id"] == "my-id"
    assert answer["model_name"] == NAME
    assert [one["name"] for one in answer["outputs"]] == ["out_INT8", "out_FP32"]


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compressed_requests(client: Client, handler: Served, coding: str) -> None:
    """Compressed requests are read, and compressed answers wanted, by what each transport calls it."""
    a = np.zeros((1, 10_000), np.float32)
    if client.kind == "http":
        options = {"request_compression_algorithm": coding, "response_compression_algorithm": coding}
    else:
        options = {"compression_algorithm": coding}
    result = client.infer(handler, client.inputs(a=a, b=a + 1), **options)
    np.testing.assert_array_equal(result.as_numpy("sum"), a + 1)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compressed_requests_to_a_model(over_http: Client, model: Served, coding: str) -> None:
    """A bare model takes compressed bodies too; a JSON answer of some size comes compressed."""
    x = np.repeat(X, 5000, axis=0)
    options = {"request_compression_algorithm": coding, "response_compression_algorithm": coding}
    outputs = [httpclient.InferRequestedOutput("y", binary_data=False)]
    result = over_http.infer(model, over_http.inputs(x=x), outputs=outputs, **options)
    np.testing.assert_array_equal(result.as_numpy("y"), product(x))


# many at once --------------------------------------------------------------------------------------------------------


def runs(client: Client, served: Served) -> tuple[int, int]:
    """Requests answered and batches run so far, by the statistics."""
    (one,) = client.told(served, "inference_statistics", NAME)["model_stats"]
    return int(one.get("inference_count", 0)), int(one.get("execution_count", 0))


def test_64_requests_in_flight_are_batched(client: Client, handler: Served) -> None:
    """Asynchronous requests of one client share runs, which the statistics show; each gets its own answer."""
    requests_before, runs_before = runs(client, handler)
    requests = [client.inputs(a=X * place, b=X) for place in range(64)]
    with handler.held_until(64):
        results = in_flight(client, handler, requests)
    for place, result in enumerate(results):
        np.testing.assert_array_equal(result.as_numpy("sum"), X * (place + 1))
    requests_after, runs_after = runs(client, handler)
    assert requests_after - requests_before == 64
    assert runs_after - runs_before <= 8


def test_64_requests_to_a_model_get_their_own_answers(client: Client, model: Served) -> None:
    """A quick model, with many in flight: nobody gets the answer of another, whether or not runs are shared."""
    before = runs(client, model)
    for place, result in enumerate(in_flight(client, model, [client.inputs(x=X * place) for place in range(64)])):
        np.testing.assert_array_equal(result.as_numpy("y"), product(X * place))
    after = runs(client, model)
    assert after[0] - before[0] == 64
    assert 2 <= after[1] - before[1] <= 64


def test_clients_on_asyncio(handler: Served) -> None:
    """tritonclient's asyncio clients, 64 requests at once on each transport, in few runs."""
    from tritonclient.grpc import aio as grpc_aio
    from tritonclient.http import aio as http_aio

    async def scenario() -> None:
        async with (
            http_aio.InferenceServerClient(handler.http, conn_limit=64) as http,
            grpc_aio.InferenceServerClient(handler.grpc) as grpc,
        ):
            assert await http.is_model_ready(NAME)
            assert await grpc.is_model_ready(NAME)
            for client, kind in ((http, "http"), (grpc, "grpc")):
                inputs = [Client(kind).inputs(a=X * place, b=X) for place in range(64)]
                with handler.held_until(64):
                    results = await asyncio.gather(*(client.infer(NAME, one) for one in inputs))
                for place, result in enumerate(results):
                    np.testing.assert_array_equal(result.as_numpy("sum"), X * (place + 1))
                assert max(int(result.as_numpy("batch")[0]) for result in results) >= 8

    asyncio.run(scenario())


def in_flight(client: Client, served: Served, requests: list[list[Any]]) -> list[Any]:
    """All requests at once; the results in order."""
    triton = client.of(served)
    if client.kind == "http":
        return [asked.get_result() for asked in [triton.async_infer(NAME, inputs) for inputs in requests]]
    came: queue.Queue[tuple[int, Any, Any]] = queue.Queue()
    for place, inputs in enumerate(requests):
        triton.async_infer(NAME, inputs, lambda result, error, place=place: came.put((place, result, error)))
    found: dict[int, Any] = {}
    while len(found) < len(requests):
        place, result, error = came.get(timeout=30)
        assert error is None, error
        found[place] = result
    return [found[place] for place in range(len(requests))]


def test_a_stream_of_requests(over_grpc: Client, handler: Served) -> None:
    """tritonclient's stream: many requests, answers in their order, a bad one fails alone."""
    came: queue.Queue[tuple[Any, Any]] = queue.Queue()
    triton = over_grpc.of(handler)
    triton.start_stream(callback=lambda result, error: came.put((result, error)))
    with handler.held_until(40):
        for place in range(40):
            inputs = over_grpc.inputs(a=X * (-1 if place == 7 else place), b=X)
            triton.async_stream_infer(NAME, inputs, request_id=str(place))
        answers = [came.get(timeout=30) for _ in range(40)]
    triton.stop_stream()
    for place, (result, error) in enumerate(answers):
        if place == 7:
            assert "a must not be negative" in str(error)
        else:
            assert result.get_response().id == str(place)
            np.testing.assert_array_equal(result.as_numpy("sum"), X * (place + 1))
    assert max(int(result.as_numpy("batch")[0]) for result, _ in answers if result) >= 8


def test_many_clients_of_both_transports_share_batches(handler: Served) -> None:
    """Requests that come over HTTP and over gRPC at once are in the same runs."""

    def ask(place: int) -> int:
        client = Client("http" if place % 2 else "grpc")
        try:
            result = client.infer(handler, client.inputs(a=X * place, b=X))
            np.testing.assert_array_equal(result.as_numpy("sum"), X * (place + 1))
            return int(result.as_numpy("batch")[0])
        finally:
            client.close()

    with ThreadPoolExecutor(8) as threads, handler.held_until(8):
        assert max(threads.map(ask, range(48))) >= 4


# what is wrong -------------------------------------------------------------------------------------------------------


def refused(call: Callable[[], Any]) -> tuple[str, str]:
    """The status and the sentence of a refusal."""
    with pytest.raises(InferenceServerException) as caught:
        call()
    return str(caught.value.status()), str(caught.value.message())


def test_a_wrong_shape_is_told(client: Client, model: Served) -> None:
    """Our sentence arrives in the client's exception."""
    status, sentence = refused(lambda: client.infer(model, client.inputs(x=np.ones((1, 5), np.float32))))
    assert sentence == "input x: shape [1, 5] does not fit the model's [-1, 4]"
    assert status == ("422" if client.kind == "http" else "StatusCode.INVALID_ARGUMENT")


def test_a_wrong_datatype_is_told(client: Client, model: Served) -> None:
    """Floats of another size."""
    _, sentence = refused(lambda: client.infer(model, client.inputs(x=X.astype(np.float64))))
    assert sentence == "input x: datatype FP64 came, the model takes FP32"


def test_wrong_names_are_told(client: Client, model: Served) -> None:
    """Inputs, outputs and models that there are not."""
    _, sentence = refused(lambda: client.infer(model, client.inputs(z=X)))
    assert sentence == "the model's inputs are x; missing: x; unknown: z"
    outputs = [client.module.InferRequestedOutput("z")]
    _, sentence = refused(lambda: client.infer(model, client.inputs(x=X), outputs=outputs))
    assert sentence == "the model's outputs are y; unknown: z"
    triton = client.of(model)
    status, sentence = refused(lambda: triton.infer("another", client.inputs(x=X)))
    assert sentence == "the model is m, not another"
    assert status == ("404" if client.kind == "http" else "StatusCode.NOT_FOUND")
    for what in ("model_metadata", "model_config", "inference_statistics"):
        assert "another" in refused(lambda what=what: client.told(model, what, "another"))[1]


def test_what_a_handler_refuses_is_told(client: Client, handler: Served) -> None:
    """An item that the handler fails is that client's own error."""
    _, sentence = refused(lambda: client.infer(handler, client.inputs(a=-X, b=X)))
    assert "a must not be negative" in sentence


def test_shared_memory_is_refused(client: Client, model: Served) -> None:
    """Tensors in shared memory are not offered, and it says so."""
    x = client.module.InferInput("x", [1, 4], "FP32")
    x.set_shared_memory("region", 16)
    assert "shared memory is not offered" in refused(lambda: client.infer(model, [x]))[1]


def test_a_clients_deadline_withdraws_the_request(over_grpc: Client, handler: Served) -> None:
    """A client that waits no longer is told by its own library, and counted here as gone; the next one is served."""
    before = handler.metric("infless_clients_gone_total")
    inputs = over_grpc.inputs(a=X, b=X)
    assert over_grpc.of(handler).is_server_ready()  # it is connected
    with handler.held():
        status, _ = refused(lambda: over_grpc.infer(handler, inputs, client_timeout=2))
        assert status == "StatusCode.DEADLINE_EXCEEDED"
        handler.until("infless_clients_gone_total", before + 1)
    over_grpc.infer(handler, inputs)


def test_the_books_balance(handler: Served, model: Served, types: Served) -> None:
    """After all of the above, every request that came is answered or its client gone, over either transport."""
    for served in (handler, model, types):
        served.until("http_requests_in_flight", 0)
        answered, gone = served.metric("http_requests_total"), served.metric("infless_clients_gone_total")
        assert served.metric("infless_requests_received_total") == answered + gone > 0


# the life of a process with gRPC -------------------------------------------------------------------------------------


def start(folder: Path, content: bytes, **environment: str) -> Served:
    """A process of the test's own."""
    (folder / "function").mkdir()
    (folder / "function" / "handler.py").write_bytes(content)
    return Served(folder, **environment)


def test_a_model_that_cannot_load_ends_the_process(tmp_path: Path) -> None:
    """With a gRPC server already listening, a broken handler still ends the instance with its sentence."""
    served = start(tmp_path, b"raise RuntimeError('no such weights')\n")
    try:
        assert served.process.wait(30) != 0
        assert "no such weights" in served.log.read_text()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(served.process.pid, signal.SIGKILL)


def test_sigterm_drains_grpc_too(tmp_path: Path, over_grpc: Client) -> None:
    """Requests in the making when SIGTERM comes are answered, whatever they came by."""
    served = start(tmp_path, HANDLER.encode())
    try:
        served.until_ready()
        triton = over_grpc.of(served)
        came: queue.Queue[tuple[Any, Any]] = queue.Queue()
        with served.held():
            for _ in range(8):
                inputs = over_grpc.inputs(a=X, b=X)
                triton.async_infer(NAME, inputs, lambda result, error: came.put((result, error)))
            served.until("http_requests_in_flight", 8)
            served.process.terminate()
            wait_until(lambda: not served.listens(), "it takes no more")
            with pytest.raises(subprocess.TimeoutExpired):
                served.process.wait(1)
        assert [error for _, error in (came.get(timeout=30) for _ in range(8))] == [None] * 8
    finally:
        served.end()


# KServe --------------------------------------------------------------------------------------------------------------


KSERVE = """
import asyncio, sys
import kserve
import numpy as np

http, grpc, name = sys.argv[1:]
x = np.array([[1, 2, 3, 4]], np.float32)
y = x @ np.arange(8, dtype=np.float32).reshape(4, 2)


def request(binary):
    tensor = kserve.InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(x, binary_data=binary)
    return kserve.InferRequest(model_name=name, infer_inputs=[tensor], request_id="k")


def check(answer):
    np.testing.assert_array_equal(answer.outputs[0].as_numpy().reshape(1, 2), y)
    assert answer.id == "k"


async def over_http():
    client, url = kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v2")), f"http://{http}"
    assert await client.is_server_live(url) and await client.is_server_ready(url)
    assert await client.is_model_ready(url, name)
    for binary in (False, True):
        check(await client.infer(url, request(binary), model_name=name))
    await client.close()


async def over_grpc():
    async with kserve.InferenceGRPCClient(grpc) as client:
        assert await client.is_server_live() and await client.is_server_ready()
        assert await client.is_model_ready(name)
        for binary in (False, True):
            check(await client.infer(request(binary)))


asyncio.run(over_http())
asyncio.run(over_grpc())
"""


@pytest.mark.skipif(find_spec("kserve") is None, reason="needs kserve, which is too heavy for everybody")
def test_kserves_own_clients(model: Served) -> None:
    """KServe's clients: health, and inference in JSON, binary form, typed and raw contents.

    In a process of their own: they and tritonclient bring messages of the same name, which protobuf has once in each.
    """
    command = [sys.executable, "-W", "ignore", "-c", KSERVE, model.http, model.grpc, NAME]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr


def test_plain_json_by_hand(model: Served) -> None:
    """What the protocol's own documents show with curl."""
    request = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": X.tolist()}]}
    url = f"http://{model.http}/v2/models/{NAME}/infer"
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(request).encode()), timeout=5) as answer:
        (output,) = json.load(answer)["outputs"]
    assert output == {"name": "y", "shape": [1, 2], "datatype": "FP32", "data": product(X).ravel().tolist()}
