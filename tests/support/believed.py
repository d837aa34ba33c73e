"""What a client may believe of a function while calls are cut off: the states that it can be in, narrowed by answers."""

from __future__ import annotations

import random
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import requests
from provider_process import ProviderProcess

VERSIONS = ("1", "2", "3")
"""Values of the variable `version`: few, so that each is timed once."""
REPLICAS = (1, 2)
IMAGE = "test/versioned:latest"
HANDLER = '''import os

def handle(event, context):
    """Answers its version; what has a body is also noted where others can see it."""
    if event.body:
        with open(os.environ["seen"], "a") as file:
            file.write(event.body.decode() + "\\n")
    return {"statusCode": 200, "body": os.environ["version"]}
'''


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployed:
    """A function as it was wished."""

    version: str
    replicas: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """A control call: its request, and what follows from it in each state."""

    what: str
    verb: str
    path: str
    body: dict[str, Any]
    then: Callable[[Deployed | None], tuple[int, Deployed | None]]
    """Status and next state."""


def deploy(name: str, version: str, seen: str) -> Operation:
    """POST."""

    def then(now: Deployed | None) -> tuple[int, Deployed | None]:
        return (202, Deployed(version=version)) if now is None else (409, now)

    return Operation(
        what=f"deploy {version}", verb="POST", path="/system/functions", body=_wish(name, version, seen), then=then
    )


def update(name: str, version: str, seen: str) -> Operation:
    """PUT."""

    def then(now: Deployed | None) -> tuple[int, Deployed | None]:
        return (404, None) if now is None else (202, replace(now, version=version))

    return Operation(
        what=f"update {version}", verb="PUT", path="/system/functions", body=_wish(name, version, seen), then=then
    )


def scale(name: str, replicas: int) -> Operation:
    """POST of a number of replicas."""

    def then(now: Deployed | None) -> tuple[int, Deployed | None]:
        return (404, None) if now is None else (202, replace(now, replicas=replicas))

    return Operation(
        what=f"scale {replicas}", verb="POST", path=f"/system/scale-function/{name}", body={"replicas": replicas},
        then=then,
    )  # fmt: skip


def remove(name: str) -> Operation:
    """DELETE."""

    def then(now: Deployed | None) -> tuple[int, Deployed | None]:
        return (404, None) if now is None else (202, None)

    return Operation(what="remove", verb="DELETE", path="/system/functions", body={"functionName": name}, then=then)


def _wish(name: str, version: str, seen: str) -> dict[str, Any]:
    return {"service": name, "image": IMAGE, "envVars": {"version": version, "seen": seen}}


@dataclass(slots=True, kw_only=True)
class Client:
    """One user of one function, who does one thing after the other until the provider is gone."""

    provider: ProviderProcess
    name: str
    seen: str
    """The file where the handler notes bodies."""
    mortal: bool
    """Whether it may be removed."""
    random: random.Random
    states: set[Deployed | None] = field(default_factory=lambda: {None})
    """Those that it may be in, as far as the answers say."""
    versions: set[str] = field(default_factory=set)
    """Those that may answer: an older one serves until a newer one is ready."""
    accepted: list[str] = field(default_factory=list)
    """Queued calls, by body."""
    unsure: list[str] = field(default_factory=list)
    """Those of which no answer came."""
    done: Counter[str] = field(default_factory=Counter)
    """Answers, by what was asked and status; 0 is none."""

    def work(self, over: threading.Event) -> None:
        """Use it until the provider does not answer, or for as long as wished."""
        while not over.is_set():
            if self.random.random() < 0.5:
                answered = self.change(self._any_operation())
            else:
                answered = self.random.choice((self.invoke, self.enqueue))()
            if not answered:
                return

    def _any_operation(self) -> Operation:
        if None in self.states:
            return deploy(self.name, self.random.choice(VERSIONS), self.seen)
        kind = self.random.choice(("update", "scale", "remove" if self.mortal else "update"))
        if kind == "update":
            return update(self.name, self.random.choice(VERSIONS), self.seen)
        return scale(self.name, self.random.choice(REPLICAS)) if kind == "scale" else remove(self.name)

    def change(self, operation: Operation) -> bool:
        """Make a control call, and believe its answer; False when none came."""
        follows = {state: operation.then(state) for state in self.states}
        self.versions |= {state.version for _, state in follows.values() if state is not None}
        try:
            answer = self.provider.send(operation.verb, operation.path, operation.body)
        except requests.RequestException:
            self.states |= {state for _, state in follows.values()}
            self.done[f"{operation.what.split()[0]} 0"] += 1
            return False
        states = {state for status, state in follows.values() if status == answer.status_code}
        assert states, f"{self.name}, {operation.what} in one of {self.states}: {answer.status_code} {answer.text}"
        self.states = states
        self.done[f"{operation.what.split()[0]} {answer.status_code}"] += 1
        return True

    def invoke(self) -> bool:
        """Ask it once; any version that was ever deployed may answer, and nobody where it may be gone."""
        try:
            answer = self.provider.invoke(self.name, b"")
        except requests.RequestException:
            self.done["invoke 0"] += 1
            return False
        gone = None in self.states and answer.status_code == 404
        assert gone or (answer.status_code == 200 and answer.text in self.versions), (
            f"{self.name} in one of {self.states}: {answer.status_code} {answer.text}"
        )
        self.done[f"invoke {answer.status_code}"] += 1
        return True

    def enqueue(self) -> bool:
        """Queue a call."""
        body = f"{self.name}/{len(self.accepted) + len(self.unsure)}/{self.random.getrandbits(32):x}"
        try:
            answer = self.provider.send("POST", f"/async-function/{self.name}", body.encode())
        except requests.RequestException:
            self.unsure.append(body)
            self.done["enqueue 0"] += 1
            return False
        self.done[f"enqueue {answer.status_code}"] += 1
        if answer.status_code == 202:
            self.accepted.append(body)
        else:
            assert answer.status_code == 404, f"{self.name}: {answer.status_code} {answer.text}"
            assert None in self.states, f"{self.name}: {answer.text}"
        return True

    def look(self, provider: Mapping[str, Deployed]) -> None:
        """What the provider has must be a state that it may be in; believe it.

        Args:
            provider: what it has, by name.
        """
        now = provider.get(self.name)
        assert now in self.states, f"{self.name} in one of {self.states} is {now}"
        self.states = {now}


def deployed(provider: ProviderProcess) -> dict[str, Deployed]:
    """What a provider lists, by name; nobody is there twice.

    How many replicas a function is to have is read in its state: the list says how many there are, while they change.
    """
    listed = provider.send("GET", "/system/functions").json()
    with closing(sqlite3.connect(f"file:{provider.state / 'state.sqlite'}?mode=ro", uri=True)) as db:
        kept = dict(db.execute("SELECT key, replicas FROM function").fetchall())
    names = [one["name"] for one in listed]
    assert sorted(f"{name}.openfaas-fn" for name in names) == sorted(kept), "what is served is not what is kept"
    return {
        one["name"]: Deployed(version=one["envVars"]["version"], replicas=kept[f"{one['name']}.openfaas-fn"] or 1)
        for one in listed
    }
