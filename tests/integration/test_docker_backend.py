"""The Docker backend on a real engine: the whole life of an instance, and what it may not do."""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import docker_backend as helper
import pytest
import requests
from docker_backend import Driven, ask, docker, launch, spec

from infless_core.errors import BackendError, InvalidInput
from infless_core.model import Configuration
from infless_provider.backends.base import CurveOrder, Stage

pytestmark = [pytest.mark.integration, pytest.mark.docker]


@pytest.fixture
def owner() -> Iterator[str]:
    """An owner; no container of his is left, and the test says so when one was."""
    name = uuid.uuid4().hex[:12]
    yield name
    for left in helper.containers(f"label=com.infless.owner={name}"):
        docker("rm", "--force", "--volumes", left)


@pytest.fixture
def backend(image: str, owner: str, tmp_path: Path) -> Iterator[Driven]:
    """A backend, opened."""
    with Driven(tmp_path, owner) as driven:
        yield driven


@pytest.fixture
def artifact(backend: Driven, image: str) -> str:
    """The reference of the image."""
    return backend.backend.prepare(spec(image)).reference


def log_lines(folder: Path, id_: str) -> list[str]:
    """An instance's log, without times."""
    path = folder / "state" / "logs" / "f.openfaas-fn" / f"{id_}.log"
    lines = path.read_text().splitlines() if path.exists() else []
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z ", line) for line in lines), lines
    return [line.partition(" ")[2] for line in lines]


def test_an_instance_lives_and_drains(backend: Driven, artifact: str, tmp_path: Path) -> None:
    """From start to end: it answers, has metrics and a log, is asked to end and tells that it did."""
    sight = backend.running(launch(artifact, "f-1"))
    assert ask(sight, "echo", 7) == 7
    assert requests.get(f"http://127.0.0.1:{sight.address.metrics_port}/metrics", timeout=5).status_code == 200
    ask(sight, "print", 3)
    helper.wait_until(lambda: "line 2" in log_lines(tmp_path, "f-1"), "what it prints is in its log")
    backend.on_loop("terminate", "f-1")
    assert backend.until_stage("f-1", Stage.ENDED).why == "its container ended by itself (exit code 0)"
    backend.gone("f-1")


def test_what_it_is_told_and_what_it_may_not_do(backend: Driven, artifact: str, tmp_path: Path) -> None:
    """Not root, no capability, no new one, a read-only root but for /tmp, secrets that only their owner reads."""
    secrets = tmp_path / "secrets"
    secrets.mkdir(mode=0o700)
    (secrets / "key").touch(mode=0o600)
    (secrets / "key").write_text("s3cret")
    uid = os.getuid() or 1000
    if not os.getuid():
        os.chown(secrets, 1000, 1000)
        os.chown(secrets / "key", 1000, 1000)
        tmp_path.chmod(0o755)
    wish = launch(
        artifact, "f-2", secrets=secrets, read_only_root=True, environment={"mine": "1", "batch_max": "999"},
        process="python -m something",
    )  # fmt: skip
    sight = backend.running(wish)
    status = dict(re.findall(r"(\w+):\s+(.*)", ask(sight, "status")))
    assert status["Uid"].split() == [str(uid)] * 4
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert status["NoNewPrivs"] == "1"
    assert "init" in ask(sight, "init")
    assert ask(sight, "read", "/var/openfaas/secrets/key") == "s3cret"
    assert ask(sight, "write", "/tmp/x") == 1
    for place in ("/home/app/x", "/var/openfaas/secrets/x"):
        assert requests.post(helper.url(sight), json={"do": "write", "value": place}, timeout=5).status_code == 500
    told = ask(sight, "environment")
    expected = {
        "mine": "1", "batch_max": "4", "cpu_cores": "1", "latency_target": "0.2s", "healthcheck_interval": "0s",
        "function_name": "f", "OPENFAAS_NAME": "f", "OPENFAAS_NAMESPACE": "openfaas-fn", "PYTHONUNBUFFERED": "1",
        "secret_mount_path": "/var/openfaas/secrets", "fprocess": "python -m something",
    }  # fmt: skip
    assert {name: told.get(name) for name in expected} == expected


def test_how_its_container_is_made(backend: Driven, artifact: str, owner: str) -> None:
    """Limits, ports on loopback only, logs that rotate, no restarts, and labels that tell whose it is."""
    backend.running(launch(artifact, "f-3", memory_bytes=256 << 20))
    made = json.loads(docker("inspect", "infless-f-3"))[0]
    host = made["HostConfig"]
    assert host["Memory"] == host["MemorySwap"] == 256 << 20
    assert host["PidsLimit"] > 0
    assert host["RestartPolicy"]["Name"] in ("", "no")
    assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "8m", "max-file": "2"}}
    ports = made["NetworkSettings"]["Ports"]
    assert {end["HostIp"] for ends in ports.values() for end in ends} == {"127.0.0.1"}
    labels = made["Config"]["Labels"]
    assert labels["com.infless.owner"] == owner
    assert labels["com.infless.function"] == "f.openfaas-fn"
    assert labels["com.infless.batch"] == "4"
    assert labels["com.infless.cores"] == host["CpusetCpus"]


def test_too_much_memory_is_told(backend: Driven, artifact: str) -> None:
    """The kernel kills one process of it, and the backend the rest; the sentence names the limit."""
    sight = backend.running(launch(artifact, "f-4", memory_bytes=128 << 20))
    with pytest.raises((requests.ConnectionError, AssertionError)):
        ask(sight, "hold", 512 << 20)
    assert backend.until_stage("f-4", Stage.ENDED).why == "it needed more memory than its limit, 128 MiB"


def test_cores_are_chosen_and_chosen_again(backend: Driven, artifact: str) -> None:
    """Each on the CPU with the fewest instances; a resize moves what runs."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one CPU leaves no choice")
    first, second = (backend.running(launch(artifact, id_)) for id_ in ("f-5", "f-6"))
    assert ask(first, "cores") != ask(second, "cores")
    before = backend.backend.see("f-5").address
    backend.on_loop("resize", "f-5", Configuration(batch=4, cpu_cores=2))
    backend.until(lambda: backend.backend.see("f-5").address != before, "its handle says the new cores")
    assert len(ask(first, "cores")) == 2
    assert backend.backend.see("f-5").address.handle["cores"] == ask(first, "cores")


def test_a_container_killed_by_somebody_is_told(backend: Driven, artifact: str) -> None:
    """At once, with its exit code."""
    backend.running(launch(artifact, "f-7"))
    docker("kill", "infless-f-7")
    assert backend.until_stage("f-7", Stage.ENDED).why.startswith("its container ended with exit code 137, SIGKILL")


def test_a_removed_container_is_told(backend: Driven, artifact: str) -> None:
    """Also when nobody asked."""
    backend.running(launch(artifact, "f-8"))
    docker("rm", "--force", "infless-f-8")
    assert "container" in backend.until_stage("f-8", Stage.ENDED).why
    backend.on_loop("forget", "f-8")


def test_kill_ends_what_does_not_want_to(backend: Driven, image: str, artifact: str) -> None:
    """Also before it is ready."""
    backend.on_loop("start", launch(artifact, "f-9"))
    backend.on_loop("kill", "f-9")
    backend.until_stage("f-9", Stage.ENDED)
    backend.gone("f-9")
    backend.on_loop("forget", "f-9")


def test_a_function_that_cannot_be_loaded_says_why(backend: Driven, artifact: str) -> None:
    """The watchdog's own sentence is in the reason, and is its last words."""
    backend.on_loop("start", launch(artifact, "f-10", environment={"function_dir": "nowhere"}))
    sight = backend.until_stage("f-10", Stage.ENDED)
    assert "has neither handler.py nor model.onnx" in sight.why
    assert "has neither handler.py nor model.onnx" in backend.backend.last_words("f-10", "f.openfaas-fn")


def test_a_restarted_provider_takes_over(image: str, owner: str, tmp_path: Path) -> None:
    """What runs is adopted, its log goes on without a line lost or doubled, and what nobody knows is removed."""
    with Driven(tmp_path, owner) as old:
        artifact = old.backend.prepare(spec(image)).reference
        sight = old.running(launch(artifact, "f-11"))
        old.running(launch(artifact, "f-12"))
        ask(sight, "print", 50)
        helper.wait_until(lambda: "line 49" in log_lines(tmp_path, "f-11"), "the log")
    ask(sight, "print", 70)  # nobody listens
    with Driven(tmp_path, owner) as new:
        assert new.on_loop("adopt", "f-11", "f.openfaas-fn", {})
        assert not new.on_loop("adopt", "f-99", "f.openfaas-fn", {})
        assert new.backend.see("f-11").address.port == sight.address.port
        assert new.backend.see("f-11").address.handle == sight.address.handle
        new.on_loop("sweep", {"f-11"})
        helper.wait_until(lambda: helper.containers(f"label=com.infless.owner={owner}") == ["infless-f-11"], "sweep")
        ask(sight, "print", 1)
        expected = [f"line {number}" for count in (50, 70, 1) for number in range(count)]
        helper.wait_until(
            lambda: [line for line in log_lines(tmp_path, "f-11") if "line " in line] == expected, "the log goes on"
        )
        new.gone("f-11")


def test_what_another_provider_runs_is_left_alone(backend: Driven, artifact: str, tmp_path: Path) -> None:
    """Sweep and forget touch no container of another owner, not even one of that name."""
    backend.running(launch(artifact, "f-13"))
    with Driven(tmp_path / "other", uuid.uuid4().hex[:12]) as other:
        other.on_loop("sweep", set())
        other.on_loop("forget", "f-13")
        other.on_loop("start", launch(artifact, "f-13"))
        assert "is already in use" in other.until_stage("f-13", Stage.ENDED).why
        other.on_loop("forget", "f-13")
    assert helper.containers("name=^infless-f-13$", "status=running")


def test_a_long_line_is_whole(backend: Driven, artifact: str, tmp_path: Path) -> None:
    """Docker cuts it into pieces."""
    sight = backend.running(launch(artifact, "f-14"))
    ask(sight, "long line", 50_000)
    helper.wait_until(lambda: "x" * 50_000 in log_lines(tmp_path, "f-14"), "the line is whole")


def test_usage_is_measured(backend: Driven, artifact: str) -> None:
    """Memory of a Python process, and some cpu; zeros for who does not run."""
    backend.running(launch(artifact, "f-15"))
    used, nothing = backend.backend.usage(["f-15", "f-99"])
    assert 10 << 20 < used.memory_bytes < 500 << 20
    assert used.cpu_millicores > 0
    assert (nothing.memory_bytes, nothing.cpu_millicores) == (0, 0)


def order(artifact: str, **fields: object) -> CurveOrder:
    """One timing."""
    fixed = {
        "artifact": artifact,
        "environment": {},
        "batches": [1, 2],
        "cpu_cores": 1,
        "budget_s": 0.3,
        "timeout_s": 60.0,
    }
    return CurveOrder(**{**fixed, **fields})


def test_a_function_is_timed(backend: Driven, artifact: str, owner: str) -> None:
    """The watchdog's lines; nothing is left; images of others print nothing."""
    lines = [json.loads(line) for line in backend.backend.curve(order(artifact)).splitlines()]
    assert [line["batch"] for line in lines] == [1, 2]
    assert helper.containers(f"label=com.infless.owner={owner}") == []
    foreign = backend.backend.prepare(spec(os.environ[helper.BASE_IMAGE])).reference
    assert backend.backend.curve(order(foreign)) == ""


def test_a_timing_that_fails_says_why(backend: Driven, artifact: str, owner: str) -> None:
    """Its last line; also when it is cancelled."""
    with pytest.raises(BackendError, match="has neither handler.py nor model.onnx"):
        backend.backend.curve(order(artifact, environment={"function_dir": "nowhere"}))
    with pytest.raises(BackendError, match="cancelled"):
        backend.backend.curve(order(artifact, budget_s=60.0, cancelled=lambda: True))
    assert helper.containers(f"label=com.infless.owner={owner}") == []


def test_a_new_build_does_not_change_what_is_deployed(
    backend: Driven, image: str, artifact: str, tmp_path: Path
) -> None:
    """The tag moves, the artifact does not."""
    docker("tag", os.environ[helper.BASE_IMAGE], image)
    try:
        assert backend.backend.prepare(spec(image)).reference != artifact
        assert ask(backend.running(launch(artifact, "f-16")), "echo", 1) == 1
    finally:
        docker("tag", artifact, image)


def test_an_image_that_cannot_be_pulled_is_told_in_the_registrys_words(backend: Driven) -> None:
    """Nobody listens at port 1."""
    with pytest.raises(InvalidInput, match=r"image '127.0.0.1:1/f:1' could not be pulled: .*connection refused"):
        backend.backend.prepare(spec("127.0.0.1:1/f:1"))


def test_an_image_that_is_gone_is_told(backend: Driven, owner: str) -> None:
    """When it is to be started."""
    backend.on_loop("start", launch("sha256:" + "0" * 64, "f-17"))
    sight = backend.until_stage("f-17", Stage.ENDED)
    assert sight.why.endswith(": the image sha256:000000000000 is no longer on this machine; deploy the function again")


def test_a_command_that_does_not_exist_is_told(backend: Driven, tmp_path: Path) -> None:
    """In the engine's words; of an image that says itself what to run, the function's process is not run."""
    bare = f"infless-test-{uuid.uuid4().hex[:8]}"
    context = tmp_path / "bare"
    context.mkdir()
    (context / "Dockerfile").write_text(f"FROM {os.environ[helper.BASE_IMAGE]}\nCMD []\n")
    docker("build", "--quiet", "--tag", bare, str(context))
    try:
        artifact = backend.backend.prepare(spec(bare)).reference
        backend.on_loop("start", launch(artifact, "f-18", process="nosuchcommand --now"))
        assert "nosuchcommand" in backend.until_stage("f-18", Stage.ENDED).why
        sight = backend.running(launch(artifact, "f-19", process="python -m http.server 8080"))
        assert sight.address.metrics_port == 0
    finally:
        for id_ in ("f-18", "f-19"):
            backend.gone(id_)
        docker("image", "rm", "--force", bare)
