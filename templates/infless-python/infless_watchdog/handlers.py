"""From a function's folder to a `Model`: a `handler.py`, or a bare `model.onnx`, `model.pt2` or `model.pt`."""

from __future__ import annotations

import gc
import hashlib
import logging
import time
from pathlib import Path

from infless_watchdog.calls import Call, Head, LoadError, Model
from infless_watchdog.settings import Settings

LOG = logging.getLogger("infless.watchdog")
SAMPLE_SHA256 = "d63b5499d9486b585d9a915045a7ba499334ad9c88e07c59f73048a021f84df6"
"""The template's own handler.py: as long as nobody has changed it, it gives way to a model beside it."""
BARE = ("model.onnx", "model.pt2", "model.pt", "model.torchscript")
_TRIAL_S = 0.2
"""About the longest run to see what a handler does to the interpreter's lock: the start waits for it."""


def load_model(settings: Settings) -> Model:
    """Find and load what a folder serves.

    Raises:
        LoadError: names the folder or file and what is wrong.
    """
    folder = Path(settings.function_dir).resolve()
    handler = folder / "handler.py"
    bare = [folder / name for name in BARE if (folder / name).is_file()]
    if not handler.is_file() and not bare:
        raise LoadError(f"{folder} has neither handler.py nor {', '.join(BARE[:-1])} or {BARE[-1]}")
    if bare and (not handler.is_file() or is_sample(handler)):
        return _load_bare(folder, bare, settings)
    return _load_handler(folder, settings)


def _load_handler(folder: Path, settings: Settings) -> Model:
    # Imported here: a model without code starts faster without them.
    from infless_watchdog.handler_models import model_of
    from infless_watchdog.handler_module import HandlerModule
    from infless_watchdog.handler_process import HandlerProcess

    if settings.handler_isolation == "process":
        return HandlerProcess(settings)
    module = HandlerModule(folder, settings.exec_timeout_s)
    model = model_of(module, settings)
    if settings.handler_isolation == "auto" and _holds_the_lock(model, settings):
        del model
        module.forget()
        gc.collect()
        return HandlerProcess(settings)
    return model


def is_sample(handler: Path) -> bool:
    """Whether nobody has changed the template's handler.py."""
    return hashlib.sha256(handler.read_bytes().replace(b"\r\n", b"\n")).hexdigest() == SAMPLE_SHA256


def _load_bare(folder: Path, found: list[Path], settings: Settings) -> Model:
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise LoadError(f"{folder} has {names}: keep one of them, or write a handler.py")
    if found[0].suffix == ".onnx":
        from infless_watchdog.onnx_model import OnnxModel

        return OnnxModel(found[0], settings)
    from infless_watchdog.torch_model import TorchModel

    return TorchModel(found[0], settings)


def _holds_the_lock(model: Model, settings: Settings) -> bool:
    """Whether the handler's runs would keep the event loop waiting, as far as its example shows."""
    from infless_watchdog import gil

    if model.concurrency > 1:
        return False  # async: made to wait for others
    try:
        example = model.example()
        if example is None:
            return False
        item = example if model.prepare is None else model.prepare(example)
        model.predict([item])  # lazy initialisation
        started_s = time.perf_counter()
        answers = model.predict([item])
        alone_s = time.perf_counter() - started_s
        if (
            model.encode(
                answers[0] if model.finish is None else model.finish(answers[0]), item, Call(Head("POST"))
            ).chunks
            is not None
        ):
            return False  # a process has no way for answers in pieces
        size = max(1, min(settings.batch_max, int(_TRIAL_S / alone_s))) if model.batched else 1
        held = gil.measure(lambda: model.predict([item] * size), settings.latency_target_s)
    except (Exception, SystemExit):  # noqa: BLE001 - the user's code; whoever warms the model up tells of it
        return False
    if not held.is_felt(settings.latency_target_s):
        return False
    LOG.info(
        "the handler holds the interpreter's lock for %.0f %% of a run of %.0f ms: it moves to a process of its own; "
        "handler_isolation=process saves loading it twice",
        100 * held.share,
        1000 * held.exec_s,
    )
    return True
