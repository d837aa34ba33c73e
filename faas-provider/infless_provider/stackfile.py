"""stack.yml as faas-cli reads it: functions, `${VAR:-default}`, environment files. Unknown keys are ignored."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from infless_core.errors import InvalidInput
from infless_provider.wire import NAME

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StackFunction:
    """One function of a stack file."""

    name: str
    lang: str
    handler: Path
    image: str
    deployment: Mapping[str, Any] = field(default_factory=dict)
    """The FunctionDeployment to send, as faas-cli would build it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """A stack file."""

    gateway: str
    functions: tuple[StackFunction, ...]


def read_stack(path: Path, environ: Mapping[str, str], only: tuple[str, ...] = (), pattern: str | None = None) -> Stack:
    """Read and check a stack file.

    Args:
        path: relative paths inside are taken from its folder.
        environ: for `${VAR}`.
        only: names of functions; empty means all.
        pattern: takes of them those whose name matches the wildcard, as `faas-cli --filter` does.

    Raises:
        InvalidInput: the file, the place and what is allowed.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    filled = _VARIABLE.sub(lambda match: environ.get(match[1]) or match[2] or "", text)
    try:
        data = yaml.safe_load(filled)
    except yaml.YAMLError as error:
        raise InvalidInput(f"{path} is not valid YAML: {error}") from None
    if not isinstance(data, dict) or not isinstance(data.get("functions"), dict):
        raise InvalidInput(f"{path}: needs 'functions', an object of functions by name")
    provider = data.get("provider")
    provider = provider if isinstance(provider, dict) else {}
    if provider.get("name") != "openfaas":
        raise InvalidInput(f"{path}: provider.name must be openfaas, it is {provider.get('name')!r}")
    odd = [name for name in data["functions"] if not isinstance(name, str) or not NAME.fullmatch(name)]
    if odd:
        raise InvalidInput(f"{path}: functions.{odd[0]} is not a function name: use a-z, 0-9 and '-' inside")
    unknown = [name for name in only if name not in data["functions"]]
    if unknown:
        raise InvalidInput(f"{path}: no function {unknown[0]!r}; there are {', '.join(data['functions'])}")
    wanted = {name: spec for name, spec in data["functions"].items() if not only or name in only}
    chosen = {name: spec for name, spec in wanted.items() if pattern is None or fnmatchcase(name, pattern)}
    if wanted and not chosen:
        raise InvalidInput(f"--filter: {pattern!r} matches none of {', '.join(wanted)}")
    functions = tuple(_function(path, name, spec) for name, spec in chosen.items())
    return Stack(gateway=str(provider.get("gateway") or ""), functions=functions)


def _function(path: Path, name: str, spec: Any) -> StackFunction:
    where = f"{path}: functions.{name}"
    if not isinstance(spec, dict):
        raise InvalidInput(f"{where} must be an object")
    missing = [key for key in ("lang", "handler", "image") if not isinstance(spec.get(key), str)]
    if missing:
        raise InvalidInput(f"{where}.{missing[0]} is missing")
    environment = _strings(spec.get("environment"), f"{where}.environment")
    for file in _list(spec.get("environment_file"), f"{where}.environment_file"):
        environment |= _environment_file(path.parent / file)
    deployment: dict[str, Any] = {
        "service": name,
        "image": spec["image"],
        "envProcess": str(spec.get("fprocess") or ""),
    }
    optional = (
        ("namespace", spec.get("namespace") or ""),
        ("envVars", environment),
        ("labels", _strings(spec.get("labels"), f"{where}.labels")),
        ("annotations", _strings(spec.get("annotations"), f"{where}.annotations")),
        ("constraints", _list(spec.get("constraints"), f"{where}.constraints")),
        ("secrets", _list(spec.get("secrets"), f"{where}.secrets")),
        ("limits", _resources(spec.get("limits"), f"{where}.limits")),
        ("requests", _resources(spec.get("requests"), f"{where}.requests")),
    )
    deployment |= {key: value for key, value in optional if value}
    if spec.get("readonly_root_filesystem"):
        deployment["readOnlyRootFilesystem"] = True
    handler = (path.parent / spec["handler"]).resolve()
    return StackFunction(
        name=name, lang=spec["lang"], handler=handler, image=spec["image"], deployment=deployment
    )  # fmt: skip


def _strings(value: Any, where: str) -> dict[str, str]:
    """Scalars in maps become strings, as in faas-cli."""
    if value is None:
        return {}
    if not isinstance(value, dict) or any(isinstance(item, (dict, list)) for item in value.values()):
        raise InvalidInput(f"{where} must be an object of single values")
    return {str(key): _scalar(item) for key, item in value.items()}


def _list(value: Any, where: str) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list) or any(isinstance(item, (dict, list)) for item in value):
        raise InvalidInput(f"{where} must be a list of single values")
    return [_scalar(item) for item in value]


def _scalar(item: Any) -> str:
    return str(item).lower() if isinstance(item, bool) else "" if item is None else str(item)


def _resources(value: Any, where: str) -> dict[str, str]:
    """Only memory and cpu: faas-cli drops the rest too."""
    return {key: item for key, item in _strings(value, where).items() if key in ("memory", "cpu")}


def _environment_file(path: Path) -> dict[str, str]:
    try:
        data = yaml.safe_load(path.read_text()) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidInput(f"{path} cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise InvalidInput(f"{path}: needs 'environment', an object of single values")
    return _strings(data.get("environment"), f"{path}: environment")
