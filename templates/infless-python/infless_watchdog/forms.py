"""multipart/form-data: fields and files by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from multipart import MultipartError, MultipartSegment, ParserLimitReached, PushMultipartParser, parse_options_header

from infless_watchdog.isolation import ItemError
from infless_watchdog.json_text import parse_json

_CHARSETS = {"utf-8": "utf-8", "utf8": "utf-8", "us-ascii": "ascii", "ascii": "ascii", "iso-8859-1": "latin-1"}


@dataclass(frozen=True, slots=True)
class UploadedFile:
    """A file of a form."""

    filename: str
    """As the client says: not a path to write to."""
    content_type: str
    data: bytes


def parse_multipart(content_type: bytes, octets: bytes, *, parts_max: int = 256) -> dict[str, Any]:
    """A form by its fields' names: `str`, what JSON says, or UploadedFile; a list where a name is repeated.

    Args:
        content_type: the whole header; it says what stands between the parts.
        octets: the body.
        parts_max: more of them are refused.

    Raises:
        ItemError: 400 for a broken form, 413 for one of too many parts or too long headers.
    """
    try:
        boundary = parse_options_header(content_type.decode("latin-1"))[1].get("boundary", "")
        found = _parts(PushMultipartParser(boundary, max_segment_count=parts_max, strict=True), octets)
    except ParserLimitReached as error:
        raise ItemError(413, f"the form is too large ({parts_max} parts at most): {error}") from None
    except MultipartError as error:
        raise ItemError(400, f"the body is not valid multipart/form-data: {error}") from None
    values: dict[str, list[Any]] = {}
    for segment, data in found:
        values.setdefault(segment.name or "", []).append(_value(segment, data))
    return {name: several[0] if len(several) == 1 else several for name, several in values.items()}


def charset_of(content_type: str) -> str:
    """The charset of a text as Python names it.

    Raises:
        ItemError: 415 for one that is not taken: some cost much time, others are no text.
    """
    said = parse_options_header(content_type)[1].get("charset", "utf-8").lower()
    if said not in _CHARSETS:
        raise ItemError(415, f"charset {said} is not one of utf-8, us-ascii, iso-8859-1")
    return _CHARSETS[said]


def decode_text(octets: bytes, charset: str, what: str) -> str:
    """Text from bytes.

    Raises:
        ItemError: 400 with the place of the fault.
    """
    try:
        return octets.decode(charset)
    except UnicodeDecodeError as error:
        raise ItemError(400, f"{what} is not {charset} text: {error}") from None


def _parts(parser: PushMultipartParser, octets: bytes) -> list[tuple[MultipartSegment, bytes]]:
    found: list[tuple[MultipartSegment, list[bytes]]] = []
    for event in [*parser.parse(octets), *parser.parse(b"")]:  # nothing is how the end is told
        if isinstance(event, MultipartSegment):
            found.append((event, []))
        elif event is not None:
            found[-1][1].append(event)
    return [(segment, b"".join(chunks)) for segment, chunks in found]


def _value(segment: MultipartSegment, data: bytes) -> Any:
    kind, where = segment.content_type or "text/plain", f"field {segment.name!r}"
    if segment.filename is None and kind == "application/json":
        return parse_json(data, where)
    if segment.filename is None and kind.startswith("text/"):
        return decode_text(data, charset_of(f"{kind}; charset={segment.charset or 'utf-8'}"), where)
    return UploadedFile(segment.filename or "", segment.content_type or "application/octet-stream", data)
