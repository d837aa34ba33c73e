"""The Open Inference Protocol: JSON and binary tensors, there and back, and everything that is not it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from infless_watchdog.calls import Head
from infless_watchdog.isolation import ItemError
from infless_watchdog.oip import (
    DTYPES,
    Wanted,
    answer_infer,
    is_inference,
    is_raw,
    parse_infer,
    parse_wanted,
    raw,
    texts,
)


def tensor(**more: Any) -> dict[str, Any]:
    """A good tensor, with something changed."""
    return {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2], **more}


def request(*inputs: Any, **more: Any) -> bytes:
    """A request as JSON."""
    return json.dumps({"inputs": list(inputs), **more}).encode()


def binary_request(array: np.ndarray, datatype: str, pad: str = "") -> tuple[bytes, bytes]:
    """A body with its tensor behind the JSON, and the header that says where it begins."""
    blob = raw(array)
    spec = {"name": "x", "datatype": datatype, "shape": list(array.shape)}
    head = request({**spec, "parameters": {"binary_data_size": len(blob)}}, id=pad)
    return head + blob, str(len(head)).encode()


def refused(body: bytes, header_length: bytes | None = None) -> ItemError:
    """The refusal that a request gets."""
    with pytest.raises(ItemError) as caught:
        parse_infer(body, header_length)
    return caught.value


def test_a_json_tensor_is_read() -> None:
    """With its name, type and shape."""
    tensors, wanted = parse_infer(request(tensor(), id="42"), None)
    assert tensors["x"].dtype == np.float32
    assert tensors["x"].tolist() == [[1.0, 2.0]]
    assert wanted == Wanted(id="42")


@pytest.mark.parametrize("data", [[1, 2, 3, 4, 5, 6], [[1, 2, 3], [4, 5, 6]]])
def test_data_may_be_flat_or_nested(data: Any) -> None:
    """The protocol allows both."""
    tensors, _ = parse_infer(request(tensor(shape=[2, 3], data=data)), None)
    assert tensors["x"].tolist() == [[1, 2, 3], [4, 5, 6]]


def some(datatype: str) -> np.ndarray:
    """A tensor of a type."""
    return np.array([[b"", b"a"], [b"bc", "é".encode()]] if datatype == "BYTES" else [[0, 1], [1, 0]], DTYPES[datatype])


@pytest.mark.parametrize("datatype", DTYPES)
def test_every_type_comes_back_as_it_went_in_json(datatype: str) -> None:
    """Answer, read as a request, is the tensor again."""
    array = some(datatype)
    body, length = answer_infer("m", {"x": array}, Wanted())
    assert length is None
    tensors, _ = parse_infer(request(*json.loads(body)["outputs"]), None)
    np.testing.assert_array_equal(tensors["x"], array, strict=True)


@pytest.mark.parametrize("datatype", DTYPES)
def test_every_type_comes_back_as_it_went_in_binary(datatype: str) -> None:
    """The same behind the JSON; at any place there, as its length shifts it."""
    array = some(datatype)
    for pad in ("", "a", "ab", "abc"):
        tensors, _ = parse_infer(*binary_request(array, datatype, pad))
        np.testing.assert_array_equal(tensors["x"], array, strict=True)
        assert tensors["x"].flags.aligned


def test_binary_and_json_tensors_can_be_mixed() -> None:
    """Binary data follow in the order of the inputs."""
    blob = np.array([7, 8], np.int64).tobytes()
    second = {"name": "y", "datatype": "INT64", "shape": [2], "parameters": {"binary_data_size": 16}}
    head = request(tensor(), second)
    tensors, _ = parse_infer(head + blob, str(len(head)).encode())
    assert tensors["x"].tolist() == [[1.0, 2.0]]
    assert tensors["y"].tolist() == [7, 8]


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (tensor(name=None), 400),
        (tensor(name=3), 400),
        ("x", 400),
        (tensor(parameters=[1]), 400),
        (tensor(datatype="FP31"), 422),
        (tensor(datatype=None), 422),
        (tensor(datatype=["FP32"]), 422),
        (tensor(shape=None), 422),
        (tensor(shape=[1, -2]), 422),
        (tensor(shape=[1, 2.0]), 422),
        (tensor(shape=[True, 2]), 422),
        (tensor(shape=[1, 3]), 422),
        (tensor(shape=[2**40, 2**40]), 422),
        (tensor(shape=[2**62, 2**62, 0], data=[]), 422),
        (tensor(data=None), 422),
        (tensor(data="ab"), 422),
        (tensor(data={"0": 1}), 422),
        (tensor(data=["1", "2"]), 422),
        (tensor(data=[1, None]), 422),
        (tensor(data=[True, False]), 422),
        (tensor(data=[True, 2], datatype="INT32"), 422),
        (tensor(data=[1, "x" * 1000]), 422),
        (tensor(data=[[1], 2]), 422),
        (tensor(data=[1, 2], datatype="BYTES"), 422),
        (tensor(data=["a", None], datatype="BYTES"), 422),
        (tensor(data=[["a"], ["b", "c"]], datatype="BYTES"), 422),
        (tensor(data=[["a", "b"], []], datatype="BYTES", shape=[2]), 422),
        (tensor(data=[1, 2], datatype="BF16"), 422),
        (tensor(data=[70000, 2], datatype="FP16"), 422),
        (tensor(data=[2**63, -1], datatype="INT64"), 422),
        (tensor(parameters={"shared_memory_region": "r", "shared_memory_byte_size": 8}), 422),
        (tensor(data=[1e39, 1]), 422),
        (tensor(data=[[1], [2, 3]]), 422),
        (tensor(data=[[1], [2]], shape=[1, 2]), 422),
        (tensor(data=[1.5, 2], datatype="INT32"), 422),
        (tensor(data=[300, 2], datatype="UINT8"), 422),
        (tensor(data=[-1, 2], datatype="UINT64"), 422),
        (tensor(data=[2**70, 2], datatype="INT64"), 422),
        (tensor(data=[2, 1], datatype="BOOL"), 422),
        (tensor(parameters={"binary_data_size": 8}), 422),
        (tensor(parameters={"binary_data_size": -8}), 422),
        (tensor(parameters={"binary_data_size": "8"}), 422),
    ],
)
def test_a_wrong_tensor_is_refused(fault: Any, status: int) -> None:
    """400 for what is not the protocol, 422 for what contradicts itself; the sentence says which input."""
    refusal = refused(request(fault))
    assert refusal.status == status
    assert "inputs[0]" in str(refusal)


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"\xff", b"[]", b"null", b"{}", b'{"inputs": {}}', b'{"inputs": []}', b"[" * 100_000),
        request(tensor(), outputs=[3]),
        request(tensor(), outputs=[{"name": 3}]),
        request(tensor(), outputs=[{"name": "y", "parameters": 1}]),
        request(tensor(), outputs="y"),
        request(tensor(), outputs={"name": "y"}),
        request(tensor(), outputs=[{"name": "y", "parameters": {"binary_data": 1}}]),
        request(tensor(), parameters={"binary_data_output": "false"}),
        b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [NaN]}]}',
        request(tensor(), parameters="x"),
        request(tensor(), id=7),
    ],
)
def test_what_is_not_the_protocol_is_a_400(body: bytes) -> None:
    """Broken JSON and every part of the wrong kind."""
    assert refused(body).status == 400


def test_a_name_given_twice_is_refused() -> None:
    """One of the two would be lost in silence."""
    assert "x is there twice" in str(refused(request(tensor(), tensor())))


@pytest.mark.parametrize("length", [b"", b"-1", b"+1", b"1e3", b"999999", b"9" * 5000, b"\xb2"])
def test_a_head_length_that_is_none_is_a_400(length: bytes) -> None:
    """It must lie within the body."""
    assert refused(request(tensor()), length).status == 400


@pytest.mark.parametrize(("size", "words"), [(7, "no whole number"), (4, "needs 2 values"), (12, "does not fit")])
def test_binary_data_must_fit_their_shape(size: int, words: str) -> None:
    """Too few, too many, or half a value."""
    head = request(tensor(data=None, parameters={"binary_data_size": size}))
    assert words in str(refused(head + bytes(8), str(len(head)).encode()))


def test_bytes_that_belong_to_no_tensor_are_refused() -> None:
    """Their sender meant something else."""
    head = request(tensor())
    assert "4 bytes follow" in str(refused(head + bytes(4), str(len(head)).encode()))


OUTPUTS = {"a": np.array([[1.5]], np.float32), "b": np.array([[2]], np.int64)}


def test_an_answer_names_the_model_and_the_request() -> None:
    """All outputs when none is asked for."""
    body, _ = answer_infer("m", OUTPUTS, Wanted(id="7"))
    answer = json.loads(body)
    assert (answer["model_name"], answer["id"]) == ("m", "7")
    assert answer["outputs"][0] == {"name": "a", "datatype": "FP32", "shape": [1, 1], "data": [1.5]}
    assert [spec["name"] for spec in answer["outputs"]] == ["a", "b"]


def test_only_the_outputs_asked_for_are_sent() -> None:
    """In the order of asking."""
    _, wanted = parse_infer(request(tensor(), outputs=[{"name": "b"}]), None)
    body, _ = answer_infer("m", OUTPUTS, wanted)
    assert [spec["name"] for spec in json.loads(body)["outputs"]] == ["b"]


@pytest.mark.parametrize(
    ("asked", "binary"),
    [
        ({"parameters": {"binary_data_output": True}}, ["a", "b"]),
        ({"outputs": [{"name": "a", "parameters": {"binary_data": True}}, {"name": "b"}]}, ["a"]),
        (
            {
                "parameters": {"binary_data_output": True},
                "outputs": [{"name": "a"}, {"name": "b", "parameters": {"binary_data": False}}],
            },
            ["a"],
        ),
    ],
)
def test_each_output_is_binary_or_not_as_asked(asked: dict[str, Any], binary: list[str]) -> None:
    """For all by default, for each by its own parameter (Triton)."""
    _, wanted = parse_infer(request(tensor(), **asked), None)
    body, length = answer_infer("m", OUTPUTS, wanted)
    outputs = json.loads(body[:length])["outputs"]
    assert [spec["name"] for spec in outputs if "data" not in spec] == binary
    assert len(body) - (length or 0) == sum(OUTPUTS[name].nbytes for name in binary)


def test_data_that_are_there_twice_are_refused() -> None:
    """Nobody could say which ones are meant."""
    head = request(tensor(parameters={"binary_data_size": 8}))
    assert "both data and binary_data_size" in str(refused(head + bytes(8), str(len(head)).encode()))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"classification": 3}, "classification is not offered"),
        ({"shared_memory_region": "r"}, "shared memory is not offered"),
    ],
)
def test_what_is_not_offered_is_refused_with_a_word(asked: dict[str, Any], words: str) -> None:
    """It would be a wrong answer, else."""
    fault = refused(request(tensor(), outputs=[{"name": "y", "parameters": asked}]))
    assert (fault.status, words in str(fault)) == (422, True)


def test_what_is_for_other_servers_is_overlooked() -> None:
    """Sequences, priorities, timeouts, the user's own parameters."""
    others = {"sequence_id": 7, "sequence_start": True, "priority": 1, "timeout": 5, "mine": "x"}
    _, wanted = parse_infer(request(tensor(), parameters=others), None)
    assert wanted == Wanted()


def test_a_scalar_and_an_empty_tensor_are_tensors() -> None:
    """Of no axis, and of none of an axis."""
    tensors, _ = parse_infer(request(tensor(shape=[], data=[5]), tensor(name="y", shape=[0, 3], data=[])), None)
    assert (tensors["x"].shape, tensors["y"].shape) == ((), (0, 3))
    tensors, _ = parse_infer(*binary_request(np.zeros((0, 3), np.float32), "FP32"))
    assert tensors["x"].shape == (0, 3)


def test_bf16_becomes_float32() -> None:
    """Which holds every value of it."""
    head = request({"name": "x", "datatype": "BF16", "shape": [3], "parameters": {"binary_data_size": 6}})
    tensors, _ = parse_infer(head + b"\x80\x3f\x00\xc0\xc0\x7f", str(len(head)).encode())
    np.testing.assert_array_equal(tensors["x"], np.array([1, -2, np.nan], np.float32), strict=True)


def test_any_byte_but_0_is_true() -> None:
    """Numpy would believe a bool of 2."""
    head = request({"name": "x", "datatype": "BOOL", "shape": [3], "parameters": {"binary_data_size": 3}})
    tensors, _ = parse_infer(head + b"\x00\x01\x02", str(len(head)).encode())
    assert tensors["x"].view(np.uint8).tolist() == [0, 1, 1]


@pytest.mark.parametrize("blob", [b"\x01", b"\x02\0\0\0a", b"\0\0\0\0\xff\xff\xff\xffa"])
def test_strings_beyond_their_tensor_are_refused(blob: bytes) -> None:
    """Whatever their length says."""
    head = request({"name": "x", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(blob)}})
    assert "goes beyond" in str(refused(head + blob, str(len(head)).encode()))


def test_strings_can_be_had_as_text() -> None:
    """For runtimes that would take bytes for something else; what is no text is refused."""
    assert texts(np.array([["é".encode()], ["b"]], object), "x").tolist() == [["é"], ["b"]]
    with pytest.raises(ItemError, match="x: a string is not UTF-8"):
        texts(np.array([b"\xff"], object), "x")


@pytest.mark.parametrize(
    "asked",
    [{}, {"id": "7"}, {"parameters": {"binary_data_output": True}}, {"outputs": [{"name": "b"}, {"name": "a"}]}],
)
def test_the_wish_can_be_read_alone(asked: dict[str, Any]) -> None:
    """Without the tensors, and the same."""
    body = request(tensor(), **asked)
    assert parse_wanted(body, None) == parse_infer(body, None)[1]
    assert parse_wanted(body + b"tensors", str(len(body)).encode()) == parse_wanted(body, None)


def test_a_request_is_known_by_its_path_or_its_header() -> None:
    """A raw one by a header of 0."""
    header = (b"inference-header-content-length", b"0")
    assert is_inference(Head("POST", "/v2/models/m/infer"))
    assert is_inference(Head("POST", "/", "", [header]))
    assert not is_inference(Head("POST", "/v3"))
    assert is_raw(Head("POST", "/", "", [header]))
    assert not is_raw(Head("POST", "/v2/models/m/infer"))


def test_an_output_that_there_is_not_is_refused() -> None:
    """With those that there are."""
    with pytest.raises(ItemError, match="outputs are a, b; unknown: c"):
        answer_infer("m", OUTPUTS, Wanted(outputs={"a": True, "c": True}))


def test_an_output_of_another_byte_order_is_turned() -> None:
    """The protocol is little-endian; a type that it does not have is refused."""
    body, length = answer_infer("m", {"a": np.array([1], ">i4")}, Wanted(binary=True))
    assert (json.loads(body[:length])["outputs"][0]["datatype"], body[length:]) == ("INT32", b"\x01\0\0\0")
    with pytest.raises(ItemError, match="complex128, which is none of BOOL"):
        answer_infer("m", {"a": np.zeros(1, complex)}, Wanted())


def test_strings_that_are_no_text_are_sent_as_binary_data_alone() -> None:
    """JSON has no word for them."""
    outputs = {"a": np.array([b"\xff"], object)}
    with pytest.raises(ItemError, match="ask for binary data"):
        answer_infer("m", outputs, Wanted())
    assert answer_infer("m", outputs, Wanted(binary=True))[0].endswith(b"\x01\0\0\0\xff")


def test_strings_are_bytes_tensors() -> None:
    """In JSON as strings, in binary each behind its length."""
    labels = {"label": np.array(["cat", "é"], object)}
    body, _ = answer_infer("m", labels, Wanted())
    assert json.loads(body)["outputs"][0] == {"name": "label", "datatype": "BYTES", "shape": [2], "data": ["cat", "é"]}
    body, length = answer_infer("m", labels, Wanted(binary=True))
    assert body[length:] == b"\x03\0\0\0cat\x02\0\0\0\xc3\xa9"


def test_nan_is_refused_in_json_and_sent_in_binary() -> None:
    """JSON has no word for it."""
    outputs = {"a": np.array([np.nan], np.float32)}
    with pytest.raises(ItemError, match="ask for binary data"):
        answer_infer("m", outputs, Wanted())
    assert answer_infer("m", outputs, Wanted(binary=True))[0].endswith(outputs["a"].tobytes())
