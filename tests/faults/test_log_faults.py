"""Log streams over real connections, from files that a real instance writes, while things go wrong."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import struct
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop

from infless_core.clock import SystemClock
from infless_provider.log_hub import LogHub
from infless_provider.logs import parse_query
from infless_provider.wire import rfc3339
from infless_watchdog.http import Edge, Exchange, Limits

KEY = "f.openfaas-fn"
WAIT_S = 20.0
INSTANCE = """
import sys
from pathlib import Path
from infless_watchdog import logfile
logfile.MAX_BYTES = 20_000
logfile.capture(Path(sys.argv[1]))
number = 0
for ask in sys.stdin:
    for _ in range(int(ask)):
        print(f"line {number} {'x' * 50}", flush=True)
        number += 1
"""
"""Prints as many lines as it is asked for; its file is turned every few hundred."""


class Reader:
    """A client of one stream."""

    def __init__(self, port: int, query: str, receive_bytes: int = 0) -> None:
        self._where = ("127.0.0.1", port)
        self._query = query
        self._receive_bytes = receive_bytes
        self.head = b""
        self.texts: list[str] = []
        self.whole = False
        """Whether the answer was ended in order."""

    async def __aenter__(self) -> Reader:
        """Ask, and wait for the answer's head."""
        sock = socket.socket()
        if self._receive_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_bytes)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, self._where)
        self._reader, self._writer = await asyncio.open_connection(sock=sock, limit=2**16)
        self._writer.write(f"GET /system/logs?{self._query} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        self.head = await self._reader.readuntil(b"\r\n\r\n")
        self._rest = b""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Leave."""
        self._writer.transport.abort()

    async def read(self, until: Callable[[], Any] = lambda: False) -> None:
        """Read lines until something is so, or the answer ends."""
        async with asyncio.timeout(WAIT_S):
            while not until() and not self.whole:
                size = int(await self._reader.readline(), 16)
                data = await self._reader.readexactly(size + 2)
                self.whole = size == 0
                *lines, self._rest = (self._rest + data[:-2]).split(b"\n")
                self.texts += [json.loads(line)["text"] for line in lines]

    def reset(self) -> None:
        """Vanish as a killed process does."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


class Server:
    """A hub behind the provider's own HTTP edge."""

    def __init__(self, logs_dir: Path, **more: Any) -> None:
        self.clock = SystemClock()
        self.hub = LogHub(logs_dir, self.clock, poll_s=0.02, **more)
        self.edge = Edge(self._answer, Limits())
        self.port = 0

    def _answer(self, exchange: Exchange) -> None:
        self.hub.serve(exchange, parse_query(exchange.query, self.clock.wall_s()))

    async def start(self) -> None:
        """Listen."""
        sock = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = sock.getsockname()[1]
        await self.edge.listen(sock)

    def follow(self, **more: Any) -> Reader:
        """A client that follows."""
        return Reader(self.port, "name=f&follow=true", **more)

    async def until_streams(self, count: int) -> None:
        """Wait until so many streams are left."""
        async with asyncio.timeout(WAIT_S):
            while len(self.hub._streams) > count:
                await asyncio.wait(list(self.hub._streams), return_when=asyncio.FIRST_COMPLETED)


@asynccontextmanager
async def served(logs_dir: Path, **more: Any) -> AsyncIterator[Server]:
    """A server, and its end."""
    server = Server(logs_dir, **more)
    await server.start()
    try:
        yield server
    finally:
        await server.hub.close()
        server.edge.close()


class Instance:
    """A process whose output goes through the watchdog's own log file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def __aenter__(self) -> Instance:
        """Start it."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", INSTANCE, str(self._path),
            stdin=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )  # fmt: skip
        return self

    async def say(self, count: int) -> None:
        """Print so many lines."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n".encode())
        await self._process.stdin.drain()

    async def kill(self) -> None:
        """SIGKILL."""
        self._process.send_signal(signal.SIGKILL)
        await self._process.wait()

    async def __aexit__(self, *_: object) -> None:
        """End it."""
        if self._process.returncode is None:
            await self.kill()


def run(scene: Coroutine[Any, Any, None]) -> None:
    """On the loop that the provider has."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scene)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The function's logs."""
    made = tmp_path / KEY
    made.mkdir()
    return made


def numbers(reader: Reader) -> list[int]:
    """Of the lines it has read."""
    return [int(text.split()[1]) for text in reader.texts if text.startswith("line")]


def test_no_line_is_lost_or_repeated_while_files_are_turned(folder: Path) -> None:
    """Many turns, readers that come in between, and at last a killed instance."""

    async def scene() -> None:
        async with served(folder.parent) as server, Instance(folder / "f-1.log") as instance, server.follow() as first:
            for part in range(12):
                await instance.say(100)
                await first.read(lambda n=part: len(first.texts) >= 100 * (n + 1))  # type: ignore[misc]
            assert (folder / "f-1.log.1").exists()
            async with server.follow() as second:
                await instance.say(50)
                await instance.say(50)
                await first.read(lambda: len(first.texts) >= 1300)
                await second.read(lambda: numbers(second)[-1:] == [1299])
            await instance.kill()
            (folder / "f-2.log").write_text(f"{rfc3339(server.clock.wall_s())} another instance\n")
            await first.read(lambda: first.texts[-1] == "another instance")
            assert numbers(first) == list(range(1300))
            kept = numbers(second)  # what two files of 20 kB hold, and then everything
            assert kept == list(range(kept[0], 1300))
            assert kept[0] < 1200

    run(scene())


def test_a_client_that_does_not_read(folder: Path) -> None:
    """It is told what it has lost, its buffer stays small, and another one gets every line meanwhile."""
    text, each, parts = "x" * 1000, 500, 40

    async def scene() -> None:
        async with (
            served(folder.parent) as server,
            server.follow(receive_bytes=16384) as stuck,
            server.follow() as reading,
        ):
            with (folder / "f-1.log").open("a") as log:
                for part in range(parts):
                    now = rfc3339(server.clock.wall_s())
                    log.write("".join(f"{now} line {part * each + number} {text}\n" for number in range(each)))
                    log.flush()
                    await reading.read(lambda n=part: len(reading.texts) >= each * (n + 1))  # type: ignore[misc]
                assert numbers(reading) == list(range(each * parts))
                await stuck.read(lambda: "dropped" in "".join(stuck.texts[-1:]))
                dropped = int(re.search(r"(\d+) line", stuck.texts[-1]).group(1))  # type: ignore[union-attr]
                assert len(stuck.texts) - 1 + dropped == each * parts
                assert dropped > each * parts / 2  # 20 MB were written; what waited is far less
                assert numbers(stuck) == list(range(len(stuck.texts) - 1))
                log.write(f"{now} line 0 after\n")
                log.flush()
                await stuck.read(lambda: stuck.texts[-1] == "line 0 after")

    run(scene())


def test_clients_that_vanish_leave_nothing(folder: Path) -> None:
    """Neither streams nor open files, and their places are free again."""

    def held() -> list[str]:
        """Files of this function that this process has open."""
        found = []
        for link in Path("/proc/self/fd").iterdir():
            with suppress(OSError):
                found.append(str(link.readlink()))
        return [path for path in found if str(folder) in path]

    async def scene() -> None:
        (folder / "f-1.log").write_text(f"{rfc3339(SystemClock().wall_s())} hello\n" * 1000)
        async with served(folder.parent, streams_max=20) as server:
            for _ in range(3):
                readers = [server.follow() for _ in range(20)]
                await asyncio.gather(*(reader.__aenter__() for reader in readers))
                assert all(reader.head.startswith(b"HTTP/1.1 200 ") for reader in readers)
                await readers[0].read(lambda one=readers[0]: len(one.texts) == 1000)  # type: ignore[misc]
                assert held()
                async with server.follow() as one_too_many:
                    assert one_too_many.head.startswith(b"HTTP/1.1 429 ")
                for reader in readers:
                    reader.reset()
                await server.until_streams(0)
            async with asyncio.timeout(WAIT_S):
                while (
                    held() or server.hub._looking is not None
                ):  # a thread may be reading the past of a client that has left
                    await asyncio.sleep(0.01)

    run(scene())


def test_a_function_whose_files_are_removed(folder: Path) -> None:
    """The streams go on, and end in order when the function is removed."""

    async def scene() -> None:
        (folder / "f-1.log").write_text(f"{rfc3339(SystemClock().wall_s())} hello\n")
        async with served(folder.parent) as server, server.follow() as reader:
            await reader.read(lambda: reader.texts)
            shutil.rmtree(folder)
            folder.mkdir()
            (folder / "f-2.log").write_text(f"{rfc3339(server.clock.wall_s())} again\n")
            await reader.read(lambda: reader.texts[-1] == "again")
            server.hub.end(KEY)
            await reader.read()
            assert reader.whole
            assert reader.texts == ["hello", "again"]

    run(scene())


def test_things_that_are_no_logs(folder: Path) -> None:
    """A folder, a link to nowhere, noise: the lines beside them are read."""
    (folder / "dir.log").mkdir()
    (folder / "nowhere.log").symlink_to(folder / "nothing")
    (folder / "noise.log").write_bytes(os.urandom(300_000))
    (folder / "f-1.log").write_text(f"{rfc3339(SystemClock().wall_s())} hello\n")

    async def scene() -> None:
        async with served(folder.parent) as server, server.follow() as reader:
            await reader.read(lambda: reader.texts)
            with (folder / "noise.log").open("ab") as noise:
                noise.write(os.urandom(300_000) + f"\n{rfc3339(server.clock.wall_s())} sense\n".encode())
            await reader.read(lambda: reader.texts == ["hello", "sense"])
            async with Reader(server.port, "name=f&tail=1") as past:
                await past.read()
                assert (past.whole, past.texts) == (True, ["sense"])

    run(scene())


def test_a_lack_of_file_descriptors_is_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The stream is cut, not ended: a client must not take nothing for all; and later it works again."""
    (folder / "f-1.log").write_text(f"{rfc3339(SystemClock().wall_s())} hello\n")

    async def scene() -> None:
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        async with served(folder.parent) as server:
            async with Reader(server.port, "name=f") as reader:
                await reader.read()
                assert reader.texts == ["hello"]
                resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
                try:
                    reader._writer.write(b"GET /system/logs?name=f HTTP/1.1\r\nhost: x\r\n\r\n")
                    assert (await reader._reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
                    assert await reader._reader.read() == b""
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            async with Reader(server.port, "name=f") as again:
                await again.read()
                assert again.texts == ["hello"]

    run(scene())
    assert "Too many open files" in caplog.text
