"""Everything that users get wrong: a clear sentence, the right status, nothing lost, nobody else harmed."""

import json
import os
import re
import resource
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from provider_process import ECHO, ProviderProcess, infless, wait_until

pytestmark = pytest.mark.integration

TIMED = "import time\ndef predict(batch):\n    time.sleep(0.02)\n    return batch\ndef example():\n    return 1\n"
PICKY = """import time
def predict(batch):
    time.sleep(0.05)
    if "bad" in batch:
        raise RuntimeError("this one is bad")
    if "lose" in batch:
        return batch[1:]
    return [ValueError("not mine") if item == "mine?" else item for item in batch]
"""
AT_SERVICE = "import os\nif 'listen_fds' in os.environ:\n    raise RuntimeError('no weights here')\n" + ECHO
HELD = """import os, time
def predict(batch):
    for item in batch:
        open(item + ".begun", "w").close()
        while not os.path.exists(item):
            time.sleep(0.005)
    return batch
"""
SLOW = "import time\ndef predict(batch):\n    time.sleep(max(batch))\n    return batch\n"


@pytest.fixture(scope="module")
def provider(tmp_path_factory):
    """One provider, and a good function that must not notice anything."""
    made = ProviderProcess(tmp_path_factory.mktemp("bad")).start("--cpu-cores", "1")
    made.deploy("good")
    made.good_pids = made.pids("good")
    yield made
    made.destroy()


@pytest.fixture(autouse=True)
def _the_others_are_unharmed(provider):
    """After each fault: the good function answers, from the same process, and is listed."""
    yield
    assert provider.invoke("good", b'"still here"').text == "still here"
    assert provider.pids("good") == provider.good_pids
    assert "good" in [one["name"] for one in provider.send("GET", "/system/functions").json()]


def refused(answer, status, *words):
    """The status, and one plain sentence that holds these words."""
    assert answer.status_code == status, answer.text
    for word in words:
        assert word in answer.text
    assert len(answer.text.strip().splitlines()) == 1
    return answer.text


class TestDeployments:
    """What is refused leaves nothing behind."""

    @pytest.fixture(autouse=True)
    def _nothing_is_left(self, provider):
        before = {one["name"] for one in provider.send("GET", "/system/functions").json()}
        yield
        after = {one["name"] for one in provider.send("GET", "/system/functions").json()}
        assert after - before <= {"advised"}

    @pytest.mark.parametrize(
        ("label", "value", "allowed"),
        [
            ("com.infless.latency.target", "soon", "write for example '200ms'"),
            ("com.infless.latency.percentile", "100", "from 50 to below 100"),
            ("com.infless.batch.max", "0", "from 1 to 1024"),
            ("com.infless.gpu", "maybe", "never, allow or require"),
            ("com.openfaas.scale.max", "-1", "from 1 to 1000"),
            ("com.openfaas.scale.zero", "perhaps", "true or false"),
        ],
    )
    def test_a_malformed_label(self, provider, label, value, allowed):
        """400 with label, value and what is allowed."""
        refused(provider.put("POST", "good2", labels={label: value}), 400, label, repr(value), allowed)

    def test_an_unknown_label(self, provider):
        """400: a slip would else go unnoticed."""
        answer = provider.put("POST", "good2", labels={"com.infless.target": "1s"})
        refused(answer, 400, "com.infless.target: unknown; known are com.infless.latency.target")

    @pytest.mark.parametrize("image", [None, "", 7])
    def test_a_missing_image(self, provider, image):
        """400."""
        refused(provider.put("POST", "good2", image=image), 400, "image is missing")

    def test_a_missing_bundle(self, provider):
        """400 with where it was looked for, and the commands that make one."""
        answer = provider.put("POST", "nowhere")
        refused(answer, 400, str(provider.bundles), "infless build -f stack.yml", "faas-cli build --shrinkwrap")

    @pytest.mark.parametrize("body", [b"", b"{", b"[1, 2]", b'{"service": "x"', b"\xff\xfe"])
    @pytest.mark.parametrize("verb", ["POST", "PUT", "DELETE"])
    def test_broken_json(self, provider, verb, body):
        """400."""
        refused(provider.send(verb, "/system/functions", body), 400, "the request's body")

    @pytest.mark.parametrize(
        ("handler", "words"),
        [
            ("raise ValueError('boom at import')", "handler.py cannot be imported: ValueError: boom at import"),
            ("def predict(batch): return batch\ndef load(): 1 / 0", "load() in"),
            ("x = 1", "defines neither predict(batch) nor handle(event, context)"),
            ("def predict(batch): raise KeyError('k')\ndef example(): return 1", "fails on its own example()"),
            (
                "def predict(batch): return []\ndef example(): return 1",
                "the handler returned 0 answers for a batch of 1",
            ),
            ("import sys; sys.exit(3)", "cannot be imported: SystemExit"),
        ],
    )
    def test_a_handler_that_cannot_be_loaded(self, provider, handler, words):
        """422 at deploy, with its own words: not a function that never becomes ready."""
        provider.build("broken", handler)
        refused(provider.put("POST", "broken"), 422, words)

    def test_a_broken_update_leaves_the_old_version(self, provider):
        """Which goes on answering."""
        provider.build("good", "raise ValueError('worse')", image="test/good:2")
        refused(provider.put("PUT", "good", image="test/good:2"), 422, "worse")
        assert provider.status("good")["image"] == "test/good:latest"

    def test_an_infeasible_target(self, provider):
        """422 with the reason and the nearest feasible target; who takes that one is served."""
        provider.build("advised", TIMED)
        told = refused(
            provider.put("POST", "advised", labels={"com.infless.latency.target": "5ms"}),
            422, "com.infless.latency.target: 5ms cannot be met", "its fastest configuration (b=",
        )  # fmt: skip
        took_ms = re.search(r"takes ([0-9.]+)ms", told)
        assert took_ms, told
        assert float(took_ms[1]) >= 20
        nearest = told.strip().rpartition("the nearest feasible target is ")[2]
        answer = provider.put("POST", "advised", labels={"com.infless.latency.target": nearest})
        assert answer.status_code == 202, answer.text

    def test_a_gpu_that_is_not_there(self, provider):
        """422."""
        provider.build("gpu")
        refused(provider.put("POST", "gpu", labels={"com.infless.gpu": "require"}), 422, "no server here has one")

    def test_a_function_that_exists(self, provider):
        """409 with what to do."""
        refused(provider.put("POST", "good"), 409, "exists already; update it with PUT")

    @pytest.mark.parametrize(
        ("verb", "path", "body"),
        [
            ("PUT", "/system/functions", {"service": "nobody", "image": "x"}),
            ("DELETE", "/system/functions", {"functionName": "nobody"}),
            ("GET", "/system/function/nobody", None),
            ("POST", "/system/scale-function/nobody", {"replicas": 1}),
        ],
    )
    def test_a_function_that_does_not_exist(self, provider, verb, path, body):
        """404."""
        refused(provider.send(verb, path, body), 404, "'nobody' does not exist")

    def test_a_replica_count_that_is_none(self, provider):
        """400."""
        answer = provider.send("POST", "/system/scale-function/good", {"replicas": 2.5})
        refused(answer, 400, "replicas 2.5 is not allowed; write a whole number from 0 to 1000")


def raw(provider, head):
    """Send a head alone, and read the answer."""
    with socket.create_connection(("127.0.0.1", provider.port), timeout=30) as sock:
        sock.sendall(head.encode())
        return sock.recv(65536).decode()


@pytest.fixture(scope="module")
def picky(provider):
    """A function that likes some items."""
    provider.deploy("picky", PICKY)
    return provider


class TestRequests:
    """One bad request, answered by itself."""

    def together(self, provider, *bodies):
        """Requests that share a batch, because one runs while they come."""
        with ThreadPoolExecutor(len(bodies) + 1) as pool:
            first = pool.submit(provider.invoke, "picky", b'"first"')
            time.sleep(0.03)
            answers = list(pool.map(lambda body: provider.invoke("picky", json.dumps(body).encode()), bodies))
            assert first.result().status_code == 200
        return answers

    def test_a_handler_that_raises_on_one_item(self, picky):
        """That item's request is told why; its batch-mates are answered."""
        a, bad, b = self.together(picky, "a", "bad", "b")
        refused(bad, 500, "RuntimeError: this one is bad")
        assert (a.text, b.text) == ("a", "b")

    def test_an_exception_in_an_items_place(self, picky):
        """A ValueError is the client's fault."""
        a, wrong = self.together(picky, "a", "mine?")
        refused(wrong, 422, "ValueError: not mine")
        assert a.text == "a"

    def test_a_wrong_number_of_answers(self, picky):
        """Nobody can say whose is missing."""
        refused(picky.invoke("picky", b'"lose"'), 500, "returned 0 answers for a batch of 1 requests")

    def test_broken_json(self, picky):
        """400 with the place."""
        refused(picky.invoke("picky", b'{"a": '), 400, "the body is not valid JSON", "truncated")

    @pytest.mark.parametrize("path", ["/function/good", "/system/functions"])
    def test_an_oversized_body(self, provider, path):
        """413 before anything of it is sent."""
        answer = raw(provider, f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 99000000\r\n\r\n")
        assert answer.startswith("HTTP/1.1 413 ")
        assert "larger than the allowed 67108864 bytes" in answer

    def test_what_is_no_http(self, provider):
        """400."""
        assert raw(provider, "BREW /function/good\r\n\r\n").startswith("HTTP/1.1 400 ")

    def test_a_body_that_is_too_large_for_one_function(self, provider):
        """Its own limit, stated in its environment."""
        provider.deploy("small", envVars={"body_max_bytes": "100"})
        refused(provider.invoke("small", b'"' + b"x" * 200 + b'"'), 413, "larger than the allowed 100 bytes")

    def test_too_many_at_once(self, provider, tmp_path):
        """429 above the function's own limit; those within it are answered."""
        provider.deploy("narrow", HELD, envVars={"max_inflight": "1"})
        gate = tmp_path / "gate"
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(provider.invoke, "narrow", json.dumps(str(gate)))
            wait_until((tmp_path / "gate.begun").exists, "it is asked")
            refused(provider.invoke("narrow", json.dumps(str(tmp_path / "other"))), 429, "max_inflight")
            gate.touch()
            assert first.result().status_code == 200

    def test_an_answer_that_takes_too_long(self, provider):
        """504 after the function's own limit, not after the client's patience."""
        provider.deploy("late", SLOW, envVars={"exec_timeout": "300ms"})
        begun_s = time.monotonic()
        refused(provider.invoke("late", b"30"), 504, "exec_timeout")
        assert time.monotonic() - begun_s < 25

    def test_a_function_that_cannot_start(self, provider):
        """503, without its last words, at once and not after a minute; removing it works."""
        provider.build("nostart", AT_SERVICE)
        assert provider.put("POST", "nostart").status_code == 202
        answer = provider.invoke("nostart", timeout=30)
        assert answer.status_code == 503
        assert "No endpoints available for: nostart" in answer.text
        assert "no weights here" not in answer.text
        assert provider.status("nostart")["availableReplicas"] == 0
        assert provider.send("DELETE", "/system/functions", {"functionName": "nostart"}).status_code == 202

    def test_wrong_tensors(self, provider):
        """422 with what the model takes; the right ones are answered."""
        deploy_tensor_model(provider)
        right = infer(provider, [2, 2], [1.0, 2.0, 3.0, 4.0])
        assert right.json()["outputs"][0]["data"] == [2.0, 4.0, 6.0, 8.0]
        assert infer(provider, [1, 3], [1.0, 2.0, 3.0]).status_code == 422
        assert infer(provider, [2, 2], [1.0]).status_code in (400, 422)
        assert "x" in infer(provider, [1, 3], [1.0, 2.0, 3.0]).json()["error"]
        assert infer(provider, [1, 2], [1.0, 2.0], name="other").status_code in (400, 422)


def infer(provider, shape, data, name="x"):
    """One request of the inference protocol."""
    body = {"inputs": [{"name": name, "shape": shape, "datatype": "FP32", "data": data}]}
    path = "tensor/v2/models/tensor/infer"
    return provider.invoke(path, json.dumps(body).encode(), headers={"content-type": "application/json"})


def deploy_tensor_model(provider):
    """A bare model.onnx: y = x + x, two columns."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    make = onnx.helper
    ends = [make.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 2]) for name in "xy"]
    graph = make.make_graph([make.make_node("Add", ["x", "x"], ["y"])], "g", ends[:1], ends[1:])
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8)
    folder = provider.root / "src" / "tensor"
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")
    provider.deploy("tensor", folder)
    assert np.float32(1) + np.float32(1) == 2


class TestFullDisk:
    """The provider may write no more bytes: as a full disk looks to it, without one."""

    @pytest.fixture
    def full(self, provider):
        """A limit on the worker, lifted afterwards."""
        worker = provider.worker
        before = resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))
        yield provider
        resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, before)

    def test_nothing_is_lost_and_others_serve_on(self, full):
        """503 for what would have to be kept; what was kept is still there."""
        listed = full.send("GET", "/system/functions").json()
        full.build("another")
        refused(full.put("POST", "another"), 503, "could not be kept")
        refused(full.send("POST", "/system/scale-function/good", {"replicas": 2}), 503, "nothing was changed")
        refused(full.send("DELETE", "/system/functions", {"functionName": "good"}), 503, "nothing was changed")
        assert strip(full.send("GET", "/system/functions").json()) == strip(listed)
        assert full.invoke("good", b'"1"').text == "1"

    def test_afterwards_everything_goes_on(self, provider):
        """What was refused is taken now."""
        provider.deploy("another")
        assert provider.invoke("another", b'"1"').text == "1"

    def test_a_function_that_dies_meanwhile_comes_back(self, provider):
        """It cannot be started without being kept; it is, once there is room again."""
        provider.deploy("mortal")
        worker = provider.worker
        (pid,) = provider.pids("mortal")
        before = resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))
        try:
            os.killpg(pid, 9)
            wait_until(lambda: not provider.instances("mortal"), "it is gone")
            assert provider.invoke("mortal").status_code == 503
        finally:
            resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, before)
        wait_until(lambda: provider.invoke("mortal", b"1").text == "1", "it is back")


def strip(functions):
    """Without counters."""
    return [{key: value for key, value in one.items() if key != "invocationCount"} for one in functions]


class TestStart:
    """See also tests/integration/test_provider.py."""

    def test_a_port_that_is_taken(self, provider, tmp_path):
        """One sentence, exit code 1, and the one that has it goes on."""
        done = infless("up", "--port", str(provider.port), "--state-dir", str(tmp_path))
        assert done.returncode == 1
        assert "Address already in use; choose another --port" in done.stderr
