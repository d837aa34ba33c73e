"""Open-loop load: honest figures, requests sent when they are due, and the command around them."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import math
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hurried_clock import HurriedLoop, forward

from infless_core.errors import InvalidInput
from infless_provider import report
from infless_provider.cli import main
from infless_provider.replay import Shot, Stream, Tick, parse_url, replay, summarise
from infless_provider.replay_cli import read_rates, summary_text
from infless_provider.shots import percentile

# Figures ------------------------------------------------------------------------------------------------------------


def shot(at_s: float = 0.0, latency_s: float = 0.01, status: int = 200, **more: Any) -> Shot:
    """A shot with defaults for what a test is not about."""
    return Shot(
        **{"at_s": at_s, "function": "f", "status": status, "latency_s": latency_s, "ok": status == 200, **more}
    )


def test_percentiles_are_nearest_rank() -> None:
    """A percentile is a latency that really happened."""
    values = [float(value) for value in range(100, 0, -1)]
    assert [percentile(values, p) for p in (0, 1, 50, 99, 99.1, 100)] == [1, 1, 50, 99, 100, 100]
    assert percentile([], 99) == 0.0
    assert percentile([3.0], 1) == 3.0


def test_a_failure_counts_as_infinitely_late_however_fast_it_was() -> None:
    """Failing fast, or answering wrongly, never improves a figure."""
    shots = [shot(at_s=t / 100) for t in range(97)]
    shots += [shot(latency_s=1e-6, status=503), shot(latency_s=1e-6, ok=False), shot(status=0, fault="timeout")]
    summary = summarise(shots, target_s=0.1, duration_s=1.0)
    assert (summary.p50_s, summary.p95_s, summary.p99_s) == (0.01, 0.01, math.inf)
    assert summary.share_within_target == 0.97
    assert (summary.errors, summary.wrong, summary.failed) == ({"503": 1, "timeout": 1}, 1, 3)
    assert (summary.offered_rps, summary.achieved_rps) == (100, 97 / 1.0)
    assert json.loads(json.dumps(summary.as_json(), allow_nan=False))["p99_s"] is None


def test_stragglers_lower_the_achieved_rate() -> None:
    """A server that answers after the load has ended did not achieve the offered rate."""
    summary = summarise([shot(at_s=t / 10, latency_s=1.0) for t in range(10)], target_s=0.1, duration_s=1.0)
    assert summary.offered_rps == 10
    assert summary.achieved_rps == pytest.approx(10 / 1.9)


def test_no_requests_make_a_summary_of_zeros() -> None:
    """Silence is no error."""
    summary = summarise([], target_s=0.1, duration_s=5)
    assert (summary.requests, summary.p99_s, summary.share_within_target, summary.failed) == (0, 0.0, 0.0, 0)


def test_the_load_generators_own_lateness_is_told() -> None:
    """A figure that the client spoilt says so."""
    spoilt = summarise([shot(late_s=0.05)], target_s=0.1)
    assert "load generator itself was 50ms late" in summary_text(spoilt)
    assert "load generator" not in summary_text(summarise([shot(late_s=0.001)], target_s=0.1))


# Sending ------------------------------------------------------------------------------------------------------------

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Peer:
    """A server that answers each request through `answer`, and remembers when each came."""

    def __init__(self, *, stall_s: float = 0.0, answer: bytes = OK) -> None:
        self.stall_s = stall_s
        self.answer = answer
        self.came_s: list[float] = []
        self.bodies: list[bytes] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.append(task)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.came_s.append(asyncio.get_running_loop().time())
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                self.bodies.append(await reader.readexactly(length))
                await asyncio.sleep(self.stall_s)
                writer.write(self.answer)
        writer.close()

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """The server's URL while it runs."""
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0, backlog=512)
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/function/f"
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks)


def run(peer: Peer, arrivals_s: list[float], timeout_s: float = 5.0, max_connections: int = 512, **stream: Any) -> Any:
    """The shots of one stream at one peer."""

    async def load() -> list[Shot]:
        async with peer.listening() as url:
            streams = [Stream(function="f", url=url, arrivals_s=arrivals_s, **stream)]
            return await replay(streams, timeout_s=timeout_s, max_connections=max_connections)

    return asyncio.run(load())


def test_requests_go_out_when_due_although_the_server_stalls() -> None:
    """An open loop: no request waits for the answer of another, and the stall is in every latency."""
    peer = Peer(stall_s=0.2)
    arrivals_s = [place / 100 for place in range(20)]
    shots = run(peer, arrivals_s)
    gaps_s = [came - peer.came_s[0] - due for came, due in zip(peer.came_s, arrivals_s, strict=True)]
    closed_loop_s = peer.stall_s * (len(arrivals_s) - 1) - arrivals_s[-1]
    assert max(gaps_s) < closed_loop_s / 2
    assert all(one.ok and one.latency_s >= peer.stall_s for one in shots)


def test_waiting_for_a_connection_counts_from_the_due_time() -> None:
    """A client with one connection cannot hide the queue that it makes itself."""
    shots = run(Peer(stall_s=0.05), [0.0, 0.0, 0.0, 0.0], max_connections=1)
    assert [round(one.latency_s / 0.05) >= place + 1 for place, one in enumerate(shots)] == [True] * 4
    assert shots[-1].late_s > 0.1


def test_a_request_is_never_sent_early() -> None:
    """Timers that fire early must not make latencies look shorter."""
    shots = run(Peer(), [place / 250 for place in range(50)])
    assert all(one.late_s >= 0 for one in shots)


def test_timeouts_count_from_the_due_time_and_are_errors() -> None:
    """The time limit holds for what waits for a connection as well."""
    shots = run(Peer(stall_s=60.0), [0.0, 0.01], timeout_s=0.1, max_connections=1)
    assert [(one.status, one.ok, one.fault) for one in shots] == [(0, False, "timeout")] * 2
    assert all(0.1 <= one.latency_s < 15 for one in shots)


def test_bodies_are_sent_in_turn_and_each_answer_is_checked() -> None:
    """A wrong answer is told apart from an error; a check that raises has found a wrong answer."""
    asked: list[tuple[int, int, bytes]] = []

    def check(index: int, status: int, body: bytes) -> bool:
        asked.append((index, status, body))
        if index == 2:
            raise KeyError("segments")
        return index == 0

    peer = Peer()
    shots = run(peer, [0.0, 0.02, 0.04, 0.06], max_connections=1, bodies=[b"a", b"b", b"c"], check=check)
    assert peer.bodies == [b"a", b"b", b"c", b"a"]
    assert asked == [(0, 200, b"ok"), (1, 200, b"ok"), (2, 200, b"ok"), (0, 200, b"ok")]
    assert [one.ok for one in shots] == [True, False, False, True]
    assert summarise(shots, 1.0).wrong == 2


@pytest.mark.parametrize(
    ("answer", "status", "fault"),
    [
        (b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n", 503, ""),
        (b"nonsense\r\n\r\n", 0, "broken"),
    ],
    ids=["503", "garbage"],
)
def test_failures_are_named(answer: bytes, status: int, fault: str) -> None:
    """By their status, or by why no answer came."""
    (one,) = run(Peer(answer=answer), [0.0])
    assert (one.status, one.fault, one.ok) == (status, fault, False)


def test_several_functions_share_one_clock_and_tell_each_second() -> None:
    """Streams are merged by due time; ticks add up to all shots."""
    ticks: list[Tick] = []

    async def load() -> list[Shot]:
        peer = Peer()
        async with peer.listening() as url:
            first = Stream(function="a", url=url, arrivals_s=[0.0, 0.02, 1.05])
            second = Stream(function="b", url=url, arrivals_s=[0.01, 1.06])
            running = asyncio.ensure_future(replay([first, second], progress=ticks.append))
            async with asyncio.timeout(30):
                while len(peer.came_s) < 3:
                    await asyncio.sleep(0.001)
            await forward(1.0)
            return await running

    with asyncio.Runner(loop_factory=HurriedLoop) as runner:
        shots = runner.run(load())
    assert [one.function for one in shots] == ["a", "b", "a", "a", "b"]
    assert len(ticks) >= 2
    assert (sum(tick.sent for tick in ticks), sum(len(tick.finished) for tick in ticks), ticks[-1].waiting) == (5, 5, 0)


def test_a_cancelled_replay_leaves_nothing_behind() -> None:
    """Ctrl-C in the middle: no task and no connection is left."""

    async def load() -> int:
        async with Peer(stall_s=5.0).listening() as url:
            task = asyncio.ensure_future(replay([Stream(function="f", url=url, arrivals_s=[0.0, 0.01, 9.0])]))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return sum("_shoot" in repr(other) for other in asyncio.all_tasks())

    assert asyncio.run(load()) == 0


@pytest.mark.parametrize("url", ["https://h/f", "h:80/f", "http://", "http://h:99999/f", "http://h/a b", "ftp://h/"])
def test_a_url_that_is_none(url: str) -> None:
    """The sentence shows what one looks like."""
    with pytest.raises(InvalidInput, match="write http://HOST"):
        parse_url(url)


# Traces -------------------------------------------------------------------------------------------------------------


def test_rates_of_a_trace(tmp_path: Path) -> None:
    """By name or number of the column, zipped or not, rows longer than a second, scaled."""
    plain, zipped = tmp_path / "t.csv", tmp_path / "t.csv.gz"
    plain.write_text("minute,a,b\n0,1,10\n1,2,20\n")
    zipped.write_bytes(gzip.compress(plain.read_bytes()))
    assert read_rates(plain, None, 1) == [10, 20]
    assert read_rates(zipped, "a", 3, scale=0.5) == [0.5, 0.5, 0.5, 1, 1, 1]
    assert read_rates(plain, "2", 1) == [1, 2]
    plain.write_text("5\n7\n")
    assert read_rates(plain, None, 1) == [5, 7]


@pytest.mark.parametrize(
    ("content", "column", "sentence"),
    [
        (b"a,b\n1,2\n", "c", "no column 'c'; there are a, b"),
        (b"a\n1\nx\n", None, "row 3: 'x' is not a rate"),
        (b"a\n-1\n", None, "row 2: '-1' is not a rate"),
        (b"a\nnan\n", None, "row 2"),
        (b"", None, "holds no rates"),
        (b"\xff\xfe", None, "cannot be read"),
    ],
)
def test_a_trace_that_is_none(tmp_path: Path, content: bytes, column: str | None, sentence: str) -> None:
    """The file, the row and the fault are named."""
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=sentence):
        read_rates(path, column, 1)


def test_a_damaged_zip_is_named(tmp_path: Path) -> None:
    """Half a download is no trace."""
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"1\n" * 1000)[:20])
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_rates(path, None, 1)


EARLY = ("--seed", "570")
"""With 3 rps in one second: three requests within its first 50 ms, so that these tests need not wait for its end."""

# The command --------------------------------------------------------------------------------------------------------


@pytest.fixture
def url() -> Iterator[str]:
    """A server in its own thread that answers 200."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/function/f"
    server.shutdown()
    thread.join()
    server.server_close()


def command(*arguments: str) -> Result:
    """`infless replay` with these arguments."""
    return CliRunner().invoke(main, ["replay", *arguments])


def test_figures_on_stdout_progress_on_stderr(url: str, tmp_path: Path) -> None:
    """`--json` prints one object and nothing else; exit 0 when every request was answered."""
    trace = tmp_path / "t.csv"
    trace.write_text("rps\n3\n")
    result = command("--url", url, "--trace", str(trace), "--target", "1s", "--json", *EARLY)
    figures = json.loads(result.stdout)
    assert result.exit_code == 0
    assert (figures["requests"], figures["errors"]) == (3, {})
    assert "/1 s  due     3  answered     3" in result.stderr


def test_failed_requests_are_exit_code_1() -> None:
    """Nobody listens: the command ends by itself and says what happened."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}/function/f"
        result = command("--url", address, "--rate", "3", "--duration-s", "1", *EARLY)
    assert result.exit_code == 1
    assert "3 x not sent" in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--url", "http://h/f"],
        ["--url", "http://h/f", "--rate", "5"],
        ["--url", "http://h/f", "--rate", "0", "--duration-s", "1"],
        ["--url", "http://h/f", "--rate", "5", "--duration-s", "1", "--trace", __file__],
        ["--url", "ftp://h/f", "--rate", "5", "--duration-s", "1"],
        ["--url", "http://h/f", "--rate", "5", "--duration-s", "1", "--target", "soon"],
        ["--url", "http://h/f", "--rate", "5", "--duration-s", "1", "--header", "novalue"],
        ["--url", "http://h/f", "--trace", "/does/not/exist.csv"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    """Nothing is sent before everything is understood."""
    assert command(*arguments).exit_code == 2


# The picture --------------------------------------------------------------------------------------------------------


def test_labels_are_spread_over_rows() -> None:
    """Neighbours get rows of their own, and the last that finds none is left out."""
    assert report.spread_labels([0, 1, 2, 20], gap_s=10, rows=2) == [0, 1, -1, 0]


def test_curves_of_a_picture() -> None:
    """Offered load by second, and a p99 that follows the answers."""
    shots = [shot(at_s=t / 10, latency_s=0.1 if t < 50 else 0.9) for t in range(100)]
    assert report.offered_per_second(shots) == [10] * 10
    rolling = dict(report.rolling_p99(shots))
    assert (rolling[1.0], rolling[9.0]) == (0.1, 0.9)
    assert report.rolling_p99([shot(ok=False)]) == []


def test_a_picture_of_everything(tmp_path: Path) -> None:
    """Failures, marks, batches, an empty panel beside a full one: a PNG comes out."""
    pytest.importorskip("matplotlib")
    full = report.Panel(
        function="f",
        target_s=0.1,
        shots=(shot(0.5), shot(1.5, 0.2), shot(2.5, status=500)),
        marks=(report.Mark(at_s=0, started=True, label="(b=8,c=1)"), report.Mark(at_s=9, started=False, label="x")),
        batches=((1, 2.5),),
    )
    empty = report.Panel(function="f", target_s=0.1, shots=())
    path = tmp_path / "new" / "p.png"
    report.draw(path, [report.Column(title="a", panels=(full,)), report.Column(title="b", panels=(empty,))], "t")
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InvalidInput, match="nothing to draw"):
        report.draw(path, [])
