"""One provider for each module of tests that share it, and a fresh one for tests that stop it."""

from collections.abc import Iterator

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
