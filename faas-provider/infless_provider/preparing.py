"""What may fail before a version is deployed: labels, namespace, secrets, artifact, timing. Nothing here is lasting."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

from infless_core.errors import Infeasible, StateError
from infless_core.labels import TARGET, GpuWish, Wishes, parse_wishes
from infless_core.model import FunctionSpec, ProfilePoint
from infless_provider.backends.base import Backend
from infless_provider.bundles import profile_key
from infless_provider.functions import check_target
from infless_provider.namespaces import Namespaces
from infless_provider.profiling import Profiles
from infless_provider.secret_store import SecretStore
from infless_provider.state import Version

LOG = logging.getLogger("infless.controller")
_T = TypeVar("_T")
_THREADS = 32
"""Most of them wait: for a registry, or for their turn to be timed."""


class Preparing:
    """Makes versions of specifications. What takes long runs in threads of its own kind: the planner must not wait.

    Args:
        backend: fetches artifacts.
        profiles: execution times.
        secrets: what versions may name.
        namespaces: where they may be.
        default_target_s: of functions that state none.
    """

    def __init__(
        self,
        backend: Backend,
        profiles: Profiles,
        secrets: SecretStore,
        namespaces: Namespaces,
        default_target_s: float,
    ) -> None:
        self._backend = backend
        self._profiles = profiles
        self._secrets = secrets
        self._namespaces = namespaces
        self._default_target_s = default_target_s
        self._threads = ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="deploy")

    def wishes(self, spec: FunctionSpec) -> Wishes:
        """What its labels say.

        Raises:
            InvalidInput, Infeasible: a label is wrong, or asks for what no server here has.
        """
        wishes = parse_wishes(spec.labels)
        if TARGET not in spec.labels:
            wishes = replace(wishes, latency_target_s=self._default_target_s)
        if wishes.gpu is GpuWish.REQUIRE and not any(server.gpus for server in self._backend.servers):
            raise Infeasible(f"label com.infless.gpu: {spec.name!r} requires a GPU, and no server here has one")
        return wishes

    async def version(self, spec: FunctionSpec, wishes: Wishes) -> tuple[Version, tuple[ProfilePoint, ...]]:
        """A version that can be deployed, and its execution times; none when it cannot be timed.

        Its secrets are there before it is timed: it may read them when it is loaded.

        Raises:
            NotFound, InvalidInput, Infeasible, BackendError, StateError: it cannot be deployed; says why.
        """
        self._namespaces.require(spec.namespace)
        await self._run(self._check_secrets, spec, wishes)
        version = await self._run(self._version, spec, wishes)
        await self._run(self._secrets.mount, spec.key, version.id, spec.namespace, spec.secrets)
        profile = await self._run(self._profile, version, wishes)
        check_target(spec, wishes, profile)
        self._namespaces.require(spec.namespace)  # it may have been removed meanwhile
        return version, profile

    def kept_profile(self, version: Version, wishes: Wishes) -> tuple[ProfilePoint, ...]:
        """Without a profile a function is served all the same: its speed is learned from its answers."""
        try:
            kept = self._profiles.kept(version.digest, wishes.batch_max)
        except StateError as fault:
            LOG.error("%s: %s", version.spec.key, fault)  # noqa: TRY400 - a sentence, its traceback is noise
            return ()
        if kept is None:
            LOG.warning("%s has lost its profile; deploy it again to have it timed", version.spec.key)
        return kept or ()

    def close(self) -> None:
        """Give threads back; a measurement under way ends."""
        self._profiles.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Callable[..., _T], *arguments: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    def _check_secrets(self, spec: FunctionSpec, wishes: Wishes) -> None:
        self._secrets.check(spec.namespace, spec.secrets)
        if wishes.auth_secret:
            self._secrets.tokens(spec.namespace, wishes.auth_secret)

    def _version(self, spec: FunctionSpec, wishes: Wishes) -> Version:
        artifact = self._backend.prepare(spec)
        digest = profile_key(artifact.digest, wishes.environment(spec.env_vars))
        return Version(spec=spec, artifact=artifact.reference, digest=digest)

    def _profile(self, version: Version, wishes: Wishes) -> tuple[ProfilePoint, ...]:
        return self._profiles.points(
            version.digest,
            version.artifact,
            wishes.environment(version.spec.env_vars),
            wishes.batch_max,
            lambda told: LOG.info("%s: %s", version.spec.key, told),
            self._secrets.folder_of(version.spec.key, version.id),
            version.spec.memory_limit_bytes,
        )
