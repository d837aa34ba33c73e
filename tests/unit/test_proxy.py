"""The invocation path's decisions: who is asked, what is tried again, and what a client is told when nothing helps."""

import asyncio
import base64
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest

from infless_core.lifecycle import Event
from infless_provider import dispatching
from infless_provider.auth import Credentials
from infless_provider.forwarding import CallIds, answer_headers, passage_of, refuses
from infless_provider.metrics import Metrics
from infless_provider.proxy import Proxy
from infless_provider.upstream import Broken, NotSent, TimedOut
from infless_watchdog.app import _RETRY, Watchdog, _loading
from infless_watchdog.calls import Head
from infless_watchdog.pipeline import Pipeline


class Exchange:
    """A request, and what was answered."""

    def __init__(self, path="/function/f", method="POST", headers=(), query=""):
        self.head, self.method, self.body_stream = Head(method, path, query, list(headers)), method, None
        self.body, self.peer, self.status, self.done, self.cut = b"body", "1.2.3.4:5", 0, False, False
        self.answer, self.sent, self.on_gone, self.path = b"", {}, None, path

    def respond(self, status, body, content_type, headers):
        """At once."""
        self.status, self.answer, self.done = status, body, True
        self.sent = {**dict(headers), b"content-type": content_type}

    def text(self, status, sentence, headers=()):
        """A sentence."""
        self.respond(status, sentence.encode(), b"text/plain", headers)

    def begin(self, status, headers):
        """In pieces."""
        self.status, self.sent = status, dict(headers)

    def write(self, chunk):
        """One of them."""
        self.answer += chunk

    async def writable(self):
        """Always."""

    def end(self):
        """The last."""
        self.done = True

    def abort(self):
        """Cut."""
        self.cut = True


def reply(status=200, body=b"answer", headers=(), complete=True, breaks=False):
    """An instance's answer."""

    async def chunks():
        yield body
        if breaks:
            raise Broken("gone")

    async def read():
        return body

    return SimpleNamespace(
        status=status, body=body, headers=list(headers), complete=complete, chunks=chunks, read=read, close=lambda: None
    )  # fmt: skip


def refusal(body=b"the model is still loading\n", status=503):
    """What an instance says that does not take a request."""
    return reply(status, body, [(b"retry-after", b"1"), (b"x-infless-refused", b"1")])


@pytest.fixture
def site(world):
    """A proxy with a function `f`, whose instances answer as given: values, errors, or functions of the request."""

    async def made(*answers, prepare=None, ours=lambda _: False, **settings):
        f = world.function = await world.deploy()
        for answer in answers:
            one = await world.running(f)
            one.upstream = _upstream(one, answer, world.asked)
        if prepare is not None:
            prepare(f)
        world.metrics = Metrics()
        world.controller.on_removed = world.metrics.forget
        return Proxy(world.controller, world.metrics, replace(world.settings, **settings), world.clock, ours)

    world.asked = []
    return made


@pytest.fixture
def ask(world, site):
    """Invoke `f`."""

    async def ask(exchange, *answers, **more):
        (await site(*answers, **more))(exchange)
        while not (exchange.done or exchange.cut):
            await asyncio.sleep(0)
        return exchange

    return lambda exchange, *answers, **more: asyncio.run(asyncio.wait_for(ask(exchange, *answers, **more), 5))


@pytest.fixture
def call(site, world):
    """Invoke `f` from the provider itself."""

    async def call(*answers, headers=(), timeout_s=9.0, **more):
        proxy = await site(*answers, **more)
        return await proxy.call(
            world.function, "POST", "/a?b", headers, b"body", timeout_s=timeout_s, answer_max_bytes=10
        )  # fmt: skip

    return lambda *answers, **more: asyncio.run(asyncio.wait_for(call(*answers, **more), 5))


def _upstream(instance, answer, asked):
    """Has no open connection, so that everything takes the long way; the short one is for real sockets."""

    async def request(method, target, headers, body, *, timeout_s, silence_s=None):
        asked.append((instance.id, method, target, dict(headers), body, timeout_s))
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def close():
        pass

    return SimpleNamespace(request=request, send_now=lambda *_, **__: None, close=close)


def test_a_request_is_passed_on_whole(world, ask):
    """Path, query, body; headers but those of one connection; the trace and forwarding headers are added."""
    headers = [
        (b"host", b"h"),
        (b"x-a", b"1"),
        (b"connection", b"x-b"),
        (b"x-b", b"2"),
        (b"transfer-encoding", b"chunked"),
    ]
    ask(Exchange("/function/f.openfaas-fn/a/b", "PUT", headers, "x=1"), reply())
    ((_, method, target, sent, body, _),) = world.asked
    assert (method, target, body) == ("PUT", "/a/b?x=1", b"body")
    assert set(sent) == {b"host", b"x-a", b"x-forwarded-host", b"x-forwarded-for", b"x-call-id", b"x-start-time"}
    assert (sent[b"x-forwarded-host"], sent[b"x-forwarded-for"]) == (b"h", b"1.2.3.4:5")


def test_an_answer_is_passed_back_whole(ask):
    """Its own connection headers and trace are not."""
    headers = [(b"content-type", b"a/b"), (b"x-a", b"1"), (b"connection", b"close"), (b"x-call-id", b"forged")]
    exchange = ask(Exchange(headers=[(b"x-call-id", b"mine")]), reply(207, headers=headers))
    assert (exchange.status, exchange.answer, exchange.sent[b"x-call-id"]) == (207, b"answer", b"mine")
    assert exchange.sent[b"content-type"] == b"a/b"
    assert b"connection" not in exchange.sent


def test_an_answer_without_a_type_has_the_requests(ask):
    """As in the SDK."""
    assert ask(Exchange(headers=[(b"content-type", b"a/b")]), reply()).sent[b"content-type"] == b"a/b"


def test_a_long_answer_is_streamed(ask):
    """Piece by piece."""
    exchange = ask(Exchange(), reply(complete=False))
    assert (exchange.status, exchange.answer) == (200, b"answer")


def test_half_an_answer_is_cut(ask):
    """The only honest end."""
    exchange = ask(Exchange(), reply(complete=False, breaks=True))
    assert exchange.cut
    assert not exchange.done


def test_what_was_not_sent_is_sent_elsewhere(world, ask):
    """The client never notices."""
    exchange = ask(Exchange(), NotSent("refused"), reply())
    assert exchange.status == 200


def test_a_dead_instance_is_taken_out_at_once(world, ask):
    """Whoever meets it first tells; the next one answers."""
    dying = NotSent("refused")

    def prepare(f):
        first = f.dispatcher.choose()
        f.dispatcher.update({i.id: (0.0 if i.id != first else 1.0, 1) for i in f.serving()})
        f.instances[first].upstream = _upstream(f.instances[first], dying, world.asked)
        world.backend.running.pop(first)

    exchange = ask(Exchange(), reply(), reply(), prepare=prepare)
    assert exchange.status == 200
    assert len(world.fleet.instances) == 1


def test_the_last_instance_dies_and_nobody_hears_of_it(world, ask):
    """Its sockets are closed a moment before its end is seen: the request waits for that, and for a new instance."""

    def prepare(f):
        (dying,) = f.serving()

        async def refuse(*_, **__):
            asyncio.get_running_loop().call_later(0.02, die)
            raise NotSent("refused")

        def die():
            world.backend.kill(dying.id)
            world.fleet.check(dying)
            asyncio.get_running_loop().call_later(0.02, replaced)

        def replaced():
            (new,) = f.current()
            new.upstream = _upstream(new, reply(), world.asked)
            world.backend.ready.add(new.id)
            new.advance(Event.READY)
            world.controller._instance_changed(f.key)

        dying.upstream.request = refuse

    exchange = ask(Exchange(), reply(), prepare=prepare)
    assert (exchange.status, exchange.answer) == (200, b"answer")
    assert len(world.backend.launches) == 2


@pytest.mark.parametrize(
    ("failure", "status", "words"),
    [
        (Broken("closed"), 502, b"failed while answering: closed"),
        (TimedOut("late"), 504, b"did not answer within 60 s"),
        (ZeroDivisionError(), 500, b"failed inside the provider"),
    ],
)
def test_what_was_sent_is_not_sent_again(world, ask, failure, status, words):
    """A prediction must not run twice; the client is told which it was."""
    exchange = ask(Exchange(), failure, reply(), prepare=lambda f: f.dispatcher.update({min(f.instances): (1.0, 9)}))
    assert exchange.status == status
    assert words in exchange.answer
    assert exchange.sent[b"x-openfaas-internal"] == b"proxy"
    assert len(world.asked) == 1


def test_nobody_can_be_started(world, ask):
    """503, and not after a minute; why is for operators, as it may hold an instance's last words."""
    world.backend.failure = "no more processes"
    exchange = ask(Exchange())
    assert exchange.status == 503
    assert exchange.answer.startswith(b"No endpoints available for: f.openfaas-fn. None became ready; `infless status`")
    assert b"no more processes" not in exchange.answer


def test_a_start_that_has_just_failed_is_not_tried_for_each_request(world, ask):
    """The next one has its time."""

    def prepare(f):
        f.retry_at_s, f.last_failure = world.clock.now_s() + 10, "no model"

    exchange = ask(Exchange(), prepare=prepare)
    assert exchange.status == 503
    assert b"no model" not in exchange.answer
    assert world.backend.launches == []


def test_a_cold_start(world, ask):
    """One instance for all; whoever waits is answered by it."""

    def prepare(f):
        start = world.fleet.start

        def start_ready(*arguments, **more):
            one = start(*arguments, **more)
            one.upstream = _upstream(one, reply(), world.asked)
            world.backend.ready.add(one.id)
            asyncio.get_running_loop().call_soon(world.fleet._look)
            return one

        world.fleet.start = start_ready

    assert ask(Exchange(), prepare=prepare).status == 200
    assert len(world.backend.launches) == 1


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/function/nope", "POST", 404), ("/function/", "POST", 404), ("/function/.openfaas-fn", "GET", 404),
        ("/function/f.other", "GET", 404), ("/function/f", "BREW", 405),
    ],
)  # fmt: skip
def test_what_is_refused_at_the_door(ask, path, method, status):
    """Unknown function, strange method."""
    exchange = ask(Exchange(path, method), reply())
    assert exchange.status == status
    assert (b"allow" in exchange.sent) == (status == 405)


def test_counting(world, ask):
    """Arrivals, and what is in flight; the function counts as wanted."""
    ask(Exchange(), reply())
    f = world.function
    assert (f.arrived, f.invocations, f.in_flight, f.wanted_at_s) == (1, 1, 0, world.clock.now_s())


def counted(world):
    """Whatever the metrics say of `f`."""
    samples = [one for family in world.metrics.registry.collect() for one in family.samples]
    return [one.name for one in samples if one.labels.get("function_name") == world.function.key]


@pytest.mark.parametrize("again", [False, True], ids=["removed", "removed and deployed anew"])
def test_an_invocation_that_outlives_its_function_is_not_counted(world, ask, again):
    """What was counted of it is gone, and stays so; a function that has its name since did not answer this."""

    def prepare(f):
        one = f.serving()[0]
        asks = one.upstream.request

        async def request(*arguments, **more):
            assert counted(world)
            await world.controller.remove("f")
            if again:
                await world.deploy()
            return await asks(*arguments, **more)

        one.upstream.request = request

    assert ask(Exchange(), reply(), prepare=prepare).status == 200
    assert counted(world) == []
    assert world.function.in_flight == 0


def test_a_queued_call_of_a_function_that_is_gone_is_not_counted(world, site):
    """It was looked up before its body was read from the disk, and removed meanwhile: no trace in the metrics."""

    async def call():
        proxy = await site(reply())
        await world.controller.remove("f")
        return await proxy.call(world.function, "POST", "/", (), b"", timeout_s=9.0, answer_max_bytes=10)

    assert asyncio.run(asyncio.wait_for(call(), 30)).status
    assert counted(world) == []
    assert (world.function.invocations, world.function.in_flight) == (1, 0)


def test_speed_is_learned_from_requests_that_were_alone(world, ask):
    """Where nobody could time it."""
    world.profiles.table = ()
    answer = reply()

    def prepare(f):
        one = f.serving()[0]
        slow = one.upstream.request

        async def request(*arguments, **more):
            world.clock.advance(0.25)
            return await slow(*arguments, **more)

        one.upstream.request = request

    ask(Exchange(), answer, prepare=prepare)
    assert world.function.observed_exec_s == 0.25


# what is tried again -------------------------------------------------------------------------------------------------


def test_a_refusal_is_tried_elsewhere(world, ask):
    """The instance has done nothing yet: another one answers, and both are free again."""
    exchange = ask(Exchange(), refusal(), refusal(), reply())
    assert (exchange.status, exchange.answer) == (200, b"answer")
    assert len({id_ for id_, *_ in world.asked}) == len(world.asked) > 1
    assert all(one.in_flight == 0 for one in world.function.instances.values())


def test_when_all_refuse_the_last_refusal_is_passed_on(world, ask):
    """With its own words; and a crowd of full instances is not asked one after the other."""
    exchange = ask(Exchange(), *[refusal(b"7 requests are waiting already\n")] * 5)
    assert (exchange.status, exchange.answer) == (503, b"7 requests are waiting already\n")
    assert exchange.sent[b"retry-after"] == b"1"
    assert len(world.asked) == 3


def test_a_handlers_own_503_is_not_tried_elsewhere(world, ask):
    """It has run."""
    assert (
        ask(Exchange(), reply(503, b"come back later", [(b"retry-after", b"1")]), reply(503), reply(503)).status == 503
    )
    assert len(world.asked) == 1


def test_refusals_are_known_by_the_watchdogs_header():
    """Its own, as the watchdog writes them; a client does not see the mark."""
    pipeline = SimpleNamespace(
        settings=SimpleNamespace(max_inflight=3, queue_max=5), _in_flight_max=3, _in_pool=0,
        metrics=SimpleNamespace(in_flight=3), batcher=SimpleNamespace(waiting=5),
    )  # fmt: skip
    full = Pipeline.refusal(pipeline)
    pipeline.metrics.in_flight = 0
    for fault in (full, Pipeline.refusal(pipeline), _loading()):
        exchange = Exchange()
        Watchdog._answer_fault(SimpleNamespace(), exchange, fault)
        assert refuses(fault.status, list(exchange.sent.items()))
        assert not refuses(fault.status, _RETRY)
        assert answer_headers(list(exchange.sent.items())).count((b"x-infless-refused", b"1")) == 0
    assert not refuses(200, [(b"x-infless-refused", b"1")])
    assert refuses(429, [(b"x-openfaas-internal", b"faas-middleware")])


def test_what_is_meant_for_the_control_plane_is_not_passed_on(world, site):
    """A function that everybody may call must learn neither the password nor, by its absence, which guess was right."""
    credentials = Credentials(user="ours", password="right")
    other = b"Basic " + base64.b64encode(b"other:right")

    def ours(header):
        return credentials.names(header.decode("latin-1"))

    async def scenario():
        proxy = await site(reply(), ours=ours)
        for told in (b"ours:right", b"ours:wrong", b"ours", b"ours:\xff"):
            values = (other, b"basic  " + base64.b64encode(told), b"Bearer x")
            exchange = Exchange(headers=[(b"authorization", value) for value in values])
            proxy(exchange)
            while not exchange.done:
                await asyncio.sleep(0)
            assert exchange.head.memo.authorization == ((b"authorization", other), (b"authorization", b"Bearer x"))

    asyncio.run(asyncio.wait_for(scenario(), 5))
    assert len(world.asked) == 4


def test_one_that_drains_meanwhile_is_not_asked(world, site):
    """It is chosen a turn of the loop before it counts as busy, and one that drains and is idle is ended at once."""

    async def scenario():
        proxy = await site(reply(), reply())
        choices, choose = [], world.function.dispatcher.choose

        def remember(*refused):
            choices.append(choose(*refused))
            return choices[-1]

        world.function.dispatcher = SimpleNamespace(choose=remember, update=world.function.dispatcher.update)
        exchange = Exchange()
        proxy(exchange)
        [first] = choices
        world.fleet.drain(world.function.instances[first], "a test")
        while not exchange.done:
            await asyncio.sleep(0)
        assert exchange.status == 200
        assert len(world.asked) == 1
        assert world.asked[0][0] != first

    asyncio.run(asyncio.wait_for(scenario(), 5))


# limits --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("said", "allowed_s"), [(b"500ms", 0.5), (b"2", 2.0), (b"1h", 60.0)])
def test_a_client_may_wait_less_but_not_longer(world, ask, said, allowed_s):
    """As a Go duration, or in seconds."""
    ask(Exchange(headers=[(b"x-timeout", said)]), reply())
    assert world.asked[0][5] == pytest.approx(allowed_s)


@pytest.mark.parametrize("said", [b"soon", b"-1s", b"0", b"", b"9" * 400 + b"h"])
def test_a_wrong_limit_is_refused(world, ask, said):
    """400 and a sentence, and nobody is asked."""
    exchange = ask(Exchange(headers=[(b"x-timeout", said)]), reply())
    assert exchange.status == 400
    assert exchange.answer
    assert world.asked == []


def test_a_cold_start_that_takes_too_long(world, ask):
    """504 when the time is over; nobody waits any more then."""
    exchange = ask(
        Exchange(headers=[(b"x-timeout", b"10ms")]), prepare=lambda f: setattr(f, "last_failure", "last words")
    )
    assert exchange.status == 504
    assert b"became ready within 0.01 s; `infless status`" in exchange.answer
    assert b"last words" not in exchange.answer
    assert world.function.waiters == []


def test_only_so_many_wait_for_a_cold_start(world, site):
    """One more gets 503 and may ask again; a client that leaves makes room."""

    async def play():
        proxy = await site(waiting_max=2)
        waiting, more = [Exchange(), Exchange()], Exchange()
        for exchange in (*waiting, more):
            proxy(exchange)
        await world.settle()
        assert (more.status, more.sent[b"retry-after"]) == (503, b"1")
        assert [exchange.status for exchange in waiting] == [0, 0]
        waiting[0].on_gone()
        await world.settle()
        assert (waiting[0].status, len(world.function.waiters)) == (499, 1)
        waiting[1].on_gone()
        await world.settle()
        assert (world.function.waiters, world.function.in_flight, proxy.in_flight) == ([], 0, 0)

    asyncio.run(play())


def test_only_so_many_are_under_way(world, site):
    """What cannot be taken on is told so at once, and counted."""

    async def play():
        proxy = await site(streams_max=1)
        first, second = Exchange(), Exchange()
        proxy(first)
        proxy(second)
        assert (second.status, second.sent[b"retry-after"], first.status) == (503, b"1", 0)
        assert b"1 invocations are under way already" in second.answer
        first.on_gone()
        await world.settle()
        assert proxy.in_flight == 0
        third = Exchange()
        proxy(third)
        assert third.status == 0
        third.on_gone()
        await world.settle()

    asyncio.run(play())
    assert world.function.arrived == 3


# tokens and traces ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [None, b"Bearer wrong", b"Basic good", b"good", b"Bearer ", b"Bearer good2"])
def test_a_closed_function_wants_its_token(world, ask, given):
    """401 says how."""
    headers = [] if given is None else [(b"authorization", given)]
    exchange = ask(Exchange(headers=headers), reply(), prepare=lambda f: setattr(f, "tokens", (b"other", b"good")))
    assert (exchange.status, exchange.sent[b"www-authenticate"], world.asked) == (401, b"Bearer", [])
    assert world.function.arrived == 0


@pytest.mark.parametrize(("tokens", "passed"), [((b"other", b"good"), False), ((), True)])
def test_a_token_is_not_the_functions_business(world, ask, tokens, passed):
    """An open function gets what the client sent for it."""
    headers = [(b"authorization", b"Bearer good"), (b"connection", b"authorization")]
    exchange = ask(Exchange(headers=headers), reply(), prepare=lambda f: setattr(f, "tokens", tokens))
    assert exchange.status == 200
    assert (b"authorization" in world.asked[0][3]) is passed


@pytest.mark.parametrize("own", [None, b"", b"a" * 129, b"a\x01b", b"\xff"])
def test_a_call_without_a_sane_id_gets_one(world, ask, own):
    """A UUID, told to the function and to the client."""
    exchange = ask(Exchange(headers=[] if own is None else [(b"x-call-id", own)]), reply())
    told = exchange.sent[b"x-call-id"]
    assert re.fullmatch(rb"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", told)
    assert world.asked[0][3][b"x-call-id"] == told
    assert int(exchange.sent[b"x-start-time"]) == int(world.clock.wall_s() * 1e9)
    assert float(exchange.sent[b"x-duration-seconds"]) == 0.0


def test_call_ids_differ():
    """Also where the counter overflows, and between two starts."""
    ids = CallIds(b"\xff" * 16)
    numbers = {ids.next() for _ in range(1000)} | {CallIds(b"\xfe" * 16).next()}
    assert len(numbers) == 1001


def test_the_wire_and_the_fields_say_the_same():
    """A request that is sent at once and one that takes the long way are alike."""
    head = Head("POST", "/function/f/a%2Fb", "x=%20", [(b"host", b"h"), (b"authorization", b"A"), (b"x", b"y")])
    passage, trace = passage_of(head), [(b"x-call-id", b"i"), (b"x-start-time", b"1")]
    lines = passage.on_the_wire(trace, "1.2.3.4:5", b"body", authorized=False).split(b"\r\n")
    fields = passage.fields(trace, "1.2.3.4:5", authorized=False)
    assert lines[0] == b"POST /a%2Fb?x=%20 HTTP/1.1"
    assert sorted(lines[1:-2]) == sorted([b"%b: %b" % field for field in fields] + [b"content-length: 4"])
    assert lines[-2:] == [b"", b"body"]


# from the provider itself --------------------------------------------------------------------------------------------


def test_a_call(world, call):
    """Counted and dispatched as a client's request; the trace of the caller is kept."""
    headers = [(b"x-call-id", b"mine"), (b"x-start-time", b"7"), (b"te", b"x"), (b"x-a", b"1")]
    outcome = call(reply(207, b"said", [(b"x-b", b"2"), (b"connection", b"close")]), headers=headers)
    assert (outcome.status, outcome.body, outcome.headers) == (207, b"said", ((b"x-b", b"2"),))
    ((_, method, target, sent, body, timeout_s),) = world.asked
    assert (method, target, body, timeout_s) == ("POST", "/a?b", b"body", 9.0)
    assert sent == {b"x-a": b"1", b"x-call-id": b"mine", b"x-start-time": b"7"}
    assert (world.function.invocations, world.function.in_flight) == (1, 0)


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [
        (Broken("closed"), 502, b"failed while answering: closed\n"),
        (TimedOut("late"), 504, b"did not answer within 9 s\n"),
        (NotSent("refused"), 503, b"No endpoints available"),
        (ZeroDivisionError(), 500, b"failed inside the provider\n"),
        (reply(complete=False, breaks=True, body=b""), 502, b"failed while answering: gone\n"),
    ],
)
def test_a_call_that_fails_is_an_outcome(world, call, monkeypatch, answer, status, words):
    """Nothing is raised; who reads it can tell it from an answer of the function."""
    monkeypatch.setattr(dispatching, "DYING_S", 0.02)
    outcome = call(answer)
    assert outcome.status == status
    assert words in outcome.body
    assert (b"x-openfaas-internal", b"proxy") in outcome.headers
    assert (world.function.in_flight, [one.in_flight for one in world.function.instances.values()]) == (0, [0])


@pytest.mark.parametrize("complete", [True, False])
def test_of_a_long_answer_a_call_keeps_the_beginning(call, complete):
    """And knows how long it was: the queue tells nobody more than that."""
    outcome = call(reply(body=b"0123456789abc", complete=complete))
    assert (outcome.status, outcome.body, outcome.body_bytes) == (200, b"0123456789", 13)
