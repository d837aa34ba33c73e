"""A container's output in a file: whole lines, none twice, none lost."""

import math
import struct
from dataclasses import replace

import pytest
from docker_fake import WAIT_S, FakeEngine, FakeStream

from infless_provider.backends import docker_logs
from infless_provider.backends.docker_api import Container
from infless_provider.backends.docker_logs import Line, LogFile, LogPump, Resume, lines_of
from infless_provider.log_files import MISSING


def at(number):
    """A time as Docker writes it."""
    return b"2026-01-01T00:00:%02d.000000000Z" % number


def test_lines_from_pieces():
    """A piece without an end goes on in the next one of the same time; the engine's own words are none."""
    pieces = [at(1) + b" a\n", at(2) + b" b", at(2) + b"c\n", at(3) + b" cut", b"error grabbing logs", at(4) + b" d\n"]
    pieces[2] = at(2) + b" c\n"
    assert [(line.stamp, line.text) for line in lines_of(pieces)] == [
        (at(1), b"a"), (at(2), b"bc"), (at(3), b"cut"), (at(4), b"d"),
    ]  # fmt: skip
    assert list(lines_of([])) == []
    assert list(lines_of([at(1) + b" half"], is_all=False)) == []


def test_a_line_without_an_end_is_broken():
    """It must not grow for ever."""
    piece = at(1) + b" " + b"x" * (16 * 1024)
    found = list(lines_of([piece] * 5))
    assert [len(line.text) for line in found] == [docker_logs.LINE_MAX, 16 * 1024]


def line(second, text):
    """One line."""
    return Line(stamp=at(second), text=text)


def write_all(path, lines):
    """As one pump does, from where the last one ended."""
    file = LogFile(path)
    resume = file.resume()
    for one in resume.news(lines):
        file.write(one)
    file.close()
    return resume


def test_a_file_goes_on_where_it_ended(tmp_path):
    """What is read again is not written again, equal lines are counted, and half a line is written anew."""
    path = tmp_path / "f.ns" / "f-1.log"
    lines = [line(1, b"a"), line(5, b"b"), line(5, b"b"), line(5, b"c")]
    assert write_all(path, lines[:3]) == Resume()
    whole = path.read_bytes()
    path.write_bytes(whole + at(5) + b" half of")
    resume = write_all(path, [*lines, line(5, b"b"), line(6, b"d")])
    assert at(5) == resume.since
    assert resume.since_s < 1767225605
    assert path.read_bytes() == whole + b"".join(b"%s %s\n" % (at(s), t) for s, t in ((5, b"c"), (5, b"b"), (6, b"d")))
    assert path.stat().st_mode & 0o077 == 0


def test_a_full_file_is_put_aside(tmp_path, monkeypatch):
    """And what is in it is still known."""
    monkeypatch.setattr(docker_logs, "MAX_BYTES", 100)
    path = tmp_path / "f-1.log"
    lines = [line(second, b"x" * 10) for second in range(3)]
    write_all(path, lines)
    assert (path.read_bytes(), len(path.with_name("f-1.log.1").read_bytes().splitlines())) == (b"", 3)
    write_all(path, [*lines, line(9, b"new")])
    assert path.read_bytes() == at(9) + b" new\n"


def test_what_the_engine_has_lost_is_told(tmp_path):
    """Where nothing of what it says is in the file, or older; the word for it is no line that is looked for again."""
    path, told = tmp_path / "f-1.log", MISSING.encode()
    write_all(path, [line(1, b"a"), line(2, b"b")])
    write_all(path, [line(2, b"b"), line(5, b"c")])
    write_all(path, [line(8, b"d")])
    write_all(path, [line(8, b"d"), line(9, b"e")])
    texts = [row.partition(b" ")[2] for row in path.read_bytes().splitlines()]
    assert texts == [b"a", b"b", b"c", told, b"d", b"e"]
    assert at(8) + b" " + told in path.read_bytes()


@pytest.mark.parametrize("tail_bytes", [400, 1000, 100_000])
@pytest.mark.parametrize("max_bytes", [900, 100_000])
def test_no_line_of_a_flood_is_written_twice(tmp_path, monkeypatch, tail_bytes, max_bytes):
    """Whatever is read again, although a second of it is more than is looked at of the file, and not all in order."""
    monkeypatch.setattr(docker_logs, "_TAIL_BYTES", tail_bytes)
    monkeypatch.setattr(docker_logs, "MAX_BYTES", max_bytes)
    path = tmp_path / "f-1.log"
    lines = [Line(stamp=b"2026-01-01T00:00:00.%09dZ" % (n ^ 1), text=b"%d" % n) for n in range(60)]
    for end in (17, 18, 31, 32, 50, 60):
        write_all(path, lines[:end])
        kept = [one.read_bytes() for one in (path.with_name("f-1.log.1"), path) if one.exists()]
        numbers = [int(row.partition(b" ")[2]) for row in b"".join(kept).splitlines()]
        assert numbers == list(range(numbers[0], end))


class FloodedEngine(FakeEngine):
    """One that loses its place when it is followed through a flood: it passes over lines, and is silent ever after."""

    def __init__(self, pieces):
        super().__init__()
        self.pieces, self.place_lost, self.later = pieces, len(pieces), []
        self.boxes["c"] = Container(id="c", labels={}, running=True, ports={})

    def _stream(self, pieces):
        self.streams.append(FakeStream())
        for piece in pieces:
            self.streams[-1].items.put(piece)
        return self.streams[-1]

    def printed(self, container, since_s):
        """All there is, and no more."""
        stream = self._stream(self.pieces)
        stream.close()
        self._note("printed", len(self.pieces))
        return stream

    def follow(self, container, since_s, silence_s):
        """The first time without what comes after a flood has begun; at an end where silence is not borne for ever."""
        stream = self._stream(self.pieces if self.followed() else self.pieces[: self.place_lost])
        if math.isfinite(silence_s):
            stream.close()
        self.pieces = self.pieces + (self.later.pop(0) if self.later else [])
        self._note("follow", silence_s)
        return stream

    def followed(self):
        """How long it was believed to be silent, each time."""
        return [how[1] for how in self.done if how[0] == "follow"]


def of_second(stamp_s, count):
    """Lines of one second of long ago."""
    return [b"2026-01-01T00:00:%02d.%09dZ %d\n" % (stamp_s, n, n) for n in range(count)]


def test_a_flood_is_copied_whole_and_the_engine_asked_again(tmp_path, monkeypatch):
    """Although the engine that is followed passes over lines and is silent; half a line before a silence is not one."""
    monkeypatch.setattr(docker_logs, "_LOOK_S", 0.0)
    flood, half, rest, last = of_second(1, 3 * docker_logs.LINES_AT_ONCE), at(8) + b" long ", at(8) + b" line\n", at(9)
    engine, path = FloodedEngine(flood), tmp_path / "f-1.log"
    engine.place_lost, engine.later = docker_logs.LINES_AT_ONCE, [[], [half], [], [rest]]
    pump = LogPump(engine, "c", path)
    pump.open()
    try:
        engine.until(lambda: engine.followed()[1:].count(math.inf) == 1)
        engine.pieces.append(last + b" without an end")
        engine.boxes["c"] = replace(engine.boxes["c"], running=False)
        engine.streams[-1].close()
        pump.wait(WAIT_S)
        assert pump.ended
    finally:
        pump.stop()
    assert engine.followed() == [math.inf, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, math.inf]
    assert path.read_bytes() == b"".join([*flood, half, rest[len(last) + 1 :], last + b" without an end\n"])


def test_many_bytes_are_a_flood_too(tmp_path):
    """Few lines that are long: the engine turns its files as soon."""
    size = docker_logs.LINE_MAX - 1
    pieces = [at(second) + b" " + b"x" * size + b"\n" for second in range(docker_logs.BYTES_AT_ONCE // size + 2)]
    engine, path = FloodedEngine(pieces), tmp_path / "f-1.log"
    engine.place_lost = len(pieces) - 1
    pump = LogPump(engine, "c", path)
    pump.open()
    try:
        engine.until_done("printed", len(pieces))
    finally:
        pump.stop()
    pump.wait(WAIT_S)
    assert pump.ended


@pytest.mark.parametrize("fault", [struct.error("4 of 8 bytes"), OSError("reset"), ValueError("half of an object")])
def test_a_stream_that_breaks_ends(fault):
    """As one that is over: who reads looks what has become of the container."""
    engine = pytest.importorskip("infless_provider.backends.docker_engine")

    def pieces():
        yield at(1) + b" a\n"
        raise fault

    assert list(engine._Items(pieces(), bytes)) == [at(1) + b" a\n"]
