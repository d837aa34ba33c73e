"""What every tier may do: unit, property and golden tests reach no other machine and do not sleep."""

from __future__ import annotations

import gc
import ipaddress
import os
import socket
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before anything imports onnxruntime, which else reports to Microsoft
FAST_TIERS = ("unit", "property", "golden")
SLEEP_MAX_S = 0.05
"""A thread may give way for a moment; waiting for something belongs into asyncio or into another tier."""


# How property tests draw; `HYPOTHESIS_PROFILE` chooses. No time limit for an example: a machine that pauses is no defect.
settings.register_profile("local", deadline=None, print_blob=True)
settings.register_profile("ci", settings.get_profile("local"), derandomize=True)  # the same examples every time
settings.register_profile("many", settings.get_profile("local"), max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "local"))


_connect, _sleep = socket.socket.connect, time.sleep


def _near(sock: socket.socket, address: Any) -> None:
    if sock.family != socket.AF_UNIX and not _is_here(address[0]):
        raise RuntimeError(f"this tier connects to nobody outside; {address} belongs into tests/integration")
    _connect(sock, address)


def _short(seconds: float) -> None:
    if seconds > SLEEP_MAX_S:
        raise RuntimeError(f"this tier does not sleep, and surely not for {seconds} s")
    _sleep(seconds)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, bool | None, bool | None]:
    """Connections to other machines, and sleeps, raise while a test of a fast tier runs, its fixtures included."""
    if _tier(item.path) not in FAST_TIERS:
        return (yield)
    socket.socket.connect, time.sleep = _near, _short  # type: ignore[method-assign, assignment]
    try:
        return (yield)
    finally:
        socket.socket.connect, time.sleep = _connect, _sleep  # type: ignore[method-assign]


def pytest_collection() -> None:
    """What is collected stays to the end: to look through it for garbage takes a sixth of the fast tiers' time."""
    gc.disable()


def pytest_collection_finish() -> None:
    """From now on only what tests leave is looked through."""
    gc.collect()
    gc.freeze()
    gc.enable()


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"


def _tier(path: Path) -> str | None:
    """The folder below `tests` that a test lives in."""
    here = Path(__file__).parent
    return path.relative_to(here).parts[0] if path != here and path.is_relative_to(here) else None
