"""The queue on disk: what was told to be there is there, whatever happens next."""

import asyncio
import sqlite3
import stat
from contextlib import asynccontextmanager, closing

import pytest

from infless_core.errors import StateError
from infless_provider.async_store import (
    _MIGRATIONS,
    Count,
    QueuedCall,
    QueueStore,
    StoredAnswer,
    StoredRequest,
    _pack,
)

HEADERS = ((b"content-type", b"text/plain"), (b"x-empty", b""), (b"x-colon", b"a: b"), (b"x-latin", b"\xe4"))
REQUEST = StoredRequest(target="/p?q=1", headers=HEADERS, body=b"\x00body")
ANSWER = StoredAnswer(status=201, failed=False, took_s=0.5, headers=HEADERS, body=b"answer")


@pytest.fixture
def file(tmp_path):
    """Where the queue lives."""
    return tmp_path / "state" / "queue.sqlite"


def call(seq=1, id_="a", function="f.n", **more):
    """A call in the queue."""
    fields = {"accepted_ns": 5, "callback": "http://t/", "size_bytes": 5, **more}
    return QueuedCall(seq=seq, id=id_, function=function, **fields)


@asynccontextmanager
async def opened(file):
    """A store, and what it found."""
    store = QueueStore(file)
    try:
        yield store, await store.open()
    finally:
        await store.close()


def rows(file, query):
    """What another program reads from the closed file."""
    with closing(sqlite3.connect(file)) as db:
        return db.execute(query).fetchall()


async def counted(store):
    """The functions that have counts."""
    return await store._db.do(lambda db: [name for (name,) in db.execute("SELECT function FROM book ORDER BY 1")])


def test_a_call_comes_back_as_it_was(file):
    """With its request, byte for byte, and its count."""

    async def run():
        async with opened(file) as (store, found):
            assert found.calls == ()
            assert found.books == {}
            await store.accept(call(), REQUEST)
        async with opened(file) as (store, found):
            assert found.calls == (call(),)
            assert found.books["f.n"][Count.ACCEPTED] == 1
            assert await store.request(call()) == REQUEST

    asyncio.run(run())


def test_an_answer_takes_the_requests_place(file):
    """Its tries are counted anew, and the request's body is gone."""

    async def run():
        async with opened(file) as (store, _):
            await store.accept(call(), REQUEST)
            await store.retry(call(), 3)
            await store.answered(call(), ANSWER)
        async with opened(file) as (store, found):
            assert found.calls == (call(answered=True, size_bytes=6),)
            assert found.books["f.n"][Count.RETRIED] == 1
            assert await store.answer(call()) == ANSWER
            assert await store.request(call()) is None

    asyncio.run(run())


def test_the_end_removes_and_counts(file):
    """Nothing of the call stays but its place in the books."""

    async def run():
        async with opened(file) as (store, _):
            await store.accept(call(), REQUEST)
            await store.answered(call(), ANSWER)
            await store.end(call(), Count.DONE, Count.CALLBACKS_OK)
        async with opened(file) as (_, found):
            assert found.calls == ()
            book = found.books["f.n"]
            assert (book[Count.ACCEPTED], book[Count.DONE], book[Count.CALLBACKS_OK]) == (1, 1, 1)

    asyncio.run(run())
    assert [rows(file, f"SELECT count(*) FROM {table}") for table in ("request", "answer")] == [[(0,)], [(0,)]]


def test_the_same_id_may_wait_many_times(file):
    """A chain of calls has one trace; each of its calls is one of its own."""

    async def run():
        async with opened(file) as (store, _):
            await store.accept(call(seq=1), REQUEST)
            await store.accept(call(seq=2, function="g.n"), REQUEST)
            await store.accept(call(seq=3), REQUEST)

    asyncio.run(run())
    assert rows(file, "SELECT seq FROM call ORDER BY seq") == [(1,), (2,), (3,)]
    assert rows(file, "SELECT accepted FROM book ORDER BY function") == [(2,), (1,)]


def test_a_queue_of_the_first_schema_is_taken_over(file):
    """With all that waits in it; then an id may wait twice there, too."""
    file.parent.mkdir()
    with closing(sqlite3.connect(file)) as db:
        db.executescript(_MIGRATIONS[0])
        db.execute("INSERT INTO call VALUES (7, 'f.n', 'a', 5, 'http://t/', 5, 2, 0)")
        db.execute("INSERT INTO request VALUES (7, '/p?q=1', ?, ?)", (_pack(HEADERS), REQUEST.body))
        db.execute("INSERT INTO book (function, accepted) VALUES ('f.n', 1)")
        db.execute("PRAGMA user_version = 1")
        db.commit()

    async def run():
        async with opened(file) as (store, found):
            assert found.calls == (call(seq=7, attempts=2),)
            assert await store.request(call(seq=7)) == REQUEST
            await store.accept(call(seq=8, idempotency_key="k", digest=b"d"), REQUEST)
        async with opened(file) as (_, found):
            assert found.calls == (call(seq=7, attempts=2), call(seq=8, idempotency_key="k", digest=b"d"))
            assert found.books["f.n"][Count.ACCEPTED] == 2

    asyncio.run(run())


def test_counts_are_forgotten_when_nothing_waits(file):
    """Those of one function; while a call of it waits they balance, so they stay."""

    async def run():
        async with opened(file) as (store, _):
            await store.accept(call(seq=1), REQUEST)
            await store.accept(call(seq=2, function="g.n"), REQUEST)
            await store.forget("f.n")
            assert await counted(store) == ["f.n", "g.n"]
            await store.end(call(seq=1), Count.DONE)
            await store.forget("f.n")
            assert await counted(store) == ["g.n"]

    asyncio.run(run())


def test_one_that_cannot_be_stored_takes_nobody_with_it(file):
    """Changes share a transaction; when one spoils it the others still happen, in order."""

    async def run():
        async with opened(file) as (store, _):
            changes = [store.accept(call(seq=n % 5, id_=f"{n}"), REQUEST) for n in range(6)]
            told = await asyncio.gather(*changes, return_exceptions=True)
            assert [isinstance(one, StateError) for one in told] == [False] * 5 + [True]

    asyncio.run(run())
    assert rows(file, "SELECT id FROM call ORDER BY seq") == [(f"{n}",) for n in range(5)]


def test_many_calls_share_a_transaction(file, monkeypatch):
    """Those that come while the disk is busy go together: a fraction of the transactions, so of the fsyncs."""
    real, transactions = sqlite3.connect, []

    def connect(*args, **kwargs):
        db = real(*args, **kwargs)
        db.set_trace_callback(lambda statement: transactions.append(1) if statement == "COMMIT" else None)
        return db

    async def run():
        async with opened(file) as (store, _):
            transactions.clear()
            await asyncio.gather(*(store.accept(call(seq=n, id_=str(n)), REQUEST) for n in range(500)))

    monkeypatch.setattr(sqlite3, "connect", connect)
    asyncio.run(run())
    assert 1 <= len(transactions) <= 50


def test_a_full_disk_refuses_a_call_and_still_lets_one_go(file):
    """Removing must work just then; and when there is room again, so does adding."""

    async def run():
        async with opened(file) as (store, _):
            await store.accept(call(), REQUEST)
            await store._db.do(lambda db: db.execute("PRAGMA max_page_count = 20").fetchone())
            big = StoredRequest(target="/", headers=(), body=bytes(200_000))
            full, gone = await asyncio.gather(
                store.accept(call(seq=2, id_="b"), big), store.end(call(), Count.DONE), return_exceptions=True
            )
            assert isinstance(full, StateError)
            assert "full" in str(full)
            assert gone is None
            await store._db.do(lambda db: db.execute("PRAGMA max_page_count = 1000").fetchone())
            await store.accept(call(seq=2, id_="b"), big)
            assert await store.request(call(seq=2)) == big

    asyncio.run(run())
    assert rows(file, "SELECT accepted, done FROM book") == [(2, 1)]


def test_only_its_owner_reads_the_files(file):
    """Bodies and headers of users are in all three, whatever the umask and an earlier mode."""
    file.parent.mkdir()
    file.touch(0o644)

    async def run():
        async with opened(file) as (store, _):
            await store.accept(call(), REQUEST)
            return {path.name: stat.S_IMODE(path.stat().st_mode) for path in file.parent.iterdir()}

    modes = asyncio.run(run())
    assert modes["queue.sqlite"] == 0o600
    assert set(modes.values()) == {0o600}
    assert len(modes) >= 2


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda file: file.write_bytes(b"not a database" * 100), "cannot be used.*not a database"),
        (lambda file: file.mkdir(), "cannot be opened"),
        (lambda file: rows(file, "PRAGMA user_version = 99"), "newer INFless .schema 99."),
    ],
)
def test_a_file_that_cannot_be_used_is_named(file, damage, sentence):
    """With the path, and why."""
    file.parent.mkdir()
    damage(file)
    with pytest.raises(StateError, match=sentence) as told:
        asyncio.run(_open_only(file))
    assert str(file) in str(told.value)


async def _open_only(file):
    async with opened(file):
        pass


def test_two_providers_do_not_share_a_queue(file, monkeypatch):
    """Every call would run twice."""
    monkeypatch.setattr("infless_provider.group_commit._LOCK_WAIT_S", 0.01)

    async def run():
        async with opened(file):
            with pytest.raises(StateError, match="another provider uses it"):
                await _open_only(file)
        async with opened(file):
            pass

    asyncio.run(run())


def test_a_closed_store_takes_nothing(file):
    """And closing twice is no error."""

    async def run():
        async with opened(file) as (store, _):
            under_way = store.accept(call(), REQUEST)
            await store.close()
            assert under_way.done()
            with pytest.raises(StateError, match="closed"):
                await store.accept(call(seq=2, id_="b"), REQUEST)

    asyncio.run(run())
    assert rows(file, "SELECT id FROM call") == [("a",)]
