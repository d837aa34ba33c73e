"""A function's wishes, read from its labels: `com.infless.*` and OpenFaaS's own `com.openfaas.scale.*`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import TypeVar

from infless_core.errors import InvalidInput
from infless_core.units import parse_duration_s

TARGET = "com.infless.latency.target"
PERCENTILE = "com.infless.latency.percentile"
BATCH_MAX = "com.infless.batch.max"
BATCH_PAD = "com.infless.batch.pad"
GPU = "com.infless.gpu"
AUTH_SECRET = "com.infless.auth.secret"  # noqa: S105 - the name of a label
SCALE_MIN = "com.openfaas.scale.min"
SCALE_MAX = "com.openfaas.scale.max"
SCALE_FACTOR = "com.openfaas.scale.factor"
SCALE_ZERO = "com.openfaas.scale.zero"
SCALE_ZERO_DURATION = "com.openfaas.scale.zero-duration"

_OURS = (TARGET, PERCENTILE, BATCH_MAX, BATCH_PAD, GPU, AUTH_SECRET)

_WHOLE = re.compile(r"[0-9]{1,9}")
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,2})?")
_DNS_SUBDOMAIN = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
"""RFC 1123, as Kubernetes wants it of secrets; such a name cannot leave a folder."""
_PAD_FORM = "write AXIS=LENGTHS[:VALUE] or LENGTHS[:VALUE], several with ';', as in '16' or 'ids.1=32,64,128:0;time=16'"
_T = TypeVar("_T")


class GpuWish(StrEnum):
    """Whether a function may or must run on a GPU."""

    NEVER = "never"
    ALLOW = "allow"
    REQUIRE = "require"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the user asked for, with defaults for what they left out."""

    latency_target_s: float = 0.5
    """Half a second: people still call an answer immediate; a stated target is always better."""
    latency_percentile: float = 99.0
    batch_max: int = 32
    """The paper's largest batch (INFless, section 5.1)."""
    batch_pad: str = ""
    """To which lengths items are padded, so that items of different length share a batch; empty pads nothing."""
    gpu: GpuWish = GpuWish.ALLOW
    auth_secret: str = ""
    """A secret whose lines are the tokens that open the function; empty leaves it open to everybody."""
    scale_min: int = 1
    """OpenFaaS keeps one replica unless scale to zero is asked for."""
    scale_max: int = 20
    """OpenFaaS's documented default."""
    scale_factor_percent: int = 10
    """How much of `scale_max` an alert adds (OpenFaaS's default)."""
    scale_to_zero: bool = False
    zero_after_s: float = 900.0
    """OpenFaaS's documented default for `zero-duration`: 15 minutes."""

    def environment(self, own: Mapping[str, str]) -> dict[str, str]:
        """The variables of an instance, and of whoever times one: the function's own, and what only labels say."""
        return {**own, "batch_pad": self.batch_pad} if self.batch_pad else dict(own)


def parse_wishes(labels: Mapping[str, str]) -> Wishes:
    """Read a function's labels; every fault is reported in one error.

    Args:
        labels: as faas-cli sends them; labels that are neither ours nor OpenFaaS's are ignored.

    Raises:
        InvalidInput: names each wrong label, its value and what is allowed.
    """
    faults: list[str] = []

    def read(label: str, parse: Callable[[str, str], _T], default: _T) -> _T:
        text = labels.get(label)
        if text is None:
            return default
        try:
            return parse(text, f"label {label}")
        except InvalidInput as fault:
            faults.append(str(fault))
            return default

    faults.extend(
        f"label {label}: unknown; known are {', '.join(_OURS)}"
        for label in sorted(labels)
        if label.startswith("com.infless.") and label not in _OURS
    )
    default = Wishes()
    to_zero = read(SCALE_ZERO, _boolean, default.scale_to_zero)
    wishes = Wishes(
        latency_target_s=read(TARGET, parse_target_s, default.latency_target_s),
        latency_percentile=read(PERCENTILE, _percentile, default.latency_percentile),
        batch_max=read(BATCH_MAX, _between(1, 1024), default.batch_max),
        batch_pad=read(BATCH_PAD, _pad, default.batch_pad),
        gpu=read(GPU, _gpu, default.gpu),
        auth_secret=read(AUTH_SECRET, _secret, default.auth_secret),
        scale_min=read(SCALE_MIN, _between(0, 1000), 0 if to_zero else default.scale_min),
        scale_max=read(SCALE_MAX, _between(1, 1000), default.scale_max),
        scale_factor_percent=read(SCALE_FACTOR, _between(1, 100), default.scale_factor_percent),
        scale_to_zero=to_zero,
        zero_after_s=read(SCALE_ZERO_DURATION, parse_duration_s, default.zero_after_s),
    )
    if wishes.scale_min > wishes.scale_max and not faults:
        faults.append(f"label {SCALE_MIN}: {wishes.scale_min} is above {SCALE_MAX}, {wishes.scale_max}")
    if faults:
        raise InvalidInput("; ".join(faults))
    return wishes


def parse_target_s(text: str, where: str) -> float:
    """A latency target in seconds.

    Raises:
        InvalidInput: when `text` is no duration, or one that nobody can mean.
    """
    target_s = parse_duration_s(text, where)
    if not 0.001 <= target_s <= 600:
        raise InvalidInput(f"{where}: {text!r} is out of range; allowed is 1ms to 10m")
    return target_s


def _percentile(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 50 <= value < 100:
        raise InvalidInput(f"{where}: {text!r} is not a percentile; allowed is a number from 50 to below 100")
    return value


def _between(low: int, high: int) -> Callable[[str, str], int]:
    def parse(text: str, where: str) -> int:
        if not _WHOLE.fullmatch(text.strip()) or not low <= int(text) <= high:
            raise InvalidInput(f"{where}: {text!r} is not allowed; write a whole number from {low} to {high}")
        return int(text)

    return parse


def _secret(text: str, where: str) -> str:
    if not _DNS_SUBDOMAIN.fullmatch(text):
        raise InvalidInput(f"{where}: {text!r} is not a secret's name: use a-z, 0-9, '-' and '.' inside")
    return text


def _pad(text: str, where: str) -> str:
    """The rules as they were written: the watchdog reads them again, against the axes of its model."""
    axes = set()
    for rule in text.split(";"):
        axis, equals, lengths_value = (part.strip() for part in rule.rpartition("="))
        lengths, colon, value = (part.strip() for part in lengths_value.partition(":"))
        if (equals and not axis) or not _rising(lengths) or (colon and not _NUMBER.fullmatch(value)):
            raise InvalidInput(f"{where}: {text!r} is not allowed, because of {rule.strip()!r}; {_PAD_FORM}")
        if axis in axes:
            raise InvalidInput(f"{where}: {text!r} has two rules for {axis or 'all axes'}; write one for each axis")
        axes.add(axis)
    return text.strip()


def _rising(lengths: str) -> bool:
    """Whether it is one whole number above 0, or several, each above the one before."""
    parts = [part.strip() for part in lengths.split(",")]
    if not all(_WHOLE.fullmatch(part) and not part.startswith("0") for part in parts):
        return False
    return all(low < high for low, high in pairwise(map(int, parts)))


def _gpu(text: str, where: str) -> GpuWish:
    try:
        return GpuWish(text.strip())
    except ValueError:
        raise InvalidInput(f"{where}: {text!r} is not allowed; write never, allow or require") from None


def _boolean(text: str, where: str) -> bool:
    if text.strip().lower() not in ("true", "false"):
        raise InvalidInput(f"{where}: {text!r} is not allowed; write true or false")
    return text.strip().lower() == "true"
