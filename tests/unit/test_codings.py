"""Content-Encoding: compressed bodies in, compressed answers out, and no bomb goes off."""

from __future__ import annotations

import gzip
import zlib
from typing import Any

import pytest

from infless_watchdog.calls import Call, Head, Reply
from infless_watchdog.codings import compressed, decoded
from infless_watchdog.isolation import ItemError

LIMIT_BYTES = 10_000


def call(body: bytes = b"", **headers: str) -> Call:
    """A request with some headers."""
    said = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Call(Head("POST", "/", "", said), body)


def refused(function: Any, *args: Any) -> ItemError:
    """The refusal that a call ends in."""
    with pytest.raises(ItemError) as caught:
        function(*args)
    return caught.value


def raw_deflate(octets: bytes) -> bytes:
    """Deflate without zlib's two bytes in front, as some clients send it."""
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(octets) + stream.flush()


@pytest.mark.parametrize(
    ("coding", "compress"),
    [
        ("identity", bytes),
        ("gzip", gzip.compress),
        ("x-gzip", gzip.compress),
        ("GZIP", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", raw_deflate),
        ("gzip, deflate", lambda octets: zlib.compress(gzip.compress(octets))),
        ("identity, gzip", gzip.compress),
        ("", bytes),
    ],
)
def test_a_body_loses_its_codings(coding: str, compress: Any) -> None:
    """Those of HTTP, also one upon another, the last one first."""
    assert decoded(call(compress(b"ab" * 1000), content_encoding=coding), LIMIT_BYTES) == b"ab" * 1000


def test_codings_in_two_headers_are_one_list() -> None:
    """As HTTP reads any list."""
    head = Head(headers=[(b"content-encoding", b"gzip"), (b"content-encoding", b"deflate")])
    assert decoded(Call(head, zlib.compress(gzip.compress(b"ab"))), LIMIT_BYTES) == b"ab"


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, br", ", ".join(["gzip"] * 5)])
def test_another_coding_is_refused_with_what_is_allowed(coding: str) -> None:
    """415, the client can do better."""
    fault = refused(decoded, call(b"x", content_encoding=coding), LIMIT_BYTES)
    assert fault.status == 415
    assert "allowed are gzip, deflate and identity" in str(fault)


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress, raw_deflate])
def test_a_bomb_is_refused_before_it_goes_off(compress: Any) -> None:
    """413, one byte above the limit; what just fits is taken."""
    coding = "gzip" if compress is gzip.compress else "deflate"
    assert len(decoded(call(compress(bytes(LIMIT_BYTES)), content_encoding=coding), LIMIT_BYTES)) == LIMIT_BYTES
    fault = refused(decoded, call(compress(bytes(LIMIT_BYTES + 1)), content_encoding=coding), LIMIT_BYTES)
    assert fault.status == 413
    twice = call(gzip.compress(compress(bytes(10**6))), content_encoding=f"{coding}, gzip")
    assert refused(decoded, twice, LIMIT_BYTES).status == 413


@pytest.mark.parametrize("body", [b"", b"{}", gzip.compress(b"{}")[:-1], gzip.compress(b"{}") + b"x"])
def test_what_is_not_the_coding_is_a_400(body: bytes) -> None:
    """Nothing, plain text, a part, and more than the whole."""
    assert refused(decoded, call(body, content_encoding="gzip"), LIMIT_BYTES).status == 400


TEXT = Reply(body=b"a" * 2000)


@pytest.mark.parametrize(
    ("accept", "coding"),
    [
        ("gzip", b"gzip"),
        ("gzip, deflate, br", b"gzip"),
        ("deflate", b"deflate"),
        ("br, *", b"gzip"),
        ("gzip;q=0.5, deflate;q=0.8", b"deflate"),
        ("gzip;q=0, *", b"deflate"),
        ("GZIP ; q=1", b"gzip"),
        ("x-gzip", b"gzip"),
        ("br", None),
        ("", None),
        ("identity", None),
        ("*;q=0", None),
        ("gzip;q=0", None),
        ("gzip;q=x", None),
        ("identity, gzip;q=0.5", None),
    ],
)
def test_an_answer_is_compressed_as_the_client_likes(accept: str, coding: bytes | None) -> None:
    """The best one among ours; none where it likes none, or likes the answer as it is."""
    reply = compressed(TEXT, call(accept_encoding=accept), 1000)
    assert dict(reply.headers).get(b"content-encoding") == coding
    if coding is not None:
        restored = gzip.decompress(reply.body) if coding == b"gzip" else zlib.decompress(reply.body)
        assert restored == TEXT.body
        assert dict(reply.headers)[b"vary"] == b"accept-encoding"


@pytest.mark.parametrize(
    "reply",
    [
        Reply(body=b"a" * 999),
        Reply(body=b"a" * 2000, content_type=b"application/octet-stream"),
        Reply(body=b"a" * 2000, content_type=b"image/png"),
        Reply(body=b"a" * 2000, headers=((b"content-encoding", b"br"),)),
        Reply(chunks=iter([b"a" * 2000])),
    ],
)
def test_some_answers_are_never_compressed(reply: Reply) -> None:
    """Small ones, those that do not shrink, those with a coding of their own, and those in pieces."""
    assert compressed(reply, call(accept_encoding="gzip"), 1000) is reply


def test_compression_can_be_switched_off() -> None:
    """By 0; and who does not ask for it does not get it."""
    assert compressed(TEXT, call(accept_encoding="gzip"), 0) is TEXT
    assert compressed(TEXT, call(), 1) is TEXT


@pytest.mark.parametrize("content_type", [b"application/json", b"application/ld+json", b"text/html; charset=utf-8"])
def test_text_and_json_are_compressed(content_type: bytes) -> None:
    """The headers that were there stay."""
    reply = Reply(body=b"a" * 2000, content_type=content_type, headers=((b"x", b"y"),))
    assert compressed(reply, call(accept_encoding="gzip"), 1).headers[:2] == (
        (b"x", b"y"),
        (b"content-encoding", b"gzip"),
    )
