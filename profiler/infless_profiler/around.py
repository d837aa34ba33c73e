"""What an execution takes beside the model's operators, as operators of our own: the call itself, and data copies."""

from __future__ import annotations

from collections.abc import Sequence

from infless_profiler.isolate import Case, Feed
from infless_profiler.operators import Operator, Tensor
from infless_profiler.sessions import Device

OURS = "com.infless"
"""The domain of operators that no runtime has."""
CALL, TRANSFER, MODEL = "Call", "Transfer", "Model"


def around(inputs: Sequence[Tensor], outputs: Sequence[Tensor], device: Device) -> tuple[list[Operator], Case]:
    """Operators for one execution of a model.

    Args:
        inputs: what it is given.
        outputs: what it answers.
        device: on a GPU, inputs are copied to it and outputs back; everywhere outputs are copied for the caller.

    Returns:
        Each call, equal copies as often as they are made, and what the call itself is measured with.
    """
    call = Operator(domain=OURS, type=CALL, version=1, attributes={"inputs": len(inputs), "outputs": len(outputs)})
    copies = [("caller", tensor) for tensor in outputs]
    if device.kind != "cpu":
        copies = [("device", tensor) for tensor in inputs] + [("host", tensor) for tensor in outputs]
    transfers = [
        Operator(domain=OURS, type=TRANSFER, version=1, attributes={"to": to}, inputs=(tensor,))
        for to, tensor in copies
    ]
    return [call, *transfers], empty_model(max(1, len(inputs)), max(1, len(outputs)))


def empty_model(inputs: int, outputs: int) -> Case:
    """A model that does nothing with so many inputs and outputs of one number each."""
    from onnx import helper

    feed = Feed(tensor=Tensor(dtype="float32", dims=((1, 0),)), values=None)
    return Case(
        nodes=tuple(
            helper.make_node("Identity", [f"x{place % inputs}"], [f"y{place}"]) for place in range(max(inputs, outputs))
        ),
        weights=(),
        feeds={f"x{place}": feed for place in range(inputs)},
        opsets=(helper.make_opsetid("", 13),),
        functions=(),
        ir_version=8,
        gives=tuple(f"y{place}" for place in range(outputs)),
    )
