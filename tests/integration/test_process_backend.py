"""Processes as the backend sees them: who is who, what limits them, and that nothing is left."""

import asyncio
import errno
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from contextlib import asynccontextmanager

import psutil
import pytest
import uvloop
from provider_process import wait_until

from infless_core.errors import BackendError
from infless_core.model import Configuration, FunctionSpec, Server
from infless_provider.backends import cgroups, instance_logs, procfs
from infless_provider.backends.allotment import ClusterServer, pick_cores
from infless_provider.backends.base import CurveOrder, Launch, Stage
from infless_provider.backends.process import ProcessBackend
from infless_provider.bundles import write_manifest

pytestmark = pytest.mark.integration
CPUS = sorted(os.sched_getaffinity(0))
SLEEP = "import time\ntime.sleep(60)\n"
FORKING = """
import os, time
pid = os.fork()
if not pid:
    os.setpgid(0, 0)
    open(os.environ["log_file"] + ".draft", "w").write(str(os.getpid()))
    os.rename(os.environ["log_file"] + ".draft", os.environ["log_file"] + ".pid")
time.sleep(60)
"""
"""Its child leaves the process group, as a handler's process does, and says its number when it has."""
HOG = "held = []\nwhile True: held.append(b'x' * 2**20)\n"
MEMORY_BYTES = 64 * 1024 * 1024
needs_cgroups = pytest.mark.skipif(
    cgroups.find(f"infless-test-{os.getpid()}") is None, reason="no cgroup with a memory limit can be made here"
)


@pytest.fixture
def make(tmp_path):
    """Backends on one state folder; nothing they started is left."""
    backends = []

    def make(cpus=CPUS[:1], **more):
        backends.append(ProcessBackend(cpus, tmp_path / "state", tmp_path / "build", **more))
        return backends[-1]

    yield make
    for backend in backends:
        for id_ in list(backend._instances):
            backend.forget(id_)


@pytest.fixture
def backend(make):
    """On the first CPU that we may use, not opened: nothing is watched, and `forget` waits."""
    return make()


@pytest.fixture
def launch(tmp_path):
    """A launch of a bundle whose watchdog is a script of the test's."""

    def launch(script=SLEEP, id_="f-1", cores=1, **more):
        bundle = tmp_path / "bundle"
        (bundle / "infless_watchdog").mkdir(parents=True, exist_ok=True)
        (bundle / "infless_watchdog" / "__init__.py").touch()  # else an installed watchdog comes first
        (bundle / "infless_watchdog" / "__main__.py").write_text(script)
        return Launch(
            id=id_, function="f.n", version="d", artifact=str(bundle), environment={"mine": "1"},
            configuration=Configuration(batch=4, cpu_cores=cores), latency_target_s=0.2, **more,
        )  # fmt: skip

    return launch


@pytest.fixture
def sleeper():
    """A process of our own."""
    process = subprocess.Popen([sys.executable, "-c", SLEEP], start_new_session=True)
    yield process
    process.kill()
    process.wait()


@asynccontextmanager
async def opened(backend):
    """A backend that watches, and the ids that it told of."""
    told = asyncio.Queue()
    backend.on_event = told.put_nowait
    await backend.open()
    try:
        yield told
    finally:
        for id_ in list(backend._instances):
            backend.forget(id_)
        await backend.close()


def pid_of(backend, id_="f-1"):
    """The process of an instance that runs."""
    sight = backend.see(id_)
    assert sight.stage is Stage.RUNNING, sight
    return sight.address.handle["pid"]


def log_of(tmp_path, id_="f-1"):
    """Its log file."""
    return tmp_path / "state" / "logs" / "f.n" / f"{id_}.log"


def child_of(tmp_path):
    """The child of an instance that runs FORKING."""
    file = log_of(tmp_path).with_suffix(".log.pid")
    wait_until(file.is_file, "it has a child")
    return procfs.identify(int(file.read_text()))


def ended(backend, id_="f-1"):
    """Waits for its end; gives what is seen of it then."""
    return wait_until(lambda: (sight := backend.see(id_)).stage is Stage.ENDED and sight, f"{id_} has ended")


# processes -----------------------------------------------------------------------------------------------------------


def test_a_process_is_known_by_number_and_start(sleeper):
    """Another one with its number is somebody else."""
    identity = procfs.identify(sleeper.pid)
    assert procfs.runs(identity)
    assert not procfs.runs(procfs.Identity(pid=sleeper.pid, started="another boot/1"))
    assert 0 <= procfs.age_s(identity) < 60
    sleeper.kill()
    assert procfs.wait_ended([sleeper.pid], 30)
    assert not procfs.runs(identity)  # a zombie does not
    sleeper.wait()
    assert procfs.identify(sleeper.pid) is None


def test_a_stranger_is_never_killed(sleeper):
    """The number went to somebody else; nor is the whole of our own group, which is what 0 stands for."""
    assert procfs.end(procfs.Identity(pid=sleeper.pid, started="another boot/1")) == set()
    assert procfs.end(procfs.Identity(pid=0, started="")) == set()
    assert not procfs.wait_ended([sleeper.pid], 0.05)


# starting ------------------------------------------------------------------------------------------------------------


def test_an_instance_lives_in_a_session_and_folder_of_its_own(backend, launch, tmp_path):
    """Pinned, found by its address, and gone with everything it wrote."""
    backend.start(launch())
    pid = pid_of(backend)
    assert os.getsid(pid) == pid
    assert os.sched_getaffinity(pid) == set(CPUS[:1])
    backend.forget("f-1")
    assert not os.path.exists(f"/proc/{pid}")
    assert list((tmp_path / "state" / "tmp").iterdir()) == []
    assert backend.see("f-1").stage is Stage.ENDED


def test_what_it_uses(backend, launch, tmp_path):
    """All processes of its session together, in the order asked; nothing for those that do not run."""
    script = "import os, time\nheld = b'x' * 2**25\nif os.fork() == 0:\n    while True: pass\ntime.sleep(60)\n"
    backend.start(launch(script))

    def used():
        nobody, usage = backend.usage(["f-2", "f-1"])
        assert nobody.memory_bytes == nobody.cpu_millicores == 0
        return usage.memory_bytes > 2 * 2**25 and usage.cpu_millicores > 50

    wait_until(used, "two processes hold 32 MiB each, and one works")


def test_what_there_is_to_place_on(make):
    """The CPUs that were given and the machine's memory, or what somebody says there is."""

    async def servers(backend):
        async with opened(backend):
            return backend.servers

    [server] = asyncio.run(servers(make(CPUS)))
    assert (server.id, server.cpu_cores, server.memory_bytes) == ("local", len(CPUS), psutil.virtual_memory().total)
    small = ClusterServer(server=Server(id="small", cpu_cores=1, memory_bytes=5))
    assert asyncio.run(servers(make(CPUS, cluster=small))) == (small.server,)


def test_its_environment(backend, launch, tmp_path):
    """The function's own variables and its settings; its home is its own; output is not held back."""
    script = "import json, os\nopen('told.draft', 'w').write(json.dumps(dict(os.environ)))\nos.rename('told.draft', 'told')\n"
    backend.start(launch(script, secrets=tmp_path / "secrets", gpu="1"))
    told = json.loads(
        wait_until((tmp_path / "bundle" / "told").exists, "told") and (tmp_path / "bundle" / "told").read_text()
    )
    folder = str(tmp_path / "state" / "tmp" / "f-1")
    assert told.items() >= {
        "mine": "1", "batch_max": "4", "cpu_cores": "1", "latency_target": "0.2s", "OPENFAAS_NAME": "f",
        "PYTHONUNBUFFERED": "1", "TMPDIR": folder, "HOME": folder, "secret_mount_path": str(tmp_path / "secrets"),
        "CUDA_VISIBLE_DEVICES": "1", "model_device": "cuda", "log_file": str(log_of(tmp_path)),
    }.items()  # fmt: skip


def test_its_limits(backend, launch, tmp_path):
    """No core files, as many open files as there may be, files for its user only; nothing of it on its command line."""
    script = "import os\nopen('draft', 'w').close()\nos.rename('draft', 'told')\nimport time\ntime.sleep(60)\n"
    backend.start(launch(script))
    file = tmp_path / "bundle" / "told"
    wait_until(file.exists, "it runs")
    process = psutil.Process(pid_of(backend))
    assert process.rlimit(psutil.RLIMIT_CORE) == (0, 0)
    soft, hard = process.rlimit(psutil.RLIMIT_NOFILE)
    assert soft == hard
    assert file.stat().st_mode & 0o777 == 0o600
    assert process.cmdline() == [sys.executable, "-m", "infless_watchdog"]


def test_a_bundle_that_is_gone(backend, launch, tmp_path):
    """One of our errors, and no folder is left."""
    gone = launch()
    shutil.rmtree(tmp_path / "bundle")
    with pytest.raises(BackendError, match="f-1 could not be started: its bundle .*bundle is gone; deploy"):
        backend.start(gone)
    with pytest.raises(BackendError, match="its bundle .*bundle is gone; deploy"):
        backend.curve(
            CurveOrder(artifact=gone.artifact, environment={}, batches=(1,), cpu_cores=1, budget_s=0.1, timeout_s=60.0)
        )
    assert not (tmp_path / "state" / "tmp").exists()


@pytest.mark.parametrize("folder", ["tmp", "logs"])
def test_a_folder_that_cannot_be_written(backend, launch, tmp_path, folder):
    """One of our errors, which names it; no folder, process or cgroup is left."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / folder).touch()
    with pytest.raises(
        BackendError, match=rf"f-1 could not be started: .*state/{folder}.*: (Not a directory|File exists)"
    ):
        backend.start(launch(memory_bytes=MEMORY_BYTES))
    assert backend.see("f-1").stage is Stage.ENDED
    assert not (tmp_path / "state" / "tmp" / "f-1").exists()


def test_a_full_disk(backend, launch, tmp_path, monkeypatch):
    """One of our errors, with what to do; what was made before is removed."""

    def full(path, *_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(instance_logs, "open_log", full)
    with pytest.raises(BackendError, match=r"started: .*/f-1.log: No space left on device; free some space there"):
        backend.start(launch())
    assert list((tmp_path / "state" / "tmp").iterdir()) == []


def test_the_cores_of_many(make, launch):
    """Each gets the ones with the fewest others; what has been forgotten holds none."""
    if len(CPUS) < 2:
        pytest.skip("one CPU")
    backend = make(CPUS[:2])
    for number in range(2):
        backend.start(launch(id_=f"f-{number}"))
    assert [backend.see(f"f-{n}").address.handle["cores"] for n in range(2)] == [CPUS[:1], CPUS[1:2]]
    backend.forget("f-0")
    backend.start(launch(id_="f-2"))
    assert backend.see("f-2").address.handle["cores"] == CPUS[:1]


def test_cores_are_shared_out():
    """Those with the fewest instances first, then the lowest; what is held is kept."""
    assert pick_cores((4, 2, 3), Counter(), 2) == (2, 3)
    assert pick_cores((2, 3, 4), Counter({2: 1}), 2) == (3, 4)
    assert pick_cores((2, 3), Counter({2: 2, 3: 1}), 1) == (3,)
    assert pick_cores((2, 3, 4), Counter({4: 2}), 2, held=(4,)) == (2, 4)
    assert pick_cores((2, 3, 4), Counter({2: 2}), 1, held=(2, 4)) == (4,)


# watching ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("adopted", [False, True])
def test_a_death_is_told(make, launch, loop, adopted):
    """By the kernel, with nobody asking: of our own children and of those of an earlier provider."""

    async def run():
        first, second = make(), make()
        first.start(launch())
        watching = second if adopted else first
        async with opened(watching) as told:
            if adopted:
                assert second.adopt("f-1", "f.n", first.see("f-1").address.handle)
            pid = pid_of(watching)
            await asyncio.sleep(0)
            assert told.empty()
            os.kill(pid, signal.SIGKILL)
            assert await asyncio.wait_for(told.get(), 20) == "f-1"
            assert watching.see("f-1").stage is Stage.ENDED

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(run())


def test_without_pidfds_it_is_seen(make, launch, monkeypatch):
    """An old kernel: no event comes, and whoever asks learns of it."""

    async def run():
        monkeypatch.delattr(os, "pidfd_open")
        backend = make()
        async with opened(backend) as told:
            backend.start(launch("raise SystemExit(7)"))
            while backend.see("f-1").stage is not Stage.ENDED:
                await asyncio.sleep(0.01)
            assert told.empty()
            assert backend.last_words("f-1", "f.n") == "it ended with exit code 7"

    asyncio.run(run())


def test_who_stops_watching_ends_nobody(make, launch):
    """A provider that is restarted: its instances go on running, and it is told nothing more."""

    async def run():
        backend = make()
        told = []
        backend.on_event = told.append
        await backend.open()
        backend.start(launch())
        pid = pid_of(backend)
        await backend.close()
        os.kill(pid, signal.SIGKILL)
        assert procfs.wait_ended([pid], 30)
        await asyncio.sleep(0)
        assert told == []

    asyncio.run(run())


def test_another_backend_adopts_it(make, backend, launch):
    """After a restart of the provider: by number and start time, with its cores and ports; a dead one is not."""
    backend.start(launch())
    address = backend.see("f-1").address
    other = make(CPUS)
    assert other.adopt("f-1", "f.n", json.loads(json.dumps(address.handle)))
    assert other.see("f-1").address == address
    backend.forget("f-1")
    assert other.see("f-1").stage is Stage.ENDED
    assert not make().adopt("f-1", "f.n", address.handle)


@pytest.mark.parametrize("handle", [{}, {"pid": 1, "started": "", "cores": []}, {"pid": "x", "group": 5}])
def test_a_handle_that_says_too_little(backend, handle):
    """Of an earlier version, or not known when the earlier provider ended: the instance is not taken over."""
    assert not backend.adopt("f-1", "f.n", handle)


def test_an_instance_without_a_handle_is_ended_by_name(make, backend, launch, tmp_path):
    """The earlier provider ended before it could write the handle down: its folder names the process."""
    backend.start(launch())
    pid = pid_of(backend)
    wait_until(lambda: procfs_sees(tmp_path) == 1, "it is in /proc")
    other = make()
    assert not other.adopt("f-1", "f.n", {})
    other.forget("f-1")
    assert procfs.wait_ended([pid], 0)
    assert not (tmp_path / "state" / "tmp" / "f-1").exists()


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("import sys; sys.exit('no such thing')", "no such thing"),
        ("raise SystemExit(5)", "it ended with exit code 5"),
        ("import os; os.kill(os.getpid(), 11)", "it was ended by signal 11 (Segmentation fault)"),
        ("import nothing_like_it", "ModuleNotFoundError: No module named 'nothing_like_it'"),
    ],
)
def test_what_is_said_before_there_is_a_log(backend, launch, script, words):
    """It is not lost; and where nothing is said, how it ended has to do."""
    backend.start(launch(script))
    assert ended(backend).why == ""
    assert backend.last_words("f-1", "f.n") == words


# changing ------------------------------------------------------------------------------------------------------------

THREADS = """
import os, subprocess, sys, threading, time
threads = [threading.Thread(target=time.sleep, args=(60,), daemon=True) for _ in range(3)]
for thread in threads: thread.start()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], process_group=0)
open("draft", "w").close(); os.rename("draft", "ready")
time.sleep(60)
"""


def test_resize_moves_all_threads(make, launch, tmp_path):
    """Of all its processes, to more cores and to fewer; the handle says so, and others count with it."""
    if len(CPUS) < 2:
        pytest.skip("one CPU")
    backend = make(CPUS[:2])
    backend.start(launch(THREADS))
    wait_until((tmp_path / "bundle" / "ready").exists, "it has threads and a child")
    pid = pid_of(backend)
    assert len(procfs.session(pid)) == 2

    def affinities():
        tasks = [task.id for member in procfs.session(pid) for task in psutil.Process(member).threads()]
        assert len(tasks) == 5
        return {tuple(sorted(os.sched_getaffinity(task))) for task in tasks}

    assert affinities() == {(CPUS[0],)}
    backend.resize("f-1", Configuration(batch=4, cpu_cores=2))
    assert affinities() == {tuple(CPUS[:2])}
    assert backend.see("f-1").address.handle["cores"] == CPUS[:2]
    backend.start(launch(id_="f-2"))
    assert backend.see("f-2").address.handle["cores"] == CPUS[:1]
    backend.resize("f-1", Configuration(batch=4, cpu_cores=1))  # where nobody else is
    assert affinities() == {(CPUS[1],)}
    backend.resize("nobody", Configuration(batch=1, cpu_cores=1))


# ending --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["forget", "kill"])
def test_children_end_with_their_leader(backend, launch, tmp_path, how):
    """Also those that left its process group, and when the leader was killed alone."""
    backend.start(launch(FORKING))
    child = child_of(tmp_path)
    os.kill(pid_of(backend), signal.SIGKILL)
    ended(backend)
    assert procfs.runs(child)
    getattr(backend, how)("f-1")
    assert procfs.wait_ended([child.pid], 30)


def test_a_killed_one_has_ended(backend, launch):
    """Nothing survives that, so it is not waited for."""
    backend.start(launch())
    backend.kill("f-1")
    assert backend.see("f-1").stage is Stage.ENDED
    backend.terminate("f-1")  # nobody to ask any more


def test_terminate_asks(backend, launch):
    """It ends when it wants to."""
    backend.start(launch())
    backend.terminate("f-1")
    ended(backend)
    assert "signal 15" in backend.last_words("f-1", "f.n")


def test_what_was_started_and_never_written_down_is_swept(make, backend, launch, tmp_path):
    """A provider that crashed between the two; children of the same session too, and a measurement's folder."""
    backend.start(launch(FORKING))
    child = child_of(tmp_path)
    backend.start(launch(id_="f-2"))
    wait_until(lambda: procfs_sees(tmp_path) == 3, "all are in /proc")
    (tmp_path / "state" / "tmp" / "profile-x").mkdir()
    make().sweep({"f-2"})
    ended(backend)
    assert not procfs.runs(child)
    assert backend.see("f-2").stage is Stage.RUNNING
    assert [folder.name for folder in (tmp_path / "state" / "tmp").iterdir()] == ["f-2"]


def test_closing_waits_for_what_is_swept(make, backend, launch, tmp_path):
    """A backend that watches clears up in a thread: the event loop serves meanwhile."""
    backend.start(launch())
    pid = pid_of(backend)
    wait_until(lambda: procfs_sees(tmp_path) == 1, "it is in /proc")

    async def run():
        async with opened(other := make()):
            other.sweep(frozenset())

    asyncio.run(run())
    assert procfs.wait_ended([pid], 0)
    assert list((tmp_path / "state" / "tmp").iterdir()) == []


def test_sweep_of_nothing(backend):
    """Before the first start there is no folder."""
    backend.sweep(frozenset())


def procfs_sees(tmp_path):
    """How many processes have begun to run with a temporary folder of this test."""
    return sum(str(tmp_path) in place for _, place in procfs.by_variable("TMPDIR"))


# memory --------------------------------------------------------------------------------------------------------------


@needs_cgroups
def test_a_memory_hog_is_killed_and_said(backend, launch):
    """By its cgroup, which counts all its processes and is gone with it."""
    backend.start(launch(HOG, memory_bytes=MEMORY_BYTES))
    group = backend._instances["f-1"].group
    assert ended(backend).why == "it needed more than its memory limit of 64 MiB; raise limits.memory"
    assert group.is_dir()
    backend.forget("f-1")
    assert not group.exists()


@needs_cgroups
def test_the_rest_of_a_hog_ends_too(backend, launch, tmp_path):
    """Where the kernel killed one process of several, the others do not go on half."""
    script = f"import os, time\nif os.fork() == 0:\n    exec({HOG!r})\ntime.sleep(60)\n"
    backend.start(launch(script, memory_bytes=MEMORY_BYTES))
    pid = pid_of(backend)
    assert "memory limit" in ended(backend).why
    assert procfs.wait_ended(procfs.session(pid), 30)


@needs_cgroups
def test_the_limit_holds_before_its_code_runs(backend, launch, tmp_path):
    """It finds itself in its cgroup, and everything it starts with it."""
    script = (
        "import os\nopen('draft', 'w').write(open('/proc/self/cgroup').read())\nos.rename('draft', 'told')\n" + SLEEP
    )
    backend.start(launch(script, memory_bytes=MEMORY_BYTES))
    file = tmp_path / "bundle" / "told"
    wait_until(file.exists, "it runs")
    assert f"/{backend._instances['f-1'].group.name}\n" in file.read_text()
    assert procfs.session(pid_of(backend)) == [
        int(line) for line in (backend._instances["f-1"].group / "cgroup.procs").read_text().split()
    ]


@needs_cgroups
def test_a_limit_outlives_its_provider(make, backend, launch):
    """The next provider finds the cgroup by the handle, and a stray one by its name."""
    for id_ in ("f-1", "f-2"):
        backend.start(launch(id_=id_, memory_bytes=MEMORY_BYTES))
    groups = [backend._instances[id_].group for id_ in ("f-1", "f-2")]
    other = make()
    assert other.adopt("f-1", "f.n", backend.see("f-1").address.handle)
    shutil.rmtree(backend._scratch / "f-2")  # even where a function has removed its own folder
    other.sweep({"f-1"})
    assert [group.exists() for group in groups] == [True, False]
    ended(backend, "f-2")
    assert backend.see("f-1").stage is Stage.RUNNING
    other.forget("f-1")
    assert not groups[0].exists()


def test_a_memory_hog_without_cgroups(make, launch, monkeypatch):
    """Each process's data is limited then, and Python's own word is its last."""
    monkeypatch.setattr(cgroups, "find", lambda _: None)
    backend = make()
    backend.start(launch(HOG, memory_bytes=MEMORY_BYTES))
    assert psutil.Process(pid_of(backend)).rlimit(psutil.RLIMIT_DATA)[0] in (MEMORY_BYTES, -1)  # or sh is not that far
    assert ended(backend).why == ""
    assert backend.last_words("f-1", "f.n") == "MemoryError"
    assert backend._instances["f-1"].group is None


# logs ----------------------------------------------------------------------------------------------------------------


def test_rotated_logs_stay_bounded(make, launch, tmp_path):
    """A function that floods its log holds two files of it, and its last words are among them."""
    script = (
        "import os, pathlib, sys\nfrom infless_watchdog import logfile\nlogfile.MAX_BYTES = 20_000\n"
        "logfile.capture(pathlib.Path(os.environ['log_file']))\n"
        "for n in range(5_000): print('line', n)\n"
        "sys.exit('infless-watchdog: enough')\n"
    )
    backend = make(command=(sys.executable, "-c", script))
    plain = launch()
    shutil.rmtree(tmp_path / "bundle" / "infless_watchdog")  # the installed one is what is tested
    backend.start(plain)
    ended(backend)
    files = sorted(log_of(tmp_path).parent.iterdir())
    assert [file.name for file in files] == ["f-1.log", "f-1.log.1"]
    assert all(file.stat().st_size < 20_000 + 70_000 for file in files)  # and what is read at once
    assert backend.last_words("f-1", "f.n") == "infless-watchdog: enough"


# measuring and deploying ---------------------------------------------------------------------------------------------


def test_a_deployment_runs_a_copy(backend, tmp_path):
    """By content: found by image, kept as long as somebody uses it."""
    built = tmp_path / "build" / "f"
    for part in ("function", "infless_watchdog"):
        (built / part).mkdir(parents=True)
    write_manifest(built, "f:1")
    spec = FunctionSpec(name="f", image="f:1", namespace="n")
    artifact = backend.prepare(spec)
    assert (tmp_path / "state" / "bundles").resolve() == type(tmp_path)(artifact.reference).parent
    assert backend.prepare(spec) == artifact
    backend.tidy({artifact.reference})
    assert os.path.exists(artifact.reference)
    backend.tidy(set())
    assert not os.path.exists(artifact.reference)


def test_timing_has_a_folder_that_is_found_again(backend, launch, tmp_path):
    """It is the child's home, on the last of the cores, and gone afterwards."""
    script = (
        "import os\nprint(os.environ['TMPDIR'], os.environ['HOME'], os.environ['a'], sorted(os.sched_getaffinity(0)))"
    )
    artifact = launch(script).artifact
    order = CurveOrder(
        artifact=artifact, environment={"a": "b"}, batches=(1,), cpu_cores=1, budget_s=0.1, timeout_s=60.0
    )
    folder, home, variable, cores = backend.curve(order).strip().split(" ", 3)
    assert folder == home
    assert folder.startswith(str(tmp_path / "state" / "tmp" / "profile-"))
    assert (variable, cores) == ("b", str(CPUS[:1]))
    assert list((tmp_path / "state" / "tmp").iterdir()) == []


def timing(artifact, **more):
    """An order for one batch on one core."""
    return CurveOrder(
        artifact=artifact, environment={}, batches=(1,), cpu_cores=1, budget_s=0.1, timeout_s=60.0, **more
    )


def test_timing_sees_the_secrets(backend, launch, tmp_path):
    """Where an instance would look for them; without secrets it is not told of any."""
    (tmp_path / "key").write_text("s3cret")
    script = "import os, pathlib\nprint(pathlib.Path(os.environ['secret_mount_path'], 'key').read_text())"
    assert backend.curve(timing(launch(script).artifact, secrets=tmp_path)) == "s3cret\n"
    script = "import os\nprint('secret_mount_path' in os.environ)"
    assert backend.curve(timing(launch(script).artifact)) == "False\n"


@needs_cgroups
def test_timing_has_the_memory_limit_of_an_instance(make, launch):
    """What an instance would be killed for is not deployed, and says why; its group is gone, as the one that fits."""
    backend = make()
    with pytest.raises(BackendError, match=r"it needed more than its memory limit of 64 MiB; raise limits.memory"):
        backend.curve(timing(launch(HOG).artifact, memory_bytes=MEMORY_BYTES))
    assert backend.curve(timing(launch("print('fits')").artifact, memory_bytes=MEMORY_BYTES)) == "fits\n"
    assert cgroups.strays(backend._limits(), backend._prefix) == []


def test_timing_has_a_memory_limit_without_cgroups(make, launch, monkeypatch):
    """Its data is limited, as an instance's is then."""
    monkeypatch.setattr(cgroups, "find", lambda _: None)
    with pytest.raises(BackendError, match="MemoryError"):
        make().curve(timing(launch(HOG).artifact, memory_bytes=MEMORY_BYTES))


def test_timing_without_its_limit_is_refused(make, launch, tmp_path, monkeypatch):
    """Rather than run without one."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "/sys/fs/cgroup/x")

    monkeypatch.setattr(cgroups, "make", full)
    backend = make()
    backend._place, backend._placed = cgroups.Place(version=2, mount=tmp_path, path=tmp_path), True
    with pytest.raises(BackendError, match="its memory cannot be limited: /sys/fs/cgroup/x: No space left on device"):
        backend.curve(timing(launch().artifact, memory_bytes=MEMORY_BYTES))


READS = """
import os
from pathlib import Path
KEY = Path(os.environ["secret_mount_path"], "key").read_text()
def example(): return KEY
def predict(batch):
    {then}
    return [KEY] * len(batch)
"""


def test_a_function_that_reads_its_secret_at_import_is_deployed(provider):
    """It is timed before it runs, with the same secrets and limits; one that is refused leaves no copy of them."""
    provider.send("POST", "/system/secrets", {"name": "key", "value": "s3cret"}).raise_for_status()
    asked = {"secrets": ["key"], "limits": {"memory": "512Mi"}}
    provider.deploy("reader", READS.format(then="pass"), **asked)
    assert provider.send("POST", "/function/reader", "x").text == "s3cret"
    assert "reader.openfaas-fn: timing batches" in provider.log.read_text()
    provider.build("refused", READS.format(then="raise ValueError('not this one')"))
    answer = provider.put("POST", "refused", **asked)
    assert (answer.status_code, "not this one" in answer.text) == (422, True)
    copies = provider.state / "secrets" / "mounted"
    wait_until(
        lambda: [path.name for path in copies.iterdir()] == ["reader.openfaas-fn"], "the refused one's copy is gone"
    )
    assert len([*copies.glob("*/*/key")]) == 1


def test_no_room_for_a_temporary_folder(backend, launch, tmp_path):
    """One of our errors: the deployment is refused, and may be tried again."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "tmp").touch()
    with pytest.raises(BackendError, match="no temporary folder can be made: .*tmp: File exists"):
        backend.curve(timing(launch().artifact))


# a day of scaling ----------------------------------------------------------------------------------------------------

STARTS = 1000


def test_a_thousand_starts_leave_nothing(make, launch, tmp_path):
    """No descriptors, zombies, folders, cgroups, or more than a few logs."""
    limit = {"memory_bytes": MEMORY_BYTES}
    us = psutil.Process()

    async def run():
        backend = make(command=("/bin/sleep", "60"))
        async with opened(backend) as told:
            place = backend._limits()
            await asyncio.gather(*(asyncio.to_thread(int) for _ in range(4)))  # its threads are there
            gc.collect()  # what earlier tests have left open is not counted
            before = us.num_fds()
            for number in range(STARTS):
                id_ = f"f-{number}"
                backend.start(launch(id_=id_, **limit))
                assert backend.see(id_).stage is Stage.RUNNING
                if number % 2:
                    backend.terminate(id_)
                    assert await asyncio.wait_for(told.get(), 30) == id_
                backend.forget(id_)
            await asyncio.wait_for(asyncio.gather(*backend._burials), 60)
            assert us.num_fds() <= before
            return place, backend._prefix

    place, prefix = asyncio.run(run())
    assert [child for child in us.children() if child.name() in ("sh", "sleep")] == []
    assert list((tmp_path / "state" / "tmp").iterdir()) == []
    assert place is None or cgroups.strays(place, prefix) == []
    assert len(list((tmp_path / "state" / "logs" / "f.n").iterdir())) <= 22
