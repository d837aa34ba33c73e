"""What is refused before a provider on Docker is said to run."""

from dataclasses import replace

import pytest
from docker_fake import FakeEngine

from infless_core.errors import InvalidInput
from infless_provider.backends import docker_host
from infless_provider.backends.choose import check
from infless_provider.backends.docker_api import EngineAway, HostFacts
from infless_provider.settings import Settings


@pytest.fixture
def engine(monkeypatch):
    """The engine of this machine."""
    made = FakeEngine()
    monkeypatch.setattr(docker_host, "connect", lambda: made)
    return made


@pytest.fixture
def settings(tmp_path):
    """Of a provider on Docker without a cluster file."""
    return Settings(state_dir=tmp_path / "state", bundles_dir=tmp_path, backend="docker")


def with_file(settings, server):
    """The same with a cluster file of one server."""
    path = settings.bundles_dir / "cluster.yml"
    path.write_text(f"version: 1\nservers:\n  - {{id: box, {server}}}\n")
    return replace(settings, cluster_file=path)


GPU = 'cpu_cores: 1, memory: 1Mi, gpus: [{id: "0", memory: 1Gi}]'


@pytest.mark.parametrize(
    ("server", "sentence"),
    [
        ("cpu_cores: 8192, memory: 1Mi", "cpu_cores is 8192"),
        ("cpu_cores: 1, memory: 2Gi", "memory is 2 GiB, and this machine has 1 GiB"),
        ("cpu_cores: 1, cpuset: 8191, memory: 1Mi", "cpuset names CPUs that are not there: 8191"),
        (GPU, f"it has GPUs, and {docker_host.NO_GPUS}"),
    ],
)
def test_more_than_the_machine_has(engine, settings, server, sentence):
    """A sentence that names the server of the file; nothing is kept open."""
    with pytest.raises(InvalidInput, match=f"^cluster file, server 'box': {sentence}"):
        check(with_file(settings, server))
    assert engine.done == [("close",)]


def test_what_the_machine_has(engine, settings, monkeypatch):
    """Without a file, and with one that says less; nothing is kept open."""
    check(settings)
    check(with_file(settings, "cpu_cores: 1, memory: 1Mi"))
    facts = HostFacts(cpu_cores=2, memory_bytes=1 << 30, gpu_driver="nvidia")
    monkeypatch.setattr(engine, "facts", lambda: facts)
    check(with_file(settings, GPU))
    assert engine.done == [("close",)] * 3


def test_an_engine_that_is_away(engine, settings):
    """Its own sentence."""
    engine.away = "it is away"
    with pytest.raises(EngineAway, match="^it is away$"):
        check(settings)
    assert engine.done == [("close",)]


def test_processes_ask_no_engine(engine, settings):
    """Their file is read and compared all the same."""
    with pytest.raises(InvalidInput, match="cpu_cores is 8192"):
        check(with_file(replace(settings, backend="process"), "cpu_cores: 8192, memory: 1Mi"))
    assert engine.done == []
