"""Edge: time a function's batches in a child process that is pinned to the cores it would get.

The child is the watchdog itself (`python -m infless_watchdog --curve`), so what is timed is what will serve.
"""

from __future__ import annotations

import json
import math
import os
import signal
import site
import statistics
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from infless_core.errors import BackendError, InvalidInput, Unavailable
from infless_core.model import Configuration, ProfilePoint
from infless_profiler.observe import Prior

MARGIN_MIN, MARGIN_MAX = 1.03, 1.5
"""By how much plans are above the median execution; how much in between is learned from the samples."""
MARGIN_FEW = 1.10
"""At least so much where few samples say little of the slowest twentieth: the paper inflates predictions by 10 %
(INFless, section 3.3)."""
_FEW_SAMPLES = 20
REQUEST_S = 0.0001
"""The watchdog's own time for one request (parsing, queue, answer, metrics) on the core that the model also needs:
`python -m benchmarks.watchdog` measures about 70 us a request on a trivial model."""

_LOOK_S = 0.2
"""How often a child is asked for: a provider that stops must not wait for a model that loads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Raw samples of one configuration."""

    configuration: Configuration
    samples_s: tuple[float, ...]
    memory_bytes: int

    @property
    def margin(self) -> float:
        """So much above the median that about one execution of twenty takes longer."""
        ranked = sorted(self.samples_s)
        place = 0.95 * (len(ranked) - 1)
        low, high = ranked[math.floor(place)], ranked[math.ceil(place)]
        slow_s = low + (high - low) * (place - math.floor(place))
        least = MARGIN_MIN if len(ranked) >= _FEW_SAMPLES else MARGIN_FEW
        return min(max(slow_s / statistics.median(ranked), least), MARGIN_MAX)

    @property
    def prior(self) -> Prior:
        """What is expected of an execution until it is seen in use; the watchdog's own time comes on top."""
        return Prior(
            configuration=self.configuration,
            expected_s=statistics.median(self.samples_s),
            margin=self.margin,
            extra_s=self.configuration.batch * REQUEST_S,
            memory_bytes=self.memory_bytes,
        )

    @property
    def point(self) -> ProfilePoint:
        """What the planner uses."""
        return self.prior.planned()


def batch_sizes(batch_max: int) -> tuple[int, ...]:
    """Powers of two up to `batch_max`, and `batch_max` itself (the paper's grid)."""
    sizes = [1 << power for power in range(batch_max.bit_length()) if 1 << power <= batch_max]
    return tuple(sorted({*sizes, batch_max}))


def core_counts(cpu_cores: int) -> tuple[int, ...]:
    """Powers of two up to the machine's cores, and all of them."""
    return batch_sizes(cpu_cores)


def measure_function(
    curve: Callable[[Sequence[int], int], str],
    *,
    batches: Sequence[int],
    cores: Sequence[int],
    progress: Callable[[str], None] = lambda _: None,
) -> list[Measurement]:
    """Time every `(batch, cores)` of a function.

    Args:
        curve: given batch sizes and a number of cores, runs the function's watchdog with `--curve` and gives what it
            printed; its errors pass through.
        batches: batch sizes.
        cores: core counts; each is a run of its own, pinned to that many cores.
        progress: told what is being measured.

    Returns:
        Measurements, or nothing when the function has no example to be timed with, or no watchdog that can.
    """
    found: list[Measurement] = []
    for count in cores:
        progress(f"timing batches {', '.join(map(str, batches))} on {count} core(s)")
        out = curve(batches, count)
        measured = [one for line in out.splitlines() if (one := _measurement(line, count)) is not None]
        if not measured:
            return []
        found += measured
    return found


def _measurement(line: str, cpu_cores: int) -> Measurement | None:
    """One line of the child; None for `{"unknown": ...}` and for what the user's code prints in between."""
    try:
        record = json.loads(line)
        samples_s = tuple(float(sample) for sample in record["exec_s"])
        configuration = Configuration(batch=record["batch"], cpu_cores=cpu_cores)
        memory_bytes = int(record["memory_bytes"])
    except (ValueError, TypeError, KeyError, InvalidInput):
        return None
    return (
        Measurement(configuration=configuration, samples_s=samples_s, memory_bytes=memory_bytes) if samples_s else None
    )


def run_curve(
    bundle: Path,
    environment: Mapping[str, str],
    batches: Sequence[int],
    cpus: Collection[int],
    budget_s: float,
    timeout_s: float,
    cancelled: Callable[[], bool] = lambda: False,
    launcher: Sequence[str] = (),
) -> str:
    """Run a bundle's watchdog once with `--curve`, in a child that is pinned to the cores it would get.

    Args:
        bundle: folder with `function/` and `infless_watchdog/`.
        environment: the function's own variables, and `TMPDIR` (see `child_environment`).
        batches: batch sizes.
        cpus: the numbers of those cores.
        budget_s: seconds of timing, start not included.
        timeout_s: what has not ended by then, start included, hangs.
        cancelled: asked several times a second; True ends the child.
        launcher: what comes before its command: sets limits on itself, and then becomes it.

    Returns:
        What it printed: one JSON object a line, and what the user's code prints in between.

    Raises:
        BackendError: when the function cannot be loaded or fails on its own example (carries its words), or when it
            was cancelled.
    """
    command = [
        *launcher,
        sys.executable, "-m", "infless_watchdog", "--curve", ",".join(map(str, batches)), "--budget-s", str(budget_s),
    ]  # fmt: skip
    env = {**child_environment(bundle, environment), "cpu_cores": str(len(cpus))}
    try:
        code, out, err = _run(command, env, bundle, cpus, timeout_s, cancelled)
    except (OSError, subprocess.SubprocessError) as error:
        raise BackendError(f"{bundle.name} could not be timed: {error}") from error
    if code != 0:
        raise BackendError(why_it_died(code, out, err))
    return out


def why_it_died(code: int, out: str, err: str) -> str:
    """A sentence on a `--curve` that failed.

    Args:
        code: its exit code; that of Python with words on stderr is 1, and these are then enough.
        out: what it printed on stdout, records included.
        err: the same on stderr.
    """
    complaints = [line for line in err.splitlines() if line.strip()]
    if complaints and code == 1:
        return complaints[-1]
    told = complaints or [line for line in out.splitlines() if line.strip() and not _is_record(line)]
    return f"timing ended with exit code {code}{f': {told[-1].strip()}' if told else ''}"


def _is_record(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _run(
    command: Sequence[str],
    env: Mapping[str, str],
    folder: Path,
    cpus: Collection[int],
    timeout_s: float,
    cancelled: Callable[[], bool],
) -> tuple[int, str, str]:
    """Exit code and output of a child; whatever it started ends with it when it does not end by itself."""
    with subprocess.Popen(
        command,
        env=env,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
        umask=0o077,
    ) as child:
        try:
            # Before it has any thread: everything it starts inherits the cores.
            os.sched_setaffinity(child.pid, cpus)
            out, err = _communicate(child, timeout_s, cancelled)
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)  # not waited for yet, so its number is still its own
            raise
    return child.returncode, out, err


def _communicate(child: subprocess.Popen[str], timeout_s: float, cancelled: Callable[[], bool]) -> tuple[str, str]:
    for _ in range(math.ceil(timeout_s / _LOOK_S)):
        try:
            return child.communicate(timeout=_LOOK_S)
        except subprocess.TimeoutExpired:
            if cancelled():
                raise Unavailable("timing was cancelled") from None
    raise BackendError(f"loading and timing it did not end within {timeout_s:.0f} s")


def child_environment(bundle: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that runs a bundle: the function's own variables and hardly anything of ours.

    Its home is its temporary folder, so that no library finds our `.netrc` or cloud credentials by itself, nor litters
    our home. This is against accidents: a process of the same user can open them. Two folders of the home are named
    all the same: the cache, without which each start would download its model again, and packages that were installed
    with `pip install --user`. A function's own `HOME` wins.

    Args:
        bundle: folder with `function/` and `infless_watchdog/`.
        environment: the function's own variables, and `TMPDIR`, the process's temporary folder.
    """
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
    if "TMPDIR" in environment:
        kept |= {"HOME": environment["TMPDIR"], **_folders_of_home()}
    return {**kept, **environment, "PYTHONPATH": str(bundle), "function_dir": str(bundle / "function")}


def _folders_of_home() -> dict[str, str]:
    # Where Linux programs, Hugging Face's and PyTorch's among them, keep what can be fetched again (XDG base
    # directories), and where Python looks for a user's packages.
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - does not raise
    found = {"XDG_CACHE_HOME": cache} if os.path.isabs(cache) else {}  # noqa: PTH117
    return {**found, "PYTHONUSERBASE": site.getuserbase()} if site.ENABLE_USER_SITE else found
