"""Edge: batch histograms from the instances themselves, where no Prometheus collects them."""

from __future__ import annotations

import http.client
import logging
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from infless_core.errors import BackendError
from infless_profiler.readings import METRIC, Counted, gathered

LOG = logging.getLogger("infless.scrape")
TIMEOUT_S = 2.0
BODY_MAX_BYTES = 8 * 1024 * 1024
_TOGETHER = 8
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where an instance publishes its metrics."""

    instance: str
    function: str
    host: str
    port: int

    @property
    def address(self) -> str:
        """As in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class InstanceSource:
    """Asks every instance; those that do not answer are passed over."""

    name = "instances"
    title = "the instances' own /metrics"

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s

    def read(self, targets: Sequence[Target]) -> list[Counted]:
        """What they have counted.

        Raises:
            BackendError: none of them can be read.
        """
        if not targets:
            return []
        with ThreadPoolExecutor(max_workers=min(_TOGETHER, len(targets)), thread_name_prefix="scrape") as pool:
            answers = list(pool.map(self._one, targets))
        faults = [answer for answer in answers if isinstance(answer, str)]
        if len(faults) == len(targets):
            raise BackendError(f"none of {len(targets)} instance(s) can be read: {faults[0]}")
        return [one for answer in answers if not isinstance(answer, str) for one in answer]

    def _one(self, target: Target) -> list[Counted] | str:
        try:
            return parse(self._fetch(target), target)
        except (OSError, http.client.HTTPException, ValueError) as error:
            fault = f"http://{target.address}/metrics of {target.instance}: {error or type(error).__name__}"
            LOG.debug("%s", fault)
            return fault

    def _fetch(self, target: Target) -> str:
        ends_s = time.monotonic() + self._timeout_s
        pieces, size = [], 0
        with _DIRECT.open(f"http://{target.address}/metrics", timeout=self._timeout_s) as answer:
            while piece := answer.read1(64 * 1024):
                pieces.append(piece)
                size += len(piece)
                if size > BODY_MAX_BYTES:
                    raise ValueError(f"more than {BODY_MAX_BYTES} bytes")
                if time.monotonic() > ends_s:
                    raise ValueError(f"not whole within {self._timeout_s:g} s")
        return b"".join(pieces).decode()


def parse(text: str, target: Target) -> list[Counted]:
    """Histograms in Prometheus's text format, of one instance.

    Raises:
        ValueError: it is something else.
    """
    lines = [line for line in text.splitlines() if line.startswith(METRIC)]  # the rest need not be looked at
    given = {"infless_instance": target.instance, "function_name": target.function}
    return gathered(
        (sample.name, {**sample.labels, **given}, float(sample.value))
        for family in text_string_to_metric_families("\n".join(lines) + "\n")
        for sample in family.samples
    )
