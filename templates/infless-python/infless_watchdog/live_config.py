"""What the provider may change while an instance runs: the body of `PUT /_/config`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

TARGET_MAX_S = 3600.0
"""A latency target above an hour is a slip of units."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveConfig:
    """A wish of the provider's."""

    batch_max: int
    latency_target_s: float
    wait_max_s: float | None = None
    """None leaves it as it is, here and in the next one."""
    cpu_cores: int | None = None


def read_live_config(body: bytes) -> LiveConfig:
    """From `{"batch_max": 8, "latency_target_s": 0.2, "wait_max_s": 0.05, "cpu_cores": 2}`; the last two are optional.

    Raises:
        ValueError: one sentence for the first fault.
    """
    try:
        wish = json.loads(body)
        batch_max, target_s = wish["batch_max"], wish["latency_target_s"]
        wait_s, cores = wish.get("wait_max_s"), wish.get("cpu_cores")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as fault:
        raise ValueError(f"send batch_max and latency_target_s as JSON: {fault!r}") from None
    if type(batch_max) is not int or batch_max < 1:
        raise ValueError(f"batch_max is a whole number of at least 1, not {batch_max!r}")
    if not _is_number(target_s) or not 0 < target_s <= TARGET_MAX_S:
        raise ValueError(f"latency_target_s is above 0 and at most {TARGET_MAX_S:g}, not {target_s!r}")
    if wait_s is not None and (not _is_number(wait_s) or not 0 <= wait_s <= TARGET_MAX_S):
        raise ValueError(f"wait_max_s is from 0 to {TARGET_MAX_S:g}, not {wait_s!r}")
    if cores is not None and (type(cores) is not int or cores < 1):
        raise ValueError(f"cpu_cores is a whole number of at least 1, not {cores!r}")
    return LiveConfig(batch_max=batch_max, latency_target_s=target_s, wait_max_s=wait_s, cpu_cores=cores)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)
