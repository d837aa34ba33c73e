"""MLServer with its adaptive batching, in one process. Open Inference Protocol in JSON: it has no binary tensors."""

import asyncio

import numpy as np
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from onnx_rows import BATCH_MAX, PORT, WAIT_S, Rows


class Model(MLModel):
    """Batched prediction."""

    async def load(self) -> bool:
        """In the server's own process: on one core another one only adds copies."""
        self._rows = Rows()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """One batch, put together by the server."""
        batch = NumpyCodec.decode_input(payload.inputs[0])
        answers = self._rows.run(batch.astype(np.float32, copy=False))
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("y", answers)])


async def main() -> None:
    """Serve for good."""
    server = MLServer(Settings(
        host="127.0.0.1", http_port=PORT, grpc_port=PORT + 1, metrics_endpoint=None, parallel_workers=0, debug=False,
        gzip_enabled=False,
    ))  # fmt: skip
    model = ModelSettings(
        name="model", implementation="mlserver_server.Model", max_batch_size=BATCH_MAX, max_batch_time=WAIT_S
    )
    await server.start([model])


if __name__ == "__main__":
    asyncio.run(main())
