"""Quantities at the wire: durations, memory and cpu as people write them, and back.

Inside INFless there is one unit per quantity: seconds, bytes, cores. Other units exist only here.
"""

from __future__ import annotations

import re
from fractions import Fraction

from infless_core.errors import InvalidInput

_NUMBER = r"[0-9]{1,18}(?:\.[0-9]{1,18})?"
"""More digits than anybody has measured; without a limit a label could overflow a float."""
_BARE = re.compile(_NUMBER)
_DURATION_PART = re.compile(rf"({_NUMBER})(ns|us|µs|ms|s|m|h)")
_SECONDS = {
    "ns": Fraction(1, 10**9),
    "us": Fraction(1, 10**6),
    "µs": Fraction(1, 10**6),
    "ms": Fraction(1, 1000),
    "s": Fraction(1),
    "m": Fraction(60),
    "h": Fraction(3600),
}
_QUANTITY = re.compile(rf"({_NUMBER})([A-Za-z]*)")
_BYTES = {
    "": 1,
    "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60,
}  # fmt: skip


def parse_duration_s(text: str, where: str = "duration") -> float:
    """Seconds from a Go duration (`"200ms"`, `"1m30s"`) or bare seconds (`"20"`).

    Args:
        text: what the user wrote.
        where: names the place in the error's sentence.

    Raises:
        InvalidInput: when `text` is neither.
    """
    stripped = text.strip()
    if _BARE.fullmatch(stripped):
        return float(stripped)
    parts = _DURATION_PART.findall(stripped)
    if not parts or "".join(number + unit for number, unit in parts) != stripped:
        raise InvalidInput(f"{where}: {text!r} is not a duration; write for example '200ms', '1.5s' or '1m30s'")
    return float(sum(Fraction(number) * _SECONDS[unit] for number, unit in parts))


def format_duration(seconds: float) -> str:
    """The shortest of `"200ms"`, `"1.5s"` that says the same, to three significant digits."""
    if seconds < 0.9995:  # what rounds to 1000 would be written 1e+03
        return f"{seconds * 1000:.3g}ms"
    return f"{seconds:.3g}s" if seconds < 999.5 else f"{seconds:.0f}s"


def parse_memory_bytes(text: str, where: str = "memory") -> int:
    """Bytes from a Kubernetes quantity (`"256Mi"`, `"1G"`, `"1048576"`).

    Raises:
        InvalidInput: when `text` is not such a quantity.
    """
    match = _QUANTITY.fullmatch(text.strip())
    if match is None or match[2] not in _BYTES:
        raise InvalidInput(f"{where}: {text!r} is not an amount of memory; write for example '256Mi' or '1Gi'")
    return int(Fraction(match[1]) * _BYTES[match[2]])


def parse_cpu_cores(text: str, where: str = "cpu") -> float:
    """Cores from a Kubernetes quantity (`"500m"` is half a core, `"2"` two).

    Raises:
        InvalidInput: when `text` is not such a quantity.
    """
    match = _QUANTITY.fullmatch(text.strip())
    if match is None or match[2] not in ("", "m"):
        raise InvalidInput(f"{where}: {text!r} is not an amount of cpu; write for example '500m' or '2'")
    return float(Fraction(match[1]) / (1000 if match[2] else 1))


def format_bytes(size_bytes: float) -> str:
    """To three significant digits, in the largest binary unit that fits: `"183 MiB"`."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size_bytes < 999.5:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.3g} TiB"
