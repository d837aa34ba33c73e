"""Triton through nvidia-pytriton: Triton's own edge and batcher, Python behind shared memory. Binary tensors."""

import numpy as np
from onnx_rows import BATCH_MAX, PORT, WAIT_S, Rows
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

if __name__ == "__main__":
    rows = Rows()

    @batch
    def predict(x: np.ndarray) -> dict[str, np.ndarray]:
        """One batch."""
        return {"y": rows.run(x)}

    config = TritonConfig(http_address="127.0.0.1", http_port=PORT, grpc_port=PORT + 1, metrics_port=PORT + 2,
                          allow_metrics=False, allow_grpc=False, http_thread_count=2)  # fmt: skip
    with Triton(config=config) as triton:
        triton.bind(
            model_name="model",
            infer_func=predict,
            inputs=[Tensor(name="x", dtype=np.float32, shape=rows.shape)],
            outputs=[Tensor(name="y", dtype=np.float32, shape=(rows.outputs,))],
            config=ModelConfig(
                max_batch_size=BATCH_MAX, batcher=DynamicBatcher(max_queue_delay_microseconds=round(WAIT_S * 1e6))
            ),
        )
        triton.serve()
