"""The process that a handler has for itself: requests in, answers out, one batch at a time.

Started by `handler_process.HandlerProcess`.
"""

from __future__ import annotations

import fcntl
import inspect
import io
import logging
import os
import signal
import sys
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from infless_watchdog.calls import Call, Head, LoadError, Model, Reply
from infless_watchdog.channel import Channel, Ends
from infless_watchdog.handler_models import model_of
from infless_watchdog.handler_module import HandlerModule
from infless_watchdog.handler_wire import About, Failure, HeadKey, Request, packed
from infless_watchdog.isolation import ItemError, as_item_error, run_isolated
from infless_watchdog.settings import Settings

_F_SETSIG = 10  # Linux's; the fcntl module lacks it
_STREAM = "an answer in pieces needs handler_isolation=thread"


def main() -> None:
    """Load the handler, say how that went, and serve until the other side is gone."""
    pipe, outgoing, incoming, lifeline = (int(number) for number in sys.argv[1:])
    del sys.argv[1:]
    for file in (pipe, outgoing, incoming, lifeline):
        os.set_inheritable(file, False)  # the handler may start processes of its own
    _die_with(lifeline)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # what is printed before a crash is seen
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    channel = Channel(Ends(pipe, outgoing, incoming))
    settings: Settings = channel.receive()
    try:
        model = load(settings)
    except LoadError as fault:
        channel.send(str(fault))
        return
    about = About(kind=model.kind, batched=model.batched, metadata=model.metadata(), openapi=model.openapi())
    channel.send(about)
    Server(model, settings.cpu_cores).serve(channel)


def load(settings: Settings) -> Model:
    """The handler, if it can live in a process of its own.

    Raises:
        LoadError: it cannot be loaded, or it has answers in pieces or many at once.
    """
    module = HandlerModule(Path(settings.function_dir).resolve(), settings.exec_timeout_s)
    model = model_of(module, settings)
    if inspect.isgeneratorfunction(module.function(model.kind)):
        raise LoadError(f"{model.kind} in {module.path} is a generator: {_STREAM}")
    if model.concurrency > 1:
        raise LoadError(f"{model.kind} in {module.path} is async: many requests at once need handler_isolation=thread")
    return model


def _die_with(lifeline: int) -> None:
    """End this process and those it starts as soon as nobody holds the other end of the pipe.

    The kernel does it, whatever the handler's threads are doing, and also after a SIGKILL of the watchdog.
    """
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(lifeline, _F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    try:
        os.read(lifeline, 1)
    except BlockingIOError:
        return
    os._exit(1)  # it was gone before


class Server:
    """Answers questions about one model. Each method is a question."""

    def __init__(self, model: Model, cpu_cores: int) -> None:
        self._model = model
        self._example: Any = None
        self._pool = ThreadPoolExecutor(max_workers=max(2, cpu_cores), thread_name_prefix="prepare")

    def serve(self, channel: Channel) -> None:
        """Until told to close."""
        name = ""
        while name != "close":
            try:
                name, argument = channel.receive()
            except (EOFError, OSError):
                return
            try:
                answer = getattr(self, name)(argument)
            except BaseException as error:  # noqa: BLE001 - also sys.exit(): the user's code ends its items only
                answer = Failure.of(error)
            channel.send(answer)

    def example(self, _: None) -> dict[str, Any] | None:
        """The document with the handler's example in it; None without one."""
        return self._model.openapi() if self._own_example() is not None else None

    def set_cpu_cores(self, cpu_cores: int) -> None:
        """As the model does it."""
        self._model.set_cpu_cores(cpu_cores)

    def close(self, _: None) -> None:
        """As the model does it."""
        self._model.close()

    def predict(self, requests: Sequence[Request]) -> list[Any]:
        """All the way from requests to answers. What raises is for the watchdog to bisect."""
        calls = [_call(request) for request in requests]
        items = [self._own_example() if call is None else _tried(self._model.decode, call) for call in calls]
        read = [place for place, call in enumerate(calls) if call is not None]
        for place, item in zip(read, self._each(self._model.prepare, [items[place] for place in read]), strict=True):
            items[place] = item
        answers = self._each(self._model.finish, self._run(items))
        return [
            packed(self._written(answer, item, call or Call(Head("POST"))))
            for answer, item, call in zip(answers, items, calls, strict=True)
        ]

    def _own_example(self) -> Any:
        """The handler's example, as ready as `predict` wants it."""
        if self._example is None:
            example = self._model.example()
            prepare = self._model.prepare
            self._example = example if example is None or prepare is None else prepare(example)
        return self._example

    def _run(self, items: list[Any]) -> list[Any]:
        """One run for each bucket; answers in the items' order, an ItemError where an item has failed already."""
        answers = list(items)
        places: dict[Hashable, list[int]] = {}
        for place, item in enumerate(items):
            if not isinstance(item, ItemError):
                places.setdefault(self._model.bucket(item), []).append(place)
        for chosen in places.values():
            batch = [items[place] for place in chosen]
            results = self._model.predict(list(batch))
            found = run_isolated(partial(_same, results), batch).answers  # says what is wrong with them
            for place, answer in zip(chosen, found, strict=True):
                answers[place] = answer
        return answers

    def _each(self, step: Callable[[Any], Any] | None, values: list[Any]) -> list[Any]:
        """A step for each value, in the pool; an ItemError where it fails."""
        if step is None:
            return values
        return list(self._pool.map(lambda value: _tried(step, value), values))

    def _written(self, answer: Any, item: Any, call: Call) -> Reply | ItemError:
        if isinstance(answer, ItemError):
            return answer
        try:
            reply = self._model.encode(answer, item, call)
        except ItemError as fault:
            return fault
        except Exception as error:  # noqa: BLE001 - an answer that cannot be written is this request's fault alone
            unwritten = ItemError(500, f"the answer cannot be written: {error}")
            unwritten.__cause__ = error
            return unwritten
        if reply.chunks is not None:
            return ItemError(500, _STREAM)
        return reply


def _call(request: Request) -> Call | None:
    key, body = request
    return None if key is None else Call(_head(key), body)


@lru_cache(maxsize=256)
def _head(key: HeadKey) -> Head:
    """Clients send the same head again and again; what the model knows of it is kept with it."""
    return Head(*key)


def _same(results: Any, _: list[Any]) -> Any:
    return results


def _tried(step: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, ItemError):
        return value
    try:
        return step(value)
    except Exception as error:  # noqa: BLE001 - the user's code; a fault stands in its item's place
        return as_item_error(error)


if __name__ == "__main__":
    main()
