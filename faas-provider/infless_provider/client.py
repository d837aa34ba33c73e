"""A client of the provider's API for the command line, as faas-cli is one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from infless_core.errors import InflessError, NotFound
from infless_provider import auth
from infless_provider.settings import default_state_dir

DEFAULT_GATEWAY = "http://127.0.0.1:8080"


class Refused(InflessError):  # noqa: N818
    """The provider said no; the message is its own."""


class Client:
    """Talks to one provider."""

    def __init__(self, gateway: str, credentials: auth.Credentials | None) -> None:
        self._gateway = gateway.rstrip("/")
        self._session = requests.Session()
        if credentials:
            self._session.auth = (credentials.user, credentials.password)
        if urlsplit(self._gateway).hostname in ("127.0.0.1", "localhost", "::1"):
            self._session.trust_env = False  # a proxy for the world outside cannot reach this machine
            self._session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or True  # which that leaves out as well

    def deploy(self, deployment: Mapping[str, Any]) -> str:
        """Update, or create when there is none, as `faas-cli deploy` does; says which it was."""
        try:
            self._call("PUT", "/system/functions", deployment)
        except NotFound:
            self._call("POST", "/system/functions", deployment)
            return "deployed"
        return "updated"

    def remove(self, name: str) -> None:
        """Remove a function."""
        self._call("DELETE", "/system/functions", {"functionName": name})

    def describe(self, name: str) -> dict[str, Any]:
        """One function's status."""
        return _object(self._call("GET", f"/system/function/{name}"))

    def overview(self) -> dict[str, Any]:
        """Instances, reasons, events."""
        return _object(self._call("GET", "/system/overview"))

    def problem(self) -> dict[str, Any]:
        """What the provider plans for now, as the problem of a plan file."""
        return _object(self._call("GET", "/system/infless/problem"))

    def _call(self, verb: str, path: str, body: Mapping[str, Any] | None = None) -> requests.Response:
        try:
            reply = self._session.request(verb, self._gateway + path, json=body, timeout=300)
        except requests.exceptions.SSLError as error:
            raise Refused(
                f"the certificate of {self._gateway} is not trusted: {error}; name your own in REQUESTS_CA_BUNDLE"
            ) from error
        except requests.ConnectionError as error:
            raise Refused(f"no provider answers at {self._gateway}; start one with `infless up`") from error
        except requests.RequestException as error:
            raise Refused(f"{verb} {self._gateway}{path}: {error}") from error
        if reply.status_code == 404:
            raise NotFound(reply.text.strip())
        if reply.status_code == 401:
            raise Refused(f"{self._gateway} wants a password: set INFLESS_PASSWORD or use the provider's --state-dir")
        if not reply.ok:
            raise Refused(reply.text.strip() or f"{verb} {path} answered {reply.status_code}")
        return reply


def _object(reply: requests.Response) -> dict[str, Any]:
    try:
        value = reply.json()
    except requests.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise Refused(f"{reply.url} does not answer as INFless does")
    return value


def find_credentials(state_dir: Path | None) -> auth.Credentials | None:
    """`$INFLESS_USER` and `$INFLESS_PASSWORD`, else the files of a provider on this machine."""
    folder = state_dir or default_state_dir()
    password = os.environ.get("INFLESS_PASSWORD") or _text(folder / auth.PASSWORD_FILE)
    user = os.environ.get("INFLESS_USER") or _text(folder / auth.USER_FILE) or auth.USER
    return auth.Credentials(user=user, password=password) if password else None


def _text(path: Path) -> str:
    return path.read_text().strip() if path.is_file() else ""
