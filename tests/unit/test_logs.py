"""`GET /system/logs`: the query, the files' past and growth, and what each follower is given."""

import asyncio
import itertools
import json
from contextlib import asynccontextmanager

import pytest
from hurried_clock import HurriedLoop, forward
from hypothesis import given
from hypothesis import strategies as st

from infless_core.clock import ManualClock
from infless_core.errors import InvalidInput
from infless_provider import log_files
from infless_provider.log_files import Follow, Past, line_end, parse_line, past_lines
from infless_provider.log_follower import Follower, pieces_of
from infless_provider.log_hub import LogHub
from infless_provider.logs import LogQuery, parse_query
from infless_provider.wire import rfc3339

NOW_S = 1_800_000_000.0
KEY = "f.openfaas-fn"
OLD, NEW = "2026-11-23T22:00:00.000001Z", "2026-11-23T22:00:01.000000Z"


class Client:
    """An exchange that keeps what is written; it takes nothing while `blocked` is set."""

    def __init__(self, wanted=None):
        self.head, self.lines, self.chunks, self.done, self.cut, self.status = None, [], 0, False, False, 0
        self.on_gone, self.answer, self.changed = None, None, asyncio.Event()
        self.free = asyncio.Event()
        self.free.set()

    def begin(self, status, headers):
        """The head is out."""
        self.status, self.head = status, (status, dict(headers))
        self.changed.set()

    def write(self, chunk):
        """One flushed piece: whole lines."""
        assert chunk.endswith(b"\n")
        self.chunks += 1
        self.lines += [json.loads(line) for line in chunk.splitlines()]
        self.changed.set()

    async def writable(self):
        """Wait while the client does not read."""
        await self.free.wait()

    def end(self):
        """A whole answer."""
        self.done = True
        self.changed.set()

    def abort(self):
        """A broken one."""
        self.cut = True
        self.changed.set()

    def text(self, status, sentence):
        """Refused."""
        self.answer = (status, sentence)

    async def until(self, true):
        """Wait for something to become so, at each change."""
        async with asyncio.timeout(30):
            while not true():
                self.changed.clear()
                await self.changed.wait()

    @property
    def texts(self):
        """What a person would read."""
        return [line["text"] for line in self.lines]


def write(folder, instance, *lines, mode="a", suffix=".log"):
    """Write complete lines, each (time, text)."""
    folder.mkdir(exist_ok=True)
    with (folder / f"{instance}{suffix}").open(mode) as file:
        file.write("".join(f"{time} {text}\n" for time, text in lines))


def turn(folder, instance):
    """What the watchdog does with a full file."""
    (folder / f"{instance}.log").replace(folder / f"{instance}.log.1")
    write(folder, instance)


def stamp(seconds):
    """A time near `NOW_S`."""
    return rfc3339(NOW_S + seconds)


class TestQuery:
    """What may be asked."""

    def test_the_clis(self):
        """`tail=-1` is all, `follow` as sent; a namespace in the name counts."""
        query = parse_query("follow=true&name=f.openfaas-fn&namespace=&tail=-1&since=2026-11-23T22:03:59Z", NOW_S)
        assert query == LogQuery(key=KEY, since_s=1795471439.0, tail=0, follow=True)

    def test_the_least(self):
        """The last five minutes, all lines, no following."""
        query = parse_query("name=f", NOW_S)
        assert query == LogQuery(key=KEY, since_s=NOW_S - 300)
        assert query.name == "f"

    @pytest.mark.parametrize("query", ["name=f&namespace=other", "name=f.other", "name=f.other&namespace=other"])
    def test_another_namespace(self, query):
        """In the name, or beside it."""
        assert parse_query(query, NOW_S).key == "f.other"

    def test_of_repeated_keys_the_last_counts(self):
        """As in the SDK."""
        query = parse_query("name=a&name=f&tail=5&tail=7&follow=true&follow=false&instance=f-1", NOW_S)
        assert query == LogQuery(key=KEY, since_s=NOW_S - 300, tail=7, instance="f-1")
        assert parse_query("name=f&tail=5&tail=&follow=true&follow=", NOW_S) == LogQuery(key=KEY, since_s=NOW_S - 300)

    @pytest.mark.parametrize(("follow", "expected"), [("1", True), ("T", True), ("True", True), ("0", False), ("F", False), ("FALSE", False), ("", False)])  # fmt: skip
    def test_follow(self, follow, expected):
        """As Go's clients may write it."""
        assert parse_query(f"name=f&follow={follow}", NOW_S).follow is expected

    @pytest.mark.parametrize(
        ("query", "sentence"),
        [
            ("", "name is missing"),
            ("name=.openfaas-fn", "name is missing"),
            ("name=f&tail=ten", "tail: 'ten' is not a whole number"),
            ("name=f&tail=111111111111111111111", "is not a whole number of at most 18 digits"),
            ("name=f&follow=maybe", "follow: 'maybe' is not allowed; use true, false, 1 or 0"),
            ("name=f&tail=1_0", "tail: '1_0' is not"),
            ("name=f&tail=1.5", "tail: '1.5' is not"),
            ("name=f&since=yesterday", "since: 'yesterday' is not a time"),
            ("name=f&since=2026-11-23T22:03:59", "is not a time such as"),
            ("name=..%2Ff", "name: '../f' is not allowed"),
            ("name=f..x", "name: 'f..x' is not allowed"),
            ("name=f&namespace=a/b", "namespace: 'a/b' is not allowed"),
            ("name=f&instance=..%2F..%2Fetc%2Fpasswd", "instance: '../../etc/passwd' is not allowed"),
            ("name=f&instance=a%00", "is not allowed; use A-Z"),
        ],
    )
    def test_a_wrong_query_is_named(self, query, sentence):
        """The caller answers it with 422."""
        with pytest.raises(InvalidInput, match=sentence.replace(".", r"\.")):
            parse_query(query, NOW_S)


class TestLines:
    """One line of a file, and the same as a record."""

    def test_a_record_has_every_field(self):
        """Of the protocol, and the text unharmed whatever it holds."""
        line = parse_line("f-1", f'{NEW} a "quoted" \u00e9 \x1b[0m line'.encode() + b"\xff")
        record = line.record(KEY)
        assert record.endswith(b"\n")
        assert record.count(b"\n") == 1
        text = 'a "quoted" \u00e9 \x1b[0m line\ufffd'
        assert json.loads(record) == {
            "name": "f", "namespace": "openfaas-fn", "instance": "f-1", "timestamp": NEW, "text": text,
        }  # fmt: skip

    @pytest.mark.parametrize(
        "raw", ["", "no time in front", "2026-11-23 22:00:00Z x", "2026-11-23T22:00:00 x", "2026-02-31T00:00:00Z x"]
    )
    def test_what_has_no_time_that_go_reads_is_no_line(self, raw):
        """faas-cli stops at the first record it cannot decode."""
        assert parse_line("f-1", raw.encode()) is None

    @pytest.mark.parametrize(
        "time", ["2026-11-23T22:00:00Z", "2026-11-23T22:00:00.123456789Z", "2026-11-24T00:00:00+02:00"]
    )
    def test_times_as_others_write_them(self, time):
        """Docker has nanoseconds."""
        assert int(parse_line("f-1", f"{time} x".encode()).at_s) == 1795471200


class TestFollow:
    """Files that grow."""

    def test_only_what_is_new(self, tmp_path):
        """Not what was there before the first look; a half line when it is complete; in order of time."""
        write(tmp_path, "f-1", (OLD, "old"))
        with (tmp_path / "f-1.log").open("a") as file:
            file.write(f"{NEW} half a li")
        follow = Follow(tmp_path)
        assert follow.look() == []
        write(tmp_path, "f-2", (OLD, "from another, new instance"))
        with (tmp_path / "f-1.log").open("a") as file:
            file.write("ne\nno time\n")
        assert [line.text for line in follow.look()] == ["from another, new instance", "half a line"]
        assert follow.look() == []
        follow.close()

    def test_a_turned_file(self, tmp_path):
        """Its rest is read, and then the new one from its start."""
        write(tmp_path, "f-1", (OLD, "old"))
        follow = Follow(tmp_path)
        follow.look()
        write(tmp_path, "f-1", (stamp(1), "rest"))
        turn(tmp_path, "f-1")
        write(tmp_path, "f-1", (stamp(2), "fresh"))
        assert [line.text for line in follow.look() + follow.look()] == ["rest", "fresh"]
        follow.close()

    def test_a_file_between_two(self, tmp_path):
        """The old one is away already, the new one not there yet: nothing is lost."""
        write(tmp_path, "f-1", (OLD, "old"))
        follow = Follow(tmp_path)
        follow.look()
        write(tmp_path, "f-1", (stamp(1), "rest"))
        (tmp_path / "f-1.log").replace(tmp_path / "f-1.log.1")
        assert [line.text for line in follow.look()] == ["rest"]
        assert set(follow.positions()) == {"f-1"}
        write(tmp_path, "f-1", (stamp(2), "fresh"))
        assert [line.text for line in follow.look() + follow.look()] == ["fresh"]
        follow.close()

    def test_a_file_that_was_turned_twice_between_looks(self, tmp_path):
        """What is gone is gone, but the reader is told where."""
        write(tmp_path, "f-1", (OLD, "old"))
        follow = Follow(tmp_path)
        follow.look()
        for second in (1, 2):
            write(tmp_path, "f-1", (stamp(second), f"lost {second}"))
            turn(tmp_path, "f-1")
        write(tmp_path, "f-1", (stamp(3), "fresh"))
        assert [line.text for line in follow.look() + follow.look()] == ["lost 1", log_files.MISSING, "fresh"]
        follow.close()

    def test_a_file_that_vanishes(self, tmp_path):
        """Its last words are read; afterwards nobody asks for it."""
        write(tmp_path, "f-1", (OLD, "old"), suffix=".log.1")
        write(tmp_path, "f-1", (OLD, "old"))
        follow = Follow(tmp_path)
        follow.look()
        write(tmp_path, "f-1", (NEW, "last words"))
        (tmp_path / "f-1.log").unlink()
        assert [line.text for line in follow.look()] == ["last words"]
        assert follow.positions() == {}
        assert follow.look() == []

    def test_a_file_that_is_emptied(self, tmp_path):
        """It is read from its start again."""
        write(tmp_path, "f-1", (OLD, "a rather long line"))
        follow = Follow(tmp_path)
        follow.look()
        write(tmp_path, "f-1", mode="w")
        assert follow.look() == []
        write(tmp_path, "f-1", (NEW, "x"))
        assert [line.text for line in follow.look()] == ["x"]
        follow.close()

    def test_a_flood_is_taken_in_parts(self, tmp_path, monkeypatch):
        """One look takes a bounded part; a line without an end holds up nothing."""
        monkeypatch.setattr(log_files, "READ_BYTES", 128)
        write(tmp_path, "f-1")
        follow = Follow(tmp_path)
        follow.look()
        write(tmp_path, "f-1", (NEW, "one"), (NEW, "x" * 300), *[(NEW, f"{n}") for n in range(20)])
        turn(tmp_path, "f-1")
        looks = [[line.text for line in follow.look()] for _ in range(12)]
        assert looks[0] == ["one"]
        assert max(map(len, looks)) <= 128 // len(f"{NEW} 0\n")
        assert [text for look in looks for text in look if "x" not in text] == ["one", *map(str, range(20))]
        follow.close()

    def test_a_function_that_has_not_logged(self, tmp_path):
        """No folder yet: no lines, until there is one."""
        follow = Follow(tmp_path / "none")
        assert follow.look() == []
        write(tmp_path / "none", "f-1", (NEW, "first"))
        assert [line.text for line in follow.look()] == ["first"]
        follow.close()


def past_texts(folder, since_s=0.0, tail=0, until=None):
    """Texts of the past of all instances."""
    instances = log_files.instances_of(folder)
    pasts = [Past.open(folder, instance, until and until[instance]) for instance in instances]
    try:
        return [line.text for line in past_lines(pasts, since_s, tail)]
    finally:
        for past in pasts:
            past.close()


class TestPast:
    """Lines that are there already."""

    def test_all_instances_in_order_of_time_with_what_was_turned_away(self, tmp_path):
        """Without what is no line, and without one that is not complete."""
        write(tmp_path, "f-1", (stamp(0), "a"), ("no time", "in front"), (stamp(2), "c"), suffix=".log.1")
        write(tmp_path, "f-1", (stamp(4), "e"))
        write(tmp_path, "f-2", (stamp(1), "b"), (stamp(3), "d"))
        with (tmp_path / "f-2.log").open("a") as file:
            file.write(f"{NEW} half")
        assert past_texts(tmp_path) == ["a", "b", "c", "d", "e"]
        assert past_texts(tmp_path, NOW_S + 2) == ["c", "d", "e"]
        assert past_texts(tmp_path, tail=2) == ["d", "e"]
        assert past_texts(tmp_path, NOW_S + 4, tail=3) == ["e"]
        assert past_texts(tmp_path, tail=1000) == ["a", "b", "c", "d", "e"]

    def test_it_ends_where_a_follower_begins(self, tmp_path):
        """Also when the file is turned in between."""
        write(tmp_path, "f-1", (stamp(0), "past"))
        follow = Follow(tmp_path)
        follow.look()
        write(tmp_path, "f-1", (stamp(1), "live"))
        assert past_texts(tmp_path, until=follow.positions()) == ["past"]
        turn(tmp_path, "f-1")
        write(tmp_path, "f-1", (stamp(2), "live too"))
        assert past_texts(tmp_path, until=follow.positions()) == ["past"]
        turn(tmp_path, "f-1")
        assert past_texts(tmp_path, until=follow.positions()) == []  # the disk no longer has it
        follow.close()

    def test_the_last_lines_of_a_big_file_cost_a_few_blocks(self, tmp_path, monkeypatch):
        """Eight megabytes are not read for ten lines, nor for the last second."""
        lines = [(stamp(n / 100), f"line {n} {'x' * 60}") for n in range(80_000)]
        write(tmp_path, "f-1", *lines)
        past, read = Past.open(tmp_path, "f-1", None), []
        monkeypatch.setattr(Past, "read", lambda self, start, count, real=Past.read: read.append(count) or real(self, start, count))  # fmt: skip
        assert [line.text for line in past_lines([past], 0.0, 10)] == [text for _, text in lines[-10:]]
        assert sum(read) <= 2 * log_files.BLOCK_BYTES
        read.clear()
        assert len(list(past_lines([past], NOW_S + 799, 0))) == 100
        assert sum(read) <= 3 * log_files.BLOCK_BYTES
        past.close()

    @given(data=st.data())
    def test_blocks_do_not_show(self, tmp_path_factory, data):
        """Whatever the lines, the blocks and the question: what a reader of whole files would find."""
        folder = tmp_path_factory.mktemp("logs")
        expected, numbers = [], itertools.count()
        for instance in ("f-1", "f-2"):
            times = sorted(data.draw(st.lists(st.integers(0, 9), max_size=12)))
            lines = [(stamp(time), str(next(numbers)) + data.draw(st.text("xy \r", max_size=40))) for time in times]
            cut = data.draw(st.integers(0, len(lines)))
            write(folder, instance, *lines[:cut], suffix=".log.1")
            write(folder, instance, *lines[cut:])
            expected += [(time, f"{index:03}", text) for index, (time, text) in enumerate(lines)]
        since = data.draw(st.integers(0, 10))
        expected = [one for one in expected if one[0] >= stamp(since)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(log_files, "BLOCK_BYTES", data.draw(st.integers(1, 100)))
            found = past_texts(folder, NOW_S + since)
            tail = data.draw(st.integers(1, 30))
            last = past_texts(folder, NOW_S + since, tail)
        assert sorted(found) == sorted(text for _, _, text in expected)
        times = {text: time for time, _, text in expected}
        assert [times[text] for text in found] == sorted(times[text] for text in found)
        assert len(last) == min(tail, len(expected))
        assert [times[text] for text in last] == [times[text] for text in found][len(found) - len(last) :]
        assert [text for text in found if text in last] == last

    def test_where_the_last_whole_line_ends(self, tmp_path, monkeypatch):
        """Found from the end, however far it is."""
        monkeypatch.setattr(log_files, "BLOCK_BYTES", 4)
        (tmp_path / "x").write_bytes(b"one\n" + b"y" * 50)
        with (tmp_path / "x").open("rb", buffering=0) as file:
            assert line_end(file, 54) == 4
            assert line_end(file, 3) == 0


def piece(*texts, instance="f-1", second=0):
    """Lines that were found at a look."""
    lines = [parse_line(instance, f"{stamp(second)} {text}".encode()) for text in texts]
    (made,) = pieces_of(lines, KEY)
    return made


async def sent(follower):
    """All that a follower sends until it is finished."""
    client = Client()
    follower.finish()
    await follower.send(client, ManualClock(NOW_S))
    return client


class TestFollower:
    """Filters, and the bounded buffer."""

    @pytest.mark.parametrize(
        ("query", "texts"),
        [({}, ["a", "b", "c", "d"]), ({"instance": "f-2"}, ["c", "d"]), ({"since_s": NOW_S + 2}, ["b", "d"])],
    )
    def test_filters(self, query, texts):
        """By instance and by time, each follower its own."""
        follower = Follower(LogQuery(**{"key": KEY, "since_s": 0.0, **query}))
        follower.take(piece("a", second=1))
        follower.take(piece("b", second=2))
        lines = [parse_line("f-2", f"{stamp(second)} {text}".encode()) for second, text in ((1, "c"), (2, "d"))]
        for made in pieces_of(lines, KEY):
            follower.take(made)
        assert asyncio.run(sent(follower)).texts == texts

    def test_a_slow_one_loses_lines_and_is_told_where(self):
        """The buffer keeps its bound; what comes after the client has caught up is sent again."""

        async def scene():
            follower = Follower(LogQuery(key=KEY, since_s=0.0, instance="f-1"), buffer_bytes=250)
            client = Client()
            sending = asyncio.ensure_future(follower.send(client, ManualClock(NOW_S)))
            client.free.clear()
            follower.take(piece("first"))
            await client.until(lambda: client.texts)  # it hangs in this write
            for number in range(10):
                follower.take(piece(f"{number}a", f"{number}b"))
            assert follower._waiting_bytes <= 250
            client.free.set()
            await client.until(lambda: any("dropped" in text for text in client.texts))
            follower.take(piece("last"))
            follower.finish()
            await sending
            return client

        client = asyncio.run(scene())
        told = "[infless] 18 line(s) were dropped here: this client reads slower than the function logs"
        assert client.texts == ["first", "0a", "0b", told, "last"]
        assert client.lines[3] == {
            "name": "f", "namespace": "openfaas-fn", "instance": "f-1", "timestamp": rfc3339(NOW_S), "text": told,
        }  # fmt: skip

    def test_one_piece_is_always_taken(self):
        """A buffer smaller than a piece must not drop everything."""
        follower = Follower(LogQuery(key=KEY, since_s=0.0), buffer_bytes=1)
        follower.take(piece("a"))
        assert asyncio.run(sent(follower)).texts == ["a"]

    def test_pieces_are_of_a_bounded_size(self):
        """And encoded once: their data are their lines' records."""
        lines = [parse_line("f-1", f"{NEW} {'x' * 1000}".encode())] * 300
        pieces = list(pieces_of(lines, KEY))
        assert len(pieces) > 1
        assert max(len(made.data) for made in pieces) < log_files.BLOCK_BYTES + 2000
        assert b"".join(made.data for made in pieces) == b"".join(line.record(KEY) for line in lines)


@asynccontextmanager
async def hub_on(logs_dir, **more):
    """A hub that looks often; closed afterwards."""
    hub = LogHub(logs_dir, ManualClock(NOW_S), poll_s=0.005, **more)
    try:
        yield hub
    finally:
        await hub.close()


def ask(hub, key=KEY, **query):
    """A client that asks."""
    client = Client()
    hub.serve(client, LogQuery(**{"key": key, "since_s": 0.0, **query}))
    return client


class TestHub:
    """Streams together."""

    def test_the_past_alone(self, tmp_path):
        """NDJSON, whole, in its order; nobody looks at the files afterwards."""
        write(tmp_path / KEY, "f-1", (OLD, "one"), (NEW, "two"))

        async def scene():
            async with hub_on(tmp_path) as hub:
                client = ask(hub, tail=1)
                await client.until(lambda: client.done)
                assert hub._looking is None
                return client

        client = asyncio.run(scene())
        assert client.head == (200, {b"content-type": b"application/x-ndjson"})
        assert client.texts == ["two"]

    def test_followers_each_with_their_filters(self, tmp_path):
        """Past and new lines without a gap or a repetition; a file turned meanwhile, an instance that is new."""
        folder = tmp_path / KEY
        write(folder, "f-1", (stamp(0), "0"), (stamp(1), "1"))

        async def scene():
            async with hub_on(tmp_path) as hub:
                everything, last, other = (
                    ask(hub, follow=True), ask(hub, follow=True, tail=1), ask(hub, follow=True, instance="f-2")
                )  # fmt: skip
                await asyncio.gather(everything.until(lambda: everything.texts), last.until(lambda: last.texts))
                for number in range(2, 40):
                    write(folder, "f-1", (stamp(number), str(number)))
                    if number % 10 == 0:
                        turn(folder, "f-1")
                    await everything.until(lambda n=number: everything.texts[-1:] == [str(n)])
                late = ask(hub, follow=True, since_s=NOW_S + 35)
                write(folder, "f-2", (stamp(40), "new instance"))
                await asyncio.gather(
                    *(one.until(lambda c=one: c.texts[-1:] == ["new instance"]) for one in (everything, last, other, late))
                )  # fmt: skip
                return everything, last, other, late

        everything, last, other, late = asyncio.run(scene())
        assert everything.texts == [*map(str, range(40)), "new instance"]
        assert last.texts == [*map(str, range(1, 40)), "new instance"]
        assert other.texts == ["new instance"]
        assert late.texts == [*map(str, range(35, 40)), "new instance"]
        assert all(client.done for client in (everything, last, other, late))

    def test_the_head_is_out_before_there_is_a_line(self, tmp_path):
        """A client must see at once that its request is served."""

        async def scene():
            async with hub_on(tmp_path) as hub:
                client = ask(hub, follow=True)
                await client.until(lambda: client.head)
                assert (client.head[0], client.lines, client.done) == (200, [], False)

        asyncio.run(scene())

    def test_one_that_does_not_read_holds_up_nobody(self, tmp_path):
        """The other one is given line after line."""
        folder = tmp_path / KEY
        write(folder, "f-1", (stamp(0), "0"))

        async def scene():
            async with hub_on(tmp_path) as hub:
                stuck, reading = ask(hub, follow=True), ask(hub, follow=True)
                stuck.free.clear()
                for number in range(1, 20):
                    write(folder, "f-1", (stamp(number), str(number)))
                    await reading.until(lambda n=number: reading.texts[-1:] == [str(n)])
                assert stuck.chunks <= 1
                stuck.free.set()
                await stuck.until(lambda: stuck.texts == reading.texts)

        asyncio.run(scene())

    def test_limits(self, tmp_path):
        """In all, and for one function; a place is free again when a client has left."""

        async def scene():
            async with hub_on(tmp_path, streams_max=3, streams_per_function_max=2) as hub:
                first, second, third = ask(hub, follow=True), ask(hub, follow=True), ask(hub, follow=True)
                assert (first.answer, second.answer) == (None, None)
                assert third.answer == (429, "2 clients read the logs of 'f' already; try again later")
                assert ask(hub, "g.other", follow=True).answer is None
                status, sentence = ask(hub, "h.other", follow=True).answer
                assert (status, sentence[:28]) == (429, "3 clients read logs already;")
                first.on_gone()
                await asyncio.wait(list(hub._streams), return_when=asyncio.FIRST_COMPLETED)
                again = ask(hub, follow=True)
                await again.until(lambda: again.head)

        asyncio.run(scene())

    def test_a_removed_function_ends_its_streams_in_order(self, tmp_path):
        """After its last words, though its files are gone; a function of that name may come again."""
        folder = tmp_path / KEY
        write(folder, "f-1", (OLD, "before"))

        async def scene():
            async with hub_on(tmp_path, streams_max=3) as hub:
                client, other = ask(hub, follow=True), ask(hub, "g.openfaas-fn", follow=True)
                await client.until(lambda: client.texts == ["before"])
                write(folder, "f-1", (NEW, "last words"))
                (folder / "f-1.log").unlink()
                hub.end(KEY)
                hub.end("unknown.openfaas-fn")
                again = ask(hub, follow=True)
                await client.until(lambda: client.done)
                assert client.texts == ["before", "last words"]
                write(folder, "f-2", (NEW, "a new life"))
                await again.until(lambda: again.texts == ["a new life"])
                assert not other.done

        asyncio.run(scene())

    def test_files_are_looked_at_only_while_there_are_followers(self, tmp_path):
        """And closed when the last one has left."""
        write(tmp_path / KEY, "f-1", (OLD, "before"))

        async def scene():
            async with hub_on(tmp_path) as hub:
                client = ask(hub, follow=True)
                await client.until(lambda: client.texts)
                channel, looking = hub._channels[KEY], hub._looking
                client.on_gone()
                async with asyncio.timeout(30):
                    await looking
                assert (hub._channels, channel.follow.positions(), client.done) == ({}, {}, False)

        asyncio.run(scene())

    def test_a_file_that_cannot_be_read_breaks_only_its_own_streams(self, tmp_path, monkeypatch, caplog):
        """They are cut: a client must not take half the lines for all of them."""
        write(tmp_path / "g.openfaas-fn", "g-1", (OLD, "before"))
        broken = []
        real = Follow.look

        def look(self):
            if KEY in str(self._folder) and broken:
                raise OSError(5, "Input/output error")
            return real(self)

        monkeypatch.setattr(Follow, "look", look)

        async def scene():
            async with hub_on(tmp_path) as hub:
                client, other = ask(hub, follow=True), ask(hub, "g.openfaas-fn", follow=True)
                await other.until(lambda: other.texts)
                await client.until(lambda: client.head)
                broken.append(True)
                await client.until(lambda: client.cut)
                write(tmp_path / "g.openfaas-fn", "g-1", (NEW, "after"))
                await other.until(lambda: other.texts == ["before", "after"])
                assert not client.done

        asyncio.run(scene())
        assert "the logs of f.openfaas-fn can no longer be read" in caplog.text

    def test_close_ends_streams_in_order(self, tmp_path, monkeypatch):
        """With what was written last; one that does not read is cut short; a new request is refused."""
        monkeypatch.setattr("infless_provider.log_hub.CLOSE_S", 60)
        write(tmp_path / KEY, "f-1", (OLD, "before"))

        async def scene():
            async with hub_on(tmp_path) as hub:
                client, stuck, past = ask(hub, follow=True), ask(hub, follow=True), ask(hub)
                stuck.free.clear()
                past.free.clear()
                await client.until(lambda: client.texts)
                await past.until(lambda: past.texts)
                write(tmp_path / KEY, "f-1", (NEW, "last"))
                closing = asyncio.ensure_future(hub.close())
                await client.until(lambda: client.done)
                await forward(61)
                await closing
                assert client.texts == ["before", "last"]
                assert (client.done, stuck.done, past.done, past.cut) == (True, True, False, True)
                assert ask(hub).answer == (503, "the provider stops")

        with asyncio.Runner(loop_factory=HurriedLoop) as runner:
            runner.run(scene())
