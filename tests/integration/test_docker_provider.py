"""The whole provider on a real Docker engine: deployed, asked, updated, killed, found again, removed."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import docker_backend as helper
import pytest
from docker_backend import docker
from provider_process import ProviderProcess, infless, wait_until

from infless_provider.settings import Settings
from infless_provider.state import State
from infless_provider.up import BACKEND_FILE

pytestmark = [pytest.mark.integration, pytest.mark.docker]


@pytest.fixture
def provider(image: str, fresh: ProviderProcess) -> Iterator[ProviderProcess]:
    """On Docker; no container of it is left, and the test says so when one was."""
    yield fresh.start("--backend", "docker")
    fresh.stop(signal.SIGINT)
    left = containers()
    for name in left:
        docker("rm", "--force", "--volumes", name)
    assert left == []


def containers() -> list[str]:
    """All of functions, running or not."""
    return docker("ps", "--all", "--quiet", "--filter", "label=com.infless.function=whole.openfaas-fn").split()


def deploy(provider: ProviderProcess, image: str, verb: str = "POST", **fields: object) -> None:
    """The function `whole` on an image."""
    provider.send(verb, "/system/functions", {"service": "whole", "image": image, **fields}).raise_for_status()


def status(provider: ProviderProcess) -> dict[str, object]:
    """Of the function."""
    answer: dict[str, object] = provider.send("GET", "/system/function/whole?usage=1").json()
    return answer


def echo(provider: ProviderProcess, text: str = "hi") -> str:
    """What the function answers."""
    answer = provider.send("POST", "/function/whole", {"do": "echo", "value": text})
    assert answer.status_code == 200, answer.text
    return answer.text


def test_a_function_lives(provider: ProviderProcess, image: str) -> None:
    """Timed, started, asked, its logs read, used, removed; nothing of it is left."""
    deploy(provider, image, limits={"memory": "512Mi"}, readOnlyRootFilesystem=True)
    wait_until(lambda: status(provider)["availableReplicas"] == 1, "an instance is ready")
    assert echo(provider) == "hi"
    assert status(provider)["usage"]["totalMemoryBytes"] > 1e6  # type: ignore[index]
    logs = provider.send("GET", "/system/logs?name=whole&follow=false").text
    assert "INFO ready: predict" in logs
    provider.send("DELETE", "/system/functions", {"functionName": "whole"}).raise_for_status()
    wait_until(lambda: not containers(), "its container is gone")


def test_a_killed_provider_finds_its_containers(provider: ProviderProcess, image: str) -> None:
    """The same container goes on, and is asked; none is doubled."""
    deploy(provider, image)
    wait_until(lambda: status(provider)["availableReplicas"] == 1, "an instance is ready")
    before = containers()
    assert provider.process is not None
    worker = provider.worker
    os.kill(provider.process.pid, signal.SIGKILL)
    worker.kill()
    provider.process.wait()
    provider.start("--backend", "docker")
    wait_until(lambda: status(provider)["availableReplicas"] == 1, "it is found")
    assert echo(provider) == "hi"
    assert containers() == before


def test_a_container_that_dies_is_replaced(provider: ProviderProcess, image: str) -> None:
    """Docker says so, and another one is started."""
    deploy(provider, image)
    wait_until(lambda: status(provider)["availableReplicas"] == 1, "an instance is ready")
    (before,) = containers()
    docker("kill", before)
    wait_until(lambda: (now := containers()) and before not in now, "another container runs")
    wait_until(lambda: status(provider)["availableReplicas"] == 1, "it is ready")
    assert echo(provider) == "hi"


def test_an_update_rolls_over(provider: ProviderProcess, image: str) -> None:
    """Other variables are another version: a new container is ready before the old one goes, and no request fails."""
    deploy(provider, image)
    wait_until(lambda: status(provider)["availableReplicas"] == 1, "an instance is ready")
    (before,) = containers()
    deploy(provider, image, "PUT", envVars={"version": "2"})

    def rolled() -> bool:
        assert echo(provider) == "hi"
        return before not in containers()

    wait_until(rolled, "the old container has gone")


def test_secrets_are_files_that_follow_an_update(provider: ProviderProcess, image: str) -> None:
    """Mounted for the container's user alone; another value is seen without a restart."""
    provider.send("POST", "/system/secrets", {"name": "key", "value": "one"}).raise_for_status()
    deploy(provider, image, secrets=["key"])
    wait_until(lambda: status(provider)["availableReplicas"] == 1, "an instance is ready")
    (name,) = containers()
    assert docker("exec", name, "cat", "/var/openfaas/secrets/key") == "one"
    assert docker("exec", name, "stat", "--format", "%a %u", "/var/openfaas/secrets/key").startswith("600 ")
    provider.send("PUT", "/system/secrets", {"name": "key", "value": "two"}).raise_for_status()
    assert docker("exec", name, "cat", "/var/openfaas/secrets/key") == "two"


READS = """
import os
from pathlib import Path
KEY = Path("/var/openfaas/secrets/key").read_text()
HELD = bytearray(os.urandom(1) * (100 << 20))
def example(): return KEY
def predict(batch): return [KEY] * len(batch)
"""


def test_a_function_that_reads_its_secret_at_import(provider: ProviderProcess, tmp_path: Path) -> None:
    """It is timed with what its instances get; one that is refused, here for its memory, leaves no copy of a secret."""
    provider.send("POST", "/system/secrets", {"name": "key", "value": "s3cret"}).raise_for_status()
    copies = provider.state / "secrets" / "mounted"
    with helper.template_image(tmp_path, READS) as image:
        small = {"service": "whole", "image": image, "secrets": ["key"], "limits": {"memory": "64Mi"}}
        answer = provider.send("POST", "/system/functions", small)
        assert (answer.status_code, "it needed more memory than its limit, 64 MiB" in answer.text) == (422, True)
        wait_until(lambda: not [*copies.glob("*")], "the refused one's copy is gone")
        deploy(provider, image, limits={"memory": "512Mi"}, secrets=["key"])
        wait_until(lambda: status(provider)["availableReplicas"] == 1, "an instance is ready")
        assert provider.send("POST", "/function/whole", "x").text == "s3cret"
        assert "whole.openfaas-fn: timing batches" in provider.log.read_text()
        provider.send("DELETE", "/system/functions", {"functionName": "whole"}).raise_for_status()
        wait_until(lambda: not containers(), "its container is gone")


def test_an_image_that_nobody_has(provider: ProviderProcess, tmp_path: Path) -> None:
    """It is refused with the registry's own words, and nothing is deployed."""
    answer = provider.send("POST", "/system/functions", {"service": "whole", "image": "127.0.0.1:1/nobody/has:it"})
    assert answer.status_code == 400
    assert "127.0.0.1:1/nobody/has:it" in answer.text
    assert provider.send("GET", "/system/function/whole").status_code == 404


WISHES = {
    "cpu_cores: 4096, memory: 1Gi": "cpu_cores is 4096, and this machine has ",
    "cpu_cores: 1, memory: 900Ti": "memory is 900 TiB, and this machine has ",
    "cpu_cores: 1, cpuset: 8191, memory: 1Gi": "cpuset names CPUs that are not there: 8191; there are ",
}


@pytest.mark.usefixtures("image")  # an engine answers
@pytest.mark.parametrize("wish", WISHES)
def test_more_than_the_machine_has_is_refused(tmp_path: Path, wish: str) -> None:
    """In one sentence, as a fault of the file, before anything is said to run."""
    file = tmp_path / "cluster.yml"
    file.write_text(f"version: 1\nservers:\n  - {{id: box, {wish}}}\n")
    options = ("--backend", "docker", "--cluster", str(file), "--port", "9", "--state-dir", str(tmp_path / "state"))
    done = infless("up", *options)
    assert re.fullmatch(rf"infless: cluster file, server 'box': {re.escape(WISHES[wish])}[^\n]+\n", done.stderr), (
        done.stderr
    )
    assert done.returncode == 2


def test_no_engine_is_told(tmp_path: Path) -> None:
    """In one sentence that says where it was looked for, before anything is said to run; also by `infless down`."""
    pytest.importorskip("docker", reason="infless[docker] is not installed")
    where = f"unix://{tmp_path}/docker.sock"
    told = f"infless: no Docker engine answers at {where}; start it, or say in DOCKER_HOST where it is\n"
    state = ("--state-dir", str(tmp_path / "state"))
    done = infless("up", "--backend", "docker", "--port", "9", *state, DOCKER_HOST=where)
    assert (done.returncode, done.stderr) == (1, told)
    State(Settings(state_dir=tmp_path / "state", bundles_dir=tmp_path).database).close()
    (tmp_path / "state" / BACKEND_FILE).write_text("docker\n")
    done = infless("down", *state, DOCKER_HOST=where)
    assert (done.returncode, done.stderr) == (1, told)
