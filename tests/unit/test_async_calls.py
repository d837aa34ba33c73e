"""The queue of asynchronous calls at work: a real store, scripted functions and targets, no sockets."""

import asyncio
import logging
from collections import defaultdict
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest

from infless_core.clock import SystemClock
from infless_core.errors import StateError
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
            said = self.script[function.key].pop(0) if self.script[function.key] else answer()
            if isinstance(said, Exception):
                raise said
            said.body = said.body[:answer_max_bytes]
            return said
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
        await asyncio.wait_for(exchange.answered.wait(), 10)
        return exchange

    def book(self, key="f.openfaas-fn"):
        """What the books say of a function."""
        return next(one for one in self.calls.stats().functions if one.function == key)

    async def until(self, true):
        """Wait for what other tasks do."""
        async with asyncio.timeout(10):
            while not true():
                await asyncio.sleep(0.001)

    async def until_empty(self):
        """Wait until nothing is left in the queue."""
        await self.until(lambda: not any(one.waiting for one in self.calls.stats().functions))
        for one in self.calls.stats().functions:
            assert one.accepted == one.done + one.failed + one.cancelled


@pytest.fixture
def world(tmp_path):
    """A new one."""
    return World(tmp_path / "queue.sqlite")


def test_a_call_is_accepted_run_and_told(world):
    """202 without a body and with both trace headers; the function and the target get theirs."""

    async def run():
        async with world.open():
            world.script["f.openfaas-fn"] = [
                answer(418, b"tea", [(b"x-of", b"f"), (b"connection", b"x-hop"), (b"x-hop", b"1")])
            ]
            accepted = await world.ask("f/some/path", URL, (b"host", b"h"), (b"x-mine", b"1"), query="a=%20b")
            await world.until_empty()
            return accepted

    accepted = asyncio.run(run())
    assert (accepted.status, accepted.text_) == (202, "")
    call_id, start = accepted.told[b"x-call-id"], accepted.told[b"x-start-time"]
    assert len(call_id) == 36
    [invoked] = world.invoked
    assert (invoked.method, invoked.target, invoked.body) == ("POST", "/some/path?a=%20b", b"in")
    assert dict(invoked.headers) == {
        b"host": b"h", b"x-mine": b"1", b"x-forwarded-host": b"h", b"x-forwarded-for": b"192.0.2.7:1000",
        b"x-call-id": call_id, b"x-start-time": start,
    }  # fmt: skip
    [posted] = world.posted
    assert (posted.target.origin, posted.target.path, posted.body) == ("target.example:443", "/done?key=hidden", b"tea")
    assert posted.headers == {
        b"x-of": b"f", b"x-call-id": call_id, b"x-start-time": start, b"x-function-name": b"f",
        b"x-function-status": b"418", b"x-duration-seconds": b"0.250000",
    }  # fmt: skip
    assert (world.book().done, world.book().callbacks_ok, world.book().retried) == (1, 1, 0)


@pytest.mark.parametrize("path", ["f", "f/", "f.openfaas-fn", "f.openfaas-fn/x"])
def test_every_form_of_the_path_means_the_function(world, path):
    """With and without the namespace, a slash, a rest."""

    async def run():
        async with world.open():
            assert (await world.ask(path)).status == 202
            await world.until_empty()

    asyncio.run(run())
    assert world.invoked[0].target == f"/{path.partition('/')[2]}"


@pytest.mark.parametrize(
    ("request_", "status", "sentence"),
    [
        ({"path": "nobody"}, 404, "'nobody' does not exist"),
        ({"path": ""}, 404, "does not exist"),
        ({"path": ".openfaas-fn"}, 404, "does not exist"),
        ({"path": "f", "method": "GET"}, 405, "GET is not allowed"),
        ({"path": "h"}, 401, "asks for a token"),
        ({"path": "h/x", "method": "DELETE"}, 401, "asks for a token"),
        ({"path": "f", "body": bytes(101)}, 413, "101 bytes; a queued call may have 100"),
        ({"path": "f", "header": b"ftp://t/"}, 400, "http:// or https://"),
        ({"path": "f", "header": b"http://127.0.0.1/"}, 400, "not a public one"),
        ({"path": "f/unknown", "method": "DELETE"}, 404, "no call 'unknown'"),
        ({"path": "f", "method": "DELETE"}, 404, "no call ''"),
    ],
)
def test_what_cannot_be_queued_is_refused_with_a_sentence(world, request_, status, sentence):
    """And nothing is kept of it."""

    async def run():
        async with world.open(body_max_bytes=100):
            request = dict(request_)
            headers = [(b"x-callback-url", request.pop("header"))] if "header" in request else []
            told = await world.ask(request.pop("path"), *headers, **request)
            assert told.status == status
            assert sentence in told.text_
            assert told.told[b"x-openfaas-internal"] == b"proxy"
            assert all(one.accepted == one.waiting == 0 for one in world.calls.stats().functions)

    asyncio.run(run())
    assert world.invoked == []


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        ({"calls_per_function_max": 2}, "2 calls of f.openfaas-fn wait"),
        ({"calls_max": 2}, "2 calls wait"),
        ({"bytes_max": 5}, "5 bytes together"),
    ],
)
def test_a_full_queue_says_when_to_come_back(world, limits, sentence):
    """429 with Retry-After, counted; and there is room again when a call has ended."""

    async def run():
        world.gates["f.openfaas-fn"] = asyncio.Event()
        async with world.open(**limits):
            answers = await asyncio.gather(*(world.ask("f") for _ in range(5)))
            assert sorted(one.status for one in answers) == [202, 202, 429, 429, 429]
            refused = next(one for one in answers if one.status == 429)
            assert sentence in refused.text_
            assert int(refused.told[b"retry-after"]) > 0
            assert (world.book().refused, world.book().waiting) == (3, 2)
            world.gates["f.openfaas-fn"].set()
            await world.until_empty()
            assert (await world.ask("f")).status == 202

    asyncio.run(run())


def test_a_call_id_is_a_trace_and_may_come_twice(world):
    """A function that calls on with its own id loses nothing, nor does who is guessed: each is a call of its own."""

    async def run():
        async with world.open():
            same = (b"x-call-id", b"mine")
            told = await asyncio.gather(*(world.ask("f", same, body=body) for body in (b"1", b"2", b"2")))
            assert [(one.status, one.told[b"x-call-id"]) for one in told] == [(202, b"mine")] * 3
            await world.until_empty()
            assert world.book().done == 3

    asyncio.run(run())
    assert sorted(one.body for one in world.invoked) == [b"1", b"2", b"2"]
    assert {dict(one.headers)[b"x-call-id"] for one in world.invoked} == {b"mine"}


def test_a_call_with_a_key_is_not_doubled(world):
    """Whether the first is answered yet or not, and over a restart; another function may have the same key."""
    key = (b"idempotency-key", b"order 7")

    async def run():
        world.gates["f.openfaas-fn"] = asyncio.Event()
        async with world.open(close_grace_s=0.01):
            first, again, other = await asyncio.gather(*(world.ask(name, key) for name in "ffg"))
            again_later = await world.ask("f", key, (b"x-call-id", b"another"))
            assert {first.status, again.status, other.status} == {202}
            assert first.told == again.told == again_later.told
            assert other.told[b"x-call-id"] != first.told[b"x-call-id"]
        async with world.open():
            assert (await world.ask("f", key)).told == first.told
            assert (world.book().accepted, world.book().waiting) == (1, 1)
            world.gates["f.openfaas-fn"].set()
            await world.until_empty()
            assert (await world.ask("f", key, body=b"a new one")).status == 202
            await world.until_empty()
            assert world.book().done == 2

    asyncio.run(run())


@pytest.mark.parametrize("other", [{"path": "f/x"}, {"query": "x"}, {"body": b"other"}])
def test_a_key_that_means_something_else_is_refused(world, other):
    """409: what is accepted is never thrown away; with a key of its own it is taken."""
    key = (b"idempotency-key", b"k")

    async def run():
        world.gates["f.openfaas-fn"] = asyncio.Event()
        async with world.open():
            await world.ask("f", key)
            asked = {"path": "f", **other}
            told = await world.ask(asked["path"], key, **{name: asked[name] for name in asked if name != "path"})
            assert told.status == 409
            assert "Idempotency-Key is in the queue" in told.text_
            assert (world.book().waiting, world.book().refused) == (1, 1)
            world.gates["f.openfaas-fn"].set()
            await world.until_empty()

    asyncio.run(run())
    assert len(world.invoked) == 1


@pytest.mark.parametrize("key", [b"", b"x" * 129, b"\xe4", b"a\tb"])
def test_a_key_that_is_none_is_refused(world, key):
    """Whoever gives one relies on it."""

    async def run():
        async with world.open():
            told = await world.ask("f", (b"idempotency-key", key))
            assert told.status == 400
            assert "Idempotency-Key: 1 to 128 printable" in told.text_

    asyncio.run(run())
    assert world.invoked == []


def test_a_call_that_is_being_cancelled_leaves_its_key(world):
    """The next one with it is a new call, not a part of what ends."""
    key = (b"idempotency-key", b"k")

    async def run():
        world.gates["f.openfaas-fn"] = asyncio.Event()
        async with world.open():
            await world.ask("f", key, (b"x-call-id", b"first"))
            gone = world.send("f/first", method="DELETE")
            new = await world.ask("f", key, (b"x-call-id", b"second"))
            assert new.told[b"x-call-id"] == b"second"
            await gone.answered.wait()
            assert (await world.ask("f", key)).told[b"x-call-id"] == b"second"
            world.gates["f.openfaas-fn"].set()
            await world.until_empty()
            assert (world.book().cancelled, world.book().done) == (1, 1)

    asyncio.run(run())


def test_a_cancel_takes_all_calls_of_an_id(world):
    """Of that function; those of another function and of another id go on."""

    async def run():
        world.gates["f.openfaas-fn"] = world.gates["g.openfaas-fn"] = asyncio.Event()
        async with world.open(in_flight_per_function_max=1):
            for path, id_ in (("f", b"a"), ("f", b"b"), ("f", b"a"), ("g", b"a")):
                await world.ask(path, (b"x-call-id", id_))
            told = await world.ask("f/a", method="DELETE")
            assert (told.status, told.told[b"x-call-id"]) == (202, b"a")
            assert (await world.ask("f/a", method="DELETE")).status == 404
            assert (world.book().cancelled, world.book().waiting) == (2, 1)
            assert world.book("g.openfaas-fn").waiting == 1
            world.gates["f.openfaas-fn"].set()
            await world.until_empty()
            assert (world.book().done, world.book("g.openfaas-fn").done) == (1, 1)

    asyncio.run(run())


def functions(world):
    """Those that have books."""
    return [one.function for one in world.calls.stats().functions]


def test_a_removed_functions_counts_go(world):
    """In memory and on disk, when the last of its calls is done; what others have stays."""

    async def run():
        gate = world.gates["f.openfaas-fn"] = asyncio.Event()
        async with world.open(close_grace_s=0.01) as calls:
            await world.ask("f")
            await world.ask("g")
            await world.until(lambda: world.book("g.openfaas-fn").done == 1)
            tokens = world.tokens.pop("f.openfaas-fn")
            calls.forget("f.openfaas-fn")
            assert functions(world) == ["f.openfaas-fn", "g.openfaas-fn"]
            gate.set()
            await world.until(lambda: functions(world) == ["g.openfaas-fn"])
            world.tokens["f.openfaas-fn"] = tokens
            await world.ask("f")
            await world.until_empty()
            assert world.book().accepted == 1
            del world.tokens["f.openfaas-fn"]
            calls.forget("f.openfaas-fn")
            assert functions(world) == ["g.openfaas-fn"]
        async with world.open():
            assert functions(world) == ["g.openfaas-fn"]

    asyncio.run(run())


def test_a_function_that_came_back_keeps_its_counts(world):
    """Its calls went on meanwhile; the accounts are one."""

    async def run():
        gate = world.gates["f.openfaas-fn"] = asyncio.Event()
        async with world.open() as calls:
            await world.ask("f")
            tokens = world.tokens.pop("f.openfaas-fn")
            calls.forget("f.openfaas-fn")
            world.tokens["f.openfaas-fn"] = tokens
            gate.set()
            await world.until_empty()
            assert world.book().done == 1

    asyncio.run(run())


def test_counts_of_what_was_removed_in_an_earlier_run_go_at_the_start(world):
    """A provider that was killed in between leaves them."""

    async def run():
        async with world.open():
            await world.ask("f")
            await world.until_empty()
        del world.tokens["f.openfaas-fn"]
        async with world.open():
            assert functions(world) == []
        async with world.open():
            assert await world.store._db.do(lambda db: db.execute("SELECT * FROM book").fetchall()) == []

    asyncio.run(run())


@pytest.mark.parametrize("id_", [b"", b"two words", b"x" * 129, b"\xe4"])
def test_a_call_id_that_is_none_is_replaced(world, id_):
    """It goes into headers and logs."""

    async def run():
        async with world.open():
            told = await world.ask("f", (b"x-call-id", id_))
            assert told.status == 202
            assert told.told[b"x-call-id"] != id_

    asyncio.run(run())


def test_the_functions_token_stays_here(world, caplog):
    """It neither reaches the function nor a log; the handler's own Authorization of an open function does reach it."""
    caplog.set_level(logging.DEBUG, "infless")

    async def run():
        async with world.open():
            world.script["h.openfaas-fn"] = [RuntimeError("boom")]
            assert (await world.ask("h", (b"authorization", b"Bearer t0k"))).status == 202
            assert (await world.ask("f", (b"authorization", b"Bearer t0k"))).status == 202
            await world.until_empty()

    asyncio.run(run())
    seen = {one.key: dict(one.headers).get(b"authorization") for one in world.invoked}
    assert seen == {"h.openfaas-fn": None, "f.openfaas-fn": b"Bearer t0k"}
    assert "boom" in caplog.text
    assert "t0k" not in caplog.text


def test_what_is_meant_for_the_control_plane_stays_here(world):
    """Each such header, also a second one and a wrong guess; nothing of it is on the disk. What is not ours goes on."""

    async def run():
        world.gates["f.openfaas-fn"] = asyncio.Event()
        async with world.open():
            values = (b"Basic theirs", b"Basic ours:right", b"Basic ours:wrong")
            await world.ask("f", *((b"authorization", value) for value in values))
            kept = await world.store._db.do(lambda db: db.execute("SELECT headers FROM request").fetchone()[0])
            assert b"ours:" not in kept
            world.gates["f.openfaas-fn"].set()
            await world.until_empty()

    asyncio.run(run())
    assert [value for name, value in world.invoked[0].headers if name == b"authorization"] == [b"Basic theirs"]


def test_not_now_is_tried_again(world):
    """Busy answers, and a fault of the provider's own; then the answer counts, and the callback says which."""

    async def run():
        async with world.open():
            world.script["f.openfaas-fn"] = [answer(503), RuntimeError("of ours"), answer(200, b"at last")]
            await world.ask("f", URL)
            await world.until_empty()

    asyncio.run(run())
    assert len(world.invoked) == 3
    assert [(one.headers[b"x-function-status"], one.body) for one in world.posted] == [(b"200", b"at last")]
    assert (world.book().retried, world.book().done) == (2, 1)


def test_a_handlers_500_is_its_answer(world):
    """It is delivered, not repeated."""

    async def run():
        async with world.open():
            world.script["f.openfaas-fn"] = [answer(500, b"my fault")]
            await world.ask("f", URL)
            await world.until_empty()

    asyncio.run(run())
    assert len(world.invoked) == 1
    assert world.posted[0].headers[b"x-function-status"] == b"500"
    assert (world.book().done, world.book().failed) == (1, 0)


@pytest.mark.parametrize("headers", [(), (URL,)])
def test_what_never_works_is_reported_lost(world, headers, caplog):
    """With the last status in the callback, if there is one, an event in the log, and in the books."""

    async def run():
        async with world.open():
            world.script["f.openfaas-fn"] = [answer(503), answer(502), answer(504)]
            await world.ask("f", *headers)
            await world.until_empty()

    asyncio.run(run())
    assert len(world.invoked) == 3
    assert [one.headers[b"x-function-status"] for one in world.posted] == [b"504"] * len(headers)
    assert (world.book().failed, world.book().done, world.book().retried) == (1, 0, 2)
    assert "has failed with 504 after 3 tries" in caplog.text


def test_calls_of_a_removed_function_end(world):
    """As failed with 404, and their callbacks say so."""

    async def run():
        async with world.open(in_flight_max=1, in_flight_per_function_max=1):
            gate = world.gates["g.openfaas-fn"] = asyncio.Event()
            await world.ask("g")
            await world.ask("f", URL)
            del world.tokens["f.openfaas-fn"]
            gate.set()
            await world.until_empty()

    asyncio.run(run())
    assert [one.key for one in world.invoked] == ["g.openfaas-fn"]
    assert world.posted[0].headers[b"x-function-status"] == b"404"
    assert b"does not exist any more" in world.posted[0].body
    assert world.book().failed == 1


def test_a_callback_is_tried_again_and_the_function_is_not(world):
    """Busy targets and silence; then it has it."""

    async def run():
        async with world.open():
            world.replies = [503, Delivery(status=0, fault="silence"), 204]
            await world.ask("f", URL)
            await world.until_empty()

    asyncio.run(run())
    assert (len(world.invoked), len(world.posted)) == (1, 3)
    assert (world.book().callbacks_ok, world.book().retried, world.book().done) == (1, 0, 1)


@pytest.mark.parametrize(
    ("replies", "tries", "why"),
    [
        ([404], 1, "answers 404"),
        ([302], 1, "answers 302"),
        ([500, 500, 500], 3, "answers 500"),
        ([Delivery(status=0, fault="not allowed", forbidden=True)], 1, "not allowed"),
    ],
)
def test_a_callback_is_given_up(world, replies, tries, why, caplog):
    """The call is done nevertheless; the log says why without the URL's path, which may hold a secret."""

    async def run():
        async with world.open():
            world.replies = list(replies)
            await world.ask("f", URL)
            await world.until_empty()

    asyncio.run(run())
    assert len(world.posted) == tries
    assert (world.book().callbacks_failed, world.book().callbacks_ok, world.book().done) == (1, 0, 1)
    assert why in caplog.text
    assert "hidden" not in caplog.text


def test_a_long_answer_is_cut_and_says_so(world):
    """Half a JSON must not look like a whole one."""

    async def run():
        async with world.open(answer_max_bytes=10):
            world.script["f.openfaas-fn"] = [answer(200, b"0123456789abc")]
            await world.ask("f", URL)
            await world.until_empty()
            await world.ask("f")
            await world.until_empty()

    asyncio.run(run())
    assert [one.most for one in world.invoked] == [10, 0], "without a callback nobody reads it"
    assert world.posted[0].body == b"0123456789"
    assert world.posted[0].headers[b"x-infless-answer-bytes"] == b"13"


def test_a_flood_of_one_function_does_not_starve_another(world):
    """Both limits hold, and the other function's call runs while the flood waits."""

    async def run():
        world.gates["f.openfaas-fn"] = asyncio.Event()
        async with world.open(in_flight_max=4, in_flight_per_function_max=3):
            await asyncio.gather(*(world.ask("f") for _ in range(50)))
            await world.ask("g")
            await world.until(lambda: world.book("g.openfaas-fn").done == 1)
            await world.until(lambda: world.calls.stats().in_flight == 3)
            assert world.running["f.openfaas-fn"] == 3
            world.gates["f.openfaas-fn"].set()
            await world.until_empty()

    asyncio.run(run())
    assert world.most == {"f.openfaas-fn": 3, "g.openfaas-fn": 1}
    assert world.book().done == 50


def test_a_slow_target_holds_up_no_invocation(world):
    """Callbacks run in a lane of their own, a few to each host."""
    gate = asyncio.Event()

    async def post(target, headers, body):
        if target.host == "slow.example":
            await gate.wait()
        return Delivery(status=200)

    async def run():
        world.post = post
        async with world.open(callbacks_max=4, callbacks_per_host_max=2, in_flight_max=2):
            slow, fast = (b"x-callback-url", b"http://slow.example/"), (b"x-callback-url", b"http://fast.example/")
            await asyncio.gather(*(world.ask("f", slow) for _ in range(20)))
            await world.ask("g", fast)
            await world.until(lambda: world.book("g.openfaas-fn").callbacks_ok == 1)
            await world.until(lambda: len(world.invoked) == 21 and world.calls.stats().in_flight == 0)
            await world.until(lambda: world.calls.stats().callbacks_in_flight == 2)
            assert len(world.invoked) == 21
            gate.set()
            await world.until_empty()

    asyncio.run(run())


def test_a_waiting_and_a_running_call_can_be_cancelled(world):
    """202 once it is off the disk; then it is unknown. The running one is given up, no callback is sent."""

    async def run():
        world.gates["f.openfaas-fn"] = asyncio.Event()
        async with world.open(in_flight_max=1, in_flight_per_function_max=1):
            for id_ in (b"runs", b"waits/1"):
                await world.ask("f", URL, (b"x-call-id", id_))
            await world.until(lambda: world.running["f.openfaas-fn"] == 1)
            for path in ("f/waits%2F1", "f/runs"):
                assert (await world.ask(path, method="DELETE")).status == 202
                assert (await world.ask(path, method="DELETE")).status == 404
            await world.until_empty()
            await world.until(lambda: world.running["f.openfaas-fn"] == 0)
            assert world.book().cancelled == 2
        async with world.open():
            assert world.book().waiting == 0

    asyncio.run(run())
    assert (len(world.invoked), world.posted) == (1, [])


def test_a_call_whose_callback_waits_can_be_cancelled(world):
    """Nobody gets it any more."""
    slow = RetryRules(attempts_max=3, age_max_s=600, backoff_s=60, backoff_max_s=60)

    async def run():
        async with world.open(callbacks=slow):
            world.replies = [503]
            await world.ask("f", URL, (b"x-call-id", b"a"))
            await world.until(lambda: len(world.posted) == 1)
            assert (await world.ask("f/a", method="DELETE")).status == 202
            await world.until_empty()
            assert (world.book().cancelled, world.book().done) == (1, 0)

    asyncio.run(run())


def test_what_waits_goes_on_after_a_restart(world):
    """At once, whatever it waited for, and with its id, tries and books; a wall clock that has jumped changes nothing."""
    patient = RetryRules(attempts_max=3, age_max_s=600, backoff_s=60, backoff_max_s=60)

    async def run():
        world.gates["g.openfaas-fn"] = asyncio.Event()
        async with world.open(invocations=patient, callbacks=patient, close_grace_s=0.01):
            world.script["f.openfaas-fn"] = [answer(503), answer(200, b"kept")]
            world.replies = [500]
            await world.ask("f", (b"x-call-id", b"busy"))
            await world.until(lambda: world.book().retried == 1)
            await world.ask("f", URL, (b"x-call-id", b"answered"))
            await world.ask("g", (b"x-call-id", b"runs"))
            await world.until(lambda: len(world.posted) == 1)
        refused = world.send("f")
        assert (refused.status, b"retry-after" in refused.told) == (503, True)
        world.gates.clear()
        world.invoked.clear()
        for jump_s in (-1e9, 1e9):  # the second start finds nothing left
            world.clock = SimpleNamespace(
                now_s=SystemClock().now_s, wall_s=lambda by=jump_s: SystemClock().wall_s() + by
            )
            async with world.open():
                await world.until_empty()
                assert (world.book().accepted, world.book().done) == (2, 2)

    asyncio.run(run())
    assert sorted(dict(one.headers)[b"x-call-id"] for one in world.invoked) == [b"busy", b"runs"]
    assert [one.body for one in world.posted] == [b"kept", b"kept"]


def test_close_lets_a_running_call_end(world):
    """Within the grace; what waits stays for the next start."""

    async def run():
        gate = world.gates["f.openfaas-fn"] = asyncio.Event()
        async with world.open(in_flight_max=1, in_flight_per_function_max=1) as calls:
            await asyncio.gather(world.ask("f"), world.ask("f"))
            await world.until(lambda: world.running["f.openfaas-fn"] == 1)
            closing = asyncio.ensure_future(calls.close())
            await asyncio.sleep(0)
            gate.set()
            await closing
            assert (world.book().done, world.book().waiting) == (1, 1)
        assert len(world.invoked) == 1
        async with world.open():
            await world.until_empty()
            assert world.book().done == 2

    asyncio.run(run())


def test_a_disk_that_takes_nothing_is_said_and_survived(world, caplog):
    """503 to who comes, nothing counted; calls that have run wait for the disk and are then taken off."""

    async def run():
        gate = world.gates["f.openfaas-fn"] = asyncio.Event()
        async with world.open():
            await world.ask("f", (b"x-call-id", b"first"))
            await world.until(lambda: world.running["f.openfaas-fn"] == 1)
            for what in ("INSERT", "DELETE"):
                fault = f"CREATE TEMP TRIGGER t{what} BEFORE {what} ON call BEGIN SELECT RAISE(ABORT, 'no room'); END"
                await world.store._db.do(lambda db, fault=fault: db.execute(fault).fetchone())
            told = await world.ask("f")
            assert told.status == 503
            assert "disk is full or fails" in told.text_
            assert str(world.path) not in told.text_
            kept = await world.ask("f/first", method="DELETE")
            assert kept.status == 503
            gate.set()
            await world.until(lambda: "asked again every" in caplog.text)
            assert (world.book().accepted, world.book().waiting, world.book().refused) == (1, 1, 1)
            for what in ("INSERT", "DELETE"):
                await world.store._db.do(lambda db, what=what: db.execute(f"DROP TRIGGER t{what}").fetchone())
            await world.until_empty()
            assert world.book().done == 1

    asyncio.run(run())
    assert caplog.text.count("asked again every") == 1


def test_the_oldest_age_is_told(world):
    """So that an alert can see a queue that stands."""

    async def run():
        world.gates["f.openfaas-fn"] = asyncio.Event()
        async with world.open(close_grace_s=0.01):
            await world.ask("f", body=b"123")
            first = world.book()
            await world.until(lambda: world.book().oldest_age_s > first.oldest_age_s)
            assert (first.waiting, first.waiting_bytes) == (1, 3)

    asyncio.run(run())


def test_a_start_that_cannot_be_says_so(world):
    """Before anything is taken."""
    world.path.write_bytes(b"not a database" * 100)

    async def run():
        with pytest.raises(StateError, match="cannot be used"):
            async with world.open():
                pass
        assert world.send("f").status == 503
        await world.calls.close()

    asyncio.run(run())


@pytest.mark.parametrize("field_", ["calls_max", "in_flight_max", "invoke_timeout_s"])
def test_limits_that_stop_everything_are_none(field_):
    """A 0 here is a typing error."""
    with pytest.raises(ValueError, match=f"{field_} is 0"):
        AsyncLimits(**{field_: 0})
