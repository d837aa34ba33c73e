"""`infless up` and `infless down`: what they may be told, and whom they refuse before anything is said to run."""

import os
import socket
import ssl
import stat
from dataclasses import replace

import pytest
from click.testing import CliRunner

from infless_core.errors import Conflict, InvalidInput, StateError
from infless_core.model import Configuration, FunctionSpec
from infless_provider import cli, up
from infless_provider.service import tls_context
from infless_provider.settings import Settings
from infless_provider.state import State, StoredFunction, StoredInstance, Version

VERSION = Version(spec=FunctionSpec(name="f", image="f", namespace="openfaas-fn"), artifact="/b", digest="d")


@pytest.fixture
def given(monkeypatch):
    """The settings that `infless up` came to."""
    found = []
    monkeypatch.setattr(up, "run", found.append)
    return found


@pytest.fixture
def run(tmp_path, monkeypatch, given):
    """Run the command in a folder of its own, with a state of its own."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("INFLESS")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("INFLESS_STATE", str(tmp_path / "state"))
    return lambda *arguments: CliRunner().invoke(cli.main, ("up", *arguments), prog_name="infless")


@pytest.fixture
def settings(tmp_path):
    """Of a provider with a state folder."""
    (tmp_path / "state").mkdir()
    return Settings(state_dir=tmp_path / "state", bundles_dir=tmp_path / "build")


def test_said_nothing_the_defaults_hold(run, given, tmp_path):
    """Those of `Settings`, which say why."""
    assert run().exit_code == 0
    assert given == [Settings(state_dir=tmp_path / "state", bundles_dir=tmp_path / "build")]


def test_every_option_arrives(run, given, tmp_path):
    """In the unit that we count in."""
    for name in ("cert.pem", "key.pem", "cluster.yml"):
        (tmp_path / name).touch()
    (tmp_path / "secrets").mkdir()
    result = run(
        "--host", "::1", "--port", "9000", "--state-dir", "s", "--backend", "docker", "--bundles", "b", "--cluster", "cluster.yml",
        "--cpu-cores", "3", "--latency-target", "200ms", "--tls-cert", "cert.pem", "--tls-key", "key.pem",
        "--credentials", "secrets", "--no-auth", "--callbacks-allow", "localhost", "--callbacks-allow", "10.0.0.0/8",
        "--body-max", "1Mi", "--invoke-timeout", "1m30s", "--queued-body-max", "2Mi",
        "--start-timeout", "5m", "--limit", "functions=5000", "--limit", "invocations=9", "--solver", "greedy", "--prometheus", "http://127.0.0.1:9090",
    )  # fmt: skip
    assert (result.exit_code, result.stderr) == (0, "")
    (told,) = given
    assert (told.host, told.port, told.backend, told.cpu_cores, told.auth) == ("::1", 9000, "docker", 3, False)
    assert (told.state_dir, told.bundles_dir, told.credentials) == (
        tmp_path / "s", tmp_path / "b", tmp_path / "secrets",
    )  # fmt: skip
    assert [told.cluster_file.name, told.tls_certificate.name, told.tls_key.name] == [
        "cluster.yml",
        "cert.pem",
        "key.pem",
    ]
    assert (told.default_target_s, told.invoke_timeout_s, told.body_max_bytes) == (0.2, 90.0, 2**20)
    assert (told.async_body_max_bytes, told.start_timeout_s) == (2**21, 300.0)
    assert (told.functions_max, told.streams_max) == (5000, 9)
    assert told.callbacks_allowed == ("localhost", "10.0.0.0/8")
    assert (told.solver, told.prometheus_url) == ("greedy", "http://127.0.0.1:9090")


@pytest.mark.parametrize(
    ("variable", "text", "field", "value"),
    [
        ("PORT", "9001", "port", 9001),
        ("LATENCY_TARGET", "1s", "default_target_s", 1.0),
        ("NO_AUTH", "1", "auth", False),
        ("BODY_MAX", "2k", "body_max_bytes", 2000),
        ("INVOKE_TIMEOUT", "5", "invoke_timeout_s", 5.0),
        ("CALLBACKS_ALLOW", "a b", "callbacks_allowed", ("a", "b")),
        ("BACKEND", "docker", "backend", "docker"),
        ("LIMIT", "secrets=7 waiting=8", "secrets_max", 7),
    ],
)
def test_every_option_is_a_variable(run, given, monkeypatch, variable, text, field, value):
    """For services and containers."""
    monkeypatch.setenv(f"INFLESS_UP_{variable}", text)
    assert run().exit_code == 0
    assert getattr(given[0], field) == value


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--port", "0"), "--port"),
        (("--limit", "replicas=3"), "--limit: 'replicas' is unknown; allowed are connections, functions, "),
        (("--limit", "functions"), "--limit: 'functions': write a whole number above 0, as in functions=5000"),
        (("--limit", "waiting=-1"), "--limit: 'waiting=-1': write a whole number above 0"),
        (("--queued-body-max", "0"), "0 would refuse everything"),
        (("--port", "http"), "--port"),
        (("--cpu-cores", "-1"), "--cpu-cores"),
        (("--backend", "podman"), "'podman' is not one of 'process', 'docker'"),
        (("--latency-target", "fast"), "--latency-target: 'fast' is not a duration"),
        (("--latency-target", "0"), "--latency-target: '0' is out of range; allowed is 1ms to 10m"),
        (("--solver", "magic"), "--solver: 'magic' is unknown; allowed are auto, "),
        (("--prometheus", "127.0.0.1:9090"), "--prometheus"),
        (("--prometheus", "http://"), "--prometheus"),
        (("--prometheus", "http://x:http"), "--prometheus"),
        (("--body-max", "much"), "--body-max: 'much' is not an amount of memory"),
        (("--invoke-timeout", "long"), "--invoke-timeout: 'long' is not a duration"),
        (("--credentials", "none"), "none"),
        (("--cluster", "none"), "none"),
        (("--tls-cert", "none", "--tls-key", "none"), "none"),
        (("--tls-cert", "cert.pem"), "--tls-cert and --tls-key: give both or none"),
        (("--tls-key", "cert.pem"), "--tls-cert and --tls-key: give both or none"),
        (("--callbacks-allow", "10.0.0.0/99"), "10.0.0.0/99"),
    ],
)
def test_what_it_may_not_be_told(run, given, tmp_path, arguments, sentence):
    """Exit code 2, a sentence that names the option, and nothing is started."""
    (tmp_path / "cert.pem").touch()
    result = run(*arguments)
    assert (result.exit_code, result.stdout, given) == (2, "", [])
    assert sentence in result.stderr


class TestStateFolder:
    """Who may use it."""

    @pytest.fixture(autouse=True)
    def locks(self, monkeypatch):
        """Those that a test took, which the process else holds until it ends."""
        held, real = [], os.open

        def opened(path, *more, **named):
            descriptor = real(path, *more, **named)
            if path.name == "lock":
                held.append(descriptor)
            return descriptor

        monkeypatch.setattr(up.os, "open", opened)
        monkeypatch.setattr(up, "ORPHAN_S", 0.0)
        yield
        for descriptor in held:
            os.close(descriptor)

    def test_one_provider_at_a_time(self, tmp_path):
        """The second one is told, and changes nothing."""
        up._lock(tmp_path / "state")
        assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
        with pytest.raises(Conflict, match="another provider uses .*state; choose another --state-dir"):
            up._lock(tmp_path / "state")
        up._lock(tmp_path / "other")

    def test_where_no_folder_can_be(self, tmp_path):
        """A sentence with its name."""
        (tmp_path / "file").touch()
        with pytest.raises(StateError, match="the state folder .*file/state cannot be used"):
            up._lock(tmp_path / "file" / "state")


class TestClaim:
    """A state folder belongs to the backend that its functions were deployed on."""

    def used_by(self, settings, what):
        """As a provider left it."""
        state = State(settings.database)
        if what == "function":
            state.put_function(StoredFunction(version=VERSION, created_at_s=0))
        elif what == "instance":
            given = Configuration(batch=1, cpu_cores=1)
            state.put_instance(
                StoredInstance(id="f-1", function="f.n", version="v", configuration=given, address={})
            )  # fmt: skip
        state.close()

    @pytest.mark.parametrize("what", ["function", "instance"])
    def test_another_backend_is_refused(self, settings, what):
        """It would find nothing to run, and leave running what it does not know."""
        up._claim(replace(settings, backend="docker"))
        self.used_by(settings, what)
        with pytest.raises(
            Conflict, match="were deployed with --backend docker; use that, or another --state-dir for process"
        ):
            up._claim(settings)
        up._claim(replace(settings, backend="docker"))

    def test_an_empty_one_changes_hands(self, settings):
        """Nothing in it belongs to anybody."""
        up._claim(replace(settings, backend="docker"))
        up._claim(settings)
        self.used_by(settings, "function")
        up._claim(settings)

    def test_one_of_the_first_version_was_for_processes(self, settings):
        """It has no mark, as there was no other backend."""
        self.used_by(settings, "function")
        with pytest.raises(Conflict, match="were deployed with --backend process"):
            up._claim(replace(settings, backend="docker"))
        up._claim(settings)

    def test_a_damaged_state_is_refused_first(self, settings):
        """Before anything is said to run."""
        settings.database.write_bytes(b"not a database" * 100)
        with pytest.raises(StateError, match="cannot be used"):
            up._claim(settings)


class TestTls:
    """HTTPS, or a reason why not."""

    @pytest.mark.parametrize("content", [b"", b"-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n"])
    def test_what_is_no_certificate(self, settings, tmp_path, content):
        """Refused at the start, with the file's name; not at the first request."""
        (tmp_path / "cert.pem").write_bytes(content)
        with pytest.raises(InvalidInput, match="--tls-cert .*cert.pem: no certificate with its key"):
            tls_context(replace(settings, tls_certificate=tmp_path / "cert.pem", tls_key=tmp_path / "cert.pem"))

    def test_without_one_it_is_plain(self, settings):
        """As OpenFaaS's provider is."""
        assert tls_context(settings) is None

    def test_old_versions_are_not_spoken(self, settings, tmp_path, monkeypatch):
        """TLS 1.2 and newer, HTTP/1.1 only."""
        loaded = []
        monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", lambda _, *files, **password: loaded.append(files))
        files = tmp_path / "cert.pem", tmp_path / "key.pem"
        context = tls_context(replace(settings, tls_certificate=files[0], tls_key=files[1]))
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2
        assert loaded == [files]


def test_a_port_that_is_taken(settings):
    """The address, the reason, and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            Conflict, match=f"127.0.0.1:{port} cannot be listened on: Address already in use; .* --port"
        ):
            up._bind(replace(settings, port=port))


@pytest.mark.parametrize(
    ("changes", "url"),
    [
        ({}, "http://127.0.0.1:8080"),
        ({"host": "::1"}, "http://[::1]:8080"),
        ({"tls_certificate": "x", "tls_key": "y"}, "https://127.0.0.1:8080"),
    ],
)
def test_what_it_tells(settings, capsys, changes, url):
    """Where it answers and how to log in, on stderr; the password itself is not told."""
    up._tell(replace(settings, **changes))
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.splitlines() == [
        f"INFless serves the OpenFaaS API at {url} (state in {settings.state_dir})",
        f"log in: faas-cli login -g {url} --password-stdin < {settings.state_dir / 'basic-auth-password'}",
    ]


def test_without_a_password_there_is_nothing_to_log_in_with(settings, capsys):
    """One line only."""
    up._tell(replace(settings, auth=False))
    assert "log in" not in capsys.readouterr().err
