"""Fixtures of the unit tests."""

import asyncio
import threading

import pytest
from fakes import world

__all__ = ["world"]


@pytest.fixture(scope="module")
def loop():
    """An event loop in a thread of its own, as the provider has it."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
