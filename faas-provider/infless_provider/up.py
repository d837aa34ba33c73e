"""`infless up` and `infless down`: one provider for a state folder, under gunicorn."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import resource
import signal
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path

from infless_core.errors import Conflict, StateError
from infless_provider import auth
from infless_provider.backends import procfs
from infless_provider.backends.base import Stage
from infless_provider.backends.choose import check, make_backend
from infless_provider.service import STOP_S, Provider, tls_context
from infless_provider.settings import Settings, connections_within
from infless_provider.state import State
from infless_provider.whole_file import write_whole
from infless_watchdog.worker import ServiceApplication

PIDFILE = "provider.pid"
BACKEND_FILE = "backend"
KEEPALIVE_S = 120
"""A client that says nothing for so long is asked whether it still lives."""
END_S = 10.0
"""How long instances may take to end when all are told to."""
YIELD_S = 5.0
"""How long the holder of a state folder who has said no name (it starts, or ends what was left) may take to be done."""


def run(settings: Settings) -> None:
    """Serve until a signal ends it.

    Raises:
        InvalidInput: the machine does not have what the cluster file says.
        BackendError: no Docker engine answers.
        Conflict: the port is taken, or another provider uses the state folder.
        StateError: the state folder cannot be used.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("mip").setLevel(logging.WARNING)
    os.umask(0o077)  # databases, secrets and logs are their owner's alone, also in a state folder that others may enter
    _lock(settings)
    pidfile = settings.state_dir / PIDFILE
    pidfile.unlink(missing_ok=True)  # we hold the lock: whoever wrote it is gone, even if its number lives on
    tls_context(settings)
    check(settings)
    listener = _bind(settings)
    _claim(settings)  # refuse a damaged or full state, or another backend's, before anything is said to run
    if settings.auth:
        auth.ensure_credentials(settings.credentials_dir)
    settings = _within_files(settings, _raise_files())
    _tell(settings)
    ServiceApplication(
        lambda: Provider(settings),
        bind=[f"fd://{listener.detach()}"],
        pidfile=str(pidfile),
        graceful_timeout=int(settings.invoke_timeout_s + STOP_S),
        proc_name="infless-provider",
        when_ready=_one_worker_for_ever,
    ).run()


def _raise_files() -> int:
    """Let this process and its worker open as many files as they may; returns how many.

    The usual soft limit of 1024 is meant for programs that use `select`. Instances get theirs from their launcher.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # above what this kernel has for anybody: then it stays as it is
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def _within_files(settings: Settings, files_max: int) -> Settings:
    room = connections_within(files_max, settings.streams_max)
    if room >= settings.connections_max:
        return settings
    _say(
        f"at most {room} client connections instead of {settings.connections_max}:"
        f" this process may open {files_max} files; raise its limit (ulimit -Hn, LimitNOFILE=) for more"
    )
    return replace(settings, connections_max=room)


def _claim(settings: Settings) -> None:
    """A state folder belongs to the backend that its functions were deployed on."""
    state = State(settings.database)
    try:
        used = bool(state.functions() or state.instances())
    finally:
        state.close()
    owner = _owner(settings)
    if used and owner != settings.backend:
        raise Conflict(
            f"the functions in {settings.state_dir} were deployed with --backend {owner};"
            f" use that, or another --state-dir for {settings.backend}"
        )
    _mark(settings)


def _owner(settings: Settings) -> str:
    """The backend that a state folder belongs to; it is the one that is asked for where a crash left the mark empty."""
    try:
        return (settings.state_dir / BACKEND_FILE).read_text().strip() or settings.backend
    except FileNotFoundError:
        return "process"  # of the first version, which had no other


def _mark(settings: Settings) -> None:
    """Write down the backend, whole or not at all.

    Raises:
        StateError: the disk does not take it.
    """
    mark, text = settings.state_dir / BACKEND_FILE, f"{settings.backend}\n"
    try:
        if mark.is_file() and mark.read_text() == text:
            return
        write_whole(mark, text.encode())
    except OSError as error:
        raise StateError(f"{mark} could not be written: {error.strerror}") from error


def _lock(settings: Settings) -> int:
    """Hold the state folder until this process and its worker have ended, or the descriptor is closed.

    Where a provider was killed, its worker still answers what it had taken, and writes the state: it is waited for.

    Raises:
        Conflict: another provider has it, or what is left of one does not end.
        StateError: the folder cannot be used.
    """
    state_dir = settings.state_dir
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StateError(f"the state folder {state_dir} cannot be used: {error}") from error
    _await(lock, settings)
    return lock


def _await(lock: int, settings: Settings) -> None:
    state_dir, began_s, told = settings.state_dir, time.monotonic(), False
    drain_s = settings.invoke_timeout_s + STOP_S + YIELD_S
    while not _taken(lock):
        waited_s = time.monotonic() - began_s
        pid = _named_pid(state_dir)
        if pid is None or not _gone(pid):
            if pid is not None or waited_s >= YIELD_S:
                raise Conflict(f"another provider uses {state_dir}; choose another --state-dir")
        elif not told:
            told = True
            _say(
                f"the last provider of {state_dir} was killed; waiting until what it had taken is answered,"
                f" at most {drain_s:g} s"
            )
        elif waited_s >= drain_s:
            raise Conflict(
                f"the last provider of {state_dir} was killed, and after {drain_s:g} s its worker still answers what it"
                f" had taken; try again later, or end the process that has {state_dir / 'lock'} open"
            )
        time.sleep(0.1)


def _taken(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _one_worker_for_ever(_: object) -> None:
    """Take gunicorn's other signals away: one process owns the routes, so there is no second worker and no reload."""
    signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))  # the terminal was closed
    for name in (signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR2):
        signal.signal(name, signal.SIG_IGN)


def _bind(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=4096)
    except OSError as error:
        # Python's own text ends in the address again.
        why = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        raise Conflict(f"{settings.host}:{settings.port} cannot be listened on: {why}; choose another --port") from None
    # Clients inherit it. One whose machine vanished while it followed logs would else hold its place for ever.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_S)
    return listener


def _tell(settings: Settings) -> None:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"{'https' if settings.tls_certificate else 'http'}://{host}:{settings.port}"
    lines = [f"INFless serves the OpenFaaS API at {url} (state in {settings.state_dir})"]
    if settings.auth:
        lines.append(
            f"log in: faas-cli login -g {url} --password-stdin < {settings.credentials_dir / auth.PASSWORD_FILE}"
        )
    elif settings.host not in ("127.0.0.1", "::1", "localhost"):
        lines.append("warning: without a password, whoever reaches this address may deploy what runs here")
    _say("\n".join(lines))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - the command's own words


def down(state_dir: Path) -> int:
    """End the provider of a state folder and all its instances; returns how many instances were ended."""
    pid = _provider_pid(state_dir)
    if pid is not None:
        os.kill(pid, signal.SIGINT)
        _wait_gone(pid, END_S + 10)
    settings = Settings(state_dir=state_dir, bundles_dir=state_dir)
    if not settings.database.is_file():
        return 0
    lock = _lock(settings)  # one that starts just now, or does not end, keeps what is its own
    try:
        return asyncio.run(_end_left(replace(settings, backend=_owner(settings))))
    finally:
        os.close(lock)


async def _end_left(settings: Settings) -> int:
    state, backend = State(settings.database), make_backend(settings)
    await backend.open()
    running = [
        one.id for one in state.instances() if backend.adopt(one.id, one.function, one.address.get("handle", {}))
    ]
    for id_ in running:
        backend.terminate(id_)
    ends_s = time.monotonic() + END_S
    while any(backend.see(id_).stage is not Stage.ENDED for id_ in running) and time.monotonic() < ends_s:
        await asyncio.sleep(0.05)
    for instance in state.instances():
        backend.forget(instance.id)
        state.delete_instance(instance.id)
    backend.sweep(frozenset())
    await backend.close()
    state.close()
    return len(running)


def _provider_pid(state_dir: Path) -> int | None:
    """The running provider, if any: only the holder of the lock wrote the file that counts."""
    pid = _named_pid(state_dir)
    try:
        lock = os.open(state_dir / "lock", os.O_RDWR)
    except OSError:
        return None
    try:
        return None if _taken(lock) or pid is None or _gone(pid) else pid
    finally:
        os.close(lock)


def _named_pid(state_dir: Path) -> int | None:
    """The process that said last that it is the provider; it may be long gone."""
    try:
        return int((state_dir / PIDFILE).read_text())
    except (OSError, ValueError):
        return None


def _wait_gone(pid: int, timeout_s: float) -> None:
    ends_s = time.monotonic() + timeout_s
    while not _gone(pid) and time.monotonic() < ends_s:
        time.sleep(0.05)


def _gone(pid: int) -> bool:
    """Whether a process has ended, reaped or not."""
    identity = procfs.identify(pid)
    return identity is None or not procfs.runs(identity)
