"""`--check`: try a function the way requests would come, before any image is built, and say what was found."""

from __future__ import annotations

import copy
import inspect
import json
import math
import mimetypes
import resource
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from infless_watchdog import curve
from infless_watchdog.calls import Call, Head, LoadError, Model, Reply
from infless_watchdog.check_answers import beginning, same, whole
from infless_watchdog.check_report import Answer, Report, point
from infless_watchdog.handler_module import told
from infless_watchdog.handlers import load_model
from infless_watchdog.isolation import ItemError, as_item_error, run_isolated
from infless_watchdog.settings import Settings
from infless_watchdog.tensor_model import TensorModel

_PADDING = 1e-3
"""A difference of answers to random numbers of the size of 1 that no rounding makes."""
_RUNS = 200
"""The most runs of one batch size."""
_BROKEN = (b"null", b"{}", b'"?"', b"")
"""Bodies of careless clients."""


def check(settings: Settings, samples: Sequence[Path] = (), *, as_json: bool = False, budget_s: float = 2.0) -> int:
    """Try the function in `settings.function_dir`, and print a report.

    Args:
        settings: of an instance that would serve it.
        samples: files with request bodies; their endings say the content type. None: the function's own example.
        as_json: print one JSON object instead of text.
        budget_s: seconds for the curve.

    Returns:
        0 when all is well, 1 when something is wrong with the function, 2 when there is nothing to be tried.
    """
    folder = Path(settings.function_dir)
    if not folder.is_dir():
        sys.stderr.write(f"infless-watchdog: {folder} is not a folder\n")
        return 2
    try:
        calls = {str(path): Call(_head(path), path.read_bytes()) for path in samples}
    except OSError as error:
        sys.stderr.write(f"infless-watchdog: sample {error.filename} cannot be read: {error.strerror}\n")
        return 2
    # What the function prints is no part of the report. A process of its own would only hide where it fails.
    with redirect_stdout(sys.stderr):
        report = examine(replace(settings, handler_isolation="thread"), calls, budget_s)
    sys.stdout.write(report.as_json() + "\n" if as_json else report.as_text())
    return 1 if report.findings else 0


def _head(path: Path) -> Head:
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return Head("POST", "/", headers=[(b"content-type", kind.encode())])


def examine(settings: Settings, calls: dict[str, Call], budget_s: float) -> Report:
    """Load the function, run it, time it; nothing is printed.

    Args:
        settings: of an instance that would serve it.
        calls: sample requests by name; empty for the function's own example.
        budget_s: seconds for the curve.
    """
    folder = Path(settings.function_dir).resolve()
    report = Report(file=str(folder), target_s=settings.latency_target_s)
    try:
        model = load_model(settings)
    except LoadError as fault:
        report.findings.append(str(fault))
        return report
    try:
        report.kind, report.device = model.kind, model.device
        report.batch_max = settings.batch_max if model.batched else 1
        report.file, report.signature = _found(folder)
        Trial(model, report, folder).run(calls, budget_s)
    finally:
        model.close()
    return report


def _found(folder: Path) -> tuple[str, str]:
    """The file that is served, and the signature of its function."""
    module = sys.modules.get(f"{folder.name}.handler")
    for name in ("predict", "handle"):
        if callable(function := getattr(module, name, None)):
            with suppress(TypeError, ValueError):  # some callables have none
                return str(folder / "handler.py"), f"{name}{inspect.signature(function)}".replace("'", "")
    return next((str(path) for path in sorted(folder.glob("model.*"))), str(folder)), ""


@dataclass(frozen=True, slots=True)
class Sample:
    """One request that can be made again and again: nobody gets an item that somebody has changed."""

    name: str
    call: Call
    make: Callable[[], Any]
    """A fresh item, as the model's `decode` gives it."""


class Trial:
    """One loaded model under test; what is seen goes into the report.

    Args:
        model: as it would serve.
        report: filled in.
        folder: of the function, to tell its lines from a library's.
    """

    def __init__(self, model: Model, report: Report, folder: Path) -> None:
        self._model = model
        self._report = report
        self._folder = folder

    def run(self, calls: dict[str, Call], budget_s: float) -> None:
        """Everything, until something is so wrong that the rest would only repeat it."""
        samples = self._samples(calls)
        if not samples:
            return
        alone = [self._alone(sample) for sample in samples]
        if self._report.findings:
            if not calls and _is_guess(self._model):
                fault = self._report.findings.pop()
                self._report.passed.append(f"nothing was tried, for want of a sample or input_shape: {fault}")
            return
        # Only items of one bucket are ever one batch: those that go with the first sample.
        buckets = [self._model.bucket(self._prepared(sample)) for sample in samples]
        mates = [place for place, bucket in enumerate(buckets) if bucket == buckets[0]]
        samples, replies = [samples[place] for place in mates], [alone[place] for place in mates]
        if self._model.batched and self._report.batch_max > 1:
            self._together(samples, replies)
            if not self._report.findings:
                self._beside_broken(samples[0], replies[0])
        if not self._model.batched and self._report.batch_max > 1:  # what a model is, its first batch may show
            self._report.batch_max = 1
            self._report.passed.append("its outputs do not grow with a batch, so requests are run one by one")
        if isinstance(self._model, TensorModel):
            self._pad(self._model)
        if not self._report.findings:
            self._time(samples, budget_s)

    # samples ---------------------------------------------------------------------------------------------------------

    def _samples(self, calls: dict[str, Call]) -> list[Sample]:
        if calls:
            return [self._sample(name, call) for name, call in calls.items()]
        try:
            example = self._model.example()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's code
            self._report.findings.append(f"example() raised {self._told(error)}")
            return []
        if example is None:
            self._report.passed.append(
                "it can be loaded; without example() or --sample there is nothing to try it with"
            )
            return []
        call = _as_call(example)
        if call is not None:
            return [self._sample("example()", call)]
        return [Sample("example()", Call(Head("POST")), lambda: copy.deepcopy(example))]

    def _sample(self, name: str, call: Call) -> Sample:
        return Sample(name, call, lambda: self._model.decode(call))

    def _prepared(self, sample: Sample) -> Any:
        item = sample.make()
        return item if self._model.prepare is None else self._model.prepare(item)

    # runs ------------------------------------------------------------------------------------------------------------

    def _replies(self, samples: Sequence[Sample]) -> list[Reply | ItemError]:
        """One batch on its whole way, decode to encode; what fails stands in its place."""
        model = self._model
        items = [_tried(self._prepared, sample) for sample in samples]
        ready = [item for item in items if not isinstance(item, ItemError)]
        answers = iter(run_isolated(model.predict, ready).answers if ready else [])

        def reply(item: Any, sample: Sample) -> Reply:
            answer = next(answers)
            if isinstance(answer, ItemError):
                raise answer
            return whole(model.encode(answer if model.finish is None else model.finish(answer), item, sample.call))

        return [
            item if isinstance(item, ItemError) else _tried(reply, item, sample)
            for item, sample in zip(items, samples, strict=True)
        ]

    def _alone(self, sample: Sample) -> Reply | None:
        """The answer to one request; None when it fails, or differs from one time to the next."""
        first, second = self._replies([sample])[0], self._replies([sample])[0]
        if isinstance(first, ItemError) or isinstance(second, ItemError):
            fault = next(reply for reply in (first, second) if isinstance(reply, ItemError))
            self._report.findings.append(f"{sample.name} is answered {fault.status}: {self._told(fault)}")
            return None
        content_type = first.content_type.decode("latin-1")
        shown = Answer(sample=sample.name, status=first.status, content_type=content_type, beginning=beginning(first))
        self._report.answers.append(shown)
        return first if same(first, second) else None

    def _together(self, samples: Sequence[Sample], alone: Sequence[Reply | None]) -> None:
        """Batches of two and of the largest size, against the answers alone."""
        sizes = sorted({2, self._report.batch_max})
        for size in sizes:
            batch = list(islice(cycle(zip(samples, alone, strict=True)), size))
            replies = self._replies([sample for sample, _ in batch])
            for reply, (sample, expected) in zip(replies, batch, strict=True):
                if isinstance(reply, ItemError):
                    self._report.findings.append(f"{sample.name} fails in a batch of {size}: {self._told(reply)}")
                    return
                if expected is not None and not same(expected, reply):
                    self._report.findings.append(
                        f"{sample.name} is answered {beginning(reply)} in a batch of {size}, but"
                        f" {beginning(expected)} alone{self._where()}"
                    )
                    return
        if None in alone:
            self._report.passed.append("batches are answered; answers change from run to run and were not compared")
        else:
            self._report.passed.append(
                f"the answers alone and in batches of {' and '.join(map(str, sizes))} are the same"
            )

    def _beside_broken(self, sample: Sample, expected: Reply | None) -> None:
        """Requests that make no sense, each between two good ones: they may fail, their neighbours may not."""
        answered = []
        bucket = self._model.bucket(self._prepared(sample))
        for body in _BROKEN:
            broken = self._sample("broken", Call(sample.call.head, body))
            item = _tried(self._prepared, broken)
            if isinstance(item, ItemError) or self._model.bucket(item) != bucket:
                answered.append(f"{body.decode()!r} {self._replies([broken])[0].status}")
                continue
            before, reply, after = self._replies([sample, broken, sample])
            for neighbour in (before, after):
                if isinstance(neighbour, ItemError) or (expected is not None and not same(expected, neighbour)):
                    if isinstance(neighbour, ItemError):
                        words = self._told(neighbour)
                    else:
                        words = f"{beginning(neighbour)}{self._where()}"
                    self._report.findings.append(
                        f"a good request beside one with body {body.decode()!r} is answered {neighbour.status} {words}"
                    )
                    return
            answered.append(f"{body.decode()!r} {reply.status}")
        self._report.passed.append(f"broken requests do not touch their batch-mates; they get: {', '.join(answered)}")

    def _pad(self, model: TensorModel) -> None:
        """Whether the model ignores what `batch_pad` adds; not every one does."""
        gap = _tried(model.padding_difference)
        if isinstance(gap, ItemError):
            self._report.passed.append(f"what padding does could not be seen: {self._told(gap)}")
        elif gap is not None and gap > _PADDING:
            by = f"by up to {gap:.3g}" if math.isfinite(gap) else "even in their shape"
            self._report.findings.append(
                f"padding as batch_pad says changes answers, {by}: do without, or mask in a handler.py"
            )
        elif gap is not None:
            self._report.passed.append(
                f"an item padded as batch_pad says has the answer of an unpadded one ({gap:.1g} apart)"
            )

    def _time(self, samples: Sequence[Sample], budget_s: float) -> None:
        sizes = batch_sizes(self._report.batch_max)
        for size in sizes:
            batch = list(islice(cycle(samples), size))
            ends_s = time.monotonic() + budget_s / len(sizes)
            samples_s: list[float] = []
            while len(samples_s) < curve.WARM_UPS + 3 or (time.monotonic() < ends_s and len(samples_s) < _RUNS):
                # Fresh items for each run: a handler may use them up.
                run = run_isolated(self._model.predict, [self._prepared(sample) for sample in batch])
                if run.exec_s is None or any(isinstance(answer, ItemError) for answer in run.answers):
                    self._report.findings.append(f"a batch of {size} fails now and then, with the same items")
                    return
                samples_s.append(run.exec_s)
            peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            self._report.curve.append(point(size, samples_s[curve.WARM_UPS :], peak_bytes))
            if min(samples_s) > curve.TOO_SLOW_S:
                break

    # words -----------------------------------------------------------------------------------------------------------

    def _told(self, error: BaseException) -> str:
        """What went wrong, and the last line of the user's own that was on the way there."""
        if not isinstance(error, ItemError):
            return told(error, self._folder)
        if error.__cause__ is not None:
            return told(error.__cause__, self._folder)
        return f"{error}{self._where()}" if error.status == 500 else str(error)

    def _where(self) -> str:
        """The line of the function that gets the batches."""
        module = sys.modules.get(f"{self._folder.name}.handler")
        code = getattr(getattr(module, "predict", None), "__code__", None)
        return f" (handler.py, predict in line {code.co_firstlineno})" if code is not None else ""


def _is_guess(model: Model) -> bool:
    """Whether an example's sizes are made up: a model without code has open axes, and nobody says how long they are."""
    return any(-1 in tensor["shape"][1:] for tensor in model.metadata()["inputs"])


def batch_sizes(batch_max: int) -> list[int]:
    """Powers of two up to `batch_max`, and `batch_max` itself."""
    return sorted({*(1 << power for power in range(batch_max.bit_length())), batch_max})


def _as_call(example: Any) -> Call | None:
    """The request that a client would send to get this item; None for what no body says."""
    if isinstance(example, bytes):
        return Call(Head("POST", headers=[(b"content-type", b"application/octet-stream")]), example)
    if isinstance(example, str):
        return Call(Head("POST", headers=[(b"content-type", b"text/plain")]), example.encode())
    try:
        return Call(Head("POST"), json.dumps(example).encode())
    except (TypeError, ValueError, RecursionError):
        return None


def _tried(step: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return step(*arguments)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's code; a fault stands in its answer's place
        return as_item_error(error)
