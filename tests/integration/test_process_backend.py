"""Processes as the backend sees them: who is who, and that nothing is left."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from provider_process import wait_until

from infless_core.errors import BackendError
from infless_core.model import Configuration
from infless_provider.backends import procfs
from infless_provider.backends.base import Launch
from infless_provider.backends.process import LOGS_KEPT, ProcessBackend, pick_cores

pytestmark = pytest.mark.integration
FORKING = "import os, time\npid = os.fork()\nif pid: open(os.environ['log_file'] + '.pid', 'w').write(str(pid))\ntime.sleep(60)\n"


@pytest.fixture
def backend(tmp_path):
    """On the first CPU that we may use; nothing it started is left."""
    made = ProcessBackend(sorted(os.sched_getaffinity(0))[:1], tmp_path / "state")
    yield made
    for id_ in list(made._processes):
        made.forget(id_)


@pytest.fixture
def launch(tmp_path):
    """A launch of a bundle whose watchdog is a script of the test's."""

    def launch(script="import time\ntime.sleep(60)\n", id_="f-1"):
        (tmp_path / "bundle" / "infless_watchdog").mkdir(parents=True, exist_ok=True)
        (tmp_path / "bundle" / "infless_watchdog" / "__init__.py").touch()  # else an installed watchdog comes first
        (tmp_path / "bundle" / "infless_watchdog" / "__main__.py").write_text(script)
        (tmp_path / "state" / "logs" / "f.n").mkdir(parents=True, exist_ok=True)
        return Launch(
            id=id_, function="f.n", bundle=tmp_path / "bundle", environment={"mine": "1"},
            configuration=Configuration(batch=4, cpu_cores=1), latency_target_s=0.2,
        )  # fmt: skip

    return launch


@pytest.fixture
def sleeper():
    """A process of our own."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def test_a_process_is_known_by_number_and_start(sleeper):
    """Another one with its number is somebody else."""
    identity = procfs.identify(sleeper.pid)
    assert procfs.runs(identity)
    assert not procfs.runs(procfs.Identity(pid=sleeper.pid, started="another boot/1"))
    assert 0 <= procfs.age_s(identity) < 60
    sleeper.kill()
    wait_until(lambda: not procfs.runs(identity), "a zombie does not run")
    sleeper.wait()
    assert procfs.identify(sleeper.pid) is None


def test_a_stranger_is_never_killed(sleeper):
    """The number went to somebody else."""
    procfs.kill_group(procfs.Identity(pid=sleeper.pid, started="another boot/1"))
    time.sleep(0.05)
    assert sleeper.poll() is None


def test_an_instance_lives_in_a_session_and_folder_of_its_own(backend, launch, tmp_path):
    """Pinned, found by its address, and gone with everything it wrote."""
    address = backend.start(launch())
    pid = address.handle["pid"]
    assert os.getsid(pid) == pid
    assert os.sched_getaffinity(pid) == set(address.handle["cores"])
    assert backend.alive("f-1")
    assert backend.usage("f-1").memory_bytes > 0
    backend.forget("f-1")
    assert not os.path.exists(f"/proc/{pid}")
    assert list((tmp_path / "state" / "tmp").iterdir()) == []


def test_another_backend_adopts_it(backend, launch, tmp_path):
    """After a restart of the provider: by number and start time; a dead one is not."""
    address = backend.start(launch())
    other = ProcessBackend((0,), tmp_path / "state")
    assert other.adopt("f-1", address)
    assert other.alive("f-1")
    backend.forget("f-1")
    assert not other.alive("f-1")
    assert not other.adopt("f-1", address)


def test_children_end_with_their_leader(backend, launch, tmp_path):
    """Also when the leader was killed alone."""
    address = backend.start(launch(FORKING))
    file = tmp_path / "state" / "logs" / "f.n" / "f-1.log.pid"
    child = procfs.identify(int(wait_until(lambda: file.is_file() and file.read_text(), "a child")))
    os.kill(address.handle["pid"], signal.SIGKILL)
    wait_until(lambda: not backend.alive("f-1"), "the leader is gone")
    assert procfs.runs(child)
    backend.forget("f-1")
    wait_until(lambda: not procfs.runs(child), "its child is gone")


def test_what_was_started_and_never_written_down_is_swept(backend, launch, tmp_path):
    """A provider that crashed between the two."""
    address = backend.start(launch())
    kept = backend.start(launch(id_="f-2"))
    wait_until(lambda: procfs_sees(tmp_path), "both are in /proc")
    ProcessBackend((0,), tmp_path / "state").sweep({"f-2"})
    wait_until(lambda: not backend.alive("f-1"), "the unknown one is gone")
    assert backend.alive("f-2")
    assert [folder.name for folder in (tmp_path / "state" / "tmp").iterdir()] == ["f-2"]
    assert address != kept


def procfs_sees(tmp_path):
    """Whether both processes have begun to run."""
    return sum(str(tmp_path) in place for _, place in procfs.by_variable("TMPDIR")) == 2


def test_its_environment(backend, launch, tmp_path):
    """The function's own variables and its settings; output is not held back."""
    script = (
        "import os\nopen(os.environ['log_file'], 'w').write('\\0'.join(f'{k}={v}' for k, v in os.environ.items()))\n"
    )
    backend.start(launch(script))
    file = backend.log_path("f-1", "f.n")
    told = wait_until(lambda: file.is_file() and file.read_text(), "its words").split("\0")
    assert {
        "mine=1",
        "batch_max=4",
        "cpu_cores=1",
        "latency_target=0.2s",
        "OPENFAAS_NAME=f",
        "PYTHONUNBUFFERED=1",
    } <= set(told)
    assert f"TMPDIR={tmp_path / 'state' / 'tmp' / 'f-1'}" in told


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("T [x] [1] [ERROR] no model\nT [x] [2] [ERROR] Worker (pid:1) exited with code 3.\nT [x] [2] [ERROR] Reason: Worker failed\n", "no model"),
        ("T infless-watchdog: environment variable batch_max\n", "infless-watchdog: environment variable batch_max"),
        ("T [x] [1] [ERROR] Worker (pid:1) was sent SIGKILL! Perhaps out of memory?\nT [x] [1] [ERROR] Shutting down: Master\n",
         "Worker (pid:1) was sent SIGKILL! Perhaps out of memory?"),
        ("T all is well\n", ""),
        (None, ""),
    ],
)  # fmt: skip
def test_last_words(backend, launch, log, words):
    """The reason, not what gunicorn adds to it."""
    launch()
    if log is not None:
        backend.log_path("f-1", "f.n").write_text(log)
    assert backend.last_words("f-1", "f.n") == words


def test_a_bundle_that_is_gone(backend, launch, tmp_path):
    """One of our errors, and no folder is left."""
    gone = launch()
    shutil.rmtree(tmp_path / "bundle" / "infless_watchdog")
    (tmp_path / "bundle").rmdir()
    with pytest.raises(BackendError, match="f-1 could not be started: .*bundle"):
        backend.start(gone)
    assert list((tmp_path / "state" / "tmp").iterdir()) == []


def test_old_logs_go(backend, launch, tmp_path):
    """The newest of ended instances stay, and every running one's."""
    launch()
    logs = tmp_path / "state" / "logs" / "f.n"
    for n in range(LOGS_KEPT + 5):
        (logs / f"old-{n}.log").touch()
        os.utime(logs / f"old-{n}.log", (n, n))
    backend.start(launch())
    assert sorted(path.stem for path in logs.glob("old-*.log")) == sorted(f"old-{n}" for n in range(5, LOGS_KEPT + 5))


def test_cores_are_shared_out():
    """Those with the fewest instances first, then the lowest."""
    assert pick_cores((4, 2, 3), Counter(), 2) == (2, 3)
    assert pick_cores((2, 3, 4), Counter({2: 1}), 2) == (3, 4)
    assert pick_cores((2, 3), Counter({2: 2, 3: 1}), 1) == (3,)
