"""What every tier may do: unit, property and golden tests reach no other machine and do not sleep."""

from __future__ import annotations

import ipaddress
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before anything imports onnxruntime, which else reports to Microsoft
FAST_TIERS = ("unit", "property", "golden")
SLEEP_MAX_S = 0.05
"""A thread may give way for a moment; waiting for something belongs into asyncio or into another tier."""


@pytest.fixture(autouse=True)
def _banned_in_fast_tiers(request: pytest.FixtureRequest) -> Iterator[None]:
    """Connections to other machines, and sleeps, raise."""
    if _tier(request.path) not in FAST_TIERS:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        real_connect, real_sleep = socket.socket.connect, time.sleep

        def connect(sock: socket.socket, address: Any) -> None:
            if sock.family != socket.AF_UNIX and not _is_here(address[0]):
                raise RuntimeError(f"this tier connects to nobody outside; {address} belongs into tests/integration")
            real_connect(sock, address)

        def sleep(seconds: float) -> None:
            if seconds > SLEEP_MAX_S:
                raise RuntimeError(f"this tier does not sleep, and surely not for {seconds} s")
            real_sleep(seconds)

        patch.setattr(socket.socket, "connect", connect)
        patch.setattr(time, "sleep", sleep)
        yield


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"


def _tier(path: Path) -> str | None:
    """The folder below `tests` that a test lives in."""
    here = Path(__file__).parent
    return path.relative_to(here).parts[0] if path != here and path.is_relative_to(here) else None
