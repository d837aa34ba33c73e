"""What users ask about namespaces and secrets, in one place with the functions that use them."""

import asyncio

import pytest

from infless_core.errors import Conflict, InvalidInput, NotFound, StateError
from infless_provider import secret_store
from infless_provider.tenants import Tenants

OPENFAAS = {"openfaas": "1"}
DEV = {"name": "dev", "labels": OPENFAAS, "annotations": OPENFAAS}
KEY = {"name": "key", "value": "hush-hush"}


def run(scenario):
    """A coroutine as a test."""
    asyncio.run(scenario)


@pytest.fixture
def tenants(world):
    """Wired as the provider does it."""
    made = Tenants(world.controller.namespaces, world.secrets, world.controller.functions_in)
    made.on_secret = world.controller.secret_changed
    return made


class TestNamespaces:
    """As `faas-cli namespace` asks."""

    def test_made_shown_changed_and_removed(self, tenants):
        """Each time what was said last."""

        async def scenario():
            await tenants.create_namespace(DEV)
            assert await tenants.list_namespaces() == ["openfaas-fn", "dev"]
            assert await tenants.namespace("dev") == DEV
            await tenants.update_namespace({"name": "dev", "labels": {"a": "b"}}, "dev")
            assert await tenants.namespace("dev") == {"name": "dev", "labels": {"a": "b"}, "annotations": {}}
            await tenants.delete_namespace("dev")
            assert await tenants.list_namespaces() == ["openfaas-fn"]

        run(scenario())

    @pytest.mark.parametrize(
        ("call", "error"),
        [
            (lambda tenants: tenants.namespace("dev"), NotFound),
            (lambda tenants: tenants.update_namespace(DEV, "dev"), NotFound),
            (lambda tenants: tenants.update_namespace({"name": "x"}, "dev"), NotFound),
            (lambda tenants: tenants.delete_namespace("dev"), NotFound),
            (lambda tenants: tenants.delete_namespace(".."), NotFound),
            (lambda tenants: tenants.delete_namespace("a" * 5000), NotFound),
            (lambda tenants: tenants.delete_namespace("\0"), NotFound),
            (lambda tenants: tenants.delete_namespace("openfaas-fn"), InvalidInput),
            (lambda tenants: tenants.create_namespace({"name": "openfaas-fn"}), Conflict),
            (lambda tenants: tenants.create_namespace({"name": "a.b"}), InvalidInput),
            (lambda tenants: tenants.create_namespace({}), InvalidInput),
            (lambda tenants: tenants.update_namespace({"name": "dev"}, "openfaas-fn"), InvalidInput),
        ],
    )
    def test_what_is_refused(self, tenants, call, error):
        """And nothing has changed then; a name that is no name finds nothing, and no folder is looked at."""

        async def scenario():
            with pytest.raises(error):
                await call(tenants)
            assert await tenants.list_namespaces() == ["openfaas-fn"]

        run(scenario())

    def test_one_in_use_cannot_be_removed(self, tenants, world):
        """Neither while there is a function, nor while there is a secret."""

        async def scenario():
            await tenants.create_namespace(DEV)
            await tenants.create_secret({**KEY, "namespace": "dev"})
            await world.deploy(namespace="dev")
            for left in ("1 function(s) and 1 secret(s)", "0 function(s) and 1 secret(s)"):
                with pytest.raises(Conflict) as fault:
                    await tenants.delete_namespace("dev")
                assert left in str(fault.value)
                if world.controller.functions:
                    await world.controller.remove("f", "dev")
            await tenants.delete_secret({**KEY, "namespace": "dev"})
            await tenants.delete_namespace("dev")
            assert (await world.restart()).namespaces.names() == ["openfaas-fn"]

        run(scenario())

    def test_one_that_is_made_again_is_empty(self, tenants, world):
        """Nothing of the one before is in it."""

        async def scenario():
            await tenants.create_namespace(DEV)
            await tenants.create_secret({**KEY, "namespace": "dev"})
            await tenants.delete_secret({"name": "key", "namespace": "dev"})
            await tenants.delete_namespace("dev")
            await tenants.create_namespace({"name": "dev"})
            assert await tenants.list_secrets("dev") == []
            assert await tenants.namespace("dev") == {"name": "dev", "labels": {}, "annotations": {}}

        run(scenario())


class TestSecrets:
    """As `faas-cli secret` asks."""

    def test_names_are_listed_and_never_values(self, tenants):
        """By namespace; empty means the default one."""

        async def scenario():
            await tenants.create_namespace(DEV)
            await tenants.create_secret(KEY)
            await tenants.create_secret({**KEY, "namespace": "dev"})
            for asked in (None, "", "openfaas-fn"):
                assert await tenants.list_secrets(asked) == [{"name": "key", "namespace": "openfaas-fn"}]
            assert await tenants.list_secrets("dev") == [{"name": "key", "namespace": "dev"}]

        run(scenario())

    @pytest.mark.parametrize(
        ("call", "error"),
        [
            (lambda tenants: tenants.create_secret(KEY), Conflict),
            (lambda tenants: tenants.create_secret({**KEY, "name": "new", "namespace": "none"}), InvalidInput),
            (lambda tenants: tenants.create_secret({**KEY, "name": "../key"}), InvalidInput),
            (lambda tenants: tenants.create_secret({"name": "new"}), InvalidInput),
            (lambda tenants: tenants.update_secret({**KEY, "name": "new"}), NotFound),
            (lambda tenants: tenants.update_secret({**KEY, "namespace": "none"}), InvalidInput),
            (lambda tenants: tenants.update_secret({"name": "key"}), InvalidInput),
            (lambda tenants: tenants.delete_secret({"name": "new"}), NotFound),
            (lambda tenants: tenants.delete_secret({"name": "key", "namespace": "none"}), NotFound),
            (lambda tenants: tenants.delete_secret({"name": ".."}), InvalidInput),
            (lambda tenants: tenants.list_secrets("none"), InvalidInput),
            (lambda tenants: tenants.list_secrets(".."), InvalidInput),
        ],
    )
    def test_what_is_refused(self, tenants, world, call, error):
        """And nothing has changed then; no error repeats a value."""

        async def scenario():
            world.secret("key", b"1")
            with pytest.raises(error) as fault:
                await call(tenants)
            assert "hush" not in str(fault.value)
            assert (world.secrets.names("openfaas-fn"), world.secrets.tokens("openfaas-fn", "key")) == (
                ["key"],
                (b"1",),
            )

        run(scenario())

    def test_a_new_value_reaches_who_has_it(self, tenants, world):
        """The copies of instances that run, without a deployment."""

        async def scenario():
            await tenants.create_secret({"name": "key", "value": "1"})
            await world.running(await world.deploy(secrets=["key"]))
            await tenants.update_secret({"name": "key", "rawValue": "Mg=="})
            assert (world.backend.launches[0].secrets / "key").read_bytes() == b"2"

        run(scenario())

    def test_tokens_follow(self, tenants, world):
        """Changed: the new ones open it; removed: nobody does; made again: those that are in it now."""

        async def scenario():
            await tenants.create_secret({"name": "key", "value": "one"})
            f = await world.deploy(labels={"com.infless.auth.secret": "key"})
            assert f.tokens == (b"one",)
            await tenants.update_secret({"name": "key", "value": "two"})
            assert f.tokens == (b"two",)
            await tenants.delete_secret({"name": "key"})
            (unknown,) = f.tokens
            assert len(unknown) == 32
            await tenants.create_secret({"name": "key", "value": "three"})
            assert f.tokens == (b"three",)

        run(scenario())

    def test_tokens_are_those_on_the_disk(self, tenants, world, monkeypatch):
        """Also where the value could be written, and a copy of it could not."""

        async def scenario():
            await tenants.create_secret({"name": "key", "value": "one"})
            f = await world.deploy(secrets=["key"], labels={"com.infless.auth.secret": "key"})
            real = secret_store.SecretStore._write

            def write(store, path, *more):
                if "mounted" in path.parts:
                    raise StateError("disk is full")
                real(store, path, *more)

            monkeypatch.setattr(secret_store.SecretStore, "_write", write)
            with pytest.raises(StateError):
                await tenants.update_secret({"name": "key", "value": "two"})
            assert f.tokens == world.secrets.tokens("openfaas-fn", "key") == (b"two",)

        run(scenario())

    def test_a_namespace_that_goes_while_a_secret_is_written(self, tenants, world, monkeypatch):
        """What was put there goes with it: whoever makes it again must not find it."""

        async def scenario():
            await tenants.create_namespace(DEV)
            loop, real = asyncio.get_running_loop(), world.secrets.create

            def create(wish):
                asyncio.run_coroutine_threadsafe(tenants.delete_namespace("dev"), loop).result(5)
                real(wish)

            monkeypatch.setattr(world.secrets, "create", create)
            with pytest.raises(InvalidInput, match="namespace 'dev' does not exist"):
                await tenants.create_secret({**KEY, "namespace": "dev"})
            assert world.secrets.names("dev") == []

        run(scenario())

    def test_the_event_loop_does_not_wait_for_the_disk(self, tenants, world, monkeypatch):
        """Invocations go on while a slow disk takes a secret."""

        async def scenario():
            loop, real = asyncio.get_running_loop(), world.secrets.create

            def create(wish):
                asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(5)  # the loop turns meanwhile
                real(wish)

            monkeypatch.setattr(world.secrets, "create", create)
            await tenants.create_secret(KEY)
            assert world.secrets.names("openfaas-fn") == ["key"]

        run(scenario())
