"""One connection to an upstream: a request out, whole or in pieces; its answer in, parsed by httptools."""

from __future__ import annotations

import asyncio
import math
import select
from collections.abc import AsyncIterable, Callable
from typing import TYPE_CHECKING, cast

import httptools

from infless_provider.upstream_reply import Broken, HalfSent, Header, Reply, TimedOut

if TYPE_CHECKING:
    from infless_provider.upstream import Upstream

_BODILESS = frozenset({204, 304})
_STALE = select.POLLIN | select.POLLHUP | select.POLLERR
_HEAD_MAX_BYTES = 256 * 1024
"""Of an answer that says nothing yet: four reads of a socket, and more than any server we know allows for a head."""
_TICK_S = 0.001
"""Event loops round their timers to milliseconds."""


class Connection(asyncio.Protocol):
    """One TCP connection: takes a request, feeds its reply, goes back to the pool."""

    def __init__(self, pool: Upstream) -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._readable = select.poll()
        self._reply: Reply | None = None
        self._headers: list[Header] = []
        self._head_done = False
        self._reusable = True
        self._abandoned = False
        self._paused = False
        self._unheard_bytes = 0
        self._sender: asyncio.Task[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._timeout_s = 0.0
        self._silence_s: float | None = None
        self._moved_s = 0.0
        self._ends_s = math.inf

    # asyncio ---------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The peer has accepted."""
        if self._abandoned:
            cast("asyncio.Transport", transport).abort()
            return
        # uvloop's transport is none of asyncio's classes, but speaks their protocol.
        self._transport = cast("asyncio.Transport", transport)
        self._readable.register(transport.get_extra_info("socket").fileno(), _STALE)
        self._pool.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The peer has closed, or we have cut."""
        self._transport = None
        reply = self._reply
        if reply is not None:
            if exc is None and reply.ends_with_connection() and not reply.failed:
                self._reusable = False
                self._finish()
                reply.wake()
            else:
                where = "in the middle of its answer" if reply.began else "without an answer"
                reply.fail(Broken(f"it closed the connection {where}"))
        self.resume_writing()
        self._forget()

    def pause_writing(self) -> None:
        """The peer takes a body more slowly than it comes."""
        self._writable = self._pool.loop.create_future()

    def resume_writing(self) -> None:
        """It has caught up, or is gone."""
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    def data_received(self, data: bytes) -> None:
        """Feed the parser; what is not HTTP breaks the connection."""
        reply = self._reply
        if reply is None:  # a peer that speaks unasked cannot be trusted with the next request
            self.cut()
            return
        reply.began = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            reply.fail(Broken("it switched the protocol unasked"))
            self._reusable = False
        except httptools.HttpParserError as error:
            reply.fail(Broken(f"it does not speak HTTP/1.1: {error}"))
            self._reusable = False
        if self._reply is None:
            self._release()
        else:
            self._unheard_bytes += len(data)
            if reply.status:
                self._moved_s = self._pool.loop.time()
            if self._unheard_bytes > _HEAD_MAX_BYTES:
                reply.fail(Broken(f"it sends a head of more than {_HEAD_MAX_BYTES} bytes"))
                self._reusable = False
            if not self._reusable:
                self.cut()
        if reply.status:
            reply.wake()

    # httptools -------------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """An answer begins; one that nobody asked for spoils the connection."""
        self._headers = []
        self._head_done = False
        if self._reply is None:
            self._reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header field; trailers after a chunked body are dropped."""
        if not self._head_done:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The head is complete; interim answers (1xx) are skipped."""
        status = self._parser.get_status_code()
        self._head_done = True
        reply = self._reply
        if reply is None or reply.failed or 100 <= status < 200:
            return
        if (fault := self._fault(status)) is not None:
            reply.fail(Broken(f"it does not speak HTTP/1.1: {fault}"))
            self._reusable = False
            return
        self._unheard_bytes = 0
        reply.status = status
        reply.headers = self._headers
        if reply.head_only or status in _BODILESS:
            # The parser cannot be told that no body follows a content-length; the next answer gets a new one.
            self._finish()

    def _fault(self, status: int) -> str | None:
        """What the parser lets pass and nobody should."""
        if status < 100:
            return f"status {status:03}"
        if self._parser.get_http_version() not in ("1.1", "1.0"):
            return f"version {self._parser.get_http_version()}"
        codings = [value for name, value in self._headers if name == b"transfer-encoding"]
        if codings and [value.strip().lower() for value in codings] != [b"chunked"]:
            return "a Transfer-Encoding that is not chunked"
        return None

    def on_body(self, data: bytes) -> None:
        """A part of the body."""
        self._unheard_bytes = 0
        reply = self._reply
        if reply is None:
            self._reusable = False
        elif not reply.add(data) and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        """The answer is whole, unless it was an interim one."""
        if self._reply is not None and self._reply.status:
            self._finish()

    # requests --------------------------------------------------------------------------------------------------------

    def usable(self) -> bool:
        """Whether a request may be written: open, and nothing (not even an end) waits to be read."""
        return self._transport is not None and not self._transport.is_closing() and not self._readable.poll(0)

    def send(
        self,
        data: bytes,
        *,
        head_only: bool,
        timeout_s: float,
        silence_s: float | None = None,
        told: Callable[[Reply], None] | None = None,
    ) -> Reply:
        """Write a request, or the beginning of one; the times are those of `Upstream.request`."""
        assert self._transport is not None
        reply = self._reply = Reply(self, head_only=head_only, told=told)
        pool = self._pool
        self._timeout_s, self._silence_s = timeout_s, silence_s
        self._ends_s = pool.loop.time() + timeout_s
        if self._ends_s < pool.wakes_s:
            pool.wake_at(self._ends_s)
        self._transport.write(data)
        return reply

    def send_pieces(self, body: AsyncIterable[bytes], size_bytes: int | None) -> None:
        """Write the body of the request that has begun, as it comes."""
        if self._reply is not None:
            self._sender = self._pool.loop.create_task(self._pump(self._reply, body, size_bytes))

    async def _pump(self, reply: Reply, body: AsyncIterable[bytes], size_bytes: int | None) -> None:
        """Whatever the source raises is told to who waits for the answer."""
        try:
            await self._write_all(body, size_bytes)
            self._sender = None
        except Exception as error:  # noqa: BLE001 - the source's own
            failure = HalfSent(f"the request's body broke off: {error}")
            failure.__cause__ = error
            reply.fail(failure)
            self.cut()

    async def _write_all(self, body: AsyncIterable[bytes], size_bytes: int | None) -> None:
        sent_bytes = 0
        async for piece in body:
            sent_bytes += len(piece)
            if size_bytes is not None and sent_bytes > size_bytes:
                break
            if piece:
                self._write(piece, chunked=size_bytes is None)
                if self._writable is not None:
                    await self._writable
                self._moved_s = self._pool.loop.time()
        if size_bytes is None:
            self._write(b"", chunked=True)
        elif sent_bytes != size_bytes:
            has = "more" if sent_bytes > size_bytes else sent_bytes
            raise ValueError(f"{size_bytes} bytes were announced, and it has {has}")

    def _write(self, piece: bytes, *, chunked: bool) -> None:
        if self._transport is not None:
            self._transport.writelines([b"%x\r\n" % len(piece), piece, b"\r\n"] if chunked else [piece])

    def resume(self) -> None:
        """The consumer has caught up."""
        if self._paused and self._transport is not None:
            self._paused = False
            self._moved_s = self._pool.loop.time()
            self._transport.resume_reading()

    def abandon(self) -> None:
        """Nobody waits for it any more; the event loop may still hand it over, and then forget to end it (uvloop)."""
        self._abandoned = True
        self.cut()

    def cut(self) -> None:
        """Drop the connection at once; a reply in the making fails."""
        if self._transport is not None:
            self._transport.abort()
        self._forget()

    def expire(self, now_s: float) -> float:
        """Give up an answer that is late.

        Returns:
            When to look again, at the earliest.
        """
        if now_s + _TICK_S < self._ends_s or self._reply is None:
            return self._ends_s
        if self._silence_s is not None and (self._paused or self._moved_s):
            # What flows may last. We do not know of a peer that we do not listen to whether it is silent.
            ends_s = (now_s if self._paused else self._moved_s) + self._silence_s
            if ends_s > now_s + _TICK_S:
                self._ends_s = ends_s
                return ends_s
        silent = self._reply.status and self._silence_s is not None
        why = f"was silent for {self._silence_s:g} s" if silent else f"did not answer within {self._timeout_s:g} s"
        self._reply.fail(TimedOut(f"{self._pool.address} {why}"))
        self.cut()
        return math.inf

    def _finish(self) -> None:
        """The reply is complete; called by the parser, so the connection itself is released after its run."""
        reply = self._reply
        if reply is None or reply.failed:
            return
        self._reply = None
        reply.complete = True
        self._reusable = self._reusable and self._parser.should_keep_alive() and self._sender is None
        if reply.head_only or reply.status in _BODILESS:
            self._parser = httptools.HttpResponseParser(self)
        self._let_go()

    def _let_go(self) -> None:
        """No answer is expected any more."""
        self._ends_s = math.inf
        self._moved_s = 0.0
        if self._sender is not None:
            self._sender.cancel()
            self._sender = None

    def _release(self) -> None:
        """Back to the pool, or closed when the peer wants that or has not taken the whole request."""
        if self._transport is None:
            return
        self.resume()
        if self._reusable and not self._transport.is_closing() and not self._transport.get_write_buffer_size():
            self._pool.put(self)
        else:
            self.cut()

    def _forget(self) -> None:
        if self._reply is not None:
            self._reply.fail(Broken("the connection to it was cut"))
            self._reply = None
            self._let_go()
        self._pool.drop(self)
