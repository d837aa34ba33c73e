"""What-if, whatever is written: accepted texts give problems that a plan file can hold, wrong ones say all that is wrong."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from infless_core.labels import GpuWish
from infless_core.model import Configuration, FunctionDemand, Gpu, Interference, Problem, ProfilePoint, Running, Server
from infless_scheduler.problem_file import parse_problem, problem_to_json
from infless_scheduler.what_if import WhatIfError, apply_changes

QUICK = settings(max_examples=60)
SHAPES = (Configuration(batch=1, cpu_cores=1), Configuration(batch=4, cpu_cores=2))
finite = {"allow_nan": False, "allow_infinity": False}


@st.composite
def _problems(draw):
    """Up to four servers of some kinds and sizes, up to three functions, and what runs."""
    servers = tuple(
        Server(
            id=f"s{n}", cpu_cores=draw(st.integers(1, 3)), memory_bytes=draw(st.sampled_from([0, 2**30])),
            kind=draw(st.sampled_from(["", "", "big", "gpu"])), draining=draw(st.booleans()),
            gpus=tuple(Gpu(id=f"g{m}", memory_bytes=60) for m in range(draw(st.integers(0, 1)))),
            interference=draw(st.sampled_from([None, None, Interference(cpu=((0.0, 1.0), (1.0, 1.5)))])),
        )
        for n in range(draw(st.integers(1, 4)))
    )  # fmt: skip
    functions = tuple(
        FunctionDemand(
            id=f"f{n}.prod", latency_target_s=draw(st.floats(1e-3, 1e3)), rate_rps=draw(st.floats(0, 1e9)),
            max_batch=draw(st.integers(1, 64)), latency_percentile=draw(st.sampled_from([None, 50.0, 99.9])),
            arrival_cv=draw(st.floats(0, 8)), gpu=draw(st.sampled_from(GpuWish)),
            instances_min=draw(st.integers(0, 2)), instances_max=draw(st.sampled_from([None, 2, 9])),
            profile=tuple(ProfilePoint(configuration=shape, exec_s=draw(st.floats(1e-6, 1e2))) for shape in SHAPES),
        )
        for n in range(draw(st.integers(1, 3)))
    )  # fmt: skip
    running = tuple(
        Running(
            id=f"r{n}", function=draw(st.sampled_from(functions)).id, server=draw(st.sampled_from(servers)).id, gpu=None,
            configuration=SHAPES[1],
        )
        for n in range(draw(st.integers(0, 3)))
    )  # fmt: skip
    return Problem(servers=servers, functions=functions, running=running, alpha=draw(st.floats(0, 1)))


places = st.one_of(
    st.tuples(
        st.sampled_from(["rate", "target", "percentile", "cv", "batch", "gpu", "min", "max", "exec"]),
        st.sampled_from([".f0", ".f0.prod", ".f1", ".*", ".f?", ""]),
    ).map("".join),
    st.sampled_from(["servers.all", "servers.gpu", "servers.cpu", "servers.big", "servers.s0", "servers.s*"]),
    st.sampled_from(["alpha", "beta", "churn_cost", "drain.s0", "drain.*", "drain.nobody", "x", ""]),
)
values = st.one_of(
    st.sampled_from(
        ["none", "never", "require", "true", "false", "2x", "0.5x", "0x", "+50%", "-20%", "-150%", "price:3/4"]
    ),
    st.sampled_from(["", "0", "1", "3", "0.25", "99", "150ms", "1e3", "-1", "99999999", "nan"]),
    st.text(max_size=3),
)
changes = st.tuples(places, st.sampled_from(["=", "=", "+=", "-=", ""]), values).map("".join)


def _accepts(problem, text):
    try:
        apply_changes(problem, text)
    except WhatIfError:
        return False
    return True


@QUICK
@given(_problems(), st.lists(changes, min_size=1, max_size=4).map(",".join))
def test_accepted_texts_give_problems_that_a_plan_file_can_hold(problem, text):
    """Written and read again they are the same; texts that are not accepted have lines that begin with a change."""
    try:
        made = apply_changes(problem, text)
    except WhatIfError as wrong:
        parts = {part.strip() or "''" for part in text.split(",")}
        assert wrong.faults
        assert all(any(line.startswith(f"{part}: ") for part in parts) for line in wrong.faults)
    else:
        assert parse_problem(problem_to_json(made)) == made


@QUICK
@given(_problems(), st.integers(1, 5), st.data())
def test_servers_that_are_added_and_removed_leave_nothing(problem, number, data):
    """Whatever the word that means them, in one text or in two."""
    words = ["all", "gpu", "cpu", "big", "s*", *(server.id for server in problem.servers)]
    word = data.draw(st.sampled_from([word for word in words if _accepts(problem, f"servers.{word}+={number}")]))
    more = apply_changes(problem, f"servers.{word}+={number}")
    assert len(more.servers) == len(problem.servers) + number
    assert apply_changes(more, f"servers.{word}-={number}") == problem
    assert apply_changes(problem, f"servers.{word}+={number},servers.{word}-={number}") == problem


@QUICK
@given(_problems(), st.sampled_from(["1x", "+0%", "-0%", "1.000x"]))
def test_a_factor_of_one_changes_nothing(problem, one):
    """To the last bit."""
    functions = ",".join(f"{subject}.*={one}" for subject in ("rate", "target", "cv", "batch", "min", "exec"))
    text = f"{functions},servers.all={one},alpha={one},beta={one},churn_cost={one}"
    assert apply_changes(problem, text) == problem


@QUICK
@given(_problems(), st.lists(changes, min_size=1, max_size=6))
def test_every_fault_is_named(problem, texts):
    """What is refused on its own is named in a longer text, when the text says nothing else of servers and limits."""
    texts = [text for text in texts if not text.startswith(("servers", "min", "max"))]
    texts = list(dict.fromkeys(text for text in texts if "," not in text and not _accepts(problem, text)))
    if texts and all(_alone(problem, text) for text in texts):
        expected = [line for text in texts for line in _lines(problem, text)]
        assert _lines(problem, ",".join(texts)) == list(dict.fromkeys(expected))


def _lines(problem, text):
    try:
        apply_changes(problem, text)
    except WhatIfError as wrong:
        return list(wrong.faults)
    return []


def _alone(problem, text):
    """Whether a change is refused for all that it names, so that it leaves nothing that a later one could see."""
    some = [replace(problem, functions=(one,), running=()) for one in problem.functions]
    return ("*" not in text and "?" not in text) or all(not _accepts(one, text) for one in some)
