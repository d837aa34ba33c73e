"""Ray Serve: an HTTP proxy process and a replica process. Raw bytes in and out."""

import signal

import ray
from onnx_rows import BATCH_MAX, PORT, WAIT_S, Rows
from ray import serve
from starlette.requests import Request
from starlette.responses import Response


@serve.deployment(num_replicas=1, max_ongoing_requests=4096, ray_actor_options={"num_cpus": 0})
class Model:
    """Batched prediction."""

    def __init__(self) -> None:
        self._rows = Rows()

    @serve.batch(max_batch_size=BATCH_MAX, batch_wait_timeout_s=WAIT_S)
    async def predict(self, bodies: list[bytes]) -> list[bytes]:
        """One batch."""
        return self._rows.run_bodies(bodies)

    async def __call__(self, request: Request) -> Response:
        """One request."""
        return Response(await self.predict(await request.body()), media_type="application/octet-stream")


if __name__ == "__main__":
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000)
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    serve.run(Model.bind(), logging_config={"enable_access_log": False, "log_level": "ERROR"})
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    ray.shutdown()
