"""Bodies of any content: there and back, and whatever is cut off, an ItemError and nothing else."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from infless_watchdog.bodies import PlainCodec
from infless_watchdog.calls import Call, Head, Reply
from infless_watchdog.codings import compressed, decoded
from infless_watchdog.forms import UploadedFile, parse_multipart
from infless_watchdog.hints import json_schema, validator
from infless_watchdog.isolation import ItemError
from infless_watchdog.json_text import parse_json
from infless_watchdog.oip import DTYPES, Wanted, answer_infer, parse_infer, parse_wanted
from infless_watchdog.plain import encode_plain

LIMIT_BYTES = 1000
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"]))
json_values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts, inner, max_size=5),
    max_leaves=20,
)
names = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=8)
datatypes = st.sampled_from(sorted(DTYPES))


@st.composite
def tensors(draw: st.DrawFn, *, finite: bool = True) -> np.ndarray:
    """Arrays of every type of the inference protocol."""
    dtype = DTYPES[draw(datatypes)]
    shape = draw(arrays.array_shapes(min_dims=0, min_side=0, max_dims=3, max_side=4))
    if dtype.hasobject:
        return draw(arrays.arrays(dtype, shape, elements=st.text(max_size=5).map(_utf8)))
    elements = {"allow_nan": not finite, "allow_infinity": not finite} if dtype.kind == "f" else {}
    return draw(arrays.arrays(dtype, shape, elements=arrays.from_dtype(dtype, **elements)))


def _utf8(text: str) -> bytes:
    return text.encode(errors="replace")


def coded(body: bytes, coding: str) -> Call:
    """A request with a Content-Encoding."""
    return Call(Head("POST", headers=[(b"content-encoding", coding.encode())]), body)


def squeeze(coding: str, octets: bytes) -> bytes:
    """A body in one of the codings; `raw` is deflate without zlib's two bytes."""
    if coding == "gzip":
        return gzip.compress(octets)
    if coding == "deflate":
        return zlib.compress(octets)
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(octets) + stream.flush()


codings = st.sampled_from(["gzip", "deflate", "raw"])


@given(st.binary(max_size=LIMIT_BYTES), codings)
def test_a_compressed_body_comes_back(octets: bytes, coding: str) -> None:
    """Whatever is in it."""
    assert decoded(coded(squeeze(coding, octets), coding.replace("raw", "deflate")), LIMIT_BYTES) == octets


@given(st.binary(max_size=200), codings)
def test_every_part_of_a_compressed_body_is_refused(octets: bytes, coding: str) -> None:
    """At any place where a client may have stopped."""
    whole = squeeze(coding, octets)
    for size in range(len(whole)):
        with pytest.raises(ItemError) as caught:
            decoded(coded(whole[:size], coding.replace("raw", "deflate")), LIMIT_BYTES)
        assert caught.value.status == 400


@given(st.binary(max_size=300), st.lists(st.sampled_from(["gzip", "deflate", "identity"]), max_size=4))
def test_any_bytes_are_a_body_or_refused(octets: bytes, said: list[str]) -> None:
    """Never more than the limit, never another exception."""
    try:
        assert len(decoded(coded(octets, ",".join(said)), LIMIT_BYTES)) <= LIMIT_BYTES
    except ItemError as fault:
        assert fault.status in (400, 413)


@given(st.binary(), st.text(st.characters(codec="latin-1")))
def test_an_answer_is_never_harmed(body: bytes, accept: str) -> None:
    """For whatever a client says that it accepts."""
    call = Call(Head(headers=[(b"accept-encoding", accept.encode("latin-1"))]))
    reply = compressed(Reply(body=body), call, 1)
    said = dict(reply.headers).get(b"content-encoding", b"identity").decode()
    assert decoded(coded(reply.body, said), len(body)) == body


# JSON ----------------------------------------------------------------------------------------------------------------


@given(json_values)
def test_json_comes_back(value: Any) -> None:
    """As the same value, of the same types; and `json` reads the same."""
    body = encode_plain([value]).body
    assert repr(parse_json(body)) == repr(json.loads(body)) == repr([value])


@given(json_values, st.data())
def test_every_text_is_json_to_us_as_it_is_to_python(value: Any, data: st.DataObject) -> None:
    """With a byte changed at any place; but for what is no JSON to anybody else."""
    body = bytearray(json.dumps(value).encode())
    body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        expected = repr(json.loads(body.decode()))  # `json` guesses UTF-16 of bytes, which RFC 8259 has done away with
    except ValueError:
        expected = None
    try:
        assert repr(parse_json(bytes(body))) == expected
    except ItemError:
        assert expected is None or "NaN" in expected or "inf" in expected or b"\\u" in body


@given(
    st.recursive(st.floats() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(names, inner), max_leaves=20)
)
def test_nan_is_never_sent_as_something_else(value: Any) -> None:
    """It is refused, wherever it stands, and nothing else is."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        with pytest.raises(ItemError):
            encode_plain(value)
    else:
        assert json.loads(encode_plain(value).body) == value


# forms ---------------------------------------------------------------------------------------------------------------

BOUNDARY = b"xYzZY"
fields = st.lists(st.tuples(names, st.text(max_size=8).map(_utf8), st.booleans()), min_size=1, max_size=5)


def form(parts: list[tuple[str, bytes, bool]]) -> bytes:
    """A body as browsers write it."""
    lines = []
    for name, data, is_file in parts:
        more = f'; filename="{name}.txt"' if is_file else ""
        head = f'Content-Disposition: form-data; name="{name}"{more}\r\n\r\n'
        lines += [b"--", BOUNDARY, b"\r\n", head.encode(), data, b"\r\n"]
    return b"".join([*lines, b"--", BOUNDARY, b"--"])


def said(boundary: bytes = BOUNDARY) -> bytes:
    """The header that goes with it."""
    return b"multipart/form-data; boundary=" + boundary


@given(fields)
def test_a_form_comes_back(parts: list[tuple[str, bytes, bool]]) -> None:
    """Every field, in order where a name is repeated."""
    expected: dict[str, list[Any]] = {}
    for name, data, is_file in parts:
        value = UploadedFile(f"{name}.txt", "application/octet-stream", data) if is_file else data.decode()
        expected.setdefault(name, []).append(value)
    assert parse_multipart(said(), form(parts)) == {
        name: values if len(values) > 1 else values[0] for name, values in expected.items()
    }


@given(fields)
def test_every_part_of_a_form_is_refused(parts: list[tuple[str, bytes, bool]]) -> None:
    """At any place where a client may have stopped."""
    whole = form(parts)
    for size in range(len(whole)):
        with pytest.raises(ItemError):
            parse_multipart(said(), whole[:size])


@given(fields, st.data(), st.binary(max_size=20))
def test_a_damaged_form_is_a_form_or_refused(
    parts: list[tuple[str, bytes, bool]], data: st.DataObject, boundary: bytes
) -> None:
    """Never another exception."""
    body = bytearray(form(parts))
    body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    for header in (said(), said(boundary)):
        try:
            parse_multipart(header, bytes(body))
        except ItemError as fault:
            assert fault.status in (400, 413, 415)


# the inference protocol ----------------------------------------------------------------------------------------------


def as_request(body: bytes, length: int | None) -> tuple[bytes, bytes | None]:
    """An answer as a request with the same tensors."""
    head = body if length is None else body[:length]
    answer = json.loads(head)
    asked = json.dumps({"inputs": answer["outputs"], "id": answer.get("id")}).encode()
    return asked + body[len(head) :], None if length is None else str(len(asked)).encode()


@given(st.dictionaries(names, tensors(), min_size=1, max_size=3), st.booleans())
def test_tensors_come_back(outputs: dict[str, np.ndarray], binary: bool) -> None:
    """Of every type and shape, as JSON and as binary data."""
    found, _ = parse_infer(*as_request(*answer_infer("m", outputs, Wanted(binary=binary))))
    for name, array in outputs.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


@given(tensors(finite=False))
def test_binary_data_hold_nan_and_infinity(array: np.ndarray) -> None:
    """Bit by bit."""
    found, _ = parse_infer(*as_request(*answer_infer("m", {"x": array}, Wanted(binary=True))))
    np.testing.assert_array_equal(found["x"], array, strict=True)


@given(st.dictionaries(names, tensors(), min_size=1, max_size=3), st.data())
def test_a_damaged_inference_request_is_one_or_refused(outputs: dict[str, np.ndarray], data: st.DataObject) -> None:
    """Cut off or changed at any place: 400 or 422, never another exception; to ask twice gives the same wish."""
    body, length = as_request(*answer_infer("m", outputs, Wanted(binary=data.draw(st.booleans()))))
    cut = body[: data.draw(st.integers(0, len(body)))]
    changed = bytearray(body)
    changed[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    for damaged in (cut, bytes(changed)):
        try:
            _, wanted = parse_infer(damaged, length)
        except ItemError as fault:
            assert fault.status in (400, 422)
        else:
            assert parse_wanted(damaged, length) == wanted


@given(json_values)
def test_any_answer_can_be_asked_for_in_the_inference_protocol(answer: Any) -> None:
    """As tensors that the protocol's own reader takes."""
    codec = PlainCodec(name="m")
    request = (
        b'{"inputs":[{"name":"x","datatype":"INT8","shape":[0],"data":[]}],"parameters":{"binary_data_output":true}}'
    )
    call = Call(Head("POST", "/v2/models/m/infer"), request)
    reply = codec.encode(answer, codec.decode(call), call)
    length = int(dict(reply.headers)[b"inference-header-content-length"])
    found, _ = parse_infer(*as_request(reply.body, length))
    assert list(found) == ["output"]


# hints ---------------------------------------------------------------------------------------------------------------

hints = st.recursive(
    st.sampled_from([int, float, str, bool, None, Any, object, np.ndarray]),
    lambda inner: inner.map(lambda hint: list[hint]) | inner.map(lambda hint: dict[str, hint]),  # type: ignore[valid-type]
    max_leaves=4,
)


@given(hints, json_values)
def test_any_value_fits_a_hint_or_is_a_422(hint: Any, value: Any) -> None:
    """Never another exception; whatever has been checked fits again."""
    check = validator(hint)
    json_schema(hint)
    try:
        item = check(value)
    except ItemError as fault:
        assert fault.status == 422
    else:
        assert repr(check(item)) == repr(item)


@given(st.integers() | st.floats(allow_nan=False))
def test_whole_numbers_are_floats_and_floats_no_whole_numbers(value: float) -> None:
    """As Python's own typing has it."""
    if isinstance(value, int):
        assert validator(int)(value) == value
    else:
        with pytest.raises(ItemError):
            validator(int)(value)
    if abs(value) < 2**53:
        assert math.isclose(validator(float)(value), value)
