"""`/async-function/...`: takes calls into the queue, has them run, and tells their answers to callback URLs.

::

    accept --> waiting --> invoke --------> answered --> post callback --> removed, counted as done or failed
                  ^           | not now         ^             | not now
                  +-----------+                 +-------------+

Each step to the right is on disk before it counts. A provider that dies at any moment goes on from the last one, so a
function may see a call twice, and a callback's target an answer twice (at least once); none is lost.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from infless_core.clock import Clock
from infless_core.errors import InvalidInput, StateError
from infless_provider import async_policy, auth
from infless_provider.async_books import AsyncStats, Books, Ticket
from infless_provider.async_policy import AsyncLimits
from infless_provider.async_store import Count, QueuedCall, QueueStore, StoredRequest
from infless_provider.async_worker import Worker, trace
from infless_provider.callback_policy import Target, parse_url
from infless_provider.forwarding import INTERNAL, sane_call_id
from infless_provider.wire import function_key

if TYPE_CHECKING:
    from infless_provider.callbacks import Callbacks
    from infless_provider.functions import FunctionState
    from infless_provider.proxy import Outcome
    from infless_watchdog.exchange import Exchange

LOG = logging.getLogger("infless.async")
PREFIX = "/async-function/"
_FULL_RETRY_S = b"5"


class AsyncCalls:
    """The queue at work. Owned by one event loop.

    Args:
        store: the queue on disk, not yet open.
        find: a function by its key, None when there is none.
        invoke: `invoke(function, method, target, headers, body, *, timeout_s, answer_max_bytes)`: one invocation; it
            does not raise for a function that fails.
        callbacks: delivers answers.
        clock: due times are its monotonic ones, so a wall clock that jumps neither loses nor stalls a call.
        limits: how much waits and runs.
        seed: of the waits' jitter.
        ours: whether an Authorization header is meant for the provider's control plane, not for the function.
    """

    def __init__(
        self,
        store: QueueStore,
        find: Callable[[str], FunctionState | None],
        invoke: Callable[..., Awaitable[Outcome]],
        callbacks: Callbacks,
        clock: Clock,
        limits: AsyncLimits,
        seed: int,
        ours: Callable[[bytes | None], bool] = lambda _: False,
    ) -> None:
        self._store = store
        self._find = find
        self._callbacks = callbacks
        self._clock = clock
        self._limits = limits
        self._ours = ours
        self._books = Books(limits, self._settle)
        self._worker = Worker(store, self._books, find, invoke, callbacks, clock, limits, seed)
        self._tasks: set[asyncio.Task[None]] = set()
        self._leaving: set[str] = set()
        """Functions that are to be forgotten once nothing of them waits."""
        self._open = False
        self._next_seq = 1

    async def start(self) -> None:
        """Open the queue; whatever waits in it is due at once. Functions must be known by now.

        Raises:
            StateError: the queue cannot be opened.
        """
        restored = await self._store.open()
        now_s, wall_s = self._clock.now_s(), self._clock.wall_s()
        self._books.restore(restored.books)
        for call in restored.calls:
            # The wall clock may have jumped since: it says how old a call looks, never whether it still runs.
            looks_s = max(0.0, wall_s - call.accepted_ns / 1e9)
            target = _target_again(call)
            ticket = Ticket(call=call, target=target, accepted_s=now_s - looks_s, since_s=now_s, accepted=True)
            ticket.decided.set()
            self._books.add(ticket)
            self._next_seq = call.seq + 1
            self._worker.enqueue(ticket)
        if restored.calls:
            LOG.info("%d asynchronous call(s) of the last run go on", len(restored.calls))
        self._open = True
        self._worker.start()
        for function in self._books.counted():  # removed while an earlier run had no time for it
            if self._find(function) is None:
                self.forget(function)

    async def close(self) -> None:
        """Take no more; let what runs end within the grace; the rest stays in the queue for the next start."""
        self._open = False
        await self._worker.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._callbacks.close()
        await self._store.close()

    def stats(self) -> AsyncStats:
        """The books at this moment."""
        return self._books.stats(
            self._clock.now_s(), in_flight=self._worker.invoking, callbacks_in_flight=self._worker.posting
        )

    def forget(self, key: str) -> None:
        """A function was removed: its counts go as soon as none of its calls is in the queue, in memory and on disk.

        A function of the same name that is there by then keeps them. Call it on the loop, after the removal.
        """
        self._leaving.add(key)
        self._settle(key)

    def _settle(self, key: str) -> None:
        if key not in self._leaving or not self._open or self._books.waits(key):
            return
        self._leaving.discard(key)
        if self._find(key) is None:
            self._books.forget(key)
            self._spawn(self._forgotten(key, self._store.forget(key)))

    async def _forgotten(self, key: str, on_disk: asyncio.Future[None]) -> None:
        try:
            await on_disk
        except StateError as error:
            LOG.error("the counts of %s stay on disk until the next start: %s", key, error)  # noqa: TRY400

    # Admission -------------------------------------------------------------------------------------------------------

    def __call__(self, exchange: Exchange) -> None:
        """Take a request whose path begins with `/async-function/`."""
        function = self.door(exchange)
        if function is None:
            return
        rest = exchange.path.removeprefix(PREFIX).partition("/")[2]
        if exchange.method == "DELETE":
            self._cancel(exchange, function, unquote(rest))
        elif not self._open:
            self._refuse(exchange, function, 503, "the provider is stopping or starting: try again", b"1")
        else:
            self._take(exchange, function, f"/{rest}?{exchange.query}" if exchange.query else f"/{rest}")

    def door(self, exchange: Exchange) -> FunctionState | None:
        """The function that is asked for; None when the answer is no already: what is wrong is in the head.

        Looks at no body, so that nobody's is kept who may not call.
        """
        segment = exchange.path.removeprefix(PREFIX).partition("/")[0]
        function = self._find(function_key(segment)) if segment else None
        if function is None:
            exchange.text(404, f"function {segment!r} does not exist", [INTERNAL])
        elif exchange.method not in ("POST", "DELETE"):
            sentence = f"{exchange.method} is not allowed; POST queues a call, DELETE with its id cancels it"
            exchange.text(405, sentence, [(b"allow", b"POST, DELETE"), INTERNAL])
        elif function.tokens and not auth.bears(exchange.header(b"authorization"), function.tokens):
            exchange.text(401, f"{function.key} asks for a token", [(b"www-authenticate", b"Bearer"), INTERNAL])
        else:
            return function
        return None

    def _take(self, exchange: Exchange, function: FunctionState, path: str) -> None:
        size_bytes, most_bytes = len(exchange.body), self._limits.body_max_bytes
        if size_bytes > most_bytes:
            sentence = f"the body has {size_bytes} bytes; a queued call may have {most_bytes}"
            self._refuse(exchange, function, 413, sentence)
            return
        url = (exchange.header(b"x-callback-url") or b"").decode("latin-1")
        try:
            target = self._callbacks.check(url) if url else None
            key = async_policy.idempotency_key(exchange.header(b"idempotency-key"))
        except InvalidInput as fault:
            self._refuse(exchange, function, 400, str(fault))
            return
        digest = async_policy.digest(path, exchange.body) if key else b""
        known = self._books.keyed(function.key, key) if key else None
        if known is not None and not known.ended:
            self._said_again(exchange, function, known, digest)
            return
        full = self._books.full(function.key, size_bytes)
        if full is not None:
            self._refuse(exchange, function, 429, full, _FULL_RETRY_S)
            return
        id_ = (sane_call_id(exchange.header(b"x-call-id")) or str(uuid.uuid4()).encode()).decode("ascii")
        call = QueuedCall(
            seq=self._next_seq, function=function.key, id=id_, accepted_ns=int(self._clock.wall_s() * 1e9),
            callback=url, size_bytes=size_bytes, idempotency_key=key, digest=digest,
        )  # fmt: skip
        self._next_seq += 1
        # Where a token is asked for, every Authorization ends here.
        ours = (lambda _: True) if function.tokens else self._ours
        headers = async_policy.request_headers(exchange.headers, exchange.peer, ours)
        request = StoredRequest(target=path, headers=headers, body=bytes(exchange.body))
        now_s = self._clock.now_s()
        ticket = Ticket(call=call, target=target, accepted_s=now_s, since_s=now_s)
        self._books.add(ticket)
        self._spawn(self._accept(exchange, function, ticket, request))

    async def _accept(
        self, exchange: Exchange, function: FunctionState, ticket: Ticket, request: StoredRequest
    ) -> None:
        try:
            await self._store.accept(ticket.call, request)
        except StateError as error:
            LOG.error("a call of %s is refused: %s", function.key, error)  # noqa: TRY400 - the disk's fault, not ours
            self._refuse_unstored(exchange, function)
            self._books.remove(ticket)
            ticket.decided.set()
            return
        self._books.count(function.key, Count.ACCEPTED)
        ticket.accepted = True
        ticket.decided.set()
        exchange.respond(202, headers=trace(ticket.call))
        self._worker.enqueue(ticket)

    def _said_again(self, exchange: Exchange, function: FunctionState, known: Ticket, digest: bytes) -> None:
        """A call whose idempotency key is in the queue already."""
        if known.call.digest == digest:
            self._spawn(self._same_answer(exchange, function, known))
            return
        sentence = (
            f"a call of {function.key} with this Idempotency-Key is in the queue, and had another path, query or body;"
            " a new call needs a key of its own"
        )
        self._refuse(exchange, function, 409, sentence)

    async def _same_answer(self, exchange: Exchange, function: FunctionState, known: Ticket) -> None:
        """What the first one was told, once it was."""
        await known.decided.wait()
        if known.accepted:
            exchange.respond(202, headers=trace(known.call))
        else:
            self._refuse_unstored(exchange, function)

    def _cancel(self, exchange: Exchange, function: FunctionState, id_: str) -> None:
        """Cancel all calls that have an id."""
        tickets = [one for one in self._books.traced(function.key, id_) if one.accepted and not one.ended]
        if not tickets:
            exchange.text(404, f"no call {id_!r} of {function.key} waits or runs", [INTERNAL])
            return
        for ticket in tickets:
            ticket.ended = True
        self._spawn(self._cancelled(exchange, tickets))

    async def _cancelled(self, exchange: Exchange, tickets: Sequence[Ticket]) -> None:
        for ticket in tickets:
            if ticket.task is not None:
                ticket.task.cancel()
        gone = [self._store.end(ticket.call, Count.CANCELLED) for ticket in tickets]
        faults = [fault for fault in await asyncio.gather(*gone, return_exceptions=True) if fault is not None]
        for ticket, end in zip(tickets, gone, strict=True):
            if end.exception() is None:
                self._worker.ended(ticket, Count.CANCELLED)
                continue
            ticket.ended = False
            if not ticket.queued:
                self._worker.enqueue(ticket)
        function = tickets[0].call.function
        if faults:
            LOG.error("%d call(s) of %s could not be cancelled: %s", len(faults), function, faults[0])
            sentence = f"{len(faults)} of {len(tickets)} call(s) could not be cancelled: the queue's disk fails"
            exchange.text(503, sentence, [INTERNAL])
        else:
            exchange.respond(202, headers=trace(tickets[0].call))

    def _refuse(
        self, exchange: Exchange, function: FunctionState, status: int, sentence: str, retry_after: bytes | None = None
    ) -> None:
        self._books.refuse(function.key)
        headers = [INTERNAL] if retry_after is None else [INTERNAL, (b"retry-after", retry_after)]
        exchange.text(status, sentence, headers)

    def _refuse_unstored(self, exchange: Exchange, function: FunctionState) -> None:
        sentence = "the call could not be stored: the queue's disk is full or fails; try again later"
        self._refuse(exchange, function, 503, sentence, _FULL_RETRY_S)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _target_again(call: QueuedCall) -> Target | None:
    """Where the callback of a call from the file goes. Whether that is allowed is judged when it is connected to."""
    try:
        return parse_url(call.callback) if call.callback else None
    except InvalidInput as fault:
        LOG.error("the callback of call %s of %s is dropped: %s", call.id, call.function, fault)  # noqa: TRY400
        return None
