"""The template's image: built, run without rights, asked, stopped. Needs a Docker engine and a local Python image."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import requests

TEMPLATE = Path(__file__).parents[2] / "templates/infless-python"
BASE_IMAGE = "INFLESS_TEST_BASE_IMAGE"


def done(*words: str, timeout_s: float = 600.0) -> subprocess.CompletedProcess[str]:
    """One docker command to its good end; its words and errors when it fails."""
    ended = subprocess.run(["docker", *words], capture_output=True, text=True, timeout=timeout_s, check=False)
    assert ended.returncode == 0, f"docker {' '.join(words)}:\n{ended.stdout[-2000:]}\n{ended.stderr[-2000:]}"
    return ended


def docker(*words: str, timeout_s: float = 600.0) -> str:
    """What one docker command prints."""
    return done(*words, timeout_s=timeout_s).stdout.strip()


def missing() -> str | None:
    """Why these tests cannot run here."""
    if not os.environ.get(BASE_IMAGE):
        return f"{BASE_IMAGE} names no local image with Python 3.11 or newer"
    if shutil.which("docker") is None:
        return "there is no docker command"
    answers = subprocess.run(["docker", "version"], capture_output=True, check=False).returncode == 0
    return None if answers else "no Docker engine answers"


pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build context as `faas-cli build` makes it: the template, and the function in it."""
    if (why := missing()) is not None:
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("image") / "hello"
    shutil.copytree(TEMPLATE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def image(context: Path) -> Iterator[str]:
    """The image, removed at the end; its layers stay for the next run."""
    name = f"infless-test-{uuid.uuid4().hex[:8]}"
    build(context, name)
    yield name
    docker("image", "rm", "--force", name)


@pytest.fixture
def container(image: str) -> Iterator[str]:
    """A running instance with nothing allowed that it does not need."""
    name = docker(
        "run", "--detach", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges",
        "--publish", "127.0.0.1::8080", "--publish", "127.0.0.1::8081", "--health-interval", "1s",
        "--env", "healthcheck_interval=0", image,
    )  # fmt: skip
    yield name
    docker("rm", "--force", "--volumes", name)


INSTALLERS = ("Reading package lists", "Collecting ", "Requirement already satisfied", "Successfully installed")
"""What apt and pip say while they run."""


def build(context: Path, name: str, **arguments: str) -> str:
    """As `faas-cli build --build-arg BASE_IMAGE=...` does; gives what the builder and what it ran have said."""
    words = [f"--build-arg={key}={value}" for key, value in {"BASE_IMAGE": os.environ[BASE_IMAGE], **arguments}.items()]
    built = done("build", "--force-rm", "--tag", name, *words, str(context))
    return built.stdout + built.stderr  # BuildKit's words go to the latter


@pytest.fixture
def other(context: Path, tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A context to be changed and an image to be made of it, of one test alone."""
    folder, name = tmp_path / "other", f"infless-test-{uuid.uuid4().hex[:8]}"
    shutil.copytree(TEMPLATE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    yield folder, name
    subprocess.run(["docker", "image", "rm", "--force", name], capture_output=True, check=False)


def url(container: str, port: int = 8080) -> str:
    """Where a published port is reached."""
    return f"http://{docker('port', container, str(port)).splitlines()[0]}"


def until_ready(container: str) -> None:
    """Wait until it serves."""
    ends_s = time.monotonic() + 60
    while time.monotonic() < ends_s:
        with suppress(requests.RequestException):
            if requests.get(f"{url(container)}/_/ready", timeout=5).status_code == 200:
                return
        time.sleep(0.1)
    raise AssertionError(f"not ready:\n{docker('logs', container)}")


def test_it_serves_on_a_read_only_root_without_rights(container: str) -> None:
    """The template's own handler, and its metrics."""
    until_ready(container)
    answer = requests.post(url(container), data="hi", headers={"content-type": "text/plain"}, timeout=5)
    assert answer.text == "Hello! You said: hi"
    assert "http_requests_total" in requests.get(f"{url(container, 8081)}/metrics", timeout=5).text


def test_it_is_not_root(container: str) -> None:
    """Neither by the image nor by the process."""
    assert docker("exec", container, "id", "-u") == "1000"
    assert docker("inspect", "--format", "{{.Config.User}}", container) == "1000"


def test_the_health_check_works(container: str) -> None:
    """Docker's own word for it."""
    ends_s = time.monotonic() + 60
    while (health := docker("inspect", "--format", "{{.State.Health.Status}}", container)) != "healthy":
        assert time.monotonic() < ends_s, health
        time.sleep(0.2)


def test_docker_stop_drains(container: str) -> None:
    """Exit code 0: it has ended by itself, and Docker had not to kill it."""
    until_ready(container)
    docker("stop", "--time", "30", container)
    assert docker("inspect", "--format", "{{.State.ExitCode}}", container) == "0"


def test_a_handler_that_cannot_be_loaded_ends_the_container(image: str) -> None:
    """With a code, and the sentence in `docker logs`."""
    name = docker("create", "--env", "function_dir=nowhere", image)
    try:
        docker("start", name)
        assert docker("wait", name, timeout_s=30) != "0"
        logs = subprocess.run(["docker", "logs", name], capture_output=True, text=True, check=True).stderr
        assert "has neither handler.py nor model.onnx" in logs
    finally:
        docker("rm", "--force", name)


def test_a_changed_handler_is_rebuilt_without_its_packages(context: Path, image: str) -> None:
    """Their layers are kept, as they do not depend on the function's code: neither apt nor pip has anything to say."""
    handler = context / "function" / "handler.py"
    handler.write_text(f"{handler.read_text()}\n# {uuid.uuid4()}\n")
    said = build(context, image)
    assert not [word for word in INSTALLERS if word in said], said
    assert "#" in docker("run", "--rm", image, "tail", "-1", "function/handler.py")


def test_files_that_only_their_owner_may_read_are_read(context: Path, image: str) -> None:
    """As a careful umask leaves them, and faas-cli's own folders."""
    weights = context / "function" / "weights" / "w"
    weights.parent.mkdir(mode=0o700)
    weights.touch(mode=0o600)
    weights.write_text("1 2 3")
    build(context, image)
    assert docker("run", "--rm", image, "cat", "function/weights/w") == "1 2 3"


def test_a_function_without_requirements_is_built(context: Path, image: str) -> None:
    """The file may be missing."""
    (context / "function" / "requirements.txt").unlink()
    build(context, image)
    assert "requirements.txt" not in docker("run", "--rm", image, "ls", "function")


def test_a_handler_that_does_not_pass_the_check_is_not_built(other: tuple[Path, str]) -> None:
    """The build ends with the sentence; whoever knows better says so."""
    folder, name = other
    (folder / "function" / "handler.py").write_text(
        "def predict(batch):\n    return batch[:1]\n\n\ndef example():\n    return 1\n"
    )
    with pytest.raises(
        AssertionError, match=r"returned 1 answers for a batch of 2 .* \(handler.py, predict in line 1\)"
    ):
        build(folder, name)
    build(folder, name, TEST_ENABLED="false")


def test_a_functions_own_tests_run_in_its_build(other: tuple[Path, str]) -> None:
    """With pytest among its requirements."""
    folder, name = other
    (folder / "function" / "requirements.txt").write_text("pytest\n")
    build(folder, name)
    with (folder / "function" / "handler_test.py").open("a") as tests:
        tests.write("\n\ndef test_the_moon():\n    assert predict(['moon']) == ['cheese']\n")
    with pytest.raises(AssertionError, match="test_the_moon"):
        build(folder, name)


def test_the_cpu_image_has_no_cuda_and_is_small(image: str) -> None:
    """Less than 125 MB on top of the base image; byte code is there, because the root may be read-only."""
    listed = docker("run", "--rm", "--user", "0", image, "find", "/packages", "/home/app")
    assert not [path for path in listed.splitlines() if "nvidia" in path or "libcu" in path or "providers_cuda" in path]
    assert "/home/app/infless_watchdog/__pycache__/" in listed
    sizes = [int(docker("image", "inspect", "--format", "{{.Size}}", name)) for name in (image, os.environ[BASE_IMAGE])]
    assert sizes[0] - sizes[1] < 125e6


def test_what_running_a_function_leaves_behind_is_not_in_its_image(context: Path, image: str) -> None:
    """Else a run of the tests would be a reason to build again."""
    for left in ("function/__pycache__", "function/.pytest_cache", "function/part/__pycache__"):
        (context / left).mkdir(parents=True)
    build(context, image)
    found = docker("run", "--rm", image, "find", "function")
    assert "cache" not in found
    assert "function/part" in found


def test_the_runtime_is_chosen(other: tuple[Path, str]) -> None:
    """By an argument, or as faas-cli's build options say it: beside Debian packages, and winning over the argument."""
    folder, name = other
    build(folder, name, RUNTIME="cpu", ADDITIONAL_PACKAGE="runtime:none", SLIM="false")
    assert "onnxruntime" not in docker("run", "--rm", name, "sh", "-c", "ls -d /packages/lib/python*/site-packages/*")
    with pytest.raises(AssertionError, match="RUNTIME: 'tpu' is not one of cpu, gpu, torch, none"):
        build(folder, name, RUNTIME="tpu")


def test_the_python_version_is_an_argument(other: tuple[Path, str]) -> None:
    """Of the base image's name, when no other base image is given."""
    folder, name = other
    alias = "python:0.0-slim"
    docker("tag", os.environ[BASE_IMAGE], alias)
    try:
        docker("build", "--quiet", "--tag", name, "--build-arg", "PYTHON_VERSION=0.0", str(folder))
    finally:
        docker("image", "rm", alias)
