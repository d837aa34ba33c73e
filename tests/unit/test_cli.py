"""The `infless` command: exit codes, streams, and help that does not change unnoticed."""

import json
import os
import socket
import ssl
import threading
from pathlib import Path

import pytest
import urllib3
from click.testing import CliRunner
from urllib3.exceptions import MaxRetryError

from infless_core.errors import InvalidInput, NotFound
from infless_provider import cli, client, profile_stack
from infless_provider.auth import Credentials
from infless_provider.client import Client, Refused, find_credentials

GOLDEN = Path(__file__).parent.parent / "golden" / "help"
COMMANDS = (
    "", "build", "deploy", "down", "plan", "profile", "profile export", "profile functions", "profile import", "profile list",
    "profile model", "profile problem", "profile prune", "profile show", "replay", "status", "up",
)  # fmt: skip
STACK = """version: 1.0
provider: {name: openfaas}
functions:
  good: {lang: infless-python, handler: ./good, image: "good:1"}
  bad: {lang: infless-python, handler: ./bad, image: "bad:1"}
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the command in a folder with a stack file and a state of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INFLESS_STATE", str(tmp_path / "state"))
    for name in ("INFLESS_USER", "INFLESS_PASSWORD", "OPENFAAS_URL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "stack.yml").write_text(STACK)
    return lambda *arguments: CliRunner().invoke(cli.main, arguments, prog_name="infless", terminal_width=100)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_golden(run, command):
    """INFLESS_UPDATE_GOLDEN=1 writes it anew."""
    result = run(*command.split(), "--help")
    file = GOLDEN / f"{command.replace(' ', '-') or 'infless'}.txt"
    if os.environ.get("INFLESS_UPDATE_GOLDEN"):
        file.write_text(result.stdout)
    assert result.exit_code == 0
    assert result.stdout == file.read_text()


def test_version(run):
    """Name and number."""
    assert run("--version").stdout.startswith("infless, version ")


@pytest.mark.parametrize(
    "arguments",
    [
        ("nope",),
        ("build", "-f", "none.yml"),
        ("build", "nope"),
        ("deploy", "-f", "none.yml"),
        ("profile", "--batches", "1,x"),
        ("profile", "--batches", "0"),
        ("plan",),
        ("replay",),
    ],
)
def test_wrong_usage_exits_with_2(run, arguments):
    """And says so on the error stream."""
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr


def test_down_where_nothing_runs(run):
    """Done, and JSON on wish."""
    result = run("down", "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (0, {"ended": 0})


def test_build_prints_folders(run, tmp_path):
    """One a line on stdout, progress on stderr."""
    (tmp_path / "good").mkdir()
    result = run("build", "good")
    assert (result.exit_code, result.stdout) == (0, "build/good\n")
    assert result.stderr == "building good\n"
    assert json.loads(run("build", "good", "--json").stdout) == {"good": "build/good"}


def test_a_filter(run, tmp_path):
    """With wildcards, as in faas-cli; one that matches nothing is wrong usage."""
    (tmp_path / "good").mkdir()
    assert run("build", "--filter", "g*").stdout == "build/good\n"
    result = run("build", "--filter", "x*")
    assert result.exit_code == 2
    assert "--filter: 'x*' matches none of good, bad" in result.stderr


def test_build_without_a_handler(run):
    """A wrong stack file is wrong usage."""
    result = run("build")
    assert result.exit_code == 2
    assert "functions.good.handler:" in result.stderr


def test_a_full_disk_is_one_line(run, monkeypatch):
    """Not a traceback."""
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    result = run("build")
    assert (result.exit_code, result.stderr) == (1, "infless: [Errno 28] No space left on device\n")


FINE = {"function": "f.openfaas-fn", "in_flight": 0, "last_failure": "", "retry_in_s": 0.0, "rolled_back": ""}
BROKEN = {**FINE, "function": "g.openfaas-fn", "last_failure": "no model", "retry_in_s": 4.0}


class FakeProvider:
    """Takes `good`, refuses `bad`."""

    def deploy(self, deployment):
        """As the client does."""
        if deployment["service"] == "bad":
            raise Refused("no bundle")
        return "deployed"

    def remove(self, name):
        """As the client does."""
        if name == "missing":
            raise NotFound("no function 'missing'")

    def overview(self):
        """One instance with a window, one without, and a function that failed."""
        one = {
            "id": "f-1",
            "function": "f.openfaas-fn",
            "phase": "ready",
            "batch": 4,
            "cpu_cores": 2,
            "gpu_percent": 0,
            "why": "planned",
        }
        return {
            "instances": [
                {**one, "rate_low_rps": 1.0, "rate_up_rps": 9.6},
                {**one, "rate_low_rps": None, "rate_up_rps": None},
            ],
            "functions": [FINE, BROKEN],
        }


def test_deploy_goes_on_after_a_refusal(run, monkeypatch):
    """One refused function must not keep the others away; the exit code tells."""
    monkeypatch.setattr(cli, "Client", lambda *_: FakeProvider())
    result = run("deploy")
    assert (result.exit_code, result.stdout) == (1, "good deployed\n")
    assert "bad refused: no bundle" in result.stderr
    assert run("deploy", "good").exit_code == 0
    assert json.loads(run("deploy", "--json").stdout) == {"good": "deployed", "bad": "refused: no bundle"}


def test_deploy_where_nobody_answers(run):
    """It says what to start."""
    result = run("deploy", "-g", "http://127.0.0.1:1")
    assert result.exit_code == 1
    assert "no provider answers at http://127.0.0.1:1; start one with `infless up`" in result.stderr


def test_status(run, monkeypatch):
    """A line for each instance, or everything as JSON."""
    monkeypatch.setattr(cli, "Client", lambda *_: FakeProvider())
    lines = run("status").stdout.splitlines()
    assert lines[0].split() == ["f-1", "ready", "b=4", "c=2", "g=0%", "1-10/s", "planned"]
    assert lines[1].split()[5] == "-"
    assert lines[2].split()[:5] == ["g.openfaas-fn", "not", "ready:", "no", "model;"]
    assert len(lines) == 3
    assert len(json.loads(run("status", "--json").stdout)["instances"]) == 2


def test_status_without_a_function(run, monkeypatch):
    """Nothing on stdout; what to do on stderr, but not beside JSON."""
    nothing = {"instances": [], "functions": [], "events": []}
    monkeypatch.setattr(FakeProvider, "overview", lambda _: nothing)
    monkeypatch.setattr(cli, "Client", lambda *_: FakeProvider())
    result = run("status")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.startswith("no function is served; deploy one with `infless deploy`")
    assert len(result.stderr.splitlines()) == 1
    result = run("status", "--json")
    assert (json.loads(result.stdout), result.stderr) == (nothing, "")


def test_remove(run, monkeypatch):
    """One that is not there keeps nobody else from going; the exit code tells."""
    provider = FakeProvider()
    monkeypatch.setattr(cli, "Client", lambda *_: provider)
    result = run("remove", "a", "missing", "b")
    assert (result.exit_code, result.stdout) == (1, "a removed\nb removed\n")
    assert result.stderr == "missing not removed: no function 'missing'\n"
    assert run("remove", "a").exit_code == 0
    assert run("remove").exit_code == 2


def test_status_where_nobody_answers(run):
    """One line, exit code 1."""
    result = run("status", "-g", "http://127.0.0.1:1")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("infless: no provider answers")


def test_profile_prints_a_table(run, monkeypatch):
    """Or says that there is nothing to time; JSON on wish."""
    point = {"batch": 4, "cpu_cores": 1, "exec_s": 0.02}
    monkeypatch.setattr(profile_stack, "profile_functions", lambda *_: {"a": [point], "b": []})
    lines = run("profile").stdout.splitlines()
    assert lines[1].split() == ["batch", "4", "cores", "1", "20ms", "200", "requests/s"]
    assert lines[2].startswith("b: it has no example()")
    assert json.loads(run("profile", "--json").stdout) == {"a": [point], "b": []}


class TestClient:
    """What the client makes of answers."""

    @pytest.fixture
    def answer(self, monkeypatch):
        """Set the answer of every call; gives the client."""

        def answer(status, text=""):
            reply = client.requests.Response()
            reply.status_code, reply._content, reply.url = status, text.encode(), "http://x/y"
            monkeypatch.setattr(client.requests.Session, "request", lambda *_, **__: reply)
            return Client("http://x/", Credentials(user="me", password="secret"))

        return answer

    def test_update_or_deploy(self, answer):
        """A PUT that is taken is an update."""
        assert answer(202).deploy({}) == "updated"

    def test_one_that_goes_on_is_not_said_to_be_there(self, answer):
        """The provider says why."""
        made = answer(202, "this takes longer than 50 s and goes on\n")
        assert made.deploy({"service": "f"}) == "accepted: this takes longer than 50 s and goes on"

    def test_what_does_not_exist_is_deployed(self, monkeypatch):
        """PUT, and exactly on 404 POST with the same."""
        asked = []

        def request(_, verb, url, **how):
            asked.append((verb, url, how["json"]))
            reply = client.requests.Response()
            reply.status_code = 404 if verb == "PUT" else 202
            return reply

        monkeypatch.setattr(client.requests.Session, "request", request)
        assert Client("http://x/", None).deploy({"service": "f"}) == "deployed"
        url = "http://x/system/functions"
        assert asked == [("PUT", url, {"service": "f"}), ("POST", url, {"service": "f"})]

    def test_removing(self, monkeypatch, answer):
        """By the name in the body."""
        made, asked = answer(202), []
        real = client.requests.Session.request
        monkeypatch.setattr(
            client.requests.Session,
            "request",
            lambda *what, **how: asked.append((what[1:], how["json"])) or real(*what, **how),
        )
        made.remove("f")
        assert asked == [(("DELETE", "http://x/system/functions"), {"functionName": "f"})]

    def test_a_connection_that_breaks(self, monkeypatch):
        """One of our errors, with verb and address."""
        broken = client.requests.exceptions.ChunkedEncodingError("broken")
        monkeypatch.setattr(client.requests.Session, "request", lambda *_, **__: (_ for _ in ()).throw(broken))
        with pytest.raises(Refused, match="GET http://x/system/infless/problem: broken"):
            Client("http://x", None).problem()

    @pytest.mark.parametrize(("scheme", "hint"), [("http", "; if it speaks https, write https://"), ("https", "")])
    def test_somebody_who_hangs_up(self, scheme, hint):
        """Something is there: there is nothing to start, but perhaps it wants TLS."""
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def hang_up():
                listener.accept()[0].close()

            hanging_up = threading.Thread(target=hang_up)
            hanging_up.start()
            gateway = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
            with pytest.raises(Refused) as fault:
                Client(gateway, None).overview()
            hanging_up.join()
        assert "start one" not in str(fault.value)
        assert "Max retries" not in str(fault.value)
        if hint:
            assert str(fault.value) == f"{gateway} hangs up without an answer{hint}{gateway.partition('//')[2]}"

    @pytest.mark.parametrize(
        ("reason", "words"),
        [
            (
                ssl.SSLCertVerificationError(
                    1, "[SSL: X] certificate verify failed: self-signed certificate (_ssl.c:1)"
                ),
                "the certificate of https://x is not trusted: [SSL: X] certificate verify failed: self-signed",
            ),
            (
                ssl.SSLError(1, "[SSL] wrong version number"),
                "https://x does not speak https: [SSL] wrong version number",
            ),
        ],
    )
    def test_only_the_reason_of_a_failed_handshake_is_told(self, monkeypatch, reason, words):
        """Not in how many wrappings it came; also for a POST that follows a PUT."""
        pool = MaxRetryError(None, "/", urllib3.exceptions.SSLError(reason))

        def request(_, verb, *__, **___):
            if verb == "PUT":
                reply = client.requests.Response()
                reply.status_code = 404
                return reply
            raise client.requests.exceptions.SSLError(pool)

        monkeypatch.setattr(client.requests.Session, "request", request)
        with pytest.raises(Refused) as fault:
            Client("https://x", None).deploy({})
        assert str(fault.value).startswith(words)
        assert "Max retries" not in str(fault.value)

    def test_an_answer_that_does_not_come(self, monkeypatch):
        """How long was waited for it; the provider is there."""
        late = client.requests.exceptions.ReadTimeout("HTTPConnectionPool(host='x', port=80): Read timed out.")
        monkeypatch.setattr(client.requests.Session, "request", lambda *_, **__: (_ for _ in ()).throw(late))
        with pytest.raises(Refused, match="^GET http://x/system/overview: no answer within 300 s$"):
            Client("http://x", None).overview()

    @pytest.mark.parametrize(
        "gateway",
        ["nonsense", "http://", "ftp://a", "127.0.0.1:8080", "localhost:8080", "http://a:b", "http://a:0", "http://[::1",
         "http://a/?b=c", "http://a/#b"],
    )  # fmt: skip
    def test_what_is_no_gateway(self, run, gateway):
        """Wrong usage, in a sentence of ours, before anything is asked."""
        result = run("remove", "-g", gateway, "f")
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr == (
            f"infless: {gateway!r} is not the URL of a gateway; write for example 'http://127.0.0.1:8080'\n"
        )

    def test_an_address_that_only_requests_refuses(self):
        """In the same sentence."""
        with pytest.raises(InvalidInput, match="'http://.a' is not the URL of a gateway"):
            Client("http://.a", None).overview()

    @pytest.mark.parametrize("gateway", ["http://[::1]:8080", "https://a/openfaas/", "http://me:pw@a"])
    def test_what_is_one(self, gateway):
        """Also below a path, as behind a proxy."""
        Client(gateway, None)

    @pytest.mark.parametrize(("status", "error"), [(404, NotFound), (401, Refused), (400, Refused), (500, Refused)])
    def test_refusals_carry_the_providers_words(self, answer, status, error):
        """But 401, which is about this side."""
        with pytest.raises(error, match="wants a password" if status == 401 else "say why"):
            answer(status, "say why\n").describe("f")

    @pytest.mark.parametrize("text", ["<html>", "[]", ""])
    def test_somebody_else_answers(self, answer, text):
        """No traceback about JSON."""
        with pytest.raises(Refused, match="http://x/y does not answer as INFless does"):
            answer(200, text).overview()

    def test_a_proxy_is_for_the_world_outside(self):
        """Never for this machine."""
        assert not Client("http://127.0.0.1:8080", None)._session.trust_env
        assert Client("http://gateway:8080", None)._session.trust_env

    @pytest.mark.parametrize(
        ("credentials", "sent"), [(Credentials(user="me", password="p"), ("me", "p")), (None, None)]
    )
    def test_credentials_are_sent(self, monkeypatch, credentials, sent):
        """Or none: some providers want none."""
        assert Client("http://127.0.0.1:8080", credentials)._session.auth == sent

    def test_credentials_are_found(self, tmp_path, monkeypatch):
        """From the environment, else from the provider's own files; each by itself."""
        for name in ("INFLESS_USER", "INFLESS_PASSWORD"):
            monkeypatch.delenv(name, raising=False)
        assert find_credentials(tmp_path) is None
        (tmp_path / "basic-auth-password").write_text("file\n")
        assert find_credentials(tmp_path) == Credentials(user="admin", password="file")
        (tmp_path / "basic-auth-user").write_text(" me\n")
        assert find_credentials(tmp_path) == Credentials(user="me", password="file")
        monkeypatch.setenv("INFLESS_PASSWORD", "env")
        assert find_credentials(tmp_path) == Credentials(user="me", password="env")
        monkeypatch.setenv("INFLESS_USER", "you")
        assert find_credentials(tmp_path) == Credentials(user="you", password="env")

    def test_a_user_alone_is_no_credential(self, tmp_path, monkeypatch):
        """There is nothing to send with it."""
        monkeypatch.delenv("INFLESS_PASSWORD", raising=False)
        monkeypatch.setenv("INFLESS_USER", "you")
        assert find_credentials(tmp_path) is None
