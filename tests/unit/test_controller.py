"""Deploy, update, remove, scale and restore, on a backend that only remembers."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from infless_core.errors import BackendError, Conflict, Infeasible, InvalidInput, NotFound, QuotaExceeded, StateError
from infless_core.lifecycle import Phase
from infless_core.model import Configuration, Gpu
from infless_provider.secret_store import SecretStore
from infless_provider.state import State, StoredNamespace
from infless_provider.wire import SecretWish

TOKENS = {"com.infless.auth.secret": "tokens"}


def run(scenario):
    """A coroutine as a test."""
    return asyncio.run(scenario)


def full_disk(monkeypatch, call):
    """Every write of one kind fails."""

    def fails(*_):
        raise StateError("the state could not be written: disk is full; nothing was changed")

    monkeypatch.setattr(State, call, fails)


def with_labels(stored, labels):
    """The same function, labelled otherwise."""
    version = stored.version
    return replace(stored, version=replace(version, spec=replace(version.spec, labels=labels)))


def with_settings(world, **changes):
    """A provider that was started otherwise."""
    world.settings = replace(world.settings, **changes)
    world.controller.close()
    world.controller = world.new_controller()


def test_a_deployed_function_is_listed_and_kept(world):
    """Wanted once, not there yet; the planner is told; a restart would find it."""

    async def scenario():
        await world.deploy()
        (status,) = await world.views.listing(None)
        assert (status["name"], status["replicas"], status["availableReplicas"]) == ("f", 1, 0)
        assert world.dirty == 1
        assert [stored.spec.name for stored in world.state.functions()] == ["f"]

    run(scenario())


def test_what_cannot_be_deployed_twice_or_updated_before(world):
    """409 and 404, with the name."""

    async def scenario():
        await world.deploy()
        with pytest.raises(Conflict, match="function 'f' exists already; update it with PUT"):
            await world.deploy()
        with pytest.raises(NotFound, match="function 'g' does not exist"):
            await world.controller.update(world.bundle("g"))
        with pytest.raises(NotFound):
            await world.controller.remove("g")

    run(scenario())


def test_one_deployment_of_a_function_at_a_time(world):
    """The second one is told; a removal too."""

    async def scenario():
        await world.deploy()
        updates = [world.controller.update(world.bundle()) for _ in range(2)]
        removal = world.controller.remove("f")
        done = await asyncio.gather(*updates, removal, return_exceptions=True)
        assert [type(one) for one in done] == [type(None), Conflict, Conflict]

    run(scenario())


@pytest.mark.parametrize(
    ("fields", "error", "sentence"),
    [
        (
            {"labels": {"com.infless.latency.target": "5ms"}},
            Infeasible,
            r"5ms cannot be met by 'f': .* takes 10ms; .* 10.1ms",
        ),
        ({"labels": {"com.infless.gpu": "require"}}, Infeasible, "requires a GPU, and no server here has one"),
        ({"labels": {"com.infless.gpu": "x"}}, InvalidInput, "write never, allow or require"),
        (
            {"secrets": ["b", "a"]},
            InvalidInput,
            "secrets: 'a', 'b' do not exist in namespace 'openfaas-fn'; create them first",
        ),
        ({"labels": {"com.infless.auth.secret": "key"}}, InvalidInput, "secret 'key' does not exist; create it first"),
        ({"namespace": "dev"}, InvalidInput, "namespace 'dev' does not exist; there are openfaas-fn"),
        ({"image": "other"}, InvalidInput, "no bundle for image 'other'"),
    ],
)
def test_a_refused_deployment_leaves_nothing(world, fields, error, sentence):
    """No function, no row."""

    async def scenario():
        with pytest.raises(error, match=sentence):
            await world.deploy(**fields)
        assert world.controller.functions == {}
        assert world.state.functions() == []
        assert not (world.settings.secrets_dir / "mounted").exists()

    run(scenario())


def test_the_log_says_what_became_of_a_deployment(world, caplog):
    """Whoever asked for it may have left meanwhile."""

    async def scenario():
        with caplog.at_level("INFO"):
            world.profiles.failure = BackendError("no module numpy")
            with pytest.raises(BackendError):
                await world.deploy()
            world.profiles.failure = None
            await world.deploy()
        assert "f.openfaas-fn is not deployed: no module numpy" in caplog.text
        assert caplog.text.count("f.openfaas-fn is deployed") == 1

    run(scenario())


def test_a_gpu_on_which_nothing_was_timed_is_not_promised(world):
    """Else what requires it would run without."""

    async def scenario():
        (server,) = world.backend.servers
        world.backend.servers = (replace(server, gpus=(Gpu(id="0", memory_bytes=1 << 30),)),)
        for table in (world.profiles.table, ()):
            world.profiles.table = table
            with pytest.raises(Infeasible, match="requires a GPU, and it is not known how long it takes on one"):
                await world.deploy(labels={"com.infless.gpu": "require"})

    run(scenario())


def test_the_nearest_feasible_target_is_feasible(world):
    """Who follows the advice is served."""

    async def scenario():
        await world.deploy(labels={"com.infless.latency.target": "10.1ms"})

    run(scenario())


def test_a_refused_update_leaves_the_old_version(world):
    """Also when its handler cannot be timed."""

    async def scenario():
        before = (await world.deploy()).stored
        world.profiles.failure = BackendError("handler.py cannot be imported")
        with pytest.raises(BackendError):
            await world.controller.update(world.bundle(code="broken"))
        assert world.controller.find("f").stored == before

    run(scenario())


@pytest.mark.parametrize("act", ["deploy", "update", "remove", "scale"])
def test_a_full_disk_changes_nothing(world, monkeypatch, act):
    """Every call that has to be kept is refused whole; what is deployed goes on."""

    async def scenario():
        before = (await world.deploy()).stored
        full_disk(monkeypatch, "delete_function" if act == "remove" else "put_function")
        calls = {
            "deploy": lambda: world.deploy("g"),
            "update": lambda: world.controller.update({**world.bundle(), "labels": {"a": "b"}}),
            "remove": lambda: world.controller.remove("f"),
            "scale": lambda: world.controller.scale("f", None, 3),
        }
        with pytest.raises(StateError, match="nothing was changed"):
            await calls[act]()
        assert [function.stored for function in world.controller.functions.values()] == [before]

    run(scenario())


def test_an_update_goes_over_when_all_new_instances_are_ready(world):
    """Until then both versions serve: one new instance could not carry what two old ones did."""

    async def scenario():
        f = await world.deploy()
        old = [await world.running(f), await world.running(f)]
        await world.controller.update(world.bundle(code="2"))
        (first,) = f.current()
        await world.running(f)
        assert [one.phase for one in old] == [Phase.READY] * 2
        world.backend.ready.add(first.id)
        await world.look()
        assert [one.phase for one in old] == [Phase.DRAINING] * 2
        assert len(f.serving()) == 2

    run(scenario())


def test_an_update_that_cannot_start_leaves_the_old_version_serving(world):
    """It is tried again, later each time, and the reason is kept."""

    async def scenario():
        f = await world.deploy()
        old = await world.running(f)
        world.backend.failure = "no more processes"
        await world.controller.update(world.bundle(code="2"))
        assert f.serving() == [old]
        assert (f.last_failure, f.retry_at_s) == ("no more processes", 1002.0)

    run(scenario())


def test_an_update_of_labels_alone_keeps_the_instances(world):
    """They are told the new target and batch; no process starts."""

    async def scenario():
        f = await world.deploy()
        one = await world.running(f)
        labels = {"com.infless.latency.target": "50ms", "com.infless.batch.max": "1"}
        await world.controller.update({**world.bundle(), "labels": labels})
        await world.look()
        assert world.backend.told == [(one.id, {"batch_max": 1, "cpu_cores": 1, "latency_target_s": 0.05})]
        assert f.current() == [one]
        assert world.state.instances()[0].configuration.batch == 1

    run(scenario())


def test_padding_reaches_the_instances_and_its_change_makes_a_new_version(world):
    """Beside the function's own variables: another padding is another speed, so the profile is another one, too."""

    async def scenario():
        own = {"key": "x"}
        function = await world.deploy(envVars=own)
        await world.running(function)
        plain = function.stored.version.digest
        await world.controller.update({**world.bundle(), "envVars": own, "labels": {"com.infless.batch.pad": "16"}})
        assert function.stored.version.digest != plain
        assert [launch.environment for launch in world.backend.launches] == [own, {**own, "batch_pad": "16"}]

    run(scenario())


def test_an_update_keeps_age_and_scale(world):
    """`createdAt` is the first deployment's, a number set by hand stays."""

    async def scenario():
        await world.deploy()
        await world.controller.scale("f", None, 3)
        world.clock.advance(60)
        await world.controller.update(world.bundle(code="2"))
        stored = world.controller.find("f").stored
        assert (stored.created_at_s, stored.replicas) == (1000.0, 3)

    run(scenario())


def test_scaling_by_hand(world):
    """Within `com.openfaas.scale.max`; zero counts at once."""

    async def scenario():
        f = await world.deploy(labels={"com.openfaas.scale.max": "2"})
        await world.controller.scale("f.openfaas-fn", None, 2)
        assert f.least(world.clock.now_s()) == 2
        with pytest.raises(InvalidInput, match=r"replicas 3 is above com.openfaas.scale.max, 2"):
            await world.controller.scale("f", None, 3)
        await world.controller.scale("f", None, 0)
        assert f.least(world.clock.now_s()) == 0

    run(scenario())


def test_removing_drains_and_forgets(world):
    """Who waits for an instance is let go."""

    async def scenario():
        f = await world.deploy()
        one = await world.running(f)
        waiter = asyncio.get_running_loop().create_future()
        f.waiters.append(waiter)
        await world.controller.remove("f")
        assert (one.phase, waiter.done()) == (Phase.DRAINING, True)
        await world.ended(one)
        assert (world.state.functions(), world.state.instances(), world.fleet.instances) == ([], [], {})

    run(scenario())


def test_describe_and_overview(world):
    """Usage on wish; every instance with its reason and window."""

    async def scenario():
        f = await world.deploy()
        one = await world.running(f)
        assert (await world.views.describe("f", None, usage=True))["usage"] == {"cpu": 5.0, "totalMemoryBytes": 7.0}
        assert "usage" not in await world.views.describe("f", None, usage=False)
        overview = await world.views.overview()
        assert (overview["instances"][0]["id"], overview["instances"][0]["why"]) == (one.id, "test")
        assert overview["instances"][0]["rate_up_rps"] > 0
        assert [event["event"] for event in overview["events"]] == ["start", "ready"]

    run(scenario())


def test_a_restart_finds_everything_again(world):
    """Instances that run are taken over, told their configuration again, and nothing else is started."""

    async def scenario():
        one = await world.running(await world.deploy())
        controller = await world.restart()
        await world.look(3)
        f = controller.find("f")
        assert [(i.id, i.phase, i.reason) for i in f.serving()] == [(one.id, Phase.READY, "found after a restart")]
        assert [host for host, _ in world.backend.told] == [one.id]
        assert world.backend.swept == {one.id}
        assert len(world.backend.launches) == 1

    run(scenario())


def test_a_restart_clears_up_what_ended_meanwhile(world):
    """Rows of dead instances, and instances of functions that are gone."""

    async def scenario():
        f, g = await world.deploy("f"), await world.deploy("g")
        dead, orphan = await world.running(f), await world.running(g)
        world.backend.running.pop(dead.id)
        world.state.delete_function(g.key)
        await world.restart()
        assert world.state.instances() == []
        assert set(world.backend.forgotten) == {dead.id, orphan.id}
        assert world.backend.running == {}

    run(scenario())


def test_a_restart_goes_round_a_function_that_cannot_be_restored(world, caplog):
    """The others are served, it stays in the state."""

    async def scenario():
        f = await world.deploy("f")
        await world.deploy("g")
        world.state.put_function(with_labels(f.stored, {"com.infless.gpu": "require"}))
        await world.restart()
        assert list(world.controller.functions) == ["g.openfaas-fn"]
        assert len(world.state.functions()) == 2
        assert "f.openfaas-fn stays in the state and is not served" in caplog.text

    run(scenario())


def test_a_function_that_cannot_be_restored_can_be_removed_and_replaced(world):
    """Else only a restart of a provider that can read it would rid one of it."""

    async def scenario():
        for name in ("f", "g"):
            stored = (await world.deploy(name)).stored
            world.state.put_function(with_labels(stored, {"com.infless.gpu": "require"}))
        await world.restart()
        await world.controller.remove("f")
        with pytest.raises(NotFound):
            await world.controller.remove("f")
        await world.deploy("g")
        await world.controller.remove("g")
        assert (world.state.functions(), world.controller._everything()) == ([], [])

    run(scenario())


def test_a_full_disk_keeps_nobody_from_being_served_again(world, monkeypatch, caplog):
    """What cannot be cleared up now is cleared up later."""

    async def scenario():
        await world.deploy()
        with monkeypatch.context() as patch:
            patch.setattr(SecretStore, "sweep", lambda *_: (_ for _ in ()).throw(StateError("disk is full")))
            await world.restart()
        assert list(world.controller.functions) == ["f.openfaas-fn"]
        assert "clearing up failed; it is tried again later: disk is full" in caplog.text

    run(scenario())


@pytest.mark.parametrize("lost", ["failure", "nothing"])
def test_a_lost_profile_keeps_nobody_from_being_served(world, caplog, lost):
    """Its speed is learned instead."""

    async def scenario():
        await world.deploy()
        world.profiles.table = None
        world.profiles.kept_failure = StateError("damaged") if lost == "failure" else None
        await world.restart()
        assert world.controller.find("f").profile == ()
        assert ("damaged" if lost == "failure" else "has lost its profile") in caplog.text

    run(scenario())


def test_scaled_to_zero_stays_so_over_a_restart(world):
    """Nobody has asked for it since."""

    async def scenario():
        await world.deploy()
        await world.controller.scale("f", None, 0)
        await world.restart()
        assert world.controller.find("f").least(world.clock.now_s()) == 0

    run(scenario())


def test_unused_bundles_go_at_a_restart(world):
    """But not while an instance of an older version still runs on one."""

    async def scenario():
        f = await world.deploy()
        old = await world.running(f)
        await world.update(code="2")
        await world.running(f)
        assert (len(f.current()), f.stored.previous, old.phase) == (2, None, Phase.READY)
        kept = world.settings.state_dir / "bundles"
        for copies in (2, 1):
            await world.restart()
            assert len(list(kept.iterdir())) == copies
            world.backend.running.pop(old.id, None)

    run(scenario())


def test_a_restart_keeps_what_a_version_to_go_back_to_runs_on(world):
    """Its bundle and its secrets, although no instance of it is left."""

    async def scenario():
        world.secret("key")
        f = await world.deploy(secrets=["key"])
        await world.ended(await world.running(f))
        await world.update(code="2")
        previous = f.stored.previous
        await world.restart()
        assert Path(previous.artifact).is_dir()
        assert (world.secrets.folder_of(f.key, previous.id) / "key").read_bytes() == b"value"

    run(scenario())


def test_a_restart_keeps_what_a_function_runs_on_that_is_not_served_now(world):
    """The GPU may come back; the function would then find nothing to run."""

    async def scenario():
        world.secret("key")
        f = await world.deploy(secrets=["key"])
        world.state.put_function(with_labels(f.stored, {"com.infless.gpu": "require"}))
        await world.restart()
        assert world.controller.functions == {}
        assert Path(f.stored.version.artifact).is_dir()
        assert world.secrets.folder_of(f.key, f.version) is not None

    run(scenario())


def test_a_restart_removes_the_secrets_of_versions_that_are_gone(world):
    """Nobody reads those copies any more."""

    async def scenario():
        world.secret("key")
        f = await world.deploy(secrets=["key"])
        gone = f.version
        await world.update(code="2", secrets=["key"])  # the first one has never been ready: there is no way back to it
        assert world.secrets.folder_of(f.key, gone) is not None
        await world.restart()
        assert world.secrets.folder_of(f.key, gone) is None
        assert world.secrets.folder_of(f.key, f.version) is not None

    run(scenario())


def test_functions_without_example_are_served(world):
    """Nothing to check a target against."""

    async def scenario():
        world.profiles.table = ()
        f = await world.deploy(labels={"com.infless.latency.target": "1ms"})
        assert f.spare() == Configuration(batch=32, cpu_cores=1)

    run(scenario())


class TestNamespaces:
    """Every one has functions of its own."""

    @pytest.fixture(autouse=True)
    def dev(self, world):
        """One beside the default one."""
        world.controller.namespaces.create(StoredNamespace(name="dev", labels={}, annotations={}))

    def test_functions_of_the_same_name(self, world):
        """Each is found, changed and removed in its own namespace only."""

        async def scenario():
            ours, theirs = await world.deploy(), await world.deploy(namespace="dev")
            await world.controller.scale("f", "dev", 3)
            assert (ours.stored.replicas, theirs.stored.replicas) == (None, 3)
            assert world.controller.find("f.dev") is world.controller.find("f", "dev") is theirs
            await world.controller.remove("f", "dev")
            assert list(world.controller.functions) == [ours.key]
            with pytest.raises(NotFound, match="function 'f' does not exist in namespace 'dev'"):
                world.controller.find("f", "dev")

        run(scenario())

    def test_a_restart_knows_them(self, world):
        """And what runs there."""

        async def scenario():
            theirs = await world.running(await world.deploy(namespace="dev"))
            await world.restart()
            assert world.controller.namespaces.names() == ["openfaas-fn", "dev"]
            assert list(world.controller.find("f", "dev").instances) == [theirs.id]

        run(scenario())

    def test_one_that_is_removed_while_something_is_deployed_to_it(self, world, monkeypatch):
        """Timing took a minute, and the namespace had gone: nothing is left in it."""

        async def scenario():
            def removed_meanwhile(*_):
                world.controller.namespaces.delete("dev", (), ())
                return world.profiles.table

            # On the loop's thread, which owns namespaces: what a thread does is of no interest here.
            monkeypatch.setattr(world.controller._preparing, "_run", _now)
            monkeypatch.setattr(world.profiles, "points", removed_meanwhile)
            with pytest.raises(InvalidInput, match="namespace 'dev' does not exist"):
                await world.deploy(namespace="dev")
            assert (world.controller.functions, world.state.functions()) == ({}, [])

        run(scenario())

    def test_each_may_hold_so_many(self, world):
        """The limit is a namespace's own, an update is no function more, and removing makes room."""

        async def scenario():
            with_settings(world, functions_max=1)
            world.controller.namespaces.restore()
            await world.deploy("f")
            await world.deploy("f", namespace="dev")
            with pytest.raises(QuotaExceeded, match="namespace 'openfaas-fn' holds 1 functions, as many as it may"):
                await world.deploy("g")
            await world.update("f")
            await world.controller.remove("f")
            await world.deploy("g")

        run(scenario())


async def _now(work, *arguments):
    return work(*arguments)


class TestSecrets:
    """What instances see, and who may call a function."""

    def test_an_instance_gets_the_folder_of_its_version(self, world):
        """With what it asked for and nothing else; none where it asked for nothing."""

        async def scenario():
            world.secret("key", b"1")
            world.secret("other", b"2")
            await world.running(await world.deploy(secrets=["key"]))
            await world.running(await world.deploy("g"))
            first, second = world.backend.launches
            assert [(path.name, path.read_bytes()) for path in first.secrets.iterdir()] == [("key", b"1")]
            assert second.secrets is None

        run(scenario())

    def test_it_is_timed_with_what_its_instances_get(self, world, monkeypatch):
        """Its secrets are there already, and its memory limit is told."""

        async def scenario():
            timed = []

            def points(*given):
                secrets, memory_bytes = given[-2:]
                timed.append((secrets and [(path.name, path.read_bytes()) for path in secrets.iterdir()], memory_bytes))
                return world.profiles.table

            world.secret("key", b"1")
            monkeypatch.setattr(world.profiles, "points", points)
            await world.deploy(secrets=["key"], limits={"memory": "64Mi"})
            await world.deploy("g")
            assert timed == [([("key", b"1")], 64 << 20), (None, 0)]

        run(scenario())

    def test_other_secrets_need_other_instances(self, world):
        """The old ones keep what they were given until they have ended."""

        async def scenario():
            world.secret("key")
            world.secret("other")
            f = await world.deploy(secrets=["key"])
            await world.running(f)
            await world.update(code="1", secrets=["other"])
            old, new = (launch.secrets for launch in world.backend.launches)
            assert [path.name for path in old.iterdir()] == ["key"]
            assert [path.name for path in new.iterdir()] == ["other"]

        run(scenario())

    def test_a_secret_that_goes_while_it_is_deployed(self, world, monkeypatch):
        """Refused, and nothing of it stays."""

        async def scenario():
            world.secret("key")

            prepare = world.backend.prepare

            def removed_meanwhile(spec):
                world.secrets.delete("openfaas-fn", "key")
                return prepare(spec)

            monkeypatch.setattr(world.backend, "prepare", removed_meanwhile)
            with pytest.raises(InvalidInput, match="secrets: secret 'key' does not exist in namespace 'openfaas-fn'"):
                await world.deploy(secrets=["key"])
            assert (world.controller.functions, world.state.functions()) == ({}, [])

        run(scenario())

    def test_a_function_is_open_unless_a_label_says_otherwise(self, world):
        """As in OpenFaaS."""

        async def scenario():
            assert (await world.deploy()).tokens == ()

        run(scenario())

    def test_a_label_names_the_tokens(self, world):
        """One on each line; an update of the secret is followed at once, an update of labels opens again."""

        async def scenario():
            world.secret("tokens", b"one\n two\n\n")
            f = await world.deploy(labels=TOKENS)
            assert f.tokens == (b"one", b"two")
            world.secrets.update(SecretWish(name="tokens", namespace="openfaas-fn", value=b"three"))
            world.controller.secret_changed("openfaas-fn", "tokens")
            assert f.tokens == (b"three",)
            await world.update(code="1")
            assert f.tokens == ()

        run(scenario())

    def test_the_secret_of_another_namespace_or_name_changes_nothing(self, world):
        """Names are a namespace's own."""

        async def scenario():
            world.secret("tokens", b"one")
            f = await world.deploy(labels=TOKENS)
            world.secrets.update(SecretWish(name="tokens", namespace="openfaas-fn", value=b"three"))
            world.controller.secret_changed("dev", "tokens")
            world.controller.secret_changed("openfaas-fn", "other")
            assert f.tokens == (b"one",)

        run(scenario())

    @pytest.mark.parametrize("value", [b"", b" \n\n"])
    def test_a_secret_without_a_token_is_refused(self, world, value):
        """It would mean: nobody, or everybody. Nobody should have to guess."""

        async def scenario():
            world.secret("tokens", value)
            with pytest.raises(InvalidInput, match="secret 'tokens' holds no token; write one on each line"):
                await world.deploy(labels=TOKENS)

        run(scenario())

    @pytest.mark.parametrize("restarted", [False, True])
    def test_a_secret_that_is_gone_closes_the_function(self, world, caplog, restarted):
        """To everybody: with a token that nobody knows, another one for each function; the log says why."""

        async def scenario():
            world.secret("tokens", b"one")
            for name in "fg":
                await world.deploy(name, labels=TOKENS)
            world.secrets.delete("openfaas-fn", "tokens")
            if restarted:
                await world.restart()
            else:
                world.controller.secret_changed("openfaas-fn", "tokens")
            (f,), (g,) = (function.tokens for function in world.controller.functions.values())
            assert len(f) == len(g) == 32
            assert f != g
            assert caplog.text.count("a function is closed to everybody: label com.infless.auth.secret") == 2

        run(scenario())

    def test_tokens_are_in_no_text(self, world):
        """A log that prints a function does not give them away."""

        async def scenario():
            world.secret("tokens", b"hush-hush")
            assert "hush-hush" not in repr(await world.deploy(labels=TOKENS))

        run(scenario())


def test_a_replacement_takes_over_when_it_is_ready(world):
    """What it replaces is drained then, and not before."""

    async def scenario():
        f = await world.deploy()
        old = await world.running(f)
        new = world.fleet.start(f, Configuration(batch=8, cpu_cores=2), "test", replaces=old.id)
        await world.look()
        assert old.phase is Phase.READY
        world.backend.ready.add(new.id)
        dirty = world.dirty
        await world.look()
        assert (old.phase, world.dirty > dirty) == (Phase.DRAINING, True)

    run(scenario())


def test_labels_that_an_instance_cannot_be_told(world, monkeypatch, caplog):
    """The disk is full: the function has its new labels, the instance keeps its configuration, and that is told."""

    async def scenario():
        f = await world.deploy()
        one = await world.running(f)
        before = one.configuration
        monkeypatch.setattr(State, "put_instance", lambda *_: (_ for _ in ()).throw(StateError("disk is full")))
        await world.update(code="1", labels={"com.infless.batch.max": "1"})
        assert (f.wishes.batch_max, one.configuration) == (1, before)
        assert f"{one.id} keeps its old configuration: disk is full" in caplog.text

    run(scenario())


def test_deployments_under_way_count_for_the_limit(world):
    """Else those that come together would all find room."""

    async def scenario():
        world.controller._settings = replace(world.settings, functions_max=1)
        return await asyncio.gather(world.deploy("f"), world.deploy("g"), return_exceptions=True)

    first, second = asyncio.run(scenario())
    assert isinstance(second, QuotaExceeded)
    assert first.key == "f.openfaas-fn"


def test_a_removed_functions_secrets_go_with_its_last_instance(world):
    """Not before: it may read them while it drains."""

    async def scenario():
        world.secret("key")
        function = await world.deploy("f", secrets=["key"])
        instance = await world.running(function)
        await world.controller.remove("f")
        await world.controller._housekeeping.now()
        assert world.secrets.folder_of("f.openfaas-fn", function.version) is not None
        await world.ended(instance)
        await world.controller._housekeeping.now()
        assert world.secrets.folder_of("f.openfaas-fn", function.version) is None

    asyncio.run(scenario())
