"""`--curve`: what the profiler runs to time a function."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infless_watchdog import curve
from infless_watchdog.__main__ import main
from infless_watchdog.calls import LoadError
from infless_watchdog.settings import Settings

Time = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def time(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Time]:
    """Times a handler; returns the records that it printed."""
    folder = tmp_path / f"curve_{tmp_path.name}"
    folder.mkdir()
    monkeypatch.setattr(sys, "path", list(sys.path))

    def timed(handler: str, *batches: int) -> list[dict[str, Any]]:
        (folder / "handler.py").write_text(handler)
        assert curve.write_curve(Settings(function_dir=str(folder)), batches, 0.0) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    yield timed
    for name in [name for name in sys.modules if name.startswith(folder.name)]:
        del sys.modules[name]


PREDICT = "def predict(batch):\n    return batch\ndef example():\n    return 1\n"


def test_each_size_has_its_samples(time: Time) -> None:
    """In ascending order, once each, at least three runs, with the memory it takes."""
    records = time(PREDICT, 4, 1, 4)
    assert [record["batch"] for record in records] == [1, 4]
    assert all(len(record["exec_s"]) >= 3 and record["memory_bytes"] > 1e6 for record in records)


def test_an_unbatched_function_is_timed_alone(time: Time) -> None:
    """It never gets more."""
    records = time("def handle(event, context): ...\ndef example():\n    return 1\n", 1, 4)
    assert [record["batch"] for record in records] == [1]


def test_without_an_example_there_is_nothing_to_time(time: Time) -> None:
    """That is no failure."""
    assert "no example()" in time("def predict(batch): ...\n", 1)[0]["unknown"]


def test_a_slow_function_is_not_timed_further(time: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first size that is too slow is the last."""
    monkeypatch.setattr(curve, "TOO_SLOW_S", 0.0)
    assert [record["batch"] for record in time(PREDICT, 1, 2, 4)] == [1]


def test_a_function_that_fails_on_its_own_example_cannot_be_timed(time: Time) -> None:
    """The sentence has the handler's words."""
    with pytest.raises(SystemExit, match=r"fails on its own example\(\) in a batch of 1: KeyError"):
        time(PREDICT.replace("return batch", "raise KeyError(2)"), 1)


def test_an_example_that_raises_is_a_load_error(time: Time) -> None:
    """As every fault of a handler it is one sentence."""
    with pytest.raises(LoadError, match=r"example\(\) in handler.py raised KeyError: 2"):
        time(PREDICT.replace("return 1", "raise KeyError(2)"), 1)


@pytest.mark.parametrize("sizes", ["", "a", "1,,2", "0", "-1"])
def test_sizes_that_are_none_are_a_usage_error(sizes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 2."""
    monkeypatch.setattr(sys, "argv", ["infless-watchdog", f"--curve={sizes}"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
