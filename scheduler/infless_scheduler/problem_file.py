"""The plan file, version 1: JSON to `Problem` with every fault at once, and `Plan` back to JSON."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable
from typing import Any

from infless_core.errors import InvalidInput
from infless_core.model import (
    Configuration,
    FunctionDemand,
    Gpu,
    Plan,
    PlannedInstance,
    Problem,
    ProfilePoint,
    Running,
    Server,
)
from infless_scheduler.json_reader import JsonObject

VERSION = 1
_DEFAULTS = Problem(servers=(), functions=())
_PROBLEM = ("version", "alpha", "beta", "servers", "functions", "running")
_SERVER = ("id", "cpu_cores", "memory_bytes", "gpus")
_GPU = ("id", "memory_bytes")
_FUNCTION = ("id", "latency_target_s", "latency_percentile", "rate_rps", "max_batch", "profile")
_POINT = ("batch", "cpu_cores", "gpu_percent", "exec_s", "memory_bytes", "gpu_memory_bytes")
_RUNNING = ("id", "function", "server", "gpu", "batch", "cpu_cores", "gpu_percent")


class ProblemFileError(InvalidInput):
    """A plan file with faults; `faults` has a line for each, with its JSON path."""

    def __init__(self, faults: tuple[str, ...]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


def parse_problem_text(text: str) -> Problem:
    """Read a plan file's problem from JSON text.

    Raises:
        ProblemFileError: with every fault that was found.
    """
    repeated: list[str] = []

    def pairs(items: list[tuple[str, object]]) -> dict[str, object]:
        keys = [key for key, _ in items]
        repeated.extend(f"$: the key {key!r} appears twice in one object" for key in _twice(keys))
        return dict(items)

    try:
        data = json.loads(text, object_pairs_hook=pairs)
    except (ValueError, RecursionError) as fault:
        raise ProblemFileError((f"$: not JSON: {fault}",)) from fault
    if repeated:
        raise ProblemFileError(tuple(sorted(repeated)))
    return parse_problem(data)


def parse_problem(data: object) -> Problem:
    """Read a plan file's problem from decoded JSON.

    What is absent and means "none" may be left out: `running`, a server's `gpus`, a `gpu_percent` of 0, memory needs.

    Raises:
        ProblemFileError: with every fault that was found, each with its JSON path.
    """
    faults: list[str] = []
    root = JsonObject(data, "$", faults, known=_PROBLEM, optional="alpha beta running")
    if root.whole("version", VERSION) != VERSION:
        root.fault("version", f"unknown version; this planner reads version {VERSION}")
    problem = Problem(
        alpha=root.number("alpha", _DEFAULTS.alpha, most=1),
        beta=root.number("beta", _DEFAULTS.beta),
        servers=root.objects("servers", _server),
        functions=root.objects("functions", _function),
        running=root.objects("running", _running),
    )
    _find_repeated_ids(data, faults)
    _find_dangling(data, faults)
    if faults:
        raise ProblemFileError(tuple(faults))
    return problem


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """The plan as one JSON object, keys in the order of the plan file's description."""
    return {
        "version": VERSION,
        "status": plan.status.value,
        "solver": plan.solver,
        "solve_s": plan.solve_s,
        "objective": plan.objective,
        "bound": plan.bound,
        "gap": plan.gap,
        "instances": [_instance_to_json(instance) for instance in plan.instances],
        "stop": list(plan.stop),
        "unserved": [{"function": u.function, "rate_rps": u.rate_rps, "reason": u.reason} for u in plan.unserved],
        "servers_used": plan.servers_used,
        "allocated": plan.allocated,
        "fragmentation": plan.fragmentation,
    }


def _instance_to_json(instance: PlannedInstance) -> dict[str, Any]:
    return {
        "id": instance.id,
        "function": instance.function,
        "server": instance.server,
        "gpu": instance.gpu,
        "batch": instance.configuration.batch,
        "cpu_cores": instance.configuration.cpu_cores,
        "gpu_percent": instance.configuration.gpu_percent,
        "rate_low_rps": instance.rate_low_rps,
        "rate_up_rps": instance.rate_up_rps,
        "rate_rps": instance.rate_rps,
        "action": instance.action.value,
    }


def _server(value: object, path: str, faults: list[str]) -> Server | None:
    fields = JsonObject(value, path, faults, known=_SERVER, optional="gpus")
    id_ = fields.text("id")
    cpu_cores = fields.whole("cpu_cores", 1, least=1)
    memory_bytes = fields.whole("memory_bytes", 0)
    gpus = fields.objects("gpus", _gpu)
    return Server(id=id_, cpu_cores=cpu_cores, memory_bytes=memory_bytes, gpus=gpus) if fields.good else None


def _gpu(value: object, path: str, faults: list[str]) -> Gpu | None:
    fields = JsonObject(value, path, faults, known=_GPU)
    gpu = Gpu(id=fields.text("id"), memory_bytes=fields.whole("memory_bytes", 0))
    return gpu if fields.good else None


def _function(value: object, path: str, faults: list[str]) -> FunctionDemand | None:
    fields = JsonObject(value, path, faults, known=_FUNCTION, optional="latency_percentile")
    function = FunctionDemand(
        id=fields.text("id"),
        latency_target_s=fields.number("latency_target_s", 1.0, inside=True),
        latency_percentile=_percentile(fields, value),
        rate_rps=fields.number("rate_rps", 0.0),
        max_batch=fields.whole("max_batch", 1, least=1),
        profile=fields.objects("profile", _point),
    )
    for configuration in _twice(point.configuration for point in function.profile):
        fields.fault("profile", f"two points for {configuration}")
    return function if fields.good else None


def _percentile(fields: JsonObject, value: object) -> float | None:
    if not isinstance(value, dict) or value.get("latency_percentile") is None:
        return None
    return fields.number("latency_percentile", 99.0, most=100, inside=True)


def _configuration(fields: JsonObject) -> Configuration:
    return Configuration(
        batch=fields.whole("batch", 1, least=1),
        cpu_cores=fields.whole("cpu_cores", 1, least=1),
        gpu_percent=fields.whole("gpu_percent", 0, most=100),
    )


def _point(value: object, path: str, faults: list[str]) -> ProfilePoint | None:
    fields = JsonObject(value, path, faults, known=_POINT, optional="gpu_percent memory_bytes gpu_memory_bytes")
    point = ProfilePoint(
        configuration=_configuration(fields),
        exec_s=fields.number("exec_s", 1.0, inside=True),
        memory_bytes=fields.whole("memory_bytes", 0),
        gpu_memory_bytes=fields.whole("gpu_memory_bytes", 0),
    )
    return point if fields.good else None


def _running(value: object, path: str, faults: list[str]) -> Running | None:
    fields = JsonObject(value, path, faults, known=_RUNNING, optional="gpu gpu_percent")
    running = Running(
        id=fields.text("id"),
        function=fields.text("function"),
        server=fields.text("server"),
        gpu=fields.text_or_none("gpu"),
        configuration=_configuration(fields),
    )
    if fields.good and (running.gpu is not None) != (running.configuration.gpu_percent > 0):
        fields.fault("gpu", "a GPU is named if and only if gpu_percent is above 0")
    return running if fields.good else None


def _twice(values: Iterable[Any]) -> list[Any]:
    seen: set[Hashable] = set()
    return [value for value in values if value in seen or seen.add(value)]  # type: ignore[func-returns-value]


def _rows(data: object, key: str) -> list[tuple[int, dict[str, object]]]:
    """The objects in a list of an object, with their places; anything else there was noted as a fault already."""
    rows = data.get(key) if isinstance(data, dict) else None
    return [(i, row) for i, row in enumerate(rows) if isinstance(row, dict)] if isinstance(rows, list) else []


def _ids(rows: list[tuple[int, dict[str, object]]]) -> list[str]:
    return [id_ for _, row in rows if isinstance(id_ := row.get("id"), str)]


def _find_repeated_ids(data: object, faults: list[str]) -> None:
    lists = [(f"$.{key}", _rows(data, key)) for key in ("servers", "functions", "running")]
    lists += [(f"$.servers[{i}].gpus", _rows(server, "gpus")) for i, server in _rows(data, "servers")]
    for path, rows in lists:
        seen: set[str] = set()
        for index, row in rows:
            id_ = row.get("id")
            if isinstance(id_, str) and id_ in seen:
                faults.append(f"{path}[{index}].id: {id_!r} is there twice; ids are unique within their list")
            elif isinstance(id_, str):
                seen.add(id_)


def _find_dangling(data: object, faults: list[str]) -> None:
    """References of `running`; checked on the raw data, so that a fault elsewhere in a server does not hide its id."""
    functions = set(_ids(_rows(data, "functions")))
    gpus = {
        server["id"]: set(_ids(_rows(server, "gpus"))) for _, server in _rows(data, "servers") if _ids([(0, server)])
    }
    for index, row in _rows(data, "running"):
        function, server, gpu = row.get("function"), row.get("server"), row.get("gpu")
        if isinstance(function, str) and function not in functions:
            faults.append(f"$.running[{index}].function: no function {function!r}")
        if isinstance(server, str) and server not in gpus:
            faults.append(f"$.running[{index}].server: no server {server!r}")
        elif isinstance(server, str) and isinstance(gpu, str) and gpu not in gpus[server]:
            faults.append(f"$.running[{index}].gpu: server {server!r} has no GPU {gpu!r}")
