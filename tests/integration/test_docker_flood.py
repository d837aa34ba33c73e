"""The log of a container that prints far faster than it can be read, on a real engine."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from docker_backend import BASE_IMAGE, docker, missing, wait_until

from infless_provider.backends.docker_launch import LOG_OPTIONS
from infless_provider.backends.docker_logs import LogPump
from infless_provider.log_files import MISSING, rotated

pytestmark = [pytest.mark.integration, pytest.mark.docker]
LINES = 200_000
FLOOD = f"""
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
data = b"".join(b"line %06d %s\\n" % (number, b"x" * 87) for number in range({LINES}))
while data:
    data = data[os.write(1, data):]
signal.sigwait([signal.SIGUSR1])
os.write(1, b"one more\\n")
signal.pause()
"""


@pytest.fixture(params=[FLOOD])
def container(request: pytest.FixtureRequest) -> Iterator[str]:
    """One that runs a program; as a rule it floods its log at once, and prints one more line at SIGUSR1."""
    if (why := missing()) is not None:
        pytest.skip(why)
    name = f"infless-test-{uuid.uuid4().hex[:8]}"
    options = [f"--log-opt={key}={value}" for key, value in LOG_OPTIONS.items()]
    words = ["--name", name, "--log-driver=json-file", *options, "--entrypoint=python", os.environ[BASE_IMAGE]]
    docker("create", *words, "-c", request.param)
    yield name
    docker("rm", "--force", "--volumes", name)


def copied(path: Path) -> list[str]:
    """All that the provider keeps, without times."""
    kept = [one.read_text() for one in (rotated(path), path) if one.exists()]
    return [line.partition(" ")[2] for line in "".join(kept).splitlines()]


def test_a_flood_is_copied_and_what_is_lost_is_told(
    container: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No line is there twice, each gap has a line that tells it, and what is printed afterwards arrives."""
    engine_module = pytest.importorskip("infless_provider.backends.docker_engine")
    monkeypatch.setattr("infless_provider.backends.docker_logs.MAX_BYTES", 1 << 30)  # all of it stays to be looked at
    engine = engine_module.DockerEngine.connect()
    path = tmp_path / "f-1.log"
    pump = LogPump(engine, container, path)
    try:
        docker("start", container)
        pump.open()
        wait_until(lambda: any(line.startswith(f"line {LINES - 1:06d} ") for line in copied(path)), "the flood's end")
        docker("kill", "--signal=USR1", container)
        wait_until(lambda: copied(path)[-1] == "one more", "what is printed afterwards arrives")
    finally:
        pump.stop()
        pump.wait(30.0)
        engine.close()
    found = [
        LINES if line == "one more" else None if line == MISSING else int(re.fullmatch(r"line (\d{6}) x{87}", line)[1])
        for line in copied(path)
    ]
    numbers = [number for number in found if number is not None]
    assert sorted(set(numbers)) == numbers, "in order, and none twice"
    gaps = sum(after > before + 1 for before, after in pairwise([-1, *numbers]))
    untold = [pair for pair in pairwise(found) if None not in pair and pair[1] != pair[0] + 1]
    assert not untold, f"{gaps} gaps, of which these are not told: {untold}"
    assert found.count(None) == gaps


@pytest.mark.parametrize("container", ["import os, signal; os.write(1, b'here\\n'); signal.pause()"], indirect=True)
def test_a_silence_ends_what_is_followed(container: str) -> None:
    """After what there is; so does the end of that where nothing is followed."""
    engine = pytest.importorskip("infless_provider.backends.docker_engine").DockerEngine.connect()
    docker("start", container)
    try:
        stream = engine.follow(container, 0.0, 30.0)
        first = next(iter(stream))
        stream.close()
        assert first.endswith(b" here\n")
        for read in (partial(engine.follow, silence_s=0.5), engine.printed):
            stream = read(container, 0.0)
            assert list(stream) == [first]
            stream.close()
    finally:
        engine.close()
