"""`GET /api/v1/query` as an OpenFaaS gateway asks it of Prometheus: how often each function was invoked. Pure.

The gateway's function list fails where no Prometheus answers; pointed here (`faas_prometheus_host`), it needs none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_ASKED = re.compile(
    r"""\s*sum\s*\(\s*gateway_function_invocation_total\s*
    \{\s*function_name\s*=~\s*"\.\*\.(?P<namespace>[^"]*)"\s*\}\s*\)\s*by\s*\(\s*function_name\s*\)\s*""",
    re.VERBOSE,
)


def answer(query: str, invocations: Mapping[str, int], now_s: float) -> dict[str, Any]:
    """The answer of Prometheus's HTTP API; an empty vector to every query but the gateway's own.

    Args:
        query: PromQL.
        invocations: by function key.
        now_s: seconds since the epoch.
    """
    asked = _ASKED.fullmatch(query)
    suffix = f".{asked['namespace']}" if asked else ""
    result = [
        {"metric": {"function_name": key}, "value": [now_s, str(count)]}
        for key, count in sorted(invocations.items())
        if asked and (suffix == "." or key.endswith(suffix))
    ]
    return {"status": "success", "data": {"resultType": "vector", "result": result}}
