"""What `infless profile -f stack.yml` does: time the built functions of a stack file and keep the result."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from infless_core.clock import SystemClock
from infless_core.labels import parse_wishes
from infless_profiler.measure import batch_sizes
from infless_profiler.sessions import processor_name
from infless_profiler.store import ProfileStore
from infless_provider.backends.process import ProcessBackend
from infless_provider.bundles import digest_of, find_bundle, profile_key
from infless_provider.profiling import Profiles
from infless_provider.settings import START_TIMEOUT_S, usable_cores
from infless_provider.stackfile import StackFunction
from infless_provider.wire import parse_deployment


def profile_functions(
    functions: Iterable[StackFunction],
    bundles_dir: Path,
    state_dir: Path,
    batches: tuple[int, ...] | None,
    cpu_cores: int,
    progress: Callable[[str], None],
) -> dict[str, list[dict[str, Any]]]:
    """Points by function: `{"batch", "cpu_cores", "gpu_percent", "exec_s", "memory_bytes", "samples"}`.

    Raises:
        InflessError: see `build` and `measure`.
    """
    cpus = usable_cores(cpu_cores)
    store = ProfileStore(state_dir / "profiles.sqlite", processor_name())
    with tempfile.TemporaryDirectory() as scratch:
        # Not the state folder: a provider that starts there meanwhile would take the measurement for a stray.
        backend = ProcessBackend(cpus, Path(scratch), bundles_dir)
        profiles = Profiles(store, SystemClock(), len(cpus), backend.curve, START_TIMEOUT_S)
        return {function.name: _points(profiles, function, bundles_dir, batches, progress) for function in functions}


def _points(
    profiles: Profiles,
    function: StackFunction,
    bundles_dir: Path,
    batches: tuple[int, ...] | None,
    progress: Callable[[str], None],
) -> list[dict[str, Any]]:
    bundle = find_bundle(bundles_dir, function.name, function.image)
    spec = parse_deployment(function.deployment)
    wishes = parse_wishes(spec.labels)
    environment = wishes.environment(spec.env_vars)
    found = profiles.measure(
        profile_key(digest_of(bundle), environment),
        str(bundle.resolve()),
        environment,
        batches or batch_sizes(wishes.batch_max),
        lambda told: progress(f"{function.name}: {told}"),
        memory_bytes=spec.memory_limit_bytes,
    )
    return [
        {
            "batch": m.configuration.batch,
            "cpu_cores": m.configuration.cpu_cores,
            "gpu_percent": m.configuration.gpu_percent,
            "exec_s": m.point.exec_s,
            "memory_bytes": m.memory_bytes,
            "samples": len(m.samples_s),
        }
        for m in found
    ]
