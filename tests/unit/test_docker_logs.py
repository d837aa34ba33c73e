"""A container's output in a file: whole lines, none twice, none lost."""

import struct

import pytest

from infless_provider.backends import docker_logs
from infless_provider.backends.docker_logs import Line, LogFile, Resume, lines_of


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
    for one in lines:
        if resume.is_new(one):
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


@pytest.mark.parametrize("fault", [struct.error("4 of 8 bytes"), OSError("reset"), ValueError("half of an object")])
def test_a_stream_that_breaks_ends(fault):
    """As one that is over: who reads looks what has become of the container."""
    engine = pytest.importorskip("infless_provider.backends.docker_engine")

    def pieces():
        yield at(1) + b" a\n"
        raise fault

    assert list(engine._Items(pieces(), bytes)) == [at(1) + b" a\n"]
