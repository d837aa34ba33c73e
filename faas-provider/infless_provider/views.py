"""What users and their tools see of functions and instances. Reads, changes nothing."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from infless_core.errors import Unavailable
from infless_core.lifecycle import Phase
from infless_profiler.scrape import Target
from infless_provider import wire
from infless_provider.backends.base import Usage
from infless_provider.controller import Controller
from infless_provider.functions import FunctionState, Instance

USAGE_WAIT_S = 10.0
"""For a backend to say what a function uses: an engine that works needs a second or two for many containers."""
USAGE_THREADS = 4
"""So many functions are asked about at once. Threads of their own, as an engine may hang: secrets need the others."""


class Views:
    """Values for JSON, made on the event loop, which owns what they show."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._usage_threads = ThreadPoolExecutor(USAGE_THREADS, thread_name_prefix="usage")
        self._usage: dict[str, asyncio.Future[list[Usage]]] = {}
        """What is being read, by function."""
        self._usage_late: set[str] = set()
        """Functions of which somebody has waited `USAGE_WAIT_S` for what is being read."""

    def close(self) -> None:
        """Ask the backend no more; what it is being asked is waited for by nobody."""
        self._usage_threads.shutdown(wait=False, cancel_futures=True)

    async def listing(self, namespace: object) -> list[dict[str, Any]]:
        """Every FunctionStatus of a namespace, by name.

        Raises:
            InvalidInput: there is no such namespace.
        """
        asked = wire.parse_namespace(namespace)
        self._controller.namespaces.require(asked)
        functions = sorted(self._controller.functions.items())
        return [self._status(function) for _, function in functions if function.stored.spec.namespace == asked]

    async def describe(self, name: str, namespace: object, *, usage: bool) -> dict[str, Any]:
        """One FunctionStatus.

        Raises:
            NotFound: when there is none.
            Unavailable: the backend does not say in time what it uses.
        """
        function = self._controller.find(name, namespace)
        status = self._status(function)
        if usage:
            used = await self._used_by(function)
            status["usage"] = {
                "cpu": sum(one.cpu_millicores for one in used),
                "totalMemoryBytes": float(sum(one.memory_bytes for one in used)),
            }
        return status

    async def _used_by(self, function: FunctionState) -> list[Usage]:
        """Of each instance. Whoever asks while it is being read shares what comes of it, also that nothing does."""
        key = function.key
        reading = self._usage.get(key)
        if reading is None:
            loop, backend = asyncio.get_running_loop(), self._controller.backend
            reading = loop.run_in_executor(self._usage_threads, backend.usage, list(function.instances))
            self._usage[key] = reading
            reading.add_done_callback(lambda reading: self._usage_read(key, reading))
        if key not in self._usage_late:
            await asyncio.wait({reading}, timeout=USAGE_WAIT_S)
        if reading.done():
            return reading.result()
        self._usage_late.add(key)
        raise Unavailable(f"the backend does not say what instances of {key} use; ask without usage, or later")

    def _usage_read(self, key: str, reading: asyncio.Future[list[Usage]]) -> None:
        del self._usage[key]
        self._usage_late.discard(key)
        if not reading.cancelled():
            reading.exception()  # nobody may be left to hear of it

    async def overview(self) -> dict[str, Any]:
        """Instances with their configurations and reasons, and what happened: `infless status`."""
        fleet, functions = self._controller.fleet, self._controller.functions
        now_s = self._controller.clock.now_s()
        return {
            "instances": [self._instance_json(i) for _, i in sorted(fleet.instances.items())],
            "functions": [
                {
                    "function": f.key,
                    "rate_rps": round(f.estimate.rate_rps, 3),
                    "latency_target_s": f.wishes.latency_target_s,
                    "in_flight": f.in_flight,
                    "last_failure": f.last_failure,
                    "retry_in_s": max(0.0, round(f.retry_at_s - now_s, 3)),
                    "rolled_back": f.rolled_back,
                }
                for _, f in sorted(functions.items())
            ],
            "events": list(fleet.events),
        }

    async def telemetry(self) -> dict[str, Any]:
        """Numbers about this provider as a whole; they are told to whoever asks, and sent to nobody."""
        functions = self._controller.functions.values()
        return {
            "provider": "infless",
            "orchestration": self._controller.backend.name,
            "namespaces": len(self._controller.namespaces.names()),
            "functions": len(functions),
            "instances": len(self._controller.fleet.instances),
            "invocations": sum(function.invocations for function in functions),
        }

    async def invocations(self) -> dict[str, int]:
        """By function."""
        return {key: function.invocations for key, function in self._controller.functions.items()}

    async def discovery(self) -> list[dict[str, Any]]:
        """Targets in the form of Prometheus's HTTP service discovery."""
        return [
            {"targets": [one.address], "labels": {"function_name": one.function, "infless_instance": one.instance}}
            for one in self.targets()
        ]

    def targets(self) -> list[Target]:
        """Where ready instances publish their metrics."""
        return [
            Target(instance=i.id, function=i.function, host=i.address.host, port=i.address.metrics_port)
            for _, i in sorted(self._controller.fleet.instances.items())
            if i.phase is Phase.READY and i.address is not None and i.address.metrics_port
        ]

    def _status(self, function: FunctionState) -> dict[str, Any]:
        return wire.status_json(
            function.stored.spec,
            replicas=function.wanted(self._controller.clock.now_s()),
            available=function.available(),
            invocations=function.invocations,
            created_at_s=function.stored.created_at_s,
        )

    def _instance_json(self, instance: Instance) -> dict[str, Any]:
        function = self._controller.functions.get(instance.function)
        rates = function.window_of(instance) if function else None
        address = instance.address
        return {
            "id": instance.id,
            "function": instance.function,
            "phase": instance.phase.value,
            "batch": instance.configuration.batch,
            "cpu_cores": instance.configuration.cpu_cores,
            "gpu_percent": instance.configuration.gpu_percent,
            "rate_low_rps": rates.low_rps if rates else None,
            "rate_up_rps": rates.up_rps if rates else None,
            "why": instance.reason,
            "port": address.port if address else None,
            "metrics_port": address.metrics_port if address else None,
            "pid": address.handle.get("pid") if address else None,
        }
