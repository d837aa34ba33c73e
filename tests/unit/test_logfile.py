"""The instance's log file: a time before each line, nothing lost, nothing that stops the function."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infless_watchdog import logfile

Say = Callable[[bytes], None]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[tuple[Path, Say, Callable[[], list[str]]]]:
    """A log with its pump running: its path, how to write into it, and how to end it and read what it kept."""
    path = tmp_path / "a.log"
    reader, writer = os.pipe()
    pump = threading.Thread(target=logfile._Log(path).pump, args=(reader,))
    pump.start()
    open_ = [writer]

    def end() -> list[str]:
        while open_:
            os.close(open_.pop())
        pump.join()
        return path.read_text(errors="replace").splitlines()

    def say(data: bytes) -> None:
        while data:
            data = data[os.write(writer, data) :]

    yield path, say, end
    end()
    os.close(reader)


Log = tuple[Path, Say, Callable[[], list[str]]]


def test_each_line_has_its_time(log: Log) -> None:
    """UTC, as OpenFaaS's log providers write it."""
    _, say, end = log
    say(b"one\ntwo\n")
    lines = end()
    assert [line.partition(" ")[2] for line in lines] == ["one", "two"]
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z ", line) for line in lines)


def test_lines_are_put_together_again(log: Log) -> None:
    """However they were written."""
    _, say, end = log
    for piece in (b"on", b"e\ntw", b"o\n"):
        say(piece)
    assert [line.partition(" ")[2] for line in end()] == ["one", "two"]


def test_last_words_without_an_end_are_kept(log: Log) -> None:
    """A process that dies says no newline."""
    _, say, end = log
    say(b"Segmentation fau")
    assert end()[-1].endswith(" Segmentation fau")


def test_a_line_without_end_is_broken(log: Log) -> None:
    """It does not grow in memory, and no byte of it is lost."""
    _, say, end = log
    say(b"x" * 300_000 + b"\n")
    lines = end()
    assert len(lines) > 1
    assert sum(line.count("x") for line in lines) == 300_000


def test_what_is_no_text_is_kept(log: Log) -> None:
    """Native code prints what it likes."""
    path, say, end = log
    say(b"\xff\xfe\0\n")
    end()
    assert b"\xff\xfe\0" in path.read_bytes()


def test_a_full_file_is_turned(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last two are kept: no line is in none of them until both are full."""
    path, say, end = log
    monkeypatch.setattr(logfile, "MAX_BYTES", 1000)
    say(b"a" * 1000 + b"\n")
    while not path.with_name("a.log.1").exists():
        os.sched_yield()
    say(b"b\n")
    assert end()[-1].endswith(" b")
    assert path.with_name("a.log.1").stat().st_mode & 0o777 == 0o600


def test_a_full_disk_stops_nobody() -> None:
    """The pipe is read on: who prints is never blocked."""
    reader, writer = os.pipe()
    pump = threading.Thread(target=logfile._Log(Path("/dev/full")).pump, args=(reader,))
    pump.start()
    for _ in range(20):
        os.write(writer, b"a" * 60_000 + b"\n")  # more than a pipe holds
    os.close(writer)
    pump.join(5)
    os.close(reader)
    assert not pump.is_alive()
