"""`GET /system/logs`: the query, the files, and the stream."""

import asyncio
import json

import pytest

from infless_core.errors import InvalidInput
from infless_provider import logs
from infless_provider.logs import LogQuery, LogReader, parse_query

NOW_S = 1_800_000_000.0
OLD, NEW = "2026-11-23T22:00:00.000001Z", "2026-11-23T22:00:01.000000Z"


class Client:
    """An exchange that keeps what is written."""

    def __init__(self):
        self.head, self.chunks, self.done, self.cut = None, [], False, False

    def begin(self, status, headers):
        """The head is out."""
        self.head = (status, dict(headers))

    def write(self, chunk):
        """One flushed piece."""
        self.chunks.append(json.loads(chunk))

    async def writable(self):
        """A client that takes everything."""

    def end(self):
        """A whole answer."""
        self.done = True

    def abort(self):
        """A broken one."""
        self.cut = True


@pytest.fixture
def folder(tmp_path):
    """Logs of two instances."""
    (tmp_path / "f-1.log").write_text(f"{OLD} one\n{NEW} three\nno time in front\n{NEW} half a li")
    (tmp_path / "f-2.log").write_text("2026-11-23T22:00:00.500000Z two\n")
    return tmp_path


def read(folder, **query):
    """Texts that a fresh reader finds."""
    return [line.text for line in LogReader(folder, LogQuery(name="f", since_s=0, **query)).new_lines()]


def test_the_clis_query():
    """`tail=-1` is all, `follow` as sent, the namespace dropped from the name."""
    query = parse_query(
        "follow=true&name=f.openfaas-fn&namespace=openfaas-fn&tail=-1&since=2026-11-23T22:03:59Z", NOW_S
    )
    assert query == LogQuery(name="f", since_s=1795471439.0, tail=0, follow=True)


def test_the_least_query():
    """The last five minutes, all lines, no following."""
    assert parse_query("name=f", NOW_S) == LogQuery(name="f", since_s=NOW_S - 300)


def test_of_repeated_keys_the_last_counts():
    """As in the SDK."""
    assert parse_query("name=a&name=f&tail=5&tail=7&follow=false&instance=f-1", NOW_S).tail == 7


@pytest.mark.parametrize("follow", ["0", "no", "", "yes please"])
def test_a_follow_that_cannot_be_parsed_is_false(follow):
    """As in the SDK."""
    assert not parse_query(f"name=f&follow={follow}", NOW_S).follow


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("", "name is missing"),
        ("name=.openfaas-fn", "name is missing"),
        ("name=f&tail=ten", "tail: 'ten' is not a whole number"),
        ("name=f&tail=1_0", "tail: '1_0' is not"),
        ("name=f&tail=1.5", "tail: '1.5' is not"),
        ("name=f&since=yesterday", "since: 'yesterday' is not a time"),
        ("name=f&since=2026-11-23T22:03:59", "is not a time such as"),
        ("name=f&namespace=other", "namespace 'other' does not exist"),
    ],
)
def test_a_wrong_query_is_named(query, sentence):
    """The service answers it with 422."""
    with pytest.raises(InvalidInput, match=sentence.replace(".", r"\.")):
        parse_query(query, NOW_S)


def test_lines_of_all_instances_in_order_of_time(folder):
    """Without what is no log line, and without a line that is not complete."""
    assert read(folder) == ["one", "two", "three"]


def test_lines_of_one_instance(folder):
    """Whose name cannot lead out of the folder."""
    assert read(folder, instance="f-2") == ["two"]
    assert read(folder, instance="../f-2") == []


def test_new_lines_only(folder):
    """A second look finds what was written since, the completed half line too."""
    reader = LogReader(folder, LogQuery(name="f", since_s=0))
    reader.new_lines()
    with (folder / "f-1.log").open("a") as file:
        file.write(f"ne\n{NEW} four\n")
    assert [line.text for line in reader.new_lines()] == ["half a line", "four"]


def test_a_file_that_was_rotated(folder):
    """It is shorter now: read from its start."""
    reader = LogReader(folder, LogQuery(name="f", since_s=0))
    reader.new_lines()
    (folder / "f-1.log").write_text(f"{NEW} fresh\n")
    assert [line.text for line in reader.new_lines()] == ["fresh"]


def test_lines_before_since_are_left_out(folder):
    """By their own time."""
    reader = LogReader(folder, LogQuery(name="f", since_s=logs.parse_rfc3339_s(NEW)))
    assert [line.text for line in reader.new_lines()] == ["three"]


def test_a_function_that_has_not_logged(tmp_path):
    """No folder yet: no lines."""
    assert read(tmp_path / "none") == []


def stream(folder, client=None, **query):
    """Stream to a client."""
    client, query = client or Client(), LogQuery(name="f", since_s=0, **query)
    asyncio.run(logs.stream(client, LogReader(folder, query), query))
    return client


def test_the_answer_is_ndjson(folder):
    """With every field of the protocol, one object a piece."""
    client = stream(folder, tail=1)
    assert client.head == (200, {b"content-type": b"application/x-ndjson"})
    assert client.chunks == [
        {"name": "f", "namespace": "openfaas-fn", "instance": "f-1", "timestamp": NEW, "text": "three"}
    ]
    assert client.done


def test_following_goes_on_until_the_client_leaves(folder, monkeypatch):
    """New lines come as they are written."""
    monkeypatch.setattr(logs, "POLL_S", 0.01)

    class Leaving(Client):
        def write(self, chunk):
            super().write(chunk)
            if len(self.chunks) == 3:
                with (folder / "f-2.log").open("a") as file:
                    file.write(f"{NEW} live\n")
            self.done = len(self.chunks) == 4

    assert [line["text"] for line in stream(folder, Leaving(), follow=True).chunks] == ["one", "two", "three", "live"]


def test_a_stream_that_fails_is_cut(folder, monkeypatch):
    """A client must not take half the lines for all of them."""
    monkeypatch.setattr(LogReader, "new_lines", lambda self: 1 / 0)
    client = Client()
    with pytest.raises(ZeroDivisionError):
        stream(folder, client)
    assert client.cut
    assert not client.done
