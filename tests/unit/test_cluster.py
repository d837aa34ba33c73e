"""cluster.yml: what it may say, and every fault with its place."""

from pathlib import Path

import pytest

from infless_core.errors import InvalidInput
from infless_core.model import Gpu, Server
from infless_provider.cluster import read_cluster

WHOLE = """
version: 1
servers:
  - id: box
    cpu_cores: 6
    cpuset: 2-5, 8,9
    memory: 16Gi
    gpus:
      - {id: 0, memory: 24Gi}
      - {id: GPU-1a2b, memory: 80G}
"""
ONE = "version: 1\nservers:\n  - "


def written(folder: Path, text: str) -> Path:
    """A file of that text."""
    path = folder / "cluster.yml"
    path.write_text(text)
    return path


def faults_of(folder: Path, text: str) -> list[str]:
    """The lines of the refusal, without the file's name."""
    path = written(folder, text)
    with pytest.raises(InvalidInput) as caught:
        read_cluster(path)
    return [line.removeprefix(f"{path}: ") for line in str(caught.value).splitlines()]


def test_a_whole_file(tmp_path):
    """Everything that may be said."""
    found = read_cluster(written(tmp_path, WHOLE))
    gpus = (Gpu(id="0", memory_bytes=24 << 30), Gpu(id="GPU-1a2b", memory_bytes=80 * 10**9))
    assert found.server == Server(id="box", cpu_cores=6, memory_bytes=16 << 30, gpus=gpus)
    assert found.cpus == (2, 3, 4, 5, 8, 9)


@pytest.mark.parametrize(
    ("server", "cores", "cpus"),
    [
        ("{id: a, cpu_cores: 2, memory: 1Gi}", 2, ()),
        ("{id: a, cpuset: 3, memory: 1073741824}", 1, (3,)),
        ("{id: a, cpuset: '1,0', memory: 1Gi}", 2, (0, 1)),
    ],
)
def test_cores_are_counted_or_named(tmp_path, server, cores, cpus):
    """One of the two is enough."""
    found = read_cluster(written(tmp_path, ONE + server))
    assert (found.server.cpu_cores, found.cpus, found.server.memory_bytes) == (cores, cpus, 1 << 30)


def test_all_faults_at_once(tmp_path):
    """Each with its place and what is allowed."""
    text = ONE + "{id: '', cpu_cores: 0, memory: lots, colour: red, gpus: [{id: x}, {id: y, memory: 0}]}"
    assert faults_of(tmp_path, text) == [
        "$.servers[0].colour: unknown key; known are id, cpu_cores, cpuset, memory, gpus",
        "$.servers[0].id: '' is not a text of at least one letter",
        "$.servers[0].memory: 'lots' is not an amount of memory above 0; write for example 16Gi",
        "$.servers[0].gpus[0].memory: missing",
        "$.servers[0].gpus[1].memory: 0 is not an amount of memory above 0; write for example 16Gi",
        "$.servers[0].cpu_cores: 0 is not a whole number of at least 1",
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[1]", "$: [1] is not an object"),
        ("", "$: None is not an object"),
        ("version: 2\nservers: []", "$.version: unknown version; this provider reads version 1"),
        ("version: 1\nservers: []", "$.servers: 0 servers; this machine is one"),
        ("version: 1\nservers: 5", "$.servers: 5 is not a list"),
        ("version: 1", "$.servers: missing"),
        (ONE + "{id: a, memory: 1Gi}", "$.servers[0].cpu_cores: missing, and there is no cpuset; state one of them"),
        (ONE + "{id: a, cpu_cores: 1, memory: }", "$.servers[0].memory: missing"),
        (ONE + "{id: a, cpu_cores: 1, memory: true}", "$.servers[0].memory: True is not an amount of memory"),
        (ONE + "{id: a, cpu_cores: 1, memory: 1.5}", "$.servers[0].memory: 1.5 is not an amount of memory"),
        (ONE + "{id: a, cpu_cores: 3, cpuset: 0-1, memory: 1Gi}", "cpuset: it names 2 CPUs, and cpu_cores is 3"),
        (ONE + "{id: a, cpuset: 3-1, memory: 1Gi}", "$.servers[0].cpuset: '3-1' is not a set of CPUs"),
        (ONE + "{id: a, cpuset: '0,0', memory: 1Gi}", "$.servers[0].cpuset: '0,0' is not a set of CPUs"),
        (ONE + "{id: a, cpuset: 0-99999, memory: 1Gi}", "$.servers[0].cpuset: '0-99999' is not a set of CPUs"),
        (ONE + "{id: a, cpuset: all, memory: 1Gi}", "$.servers[0].cpuset: 'all' is not a set of CPUs"),
        (
            ONE + "{id: a, cpu_cores: 1, memory: 1Gi, gpus: [{id: 0, memory: 1Gi}, {id: '0', memory: 1Gi}]}",
            "$.servers[0].gpus: '0' is there twice; ids are unique within their list",
        ),
        (ONE + "{id: a, cpu_cores: 1, memory: 1Gi, cpu_cores: 2}", "line 3: the key 'cpu_cores' appears twice"),
        ("a: [", "is not valid YAML"),
        ("a: !!python/name:os.system", "is not valid YAML"),
    ],
)
def test_a_fault_is_told(tmp_path, text, fault):
    """What is wrong, and where."""
    assert any(fault in line for line in faults_of(tmp_path, text)), faults_of(tmp_path, text)


def test_several_servers_are_the_job_of_kubernetes(tmp_path):
    """All of them are checked anyway."""
    text = ONE + "{id: a, cpu_cores: 1, memory: 1Gi}\n  - {id: b, cpu_cores: -1, memory: 1Gi}"
    assert faults_of(tmp_path, text) == [
        "$.servers[1].cpu_cores: -1 is not a whole number of at least 1",
        "$.servers: 2 servers; this machine is one: several machines are the job of Kubernetes",
    ]


def test_a_file_that_cannot_be_read_is_told(tmp_path):
    """Missing, or no text."""
    with pytest.raises(InvalidInput, match=r"none.yml cannot be read: No such file"):
        read_cluster(tmp_path / "none.yml")
    (tmp_path / "odd.yml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInput, match="odd.yml cannot be read"):
        read_cluster(tmp_path / "odd.yml")
