"""One request at a time over a plain socket: the first answer of a server, and when it has come to rest."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from benchmarks import wire

_REST_S = 30.0
"""A server that has not come to rest after this long is measured as it is."""
_AGAIN_S = 0.005


def ask(address: tuple[str, int], request: bytes, timeout_s: float) -> bytes:
    """The whole answer; empty when the connection ended without one.

    Raises:
        OSError: no connection, or no answer in time.
    """
    with socket.create_connection(address, timeout=timeout_s) as connection:
        connection.sendall(request)
        answer = b""
        while True:
            data = connection.recv(1 << 18)
            answer += data
            if not data or wire.end_of_answer(answer) is not None:
                return answer


def first_right(
    address: tuple[str, int],
    request: bytes,
    is_right: Callable[[bytes], bool],
    lives: Callable[[], bool],
    limit_s: float,
) -> str:
    """Ask until the answer is right; '' then, else what came last."""
    ends_s, last = time.monotonic() + limit_s, "no connection"
    while lives() and time.monotonic() < ends_s:
        try:
            answer = ask(address, request, 10.0)
            if is_right(answer):
                return ""
            last = f"answered {answer[:300]!r}"
        except (OSError, wire.NotHttpError) as error:
            last = f"{type(error).__name__}: {error}"
        time.sleep(_AGAIN_S)
    return f"no right answer within {limit_s:.0f} s; {last}" if lives() else f"it ended; {last}"


def let_rest(address: tuple[str, int], request: bytes, target_s: float) -> float:
    """Wait until three lone requests in a row are answered within the target; how long that took."""
    begin_s, quick = time.monotonic(), 0
    while quick < 3 and time.monotonic() - begin_s < _REST_S:
        asked_s = time.monotonic()
        try:
            answered = ask(address, request, 5.0) != b""
        except (OSError, wire.NotHttpError):
            answered = False
            time.sleep(0.05)
        quick = quick + 1 if answered and time.monotonic() - asked_s < target_s else 0
    return time.monotonic() - begin_s
