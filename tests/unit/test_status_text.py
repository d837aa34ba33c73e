"""What `infless status` prints: instances, and each function of which they do not tell enough."""

from typing import Any

import pytest

from infless_provider.status_text import status_lines

PLACE = 33
"""Where what is said of a function or an instance begins."""


def an_instance(function: str = "f.openfaas-fn", phase: str = "ready", **fields: Any) -> dict[str, Any]:
    """As the overview has it."""
    return {
        "id": "f-1", "function": function, "phase": phase, "batch": 4, "cpu_cores": 2, "gpu_percent": 0,
        "rate_low_rps": 1.0, "rate_up_rps": 9.6, "why": "planned", **fields,
    }  # fmt: skip


def a_function(name: str = "f.openfaas-fn", **fields: Any) -> dict[str, Any]:
    """As the overview has it."""
    told = {"last_failure": "", "retry_in_s": 0.0, "rolled_back": ""}
    return {"function": name, "rate_rps": 0.0, "in_flight": 0, **told, **fields}


def told(functions: list[dict[str, Any]], instances: list[dict[str, Any]] | None = None) -> list[str]:
    """What is said of functions."""
    overview = {"instances": instances or [], "functions": functions, "events": []}
    return status_lines(overview)[len(instances or []) :]


def test_an_instance() -> None:
    """Its configuration, its rates and why it runs; nothing more where it serves its function."""
    lines = status_lines({"instances": [an_instance(), an_instance(rate_up_rps=None)], "functions": [a_function()]})
    assert [line.split() for line in lines] == [
        ["f-1", "ready", "b=4", "c=2", "g=0%", "1-10/s", "planned"],
        ["f-1", "ready", "b=4", "c=2", "g=0%", "-", "planned"],
    ]
    assert lines[0].index("ready") == PLACE


@pytest.mark.parametrize("instances", [[], [an_instance(phase="draining")], [an_instance("other.openfaas-fn")]])
def test_a_function_that_sleeps(instances: list[dict[str, Any]]) -> None:
    """What ends is no instance any more, and those of others are not its own."""
    (line,) = told([a_function()], instances)
    assert line[:PLACE].strip() == "f.openfaas-fn"
    assert line[PLACE:] == "no instance: asleep, starts with the first request"


def test_requests_that_wait_without_an_instance() -> None:
    """It is not said to sleep."""
    (line,) = told([a_function(in_flight=3)])
    assert line[PLACE:] == "no instance: 3 request(s) wait for one"


def test_one_that_starts_needs_no_word() -> None:
    """Its instance says it."""
    assert told([a_function()], [an_instance(phase="starting")]) == []


@pytest.mark.parametrize("instances", [[], [an_instance(phase="starting")], [an_instance(phase="draining")]])
def test_a_start_that_failed(instances: list[dict[str, Any]]) -> None:
    """Why, and that it goes on; also while the next one starts."""
    (line,) = told([a_function(last_failure="the image is gone", retry_in_s=7.6)], instances)
    assert line[PLACE:] == "not ready: the image is gone; tried again in 8 s, if it is wanted then"


def test_a_start_that_failed_beside_one_that_serves() -> None:
    """The function is ready all the same."""
    (line,) = told([a_function(last_failure="no cores")], [an_instance()])
    assert line[PLACE:].startswith("another instance did not start: no cores; tried again")


def test_a_rollback() -> None:
    """Said whatever runs, and beside what is wrong now."""
    (line,) = told([a_function(rolled_back="no model")], [an_instance()])
    assert line[PLACE:] == "rolled back: no model"
    both = told([a_function(rolled_back="no model", last_failure="no disk")])
    assert [line[PLACE:].partition(":")[0] for line in both] == ["rolled back", "not ready"]


def test_words_of_functions_are_one_plain_line() -> None:
    """They come from the function: they must not move the terminal's cursor, or look like a line of ours."""
    (line,) = told([a_function(rolled_back="a\n\tb\x1b[2Jc\u202e é")], [an_instance()])
    assert line[PLACE:] == "rolled back: a b [2Jc é"


def test_nothing_at_all() -> None:
    """No lines: who prints them says what to do."""
    assert told([]) == []
