"""Requests at a fixed rate, whether or not the earlier ones have been answered: a slow server is not spared any."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import requests

_CLIENTS = 32
"""Connections; at most so many requests wait at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer."""

    status: int
    """0 when there was none."""
    text: str
    """Of the answer, or of the error."""
    took_s: float


class Load:
    """What has come so far, in the order in which it came."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.sent = 0

    def statuses(self) -> Counter[int]:
        """How often each status has come."""
        return Counter(answer.status for answer in self.answers)

    def last(self, count: int) -> set[str]:
        """What the last answers say; nothing before there are so many."""
        return {answer.text for answer in self.answers[-count:]} if len(self.answers) >= count else set()


@contextmanager
def open_loop(url: str, *, rate_rps: float, body: bytes = b"") -> Iterator[Load]:
    """POST to a URL at a rate while the context lasts; at its end every request has been answered."""
    load, over, local = Load(), threading.Event(), threading.local()
    sessions: list[requests.Session] = []

    def ask() -> None:
        if not hasattr(local, "session"):
            local.session = requests.Session()
            sessions.append(local.session)
        began_s = time.monotonic()
        try:
            answer = local.session.post(url, data=body, timeout=30)
            status, text = answer.status_code, answer.text
        except requests.RequestException as error:
            status, text = 0, str(error)
        load.answers.append(Answer(status=status, text=text, took_s=time.monotonic() - began_s))

    def send() -> None:
        began_s = time.monotonic()
        while not over.wait(max(0.0, began_s + load.sent / rate_rps - time.monotonic())):
            load.sent += 1
            pool.submit(ask)

    with ThreadPoolExecutor(_CLIENTS) as pool:
        sender = threading.Thread(target=send)
        sender.start()
        try:
            yield load
        finally:
            over.set()
            sender.join()
    for session in sessions:
        session.close()
    assert len(load.answers) == load.sent
