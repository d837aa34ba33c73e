"""Inputs for the demo and the benchmarks, and the right answers to them.

Inputs are drawn from a seed, with numpy alone: the same seed gives the same inputs. Answers are computed
with onnxruntime directly, one input at a time, and share no code with the handlers that they judge.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime 1.29 and newer reports home otherwise

_HERE = Path(__file__).resolve().parent
RATE_HZ = 16_000
TEXT_SHAPE = (3, 48, 192)

_VOWELS = ((730, 1090, 2440), (530, 1840, 2480), (270, 2290, 3010), (570, 840, 2410), (300, 870, 2240))
"""First three formants in Hz of a, e, i, o, u (Peterson and Barney, 1952, men)."""

_GLYPHS = {
    "A": "01110 10001 10001 11111 10001 10001 10001",
    "E": "11111 10000 10000 11110 10000 10000 11111",
    "F": "11111 10000 10000 11110 10000 10000 10000",
    "G": "01110 10001 10000 10111 10001 10001 01110",
    "K": "10001 10010 10100 11000 10100 10010 10001",
    "L": "10000 10000 10000 10000 10000 10000 11111",
    "P": "11110 10001 10001 11110 10000 10000 10000",
    "R": "11110 10001 10001 11110 10100 10010 10001",
    "T": "11111 00100 00100 00100 00100 00100 00100",
    "V": "10001 10001 10001 10001 10001 01010 00100",
    "Y": "10001 10001 01010 00100 00100 00100 00100",
    "4": "00010 00110 01010 10010 11111 00010 00010",
    "7": "11111 00001 00010 00100 01000 01000 01000",
}
"""Seven rows of five dots; signs that look different upside down."""


def voice_clips(n: int, seed: int) -> list[bytes]:
    """`n` clips of one second, 16 kHz mono 16-bit PCM: half of them voices, the others noise or near silence."""
    rng = np.random.default_rng(seed)
    makers = (_voice, _noise, _voice, _silence)
    return [_pcm(makers[place % len(makers)](rng)) for place in range(n)]


def text_images(n: int, seed: int) -> list[np.ndarray]:
    """`n` lines of text as float32 `(3, 48, 192)`, normalised to -1..1; every second one upside down."""
    rng = np.random.default_rng(seed)
    images = []
    for place in range(n):
        pixels = _text_line(rng)
        turned = pixels[::-1, ::-1] if place % 2 else pixels
        noisy = np.clip(turned + rng.normal(0, 6, turned.shape), 0, 255)
        images.append(np.repeat(((noisy / 255 - 0.5) / 0.5)[np.newaxis], 3, axis=0).astype(np.float32))
    return images


def expected_voice(
    clips: Sequence[bytes], model: Path = _HERE / "02-voice-activity" / "model.onnx"
) -> list[list[float]]:
    """For each clip the 31 probabilities of speech, computed frame by frame with a batch of one."""
    session = _session(model)
    answers = []
    for clip in clips:
        samples = np.frombuffer(clip, dtype=np.int16) / np.float32(32768)
        state, context = np.zeros((2, 1, 128), dtype=np.float32), np.zeros(64, dtype=np.float32)
        probabilities = []
        for frame in samples[: 31 * 512].reshape(31, 512):
            heard = np.concatenate([context, frame])[None, :].astype(np.float32)
            output, state = session.run(None, {"input": heard, "state": state, "sr": np.array(RATE_HZ, np.int64)})
            probabilities.append(float(output[0, 0]))
            context = frame[-64:]
        answers.append(probabilities)
    return answers


def expected_text(
    images: Sequence[np.ndarray], model: Path = _HERE / "03-text-direction" / "model.onnx"
) -> list[np.ndarray]:
    """For each image the two probabilities (upright, upside down), computed with a batch of one."""
    session = _session(model)
    return [session.run(None, {"x": image[None]})[0][0] for image in images]


def voice_is_right(expected: Sequence[float], body: bytes, tolerance: float = 2e-3) -> bool:
    """Whether the function's JSON says what `expected_voice` says, rounding and float noise of batches aside."""
    try:
        answer = json.loads(body)
        segments = np.asarray(answer["segments"], dtype=np.float64)
        close = segments.shape == (len(expected),) and np.abs(segments - expected).max() <= tolerance
        return bool(close and abs(answer["speech"] - max(expected)) <= tolerance)
    except (ValueError, KeyError, TypeError):
        return False


def text_is_right(expected: np.ndarray, body: bytes, tolerance: float = 1e-3) -> bool:
    """Whether the function's raw float32 bytes say what `expected_text` says."""
    if len(body) != expected.nbytes:
        return False
    return bool(np.abs(np.frombuffer(body, np.float32) - expected).max() <= tolerance)


def _voice(rng: np.random.Generator) -> np.ndarray:
    """Syllables: harmonics of a gliding pitch, shaped by the formants of vowels, with a breath of noise."""
    time_s = np.arange(RATE_HZ) / RATE_HZ
    pitch_hz = rng.uniform(95, 210) * (1 + 0.12 * np.sin(2 * np.pi * rng.uniform(1, 3) * time_s + rng.uniform(0, 6)))
    pitch_hz *= 1 + np.cumsum(rng.normal(0, 1e-4, RATE_HZ))  # no voice holds its pitch
    phase = 2 * np.pi * np.cumsum(pitch_hz) / RATE_HZ
    rate_hz, sound = rng.uniform(3, 5), np.zeros(RATE_HZ)
    vowels = [_VOWELS[rng.integers(len(_VOWELS))] for _ in range(6)]
    syllable = np.minimum((time_s * rate_hz).astype(int), 5)
    formants_hz = _smooth(np.array(vowels, dtype=float)[syllable].T, 800)
    for harmonic in range(1, 40):
        frequency_hz = harmonic * pitch_hz
        gain = sum(1 / (1 + ((frequency_hz - formant) / 90) ** 2) for formant in formants_hz)
        sound += np.where(frequency_hz < 7000, gain / harmonic**0.6, 0) * np.sin(harmonic * phase)
    envelope = np.clip(1.3 * np.abs(np.sin(np.pi * rate_hz * time_s)), 0.02, 1)
    sound = sound * envelope / np.abs(sound).max()
    return rng.uniform(0.2, 0.7) * sound + rng.normal(0, 0.002, RATE_HZ)


def _noise(rng: np.random.Generator) -> np.ndarray:
    """A fan: low-passed noise, no pitch."""
    return rng.uniform(0.02, 0.2) * _smooth(rng.normal(0, 1, (1, RATE_HZ)), int(rng.integers(2, 30)))[0]


def _silence(rng: np.random.Generator) -> np.ndarray:
    """The last bits of a microphone."""
    return rng.normal(0, 3e-4, RATE_HZ)


def _smooth(rows: np.ndarray, width: int) -> np.ndarray:
    kernel = np.ones(width) / width
    padded = np.pad(rows, ((0, 0), (width // 2, width - 1 - width // 2)), mode="edge")
    return np.stack([np.convolve(row, kernel, mode="valid") for row in padded])


def _pcm(sound: np.ndarray) -> bytes:
    return (np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes()


def _text_line(rng: np.random.Generator) -> np.ndarray:
    """Grey levels `(48, 192)` of a few signs on a plain ground."""
    ground, ink = rng.uniform(170, 255), rng.uniform(0, 90)
    scale, letters = 5, int(rng.integers(4, 7))
    dots = np.zeros((7, 6 * letters))
    names = sorted(_GLYPHS)
    for place in range(letters):
        rows = _GLYPHS[names[rng.integers(len(names))]].split()
        dots[:, 6 * place : 6 * place + 5] = [[int(dot) for dot in row] for row in rows]
    drawn = np.kron(dots, np.ones((scale, scale)))
    shade = np.zeros(TEXT_SHAPE[1:])
    top, left = int(rng.integers(2, 11)), int(rng.integers(2, TEXT_SHAPE[2] - drawn.shape[1] + 5))
    shade[top : top + drawn.shape[0], left : left + drawn.shape[1]] = drawn[:, : TEXT_SHAPE[2] - left]
    shade = _smooth(_smooth(shade, 3).T, 3).T
    return ground + (ink - ground) * shade


def _session(model: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
