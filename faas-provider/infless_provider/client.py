"""A client of the provider's API for the command line, as faas-cli is one."""

from __future__ import annotations

import http.client
import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from infless_core.errors import InflessError, InvalidInput, NotFound
from infless_provider import auth
from infless_provider.settings import default_state_dir

DEFAULT_GATEWAY = "http://127.0.0.1:8080"
TIMEOUT_S = 300.0
"""For an answer: a deployment may pull an image and time a model."""


class Refused(InflessError):  # noqa: N818
    """The provider said no; the message is its own."""


class Client:
    """Talks to one provider.

    Args:
        gateway: its URL.
        credentials: None sends none.

    Raises:
        InvalidInput: that is no URL of a gateway.
    """

    def __init__(self, gateway: str, credentials: auth.Credentials | None) -> None:
        _check_gateway(gateway)
        self._gateway = gateway.rstrip("/")
        self._session = requests.Session()
        if credentials:
            self._session.auth = (credentials.user, credentials.password)
        if urlsplit(self._gateway).hostname in ("127.0.0.1", "localhost", "::1"):
            self._session.trust_env = False  # a proxy for the world outside cannot reach this machine
            self._session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or True  # which that leaves out as well

    def deploy(self, deployment: Mapping[str, Any]) -> str:
        """Update, or create when there is none, as `faas-cli deploy` does; says which it was."""
        done = "updated"
        try:
            reply = self._call("PUT", "/system/functions", deployment)
        except NotFound:
            reply = self._call("POST", "/system/functions", deployment)
            done = "deployed"
        return f"accepted: {reply.text.strip()}" if reply.text else done

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
            reply = self._session.request(verb, self._gateway + path, json=body, timeout=TIMEOUT_S)
        except requests.exceptions.InvalidURL as error:
            raise InvalidInput(_no_gateway(self._gateway)) from error
        except requests.exceptions.ReadTimeout as error:
            raise Refused(f"{verb} {self._gateway}{path}: no answer within {TIMEOUT_S:.0f} s") from error
        except requests.ConnectionError as error:
            raise Refused(_no_connection(self._gateway, _innermost(error))) from error
        except requests.RequestException as error:
            raise Refused(f"{verb} {self._gateway}{path}: {error}") from error
        if reply.status_code == 404:
            raise NotFound(reply.text.strip())
        if reply.status_code == 401:
            raise Refused(f"{self._gateway} wants a password: set INFLESS_PASSWORD or use the provider's --state-dir")
        if not reply.ok:
            raise Refused(reply.text.strip() or f"{verb} {path} answered {reply.status_code}")
        return reply


def _check_gateway(url: str) -> None:
    try:
        parts = urlsplit(url)
        (parts.hostname or "").encode("idna")  # refuses labels that are empty or too long
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        sound = False
    if not sound or parts.query or parts.fragment:
        raise InvalidInput(_no_gateway(url))


def _no_gateway(url: str) -> str:
    return f"{url!r} is not the URL of a gateway; write for example {DEFAULT_GATEWAY!r}"


def _no_connection(gateway: str, reason: BaseException) -> str:
    """One sentence: what is wrong, and what helps."""
    scheme, _, rest = gateway.partition("://")
    if isinstance(reason, ssl.SSLCertVerificationError):
        words = (getattr(reason, "verify_message", "") or str(reason)).rstrip(".")
        return f"the certificate of {gateway} is not trusted: {words}; name your own in REQUESTS_CA_BUNDLE"
    if isinstance(reason, ssl.SSLError):
        words = str(reason).partition(" (_ssl")[0]
        return f"{gateway} does not speak https: {words}; if it speaks http, write http://{rest}"
    if isinstance(reason, http.client.HTTPException | ConnectionResetError | BrokenPipeError):
        hint = f"; if it speaks https, write https://{rest}" if scheme == "http" else ""
        return f"{gateway} hangs up without an answer{hint}"
    return f"no provider answers at {gateway}; start one with `infless up`"


def _innermost(error: BaseException) -> BaseException:
    """The reason itself, out of its wrappings of requests and urllib3.

    These keep it among their arguments; `__context__` would lead on to an error that was being handled before.
    """
    while True:
        inside = [one for one in (*error.args, getattr(error, "reason", None)) if isinstance(one, BaseException)]
        if not inside:
            return error
        error = inside[-1]


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
