"""The Open Inference Protocol: JSON and binary tensors, there and back, and everything that is not it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from infless_watchdog.isolation import ItemError
from infless_watchdog.oip import DTYPES, Wanted, answer_infer, parse_infer


def tensor(**more: Any) -> dict[str, Any]:
    """A good tensor, with something changed."""
    return {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2], **more}


def request(*inputs: Any, **more: Any) -> bytes:
    """A request as JSON."""
    return json.dumps({"inputs": list(inputs), **more}).encode()


def binary_request(array: np.ndarray, datatype: str, pad: str = "") -> tuple[bytes, bytes]:
    """A body with its tensor behind the JSON, and the header that says where it begins."""
    blob = array.tobytes()
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


@pytest.mark.parametrize("datatype", DTYPES)
def test_every_type_comes_back_as_it_went_in_json(datatype: str) -> None:
    """Answer, read as a request, is the tensor again."""
    array = np.array([[0, 1], [1, 0]], DTYPES[datatype])
    body, length = answer_infer("m", {"x": array}, Wanted())
    assert length is None
    tensors, _ = parse_infer(request(*json.loads(body)["outputs"]), None)
    np.testing.assert_array_equal(tensors["x"], array, strict=True)


@pytest.mark.parametrize("datatype", DTYPES)
def test_every_type_comes_back_as_it_went_in_binary(datatype: str) -> None:
    """The same behind the JSON; at any place there, as its length shifts it."""
    array = np.array([[0, 1], [1, 0]], DTYPES[datatype])
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


@pytest.mark.parametrize("length", [b"", b"-1", b"1e3", b"999999", b"\xb2"])
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
