"""From requests to items and from answers to replies: by content type, by hint, and in the inference protocol."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from infless_watchdog import oip
from infless_watchdog.bodies import PlainCodec
from infless_watchdog.calls import Call, Head, Reply
from infless_watchdog.forms import UploadedFile, parse_multipart
from infless_watchdog.isolation import ItemError

LIMIT_BYTES = 10_000


def call(body: bytes = b"", content_type: str | None = "application/json", path: str = "/", **headers: str) -> Call:
    """A request as the edge hands it over."""
    said = [] if content_type is None else [(b"content-type", content_type.encode())]
    more = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Call(Head("POST", path, "", [*said, *more]), body)


def codec(hint: Any = Any, **more: Any) -> PlainCodec:
    """The codec of a function called f."""
    return PlainCodec(hint, **more, name="f")


def refused(function: Any, *args: Any) -> ItemError:
    """The refusal that a call ends in."""
    with pytest.raises(ItemError) as caught:
        function(*args)
    return caught.value


# forms ---------------------------------------------------------------------------------------------------------------

FORM = "multipart/form-data; boundary=xyz"


def part(name: str, data: bytes, more: str = "", headers: str = "") -> bytes:
    """One field of a form."""
    return f'--xyz\r\nContent-Disposition: form-data; name="{name}"{more}\r\n{headers}\r\n'.encode() + data + b"\r\n"


def form(*parts: bytes) -> bytes:
    """A whole one."""
    return b"".join(parts) + b"--xyz--\r\n"


FILE = part("f", b"\x00\r\n\xff", '; filename="a.bin"', "Content-Type: image/png\r\n")


def test_a_form_has_texts_files_and_lists() -> None:
    """A repeated name becomes a list; JSON parts are parsed; a part of another type is a file without a name."""
    body = form(
        part("t", "é".encode()),
        part("l", b"\xe9", headers="Content-Type: text/plain; charset=iso-8859-1\r\n"),
        part("j", b'{"a":1}', headers="Content-Type: application/json\r\n"),
        part("o", b"\xff", headers="Content-Type: application/octet-stream\r\n"),
        part("n", b"", '; filename=""'),
        FILE,
        part("t", b"2"),
    )
    assert parse_multipart(FORM.encode(), body) == {
        "t": ["é", "2"],
        "l": "é",
        "j": {"a": 1},
        "o": UploadedFile("", "application/octet-stream", b"\xff"),
        "n": UploadedFile("", "application/octet-stream", b""),
        "f": UploadedFile("a.bin", "image/png", b"\x00\r\n\xff"),
    }


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("multipart/form-data", form(FILE), 400),
        ("multipart/form-data; boundary=abc", form(FILE), 400),
        (FORM, b"", 400),
        (FORM, form(FILE)[:-4], 400),
        (FORM, form(part("t", b"\xff")), 400),
        (FORM, form(part("j", b"{", headers="Content-Type: application/json\r\n")), 400),
        (FORM, form(b"--xyz\r\nContent-Disposition: form-data\r\n\r\nx\r\n"), 400),
        (FORM, form(part("t", b"x", headers="Content-Type: text/plain; charset=punycode\r\n")), 415),
        (FORM, form(*[part("t", b"")] * 257), 413),
        (FORM, form(part("t" * 10_000, b"")), 413),
    ],
)
def test_a_broken_form_is_refused(content_type: str, body: bytes, status: int) -> None:
    """With the parser's reason."""
    assert refused(parse_multipart, content_type.encode(), body).status == status


# requests ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content_type", "body", "item"),
    [
        ("application/json", b'{"a": [1]}', {"a": [1]}),
        ("application/ld+json", b"[1]", [1]),
        (None, b"[1]", [1]),
        ("text/plain", "é".encode(), "é"),
        ("text/plain; charset=ISO-8859-1", b"\xe9", "é"),
        (FORM, form(part("a", b"1"), FILE), {"a": "1", "f": UploadedFile("a.bin", "image/png", b"\x00\r\n\xff")}),
        ("image/png", b"\x89PNG", b"\x89PNG"),
        ("application/x-www-form-urlencoded", b"a=1", b"a=1"),
    ],
)
def test_an_item_is_what_the_content_type_says(content_type: str | None, body: bytes, item: Any) -> None:
    """JSON where nothing is said, bytes where nothing is known."""
    assert codec().decode(call(body, content_type)) == item


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [("text/plain", b"\xff", 400), ("text/plain; charset=utf-7", b"a", 415), ("application/json", b"{", 400)],
)
def test_a_body_that_is_not_what_it_says_is_refused(content_type: str, body: bytes, status: int) -> None:
    """The client's fault."""
    assert refused(codec().decode, call(body, content_type)).status == status


def test_requests_that_share_a_head_do_not_share_a_body() -> None:
    """What is kept with a head is true of all its requests."""
    model, first = codec(), call(b"[1]")
    second = Call(first.head, b"[2]")
    assert [model.decode(first), model.decode(second), model.decode(first)] == [[1], [2], [1]]


def test_another_ones_memo_is_not_ours() -> None:
    """Whatever is found there."""
    request = call(b"[1]")
    request.head.memo = "something else"
    assert codec().encode([1], None, request).body == b"[1]"


@dataclass
class Order:
    """What a user's function may take."""

    name: str
    sizes: list[int]
    threshold: float = 0.5
    scan: bytes = b""


def test_json_is_checked_by_the_hint() -> None:
    """And is of its type."""
    assert codec(Order).decode(call(b'{"name": "a", "sizes": [1]}')) == Order("a", [1])
    fault = refused(codec(Order).decode, call(b'{"name": "a", "sizes": [1, "x"]}'))
    assert fault.status == 422
    assert "Expected `int`, got `str` - at `$.sizes[1]`" in str(fault)


def test_broken_json_is_a_400_with_a_hint_too() -> None:
    """422 is for JSON that does not fit."""
    assert refused(codec(Order).decode, call(b'{"name": ')).status == 400


def test_a_form_is_checked_by_the_hint() -> None:
    """Its texts become numbers, its only value of a list a list, its file bytes."""
    fields = (part("name", b"a"), part("sizes", b"3"), part("threshold", b"0.25"))
    scan = part("scan", b"\xff", '; filename="s"')
    assert codec(Order).decode(call(form(*fields, scan), FORM)) == Order("a", [3], 0.25, b"\xff")
    assert codec(list[str]).decode(call(form(part("a", b"x"), part("a", b"y")), FORM)) == ["x", "y"]
    assert refused(codec(Order).decode, call(form(part("name", b"a")), FORM)).status == 422


def test_a_lone_file_may_be_the_item() -> None:
    """Where one is wanted; two are one too many."""
    assert codec(bytes).decode(call(form(FILE), FORM)) == b"\x00\r\n\xff"
    assert refused(codec(bytes).decode, call(form(FILE, part("t", b"")), FORM)).status == 422


@pytest.mark.parametrize("content_type", [None, "application/json", "image/png", "text/plain"])
def test_bytes_are_the_body_as_it_came(content_type: str | None) -> None:
    """Whatever it is said to be."""
    assert codec(bytes).decode(call(b"{\xff", content_type)) == b"{\xff"


def test_text_is_taken_where_text_is_wanted() -> None:
    """As it is, or as a JSON string."""
    assert codec(str).decode(call(b"a b", "text/plain")) == "a b"
    assert codec(str).decode(call(b'"a b"')) == "a b"
    assert refused(codec(str).decode, call(b"3")).status == 422


def test_a_content_type_that_cannot_be_the_hint_is_a_415() -> None:
    """Which names the ones that can."""
    fault = refused(codec(Order).decode, call(b"a=1", "application/x-www-form-urlencoded"))
    assert fault.status == 415
    assert "allowed are application/json, multipart/form-data" in str(fault)


def test_raw_bytes_are_an_array_of_the_hinted_type() -> None:
    """In one dimension; the handler may write to it."""
    values = np.array([1.5, 2.5], np.float32)
    item = codec(npt.NDArray[np.float32]).decode(call(values.tobytes(), "application/octet-stream"))
    np.testing.assert_array_equal(item, values, strict=True)
    item *= 2
    assert refused(codec(npt.NDArray[np.float32]).decode, call(b"abc", None)).status == 422
    assert refused(codec(np.ndarray).decode, call(b"abc", None)).status == 422


# the inference protocol ----------------------------------------------------------------------------------------------


def inference(*inputs: dict[str, Any], blob: bytes = b"", **more: Any) -> Call:
    """An inference request, its binary data behind the JSON."""
    head = json.dumps({"inputs": list(inputs), **more}).encode()
    length = {"inference_header_content_length": str(len(head))} if blob else {}
    return call(head + blob, path="/v2/models/f/infer", **length)


X = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2]}


def outputs(reply: Reply) -> list[dict[str, Any]]:
    """The tensors of an answer in JSON."""
    found: list[dict[str, Any]] = json.loads(reply.body)["outputs"]
    return found


def test_an_inference_request_is_a_dict_of_arrays() -> None:
    """By path or by header; strings are bytes."""
    item = codec().decode(inference(X, {"name": "s", "datatype": "BYTES", "shape": [1], "data": ["é"]}))
    assert item["x"].tolist() == [1.0, 2.0]
    assert item["s"].tolist() == ["é".encode()]
    blob = np.array([1, 2], np.float32).tobytes()
    request = inference(
        {"name": "x", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}}, blob=blob
    )
    by_header = Call(Head("POST", "/", "", request.head.headers), request.body)
    assert codec().decode(by_header)["x"].tolist() == [1.0, 2.0]


def test_a_handler_may_write_to_its_arrays() -> None:
    """Those that came as binary data too."""
    blob = np.array([1, 2], np.float32).tobytes()
    item = codec().decode(inference({**X, "data": None, "parameters": {"binary_data_size": 8}}, blob=blob))
    item["x"] /= 2
    assert item["x"].tolist() == [0.5, 1.0]


def test_a_lone_tensor_may_be_the_item() -> None:
    """As an array, a list, a number, a text, or what else the hint says."""
    text = {"name": "t", "datatype": "BYTES", "shape": [1], "data": ["cat"]}
    np.testing.assert_array_equal(codec(np.ndarray).decode(inference(X)), np.array([1, 2], np.float32))
    assert codec(list[float]).decode(inference(X)) == [1.0, 2.0]
    assert codec(float).decode(inference({**X, "shape": [1], "data": [3]})) == 3.0
    assert codec(str).decode(inference(text)) == "cat"
    assert codec(list[str]).decode(inference(text)) == ["cat"]
    assert codec(bytes).decode(inference(text)) == b"cat"
    assert refused(codec(np.ndarray).decode, inference(X, text)).status == 422
    assert refused(codec(npt.NDArray[np.int8]).decode, inference(X)).status == 422


def test_tensors_may_be_the_parts_of_an_item() -> None:
    """By their names, each as its hint says."""
    name = {"name": "name", "datatype": "BYTES", "shape": [1], "data": ["a"]}
    sizes = {"name": "sizes", "datatype": "INT64", "shape": [2], "data": [1, 2]}
    threshold = {"name": "threshold", "datatype": "FP64", "shape": [1], "data": [0.25]}
    assert codec(Order).decode(inference(name, sizes, threshold)) == Order("a", [1, 2], 0.25)


@pytest.mark.parametrize(
    ("answer", "datatype", "shape", "data"),
    [
        (np.array([[1.5]], np.float32), "FP32", [1, 1], [1.5]),
        (np.float32(1.5), "FP32", [1], [1.5]),
        (np.array(["a", "b"]), "BYTES", [2], ["a", "b"]),
        ([1, 2], "INT64", [2], [1, 2]),
        ([[1.5, 2], [3, 4]], "FP64", [2, 2], [1.5, 2.0, 3.0, 4.0]),
        ([np.float32(1), np.float32(2)], "FP32", [2], [1.0, 2.0]),
        ([True], "BOOL", [1], [True]),
        ([], "FP64", [0], []),
        (["cat", "dog"], "BYTES", [2], ["cat", "dog"]),
        (0.5, "FP64", [1], [0.5]),
        ("cat", "BYTES", [1], ["cat"]),
        (b"cat", "BYTES", [1], ["cat"]),
        ({"label": "cat"}, "BYTES", [1], ['{"label":"cat"}']),
        ([[1], [2, 3]], "BYTES", [1], ["[[1],[2,3]]"]),
        ([1, "a", None], "BYTES", [1], ['[1,"a",null]']),
        ([2**80], "BYTES", [1], [f"[{2**80}]"]),
        (None, "BYTES", [1], ["null"]),
    ],
)
def test_an_answer_without_names_is_the_tensor_output(answer: Any, datatype: str, shape: Any, data: Any) -> None:
    """Numbers and strings as what they are, anything else as a string of JSON."""
    (spec,) = outputs(codec().encode(answer, None, inference(X, id="7")))
    assert spec == {"name": "output", "datatype": datatype, "shape": shape, "data": data}


def test_an_answer_with_names_has_a_tensor_for_each() -> None:
    """In the form that the client asked for, with its id."""
    answer = {"a": np.array([1], np.int32), "b": np.float64(0.5)}
    request = inference(X, id="7", outputs=[{"name": "b", "parameters": {"binary_data": True}}, {"name": "a"}])
    reply = codec().encode(answer, None, request)
    length = int(dict(reply.headers)[oip.HEADER_LENGTH])
    said = json.loads(reply.body[:length])
    assert (said["id"], said["model_name"], [spec["name"] for spec in said["outputs"]]) == ("7", "f", ["b", "a"])
    assert reply.body[length:] == np.float64(0.5).tobytes()


@pytest.mark.parametrize(
    ("answer", "asked", "status"),
    [
        ({"a": np.zeros(1)}, {"outputs": [{"name": "b"}]}, 422),
        (np.array([np.nan]), {}, 500),
        (b"\xff", {}, 500),
        (object(), {}, 500),
        (np.zeros(1, complex), {}, 500),
    ],
)
def test_an_answer_that_is_not_what_was_asked_is_refused(answer: Any, asked: Any, status: int) -> None:
    """By the client's word or by JSON's."""
    assert refused(codec().encode, answer, None, inference(X, **asked)).status == status


def test_a_raw_request_is_the_body_alone() -> None:
    """Triton's shortest form: no JSON at all; its answer is binary."""
    values = np.array([1, 2], np.float32)
    request = call(values.tobytes(), None, "/v2/models/f/infer", inference_header_content_length="0")
    assert codec().decode(request) == values.tobytes()
    again = Call(Head("POST", request.head.path, "", request.head.headers), request.body)
    np.testing.assert_array_equal(codec(npt.NDArray[np.float32]).decode(again), values)
    assert dict(codec().encode(values, None, request).headers)[oip.HEADER_LENGTH]


def test_images_are_opened_beside_the_event_loop() -> None:
    """By `prepare`, as the user's `preprocess` is called; what is broken is the client's fault there too."""
    image = pytest.importorskip("PIL.Image")
    octets = io.BytesIO()
    image.new("L", (3, 2), 7).save(octets, "PNG")
    model = codec(image.Image)
    assert model.prepare is not None
    sent = part("f", octets.getvalue(), '; filename="a.png"', "Content-Type: image/png\r\n")
    for request in (call(octets.getvalue(), "image/png"), call(octets.getvalue(), None), call(form(sent), FORM)):
        assert model.prepare(model.decode(request)).size == (3, 2)
    assert refused(model.prepare, model.decode(call(b"x", "image/png"))).status == 422
    example = image.new("L", (1, 1))
    assert model.prepare(example) is example


def test_other_items_need_no_preparation() -> None:
    """They are ready when they are decoded."""
    assert codec(Order).prepare is None
    assert codec().prepare is None


# description ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hint", "content_types"),
    [
        (Any, ("application/json", "text/plain", "multipart/form-data", "application/octet-stream")),
        (Order, ("application/json", "multipart/form-data")),
        (list[int], ("application/json",)),
        (str, ("application/json", "text/plain")),
        (bytes, ("application/octet-stream", "multipart/form-data")),
    ],
)
def test_the_content_types_follow_from_the_hint(hint: Any, content_types: tuple[str, ...]) -> None:
    """What cannot become one is not offered."""
    assert codec(hint).content_types == content_types


def test_a_codec_describes_its_function() -> None:
    """Item and answer by their hints, the example as it is."""
    document = codec(Order, answer_hint=list[float]).openapi(example={"name": "a", "sizes": [1]}, description="Orders.")
    content = document["paths"]["/"]["post"]["requestBody"]["content"]["application/json"]
    assert content["schema"] == {"$ref": "#/components/schemas/Order"}
    assert content["example"]["name"] == "a"
    assert document["info"] == {"title": "f", "version": "1", "description": "Orders."}
