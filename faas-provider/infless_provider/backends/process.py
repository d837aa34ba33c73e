"""Instances as local processes: own session, cores, memory limit and temporary folder, a log file that outlives us."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from infless_core.errors import BackendError, Unavailable
from infless_core.model import Configuration, FunctionSpec, Server
from infless_profiler.measure import run_curve
from infless_provider import bundles, log_files
from infless_provider.backends import cgroups, instance_logs, procfs
from infless_provider.backends.allotment import ClusterServer, allot, pick_cores
from infless_provider.backends.base import Artifact, CurveOrder, Launch, Sight, Stage, Usage
from infless_provider.backends.process_instance import END_S, HOST, ProcessInstance, Remains, bury, from_handle, starved
from infless_provider.backends.process_launch import command_line, environment, mounted

LOG = logging.getLogger("infless.process")
_PROCESS = "python -m infless_watchdog"
"""What our template's `template.yml` says, and what is run here anyway."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN}
"""The machine has no room just now: no fault of what was to be started."""


class ProcessBackend:
    """Each instance is `python -m infless_watchdog` on its bundle, in a session of its own.

    Its two listening sockets are bound here and handed over, so no port can be lost between choosing and binding.

    Args:
        cpus: what instances may use.
        state_dir: where logs, temporary folders and copies of bundles are kept.
        bundles_dir: where built functions are found.
        cluster: what to use of these CPUs and the machine's memory; None is all.
        command: what runs in a bundle's folder.
    """

    name = "process"

    def __init__(
        self,
        cpus: Sequence[int],
        state_dir: Path,
        bundles_dir: Path,
        *,
        cluster: ClusterServer | None = None,
        command: Sequence[str] = (sys.executable, "-m", "infless_watchdog"),
    ) -> None:
        server, self._cpus = allot(cluster, cpus, psutil.virtual_memory().total)
        self.servers: tuple[Server, ...] = (server,)
        self.runs_as: tuple[int, int] | None = None
        self.on_event: Callable[[str], None] = lambda _: None
        self._command = tuple(command)
        home = Path(os.path.realpath(state_dir))  # processes are found again by this name
        self._logs, self._scratch, self._kept = home / "logs", home / "tmp", home / "bundles"
        self._bundles_dir = bundles_dir
        self._instances: dict[str, ProcessInstance] = {}
        self._prefix = f"infless-{hashlib.sha256(os.fsencode(home)).hexdigest()[:12]}-"
        self._place: cgroups.Place | None = None
        self._placed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._burials: set[asyncio.Future[None]] = set()

    async def open(self) -> None:
        """See `Backend.open`; without it nothing is watched, and `forget` and `sweep` wait for what they end."""
        self._limits()
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="bury")
        for id_, instance in self._instances.items():
            self._watch(id_, instance)

    async def close(self) -> None:
        """See `Backend.close`; what is being cleared up is waited for."""
        for instance in self._instances.values():
            self._unwatch(instance)
        if self._burials:
            await asyncio.wait(self._burials, timeout=2 * END_S)
        if self._threads is not None:
            self._threads.shutdown(wait=False)
        self._loop = self._threads = None

    def _watch(self, id_: str, instance: ProcessInstance) -> None:
        """Be told of its end at once; where this cannot be, whoever polls `see` learns of it later."""
        if self._loop is None or instance.watched is not None:
            return
        instance.watched = procfs.watch(instance.identity.pid)
        if instance.watched is not None:
            self._loop.add_reader(instance.watched, self._ended, id_, instance)
        elif not instance.runs:
            self._loop.call_soon(self.on_event, id_)

    def _ended(self, id_: str, instance: ProcessInstance) -> None:
        self._unwatch(instance)
        self.on_event(id_)

    def _unwatch(self, instance: ProcessInstance) -> None:
        if self._loop is not None and instance.watched is not None:
            self._loop.remove_reader(instance.watched)
            os.close(instance.watched)
            instance.watched = None

    # what a deployment runs ------------------------------------------------------------------------------------------

    def prepare(self, spec: FunctionSpec) -> Artifact:
        """See `Backend.prepare`; says what of a deployment has no effect on a local process."""
        for field in _ignored(spec):
            LOG.warning(
                "%s: %s has no effect on local processes; only containers have it (infless up --backend docker)",
                spec.key,
                field,
            )
        digest, kept = bundles.keep_copy(bundles.find_bundle(self._bundles_dir, spec.name, spec.image), self._kept)
        return Artifact(reference=str(kept), digest=digest)

    def tidy(self, used: AbstractSet[str]) -> None:
        """See `Backend.tidy`."""
        bundles.sweep(self._kept, used)

    def curve(self, order: CurveOrder) -> str:
        """See `Backend.curve`; its temporary folder lies where `sweep` finds it after a crash."""
        bundle = _bundle(order.artifact)
        try:
            self._scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
            made = tempfile.TemporaryDirectory(prefix="profile-", dir=self._scratch, ignore_cleanup_errors=True)
        except OSError as error:
            raise BackendError(f"no temporary folder can be made: {_told(error)}") from error
        with made as folder, self._limited(Path(folder).name, order.memory_bytes) as launcher:
            environment = {**order.environment, "TMPDIR": folder, **mounted(order.secrets)}
            cpus = self._cpus[-order.cpu_cores :]
            limits = order.budget_s, order.timeout_s, order.cancelled
            return run_curve(bundle, environment, order.batches, cpus, *limits, launcher)

    @contextlib.contextmanager
    def _limited(self, id_: str, memory_bytes: int) -> Iterator[list[str]]:
        """What comes before a command that is to have an instance's limits; its cgroup is gone afterwards."""
        try:
            group = self._group(id_, memory_bytes)
        except OSError as error:
            raise BackendError(f"its memory cannot be limited: {_told(error)}") from error
        try:
            yield command_line((), group, memory_bytes, _files_max())
        except BackendError as error:
            if why := starved(group, memory_bytes):
                raise BackendError(why) from error
            raise
        finally:
            if group is not None:
                cgroups.remove(group, END_S)

    # starting --------------------------------------------------------------------------------------------------------

    def start(self, launch: Launch) -> None:
        """Fork the watchdog; see `Backend.start`."""
        cores = pick_cores(self._cpus, self._taken(), launch.configuration.cpu_cores)
        folder, group = self._scratch / launch.id, None
        try:
            _bundle(launch.artifact)
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            group = self._group(launch.id, launch.memory_bytes)
            with socket.create_server((HOST, 0)) as requests, socket.create_server((HOST, 0)) as metrics:
                child = self._fork(launch, (requests.fileno(), metrics.fileno()), folder, group)
                ports = requests.getsockname()[1], metrics.getsockname()[1]
        except (OSError, ValueError, subprocess.SubprocessError, BackendError) as error:
            self._clear_up(Remains(group=group, folder=folder))
            kind = Unavailable if getattr(error, "errno", None) in _FULL else BackendError
            raise kind(f"instance {launch.id} could not be started: {_told(error)}") from error
        with contextlib.suppress(OSError):  # long before it has any thread: everything it starts inherits the cores
            os.sched_setaffinity(child.pid, cores)
        instance = ProcessInstance(
            identity=procfs.identify(child.pid) or procfs.Identity(pid=child.pid, started=""),
            port=ports[0],
            metrics_port=ports[1],
            cores=cores,
            memory_bytes=launch.memory_bytes,
            group=group,
            child=child,
        )
        self._instances[launch.id] = instance
        self._watch(launch.id, instance)

    def _taken(self) -> Counter[int]:
        return Counter(cpu for instance in self._instances.values() for cpu in instance.cores)

    def _group(self, id_: str, memory_bytes: int) -> Path | None:
        place = self._limits() if memory_bytes else None
        return None if place is None else cgroups.make(place, self._prefix + id_, memory_bytes)

    def _limits(self) -> cgroups.Place | None:
        """Where instances with a memory limit get a cgroup; found out once."""
        if not self._placed:
            self._place, self._placed = cgroups.find(f"{self._prefix}trial-{os.getpid()}"), True
            if self._place is not None:
                LOG.info("memory limits: cgroups (v%d) below %s", self._place.version, self._place.path)
            else:
                LOG.info("memory limits: RLIMIT_DATA for each process, as no cgroup can be made here")
        return self._place

    def _fork(self, launch: Launch, fds: tuple[int, int], folder: Path, group: Path | None) -> subprocess.Popen[bytes]:
        log = log_files.log_path(self._logs / launch.function, launch.id)
        instance_logs.prune(log.parent, self._instances)
        output = instance_logs.open_log(log)
        try:
            return subprocess.Popen(
                command_line(self._command, group, launch.memory_bytes, _files_max()),
                env=environment(launch, fds, folder, log),
                cwd=launch.artifact,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                pass_fds=fds,
            )
        finally:
            os.close(output)

    def adopt(self, id_: str, function: str, handle: Mapping[str, Any]) -> bool:  # noqa: ARG002 - the handle has it all
        """See `Backend.adopt`. A reused process id is told apart by its start time."""
        instance = from_handle(handle, self._prefix + id_)
        if instance is None or not instance.runs:
            return False
        self._instances[id_] = instance
        self._watch(id_, instance)
        return True

    # watching --------------------------------------------------------------------------------------------------------

    def see(self, id_: str) -> Sight:
        """See `Backend.see`; also reaps children that have ended."""
        instance = self._instances.get(id_)
        if instance is None:
            return Sight(stage=Stage.ENDED)
        why = instance.starved
        if why:  # cgroup v1 kills one process of it; what is left would not serve, or be killed again and again
            self.kill(id_)
        if not instance.runs:
            return Sight(stage=Stage.ENDED, why=why)
        return Sight(stage=Stage.RUNNING, address=instance.address)

    def last_words(self, id_: str, function: str) -> str:
        """See `Backend.last_words`; how it ended, when its log says nothing."""
        words = instance_logs.last_words(log_files.log_path(self._logs / function, id_))
        instance = self._instances.get(id_)
        return words or (instance.how_ended if instance is not None else "")

    def usage(self, ids: Sequence[str]) -> list[Usage]:
        """See `Backend.usage`; cpu as the mean since it started."""
        running = {id_: instance for id_ in ids if (instance := self._instances.get(id_)) and instance.runs}
        used = dict(zip(running, procfs.consumption([one.identity for one in running.values()]), strict=True))
        nothing = procfs.Consumption()
        return [
            Usage(cpu_millicores=1000 * has.cpu_share, memory_bytes=has.memory_bytes)
            for has in (used.get(id_, nothing) for id_ in ids)
        ]

    # changing and ending ---------------------------------------------------------------------------------------------

    def resize(self, id_: str, configuration: Configuration) -> None:
        """See `Backend.resize`: all its threads move to the cores that it has now."""
        instance = self._instances.get(id_)
        if instance is not None:
            others = self._taken() - Counter(instance.cores)
            instance.cores = pick_cores(self._cpus, others, configuration.cpu_cores, instance.cores)
            procfs.pin(instance.identity.pid, instance.cores)

    def terminate(self, id_: str) -> None:
        """SIGTERM to the supervisor, which lets its worker drain."""
        instance = self._instances.get(id_)
        if instance is not None and instance.runs:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(instance.identity.pid, signal.SIGTERM)

    def kill(self, id_: str) -> None:
        """SIGKILL to the whole session, also when its leader has ended before the others."""
        instance = self._instances.get(id_)
        if instance is not None:
            instance.killed = True
            procfs.end(instance.identity)

    def forget(self, id_: str) -> None:
        """See `Backend.forget`."""
        instance = self._instances.pop(id_, None)
        folder = self._scratch / id_
        if instance is None:
            self._bury_strays({id_} if folder.exists() else set())
            return
        self._unwatch(instance)
        self._clear_up(
            Remains(leaders=(instance.identity,), child=instance.child, group=instance.group, folder=folder)
        )  # fmt: skip

    def sweep(self, known: AbstractSet[str]) -> None:
        """See `Backend.sweep`: an instance's temporary folder exists before the instance does, and names it."""
        with contextlib.suppress(FileNotFoundError):
            self._bury_strays({folder.name for folder in self._scratch.iterdir()} - known)
        place = self._limits()
        for group in cgroups.strays(place, self._prefix) if place is not None else ():
            id_ = group.name.removeprefix(self._prefix)
            if id_ not in known:
                self._clear_up(Remains(group=group, folder=self._scratch / id_))

    def _bury_strays(self, ids: AbstractSet[str]) -> None:
        """End processes that name one of these temporary folders as theirs, and remove the folders."""
        folders = {str(self._scratch / id_): self._scratch / id_ for id_ in ids}
        found: dict[str, list[procfs.Identity]] = {place: [] for place in folders}
        for identity, place in procfs.by_variable("TMPDIR") if folders else ():
            if place in found:
                found[place].append(identity)
        for place, leaders in found.items():
            self._clear_up(Remains(leaders=tuple(leaders), folder=folders[place]))

    def _clear_up(self, remains: Remains) -> None:
        """End and remove in a thread: what is killed takes its time to be gone."""
        if self._loop is None:
            bury(remains)
            return
        burial = self._loop.run_in_executor(self._threads, bury, remains)
        self._burials.add(burial)
        burial.add_done_callback(self._burials.discard)


def _ignored(spec: FunctionSpec) -> list[str]:
    """Fields of a deployment that only containers have, by their names in it."""
    other = spec.env_process not in ("", _PROCESS)
    asked = {"readOnlyRootFilesystem": spec.read_only_root_filesystem, "envProcess": other}
    return [field for field, is_asked in asked.items() if is_asked]


def _files_max() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def _bundle(artifact: str) -> Path:
    bundle = Path(artifact)
    if not bundle.is_dir():
        raise BackendError(f"its bundle {bundle} is gone; deploy the function again")
    return bundle


def _told(error: Exception) -> str:
    """The sentence of an error; of an OSError without its number."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    advice = "; free some space there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return f"{error.filename}: {error.strerror}{advice}" if error.filename else f"{error.strerror}{advice}"
