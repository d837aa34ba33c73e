"""The bridge to the control plane: so many calls at once, room for operators in a flood, nothing done for who has left."""

from __future__ import annotations

import asyncio
import threading

import pytest

from infless_provider import wsgi
from infless_provider.wsgi import WsgiBridge
from infless_watchdog.calls import Head
from infless_watchdog.http import Exchange

GENEROUS_S = 60.0
"""Longer than any machine takes to run a thread."""


class Line:
    """A connection that keeps what is sent."""

    peer, draining = "127.0.0.1:1", False

    def __init__(self):
        self.sent, self.answer = b"", threading.Event()

    def start_of(self, status, content_type, size):
        """Only what a test reads."""
        return b"HTTP/1.1 %d\r\n" % status

    def answered(self, exchange, data):
        """The whole answer."""
        self.sent = data
        self.answer.set()

    def ends_after(self):
        """It stays open."""
        return False


class App:
    """A WSGI application whose calls wait for the gate."""

    def __init__(self):
        self.gate, self.called, self._lock = threading.Event(), [], threading.Lock()
        self.entered = threading.Semaphore(0)

    def __call__(self, environ, start_response):
        """The path of the call, once the gate is open; operators' calls wait for none."""
        with self._lock:
            self.called.append(environ["PATH_INFO"])
        self.entered.release()
        if environ["PATH_INFO"] != "/quick":
            assert self.gate.wait(GENEROUS_S), "nobody opened the gate"
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [environ["PATH_INFO"].encode()]


class Bench:
    """A bridge on a loop in a thread of its own."""

    def __init__(self, loop):
        self.loop, self.app = loop, App()
        self.bridge = self.on_loop(lambda: WsgiBridge(self.app, lambda one: one.header(b"authorization") is not None))

    def on_loop(self, call):
        """What it gives there."""

        async def work():
            return call()

        return asyncio.run_coroutine_threadsafe(work(), self.loop).result(GENEROUS_S)

    def send(self, path, *, operator=False, gone=False):
        """A call that has come; gives its exchange and its connection."""
        line = Line()
        fields = [(b"authorization", b"x")] if operator else []
        exchange = Exchange(line, Head("GET", path, "", fields))
        self.on_loop(lambda: self.bridge(exchange))
        if gone:
            exchange.client_gone = exchange.done = True
        return exchange, line

    def under_way(self, count):
        """So many more calls have come to the application."""
        for _ in range(count):
            assert self.app.entered.acquire(timeout=GENEROUS_S)


@pytest.fixture
def bench(loop):
    """One whose threads end."""
    made = Bench(loop)
    yield made
    made.app.gate.set()
    made.bridge.close()


def assert_no_room(line):
    """503, a sentence and when to come again."""
    assert line.sent.startswith(b"HTTP/1.1 503\r\n")
    assert b"retry-after: 1\r\n" in line.sent
    assert b"too many control calls" in line.sent


def test_a_flood_of_strangers_ends_at_a_number(bench):
    """One more is told at once, and an operator is answered meanwhile."""
    inside = [bench.send("/metrics") for _ in range(wsgi.STRANGERS_MAX)]
    bench.under_way(wsgi.STRANGERS_THREADS)
    for _ in range(3):
        exchange, line = bench.send("/metrics")
        assert exchange.status == 503
        assert_no_room(line)
    _, operator = bench.send("/quick", operator=True)
    assert operator.answer.wait(GENEROUS_S)
    assert operator.sent.endswith(b"/quick")
    bench.app.gate.set()
    assert all(line.answer.wait(GENEROUS_S) for _, line in inside)
    assert all(line.sent.endswith(b"/metrics") for _, line in inside)


def test_who_has_been_answered_leaves_room(bench):
    """By the time the answer is there; also where the application failed, or the client has left."""
    bench.app.gate.set()
    for _ in range(3 * wsgi.STRANGERS_MAX):
        _, line = bench.send("/metrics")
        assert line.answer.wait(GENEROUS_S)
        assert line.sent.endswith(b"/metrics")


def test_operators_calls_end_at_a_number_too(bench, monkeypatch):
    """They may be large, and a client may be wild."""
    monkeypatch.setattr(wsgi, "CALLS_MAX", 5)
    narrow = Bench(bench.loop)
    inside = [narrow.send("/system/functions", operator=True) for _ in range(5)]
    assert_no_room(narrow.send("/system/functions", operator=True)[1])
    narrow.app.gate.set()
    assert all(line.answer.wait(GENEROUS_S) for _, line in inside)
    narrow.bridge.close()


def test_nothing_is_done_for_who_has_left(bench, monkeypatch):
    """What waits for a thread is dropped when the thread comes to it, and its room is another's."""
    monkeypatch.setattr(wsgi, "STRANGERS_THREADS", 1)
    narrow = Bench(bench.loop)
    _, first = narrow.send("/first")
    narrow.under_way(1)
    for _ in range(wsgi.STRANGERS_MAX - 1):
        narrow.send("/gone", gone=True)
    assert_no_room(narrow.send("/late")[1])
    narrow.app.gate.set()
    assert first.answer.wait(GENEROUS_S)
    _, quick = narrow.send("/quick")  # the only thread has been at all others when it comes to this
    assert quick.answer.wait(GENEROUS_S)
    again = [narrow.send("/again") for _ in range(wsgi.STRANGERS_MAX)]
    assert all(line.answer.wait(GENEROUS_S) for _, line in again)
    assert narrow.app.called == ["/first", "/quick"] + ["/again"] * wsgi.STRANGERS_MAX
    narrow.bridge.close()


def test_an_application_that_fails(bench, caplog):
    """500 without its words, which are in the log; the room is free again."""

    def broken(environ, start_response):
        raise RuntimeError("no words for strangers")

    bench.bridge._app = broken
    for _ in range(wsgi.STRANGERS_MAX + 1):
        _, line = bench.send("/metrics")
        assert line.answer.wait(GENEROUS_S)
        assert line.sent.startswith(b"HTTP/1.1 500\r\n")
        assert b"no words" not in line.sent
    assert "no words for strangers" in caplog.text


def test_a_bridge_that_is_closed(bench):
    """It says so, and leaves no room taken."""
    bench.bridge.close()
    for _ in range(wsgi.STRANGERS_MAX + 1):
        _, line = bench.send("/metrics")
        assert line.sent == b"HTTP/1.1 503\r\n\r\nthe provider stops\n"
