"""Faults of the whole provider, with real processes: what was accepted is in force, done or reported; nothing is left.

Each test ends with Ctrl-C to the provider, after which no process and no temporary folder of it may exist.
"""

from __future__ import annotations

import random
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import believed
import provider_books as books
import pytest
from provider_process import ProviderProcess, wait_until

pytestmark = pytest.mark.integration


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[ProviderProcess]:
    """A provider of this test alone, not started yet. It is ended in order, and nothing of it may be left then."""
    made = ProviderProcess(tmp_path / "provider")
    try:
        yield made
        if made.process is not None and made.process.poll() is None:
            made.end()
    finally:
        made.destroy()


class TestKilled:
    """SIGKILL to the provider at any moment, then a start."""

    @pytest.mark.parametrize("seed", [20250611])
    def test_at_random_moments_while_clients_use_it(self, fresh: ProviderProcess, seed: int) -> None:
        """Every call answered 202 is in force, queued ones are done or counted as failed, nobody is doubled or left."""
        draw, seen = random.Random(seed), fresh.root / "seen"
        fresh.build("versioned", believed.HANDLER, believed.IMAGE)
        clients = [
            believed.Client(
                provider=fresh, name=f"f{n}", seen=str(seen), mortal=n % 2 == 0, random=random.Random(draw.random())
            )
            for n in range(10)
        ]
        fresh.start()
        for whom in draw.sample(("provider", "provider", "worker", "supervisor", "instance too"), 4):
            use_and_kill(fresh, clients, whom, answers=draw.randrange(25, 60), more_s=draw.uniform(0.0, 0.3))
            listed = fresh.send("GET", "/system/functions").json()
            for client in clients:
                client.look(listed, settled=False)
        settle(fresh, clients)
        fresh.stop(signal.SIGTERM)
        fresh.start()
        settle(fresh, clients)
        kept, used = books.bundles_in_use(fresh)
        assert kept == used
        done = sum((client.done for client in clients), Counter())
        assert all(done[f"{what} 202"] for what in ("deploy", "update", "scale", "remove", "enqueue")), done
        assert sum(n for what, n in done.items() if what.endswith(" 0")) > 0, done
        check_queued_calls(fresh, clients, set(seen.read_text().split()))


def use_and_kill(
    fresh: ProviderProcess, clients: list[believed.Client], whom: str, answers: int, more_s: float
) -> None:
    """One round: all clients at work, a SIGKILL after so many answers and seconds, and a provider that serves again."""
    over = threading.Event()

    def answered() -> int:
        return sum(client.done.total() for client in clients)

    enough = answered() + answers
    with ThreadPoolExecutor(len(clients)) as pool:
        working = [pool.submit(client.work, over) for client in clients]
        wait_until(lambda: answered() >= enough, f"{answers} answers")
        over.wait(more_s)
        assert fresh.process is not None
        if whom == "worker":
            fresh.kill_worker()
            over.set()
        elif whom == "supervisor":
            fresh.process.kill()
            fresh.process.wait()
            over.set()
            fresh.start()
        else:
            fresh.kill()
            over.set()
            if whom == "instance too":
                books.kill_instance(min(books.leaders(fresh)))
            fresh.start()
        for one in working:
            one.result()


def settle(fresh: ProviderProcess, clients: list[believed.Client]) -> None:
    """Wait until nothing is under way; then what runs is what clients believe, and answers as they believe."""

    def at_rest() -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = fresh.send("GET", "/system/functions").json()
        return listed if all(one["replicas"] == one["availableReplicas"] for one in listed) else []

    wait_until(lambda: books.queue_is_empty(fresh), "the queue is empty", timeout_s=60)
    listed = wait_until(at_rest, "every function has its replicas")
    books.assert_in_order(fresh)
    for client in clients:
        client.look(listed, settled=True)
        (state,) = client.states
        client.versions = {state.version} if state is not None else set()
        assert client.invoke()
    assert {one["name"] for one in listed} <= {client.name for client in clients}


def check_queued_calls(fresh: ProviderProcess, clients: list[believed.Client], seen: set[str]) -> None:
    """Each accepted call was seen by its function, or is in the books as failed because that was removed."""
    for client in clients:
        book = books.queue(fresh, client.name)
        assert len(client.accepted) <= book["accepted"] <= len(client.accepted) + len(client.unsure)
        assert book["waiting"] == book["cancelled"] == 0
        missed = set(client.accepted) - seen
        assert len(missed) <= book["failed"], missed
        if not client.mortal:
            assert book["failed"] == 0
