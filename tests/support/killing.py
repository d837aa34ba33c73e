"""Rounds of clients at work, a SIGKILL, and another start; and what has to be true when it is over."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import believed
import provider_books as books
from provider_process import ProviderProcess, wait_until


def use_and_kill(
    fresh: ProviderProcess, clients: Sequence[believed.Client], whom: str, answers: int, more_s: float
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


def settle(fresh: ProviderProcess, clients: Sequence[believed.Client]) -> None:
    """Wait until nothing is under way; then what runs is what clients believe, and answers as they believe."""

    def at_rest() -> bool:
        listed = fresh.send("GET", "/system/functions").json()
        wanted = {one["name"]: one["replicas"] for one in listed}
        there = {one["name"]: one["availableReplicas"] for one in listed}
        return wanted == there == {name: one.replicas for name, one in believed.deployed(fresh).items()}

    wait_until(lambda: books.queue_is_empty(fresh), "the queue is empty", timeout_s=60)
    wait_until(at_rest, "every function has its replicas")
    books.assert_in_order(fresh)
    now = believed.deployed(fresh)
    assert set(now) <= {client.name for client in clients}
    for client in clients:
        client.look(now)
        client.versions = {state.version for state in client.states if state is not None}
        assert client.invoke()


def check_queued_calls(fresh: ProviderProcess, clients: Sequence[believed.Client], seen: set[str]) -> None:
    """Each accepted call was seen by its function, or is in the books as failed because that was removed.

    A function that was removed takes its counts along, so those of mortal ones only have an upper bound.
    """
    for client in clients:
        book = books.queue(fresh, client.name)
        assert book["accepted"] <= len(client.accepted) + len(client.unsure)
        assert book["waiting"] == book["cancelled"] == 0
        if not client.mortal:
            assert len(client.accepted) <= book["accepted"]
            assert book["failed"] == 0
            assert set(client.accepted) <= seen
