"""Is somebody speaking? Silero VAD over one second of sound, many clients' seconds in one batch.

Request: 32000 bytes, 16 kHz mono PCM, 16-bit little endian. Answer: `{"speech": 0.98, "segments": [31 numbers]}`, the
probability of speech in each 32 ms and the largest of them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

RATE_HZ = 16_000
CLIP_BYTES = 2 * RATE_HZ
STEP = 512
"""Samples the model takes at a time; fixed by the model."""
CONTEXT = 64
"""Samples of the step before that the model wants to see again."""
STEPS = RATE_HZ // STEP
"""31; the last 8 ms of the second are not looked at."""

_session: Any = None


def load() -> None:
    """Open the model; called once, before the instance says it is ready."""
    global _session  # noqa: PLW0603 - a handler is a module: this is its one object
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("cpu_cores", "1"))  # noqa: SIM112 - as it is set
    options.inter_op_num_threads = 1
    path = Path(__file__).with_name("model.onnx")
    _session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def predict(batch: list[Any]) -> list[Any]:
    """One answer per clip; a clip of the wrong length fails alone."""
    answers: list[Any] = [_fault(item) for item in batch]
    places = [place for place, fault in enumerate(answers) if fault is None]
    if places:
        probabilities = _run(np.stack([_samples(batch[place]) for place in places]))
        for place, segments in zip(places, probabilities, strict=True):
            answers[place] = {
                "speech": round(float(segments.max()), 4),
                "segments": [round(float(p), 4) for p in segments],
            }
    return answers


def example() -> bytes:
    """A second of quiet hum: costs as much as any other."""
    time_s = np.arange(RATE_HZ) / RATE_HZ
    return (1000 * np.sin(2 * np.pi * 120 * time_s)).astype("<i2").tobytes()


def _fault(item: Any) -> ValueError | None:
    if not isinstance(item, bytes):
        return ValueError(f"send the clip as raw bytes (application/octet-stream); {type(item).__name__} came")
    if len(item) != CLIP_BYTES:
        return ValueError(
            f"{len(item)} bytes came; a clip is {CLIP_BYTES} bytes: one second of 16 kHz mono 16-bit little-endian PCM"
        )
    return None


def _samples(clip: bytes) -> np.ndarray:
    """The clip from -1 to 1, with silence before it as the first step's context."""
    samples = np.frombuffer(clip, "<i2").astype(np.float32) / 32768
    return np.concatenate([np.zeros(CONTEXT, np.float32), samples])


def _run(clips: np.ndarray) -> np.ndarray:
    """Speech probabilities `[clip, step]`; the model's memory moves along the second for all clips at once."""
    state = np.zeros((2, len(clips), 128), np.float32)
    rate = np.array(RATE_HZ, np.int64)
    probabilities = np.empty((len(clips), STEPS), np.float32)
    for step in range(STEPS):
        window = clips[:, step * STEP : step * STEP + CONTEXT + STEP]
        output, state = _session.run(None, {"input": window, "state": state, "sr": rate})
        probabilities[:, step] = output[:, 0]
    return probabilities
