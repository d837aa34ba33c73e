"""How a server wants its requests, and what its answers mean."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.models import Floats

_OCTETS = (("Content-Type", "application/octet-stream"),)
_JSON = (("Content-Type", "application/json"),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A request without its path."""

    body: bytes
    headers: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """Requests and answers of one kind."""

    name: str
    """For the table."""
    encode: Callable[[Floats], Message]
    decode: Callable[[Sequence[bytes]], Floats]
    """Bodies to rows; raises ValueError where one of them is no answer."""


def _raw(one: Floats) -> Message:
    return Message(body=one.tobytes(), headers=_OCTETS)


def _from_raw(bodies: Sequence[bytes]) -> Floats:
    if len({len(body) for body in bodies}) > 1:
        raise ValueError("answers differ in length")
    return np.frombuffer(b"".join(bodies), np.float32).reshape(len(bodies), -1)


def _rows(values: list[object]) -> Floats:
    return np.array(values, np.float32).reshape(len(values), -1)


def _oip_tensor(one: Floats) -> dict[str, object]:
    return {"name": "x", "datatype": "FP32", "shape": [1, *one.shape]}


def _oip_json(one: Floats) -> Message:
    tensor = {**_oip_tensor(one), "data": one.ravel().tolist()}
    return Message(body=json.dumps({"inputs": [tensor]}).encode(), headers=_JSON)


def _from_oip_json(bodies: Sequence[bytes]) -> Floats:
    return _rows([json.loads(body)["outputs"][0]["data"] for body in bodies])


def _oip_binary(one: Floats) -> Message:
    tensor = {**_oip_tensor(one), "parameters": {"binary_data_size": one.nbytes}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = (*_OCTETS, ("Inference-Header-Content-Length", str(len(head))))
    return Message(body=head + one.tobytes(), headers=headers)


def _from_oip_binary(bodies: Sequence[bytes]) -> Floats:
    """The tensor's bytes are the last of the body; its JSON head says how many."""
    rows = []
    for body in bodies:
        head, _ = json.JSONDecoder().raw_decode(body.decode("latin-1"))
        rows.append(body[-head["outputs"][0]["parameters"]["binary_data_size"] :])
    return _from_raw(rows)


def _json(one: Floats) -> Message:
    return Message(body=json.dumps(one.tolist()).encode(), headers=_JSON)


def _named_json(one: Floats) -> Message:
    return Message(body=json.dumps({"x": [one.tolist()]}).encode(), headers=_JSON)


def _from_json(bodies: Sequence[bytes]) -> Floats:
    return _rows([json.loads(body) for body in bodies])


RAW = Form(name="raw", encode=_raw, decode=_from_raw)
JSON = Form(name="JSON", encode=_json, decode=_from_json)
NAMED_JSON = Form(name="JSON", encode=_named_json, decode=_from_json)
OIP_JSON = Form(name="OIP JSON", encode=_oip_json, decode=_from_oip_json)
OIP_BINARY = Form(name="OIP binary", encode=_oip_binary, decode=_from_oip_binary)
