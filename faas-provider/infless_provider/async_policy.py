"""What becomes of an asynchronous call, and what travels with it: pure decisions on frozen values."""

from __future__ import annotations

import email.utils
import hashlib
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields

from infless_core.errors import InvalidInput
from infless_provider.forwarding import answer_headers, end_to_end, forwarded
from infless_provider.upstream import Header

RETRIED = frozenset({429, 502, 503, 504})
"""Answers that say "not now". Any other, a handler's 500 included, is the function's answer."""
_CALLBACK_RETRIED = frozenset({0, 408, 425, 429})
"""Of a callback's target, beside every 5xx: no answer at all (0), too slow, too early, too many."""
_TOLD = frozenset({b"host", b"content-length", b"x-function-name", b"x-function-status"})
_KEY = re.compile(rb"[ -~]{1,128}")
_SECONDS = re.compile(r"[0-9]{1,9}")


def _check_positive(value: RetryRules | AsyncLimits) -> None:
    for field in fields(value):
        number = getattr(value, field.name)
        if isinstance(number, int | float) and not (number > 0 and math.isfinite(number)):
            raise ValueError(f"{field.name} is {number}; it must be a number above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryRules:
    """When something that did not work is tried again.

    Waits double from `backoff_s` to `backoff_max_s`; half of each is drawn, so that calls that failed together do not
    come back together.
    """

    attempts_max: int
    """Tries in all."""
    age_max_s: float
    """No try begins later than this after the first could; the first one is always made."""
    backoff_s: float
    backoff_max_s: float
    retry_after_max_s: float = 300.0
    """A longer Retry-After is cut to this: nobody may park a call for a day."""

    def __post_init__(self) -> None:
        """Refuse what would never try, or never stop."""
        _check_positive(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class AsyncLimits:
    """How much waits, how much runs, and for how long."""

    calls_max: int = 100_000
    """Calls in the queue; a waiting one takes about 1 kB of memory, its body is on disk only."""
    calls_per_function_max: int = 50_000
    """Below `calls_max`, so that one function's flood leaves room for others; so for bytes."""
    bytes_max: int = 1 << 30
    """Bodies of calls that have no answer yet, on disk."""
    bytes_per_function_max: int = 1 << 29
    body_max_bytes: int = 1 << 20
    """Of one call (the gateway's queue takes 256 kB)."""
    answer_max_bytes: int = 4 << 20
    """Of one answer on its way to a callback; what is above is cut off, and a header says so."""
    answers_bytes_max: int = 1 << 30
    """Bodies of answers on their way to callbacks, on disk. Each invocation that has a callback begins only when there
    is room for the longest answer; 256 of those are in flight."""
    answers_bytes_per_function_max: int = 1 << 29
    in_flight_max: int = 256
    in_flight_per_function_max: int = 64
    """Two largest batches of 32: one runs, one fills."""
    callbacks_max: int = 64
    callbacks_per_function_max: int = 32
    """As many names of hosts as one likes may mean one that never answers."""
    callbacks_per_host_max: int = 8
    invoke_timeout_s: float = 60.0
    """Of one attempt, cold start included."""
    close_grace_s: float = 10.0
    """How long `close` waits for calls that run."""
    disk_retry_s: float = 1.0
    """A disk that fails is asked again after this; the call keeps its place in flight, which holds others back."""
    invocations: RetryRules = RetryRules(attempts_max=10, age_max_s=3600.0, backoff_s=1.0, backoff_max_s=120.0)
    callbacks: RetryRules = RetryRules(attempts_max=6, age_max_s=3600.0, backoff_s=1.0, backoff_max_s=120.0)

    def __post_init__(self) -> None:
        """Refuse what would stop everything."""
        _check_positive(self)
        room_bytes = min(self.answers_bytes_max, self.answers_bytes_per_function_max)
        if self.answer_max_bytes > room_bytes:
            raise ValueError(f"answer_max_bytes is {self.answer_max_bytes}, but all answers may have {room_bytes}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try that has ended."""

    status: int
    """Of the answer; 0 for none."""
    attempts: int
    """Tries so far, this one included."""
    age_s: float
    """Since the first try could begin."""
    retry_after_s: float | None = None
    """What the answer asks for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """Try again."""

    after_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Final:
    """That was the last try."""

    failed: bool


def after_invocation(attempt: Attempt, rules: RetryRules, jitter: float) -> Again | Final:
    """What follows an invocation.

    Args:
        attempt: the one that has ended.
        rules: how often and how long.
        jitter: uniform in [0, 1).
    """
    if attempt.status not in RETRIED:
        return Final(failed=False)
    return _again(attempt, rules, jitter)


def after_callback(attempt: Attempt, rules: RetryRules, jitter: float) -> Again | Final:
    """What follows a POST to a callback URL: any 2xx is success, a redirect or another 4xx will not get better.

    Args:
        attempt: the one that has ended.
        rules: how often and how long.
        jitter: uniform in [0, 1).
    """
    status = attempt.status
    if status in _CALLBACK_RETRIED or status >= 500:
        return _again(attempt, rules, jitter)
    return Final(failed=not 200 <= status < 300)


def _again(attempt: Attempt, rules: RetryRules, jitter: float) -> Again | Final:
    if attempt.attempts >= rules.attempts_max:
        return Final(failed=True)
    # The exponent is bounded before the power is taken: 2.0**1100 is an error, not infinity.
    doublings = min(attempt.attempts - 1, 64)
    backoff_s = min(rules.backoff_s * 2.0**doublings, rules.backoff_max_s) * (0.5 + 0.5 * jitter)
    asked_s = min(attempt.retry_after_s or 0.0, rules.retry_after_max_s)
    after_s = max(backoff_s, asked_s)
    return Final(failed=True) if attempt.age_s + after_s > rules.age_max_s else Again(after_s=after_s)


def retry_after_s(headers: Iterable[Header], wall_s: float) -> float | None:
    """Seconds that a Retry-After header asks for (RFC 9110, section 10.2.3: a number or a date); None without one.

    Args:
        headers: names in lower case.
        wall_s: seconds since the epoch, for dates.
    """
    value = next((value for name, value in headers if name == b"retry-after"), b"").decode("latin-1").strip()
    if _SECONDS.fullmatch(value):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - wall_s)
    except (ValueError, OverflowError):
        return None


def request_headers(headers: Sequence[Header], peer: str, ours: Callable[[bytes], bool]) -> list[Header]:
    """What of a client's headers is kept for the function.

    Args:
        headers: names in lower case.
        peer: the client's `host:port`, for X-Forwarded-For.
        ours: whether an Authorization was meant for us (a token, the control plane's password), not for the handler.
    """
    kept = [
        (name, value) for name, value in end_to_end(headers)
        if name != b"x-callback-url" and not (name == b"authorization" and ours(value))
    ]  # fmt: skip
    return kept + forwarded(dict(reversed(headers)), peer)


def idempotency_key(value: bytes | None) -> str:
    """A client's Idempotency-Key; empty where it gave none.

    Raises:
        InvalidInput: it is none. A key that is silently ignored would let a call run twice.
    """
    if value is None:
        return ""
    if not _KEY.fullmatch(value):
        raise InvalidInput(
            f"header Idempotency-Key: 1 to 128 printable ASCII characters are allowed, not {value[:200]!r}"
        )
    return value.decode("ascii")


def digest(target: str, body: bytes) -> bytes:
    """What tells whether two calls with one key ask for the same: SHA-256 of path, query and body."""
    head = target.encode("utf-8", "surrogatepass")
    return hashlib.sha256(b"%d:%b%b" % (len(head), head, body)).digest()


def callback_headers(
    headers: Sequence[Header], *, call_id: str, function: str, status: int, took_s: float, accepted_ns: int
) -> list[Header]:
    """What is told to a callback URL: the answer's own headers, and OpenFaaS's about the call.

    Args:
        headers: of the answer, names in lower case.
        call_id: of the call.
        function: its name, without the namespace.
        status: of the answer.
        took_s: of the invocation that gave it.
        accepted_ns: since the epoch.
    """
    return [
        *(header for header in answer_headers(headers) if header[0] not in _TOLD),
        (b"x-call-id", call_id.encode()),
        (b"x-start-time", str(accepted_ns).encode()),
        (b"x-function-name", function.encode()),
        (b"x-function-status", str(status).encode()),
        (b"x-duration-seconds", f"{took_s:.6f}".encode()),
    ]
