"""mosec: a Rust edge, and a worker process that gets batches over a socket. Raw bytes in and out."""

from __future__ import annotations

import sys

import mosec
from onnx_rows import BATCH_MAX, PORT, WAIT_S, Rows


class Model(mosec.Worker):
    """One stage, batched."""

    def __init__(self) -> None:
        self._rows = Rows()

    def deserialize(self, data: bytes) -> bytes:
        """As it came."""
        return data

    def forward(self, data: list[bytes]) -> list[bytes]:
        """One batch."""
        return self._rows.run_bodies(data)

    def serialize(self, data: bytes) -> bytes:
        """As it is."""
        return data


if __name__ == "__main__":
    sys.argv = [
        sys.argv[0],
        "--port",
        str(PORT),
        "--timeout",
        "10000",
        "--address",
        "127.0.0.1",
        "--log-level",
        "error",
    ]
    server = mosec.Server()
    server.append_worker(Model, num=1, max_batch_size=BATCH_MAX, max_wait_time=max(1, round(WAIT_S * 1000)))
    server.run()
