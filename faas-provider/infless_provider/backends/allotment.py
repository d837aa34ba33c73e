"""What of this machine instances get: all that is there, or what `cluster.yml` says of it; and which CPUs each one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from infless_core.errors import InvalidInput
from infless_core.model import Gpu, Server
from infless_core.units import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterServer:
    """One server of the file."""

    server: Server
    cpus: tuple[int, ...] = ()
    """Which CPUs (`cpuset`); empty leaves the choice to the backend."""


def allot(
    cluster: ClusterServer | None,
    cpus: Sequence[int],
    memory_bytes: int,
    gpus: tuple[Gpu, ...] = (),
    no_gpus: str = "",
) -> tuple[Server, tuple[int, ...]]:
    """The server, and the CPUs that its instances run on.

    Args:
        cluster: what is wished; None takes all there is.
        cpus: that this provider may use.
        memory_bytes: of this machine.
        gpus: that were found here; none where nobody can say.
        no_gpus: why instances cannot be given any; empty when they can.

    Raises:
        InvalidInput: the wish is more than there is; a sentence for each kind. Or there is nothing.
    """
    if not cpus:
        raise InvalidInput("there is no CPU that instances may use")
    if cluster is None:
        return Server(id="local", cpu_cores=len(cpus), memory_bytes=memory_bytes, gpus=gpus), tuple(cpus)
    server, faults = cluster.server, []
    where = f"cluster file, server {server.id!r}"
    strange = [cpu for cpu in cluster.cpus if cpu not in cpus]
    if strange:
        listed = ", ".join(map(str, strange))
        faults.append(f"{where}: cpuset names CPUs that are not there: {listed}; there are {', '.join(map(str, cpus))}")
    elif server.cpu_cores > len(cpus):
        faults.append(f"{where}: cpu_cores is {server.cpu_cores}, and this machine has {len(cpus)} for us")
    if server.memory_bytes > memory_bytes:
        stated, there = format_bytes(server.memory_bytes), format_bytes(memory_bytes)
        faults.append(f"{where}: memory is {stated}, and this machine has {there}")
    there_are = [gpu.id for gpu in gpus]
    absent = [gpu.id for gpu in server.gpus if there_are and gpu.id not in there_are]
    if server.gpus and no_gpus:
        faults.append(f"{where}: it has GPUs, and {no_gpus}")
    elif absent:
        faults.append(f"{where}: no GPU has the id {', '.join(absent)}; there are {', '.join(there_are)}")
    if faults:
        raise InvalidInput("\n".join(faults))
    return server, cluster.cpus or tuple(cpus)[-server.cpu_cores :]


def pick_cores(cpus: Sequence[int], taken: Counter[int], count: int, held: Sequence[int] = ()) -> tuple[int, ...]:
    """The `count` CPUs for an instance: first those that it holds, then those with the fewest others on them.

    Args:
        cpus: what there is.
        taken: how many other instances are on each.
        count: how many it gets.
        held: those that it has now.
    """
    ranked = sorted(cpus, key=lambda cpu: (cpu not in held, taken[cpu], cpu))
    return tuple(sorted(ranked[:count]))
