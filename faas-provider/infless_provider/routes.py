"""The control plane: every OpenFaaS route on one screen. Flask, in threads; work is done on the event loop.

Facts: openfaas/faas-provider and openfaas/docs; status codes are those that faas-cli and the gateway accept.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from infless_core.errors import (
    BackendError,
    Conflict,
    Infeasible,
    InflessError,
    InvalidInput,
    NotFound,
    PlanRejected,
    StateError,
)
from infless_core.model import Problem
from infless_provider import auth, wire
from infless_provider.controller import Controller
from infless_provider.settings import NAMESPACE
from infless_provider.version import VERSION, commit
from infless_scheduler.problem_file import problem_to_json

_T = TypeVar("_T")
STATUS: dict[type[InflessError], int] = {
    InvalidInput: 400,
    NotFound: 404,
    Conflict: 409,
    Infeasible: 422,
    StateError: 503,
    BackendError: 422,  # while deploying: the function itself cannot be loaded or run
    PlanRejected: 500,
}
DEPLOY_TIMEOUT_S = 300.0
_OPEN = ("/healthz", "/metrics")


def build_app(
    controller: Controller,
    loop: asyncio.AbstractEventLoop,
    password: str | None,
    metrics: Callable[[], bytes],
    problem: Callable[[], Awaitable[Problem]],
) -> Flask:
    """The Flask application.

    Args:
        controller: lives on `loop`.
        loop: where the work is done.
        password: None switches authentication off.
        metrics: Prometheus text.
        problem: what is planned for now; asked for on `loop`.
    """
    app = Flask("infless_provider")

    def do(work: Awaitable[_T]) -> _T:
        return asyncio.run_coroutine_threadsafe(_as_coroutine(work), loop).result(DEPLOY_TIMEOUT_S)

    handlers = _Handlers(controller, do, metrics, problem)
    for verb, path, handler in (
        ("GET", "/system/functions", handlers.list_functions),
        ("POST", "/system/functions", handlers.deploy),
        ("PUT", "/system/functions", handlers.update),
        ("DELETE", "/system/functions", handlers.remove),
        ("GET", "/system/function/<name>", handlers.describe),
        ("POST", "/system/scale-function/<name>", handlers.scale),
        ("GET", "/system/info", handlers.info),
        ("GET", "/system/namespaces", handlers.namespaces),
        ("GET", "/system/overview", handlers.overview),  # ours: `infless status`
        ("GET", "/system/infless/problem", handlers.problem),  # ours: `infless plan --live`
        ("GET", "/system/infless/targets", handlers.targets),  # ours: Prometheus's HTTP service discovery
        ("GET", "/system/secrets", handlers.no_secrets),
        ("GET", "/healthz", handlers.healthz),
        ("GET", "/metrics", handlers.metrics),
        # not in this version, and said so: 501 is how a provider tells what it lacks
        ("POST", "/system/secrets", handlers.absent),
        ("PUT", "/system/secrets", handlers.absent),
        ("DELETE", "/system/secrets", handlers.absent),
        ("GET", "/system/telemetry", handlers.absent),
        ("POST", "/system/alert", handlers.absent),
    ):
        app.add_url_rule(path, f"{verb} {path}", handler, methods=[verb])
    for path in ("/system/namespace/", "/system/namespace/<name>", "/async-function/<path:name>"):
        app.add_url_rule(path, path, handlers.absent, methods=["GET", "POST", "PUT", "DELETE"])

    @app.before_request
    def guard() -> Response | None:
        is_open = request.url_rule is None or request.path in _OPEN or request.path.startswith("/async-function/")
        if password is None or is_open or auth.allowed(request.headers.get("Authorization"), password):
            return None
        return Response("invalid credentials\n", 401, {"WWW-Authenticate": auth.CHALLENGE})

    app.register_error_handler(InflessError, _told)
    app.register_error_handler(HTTPException, _http_error)
    return app


class _Handlers:
    """One method for each route."""

    def __init__(
        self,
        controller: Controller,
        do: Callable[[Awaitable[Any]], Any],
        metrics: Callable[[], bytes],
        problem: Callable[[], Awaitable[Problem]],
    ) -> None:
        self._controller = controller
        self._do = do
        self._metrics = metrics
        self._problem = problem

    def list_functions(self) -> Response:
        """All functions, with their full specification (faas-cli diff compares it)."""
        _namespace(request.args.get("namespace"))
        return jsonify(self._do(self._controller.listing()))

    def deploy(self) -> tuple[str, int]:
        """A new function; 409 when it exists."""
        self._do(self._controller.deploy(_body()))
        return "", 202

    def update(self) -> tuple[str, int]:
        """A new version; exactly 404 when there is none, so that faas-cli goes on with POST."""
        self._do(self._controller.update(_body()))
        return "", 202

    def remove(self) -> tuple[str, int]:
        """Remove by the name in the body."""
        data = _body()
        name = data.get("functionName")
        if not isinstance(name, str) or not name:
            raise InvalidInput("functionName is missing: name the function to remove")
        _namespace(data.get("namespace") or request.args.get("namespace"))
        self._do(self._controller.remove(name))
        return "", 202

    def describe(self, name: str) -> Response:
        """One function, with what it uses when asked for."""
        _namespace(request.args.get("namespace"))
        usage = request.args.get("usage", "").lower() in ("1", "true")
        return jsonify(self._do(self._controller.describe(name, usage=usage)))

    def scale(self, name: str) -> tuple[str, int]:
        """The least number of instances."""
        data = _body()
        _namespace(data.get("namespace") or request.args.get("namespace"))
        self._do(self._controller.scale(name, wire.parse_scale(data)))
        return "", 202

    def info(self) -> Response:
        """The gateway's form to direct clients, the provider's to a gateway (told by X-Forwarded-Host)."""
        version = {"release": VERSION, "sha": commit(), "commit_message": ""}
        provider = {"provider": "infless", "orchestration": "process", "version": version}
        if "X-Forwarded-Host" in request.headers:
            return jsonify(provider)
        return jsonify({"provider": provider, "version": version, "arch": platform.machine()})

    def namespaces(self) -> Response:
        """The one namespace."""
        return jsonify([NAMESPACE])

    def overview(self) -> Response:
        """Instances, reasons, events."""
        return jsonify(self._do(self._controller.overview()))

    def problem(self) -> Response:
        """What is planned for now, as a plan file."""
        return jsonify(problem_to_json(self._do(self._problem())))

    def targets(self) -> Response:
        """Ready instances, as Prometheus's HTTP service discovery wants them."""
        return jsonify(self._do(self._controller.discovery()))

    def no_secrets(self) -> Response:
        """There are none yet."""
        return jsonify([])

    def healthz(self) -> Response:
        """The provider answers."""
        return Response("OK", content_type="text/plain; charset=utf-8")

    def metrics(self) -> Response:
        """Prometheus text."""
        return Response(self._metrics(), content_type="text/plain; version=0.0.4; charset=utf-8")

    def absent(self, name: str = "") -> Response:
        """501: not in this version."""
        del name
        sentence = f"{request.method} {request.path} is not supported by this version of INFless\n"
        return Response(sentence, 501, content_type="text/plain; charset=utf-8")


def _body() -> dict[str, Any]:
    """The JSON object, whatever the Content-Type says: the gateway sends none."""
    return wire.parse_object(request.get_data())


async def _as_coroutine(work: Awaitable[_T]) -> _T:
    return await work


def _namespace(name: object) -> None:
    if name not in (None, "", NAMESPACE):
        raise InvalidInput(f"namespace {name!r} does not exist; the only one is {NAMESPACE!r}")


def _told(error: InflessError) -> Response:
    status = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 500)
    return Response(f"{error}\n", status, content_type="text/plain; charset=utf-8")


def _http_error(error: HTTPException) -> Response:
    """One sentence; of the headers only what RFC 9110, section 15.5.6, demands."""
    headers = {"Allow": ", ".join(sorted(error.valid_methods or ()))} if isinstance(error, MethodNotAllowed) else {}
    sentence = f"{request.method} {request.path}: {error.description}\n"
    return Response(sentence, error.code or 500, headers, content_type="text/plain; charset=utf-8")
