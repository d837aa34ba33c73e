"""The control plane: every OpenFaaS route on one screen. Flask, in threads; work is done on the event loop.

Facts: openfaas/faas-provider and openfaas/docs; status codes are those that faas-cli and the gateway accept.
"""

from __future__ import annotations

import asyncio
import platform
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from infless_core.errors import (
    BackendError,
    Conflict,
    Infeasible,
    InflessError,
    InvalidInput,
    NotFound,
    PlanRejected,
    QuotaExceeded,
    StateError,
    Unavailable,
)
from infless_core.model import Problem
from infless_provider import auth, prometheus_query, wire
from infless_provider.controller import Controller
from infless_provider.tenants import Tenants
from infless_provider.version import VERSION, commit
from infless_provider.views import Views
from infless_scheduler.problem_file import problem_to_json

_T = TypeVar("_T")
STATUS: dict[type[InflessError], int] = {
    InvalidInput: 400,
    NotFound: 404,
    Conflict: 409,
    QuotaExceeded: 403,  # as Kubernetes has it: clients read 409 as "it exists already"
    Infeasible: 422,
    StateError: 503,
    Unavailable: 503,
    BackendError: 422,  # while deploying: the function itself cannot be loaded or run
    PlanRejected: 500,
}
WORK_TIMEOUT_S = 50.0
"""faas-cli gives up after 60 s. A deployment that pulls an image or loads a large model goes on without it."""
_GOES_ON = f"this takes longer than {WORK_TIMEOUT_S:.0f} s and goes on; the provider's log says what comes of it\n"
_OPEN = frozenset({"/metrics", "/api/v1/query"})
"""A gateway and a Prometheus send no credentials there; what they learn is how often functions are invoked."""
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
"""They change nothing (RFC 9110, section 9.2.1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What answers; everything lives on one event loop."""

    controller: Controller
    views: Views
    tenants: Tenants
    problem: Callable[[], Awaitable[Problem]]
    """What is planned for now."""
    metrics: Callable[[], bytes]
    """Prometheus text; called in a control thread."""
    observe: Callable[[int, str, str, float], None] = lambda *_: None
    """Told status, method, route and seconds of each answer; called in a control thread."""


def build_app(parts: Parts, loop: asyncio.AbstractEventLoop, credentials: auth.Credentials | None) -> Flask:
    """The Flask application.

    Args:
        parts: live on `loop`.
        loop: where the work is done.
        credentials: None switches authentication off.
    """
    app = Flask("infless_provider", static_folder=None)
    app.response_class = _PlainResponse

    def do(work: Awaitable[_T]) -> _T:
        return asyncio.run_coroutine_threadsafe(_as_coroutine(work), loop).result(WORK_TIMEOUT_S)

    for verb, path, handler in _rules(_Functions(parts, do), _Tenants(parts.tenants, do), _About(parts, do)):
        app.add_url_rule(path, f"{verb} {path}", handler, methods=[verb])

    @app.before_request
    def guard() -> Response | None:
        g.started_s = time.perf_counter()
        guarded = request.path.startswith("/system/") or (request.url_rule is not None and request.path not in _OPEN)
        if not guarded:
            return None
        if credentials is not None and not credentials.admit(request.headers.get("Authorization")):
            return _text("invalid credentials", 401, {"WWW-Authenticate": auth.CHALLENGE})
        if request.method not in _SAFE and auth.from_another_site(request.headers.get):
            return _text("a page of another site may not ask for this", 403)
        return None

    @app.after_request
    def observe(response: Response) -> Response:
        route = request.url_rule.rule.partition("/<")[0] if request.url_rule is not None else "other"
        parts.observe(response.status_code, request.method, route, time.perf_counter() - g.started_s)
        return response

    app.register_error_handler(InflessError, _told)
    app.register_error_handler(TimeoutError, _still_at_it)
    app.register_error_handler(HTTPException, _http_error)
    return app


def _rules(
    functions: _Functions, tenants: _Tenants, about: _About
) -> tuple[tuple[str, str, Callable[..., Response | tuple[str, int]]], ...]:
    """Method, path and handler of every route."""
    return (
        ("GET", "/system/functions", functions.list_functions),
        ("POST", "/system/functions", functions.deploy),
        ("PUT", "/system/functions", functions.update),
        ("DELETE", "/system/functions", functions.remove),
        ("GET", "/system/function/<name>", functions.describe),
        ("POST", "/system/scale-function/<name>", functions.scale),
        ("POST", "/system/alert", functions.alert),
        ("GET", "/system/secrets", tenants.list_secrets),
        ("POST", "/system/secrets", tenants.create_secret),
        ("PUT", "/system/secrets", tenants.update_secret),
        ("DELETE", "/system/secrets", tenants.delete_secret),
        ("GET", "/system/namespaces", tenants.list_namespaces),
        ("POST", "/system/namespace/", tenants.create_namespace),
        ("GET", "/system/namespace/<name>", tenants.namespace),
        ("POST", "/system/namespace/<name>", tenants.create_namespace),
        ("PUT", "/system/namespace/<name>", tenants.update_namespace),
        ("DELETE", "/system/namespace/<name>", tenants.delete_namespace),
        ("GET", "/system/info", about.info),
        ("GET", "/system/telemetry", about.telemetry),
        ("GET", "/system/overview", about.overview),  # ours: `infless status`
        ("GET", "/system/infless/problem", about.problem),  # ours: `infless plan --live`
        ("GET", "/system/infless/targets", about.targets),  # ours: Prometheus's HTTP service discovery
        ("GET", "/api/v1/query", about.query),  # what a gateway asks of Prometheus
        ("GET", "/metrics", about.metrics),
    )


class _PlainResponse(Response):
    """Text where nothing else is said: there are no pages here."""

    default_mimetype = "text/plain"


Do = Callable[[Awaitable[Any]], Any]


class _Functions:
    """One method for each route about functions."""

    def __init__(self, parts: Parts, do: Do) -> None:
        self._controller = parts.controller
        self._views = parts.views
        self._do = do

    def list_functions(self) -> Response:
        """All functions of a namespace, with their full specification (faas-cli diff compares it)."""
        return _json(self._do(self._views.listing(request.args.get("namespace"))))

    def deploy(self) -> tuple[str, int]:
        """A new function; 409 when it exists."""
        return self._accepted(self._controller.deploy(_body()))

    def update(self) -> tuple[str, int]:
        """A new version; exactly 404 when there is none, so that faas-cli goes on with POST."""
        return self._accepted(self._controller.update(_body()))

    def _accepted(self, work: Awaitable[None]) -> tuple[str, int]:
        try:
            self._do(work)
        except TimeoutError:
            return _GOES_ON, 202
        return "", 202

    def remove(self) -> tuple[str, int]:
        """Remove by the name in the body."""
        data = _body()
        name = data.get("functionName")
        if not isinstance(name, str) or not name:
            raise InvalidInput("functionName is missing: name the function to remove")
        self._do(self._controller.remove(name, _namespace(data)))
        return "", 202

    def describe(self, name: str) -> Response:
        """One function, with what it uses when asked for."""
        usage = request.args.get("usage", "").lower() in ("1", "true")
        return _json(self._do(self._views.describe(name, request.args.get("namespace"), usage=usage)))

    def scale(self, name: str) -> tuple[str, int]:
        """The least number of instances."""
        data = _body()
        self._do(self._controller.scale(name, _namespace(data), wire.parse_scale(data)))
        return "", 202

    def alert(self) -> tuple[str, int]:
        """AlertManager's webhook."""
        self._do(self._controller.alert(_body()))
        return "", 200


class _Tenants:
    """One method for each route about namespaces and secrets."""

    def __init__(self, tenants: Tenants, do: Do) -> None:
        self._tenants = tenants
        self._do = do

    def list_secrets(self) -> Response:
        """Names, never values."""
        return _json(self._do(self._tenants.list_secrets(request.args.get("namespace"))))

    def create_secret(self) -> tuple[str, int]:
        """A new one; 409 when it exists, so that `faas-cli secret create --replace` goes on with PUT."""
        self._do(self._tenants.create_secret(_body()))
        return "", 201

    def update_secret(self) -> tuple[str, int]:
        """Another value."""
        self._do(self._tenants.update_secret(_body()))
        return "", 200

    def delete_secret(self) -> tuple[str, int]:
        """Gone; not 204, which faas-cli takes for an error."""
        self._do(self._tenants.delete_secret(_body()))
        return "", 202

    def list_namespaces(self) -> Response:
        """Names."""
        return _json(self._do(self._tenants.list_namespaces()))

    def namespace(self, name: str) -> Response:
        """One of them."""
        return _json(self._do(self._tenants.namespace(name)))

    def create_namespace(self, name: str = "") -> tuple[str, int]:
        """A new one; clients name it in the body only."""
        self._do(self._tenants.create_namespace(_body(), name))
        return "", 201

    def update_namespace(self, name: str) -> tuple[str, int]:
        """Other labels and annotations."""
        self._do(self._tenants.update_namespace(_body(), name))
        return "", 200

    def delete_namespace(self, name: str) -> tuple[str, int]:
        """Gone, if it is empty."""
        self._do(self._tenants.delete_namespace(name))
        return "", 202


class _About:
    """One method for each route about the provider itself."""

    def __init__(self, parts: Parts, do: Do) -> None:
        self._parts = parts
        self._do = do

    def info(self) -> Response:
        """The gateway's form to direct clients, the provider's to a gateway (told by X-Forwarded-Host)."""
        version = {"release": VERSION, "sha": commit(), "commit_message": ""}
        orchestration = self._parts.controller.backend.name
        provider = {"provider": "infless", "orchestration": orchestration, "version": version}
        if "X-Forwarded-Host" in request.headers:
            return _json(provider)
        return _json({"provider": provider, "version": version, "arch": platform.machine()})

    def telemetry(self) -> Response:
        """Numbers about this provider as a whole."""
        return _json(self._do(self._parts.views.telemetry()))

    def overview(self) -> Response:
        """Instances, reasons, events."""
        return _json(self._do(self._parts.views.overview()))

    def problem(self) -> Response:
        """What is planned for now, as a plan file."""
        return _json(problem_to_json(self._do(self._parts.problem())))

    def targets(self) -> Response:
        """Ready instances, as Prometheus's HTTP service discovery wants them."""
        return _json(self._do(self._parts.views.discovery()))

    def query(self) -> Response:
        """Invocations by function, as a gateway asks for them."""
        counts = self._do(self._parts.views.invocations())
        return _json(prometheus_query.answer(request.args.get("query", ""), counts, time.time()))

    def metrics(self) -> Response:
        """Prometheus text."""
        return Response(self._parts.metrics(), content_type="text/plain; version=0.0.4; charset=utf-8")


def _json(value: Any) -> Response:
    """Not Flask's own: with a thousand functions this one takes a third of the time."""
    return Response(msgspec.json.encode(value), content_type="application/json")


def _namespace(data: dict[str, Any]) -> object:
    """Older clients and the gateway name it in the query."""
    return data.get("namespace") or request.args.get("namespace")


def _body() -> dict[str, Any]:
    """The JSON object, whatever the Content-Type says: the gateway sends none."""
    return wire.parse_object(request.get_data())


async def _as_coroutine(work: Awaitable[_T]) -> _T:
    return await work


def _told(error: InflessError) -> Response:
    status = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 500)
    return _text(str(error), status)


def _still_at_it(_: TimeoutError) -> Response:
    return Response(_GOES_ON, 504, content_type="text/plain; charset=utf-8")


def _http_error(error: HTTPException) -> Response:
    """One sentence; of the headers only what RFC 9110, section 15.5.6, demands."""
    headers = {"Allow": ", ".join(sorted(error.valid_methods or ()))} if isinstance(error, MethodNotAllowed) else {}
    return _text(f"{request.method} {request.path}: {error.description}", error.code or 500, headers)


def _text(sentence: str, status: int, headers: dict[str, str] | None = None) -> Response:
    return Response(f"{sentence}\n", status, headers, content_type="text/plain; charset=utf-8")
