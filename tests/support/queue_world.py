"""A queue of asynchronous calls at work: a real store, scripted functions and targets, no sockets."""

import asyncio
from collections import defaultdict
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

from infless_core.clock import SystemClock
from infless_provider.async_calls import AsyncCalls
from infless_provider.async_policy import AsyncLimits, RetryRules
from infless_provider.async_store import QueueStore
from infless_provider.callback_policy import CallbackPolicy
from infless_provider.callbacks import Delivery

SOON = RetryRules(attempts_max=3, age_max_s=60, backoff_s=0.001, backoff_max_s=0.002)
LIMITS = AsyncLimits(invocations=SOON, callbacks=SOON, close_grace_s=5, disk_retry_s=0.001)
URL = (b"x-callback-url", b"https://target.example/done?key=hidden")


class FakeExchange:
    """A request, and what it was answered."""

    def __init__(self, path, method, headers, body, query):
        self.path, self.method, self.headers, self.body, self.query = path, method, headers, body, query
        self.peer = "192.0.2.7:1000"
        self.answered = asyncio.Event()

    def header(self, name):
        """The first."""
        return next((value for key, value in self.headers if key == name), None)

    def respond(self, status, body=b"", content_type=b"", headers=()):
        """Remember."""
        assert not self.answered.is_set()
        self.status, self.text_, self.told = status, body.decode(), dict(headers)
        self.answered.set()

    def text(self, status, sentence, headers=()):
        """Remember."""
        self.respond(status, sentence.encode(), b"", headers)


def answer(status=200, body=b"ok", headers=((b"content-type", b"text/plain"),)):
    """The end of an invocation."""
    return SimpleNamespace(status=status, headers=list(headers), body=body, body_bytes=len(body), took_s=0.25)


@dataclass
class World:
    """Functions that answer as told, a target that remembers, and a queue."""

    path: object
    limits: AsyncLimits = LIMITS
    tokens: dict = field(default_factory=lambda: {"f.openfaas-fn": (), "g.openfaas-fn": (), "h.openfaas-fn": (b"t0k",)})
    script: dict = field(default_factory=lambda: defaultdict(list))
    """Answers of a function in turn; then `answer()`."""
    gates: dict = field(default_factory=dict)
    """An invocation waits for its function's event."""
    invoked: list = field(default_factory=list)
    replies: list = field(default_factory=list)
    """Of the target in turn; then 200."""
    posted: list = field(default_factory=list)
    running: dict = field(default_factory=lambda: defaultdict(int))
    most: dict = field(default_factory=lambda: defaultdict(int))
    clock: object = field(default_factory=SystemClock)

    def find(self, key):
        """A function."""
        return SimpleNamespace(key=key, tokens=self.tokens[key]) if key in self.tokens else None

    def ours(self, header):
        """Whether an Authorization is for the control plane."""
        return header.startswith(b"Basic ours:")

    async def invoke(self, function, method, target, headers, body, *, timeout_s, answer_max_bytes):
        """Remember, wait, answer."""
        self.invoked.append(
            SimpleNamespace(
                key=function.key, method=method, target=target, headers=headers, body=body, most=answer_max_bytes
            )
        )
        self.running[function.key] += 1
        self.most[function.key] = max(self.most[function.key], self.running[function.key])
        try:
            if function.key in self.gates:
                await self.gates[function.key].wait()
            return self.script[function.key].pop(0) if self.script[function.key] else answer()
        finally:
            self.running[function.key] -= 1

    def check(self, url):
        """The real policy."""
        return CallbackPolicy().check(url)

    async def post(self, target, headers, body):
        """Remember, reply."""
        self.posted.append(SimpleNamespace(target=target, headers=dict(headers), body=body))
        reply = self.replies.pop(0) if self.replies else 200
        return reply if isinstance(reply, Delivery) else Delivery(status=reply)

    async def close(self):
        """Nothing is open."""

    def watch(self):
        """Let the file write down, with each request and answer, how many bytes of bodies of that kind are in it."""
        script = ["CREATE TEMP TABLE seen (kind, function, bytes)"]
        for kind in ("request", "answer"):
            in_all = f"SELECT '{kind}', '', sum(length(body)) FROM {kind}"
            each = f"SELECT '{kind}', function, sum(length(body)) FROM {kind} JOIN call USING (seq) GROUP BY function"
            note = f"INSERT INTO seen {in_all} UNION ALL {each};"
            script.append(f"CREATE TEMP TRIGGER seen_{kind} AFTER INSERT ON {kind} BEGIN {note} END")
        return self.store._db.do(lambda db: [db.execute(one).fetchone() for one in script])

    async def seen(self):
        """The most bytes since `watch`, by kind and function; all functions together are ''."""
        query = "SELECT kind, function, max(bytes) FROM seen GROUP BY kind, function"
        rows = await self.store._db.do(lambda db: db.execute(query).fetchall())
        return {(kind, function): most_bytes for kind, function, most_bytes in rows}

    @asynccontextmanager
    async def open(self, **more):
        """The queue on this world's file."""
        self.store = QueueStore(self.path)
        limits = replace(self.limits, **more)
        self.calls = AsyncCalls(
            self.store, self.find, self.invoke, self, self.clock, limits, seed=1, ours=self.ours
        )  # fmt: skip
        await self.calls.start()
        try:
            yield self.calls
        finally:
            await self.calls.close()

    def send(self, path="f", *headers, method="POST", body=b"in", query=""):
        """A request that is on its way."""
        exchange = FakeExchange(f"/async-function/{path}", method, [*headers], body, query)
        self.calls(exchange)
        return exchange

    async def ask(self, *args, **kwargs):
        """A request that was answered."""
        exchange = self.send(*args, **kwargs)
        await asyncio.wait_for(exchange.answered.wait(), 60)
        return exchange

    def book(self, key="f.openfaas-fn"):
        """What the books say of a function."""
        return next(one for one in self.calls.stats().functions if one.function == key)

    async def until(self, true):
        """Wait for what other tasks do."""
        async with asyncio.timeout(60):
            while not true():
                await asyncio.sleep(0.001)

    async def until_empty(self):
        """Wait until nothing is left in the queue."""
        await self.until(lambda: not any(one.waiting for one in self.calls.stats().functions))
        for one in self.calls.stats().functions:
            assert one.accepted == one.done + one.failed + one.cancelled
