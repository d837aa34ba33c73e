"""The threat note against a real provider: a flood of control calls by somebody without the password."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from select import select

import pytest
from provider_in_process import ProviderInProcess, provider_in_process
from provider_process import wait_until
from raw_http import ask, basic, read_answer, request

from infless_provider.metrics import Metrics, Sample
from infless_provider.wsgi import STRANGERS_MAX

pytestmark = pytest.mark.integration

GENEROUS_S = 60.0
"""Longer than any machine takes for a loopback call."""
MORE = 20
"""Calls above what there is room for."""


class Rendering:
    """Metrics that are not rendered while the gate is shut."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate, self.entered = threading.Event(), threading.Event()
        self.gate.set()
        real = Metrics.text

        def text(metrics: Metrics, now: Sample) -> bytes:
            self.entered.set()
            assert self.gate.wait(GENEROUS_S), "nobody opened the gate"
            return real(metrics, now)

        monkeypatch.setattr(Metrics, "text", text)


@pytest.fixture
def rendering(monkeypatch: pytest.MonkeyPatch) -> Rendering:
    """Its gate is open."""
    return Rendering(monkeypatch)


@pytest.fixture
def provider(tmp_path: Path, rendering: Rendering) -> Iterator[ProviderInProcess]:
    """One without functions: the flood needs none."""
    with provider_in_process(tmp_path / "flooded") as made:
        try:
            yield made
        finally:
            rendering.gate.set()


class TestFloods:
    """Of `GET /metrics`, which everybody may ask for."""

    def test_of_clients_that_wait(self, provider, rendering):
        """So many wait; the others are told to come again, and an operator is served meanwhile."""
        rendering.gate.clear()
        with ExitStack() as open_ones:
            crowd = [asking(provider, open_ones) for _ in range(STRANGERS_MAX + MORE)]
            refused: list[socket.socket] = []
            wait_until(lambda: len(answered(crowd, refused)) >= MORE, "those for whom there is no room are told")
            assert {told(one) for one in refused} == {(503, "1")}
            assert listing(provider) == 200
            rendering.gate.set()
            assert {told(one) for one in crowd if one not in refused} == {(200, None)}
        assert len(refused) == MORE
        wait_until(lambda: refusals(provider) == MORE, "they are counted")  # a text that took long is kept for a while

    def test_of_clients_that_leave(self, provider, rendering):
        """What they asked for does not pile up, and is not done: once it is over, the next one has room at once."""
        rendering.gate.clear()
        with ExitStack() as open_ones:
            asking(provider, open_ones)
            assert rendering.entered.wait(GENEROUS_S)
            for _ in range(5 * STRANGERS_MAX):
                with ExitStack() as gone:
                    asking(provider, gone)
            wait_until(lambda: len(provider.edge.connections) == 1, "all but the first have left")
            assert calls_held(provider) <= STRANGERS_MAX
            assert listing(provider) == 200
            rendering.gate.set()
        wait_until(lambda: ask(provider.port, "GET", "/metrics").status == 200, "there is room again")


def asking(provider: ProviderInProcess, open_ones: ExitStack) -> socket.socket:
    """A stranger that has asked for metrics."""
    sock = open_ones.enter_context(socket.create_connection(("127.0.0.1", provider.port), timeout=GENEROUS_S))
    sock.sendall(request("GET", "/metrics"))
    return sock


def answered(crowd: list[socket.socket], found: list[socket.socket]) -> list[socket.socket]:
    """Those of the crowd that can be read from, gathered in `found`."""
    found[:] = select(crowd, [], [], 0)[0]
    return found


def told(sock: socket.socket) -> tuple[int, str | None]:
    """Status, and when to come again."""
    answer = read_answer(sock)
    return answer.status, answer.headers.get("retry-after")


def calls_held(provider: ProviderInProcess) -> int:
    """Calls of strangers that wait for a thread."""
    return provider._provider._control._strangers.threads._work_queue.qsize()


def listing(provider: ProviderInProcess) -> int:
    """How an operator is answered."""
    return ask(provider.port, "GET", "/system/functions", basic("admin", provider.password)).status


def refusals(provider: ProviderInProcess) -> float:
    """Control calls for which there was no room, as metrics have them."""
    text = ask(provider.port, "GET", "/metrics").text
    return sum(
        float(n) for n in re.findall(r'^provider_http_requests_total\{code="503".*\} (\S+)$', text, re.MULTILINE)
    )
