"""The inference protocol over gRPC: a real server and a real channel, before a model of a few lines."""

from __future__ import annotations

import asyncio
import importlib.util
import socket
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import numpy as np
import pytest
import uvloop
from fake_model import FakeModel
from hypothesis import given
from hypothesis import strategies as st

from infless_watchdog import oip, oip_about
from infless_watchdog.calls import Call, LoadError, Reply
from infless_watchdog.isolation import ItemError
from infless_watchdog.metrics import Metrics
from infless_watchdog.pipeline import Pipeline
from infless_watchdog.settings import Settings

grpc = pytest.importorskip("grpc", reason="needs infless[grpc]")

from google.protobuf import descriptor_pb2  # noqa: E402

from infless_watchdog import grpc_edge  # noqa: E402 - only with grpcio
from infless_watchdog import open_inference_pb2 as pb  # noqa: E402

GRACE_S = 30.0
NUMBERS = [name for name in oip.DTYPES if name != "BYTES"]


class Echo(FakeModel):
    """Tensors in, the same out."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def decode(self, call: Call) -> Any:
        """As every model of the protocol reads it."""
        return oip.parse_infer(call.body, call.head.header(oip.HEADER_LENGTH))

    def predict(self, items: list[Any]) -> Any:
        """Each its own, when the gate is open."""
        self.gate.wait(GRACE_S)
        self.batches.append(len(items))
        return [tensors for tensors, _ in items]

    def encode(self, answer: Any, item: Any, call: Call) -> Reply:
        """As wanted."""
        return oip.reply("f", answer, item[1])

    def example(self) -> Any:
        """No warming up."""
        return None

    def metadata(self) -> dict[str, Any]:
        """One input, one output."""
        tensor = {"name": "x", "datatype": "FP32", "shape": [-1, 4]}
        return oip_about.metadata("f", "fake", [tensor], [tensor])


class Instance:
    """What `app.Watchdog` is to the edge, and a client."""

    def __init__(self, model: Any, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.accepting = True
        self.model = model
        self.pipeline: Pipeline | None = Pipeline(model, settings, self.metrics, lambda: None)
        self.pipeline.begin()
        self.logged: list[str] = []
        self.edge = grpc_edge.GrpcEdge(self)
        self.channel: Any = None

    def submit(self, call: Call, deliver: Callable[[Call, Any], None]) -> None:
        """To the queue."""
        if self.pipeline is None:
            deliver(call, ItemError(503, "the model is still loading"))
        else:
            self.pipeline.submit(call, deliver)

    def log_fault(self, call: Call, fault: ItemError) -> None:
        """Kept for the test."""
        self.logged.append(f"{call.head.path}: {fault}")

    def ask(self, method: str, request: Any, **options: Any) -> Any:
        """A call of the method; await it for the response."""
        answer = getattr(pb, f"{method}Response")
        path = f"/inference.GRPCInferenceService/{method}"
        return self.channel.unary_unary(path, type(request).SerializeToString, answer.FromString)(request, **options)

    def stream(self, requests: Any) -> Any:
        """A stream of requests; iterate over it for the responses."""
        path = "/inference.GRPCInferenceService/ModelStreamInfer"
        write, read = pb.ModelInferRequest.SerializeToString, pb.ModelStreamInferResponse.FromString
        return self.channel.stream_stream(path, write, read)(requests)

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait for something to become so."""
        async with asyncio.timeout(GRACE_S):
            while not true():
                await asyncio.sleep(0.001)


def play(scenario: Callable[[Instance], Coroutine[Any, Any, None]], model: Any = None, **settings: Any) -> Instance:
    """Start an instance on uvloop, as in a worker, play, and stop it; the books must balance."""
    played: list[Instance] = []

    async def all_of_it() -> None:
        instance = Instance(model or Echo(), Settings(function_name="f", wait_max_s=0.0, **settings))
        played.append(instance)
        port = await instance.edge.start(0)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as instance.channel:
            await scenario(instance)
        await instance.edge.stop(GRACE_S)
        assert instance.pipeline is not None
        instance.pipeline.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(all_of_it())
    metrics = played[0].metrics
    assert metrics.received == sum(h.timed[0] for h in metrics.durations.values()) + metrics.gone
    assert metrics.in_flight == 0
    return played[0]


def request_of(name: str = "f", id_: str = "", **tensors: np.ndarray) -> Any:
    """A request with raw contents."""
    request = pb.ModelInferRequest(model_name=name, id=id_)
    for key, array in tensors.items():
        request.inputs.add(name=key, datatype=oip.NAMES[array.dtype], shape=array.shape)
        request.raw_input_contents.append(oip.raw(array))
    return request


ONES = np.ones((1, 4), np.float32)


async def refused(call: Any, code: Any) -> str:
    """The call is refused with this code; returns the sentence."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() == code, caught.value
    return str(caught.value.details())


def texts(*values: bytes) -> np.ndarray:
    """A BYTES tensor."""
    array = np.empty(len(values), object)
    array[:] = values
    return array


# the interface -------------------------------------------------------------------------------------------------------


def test_the_messages_are_tritons_on_the_wire() -> None:
    """Every field of ours has the name, number, type and label that Triton's own client has; both live in a process."""
    service_pb2 = pytest.importorskip("tritonclient.grpc.service_pb2")
    config_pb2 = pytest.importorskip("tritonclient.grpc.model_config_pb2")

    def fields(message: Any) -> dict[str, tuple[Any, ...]]:
        found = {field.name: (field.number, field.type, field.label) for field in message.field}
        for nested in message.nested_type:
            found |= {f"{nested.name}.{name}": shape for name, shape in fields(nested).items()}
        return found

    def messages(*files: Any) -> dict[str, Any]:
        proto = descriptor_pb2.FileDescriptorProto()
        for file in files:
            proto.MergeFromString(file.serialized_pb)
        return {message.name: fields(message) for message in proto.message_type}

    theirs, count = messages(service_pb2.DESCRIPTOR, config_pb2.DESCRIPTOR), 0
    for name, ours in messages(pb.DESCRIPTOR).items():
        assert ours.items() <= theirs[name].items(), name
        count += len(ours)
    assert count > 100
    values = config_pb2.DESCRIPTOR.enum_types_by_name["DataType"].values_by_name
    assert {v.name: v.number for v in pb.DESCRIPTOR.enum_types_by_name["DataType"].values} == {
        name: value.number for name, value in values.items()
    }


def test_without_grpcio_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """`grpc_port` without the extra is a LoadError with the pip line."""
    monkeypatch.setitem(sys.modules, "grpc", None)
    spec = importlib.util.spec_from_file_location("infless_watchdog.grpc_edge_without", grpc_edge.__file__)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(LoadError, match=r"pip install 'infless\[grpc\]'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_a_port_that_is_no_ones_to_take_is_a_sentence() -> None:
    """A port that cannot be had is a LoadError."""

    async def scenario(instance: Instance) -> None:
        with socket.create_server(("0.0.0.0", 0)) as taken:
            port = taken.getsockname()[1]
            edge = grpc_edge.GrpcEdge(instance)
            with pytest.raises(LoadError, match=f"grpc_port {port} cannot be listened on"):
                await edge.start(port)
            await edge.stop(0)

    play(scenario)


def test_the_instance_and_its_model_describe_themselves() -> None:
    """Live, ready, metadata, configuration, index and statistics are those of HTTP."""

    async def scenario(instance: Instance) -> None:
        assert (await instance.ask("ServerLive", pb.ServerLiveRequest())).live
        assert (await instance.ask("ServerReady", pb.ServerReadyRequest())).ready
        assert (await instance.ask("ModelReady", pb.ModelReadyRequest(name="f"))).ready
        assert not (await instance.ask("ModelReady", pb.ModelReadyRequest(name="g"))).ready
        assert "statistics" in (await instance.ask("ServerMetadata", pb.ServerMetadataRequest())).extensions
        said = await instance.ask("ModelMetadata", pb.ModelMetadataRequest(name="f"))
        assert (said.name, [*said.versions], said.inputs[0].name, [*said.outputs[0].shape]) == (
            "f",
            ["1"],
            "x",
            [-1, 4],
        )
        config = (await instance.ask("ModelConfig", pb.ModelConfigRequest(name="f"))).config
        assert (config.max_batch_size, config.input[0].data_type, [*config.input[0].dims]) == (32, pb.TYPE_FP32, [4])
        index = (await instance.ask("RepositoryIndex", pb.RepositoryIndexRequest())).models
        assert [(model.name, model.state) for model in index] == [("f", "READY")]
        await instance.ask("ModelInfer", request_of(x=ONES))
        stats = (await instance.ask("ModelStatistics", pb.ModelStatisticsRequest())).model_stats
        assert [(one.name, one.inference_count) for one in stats] == [("f", 1)]
        for method in ("ModelMetadata", "ModelConfig", "ModelStatistics"):
            request = getattr(pb, f"{method}Request")(name="g")
            assert "not g" in await refused(instance.ask(method, request), grpc.StatusCode.NOT_FOUND)

    play(scenario)


def test_an_instance_that_loads_or_stops_says_so() -> None:
    """Not ready, while its model loads; not live, when it ends; no request is taken meanwhile."""

    async def scenario(instance: Instance) -> None:
        pipeline, instance.pipeline = instance.pipeline, None
        assert not (await instance.ask("ServerReady", pb.ServerReadyRequest())).ready
        loading = await refused(instance.ask("ModelMetadata", pb.ModelMetadataRequest(name="f")), UNAVAILABLE)
        assert "loading" in loading
        assert "loading" in await refused(instance.ask("ModelInfer", request_of(x=ONES)), UNAVAILABLE)
        instance.pipeline = pipeline
        instance.accepting = False
        assert not (await instance.ask("ServerLive", pb.ServerLiveRequest())).live
        assert not (await instance.ask("ModelReady", pb.ModelReadyRequest(name="f"))).ready

    play(scenario)


UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


# tensors -------------------------------------------------------------------------------------------------------------


def test_raw_tensors_of_every_datatype_come_back() -> None:
    """Numbers, booleans and strings in raw contents; names, shapes, bits and the id are what was sent."""

    async def scenario(instance: Instance) -> None:
        tensors = {name: np.arange(6).reshape(2, 3).astype(oip.DTYPES[name]) for name in NUMBERS}
        tensors["BYTES"] = texts(b"", b"a\xff\x00", b"long" * 99, b"d", b"e", b"f").reshape(2, 3)
        answer = await instance.ask("ModelInfer", request_of(id_="seven", **tensors))
        assert (answer.model_name, answer.model_version, answer.id) == ("f", "1", "seven")
        assert [(out.name, out.datatype, [*out.shape]) for out in answer.outputs] == [(n, n, [2, 3]) for n in tensors]
        assert [*answer.raw_output_contents] == [oip.raw(array) for array in tensors.values()]

    play(scenario)


@given(values=st.lists(st.floats(width=32), min_size=1, max_size=8))
def test_a_request_and_its_reply_keep_every_bit(values: list[float]) -> None:
    """From message to call and from reply to message no value changes: NaN, infinities and signed zeros stay."""
    array = np.array(values, np.float32)
    call = grpc_edge.call_of(request_of(x=array))
    tensors, wanted = oip.parse_infer(call.body, call.head.header(oip.HEADER_LENGTH))
    reply = oip.reply("f", tensors, wanted)
    assert [*grpc_edge.response_of(reply, typed=False).raw_output_contents] == [array.tobytes()]
    typed = grpc_edge.response_of(reply, typed=True).outputs[0].contents.fp32_contents
    assert np.array([*typed], np.float32).tobytes() == array.tobytes() or np.isnan(array).any()


def test_typed_contents_are_answered_with_typed_contents() -> None:
    """Clients written by hand put values into fields; they find the answer there as well."""

    async def scenario(instance: Instance) -> None:
        for name, field in grpc_edge._CONTENTS.items():
            values = [b"one", b"\xff"] if name == "BYTES" else [True, False] if name == "BOOL" else [1, 0]
            request = pb.ModelInferRequest(model_name="f")
            tensor = request.inputs.add(name="x", datatype=name, shape=[2])
            getattr(tensor.contents, field).extend(values)
            answer = await instance.ask("ModelInfer", request)
            assert [*getattr(answer.outputs[0].contents, field)] == values, name
            assert [*answer.raw_output_contents] == []

    play(scenario)


def test_what_has_no_typed_field_is_answered_raw() -> None:
    """FP16 has no field: such an answer to a typed request is raw, and a typed FP16 request is refused."""

    class Halves(Echo):
        """Any numbers as FP16."""

        def encode(self, answer: Any, item: Any, call: Call) -> Reply:
            """Half of the bits."""
            return oip.reply("f", {"y": answer["x"].astype(np.float16)}, item[1])

    async def scenario(instance: Instance) -> None:
        request = pb.ModelInferRequest(model_name="f")
        request.inputs.add(name="x", datatype="FP32", shape=[1]).contents.fp32_contents.append(1.5)
        answer = await instance.ask("ModelInfer", request)
        assert [*answer.raw_output_contents] == [np.float16(1.5).tobytes()]
        request.inputs[0].datatype = "FP16"
        sentence = await refused(instance.ask("ModelInfer", request), grpc.StatusCode.INVALID_ARGUMENT)
        assert "'FP16' has no typed contents; send raw_input_contents" in sentence

    play(scenario, Halves())


def test_only_the_outputs_that_are_asked_for_come() -> None:
    """Named outputs in the order they are named; one that there is not is refused."""

    async def scenario(instance: Instance) -> None:
        request = request_of(a=ONES, b=ONES * 2, c=ONES * 3)
        request.outputs.add(name="c")
        request.outputs.add(name="a")
        answer = await instance.ask("ModelInfer", request)
        assert [out.name for out in answer.outputs] == ["c", "a"]
        assert [*answer.raw_output_contents] == [(ONES * 3).tobytes(), ONES.tobytes()]
        request.outputs.add(name="d")
        sentence = await refused(instance.ask("ModelInfer", request), grpc.StatusCode.INVALID_ARGUMENT)
        assert "unknown: d" in sentence

    play(scenario)


# what is wrong -------------------------------------------------------------------------------------------------------


def with_parameter(name: str, value: bool | str) -> Any:
    """A request whose first input has a parameter."""
    request = request_of(x=ONES)
    parameter = request.inputs[0].parameters[name]
    if isinstance(value, bool):
        parameter.bool_param = value
    else:
        parameter.string_param = value
    return request


def without_contents() -> Any:
    """A request with two inputs and one raw tensor."""
    request = request_of(x=ONES, y=ONES)
    del request.raw_input_contents[1]
    return request


def with_both() -> Any:
    """A request with an input in both forms."""
    request = request_of(x=ONES)
    request.inputs[0].contents.fp32_contents.append(1)
    return request


def too_short() -> Any:
    """A request that says more than it has."""
    request = request_of(x=ONES)
    request.inputs[0].shape[1] = 5
    return request


def out_of_range() -> Any:
    """A typed value beyond its datatype."""
    request = pb.ModelInferRequest(model_name="f")
    request.inputs.add(name="x", datatype="UINT8", shape=[1]).contents.uint_contents.append(256)
    return request


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (without_contents(), "raw_input_contents holds 1 tensors: one for each of the 2 inputs"),
        (with_both(), "and then no input has contents"),
        (with_parameter("shared_memory_region", "mine"), "shared memory is not offered"),
        (too_short(), "needs 5 values, 4 came"),
        (out_of_range(), "out of its range"),
        (pb.ModelInferRequest(model_name="f"), "inputs"),
    ],
)
def test_a_request_that_contradicts_itself_is_told_how(request_: Any, sentence: str) -> None:
    """INVALID_ARGUMENT with the sentence that HTTP has, and counted like it."""

    async def scenario(instance: Instance) -> None:
        told = await refused(instance.ask("ModelInfer", request_), grpc.StatusCode.INVALID_ARGUMENT)
        assert sentence in told
        await instance.ask("ModelInfer", request_of(x=ONES))

    assert play(scenario).metrics.received == 2


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, grpc.StatusCode.INVALID_ARGUMENT),
        (415, grpc.StatusCode.INVALID_ARGUMENT),
        (422, grpc.StatusCode.INVALID_ARGUMENT),
        (404, grpc.StatusCode.NOT_FOUND),
        (413, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (429, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (500, grpc.StatusCode.INTERNAL),
        (503, grpc.StatusCode.UNAVAILABLE),
        (504, grpc.StatusCode.DEADLINE_EXCEEDED),
    ],
)
def test_each_fault_has_its_code(status: int, code: Any) -> None:
    """An item's fault becomes the code that means the same; the handler's own ones are logged."""

    class Failing(Echo):
        """Fails each item."""

        def predict(self, items: list[Any]) -> Any:
            """With the status."""
            return [ItemError(status, "this is why") for _ in items]

    async def scenario(instance: Instance) -> None:
        call = instance.ask("ModelInfer", request_of(x=ONES))
        assert await refused(call, code) == "this is why"
        again = dict(await call.trailing_metadata()).get("grpc-retry-pushback-ms")
        assert again == ("1000" if status in (429, 503) else None)

    logged = play(scenario, Failing()).logged
    assert logged == (["/v2/models/f/infer: this is why"] if status in (500, 504) else [])


def test_a_model_of_another_name_is_not_found() -> None:
    """The sentence names the model that there is."""

    async def scenario(instance: Instance) -> None:
        sentence = await refused(instance.ask("ModelInfer", request_of("g", x=ONES)), grpc.StatusCode.NOT_FOUND)
        assert sentence == "the model is f, not g"

    play(scenario)


@pytest.mark.parametrize(
    ("reply", "code", "sentence"),
    [
        (Reply(body=b"hello"), grpc.StatusCode.UNIMPLEMENTED, "does not answer in the inference protocol"),
        (Reply(body=b"go away\n", status=404), grpc.StatusCode.NOT_FOUND, "go away"),
        (Reply(chunks=iter([b"a", b"b"])), grpc.StatusCode.UNIMPLEMENTED, "answers in pieces"),
    ],
)
def test_a_function_without_tensors_is_told_to_speak_http(reply: Reply, code: Any, sentence: str) -> None:
    """What a `handle` answers may be no tensors; its own faults keep their meaning."""

    class Plain(Echo):
        """Answers something else."""

        def encode(self, answer: Any, item: Any, call: Call) -> Reply:
            """Always the same."""
            return reply

    async def scenario(instance: Instance) -> None:
        assert sentence in await refused(instance.ask("ModelInfer", request_of(x=ONES)), code)

    play(scenario, Plain())


def test_the_body_limit_holds_for_messages_also_for_compressed_ones() -> None:
    """A larger message, or one that becomes larger when unpacked, is refused before it is read; the next one is served."""

    async def scenario(instance: Instance) -> None:
        large = request_of(x=np.zeros(100_000, np.float32))
        await refused(instance.ask("ModelInfer", large), grpc.StatusCode.RESOURCE_EXHAUSTED)
        call = instance.ask("ModelInfer", large, compression=grpc.Compression.Gzip)
        await refused(call, grpc.StatusCode.RESOURCE_EXHAUSTED)
        await instance.ask("ModelInfer", request_of(x=ONES))

    play(scenario, body_max_bytes=65536)


@pytest.mark.parametrize("name", ["Gzip", "Deflate"])
def test_compressed_requests_are_read(name: str) -> None:
    """As tritonclient's compression_algorithm sends them."""

    async def scenario(instance: Instance) -> None:
        zeros = np.zeros(100_000, np.float32)
        call = instance.ask("ModelInfer", request_of(x=zeros), compression=getattr(grpc.Compression, name))
        assert [*(await call).raw_output_contents] == [zeros.tobytes()]

    play(scenario)


# many at once, and those who leave -----------------------------------------------------------------------------------


def test_requests_that_come_together_are_one_batch() -> None:
    """While the model is busy requests gather; each gets its own answer."""

    async def scenario(instance: Instance) -> None:
        instance.model.gate.clear()
        first = asyncio.ensure_future(ended(instance.ask("ModelInfer", request_of(x=ONES))))
        await instance.until(lambda: instance.metrics.in_flight == 1 and instance.pipeline.batcher.waiting == 0)
        calls = [ended(instance.ask("ModelInfer", request_of(x=ONES * place))) for place in range(16)]
        others = asyncio.gather(*calls)
        await instance.until(lambda: instance.metrics.in_flight == 17)
        instance.model.gate.set()
        await first
        found = [np.frombuffer(answer.raw_output_contents[0], np.float32)[0] for answer in await others]
        assert found == [*range(16)]
        assert instance.model.batches == [1, 16]

    play(scenario)


async def ended(call: Any) -> Any:
    """A call as a coroutine."""
    return await call


@pytest.mark.parametrize("how", ["deadline", "cancel"])
def test_who_leaves_is_withdrawn(how: str) -> None:
    """A client whose deadline passes, or that cancels, is counted as gone; its request is not run."""

    async def scenario(instance: Instance) -> None:
        instance.model.gate.clear()
        first = asyncio.ensure_future(ended(instance.ask("ModelInfer", request_of(x=ONES))))
        await instance.until(lambda: instance.metrics.in_flight == 1 and instance.pipeline.batcher.waiting == 0)
        leaving = instance.ask("ModelInfer", request_of(x=ONES), timeout=1.0 if how == "deadline" else None)
        other = asyncio.ensure_future(ended(instance.ask("ModelInfer", request_of(x=ONES))))
        if how == "cancel":
            await instance.until(lambda: instance.metrics.in_flight == 3)
            leaving.cancel()
        await instance.until(lambda: instance.metrics.gone == 1)
        instance.model.gate.set()
        await first
        await other
        assert instance.model.batches == [1, 1]

    play(scenario)


def test_a_stream_is_answered_in_order_and_survives_a_bad_request() -> None:
    """Requests of a stream are batched; a bad one has its error and its id, the others their answers."""

    async def scenario(instance: Instance) -> None:
        async def requests() -> Any:
            for place in range(200):
                array = ONES * place if place != 77 else np.ones(3, np.float32)
                request = request_of(id_=str(place), x=array)
                if place == 77:
                    request.inputs[0].shape[0] = 4
                yield request

        answers = [answer async for answer in instance.stream(requests())]
        assert [answer.infer_response.id for answer in answers] == [str(place) for place in range(200)]
        assert [bool(answer.error_message) for answer in answers] == [place == 77 for place in range(200)]
        good = [answer.infer_response.raw_output_contents[0] for answer in answers if not answer.error_message]
        assert good == [(ONES * place).tobytes() for place in range(200) if place != 77]
        assert max(instance.model.batches) > 1

    play(scenario)


def test_a_stream_that_is_left_withdraws_what_it_asked() -> None:
    """All requests of a cancelled stream are counted as gone."""

    async def scenario(instance: Instance) -> None:
        instance.model.gate.clear()

        async def requests() -> Any:
            for _ in range(300):
                yield request_of(x=ONES)

        call = instance.stream(requests())
        await instance.until(lambda: instance.metrics.in_flight == grpc_edge.STREAM_AHEAD)
        call.cancel()
        await instance.until(lambda: instance.metrics.gone == grpc_edge.STREAM_AHEAD)
        instance.model.gate.set()

    play(scenario)


def test_stopping_lets_the_last_answers_out() -> None:
    """A request in the making when the edge stops is answered; a new one is not taken."""

    async def scenario(instance: Instance) -> None:
        instance.model.gate.clear()
        last = asyncio.ensure_future(ended(instance.ask("ModelInfer", request_of(x=ONES))))
        await instance.until(lambda: instance.metrics.in_flight == 1)
        stopping = asyncio.ensure_future(instance.edge.stop(GRACE_S))
        await asyncio.sleep(0.05)
        await refused(instance.ask("ServerLive", pb.ServerLiveRequest()), UNAVAILABLE)
        instance.model.gate.set()
        assert [*(await last).raw_output_contents] == [ONES.tobytes()]
        await stopping

    play(scenario)


def test_stopping_ends_streams_behind_their_last_answer() -> None:
    """A stream that is held open does not hold up the end: what it asked is answered, then it ends in order."""

    async def scenario(instance: Instance) -> None:
        instance.model.gate.clear()
        call = instance.stream(None)
        for place in range(3):
            await call.write(request_of(x=ONES * place))
        await instance.until(lambda: instance.metrics.in_flight == 3)
        stopping = asyncio.ensure_future(instance.edge.stop(10 * GRACE_S))
        await asyncio.sleep(0.05)
        instance.model.gate.set()
        async with asyncio.timeout(GRACE_S):
            answers = [answer.infer_response.raw_output_contents[0] async for answer in call]
            await stopping
        assert answers == [(ONES * place).tobytes() for place in range(3)]
        assert await call.code() == grpc.StatusCode.OK

    play(scenario)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Neither grpcio nor asyncio has anything to complain about."""
    yield
    assert [record.getMessage() for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")] == []
