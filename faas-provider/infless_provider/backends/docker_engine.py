"""Edge: a Docker engine through the `docker` package, whose only user this module is.

Every call ends: where the package sets no limit, one is set here.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import struct
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import docker
import requests
import urllib3
from docker import errors
from docker.utils import kwargs_from_env, parse_repository_tag

from infless_core.errors import BackendError, InvalidInput
from infless_provider.backends.docker_api import (
    Consumption,
    Container,
    ContainerEvent,
    EngineAway,
    HostFacts,
    Image,
    NoSuch,
    Stream,
)
from infless_provider.backends.docker_launch import OWNER, cpuset

LOG = logging.getLogger("infless.docker")
CALL_S = 30.0
"""Longest wait for a word of the engine: creating a container of a large image on a slow disk takes ten seconds."""
STREAM_S = 300.0
"""The same while an image is pulled, or where nothing need come for a while."""
EVENTS_S = 90.0
"""The same of its events: the engine ends each stream of them after a minute (`docker_watch.RELIST_S`), so that one
which is silent for longer, or does not begin, is of an engine that hangs."""
PULL_S = 3600.0
"""Longest pull of an image."""
CONNECTIONS_MAX = 64
"""Kept open for calls; a log that is followed has one of its own."""
_API_LEAST = (1, 41)  # of Docker 20.10: statistics at once
_HERE = ("localhost", "127.0.0.1", "::1")
_PROGRESS_S = 5.0
_NOTHING_THERE = (OSError, requests.exceptions.RequestException, urllib3.exceptions.HTTPError)


class _Client(docker.APIClient):  # type: ignore[misc]
    """The package's client, with a limit also where the package sets none."""

    def send(self, request: Any, **kwargs: Any) -> Any:
        if kwargs.get("timeout") is None:
            kwargs["timeout"] = EVENTS_S if "/events?" in request.url else STREAM_S
        return super().send(request, **kwargs)

    def _disable_socket_timeout(self, socket: Any) -> None:
        """Not when the first piece is read, as the package does: `DockerEngine.follow` has said how long to wait."""


class DockerEngine:
    """See `docker_api.Engine`."""

    def __init__(self, client: Any, where: str) -> None:
        self._client = client
        self._where = where

    @classmethod
    def connect(cls) -> DockerEngine:
        """The engine that `DOCKER_HOST` names, or this machine's own.

        Raises:
            BackendError: none answers, we may not ask it, or it is too old; says which.
        """
        try:
            settings: dict[str, Any] = kwargs_from_env()
        except errors.DockerException as error:
            raise BackendError(f"DOCKER_HOST and DOCKER_TLS_VERIFY cannot be used: {_words(error)}") from error
        where = settings.get("base_url") or "unix:///var/run/docker.sock"
        parts = urlsplit(where)
        if parts.scheme not in ("unix", "http+unix") and (parts.hostname or "") not in _HERE:
            raise BackendError(
                f"DOCKER_HOST is {where}: instances are reached on this machine's loopback, so the engine has to run"
                " here; start the provider on that machine, or unset DOCKER_HOST"
            )
        try:
            client = _Client(version="auto", timeout=CALL_S, max_pool_size=CONNECTIONS_MAX, **settings)
        except (errors.DockerException, *_NOTHING_THERE) as error:
            raise EngineAway(_away(where, error)) from error
        version = client.api_version
        if tuple(map(int, version.split("."))) < _API_LEAST:
            client.close()
            raise BackendError(
                f"the Docker engine at {where} is too old (API {version}); Docker 20.10 or newer is needed"
            )
        return cls(client, where)

    def facts(self) -> HostFacts:
        """See `Engine.facts`."""
        with self._call():
            info = self._client.info()
        devices = [str(device.get("ID", "")) for device in info.get("DiscoveredDevices") or []]
        by_cdi = any(id_.startswith("nvidia.com/gpu") for id_ in devices)
        driver = "nvidia" if "nvidia" in (info.get("Runtimes") or {}) else "cdi" if by_cdi else ""
        return HostFacts(cpu_cores=info["NCPU"], memory_bytes=info["MemTotal"], gpu_driver=driver)

    def image(self, reference: str) -> Image:
        """See `Engine.image`."""
        with self._call():
            found = self._client.inspect_image(reference)
        config = found.get("Config") or {}
        return Image(
            id=found["Id"],
            labels=config.get("Labels") or {},
            has_command=bool(config.get("Cmd") or config.get("Entrypoint")),
        )

    def pull(self, reference: str, progress: Callable[[str], None]) -> None:
        """See `Engine.pull`."""
        repository, tag = parse_repository_tag(reference)
        ends_s, told_s = time.monotonic() + PULL_S, 0.0
        try:
            with contextlib.suppress(errors.DockerException, OSError):  # who is logged in may have changed
                self._client.reload_config()
            with contextlib.closing(self._client.pull(repository, tag or "latest", stream=True, decode=True)) as steps:
                for step in steps:
                    if "error" in step:
                        raise InvalidInput(f"image {reference!r} could not be pulled: {str(step['error']).strip()}")
                    now_s = time.monotonic()
                    if now_s > ends_s:
                        raise InvalidInput(f"image {reference!r} could not be pulled within {PULL_S / 60:.0f} minutes")
                    if now_s - told_s >= _PROGRESS_S:
                        told_s = now_s
                        progress(" ".join(filter(None, (step.get("id"), step.get("status"), step.get("progress")))))
        except errors.DockerException as error:  # before the next one: some of these are requests' own, too
            raise InvalidInput(f"image {reference!r} could not be pulled: {_words(error)}") from error
        except _NOTHING_THERE as error:
            raise EngineAway(_away(self._where, error)) from error

    def create(self, name: str, config: Mapping[str, Any]) -> str:
        """See `Engine.create`."""
        with self._call():
            return str(self._client.create_container_from_config(dict(config), name)["Id"])

    def start(self, container: str) -> None:
        """See `Engine.start`."""
        with self._call():
            self._client.start(container)

    def inspect(self, container: str) -> Container:
        """See `Engine.inspect`."""
        with self._call():
            return _container(self._client.inspect_container(container))

    def owned(self, owner: str) -> list[Container]:
        """See `Engine.owned`."""
        with self._call():
            found = self._client.containers(all=True, filters={"label": f"{OWNER}={owner}"})
        return [
            Container(id=one["Id"], labels=one["Labels"] or {}, running=one["State"] in ("running", "paused"), ports={})
            for one in found
        ]

    def wait(self, container: str, timeout_s: float) -> int | None:
        """See `Engine.wait`."""
        try:
            with self._call(passing=(requests.exceptions.Timeout, requests.exceptions.ConnectionError)):
                return int(self._client.wait(container, timeout=timeout_s)["StatusCode"])
        except (requests.exceptions.Timeout, requests.exceptions.ConnectionError) as error:
            if _timed_out(error):
                return None
            raise EngineAway(_away(self._where, error)) from error

    def signal(self, container: str, name: str) -> None:
        """See `Engine.signal`."""
        with self._call(harmless=(404, 409)):
            self._client.kill(container, name)

    def pin(self, container: str, cores: tuple[int, ...]) -> None:
        """See `Engine.pin`."""
        with self._call():
            self._client.update_container(container, cpuset_cpus=cpuset(cores))

    def remove(self, container: str) -> None:
        """See `Engine.remove`."""
        with self._call(harmless=(404, 409)):  # 409: somebody removes it already
            self._client.remove_container(container, v=True, force=True)

    def output(self, container: str, *, stderr: bool) -> bytes:
        """See `Engine.output`."""
        with self._call():
            return bytes(self._client.logs(container, stdout=not stderr, stderr=stderr))

    def printed(self, container: str, since_s: float) -> Stream:
        """See `Engine.printed`."""
        return _Items(self._log(container, since_s, follow=False), bytes)

    def follow(self, container: str, since_s: float, silence_s: float) -> Stream:
        """See `Engine.follow`."""
        stream = self._log(container, since_s, follow=True)
        with contextlib.suppress(AttributeError):  # it is over already, and has no socket any more
            file = self._client._get_raw_response_socket(stream._response)
            getattr(file, "_sock", file).settimeout(silence_s if math.isfinite(silence_s) else None)
        return _Items(stream, bytes)

    def _log(self, container: str, since_s: float, *, follow: bool) -> Any:
        since = {"since": since_s} if since_s > 0 else {}
        with self._call():
            return self._client.logs(container, stream=True, follow=follow, timestamps=True, **since)

    def events(self, owner: str, for_s: float) -> Stream:
        """See `Engine.events`."""
        filters = {"type": "container", "label": f"{OWNER}={owner}", "event": ["start", "oom", "die", "destroy"]}
        with self._call():
            now_s = time.time()
            # With an end and no start, the engine tells what happened before, too.
            since, until = f"{now_s:.9f}", f"{now_s + for_s:.9f}"
            return _Items(self._client.events(since=since, until=until, filters=filters, decode=True), _event)

    def consumption(self, container: str) -> Consumption:
        """See `Engine.consumption`."""
        with self._call():
            found = self._client.stats(container, stream=False, one_shot=True)
        memory = found.get("memory_stats") or {}
        kept = memory.get("stats") or {}
        cache = kept.get("inactive_file", kept.get("total_inactive_file", 0))  # cgroup v2, v1
        cpu_s = ((found.get("cpu_stats") or {}).get("cpu_usage") or {}).get("total_usage", 0) / 1e9
        return Consumption(cpu_s=cpu_s, memory_bytes=max(0, memory.get("usage", 0) - cache))

    def close(self) -> None:
        """See `Engine.close`."""
        self._client.close()

    @contextlib.contextmanager
    def _call(self, *, harmless: tuple[int, ...] = (), passing: tuple[type[Exception], ...] = ()) -> Iterator[None]:
        """The package's errors as ours; HTTP codes that are `harmless` are none."""
        try:
            yield
        except passing:
            raise
        except errors.NotFound as error:
            if 404 not in harmless:
                raise NoSuch(_words(error)) from error
        except errors.APIError as error:
            if error.status_code not in harmless:
                raise BackendError(_words(error)) from error
        except (errors.DockerException, *_NOTHING_THERE) as error:
            raise EngineAway(_away(self._where, error)) from error


class _Items:
    """A stream of the package, that ends where the package would raise."""

    def __init__(self, stream: Any, read: Callable[[Any], Any]) -> None:
        self._stream = stream
        self._read = read

    def __iter__(self) -> Iterator[Any]:
        # The last ones are what the package makes of an engine that ends in the middle of something.
        broken = (ValueError, AttributeError, struct.error)
        with contextlib.suppress(errors.DockerException, *_NOTHING_THERE, *broken):
            for item in self._stream:
                yield self._read(item)

    def close(self) -> None:
        with contextlib.suppress(Exception):  # it may have ended meanwhile, and then has no socket any more
            self._stream.close()
        with contextlib.suppress(Exception):  # what the package leaves open: the socket's file
            self._stream._response.close()


def _event(found: Mapping[str, Any]) -> ContainerEvent:
    actor = found.get("Actor") or {}
    return ContainerEvent(
        what=str(found.get("Action", "")), container=str(actor.get("ID", "")), labels=actor.get("Attributes") or {}
    )


def _container(found: Mapping[str, Any]) -> Container:
    state, config, host = found["State"], found["Config"], found["HostConfig"]
    published = found["NetworkSettings"].get("Ports") or {}
    return Container(
        id=found["Id"],
        labels=config.get("Labels") or {},
        running=state["Running"],
        exit_code=state["ExitCode"],
        out_of_memory=state["OOMKilled"],
        error=state.get("Error") or "",
        ports={int(inside.partition("/")[0]): int(ends[0]["HostPort"]) for inside, ends in published.items() if ends},
        cores=_cores(host.get("CpusetCpus") or ""),
        memory_bytes=host.get("Memory") or 0,
        stop_signal=config.get("StopSignal") or "SIGTERM",
        started_at_s=_at_s(state.get("StartedAt") or ""),
    )


def _cores(text: str) -> tuple[int, ...]:
    return tuple(int(cpu) for cpu in text.split(",") if cpu.isdigit())  # as we write them


def _at_s(text: str) -> float:
    try:
        return max(0.0, datetime.fromisoformat(text).timestamp())
    except ValueError:
        return 0.0


def _words(error: Exception) -> str:
    """What the engine said, without the package's HTTP around it."""
    said = getattr(error, "explanation", None) or str(error)
    return (said.decode(errors="replace") if isinstance(said, bytes) else str(said)).strip()


def _away(where: str, error: Exception) -> str:
    """The sentence for a call that reached nobody."""
    _let_go(error)
    number = _errno(error)
    if number == errno.EACCES:
        return f"we may not use the Docker engine at {where}: permission denied; add this user to the group docker"
    if number in (errno.ENOENT, errno.ECONNREFUSED):
        return f"no Docker engine answers at {where}; start it, or say in DOCKER_HOST where it is"
    if _timed_out(error):
        return f"the Docker engine at {where} did not answer within {CALL_S:.0f} s"
    return f"the Docker engine at {where} does not answer: {_words(error)}"


def _timed_out(error: BaseException) -> bool:
    """What is made of a read that times out depends on how far the answer had come."""
    inner = error.args[0] if error.args else None
    return isinstance(error, requests.exceptions.Timeout) or isinstance(inner, urllib3.exceptions.ReadTimeoutError)


def _errno(error: BaseException) -> int | None:
    """Of the system's error inside errors inside errors."""
    return next((one.errno for one in _chain(error) if isinstance(one, OSError) and one.errno is not None), None)


def _let_go(error: BaseException) -> None:
    """Close what a failed call held: urllib3 leaves frames in a circle, which keep its socket until it is collected."""
    for one in _chain(error):
        traceback.clear_frames(one.__traceback__)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    waiting: list[object] = [error]
    while waiting:
        one = waiting.pop()
        if isinstance(one, BaseException) and id(one) not in seen:
            seen.add(id(one))
            yield one
            waiting += [*one.args, one.__cause__, one.__context__]
