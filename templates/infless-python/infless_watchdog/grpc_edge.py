"""Open Inference Protocol v2 over gRPC, by the extra `infless[grpc]`: a second edge before the same queue.

An inference request becomes the same `Call` that HTTP's binary form would have been, and its `Reply` the response:
models know one protocol, and limits, deadlines, isolation and metrics are the same ones. Writing and reading the JSON
head between the two costs a few us of the several hundred that grpcio takes for a request.

Import it where `grpc_port` is set: it raises LoadError where grpcio is not installed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn, Protocol

import msgspec
import numpy as np

from infless_watchdog import oip, oip_about
from infless_watchdog.calls import Call, Head, LoadError, Reply
from infless_watchdog.isolation import ItemError
from infless_watchdog.metrics import Metrics
from infless_watchdog.pipeline import Pipeline
from infless_watchdog.settings import Settings

try:
    import grpc
    from google.protobuf.json_format import ParseDict

    from infless_watchdog import open_inference_pb2 as pb
except ImportError as error:
    raise LoadError(f"grpc_port is set, but gRPC is not installed ({error}): pip install 'infless[grpc]'") from error

SERVICE = "inference.GRPCInferenceService"
STREAM_AHEAD = 64
"""Requests of one stream that are in the making at once: two full batches."""
_INT32_MAX = 2**31 - 1
_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    # Clients that look after idle connections are not sent away for it (they would be from 5 minutes down).
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    # A client whose machine is gone says nothing: it is asked after a minute.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)
_CODES = {
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Where typed contents of a datatype are. FP16 and BF16 have no place."""


class Server(Protocol):
    """What this edge needs of the instance; `app.Watchdog` is one."""

    settings: Settings
    metrics: Metrics
    accepting: bool
    pipeline: Pipeline | None

    def submit(self, call: Call, deliver: Callable[[Call, Any], None]) -> None:
        """Take a request; `deliver(call, reply or fault)` follows once, unless it is withdrawn."""
        ...

    def log_fault(self, call: Call, fault: ItemError) -> None:
        """Write what went wrong in the handler to the log."""
        ...


class GrpcEdge:
    """A gRPC server on the running event loop."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._grpc: Any = None
        self._readers: set[asyncio.Task[None]] = set()
        """One for each open stream."""

    async def start(self, port: int) -> int:
        """Listen on `port`, and return it; 0 takes a free one.

        Raises:
            LoadError: the port cannot be had.
        """
        size_bytes = min(self._server.settings.body_max_bytes, _INT32_MAX)
        options = [*_OPTIONS, ("grpc.max_receive_message_length", size_bytes)]
        self._grpc = grpc.aio.server(options=options)
        self._grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, self._methods()),))
        try:
            bound: int = self._grpc.add_insecure_port(f"0.0.0.0:{port}")
        except RuntimeError as error:
            raise LoadError(f"grpc_port {port} cannot be listened on: {error}") from None
        await self._grpc.start()
        return bound

    async def stop(self, grace_s: float) -> None:
        """Take no more requests, and let those in the making end within `grace_s`."""
        for reader in self._readers:  # clients hold streams open when they have nothing to ask
            reader.cancel()
        if self._grpc is not None:
            await self._grpc.stop(grace_s)

    def _methods(self) -> dict[str, Any]:
        methods = {name: self._description(*parts) for name, parts in self._descriptions().items()}
        read, write = pb.ModelInferRequest.FromString, pb.ModelInferResponse.SerializeToString
        methods["ModelInfer"] = grpc.unary_unary_rpc_method_handler(self._model_infer, read, write)
        write = pb.ModelStreamInferResponse.SerializeToString
        methods["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(self._model_stream_infer, read, write)
        return methods

    # what is told of the instance ------------------------------------------------------------------------------------

    def _descriptions(self) -> dict[str, tuple[Any, Any, Callable[[Any], Mapping[str, Any]]]]:
        """The types of request and response, and what is answered."""
        server, name = self._server, self._server.settings.function_name
        return {
            "ServerLive": (pb.ServerLiveRequest, pb.ServerLiveResponse, lambda _: {"live": server.accepting}),
            "ServerReady": (pb.ServerReadyRequest, pb.ServerReadyResponse, lambda _: {"ready": self._is_ready()}),
            "ModelReady": (
                pb.ModelReadyRequest,
                pb.ModelReadyResponse,
                lambda request: {"ready": request.name == name and self._is_ready()},
            ),
            "ServerMetadata": (
                pb.ServerMetadataRequest,
                pb.ServerMetadataResponse,
                lambda _: oip_about.server_metadata(),
            ),
            "ModelMetadata": (
                pb.ModelMetadataRequest,
                pb.ModelMetadataResponse,
                lambda request: self._pipeline(request.name).model.metadata(),
            ),
            "ModelConfig": (
                pb.ModelConfigRequest,
                pb.ModelConfigResponse,
                lambda request: {"config": self._pipeline(request.name).config()},
            ),
            "ModelStatistics": (
                pb.ModelStatisticsRequest,
                pb.ModelStatisticsResponse,
                lambda request: self._pipeline(request.name or name).statistics(),
            ),
            "RepositoryIndex": (
                pb.RepositoryIndexRequest,
                pb.RepositoryIndexResponse,
                lambda _: {"models": oip_about.repository_index(name, self._is_ready())},
            ),
        }

    def _description(self, request_type: Any, response_type: Any, describe: Callable[[Any], Mapping[str, Any]]) -> Any:
        async def answer(request: Any, context: Any) -> Any:
            try:
                return ParseDict(describe(request), response_type(), ignore_unknown_fields=True)
            except ItemError as fault:
                await _abort(context, fault)

        return grpc.unary_unary_rpc_method_handler(answer, request_type.FromString, response_type.SerializeToString)

    def _is_ready(self) -> bool:
        server = self._server
        return server.accepting and server.pipeline is not None and server.pipeline.refusal() is None

    def _pipeline(self, model_name: str) -> Pipeline:
        self._check_name(model_name)
        if self._server.pipeline is None:
            raise ItemError(503, "the model is still loading")
        return self._server.pipeline

    def _check_name(self, model_name: str) -> None:
        if model_name != self._server.settings.function_name:
            raise ItemError(404, f"the model is {self._server.settings.function_name}, not {model_name}")

    # inference -------------------------------------------------------------------------------------------------------

    async def _model_infer(self, request: pb.ModelInferRequest, context: Any) -> pb.ModelInferResponse:
        try:
            return await self._infer(request)
        except ItemError as fault:
            await _abort(context, fault)

    async def _model_stream_infer(self, requests: Any, context: Any) -> None:
        """Requests of one stream share batches; they are answered in order, a failed one with its error."""
        slots = asyncio.Semaphore(STREAM_AHEAD)

        async def answer(request: pb.ModelInferRequest, earlier: Awaitable[None] | None) -> None:
            try:
                response = pb.ModelStreamInferResponse(infer_response=await self._infer(request))
            except ItemError as fault:
                named = pb.ModelInferResponse(model_name=request.model_name, id=request.id)
                response = pb.ModelStreamInferResponse(error_message=str(fault), infer_response=named)
            if earlier is not None:
                await earlier
            await context.write(response)
            slots.release()

        async def read(tasks: asyncio.TaskGroup) -> None:
            last: asyncio.Task[None] | None = None
            async for request in requests:
                await slots.acquire()
                last = tasks.create_task(answer(request, last))

        async with asyncio.TaskGroup() as tasks:
            reader = tasks.create_task(read(tasks))
            self._readers.add(reader)
            reader.add_done_callback(self._readers.discard)

    async def _infer(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        """The answer of one request; when the task is cancelled, as it is when the client leaves, it is withdrawn.

        Raises:
            ItemError: why there is none.
        """
        try:
            self._check_name(request.model_name)
            call = call_of(request)
        except ItemError as fault:  # refused here, and counted as if the pipeline had
            self._server.metrics.refused(fault.status, "POST")
            raise
        outcome = await self._outcome(call)
        try:
            if isinstance(outcome, ItemError):
                raise outcome
            return response_of(outcome, typed=not request.raw_input_contents)
        except ItemError as fault:
            if fault.status in (500, 504):
                self._server.log_fault(call, fault)
            raise

    async def _outcome(self, call: Call) -> Reply | ItemError:
        answered: asyncio.Future[Reply | ItemError] = asyncio.get_running_loop().create_future()

        def deliver(call: Call, outcome: Reply | ItemError) -> None:
            del call
            if not answered.done():
                answered.set_result(outcome)

        self._server.submit(call, deliver)
        try:
            return await answered
        except asyncio.CancelledError:
            call.withdraw()
            raise


async def _abort(context: Any, fault: ItemError) -> NoReturn:
    """End the call with the fault's sentence; clients that are told so by their configuration try again later."""
    other = grpc.StatusCode.INVALID_ARGUMENT if fault.status < 500 else grpc.StatusCode.INTERNAL
    again = (("grpc-retry-pushback-ms", "1000"),) if fault.status in (429, 503) else ()
    await context.abort(_CODES.get(fault.status, other), str(fault), trailing_metadata=again)
    raise fault  # abort has raised


# requests and responses ----------------------------------------------------------------------------------------------


def call_of(request: pb.ModelInferRequest) -> Call:
    """The request as HTTP would have brought it: a JSON head, and the tensors as binary data behind it.

    Raises:
        ItemError: 400 or 422 for tensors whose values are not where they should be.
    """
    blobs = _blobs(request)
    wish: dict[str, Any] = {
        "inputs": [
            {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": [*tensor.shape],
                "parameters": {**_plain(tensor.parameters), "binary_data_size": len(blob)},
            }
            for tensor, blob in zip(request.inputs, blobs, strict=True)
        ],
        "outputs": [
            {"name": output.name, "parameters": {**_plain(output.parameters), "binary_data": True}}
            for output in request.outputs
        ],
        "parameters": {**_plain(request.parameters), "binary_data_output": True},
    }
    if request.id:
        wish["id"] = request.id
    octets = msgspec.json.encode(wish)
    fields = ((b"content-type", b"application/octet-stream"), (oip.HEADER_LENGTH, b"%d" % len(octets)))
    head = Head("POST", f"/v2/models/{request.model_name}/infer", "", fields)
    return Call(head, b"".join([octets, *blobs]))


def response_of(reply: Reply, *, typed: bool) -> pb.ModelInferResponse:
    """The reply as a response: tensors as typed contents where the request had such, else as raw ones.

    Raises:
        ItemError: the function answered in a form that is none of the inference protocol's.
    """
    length = dict(reply.headers).get(oip.HEADER_LENGTH)
    if length is None:
        raise _no_tensors(reply)
    size = int(length)
    head, binary = msgspec.json.decode(reply.body[:size]), memoryview(reply.body)[size:]
    response = pb.ModelInferResponse(
        model_name=head["model_name"], model_version=oip_about.VERSION, id=head.get("id", "")
    )
    for spec in head["outputs"]:
        response.outputs.add(name=spec["name"], datatype=spec["datatype"], shape=spec["shape"])
    if typed and all(spec["datatype"] in _CONTENTS for spec in head["outputs"]):
        arrays, _ = oip.parse_request({"inputs": head["outputs"]}, binary)
        for tensor in response.outputs:
            getattr(tensor.contents, _CONTENTS[tensor.datatype]).extend(arrays[tensor.name].ravel().tolist())
        return response
    start = 0
    for spec in head["outputs"]:
        stop = start + spec["parameters"]["binary_data_size"]
        response.raw_output_contents.append(bytes(binary[start:stop]))
        start = stop
    return response


def _no_tensors(reply: Reply) -> ItemError:
    if reply.chunks is not None:
        close = getattr(reply.chunks, "close", None)
        if close is not None:  # the user's code: not on the event loop
            asyncio.get_running_loop().run_in_executor(None, close)
        return ItemError(501, "the function answers in pieces, which ModelInfer cannot; ask over HTTP")
    if reply.status >= 400:
        return ItemError(reply.status, reply.body.decode(errors="replace").strip())
    return ItemError(501, "the function does not answer in the inference protocol; ask over HTTP, or write a predict")


def _blobs(request: pb.ModelInferRequest) -> list[bytes]:
    """Each input's values in binary form."""
    raw = request.raw_input_contents
    if any("shared_memory_region" in tensor.parameters for tensor in request.inputs):
        raise ItemError(422, "shared memory is not offered; send raw_input_contents")
    if not raw:
        return [_from_contents(tensor) for tensor in request.inputs]
    if len(raw) != len(request.inputs) or any(tensor.HasField("contents") for tensor in request.inputs):
        raise ItemError(
            400, f"raw_input_contents holds {len(raw)} tensors: one for each of the {len(request.inputs)} inputs, "
            "and then no input has contents"
        )  # fmt: skip
    return [*raw]


def _from_contents(tensor: Any) -> bytes:
    field = _CONTENTS.get(tensor.datatype)
    if field is None:
        raise ItemError(
            422, f"input {tensor.name}: datatype {tensor.datatype!r} has no typed contents; send raw_input_contents"
        )
    values, dtype = [*getattr(tensor.contents, field)], oip.DTYPES[tensor.datatype]
    if dtype == oip.STRINGS:
        array = np.empty(len(values), object)
        array[:] = values
        return oip.raw(array)
    return oip.raw(oip.from_json(values, dtype, f"input {tensor.name}"))


def _plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as JSON has them."""
    found = {name: (value, value.WhichOneof("parameter_choice")) for name, value in parameters.items()}
    return {name: getattr(value, choice) for name, (value, choice) in found.items() if choice is not None}
