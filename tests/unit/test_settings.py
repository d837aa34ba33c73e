"""Where the provider keeps things, and which cores are for instances."""

import os
from dataclasses import fields
from pathlib import Path

import pytest

from infless_provider.settings import Settings, default_state_dir, usable_cores

SETTINGS = Settings(state_dir=Path("/state"), bundles_dir=Path("/build"))


def test_everything_lies_in_the_state_folder():
    """So that moving or removing it moves or removes everything, and no two things share a place."""
    names = ("database", "profiles", "secrets_dir", "queue", "logs_dir")
    places = [getattr(SETTINGS, name) for name in names]
    assert {place.parent for place in places} == {SETTINGS.state_dir}
    assert len(set(places)) == len(names)


def test_credentials_may_lie_elsewhere():
    """Where a gateway has them."""
    assert SETTINGS.credentials_dir == SETTINGS.state_dir
    elsewhere = Settings(state_dir=Path("/state"), bundles_dir=Path("/build"), credentials=Path("/run/secrets"))
    assert elsewhere.credentials_dir == Path("/run/secrets")


def test_limits_are_limits():
    """Each at least one: zero would shut the provider up."""
    limits = [one for one in fields(Settings) if one.name.endswith("_max") or one.name.endswith("_max_bytes")]
    assert len(limits) >= 8
    assert all(getattr(SETTINGS, one.name) > 0 for one in limits)


def test_the_default_state_folder(monkeypatch):
    """`$INFLESS_STATE`, else one in the user's home."""
    monkeypatch.delenv("INFLESS_STATE", raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    assert default_state_dir() == Path("/home/me/.infless")
    monkeypatch.setenv("INFLESS_STATE", "~/other")
    assert default_state_dir() == Path("/home/me/other")


@pytest.mark.parametrize(("wanted", "cores"), [(0, (1, 4, 5, 7)), (1, (7,)), (3, (4, 5, 7)), (9, (1, 4, 5, 7))])
def test_cores_that_instances_may_use(monkeypatch, wanted, cores):
    """The last ones of those that this process may use: the first are for everybody else."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {7, 4, 1, 5})
    assert usable_cores(wanted) == cores
