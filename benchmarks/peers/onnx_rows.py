"""What every peer's script needs: where it listens, how long it may wait for a batch, and the model itself.

The scripts run in environments of their own, so this folder is all that they share.
"""

from __future__ import annotations

import os

import numpy as np
import onnxruntime

BATCH_MAX = 32
MODEL = os.environ.get("PEER_MODEL", "")
PORT = int(os.environ.get("PEER_PORT", "0"))
WAIT_S = float(os.environ.get("PEER_WAIT_S", "0.01"))
"""For how long a batch that is not full is held back."""


class Rows:
    """The model on one thread; takes and gives arrays whose first axis is the batch."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])
        self.shape = tuple(self._session.get_inputs()[0].shape[1:])
        self.outputs = self._session.get_outputs()[0].shape[1]

    def run(self, batch: np.ndarray) -> np.ndarray:
        """A row of numbers for each item."""
        return self._session.run(None, {"x": np.ascontiguousarray(batch).reshape(-1, *self.shape)})[0]

    def run_bodies(self, bodies: list[bytes]) -> list[bytes]:
        """The same for items that are raw float32."""
        return [row.tobytes() for row in self.run(np.frombuffer(b"".join(bodies), np.float32))]
