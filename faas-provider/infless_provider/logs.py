"""`GET /system/logs`: a function's lines as NDJSON, the past ones and, on wish, those to come."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from infless_core.errors import InvalidInput
from infless_provider.settings import NAMESPACE
from infless_provider.wire import function_key, parse_rfc3339_s

if TYPE_CHECKING:
    from infless_watchdog.http import Exchange

DEFAULT_PAST_S = 300.0
"""Without `since`, faas-netes and faasd show the last five minutes."""
POLL_S = 0.25
FOLLOWERS_MAX = 256
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of an instance."""

    timestamp: str
    at_s: float
    instance: str
    text: str


def parse_query(query: str, now_s: float) -> LogQuery:
    """The query of a logs request; of repeated keys the last one counts, as elsewhere.

    Raises:
        InvalidInput: names the key and what is allowed.
    """
    keys = dict(parse_qsl(query))
    name, namespace, instance = (keys.get(key, "") for key in ("name", "namespace", "instance"))
    key = function_key(name, namespace)
    for what, value in (("name", name), ("namespace", namespace), ("instance", instance)):
        if value and (not _NAME.fullmatch(value) or ".." in value):
            raise InvalidInput(f"{what}: {value!r} is not allowed; use A-Z, a-z, 0-9, '-', '_' and single '.'")
    if not name or name.startswith("."):
        raise InvalidInput("name is missing: name the function whose logs you want")
    tail = keys.get("tail") or "0"
    if not _WHOLE.fullmatch(tail):
        raise InvalidInput(f"tail: {tail!r} is not a whole number")
    return LogQuery(
        key=key,
        since_s=parse_rfc3339_s(keys["since"]) if keys.get("since") else now_s - DEFAULT_PAST_S,
        tail=max(0, int(tail)),
        follow=keys.get("follow", "").lower() in ("1", "t", "true"),
        instance=instance,
    )


class LogReader:
    """Reads the files of one function's instances, from where the last look ended."""

    def __init__(self, folder: Path, query: LogQuery) -> None:
        self._folder = folder
        self._query = query
        self._read: dict[str, int] = {}

    def new_lines(self) -> list[Line]:
        """Complete lines since the last look, in order of time."""
        found = [line for path in self._files() for line in self._lines(path)]
        return sorted(found, key=lambda line: line.at_s)

    def _files(self) -> list[Path]:
        wanted = self._query.instance
        return sorted(path for path in self._folder.glob("*.log") if not wanted or path.stem == wanted)

    def _lines(self, path: Path) -> Iterator[Line]:
        start = self._read.get(path.name, 0)
        try:
            with path.open("rb") as file:
                if start > path.stat().st_size:
                    start = 0  # rotated
                file.seek(start)
                data = file.read()
        except OSError:
            return
        whole = data.rfind(b"\n") + 1
        self._read[path.name] = start + whole
        for raw in data[:whole].splitlines():
            timestamp, _, text = raw.decode(errors="replace").partition(" ")
            try:
                at_s = parse_rfc3339_s(timestamp)
            except InvalidInput:
                continue
            if at_s >= self._query.since_s:
                yield Line(timestamp=timestamp, at_s=at_s, instance=path.stem, text=text)


async def stream(exchange: Exchange, reader: LogReader, query: LogQuery) -> None:
    """Write lines as they are found; ends with the past ones unless `follow`, else when the client leaves."""
    exchange.begin(200, [(b"content-type", b"application/x-ndjson")])
    try:
        lines = await asyncio.to_thread(reader.new_lines)
        lines = lines[-query.tail :] if query.tail else lines
        while True:
            for line in lines:
                exchange.write(_json(query.name, line))
            await exchange.writable()
            if not query.follow or exchange.done:
                break
            await asyncio.sleep(POLL_S)
            lines = await asyncio.to_thread(reader.new_lines)
        exchange.end()
    except Exception:
        exchange.abort()
        raise


def _json(name: str, line: Line) -> bytes:
    record = {
        "name": name,
        "namespace": NAMESPACE,
        "instance": line.instance,
        "timestamp": line.timestamp,
        "text": line.text,
    }
    return json.dumps(record).encode() + b"\n"
