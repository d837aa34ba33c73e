"""What users and their tools see: FunctionStatus as clients compare it, the overview, telemetry, targets."""

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from infless_core.errors import InvalidInput, NotFound, Unavailable
from infless_core.model import Configuration
from infless_profiler.scrape import Target
from infless_provider import views
from infless_provider.backends.base import Usage
from infless_provider.state import StoredNamespace

GENEROUS_S = 60.0
"""Longer than any machine takes to run a thread."""


def run(scenario):
    """A coroutine as a test."""
    asyncio.run(scenario)


@pytest.fixture(autouse=True)
def dev(world):
    """A namespace beside the default one."""
    world.controller.namespaces.create(StoredNamespace(name="dev", labels={}, annotations={}))


class TestStatus:
    """One function, as it was deployed and as it is."""

    def test_the_least_deployment(self, world):
        """What was not said is absent: faas-cli tells an empty map from none."""

        async def scenario():
            await world.deploy()
            (status,) = await world.views.listing(None)
            assert status == {
                "name": "f",
                "image": "f",
                "namespace": "openfaas-fn",
                "labels": {"faas_function": "f"},
                "replicas": 1,
                "availableReplicas": 0,
                "invocationCount": 0,
                "createdAt": "1970-01-01T00:16:40.000000Z",
            }

        run(scenario())

    def test_everything_comes_back_as_it_was_said(self, world):
        """Quantities as strings, lists in order, labels with one more."""
        fields = {
            "envProcess": "serve",
            "envVars": {"a": "1"},
            "constraints": ["b", "a"],
            "secrets": ["t", "s"],
            "labels": {"x": "y"},
            "annotations": {"topic": "t\nu"},
            "limits": {"memory": "1024Mi", "cpu": "100m"},
            "requests": {"memory": "0.5Gi"},
            "readOnlyRootFilesystem": True,
        }

        async def scenario():
            for name in "st":
                world.secret(name)
            await world.deploy(**fields)
            (status,) = await world.views.listing("")
            labels = {"x": "y", "faas_function": "f"}
            assert {key: status[key] for key in fields} == {**fields, "labels": labels}

        run(scenario())

    def test_list_and_status_agree(self, world):
        """faas-cli describe reads both."""

        async def scenario():
            await world.running(await world.deploy(labels={"a": "b"}))
            (listed,) = await world.views.listing(None)
            assert await world.views.describe("f", None, usage=False) == listed
            assert await world.views.describe("f.openfaas-fn", "dev", usage=False) == listed

        run(scenario())

    def test_replicas(self, world):
        """Wanted and ready ones, of both versions while an update rolls over; draining ones are neither."""

        async def scenario():
            f = await world.deploy(labels={"com.openfaas.scale.min": "2"})

            async def counts():
                (status,) = await world.views.listing(None)
                return status["replicas"], status["availableReplicas"]

            assert await counts() == (2, 0)
            one, _, _ = await world.running(f), await world.running(f), await world.running(f, ready=False)
            assert await counts() == (3, 2)
            world.fleet.drain(one, "test")
            assert await counts() == (2, 1)
            await world.update(code="2", labels={"com.openfaas.scale.min": "2"})
            assert await counts() == (2, 1)

        run(scenario())

    def test_asleep(self, world):
        """Zero is a number of replicas like any other."""

        async def scenario():
            await world.deploy(labels={"com.openfaas.scale.min": "0"})
            (status,) = await world.views.listing(None)
            assert (status["replicas"], status["availableReplicas"]) == (0, 0)

        run(scenario())

    def test_usage(self, world):
        """On wish only: of all its instances together, as floating-point numbers."""

        async def scenario():
            f = await world.deploy()
            await world.running(f)
            await world.running(f)
            status = await world.views.describe("f", None, usage=True)
            assert json.dumps(status["usage"]) == '{"cpu": 10.0, "totalMemoryBytes": 14.0}'
            assert "usage" not in await world.views.describe("f", None, usage=False)

        run(scenario())

    def test_usage_of_none(self, world):
        """Nothing runs, so nothing is used."""

        async def scenario():
            await world.deploy()
            assert (await world.views.describe("f", None, usage=True))["usage"] == {"cpu": 0, "totalMemoryBytes": 0.0}

        run(scenario())

    @pytest.mark.parametrize(
        ("name", "namespace"),
        [("g", None), ("f", "dev"), ("f.dev", None), ("f", "none"), ("", None), (".openfaas-fn", None), ("../f", None)],
    )
    def test_one_that_does_not_exist(self, world, name, namespace):
        """404, also in a namespace that does not exist."""

        async def scenario():
            await world.deploy()
            with pytest.raises(NotFound, match=f"function {name!r} does not exist in namespace"):
                await world.views.describe(name, namespace, usage=True)

        run(scenario())


class Engine:
    """A backend's `usage` that hangs until the gate opens."""

    def __init__(self, backend):
        self.gate, self.asked, self.failure = threading.Event(), [], None
        backend.usage = self

    def __call__(self, ids):
        """Something for each, or the failure."""
        self.asked.append(list(ids))
        assert self.gate.wait(GENEROUS_S), "nobody opened the gate"
        if self.failure is not None:
            raise self.failure
        return [Usage(cpu_millicores=5.0, memory_bytes=7) for _ in ids]

    async def reached(self, times):
        """So many questions have come to it."""
        async with asyncio.timeout(GENEROUS_S):
            while len(self.asked) < times:
                await asyncio.sleep(0.001)


class TestUsageOfABackendThatHangs:
    """Polls hold up nobody, and do not pile up."""

    @pytest.fixture
    def engine(self, world):
        """One that hangs; in the end it does not, so that its threads end."""
        engine = Engine(world.backend)
        yield engine
        engine.gate.set()
        world.views.close()

    @staticmethod
    async def polls(world, *names):
        """Somebody asks for each of these."""
        found = [asyncio.ensure_future(world.views.describe(name, None, usage=True)) for name in names]
        await world.settle()
        return found

    def test_other_threads_are_free(self, world, engine):
        """Secrets and housekeeping have the default ones, of which there is one here."""

        async def scenario():
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
            await world.deploy()
            polls = await self.polls(world, *"ffffff")
            await engine.reached(1)
            async with asyncio.timeout(GENEROUS_S / 2):
                assert await asyncio.to_thread(lambda: "done") == "done"
            engine.gate.set()
            assert len(await asyncio.gather(*polls)) == 6

        run(scenario())

    def test_polls_of_a_function_share_an_answer(self, world, engine):
        """Of those that come while it is read; who comes later has it read anew."""

        async def scenario():
            f = await world.deploy()
            instance = await world.running(f)
            polls = await self.polls(world, *"fff")
            await engine.reached(1)
            engine.gate.set()
            assert [one["usage"]["cpu"] for one in await asyncio.gather(*polls)] == [5.0] * 3
            assert engine.asked == [[instance.id]]
            await world.views.describe("f", None, usage=True)
            assert len(engine.asked) == 2

        run(scenario())

    def test_who_waits_for_long_is_told(self, world, engine, monkeypatch):
        """A sentence, and those who ask meanwhile get it at once; without usage they get an answer; it may come back."""
        monkeypatch.setattr(views, "USAGE_WAIT_S", 0.01)

        async def scenario():
            await world.deploy()
            told = "the backend does not say what instances of f.openfaas-fn use; ask without usage, or later"
            with pytest.raises(Unavailable, match=told):
                await world.views.describe("f", None, usage=True)
            monkeypatch.setattr(views, "USAGE_WAIT_S", GENEROUS_S)
            with pytest.raises(Unavailable, match=told):
                await asyncio.wait_for(world.views.describe("f", None, usage=True), GENEROUS_S / 2)
            assert len(engine.asked) == 1
            assert "usage" not in await world.views.describe("f", None, usage=False)
            engine.gate.set()
            async with asyncio.timeout(GENEROUS_S):
                while not (found := await self.usage_if_told(world)):
                    await asyncio.sleep(0.001)
            assert found == {"cpu": 0, "totalMemoryBytes": 0.0}

        run(scenario())

    @staticmethod
    async def usage_if_told(world):
        """None while it is not."""
        try:
            return (await world.views.describe("f", None, usage=True))["usage"]
        except Unavailable:
            return None

    def test_one_function_does_not_take_all_threads(self, world, engine):
        """Another one's question goes to the backend meanwhile."""

        async def scenario():
            for name in "fg":
                await world.deploy(name)
            polls = await self.polls(world, *"fffffffg")
            await engine.reached(2)
            engine.gate.set()
            assert [one["name"] for one in await asyncio.gather(*polls)] == list("fffffffg")

        run(scenario())

    def test_a_failure_is_everybodys(self, world, engine):
        """Of those who shared the question; the next one asks anew."""

        async def scenario():
            await world.deploy()
            engine.failure = RuntimeError("broken")
            polls = await self.polls(world, *"ff")
            engine.gate.set()
            found = await asyncio.gather(*polls, return_exceptions=True)
            assert [str(one) for one in found] == ["broken"] * 2
            engine.failure = None
            assert (await world.views.describe("f", None, usage=True))["usage"]["cpu"] == 0

        run(scenario())


class TestListing:
    """The functions of one namespace."""

    def test_only_those_of_a_namespace(self, world):
        """By name, whatever the order of deployment."""

        async def scenario():
            for name, namespace in (("b", None), ("a", None), ("c", "dev")):
                await world.deploy(name, **({"namespace": namespace} if namespace else {}))
            assert [one["name"] for one in await world.views.listing(None)] == ["a", "b"]
            assert [(one["name"], one["namespace"]) for one in await world.views.listing("dev")] == [("c", "dev")]

        run(scenario())

    def test_an_empty_namespace(self, world):
        """An empty list, not null."""

        async def scenario():
            assert await world.views.listing("dev") == []

        run(scenario())

    @pytest.mark.parametrize("namespace", ["none", "..", "DEV"])
    def test_one_that_does_not_exist(self, world, namespace):
        """400, as faas-netes and faasd answer."""

        async def scenario():
            with pytest.raises(InvalidInput, match=f"namespace '{namespace}'"):
                await world.views.listing(namespace)

        run(scenario())


class TestOverview:
    """`infless status`."""

    def test_an_instance(self, world):
        """Its configuration, what it bears, where it is and why it runs."""

        async def scenario():
            f = await world.deploy()
            one = await world.running(f, Configuration(batch=8, cpu_cores=1))
            (told,) = (await world.views.overview())["instances"]
            assert told == {
                "id": one.id, "function": f.key, "phase": "ready", "batch": 8, "cpu_cores": 1, "gpu_percent": 0,
                "rate_low_rps": 24.0, "rate_up_rps": 200.0, "why": "test", "port": 1002, "metrics_port": 1003, "pid": 1002,
            }  # fmt: skip

        run(scenario())

    def test_an_instance_of_which_little_is_known(self, world):
        """No address yet, no profile for its configuration, its function removed: nulls, and JSON all the same."""

        async def scenario():
            f = await world.deploy()
            world.backend.late = True
            await world.running(f, Configuration(batch=3, cpu_cores=7), ready=False)
            del world.controller.functions[f.key]
            (told,) = (await world.views.overview())["instances"]
            missing = {key for key, value in told.items() if value is None}
            assert missing == {"rate_low_rps", "rate_up_rps", "port", "metrics_port", "pid"}

        run(scenario())

    def test_functions_and_events(self, world):
        """What is measured, why the last start failed, and what happened, in order."""

        async def scenario():
            f = await world.deploy(labels={"com.infless.latency.target": "200ms"})
            world.backend.words = "no model"
            await world.ended(await world.running(f, ready=False))
            f.in_flight = 2
            overview = await world.views.overview()
            assert overview["functions"] == [
                {
                    "function": f.key, "rate_rps": 0.0, "latency_target_s": 0.2, "in_flight": 2,
                    "last_failure": "no model", "retry_in_s": 2.0, "rolled_back": "",
                }
            ]  # fmt: skip
            assert [(event["event"], event["why"]) for event in overview["events"]] == [
                ("start", "test"),
                ("end", "no model"),
            ]
            json.dumps(overview)

        run(scenario())

    def test_no_secret_is_shown(self, world):
        """Neither tokens nor variables."""

        async def scenario():
            world.secret("tokens", b"hush-hush")
            await world.running(
                await world.deploy(labels={"com.infless.auth.secret": "tokens"}, envVars={"KEY": "hush-hush"})
            )
            assert "hush" not in json.dumps(await world.views.overview())

        run(scenario())


def test_telemetry(world):
    """Counts of everything; no names."""

    async def scenario():
        f = await world.deploy("f")
        await world.deploy("g", namespace="dev")
        await world.running(f)
        f.invocations = 5
        assert await world.views.telemetry() == {
            "provider": "infless", "orchestration": "fake", "namespaces": 2, "functions": 2, "instances": 1, "invocations": 5,
        }  # fmt: skip

    run(scenario())


def test_invocations(world):
    """By function key, as the gateway's series are called."""

    async def scenario():
        f, _ = await world.deploy("f"), await world.deploy("f", namespace="dev")
        f.invocations = 5
        assert await world.views.invocations() == {"f.openfaas-fn": 5, "f.dev": 0}

    run(scenario())


def test_targets_are_ready_and_publish_metrics(world):
    """One that starts, drains or has no metrics is not scraped; both forms say the same."""

    async def scenario():
        f = await world.deploy()
        one, draining, silent = [await world.running(f) for _ in range(3)]
        await world.running(f, ready=False)
        world.fleet.drain(draining, "test")
        silent.address = type(silent.address)(host="x", port=1, metrics_port=0, handle={})
        assert world.views.targets() == [Target(instance=one.id, function=f.key, host=one.id, port=1003)]
        assert await world.views.discovery() == [
            {"targets": [f"{one.id}:1003"], "labels": {"function_name": f.key, "infless_instance": one.id}}
        ]

    run(scenario())
