"""Asynchronous calls: every sequence of failures ends, nobody is starved, headers survive, whatever their values are."""

import asyncio
import ipaddress
import math
from collections import Counter, deque
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from queue_world import URL, World, answer

from infless_core.errors import InvalidInput
from infless_provider.async_policy import (
    RETRIED,
    Again,
    Attempt,
    Final,
    RetryRules,
    after_callback,
    after_invocation,
    callback_headers,
    digest,
    idempotency_key,
    request_headers,
    retry_after_s,
)
from infless_provider.async_store import _pack, _unpack
from infless_provider.async_turns import Turns
from infless_provider.callback_policy import CallbackPolicy
from infless_provider.forwarding import sane_call_id

seconds = st.floats(0.001, 1e5)
jitters = st.floats(0, 1, exclude_max=True)
rules_ = st.builds(
    RetryRules, attempts_max=st.integers(1, 2000), age_max_s=seconds, backoff_s=seconds, backoff_max_s=seconds,
    retry_after_max_s=seconds,
)  # fmt: skip
attempts = st.builds(
    Attempt, status=st.sampled_from([0, 200, 204, 302, 400, 404, 408, 429, 500, 502, 503, 504, 599]),
    attempts=st.integers(1, 2000), age_s=st.floats(0, 1e6), retry_after_s=st.none() | st.floats(0, 1e9),
)  # fmt: skip


@given(attempts, rules_, jitters)
def test_a_try_again_keeps_every_rule(attempt, rules, jitter):
    """Tries, age, the longest wait, and never earlier than half the backoff or than the answer asked for."""
    for decide in (after_invocation, after_callback):
        verdict = decide(attempt, rules, jitter)
        if isinstance(verdict, Again):
            assert attempt.attempts < rules.attempts_max
            assert attempt.age_s + verdict.after_s <= rules.age_max_s
            asked_s = min(attempt.retry_after_s or 0, rules.retry_after_max_s)
            assert verdict.after_s >= asked_s
            assert verdict.after_s <= max(rules.backoff_max_s, asked_s)
            assert verdict.after_s >= min(rules.backoff_s, rules.backoff_max_s) / 2
            assert math.isfinite(verdict.after_s)


@given(attempts, rules_, jitters)
def test_answers_are_told_from_not_now(attempt, rules, jitter):
    """An invocation that was answered is never repeated nor lost; a callback succeeds with 2xx only."""
    after = after_invocation(attempt, rules, jitter)
    assert (after == Final(failed=False)) == (attempt.status not in RETRIED)
    told = after_callback(attempt, rules, jitter)
    assert (told == Final(failed=False)) == (200 <= attempt.status < 300)
    if attempt.status in (302, 400, 404):
        assert told == Final(failed=True)


@given(rules_.filter(lambda rules: rules.attempts_max <= 50), st.data())
def test_every_story_ends(rules, data):
    """However long each try takes and whatever is asked for, the last wait begins within the age, after few tries."""
    age_s, tries = 0.0, 0
    while True:
        tries += 1
        age_s += data.draw(st.floats(0, 100))
        attempt = Attempt(
            status=503, attempts=tries, age_s=age_s, retry_after_s=data.draw(st.none() | st.floats(0, 1e6))
        )
        verdict = after_invocation(attempt, rules, data.draw(jitters))
        if isinstance(verdict, Final):
            assert verdict.failed
            break
        age_s += verdict.after_s
        assert age_s <= rules.age_max_s
    assert tries <= rules.attempts_max


@given(rules_, jitters, st.integers(1, 1998))
def test_waits_grow(rules, jitter, tries):
    """Until they are the longest."""
    assume(tries + 1 < rules.attempts_max)
    first, second = (
        after_invocation(Attempt(status=503, attempts=tries + more, age_s=0), rules, jitter) for more in (0, 1)
    )
    if isinstance(first, Again) and isinstance(second, Again):
        assert second.after_s >= first.after_s


@given(st.text(max_size=40) | st.integers(0, 10**12).map(str), st.floats(0, 4e9))
def test_any_retry_after_is_read_or_ignored(text, wall_s):
    """Numbers as they are, dates from now, never a time in the past."""
    found = retry_after_s([(b"retry-after", text.encode("utf-8", "replace"))], wall_s)
    assert found is None or (found >= 0 and math.isfinite(found))
    if text.isascii() and text.isdigit() and len(text) < 10:
        assert found == int(text)


def test_a_date_is_a_time_from_now():
    """RFC 9110's own example."""
    value = [(b"retry-after", b"Thu, 01 Jan 1970 00:02:00 GMT")]
    assert (retry_after_s(value, 100.0), retry_after_s(value, 200.0), retry_after_s([], 0.0)) == (20.0, 0.0, None)


operations = st.lists(
    st.tuples(st.just("add"), st.tuples(st.sampled_from("abc"), st.sampled_from("xyz")), st.integers(0, 20))
    | st.tuples(st.just("done"), st.integers(0, 9), st.just(0))
    | st.tuples(st.just("wait"), st.integers(1, 10), st.just(0))
    | st.tuples(st.just("room"), st.integers(1, 5), st.just(0)),
    max_size=80,
)


class Model:
    """What runs and waits, kept in plain lists; items need room beside their turn."""

    def __init__(self, most, most_each, most_host):
        self.most, self.most_each, self.most_host = most, most_each, most_host
        self.turns = Turns(most, most_each, most_host, self.claim)
        self.now_s, self.added, self.room = 0, 0, 3
        self.waiting, self.running = [], []

    def claim(self, _):
        """One of what is there."""
        if self.room < 1:
            return False
        self.room -= 1
        return True

    def add(self, pair, delay_s):
        """An item of a function and host."""
        self.added += 1
        item = (self.now_s + delay_s, self.added)
        self.waiting.append((pair, item))
        self.turns.add(item, *pair, item[0])

    def could(self):
        """Whose turn it might be."""
        functions, hosts = (Counter(pair[place] for pair in self.running) for place in (0, 1))
        assert all(count <= self.most_each for count in functions.values())
        assert all(count <= self.most_host for count in hosts.values())
        return [
            (pair, item) for pair, item in self.waiting
            if item[0] <= self.now_s and functions[pair[0]] < self.most_each and hosts[pair[1]] < self.most_host
        ]  # fmt: skip

    def take_all(self):
        """Let all begin whose turn it is; each is checked."""
        room, began = self.room, 0
        while (taken := self.turns.take(self.now_s)) is not None:
            item, *pair = taken
            assert (tuple(pair), item) in self.could()
            assert item == min(other for its_pair, other in self.waiting if its_pair == tuple(pair))
            self.waiting.remove((tuple(pair), item))
            self.running.append(tuple(pair))
            began += 1
        assert self.room == room - began
        assert self.turns.running == len(self.running) <= self.most
        assert not self.could() or len(self.running) == self.most or not self.room


@given(operations, st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
def test_turns_against_a_plain_model(does, most, most_each, most_host):
    """Limits hold, nothing runs early, twice, never or without room, each queue is in order, and no room is unused."""
    model = Model(most, most_each, most_host)
    for what, value, delay_s in does:
        if what == "add":
            model.add(value, delay_s)
        elif what == "done" and model.running:
            model.turns.done(*model.running.pop(value % len(model.running)))
        elif what == "wait":
            model.now_s += value
        elif what == "room":
            model.room += value
        model.take_all()
    model.room = len(model.waiting)
    while model.waiting or model.running:
        while model.running:
            model.turns.done(*model.running.pop())
        due_s = model.turns.next_due_s()
        model.now_s = model.now_s if due_s is None else max(model.now_s, due_s)
        model.take_all()
    assert model.turns.running == 0


@given(st.lists(st.sampled_from(["ax", "ay", "az", "bx", "by", "cx"]), min_size=1, max_size=60), st.integers(1, 4))
def test_functions_take_turns_and_so_do_hosts_of_one(pairs, most):
    """Who waits is passed over no more often than there are others: a flood delays others by its turn only."""
    turns, left, running = Turns(most, most, most), Counter(pairs), deque()
    for number, (function, host) in enumerate(pairs):
        turns.add(number, function, host, 0.0)
    passed_over = Counter()
    while left:
        taken = turns.take(0.0)
        if taken is None:
            turns.done(*running.popleft())
            continue
        _, function, host = taken
        running.append((function, host))
        left -= Counter([function + host])
        passed_over.update({other[0] for other in left} - {function})
        passed_over.update({other for other in left if other[0] == function} - {function + host})
        passed_over[function] = passed_over[function + host] = 0
        assert all(passed_over[one] <= len({pair[0] for pair in pairs}) for one in "abc")
        assert all(passed_over[one] <= len({pair for pair in pairs if pair[0] == one[0]}) for one in set(pairs))


calls_ = st.lists(
    st.fixed_dictionaries(
        {
            "path": st.sampled_from("ffg"), "told": st.booleans(), "body": st.binary(max_size=6),
            "status": st.sampled_from([200, 200, 500, 503]), "answer": st.binary(max_size=14),
            "reply": st.sampled_from([200, 200, 404, 503]), "cancel": st.booleans(), "pause": st.integers(0, 20),
        }
    ),
    min_size=1, max_size=40,
)  # fmt: skip
ROOM = {
    "bytes_max": 24, "bytes_per_function_max": 15, "answers_bytes_max": 25, "answers_bytes_per_function_max": 15,
    "answer_max_bytes": 8, "in_flight_max": 6, "in_flight_per_function_max": 4,
}  # fmt: skip


@settings(max_examples=40)
@given(calls_, calls_)
def test_bodies_never_take_more_than_their_room(before, after):
    """On the disk itself, at each moment, over a restart, whatever is asked, answered and cancelled; and none is left."""

    async def send(world, calls):
        await world.watch()
        sent = []
        for number, call in enumerate(calls):
            headers = [URL] if call["told"] else []
            world.script[f"{call['path']}.openfaas-fn"].append(answer(call["status"], call["answer"]))
            world.replies.append(call["reply"])
            sent.append(world.send(call["path"], (b"x-call-id", b"%d" % number), *headers, body=call["body"]))
            for _ in range(call["pause"]):
                await asyncio.sleep(0)
            if call["cancel"]:
                sent.append(world.send(f"{call['path']}/{number // 2}", method="DELETE"))
        for one in sent:
            await one.answered.wait()

    async def check(world):
        for (kind, function), most_bytes in (await world.seen()).items():
            prefix = "answers_bytes" if kind == "answer" else "bytes"
            assert most_bytes <= ROOM[f"{prefix}_per_function_max" if function else f"{prefix}_max"], (kind, function)

    async def run(folder):
        world = World(Path(folder) / "queue.sqlite")
        async with world.open(**ROOM, close_grace_s=0.001):
            await send(world, before)
            await check(world)
        async with world.open(**ROOM):
            await send(world, after)
            await world.until_empty()
            await check(world)
            rooms = world.calls._books._requests, world.calls._books._answers
            await world.until(lambda: not any(room._bytes or room._of_function for room in rooms))

    with TemporaryDirectory() as folder:
        asyncio.run(run(folder))


names = st.from_regex(rb"[a-z][a-z0-9-]{0,12}", fullmatch=True) | st.sampled_from(
    [b"connection", b"keep-alive", b"x-callback-url", b"authorization", b"x-call-id", b"content-length", b"host"]
)
values = st.binary(max_size=12).map(lambda value: value.replace(b"\r", b"").replace(b"\n", b"").strip())
headers_ = st.lists(st.tuples(names, values), max_size=8)


@given(headers_)
def test_headers_come_back_from_the_disk(headers):
    """In order, byte for byte, with empty and repeated ones."""
    assert list(_unpack(_pack(headers))) == headers


@given(headers_, st.booleans())
def test_only_what_is_the_functions_reaches_it(headers, secret):
    """No hop-by-hop header, nothing that Connection names, no callback URL, no token of ours; the rest in order."""
    kept = request_headers(headers, "peer:1", lambda _: secret)
    named = {name.strip().lower() for key, value in headers if key == b"connection" for name in value.split(b",")}
    never_hop = {b"host", b"authorization", b"x-forwarded-for", b"x-forwarded-host"}
    gone = named - never_hop | {b"x-callback-url", b"content-length", b"x-call-id", b"x-start-time"} | {
        b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer",
        b"transfer-encoding", b"upgrade", b"proxy-connection", b"expect",
    }  # fmt: skip
    gone |= {b"authorization"} if secret else set()
    assert not gone & {name for name, _ in kept} - {b"x-forwarded-for", b"x-forwarded-host"}
    added = [header for header in kept if header[0].startswith(b"x-forwarded-")]
    assert [header for header in kept if header not in added] == [
        header for header in headers if header[0] not in gone and header not in added
    ]


@given(headers_)
def test_a_callback_tells_about_the_call_once(headers):
    """Whatever the function answers: our headers are each there once, with our values."""
    sent = callback_headers(headers, call_id="i", function="f", status=200, took_s=1.5, accepted_ns=7)
    for name, value in {
        b"x-call-id": b"i", b"x-function-name": b"f", b"x-function-status": b"200", b"x-duration-seconds": b"1.500000",
        b"x-start-time": b"7",
    }.items():  # fmt: skip
        assert [told for key, told in sent if key == name] == [value]
    assert not {b"connection", b"content-length", b"host"} & {name for name, _ in sent}


@given(st.binary(max_size=200))
def test_a_key_is_kept_or_refused(value):
    """Never changed, never ignored: whoever gives one relies on it."""
    if 1 <= len(value) <= 128 and all(0x20 <= byte <= 0x7E for byte in value):
        assert idempotency_key(value).encode() == value
    else:
        with pytest.raises(InvalidInput, match="1 to 128 printable ASCII"):
            idempotency_key(value)


texts = st.text(max_size=8)
bodies = st.binary(max_size=8)


@given(texts, bodies, texts, bodies)
def test_what_differs_has_another_digest(target, body, other, other_body):
    """Also where path and body together read alike."""
    assert (digest(target, body) == digest(other, other_body)) == ((target, body) == (other, other_body))
    assert digest(target + "x", body) != digest(target, b"x" + body)


@given(st.binary(max_size=200))
def test_a_call_id_is_kept_only_if_it_is_harmless(value):
    """It goes into headers and logs as it is."""
    kept = sane_call_id(value)
    harmless = 1 <= len(value) <= 128 and all(0x21 <= byte <= 0x7E for byte in value)
    assert kept == (value if harmless else None)


@given(st.integers(0, 2**32 - 1))
def test_no_coat_makes_an_address_public(number):
    """What is refused as IPv4 is refused in every IPv6 form that leads to it."""
    plain = ipaddress.IPv4Address(number)
    permits = CallbackPolicy().permits("h", plain)
    mapped = ipaddress.IPv6Address(0xFFFF_0000_0000 | number)
    nat64 = ipaddress.IPv6Address(int(ipaddress.IPv6Address("64:ff9b::")) | number)
    six_to_four = ipaddress.IPv6Address(0x2002 << 112 | number << 80 | 1)
    for coat in (mapped, nat64, six_to_four):
        assert CallbackPolicy().permits("h", coat) <= permits
    assert CallbackPolicy().permits("h", mapped) == permits
