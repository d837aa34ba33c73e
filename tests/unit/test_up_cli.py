"""`infless up` and `infless down`: what they may be told, and whom they refuse before anything is said to run."""

import errno
import fcntl
import os
import socket
import ssl
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from infless_core.errors import Conflict, InvalidInput, StateError
from infless_core.model import Configuration, FunctionSpec
from infless_provider import cli, up
from infless_provider.service import tls_context
from infless_provider.settings import Settings, connections_within
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
        (
            ("--limit", "functions"),
            "--limit: 'functions': write a whole number from 1 to 999999999, as in functions=5000",
        ),
        (("--limit", "waiting=-1"), "--limit: 'waiting=-1': write a whole number from 1 to 999999999"),
        (("--limit", "waiting=1000000000"), "--limit: 'waiting=1000000000': write a whole number from 1 to 999999999"),
        (("--queued-body-max", "0"), "0 would refuse everything"),
        (
            ("--queued-body-max", "1Gi"),
            "--queued-body-max: 1Gi is more than a function has room for in the queue, 536870912 bytes",
        ),
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
            if Path(path).name == "lock":
                held.append(descriptor)
            return descriptor

        monkeypatch.setattr(up.os, "open", opened)
        yield
        for descriptor in held:
            os.close(descriptor)

    def used(self, folder, **more):
        """Settings of a provider with that state folder."""
        return Settings(state_dir=folder, bundles_dir=folder, **more)

    def test_one_provider_at_a_time(self, tmp_path, passing):
        """The second one is told, and changes nothing."""
        up._lock(self.used(tmp_path / "state"))
        assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
        with pytest.raises(Conflict, match="another provider uses .*state; choose another --state-dir"):
            up._lock(self.used(tmp_path / "state"))
        up._lock(self.used(tmp_path / "other"))

    @pytest.fixture
    def passing(self, monkeypatch):
        """Moments that were slept to; what is called at each of them is the second one."""
        slept, then = [0.0], []

        def sleep(for_s):
            slept.append(slept[-1] + for_s)
            for call in then:
                call(slept[-1])

        monkeypatch.setattr(up, "time", SimpleNamespace(monotonic=lambda: slept[-1], sleep=sleep))
        return slept, then

    def test_a_provider_that_lives_is_not_waited_for(self, tmp_path, passing, capsys):
        """However long what it has taken may run: it will not go."""
        up._lock(self.used(tmp_path))
        (tmp_path / up.PIDFILE).write_text(f"{os.getpid()}\n")
        with pytest.raises(Conflict, match="another provider uses"):
            up._lock(self.used(tmp_path))
        assert (passing[0], capsys.readouterr().err) == ([0.0], "")

    def test_one_that_says_its_name_while_it_is_waited_for(self, tmp_path, passing):
        """It has just been started: the other one gives up at once."""
        up._lock(self.used(tmp_path))
        passing[1].append(lambda now_s: now_s < 1 or (tmp_path / up.PIDFILE).write_text(f"{os.getpid()}\n"))
        with pytest.raises(Conflict, match="another provider uses"):
            up._lock(self.used(tmp_path))
        assert passing[0][-1] == pytest.approx(1, abs=0.2)

    def test_what_is_left_of_a_killed_one_is_waited_for(self, tmp_path, passing, killed, capsys):
        """One line says so; the folder is the next one's as soon as it is free."""
        held = up._lock(self.used(tmp_path))
        killed(tmp_path)
        passing[1].append(lambda now_s: now_s < 90 or fcntl.flock(held, fcntl.LOCK_UN))
        up._lock(self.used(tmp_path))
        assert passing[0][-1] == pytest.approx(90, abs=0.2)
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith("was killed; waiting until what it had taken is answered, at most 110 s")

    def test_what_does_not_end_is_not_waited_for_for_ever(self, tmp_path, passing, killed):
        """As long as its calls may run, and what follows them; the reason is told, and no other folder is advised."""
        up._lock(self.used(tmp_path))
        killed(tmp_path)
        with pytest.raises(
            Conflict, match="was killed, and after 350 s its worker still answers .*; try again"
        ) as fault:
            up._lock(self.used(tmp_path, invoke_timeout_s=300.0))
        assert "--state-dir" not in str(fault.value)
        assert passing[0][-1] == pytest.approx(350, abs=0.2)

    @pytest.fixture
    def killed(self):
        """Name a process that has ended as the provider of a folder."""
        with subprocess.Popen(["true"]) as ended:
            ended.wait()
        return lambda folder: (folder / up.PIDFILE).write_text(f"{ended.pid}\n")

    def test_where_no_folder_can_be(self, tmp_path):
        """A sentence with its name."""
        (tmp_path / "file").touch()
        with pytest.raises(StateError, match="the state folder .*file/state cannot be used"):
            up._lock(self.used(tmp_path / "file" / "state"))


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

    @pytest.mark.parametrize("backend", ["process", "docker"])
    def test_an_empty_mark_locks_nobody_out(self, settings, backend):
        """As an earlier version left it that was killed while it wrote: the one who asks is believed, and noted."""
        self.used_by(settings, "function")
        (settings.state_dir / up.BACKEND_FILE).touch()
        mine = replace(settings, backend=backend)
        up._claim(mine)
        assert up._owner(settings) == backend

    def test_a_mark_that_is_right_is_not_written(self, settings, monkeypatch):
        """A start on a full disk loses nothing."""
        up._claim(settings)
        monkeypatch.setattr(up.os, "fsync", lambda _: pytest.fail("it writes"))
        up._claim(settings)

    def test_a_mark_is_there_whole_or_not_at_all(self, settings, monkeypatch):
        """Where it cannot be written, the old one stays, and a sentence says so."""
        up._claim(settings)

        def full(_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(up.os, "fsync", full)
        with pytest.raises(StateError, match="backend could not be written: No space left on device"):
            up._claim(replace(settings, backend="docker"))
        assert up._owner(settings) == "process"

    def test_a_damaged_state_is_refused_first(self, settings):
        """Before anything is said to run."""
        settings.database.write_bytes(b"not a database" * 100)
        with pytest.raises(StateError, match="cannot be used"):
            up._claim(settings)


class TestFiles:
    """Connections leave room for the files that serving them takes."""

    @pytest.mark.parametrize(
        ("files_max", "streams_max", "most"),
        [
            (512, 4096, 128),  # half is the provider's own, and each client may have a connection to an instance
            (4096, 4096, 1792),
            (4096, 100, 3484),
            (20_000, 4096, 14_654),
            (1_048_576, 4096, 978_944),
        ],
    )
    def test_how_many(self, files_max, streams_max, most):
        """Fewer than there are files, by the provider's own and by one for each invocation."""
        assert connections_within(files_max, streams_max) == most

    def test_where_there_is_room_nothing_is_said(self, settings, capsys):
        """The usual hard limit is far above what is asked for."""
        assert up._within_files(settings, 524_288) == settings
        assert up._within_files(settings, sys.maxsize) == settings
        assert capsys.readouterr().err == ""

    def test_a_cut_is_said(self, settings, capsys):
        """One line: how many are left, why, and what would help."""
        assert up._within_files(settings, 1024) == replace(settings, connections_max=256)
        assert capsys.readouterr().err == (
            "at most 256 client connections instead of 16384: this process may open 1024 files;"
            " raise its limit (ulimit -Hn, LimitNOFILE=) for more\n"
        )


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
