"""Edge: sessions of ONNX Runtime as an instance opens them, and what device they run on."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infless_core.errors import InvalidInput

_OPSET_WORDS = ("opset", "ir_version", "IR version")


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What execution times hold for. Tables of different devices never mix."""

    kind: str
    """`cpu` or `cuda`."""
    name: str
    """The processor's or the GPU's own name."""
    runtime: str
    """Runtime and version, such as `onnxruntime 1.32.0`: another version has other kernels."""

    @property
    def providers(self) -> list[tuple[str, dict[str, str]]]:
        """Execution providers, with an instance's options (`infless_watchdog.devices`)."""
        cuda = {"arena_extend_strategy": "kSameAsRequested", "cudnn_conv_algo_search": "HEURISTIC"}
        return [*([("CUDAExecutionProvider", cuda)] if self.kind == "cuda" else []), ("CPUExecutionProvider", {})]


def this_device(gpu: bool = False) -> Device:
    """The processor, or the first GPU.

    Raises:
        InvalidInput: no onnxruntime, or no GPU that it can use.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise InvalidInput("profiling needs a runtime: pip install 'infless[cpu]' or 'infless[gpu]'") from error
    runtime = f"onnxruntime {onnxruntime.__version__}"
    if not gpu:
        return Device(kind="cpu", name=processor_name(), runtime=runtime)
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise InvalidInput(
            "--gpu-percents: this onnxruntime cannot use a GPU; pip install 'infless[gpu]' in place of"
            " 'infless[cpu]', on a machine with an NVIDIA GPU"
        )
    return Device(kind="cuda", name=_gpu_name(), runtime=runtime)


def these_devices() -> list[Device]:
    """The processor, and the GPU where there is one."""
    try:
        return [this_device(), this_device(gpu=True)]
    except InvalidInput:
        return [this_device()]


def check_shares(gpu_percents: Sequence[int]) -> None:
    """Shares of a GPU need NVIDIA's MPS: without its daemon CUDA gives everybody everything.

    Raises:
        InvalidInput: it does not run.
    """
    pipes = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"))  # noqa: S108 - NVIDIA's default
    if any(percent < 100 for percent in gpu_percents) and not (pipes / "control").exists():
        raise InvalidInput(
            "--gpu-percents: shares below 100 need NVIDIA's MPS daemon, which does not run here; start it with"
            " nvidia-cuda-mps-control -d"
        )


def gpu_memory_bytes() -> int:
    """Memory of the first GPU."""
    return int(_nvidia_smi("memory.total").split()[0]) << 20


def _gpu_name() -> str:
    return _nvidia_smi("name")


def _nvidia_smi(what: str) -> str:
    command = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits", "--id=0"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        raise InvalidInput(f"--gpu-percents: no NVIDIA GPU answers here: {error}") from error
    return found.splitlines()[0]


def processor_name() -> str:
    """The processor's own name and how many of them: what execution times on a CPU hold for."""
    model = "unknown processor"
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    return f"{model} x{os.cpu_count()}"


def cache_bytes() -> int:
    """Size of the processor's last-level cache; 0 where the system does not tell."""
    found = 0
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        if text.endswith("K") and text[:-1].isdigit():
            found = max(found, int(text[:-1]) << 10)
    return found


def open_session(
    model: Path | bytes,
    device: Device,
    cpu_cores: int,
    *,
    optimise: bool = True,
    saved: Path | None = None,
    outside: bool = False,
    inter_op_threads: int = 1,
) -> Any:
    """A session with the options of an instance (`infless_watchdog.onnx_model`): what is timed is what will serve.

    Args:
        model: a file, or a serialised model.
        device: where it runs.
        cpu_cores: threads of all operators together.
        optimise: whether the graph is optimised.
        saved: where the optimised graph goes.
        outside: keep its weights in a file beside it.
        inter_op_threads: operators that run at the same time; instances run one after the other.

    Raises:
        InvalidInput: the runtime refuses the model; carries its words.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = max(1, cpu_cores // inter_op_threads)
    options.inter_op_num_threads = inter_op_threads
    if inter_op_threads > 1:
        options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if saved is not None:
        options.optimized_model_filepath = str(saved)
        if outside:
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
    source = model if isinstance(model, bytes) else str(model)
    try:
        session = onnxruntime.InferenceSession(source, options, providers=device.providers)
    except Exception as error:
        where = "an operator of the model" if isinstance(model, bytes) else str(model)
        words = str(error).split(" : ", 2)[-1].strip().splitlines()[0]
        hint = ""
        if any(word in words for word in _OPSET_WORDS):
            hint = f"; {device.runtime} is the newest this machine has: export with an older opset, or update it"
        raise InvalidInput(f"{where}: onnxruntime refuses it: {words}{hint}") from error
    if device.kind == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
        raise InvalidInput("onnxruntime cannot start its CUDA provider; are CUDA's and cuDNN's libraries installed?")
    return session


def runner(session: Any, feed: dict[str, np.ndarray], device: Device) -> Callable[[], None]:
    """One execution with inputs in place, on the device: what an operator meets inside a model."""
    import onnxruntime

    binding = session.io_binding()
    kind = device.kind
    for name, array in feed.items():
        on_host = array.dtype == object or kind == "cpu"
        value = onnxruntime.OrtValue.ortvalue_from_numpy(
            np.ascontiguousarray(array), "cpu" if on_host else kind, 0
        )  # fmt: skip
        binding.bind_ortvalue_input(name, value)
    for one in session.get_outputs():
        binding.bind_output(one.name, kind, 0)
    if kind == "cpu":
        return lambda: session.run_with_iobinding(binding)

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return run


def machine() -> dict[str, Any]:
    """What is kept beside a device's times, for who looks at them later."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": os.cpu_count(),
        "memory_bytes": memory_bytes,
        "last_level_cache_bytes": cache_bytes(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
