"""What of a request is passed on to an instance, and what of an answer to the client. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infless_core.errors import InvalidInput
from infless_core.units import parse_duration_s
from infless_provider.upstream import LENGTH_EXPECTED, Header, encode_head
from infless_provider.wire import function_key

if TYPE_CHECKING:
    from infless_watchdog.calls import Head

PREFIX = "/function/"
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
INTERNAL: Header = (b"x-openfaas-internal", b"proxy")
"""Marks an answer that no function gave (OpenFaaS)."""
RETRY: Header = (b"retry-after", b"1")

HOP_BY_HOP = frozenset({
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer",
    b"transfer-encoding", b"upgrade", b"proxy-connection", b"expect",
})  # fmt: skip
"""RFC 9110, section 7.6.1: for one connection only."""
_NEVER_HOP = frozenset({b"host", b"authorization", b"x-forwarded-for", b"x-forwarded-host"})
"""A client that names these in `Connection` wants to hide something from the function."""
_TRACE = frozenset({b"x-call-id", b"x-start-time"})
_NOT_PASSED_ON = HOP_BY_HOP | _TRACE | {b"content-length"}
_NOT_PASSED_BACK = HOP_BY_HOP | _TRACE | {b"x-duration-seconds", b"x-infless-refused"}
_OF_A_WHOLE_ANSWER = frozenset({b"content-type", b"content-length", b"date"})
"""What the edge writes by itself where it knows the whole answer."""
_CALL_ID = re.compile(rb"[!-~]{1,128}")
_REFUSED: Header = (b"x-infless-refused", b"1")
"""How our watchdog says that it has done nothing for a request."""
_REFUSED_BY_OF_WATCHDOG: Header = (b"x-openfaas-internal", b"faas-middleware")
"""Its `max_inflight`, with 429."""


@dataclass(slots=True, kw_only=True)
class Passage:
    """What requests with one head have in common on their way to an instance.

    Not frozen, though nothing changes it: clients that mark each request have one each, and that takes thrice the time.
    """

    name: str
    """As it stands in the URL."""
    key: str
    """`name.namespace`."""
    method: str
    target: str
    """Path and query as the function sees them."""
    headers: tuple[Header, ...]
    """Those that are passed on, without `authorization` and what differs from request to request."""
    octets: bytes
    """The first line and `headers` as they go on the wire."""
    authorization: tuple[Header, ...]
    bearer: bytes | None
    """The first of these."""
    call_id: bytes | None
    """The client's own, where it is one."""
    told_for_whom: bool
    """Whether a proxy in front has said for whom it asks."""
    content_type: bytes
    """For answers that have none."""
    timeout_s: float
    """What the client is ready to wait; infinite where it does not say."""
    fault: str
    """Why the head cannot be served; empty when it can."""

    def on_the_wire(self, trace: Sequence[Header], peer: str, body: bytes, *, authorized: bool) -> bytes:
        """A whole request.

        Args:
            trace: its call id and start time.
            peer: the client's `host:port`.
            body: whole.
            authorized: whether its authorization was for us, and is not the function's business.
        """
        (_, call_id), (_, start_ns) = trace
        rest = b"" if self.told_for_whom else b"x-forwarded-for: %b\r\n" % peer.encode("latin-1")
        if self.authorization and not authorized:
            rest += b"".join([b"%b: %b\r\n" % header for header in self.authorization])
        if body or self.method in LENGTH_EXPECTED:
            rest += b"content-length: %d\r\n" % len(body)
        return b"%bx-call-id: %b\r\nx-start-time: %b\r\n%b\r\n%b" % (self.octets, call_id, start_ns, rest, body)

    def fields(self, trace: Sequence[Header], peer: str, *, authorized: bool) -> list[Header]:
        """The headers of the same request."""
        headers = [*self.headers, *trace]
        if not self.told_for_whom:
            headers.append((b"x-forwarded-for", peer.encode("latin-1")))
        return headers if authorized else [*headers, *self.authorization]


def passage_of(head: Head) -> Passage:
    """Read a head whose path begins with `/function/`."""
    name, _, rest = head.path.removeprefix(PREFIX).partition("/")
    target = f"/{rest}?{head.query}" if head.query else f"/{rest}"
    headers = end_to_end(head.headers)
    first = dict(reversed(head.headers))
    authorization: tuple[Header, ...] = ()
    if b"authorization" in first:
        authorization = tuple(header for header in headers if header[0] == b"authorization")
        headers = [header for header in headers if header[0] != b"authorization"]
    headers += forwarded(first)
    key = function_key(name)
    if b"host" not in first:  # HTTP/1.0; instances are asked in HTTP/1.1, which wants one
        headers.append((b"host", key.encode("latin-1")))
    timeout_s, fault = _timeout_s(first.get(b"x-timeout"))
    return Passage(
        name=name,
        key=key,
        method=head.method,
        target=target,
        headers=tuple(headers),
        octets=encode_head(head.method, target, headers),
        authorization=authorization,
        bearer=authorization[0][1] if authorization else None,
        call_id=sane_call_id(first.get(b"x-call-id")),
        told_for_whom=b"x-forwarded-for" in first,
        content_type=first.get(b"content-type") or b"text/plain",
        timeout_s=timeout_s,
        fault=fault,
    )


def forwarded(first: Mapping[bytes, bytes], peer: str | None = None) -> list[Header]:
    """What a function is told about the client, where no proxy in front has told it already.

    Args:
        first: the client's headers, of each name the first one.
        peer: its `host:port`; None where that differs from request to request and is told later.
    """
    told: list[Header] = []
    if b"host" in first and b"x-forwarded-host" not in first:
        told.append((b"x-forwarded-host", first[b"host"]))
    if peer is not None and b"x-forwarded-for" not in first:
        told.append((b"x-forwarded-for", peer.encode("latin-1")))
    return told


def sane_call_id(value: bytes | None) -> bytes | None:
    """A client's call id, if it is one: 1 to 128 printable ASCII characters without a space."""
    return value if value is not None and _CALL_ID.fullmatch(value) else None


def _timeout_s(said: bytes | None) -> tuple[float, str]:
    """The client's limit, or what is wrong with it."""
    if said is None:
        return math.inf, ""
    try:
        timeout_s = parse_duration_s(said.decode("latin-1"), "header X-Timeout")
    except (InvalidInput, OverflowError) as fault:
        return 0.0, str(fault)
    return timeout_s, "" if timeout_s > 0 else f"header X-Timeout: {said.decode('latin-1')!r} leaves no time"


def end_to_end(headers: Sequence[Header]) -> list[Header]:
    """A request's headers without those of one connection, its framing and its trace."""
    passed = [header for header in headers if header[0] not in _NOT_PASSED_ON]
    return _without_named(passed, headers, _NEVER_HOP) if len(passed) < len(headers) else passed


def _without_named(passed: list[Header], headers: Sequence[Header], kept: frozenset[bytes]) -> list[Header]:
    """Without what `Connection` names: that is for one connection only, too."""
    said = [value for name, value in headers if name == b"connection"]
    if not said:
        return passed
    named = {token.strip().lower() for value in said for token in value.split(b",")} - kept
    return [header for header in passed if header[0] not in named]


def answer_headers(headers: Sequence[Header]) -> list[Header]:
    """An answer's headers without those of one connection; the trace is the provider's to tell."""
    passed = [header for header in headers if header[0] not in _NOT_PASSED_BACK]
    return _without_named(passed, headers, frozenset()) if len(passed) < len(headers) else passed


def whole_answer(headers: list[Header], fallback: bytes) -> tuple[bytes, list[Header]]:
    """Content type and other headers of an answer that is written at once."""
    content_type = fallback
    for name, value in headers:
        if name == b"content-type":
            content_type = value
    return content_type, [header for header in headers if header[0] not in _OF_A_WHOLE_ANSWER]


def refuses(status: int, headers: Sequence[Header]) -> bool:
    """Whether an instance says that it has done nothing for a request, so that another one may.

    A handler that answers 503 by itself has run, so the status alone does not tell.
    """
    if status not in (429, 503):
        return False
    return _REFUSED in headers or (status == 429 and _REFUSED_BY_OF_WATCHDOG in headers)


class CallIds:
    """Numbers in the form of random UUIDs (RFC 9562, version 4): one random beginning, then counted.

    Args:
        seed: 16 random bytes.
    """

    def __init__(self, seed: bytes) -> None:
        digits = seed[:8].hex()
        self._start = f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-".encode()
        self._count = int.from_bytes(seed[8:16], "big") >> 2

    def next(self) -> bytes:
        """The next one."""
        self._count = (self._count + 1) & 0x3FFF_FFFF_FFFF_FFFF
        return b"%b%04x-%012x" % (self._start, 0x8000 | self._count >> 48, self._count & 0xFFFF_FFFF_FFFF)
