"""Timing a bundle in a child process: what it prints, what it says when it fails, and that it ends."""

import json
import os
import site
import time

import pytest

from infless_core.errors import BackendError
from infless_profiler import measure
from infless_profiler.measure import batch_sizes, child_environment, core_counts, measure_function, run_curve
from infless_provider.backends import procfs

LINE = {"batch": 1, "exec_s": [0.1, 0.2], "memory_bytes": 5}


@pytest.fixture
def bundle(tmp_path):
    """A bundle whose watchdog is a script of the test's."""

    def make(script):
        (tmp_path / "infless_watchdog").mkdir()
        (tmp_path / "infless_watchdog" / "__init__.py").touch()  # else an installed watchdog comes first
        (tmp_path / "infless_watchdog" / "__main__.py").write_text(f"import json, os, sys, time\n{script}\n")
        return tmp_path

    return make


def _ends(process):
    """Whether it is gone within half a minute."""
    return any(not procfs.runs(process) or time.sleep(0.02) for _ in range(1500))


def run(bundle, cores=(1,), timeout_s=60.0, cancelled=lambda: False, **more):
    """Measure with a tiny budget, as the process backend does."""
    cpus = sorted(os.sched_getaffinity(0))

    def curve(batches, count):
        return run_curve(bundle, {"who": "me"}, batches, cpus[-count:], 0.01, timeout_s, cancelled)

    return measure_function(curve, batches=(1, 2), cores=cores, **more)


def test_a_launcher_comes_before_the_command(bundle):
    """It may limit itself, and then becomes the command; when it cannot, that is what is told."""
    folder = bundle("print(os.environ['limited'])")

    def curve(script):
        return run_curve(
            folder, {}, (1,), [min(os.sched_getaffinity(0))], 0.01, 60.0, launcher=["/bin/sh", "-c", script, "sh"]
        )

    assert curve('limited=yes exec "$@"') == "yes\n"
    with pytest.raises(BackendError, match="no such limit"):
        curve("echo no such limit >&2; exit 126")


@pytest.mark.parametrize(
    ("largest", "sizes"), [(1, (1,)), (2, (1, 2)), (12, (1, 2, 4, 8, 12)), (32, (1, 2, 4, 8, 16, 32))]
)
def test_batch_sizes(largest, sizes):
    """Powers of two, and the largest itself."""
    assert batch_sizes(largest) == sizes
    assert core_counts(largest) == sizes


def test_lines_become_measurements(bundle):
    """One run for each number of cores, pinned to as many, with the function's own variables."""
    script = f"""
line = {LINE!r}
line["memory_bytes"] = len(os.sched_getaffinity(0))
if os.environ["who"] == "me" and sys.argv[1:] == ["--curve", "1,2", "--budget-s", "0.01"]:
    print(json.dumps(line))
"""
    found = run(bundle(script))
    assert [(m.configuration.batch, m.configuration.cpu_cores, m.samples_s) for m in found] == [(1, 1, (0.1, 0.2))]
    assert found[0].memory_bytes == 1


def test_what_the_users_code_prints_is_passed_over(bundle):
    """Text, broken JSON, other JSON, bytes that are no text."""
    noise = r'print("loading"); print("{oops"); print("[1]"); print(json.dumps({"batch": 0, "exec_s": [1], "memory_bytes": 1}))'
    noise += r'; sys.stdout.flush(); sys.stdout.buffer.write(b"\xff\n"); sys.stdout.flush()'
    assert len(run(bundle(f"{noise}\nprint(json.dumps({LINE!r}))"))) == 1


def test_without_an_example_nothing_is_known(bundle):
    """One run is enough to learn that."""
    progress = []
    script = f"print(json.dumps({json.loads(json.dumps({'unknown': 'no example'}))!r}))"
    assert run(bundle(script), cores=(1, 2), progress=progress.append) == []
    assert progress == ["timing batches 1, 2 on 1 core(s)"]


def test_a_handler_that_cannot_be_loaded_says_why(bundle):
    """The last thing it said."""
    with pytest.raises(BackendError, match=r"^infless-watchdog: no model$"):
        run(bundle('sys.stderr.write("warming\\n"); sys.exit("infless-watchdog: no model")'))


def test_a_child_that_dies_silently(bundle):
    """Then its exit code has to do."""
    with pytest.raises(BackendError, match="^timing ended with exit code 7$"):
        run(bundle("os._exit(7)"))


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ('print("no licence"); print(json.dumps({"batch": 1})); print(" "); sys.exit(3)', "3: no licence"),
        ('print("on stdout"); sys.stderr.write("warming\\nno licence\\n\\n"); sys.exit(3)', "3: no licence"),
        ("print(42, flush=True); os.kill(os.getpid(), 11)", "-11: 42"),
        ("print(json.dumps({}), flush=True); os._exit(4)", "4"),
    ],
)
def test_a_child_that_dies_without_a_traceback(bundle, script, words):
    """What it printed last is told: on stderr, else on stdout, where records are no words."""
    with pytest.raises(BackendError, match=f"^timing ended with exit code {words}$"):
        run(bundle(script))


@pytest.mark.parametrize("how", ["cancelled", "late"])
def test_a_child_that_hangs_is_ended(bundle, monkeypatch, how):
    """When the provider stops, or its time is over; what it started goes with it."""
    monkeypatch.setattr(measure, "_LOOK_S", 0.1)
    folder = bundle(
        "pid = os.fork()\nif pid:\n    open('new', 'w').write(str(pid))\n    os.rename('new', 'pid')\ntime.sleep(60)"
    )
    with pytest.raises(BackendError, match="was cancelled" if how == "cancelled" else "did not end within"):
        run(
            folder,
            timeout_s=0.3 if how == "late" else 60.0,
            cancelled=lambda: how == "cancelled" and (folder / "pid").is_file(),
        )
    if (folder / "pid").is_file():
        grandchild = procfs.identify(int((folder / "pid").read_text()))
        assert grandchild is None or _ends(grandchild)


def test_a_bundle_that_is_gone(tmp_path):
    """One of our errors, with its name."""
    with pytest.raises(BackendError, match="nowhere could not be timed"):
        run(tmp_path / "nowhere")


def test_an_artifact_without_our_watchdog_has_no_points():
    """Its backend then says nothing, and is not asked again."""
    asked = []
    assert measure_function(lambda *order: asked.append(order) or "", batches=(1, 2), cores=(1, 2)) == []
    assert asked == [((1, 2), 1)]


def test_a_failing_backend_is_heard():
    """Its error is the measurement's."""

    def curve(batches, cores):
        raise BackendError("no engine")

    with pytest.raises(BackendError, match="no engine"):
        measure_function(curve, batches=(1,), cores=(1,))


def test_the_childs_environment(tmp_path, monkeypatch):
    """The function's own variables and nothing of ours but a few; the bundle's path wins."""
    monkeypatch.setenv("SECRET_OF_THE_PROVIDER", "x")
    environment = child_environment(tmp_path, {"a": "1", "PYTHONPATH": "mine"})
    assert environment["PYTHONPATH"] == str(tmp_path)
    assert environment["function_dir"] == str(tmp_path / "function")
    assert environment["a"] == "1"
    assert "SECRET_OF_THE_PROVIDER" not in environment


def test_its_home_is_its_temporary_folder(tmp_path, monkeypatch):
    """No library finds our credentials by itself; caches and a user's packages stay where they are."""
    monkeypatch.setenv("HOME", "/home/owner")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(site, "ENABLE_USER_SITE", True)
    environment = child_environment(tmp_path, {"TMPDIR": "/scratch/f-1"})
    assert environment["HOME"] == environment["TMPDIR"] == "/scratch/f-1"
    assert environment["XDG_CACHE_HOME"] == "/home/owner/.cache"
    assert environment["PYTHONUSERBASE"] == site.getuserbase()
    assert child_environment(tmp_path, {"TMPDIR": "/scratch/f-1", "HOME": "/mine"})["HOME"] == "/mine"
    assert child_environment(tmp_path, {})["HOME"] == "/home/owner"


@pytest.mark.parametrize(("cache", "found"), [("/else/where", "/else/where"), ("", "/home/owner/.cache")])
def test_the_cache_is_the_providers(tmp_path, monkeypatch, cache, found):
    """Where it says, else in its home."""
    monkeypatch.setenv("HOME", "/home/owner")
    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    assert child_environment(tmp_path, {"TMPDIR": "/t"})["XDG_CACHE_HOME"] == found


def test_what_it_writes_is_for_its_user_only(bundle):
    """As an instance's files are."""
    folder = bundle(f"open('written', 'w').close()\nprint(json.dumps({LINE!r}))")
    assert run(folder)
    assert (folder / "written").stat().st_mode & 0o777 == 0o600
