"""What of a machine instances get: all there is, or what a cluster file takes of it, never more."""

import pytest

from infless_core.errors import InvalidInput
from infless_core.model import Gpu, Server
from infless_provider.backends.allotment import ClusterServer, allot

CPUS, MEMORY_BYTES = (0, 1, 2, 3), 8 << 30


def wish(cpus=(), gpus=(), cores=2, memory_bytes=1 << 30):
    """Of a cluster file."""
    return ClusterServer(server=Server(id="box", cpu_cores=cores, memory_bytes=memory_bytes, gpus=gpus), cpus=cpus)


def test_without_a_file_all_there_is_counts():
    """Under one name on every backend."""
    gpus = (Gpu(id="0", memory_bytes=5),)
    server, cpus = allot(None, CPUS, MEMORY_BYTES, gpus)
    assert server == Server(id="local", cpu_cores=4, memory_bytes=MEMORY_BYTES, gpus=gpus)
    assert cpus == CPUS


def test_nothing_is_not_enough():
    """Whatever is wished."""
    with pytest.raises(InvalidInput, match="there is no CPU"):
        allot(None, (), MEMORY_BYTES)


def test_a_file_takes_the_last_cores_or_names_them():
    """As `--cpu-cores` does."""
    assert allot(wish(), CPUS, MEMORY_BYTES) == (wish().server, (2, 3))
    assert allot(wish(cpus=(0, 2)), CPUS, MEMORY_BYTES)[1] == (0, 2)


def test_a_file_cannot_give_more_than_there_is():
    """A line for each."""
    greedy = wish(cores=3, memory_bytes=9 << 30, gpus=(Gpu(id="0", memory_bytes=1),))
    with pytest.raises(InvalidInput) as caught:
        allot(greedy, (0, 1), MEMORY_BYTES, no_gpus="nobody can give them")
    assert str(caught.value).splitlines() == [
        "cluster file, server 'box': cpu_cores is 3, and this machine has 2 for us",
        "cluster file, server 'box': memory is 9 GiB, and this machine has 8 GiB",
        "cluster file, server 'box': it has GPUs, and nobody can give them",
    ]
    gpus = (Gpu(id="0", memory_bytes=1), Gpu(id="1", memory_bytes=1))
    with pytest.raises(InvalidInput, match=r"server 'box': no GPU has the id 3; there are 0, 1$"):
        allot(wish(gpus=(gpus[0], Gpu(id="3", memory_bytes=1))), CPUS, MEMORY_BYTES, gpus)
    with pytest.raises(InvalidInput, match=r"cpuset names CPUs that are not there: 7; there are 0, 1$"):
        allot(wish(cpus=(1, 7)), (0, 1), MEMORY_BYTES)
