"""LitServe: FastAPI, and a worker process behind queues. Raw bytes in and out, which FastAPI allows."""

from typing import Annotated

import litserve
from fastapi import Body, Response
from onnx_rows import BATCH_MAX, PORT, WAIT_S, Rows


class Model(litserve.LitAPI):
    """Batched prediction."""

    def setup(self, device: str) -> None:
        """In the worker."""
        del device
        self._rows = Rows()

    def decode_request(self, request: Annotated[bytes, Body(media_type="application/octet-stream")]) -> bytes:
        """As it came."""
        return request

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        """No array yet."""
        return inputs

    def predict(self, x: list[bytes]) -> list[bytes]:
        """One batch."""
        return self._rows.run_bodies(x)

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        """One answer each."""
        return output

    def encode_response(self, output: bytes) -> Response:
        """As it is."""
        return Response(output, media_type="application/octet-stream")


if __name__ == "__main__":
    server = litserve.LitServer(Model(max_batch_size=BATCH_MAX, batch_timeout=WAIT_S), accelerator="cpu")
    server.run(host="127.0.0.1", port=PORT, log_level="error", generate_client_file=False)
