"""What device this is, how a session is opened on it, and how long a list of measurements still takes."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from infless_core.errors import InvalidInput
from infless_profiler import countdown, sessions
from infless_profiler.countdown import Countdown
from infless_profiler.sessions import Device, cache_bytes, machine, open_session, runner, this_device

onnxruntime = pytest.importorskip("onnxruntime")
ANSWER = subprocess.CompletedProcess([], 0, stdout="NVIDIA H100\nNVIDIA A100\n")


def model(kind: str = "Relu") -> bytes:
    """One operator from `x` to `y`."""
    takes, gives = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in "xy")
    graph = helper.make_graph([helper.make_node(kind, ["x"], ["y"])], "g", [takes], [gives])
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    return bytes(content)


class TestDevice:
    """Tables of different devices never mix, so its name must be right."""

    def test_a_processor(self) -> None:
        """Its own name, how many there are, and the runtime's version."""
        device = this_device()
        assert device.kind == "cpu"
        assert device.name == sessions.processor_name()
        assert device.runtime == f"onnxruntime {onnxruntime.__version__}"
        assert [name for name, _ in device.providers] == ["CPUExecutionProvider"]

    def test_a_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The first of them."""
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: ANSWER)
        device = this_device(gpu=True)
        assert (device.kind, device.name) == ("cuda", "NVIDIA H100")
        assert [name for name, _ in device.providers] == ["CUDAExecutionProvider", "CPUExecutionProvider"]

    @pytest.mark.parametrize(
        "trouble", [FileNotFoundError("nvidia-smi"), subprocess.TimeoutExpired("nvidia-smi", 30)], ids=["none", "hangs"]
    )
    def test_no_gpu_answers(self, monkeypatch: pytest.MonkeyPatch, trouble: Exception) -> None:
        """A sentence for the option that wanted one."""

        def run(*_: Any, **__: Any) -> None:
            raise trouble

        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
        monkeypatch.setattr(subprocess, "run", run)
        with pytest.raises(InvalidInput, match="--gpu-percents: no NVIDIA GPU answers here: "):
            this_device(gpu=True)

    def test_a_runtime_without_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Which one to install."""
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
        with pytest.raises(InvalidInput, match=r"--gpu-percents: this onnxruntime cannot use a GPU; .*infless\[gpu\]"):
            this_device(gpu=True)

    def test_no_runtime(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What to install."""
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(InvalidInput, match=r"profiling needs a runtime: pip install 'infless\[cpu\]'"):
            this_device()

    def test_the_machine(self) -> None:
        """Numbers that are kept beside the times."""
        found = machine()
        assert found["cores"] >= 1
        assert found["memory_bytes"] > 1 << 20
        assert found["last_level_cache_bytes"] == cache_bytes() >= 0


class TestSessions:
    """As an instance opens them."""

    DEVICE = Device(kind="cpu", name="p", runtime="onnxruntime 1.2")

    def test_inputs_stay_in_place(self) -> None:
        """A run changes nothing and may be repeated."""
        session = open_session(model(), self.DEVICE, 1)
        feed = {"x": np.ones((2, 3), np.float32)}
        run = runner(session, feed, self.DEVICE)
        assert [run(), run()] == [None, None]

    def test_threads_are_shared(self) -> None:
        """Two operators at a time have half of the cores each."""
        options = open_session(model(), self.DEVICE, 4, inter_op_threads=2).get_session_options()
        assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 2)
        assert options.execution_mode == onnxruntime.ExecutionMode.ORT_PARALLEL
        options = open_session(model(), self.DEVICE, 1, inter_op_threads=2).get_session_options()
        assert options.intra_op_num_threads == 1

    def test_what_is_refused(self) -> None:
        """The runtime's words, and no file that the user has never seen."""
        with pytest.raises(InvalidInput, match="^an operator of the model: onnxruntime refuses it: .*Magic"):
            open_session(model("Magic"), self.DEVICE, 1)


class TestCountdown:
    """What is left."""

    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
        """A clock that stands still."""
        made = SimpleNamespace(now_s=100.0)
        made.monotonic = lambda: made.now_s
        monkeypatch.setattr(countdown, "time", made)
        return made

    def test_is_scaled_by_how_it_went_so_far(self, clock: SimpleNamespace) -> None:
        """Three of ten took twice as long as expected; nothing is said before that."""
        left = Countdown([1.0] * 10)
        for _ in range(3):
            assert left.words() == ""
            clock.now_s += 2
            left.done()
        assert (left.words(), left.place) == (", about 14s left", 4)

    def test_less_than_a_second_is_not_worth_a_word(self, clock: SimpleNamespace) -> None:
        """Nor nothing, nor what was expected to take no time."""
        left = Countdown([0.1] * 5)
        for _ in range(5):
            clock.now_s += 0.1
            left.done()
        assert left.words() == ""
        nothing = Countdown([0.0] * 5)
        for _ in range(4):
            nothing.done()
        assert nothing.words() == ""
