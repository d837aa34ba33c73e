"""Nothing is filtered: every request of a trial is counted once, and only right answers in time count as such."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from benchmarks import forms, openloop, processes, table, watchdog, wire
from benchmarks.models import TASKS, Example
from benchmarks.openloop import Load, Wire, fire
from benchmarks.peers import install
from benchmarks.peers.catalogue import OF_WATCHDOG, SERVERS, MissingError, Start
from benchmarks.trial import Right, judge
from hypothesis import given, settings
from hypothesis import strategies as st

ROWS = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
RIGHT = Right(rows=ROWS, decode=forms.RAW.decode)
KINDS = ("right", "late", "wrong", "short", "cut", "error", "broken", "lost", "unsent")


def _answer(body: bytes, status: int = 200) -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body


def _load(**more: object) -> Load:
    values = {"address": ("127.0.0.1", 1), "requests": (b"",), "rate_rps": 10.0, "seed": 1, "target_s": 0.1,
              "warm_s": 1.0, "seconds": 1.0, **more}  # fmt: skip
    return Load(**values)  # type: ignore[arg-type]


def _wire(kinds: list[str]) -> Wire:
    """What was seen of requests that went as told, the first of them in the warm-up."""
    good = [_answer(ROWS[number % 3].tobytes()) for number in range(len(kinds))]
    answers = {
        "wrong": _answer(bytes(8)), "short": _answer(bytes(4)), "cut": good[0][:-1], "error": _answer(b"no", 503),
        "broken": None, "lost": None, "unsent": None,
    }  # fmt: skip
    due_s = [0.5] + [1.0 + number / 1000 for number in range(1, len(kinds))]
    return Wire(
        due_s=due_s,
        sent_s=[0.0 if kind == "unsent" else at_s + 0.002 for at_s, kind in zip(due_s, kinds, strict=True)],
        done_s=[at_s + (0.2 if kind == "late" else 0.05) for at_s, kind in zip(due_s, kinds, strict=True)],
        answers=[answers.get(kind, good[number]) for number, kind in enumerate(kinds)],
        faults={number: "broken" for number, kind in enumerate(kinds) if kind == "broken"},
        given_up=False, opened=0, connections=1, cpu_share=0.1,
    )  # fmt: skip


@given(st.lists(st.sampled_from(KINDS), min_size=1, max_size=40))
def test_each_request_is_counted_once(kinds: list[str]) -> None:
    """As what it was; the warm-up's is not counted."""
    trial, count = judge(_load(), _wire(["wrong", *kinds]), RIGHT), Counter(kinds)
    assert trial.requests == len(kinds)
    assert (trial.in_time, trial.late) == (count["right"], count["late"])
    assert trial.wrong == count["wrong"] + count["short"] + count["cut"]
    assert trial.errors == {key: n for key, n in (("503", count["error"]), ("broken", count["broken"])) if n}
    assert (trial.lost, trial.unsent) == (count["lost"], count["unsent"])
    assert trial.share == count["right"] / len(kinds)


def test_failing_fast_improves_nothing() -> None:
    """What was not answered rightly has an infinite latency, which JSON calls null."""
    trial = judge(_load(), _wire(["right", *["right", "error"] * 10]), RIGHT)
    assert trial.p50_s == pytest.approx(0.05)
    assert trial.p99_s == float("inf")
    assert json.loads(json.dumps(trial.as_json()))["p99_s"] is None


def test_a_generator_at_its_limit_is_told() -> None:
    """By its share of the core, and by the lag of its sends; not when all connections were taken by the server."""
    seen = _wire(["right"] * 5)
    slow = seen._replace(sent_s=[at_s + 0.04 for at_s in seen.due_s])
    assert not judge(_load(), seen, RIGHT).generator_limited
    assert judge(_load(), seen._replace(cpu_share=0.95), RIGHT).generator_limited
    assert judge(_load(), slow, RIGHT).generator_limited
    assert not judge(_load(connections_max=1), slow, RIGHT).generator_limited


@given(st.integers(0, 99))
@settings(max_examples=10)
def test_arrivals_are_those_of_the_seed(seed: int) -> None:
    """Poisson: in order, of about the rate, the same again and others with another seed."""
    load = _load(rate_rps=1000.0, seed=seed)
    due_s = load.arrivals_s()
    assert due_s == sorted(due_s) == load.arrivals_s() != _load(rate_rps=1000.0, seed=seed + 1).arrivals_s()
    assert 1700 < len(due_s) < 2300
    assert np.diff(due_s).std() == pytest.approx(0.001, rel=0.2)


@contextmanager
def _server(behave: str) -> Iterator[tuple[str, int]]:
    """Answers each request, or does as told to every third one."""

    def serve_one(peer: socket.socket) -> None:
        number = 0
        with closing(peer), suppress(OSError):
            while data := peer.recv(65536):
                number += 1
                body = data.partition(b"\r\n\r\n")[2]
                answer = (
                    _answer(body)
                    if behave != "closes"
                    else _answer(body).replace(b"X\r\n", b"X\r\nConnection: close\r\n")
                )
                if behave == "hangs up" and number % 3 == 0:
                    return
                peer.sendall(answer[:20])
                peer.sendall(answer[20:])
                if behave == "closes":
                    return

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve_one, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield listener.getsockname()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def _echo(address: tuple[str, int], **more: object) -> openloop.Load:
    requests = tuple(wire.request("h", "/", row.tobytes()) for row in ROWS)
    values = {"address": address, "requests": requests, "rate_rps": 1000.0, "warm_s": 0.02, "seconds": 0.1,
              "target_s": 5.0, "give_up_share": 1.0, "connections_max": 64, **more}  # fmt: skip
    return _load(**values)


@pytest.mark.parametrize(("behave", "keeps_alive"), [("well", True), ("well", False), ("closes", False)])
def test_all_are_answered(behave: str, keeps_alive: bool) -> None:
    """Also in pieces, and by a server that takes one request on a connection."""
    with _server(behave) as address:
        load = _echo(address, keeps_alive=keeps_alive)
        trial = judge(load, fire(load), RIGHT)
    assert trial.requests > 50
    assert trial.in_time == trial.requests
    assert (behave == "closes") == (trial.opened >= trial.requests)


def test_hanging_up_is_no_answer() -> None:
    """It is counted as broken, and the others are answered."""
    with _server("hangs up") as address:
        load = _echo(address, connections_max=4)
        trial = judge(load, fire(load), RIGHT)
    assert trial.errors["broken"] > 5
    assert trial.in_time + trial.errors.get("broken", 0) == trial.requests


def test_nobody_there_is_refused() -> None:
    """Every one of them; nothing hangs."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = gone.getsockname()
    load = _echo(address, keeps_alive=False)
    trial = judge(load, fire(load), RIGHT)
    assert trial.errors == {"refused": trial.requests}


def test_a_lost_trial_is_given_up() -> None:
    """A server that says nothing is not waited for to the end."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        load = _load(address=silent.getsockname(), requests=(b"x",), rate_rps=500.0, warm_s=0.0, seconds=30.0,
                     target_s=0.02, keeps_alive=False, connections_max=16)  # fmt: skip
        trial = judge(load, fire(load), RIGHT)
    assert trial.given_up
    assert trial.in_time == 0
    assert trial.lost + trial.unsent == trial.requests


def test_what_others_took_is_told() -> None:
    """Of both cores; never less than nothing."""
    before, after = processes.Busy(10.0, 5.0), processes.Busy(14.0, 12.0)
    assert processes.others_share(before, after, 5.0, 2) == pytest.approx(2 / 8)
    assert processes.others_share(before, after, 9.0, 2) == 0.0


def test_the_table_has_a_row_for_each_server() -> None:
    """With ratios; what failed is told below with its reason."""
    results = {
        "rounds": 3, "share": 0.99, "forms": {"least": "raw", "ray": "raw"},
        "models": {"tiny": {"target_s": 0.05, "servers": {
            "least": {"median_rps": 64000.0, "ratios_to_least": {"median_rps": 1.0}, "median_worked_bytes": 2**21,
                      "median_start_s": 0.5},
            "ray": {"fault": "it ended\nTraceback"},
        }}},
    }  # fmt: skip
    text = table.markdown(results, {"least": "least", "ray": "Ray 2", "absent": "x"})
    assert "| least | 64,000/s (1.00) | 2 MiB | 0.50 s | raw |" in text
    assert text.endswith("Ray 2: it ended")
    assert "| x |" not in text


def test_peers_are_pinned() -> None:
    """Every line of every requirement says which version, so that two runs compare the same."""
    assert install.NAMES == ("bentoml", "litserve", "mlserver", "mosec", "pytriton", "ray")
    for name in install.NAMES:
        lines = (install._REQUIREMENTS / f"{name}.txt").read_text().split()
        assert lines
        assert all("==" in line for line in lines)


def _search(shares: list[tuple[float, float]], rates_rps: list[float]) -> tuple[float, list[float]]:
    """What a search finds when trials come out as told: share in time, and share that others took."""
    task = TASKS["dssm"]
    plan = watchdog.Plan(
        tasks=(task,), servers=("ours",), rounds=3, seconds=1.0, precision=0.04, starts=1, venvs=Path()
    )
    turn = watchdog.Turn(number=1, task=task, name="ours", example=Example(folder=Path(), inputs=(), right=ROWS))
    found, asked = watchdog.Found(rates_rps=rates_rps), []
    outcomes = iter(shares)

    def trial(rate_rps: float, _seed: int) -> tuple[bool, dict[str, float]]:
        asked.append(rate_rps)
        share, others = next(outcomes)
        return share >= 0.99, {"share_in_time": share, "others_share": others}

    return watchdog.search(plan, turn, found, trial, SERVERS["ours"]), asked


def test_a_failed_trial_is_repeated_once() -> None:
    """And once more where other work disturbed it; a later round begins where the last one ended."""
    good, bad, disturbed = (1.0, 0.0), (0.5, 0.0), (0.5, 0.4)
    assert _search([bad, good, bad, bad], [900.0, 1000.0]) == (1000.0, [1000.0, 1000.0, 1040.0, 1040.0])
    found, asked = _search([good, disturbed, bad, bad], [1000.0])
    assert (found, asked[1:]) == (1000.0, [1040.0] * 3)
    assert _search([disturbed, disturbed, good, bad, bad], [1000.0])[0] == 1000.0


def test_every_server_says_how_it_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or what is missing; those in our own environment need nothing else."""
    monkeypatch.delenv(OF_WATCHDOG, raising=False)
    example = Example(folder=tmp_path, inputs=(), right=ROWS)
    start = Start(task=TASKS["tiny"], example=example, port=9000, venvs=tmp_path)
    for name, server in SERVERS.items():
        assert set(server.likely_rps) == set(TASKS)
        if name in {"ours", "least", "flask"}:
            assert server.command(start).arguments[0] == sys.executable
        else:
            with pytest.raises(MissingError, match=r"not installed|names no binary"):
                server.command(start)
