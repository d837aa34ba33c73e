"""An event loop in a thread of its own, for the user's async functions: one that blocks stops no other request."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from concurrent.futures import Future
from functools import wraps
from typing import Any

from infless_watchdog.isolation import BatchError

_EARLY = 0.95
"""Share of `exec_timeout` after which an async run is cancelled: before the whole instance is taken for hanging."""
_CLOSE_S = 1.0
"""A loop that a handler blocks is not waited for any longer."""


def is_async(function: Any) -> bool:
    """Whether calling it gives something to be awaited, or an async generator; objects with `__call__` included."""
    return any(
        test(one)
        for test in (inspect.iscoroutinefunction, inspect.isasyncgenfunction)
        for one in (function, getattr(function, "__call__", None))  # noqa: B004 - its kind is asked, not its presence
    )


class LoopThread:
    """Runs coroutines from plain threads. The thread begins with the first of them.

    Args:
        exec_timeout_s: of the instance; 0.95 of it is the limit of what `plain` functions with a limit await.
    """

    def __init__(self, exec_timeout_s: float) -> None:
        self._exec_timeout_s = exec_timeout_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def plain(self, function: Callable[..., Any], *, limited: bool = False) -> Callable[..., Any]:
        """The function as one that a thread can call; `limited` ends it near `exec_timeout`."""
        if not is_async(function):
            return function
        in_time = self._in_time if limited else _awaited

        @wraps(function)
        def call(*arguments: Any) -> Any:
            coming = function(*arguments)
            return self.run(in_time(coming)) if inspect.isawaitable(coming) else coming

        return call

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """What a coroutine returns or raises."""
        value, ending = asyncio.run_coroutine_threadsafe(_held(work), self._running()).result()
        if ending is not None:
            raise ending
        return value

    def iterate(self, source: AsyncIterator[Any]) -> Generator[Any, None, None]:
        """An async generator as a plain one. One task takes all its pieces, each when it is wanted."""
        loop = self._running()
        wants: asyncio.Queue[Future[Any]] = asyncio.Queue()

        async def pump() -> None:
            try:
                while True:
                    want = await wants.get()
                    try:
                        want.set_result(await self._in_time(anext(source)))
                    except BaseException as error:  # noqa: BLE001 - raised where the piece is wanted; also the end
                        want.set_exception(error)
                        return
            finally:
                if (close := getattr(source, "aclose", None)) is not None:
                    await close()

        pumping = asyncio.run_coroutine_threadsafe(pump(), loop)
        try:
            while True:
                want: Future[Any] = Future()
                loop.call_soon_threadsafe(wants.put_nowait, want)
                try:
                    yield want.result()
                except StopAsyncIteration:
                    return
        finally:
            pumping.cancel()

    def close(self) -> None:
        """End the loop; what still runs there is cancelled."""
        with self._starting:
            if self._loop is not None and self._thread is not None:
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join(_CLOSE_S)
                self._loop = None

    async def _in_time(self, coming: Any) -> Any:
        limit_s = _EARLY * self._exec_timeout_s
        try:
            async with asyncio.timeout(limit_s if limit_s < threading.TIMEOUT_MAX else None) as limit:
                return await coming
        except TimeoutError:
            if not limit.expired():  # the handler's own
                raise
            sentence = f"the handler did not answer within exec_timeout, {self._exec_timeout_s:g} s"
            raise BatchError(504, sentence) from None

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._starting:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=_serve, args=(self._loop,), name="handler loop", daemon=True)
                self._thread.start()
            return self._loop


async def _awaited(coming: Any) -> Any:
    return await coming


async def _held(work: Coroutine[Any, Any, Any]) -> tuple[Any, BaseException | None]:
    """What comes of it; sys.exit() in the user's code must not end the loop."""
    try:
        return await work, None
    except (SystemExit, KeyboardInterrupt) as ending:
        return None, ending


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()
