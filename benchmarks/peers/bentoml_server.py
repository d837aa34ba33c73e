"""BentoML with its adaptive batching. Its natural form is JSON; raw bytes cannot be batched."""

import sys
from pathlib import Path

import bentoml
import numpy as np
from onnx_rows import BATCH_MAX, PORT, Rows


@bentoml.service(workers=1, traffic={"timeout": 10, "max_concurrency": 100000}, logging={"access": {"enabled": False}})
class Model:
    """Batched prediction."""

    def __init__(self) -> None:
        self._rows = Rows()

    @bentoml.api(route="/predict", batchable=True, max_batch_size=BATCH_MAX, max_latency_ms=1000)
    def predict(self, x: np.ndarray) -> np.ndarray:
        """One batch."""
        return self._rows.run(np.asarray(x, np.float32))


if __name__ == "__main__":
    from bentoml_cli.cli import cli

    sys.argv = ["bentoml", "serve", f"{Path(__file__).stem}:Model", "--host", "127.0.0.1", "--port", str(PORT),
                "--working-dir", str(Path(__file__).parent)]  # fmt: skip
    cli()
