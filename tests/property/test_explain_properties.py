"""Explanations, whatever the problem: every instance once, and no remedy that does not help."""

from dataclasses import replace
from xml.etree import ElementTree

from hypothesis import given, settings
from hypothesis import strategies as st

from infless_core.clock import ManualClock
from infless_core.labels import GpuWish
from infless_core.model import Configuration, FunctionDemand, Gpu, Interference, Problem, ProfilePoint, Running, Server
from infless_scheduler.explain import explain
from infless_scheduler.explain_text import explanation_as_text, explanation_to_json
from infless_scheduler.explain_trials import Lack, lacks
from infless_scheduler.picture import servers_as_svg, servers_as_text
from infless_scheduler.planner import plan

SLOWER = Interference(cpu=((0.0, 1.0), (0.9, 1.3)), gpu=((0.5, 1.1),))
configurations = st.builds(
    Configuration, batch=st.sampled_from([1, 2, 4, 8]), cpu_cores=st.integers(1, 4),
    gpu_percent=st.sampled_from([0, 0, 25, 50, 100]),
)  # fmt: skip
points = st.builds(
    ProfilePoint, configuration=configurations, exec_s=st.sampled_from([0.004, 0.03, 0.05, 0.09, 0.4]),
    memory_bytes=st.integers(0, 40), gpu_memory_bytes=st.integers(0, 40),
)  # fmt: skip
servers = st.builds(
    Server, id=st.just(""), cpu_cores=st.integers(1, 8), memory_bytes=st.just(100),
    gpus=st.sampled_from([(), (Gpu(id="g0", memory_bytes=60),), (Gpu(id="g0", memory_bytes=60), Gpu(id="g1", memory_bytes=30))]),
    draining=st.sampled_from([False, False, False, True]), interference=st.sampled_from([None, None, SLOWER]),
)  # fmt: skip
functions = st.builds(
    FunctionDemand, id=st.just(""), latency_target_s=st.sampled_from([0.05, 0.2]),
    rate_rps=st.sampled_from([0.0, 0.5, 7.0, 60.0, 333.3]), max_batch=st.sampled_from([1, 8]),
    latency_percentile=st.sampled_from([None, None, 95.0]), gpu=st.sampled_from(list(GpuWish)),
    instances_min=st.sampled_from([0, 0, 2]), instances_max=st.sampled_from([None, None, 2, 3]),
    profile=st.lists(points, max_size=4, unique_by=lambda p: p.configuration).map(tuple),
)  # fmt: skip


@st.composite
def _problems(draw):
    hosts = [replace(s, id=f"s{n}") for n, s in enumerate(draw(st.lists(servers, min_size=1, max_size=3)))]
    wanted = [replace(f, id=f"f{n}") for n, f in enumerate(draw(st.lists(functions, min_size=1, max_size=2)))]
    running = [
        Running(
            id=f"r{n}", function=draw(st.sampled_from(wanted)).id, server=draw(st.sampled_from(hosts)).id, gpu=None,
            configuration=replace(draw(configurations), gpu_percent=0),
        )
        for n in range(draw(st.integers(0, 2)))
    ]  # fmt: skip
    return Problem(
        servers=tuple(hosts), functions=tuple(wanted), running=tuple(running),
        churn_cost=draw(st.sampled_from([0.0, 1.0])), beta=draw(st.sampled_from([0.45, 5.0])),
    )  # fmt: skip


def _plan(problem):
    return plan(problem, "greedy", clock=ManualClock())


@settings(max_examples=60)
@given(_problems())
def test_each_instance_is_explained_once_and_each_remedy_helps(problem):
    """Entries partition the instances; the changed problem of a remedy leaves less of its function unserved."""
    made = _plan(problem)
    explanation = explain(problem, made, _plan)
    explained = [id_ for entry in explanation.instances for id_ in entry.instances]
    assert sorted(explained) == sorted(instance.id for instance in made.instances)
    assert all(entry.configuration_because and entry.server_because for entry in explanation.instances)
    assert [entry.function for entry in explanation.unserved] == [unserved.function for unserved in made.unserved]
    before = lacks(problem, made)
    for entry in explanation.unserved:
        assert bool(entry.remedies) != bool(entry.in_vain)
        for remedy in entry.remedies:
            after = lacks(remedy.changed, _plan(remedy.changed))
            assert after.get(entry.function, Lack()).below(before[entry.function])
            assert (
                sum(lack.rate_rps for lack in after.values())
                <= sum(lack.rate_rps for lack in before.values()) * 1.00001
            )


@settings(max_examples=30)
@given(_problems())
def test_explanations_and_pictures_are_repeatable_and_well_formed(problem):
    """The same problem in another order has the same explanation and pictures, and the picture is XML."""
    other = replace(problem, servers=problem.servers[::-1], functions=problem.functions[::-1])
    one, two = _plan(problem), _plan(other)
    first, second = explain(problem, one, _plan, plans_max=10), explain(other, two, _plan, plans_max=10)
    assert explanation_as_text(first) == explanation_as_text(second)
    assert explanation_to_json(first) == explanation_to_json(second)
    assert servers_as_text(problem, one) == servers_as_text(other, two)
    assert servers_as_svg(problem, one) == servers_as_svg(other, two)
    ElementTree.fromstring(servers_as_svg(problem, one))
