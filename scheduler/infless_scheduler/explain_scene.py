"""What the reasons of a plan look up: groups of like instances, the rooms left on servers, what a function lives on."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from infless_core.model import (
    Configuration,
    FunctionDemand,
    Plan,
    PlannedInstance,
    Problem,
    ProfilePoint,
    Running,
    Server,
)
from infless_scheduler.placement import Offer, Task, task_of


class Room(NamedTuple):
    """What is free on a server; of each GPU its percent and memory."""

    cpu_cores: int
    memory_bytes: int
    gpus: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rooms:
    """Many rooms as arrays: every configuration of every function is held against them."""

    cpu_cores: NDArray[np.int64]
    memory_bytes: NDArray[np.int64]
    gpu_percent: NDArray[np.int64]
    gpu_memory_bytes: NDArray[np.int64]
    """GPUs in columns."""

    def copies(self, point: ProfilePoint) -> int:
        """How many instances of a point they have space for."""
        given = point.configuration
        number = self.cpu_cores // given.cpu_cores
        if point.memory_bytes:
            number = np.minimum(number, self.memory_bytes // point.memory_bytes)
        if given.gpu_percent:
            on_gpu = self.gpu_percent // given.gpu_percent
            if point.gpu_memory_bytes:
                on_gpu = np.minimum(on_gpu, self.gpu_memory_bytes // point.gpu_memory_bytes)
            number = np.minimum(number, on_gpu.sum(axis=1))
        return int(number.sum())


def rooms_of(rooms: Sequence[Room], gpus: int) -> Rooms:
    """The rooms of servers with so many GPUs each."""
    slots = np.array([room.gpus for room in rooms], dtype=np.int64).reshape(len(rooms), gpus, 2)
    return Rooms(
        cpu_cores=np.array([room.cpu_cores for room in rooms], dtype=np.int64),
        memory_bytes=np.array([room.memory_bytes for room in rooms], dtype=np.int64),
        gpu_percent=slots[:, :, 0],
        gpu_memory_bytes=slots[:, :, 1],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Instances of one function in one configuration on servers of one class: all but their ids is alike."""

    function: FunctionDemand
    offer: Offer
    kind: int
    """Index of the class of their servers."""
    instances: tuple[PlannedInstance, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A problem and its plan, with what the reasons look up."""

    task: Task
    made: Plan
    groups: tuple[Group, ...]
    servers: Mapping[str, Server]
    here: Mapping[str, Sequence[PlannedInstance]]
    """By server, what is planned there."""
    points: Mapping[tuple[str, Configuration], ProfilePoint]
    rooms: Mapping[str, Room]
    """By server in use, what is left free."""
    left: tuple[Rooms, ...]
    """By class, what is left on its servers in use."""
    running: Mapping[str, Running]


def scene_of(problem: Problem, made: Plan) -> Scene:
    """Look everything up once; groups are in the order of function, configuration and class."""
    task = task_of(problem)
    functions = {function.id: function for function in problem.functions}
    servers = {server.id: server for server in problem.servers}
    here: defaultdict[str, list[PlannedInstance]] = defaultdict(list)
    for instance in made.instances:
        here[instance.server].append(instance)
    points = {(f.id, point.configuration): point for f in problem.functions for point in f.profile}
    rooms = {id_: _room(servers[id_], instances, points) for id_, instances in here.items()}
    class_of = task.class_of()
    return Scene(
        task=task,
        made=made,
        groups=_groups(task, functions, made.instances),
        servers=servers,
        here=here,
        points=points,
        rooms=rooms,
        left=tuple(
            rooms_of([room for id_, room in rooms.items() if class_of[id_] == index], len(kind.gpu_memory_bytes))
            for index, kind in enumerate(task.classes)
        ),
        running={running.id: running for running in problem.running},
    )


def _groups(
    task: Task, functions: Mapping[str, FunctionDemand], instances: Iterable[PlannedInstance]
) -> tuple[Group, ...]:
    class_of = task.class_of()
    alike: defaultdict[tuple[str, Configuration, int], list[PlannedInstance]] = defaultdict(list)
    for instance in instances:
        alike[instance.function, instance.configuration, class_of[instance.server]].append(instance)
    offers = {
        (function, offer.configuration, kind): offer
        for function, by_class in task.offers.items()
        for kind, offers in enumerate(by_class)
        for offer in offers
    }
    return tuple(
        Group(function=functions[key[0]], offer=offers[key], kind=key[2], instances=tuple(own))
        for key, own in sorted(alike.items())
    )


def _room(
    server: Server, here: Iterable[PlannedInstance], points: Mapping[tuple[str, Configuration], ProfilePoint]
) -> Room:
    room = Room(server.cpu_cores, server.memory_bytes, tuple((100, gpu.memory_bytes) for gpu in server.gpus))
    for instance in here:
        room = changed(room, server, instance, points[instance.function, instance.configuration], -1)
    return room


def changed(room: Room, server: Server, instance: PlannedInstance, point: ProfilePoint, sign: int) -> Room:
    """The room with an instance less (sign 1) or more (sign -1) on its server."""
    given = point.configuration
    gpus = tuple(
        (percent + sign * given.gpu_percent, memory + sign * point.gpu_memory_bytes)
        if gpu.id == instance.gpu
        else (percent, memory)
        for gpu, (percent, memory) in zip(server.gpus, room.gpus, strict=True)
    )
    return Room(room.cpu_cores + sign * given.cpu_cores, room.memory_bytes + sign * point.memory_bytes, gpus)


def copies(room: Room, point: ProfilePoint) -> int:
    """How many instances of a point a room has space for."""
    given = point.configuration
    number = room.cpu_cores // given.cpu_cores
    if point.memory_bytes:
        number = min(number, room.memory_bytes // point.memory_bytes)
    if given.gpu_percent:
        number = min(number, sum(_on_gpu(percent, memory, point) for percent, memory in room.gpus))
    return number


def _on_gpu(percent: int, memory_bytes: int, point: ProfilePoint) -> int:
    number = percent // point.configuration.gpu_percent
    return min(number, memory_bytes // point.gpu_memory_bytes) if point.gpu_memory_bytes else number


def lacking(room: Room, point: ProfilePoint, number: int = 1) -> tuple[str, ...]:
    """The resources of which a room has less than so many instances of a point need."""
    given = point.configuration
    lacks = []
    if room.cpu_cores < number * given.cpu_cores:
        lacks.append("cpu cores")
    if room.memory_bytes < number * point.memory_bytes:
        lacks.append("memory")
    if given.gpu_percent:
        if sum(percent // given.gpu_percent for percent, _ in room.gpus) < number:
            lacks.append("GPU share")
        elif sum(_on_gpu(percent, memory, point) for percent, memory in room.gpus) < number:
            lacks.append("GPU memory")
    return tuple(lacks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What a function's instances carry together, and what of it depends on one instance of a group."""

    own: tuple[Group, ...]
    up_rps: float
    threshold_rps: float
    spare_rps: float
    """Capacity beyond the rate; below zero where some of it is unserved."""

    @property
    def instances(self) -> int:
        """Their number."""
        return sum(len(group.instances) for group in self.own)

    def residue_rps(self, group: Group) -> float:
        """What is left for one of the group when all others carry as much as they can."""
        return max(0.0, group.offer.window.up_rps - max(0.0, self.spare_rps))


def standings(scene: Scene) -> dict[str, Standing]:
    """Of each function that has instances."""
    own: defaultdict[str, list[Group]] = defaultdict(list)
    for group in scene.groups:
        own[group.function.id].append(group)
    found = {}
    for function, groups in own.items():
        up_rps = math.fsum(len(group.instances) * group.offer.window.up_rps for group in groups)
        alpha = scene.task.problem.alpha
        found[function] = Standing(
            own=tuple(groups),
            up_rps=up_rps,
            threshold_rps=math.fsum(len(group.instances) * group.offer.threshold_rps(alpha) for group in groups),
            spare_rps=up_rps - groups[0].function.rate_rps,
        )
    return found
