"""The real `infless up`, over HTTP, as OpenFaaS's clients use it."""

import json
import os
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import provider_books as books
import psutil
import pytest
import requests
from provider_process import ROOT, infless, processes_of, wait_until

from infless_provider.auth import Credentials
from infless_provider.client import Client
from infless_scheduler.planner import plan
from infless_scheduler.problem_file import parse_problem
from infless_scheduler.what_if import apply_changes, compare, comparison_as_text

pytestmark = pytest.mark.integration

HELLO = ROOT / "examples" / "01-hello"
TEXT = {"content-type": "text/plain"}
HELD = """import os, time

def predict(batch):
    # Each item names a file that is waited for.
    while not all(map(os.path.exists, batch)):
        time.sleep(0.01)
    return batch
"""
TIMED = "import time\ndef predict(batch):\n    time.sleep(0.01)\n    return batch\ndef example():\n    return 'x'\n"
VERSION = "import os\ndef predict(batch):\n    return ['{}'] * len(batch)\n"
EVENT = """def handle(event, context):
    told = {"method": event.method, "path": event.path, "query": event.query, "body": event.body.decode()}
    return {"statusCode": 207, "body": told, "headers": {"X-Mine": "yes", "X-Call-Id": "not yours"}}
"""


@pytest.fixture(scope="module")
def hello(provider):
    """The first example, deployed."""
    provider.deploy("hello", HELLO, labels={"com.infless.latency.target": "100ms"})
    return provider


@pytest.fixture(scope="module")
def event(provider):
    """A function that tells what it was sent."""
    provider.deploy("event", EVENT)
    return provider


CLIENTS = 4


@contextmanager
def load(provider, name, body=b'"x"', threads=CLIENTS):
    """Requests without a pause, each on a new connection's luck; gives the list of (status, text)."""
    answers, stop = [], threading.Event()

    def ask():
        with requests.Session() as session:
            while not stop.is_set():
                answer = session.post(f"{provider.url}/function/{name}", data=body, timeout=30)
                answers.append((answer.status_code, answer.text))

    with ThreadPoolExecutor(threads) as pool:
        asking = [pool.submit(ask) for _ in range(threads)]
        try:
            yield answers
        finally:
            stop.set()
        for one in asking:
            one.result()


def is_busy(problem):
    """The problem, once a running instance of `busy` has load; else None."""
    found = any(f.id == "busy.openfaas-fn" and f.rate_rps > 20 for f in problem.functions)
    return problem if found and any(one.function == "busy.openfaas-fn" for one in problem.running) else None


def running(folder, word):
    """Processes of a folder that were told a word on their command line."""
    found = []
    for process in processes_of(folder):
        with suppress(psutil.Error):  # it has ended since
            if word in process.cmdline():
                found.append(process)
    return found


def timed(provider):
    """Children that time a function."""
    return running(provider.root, "--curve")


def supervised(provider):
    """The supervisor's own children: a worker, and no instance."""
    return psutil.Process(provider.process.pid).children()


def listens(provider):
    """Whether a connection to it can be made."""
    try:
        socket.create_connection(("127.0.0.1", provider.port), timeout=5).close()
    except ConnectionError:
        return False
    return True


class TestControlPlane:
    """Deploy, list, describe, scale, update, remove, logs, info, metrics."""

    def test_a_deployed_function_is_listed_and_described_alike(self, hello):
        """With everything that clients compare, typed as Go wants it."""
        status = hello.status("hello")
        listed = hello.send("GET", "/system/functions?namespace=openfaas-fn").json()
        assert [one for one in listed if one["name"] == "hello"] == [status]
        assert (status["image"], status["replicas"], status["availableReplicas"]) == ("test/hello:latest", 1, 1)
        assert status["labels"] == {"com.infless.latency.target": "100ms", "faas_function": "hello"}
        assert status["createdAt"].endswith("Z")
        assert "envVars" not in status

    def test_usage_on_wish(self, hello):
        """As faas-cli describe asks for it."""
        usage = hello.send("GET", "/system/function/hello?usage=1").json()["usage"]
        assert usage["totalMemoryBytes"] > 1e6

    def test_each_instance_tells_its_configuration_and_why(self, hello):
        """`infless status`, as a table and as JSON."""
        table = infless("status", "-g", hello.url, "--state-dir", str(hello.state)).stdout
        found = infless("status", "-g", hello.url, "--state-dir", str(hello.state), "--json").stdout
        assert "keeps the least of 1" in table
        assert json.loads(found)["functions"][0]["latency_target_s"] == 0.1

    def test_scale_up_and_down(self, event):
        """By hand, and describe follows."""
        for count in (2, 1):
            assert event.send("POST", "/system/scale-function/event", {"replicas": count}).status_code == 202
            event.ready("event", count)
        assert event.status("event")["availableReplicas"] == 1

    def test_what_if_on_the_live_system(self, provider):
        """The problem of a busy provider, with twice the load, is planned here; idle functions can be named."""
        client = Client(provider.url, Credentials(user="admin", password=provider.password))
        provider.deploy("busy", TIMED)
        provider.deploy("idle")
        with load(provider, "busy"):
            now = wait_until(lambda: is_busy(parse_problem(client.problem())), "the provider plans for the load")
            doubled = apply_changes(now, "rate.*=2x,rate.idle=5,servers.local+=1")
        rates_rps = {function.id: function.rate_rps for function in now.functions}
        before, after = plan(now), plan(doubled)
        assert {f.id: f.rate_rps for f in doubled.functions}["busy.openfaas-fn"] == 2 * rates_rps["busy.openfaas-fn"]
        assert "idle.openfaas-fn" in {instance.function for instance in after.instances}
        assert after.allocated > before.allocated > 0
        assert "local-what-if-1" in {server.id for server in doubled.servers}
        assert "\nidle.openfaas-fn" in comparison_as_text(compare(before, after, now, doubled))

    def test_an_update_rolls_over_without_a_failed_request(self, provider):
        """Under load every answer is 200, old ones first, new ones at last."""
        provider.deploy("rolling", VERSION.format("old"))
        with load(provider, "rolling") as answers:
            wait_until(lambda: len(answers) > 50, "answers of the old version")
            provider.build("rolling", VERSION.format("new"))
            assert provider.put("PUT", "rolling").status_code == 202
            wait_until(lambda: [text for _, text in answers[-50:]] == ["new"] * 50, "answers of the new version only")
            wait_until(lambda: not provider.instances("rolling", "draining"), "the old instance is gone")
        assert {status for status, _ in answers} == {200}

    def test_remove(self, provider):
        """202, then 404 for everything about it, and no process is left."""
        provider.deploy("gone")
        (pid,) = provider.pids("gone")
        assert provider.send("DELETE", "/system/functions", {"functionName": "gone"}).status_code == 202
        assert provider.invoke("gone").status_code == 404
        assert provider.send("GET", "/system/function/gone").status_code == 404
        assert provider.send("DELETE", "/system/functions", {"functionName": "gone"}).status_code == 404
        wait_until(lambda: not os.path.exists(f"/proc/{pid}"), "its process is gone")

    def test_logs(self, provider):
        """NDJSON with every field; following gives lines as they are written."""
        provider.deploy("talking", "def predict(batch):\n    print('said', batch)\n    return batch\n")
        provider.invoke("talking", b'"one"')
        path = "/system/logs?name=talking&follow=true&tail=-1"
        with provider.send("GET", path, stream=True) as answer:
            assert answer.headers["content-type"] == "application/x-ndjson"
            lines = (json.loads(line) for line in answer.iter_lines())
            first = next(line for line in lines if "said" in line["text"])
            provider.invoke("talking", b'"two"')
            assert "two" in next(line for line in lines if "said" in line["text"])["text"]
        assert (first["name"], first["namespace"]) == ("talking", "openfaas-fn")
        assert first["instance"].startswith("talking-")

    @pytest.mark.parametrize(("query", "status"), [("", 422), ("name=hello&tail=x", 422), ("name=nope", 404)])
    def test_wrong_questions_for_logs(self, hello, query, status):
        """422 and 404, as in the SDK."""
        assert hello.send("GET", f"/system/logs?{query}").status_code == status

    def test_info_in_both_forms(self, provider):
        """For faas-cli, and for a gateway."""
        direct = provider.send("GET", "/system/info").json()
        forwarded = provider.send("GET", "/system/info", headers={"X-Forwarded-Host": "gateway"}).json()
        assert direct["provider"] == forwarded
        assert forwarded["provider"] == "infless"

    def test_metrics(self, hello):
        """OpenFaaS's names with name and namespace."""
        hello.invoke("hello", b"x", headers=TEXT)
        text = requests.get(f"{hello.url}/metrics", timeout=5).text
        assert 'gateway_function_invocation_total{code="200",function_name="hello.openfaas-fn"}' in text
        assert 'gateway_service_count{function_name="hello.openfaas-fn"} 1.0' in text

    @pytest.mark.parametrize("path", ["/system/functions", "/system/logs?name=hello", "/system/info"])
    @pytest.mark.parametrize("header", ["", "Bearer ", "Basic YWRtaW46d3Jvbmc="])
    def test_without_the_password(self, provider, path, header):
        """401 and a challenge, but never for invocations."""
        answer = requests.get(provider.url + path, headers={"Authorization": header}, timeout=5)
        assert (answer.status_code, answer.text.strip()) == (401, "invalid credentials")
        assert answer.headers["www-authenticate"] == 'Basic realm="Restricted"'


class TestInvocations:
    """`/function/NAME`, in every form."""

    @pytest.mark.parametrize("form", ["hello", "hello/", "hello.openfaas-fn", "hello.openfaas-fn/", "hello/a/b"])
    def test_every_form_of_the_url(self, hello, form):
        """Name, namespace, slash, path."""
        answer = hello.invoke(form, b"hi there", headers=TEXT)
        assert (answer.status_code, answer.text) == (200, "HI THERE")

    def test_the_function_sees_path_query_and_body(self, event):
        """Its answer's status and headers come back; the trace headers are ours."""
        answer = event.invoke("event/a%20b/c?x=1&y=", b"body")
        assert answer.status_code == 207
        assert answer.json() == {"method": "POST", "path": "/a b/c", "query": {"x": "1", "y": ""}, "body": "body"}
        assert answer.headers["x-mine"] == "yes"
        assert answer.headers["x-call-id"] != "not yours"
        assert int(answer.headers["x-start-time"]) > 1e18
        assert float(answer.headers["x-duration-seconds"]) > 0

    def test_a_call_id_is_kept(self, event):
        """The client's own."""
        answer = event.invoke("event", headers={"X-Call-Id": "mine"})
        assert answer.headers["x-call-id"] == "mine"

    @pytest.mark.parametrize("verb", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS"])
    def test_every_method_reaches_the_function(self, event, verb):
        """As it is."""
        assert event.invoke("event", verb=verb).json()["method"] == verb

    def test_head_has_no_body(self, event):
        """But the status."""
        answer = event.invoke("event", verb="HEAD")
        assert (answer.status_code, answer.content) == (207, b"")

    def test_a_chunked_body(self, hello):
        """As a gateway sends it."""
        answer = hello.invoke("hello", iter([b"in ", b"pieces"]), headers=TEXT)
        assert answer.text == "IN PIECES"

    @pytest.mark.parametrize("name", ["nope", ".openfaas-fn", "", "hello.other", "nope/path"])
    def test_an_unknown_function(self, hello, name):
        """404, as clients expect."""
        answer = hello.invoke(name)
        assert answer.status_code == 404
        assert answer.headers["x-openfaas-internal"] == "proxy"

    def test_a_strange_method(self, hello):
        """405."""
        assert hello.invoke("hello", verb="TRACE").status_code == 405

    def test_many_at_once_are_answered_each_with_its_own(self, hello):
        """Batched together, never mixed up."""
        with ThreadPoolExecutor(16) as pool:
            texts = [f"text {n}" for n in range(100)]
            answers = pool.map(lambda text: hello.invoke("hello", text.encode(), headers=TEXT).text, texts)
            assert list(answers) == [text.upper() for text in texts]

    def test_a_client_that_leaves_harms_nobody(self, provider, tmp_path):
        """Those who still wait are answered, and those who come next."""
        provider.deploy("held", HELD)
        gate = tmp_path / "gate"
        body = json.dumps(str(gate)).encode()
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(provider.invoke, "held", body)
            try:
                with pytest.raises(requests.Timeout):
                    provider.invoke("held", body, timeout=(5, 0.5))
                assert not other.done()
            finally:
                gate.touch()
            assert other.result().status_code == 200
        assert provider.invoke("held", body).status_code == 200


class TestInstances:
    """They end, they go to zero, and the service goes on."""

    def test_a_killed_instance_is_replaced(self, provider):
        """Requests that come meanwhile wait for the new one; lost is only what it had taken before its end was seen."""
        provider.deploy("mortal")
        (pid,) = provider.pids("mortal")
        with load(provider, "mortal") as answers:
            wait_until(lambda: len(answers) > 20, "answers before")
            os.killpg(pid, signal.SIGKILL)
            wait_until(lambda: pid not in provider.pids("mortal"), "its end is seen")
            seen = len(answers)
            wait_until(lambda: provider.pids("mortal"), "a new instance")
            count = len(answers)
            wait_until(lambda: len(answers) > count + 20, "answers after")
        assert {status for status, _ in answers} <= {200, 502}
        assert {status for status, _ in answers[seen + CLIENTS :]} == {200}

    def test_scale_to_zero_and_back(self, provider):
        """No process while nobody asks; requests that come together share one cold start."""
        labels = {"com.openfaas.scale.zero": "true", "com.openfaas.scale.zero-duration": "5s"}
        provider.deploy("sleeper", labels=labels)
        wait_until(lambda: provider.status("sleeper")["replicas"] == 0, "nothing is wanted")
        wait_until(lambda: not any(provider.instances("sleeper", p) for p in ("ready", "draining")), "nothing runs")
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: provider.invoke("sleeper", b'"awake"').text, range(4)))
        assert answers == ["awake"] * 4
        assert len(provider.instances("sleeper")) == 1

    def test_scaled_to_zero_by_hand(self, provider):
        """As the gateway does it; a request starts it again."""
        provider.deploy("manual")
        provider.send("POST", "/system/scale-function/manual", {"replicas": 0})
        provider.ready("manual", 0)
        assert provider.invoke("manual", b"1").text == "1"


class TestLife:
    """Stopping, crashing, starting again."""

    def test_a_restart_finds_the_same_processes(self, fresh):
        """SIGTERM answers what has come and leaves the instances; the next provider goes on with them."""
        fresh.start().deploy("held", HELD)
        pids, gate = fresh.pids("held"), fresh.root / "gate"
        with ThreadPoolExecutor(1) as pool:
            late = pool.submit(fresh.invoke, "held", json.dumps(str(gate)).encode())
            try:
                wait_until(lambda: books.in_flight(fresh, "held") == 1, "the request has come")
                fresh.process.send_signal(signal.SIGTERM)
                wait_until(lambda: not listens(fresh), "it takes no more")
                with pytest.raises(subprocess.TimeoutExpired):
                    fresh.process.wait(1)
            finally:
                gate.touch()
            assert fresh.process.wait(30) == 0
            assert (late.result().status_code, late.result().text) == (200, str(gate))
        fresh.start()
        fresh.ready("held")
        assert fresh.pids("held") == pids
        assert fresh.invoke("held", json.dumps(str(gate)).encode()).text == str(gate)

    def test_a_crash_leaves_no_orphan_and_doubles_nothing(self, fresh):
        """SIGKILL to the whole provider, and to an instance while it is down."""
        fresh.start().deploy("a")
        fresh.deploy("b")
        kept, killed = fresh.pids("a"), fresh.pids("b")
        fresh.kill()
        os.killpg(killed[0], signal.SIGKILL)
        fresh.start()
        fresh.ready("a")
        fresh.ready("b")
        assert fresh.pids("a") == kept
        assert fresh.pids("b") != killed
        assert len(running(fresh.state, "infless_watchdog")) == 4  # a supervisor and a worker for each

    def test_a_crash_while_a_function_is_timed(self, fresh):
        """The child goes with the next start: nobody else knows of it."""
        fresh.start().build("loading", "import time\ntime.sleep(60)\n")
        with ThreadPoolExecutor(1) as pool:
            pool.submit(fresh.put, "POST", "loading")
            (child,) = wait_until(lambda: timed(fresh), "it is timed")
            fresh.kill()
        assert child.is_running()
        fresh.start()
        assert timed(fresh) == []
        assert fresh.send("GET", "/system/functions").json() == []

    def test_a_crash_of_the_supervisor_alone(self, fresh):
        """Its worker ends by itself; whoever starts next waits for that and takes over."""
        fresh.start().deploy("a")
        pids = fresh.pids("a")
        fresh.process.kill()
        fresh.process.wait()
        fresh.start()
        fresh.ready("a")
        assert fresh.pids("a") == pids

    def test_a_crash_of_the_worker_alone(self, fresh):
        """Another one goes on where it stopped, on the same port and instances."""
        fresh.start().deploy("a")
        pids = fresh.pids("a")
        worker = fresh.worker
        worker.kill()
        wait_until(lambda: not worker.is_running(), "the worker is gone")
        assert fresh.invoke("a", b"1").text == "1"
        assert fresh.pids("a") == pids

    def test_ctrl_c_ends_everything(self, fresh):
        """Provider, worker, instances, and a deployment that is being timed."""
        fresh.start().deploy("a")
        fresh.build("loading", "import time\ntime.sleep(60)\n")
        with ThreadPoolExecutor(1) as pool:
            deploying = pool.submit(fresh.put, "POST", "loading")
            wait_until(lambda: timed(fresh), "it is timed")
            os.killpg(fresh.process.pid, signal.SIGINT)  # as a terminal does
            assert fresh.process.wait(30) == 0
            assert deploying.exception() is not None or deploying.result().status_code >= 400
        assert processes_of(fresh.root) == []

    def test_down_ends_everything(self, fresh):
        """A running provider and its instances, or instances that were left."""
        fresh.start().deploy("a")
        assert infless("down", "--state-dir", str(fresh.state)).returncode == 0
        assert fresh.process.wait(30) == 0
        assert processes_of(fresh.root) == []
        fresh.start()
        fresh.ready("a")
        fresh.stop(signal.SIGTERM)
        done = infless("down", "--state-dir", str(fresh.state), "--json")
        assert json.loads(done.stdout) == {"ended": 1}
        assert processes_of(fresh.root) == []

    @pytest.mark.parametrize("name", [signal.SIGTTIN, signal.SIGUSR2])
    def test_signals_that_would_double_it(self, provider, name):
        """gunicorn would start another worker, or itself again."""
        before = supervised(provider)
        provider.process.send_signal(name)
        time.sleep(0.3)  # gunicorn would have needed a hundredth of it
        assert supervised(provider) == before

    def test_a_closed_terminal_is_sigterm(self, fresh):
        """Not a reload: instances are left for the next provider."""
        fresh.start().deploy("a")
        pids = fresh.pids("a")
        os.killpg(fresh.process.pid, signal.SIGHUP)
        assert fresh.process.wait(30) == 0
        assert os.path.exists(f"/proc/{pids[0]}")


class TestStart:
    """What keeps a provider from starting is one sentence."""

    def test_a_port_that_is_taken(self, provider, tmp_path):
        """It names the port and the option."""
        done = infless("up", "--port", str(provider.port), "--state-dir", str(tmp_path / "state"))
        assert done.returncode == 1
        assert done.stderr == (
            f"infless: 127.0.0.1:{provider.port} cannot be listened on: Address already in use; choose another --port\n"
        )

    def test_a_state_that_is_taken(self, provider):
        """It names the folder and the option."""
        done = infless("up", "--port", "9", "--state-dir", str(provider.state))
        assert done.returncode == 1
        assert done.stderr == f"infless: another provider uses {provider.state}; choose another --state-dir\n"

    @pytest.mark.parametrize("damage", ["folder", "database", "password"])
    def test_a_state_that_cannot_be_used(self, tmp_path, damage):
        """Nothing is said to run."""
        state = tmp_path / "state"
        if damage == "folder":
            state.write_text("")
        else:
            state.mkdir()
            (state / {"database": "state.sqlite", "password": "basic-auth-password"}[damage]).write_text(
                "no\n" if damage == "database" else ""
            )
        done = infless("up", "--port", "18999", "--state-dir", str(state))
        assert done.returncode == 1
        assert done.stderr.startswith("infless: the ")
        assert len(done.stderr.splitlines()) == 1
