"""OpenFaaS JSON to our values and back (openfaas/faas-provider types; JSON typing is Go's). Pure."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from infless_core.errors import InvalidInput
from infless_core.model import FunctionSpec
from infless_core.units import parse_cpu_cores, parse_memory_bytes
from infless_provider.settings import NAMESPACE

NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
"""A DNS label (RFC 1123), as Kubernetes wants it of functions and namespaces; it cannot leave a folder."""
_SECRET_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
"""A DNS subdomain (RFC 1123), as Kubernetes wants it of secrets."""
_SECRET_NAME_MAX = 253
SECRET_BYTES_MAX = 1024 * 1024
"""As Kubernetes has it."""
REPLICAS_MAX = 1000
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,254}")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a request.

    Raises:
        InvalidInput: when the body is none.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as fault:
        raise InvalidInput(f"the request's body is not valid JSON: {fault}") from None
    if not isinstance(value, dict):
        raise InvalidInput("the request's body must be a JSON object")
    return value


def parse_deployment(data: Mapping[str, Any]) -> FunctionSpec:
    """A FunctionDeployment. Fields that OpenFaaS may add later are ignored; ours are checked, all faults at once.

    Raises:
        InvalidInput: a sentence for each fault.
    """
    faults: list[str] = []
    name, image = data.get("service"), data.get("image")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        faults.append(f"service {name!r} is not a function name: use a-z, 0-9 and '-' inside, at most 63 characters")
    if not isinstance(image, str) or not image:
        faults.append("image is missing: name the image or bundle to run")
    elif not _IMAGE.fullmatch(image) or ".." in image:
        faults.append(f"image {image!r} is not an image reference")
    namespace = data.get("namespace") or NAMESPACE
    if not isinstance(namespace, str) or not NAME.fullmatch(namespace):
        faults.append(f"namespace {namespace!r} is not a namespace's name: use a-z, 0-9 and '-' inside")
    env = _strings(data, "envVars", faults)
    faults.extend(f"envVars: {key!r} is not a variable name" for key in env if not _ENV_NAME.fullmatch(key))
    faults.extend(f"envVars: the value of {key!r} is not text" for key, value in env.items() if not _is_text(value))
    process, read_only = data.get("envProcess") or "", data.get("readOnlyRootFilesystem") or False
    if not isinstance(process, str) or not _is_text(process):
        faults.append("envProcess must be a string of text")
    if not isinstance(read_only, bool):
        faults.append("readOnlyRootFilesystem must be true or false")
    secrets = _list(data, "secrets", faults)
    faults.extend(f"secrets: {one!r} is not a secret's name" for one in secrets if not _is_secret_name(one))
    spec_parts = {
        "labels": _labels(data, "labels", faults),
        "annotations": _texts(data, "annotations", faults),
        "constraints": _list(data, "constraints", faults),
        "secrets": secrets,
        "limits": _resources(data, "limits", faults),
        "requests": _resources(data, "requests", faults),
    }
    if faults:
        raise InvalidInput("; ".join(faults))
    return FunctionSpec(
        name=str(name),
        image=str(image),
        namespace=str(namespace),
        env_process=str(process),
        env_vars=env,
        read_only_root_filesystem=bool(read_only),
        **spec_parts,  # type: ignore[arg-type] # each was read by its own type above
    )


def spec_json(spec: FunctionSpec) -> dict[str, Any]:
    """The specification as it came: what clients compare (absent stays absent)."""
    out: dict[str, Any] = {"name": spec.name, "image": spec.image, "namespace": spec.namespace}
    optional = {
        "envProcess": spec.env_process,
        "envVars": spec.env_vars,
        "constraints": list(spec.constraints),
        "secrets": list(spec.secrets),
        "annotations": spec.annotations,
        "limits": spec.limits,
        "requests": spec.requests,
        "readOnlyRootFilesystem": spec.read_only_root_filesystem,
    }
    out.update({key: value for key, value in optional.items() if value})
    out["labels"] = {**spec.labels, "faas_function": spec.name}
    return out


def status_json(
    spec: FunctionSpec, *, replicas: int, available: int, invocations: int, created_at_s: float
) -> dict[str, Any]:
    """A FunctionStatus."""
    return {
        **spec_json(spec),
        "replicas": replicas,
        "availableReplicas": available,
        "invocationCount": invocations,
        "createdAt": rfc3339(created_at_s),
    }


def parse_scale(data: Mapping[str, Any]) -> int:
    """The wanted replicas of a ScaleServiceRequest.

    Raises:
        InvalidInput: when `replicas` is not a whole number from 0 to 1000.
    """
    replicas = data.get("replicas")
    if type(replicas) is not int or not 0 <= replicas <= REPLICAS_MAX:
        raise InvalidInput(f"replicas {replicas!r} is not allowed; write a whole number from 0 to {REPLICAS_MAX}")
    return replicas


def parse_namespace(name: object) -> str:
    """A namespace's name as a client sends it; empty or absent means the default one.

    Raises:
        InvalidInput: when it cannot be one.
    """
    if name in (None, ""):
        return NAMESPACE
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InvalidInput(f"namespace {name!r} is not a namespace's name: use a-z, 0-9 and '-' inside")
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretWish:
    """A secret as a client sends it."""

    name: str
    namespace: str
    value: bytes = field(repr=False)


def parse_secret(data: Mapping[str, Any], *, valued: bool) -> SecretWish:
    """A Secret: `rawValue` (base64) wins over `value`.

    Args:
        data: the JSON object.
        valued: whether it has to have a value.

    Raises:
        InvalidInput: names the field, never its value.
    """
    name, namespace = data.get("name"), parse_namespace(data.get("namespace"))
    if not isinstance(name, str) or not _is_secret_name(name):
        raise InvalidInput(
            f"name {name!r} is not a secret's name: use a-z, 0-9, '-' and '.' inside, at most {_SECRET_NAME_MAX}"
        )
    raw, text = data.get("rawValue"), data.get("value")
    if not all(isinstance(one, str | None) for one in (raw, text)):
        raise InvalidInput(f"value and rawValue of secret {name!r} must be strings")
    value = (text or "").encode(errors="surrogatepass")
    if raw:
        try:
            value = base64.b64decode(raw, validate=True)
        except ValueError:
            raise InvalidInput(f"rawValue of secret {name!r} is not base64") from None
    if valued and not value:
        raise InvalidInput(f"secret {name!r} has no value: send value, or rawValue in base64")
    if len(value) > SECRET_BYTES_MAX:
        raise InvalidInput(f"the value of secret {name!r} is larger than the allowed {SECRET_BYTES_MAX} bytes")
    return SecretWish(name=name, namespace=namespace, value=value)


def parse_function_namespace(data: Mapping[str, Any], name: str = "") -> tuple[str, dict[str, str], dict[str, str]]:
    """Name, labels and annotations of a FunctionNamespace.

    Args:
        data: the JSON object.
        name: as the path has it; empty where only the body does.

    Raises:
        InvalidInput: a sentence for each fault.
    """
    faults: list[str] = []
    said = data.get("name") or name
    if not isinstance(said, str) or not NAME.fullmatch(said):
        faults.append(f"name {said!r} is not a namespace's name: use a-z, 0-9 and '-' inside, at most 63 characters")
    elif name and said != name:
        faults.append(f"the path names namespace {name!r} and the body {said!r}; they must be the same")
    labels, annotations = _labels(data, "labels", faults), _texts(data, "annotations", faults)
    if faults:
        raise InvalidInput("; ".join(faults))
    return str(said), labels, annotations


def function_key(text: str, namespace: str = "") -> str:
    """A function's key from `name` or `name.namespace`: neither part holds a dot, so the last one divides them.

    Args:
        text: as in a URL; may be anything.
        namespace: what is meant when `text` names none; empty is the default namespace.
    """
    return text if "." in text else f"{text}.{namespace or NAMESPACE}"


def rfc3339(seconds: float) -> str:
    """Seconds since the epoch, with the zone that Go insists on."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_rfc3339_s(text: str) -> float:
    """Seconds since the epoch.

    Raises:
        InvalidInput: when `text` is no RFC 3339 time with a zone.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise InvalidInput(f"since: {text!r} is not a time such as 2026-01-31T12:00:00Z")
    return moment.timestamp()


def _strings(data: Mapping[str, Any], key: str, faults: list[str]) -> dict[str, str]:
    value = data.get(key) or {}
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        faults.append(f"{key} must be an object of strings")
        return {}
    return value


def _labels(data: Mapping[str, Any], key: str, faults: list[str]) -> dict[str, str]:
    """They end up in metrics, logs and containers' labels: nothing that could forge a line."""
    found = _strings(data, key, faults)
    faults.extend(
        f"{key}: {name!r} is empty, or it or its value holds a control character"
        for name, value in found.items()
        if not name or _CONTROL.search(name) or _CONTROL.search(value)
    )
    return found


def _texts(data: Mapping[str, Any], key: str, faults: list[str]) -> dict[str, str]:
    """What is kept and given back only has to be text; lines are allowed."""
    found = _strings(data, key, faults)
    faults.extend(
        f"{key}: {name!r} or its value is not text"
        for name, value in found.items()
        if not _is_text(name) or not _is_text(value)
    )
    return found


def _is_secret_name(text: str) -> bool:
    return len(text) <= _SECRET_NAME_MAX and _SECRET_NAME.fullmatch(text) is not None


def _is_text(value: str) -> bool:
    """Whether a process can be given it: no NUL, no half of a surrogate pair (JSON can say both)."""
    return "\0" not in value and not any("\ud800" <= char <= "\udfff" for char in value)


def _list(data: Mapping[str, Any], key: str, faults: list[str]) -> tuple[str, ...]:
    value = data.get(key) or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        faults.append(f"{key} must be a list of strings")
        return ()
    faults.extend(f"{key}: {item!r} is not text" for item in value if not _is_text(item))
    return tuple(value)


def _resources(data: Mapping[str, Any], key: str, faults: list[str]) -> dict[str, str] | None:
    value = _texts(data, key, faults)
    for name, parse in (("memory", parse_memory_bytes), ("cpu", parse_cpu_cores)):
        if value.get(name):
            try:
                parse(value[name], f"{key}.{name}")
            except InvalidInput as fault:
                faults.append(str(fault))
    return value or None
