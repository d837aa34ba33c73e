"""The real faas-cli straight at the provider, without any gateway. INFLESS_FAAS_CLI names the binary."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from callback_server import CallbackServer
from faas_cli import FaasCli
from provider_process import ROOT, ProviderProcess, wait_until

CLI = os.environ.get("INFLESS_FAAS_CLI", "")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not CLI, reason="INFLESS_FAAS_CLI does not name a faas-cli binary"),
]
HANDLER = """def predict(batch):
    print('answering', batch)
    return ['hello ' + str(item) for item in batch]
"""
SEEN = """import os
from pathlib import Path

SECRETS = Path(os.environ.get("secret_mount_path", "/var/openfaas/secrets"))


def handle(event, context):
    names = [path for path in SECRETS.iterdir() if path.is_file()] if SECRETS.is_dir() else []
    print("seen", event.body.decode())
    told = {
        "method": event.method,
        "query": dict(event.query),
        "headers": {name.lower(): value for name, value in dict(event.headers).items()},
        "body": event.body.decode(),
        "mode": os.environ.get("mode"),
        "secrets": {path.name: path.read_text() for path in names},
    }
    return {"statusCode": 200, "body": told}
"""
"""A handler that tells what it was sent and given."""


@pytest.fixture(scope="module")
def provider(tmp_path_factory) -> Iterator[ProviderProcess]:
    """Results of asynchronous calls may be sent to this machine."""
    made = ProviderProcess(tmp_path_factory.mktemp("provider"))
    yield made.start("--callbacks-allow", "127.0.0.0/8")
    made.destroy()


@pytest.fixture(scope="module")
def cli(provider, tmp_path_factory) -> FaasCli:
    """Where a stack file is written; nobody has logged in."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "template").symlink_to(ROOT / "templates")
    return FaasCli(CLI, folder, provider.url)


@pytest.fixture(scope="module")
def logged_in(cli, provider) -> FaasCli:
    """With the generated password."""
    assert "credentials saved" in cli("login", "-g", provider.url, "--password-stdin", text=provider.password)
    return cli


@pytest.fixture(scope="module")
def built(logged_in, provider) -> FaasCli:
    """`new`, a handler, `build --shrinkwrap` into the folder that the provider looks into."""
    logged_in("new", "greet", "--lang", "infless-python", "--gateway", provider.url)
    (logged_in.folder / "greet" / "handler.py").write_text(HANDLER)
    logged_in("build", "-f", "stack.yaml", "--shrinkwrap")
    provider.bundles.rmdir()
    provider.bundles.symlink_to(logged_in.folder / "build")
    return logged_in


@pytest.fixture(scope="module")
def greet(built) -> FaasCli:
    """Deployed from its stack file, and ready."""
    assert "Deployed. 202 Accepted." in built("deploy", "-f", "stack.yaml")
    assert "Function greet is ready" in built("ready", "greet")
    return built


@pytest.fixture(scope="module")
def bare(built) -> FaasCli:
    """The same login where there is no stack file, which faas-cli would prefer to what it is told."""
    return built.at(built.folder / "bare")


@pytest.fixture(scope="module")
def deploy(bare, provider):
    """Build `SEEN` under a name and deploy it by options alone; ready when this returns."""

    def deploy(name: str, *options: str, namespace: tuple[str, ...] = ()) -> str:
        provider.build(name, SEEN)
        told = bare("deploy", "--image", f"test/{name}:latest", "--name", name, *options, *namespace)
        assert "Deployed. 202 Accepted." in told
        bare("ready", name, *namespace)
        return told

    return deploy


@pytest.fixture(scope="module")
def seen(deploy, bare):
    """Invoke it with options; gives what the function saw."""
    deploy("seen", "--env", "mode=first")

    def seen(*options: str, text: str = "", name: str = "seen"):
        return json.loads(answer_of(bare("invoke", name, *options, text=text)))

    return seen


def answer_of(told: str) -> str:
    """What an invocation printed, without the notes that faas-cli may print on the same output."""
    return told[told.index("{") : told.rindex("}") + 1]


def counts_of(listed: str) -> dict[str, float]:
    """Invocations by name, in the list's order; faas-cli leaves a zero out."""
    return {one["name"]: one.get("invocationCount", 0) for one in json.loads(listed)}


def shim(folder, path):
    """A `docker` that only says what it was asked; gives a PATH on which it comes first."""
    fake = folder / "docker"
    fake.write_text('#!/bin/sh\necho "asked: $*"\n')
    fake.chmod(0o755)
    return f"{folder}:{path}"


class TestLogin:
    """Nobody without the password."""

    def test_with_a_wrong_password(self, cli, provider):
        """Refused."""
        assert "password is incorrect" in cli("login", "-g", provider.url, "--password-stdin", text="wrong", ok=False)

    @pytest.mark.parametrize(
        "command",
        [
            ["list"],
            ["describe", "x"],
            ["remove", "x"],
            ["logs", "x"],
            ["secret", "list"],
            ["secret", "remove", "x"],
            ["deploy", "--image", "a:b", "--name", "x"],
        ],
        ids=" ".join,
    )
    def test_without_login(self, cli, tmp_path, command):
        """It is told to log in: an empty bearer is no fault of the request."""
        stranger = FaasCli(CLI, tmp_path, cli.url)
        assert 'nauthorized access, run "faas-cli login"' in stranger(*command, ok=False)

    def test_namespaces_without_login(self, cli, tmp_path):
        """The newer client has another sentence for it."""
        told = FaasCli(CLI, tmp_path, cli.url)("namespace", "create", "x", ok=False)
        assert "authentication" in told

    def test_logout(self, logged_in, provider, tmp_path):
        """The saved password is gone, and with it the access."""
        other = FaasCli(CLI, tmp_path, provider.url)
        other("login", "--password-stdin", text=provider.password)
        other("list")
        assert "credentials removed" in other("logout")
        other("list", ok=False)


class TestBuild:
    """`new`, `build`, `up`, `template pull`."""

    def test_new_copies_the_template(self, built):
        """Handler, its tests, requirements; nothing of the watchdog in the user's folder."""
        names = sorted(path.name for path in (built.folder / "greet").iterdir())
        assert names == ["handler.py", "handler_test.py", "requirements.txt"]

    def test_a_new_function_passes_its_own_test_and_the_check(self, cli):
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
    def test_build_options_reach_docker(self, cli, tmp_path, option):
        """As an entry of ADDITIONAL_PACKAGE that the Dockerfile knows."""
        cli("new", f"on-{option}", "--lang", "infless-python", "--yaml", f"{option}.yaml")
        told = cli(
            "build", "-f", f"{option}.yaml", "--build-option", option, "--build-option", "dev",
            path=shim(tmp_path, os.environ["PATH"]),
        )  # fmt: skip
        assert f"--build-arg ADDITIONAL_PACKAGE=build-essential git runtime:{option} " in told
        assert f"runtime:{option}" in (ROOT / "templates/infless-python/template.yml").read_text()

    @pytest.mark.docker
    def test_up_on_docker(self, fresh, tmp_path):
        """`new`, a handler, `up` with the real Docker: the image is built, runs as a container, answers and is removed."""
        base = os.environ.get("INFLESS_TEST_BASE_IMAGE")
        if not base or shutil.which("docker") is None:
            pytest.skip("INFLESS_TEST_BASE_IMAGE names no local image, or there is no docker command")
        fresh.start("--backend", "docker")
        cli, image = FaasCli(CLI, tmp_path, fresh.url), "infless-test/contained:latest"
        (tmp_path / "template").symlink_to(ROOT / "templates")
        cli("login", "--password-stdin", text=fresh.password)
        cli("secret", "create", "key", "--from-literal", "hush")
        cli("new", "contained", "--lang", "infless-python", "--prefix", "infless-test")
        (tmp_path / "contained" / "handler.py").write_text(SEEN)
        (tmp_path / "contained" / "handler_test.py").unlink()  # it tests the template's handler
        try:
            options = ("--skip-push", "--build-arg", f"BASE_IMAGE={base}", "--secret", "key", "--env", "mode=boxed")
            assert "Deployed. 202 Accepted." in cli("up", *options, timeout_s=600)
            cli("ready", "contained")
            told = json.loads(answer_of(cli("invoke", "contained", text="in a box")))
            assert (told["body"], told["mode"], told["secrets"]) == ("in a box", "boxed", {"key": "hush"})
            wait_until(lambda: "seen in a box" in cli("logs", "contained", "--tail=false"), "its line")
            assert json.loads(cli("version", "--json"))["provider"]["orchestration"] == "docker"
            assert "RAM:" in cli("describe", "contained")
            cli("remove", "contained")
        finally:
            subprocess.run(["docker", "image", "rm", "--force", image], capture_output=True, check=False)

    def test_build_lays_the_bundle_out(self, built):
        """Everything that an image would hold."""
        names = {path.name for path in (built.folder / "build" / "greet").iterdir()}
        assert {"Dockerfile", "function", "infless_watchdog", "template.yml"} <= names

    def test_the_template_is_pulled_from_the_repository(self, cli, tmp_path):
        """By its path, as of the last commit."""
        if not (ROOT / ".git").exists():
            pytest.skip("not a git work tree")
        cli.at(tmp_path / "pulled")("template", "pull", str(ROOT))
        assert (tmp_path / "pulled/template/infless-python/infless_watchdog/__main__.py").is_file()

    def test_up(self, built, tmp_path):
        """Builds, pushes and deploys in one go, and again after a change: then the new code answers."""
        path = shim(tmp_path, os.environ["PATH"])
        built("new", "risen", "--lang", "infless-python", "--yaml", "risen.yaml", "--prefix", "someone")
        handler = built.folder / "risen" / "handler.py"
        for word in ("hello ", "good day "):
            handler.write_text(HANDLER.replace("hello ", word))
            told = built("up", "-f", "risen.yaml", path=path)
            assert re.findall(r"asked: (\S+)", told) == ["build", "push"]
            assert "Deployed. 202 Accepted." in told
            built("ready", "risen")
            wait_until(lambda word=word: word + "you" in built("invoke", "risen", text="you"), "the code answers")
        assert "asked: push" not in built("up", "-f", "risen.yaml", "--skip-push", path=path)
        built("remove", "risen")


class TestDeploy:
    """`ready`, `deploy` in its forms, `remove`."""

    def test_ready(self, cli):
        """The provider answers."""
        assert "OpenFaaS gateway is ready" in cli("ready", "--attempts", "1")

    def test_ready_waits_for_nobody(self, greet):
        """An unknown function fails after the attempts that were allowed."""
        told = greet("ready", "nobody", "--attempts", "2", "--interval", "10ms", ok=False)
        assert told.count("Error getting function info") == 2
        assert "no such function: nobody" in told

    def test_a_second_deployment_updates(self, greet, provider):
        """The same again is a rolling update, and no instance need be replaced."""
        pids = provider.pids("greet")
        assert "202 Accepted" in greet("deploy", "-f", "stack.yaml")
        greet("ready", "greet")
        assert provider.pids("greet") == pids

    def test_without_update_it_must_be_new(self, greet):
        """A conflict, with the provider's sentence."""
        told = greet("deploy", "-f", "stack.yaml", "--update=false", ok=False)
        assert "Unexpected status: 409" in told
        assert "exists" in told

    def test_replace(self, greet, provider):
        """Removed and made anew: another process answers."""
        (before,) = provider.pids("greet")
        assert "202 Accepted" in greet("deploy", "-f", "stack.yaml", "--replace", "--update=false")
        greet("ready", "greet")
        provider.ready("greet")
        assert provider.pids("greet") != [before]
        assert "hello again" in greet("invoke", "greet", text="again")

    def test_every_option_comes_back(self, bare, deploy):
        """What `deploy` was told is what `describe` shows."""
        deploy(
            "full", "--env", "mode=bright", "--label", "com.infless.latency.target=300ms", "--label", "team=blue",
            "--annotation", "topic=news", "--constraint", "zone=here", "--memory-request", "64Mi",
            "--memory-limit", "512Mi", "--cpu-request", "100m", "--fprocess", "python -m infless_watchdog",
        )  # fmt: skip
        told = json.loads(bare("describe", "full", "--json"))
        assert told["envVars"] == {"mode": "bright"}
        assert told["labels"] == {
            "com.infless.latency.target": "300ms", "team": "blue", "faas_function": "full",
        }  # fmt: skip
        assert told["annotations"] == {"topic": "news"}
        assert told["constraints"] == ["zone=here"]
        assert told["requests"] == {"memory": "64Mi", "cpu": "100m"}
        assert told["limits"] == {"memory": "512Mi"}
        assert told["envProcess"] == "python -m infless_watchdog"
        bare("remove", "full")

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            (
                ["--label", "com.infless.latency.target=soon"],
                "label com.infless.latency.target: 'soon' is not a duration",
            ),
            (["--label", "com.infless.batch.max=none"], "com.infless.batch.max"),
            (
                ["--secret", "unheard-of"],
                "secrets: 'unheard-of' does not exist in namespace 'openfaas-fn'; create it first",
            ),
            (["--memory-limit", "much"], "limits.memory"),
            (["-n", "unheard-of"], "namespace 'unheard-of' does not exist"),
        ],
        ids=["target", "batch", "secret", "memory", "namespace"],
    )
    def test_a_refused_deployment_shows_why(self, bare, provider, options, sentence):
        """The provider's sentence, whole, with status 400; nothing is deployed."""
        provider.build("refused", SEEN)
        told = bare("deploy", "--image", "test/refused:latest", "--name", "refused", *options, ok=False)
        assert "Unexpected status: 400" in told
        assert sentence in told
        assert "refused" not in bare("list", "-q").split()

    def test_without_a_bundle(self, bare):
        """It is said which commands make one."""
        told = bare("deploy", "--image", "test/never-built:1", "--name", "never-built", ok=False)
        assert "never-built" in told
        assert "infless build" in told

    def test_remove(self, bare, deploy, provider):
        """Gone for good; a second time it is said."""
        deploy("gone")
        assert "Removing old function" in bare("remove", "gone")
        assert provider.invoke("gone").status_code == 404
        assert "No existing function to remove" in bare("remove", "gone", ok=False)


class TestLook:
    """`list`, `describe`, `diff`, `version`."""

    def test_list(self, greet, seen):
        """Name, image, invocations, replicas, time; JSON and bare names too."""
        (line,) = [line for line in greet("list", "-v").splitlines() if line.startswith("greet ")]
        assert line.split()[:2] == ["greet", "greet:latest"]
        assert time.strftime("%Y-", time.gmtime()) in line
        assert {"greet", "seen"} <= set(greet("list", "-q").split())
        listed = {one["name"]: one for one in json.loads(greet("list", "--json"))}
        assert (listed["greet"]["replicas"], listed["greet"]["availableReplicas"]) == (1, 1)
        assert greet("list", "-n", "openfaas-fn") == greet("list")

    def test_list_is_sorted(self, greet, seen):
        """By invocations, most first: what was counted is what was invoked."""
        before = counts_of(greet("list", "--json"))
        needed = int(before["greet"] - before["seen"]) + 1
        for _ in range(max(1, needed)):
            seen()
        after = counts_of(greet("list", "--json", "--sort", "invocations"))
        assert list(after.values()) == sorted(after.values(), reverse=True)
        assert after["seen"] == before["seen"] + max(1, needed)
        names = greet("list", "-q", "--sort", "name").split()
        assert names == sorted(names)

    def test_describe(self, greet, provider):
        """Ready, with image, process, labels, usage and where to call it."""
        told = greet("describe", "greet")
        assert " ".join(told.split()).startswith("Name: greet Status: Ready Replicas: 1 Available Replicas: 1")
        for part in ("greet:latest", "python -m infless_watchdog", f"{provider.url}/function/greet",
                     f"{provider.url}/async-function/greet", "faas_function: greet", "RAM:"):  # fmt: skip
            assert part in told
        assert "Constraints:" in greet("describe", "greet", "-v")

    def test_diff(self, greet):
        """A stack file that is deployed differs only in the label that every provider adds; a change is found."""
        told = greet("diff", "-f", "stack.yaml", ok=False)
        rows = [line for line in told.splitlines() if line.startswith("  ") and "|" in line][1:]
        assert [line.split("|")[1].split()[1] for line in rows] == ["label.faas_function:"], told
        text = (greet.folder / "stack.yaml").read_text()
        (greet.folder / "changed.yaml").write_text(text.replace("greet:latest", "greet:2"))
        assert "greet:2" in greet("diff", "-f", "changed.yaml", ok=False)

    def test_version(self, greet):
        """The gateway's form of info, without asking the world for a newer release."""
        told = greet("version", "--warn-update=false")
        assert "infless" in told
        whole = json.loads(greet("version", "--json"))
        assert (whole["provider"]["name"], whole["provider"]["orchestration"]) == ("infless", "process")
        assert whole["gateway"]["version"] == whole["provider"]["version"] != ""


class TestInvoke:
    """`invoke`, also asynchronously."""

    def test_invoke(self, greet):
        """Through the default namespace, named or not."""
        assert "hello world" in greet("invoke", "greet", text="world")
        assert "hello world" in greet("invoke", "greet", "-n", "openfaas-fn", text="world")

    @pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
    def test_method_query_headers_and_body(self, seen, method):
        """All of it reaches the function."""
        told = seen(
            "-m", method, "--query", "a=1", "--query", "b=x y", "-H", "X-Mine: yes",
            "--content-type", "text/plain", text="body",
        )  # fmt: skip
        assert (told["method"], told["query"], told["body"]) == (method, {"a": "1", "b": "x y"}, "body")
        assert told["headers"]["x-mine"] == "yes"
        assert told["headers"]["content-type"] == "text/plain"
        assert told["headers"]["user-agent"].startswith("faas-cli/")
        assert "authorization" not in told["headers"]

    def test_a_signed_body(self, seen):
        """The signature arrives beside it."""
        assert seen("--sign", "X-Signature", "--key", "k", text="x")["headers"]["x-signature"].startswith("sha256=")

    def test_what_fails(self, greet):
        """Status and sentence arrive."""
        told = greet("invoke", "greet", "--content-type", "application/json", text="no json", ok=False)
        assert "400" in told
        assert "not valid JSON" in told

    def test_unknown_function(self, greet):
        """Every command says so and fails."""
        assert "404" in greet("invoke", "nobody", text="x", ok=False)
        assert "404" in greet("invoke", "nobody", "--async", text="x", ok=False)
        assert "404" in greet("logs", "nobody", ok=False)
        assert "No such function: nobody" in greet("describe", "nobody", ok=False)

    def test_async(self, seen, bare):
        """Accepted at once; the result comes to the callback with the call's id, the status and the name."""
        with CallbackServer() as server:
            told = bare(
                "invoke", "seen", "--async", "-H", f"X-Callback-Url: {server.url}/done", "-H", "X-Call-Id: mine-1",
                "--query", "a=1", text="later",
            )  # fmt: skip
            assert "Function submitted asynchronously" in told
            result = server.next()
        assert (result.path, result.headers["X-Function-Status"]) == ("/done", "200")
        assert result.headers["X-Call-Id"] == "mine-1"
        assert result.headers["X-Function-Name"].split(".")[0] == "seen"
        assert float(result.headers["X-Duration-Seconds"]) > 0
        answer = json.loads(result.body)
        assert (answer["method"], answer["query"], answer["body"]) == ("POST", {"a": "1"}, "later")
        assert answer["headers"]["x-call-id"] == "mine-1"

    def test_async_without_callback(self, seen, bare):
        """It runs all the same."""
        bare("invoke", "seen", "--async", text="nobody waits")
        wait_until(lambda: "seen nobody waits" in bare("logs", "seen", "--tail=false"), "it has run")

    @pytest.mark.parametrize("url", ["ftp://127.0.0.1/x", "http://10.0.0.1/x", "nonsense"])
    def test_async_to_a_place_that_is_not_allowed(self, seen, bare, url):
        """400 and the sentence: no scheme but http, no private address that nobody allowed."""
        told = bare("invoke", "seen", "--async", "-H", f"X-Callback-Url: {url}", text="x", ok=False)
        assert "status code: 400" in told
        assert "allback" in told


class TestLogs:
    """`logs`, past and coming lines."""

    def test_past_lines(self, greet):
        """All, the last ones, those since a time."""
        for word in ("one", "two"):
            greet("invoke", "greet", text=word)
        wait_until(lambda: "answering ['two']" in greet("logs", "greet", "--tail=false"), "the line is there")
        told = greet("logs", "greet", "--tail=false", "--lines", "1")
        assert "answering ['two']" in told
        assert "answering ['one']" not in told
        assert "answering ['one']" in greet("logs", "greet", "--tail=false", "--since", "1m")
        assert greet("logs", "greet", "--tail=false", "--since-time", "2100-01-01T00:00:00Z") == ""
        assert "answering ['one']" in greet("logs", "greet", "--tail=false", "--since-time", "2020-01-01T00:00:00Z")

    def test_name_and_instance(self, greet, provider):
        """On wish each line says who wrote it."""
        greet("invoke", "greet", text="who")
        (instance,) = provider.instances("greet")
        line = wait_until(
            lambda: next((one for one in _lines(greet, "greet") if "['who']" in one["text"]), None), "the line"
        )
        assert (line["name"], line["namespace"], line["instance"]) == ("greet", "openfaas-fn", instance["id"])
        assert f"greet ({instance['id']})" in greet("logs", "greet", "--tail=false", "--name", "--instance")

    def test_followed(self, greet):
        """Lines appear as they are written, until the reader leaves."""
        with greet.running("logs", "greet", "--lines", "1") as lines:
            assert next(lines)
            greet("invoke", "greet", text="followed")
            assert any("answering ['followed']" in line for line in lines)


class TestSecrets:
    """`secret` in all its forms; a value never comes back."""

    def test_create_list_update_remove(self, bare):
        """From text, standard input and a file; listed by name only."""
        assert "Created: 20" in bare("secret", "create", "by-text", "--from-literal", "hush-1")
        assert "Created: 20" in bare("secret", "create", "by-input", text="hush-2\n")
        (bare.folder / "value").write_text("hush-3\n")
        assert "Created: 20" in bare("secret", "create", "by-file", "--from-file", "value")
        listed = json.loads(bare("secret", "list", "--json"))
        assert sorted(one["name"] for one in listed) == ["by-file", "by-input", "by-text"]
        assert "hush" not in json.dumps(listed)
        assert "already exists" in bare("secret", "create", "by-text", "--from-literal", "x")
        assert "Updated: 20" in bare("secret", "create", "by-text", "--from-literal", "x", "--replace")
        assert "Updated: 20" in bare("secret", "update", "by-text", "--from-literal", "hush-4")
        assert "unable to find secret: nobody" in bare("secret", "update", "nobody", "--from-literal", "x")
        for name in ("by-text", "by-input", "by-file"):
            assert "Removed.. OK." in bare("secret", "remove", name)
        assert "Unable to find secret: by-text" in bare("secret", "remove", "by-text", ok=False)
        assert "No secrets found" in bare("secret", "list")

    def test_a_function_reads_it(self, bare, deploy, seen):
        """As a file; a file's bytes come as they are; an update is seen without a new deployment."""
        (bare.folder / "raw").write_text("line\n")
        bare("secret", "create", "raw", "--from-file", "raw", "--trim=false")
        bare("secret", "create", "plain", "--from-literal", "one")
        deploy("reader", "--secret", "raw", "--secret", "plain")
        assert seen(name="reader")["secrets"] == {"raw": "line\n", "plain": "one"}
        bare("secret", "update", "plain", "--from-literal", "two")
        wait_until(lambda: seen(name="reader")["secrets"]["plain"] == "two", "it reads the new value")
        assert json.loads(bare("describe", "reader", "--json"))["secrets"] == ["raw", "plain"]
        bare("remove", "reader")
        for name in ("raw", "plain"):
            bare("secret", "remove", name)

    def test_apply(self, bare):
        """Every file of `.secrets`, a second time too: what exists is replaced."""
        (bare.folder / ".secrets").mkdir()
        (bare.folder / ".secrets" / "applied").write_text("a")
        assert "Created: 20" in bare("secret", "apply")
        (bare.folder / ".secrets" / "applied").write_text("b")
        told = bare("secret", "apply")
        assert "Created: 20" in told or "Updated: 20" in told
        assert "applied" in bare("secret", "list")
        bare("secret", "remove", "applied")


class TestNamespaces:
    """`namespace` in all its forms, and every command with `-n`."""

    def test_create_get_update_remove(self, bare):
        """With labels and annotations; what exists, and what does not, is said."""
        assert "Namespace Created: dev" in bare("namespace", "create", "dev", "--label", "a=1", "--annotation", "b=2")
        assert {" - dev", " - openfaas-fn"} <= set(bare("namespace", "list").splitlines())
        assert {"dev", "openfaas-fn"} <= set(json.loads(_json_of(bare("namespace", "list", "--json"))))
        told = bare("namespace", "get", "dev")
        assert "a: 1" in told
        assert "b: 2" in told
        bare("namespace", "create", "dev", ok=False)
        assert "Namespace Updated: dev" in bare("namespace", "update", "dev", "--label", "a=2")
        assert "a: 2" in bare("namespace", "get", "dev")
        assert "Namespace Removed: dev" in bare("namespace", "remove", "dev")
        for command in ("get", "update", "remove"):
            assert "not found" in bare("namespace", command, "dev", ok=False)
        assert " - dev" not in bare("namespace", "list")

    def test_the_default_one_stays(self, bare):
        """It cannot be removed."""
        bare("namespace", "remove", "openfaas-fn", ok=False)
        assert " - openfaas-fn" in bare("namespace", "list")

    def test_every_command_in_another_namespace(self, bare, deploy, seen, provider):
        """The same name twice: each command sees the one whose namespace it named."""
        here = ("-n", "other")
        bare("namespace", "create", "other")
        bare("secret", "create", "key", "--from-literal", "theirs", *here)
        bare("deploy", "--image", "test/seen:latest", "--name", "seen", "--env", "mode=other", "--secret", "key", *here)
        assert "is ready" in bare("ready", "seen", *here)
        assert seen(*here)["secrets"] == {"key": "theirs"}
        assert (seen(*here)["mode"], seen()["mode"], seen()["secrets"]) == ("other", "first", {})
        (listed,) = json.loads(bare("list", "--json", *here))
        assert (listed["name"], listed["namespace"], listed["invocationCount"]) == ("seen", "other", 2)
        assert "/function/seen.other" in bare("describe", "seen", *here)
        seen(*here, text="in other")
        wait_until(lambda: "seen in other" in bare("logs", "seen", "--tail=false", *here), "its line")
        assert "seen in other" not in bare("logs", "seen", "--tail=false")
        assert "key" in bare("secret", "list", *here)
        assert "key" not in bare("secret", "list")
        with CallbackServer() as server:
            bare("invoke", "seen", "--async", "-H", f"X-Callback-Url: {server.url}", *here, text="x")
            assert json.loads(server.next().body)["mode"] == "other"
        bare("namespace", "remove", "other", ok=False)  # it is not empty
        bare("remove", "seen", *here)
        assert provider.invoke("seen.other").status_code == 404
        assert seen()["mode"] == "first"
        bare("secret", "remove", "key", *here)
        assert "Namespace Removed" in bare("namespace", "remove", "other")

    def test_an_unknown_one(self, bare):
        """Is said by every command that names it."""
        for command in (["list"], ["describe", "seen"], ["remove", "seen"], ["secret", "list"], ["logs", "seen"]):
            bare(*command, "-n", "unheard-of", ok=False)


def _lines(cli, name):
    return [json.loads(line) for line in cli("logs", name, "--tail=false", "--json").splitlines()]


def _json_of(told: str) -> str:
    """The list that was printed, without notes around it."""
    return told[told.index("[") : told.rindex("]") + 1]


def test_everything_is_removed_at_last(greet):
    """By the stack file, as a user cleans up."""
    greet("remove", "-f", "stack.yaml")
    assert "greet" not in greet("list", "-q").split()
