"""Edge: batch histograms from a Prometheus server (`pip install 'infless[profiler]'`)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import requests
from urllib3 import Retry

from infless_core.errors import BackendError, InvalidInput
from infless_profiler.readings import METRIC, Counted, gathered
from infless_profiler.scrape import Target

QUERY = f'{{__name__=~"{METRIC}_(bucket|count|sum)"}}'
"""One query for all three: they come from the same scrape, so a histogram is never half a scrape newer."""
TIMEOUT_S = 2.0


def check_url(url: str, where: str) -> str:
    """A URL that can be one of a Prometheus.

    Raises:
        InvalidInput: names the place and says what is allowed.
    """
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound:
        raise InvalidInput(
            f"{where}: {url!r} is not the URL of a Prometheus; write for example 'http://127.0.0.1:9090'"
        )
    return url.rstrip("/")


class PrometheusSource:
    """All instances that a Prometheus scrapes. Not thread-safe."""

    name = "prometheus"

    def __init__(self, url: str, timeout_s: float = TIMEOUT_S) -> None:
        parts = urlsplit(url)
        self._url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._connection: Any = None
        # Never with a password that the URL may hold.
        self.title = f"Prometheus at {parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"

    def read(self, targets: Sequence[Target]) -> list[Counted]:
        """What it knows now, of these instances and of others.

        Raises:
            BackendError: it cannot be reached, is slow, or answers something else.
        """
        del targets  # it finds them by itself
        if self._connection is None:
            self._connection = self._connect()
        try:
            answer = self._connection.custom_query(QUERY)
            samples = [(one["metric"]["__name__"], one["metric"], float(one["value"][1])) for one in answer]
        except requests.exceptions.JSONDecodeError:
            raise BackendError(f"{self.title} answers something that is no JSON") from None
        except requests.Timeout:
            raise BackendError(f"{self.title} does not answer within {self._timeout_s:g} s") from None
        except requests.RequestException as error:
            raise BackendError(f"{self.title} cannot be reached: {_why(error)}") from None
        except self._refusal as error:
            status = re.search(r"Status Code (\d+)", str(error))
            raise BackendError(f"{self.title} answers with status {status[1] if status else 'unknown'}") from None
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            raise BackendError(f"{self.title} answers something that no Prometheus would") from None
        return gathered(samples)

    def _connect(self) -> Any:
        try:
            from prometheus_api_client import PrometheusConnect
            from prometheus_api_client.exceptions import PrometheusApiClientException
        except ImportError:
            raise BackendError(
                f"{self.title} cannot be asked: prometheus-api-client is missing; pip install 'infless[profiler]'"
            ) from None
        self._refusal: type[Exception] = PrometheusApiClientException
        session = requests.Session()
        session.trust_env = not _is_local(urlsplit(self._url).hostname or "")  # no proxy leads to this machine
        # One try: the next one comes with the next turn anyway.
        return PrometheusConnect(self._url, retry=Retry(0, read=False), session=session, timeout=self._timeout_s)


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _why(error: requests.RequestException) -> str:
    """The innermost reason: requests wraps it in three layers, with addresses of objects."""
    words = str(error)
    told = re.search(r"\[Errno -?\d+\] ([^'\")]+)", words) or re.search(r"'([^']+)'\)*$", words)
    return (told[1] if told else type(error).__name__).strip()
