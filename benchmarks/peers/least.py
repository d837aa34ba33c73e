"""The least HTTP server that can batch, on uvloop and httptools: the limit that ours is held against.

It takes POSTs of raw float32 and answers raw float32. No routes, no limits, no metrics, no deadlines, no error
handling; what it does, it does as fast as Python can: only the two parser callbacks that it needs, one write for each
answer, and the next batch forms while one runs in a thread. A batch goes when it is full or `PEER_WAIT_S` old.
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

import httptools
import numpy as np
import onnxruntime
import uvloop

BATCH_MAX = 32


class Batcher:
    """Collects bodies until there are enough of them, or the first has waited long enough."""

    def __init__(self, path: str, wait_s: float) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._shape = (-1, *self._session.get_inputs()[0].shape[1:])
        size = 4 * self._session.get_outputs()[0].shape[1]
        self._head = b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n" % size
        self._size, self._wait_s = size, wait_s
        self._pool = ThreadPoolExecutor(1)
        self._loop = asyncio.get_running_loop()
        self._transports: list[asyncio.Transport] = []
        self._bodies: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None

    def add(self, transport: asyncio.Transport, body: bytes) -> None:
        """One more request."""
        self._transports.append(transport)
        self._bodies.append(body)
        if len(self._bodies) >= BATCH_MAX:
            self._flush()
        elif self._timer is None:
            self._timer = self._loop.call_later(self._wait_s, self._flush)

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        transports, bodies = self._transports, self._bodies
        self._transports, self._bodies = [], []
        self._pool.submit(self._run, transports, bodies)

    def _run(self, transports: list[asyncio.Transport], bodies: list[bytes]) -> None:
        batch = np.frombuffer(b"".join(bodies), np.float32).reshape(self._shape)
        answers = self._session.run(None, {"x": batch})[0].tobytes()
        self._loop.call_soon_threadsafe(self._answer, transports, answers)

    def _answer(self, transports: list[asyncio.Transport], answers: bytes) -> None:
        head, size, start = self._head, self._size, 0
        for transport in transports:
            if not transport.is_closing():
                transport.write(head + answers[start : start + size])
            start += size


class Connection(asyncio.Protocol):
    """One client."""

    def __init__(self, batcher: Batcher) -> None:
        self._add = batcher.add
        self._feed = httptools.HttpRequestParser(self).feed_data
        self._body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep where answers go."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Parse."""
        self._feed(data)

    def on_body(self, body: bytes) -> None:
        """A piece of a body."""
        self._body = self._body + body if self._body else body

    def on_message_complete(self) -> None:
        """The body is whole."""
        self._add(self._transport, self._body)
        self._body = b""


async def serve(path: str, port: int) -> None:
    """Serve for good."""
    batcher = Batcher(path, float(os.environ["PEER_WAIT_S"]))
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(batcher), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(os.environ["PEER_MODEL"], int(os.environ["PEER_PORT"])))
