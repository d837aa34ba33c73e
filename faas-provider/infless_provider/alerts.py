"""What AlertManager says to `POST /system/alert`, and what follows for a function. Pure.

Source: AlertManager's webhook, and OpenFaaS's reading of it (openfaas/docs, "autoscaling").
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infless_core.errors import InvalidInput


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One alert about a function."""

    function_name: str
    """`name` or `name.namespace`."""
    firing: bool


def parse_alerts(data: Mapping[str, Any]) -> list[Alert]:
    """The alerts of a webhook that name a function.

    Raises:
        InvalidInput: when it is no webhook of AlertManager's.
    """
    alerts = data.get("alerts")
    if not isinstance(alerts, list) or not all(isinstance(one, dict) for one in alerts):
        raise InvalidInput("alerts must be a list of objects, as AlertManager's webhook sends it")
    found = []
    for one in alerts:
        labels = one.get("labels") or {}
        name = labels.get("function_name") if isinstance(labels, dict) else None
        if isinstance(name, str) and name:
            found.append(Alert(function_name=name, firing=one.get("status") == "firing"))
    return found


def replicas_after(*, replicas: int, most: int, factor_percent: int) -> int:
    """The wanted replicas once an alert fires: a share of the largest number more."""
    return min(most, replicas + math.ceil(most * factor_percent / 100))
