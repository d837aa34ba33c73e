"""`GET /system/logs`: what may be asked. Pure; `log_hub` answers it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl

from infless_core.errors import InvalidInput
from infless_provider.wire import function_key, parse_rfc3339_s

DEFAULT_PAST_S = 300.0
"""Without `since`, faas-netes and faasd show the last five minutes."""
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
_FOLLOW = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False, "": False}
"""As Go's clients read and write it, in any case."""
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,253}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogQuery:
    """What somebody wants to read."""

    key: str
    """The function's, `name.namespace`."""
    since_s: float
    """Older lines are left out; seconds since the epoch."""
    tail: int = 0
    """Only so many of the past lines, the last ones; 0 is all."""
    follow: bool = False
    instance: str = ""
    """Only this one's lines; empty is all."""

    @property
    def name(self) -> str:
        """The function's name without its namespace."""
        return self.key.rpartition(".")[0]


def parse_query(query: str, now_s: float) -> LogQuery:
    """The query of a logs request; of repeated keys the last one counts, as elsewhere.

    Raises:
        InvalidInput: names the key and what is allowed.
    """
    keys = dict(parse_qsl(query, keep_blank_values=True))
    name, namespace, instance = (keys.get(key, "") for key in ("name", "namespace", "instance"))
    key = function_key(name, namespace)
    for what, value in (("name", name), ("namespace", namespace), ("instance", instance)):
        if value and (not _NAME.fullmatch(value) or ".." in value):
            raise InvalidInput(f"{what}: {value!r} is not allowed; use A-Z, a-z, 0-9, '-', '_' and single '.'")
    if not name or name.startswith("."):
        raise InvalidInput("name is missing: name the function whose logs you want")
    tail = keys.get("tail") or "0"
    if not _WHOLE.fullmatch(tail):
        raise InvalidInput(f"tail: {tail!r} is not a whole number of at most 18 digits")
    follow = keys.get("follow", "").lower()
    if follow not in _FOLLOW:
        raise InvalidInput(f"follow: {keys['follow']!r} is not allowed; use true, false, 1 or 0")
    return LogQuery(
        key=key,
        since_s=parse_rfc3339_s(keys["since"]) if keys.get("since") else now_s - DEFAULT_PAST_S,
        tail=max(0, int(tail)),
        follow=_FOLLOW[follow],
        instance=instance,
    )
