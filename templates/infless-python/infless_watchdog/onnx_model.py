"""A bare `model.onnx` as a function, run by ONNX Runtime."""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from infless_watchdog import devices, oip
from infless_watchdog.calls import LoadError
from infless_watchdog.settings import Settings
from infless_watchdog.tensor_model import TensorModel
from infless_watchdog.tensors import Arrays, Shape, TensorSpec, signature

LOG = logging.getLogger("infless.watchdog")
_TYPES = {
    "tensor(float)": "FP32", "tensor(double)": "FP64", "tensor(float16)": "FP16", "tensor(bool)": "BOOL",
    "tensor(int8)": "INT8", "tensor(int16)": "INT16", "tensor(int32)": "INT32", "tensor(int64)": "INT64",
    "tensor(uint8)": "UINT8", "tensor(uint16)": "UINT16", "tensor(uint32)": "UINT32", "tensor(uint64)": "UINT64",
    "tensor(string)": "BYTES",
}  # fmt: skip


class OnnxModel(TensorModel):
    """Serves `model.onnx`."""

    kind = "onnx"
    platform = "onnxruntime_onnx"

    def __init__(self, path: Path, settings: Settings) -> None:
        runtime = OnnxRuntime(path, settings)
        self.prepare_cores = runtime.prepare_cores
        super().__init__(runtime, settings, path)


class OnnxRuntime:
    """A session of ONNX Runtime on the best device of those that were wished for. A `tensors.Runtime`.

    Raises:
        LoadError: there is no onnxruntime, or the file is no model for it.
    """

    def __init__(self, path: Path, settings: Settings) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise LoadError(f"{path} needs a runtime: pip install 'infless[cpu]' or 'infless[gpu]'") from error
        self._onnxruntime = onnxruntime
        self._path, self._settings, self._cpu_cores = path, settings, settings.cpu_cores
        self._prepared: tuple[int, Any] | None = None
        self._session, self.device = self._open_on_best()
        self.inputs, self.outputs = _specs(self._session, path)
        self._names = [spec.name for spec in self.outputs]

    def run(self, feed: Arrays) -> Arrays:
        """One call of the session."""
        return dict(zip(self._names, self._session.run(self._names, feed), strict=True))

    def bind(self, feed: Arrays, name: str, into: np.ndarray) -> Callable[[], None]:
        """With I/O binding: half of what a call costs, and no memory of its own for the output."""
        session, binding = self._session, self._session.io_binding()
        values = [self._onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in (*feed.values(), into)]
        for key, value in zip(feed, values, strict=False):
            binding.bind_ortvalue_input(key, value)
        binding.bind_ortvalue_output(name, values[-1])
        if self.device == "cpu":
            return lambda: session.run_with_iobinding(binding)

        def run() -> None:
            binding.synchronize_inputs()
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return run

    def prepare_cores(self, cpu_cores: int) -> None:
        """Open a session with so many threads, for `set_cpu_cores`: loading a model may take longer than a target."""
        if cpu_cores != self._cpu_cores:
            self._prepared = (cpu_cores, self._open(self.device, cpu_cores))

    def set_cpu_cores(self, cpu_cores: int) -> None:
        """With a new session: a session's threads are made with it. Should that fail, the old one stays."""
        if cpu_cores != self._cpu_cores:
            cores, session = self._prepared or (0, None)
            self._session = session if cores == cpu_cores else self._open(self.device, cpu_cores)
            self._cpu_cores = cpu_cores
            _trim_heap()
        self._prepared = None

    # sessions --------------------------------------------------------------------------------------------------------

    def _open_on_best(self) -> tuple[Any, str]:
        wished, runtime = self._settings.model_device, self._onnxruntime
        if wished != "cpu":
            os.environ.update(devices.environment(self._settings))  # before anything calls CUDA
            if hasattr(runtime, "preload_dlls"):
                runtime.preload_dlls()  # CUDA's libraries from its wheels, where they are not the system's
        reason = f"this onnxruntime has no {devices.PROVIDERS[wished]}"
        for device in devices.ladder(wished, runtime.get_available_providers()):
            try:
                session = self._open(device, self._cpu_cores)
            except Exception as error:
                if device == "cpu":
                    raise LoadError(f"{self._path} is not a model that onnxruntime can load: {error}") from error
                reason = str(error)
                continue
            # A provider whose libraries are missing is left out by onnxruntime itself.
            if devices.PROVIDERS[device] in session.get_providers():
                if device != wished:
                    LOG.warning("model_device is %s, but the model runs on %s: %s", wished, device, reason)
                return session, device
            reason = f"{devices.PROVIDERS[device]} could not be started; are its libraries installed?"
        raise AssertionError("the CPU is the last of each ladder")

    def _open(self, device: str, cpu_cores: int) -> Any:
        options = self._onnxruntime.SessionOptions()
        options.intra_op_num_threads = cpu_cores
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what fails raises as well, and a client could fill the log with it
        # Threads that spin while they wait for the next run take the cores of other instances.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        chosen = devices.providers(device, self._settings, self._profile() if device == "tensorrt" else None)
        return self._onnxruntime.InferenceSession(str(self._path), options, providers=chosen)

    def _profile(self) -> dict[str, tuple[Shape, Shape]] | None:
        """The shapes that TensorRT shall build its engine for; to know them, the model must be loaded once."""
        inputs, outputs = _specs(self._open("cpu", 1), self._path)
        return signature(inputs, outputs, self._settings, self._path).limits(self._settings.batch_max)


def _trim_heap() -> None:
    """Give the system what the old session has left in glibc's heap: with each change it would be more."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _specs(session: Any, path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    for one in session.get_inputs():
        if one.type not in _TYPES:
            raise LoadError(f"{path}: input {one.name} has type {one.type}; write a handler.py for it")
    for one in session.get_outputs():
        if one.type not in _TYPES:
            hint = "export it without ZipMap" if "map" in one.type else "take it out"
            raise LoadError(f"{path}: output {one.name} is {one.type}, no tensor; {hint}, or write a handler.py")
    return tuple(map(_spec, session.get_inputs())), tuple(map(_spec, session.get_outputs()))


def _spec(one: Any) -> TensorSpec:
    shape = tuple(dim if isinstance(dim, (int, str)) else None for dim in one.shape)
    return TensorSpec(name=one.name, dtype=oip.DTYPES[_TYPES[one.type]], shape=shape)
