"""Content-Encoding: bodies come compressed, and answers go so, where both sides want it."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import replace
from functools import lru_cache

from infless_watchdog.calls import Call, Reply
from infless_watchdog.isolation import ItemError

_ALLOWED = frozenset({"gzip", "x-gzip", "deflate", "identity"})
_CODINGS_MAX = 4
"""Nobody compresses more often, unless to keep us busy."""
_GZIP, _ZLIB, _RAW = 31, 15, -15
"""What zlib calls `wbits`."""


def decoded(call: Call, limit_bytes: int) -> bytes:
    """The body without its Content-Encoding.

    Raises:
        ItemError: 415 for a coding that is not taken, 400 for broken data, 413 for more than `limit_bytes`, of which
            no more than that is ever made.
    """
    said = b",".join(value for name, value in call.head.headers if name == b"content-encoding")
    codings = [coding for part in said.decode("latin-1").lower().split(",") if (coding := part.strip())]
    unknown = [coding for coding in codings if coding not in _ALLOWED]
    if unknown or len(codings) > _CODINGS_MAX:
        raise ItemError(
            415,
            f"Content-Encoding {', '.join(unknown or codings)} is not taken; allowed are gzip, deflate and identity, "
            f"{_CODINGS_MAX} at most",
        )
    octets = call.body
    for coding in reversed(codings):
        if coding != "identity":
            octets = _inflated(octets, _window(coding, octets), limit_bytes)
    return octets


def compressed(reply: Reply, call: Call, min_bytes: int) -> Reply:
    """The reply as it was, or compressed: text and JSON of at least `min_bytes` (0: never), if the client takes it.

    An answer in pieces, or with a coding of its own, is left alone.
    """
    if not min_bytes or len(reply.body) < min_bytes or reply.chunks is not None or not _shrinks(reply.content_type):
        return reply
    wish = call.head.header(b"accept-encoding")
    coding = None if wish is None else _best(wish)
    if coding is None or any(name == b"content-encoding" for name, _ in reply.headers):
        return reply
    # The first level takes a third of the default one's time, for a tenth more bytes.
    body = zlib.compress(reply.body, 1) if coding == b"deflate" else gzip.compress(reply.body, 1, mtime=0)
    headers = (*reply.headers, (b"content-encoding", coding), (b"vary", b"accept-encoding"))
    return replace(reply, body=body, headers=headers)


def _window(coding: str, octets: bytes) -> int:
    if coding != "deflate":
        return _GZIP
    # Meant with zlib's two bytes in front, by some sent without. They are a multiple of 31 that names the method 8,
    # which as bare deflate would be a stored block that nobody writes.
    return _ZLIB if octets[:1] and octets[0] & 15 == 8 and int.from_bytes(octets[:2]) % 31 == 0 else _RAW


def _inflated(octets: bytes, window: int, limit_bytes: int) -> bytes:
    stream = zlib.decompressobj(window)
    try:
        body = stream.decompress(octets, limit_bytes + 1)
    except zlib.error as error:
        raise ItemError(400, f"the body is not what its Content-Encoding says: {error}") from None
    if len(body) > limit_bytes:
        raise ItemError(413, f"the body is more than {limit_bytes} bytes when decompressed")
    if not stream.eof:
        raise ItemError(400, "the body is not what its Content-Encoding says: it ends too early")
    if stream.unused_data:
        raise ItemError(400, f"{len(stream.unused_data)} bytes follow the compressed body")
    return body


@lru_cache(maxsize=64)
def _best(accept_encoding: bytes) -> bytes | None:
    """The coding that a client likes best among ours; None for none, or where it likes its answers as they are."""
    liking: dict[str, float] = {}
    for part in accept_encoding.decode("latin-1").lower().split(","):
        coding, _, parameters = part.partition(";")
        liking[coding.strip()] = _quality(parameters)
    others = liking.get("*", 0.0)
    gzip_q, deflate_q = liking.get("gzip", liking.get("x-gzip", others)), liking.get("deflate", others)
    if max(gzip_q, deflate_q) <= 0 or liking.get("identity", 0.0) > max(gzip_q, deflate_q):
        return None
    return b"gzip" if gzip_q >= deflate_q else b"deflate"


def _quality(parameters: str) -> float:
    name, _, value = parameters.partition("=")
    if name.strip() != "q":
        return 1.0
    try:
        return float(value)
    except ValueError:
        return 0.0


def _shrinks(content_type: bytes) -> bool:
    kind = content_type.partition(b";")[0].strip().lower()
    return kind.startswith(b"text/") or kind == b"application/json" or kind.endswith(b"+json")
