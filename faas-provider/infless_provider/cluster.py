"""`cluster.yml`: what a machine gives to instances, read with every fault at once.

::

    version: 1
    servers:
      - id: local
        cpu_cores: 6
        cpuset: 2-7           # optional: which ones
        memory: 16Gi
        gpus:                 # optional
          - {id: "0", memory: 24Gi}
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from infless_core.errors import InvalidInput
from infless_core.model import Gpu, Server
from infless_core.units import parse_memory_bytes
from infless_provider.backends.allotment import ClusterServer
from infless_scheduler.json_reader import JsonObject, is_a

VERSION = 1
_CLUSTER = ("version", "servers")
_SERVER = ("id", "cpu_cores", "cpuset", "memory", "gpus")
_GPU = ("id", "memory")
_CPUSET = re.compile(r"\d{1,5}(-\d{1,5})?(,\d{1,5}(-\d{1,5})?)*")
_CPU_MAX = 8192
"""Of Linux (`NR_CPUS`): a typing error must not become a set of a hundred thousand."""


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML would take the last one silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for place, key in enumerate(keys):
            if key in keys[:place]:
                mark = node.value[place][0].start_mark
                raise InvalidInput(f"line {mark.line + 1}: the key {key!r} appears twice in one object")
        return super().construct_mapping(node, deep)


def read_cluster(path: Path) -> ClusterServer:
    """Read the one server of a cluster file.

    Raises:
        InvalidInput: a line for each fault, with the file, the place and what is allowed.
    """
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a SafeLoader
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise InvalidInput(f"{path} is not valid YAML: {error}") from None
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}") from None
    faults: list[str] = []
    found = _parse(data, faults)
    if faults or found is None:
        raise InvalidInput("\n".join(f"{path}: {fault}" for fault in faults))
    return found


def _parse(data: object, faults: list[str]) -> ClusterServer | None:
    root = JsonObject(data, "$", faults, known=_CLUSTER)
    if root.good and root.whole("version", VERSION) != VERSION:
        root.fault("version", f"unknown version; this provider reads version {VERSION}")
    servers = root.objects("servers", _server)
    stated = root.get("servers")
    if isinstance(stated, list) and len(stated) != 1:
        root.fault(
            "servers",
            f"{len(stated)} servers; this machine is one: several machines are the job of Kubernetes",
        )
    return servers[0] if servers else None


def _server(value: object, path: str, faults: list[str]) -> ClusterServer | None:
    fields = JsonObject(value, path, faults, known=_SERVER, optional="cpu_cores cpuset memory gpus")
    id_, memory_bytes = fields.text("id"), _memory_bytes(fields)
    cpus = _cpuset(fields)
    gpus = fields.objects("gpus", _gpu)
    ids = [gpu.id for gpu in gpus]
    for repeated in sorted({id_ for id_ in ids if ids.count(id_) > 1}):
        fields.fault("gpus", f"{repeated!r} is there twice; ids are unique within their list")
    if fields.get("cpu_cores") is None and fields.get("cpuset") is None:
        fields.fault("cpu_cores", "missing, and there is no cpuset; state one of them")
    cores = fields.whole("cpu_cores", len(cpus) or 1, least=1)
    if cpus and cores != len(cpus):
        fields.fault("cpuset", f"it names {len(cpus)} CPUs, and cpu_cores is {cores}; leave one of them out")
    if not fields.good:
        return None
    return ClusterServer(server=Server(id=id_, cpu_cores=cores, memory_bytes=memory_bytes, gpus=gpus), cpus=cpus)


def _gpu(value: object, path: str, faults: list[str]) -> Gpu | None:
    fields = JsonObject(value, path, faults, known=_GPU, optional="memory")
    gpu_id = fields.get("id")
    # YAML makes a number of 0, and of "0" a text: both name the first GPU.
    id_ = str(gpu_id) if type(gpu_id) is int and gpu_id >= 0 else fields.text("id")
    memory_bytes = _memory_bytes(fields)
    return Gpu(id=id_, memory_bytes=memory_bytes) if fields.good else None


def _memory_bytes(fields: JsonObject) -> int:
    value = fields.get("memory")
    if value is None:
        fields.fault("memory", "missing")
        return 0
    allowed = "an amount of memory above 0; write for example 16Gi"
    text = str(value) if isinstance(value, str) or type(value) is int else ""
    try:
        found = parse_memory_bytes(text)
    except InvalidInput:
        found = 0
    if found < 1:
        fields.fault("memory", is_a(value, allowed))
    return found


def _cpuset(fields: JsonObject) -> tuple[int, ...]:
    """CPUs as Linux writes them, rising; empty when none are named."""
    value = fields.get("cpuset")
    if value is None:
        return ()
    text = str(value).replace(" ", "") if isinstance(value, str) or type(value) is int else ""
    found: list[int] = []
    if _CPUSET.fullmatch(text):
        ends = [[int(end) for end in part.split("-")] for part in text.split(",")]
        if all(end < _CPU_MAX for pair in ends for end in pair):
            found = [cpu for pair in ends for cpu in range(pair[0], pair[-1] + 1)]
    if not found or len(set(found)) < len(found) or any(pair[0] > pair[-1] for pair in ends):
        fields.fault("cpuset", is_a(value, 'a set of CPUs, each once; write for example "0-3,8"'))
        return ()
    return tuple(sorted(found))
