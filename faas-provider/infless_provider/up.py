"""`infless up` and `infless down`: one provider for a state folder, under gunicorn."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
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
from infless_provider.backends.choose import make_backend
from infless_provider.service import STOP_S, Provider, tls_context
from infless_provider.settings import Settings
from infless_provider.state import State
from infless_watchdog.worker import ServiceApplication

PIDFILE = "provider.pid"
BACKEND_FILE = "backend"
KEEPALIVE_S = 120
"""A client that says nothing for so long is asked whether it still lives."""
END_S = 10.0
"""How long instances may take to end when all are told to."""
ORPHAN_S = 5.0
"""How long the worker of a killed provider may take to end."""


def run(settings: Settings) -> None:
    """Serve until a signal ends it.

    Raises:
        Conflict: the port is taken, or another provider uses the state folder.
        StateError: the state folder cannot be used.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("mip").setLevel(logging.WARNING)
    os.umask(0o077)  # databases, secrets and logs are their owner's alone, also in a state folder that others may enter
    _lock(settings.state_dir)
    tls_context(settings)
    make_backend(settings)
    listener = _bind(settings)
    _claim(settings)  # refuse a damaged or full state, or another backend's, before anything is said to run
    if settings.auth:
        auth.ensure_credentials(settings.credentials_dir)
    _tell(settings)
    pidfile = settings.state_dir / PIDFILE
    pidfile.unlink(missing_ok=True)  # we hold the lock: whoever wrote it is gone, even if its number lives on
    ServiceApplication(
        lambda: Provider(settings),
        bind=[f"fd://{listener.detach()}"],
        pidfile=str(pidfile),
        graceful_timeout=int(settings.invoke_timeout_s + STOP_S),
        proc_name="infless-provider",
        when_ready=_one_worker_for_ever,
    ).run()


def _claim(settings: Settings) -> None:
    """A state folder belongs to the backend that its functions were deployed on."""
    state = State(settings.database)
    try:
        used = bool(state.functions() or state.instances())
    finally:
        state.close()
    mark = settings.state_dir / BACKEND_FILE
    owner = mark.read_text().strip() if mark.is_file() else "process"
    if used and owner != settings.backend:
        raise Conflict(
            f"the functions in {settings.state_dir} were deployed with --backend {owner};"
            f" use that, or another --state-dir for {settings.backend}"
        )
    mark.write_text(f"{settings.backend}\n")


def _lock(state_dir: Path) -> int:
    """Hold the state folder until this process and its worker have ended, or the descriptor is closed."""
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StateError(f"the state folder {state_dir} cannot be used: {error}") from error
    ends_s = time.monotonic() + ORPHAN_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            # The worker of a provider that was killed notices within a second and ends.
            if _holder_runs(state_dir) or time.monotonic() > ends_s:
                raise Conflict(f"another provider uses {state_dir}; choose another --state-dir") from None
            time.sleep(0.1)
        else:
            return lock


def _holder_runs(state_dir: Path) -> bool:
    try:
        return not _gone(int((state_dir / PIDFILE).read_text()))
    except (OSError, ValueError):
        return False


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
    print("\n".join(lines), file=sys.stderr, flush=True)  # noqa: T201 - the command's own words


def down(state_dir: Path) -> int:
    """End the provider of a state folder and all its instances; returns how many instances were ended."""
    pid = _provider_pid(state_dir)
    if pid is not None:
        os.kill(pid, signal.SIGINT)
        _wait_gone(pid, END_S + 10)
    settings = Settings(state_dir=state_dir, bundles_dir=state_dir)
    if not settings.database.is_file():
        return 0
    lock = _lock(state_dir)  # one that starts just now, or does not end, keeps what is its own
    try:
        return _end_left_of(settings)
    finally:
        os.close(lock)


def _end_left_of(settings: Settings) -> int:
    mark = settings.state_dir / BACKEND_FILE
    backend = mark.read_text().strip() if mark.is_file() else settings.backend
    return asyncio.run(_end_left(replace(settings, backend=backend)))


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
    try:
        pid = int((state_dir / PIDFILE).read_text())
        lock = os.open(state_dir / "lock", os.O_RDWR)
    except (OSError, ValueError):
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return None if _gone(pid) else pid
    finally:
        os.close(lock)
    return None


def _wait_gone(pid: int, timeout_s: float) -> None:
    ends_s = time.monotonic() + timeout_s
    while not _gone(pid) and time.monotonic() < ends_s:
        time.sleep(0.05)


def _gone(pid: int) -> bool:
    """Whether a process has ended, reaped or not."""
    identity = procfs.identify(pid)
    return identity is None or not procfs.runs(identity)
