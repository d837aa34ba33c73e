"""What a local process is started with, and what its log says of its end: nothing runs here."""

import os
import resource
import shlex
import subprocess
from pathlib import Path

import pytest

from infless_core.model import Configuration, FunctionSpec
from infless_provider.backends import procfs
from infless_provider.backends.base import Launch
from infless_provider.backends.instance_logs import LOGS_KEPT, LOGS_KEPT_BYTES, last_words, open_log, prune
from infless_provider.backends.process import ProcessBackend
from infless_provider.backends.process_instance import ProcessInstance, from_handle
from infless_provider.backends.process_launch import command_line, environment
from infless_provider.bundles import write_manifest
from infless_provider.log_files import log_path

MIB = 1024 * 1024
FILES = resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def launch(**more):
    """Of a function `f` in the namespace `n`."""
    given = {
        "id": "f-1", "function": "f.n", "version": "d", "artifact": "/kept/d", "environment": {"mine": "1"},
        "configuration": Configuration(batch=4, cpu_cores=2, gpu_percent=30), "latency_target_s": 0.2,
    }  # fmt: skip
    return Launch(**{**given, **more})


def variables(**more):
    """Of an instance of such a function."""
    return environment(launch(**more), (7, 8), Path("/state/tmp/f-1"), Path("/state/logs/f.n/f-1.log"))


# what it is started with ---------------------------------------------------------------------------------------------


def run(*arguments):
    """What the launcher's command prints."""
    return subprocess.run(arguments, capture_output=True, text=True, check=False)


def test_the_launcher_becomes_the_command():
    """Same process, with limits, and with its arguments as they were."""
    command = ["/bin/sh", "-c", 'echo $$ "$1"; umask; ulimit -c; ulimit -n; ulimit -d', "sh", "a b  'c"]
    with subprocess.Popen(command_line(command, None, 64 * MIB, FILES), stdout=subprocess.PIPE, text=True) as child:
        lines = child.stdout.read().splitlines()
    assert lines == [f"{child.pid} a b  'c", "0077", "0", str(FILES), str(64 * 1024)]


def test_no_memory_limit_leaves_the_data_alone():
    """Nothing is limited that nobody asked for."""
    [data] = run(*command_line(["/bin/sh", "-c", "ulimit -d"], None, 0, FILES)).stdout.split()
    have = resource.getrlimit(resource.RLIMIT_DATA)[0]
    assert data == ("unlimited" if have == resource.RLIM_INFINITY else str(have // 1024))


def test_open_files_without_a_limit_are_so_told():
    """In words that a shell knows."""
    assert "unlimited" in command_line(["true"], None, 0, resource.RLIM_INFINITY)


def test_a_group_is_joined_before_the_command(tmp_path):
    """Its own number is written there; a data limit is not needed then."""
    (tmp_path / "cgroup.procs").touch()
    command = ["/bin/sh", "-c", f"cat {shlex.quote(str(tmp_path / 'cgroup.procs'))}; echo $$; ulimit -d"]
    first, second, data = run(*command_line(command, tmp_path, 64 * MIB, FILES)).stdout.split()
    assert first == second
    assert data != str(64 * 1024)


def test_a_group_that_cannot_be_joined_runs_nothing(tmp_path):
    """Rather than without its limit; and it says why."""
    ended = run(*command_line(["echo", "unlimited power"], tmp_path / "gone", 64 * MIB, FILES))
    assert (ended.returncode, ended.stdout) == (126, "")
    assert "gone/cgroup.procs" in ended.stderr


def test_settings_win_over_the_functions_own_variables():
    """But for the device, and its home, which are for the function to choose."""
    own = {"batch_max": "9", "TMPDIR": "/mine", "HOME": "/mine", "model_device": "tensorrt", "secret_mount_path": "/x"}
    found = variables(environment=own, gpu="1", secrets=Path("/state/secrets/f.n"))
    assert found.items() >= {
        "batch_max": "4", "cpu_cores": "2", "listen_fds": "7,8", "log_file": "/state/logs/f.n/f-1.log",
        "TMPDIR": "/state/tmp/f-1", "HOME": "/mine", "model_device": "tensorrt", "CUDA_VISIBLE_DEVICES": "1",
        "gpu_percent": "30", "secret_mount_path": "/state/secrets/f.n", "function_dir": "/kept/d/function",
        "OPENFAAS_NAME": "f", "OPENFAAS_NAMESPACE": "n",
    }.items()  # fmt: skip


def test_without_a_gpu_or_secrets_nothing_is_said_of_them():
    """A function may still ask for a device by itself."""
    assert not {"CUDA_VISIBLE_DEVICES", "gpu_percent", "model_device", "secret_mount_path"} & set(variables())


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"read_only_root_filesystem": True}, ["readOnlyRootFilesystem"]),
        ({"env_process": "serve --now"}, ["envProcess"]),
        ({"env_process": "python -m infless_watchdog"}, []),
        ({"read_only_root_filesystem": True, "env_process": "x"}, ["readOnlyRootFilesystem", "envProcess"]),
        ({}, []),
    ],
)
def test_what_has_no_effect_is_told_when_it_is_deployed(tmp_path, caplog, asked, told):
    """Once for each field, with the function's name."""
    backend = ProcessBackend((0,), tmp_path / "state", tmp_path / "build")
    bundle = tmp_path / "build" / "f"
    for part in ("function", "infless_watchdog"):
        (bundle / part).mkdir(parents=True)
    write_manifest(bundle, "f:1")
    backend.prepare(FunctionSpec(name="f", image="f:1", namespace="n", **asked))
    begins = [f"f.n: {field} has no effect on local processes; " for field in told]
    assert [message[: len(begin)] for message, begin in zip(caplog.messages, begins, strict=True)] == begins


# handles -------------------------------------------------------------------------------------------------------------


def test_a_handle_says_it_all(tmp_path):
    """What is read back is what was written."""
    instance = ProcessInstance(
        identity=procfs.Identity(pid=5, started="boot/1"), port=1, metrics_port=2, cores=(0, 3), memory_bytes=7,
        group=tmp_path / "infless-x-f-1",
    )  # fmt: skip
    assert from_handle(instance.address.handle, "infless-x-f-1") == instance


def test_a_group_of_another_name_is_not_taken(tmp_path):
    """A damaged handle must not have somebody else's cgroup removed."""
    instance = ProcessInstance(
        identity=procfs.Identity(pid=5, started="boot/1"), port=1, metrics_port=2, cores=(0,), group=tmp_path / "system"
    )
    assert from_handle(instance.address.handle, "infless-x-f-1").group is None


# logs ----------------------------------------------------------------------------------------------------------------

STAMP = "2026-01-02T03:04:05.678901Z"


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("T [x] [1] [ERROR] no model\nT [x] [2] [ERROR] Worker (pid:1) exited with code 3.\nT [x] [2] [ERROR] Reason: Worker failed\n", "no model"),
        ("T infless-watchdog: environment variable batch_max\n", "infless-watchdog: environment variable batch_max"),
        ("T [x] [1] [ERROR] Worker (pid:1) was sent SIGKILL! Perhaps out of memory?\nT [x] [1] [ERROR] Shutting down: Master\n",
         "Worker (pid:1) was sent SIGKILL! Perhaps out of memory?"),
        ("T [x] [1] [ERROR] Exception in worker process\nT Traceback:\nT MemoryError\nT [x] [1] [ERROR] Worker (pid:1) exited with code 3.\n", "MemoryError"),
        ("T terminate called after throwing an instance of 'std::bad_alloc'\n", "terminate called after throwing an instance of 'std::bad_alloc'"),
        ("/usr/bin/python: No module named infless_watchdog\n", "/usr/bin/python: No module named infless_watchdog"),
        ("T [x] [1] [ERROR] old\n/usr/bin/python: No space left\n", "/usr/bin/python: No space left"),
        ("Traceback:\nT [x] [1] [ERROR] newer\nT fine\n", "newer"),
        ("T all is well\n", ""),
        ("", ""),
        (None, ""),
    ],
)  # fmt: skip
def test_last_words(tmp_path, log, words):
    """The reason, not what gunicorn adds to it; what comes without a time was said where there was no log yet."""
    path = log_path(tmp_path / "f.n", "f-1")
    if log is not None:
        os.close(open_log(path))
        path.write_text(
            "".join(
                line.replace("T ", f"{STAMP} ", 1) if line[:2] == "T " else line
                for line in log.splitlines(keepends=True)
            )
        )
    assert last_words(path) == words


def test_last_words_of_a_log_that_was_just_put_aside(tmp_path):
    """They are in the old file then."""
    path = tmp_path / "f-1.log"
    path.with_suffix(".log.1").write_text(f"{STAMP} x\n" * 9999 + f"{STAMP} infless-watchdog: no model\n")
    path.write_text(f"{STAMP} and so on\n")
    assert last_words(path) == "infless-watchdog: no model"
    path.write_text(f"{STAMP} and so on\n" * 50)  # those are no longer the last
    assert last_words(path) == ""


def logs(folder, count, size_bytes=1):
    """Logs `log-0` and so on, oldest first."""
    for n in range(count):
        for suffix in (".log", ".log.1"):
            path = folder / f"log-{n}{suffix}"
            with path.open("wb") as file:
                file.truncate(size_bytes)  # holes: nothing of it is on the disk
            os.utime(path, (n, n))


def kept(folder):
    """Numbers of the logs that are there, each with what was put aside."""
    assert {path.stem for path in folder.glob("*.log")} == {path.name[:-6] for path in folder.glob("*.log.1")}
    return sorted(int(path.stem[4:]) for path in folder.glob("*.log"))


def test_old_logs_go(tmp_path):
    """The newest of ended instances stay, and every running one's."""
    logs(tmp_path, LOGS_KEPT + 5)
    prune(tmp_path, {"log-2"})
    assert kept(tmp_path) == [2, *range(5, LOGS_KEPT + 5)]


def test_large_logs_go_sooner(tmp_path):
    """Until what is left is no larger than allowed; the newest stays whatever it takes."""
    logs(tmp_path, 9, LOGS_KEPT_BYTES // 8)
    prune(tmp_path, ())
    assert kept(tmp_path) == [5, 6, 7, 8]
    logs(tmp_path, 2, LOGS_KEPT_BYTES)
    prune(tmp_path, {f"log-{n}" for n in range(2, 9)})
    assert kept(tmp_path) == [1, 5, 6, 7, 8]


def test_pruning_where_nothing_is(tmp_path):
    """The first instance of a function."""
    prune(tmp_path / "none", ())
    assert not (tmp_path / "none").exists()
