"""Edge: workers that are started, given jobs, watched and ended. What they answer, or why they cannot."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from types import TracebackType

from infless_core.errors import BackendError
from infless_profiler.worker import Failed, Job, Place, Timed, serve

SILENT_S = 120.0
"""The slowest answer that is waited for: a large model that loads, or a batch of minutes."""


class Worker(AbstractContextManager["Worker"]):
    """One process in one place. Not thread-safe.

    Args:
        place: cores, device and GPU share.
        cancelled: asked several times a second; True ends the worker.
    """

    def __init__(
        self, place: Place, cancelled: Callable[[], bool] = lambda: False, silent_s: float = SILENT_S
    ) -> None:  # fmt: skip
        self.place = place
        self._cancelled = cancelled
        self._silent_s = silent_s
        self.was_cancelled = False
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None

    def do(self, job: Job, told: Callable[[Timed], None] = lambda _: None) -> list[Timed]:
        """Do one job; `told` hears of each answer as it comes.

        Raises:
            BackendError: it failed, or the process ended or went silent (a new one is started for the next job).
        """
        pipe, answers = self._started(), []
        try:
            pipe.send(job)
            while isinstance(answer := self._next(pipe), Timed):
                answers.append(answer)
                told(answer)
        except (EOFError, ConnectionError) as error:
            code = self._ended()
            words = "ran out of memory or was killed" if code == -9 else f"ended with exit code {code}"
            raise BackendError(f"the process that times it {words}") from error
        except BackendError:
            raise
        except BaseException:
            self.close()  # what it still has to say belongs to no later job
            raise
        if isinstance(answer, Failed):
            raise BackendError(answer.words)
        return answers

    def _next(self, pipe: Connection) -> Timed | Failed | None:
        ends_s = time.monotonic() + self._silent_s
        while True:
            # Asked before every answer: many quick jobs never wait as long as one slow one.
            if self._cancelled():
                self.was_cancelled = True
                self.close()
                raise BackendError("timing was cancelled")
            if pipe.poll(0.2):
                break
            if time.monotonic() > ends_s:
                self.close()
                raise BackendError(f"it did not end within {self._silent_s:.0f} s")
        answer: Timed | Failed | None = pipe.recv()
        return answer

    def _started(self) -> Connection:
        if self._pipe is None or self._process is None or not self._process.is_alive():
            self.close()
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=serve, args=(theirs, self.place), daemon=True)
            self._process.start()
            theirs.close()
        return self._pipe

    def _ended(self) -> int | None:
        if self._process is None:
            return None
        self._process.join(5)
        code = self._process.exitcode
        self.close()
        return code

    def close(self) -> None:
        """End the process; with the next job a new one starts."""
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process.close()
        self._process = self._pipe = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:  # fmt: skip
        """The process ends with its use."""
        self.close()
