"""Settings of an instance: a pure function of the environment, all faults reported at once.

OpenFaaS's names and forms are honoured (of-watchdog 0.11: durations are Go durations or bare seconds).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any


class SettingsError(ValueError):
    """One or more environment variables are wrong; the message has a line for each."""


def duration_s(text: str) -> float:
    """Seconds from `"200ms"`, `"1m30s"` or bare seconds `"20"`."""
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    scale = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    parts = re.findall(rf"(\d+(?:\.\d+)?)({'|'.join(scale)})", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is not a duration such as '200ms', '20s' or '20'")
    return sum(float(number) * scale[unit] for number, unit in parts)


def _limit_s(text: str) -> float:
    """A timeout; 0 is none, as in of-watchdog."""
    return duration_s(text) or inf


def _target_s(text: str) -> float:
    seconds = duration_s(text)
    if seconds <= 0:
        raise ValueError(f"{text!r} is not a duration above 0")
    return seconds


def _whole(low: int, high: int | None = None) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"\d{1,18}", text) or int(text) < low or (high is not None and int(text) > high):
            allowed = f"of at least {low}" if high is None else f"from {low} to {high}"
            raise ValueError(f"{text!r} is not a whole number {allowed}")
        return int(text)

    return parse


def _one_of(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"{text!r} is not one of {', '.join(allowed)}")
        return text

    return parse


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ValueError(f"{text!r} is not a number from 0 to 1")
    return value


def shapes(text: str) -> dict[str, tuple[int, ...]]:
    """Shapes of one item by input name, from `"x=3,48,192;y=10"`; a lone `"3,48,192"` has the name ''."""
    found: dict[str, tuple[int, ...]] = {}
    for part in filter(None, text.replace(" ", "").split(";")):
        name, _, dims = part.rpartition("=")
        if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", dims):
            raise ValueError(f"{part!r} is not a shape such as 'x=3,48,192'")
        found[name] = tuple(int(dim) for dim in dims.split(","))
    return found


def _fds(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d+,\d+", text):
        raise ValueError(f"{text!r} is not two file descriptors such as '3,4'")
    return tuple(int(part) for part in text.split(","))


def _read(parse: Callable[[str], Any], default: Any) -> Any:
    metadata = {"parse": parse}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:  # each `_read` is a dataclass field
    """Each field is the environment variable of the same name, without its unit (`_s`)."""

    port: int = _read(_whole(1, 65535), 8080)
    """Requests, `/_/health`, `/_/ready`."""
    metrics_port: int = _read(_whole(1, 65535), 8081)
    """`/metrics`; kept apart from requests, as of-watchdog does."""
    grpc_port: int = _read(_whole(0, 65535), 0)
    """Open Inference Protocol over gRPC (needs `infless[grpc]`); 0 is off."""
    listen_fds: tuple[int, ...] = _read(_fds, ())
    """Two bound sockets handed over by a supervisor, instead of the two ports: no port can be lost in between."""
    function_dir: str = _read(str, "function")
    """Folder with `handler.py` or `model.onnx`."""
    function_name: str = _read(str, "function")
    """Name of the model in the Open Inference Protocol."""
    batch_max: int = _read(_whole(1), 32)
    """Largest batch (the paper's limit)."""
    latency_target_s: float = _read(_target_s, 0.5)
    """Time from a request's arrival to its answer."""
    wait_max_s: float = _read(_limit_s, inf)
    """Longest wait for a fuller batch, where the latency target would allow more; 0 is no limit of its own."""
    cpu_cores: int = _read(_whole(1), 1)
    """Threads of the model runtime."""
    keep_up_load: float = _read(_share, 0.9)
    """See `batching.BatchPolicy`; 0 waits as the paper does."""
    input_shape: dict[str, tuple[int, ...]] = _read(shapes, {})
    """Shape of one item for models with dynamic axes, for raw bodies, warm-up and profiling."""
    batch_pad: str = _read(str, "")
    """To which lengths the dynamic axes of items are padded, so that items of different length share a batch
    (`padding.parse_pad`); empty pads nothing."""
    model_device: str = _read(_one_of("cpu", "cuda", "tensorrt"), "cpu")
    """What the model is to run on; where that cannot be had it runs on the CPU, with a warning and a metric."""
    gpu_percent: int = _read(_whole(0, 100), 0)
    """Share of the GPU's threads (`CUDA_MPS_ACTIVE_THREAD_PERCENTAGE`); 0 leaves that variable alone."""
    gpu_memory_bytes: int = _read(_whole(0), 0)
    """Limit of the runtime's memory arena on the GPU; 0 is no limit."""
    handler_isolation: str = _read(_one_of("auto", "thread", "process"), "auto")
    """Where a `handler.py` runs. `auto`: in a thread, unless it is seen to hold the interpreter's lock."""
    exec_timeout_s: float = _read(_limit_s, 30.0)
    """Longest wait in the queue, and longest run of a batch, then 504 (of-watchdog's default). 0 is no limit, here
    and in the next one."""
    read_timeout_s: float = _read(_limit_s, 30.0)
    """408 for a request that does not arrive whole within this time."""
    write_timeout_s: float = _read(_target_s, 30.0)
    """A client that takes nothing of its answer for this long is dropped; also the longest drain after SIGTERM."""
    healthcheck_interval_s: float = _read(duration_s, 2.0)
    """After SIGTERM requests are still taken for this long, so that a load balancer can notice."""
    ready_path: str = _read(str, "")
    """Where a `handle(event, context)` says whether it is ready: `/_/ready` asks it there (of-watchdog)."""
    max_inflight: int = _read(_whole(0), 0)
    """429 above this many requests at once; 0 is no limit (of-watchdog)."""
    queue_max: int = _read(_whole(1), 8192)
    """503 with Retry-After above this many waiting requests: a trivial model serves so many within a usual target."""
    compress_min_bytes: int = _read(_whole(0), 16 * 1024)
    """Text and JSON answers of at least this size are compressed for clients that accept it; 0 never. Smaller ones
    cost more time than they save."""
    log_file: str = _read(str, "")
    """Write stdout and stderr there, a time before each line; empty leaves them alone."""
    body_max_bytes: int = _read(_whole(1), 64 * 1024 * 1024)
    """413 above."""


def variable_name(field_name: str) -> str:
    """The environment variable of a field: units live in our names, not in OpenFaaS's."""
    return field_name.removesuffix("_s")


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Settings from the environment; variables that are not ours are the function's own.

    Raises:
        SettingsError: a line for each wrong variable.
    """
    values: dict[str, Any] = {}
    faults: list[str] = []
    for name, spec in Settings.__dataclass_fields__.items():
        variable = variable_name(name)
        text = environ.get(variable, "").strip()
        if not text:
            continue
        try:
            values[name] = spec.metadata["parse"](text)
        except ValueError as fault:
            faults.append(f"environment variable {variable}: {fault}")
    ports = [values.get("grpc_port") or None]
    if not values.get("listen_fds"):
        ports += [values.get("port", 8080), values.get("metrics_port", 8081)]
    if len({*filter(None, ports)}) < len([*filter(None, ports)]):
        faults.append("environment variables port, metrics_port and grpc_port: two of them are the same")
    if faults:
        raise SettingsError("\n".join(faults))
    return Settings(**values)
