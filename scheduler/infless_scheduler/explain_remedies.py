"""What would help a function that is not served: the smallest changes, each proven by planning the changed problem."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import ROUND_CEILING, Decimal

from infless_core.labels import BATCH_MAX, GPU, SCALE_MAX, GpuWish
from infless_core.model import FunctionDemand, Gpu, Problem, ProfilePoint, Server
from infless_core.units import format_duration
from infless_scheduler.explain_reasons import barred_by
from infless_scheduler.explain_trials import Found, Lack, Trials, smallest
from infless_scheduler.listing import abbreviated, natural, printable
from infless_scheduler.placement import ServerClass, Task, server_cost, task_of
from infless_scheduler.what_if_servers import with_copies

_PLANS_FOR_ONE_SEARCH = 12
_CLASSES_TRIED = 3
_MORE_INSTANCES = 64
_LONGER = (1.25, 1.5, 2.0, 4.0)
"""With a percentile a configuration bears little at the first target it meets, and more at each longer one."""
_STEP_S = 0.001
"""A target is looked for to the millisecond."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """One change after which less is unserved."""

    change: str
    """What to change, as "one more server like s0 (16 cores, 2 GPUs)"."""
    effect: str
    """What that would serve."""
    changed: Problem = field(repr=False)
    """The problem with that change."""


def remedies_for(trials: Trials, function: FunctionDemand) -> tuple[Remedy, ...]:
    """Every kind of change that could help, in its smallest form; first those of what the function itself says."""
    searches = (_more_instances, _gpu_allowed, _larger_batch, _drains_ended, _more_servers, _longer_target)
    return tuple(remedy for search in searches if (remedy := search(trials, function)) is not None)


def _with_function(problem: Problem, changed: FunctionDemand) -> Problem:
    return replace(problem, functions=tuple(changed if f.id == changed.id else f for f in problem.functions))


def _remedy(
    trials: Trials, function: FunctionDemand, change: str, key: tuple[Hashable, float], changed: Callable[[], Problem]
) -> Remedy | None:
    after = trials.after(key, changed)
    if after is None or not trials.improves(function.id, after):
        return None
    return Remedy(change=change, effect=trials.effect(function, after), changed=changed())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Steps:
    """A change in steps, from the smallest (1) to the largest that is tried."""

    name: Hashable
    most: int
    changed: Callable[[int], Problem]
    change: Callable[[int], str]


def _smallest_step(trials: Trials, function: FunctionDemand, steps: _Steps) -> Remedy | None:
    """The smallest step that serves as much as the largest one does; where that serves nothing more, there is none."""

    def after(number: int) -> Mapping[str, Lack] | None:
        return trials.after((steps.name, number), lambda: steps.changed(number))

    goal = trials.goal(function.id, after(steps.most))
    if goal is None:
        return None
    found = smallest(
        lambda n: trials.reaches(function.id, goal, after(n)),
        (steps.most + 1) // 2,
        steps.most,
        trials.tries(_PLANS_FOR_ONE_SEARCH - 1),
        trials.known(steps.name, function.id, goal),
    )
    number = found.number if found else steps.most
    changed = steps.changed(number)
    return _remedy(trials, function, steps.change(number), (steps.name, number), lambda: changed)


def _more_instances(trials: Trials, function: FunctionDemand) -> Remedy | None:
    limit = function.instances_max
    if limit is None:
        return None
    steps = _Steps(
        name=(SCALE_MAX, function.id),
        most=limit + _MORE_INSTANCES,
        changed=lambda more: _with_function(trials.problem, replace(function, instances_max=limit + more)),
        change=lambda more: f"{SCALE_MAX}: {limit + more} instead of {limit}",
    )
    return _smallest_step(trials, function, steps)


def _gpu_allowed(trials: Trials, function: FunctionDemand) -> Remedy | None:
    if function.gpu is GpuWish.ALLOW:
        return None
    changed = _with_function(trials.problem, replace(function, gpu=GpuWish.ALLOW))
    change = f"{GPU}: {GpuWish.ALLOW} instead of {function.gpu}"
    return _remedy(trials, function, change, ((GPU, function.id), 1), lambda: changed)


def _larger_batch(trials: Trials, function: FunctionDemand) -> Remedy | None:
    batches = sorted({p.configuration.batch for p in function.profile if p.configuration.batch > function.max_batch})
    if not batches:
        return None
    steps = _Steps(
        name=(BATCH_MAX, function.id),
        most=len(batches),
        changed=lambda n: _with_function(trials.problem, replace(function, max_batch=batches[n - 1])),
        change=lambda n: f"{BATCH_MAX}: {batches[n - 1]} instead of {function.max_batch}",
    )
    return _smallest_step(trials, function, steps)


def _drains_ended(trials: Trials, function: FunctionDemand) -> Remedy | None:
    beta = trials.problem.beta
    draining = [server for server in trials.problem.servers if server.draining]
    draining.sort(key=lambda server: (server_cost(server, beta), natural(server.id)))
    if not draining:
        return None

    def changed(number: int) -> Problem:
        back = {server.id for server in draining[:number]}
        servers = tuple(replace(s, draining=s.draining and s.id not in back) for s in trials.problem.servers)
        return replace(trials.problem, servers=servers)

    steps = _Steps(
        name="draining",
        most=len(draining),
        changed=changed,
        change=lambda number: f"not draining {abbreviated(server.id for server in draining[:number])}",
    )
    return _smallest_step(trials, function, steps)


def _more_servers(trials: Trials, function: FunctionDemand) -> Remedy | None:
    """Of the kinds of servers that could host it, the one whose additional servers cost least."""
    options = []
    for sample, label in _samples(trials.task, function):
        found = _number_of_servers(trials, function, sample)
        if found is not None:
            options.append((found.number * server_cost(sample, trials.problem.beta), found, sample, label))
    if not options:
        return None
    _, found, sample, label = min(options, key=lambda option: option[:2])
    change = f"one more server {label}" if found.number == 1 else f"{found.number} more servers {label}"
    changed = with_copies(trials.problem, sample, found.number, "new")
    key = (_servers_name(sample), found.number)
    return _remedy(trials, function, change if found.proven else f"at most {change}", key, lambda: changed)


def _servers_name(sample: Server) -> Hashable:
    return "servers", replace(sample, id="", draining=False)


def _samples(task: Task, function: FunctionDemand) -> Iterator[tuple[Server, str]]:
    """A server of each kind that could host the function; where there is none, one made to measure."""
    beta = task.problem.beta
    able = [kind for kind, offers in zip(task.classes, task.offers[function.id], strict=True) if offers]
    for kind in sorted(able, key=lambda kind: kind.cost(beta))[:_CLASSES_TRIED]:
        yield kind.servers[0], class_label(kind, task.classes)
    if not able and (sample := _made_to_measure(task.problem, function)) is not None:
        yield sample, f"with {_size(sample.cpu_cores, len(sample.gpus))}{_memory(sample)}"


def _made_to_measure(problem: Problem, function: FunctionDemand) -> Server | None:
    """The cheapest server on which some configuration of a function meets its target."""
    fitting = []
    for point in function.profile:
        sample = _just_for(point)
        alone = replace(problem, servers=(sample,), functions=(function,), running=())
        if task_of(alone).functions:
            fitting.append((server_cost(sample, problem.beta), point.configuration, sample))
    return min(fitting, key=lambda entry: entry[:2])[2] if fitting else None


def _just_for(point: ProfilePoint) -> Server:
    gpus = (Gpu(id="g0", memory_bytes=point.gpu_memory_bytes),) if point.configuration.gpu_percent else ()
    return Server(id="new", cpu_cores=point.configuration.cpu_cores, memory_bytes=point.memory_bytes, gpus=gpus)


def _number_of_servers(trials: Trials, function: FunctionDemand, sample: Server) -> Found | None:
    name, goal = _servers_name(sample), Lack()

    def serves(number: int) -> bool:
        after = trials.after((name, number), lambda: with_copies(trials.problem, sample, number, "new"))
        if after is not None:
            trials.servers_tried = max(trials.servers_tried, number)
        return trials.reaches(function.id, goal, after)

    guess = _servers_at_least(trials, function, sample)
    if guess < trials.servers_most:
        serves(guess)
    known = trials.known(name, function.id, goal)
    return smallest(serves, guess, trials.servers_most, trials.tries(_PLANS_FOR_ONE_SEARCH), known)


def _servers_at_least(trials: Trials, function: FunctionDemand, sample: Server) -> int:
    """A first guess: as many as what is lacking would fill, in its lightest configuration."""
    beta = trials.problem.beta
    offers = [offer for by_class in trials.task.offers[function.id] for offer in by_class]
    cost = server_cost(sample, beta)
    if not offers or cost <= 0:
        return 1
    lightest = min(offer.weight(beta) / offer.window.up_rps for offer in offers)
    return max(1, math.ceil(trials.before[function.id].rate_rps * lightest / cost))


def class_label(kind: ServerClass, classes: Sequence[ServerClass]) -> str:
    """What people call servers of a class: `of kind 'gpu' (16 cores, 2 GPUs)`, or `like s0 (...)`."""
    own = {server.kind for server in kind.servers}
    others = {server.kind for other in classes if other is not kind for server in other.servers}
    name = min(own)
    size = _size(kind.cpu_cores, len(kind.gpu_memory_bytes))
    if len(own) == 1 and name and name not in others:
        return f"of kind '{printable(name)}' ({size})"
    return f"like {printable(kind.servers[0].id)} ({size})"


def _size(cpu_cores: int, gpus: int) -> str:
    cores = f"{cpu_cores} core{'s' if cpu_cores > 1 else ''}"
    return f"{cores}, {gpus} GPU{'s' if gpus > 1 else ''}" if gpus else cores


def _memory(sample: Server) -> str:
    gpu = f" and {sample.gpus[0].memory_bytes} bytes on the GPU" if sample.gpus and sample.gpus[0].memory_bytes else ""
    return f", {sample.memory_bytes} bytes of memory{gpu}" if sample.memory_bytes else gpu


def _longer_target(trials: Trials, function: FunctionDemand) -> Remedy | None:
    """The first target at which one more configuration meets it and that serves as much as the longest one."""
    targets_s = _targets_s(trials.task, function)
    if not targets_s:
        return None

    def changed(target_s: float) -> Problem:
        return _with_function(trials.problem, replace(function, latency_target_s=target_s))

    def after(target_s: float) -> Mapping[str, Lack] | None:
        return trials.after((("target", function.id), target_s), lambda: changed(target_s))

    goal = trials.goal(function.id, after(targets_s[-1]))
    if goal is None:
        return None

    def serves(target_s: float) -> bool:
        return trials.reaches(function.id, goal, after(target_s))

    most, tries = len(targets_s), trials.tries(_PLANS_FOR_ONE_SEARCH - 1)
    found = smallest(lambda n: serves(targets_s[n - 1]), (most + 1) // 2, most, tries, (0, most))
    number = found.number if found else most
    target_s = targets_s[number - 1]
    if function.latency_percentile is not None:
        low_s = targets_s[number - 2] if number > 1 else function.latency_target_s
        target_s = _to_the_step(serves, low_s, target_s, trials.tries(tries - most.bit_length()))
    change = f"a latency target of {format_duration(target_s)} instead of {format_duration(function.latency_target_s)}"
    return _remedy(trials, function, change, (("target", function.id), target_s), lambda: changed(target_s))


def _targets_s(task: Task, function: FunctionDemand) -> list[float]:
    """Targets beyond the present one at which one more configuration becomes usable, as people would write them."""
    found = set()
    for kind in task.classes:
        for point in function.profile:
            if barred_by(function, point.configuration) is None and kind.fits(point):
                exec_s = point.exec_s * kind.slowdown(point.configuration)
                found.add(_rounded_up(exec_s if point.configuration.batch == 1 else 2 * exec_s))
    if function.latency_percentile is not None:
        longest_s = max({function.latency_target_s} | found)
        found |= {_rounded_up(longest_s * factor) for factor in _LONGER}
    return sorted(target_s for target_s in found if target_s > function.latency_target_s)


def _rounded_up(target_s: float) -> float:
    """To three significant digits: what is printed is what was planned."""
    exact = Decimal(repr(target_s * (1 - 1e-9)))
    return float(exact.quantize(Decimal(1).scaleb(exact.adjusted() - 2), rounding=ROUND_CEILING))


def _to_the_step(serves: Callable[[float], bool], low_s: float, high_s: float, tries: int) -> float:
    """The smallest target between two, of which the longer one serves."""
    for _ in range(max(0, tries)):
        middle_s = _rounded_up((low_s + high_s) / 2)
        if high_s - low_s <= _STEP_S or not low_s < middle_s < high_s:
            break
        if serves(middle_s):
            high_s = middle_s
        else:
            low_s = middle_s
    return high_s
