"""The queue of asynchronous calls at work: a real store, scripted functions and targets, no sockets."""

import asyncio
import logging
from types import SimpleNamespace

import pytest
from queue_world import URL, FakeExchange, World, answer

from infless_core.clock import SystemClock
from infless_core.errors import StateError
from infless_provider.async_policy import AsyncLimits, RetryRules
from infless_provider.callbacks import Delivery


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
        ({"bytes_per_function_max": 5}, "those of one function 5;"),
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


def test_one_functions_bodies_leave_room_for_others(world):
    """A flood of one is refused at its share."""

    async def run():
        world.gates["f.openfaas-fn"] = asyncio.Event()
        async with world.open(bytes_max=8, bytes_per_function_max=4):
            assert [(await world.ask("f")).status for _ in range(3)] == [202, 202, 429]
            assert (await world.ask("g")).status == 202
            world.gates["f.openfaas-fn"].set()
            await world.until_empty()

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
            world.script["h.openfaas-fn"] = [answer(503)]
            assert (await world.ask("h", (b"authorization", b"Bearer t0k"))).status == 202
            assert (await world.ask("f", (b"authorization", b"Bearer t0k"))).status == 202
            await world.until_empty()

    asyncio.run(run())
    seen = {one.key: dict(one.headers).get(b"authorization") for one in world.invoked}
    assert seen == {"h.openfaas-fn": None, "f.openfaas-fn": b"Bearer t0k"}
    assert len([one for one in world.invoked if one.key == "h.openfaas-fn"]) == 2
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
    """Busy answers; then the answer counts, and the callback says which."""

    async def run():
        async with world.open():
            world.script["f.openfaas-fn"] = [answer(503), answer(429), answer(200, b"at last")]
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


def test_answers_that_nobody_takes_fill_their_functions_share(world):
    """Then its next invocation waits, not another function's; and goes on when a callback has ended."""
    gate, host = asyncio.Event(), b"http://%b.example/"

    async def post(target, headers, body):
        if target.host == "dead.example":
            await gate.wait()
        return Delivery(status=200)

    async def run():
        world.post = post
        dead, well = (b"x-callback-url", host % b"dead"), (b"x-callback-url", host % b"well")
        world.script["f.openfaas-fn"] = [answer(200, bytes(9)) for _ in range(20)]
        async with world.open(
            answer_max_bytes=10, answers_bytes_max=100, answers_bytes_per_function_max=50, callbacks_max=30,
            callbacks_per_host_max=20, callbacks_per_function_max=20,
        ):  # fmt: skip
            await world.watch()
            await asyncio.gather(*(world.ask("f", dead) for _ in range(20)), *(world.ask("g", well) for _ in range(20)))
            await world.until(lambda: world.book("g.openfaas-fn").callbacks_ok == 20)
            # 4 answers of 9 bytes leave room for one more of 10, a fifth does not.
            await world.until(lambda: world.calls.stats().callbacks_in_flight == 5)
            await world.until(lambda: world.calls.stats().in_flight == 0)
            assert len([one for one in world.invoked if one.key == "f.openfaas-fn"]) == 5
            gate.set()
            await world.until_empty()
            assert world.book().callbacks_ok == 20
            seen = await world.seen()
            assert seen["answer", "f.openfaas-fn"] <= 50
            assert seen["answer", ""] <= 100

    asyncio.run(run())


def test_answers_that_nobody_gets_need_no_room(world):
    """Calls without a callback run while others wait for room; a call that is cancelled makes some."""
    gate = asyncio.Event()

    async def post(target, headers, body):
        await gate.wait()
        return Delivery(status=200)

    async def run():
        world.post = post
        async with world.open(answer_max_bytes=2, answers_bytes_max=2):
            await world.ask("f", URL, (b"x-call-id", b"first"))
            await world.until(lambda: world.calls.stats().callbacks_in_flight == 1)
            await world.ask("f", URL, (b"x-call-id", b"given-up"))
            await world.ask("f")
            await world.ask("f", URL)
            await world.ask("g")
            await world.until(lambda: world.book("g.openfaas-fn").done == 1)
            assert [one.key for one in world.invoked] == ["f.openfaas-fn", "g.openfaas-fn"]
            assert (await world.ask("f/given-up", method="DELETE")).status == 202
            await world.ask("g")
            await world.until(lambda: world.book().done == 1)
            assert world.book().waiting == 2
            assert (await world.ask("f/first", method="DELETE")).status == 202
            await world.until(lambda: len(world.invoked) == 5)
            gate.set()
            await world.until_empty()

    asyncio.run(run())


def test_a_cancel_at_the_very_moment_of_a_turn_keeps_no_room(world):
    """The call has room for its answer, and its task has not begun."""

    async def run():
        loop, cancels = asyncio.get_running_loop(), []
        async with world.open(answer_max_bytes=2, answers_bytes_max=2):
            exchange = FakeExchange("/async-function/f", "POST", [URL, (b"x-call-id", b"a")], b"in", "")

            def respond(*args, **more):
                loop.call_soon(lambda: cancels.append(world.send("f/a", method="DELETE")))
                FakeExchange.respond(exchange, *args, **more)

            exchange.respond = respond
            world.calls(exchange)
            await exchange.answered.wait()
            await world.ask("f", URL)
            await world.until_empty()
            assert (cancels[0].status, world.book().cancelled, world.book().done) == (202, 1, 1)

    asyncio.run(run())
    assert len(world.invoked) == 1


def test_many_hosts_that_never_answer_leave_room_for_others(world):
    """A name server gives one function as many as it likes: it has a share of the callbacks, too."""
    gate = asyncio.Event()

    async def post(target, headers, body):
        if target.host.startswith("dead-"):
            await gate.wait()
        return Delivery(status=200)

    async def run():
        world.post = post
        async with world.open(callbacks_max=4, callbacks_per_function_max=3, callbacks_per_host_max=2):
            for number in range(10):
                await world.ask("f", (b"x-callback-url", b"http://dead-%d.example/" % number))
            await world.until(lambda: world.calls.stats().callbacks_in_flight >= 3)
            await world.ask("g", URL)
            await world.until(lambda: world.book("g.openfaas-fn").callbacks_ok == 1)
            await world.until(lambda: world.calls.stats().callbacks_in_flight == 3)
            gate.set()
            await world.until_empty()

    asyncio.run(run())


def test_a_cancel_that_meets_an_answer_and_a_bad_disk_loses_nothing(world):
    """The answer is on the disk, its call cannot be removed: the call goes on with the answer, and not for ever."""
    fault = "CREATE TEMP TRIGGER t BEFORE DELETE ON call BEGIN SELECT RAISE(ABORT, 'no room'); END"

    async def run():
        async with world.open():
            await world.store._db.do(lambda db: db.execute(fault).fetchone())
            answered, cancels = world.store.answered, []

            def met(call, kept):
                stored = answered(call, kept)
                cancels.append(world.send("f/mine", method="DELETE"))
                return stored

            world.store.answered = met
            await world.ask("f", URL, (b"x-call-id", b"mine"))
            await world.until(lambda: cancels and cancels[0].answered.is_set())
            assert cancels[0].status == 503
            await world.store._db.do(lambda db: db.execute("DROP TRIGGER t").fetchone())
            await world.until_empty()
            assert (world.book().done, world.book().callbacks_ok, world.book().cancelled) == (1, 1, 0)

    asyncio.run(run())
    assert (len(world.invoked), [one.body for one in world.posted]) == (1, [b"ok"])


def test_a_call_whose_rows_are_gone_has_failed(world, caplog):
    """Somebody has mended the file: that is no disk that will work again."""
    patient = RetryRules(attempts_max=3, age_max_s=600, backoff_s=60, backoff_max_s=60)

    async def run():
        async with world.open(invocations=patient, callbacks=patient):
            world.script["f.openfaas-fn"] = [answer(503)]
            world.replies = [503]
            await world.ask("f")
            await world.ask("g", URL)
            await world.until(lambda: world.book().retried == 1 and len(world.posted) == 1)
            for table in ("request", "answer"):
                await world.store._db.do(lambda db, table=table: db.execute(f"DELETE FROM {table}").fetchone())
        async with world.open():
            await world.until_empty()
            lost = world.book("g.openfaas-fn")
            assert (world.book().failed, lost.failed, lost.callbacks_failed) == (1, 1, 1)

    asyncio.run(run())
    assert caplog.text.count("the queue's file has no more of it") == 2


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


@pytest.mark.parametrize("room", ["answers_bytes_max", "answers_bytes_per_function_max"])
def test_an_answer_that_fits_nowhere_is_a_limit_that_stops_everything(room):
    """No invocation would ever begin."""
    with pytest.raises(ValueError, match="answer_max_bytes is 11, but all answers may have 10"):
        AsyncLimits(**{"answer_max_bytes": 11, room: 10})
