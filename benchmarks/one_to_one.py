"""The baseline: plain OpenFaaS-style replicas. Flask under gunicorn's sync worker answers one request at a time.

It serves the same folders as INFless does (`handler.py` with `predict`, or a bare `model.onnx`) and takes the same
requests, but calls `predict` with a batch of one. Replicas are equal; they share one accept queue, so that whichever
is free takes the next request: no balancer in front of real replicas does better.

    python benchmarks/one_to_one.py --function-dir examples/02-voice-activity --port 9000 --replicas 2
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import flask
import numpy as np
from gunicorn.app.base import BaseApplication

from infless_watchdog import oip

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime 1.29 and newer reports home otherwise

OCTETS = "application/octet-stream"
Answer = Callable[[flask.Request], flask.Response]


def load_handler(folder: Path) -> Answer:
    """The function's `predict`, one request at a time."""
    spec = importlib.util.spec_from_file_location("one_to_one_handler", folder / "handler.py")
    if spec is None or spec.loader is None:
        raise click.UsageError(f"{folder / 'handler.py'} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if hasattr(module, "load"):
        module.load()

    def answer(request: flask.Request) -> flask.Response:
        try:
            (result,) = module.predict([_item(request)])
        except Exception as error:  # noqa: BLE001 - whatever the handler raises is this request's answer
            result = error
        return _plain(result)

    return answer


def load_model(folder: Path) -> Answer:
    """The bare model: raw bytes of one item, a JSON array, or the Open Inference Protocol."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("cpu_cores", "1"))  # noqa: SIM112 - as INFless sets it
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    inputs, outputs = session.get_inputs(), [output.name for output in session.get_outputs()]
    shape = [int(dim) for dim in os.environ.get("input_shape", "").rpartition("=")[2].split(",") if dim]  # noqa: SIM112
    shape = shape or [dim for dim in inputs[0].shape[1:] if isinstance(dim, int)]

    def answer(request: flask.Request) -> flask.Response:
        body, head_length = request.get_data(), request.headers.get("Inference-Header-Content-Length")
        if head_length is None and request.mimetype == OCTETS:
            tensor = np.frombuffer(body, np.float32).reshape(1, *shape)
            return flask.Response(session.run(None, {inputs[0].name: tensor})[0].tobytes(), content_type=OCTETS)
        value = None if head_length is not None else json.loads(body)
        if isinstance(value, list):
            result = session.run(None, {inputs[0].name: np.asarray(value, np.float32).reshape(1, *shape)})[0]
            return flask.jsonify(result[0].tolist())
        tensors, wanted = oip.parse_infer(body, None if head_length is None else head_length.encode())
        results = dict(zip(outputs, session.run(None, tensors), strict=True))
        reply, reply_length = oip.answer_infer("model", results, wanted)
        if reply_length is None:
            return flask.Response(reply, content_type="application/json")
        return flask.Response(
            reply, content_type=OCTETS, headers={"Inference-Header-Content-Length": str(reply_length)}
        )

    return answer


def make_app(folder: Path) -> flask.Flask:
    """The replica's web application; the model is loaded when this returns."""
    answer = load_handler(folder) if (folder / "handler.py").is_file() else load_model(folder)
    app = flask.Flask(__name__)
    app.add_url_rule("/", "answer", lambda: answer(flask.request), methods=["POST"])
    app.add_url_rule("/_/ready", "ready", lambda: "ready\n")
    return app


class Replicas(BaseApplication):  # type: ignore[misc]
    """gunicorn with equal sync workers; each loads the model for itself."""

    def __init__(self, folder: Path, bind: str, replicas: int) -> None:
        self._folder = folder
        self._settings = {
            "bind": bind, "workers": replicas, "worker_class": "sync", "timeout": 120, "loglevel": "warning",
            "control_socket_disable": True,
        }  # fmt: skip
        super().__init__()

    def load_config(self) -> None:
        """Gunicorn's settings."""
        for key, value in self._settings.items():
            if key in self.cfg.settings:
                self.cfg.set(key, value)

    def load(self) -> flask.Flask:
        """The application, in each worker."""
        return make_app(self._folder)


def _item(request: flask.Request) -> Any:
    body = request.get_data()
    if request.mimetype == "application/json":
        return json.loads(body)
    return body.decode() if request.mimetype.startswith("text/") else body


def _plain(result: Any) -> flask.Response:
    if isinstance(result, Exception):
        return flask.Response(f"{result}\n", 422 if isinstance(result, ValueError) else 500, content_type="text/plain")
    if isinstance(result, bytes):
        return flask.Response(result, content_type=OCTETS)
    if isinstance(result, str):
        return flask.Response(result, content_type="text/plain; charset=utf-8")
    return flask.Response(json.dumps(result), content_type="application/json")


@click.command()
@click.option("--function-dir", required=True, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", required=True, type=click.IntRange(1, 65535))
@click.option("--replicas", default=1, show_default=True, type=click.IntRange(1), help="Equal workers.")
def main(function_dir: Path, host: str, port: int, replicas: int) -> None:
    """Serve a function's folder one request at a time."""
    if not any((function_dir / name).is_file() for name in ("handler.py", "model.onnx")):
        raise click.UsageError(f"{function_dir} has neither handler.py nor model.onnx")
    Replicas(function_dir.resolve(), f"{host}:{port}", replicas).run()


if __name__ == "__main__":
    main()
