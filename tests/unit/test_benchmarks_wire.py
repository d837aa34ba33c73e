"""The load generator's HTTP, the search for the highest rate, and what a server wants to be sent."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks import forms, wire
from benchmarks.rates import highest_rate
from hypothesis import given
from hypothesis import strategies as st

BODY = st.binary(max_size=60)


def _plain(body: bytes, status: int = 200) -> bytes:
    return b"HTTP/1.1 %d X\r\nServer: x\r\ncontent-LENGTH: %d\r\n\r\n" % (status, len(body)) + body


def _chunked(pieces: list[bytes]) -> bytes:
    chunks = b"".join(b"%x;ext=1\r\n%s\r\n" % (len(piece), piece) for piece in pieces if piece)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


@given(BODY, st.integers(0, 200))
def test_an_answer_ends_with_its_length(body: bytes, cut: int) -> None:
    """At every split there is more to come until there is all; what follows does not belong to it."""
    answer = _plain(body)
    cut = min(cut, len(answer) - 1)
    assert wire.end_of_answer(answer[:cut]) is None
    assert wire.end_of_answer(answer + b"HTTP/1.1 200") == len(answer)
    assert wire.read_answer(answer).body == body


@given(st.lists(BODY, max_size=4), st.integers(0, 400))
def test_a_chunked_answer_ends_with_its_last_chunk(pieces: list[bytes], cut: int) -> None:
    """At every split, and its body is the chunks'."""
    answer = _chunked(pieces)
    cut = min(cut, len(answer) - 1)
    assert wire.end_of_answer(answer[:cut]) is None
    assert wire.end_of_answer(answer) == len(answer)
    assert wire.read_answer(answer).body == b"".join(pieces)


@pytest.mark.parametrize(
    "data",
    [b"SSH-2.0", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
     b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"],
)  # fmt: skip
def test_what_is_no_answer_is_told(data: bytes) -> None:
    """Instead of waiting for an end that cannot come."""
    with pytest.raises(wire.NotHttpError):
        wire.end_of_answer(data)


def test_an_answer_of_another_length_is_wrong() -> None:
    """The quick way of the generator looks at lengths only: this is where it is found out."""
    with pytest.raises(wire.NotHttpError, match="content-length"):
        wire.read_answer(_plain(b"four")[:-1])


def test_who_closes_is_known() -> None:
    """By header, whatever its case, and by version; a body that says so does not count."""
    assert wire.closes(b"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 0\r\n\r\n")
    assert wire.closes(b"HTTP/1.0 200 OK\r\n\r\n")
    assert not wire.closes(_plain(b"\r\nconnection: close\r\n"))


def test_a_request_is_one_whole_message() -> None:
    """Head, length and body."""
    assert wire.request("h:1", "/p", b"abc", (("A", "b"),)) == (
        b"POST /p HTTP/1.1\r\nHost: h:1\r\nContent-Length: 3\r\nA: b\r\n\r\nabc"
    )


@given(
    st.floats(2, 1e6), st.floats(2, 1e6), st.sampled_from([0.02, 0.04, 0.5, 1.0]), st.sampled_from([0.01, 0.04, 0.2])
)
def test_the_highest_rate_is_found(limit: float, start: float, step: float, precision: float) -> None:
    """From wherever the search begins: borne itself, and a little more is not; nothing is asked twice."""
    asked: list[float] = []

    def bears(rate: float) -> bool:
        asked.append(rate)
        return rate <= limit

    found = highest_rate(bears, start, step=step, precision=precision)
    assert found <= limit <= found * (1 + precision) * (1 + 1e-6)
    assert len(asked) == len(set(asked)) <= 60


def test_a_server_that_bears_nothing_ends_the_search() -> None:
    """With nothing."""
    assert highest_rate(lambda _rate: False, 1000) == 0.0


def test_a_start_near_the_end_costs_few_trials() -> None:
    """Two when nothing has changed."""
    asked: list[float] = []
    highest_rate(lambda rate: asked.append(rate) or rate <= 1010, 1000, step=0.04)  # type: ignore[func-returns-value]
    assert len(asked) == 2


@pytest.mark.parametrize("form", [forms.RAW, forms.JSON, forms.NAMED_JSON, forms.OIP_JSON, forms.OIP_BINARY])
def test_each_form_carries_the_numbers(form: forms.Form) -> None:
    """Whole, with a type that says what it is."""
    message = form.encode(np.arange(6, dtype=np.float32).reshape(2, 3))
    assert message.body
    assert dict(message.headers)["Content-Type"].startswith("application/")


def test_answers_are_read() -> None:
    """In each form, one row for each."""
    row, head = np.array([1.5, -2], np.float32), b'{"outputs":[{"parameters":{"binary_data_size":8}}]}'
    for form, body in (
        (forms.RAW, row.tobytes()),
        (forms.JSON, b"[[1.5, -2]]"),
        (forms.OIP_JSON, b'{"outputs":[{"data":[1.5,-2]}]}'),
        (forms.OIP_BINARY, head + row.tobytes()),
    ):
        assert form.decode([body, body]).tolist() == [[1.5, -2], [1.5, -2]]
    with pytest.raises(ValueError, match="differ in length"):
        forms.RAW.decode([b"1234", b"12345678"])
