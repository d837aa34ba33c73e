"""What the fast tiers may not do is really impossible."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest
from hypothesis import settings


def test_nobody_outside_is_reached() -> None:
    """Neither by a plain socket nor through asyncio."""
    with socket.socket() as sock, pytest.raises(RuntimeError, match="connects to nobody outside"):
        sock.connect(("192.0.2.1", 80))
    with pytest.raises(RuntimeError, match="connects to nobody outside"):
        asyncio.run(asyncio.open_connection("192.0.2.1", 80))


def test_loopback_is_reached() -> None:
    """Servers of a test's own are no outside."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        assert client.getpeername() == server.getsockname()


def test_nobody_sleeps() -> None:
    """Giving way for a moment is all."""
    time.sleep(0.001)
    with pytest.raises(RuntimeError, match="does not sleep"):
        time.sleep(1)


def test_a_slow_example_is_no_failure() -> None:
    """A property is about what comes out; a machine that pauses must not break it."""
    assert settings.default is not None
    assert settings.default.deadline is None


@pytest.fixture(scope="module")
def asleep() -> str:
    """Why a fixture cannot sleep."""
    with pytest.raises(RuntimeError) as told:
        time.sleep(1)
    return str(told.value)


def test_fixtures_do_not_sleep_either(asleep: str) -> None:
    """Also those that many tests share."""
    assert "does not sleep" in asleep
