"""The real faas-cli straight at the provider, without any gateway. INFLESS_FAAS_CLI names the binary."""

import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
from provider_process import ROOT, environment, wait_until

CLI = os.environ.get("INFLESS_FAAS_CLI", "")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not CLI, reason="INFLESS_FAAS_CLI does not name a faas-cli binary"),
]
HANDLER = "def predict(batch):\n    print('answering', batch)\n    return ['hello ' + str(item) for item in batch]\n"


@pytest.fixture(scope="module")
def cli(provider, tmp_path_factory):
    """Run faas-cli in a folder, home and configuration of its own; its address is the provider's."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "template").symlink_to(ROOT / "templates")
    env = {
        **environment(),
        "HOME": str(folder),
        "OPENFAAS_CONFIG": str(folder / "config"),
        "OPENFAAS_URL": provider.url,
    }

    def cli(*arguments, text=None, ok=True, cwd=folder, timeout=60, path=env["PATH"]):
        done = subprocess.run(
            [CLI, *arguments],
            cwd=cwd,
            env={**env, "PATH": path},
            input=text,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert (done.returncode == 0) == ok, done.stdout + done.stderr
        return done.stdout + done.stderr

    cli.folder = folder
    return cli


@pytest.fixture(scope="module")
def logged_in(cli, provider):
    """With the generated password."""
    assert "credentials saved" in cli("login", "-g", provider.url, "--password-stdin", text=provider.password)
    return cli


@pytest.fixture(scope="module")
def built(logged_in, provider):
    """`new`, a handler, `build --shrinkwrap` into the folder that the provider looks into."""
    logged_in("new", "greet", "--lang", "infless-python", "--gateway", provider.url)
    (logged_in.folder / "greet" / "handler.py").write_text(HANDLER)
    logged_in("build", "-f", "stack.yaml", "--shrinkwrap")
    provider.bundles.rmdir()
    provider.bundles.symlink_to(logged_in.folder / "build")
    return SimpleNamespace(cli=logged_in, folder=logged_in.folder)


@pytest.fixture(scope="module")
def greet(built, provider):
    """Deployed and ready."""
    told = built.cli("deploy", "-f", "stack.yaml")
    assert "Deployed. 202 Accepted." in told
    built.cli("ready", "greet")
    return built.cli


def test_login_with_a_wrong_password(cli, provider):
    """Refused."""
    assert "password is incorrect" in cli("login", "-g", provider.url, "--password-stdin", text="wrong", ok=False)


def test_without_login(cli, provider):
    """It is told to log in: an empty bearer is no fault of the request."""
    assert "Unauthorized access, run" in cli("list", "-g", provider.url, ok=False)


def test_new_copies_the_template(built):
    """Handler, its tests, requirements; nothing of the watchdog in the user's folder."""
    names = sorted(path.name for path in (built.folder / "greet").iterdir())
    assert names == ["handler.py", "handler_test.py", "requirements.txt"]


def test_a_new_function_passes_its_own_test_and_the_check(cli):
    """On the spot, before a line of it is changed."""
    cli("new", "fresh", "--lang", "infless-python", "--yaml", "fresh.yaml")
    for command in (["-m", "pytest", "-q"], ["-m", "infless_watchdog", "--check", ".", "--budget-s", "0"]):
        done = subprocess.run(
            [sys.executable, *command],
            cwd=cli.folder / "fresh",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("option", ["gpu", "torch"])
def test_build_options_reach_docker(cli, tmp_path, option):
    """As an entry of ADDITIONAL_PACKAGE that the Dockerfile knows; here docker only says what it was asked."""
    fake = tmp_path / "docker"
    fake.write_text('#!/bin/sh\necho "asked: $*"\n')
    fake.chmod(0o755)
    cli("new", f"on-{option}", "--lang", "infless-python", "--yaml", f"{option}.yaml")
    told = cli(
        "build", "-f", f"{option}.yaml", "--build-option", option, "--build-option", "dev",
        path=f"{tmp_path}:{os.environ['PATH']}",
    )  # fmt: skip
    assert f"--build-arg ADDITIONAL_PACKAGE=build-essential git runtime:{option} " in told
    assert f"runtime:{option}" in (ROOT / "templates/infless-python/template.yml").read_text()


@pytest.mark.docker
def test_the_image_is_built(cli):
    """By faas-cli and Docker, from `new` to a container that answers its health check's question."""
    base = os.environ.get("INFLESS_TEST_BASE_IMAGE")
    if not base or shutil.which("docker") is None:
        pytest.skip("INFLESS_TEST_BASE_IMAGE names no local image, or there is no docker command")
    cli("new", "image", "--lang", "infless-python", "--yaml", "image.yaml", "--prefix", "infless-test")
    image = "infless-test/image:latest"
    try:
        cli("build", "-f", "image.yaml", "--build-arg", f"BASE_IMAGE={base}", timeout=600)
        told = subprocess.run(
            ["docker", "run", "--rm", image, "python", "-m", "infless_watchdog", "--check", "--json", "--budget-s", "0"],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        assert json.loads(told.stdout)["fine"] is True
    finally:
        subprocess.run(["docker", "image", "rm", "--force", image], capture_output=True, check=False)


def test_build_lays_the_bundle_out(built):
    """Everything that an image would hold."""
    names = {path.name for path in (built.folder / "build" / "greet").iterdir()}
    assert {"Dockerfile", "function", "infless_watchdog", "template.yml"} <= names


def test_the_template_is_pulled_from_the_repository(cli, tmp_path):
    """By its path, as of the last commit."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git work tree")
    cli("template", "pull", str(ROOT), cwd=tmp_path)
    assert (tmp_path / "template" / "infless-python" / "infless_watchdog" / "__main__.py").is_file()


def test_list(greet):
    """Name, invocations, replicas; JSON too."""
    assert "greet" in greet("list", "-v")
    (listed,) = json.loads(greet("list", "--json"))
    assert (listed["name"], listed["availableReplicas"]) == ("greet", 1)


def test_describe(greet):
    """Ready, with its image and usage."""
    told = greet("describe", "greet")
    assert "Ready" in told
    assert "greet:latest" in told


def test_invoke(greet):
    """Through the default namespace."""
    assert "hello world" in greet("invoke", "greet", text="world")


def test_invoke_what_fails(greet):
    """Status and sentence arrive."""
    told = greet("invoke", "greet", "--content-type", "application/json", text="no json", ok=False)
    assert "400" in told
    assert "not valid JSON" in told


def test_logs(greet):
    """What the handler printed."""
    greet("invoke", "greet", text="logged")
    wait_until(lambda: "answering ['logged']" in greet("logs", "greet", "--tail=false", "--lines", "20"), "the line")


def test_version(greet):
    """The gateway's form of info, without asking the world for a newer release."""
    told = greet("version", "--warn-update=false")
    assert "infless" in told
    assert "process" in told


def test_diff_free_update(greet):
    """A second deploy is a rolling update."""
    assert "202 Accepted" in greet("deploy", "-f", "stack.yaml")


def test_secrets_and_namespaces(greet):
    """None, and the one."""
    assert "openfaas-fn" in greet("namespace", "list")
    greet("secret", "list")


def test_an_unknown_function(greet):
    """Every command says so and fails."""
    assert "404" in greet("invoke", "nobody", text="x", ok=False)
    assert "No existing function" in greet("remove", "nobody", ok=False)
    greet("describe", "nobody", ok=False)


def test_a_refused_deployment_shows_why(greet):
    """The provider's sentence, whole."""
    told = greet("deploy", "-f", "stack.yaml", "--label", "com.infless.latency.target=soon", ok=False)
    assert "label com.infless.latency.target: 'soon' is not a duration" in told


def test_remove(greet, provider):
    """Last in this module: the function is gone."""
    assert "Removing" in greet("remove", "greet")
    assert provider.invoke("greet").status_code == 404
