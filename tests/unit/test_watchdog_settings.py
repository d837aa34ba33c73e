"""The watchdog's settings: OpenFaaS's variables and forms, and every fault in one message."""

from __future__ import annotations

import math

import pytest

from infless_watchdog.settings import Settings, SettingsError, duration_s, read_settings, shapes, variable_name


def test_an_empty_environment_is_the_defaults() -> None:
    """Nothing has to be set; variables that are the function's own are left alone."""
    assert read_settings({"PATH": "/bin", "my_threshold": "x"}) == Settings()


def test_every_variable_is_read() -> None:
    """One of each kind, as a supervisor or a user writes them."""
    settings = read_settings({
        "port": "9000", "listen_fds": "3,4", "batch_max": "8", "latency_target": "200ms", "exec_timeout": "1m30s",
        "input_shape": "x=3,48,192;y=10", "keep_up_load": "0.25", "model_device": "cuda", "body_max_bytes": "1024",
    })  # fmt: skip
    assert (settings.port, settings.listen_fds, settings.batch_max) == (9000, (3, 4), 8)
    assert (settings.latency_target_s, settings.exec_timeout_s, settings.keep_up_load) == (0.2, 90.0, 0.25)
    assert settings.input_shape == {"x": (3, 48, 192), "y": (10,)}
    assert (settings.model_device, settings.body_max_bytes) == ("cuda", 1024)


def test_all_faults_are_told_at_once() -> None:
    """A line for each wrong variable, with its value and what is allowed."""
    wrong = {
        "port": "http", "metrics_port": "70000", "listen_fds": "3", "batch_max": "0", "latency_target": "fast",
        "keep_up_load": "1.5", "input_shape": "x=3x48", "model_device": "gpu", "exec_timeout": "-1s",
        "max_inflight": "-1", "queue_max": "1e3", "body_max_bytes": "64M",
    }  # fmt: skip
    with pytest.raises(SettingsError) as caught:
        read_settings(wrong)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(wrong)
    for (name, value), line in zip(sorted(wrong.items()), sorted(lines), strict=True):
        assert line.startswith(f"environment variable {name}: ")
        assert repr(value) in line


def test_the_two_ports_must_differ() -> None:
    """Requests and metrics cannot share one."""
    with pytest.raises(SettingsError, match="port, metrics_port and grpc_port: two of them are the same"):
        read_settings({"port": "8081"})


def test_handed_over_sockets_need_no_ports() -> None:
    """Then the port numbers mean nothing."""
    assert read_settings({"port": "8081", "listen_fds": "3,4"}).listen_fds == (3, 4)


@pytest.mark.parametrize("text", ["0", "0s", "0ms"])
def test_a_timeout_of_zero_is_none(text: str) -> None:
    """As in of-watchdog."""
    assert math.isinf(read_settings({"exec_timeout": text}).exec_timeout_s)


def test_a_latency_target_of_zero_is_refused() -> None:
    """No answer takes no time."""
    with pytest.raises(SettingsError, match="latency_target: '0s' is not a duration above 0"):
        read_settings({"latency_target": "0s"})


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("200ms", 0.2), ("20", 20.0), ("0.5", 0.5), ("1m30s", 90.0), ("1h", 3600.0), ("500us", 0.0005), ("1.5s", 1.5)],
)
def test_durations_are_gos(text: str, seconds: float) -> None:
    """Numbers with units, in any combination, or bare seconds."""
    assert duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "5 s", "5x", "5s5", "s5", "-5s", "1,5s", "1e3s", "nan"])
def test_other_durations_are_refused(text: str) -> None:
    """With the text in the sentence."""
    with pytest.raises(ValueError, match="is not a duration such as"):
        duration_s(text)


def test_a_lone_shape_has_no_name() -> None:
    """Models with one input need not say which."""
    assert shapes("3,48,192") == {"": (3, 48, 192)}


@pytest.mark.parametrize("text", ["x=", "x=0", "x=3,", "3x4", "x=-1", "x=3;y"])
def test_other_shapes_are_refused(text: str) -> None:
    """Sizes are whole numbers above zero."""
    with pytest.raises(ValueError, match="is not a shape such as"):
        shapes(text)


def test_variables_are_named_as_in_openfaas() -> None:
    """Our units are not in their names."""
    assert [variable_name(name) for name in ("exec_timeout_s", "body_max_bytes", "port")] == [
        "exec_timeout", "body_max_bytes", "port",
    ]  # fmt: skip
