"""Images: found or pulled when a function is deployed, and timed in a container of their own."""

from __future__ import annotations

import contextlib
import logging
import math
import uuid
from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from infless_core.errors import BackendError, Unavailable
from infless_core.model import FunctionSpec
from infless_profiler.measure import why_it_died
from infless_provider.backends.base import Artifact, CurveOrder
from infless_provider.backends.docker_api import Engine, Image, NoSuch
from infless_provider.backends.docker_launch import WATCHDOG, Site, checked_reference, curve_config, why_ended

LOG = logging.getLogger("infless.docker")
_LOOK_S = 0.2
"""How often who waits is asked whether it still does."""


class Images:
    """What an engine's images say of themselves; kept, as an image never changes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: dict[str, Image] = {}

    def prepare(self, spec: FunctionSpec) -> Artifact:
        """See `Backend.prepare`: the image's id, so that what is tagged or built later is another one."""
        reference = checked_reference(spec.image)
        try:
            image = self._engine.image(reference)
        except NoSuch:
            LOG.info("%s: pulling %s", spec.key, reference)
            self._engine.pull(reference, lambda step: LOG.info("%s: pulling %s: %s", spec.key, reference, step))
            image = self._engine.image(reference)
            LOG.info("%s: pulled %s", spec.key, reference)
        self._known[image.id] = image
        return Artifact(reference=image.id, digest=image.id)

    def find(self, id_: str) -> Image:
        """An image by its id.

        Raises:
            NoSuch: somebody removed it.
        """
        if id_ not in self._known:
            try:
                self._known[id_] = self._engine.image(id_)
            except NoSuch:
                raise NoSuch(gone(id_)) from None
        return self._known[id_]

    def forget(self, id_: str) -> None:
        """It may not be there any more."""
        self._known.pop(id_, None)


def gone(id_: str) -> str:
    """The sentence for an image that was there when its function was deployed."""
    return f"the image {id_[:19]} is no longer on this machine; deploy the function again"


class Timings:
    """Runs of the watchdog's `--curve`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._running: set[str] = set()

    @property
    def running(self) -> AbstractSet[str]:
        """Tokens of those under way."""
        return self._running

    def run(self, image: Image, order: CurveOrder, cores: Sequence[int], site: Site) -> str:
        """See `Backend.curve`."""
        if WATCHDOG not in image.labels:
            return ""
        token = uuid.uuid4().hex[:12]
        name = f"infless-curve-{token}"
        self._running.add(token)
        try:
            container = self._engine.create(name, curve_config(order, image, cores, site, token))
            self._engine.start(container)
            code = self._wait(container, order)
            printed = self._printed(container, stderr=False)
            if not code:
                return printed
            if (ended := self._engine.inspect(container)).out_of_memory:
                raise BackendError(why_ended(ended, ""))
            raise BackendError(why_it_died(code, printed, self._printed(container, stderr=True)))
        except NoSuch:
            raise BackendError(gone(image.id)) from None
        finally:
            with contextlib.suppress(BackendError):  # the watcher removes what is left
                self._engine.remove(name)
            self._running.discard(token)

    def _printed(self, container: str, *, stderr: bool) -> str:
        return self._engine.output(container, stderr=stderr).decode(errors="replace")

    def _wait(self, container: str, order: CurveOrder) -> int:
        for _ in range(math.ceil(order.timeout_s / _LOOK_S)):
            if order.cancelled():
                raise Unavailable("timing was cancelled")
            code = self._engine.wait(container, _LOOK_S)
            if code is not None:
                return code
        raise BackendError(f"loading and timing it did not end within {order.timeout_s:.0f} s")
