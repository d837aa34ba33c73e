"""What a model runs on: decisions about GPUs, their environment and the runtime's options. Touches no GPU itself."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from infless_watchdog.settings import Settings

Shape = tuple[int, ...]
Provider = tuple[str, dict[str, str]]

PROVIDERS = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
"""What onnxruntime calls them."""
_NEXT = {"tensorrt": ("tensorrt", "cuda", "cpu"), "cuda": ("cuda", "cpu"), "cpu": ("cpu",)}


def environment(settings: Settings) -> dict[str, str]:
    """Variables that CUDA reads once, at its first call: the share of the GPU's threads that MPS gives us."""
    if settings.model_device == "cpu" or not settings.gpu_percent:
        return {}
    return {"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": str(settings.gpu_percent)}


def ladder(wished: str, available: Collection[str]) -> tuple[str, ...]:
    """Devices to try in order, of those for which the runtime has a provider; the CPU is always the last."""
    return tuple(device for device in _NEXT[wished] if device == "cpu" or PROVIDERS[device] in available)


def providers(
    device: str, settings: Settings, profile: Mapping[str, tuple[Shape, Shape]] | None = None
) -> list[Provider]:
    """Execution providers of onnxruntime with their options; later ones take the nodes that earlier ones cannot.

    Args:
        device: one of `ladder`.
        settings: of the instance.
        profile: for TensorRT, the least and the largest shape of each input; None where nobody knows.
    """
    found: list[Provider] = []
    if device == "tensorrt":
        found.append((PROVIDERS["tensorrt"], _tensorrt_options(settings, profile)))
    if device in ("tensorrt", "cuda"):
        found.append((PROVIDERS["cuda"], _cuda_options(settings)))
    return [*found, (PROVIDERS["cpu"], {})]


def _cuda_options(settings: Settings) -> dict[str, str]:
    options = {
        # Twice the memory at each growth would not fit beside other instances on the same GPU.
        "arena_extend_strategy": "kSameAsRequested",
        # An exhaustive search for each new shape would stop all requests for seconds.
        "cudnn_conv_algo_search": "HEURISTIC",
    }
    if settings.gpu_memory_bytes:
        options["gpu_mem_limit"] = str(settings.gpu_memory_bytes)
    return options


def _tensorrt_options(settings: Settings, profile: Mapping[str, tuple[Shape, Shape]] | None) -> dict[str, str]:
    options = {
        "trt_engine_cache_enable": "1",  # an engine takes minutes to be built
        "trt_engine_cache_path": str(Path(tempfile.gettempdir()) / "infless-tensorrt"),
        "trt_fp16_enable": "0",  # answers are those of the CPU
    }
    if settings.gpu_memory_bytes:
        options["trt_max_workspace_size"] = str(settings.gpu_memory_bytes)
    if profile:  # else the engine is built anew whenever a shape is beyond those that came before
        options["trt_profile_min_shapes"] = _shapes({name: least for name, (least, _) in profile.items()})
        options["trt_profile_max_shapes"] = _shapes({name: largest for name, (_, largest) in profile.items()})
        options["trt_profile_opt_shapes"] = options["trt_profile_max_shapes"]
    return options


def _shapes(shapes: Mapping[str, Sequence[int]]) -> str:
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())


_OUT_OF_MEMORY = (
    "out of memory",  # CUDA, torch on CUDA
    "failed to allocate memory",  # onnxruntime's arena
    "can't allocate memory",  # torch on the CPU
    "bad allocation",
    "bad_alloc",  # C++
    "alloc_failed",  # CUDNN_STATUS_ALLOC_FAILED, CUBLAS_STATUS_ALLOC_FAILED
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a runtime says that the batch was too large for its memory: Python, torch, CUDA, onnxruntime."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _OUT_OF_MEMORY)
