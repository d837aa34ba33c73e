"""Histograms from a Prometheus and from instances: what is read, and one sentence for everything that may be wrong."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from infless_core.errors import BackendError, InvalidInput
from infless_profiler import scrape
from infless_profiler.prometheus import QUERY, PrometheusSource, check_url
from infless_profiler.readings import METRIC
from infless_profiler.scrape import InstanceSource, Target, parse
from infless_watchdog.metrics import Metrics

LABELS = {"infless_instance": "i", "function_name": "f.n", "batch": "8", "cpu_cores": "1", "gpu_percent": "0"}


@contextmanager
def served(
    answer: bytes, status: int = 200, asked: list[str] | None = None, wait: threading.Event | None = None
) -> Iterator[int]:
    """A server that says the same to everybody; gives its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if asked is not None:
                asked.append(self.path)
            if wait is not None:
                wait.wait(60)
            self.send_response(status)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            with suppress(OSError):  # who asked has left
                self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        if wait is not None:
            wait.set()
        server.shutdown()
        thread.join()
        server.server_close()


def vector(*samples: tuple[dict[str, str], Any]) -> bytes:
    """What Prometheus answers to an instant query."""
    result = [{"metric": labels, "value": [1.0, value]} for labels, value in samples]
    return json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}}).encode()


def histogram(**labels: str) -> list[tuple[dict[str, str], Any]]:
    """Three executions."""
    given = {**LABELS, **labels}
    return [
        ({"__name__": f"{METRIC}_bucket", "le": "0.1", **given}, "2"),
        ({"__name__": f"{METRIC}_bucket", "le": "+Inf", **given}, "3"),
        ({"__name__": f"{METRIC}_count", **given}, "3"),
        ({"__name__": f"{METRIC}_sum", **given}, "0.5"),
    ]


class TestPrometheus:
    """With prometheus-api-client."""

    pytest.importorskip("prometheus_api_client", reason="needs prometheus-api-client: pip install 'infless[profiler]'")

    def test_one_query_gives_all_parts_of_a_histogram(self) -> None:
        """Those without our labels are skipped."""
        asked: list[str] = []
        foreign = [({"__name__": f"{METRIC}_count", "batch": "1"}, "1")]
        with served(vector(*histogram(), *foreign), asked=asked) as port:
            (found,) = PrometheusSource(f"http://127.0.0.1:{port}/").read([])
        assert (found.series.function, found.count, found.total_s) == ("f.n", 3.0, 0.5)
        assert found.fault() == ""
        assert len(asked) == 1
        assert asked[0].startswith("/api/v1/query?query=")
        assert METRIC in QUERY

    def test_no_number_is_a_fault_of_its_series(self) -> None:
        """The estimator tells it, the others are read."""
        bad = [(labels, "NaN" if "le" not in labels else value) for labels, value in histogram(batch="4")]
        with served(vector(*histogram(), *bad)) as port:
            found = PrometheusSource(f"http://127.0.0.1:{port}").read([])
        assert sorted(one.fault() for one in found) == ["", "a value that is negative or no number"]

    @pytest.mark.parametrize(
        ("answer", "status", "words"),
        [
            (b"<html>login</html>", 200, "answers something that is no JSON"),
            (b"", 200, "answers something that is no JSON"),
            (b"[]", 200, "answers something that no Prometheus would"),
            (b'{"data": null}', 200, "answers something that no Prometheus would"),
            (b'{"data": {"result": [{"metric": {}}]}}', 200, "answers something that no Prometheus would"),
            (vector(({"__name__": f"{METRIC}_count"}, "many")), 200, "answers something that no Prometheus would"),
            (b"oops", 500, "answers with status 500"),
            (b"who are you", 401, "answers with status 401"),
            (b"later", 503, "answers with status 503"),
        ],
    )
    def test_what_is_no_answer_is_told_in_one_sentence(self, answer: bytes, status: int, words: str) -> None:
        """With its address; it was asked once only."""
        asked: list[str] = []
        with served(answer, status, asked) as port, pytest.raises(BackendError) as told:
            PrometheusSource(f"http://127.0.0.1:{port}").read([])
        assert str(told.value) == f"Prometheus at http://127.0.0.1:{port} {words}"
        assert len(asked) == 1

    def test_a_slow_one(self) -> None:
        """Its time is short."""
        with (
            served(b"", wait=threading.Event()) as port,
            pytest.raises(BackendError, match=r"does not answer within 0\.05 s"),
        ):
            PrometheusSource(f"http://127.0.0.1:{port}", timeout_s=0.05).read([])

    def test_nobody_listens(self) -> None:
        """No password of the URL is in the sentence."""
        with socket.create_server(("127.0.0.1", 0)) as sock:
            port = sock.getsockname()[1]
        with pytest.raises(BackendError) as told:
            PrometheusSource(f"http://me:secret@127.0.0.1:{port}/prom").read([])
        assert str(told.value) == f"Prometheus at http://127.0.0.1:{port}/prom cannot be reached: Connection refused"

    def test_a_refusal_is_not_the_end(self) -> None:
        """The next reading is tried anew."""
        source = PrometheusSource("http://127.0.0.1:1", timeout_s=0.5)
        for _ in range(2):
            with pytest.raises(BackendError):
                source.read([])


def test_without_the_library_the_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra."""
    monkeypatch.setitem(sys.modules, "prometheus_api_client", None)
    with pytest.raises(BackendError, match=r"prometheus-api-client is missing; pip install 'infless\[profiler\]'"):
        PrometheusSource("http://127.0.0.1:1").read([])


@pytest.mark.parametrize("url", ["127.0.0.1:9090", "ftp://x", "http://", "http://x:99999", "http://x:y", ""])
def test_what_is_no_url(url: str) -> None:
    """The option is named."""
    with pytest.raises(InvalidInput, match=r"^--prometheus: .* is not the URL of a Prometheus"):
        check_url(url, "--prometheus")


@pytest.mark.parametrize("url", ["http://127.0.0.1:9090", "https://me:x@host/prom"])
def test_what_is_a_url(url: str) -> None:
    """A slash at the end does not matter."""
    assert check_url(f"{url}/", "x") == url


def target(port: int, name: str = "i") -> Target:
    """An instance on this machine."""
    return Target(instance=name, function="f.n", host="127.0.0.1", port=port)


def real_text() -> bytes:
    """What a watchdog publishes."""
    metrics = Metrics(cpu_cores=2)
    for exec_s in (0.01, 0.02, 0.06):
        metrics.ran(4, exec_s)
    metrics.answered(200, "POST", 0.1)
    return metrics.text()


class TestInstances:
    """Their own /metrics."""

    def test_a_watchdogs_text_is_understood(self) -> None:
        """Labels of the instance come from the provider."""
        with served(real_text()) as port:
            (found,) = InstanceSource().read([target(port)])
        assert (found.series.instance, found.series.function) == ("i", "f.n")
        assert (found.series.batch, found.series.cpu_cores, found.series.gpu_percent) == (4, 2, 0)
        assert (found.count, found.total_s, found.fault()) == (3.0, pytest.approx(0.09), "")

    @pytest.mark.parametrize("bad", ["dead", "slow", "status", "text", "huge"])
    def test_one_that_fails_does_not_stop_the_others(self, bad: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """In whichever way."""
        text = {"text": b"infless_batch_exec_seconds_bucket{", "huge": b"x" * 200_000}.get(bad, b"")
        monkeypatch.setattr(scrape, "BODY_MAX_BYTES", 100_000)
        wait = threading.Event() if bad == "slow" else None
        with served(text, 500 if bad == "status" else 200, wait=wait) as port, served(real_text()) as good:
            bad_port = 1 if bad == "dead" else port
            found = InstanceSource(timeout_s=2.0).read([target(bad_port, "bad"), target(good, "good")])
            assert [one.series.instance for one in found] == ["good"]
            with pytest.raises(BackendError, match=r"none of 1 instance\(s\) can be read: .*metrics of bad: "):
                InstanceSource(timeout_s=0.2).read([target(bad_port, "bad")])

    def test_a_trickle_is_cut_off(self) -> None:
        """A byte now and then is never too late for a socket's own timeout."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            over = threading.Event()

            def trickle() -> None:
                client, _ = listener.accept()
                with client:
                    client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                    try:
                        while not over.wait(0.02):
                            client.sendall(b"#")
                    except OSError:
                        pass

            thread = threading.Thread(target=trickle)
            thread.start()
            with pytest.raises(BackendError, match=r"not whole within 1 s|timed out"):
                InstanceSource(timeout_s=1.0).read([target(listener.getsockname()[1])])
            over.set()
            thread.join()

    def test_nobody_runs(self) -> None:
        """Nothing to read is no fault."""
        assert InstanceSource().read([]) == []

    def test_an_address_of_six(self) -> None:
        """As in a URL."""
        assert Target(instance="i", function="f", host="::1", port=5).address == "[::1]:5"

    def test_older_instances_are_passed_over(self) -> None:
        """They tell no cores."""
        assert parse('infless_batch_exec_seconds_count{batch="1"} 5\n', target(1)) == []
