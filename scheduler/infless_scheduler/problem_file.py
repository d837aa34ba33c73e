"""The plan file, version 1: JSON to `Problem` with every fault at once, and `Plan` back to JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable
from typing import Any

from infless_core.errors import InvalidInput
from infless_core.labels import GpuWish
from infless_core.model import (
    ARRIVAL_CV_MAX,
    Configuration,
    FunctionDemand,
    Gpu,
    Interference,
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
_PROBLEM = ("version", "alpha", "beta", "interference", "churn_cost", "servers", "functions", "running")
_BETA = ("by", "cpu_core", "gpu")
_WORTH = ("price", "flops")
_INTERFERENCE = ("cpu", "gpu")
_SERVER = ("id", "kind", "cpu_cores", "memory_bytes", "gpus", "draining", "interference")
_GPU = ("id", "memory_bytes")
_FUNCTION = (
    "id", "latency_target_s", "latency_percentile", "arrival_cv", "rate_rps", "max_batch", "gpu", "instances_min",
    "instances_max", "profile",
)  # fmt: skip
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
    `beta` is a number, or what a core and a GPU cost or can do: `{"by": "price", "cpu_core": 0.034, "gpu": 2.5}`.

    Raises:
        ProblemFileError: with every fault that was found, each with its JSON path.
    """
    faults: list[str] = []
    root = JsonObject(data, "$", faults, known=_PROBLEM, optional="alpha beta interference churn_cost running")
    if root.whole("version", VERSION) != VERSION:
        root.fault("version", f"unknown version; this planner reads version {VERSION}")
    problem = Problem(
        alpha=root.number("alpha", _DEFAULTS.alpha, most=1),
        beta=_beta(root, faults),
        interference=_interference(root, faults) or Interference(),
        churn_cost=root.number("churn_cost", 0.0),
        servers=root.objects("servers", _server),
        functions=root.objects("functions", _function),
        running=root.objects("running", _running),
    )
    _find_repeated_ids(data, faults)
    _find_dangling(data, faults)
    if faults:
        raise ProblemFileError(tuple(faults))
    return problem


def problem_to_json(problem: Problem) -> dict[str, Any]:
    """The problem as `parse_problem` reads it; what is as by default is left out."""
    return {
        "version": VERSION,
        "alpha": problem.alpha,
        "beta": problem.beta,
        **_unless(problem.interference, Interference(), "interference", _interference_to_json),
        **({"churn_cost": problem.churn_cost} if problem.churn_cost else {}),
        "servers": [_server_to_json(server) for server in problem.servers],
        "functions": [_function_to_json(function) for function in problem.functions],
        "running": [
            {
                "id": r.id,
                "function": r.function,
                "server": r.server,
                "gpu": r.gpu,
                **_configuration_to_json(r.configuration),
            }
            for r in problem.running
        ],
    }


def _unless(value: Any, default: Any, key: str, write: Callable[[Any], Any] = lambda value: value) -> dict[str, Any]:
    return {} if value == default else {key: write(value)}


def _interference_to_json(table: Interference) -> dict[str, Any]:
    pairs = (("cpu", table.cpu), ("gpu", table.gpu))
    return {key: [list(pair) for pair in rows] for key, rows in pairs if rows}


def _configuration_to_json(given: Configuration) -> dict[str, int]:
    return {"batch": given.batch, "cpu_cores": given.cpu_cores, "gpu_percent": given.gpu_percent}


def _server_to_json(server: Server) -> dict[str, Any]:
    return {
        "id": server.id,
        **_unless(server.kind, "", "kind"),
        "cpu_cores": server.cpu_cores,
        "memory_bytes": server.memory_bytes,
        "gpus": [{"id": gpu.id, "memory_bytes": gpu.memory_bytes} for gpu in server.gpus],
        **_unless(server.draining, False, "draining"),
        **_unless(server.interference, None, "interference", _interference_to_json),
    }


def _function_to_json(function: FunctionDemand) -> dict[str, Any]:
    return {
        "id": function.id,
        "latency_target_s": function.latency_target_s,
        **_unless(function.latency_percentile, None, "latency_percentile"),
        **_unless(function.arrival_cv, 1.0, "arrival_cv"),
        "rate_rps": function.rate_rps,
        "max_batch": function.max_batch,
        **_unless(function.gpu, GpuWish.ALLOW, "gpu", str),
        **_unless(function.instances_min, 0, "instances_min"),
        **_unless(function.instances_max, None, "instances_max"),
        "profile": [
            {
                **_configuration_to_json(point.configuration),
                "exec_s": point.exec_s,
                **_unless(point.memory_bytes, 0, "memory_bytes"),
                **_unless(point.gpu_memory_bytes, 0, "gpu_memory_bytes"),
            }
            for point in function.profile
        ],
    }


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
        **_configuration_to_json(instance.configuration),
        "rate_low_rps": instance.rate_low_rps,
        "rate_up_rps": instance.rate_up_rps,
        "rate_rps": instance.rate_rps,
        "action": instance.action.value,
    }


def _server(value: object, path: str, faults: list[str]) -> Server | None:
    fields = JsonObject(value, path, faults, known=_SERVER, optional="kind gpus draining interference")
    id_ = fields.text("id")
    cpu_cores = fields.whole("cpu_cores", 1, least=1)
    memory_bytes = fields.whole("memory_bytes", 0)
    gpus = fields.objects("gpus", _gpu)
    kind, draining = fields.text_or_none("kind") or "", fields.flag("draining")
    own = _interference(fields, faults)
    if not fields.good:
        return None
    return Server(
        id=id_,
        kind=kind,
        cpu_cores=cpu_cores,
        memory_bytes=memory_bytes,
        gpus=gpus,
        draining=draining,
        interference=own,
    )


def _beta(root: JsonObject, faults: list[str]) -> float:
    """A number, or the ratio of what a core and one percent of a GPU are worth."""
    value = root.get("beta")
    if not isinstance(value, dict):
        return root.number("beta", _DEFAULTS.beta)
    fields = JsonObject(value, "$.beta", faults, known=_BETA)
    fields.choice("by", _WORTH, _WORTH[0])
    return 100 * fields.number("cpu_core", 0.0) / fields.number("gpu", 1.0, inside=True)


def _interference(fields: JsonObject, faults: list[str]) -> Interference | None:
    """The table at a key `interference`; None where there is none."""
    value = fields.get("interference")
    if value is None:
        return None
    own = JsonObject(value, f"{fields.path}.interference", faults, known=_INTERFERENCE, optional="cpu gpu")
    tables: dict[str, tuple[tuple[float, float], ...]] = {}
    for key in _INTERFERENCE:
        rows = own.get(key) or []
        tables[key] = ()
        if isinstance(rows, list) and all(_is_pair(row) for row in rows):
            tables[key] = tuple((float(share), float(factor)) for share, factor in rows)
        else:
            own.fault(key, "it is a list of [share, factor] pairs, such as [[0, 1], [1, 1.2]]")
    try:
        return Interference(cpu=tables["cpu"], gpu=tables["gpu"])
    except InvalidInput as fault:
        own.fault("", str(fault))
        return None


def _is_pair(row: object) -> bool:
    return isinstance(row, list) and len(row) == 2 and all(type(number) in (int, float) for number in row)


def _gpu(value: object, path: str, faults: list[str]) -> Gpu | None:
    fields = JsonObject(value, path, faults, known=_GPU)
    gpu = Gpu(id=fields.text("id"), memory_bytes=fields.whole("memory_bytes", 0))
    return gpu if fields.good else None


def _function(value: object, path: str, faults: list[str]) -> FunctionDemand | None:
    optional = "latency_percentile arrival_cv gpu instances_min instances_max"
    fields = JsonObject(value, path, faults, known=_FUNCTION, optional=optional)
    least = fields.whole("instances_min", 0)
    most = None if fields.get("instances_max") is None else fields.whole("instances_max", 1, least=1)
    if most is not None and least > most:
        fields.fault("instances_min", f"{least} is above instances_max, {most}")
        least = 0
    function = FunctionDemand(
        id=fields.text("id"),
        latency_target_s=fields.number("latency_target_s", 1.0, inside=True),
        latency_percentile=_percentile(fields),
        arrival_cv=fields.number("arrival_cv", 1.0, most=ARRIVAL_CV_MAX),
        rate_rps=fields.number("rate_rps", 0.0),
        max_batch=fields.whole("max_batch", 1, least=1),
        gpu=GpuWish(fields.choice("gpu", tuple(GpuWish), GpuWish.ALLOW)),
        instances_min=least,
        instances_max=most,
        profile=fields.objects("profile", _point),
    )
    for configuration in _twice(point.configuration for point in function.profile):
        fields.fault("profile", f"two points for {configuration}")
    return function if fields.good else None


def _percentile(fields: JsonObject) -> float | None:
    if fields.get("latency_percentile") is None:
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
