"""A bare `model.pt2` (torch.export) or `model.pt` (TorchScript) as a function, run by torch."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infless_watchdog import devices, oip
from infless_watchdog.calls import LoadError
from infless_watchdog.settings import Settings
from infless_watchdog.tensor_model import TensorModel
from infless_watchdog.tensors import Arrays, TensorSpec

LOG = logging.getLogger("infless.watchdog")


class TorchModel(TensorModel):
    """Serves `model.pt2`, or anything else as TorchScript."""

    kind = "torch"

    def __init__(self, path: Path, settings: Settings) -> None:
        runtime = _Exported(path, settings) if path.suffix == ".pt2" else _Script(path, settings)
        self.platform = runtime.platform
        super().__init__(runtime, settings, path)


class _TorchRuntime(ABC):
    """What both kinds of file have in common. A `tensors.Runtime`."""

    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    _call: Callable[[list[Any]], Sequence[Any]]
    """From tensors to tensors, both flat and in order."""
    _takes: Sequence[Any]
    """torch's types of the inputs."""

    def __init__(self, path: Path, settings: Settings) -> None:
        try:
            import torch
        except ImportError as error:
            raise LoadError(f"{path} needs a runtime: pip install 'infless[torch]'") from error
        self._torch = torch
        self.device = choose_device(torch, settings)
        self.set_cpu_cores(settings.cpu_cores)
        try:
            self._load(path, settings)
        except LoadError:
            raise
        except Exception as error:
            raise LoadError(f"{path} is not a model that torch can load: {error}") from error

    def run(self, feed: Arrays) -> Arrays:
        """One call of the model."""
        torch = self._torch
        with torch.inference_mode():
            # torch wants to be able to write; the bytes of a request nobody may change.
            arrays = [np.require(feed[spec.name], requirements=["C", "W"]) for spec in self.inputs]
            given = [torch.from_numpy(one).to(self.device, kind) for one, kind in zip(arrays, self._takes, strict=True)]
            found = self._call(given)
            return {spec.name: self._array(one) for spec, one in zip(self.outputs, found, strict=True)}

    def bind(self, feed: Arrays, name: str, into: np.ndarray) -> None:
        """A module makes its outputs itself."""
        del feed, name, into

    def set_cpu_cores(self, cpu_cores: int) -> None:
        """Threads of the whole process."""
        self._torch.set_num_threads(cpu_cores)

    @abstractmethod
    def _load(self, path: Path, settings: Settings) -> None: ...

    def _array(self, tensor: Any) -> np.ndarray:
        if tensor.dtype == self._torch.bfloat16:  # numpy has none; float32 holds each of its values
            tensor = tensor.float()
        array: np.ndarray = tensor.cpu().numpy()
        return array

    def _spec(self, name: str, value: Any, shape: tuple[int | str | None, ...], what: str) -> TensorSpec:
        if not isinstance(value, self._torch.Tensor):
            raise LoadError(f"{what} {name} is no tensor; write a handler.py for it")
        dtype = self._array(self._torch.empty(0, dtype=value.dtype)).dtype
        if dtype not in oip.NAMES:
            raise LoadError(f"{what} {name} has type {value.dtype}; write a handler.py for it")
        return TensorSpec(name=name, dtype=dtype, shape=shape)


class _Exported(_TorchRuntime):
    """A program of torch.export: it says what it takes and gives."""

    platform = "pytorch_export"

    def _load(self, path: Path, settings: Settings) -> None:
        del settings
        program = self._torch.export.load(path)
        if self.device != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, self.device)
        signature, call_spec = program.graph_signature, program.call_spec
        values = {node.name: node.meta.get("val") for node in program.graph.nodes}
        gives = signature.user_outputs
        self.inputs = tuple(self._declared(name, values.get(name), f"{path}: input") for name in signature.user_inputs)
        self.outputs = tuple(
            self._declared(name, values.get(given), f"{path}: output")
            for name, given in zip(_output_names(call_spec.out_spec, len(gives)), gives, strict=True)
        )
        self._takes = [values[name].dtype for name in signature.user_inputs]
        module = program.module()

        def call(tensors: list[Any]) -> Sequence[Any]:
            args, kwargs = call_spec.in_spec.unflatten(tensors)
            flat: Sequence[Any] = call_spec.out_spec.flatten_up_to(module(*args, **kwargs))
            return flat

        self._call = call

    def _declared(self, name: str, value: Any, what: str) -> TensorSpec:
        shape = tuple(dim if isinstance(dim, int) else str(dim) for dim in getattr(value, "shape", ()))
        return self._spec(name, value, shape, what)


class _Script(_TorchRuntime):
    """TorchScript: the settings must say what it takes, and what it gives a run shows."""

    platform = "pytorch_libtorch"

    def _load(self, path: Path, settings: Settings) -> None:
        module = self._torch.jit.load(str(path), map_location=self.device).eval()
        arguments = [one for one in module.forward.schema.arguments[1:] if not one.has_default_value()]
        said = settings.input_shape
        shapes = {one.name: said.get(one.name, said.get("")) for one in arguments}
        if silent := [name for name, shape in shapes.items() if shape is None]:
            raise LoadError(
                f"{path}: TorchScript does not say the shape of input {', '.join(silent)}; "
                f"set input_shape, such as '{silent[0]}=3,48,192', or export it with torch.export"
            )
        if other := [one.name for one in arguments if str(one.type) != "Tensor"]:
            raise LoadError(f"{path}: input {', '.join(other)} is no tensor; write a handler.py for it")
        self.inputs = tuple(
            TensorSpec(name=name, dtype=np.dtype(np.float32), shape=(None,) * (len(shape or ()) + 1))
            for name, shape in shapes.items()
        )
        self._takes = [self._torch.float32] * len(shapes)
        self._call = lambda tensors: _flat(module(*tensors))
        with self._torch.inference_mode():
            found = self._call(
                [self._torch.zeros((1, *(shape or ())), device=self.device) for shape in shapes.values()]
            )
        self.outputs = tuple(
            self._spec(name, one, (None,) * getattr(one, "ndim", 0), f"{path}: output")
            for name, one in zip(_numbered(len(found)), found, strict=True)
        )


def choose_device(torch: Any, settings: Settings) -> str:
    """`cuda` where it was wished for and can be had, else `cpu` with a warning.

    Args:
        torch: the module.
        settings: of the instance.
    """
    wished = settings.model_device
    if wished == "cpu":
        return "cpu"
    os.environ.update(devices.environment(settings))  # before anything calls CUDA
    if not torch.cuda.is_available():
        LOG.warning("model_device is %s, but the model runs on cpu: torch finds no CUDA", wished)
        return "cpu"
    if wished != "cuda":
        LOG.warning("model_device is %s, but the model runs on cuda: torch has no TensorRT of its own", wished)
    if settings.gpu_memory_bytes:
        whole_bytes = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, settings.gpu_memory_bytes / whole_bytes))
    return "cuda"


def _output_names(spec: Any, count: int) -> list[str]:
    """A dict's keys; else numbers."""
    keys = [str(key) for key in spec.context] if spec.type is dict else []
    return keys if len(keys) == count else _numbered(count)


def _numbered(count: int) -> list[str]:
    return ["output"] if count == 1 else [f"output_{number}" for number in range(count)]


def _flat(answer: Any) -> list[Any]:
    return list(answer) if isinstance(answer, (tuple, list)) else [answer]
