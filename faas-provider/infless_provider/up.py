"""`infless up` and `infless down`: one provider for a state folder, under gunicorn."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path

import psutil

from infless_core.errors import Conflict, StateError
from infless_provider import auth
from infless_provider.backends.base import Address
from infless_provider.backends.process import ProcessBackend
from infless_provider.service import Provider
from infless_provider.settings import Settings, usable_cores
from infless_provider.state import State
from infless_watchdog.worker import ServiceApplication

DRAIN_S = 10.0


def run(settings: Settings) -> None:
    """Serve until a signal ends it.

    Raises:
        Conflict: the port is taken, or another provider uses the state folder.
        StateError: the state folder cannot be used.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("mip").setLevel(logging.WARNING)
    try:
        settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(settings.state_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StateError(f"the state folder {settings.state_dir} cannot be used: {error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise Conflict(f"another provider uses {settings.state_dir}; choose another --state-dir") from None
    listener = _bind(settings)
    State(settings.database).close()  # refuse a damaged or full state before anything is said to run
    if settings.auth:
        auth.ensure_password(settings.password_file)
    _tell(settings)
    ServiceApplication(
        lambda: Provider(settings),
        bind=[f"fd://{listener.detach()}"],
        pidfile=str(settings.state_dir / "provider.pid"),
        graceful_timeout=int(DRAIN_S) + 5,
        proc_name="infless-provider",
    ).run()


def _bind(settings: Settings) -> socket.socket:
    try:
        return socket.create_server((settings.host, settings.port), backlog=4096)
    except OSError as error:
        raise Conflict(
            f"{settings.host}:{settings.port} cannot be listened on: {error.strerror}; choose another --port"
        ) from None


def _tell(settings: Settings) -> None:
    url = f"http://{settings.host}:{settings.port}"
    lines = [f"INFless serves the OpenFaaS API at {url} (state in {settings.state_dir})"]
    if settings.auth:
        lines.append(f"log in: faas-cli login -g {url} --password-stdin < {settings.password_file}")
    print("\n".join(lines), file=sys.stderr, flush=True)  # noqa: T201 - the command's own words


def down(state_dir: Path) -> int:
    """End the provider of a state folder and all its instances; returns how many instances were ended."""
    pid = _provider_pid(state_dir)
    if pid is not None:
        os.kill(pid, signal.SIGINT)
        _wait_gone(pid, DRAIN_S + 10)
    database = state_dir / "state.sqlite"
    if not database.is_file():
        return 0
    state = State(database)
    backend = ProcessBackend(usable_cores(0), state_dir)
    ended = 0
    for instance in state.instances():
        if backend.adopt(instance.id, Address(**instance.address)):
            backend.terminate(instance.id)
            _wait_gone(instance.address["handle"]["pid"], DRAIN_S)
            backend.kill(instance.id)
            ended += 1
        backend.forget(instance.id)
        state.delete_instance(instance.id)
    state.close()
    return ended


def _provider_pid(state_dir: Path) -> int | None:
    """The running provider, if any: only the holder of the lock wrote the file that counts."""
    file = state_dir / "provider.pid"
    try:
        pid = int(file.read_text())
        lock = os.open(state_dir / "lock", os.O_RDWR)
    except (OSError, ValueError):
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return pid if psutil.pid_exists(pid) else None
    finally:
        os.close(lock)
    return None


def _wait_gone(pid: int, timeout_s: float) -> None:
    ends_s = time.monotonic() + timeout_s
    while psutil.pid_exists(pid) and time.monotonic() < ends_s:
        time.sleep(0.05)
