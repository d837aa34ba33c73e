"""A planner's problem out of profiled models: what `infless profile problem` prints."""

from __future__ import annotations

import re
from collections.abc import Sequence

import psutil

from infless_core.errors import InvalidInput
from infless_core.model import Configuration, FunctionDemand, Gpu, Problem, ProfilePoint, Server
from infless_core.units import parse_duration_s, parse_memory_bytes
from infless_profiler.correction import learn, settle
from infless_profiler.measure import REQUEST_S
from infless_profiler.sessions import gpu_memory_bytes
from infless_profiler.tables import ProfiledModel, Tables
from infless_provider.settings import usable_cores

_DEMAND = re.compile(r"(?P<name>.+)=(?P<rate>\d+(\.\d+)?)@(?P<target>[^@]+)")


def problem_of(
    tables: Tables,
    wishes: Sequence[str],
    servers: int,
    cpu_cores: int = 0,
    memory: str = "",
    percentile: float | None = None,
) -> Problem:
    """Functions with their rates and targets, on servers that are all alike.

    Args:
        tables: where the models are.
        wishes: `NAME=RATE@TARGET`, such as `resnet-50=120@200ms`.
        servers: how many.
        cpu_cores: of each; 0: as many as here.
        memory: of each, as Kubernetes writes it; empty: as much as here.
        percentile: of requests that must meet the target; None: the paper's windows.

    Raises:
        InvalidInput: a wish that is none.
        NotFound: a model that was not profiled here.
    """
    functions: dict[str, FunctionDemand] = {}
    for wish in wishes:
        match = _DEMAND.fullmatch(wish)
        if match is None:
            raise InvalidInput(f"{wish!r} is not NAME=RATE@TARGET, such as resnet-50=120@200ms")
        model = tables.model(match["name"])
        if match["name"] in functions:
            raise InvalidInput(f"{match['name']!r} is named twice")
        points = profile_points(model, tables)
        functions[match["name"]] = FunctionDemand(
            id=match["name"],
            latency_target_s=parse_duration_s(match["target"], wish),
            rate_rps=float(match["rate"]),
            max_batch=max(point.configuration.batch for point in points),
            latency_percentile=percentile,
            profile=points,
        )
    memory_bytes = parse_memory_bytes(memory, "--memory") if memory else psutil.virtual_memory().total
    gpus = (Gpu(id="gpu0", memory_bytes=gpu_memory_bytes()),) if tables.device.kind == "cuda" else ()
    return Problem(
        servers=tuple(
            Server(
                id=f"server{place}",
                cpu_cores=cpu_cores or len(usable_cores(0)),
                memory_bytes=memory_bytes,
                gpus=gpus,
            )
            for place in range(servers)
        ),
        functions=tuple(functions.values()),
    )


def profile_points(model: ProfiledModel, tables: Tables) -> tuple[ProfilePoint, ...]:
    """What the planner may offer a model: measured whole where it was, else composed and corrected."""
    correction = learn(tables.whole_times(model.name, model.about.get("inter_op_threads", 1)))
    return tuple(
        ProfilePoint(
            configuration=Configuration(
                batch=one.point.batch, cpu_cores=one.point.cpu_cores, gpu_percent=one.point.gpu_percent
            ),
            exec_s=settle(one.composed_s, one.features, one.executions_s, correction).planned_s
            + one.point.batch * REQUEST_S,
            memory_bytes=one.memory_bytes,
            gpu_memory_bytes=one.memory_bytes if one.point.gpu_percent else 0,
        )
        for one in model.times
    )
