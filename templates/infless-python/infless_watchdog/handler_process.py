"""A handler in a process of its own: it may hold its interpreter's lock, crash or hang, and the instance serves on."""

from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from infless_watchdog.calls import Call, LoadError, Reply
from infless_watchdog.channel import Channel, open_pair
from infless_watchdog.handler_wire import EXAMPLE, About, Failure, Request, packed_request, unpacked
from infless_watchdog.isolation import BatchError, ItemError
from infless_watchdog.settings import Settings

LOG = logging.getLogger("infless.watchdog")
_CLOSE_S = 5.0
"""The user's `close()` may take this long."""


class ProcessDied(ItemError):  # noqa: N818 - an event, and the client sees its sentence only
    """The handler's process ended in the middle of a batch; in a batch of one, it is known which item did it."""

    def __init__(self, how: str) -> None:
        super().__init__(500, f"the handler's process died ({how}) on this request")
        self.how = how


class HandlerProcess:
    """A `Model` whose code runs elsewhere.

    Items are whole requests, answers whole replies: the handler's process decodes, prepares, runs, finishes and
    encodes, so none of the user's types has to travel.

    Args:
        settings: of the instance; the process has the same.

    Raises:
        LoadError: the handler cannot be loaded.
    """

    concurrency = 1
    brief = False
    prepare: Callable[[Any], Any] | None = None
    finish: Callable[[Any], Any] | None = None
    prepare_cores: Callable[[int], None] | None = None

    def __init__(self, settings: Settings) -> None:
        self.device = settings.model_device
        self.interrupt: Callable[[], None] | None = self._interrupt
        self.restarts = 0
        """Processes started after the first."""
        self._settings = settings
        self._asking = threading.Lock()
        self._state = threading.Lock()
        self._under_way = self._interrupted = self._closed = False
        self._batch: list[Request] = []
        """The batch that is being run in parts."""
        self._deaths = 0
        self._given_up: BatchError | None = None
        self._process: _Process | None = _Process(settings)
        about = self._process.loaded()
        self.kind = about.kind
        self.batched = about.batched
        self._metadata = about.metadata
        self._openapi = about.openapi

    # the model -------------------------------------------------------------------------------------------------------

    def decode(self, call: Call) -> Request:
        """The request as it is; its faults are found in the handler's process."""
        head = call.head
        if head.memo is None:
            head.memo = (head.method, head.path, head.query, tuple(head.headers))
        return head.memo, call.body

    def bucket(self, item: Request) -> Hashable:
        """One for all: the handler's own buckets are told apart in its process."""
        del item
        return None

    def predict(self, items: list[Request]) -> list[Reply | ItemError]:
        """One batch, there and back."""
        retry = any(items[0] is one for one in self._batch)
        if not retry:
            self._batch, self._deaths, self._given_up = items, 0, None
        elif self._given_up is not None:
            raise self._given_up
        try:
            answers = self._ask("predict", [packed_request(item) for item in items])
        except BatchError as fault:
            self._given_up = fault
            raise
        except ProcessDied as death:
            self._deaths += 1
            # That many runs find one culprit. A handler that dies on everything must not be started again and again.
            if self._deaths > 1 + (len(self._batch) - 1).bit_length():
                sentence = f"the handler's process died {self._deaths} times on this batch ({death.how}); try again"
                self._given_up = BatchError(503, sentence)
                raise self._given_up from None
            raise
        if not retry:
            self._batch = []
        return [unpacked(answer) for answer in answers]

    def encode(self, answer: Reply, item: Request, call: Call) -> Reply:
        """It is encoded already."""
        del item, call
        return answer

    def example(self) -> Request | None:
        """Stands for the example that the handler's process has."""
        document = self._ask("example", None)
        if document is None:
            return None
        self._openapi = document
        return EXAMPLE

    def metadata(self) -> dict[str, Any]:
        """As the handler's process told."""
        return self._metadata

    def openapi(self) -> dict[str, Any]:
        """As the handler's process told."""
        return self._openapi

    def set_cpu_cores(self, cpu_cores: int) -> None:
        """The user's `set_cpu_cores(n)`, if there is one."""
        self._ask("set_cpu_cores", cpu_cores)
        self._settings = replace(self._settings, cpu_cores=cpu_cores)  # for the process that may follow this one

    def _interrupt(self) -> None:
        """End the run that is under way: its items are answered 504, and a new process serves the next ones."""
        with self._state:
            if self._under_way and self._process is not None:
                self._interrupted = True
                self._process.kill()

    def close(self) -> None:
        """The user's `close()`, unless a run is under way; then the end of the process."""
        with self._state:
            self._closed = True
            process = self._process
        if process is None:
            return
        if self._asking.acquire(blocking=False):
            try:
                self._process = None
                process.close()
            finally:
                self._asking.release()
        else:
            process.kill()

    # the process -----------------------------------------------------------------------------------------------------

    def _ask(self, what: str, argument: Any) -> Any:
        with self._asking:
            with self._state:
                self._under_way, self._interrupted = True, False
            try:
                process = self._living()
                try:
                    answer = process.ask(what, argument)
                except (OSError, EOFError):
                    raise self._ended(process) from None
            finally:
                with self._state:
                    self._under_way = False
        if isinstance(answer, Failure):
            raise answer.fault()
        return answer

    def _living(self) -> _Process:
        """The process, loaded; a new one where the last has ended, by itself or with what it ran."""
        process = self._process
        if process is not None and not process.lives():
            LOG.warning("the handler's process has ended (%s)", process.end())
            process = None
        try:
            process = process or self._replaced()
            process.loaded()
        except (LoadError, OSError) as fault:
            self._process = None
            if self._interrupted:
                raise self._too_long() from None
            raise BatchError(503, f"the handler's process cannot be started again: {fault}") from None
        return process

    def _ended(self, process: _Process) -> ItemError:
        """Why the process ended in the middle of a run; the next one starts to load meanwhile."""
        how = process.end()
        fault = self._too_long() if self._interrupted else ProcessDied(how)
        LOG.warning("the handler's process is replaced: %s", fault if self._interrupted else f"it died ({how})")
        with suppress(OSError, BatchError):  # then the next run tries it again, and says so
            self._replaced()
        return fault

    def _too_long(self) -> BatchError:
        return BatchError(504, f"the handler did not answer within exec_timeout, {self._settings.exec_timeout_s:g} s")

    def _replaced(self) -> _Process:
        """A new process, which begins to load."""
        with self._state:
            self._process = None
            if self._closed:
                raise BatchError(503, "the instance is stopping")
            self._process = _Process(self._settings)
            self.restarts += 1
            return self._process


class _Process:
    """One process, from its start to its end."""

    def __init__(self, settings: Settings) -> None:
        ours, theirs = open_pair()
        lifeline, self._lifeline = os.pipe()
        files = (theirs.pipe, theirs.outgoing, theirs.incoming, lifeline)
        self._channel = Channel(ours)
        self._about: About | None = None
        self._killed = False
        self._how = ""
        try:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "infless_watchdog.handler_child", *map(str, files)],
                stdin=subprocess.DEVNULL,
                pass_fds=files,
                process_group=0,  # not reached by a terminal's Ctrl-C; ended together with what it has started
            )
        except OSError:
            os.close(self._lifeline)
            self._channel.close()
            raise
        finally:
            os.close(theirs.pipe)
            os.close(lifeline)
        self._end = os.pidfd_open(self._popen.pid)
        self._watch = select.poll()
        self._watch.register(ours.pipe, select.POLLIN)
        self._watch.register(self._end, select.POLLIN)
        with suppress(OSError):  # it is gone already: seen by who asks it
            self._channel.send(settings)

    def loaded(self) -> About:
        """Wait until the handler is loaded.

        Raises:
            LoadError: it cannot be; the process has ended.
        """
        if self._about is None:
            try:
                answer = self._receive()
            except (OSError, EOFError):
                raise LoadError(f"the handler's process died while it loaded ({self.end()})") from None
            if not isinstance(answer, About):
                self.end()
                raise LoadError(str(answer))
            self._about = answer
        return self._about

    def ask(self, what: str, argument: Any) -> Any:
        """An answer to a question.

        Raises:
            EOFError: the process has ended; so does OSError.
        """
        self._channel.send((what, argument))
        return self._receive()

    def lives(self) -> bool:
        """Whether it has not ended, and is not about to."""
        return not self._killed and self._popen.poll() is None

    def kill(self) -> None:
        """End it and what it has started, at once."""
        self._killed = True
        with suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)

    def end(self, grace_s: float = 0.2) -> str:
        """Give everything back; says how it ended: by itself, if it does so within the grace."""
        if not self._how:
            with suppress(subprocess.TimeoutExpired):
                self._popen.wait(grace_s)
            self.kill()
            code = self._popen.wait()
            for file in (self._end, self._lifeline):
                os.close(file)
            self._channel.close()
            self._how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return self._how

    def close(self) -> None:
        """Let the user's `close()` run, then end."""
        grace_s = 0.0
        with suppress(OSError, EOFError):
            self._channel.send(("close", None))
            if self._watch.poll(1000 * _CLOSE_S):
                answer = self._receive()
                grace_s = _CLOSE_S
                if isinstance(answer, Failure):
                    LOG.error("close() in handler.py raised %s", answer.sentence)
        self.end(grace_s)

    def _receive(self) -> Any:
        """The next message, or EOFError at the end of the process, even if others hold its end of the pipe."""
        ready = {file for file, _ in self._watch.poll()}
        if ready == {self._end}:
            raise EOFError
        return self._channel.receive()
