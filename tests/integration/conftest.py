"""One provider for each module of tests that share it, and a fresh one for tests that stop it."""

from collections.abc import Iterator

import docker_backend
import pytest
from provider_process import ProviderProcess, processes_of


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProviderProcess]:
    """A provider that runs; its tests leave it running."""
    made = ProviderProcess(tmp_path_factory.mktemp("provider")).start()
    yield made
    made.destroy()


@pytest.fixture
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProviderProcess]:
    """A provider of this test alone, not started; nothing of it is left afterwards."""
    made = ProviderProcess(tmp_path_factory.mktemp("fresh"))
    yield made
    left = [
        process.cmdline() for process in processes_of(made.root) if not made.process or made.process.poll() is not None
    ]
    made.destroy()
    assert processes_of(made.root) == [], left


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image of the template."""
    if (why := docker_backend.missing()) is not None:
        pytest.skip(why)
    pytest.importorskip("docker", reason="infless[docker] is not installed")
    with docker_backend.template_image(tmp_path_factory.mktemp("image")) as name:
        yield name
