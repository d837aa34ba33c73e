"""The invocation path on real sockets: instances that die, hang and lie, clients that leave, crawl and flood.

A `Proxy` behind its `Edge`, on functions that nobody manages, whose instances follow a script. After each scenario the
books must balance: every request that was counted in has been counted out once, and nothing is left open.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import resource
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest
import uvloop

from infless_core.clock import SystemClock
from infless_core.labels import Wishes
from infless_core.lifecycle import Phase
from infless_core.model import Configuration, FunctionSpec
from infless_provider.controller import Controller
from infless_provider.functions import FunctionState, Instance
from infless_provider.metrics import Metrics
from infless_provider.proxy import Proxy
from infless_provider.settings import Settings
from infless_provider.state import StoredFunction, Version
from infless_provider.upstream import Upstream
from infless_watchdog.http import Edge, Limits

MIB = 1024 * 1024
OK = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 5\r\ndate: long ago\r\n\r\nhello"
ASK = b"POST /function/f HTTP/1.1\r\nHost: h\r\n%bContent-Length: 4\r\n\r\nbody"
CHUNKED = b"POST /function/f HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
Script = Callable[["Peer"], Awaitable[None]]


class Peer:
    """One end of a connection: raw bytes in and out."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        """Write, no faster than the other end takes it; it may have hung up."""
        with contextlib.suppress(ConnectionError):
            self.writer.write(data)
            await self.writer.drain()

    async def request(self) -> bytes:
        """One request, whole."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        if b"transfer-encoding: chunked" in head:
            return head + await self.reader.readuntil(b"0\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        return head + await self.reader.readexactly(int(length[1]) if length else 0)

    async def answer(self) -> tuple[int, bytes, bytes]:
        """One answer with a length: status, head, body."""
        async with asyncio.timeout(20):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            return int(head[9:12]), head, await self.reader.readexactly(int(length[1]) if length else 0)

    async def rest(self) -> bytes:
        """Everything until the other end hangs up, in order or not."""
        got = b""
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(20):
                while data := await self.reader.read(MIB):
                    got += data
        return got

    async def gone(self) -> None:
        """Wait until the other end has hung up; what it says before is dropped."""
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(20):
                while await self.reader.read(MIB):
                    pass

    def abort(self) -> None:
        """As a process that is killed."""
        self.writer.transport.abort()


async def good(peer: Peer) -> None:
    """An instance that answers."""
    while True:
        await peer.request()
        await peer.send(OK)


class Site:
    """A provider's invocation path with one function `f`, whose instances follow scripts."""

    def __init__(self, limits: dict[str, Any], settings: dict[str, Any]) -> None:
        spec = FunctionSpec(name="f", image="f", namespace="openfaas-fn")
        version = Version(spec=spec, artifact="", digest="")
        stored = StoredFunction(version=version, created_at_s=0.0)
        self.f = FunctionState(stored=stored, wishes=Wishes(), profile=())
        self.metrics = Metrics()
        self.lost: list[str] = []
        fleet = SimpleNamespace(check=lambda instance: self.lost.append(instance.id), start=lambda *_: None)
        controller = cast(Controller, SimpleNamespace(functions={self.f.key: self.f}, fleet=fleet))
        self.proxy = Proxy(
            controller, self.metrics, Settings(state_dir=Path(), bundles_dir=Path(), **settings), SystemClock()
        )
        self.edge = Edge(self.proxy, Limits(**limits), streams=lambda _: True)
        self.edge.SWEEP_S = 0.02  # type: ignore[misc]
        self.port = 0
        self.asked: list[bytes] = []
        self._servers: list[asyncio.Server] = []
        self._bound: list[socket.socket] = []
        self._peers: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def instance(self, script: Script) -> Instance:
        """Start one more."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._peers[task] = writer
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await script(Peer(reader, writer))
            writer.close()
            del self._peers[task]

        server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=4096, limit=2 * MIB)
        self._servers.append(server)
        return self._add(server.sockets[0].getsockname()[1])

    def dead_instance(self) -> Instance:
        """One more that cannot be reached: nobody listens on its port, nor can anybody take it."""
        bound = socket.socket()
        self._bound.append(bound)
        bound.bind(("127.0.0.1", 0))
        return self._add(bound.getsockname()[1])

    def _add(self, port: int) -> Instance:
        one = Instance(
            id=f"f-{len(self.f.instances)}",
            function=self.f.key,
            version=self.f.version,
            configuration=Configuration(batch=1, cpu_cores=1),
            reason="",
            started_at_s=0.0,
            phase=Phase.READY,
            upstream=Upstream("127.0.0.1", port),
        )
        self.f.instances[one.id] = one
        self.f.reweigh()
        return one

    @contextlib.asynccontextmanager
    async def client(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[Peer]:
        """A client that closes at the end."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2 * MIB, ssl=tls)
        try:
            yield Peer(reader, writer)
        finally:
            writer.close()

    async def ask(self, more: bytes = b"") -> tuple[int, bytes, bytes]:
        """One request of a client that waits for its answer."""
        async with self.client() as client:
            await client.send(ASK % more)
            return await client.answer()

    async def until(self, true: Callable[[], object]) -> None:
        """Wait for something to become so."""
        async with asyncio.timeout(20):
            while not true():
                await asyncio.sleep(0.002)

    def counted(self) -> dict[str, int]:
        """Answers by status, as the provider counts them."""
        found = self.metrics.registry.collect()
        samples = [one for family in found for one in family.samples if one.name == "gateway_function_invocation_total"]
        return {one.labels["code"]: int(one.value) for one in samples if one.value}

    async def settled(self) -> None:
        """Nothing is under way, and every request that came in has gone out once."""
        await self.until(lambda: self.f.in_flight == 0 and not self.edge.connections)
        assert self.proxy.in_flight == 0
        assert sum(self.counted().values()) == self.f.invocations
        assert not any(one.in_flight for one in self.f.instances.values())
        await self.until(
            lambda: all(len(one.upstream.connections) == one.upstream.idle for one in self.f.instances.values())
        )
        assert not self.f.waiters

    async def close(self) -> None:
        """End everything, and see that it has ended."""
        for one in self.f.instances.values():
            await one.upstream.close()
        for server in self._servers:
            server.close()
        for bound in self._bound:
            bound.close()
        self.edge.close()
        for writer in self._peers.values():
            writer.transport.abort()
        await self.until(lambda: len(asyncio.all_tasks()) == 1)


def busy(one: Instance) -> bool:
    """Whether a request is being written to it, or was and is not answered."""
    return len(one.upstream.connections) > one.upstream.idle


Scenario = Callable[[Site], Coroutine[Any, Any, None]]


def run(
    scenario: Scenario, *, limits: dict[str, Any] | None = None, tls: ssl.SSLContext | None = None, **settings: Any
) -> dict[str, int]:
    """Play a scenario; gives the answers by status."""
    site = Site(limits or {}, settings)

    async def play() -> None:
        sock = socket.create_server(("127.0.0.1", 0))
        site.port = sock.getsockname()[1]
        await site.edge.listen(sock, tls)
        try:
            async with asyncio.timeout(100):
                await scenario(site)
                await site.settled()
        finally:
            await site.close()
            await asyncio.sleep(0)
            sock.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(play())
    return site.counted()


# instances -----------------------------------------------------------------------------------------------------------


def listening(seen: list[bytes]) -> Callable[[Peer], Awaitable[None]]:
    """An instance that keeps what it is asked, and answers all of it."""

    async def instance(peer: Peer) -> None:
        while True:
            seen.append(await peer.request())
            await peer.send(OK)

    return instance


def test_a_request_and_its_answer() -> None:
    """The usual case, on a fresh connection and then on one that is open: told alike, and with one date."""
    seen: list[bytes] = []
    instance = listening(seen)

    async def scenario(site: Site) -> None:
        await site.instance(instance)
        for _ in range(3):
            status, head, body = await site.ask(b"X-Call-Id: mine\r\n")
            assert (status, body, head.count(b"date: "), head.count(b"content-length: ")) == (200, b"hello", 1, 1)
            for part in (
                b"x-call-id: mine\r\n",
                b"x-start-time: ",
                b"x-duration-seconds: ",
                b"content-type: text/plain",
            ):
                assert head.count(part) == 1, head

    assert run(scenario) == {"200": 3}
    heads = [sorted(re.sub(rb"(start-time|-for): [^\r]*", b"", one).split(b"\r\n")) for one in seen]
    assert heads[0] == heads[1] == heads[2]


@pytest.mark.parametrize("head", [b"GET /function/f HTTP/1.0\r\n\r\n", ASK % b"Connection: close\r\n"])
def test_an_instance_is_told_a_host(head: bytes) -> None:
    """One, as HTTP/1.1 wants it, on a fresh connection and on an open one: health checks in HTTP/1.0 send none."""
    seen: list[bytes] = []
    instance = listening(seen)

    async def scenario(site: Site) -> None:
        await site.instance(instance)
        for _ in range(2):
            async with site.client() as client:
                await client.send(head)
                assert (await client.rest()).endswith(b"hello")

    assert run(scenario) == {"200": 2}
    told = [re.findall(rb"\r\nhost: ([^\r]*)", one) for one in seen]
    assert told == [[b"f.openfaas-fn" if b"1.0" in head else b"h"]] * 2


def test_an_instance_that_is_killed_in_the_middle_of_a_request() -> None:
    """502 for who was there, and not a second try of what it may have done; the next one is answered elsewhere."""
    asked = 0

    async def dying(peer: Peer) -> None:
        nonlocal asked
        await peer.request()
        asked += 1
        peer.abort()

    async def scenario(site: Site) -> None:
        await site.instance(dying)
        status, head, body = await site.ask()
        assert (status, asked) == (502, 1)
        assert b"x-openfaas-internal: proxy\r\n" in head
        assert b"without an answer" in body
        await site.instance(good)
        site.f.instances.pop("f-0")
        site.f.reweigh()
        assert (await site.ask())[0] == 200

    assert run(scenario) == {"502": 1, "200": 1}


def test_an_instance_that_is_killed_while_its_connection_is_idle() -> None:
    """Nobody notices: a connection is looked at before it is used."""

    async def once(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)

    async def scenario(site: Site) -> None:
        await site.instance(once)
        for _ in range(5):
            assert (await site.ask())[0] == 200

    assert run(scenario) == {"200": 5}


def test_an_instance_that_cannot_be_reached() -> None:
    """Another one answers, also a body in pieces: none of it was touched. When there is no other one it is a 503."""
    seen: list[bytes] = []
    instance = listening(seen)

    async def scenario(site: Site) -> None:
        dead = site.dead_instance()
        assert (await site.ask())[0] == 503
        await site.instance(instance)
        for _ in range(4):
            async with site.client() as client:
                await client.send(CHUNKED + b"3\r\nabc\r\n")
                await asyncio.sleep(0.01)
                await client.send(b"2\r\nde\r\n0\r\n\r\n")
                assert (await client.answer())[0] == 200
        assert dead.id in site.lost

    assert run(scenario) == {"503": 1, "200": 4}
    assert all(one.endswith(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n") for one in seen)


def test_an_instance_that_is_full_or_loading() -> None:
    """On an open connection too: the request goes to the one that takes it."""
    refusal = b"HTTP/1.1 503 No\r\nx-infless-refused: 1\r\ncontent-length: 27\r\n\r\nthe model is still loading\n"

    async def full(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(refusal)

    async def scenario(site: Site) -> None:
        await site.instance(full)
        for _ in range(2):
            assert (await site.ask())[2] == b"the model is still loading\n"
        await site.instance(good)
        for _ in range(6):
            assert (await site.ask())[0] == 200

    assert run(scenario) == {"503": 2, "200": 6}


def test_an_instance_that_hangs() -> None:
    """504 when the time is over, whether it has said nothing or half a head; its connection is cut."""
    cut = 0

    async def hanging(peer: Peer) -> None:
        nonlocal cut
        await peer.request()
        await peer.send(OK[: 30 * (cut % 2)])
        await peer.gone()
        cut += 1

    async def scenario(site: Site) -> None:
        await site.instance(hanging)
        for _ in range(4):
            start_s = time.monotonic()
            status, _, body = await site.ask(b"X-Timeout: 100ms\r\n")
            assert status == 504
            assert b"within 0.1 s" in body
            assert time.monotonic() - start_s < 15.0
        await site.until(lambda: cut == 4)

    assert run(scenario) == {"504": 4}


def test_an_instance_that_hangs_in_the_middle_of_its_answer() -> None:
    """The client's connection is cut: half an answer must not look like a whole one."""

    async def hanging(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK[:-2])
        await peer.gone()

    async def scenario(site: Site) -> None:
        await site.instance(hanging)
        async with site.client() as client:
            await client.send(ASK % b"X-Timeout: 2s\r\n")  # time enough for the half
            assert (await client.rest()).endswith(b"\r\n\r\nhel")

    assert run(scenario) == {"504": 1}


@pytest.mark.parametrize(
    "garbage",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x16\x03\x01\x00\x02",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\na: b\0\r\n\r\n",
        b"HTTP/1.1 200 OK\na: b\n\n",
        b"HTTP/1.1 200 OK\r\na: " + bytes([97]) * MIB,
    ],
)
def test_an_instance_that_talks_nonsense(garbage: bytes) -> None:
    """502 and nothing of it to the client."""

    async def lying(peer: Peer) -> None:
        await peer.request()
        await peer.send(garbage)
        await peer.gone()

    async def scenario(site: Site) -> None:
        await site.instance(lying)
        for _ in range(2):
            status, head, body = await site.ask()
            assert status == 502
            assert b"f.openfaas-fn failed while answering" in body
            assert b"\0" not in head + body

    assert run(scenario) == {"502": 2}


@pytest.mark.parametrize(
    "framing", [b"content-length: 10\r\n\r\nhello", b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n"]
)
def test_an_instance_that_closes_in_the_middle_of_its_answer(framing: bytes) -> None:
    """So does the client's connection, without the end of the answer."""

    async def closing(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n" + framing)

    async def scenario(site: Site) -> None:
        await site.instance(closing)
        async with site.client() as client:
            await client.send(ASK % b"")
            got = await client.rest()
            assert got.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"hello" in got
            assert not got.endswith(b"0\r\n\r\n")

    assert run(scenario) == {"502": 1}


def test_an_instance_that_answers_before_it_has_the_whole_body() -> None:
    """Its answer is passed on although the body is not out, and the client hears that its connection ends."""

    async def refusing(peer: Peer) -> None:
        await peer.reader.readexactly(100_000)
        await peer.send(b"HTTP/1.1 413 No\r\ncontent-length: 2\r\n\r\nno")
        await peer.gone()

    async def scenario(site: Site) -> None:
        await site.instance(refusing)
        async with site.client() as client:
            sending = asyncio.ensure_future(client.send(CHUNKED + (b"100000\r\n" + bytes(MIB) + b"\r\n") * 20))
            status, head, body = await client.answer()
            assert (status, body) == (413, b"no")
            assert b"connection: close\r\n" in head
            await sending

    assert run(scenario) == {"413": 1}


def test_an_answer_in_pieces_comes_in_pieces() -> None:
    """As server-sent events: each is there before the next one is made, and it may last longer than the limit."""
    heard = asyncio.Queue[int]()

    async def telling(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for number in range(5):
            await peer.send(b"9\r\ndata: %d\n\n\r\n" % number)
            assert await heard.get() == number
            await asyncio.sleep(0.25)
        await peer.send(b"0\r\n\r\n")

    async def scenario(site: Site) -> None:
        await site.instance(telling)
        async with site.client() as client:
            await client.send(ASK % b"X-Timeout: 1s\r\nAccept: text/event-stream\r\n")
            for number in range(5):
                await client.reader.readuntil(b"data: %d\n\n\r\n" % number)
                heard.put_nowait(number)
            assert await client.reader.readexactly(5) == b"0\r\n\r\n"

    assert run(scenario) == {"200": 1}


def test_both_directions_at_once() -> None:
    """Each piece that goes in comes out before the next one goes in."""

    async def echoing(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while (line := await peer.reader.readuntil(b"\r\n")) != b"0\r\n":
            await peer.send(line + await peer.reader.readexactly(int(line, 16) + 2))
        await peer.reader.readexactly(2)
        await peer.send(b"0\r\n\r\n")

    async def scenario(site: Site) -> None:
        await site.instance(echoing)
        async with site.client() as client:
            await client.send(CHUNKED)
            for number in range(20):
                await client.send(b"2\r\n%02d\r\n" % number)
                await client.reader.readuntil(b"2\r\n%02d\r\n" % number)
            await client.send(b"0\r\n\r\n")
            await client.reader.readuntil(b"0\r\n\r\n")

    assert run(scenario) == {"200": 1}


@pytest.mark.parametrize(
    ("said", "then", "code", "got"),
    [
        (b"", "abort", "502", b"HTTP/1.1 502 "),
        (b"", "hang", "504", b"HTTP/1.1 504 "),
        (b"", "leave", "499", b""),
        (b"nonsense\r\n\r\n", "hang", "502", b"HTTP/1.1 502 "),
        (OK[:30], "abort", "502", b"HTTP/1.1 502 "),
        (OK[:-2], "abort", "502", b"HTTP/1.1 200 OK\r\n"),
        (OK[:-2], "hang", "504", b"HTTP/1.1 200 OK\r\n"),
        (OK[:-2], "leave", "499", b""),
        (OK.replace(b"200 OK", b"503 No"), "hang", "503", b"HTTP/1.1 503 "),
        (b"HTTP/1.1 200 OK\r\n\r\nhello", "abort", "200", b"HTTP/1.1 200 OK\r\n"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "hang", "204", b"HTTP/1.1 204 "),
    ],
)
def test_what_happens_on_a_connection_that_was_open(said: bytes, then: str, code: str, got: bytes) -> None:
    """The short way, without a task, ends as the long one does."""

    async def instance(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()
        await peer.send(said)
        if then == "abort":
            peer.abort()
        await peer.gone()

    async def scenario(site: Site) -> None:
        one = await site.instance(instance)
        assert (await site.ask())[0] == 200
        async with site.client() as client:
            await client.send(ASK % b"X-Timeout: 2s\r\nConnection: close\r\n")
            if then == "leave":
                await site.until(lambda: busy(one))
                await asyncio.sleep(0.01)
            else:
                assert (await client.rest()).startswith(got)

    assert run(scenario) == Counter(["200", code])


# clients -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [CHUNKED + b"ffff\r\n", ASK[:-4].replace(b"4", b"9000") % b"", b"POST /fun"])
def test_a_client_that_sends_a_byte_now_and_then(head: bytes) -> None:
    """It gets 408, and no instance waits for it for ever."""
    whole: list[bytes] = []

    async def instance(peer: Peer) -> None:
        whole.append(await peer.request())

    async def scenario(site: Site) -> None:
        await site.instance(instance)
        async with site.client() as client:
            await client.send(head)
            reading = asyncio.ensure_future(client.rest())
            while not reading.done():
                await client.send(b"a")
                await asyncio.sleep(0.02)
            assert reading.result().startswith(b"HTTP/1.1 408 ")

    assert run(scenario, limits={"read_timeout_s": 0.2}) in ({"408": 1}, {})
    assert whole == []


def flat(limit_mib: float) -> Callable[[], None]:
    """Fails when this process has grown by more than that since now."""
    process = psutil.Process()
    before = process.memory_info().rss

    def check() -> None:
        assert process.memory_info().rss - before < limit_mib * MIB

    return check


async def swallow(peer: Peer) -> None:
    """An instance that takes everything and keeps nothing."""
    head = await peer.reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    left = int(length[1]) if length else sys.maxsize
    tail = b""
    while left and not tail.endswith(b"0\r\n\r\n"):
        data = await peer.reader.read(min(left, MIB))
        if not data:
            return
        left -= len(data)
        tail = (tail + data)[-5:] if not length else b""
    await peer.send(OK)


def test_two_gibibytes_that_are_announced() -> None:
    """413 before anything of it is read."""

    async def scenario(site: Site) -> None:
        await site.instance(swallow)
        async with site.client() as client:
            await client.send(ASK[:-4].replace(b"4", b"%d" % 2**31) % b"")
            got = await client.rest()
            assert got.startswith(b"HTTP/1.1 413 ")
            assert b"larger than the allowed" in got

    assert run(scenario) == {}


def test_two_gibibytes_that_are_not_announced() -> None:
    """413 when the limit is passed; memory stays flat all the time, and the instance gets no whole request."""

    async def scenario(site: Site) -> None:
        await site.instance(swallow)
        check, chunk, sent = flat(32), b"100000\r\n" + bytes(MIB) + b"\r\n", 0
        async with site.client() as client:
            await client.send(CHUNKED)
            reading = asyncio.ensure_future(client.rest())
            while sent < 2**31 and not reading.done():
                client.writer.write(chunk)
                await asyncio.wait(
                    {asyncio.ensure_future(client.send(b"")), reading}, return_when=asyncio.FIRST_COMPLETED
                )
                sent += MIB
                check()
            assert (await reading).startswith(b"HTTP/1.1 413 ")
            assert sent < 2**31

    assert run(scenario) == {"413": 1}


@pytest.mark.parametrize("announced", [True, False])
def test_a_large_body_goes_through(announced: bool) -> None:
    """256 MiB in, no more than some pieces of it in memory."""
    pieces = 256

    async def scenario(site: Site) -> None:
        await site.instance(swallow)
        check = flat(32)
        async with site.client() as client:
            await client.send(ASK[:-4].replace(b"4", b"%d" % (pieces * MIB)) % b"" if announced else CHUNKED)
            for _ in range(pieces):
                await client.send(bytes(MIB) if announced else b"100000\r\n" + bytes(MIB) + b"\r\n")
                check()
            await client.send(b"" if announced else b"0\r\n\r\n")
            assert (await client.answer())[0] == 200

    assert run(scenario, limits={"body_bytes": 2**30}) == {"200": 1}


def test_a_client_that_leaves_while_it_sends() -> None:
    """Its instance is left alone with what it has: its connection is cut, and it sees no end of the request."""
    ended: list[bool] = []

    async def instance(peer: Peer) -> None:
        try:
            await peer.request()
        finally:
            ended.append(peer.reader.at_eof())

    async def scenario(site: Site) -> None:
        await site.instance(instance)
        for head in (CHUNKED + b"5\r\nabcde\r\n", ASK[:-4].replace(b"4", b"900000") % b"" + b"abc"):
            async with site.client() as client:
                await client.send(head)
                await site.until(lambda: any(map(busy, site.f.instances.values())))
            await site.until(lambda: site.f.in_flight == 0)
        await site.until(lambda: len(ended) == 2)

    assert run(scenario) == {"499": 2}


def test_a_client_that_leaves_while_it_waits() -> None:
    """Its instance is told by the end of the connection, whether it has said nothing or something."""
    cut = 0

    async def hanging(peer: Peer) -> None:
        nonlocal cut
        await peer.request()
        await peer.send(OK[:-2] if cut else b"")
        await peer.gone()
        cut += 1

    async def scenario(site: Site) -> None:
        await site.instance(hanging)
        for number in (1, 2, 3):
            async with site.client() as client:
                await client.send(ASK % b"")
                await site.until(lambda: any(map(busy, site.f.instances.values())))
                if number > 1:
                    await client.reader.readuntil(b"hel")
            await site.until(lambda number=number: cut == number)

    assert run(scenario) == {"499": 3}


def test_clients_that_leave_at_once() -> None:
    """In the very moment in which their request is taken: the books hold."""

    async def scenario(site: Site) -> None:
        await site.instance(good)
        for number in range(100):
            with socket.create_connection(("127.0.0.1", site.port)) as client:
                client.sendall(ASK % b"" if number % 2 else CHUNKED + b"1\r\na\r\n")
            await asyncio.sleep(0)
        await site.until(lambda: site.f.invocations >= 1)

    assert sum(run(scenario).values()) <= 100


def test_a_client_that_leaves_in_the_middle_of_a_download() -> None:
    """The instance is cut off; what it had made goes nowhere."""

    async def endless(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while not peer.writer.transport.is_closing():
            await peer.send(b"100000\r\n" + bytes(MIB) + b"\r\n")

    async def scenario(site: Site) -> None:
        await site.instance(endless)
        async with site.client() as client:
            await client.send(ASK % b"")
            await client.reader.readexactly(3 * MIB)

    assert run(scenario) == {"499": 1}


def test_a_client_that_reads_slowly() -> None:
    """It holds back its own answer, not our memory, nor the others; when it takes nothing at all it is dropped."""

    async def large(peer: Peer) -> None:
        request = await peer.request()
        if b"/small" in request:
            await peer.send(OK)
        else:
            await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (64 * MIB))
            for _ in range(64):
                await peer.send(bytes(MIB))

    async def scenario(site: Site) -> None:
        await site.instance(large)
        async with site.client() as slow, site.client() as asleep:
            await slow.send(ASK % b"")
            await asleep.send(ASK % b"")
            asleep.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await slow.reader.readuntil(b"\r\n\r\n")
            check = flat(32)
            for piece in range(64):
                await slow.reader.readexactly(MIB)
                check()
                if piece % 8 == 0:
                    async with site.client() as quick:
                        await quick.send(ASK.replace(b"/f ", b"/f/small ") % b"")
                        assert (await quick.answer())[0] == 200
                    await asyncio.sleep(0.1)
            await site.until(lambda: site.counted().get("499"))

    assert run(scenario, limits={"write_timeout_s": 3.0}) == {"200": 9, "499": 1}


HOLDER = """
import resource, socket, sys
port, count = int(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
held = []
for _ in range(count):
    held.append(socket.create_connection(("127.0.0.1", port)))
print("held", flush=True)
sys.stdin.read()
"""
HELD = 10_000


@contextlib.asynccontextmanager
async def held(port: int, count: int) -> AsyncIterator[None]:
    """Another process that has opened so many connections, and asks nothing."""
    command = [sys.executable, "-c", HOLDER, str(port), str(count)]
    holder = await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        async with asyncio.timeout(60):
            assert await holder.stdout.readline() == b"held\n"
        yield
    finally:
        holder.kill()
        await holder.communicate()


@pytest.fixture
def many_files() -> Iterator[int]:
    """As many open files as this process may have; gives how many connections it can hold."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < HELD + 1000:
        pytest.skip(f"the limit of open files is {hard}; {HELD} connections need more")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield HELD
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("cap", [0, 500], ids=["no cap", "a cap"])
def test_ten_thousand_connections_that_ask_nothing(many_files: int, cap: int) -> None:
    """Others are served meanwhile, at once; where there is a cap the idle ones make room; in the end all are closed."""

    async def scenario(site: Site) -> None:
        site.edge.SWEEP_S = 0.5  # type: ignore[misc]
        await site.instance(good)
        async with site.client() as old, held(site.port, many_files):
            await site.until(lambda: len(site.edge.connections) >= (cap or many_files))
            assert len(site.edge.connections) <= (cap or many_files + 1)
            for _ in range(20):
                start_s = time.monotonic()
                assert (await site.ask())[0] == 200
                assert time.monotonic() - start_s < 15.0
            if cap:
                assert await old.rest() == b""
                assert site.edge.turned_away == 0
            site.edge.limits = Limits(idle_timeout_s=0.1)
            await site.until(lambda: not site.edge.connections)

    assert run(scenario, limits={"connections_max": cap}) == {"200": 20}


def test_more_than_may_be_under_way() -> None:
    """The rest is told at once, with 503; whoever is in is served."""
    go_on = asyncio.Event()

    async def waiting(peer: Peer) -> None:
        await peer.request()
        await go_on.wait()
        await peer.send(OK)

    async def scenario(site: Site) -> None:
        await site.instance(waiting)
        asking = [asyncio.ensure_future(site.ask()) for _ in range(60)]
        await site.until(lambda: sum(one.done() for one in asking) == 40)
        go_on.set()
        answers = await asyncio.gather(*asking)
        assert Counter(status for status, _, _ in answers) == {200: 20, 503: 40}
        assert all(b"retry-after: 1\r\n" in head for status, head, _ in answers if status == 503)

    assert run(scenario, streams_max=20) == {"200": 20, "503": 40}


# everything at once --------------------------------------------------------------------------------------------------


def moody(chance: random.Random) -> Script:
    """An instance that answers, or does one of the things that instances do."""

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            match chance.randrange(8):
                case 0:
                    return peer.abort()
                case 1:
                    return await peer.send(OK[: chance.randrange(len(OK))])
                case 2:
                    await peer.send(b"nonsense\r\n\r\n")
                case 3:
                    return await peer.gone()
                case 4:
                    await peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
                    await peer.send((b"3e8\r\n" + bytes(1000) + b"\r\n") * chance.randrange(20))
                    await peer.send(b"0\r\n\r\n")
                case _:
                    await peer.send(OK)

    return script


def any_request(chance: random.Random) -> bytes:
    """Small or not, announced or in chunks."""
    size = chance.choice([0, 4, 4, 4, 100_000])
    head = b"POST /function/f HTTP/1.1\r\nHost: h\r\nX-Timeout: 300ms\r\nConnection: close\r\n"
    if chance.random() < 0.5:
        return head + b"Content-Length: %d\r\n\r\n" % size + bytes(size)
    chunk = b"%x\r\n" % size + bytes(size) + b"\r\n" if size else b""
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk + b"0\r\n\r\n"


async def moody_client(site: Site, slots: asyncio.Semaphore, chance: random.Random) -> None:
    """Sends in two pieces, and may leave before the second one, or before the answer."""
    async with slots, site.client() as client:
        request = any_request(chance)
        cut = chance.randrange(len(request))
        await client.send(request[:cut])
        await asyncio.sleep(chance.random() / 100)
        if chance.random() < 0.3:
            return
        await client.send(request[cut:])
        if chance.random() < 0.2:
            await asyncio.sleep(chance.random() / 20)
        else:
            await client.rest()


def test_everything_at_once() -> None:
    """Hundreds of requests of all kinds to instances of all kinds, a third of the clients leaves: the books balance."""
    chance = random.Random(4711)

    async def scenario(site: Site) -> None:
        for _ in range(3):
            await site.instance(moody(chance))
        site.dead_instance()
        slots = asyncio.Semaphore(64)
        await asyncio.gather(*(moody_client(site, slots, chance) for _ in range(600)))

    counted = run(scenario)
    assert {"200", "499", "502", "504"} <= counted.keys()


# TLS -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's and a client's, with a certificate made for this."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = str(folder / "key.pem"), str(folder / "certificate.pem")
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(certificate, key)
    return server, ssl.create_default_context(cafile=certificate)


def test_requests_over_tls(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    """Small ones, bodies in pieces, and answers before their end."""
    server, trusting = contexts

    async def scenario(site: Site) -> None:
        await site.instance(swallow)
        async with site.client(trusting) as client:
            for _ in range(3):
                await client.send(ASK % b"")
                assert (await client.answer())[2] == b"hello"
            await client.send(ASK[:-4].replace(b"4", b"%d" % (8 * MIB)) % b"")
            for _ in range(8):
                await client.send(bytes(MIB))
            assert (await client.answer())[0] == 200
            await client.send(CHUNKED.replace(b"/f ", b"/nobody ") + b"5\r\nabcde\r\n")
            assert (await client.answer())[0] == 404

    assert run(scenario, tls=server) == {"200": 4}


def test_clients_that_do_not_agree_on_tls(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    """Plain HTTP, and a handshake that never ends, are cut; nobody else notices."""
    server, trusting = contexts

    async def scenario(site: Site) -> None:
        await site.instance(good)
        async with site.client() as plain, site.client() as silent:
            await plain.send(ASK % b"")
            assert b"HTTP/1.1 200" not in await plain.rest()
            assert await silent.rest() == b""
        async with site.client(trusting) as client:
            await client.send(ASK % b"")
            assert (await client.answer())[0] == 200

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Edge, "HANDSHAKE_S", 2.0)
        assert run(scenario, tls=server) == {"200": 1}
