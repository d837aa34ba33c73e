"""What a model runs on: decisions as values, and the way down from a GPU with a fake onnxruntime."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infless_watchdog import devices
from infless_watchdog.calls import LoadError
from infless_watchdog.onnx_model import OnnxModel
from infless_watchdog.settings import Settings
from infless_watchdog.torch_model import choose_device

MPS = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"
ALL = tuple(devices.PROVIDERS.values())


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a model sets is gone after its test."""
    monkeypatch.setenv(MPS, "")
    monkeypatch.delenv(MPS)


class FakeRuntime:
    """An onnxruntime whose sessions run on what `works`; the others raise, or are left out in silence."""

    def __init__(
        self, available: tuple[str, ...], works: tuple[str, ...], *, silent: bool = False, length: Any = 4
    ) -> None:
        self._length = length
        self.opened: list[list[devices.Provider]] = []
        self.mps_at_first_session: str | None = None
        self._available, self._works, self._silent = available, works, silent

    def get_available_providers(self) -> list[str]:
        """As compiled in."""
        return list(self._available)

    class SessionOptions:
        """Takes anything."""

        def add_session_config_entry(self, key: str, value: str) -> None:
            """Forgotten."""

    def InferenceSession(self, path: str, options: Any, providers: list[devices.Provider]) -> Any:
        """A session with one input of four numbers."""
        if not self.opened:
            self.mps_at_first_session = os.environ.get(MPS)
        self.opened.append(providers)
        names = [name for name, _ in providers]
        if names[0] not in self._works and not self._silent:
            raise RuntimeError(f"{names[0]} will not start")
        tensor = SimpleNamespace(name="x", type="tensor(float)", shape=["n", self._length])
        return SimpleNamespace(
            get_providers=lambda: [name for name in names if name in self._works],
            get_inputs=lambda: [tensor],
            get_outputs=lambda: [tensor],
        )


def load(monkeypatch: pytest.MonkeyPatch, runtime: FakeRuntime, **settings: Any) -> OnnxModel:
    """A model on a fake runtime."""
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)  # type: ignore[arg-type] # a module to whoever imports it
    return OnnxModel(Path("model.onnx"), Settings(**settings))


# decisions -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "percent", "expected"),
    [("cuda", 30, {MPS: "30"}), ("tensorrt", 100, {MPS: "100"}), ("cuda", 0, {}), ("cpu", 30, {})],
)
def test_the_share_of_the_gpu_is_told_to_mps(device: str, percent: int, expected: dict[str, str]) -> None:
    """Nothing is said where there is no share, or no GPU."""
    assert devices.environment(Settings(model_device=device, gpu_percent=percent)) == expected


@pytest.mark.parametrize(
    ("wished", "available", "expected"),
    [
        ("cpu", ALL, ("cpu",)),
        ("cuda", ALL, ("cuda", "cpu")),
        ("tensorrt", ALL, ("tensorrt", "cuda", "cpu")),
        ("tensorrt", ("CUDAExecutionProvider",), ("cuda", "cpu")),
        ("cuda", (), ("cpu",)),
    ],
)
def test_devices_are_tried_from_the_wished_one_down(wished: str, available: Any, expected: Any) -> None:
    """Only those that the runtime has; the CPU always."""
    assert devices.ladder(wished, available) == expected


def test_the_memory_limit_is_the_arenas() -> None:
    """0 leaves the runtime's own."""
    (name, options), cpu = devices.providers("cuda", Settings(gpu_memory_bytes=123))
    assert (name, options["gpu_mem_limit"], cpu) == (ALL[1], "123", (ALL[2], {}))
    assert options["arena_extend_strategy"] == "kSameAsRequested"
    assert "gpu_mem_limit" not in devices.providers("cuda", Settings())[0][1]


def test_tensorrt_builds_for_the_shapes_in_use() -> None:
    """From one row to the largest batch; in full precision; engines are kept."""
    profile = {"x": ((1, 3, 64), (8, 3, 256)), "m": ((1, 64), (8, 256))}
    names, (options, _, _) = zip(*devices.providers("tensorrt", Settings(gpu_memory_bytes=9), profile), strict=True)
    assert names == ALL
    assert options["trt_profile_min_shapes"] == "x:1x3x64,m:1x64"
    assert options["trt_profile_opt_shapes"] == options["trt_profile_max_shapes"] == "x:8x3x256,m:8x256"
    assert (options["trt_max_workspace_size"], options["trt_fp16_enable"]) == ("9", "0")
    assert options["trt_engine_cache_enable"] == "1"
    assert "trt_profile_min_shapes" not in devices.providers("tensorrt", Settings())[0][1]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError(
            "[ONNXRuntimeError] : 6 : bfc_arena.cc:376 Failed to allocate memory for requested buffer of size 9"
        ),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("bad allocation"),
        RuntimeError("CUDNN failure 4: CUDNN_STATUS_ALLOC_FAILED"),
    ],
)
def test_out_of_memory_is_known_by_its_words(error: BaseException) -> None:
    """A smaller batch may do."""
    assert devices.is_out_of_memory(error)


@pytest.mark.parametrize("error", [ValueError("memory"), RuntimeError("Invalid rank for input"), KeyError("x")])
def test_other_failures_are_not_out_of_memory(error: BaseException) -> None:
    """A smaller batch would fail as well."""
    assert not devices.is_out_of_memory(error)


# the way down --------------------------------------------------------------------------------------------------------


def test_the_wished_device_is_taken_without_a_word(monkeypatch: Any, caplog: pytest.LogCaptureFixture) -> None:
    """With the share of the GPU in the environment before the first session."""
    runtime = FakeRuntime(ALL, ALL)
    model = load(monkeypatch, runtime, model_device="cuda", gpu_percent=40)
    assert (model.device, caplog.text, runtime.mps_at_first_session) == ("cuda", "", "40")


def test_tensorrt_is_told_the_largest_batch(monkeypatch: Any) -> None:
    """The model is loaded once before, to know its inputs."""
    runtime = FakeRuntime(ALL, ALL)
    assert load(monkeypatch, runtime, model_device="tensorrt", batch_max=8).device == "tensorrt"
    assert runtime.opened[-1][0][1]["trt_profile_max_shapes"] == "x:8x4"
    assert runtime.opened[0] == [(ALL[2], {})]


@pytest.mark.parametrize(
    ("said", "least", "largest"),
    [
        ({"batch_pad": "t=8,16,32"}, "x:1x8", "x:4x32"),
        ({"input_shape": {"x": (5,)}}, "x:1x5", "x:4x5"),
        ({"batch_pad": "t=8"}, None, None),
        ({}, None, None),
    ],
)
def test_tensorrt_is_told_lengths_that_have_limits(monkeypatch: Any, said: Any, least: Any, largest: Any) -> None:
    """Where there is none, it builds as shapes come."""
    runtime = FakeRuntime(ALL, ALL, length="t")
    load(monkeypatch, runtime, model_device="tensorrt", batch_max=4, **said)
    options = runtime.opened[-1][0][1]
    assert (options.get("trt_profile_min_shapes"), options.get("trt_profile_max_shapes")) == (least, largest)


@pytest.mark.parametrize(
    ("runtime", "words"),
    [
        (FakeRuntime(ALL[2:], ALL[2:]), "this onnxruntime has no CUDAExecutionProvider"),
        (FakeRuntime(ALL, ALL[2:]), "CUDAExecutionProvider will not start"),
        (FakeRuntime(ALL, ALL[2:], silent=True), "CUDAExecutionProvider could not be started"),
    ],
)
def test_a_gpu_that_cannot_be_had_is_one_warning(
    monkeypatch: Any, caplog: pytest.LogCaptureFixture, runtime: FakeRuntime, words: str
) -> None:
    """The model runs on the CPU and says so."""
    assert load(monkeypatch, runtime, model_device="cuda").device == "cpu"
    assert len(caplog.records) == 1
    assert "model_device is cuda, but the model runs on cpu" in caplog.text
    assert words in caplog.text


def test_without_tensorrt_there_is_cuda(monkeypatch: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Which is more than the CPU, but not what was wished for."""
    assert load(monkeypatch, FakeRuntime(ALL[1:], ALL[1:]), model_device="tensorrt").device == "cuda"
    assert "model_device is tensorrt, but the model runs on cuda" in caplog.text


def test_a_model_that_no_device_can_load_is_refused(monkeypatch: Any) -> None:
    """With the runtime's words."""
    with pytest.raises(LoadError, match="is not a model that onnxruntime can load: CPUExecutionProvider will not"):
        load(monkeypatch, FakeRuntime(ALL, ()), model_device="cuda")


@pytest.mark.parametrize(
    ("wished", "has_cuda", "expected", "warnings"),
    [("cpu", True, "cpu", 0), ("cuda", True, "cuda", 0), ("cuda", False, "cpu", 1), ("tensorrt", True, "cuda", 1)],
)
def test_torch_has_cuda_or_the_cpu(
    wished: str, has_cuda: bool, expected: str, warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Its share of memory is set where there is a limit."""
    shares: list[float] = []
    cuda = SimpleNamespace(
        is_available=lambda: has_cuda,
        get_device_properties=lambda _: SimpleNamespace(total_memory=1000),
        set_per_process_memory_fraction=shares.append,
    )
    settings = Settings(model_device=wished, gpu_memory_bytes=250)
    assert choose_device(SimpleNamespace(cuda=cuda), settings) == expected
    assert len(caplog.records) == warnings
    assert shares == ([0.25] if expected == "cuda" else [])
