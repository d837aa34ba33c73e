"""Edge: time a function's batches in a child process that is pinned to the cores it would get.

The child is the watchdog itself (`python -m infless_watchdog --curve`), so what is timed is what will serve.
"""

from __future__ import annotations

import json
import math
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from infless_core.errors import BackendError, InvalidInput
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

_LOAD_S = 60.0
"""Large models load for most of a minute; what has not begun to be timed then hangs."""
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
    bundle: Path,
    environment: Mapping[str, str],
    *,
    batches: Sequence[int],
    cores: Sequence[int],
    budget_s: float,
    progress: Callable[[str], None] = lambda _: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> list[Measurement]:
    """Time every `(batch, cores)` of a bundle.

    Args:
        bundle: folder with `function/` and `infless_watchdog/`.
        environment: the function's own variables.
        batches: batch sizes.
        cores: core counts; each is a run of its own, pinned to that many cores.
        budget_s: seconds of timing for each core count, start not included.
        progress: told what is being measured.
        cancelled: asked several times a second; True ends the child.

    Returns:
        Measurements, or nothing when the function has no example to be timed with.

    Raises:
        BackendError: when the function cannot be loaded or fails on its own example (carries its words), or when it
            was cancelled.
    """
    found: list[Measurement] = []
    for count in cores:
        progress(f"timing batches {', '.join(map(str, batches))} on {count} core(s)")
        try:
            out = _run_curve(bundle, environment, batches, count, budget_s, cancelled)
        except (OSError, subprocess.SubprocessError) as error:
            raise BackendError(f"{bundle.name} could not be timed: {error}") from error
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


def _run_curve(
    bundle: Path,
    environment: Mapping[str, str],
    batches: Sequence[int],
    cores: int,
    budget_s: float,
    cancelled: Callable[[], bool],
) -> str:
    command = [
        sys.executable, "-m", "infless_watchdog", "--curve", ",".join(map(str, batches)), "--budget-s", str(budget_s),
    ]  # fmt: skip
    env = {**child_environment(bundle, environment), "cpu_cores": str(cores)}
    with subprocess.Popen(
        command,
        env=env,
        cwd=bundle,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as child:
        try:
            # Before it has any thread: everything it starts inherits the cores.
            os.sched_setaffinity(child.pid, sorted(os.sched_getaffinity(0))[-cores:])
            out, err = _communicate(child, _LOAD_S + 20 * budget_s, cancelled)
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)  # not waited for yet, so its number is still its own
            raise
    if child.returncode != 0:
        words = [line for line in err.splitlines() if line.strip()]
        raise BackendError(words[-1] if words else f"timing ended with exit code {child.returncode}")
    return out


def _communicate(child: subprocess.Popen[str], timeout_s: float, cancelled: Callable[[], bool]) -> tuple[str, str]:
    for _ in range(math.ceil(timeout_s / _LOOK_S)):
        try:
            return child.communicate(timeout=_LOOK_S)
        except subprocess.TimeoutExpired:
            if cancelled():
                raise BackendError("timing was cancelled") from None
    raise BackendError(f"loading and timing it did not end within {timeout_s:.0f} s")


def child_environment(bundle: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that runs a bundle: the function's own variables and nothing of ours but PATH."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
    return {**kept, **environment, "PYTHONPATH": str(bundle), "function_dir": str(bundle / "function")}
