"""The load generator: seeded Poisson arrivals over raw sockets, sent when due, whatever became of earlier ones.

Latency counts from when a request was *due*, so neither a server that stalls nor a generator that is late can hide it.
Nothing is looked at while the load runs: answers are kept whole and judged afterwards (`judge`). The generator's own
lateness and its share of its core are part of every trial, and a trial that they may have decided says so.
"""

from __future__ import annotations

import gc
import select
import socket
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from benchmarks import wire

_READ_BYTES = 1 << 18
_LEAD_S = 0.01
"""From the end of the preparations to time zero."""
_ACCEPT_S = 5.0
"""The server gets this long to take its first connections."""
_SLICE = 128
"""So many connections are opened at once: less than any server's backlog."""
_SENDS = 256
"""At most so many are sent before answers are looked at again."""
_REVIEW_S = 0.05
"""How often it is asked whether the trial is lost already."""
_OK = b"HTTP/1.1 200"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is sent in one trial."""

    address: tuple[str, int]
    requests: Sequence[bytes]
    """Whole requests; the n-th of the trial is `requests[n % len(requests)]`."""
    rate_rps: float
    seed: int
    target_s: float
    seconds: float = 4.0
    """Of counted arrivals."""
    warm_s: float = 0.5
    """Arrivals before them that are not counted."""
    keeps_alive: bool = True
    """Connections are opened before time zero. A server that serves one connection at a time would wait on them."""
    connections_max: int = 4096
    """The pool grows up to this when all are busy; then requests wait here, and their latency counts on."""
    give_up_share: float = 0.01
    """The trial ends when more than this share of the counted requests is late beyond doubt; 1 never gives up."""

    @property
    def timeout_s(self) -> float:
        """After the last arrival, answers are waited for this long; those that have not come are lost."""
        return max(1.0, 5 * self.target_s)

    @property
    def connections(self) -> int:
        """Opened before time zero: as many as are busy when every answer takes as long as it may.

        To open them under load costs a server more than the requests do, and one short stall would make thousands.
        """
        most = int(self.rate_rps * self.target_s)
        return min(self.connections_max, max(16, most)) if self.keeps_alive else 0

    def arrivals_s(self) -> list[float]:
        """When requests are due, in order, from time zero."""
        rng = np.random.default_rng(self.seed)
        length_s = self.warm_s + self.seconds
        gaps = rng.exponential(1 / self.rate_rps, int(self.rate_rps * length_s * 1.2) + 100)
        due = np.cumsum(gaps)
        return due[due < length_s].tolist()  # type: ignore[no-any-return]


class Wire(NamedTuple):
    """What happened to each request of a trial, as it was seen; index is the number of the request."""

    due_s: list[float]
    sent_s: list[float]
    """0 for those that were never sent."""
    done_s: list[float]
    """0 for those that were not answered whole."""
    answers: list[bytes | None]
    faults: dict[int, str]
    """Why there is no answer, where that was seen."""
    given_up: bool
    opened: int
    """Connections made while the load ran, beside those it began with."""
    connections: int
    """Connections there were at most."""
    cpu_share: float
    """The generator's time on its core, of the time that the load took."""


def fire(load: Load) -> Wire:
    """Send it all, and wait for the answers."""
    run = _Run(load)
    with _no_gc():
        try:
            run.open_first()
            begin_cpu_s, begin_s = time.process_time(), time.perf_counter()
            given_up = run.play()
            took_s = time.perf_counter() - begin_s
            cpu_s = time.process_time() - begin_cpu_s
        finally:
            run.close()
    return Wire(
        due_s=run.due_s, sent_s=run.sent_s, done_s=run.done_s, answers=run.answers, faults=run.faults,
        given_up=given_up, opened=run.opened, connections=run.connections, cpu_share=cpu_s / took_s,
    )  # fmt: skip


class _Run:
    """One trial in progress. Lists by file descriptor: the quickest thing Python has."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self.due_s = load.arrivals_s()
        count = len(self.due_s)
        self.sent_s = [0.0] * count
        self.done_s = [0.0] * count
        self.answers: list[bytes | None] = [None] * count
        self.faults: dict[int, str] = {}
        self.sockets: dict[int, socket.socket] = {}
        self.opened = 0
        self.connections = 0
        self._next = 0
        self._answered = 0
        self._counted_from = bisect_right(self.due_s, load.warm_s)
        self._late = 0
        self._learned = -1
        self._epoll = select.epoll()
        self._free: list[int] = []
        self._number: list[int] = []
        """Of the request under way on a connection; -1 for none."""
        self._send: list = []  # type: ignore[type-arg]
        self._recv: list = []  # type: ignore[type-arg]
        self._part: dict[int, bytes] = {}
        self._rest: dict[int, bytes] = {}

    def open_first(self) -> None:
        """Connections to begin with."""
        for number in range(self._load.connections):
            self._free.append(self._open())
            if number % _SLICE == _SLICE - 1 or number == self._load.connections - 1:
                self._await_accept(self._free[-1])
        self.opened = 0

    def _await_accept(self, fd: int) -> None:
        """Connections are taken in order: once the last one is served, all are."""
        last, answer = self.sockets[fd], b""
        last.settimeout(_ACCEPT_S)
        try:
            last.sendall(self._load.requests[0])
            while wire.end_of_answer(answer) is None and (data := last.recv(_READ_BYTES)):
                answer += data
            last.setblocking(False)
        except (OSError, wire.NotHttpError) as error:  # the trial will tell what that means
            self._drop(fd, error)

    def play(self) -> bool:
        """The load itself; tells whether it was given up."""
        load, poll = self._load, self._epoll.poll
        zero_s = self._zero_s = time.perf_counter() + _LEAD_S
        most_late = load.give_up_share * (len(self.due_s) - self._counted_from)
        end_s = load.warm_s + load.seconds + load.timeout_s
        review_s, count = 0.0, len(self.due_s)
        while self._answered < count:
            now_s = time.perf_counter() - zero_s
            if now_s > end_s:
                break
            if self._next < count and self.due_s[self._next] <= now_s:
                self._send_due(now_s)
            events = poll(0, 1024)
            if events:
                self._take(events)
            else:
                self._sleep(zero_s, review_s)
            if now_s > review_s:
                review_s = now_s + _REVIEW_S
                if self._too_many_late(now_s, most_late):
                    return True
        return False

    def _sleep(self, zero_s: float, until_s: float) -> None:
        """Until something happens or is due. `select` on the epoll counts microseconds; epoll itself milliseconds."""
        wake_s = max(until_s, 0.001)
        if self._next < len(self.due_s) and (self._free or len(self.sockets) < self._load.connections_max):
            wake_s = min(wake_s, self.due_s[self._next])
        wait_s = wake_s - (time.perf_counter() - zero_s)
        if wait_s > 0:
            select.select([self._epoll], [], [], min(wait_s, _REVIEW_S))

    def _send_due(self, now_s: float) -> None:
        number = self._next
        last = bisect_right(self.due_s, now_s, number, min(number + _SENDS, len(self.due_s)))
        free, busy, send, sent_s = self._free, self._number, self._send, self.sent_s
        requests, variants = self._load.requests, len(self._load.requests)
        clock, zero_s = time.perf_counter, self._zero_s
        while number < last:
            if free:
                fd = free.pop()
            elif len(self.sockets) < self._load.connections_max:
                fd = self._open()
            else:
                break
            busy[fd] = number
            request = requests[number % variants]
            sent_s[number] = clock() - zero_s
            number += 1
            try:
                written = send[fd](request)
            except BlockingIOError:
                written = 0
            except OSError as error:
                self._drop(fd, error)
                continue
            if written < len(request):
                self._rest[fd] = request[written:]
                self._epoll.modify(fd, select.EPOLLIN | select.EPOLLOUT)
        self._next = number

    def _take(self, events: list[tuple[int, int]]) -> None:
        recv, busy, answers, done_s, free = self._recv, self._number, self.answers, self.done_s, self._free
        parts, learned, clock, zero_s = self._part, self._learned, time.perf_counter, self._zero_s
        target_s, due_s = self._load.target_s, self.due_s
        for fd, event in events:
            if event & select.EPOLLOUT:
                self._send_rest(fd)
                continue
            try:
                data = recv[fd](_READ_BYTES)
            except BlockingIOError:
                continue
            except OSError as error:
                self._drop(fd, error)
                continue
            number = busy[fd]
            # As long as the last answer, and it begins like one: whole. `judge` looks closer.
            if len(data) == learned and number >= 0 and data.startswith(_OK) and fd not in parts:
                now_s = clock() - zero_s
                done_s[number] = now_s
                answers[number] = data
                busy[fd] = -1
                free.append(fd)
                self._answered += 1
                if now_s - due_s[number] > target_s and number >= self._counted_from:
                    self._late += 1
            else:
                self._take_slowly(fd, number, data)
                learned = self._learned

    def _take_slowly(self, fd: int, number: int, data: bytes) -> None:
        if number < 0:  # it closes an idle connection, or answers what nobody asked
            self._free.remove(fd)
            self._forget(fd)
            return
        whole = self._part.pop(fd, b"") + data
        try:
            end = wire.end_of_answer(whole)
        except wire.NotHttpError as error:
            self._drop(fd, error)
            return
        if data and end is None:
            self._part[fd] = whole
            return
        if end is None and b"\r\n\r\n" not in whole:
            self._drop(fd, ConnectionResetError())
            return
        self._note(number, whole)
        self._number[fd] = -1
        if not data or wire.closes(whole):
            self._forget(fd)
        else:
            self._learned = len(whole)
            self._free.append(fd)

    def _note(self, number: int, answer: bytes) -> None:
        now_s = time.perf_counter() - self._zero_s
        self.done_s[number] = now_s
        self.answers[number] = answer
        self._answered += 1
        if now_s - self.due_s[number] > self._load.target_s and number >= self._counted_from:
            self._late += 1

    def _send_rest(self, fd: int) -> None:
        rest = self._rest.pop(fd, b"")
        try:
            written = self._send[fd](rest)
        except BlockingIOError:
            written = 0
        except OSError as error:
            self._drop(fd, error)
            return
        if written < len(rest):
            self._rest[fd] = rest[written:]
        else:
            self._epoll.modify(fd, select.EPOLLIN)

    def _too_many_late(self, now_s: float, most: float) -> bool:
        overdue = bisect_right(self.due_s, now_s - self._load.target_s)
        if self._late + len(self.faults) + max(0, overdue - self._answered) <= most:
            return False
        # The estimate knows nothing of requests that are not counted: look, now that it pays.
        return self._late + self.done_s[self._counted_from : overdue].count(0.0) > most

    def _open(self) -> int:
        one = socket.socket()
        one.setblocking(False)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        one.connect_ex(self._load.address)
        fd = one.fileno()
        lack = fd + 1 - len(self._number)
        if lack > 0:
            self._number += [-1] * lack
            self._send += [None] * lack
            self._recv += [None] * lack
        self._number[fd] = -1
        self._send[fd], self._recv[fd] = one.send, one.recv
        self.sockets[fd] = one
        self._epoll.register(fd, select.EPOLLIN)
        self.opened += 1
        self.connections = max(self.connections, len(self.sockets))
        return fd

    def _drop(self, fd: int, error: Exception) -> None:
        """The request on this connection has failed."""
        number = self._number[fd]
        if number >= 0:
            self.faults[number] = "refused" if isinstance(error, ConnectionRefusedError) else "broken"
            self._answered += 1
        elif fd in self._free:
            self._free.remove(fd)
        self._forget(fd)

    def _forget(self, fd: int) -> None:
        self._epoll.unregister(fd)
        self.sockets.pop(fd).close()
        self._number[fd] = -1
        self._part.pop(fd, None)
        self._rest.pop(fd, None)

    def close(self) -> None:
        """End all connections."""
        for one in self.sockets.values():
            one.close()
        self._epoll.close()


@contextmanager
def _no_gc() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
