"""An engine that stops and comes back, with and without its containers: what is believed meanwhile, and afterwards."""

from __future__ import annotations

import gc
import logging
import os
import re
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from docker_backend import Driven, docker, launch, spec, wait_until

from infless_core.errors import BackendError
from infless_provider.backends.base import Stage

pytestmark = [
    pytest.mark.integration,
    pytest.mark.docker,
    # The docker package drops a socket that could not be connected; Python then closes it, and says so.
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"),
]
TICKING = 'CMD ["sh", "-c", "trap \\"exit 3\\" TERM; n=0; while :; do echo tick $n; n=$((n+1)); sleep 0.1; done"]'
BRIDGE = "inflesstest0"


class PrivateEngine:
    """A dockerd of its own, that touches nothing of this machine's."""

    def __init__(self, folder: Path, *, live_restore: bool) -> None:
        self.host = f"unix://{folder}/docker.sock"
        self._folder = folder
        self._options = ["--live-restore"] if live_restore else []
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Until it answers."""
        options = [
            f"--data-root={self._folder}/data", f"--exec-root={self._folder}/exec", f"--pidfile={self._folder}/pid",
            f"--host={self.host}", f"--bridge={BRIDGE}", "--iptables=false", "--ip6tables=false", "--ip-forward=false",
            "--ip-masq=false", *self._options,
        ]  # fmt: skip
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(["dockerd", *options], stdout=log, stderr=log)
        wait_until(self._answers, "the private engine answers")

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            last = (self._folder / "log").read_text().splitlines()[-1]
            pytest.skip(f"no second Docker engine runs here: {last}")
        done = subprocess.run(["docker", "--host", self.host, "version"], capture_output=True, check=False, timeout=30)
        return done.returncode == 0

    def freeze(self, *, frozen: bool) -> None:
        """It holds its socket, and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP if frozen else signal.SIGCONT)

    def stop(self) -> None:
        """As a service manager does."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)
            self._process = None

    def load(self) -> str:
        """An image of this machine's own shell, that ticks; returns its name."""
        root = self._folder / "root"
        for program in ("sh", "sleep", "echo"):
            path = shutil.which(program)
            assert path
            needed = re.findall(
                r"/\S+", subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
            )
            for source, target in [(path, f"/bin/{program}"), *((one, one) for one in needed)]:
                place = root / target.lstrip("/")
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, place)
        with subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE) as packed:
            words = ["docker", "--host", self.host, "import", "--change", TICKING, "-", "ticking:1"]
            subprocess.run(words, stdin=packed.stdout, check=True, capture_output=True, timeout=60)
        return "ticking:1"


def missing() -> str | None:
    """Why a second engine cannot run here."""
    if os.getuid():
        return "a private Docker engine needs root"
    lacking = [program for program in ("dockerd", "docker", "ip", "ldd", "tar") if shutil.which(program) is None]
    return f"there is no {lacking[0]}" if lacking else None


@pytest.fixture(scope="module")
def bridge() -> Iterator[None]:
    """A network for its containers."""
    if (why := missing()) is not None:
        pytest.skip(why)
    pytest.importorskip("docker", reason="infless[docker] is not installed")
    made = subprocess.run(["ip", "link", "add", "name", BRIDGE, "type", "bridge"], capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"no bridge can be made here: {made.stderr.decode().strip()}")
    subprocess.run(["ip", "addr", "add", "10.213.77.1/24", "dev", BRIDGE], check=True)
    subprocess.run(["ip", "link", "set", BRIDGE, "up"], check=True)
    yield
    subprocess.run(["ip", "link", "del", BRIDGE], check=True)


@pytest.fixture(params=[False, True], ids=["containers-end-with-it", "containers-live-on"])
def engine(
    request: pytest.FixtureRequest,
    bridge: None,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[PrivateEngine]:
    """A private engine with an image, which `DOCKER_HOST` names; it and its containers are gone afterwards."""
    folder = tmp_path_factory.mktemp("engine")
    made = PrivateEngine(folder, live_restore=request.param)
    made.start()
    try:
        made.load()
        monkeypatch.setenv("DOCKER_HOST", made.host)
        yield made
    finally:
        if made._process is None:
            made.start()
        for name in docker("ps", "--all", "--quiet", host=made.host).split():
            docker("rm", "--force", name, host=made.host)
        made.stop()
        gc.collect()  # what the package dropped is closed here, where that is expected, and not after the last test
        for mount in sorted(re.findall(rf"{re.escape(str(folder))}\S*", Path("/proc/self/mounts").read_text()))[::-1]:
            subprocess.run(["umount", mount], capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)


def ticks(folder: Path, id_: str) -> list[int]:
    """What an instance has counted in its log."""
    path = folder / "state" / "logs" / "f.openfaas-fn" / f"{id_}.log"
    return [int(number) for number in re.findall(r"tick (\d+)", path.read_text())] if path.exists() else []


def test_an_engine_that_was_away_is_believed_when_it_is_back(engine: PrivateEngine, tmp_path: Path) -> None:
    """What it took with it has ended, what lives goes on; meanwhile nothing is started, and the log has no gap after."""
    lives_on = bool(engine._options)
    with Driven(tmp_path, uuid.uuid4().hex[:12]) as driven:
        artifact = driven.backend.prepare(spec("ticking:1")).reference
        for id_ in ("f-1", "f-2", "f-3"):
            driven.on_loop("start", launch(artifact, id_))
            driven.until_stage(id_, Stage.RUNNING)
        wait_until(lambda: len(ticks(tmp_path, "f-1")) > 2, "it ticks")

        engine.stop()
        wait_until(lambda: driven.backend._away, "that it is away is noticed")
        if lives_on:
            assert driven.backend.see("f-1").stage is Stage.RUNNING
            before = ticks(tmp_path, "f-1")[-1]
            assert [use.memory_bytes for use in driven.backend.usage(["f-1"])] == [0]
        with pytest.raises(BackendError, match="no Docker engine answers at unix://"):
            driven.on_loop("start", launch(artifact, "f-4"))
        driven.on_loop("forget", "f-2")
        driven.on_loop("terminate", "f-3")

        engine.start()
        wait_until(lambda: not driven.backend._away, "that it is back is noticed")
        why = driven.until_stage("f-3", Stage.ENDED).why
        assert re.fullmatch(r"its container ended with exit code 3(: tick \d+)?", why)  # it may take the log along
        if lives_on:
            wait_until(lambda: ticks(tmp_path, "f-1")[-1] > before, "the log goes on")
            assert driven.backend.see("f-1").stage is Stage.RUNNING
        else:
            assert "exit code 3" in driven.until_stage("f-1", Stage.ENDED).why
        assert ticks(tmp_path, "f-1") == list(range(len(ticks(tmp_path, "f-1"))))
        gone = partial(docker, "ps", "--all", "--quiet", "--filter", "name=^infless-f-2$", host=engine.host)
        wait_until(lambda: gone() == "", "what was forgotten meanwhile is removed")
        driven.on_loop("start", launch(artifact, "f-5"))
        assert driven.until_stage("f-5", Stage.RUNNING).address.port > 0


def test_an_engine_away_from_the_start_is_told(engine: PrivateEngine, tmp_path: Path) -> None:
    """In a sentence that says where it was looked for."""
    engine.stop()
    with pytest.raises(
        BackendError, match=rf"no Docker engine answers at {engine.host}; start it, or say in DOCKER_HOST"
    ):
        Driven(tmp_path, "me").__enter__()


def test_instances_outlive_their_provider_while_the_engine_restarts(engine: PrivateEngine, tmp_path: Path) -> None:
    """The next provider adopts those that live, and does not find those that do not."""
    owner = uuid.uuid4().hex[:12]
    with Driven(tmp_path, owner) as old:
        artifact = old.backend.prepare(spec("ticking:1")).reference
        old.on_loop("start", launch(artifact, "f-1"))
        old.until_stage("f-1", Stage.RUNNING)
    engine.stop()
    engine.start()
    with Driven(tmp_path, owner) as new:
        assert new.on_loop("adopt", "f-1", "f.openfaas-fn", {}) == bool(engine._options)
        new.on_loop("forget", "f-1")
        left = partial(docker, "ps", "--all", "--quiet", host=engine.host)
        wait_until(lambda: left() == "", "what was forgotten is removed, also when it had ended")


def test_an_engine_that_hangs_is_not_waited_for_for_ever(
    engine: PrivateEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A start is begun anew when it answers; what it made of the first try, or of one that was given up, goes."""
    caplog.set_level(logging.DEBUG, "infless.docker")
    monkeypatch.setattr("infless_provider.backends.docker_engine.CALL_S", 3.0)
    monkeypatch.setattr("infless_provider.backends.docker_engine.EVENTS_S", 3.0)
    monkeypatch.setattr("infless_provider.backends.docker_watch.RELIST_S", 2.0)
    with Driven(tmp_path, uuid.uuid4().hex[:12]) as driven:
        artifact = driven.backend.prepare(spec("ticking:1")).reference
        driven.on_loop("sweep", set())
        engine.freeze(frozen=True)
        try:
            driven.on_loop("start", launch(artifact, "f-1"))
            driven.on_loop("start", launch(artifact, "f-2"))
            told = r"(f-\d): the Docker engine at unix://\S+ did not answer within 3 s; trying again when it is back"
            wait_until(lambda: len(set(re.findall(told, caplog.text))) == 2, "both are given up for now")
            wait_until(lambda: driven.backend._away, "that it does not answer is noticed without anybody asking")
            driven.on_loop("kill", "f-2")
            assert driven.backend.see("f-1").stage is Stage.STARTING
        finally:
            engine.freeze(frozen=False)
        driven.until_stage("f-1", Stage.RUNNING)
        assert driven.until_stage("f-2", Stage.ENDED).why == "it was ended before it was started"
        driven.on_loop("forget", "f-2")
        names = partial(docker, "ps", "--all", "--format", "{{.Names}}", host=engine.host)
        wait_until(lambda: names() == "infless-f-1", "the other one is removed")
