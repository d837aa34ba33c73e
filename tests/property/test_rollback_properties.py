"""Updates, failures, restarts in any order: who is served goes on being served, and the way back leads to what worked."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest
from fakes import World
from hypothesis import given, settings
from hypothesis import strategies as st

from infless_core.lifecycle import Phase
from infless_provider import fleet
from infless_provider.controller import TRIES
from infless_provider.functions import FunctionState, Instance

STEPS = st.lists(
    st.sampled_from(["code 1", "code 2", "code 3", "label", "start", "start", "ready", "fail", "fail", "restart", "scale 0", "scale 2"]),
    max_size=14,
)  # fmt: skip


class Story:
    """One function in a world, what happens to it, and which versions have been seen at work."""

    def __init__(self, world: World) -> None:
        self.world, self.worked, self.labels, self.code = world, set[str](), 0, "1"

    @property
    def function(self) -> FunctionState:
        """As the present provider has it."""
        found: FunctionState = self.world.controller.find("f")
        return found

    def starting(self) -> list[Instance]:
        """Instances that could become ready, or fail."""
        return [one for one in self.function.current() if one.phase is Phase.STARTING]

    async def step(self, what: str) -> None:
        """One thing that happens."""
        verb, _, number = what.partition(" ")
        match verb:
            case "code":
                self.code = number
                await self.world.update(code=number)
            case "label":
                self.labels += 1
                await self.world.update(code=self.code, labels={"n": str(self.labels)})
            case "start":
                await self.world.running(self.function, ready=False)
            case "ready":
                self.world.backend.ready |= {one.id for one in self.starting()[:1]}
                await self.world.look(2)
            case "fail":
                await self.fail()
            case "restart":
                await self.world.restart()
                await self.world.look(2)
            case "scale":
                await self.world.controller.scale("f", None, int(number))
        self.worked |= {one.version for one in self.function.instances.values() if one.phase is not Phase.STARTING}

    async def fail(self) -> None:
        """An instance of the newest version ends before it is ready; the second in a row gives an update up."""
        if not self.starting():
            return
        before = self.function.stored
        last = self.function.failures + 1 >= TRIES
        await self.world.ended(self.starting()[0])
        after = self.function.stored
        if last and before.previous is not None:
            assert (after.version, after.previous, after.proven) == (before.previous, None, True)
            assert after.replicas == before.replicas
        else:
            assert after == before

    def check(self, served: bool) -> None:
        """What has to hold after each step."""
        stored = self.function.stored
        assert self.world.state.functions() == [stored]
        assert stored.previous is None or not stored.proven
        assert stored.previous is None or stored.previous.id in self.worked
        assert stored.previous is None or stored.previous.id != stored.version.id
        assert not stored.proven or stored.version.id in self.worked
        assert {row.id for row in self.world.state.instances()} == set(self.world.fleet.instances)
        assert set(self.world.backend.running) >= set(self.world.fleet.instances)
        if served:
            assert self.function.serving(), "somebody was served before this step, and nobody is now"


async def tell(folder: Path, patch: pytest.MonkeyPatch, steps: list[str]) -> None:
    """A story from its beginning."""
    world = World(folder)
    patch.setattr(fleet, "Upstream", world.upstream)
    try:
        await world.deploy()
        story = Story(world)
        for step in steps:
            served = bool(story.function.serving())
            await story.step(step)
            story.check(served)
    finally:
        await world.fleet.close()
        world.controller.close()
        world.state.close()


@settings(max_examples=30)
@given(STEPS)
def test_any_story_ends_well(steps: list[str]) -> None:
    """Step by step: the disk says what is true, a version to go back to has worked, and nobody is left without service."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        asyncio.run(tell(Path(folder), patch, steps))
