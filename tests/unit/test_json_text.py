"""JSON read and written: nothing but JSON, and what Python's own module would say of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import pytest

from infless_watchdog.isolation import ItemError
from infless_watchdog.json_text import parse_json
from infless_watchdog.plain import encode_plain


def refused(function: Any, *args: Any) -> ItemError:
    """The refusal that a call ends in."""
    with pytest.raises(ItemError) as caught:
        function(*args)
    return caught.value


@pytest.mark.parametrize(
    "text", ["12345678901234567890123456789", '{"a":1,"a":2}', "[1.5, -0.0, 5e-324]", '"\\u00e9"', " null "]
)
def test_json_means_what_python_says(text: str) -> None:
    """Whole numbers of any size, and the last of two equal keys, among others."""
    assert repr(parse_json(text.encode())) == repr(json.loads(text))


def test_a_byte_order_mark_is_overlooked() -> None:
    """Windows writes it in front of UTF-8."""
    assert parse_json(b"\xef\xbb\xbf[1]") == [1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "it is empty"),
        (b'{"a": NaN}', "NaN (byte 6) is no JSON number"),
        (b"[1, -Infinity]", "Infinity (byte 5) is no JSON number"),
        (b"[1,]", "byte 3"),
        (b'{"a": 1} x', "byte 10"),
        (b"[1, 1e999]", "out of range"),
        (b'"\xff"', "utf-8"),
        (b"[" * 100_000, "recursion"),
        (b"\xef\xbb\xbf" * 3, "not valid JSON"),
    ],
)
def test_what_is_no_json_is_a_400_with_its_place(text: bytes, words: str) -> None:
    """One sentence for the client."""
    fault = refused(parse_json, text)
    assert fault.status == 400
    assert words in str(fault)


@dataclass
class Point:
    """A user's class."""

    x: float
    y: float | None = None


class Duck:
    """Stands for a model of pydantic's."""

    def model_dump(self, mode: str) -> Any:
        """As pydantic does."""
        return {"mode": mode}


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        ({"a": [1, 2.5, "é"]}, '{"a":[1,2.5,"é"]}'),
        ({"a": None, "b": "null"}, '{"a":null,"b":"null"}'),
        (None, "null"),
        (2**80, str(2**80)),
        ({1: 2, None: 4}, '{"1":2,"null":4}'),
        ([np.float32(0.5), np.int64(3), np.array([[1], [2]])], "[0.5,3,[[1],[2]]]"),
        (Point(1.0), '{"x":1.0,"y":null}'),
        ([Point(1.0, 2.0), None], '[{"x":1.0,"y":2.0},null]'),
        ([Duck(), None], '[{"mode":"json"},null]'),
        ([date(2020, 1, 2)], '["2020-01-02"]'),
    ],
)
def test_an_answer_is_written_as_json(answer: Any, body: str) -> None:
    """What JSON has, and what has a plain form in it."""
    reply = encode_plain(answer)
    assert (reply.body.decode(), reply.content_type) == (body, b"application/json")


@pytest.mark.parametrize("answer", [b"\xff", bytearray(b"\xff"), memoryview(b"\xff")])
def test_bytes_are_answered_as_they_are(answer: Any) -> None:
    """Nobody knows what they are."""
    assert (encode_plain(answer).body, encode_plain(answer).content_type) == (b"\xff", b"application/octet-stream")


def endless() -> list[Any]:
    """A list that holds itself."""
    found: list[Any] = []
    found.append(found)
    return found


@pytest.mark.parametrize(
    "answer",
    [
        float("nan"),
        [1.0, float("inf")],
        np.array([np.nan]),
        Point(float("nan")),
        object(),
        "\ud800",
        endless(),
        {(): 1},
    ],
)
def test_an_answer_that_is_no_json_is_the_handlers_fault(answer: Any) -> None:
    """500; NaN above all, which would be null for the client."""
    fault = refused(encode_plain, answer)
    assert fault.status == 500
    assert "cannot be written as JSON" in str(fault)
