"""Faults of the whole provider, with real processes: what was accepted is in force, done or reported; nothing is left.

Each test ends with Ctrl-C to the provider, after which no process and no temporary folder of it may exist.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import believed
import fake_watchdog
import jumpy_clock
import killing
import provider_books as books
import pytest
import requests
from callback_server import CallbackServer
from provider_process import ProviderProcess, environment, infless, wait_until

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
            killing.use_and_kill(fresh, clients, whom, answers=draw.randrange(25, 60), more_s=draw.uniform(0.0, 0.3))
            now = believed.deployed(fresh)
            for client in clients:
                client.look(now)
        killing.settle(fresh, clients)
        fresh.stop(signal.SIGTERM)
        fresh.start()
        killing.settle(fresh, clients)
        kept, used = books.bundles_in_use(fresh)
        assert kept == used
        done = sum((client.done for client in clients), Counter())
        assert all(done[f"{what} 202"] for what in ("deploy", "update", "scale", "remove", "enqueue")), done
        assert sum(n for what, n in done.items() if what.endswith(" 0")) > 0, done
        killing.check_queued_calls(fresh, clients, set(seen.read_text().split()))


SLOW_START = """import os, time
while "listen_fds" in os.environ and not os.path.exists(GATE):  # it serves, and is not only timed
    time.sleep(0.01)

def handle(event, context):
    time.sleep(float(event.body or 0))
    return {"statusCode": 200, "body": os.environ.get("version", "1")}
"""


def slow_start(provider: ProviderProcess) -> tuple[str, Path]:
    """A handler that is loaded when a file is there, and that file."""
    gate = provider.root / "gate"
    return SLOW_START.replace("GATE", repr(str(gate))), gate


class TestKilledInTheMiddle:
    """SIGKILL to the provider after its 202 and before the work is done: the next one does the rest."""

    def test_of_a_deployment(self, fresh: ProviderProcess) -> None:
        """The instance that was starting goes on to become the only one."""
        handler, gate = slow_start(fresh)
        fresh.start().build("slow", handler)
        assert fresh.put("POST", "slow").status_code == 202
        starting = wait_until(lambda: fresh.instances("slow", "starting"), "it starts")
        fresh.kill()
        fresh.start()
        gate.touch()
        fresh.ready("slow")
        assert fresh.pids("slow") == [starting[0]["pid"]]
        assert fresh.invoke("slow", b"").text == "1"
        books.assert_in_order(fresh)

    def test_of_an_update(self, fresh: ProviderProcess) -> None:
        """Both versions are found again; the new one takes over, the old one ends."""
        handler, gate = slow_start(fresh)
        gate.touch()
        fresh.start().deploy("slow", handler)
        (old,) = fresh.pids("slow")
        gate.unlink()
        assert fresh.put("PUT", "slow", envVars={"version": "2"}).status_code == 202
        (starting,) = wait_until(lambda: fresh.instances("slow", "starting"), "the new one starts")
        fresh.kill()
        assert books.leaders(fresh) == {old, starting["pid"]}
        fresh.start()
        gate.touch()
        wait_until(lambda: fresh.pids("slow") == [starting["pid"]], "the new one alone serves")
        assert fresh.invoke("slow", b"").text == "2"
        books.assert_in_order(fresh)
        assert fresh.status("slow")["envVars"] == {"version": "2"}

    def test_of_scaling(self, fresh: ProviderProcess) -> None:
        """So many run as were asked for, not more."""
        handler, gate = slow_start(fresh)
        gate.touch()
        fresh.start().deploy("slow", handler)
        gate.unlink()
        assert fresh.send("POST", "/system/scale-function/slow", {"replicas": 3}).status_code == 202
        fresh.kill()
        fresh.start()
        gate.touch()
        fresh.ready("slow", 3)
        books.assert_in_order(fresh)
        assert len(books.leaders(fresh)) == 3

    def test_of_a_removal(self, fresh: ProviderProcess) -> None:
        """An instance that was answering its last request is ended: nobody waits for it any more."""
        handler, gate = slow_start(fresh)
        gate.touch()
        fresh.start().deploy("slow", handler)
        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(fresh.invoke, "slow", b"60")
            wait_until(lambda: books.in_flight(fresh, "slow") == 1, "it is asked")
            assert fresh.send("DELETE", "/system/functions", {"functionName": "slow"}).status_code == 202
            assert len(fresh.instances("slow", "draining")) == 1
            fresh.kill()
            assert isinstance(asking.exception(), requests.ConnectionError)
        assert len(books.leaders(fresh)) == 1
        fresh.start()
        wait_until(lambda: not books.leaders(fresh), "its instance is ended")
        books.assert_in_order(fresh)
        assert fresh.invoke("slow").status_code == 404


TROUBLE = """import os, time

def handle(event, context):
    if event.body:
        time.sleep(float(event.body))
    return {"statusCode": 200, "body": str(os.getpid())}
"""


def build_fake(provider: ProviderProcess, name: str) -> None:
    """A bundle whose watchdog is another program."""
    provider.build(name)
    folder = provider.bundles / name / "infless_watchdog"
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "__init__.py").touch()  # without it another package of that name would be preferred
    shutil.copy(fake_watchdog.__file__, folder / "__main__.py")


class TestInstances:
    """They hang, die and talk nonsense; each request has an answer or a cut connection, and is in the books once."""

    def test_killed_in_mid_request(self, fresh: ProviderProcess) -> None:
        """Who was being answered gets 502; who comes then is answered by a new one."""
        fresh.start().deploy("f", TROUBLE)
        before = books.descriptors(fresh)
        for _ in range(2):
            self._kill_in_mid_request(fresh)
        assert books.codes(fresh, "f") == Counter({"502": 16, "200": 16})
        books.assert_in_order(fresh)
        books.assert_nothing_left_open(fresh, before, pooled=8)

    def _kill_in_mid_request(self, fresh: ProviderProcess) -> None:
        wait_until(lambda: fresh.pids("f"), "an instance")
        with ThreadPoolExecutor(8) as pool:
            lost = [pool.submit(fresh.invoke, "f", b"30") for _ in range(8)]
            wait_until(lambda: books.in_flight(fresh, "f") == 8, "all are being answered")
            killed = set(fresh.pids("f"))  # two, where the planner replaces one by another just now
            for pid in killed:
                books.kill_instance(pid)
            # Until then a request may still be written to a connection whose end has not been read yet.
            wait_until(lambda: not killed & set(fresh.pids("f")), "their end is noticed")
            assert {one.result().status_code for one in lost} == {502}
            assert all("failed while answering" in one.result().text for one in lost)
            answers = list(pool.map(lambda _: fresh.invoke("f", b""), range(8)))
        assert {answer.status_code for answer in answers} == {200}
        assert not {str(pid) for pid in killed} & {answer.text for answer in answers}

    def test_that_hangs(self, fresh: ProviderProcess) -> None:
        """504 at the deadline, the client's or the provider's; other functions are served meanwhile."""
        fresh.start("--invoke-timeout", "6s").deploy("f", TROUBLE)
        fresh.deploy("g", TROUBLE)
        before = books.descriptors(fresh)
        with ThreadPoolExecutor(8) as pool:
            hanging = [pool.submit(fresh.invoke, "f", b"600") for _ in range(4)]
            patient = pool.submit(fresh.invoke, "f", b"600", headers={"X-Timeout": "500ms"})
            wait_until(lambda: books.in_flight(fresh, "f") >= 4, "they are asked")
            meanwhile = [fresh.invoke("g", b"").status_code for _ in range(10)]
            assert not any(one.done() for one in hanging)
            answers = [one.result() for one in hanging]
        assert patient.result().status_code == 504
        assert 0.4 < patient.result().elapsed.total_seconds() < 5.0
        assert {answer.status_code for answer in answers} == {504}
        assert all(5.9 < answer.elapsed.total_seconds() < 30.0 for answer in answers)
        assert set(meanwhile) == {200}
        assert books.codes(fresh, "f") == Counter({"504": 5})
        # Each instance that was asked whether it is ready keeps a connection; the planner may have started more of them.
        books.assert_nothing_left_open(fresh, before, pooled=len(fresh.instances("f")) + len(fresh.instances("g")))
        books.kill_instance(fresh.pids("f")[0])  # it would not end by itself within the five seconds of a Ctrl-C

    def test_that_answers_garbage_and_closes_in_the_middle(self, fresh: ProviderProcess) -> None:
        """502 where nothing was sent on yet, else a cut connection; never half an answer that looks whole."""
        fresh.start("--invoke-timeout", "2s")
        build_fake(fresh, "fake")
        assert fresh.put("POST", "fake", labels={"com.openfaas.scale.max": "1"}).status_code == 202
        fresh.ready("fake")
        (pid,) = fresh.pids("fake")
        assert fresh.invoke("fake/fine").text == "fine"
        before, told = books.descriptors(fresh), Counter({"200": 1})
        statuses = {
            "garbage": (502, "502"), "nothing": (502, "502"), "half-head": (502, "502"),
            "bad-first-chunk": (502, "502"), "hang": (504, "504"),
            "half-body": (0, "502"), "half-chunks": (0, "502"), "bad-chunk": (0, "502"), "half-hang": (0, "504"),
        }  # fmt: skip
        with ThreadPoolExecutor(16) as pool:
            for path, (status, code) in statuses.items():
                answers = list(pool.map(lambda path: ask(fresh, f"fake/{path}"), [path] * 8))
                assert answers == [status] * 8, path
                told[code] += 8
            assert list(pool.map(lambda _: ask(fresh, "fake/fine"), range(8))) == [200] * 8
        told["200"] += 8
        assert books.codes(fresh, "fake") == told
        assert fresh.pids("fake") == [pid]
        books.assert_nothing_left_open(fresh, before, pooled=0)


def ask(provider: ProviderProcess, path: str) -> int:
    """The status of an answer that came whole; 0 for one that was cut off."""
    try:
        return provider.invoke(path).status_code
    except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError):
        return 0


@pytest.fixture
def small_disk(fresh: ProviderProcess) -> Iterator[ProviderProcess]:
    """A provider, not started, whose state folder is a disk of 12 MiB."""
    if os.geteuid() != 0:
        pytest.skip("a disk that is full is a small tmpfs, and to mount one takes root")
    fresh.state.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(fresh.state)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if mounted.returncode != 0:
        pytest.skip(f"a disk that is full is a small tmpfs, and none can be mounted here: {mounted.stderr.strip()}")
    yield fresh
    fresh.destroy()
    subprocess.run(["umount", "--lazy", str(fresh.state)], check=True)


def fill(folder: Path) -> Path:
    """A file that takes all space that is left."""
    path = folder / "full"
    with path.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    return path


class TestFullDisk:
    """Of the state folder: what would have to be written is refused, what needs no disk goes on."""

    def test_refusals_change_nothing(self, small_disk: ProviderProcess) -> None:
        """Sentences for all that changes something; invocations go on; with space again everything works."""
        provider = small_disk.start()
        provider.deploy("f", TROUBLE)
        provider.build("g", TROUBLE)
        before = provider.status("f")
        full = fill(provider.state)
        long = {"long": "x" * 200_000}  # more than a database's log file can take without growing
        secret = {"name": "s", "value": "v" * 500_000}
        refused = {
            "deploy": provider.put("POST", "g"),
            "update": provider.put("PUT", "f", annotations=long),
            "secret": provider.send("POST", "/system/secrets", secret),
            "call": provider.send("POST", "/async-function/f", b"0" * 500_000),
        }
        for what, answer in refused.items():
            assert answer.status_code == 503, (what, answer.text)
            assert re.search("full|No space left", answer.text), (what, answer.text)
            assert len(answer.text.splitlines()) == 1, (what, answer.text)
        assert {provider.invoke("f", b"").status_code for _ in range(20)} == {200}
        assert provider.status("f") | {"invocationCount": 0} == before | {"invocationCount": 0}
        assert provider.send("GET", "/system/function/g").status_code == 404
        assert provider.send("GET", "/system/secrets").json() == []
        assert list((provider.state / "bundles").glob(".draft-*")) == []
        full.unlink()
        assert provider.put("POST", "g").status_code == 202
        assert provider.put("PUT", "f", annotations=long).status_code == 202
        assert provider.send("POST", "/system/secrets", secret).status_code == 201
        assert provider.send("POST", "/async-function/f", b"0.01").status_code == 202
        provider.ready("g")
        wait_until(lambda: books.queue(provider, "f")["done"] == 1, "the queued call is done")
        assert books.queue(provider, "f") == Counter({"accepted": 1, "done": 1, "refused": 1})
        assert books.codes(provider, "f") == Counter({"200": 21})
        provider.kill()
        provider.start()
        assert provider.status("f")["annotations"] == long
        assert provider.invoke("g", b"").status_code == 200
        books.assert_in_order(provider)

    def test_an_instance_dies_and_the_provider_is_started_anew(self, small_disk: ProviderProcess) -> None:
        """Whoever is not served is told so, and who starts it is told why; with space again one instance serves."""
        provider = small_disk.start()
        provider.deploy("f", TROUBLE)
        full = fill(provider.state)
        (pid,) = provider.pids("f")
        books.kill_instance(pid)
        wait_until(lambda: pid not in provider.pids("f"), "its end is noticed")
        answer = provider.invoke("f", b"")
        # What a database's log file has room for without growing may still be written, and then it serves.
        assert answer.status_code == 200 or "None became ready" in answer.text, answer.text
        provider.stop(signal.SIGTERM)
        fill(provider.state)
        refused = infless("up", "--port", str(provider.port), "--state-dir", str(provider.state))
        assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1), refused.stderr
        assert refused.stderr.startswith(f"infless: the state database {provider.state}")
        full.unlink()
        provider.start()
        provider.ready("f")
        assert provider.invoke("f", b"").status_code == 200
        books.assert_in_order(provider)


SLEEPS = {"com.openfaas.scale.zero": "true", "com.openfaas.scale.zero-duration": "2s"}
TALKING = TROUBLE.replace("    if event.body:", "    print('asked', flush=True)\n    if event.body:")


def lines_since(provider: ProviderProcess, name: str, since: str) -> int:
    """How many times a talking function says that it was asked."""
    return provider.send("GET", f"/system/logs?name={name}&since={since}").text.count("asked")


def test_the_clock_jumps(fresh: ProviderProcess) -> None:
    """Hours forward, then back behind the start: calls, queue, logs, timers and a restart go by other clocks."""
    offset = fresh.root / "offset"
    variables = {"CLOCK_OFFSET_FILE": str(offset)}
    (fresh.root / "clock").mkdir()
    shutil.copy(jumpy_clock.__file__, fresh.root / "clock" / "sitecustomize.py")
    fresh.variables = {**variables, "PYTHONPATH": f"{fresh.root / 'clock'}:{environment()['PYTHONPATH']}"}
    fresh.start()
    for name, labels in (("steady", {}), ("sleeper", SLEEPS)):
        fresh.build(name, TALKING)
        shutil.copy(jumpy_clock.__file__, fresh.bundles / name / "sitecustomize.py")
        assert fresh.put("POST", name, labels=labels, envVars=variables).status_code == 202
        fresh.ready(name)
    pids = fresh.pids("steady")
    for jump, offset_s in enumerate((5 * 3600, -30 * 3600), start=1):
        offset.write_text(str(offset_s))
        since = (datetime.now(tz=UTC) + timedelta(seconds=offset_s - 30)).strftime("%Y-%m-%dT%H:%M:%SZ")
        told = fresh.invoke("steady", b"")
        assert told.status_code == 200
        assert abs(int(told.headers["x-start-time"]) / 1e9 - time.time() - offset_s) < 60  # it did jump
        assert fresh.send("POST", "/async-function/steady", b"0.01").status_code == 202
        wait_until(lambda n=jump: books.queue(fresh, "steady")["done"] == n, "the queued call is done")  # type: ignore[misc]
        # Since the jump two; after the jump back all earlier lines look as if they were of the future.
        wait_until(lambda s=since, n=2 * jump: lines_since(fresh, "steady", s) == n, f"{2 * jump} lines are in the log")  # type: ignore[misc]
        wait_until(lambda: not fresh.pids("sleeper"), "nobody needs it, so it sleeps")
        assert fresh.invoke("sleeper", b"").status_code == 200
        assert fresh.pids("steady") == pids
        fresh.stop(signal.SIGTERM)
        fresh.start()
        fresh.ready("steady")
        assert fresh.pids("steady") == pids
    books.assert_in_order(fresh)


def test_a_callback_target_that_never_answers(fresh: ProviderProcess) -> None:
    """It holds up no other call; the result stays in the queue over a crash, until somebody takes it."""
    fresh.start("--callbacks-allow", "127.0.0.1").deploy("f", TROUBLE)
    with socket.create_server(("127.0.0.1", 0)) as silent, CallbackServer() as callbacks:
        port = silent.getsockname()[1]
        url = f"http://127.0.0.1:{port}/taken"
        for target in (url, url, f"{callbacks.url}/quick", f"{callbacks.url}/quick"):
            headers = {"X-Callback-Url": target}
            assert fresh.send("POST", "/async-function/f", b"0.01", headers=headers).status_code == 202
        assert [callbacks.next().path, callbacks.next().path] == ["/quick", "/quick"]
        wait_until(lambda: books.queue(fresh, "f")["done"] == 2, "the quick ones are done")
        assert books.queue(fresh, "f") == Counter({"accepted": 4, "done": 2, "waiting": 2})
        assert books.codes(fresh, "f") == Counter({"200": 4})
        silent.accept()[0].close()
        fresh.kill()
    with CallbackServer(port) as callbacks:
        fresh.start("--callbacks-allow", "127.0.0.1")
        assert [callbacks.next().path, callbacks.next().path] == ["/taken", "/taken"]
        wait_until(lambda: books.queue_is_empty(fresh), "the results are delivered")
        assert books.queue(fresh, "f") == Counter({"accepted": 4, "done": 4})
    told = [sample.name for sample in books.samples(fresh.url)]
    assert "gateway_function_invocation_total" not in told  # the function is not asked again
    books.assert_in_order(fresh)
