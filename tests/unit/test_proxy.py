"""The invocation path's decisions: who is asked, what is tried again, and what a client is told when nothing helps."""

import asyncio
from types import SimpleNamespace

import pytest

from infless_provider.metrics import Metrics
from infless_provider.proxy import Proxy
from infless_provider.upstream import Broken, NotSent, TimedOut


class Exchange:
    """A request, and what was answered."""

    def __init__(self, path="/function/f", method="POST", headers=(), query=""):
        self.path, self.method, self.headers, self.query = path, method, list(headers), query
        self.body, self.peer, self.status, self.done, self.cut = b"body", "1.2.3.4:5", 0, False, False
        self.answer, self.sent, self.on_gone = b"", {}, None

    def header(self, name):
        """The first of that name."""
        return next((value for key, value in self.headers if key == name), None)

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


@pytest.fixture
def ask(world):
    """Invoke `f`, whose instances answer as given: values, errors, or functions of the request."""

    async def ask(exchange, *answers, prepare=None):
        f = await world.deploy()
        for answer in answers:
            one = await world.running(f)
            one.upstream = SimpleNamespace(request=_answering(one, answer, world.asked), close=one.upstream.close)
        if prepare is not None:
            prepare(f)
        proxy = Proxy(world.controller, Metrics(), world.settings, world.clock)
        proxy(exchange)
        while not (exchange.done or exchange.cut):
            await asyncio.sleep(0)
        world.function = f
        return exchange

    world.asked = []
    return lambda exchange, *answers, **more: asyncio.run(asyncio.wait_for(ask(exchange, *answers, **more), 5))


def _answering(instance, answer, asked):
    async def request(method, target, headers, body, *, timeout_s):
        asked.append((instance.id, method, target, dict(headers), body))
        if isinstance(answer, Exception):
            raise answer
        return answer

    return request


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
    ((_, method, target, sent, body),) = world.asked
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
        f.instances[first].upstream.request = _answering(f.instances[first], dying, world.asked)
        world.backend.running.pop(first)

    exchange = ask(Exchange(), reply(), reply(), prepare=prepare)
    assert exchange.status == 200
    assert len(world.fleet.instances) == 1


@pytest.mark.parametrize(
    ("failure", "status", "words"),
    [
        (Broken("closed"), 502, b"failed while answering: closed"),
        (TimedOut("late"), 504, b"did not answer in time"),
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
    """503 with the reason, and not after a minute."""
    world.backend.failure = "no more processes"
    exchange = ask(Exchange())
    assert exchange.status == 503
    assert exchange.answer == b"No endpoints available for: f.openfaas-fn. no more processes"


def test_a_start_that_has_just_failed_is_not_tried_for_each_request(world, ask):
    """The next one has its time."""

    def prepare(f):
        f.retry_at_s, f.last_failure = world.clock.now_s() + 10, "no model"

    assert ask(Exchange(), prepare=prepare).answer.endswith(b"no model")
    assert world.backend.launches == []


def test_a_cold_start(world, ask):
    """One instance for all; whoever waits is answered by it."""

    def prepare(f):
        start = world.fleet.start

        def start_ready(*arguments, **more):
            one = start(*arguments, **more)
            one.upstream = SimpleNamespace(request=_answering(one, reply(), world.asked), close=one.upstream.close)
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
    assert ask(Exchange(path, method), reply()).status == status


def test_counting(world, ask):
    """Arrivals, and what is in flight; the function counts as wanted."""
    ask(Exchange(), reply())
    f = world.function
    assert (f.arrived, f.invocations, f.in_flight, f.wanted_at_s) == (1, 1, 0, world.clock.now_s())


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
