"""What a provider says and holds, as numbers that have to agree: invocations, queued calls, processes, files."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import requests
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from provider_process import ProviderProcess, processes_of, wait_until


def samples(url: str) -> list[Sample]:
    """What `/metrics` says at one moment.

    Args:
        url: of a provider, or of an instance's metrics port.
    """
    text = requests.get(f"{url}/metrics", timeout=30).text
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def by_label(told: list[Sample], metric: str, label: str, name: str) -> Counter[str]:
    """The values of one metric for one function, by another label."""
    return Counter(
        {
            one.labels.get(label, ""): int(one.value)
            for one in told
            if one.name == metric and one.labels["function_name"] == f"{name}.openfaas-fn"
        }
    )


def codes(provider: ProviderProcess, name: str) -> Counter[str]:
    """Answered invocations by status; waits until every one that has begun is among them, or fails.

    An invocation is accepted, and then it is answered, refused or given up: nothing is in between for long.
    """

    def balanced() -> Counter[str]:
        told = samples(provider.url)
        begun = by_label(told, "gateway_function_invocation_started_total", "", name)
        ended = by_label(told, "gateway_function_invocation_total", "code", name)
        return ended if ended.total() == begun.total() else Counter()

    found: Counter[str] = wait_until(balanced, f"every invocation of {name} that has begun has ended")
    assert in_flight(provider, name) == 0
    return found


def in_flight(provider: ProviderProcess, name: str) -> int:
    """Invocations of a function that are under way."""
    found = [one["in_flight"] for one in overview(provider)["functions"] if one["function"] == f"{name}.openfaas-fn"]
    return int(sum(found))


def queue(provider: ProviderProcess, name: str) -> Counter[str]:
    """What became of a function's queued calls, `waiting` among it; what is 0 is left out.

    What was accepted has ended in one of three ways or waits, or this fails.
    """
    told = samples(provider.url)
    found = by_label(told, "infless_async_calls_total", "outcome", name)
    found["waiting"] = by_label(told, "infless_async_waiting", "", name).total()
    ended = found["done"] + found["failed"] + found["cancelled"]
    assert found["accepted"] == ended + found["waiting"], found
    return +found


def queue_is_empty(provider: ProviderProcess) -> bool:
    """Whether no queued call waits or runs."""
    return not any(one.value for one in samples(provider.url) if one.name == "infless_async_waiting")


def leaders(provider: ProviderProcess) -> set[int]:
    """Living processes of instances that lead a session: one for each instance, known or not."""
    found = set()
    for process in processes_of(provider.state):
        with suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == process.pid and "infless_watchdog" in process.cmdline():
                found.add(process.pid)
    return found


def assert_in_order(provider: ProviderProcess) -> None:
    """Waits until instances that run are those that are known, each with one temporary folder; no draft is left."""

    def strays() -> str:
        known = overview(provider)["instances"]
        pids, ids = {one["pid"] for one in known}, {one["id"] for one in known}
        scratch = {path.name for path in (provider.state / "tmp").glob("*")}
        drafts = [path.name for path in (provider.state / "bundles").glob(".*")]
        faults = {
            "processes": leaders(provider) ^ pids,
            "folders": scratch ^ ids,
            "drafts": drafts,
            "unready": [one["id"] for one in known if one["phase"] != "ready"],
        }
        return ", ".join(f"{what}: {found}" for what, found in faults.items() if found)

    _until_none(strays, "what runs is not what is known")


def _until_none(faults: Callable[[], str], what: str) -> None:
    """Wait until there are no faults; those that stay are told."""
    told = ""

    def none_left() -> bool:
        nonlocal told
        told = faults()
        return not told

    try:
        wait_until(none_left, what)
    except AssertionError as error:
        raise AssertionError(f"{what}: {told}") from error


def bundles_in_use(provider: ProviderProcess) -> tuple[set[str], set[str]]:
    """Names of the copies of bundles that are kept, and of those that a living instance runs."""
    kept = {path.name for path in (provider.state / "bundles").iterdir()}
    return kept, {Path(f"/proc/{pid}/cwd").resolve().name for pid in leaders(provider)}


def contents(folder: Path) -> dict[Path, bytes]:
    """Everything below a folder, with what files hold; what goes while one looks is left out."""
    found = {}
    for root, folders, files in os.walk(folder):
        found |= {Path(root, name): b"" for name in folders}
        for path in (Path(root, name) for name in files):
            with suppress(FileNotFoundError):
                found[path] = path.read_bytes() if path.is_file() else b""
    return found


def descriptors(provider: ProviderProcess) -> Counter[str]:
    """What the serving process has open: files by path, pipes and the like by kind; without its TCP connections.

    Connections may come and go between the look at the descriptors and the one at the connections, so two counts in
    a row must be the same.
    """
    worker = provider.worker

    def twice() -> Counter[str] | None:
        found = _descriptors_now(worker)
        return found if found == _descriptors_now(worker) else None

    agreed: Counter[str] = wait_until(twice, "two counts of descriptors are the same")
    return agreed


def _descriptors_now(worker: psutil.Process) -> Counter[str]:
    found: Counter[str] = Counter()
    for path in Path(f"/proc/{worker.pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found[str(path.readlink()).partition(":[")[0]] += 1
    found["socket"] -= len(worker.net_connections("tcp"))
    return found


def strange_connections(provider: ProviderProcess, pooled: int) -> list[str]:
    """The serving process's TCP connections that lead nowhere any more.

    Those of clients and those to living instances do; of the latter no more than `pooled` may wait for more work.
    """
    ports = {one[port] for one in overview(provider)["instances"] for port in ("port", "metrics_port")}
    open_ones = [one for one in provider.worker.net_connections("tcp") if one.status != psutil.CONN_LISTEN]
    behind = [one for one in open_ones if one.laddr.port != provider.port]
    to_instances = [one for one in behind if one.status == psutil.CONN_ESTABLISHED and one.raddr.port in ports]
    lost = [one for one in behind if one not in to_instances]
    lost += [one for one in open_ones if one not in behind and one.status != psutil.CONN_ESTABLISHED]
    return [str(one) for one in lost + to_instances[pooled:]]


def assert_nothing_left_open(provider: ProviderProcess, before: Counter[str], pooled: int) -> None:
    """Waits until the provider has no descriptors that it had not `before`, but for connections that lead somewhere.

    Args:
        provider: with nothing to do.
        before: its `descriptors` then.
        pooled: how many connections to instances may wait for more work.
    """
    wait_until(lambda: not descriptors(provider) - before, f"no descriptors beside {dict(before)}")
    _until_none(lambda: ", ".join(strange_connections(provider, pooled)), "connections that lead nowhere")


def overview(provider: ProviderProcess) -> dict[str, list[dict[str, Any]]]:
    """Instances, functions and events: what `infless status` shows."""
    return dict(provider.send("GET", "/system/overview").json())


def kill_instance(leader: int) -> None:
    """SIGKILL to all processes of an instance."""
    os.killpg(leader, signal.SIGKILL)
