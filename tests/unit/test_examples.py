"""The example functions: their contract, and the drawn inputs that demo and benchmarks judge them with."""

from __future__ import annotations

import importlib.util
import json
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def load(path: str) -> ModuleType:
    """A file of the examples as a module."""
    spec = importlib.util.spec_from_file_location(path.replace("/", "_").replace("-", "_"), EXAMPLES / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def handler_with_model(folder: str) -> ModuleType:
    """A handler after its `load()`; the test is skipped where `get_models.py` has not run."""
    if not (EXAMPLES / folder / "model.onnx").is_file():
        pytest.skip("python examples/get_models.py has not run")
    handler = load(f"{folder}/handler.py")
    handler.load()
    return handler


@pytest.fixture(scope="module")
def inputs() -> ModuleType:
    """The drawn inputs."""
    return load("demo_inputs.py")


def test_hello_answers_each_in_capitals_and_faults_alone() -> None:
    """One answer per item, in order; what is not text fails by itself."""
    hello = load("01-hello/handler.py")
    first, fault, last = hello.predict(["hello", {"a": 1}, "you"])
    assert (first, last) == ("HELLO", "YOU")
    assert isinstance(fault, ValueError)
    assert "dict came" in str(fault)
    assert hello.predict([hello.example()]) == ["HELLO"]


def test_the_same_seed_draws_the_same_inputs(inputs: ModuleType) -> None:
    """Load can be repeated; another seed is another load."""
    assert inputs.voice_clips(4, 7) == inputs.voice_clips(4, 7) != inputs.voice_clips(4, 8)
    assert {len(clip) for clip in inputs.voice_clips(4, 7)} == {32000}
    first, again = inputs.text_images(4, 7), inputs.text_images(4, 7)
    np.testing.assert_array_equal(first, again)
    assert {(image.shape, image.dtype.name) for image in first} == {((3, 48, 192), "float32")}
    assert -1 <= np.min(first) < -0.3 < 0.3 < np.max(first) <= 1


def test_answers_are_judged(inputs: ModuleType) -> None:
    """A right answer passes, a shifted, cut or unreadable one does not."""
    expected = [0.1] * 30 + [0.9]
    right = {"speech": 0.9, "segments": expected}
    assert inputs.voice_is_right(expected, json.dumps(right).encode())
    for wrong in ({**right, "speech": 0.8}, {**right, "segments": expected[1:]}, {"speech": 0.9}, [1]):
        assert not inputs.voice_is_right(expected, json.dumps(wrong).encode())
    assert not inputs.voice_is_right(expected, b"<html>")
    probabilities = np.array([0.25, 0.75], np.float32)
    assert inputs.text_is_right(probabilities, probabilities.tobytes())
    assert not inputs.text_is_right(probabilities, probabilities[::-1].tobytes())
    assert not inputs.text_is_right(probabilities, b"")


def test_a_batch_of_clips_is_answered_as_each_alone(inputs: ModuleType) -> None:
    """Batch-mates change nothing, the model hears voices where there are some, a wrong length fails alone."""
    voice = handler_with_model("02-voice-activity")
    clips = inputs.voice_clips(8, 0)
    answers = voice.predict([*clips[:4], b"short", "text", *clips[4:]])
    assert [type(answer) for answer in answers[4:6]] == [ValueError, ValueError]
    assert "32000 bytes" in str(answers[4])
    del answers[4:6]
    for expected, answer in zip(inputs.expected_voice(clips), answers, strict=True):
        assert inputs.voice_is_right(expected, json.dumps(answer).encode())
    assert [answer["speech"] > 0.4 for answer in answers] == [True, False] * 4
    assert len(voice.example()) == 32000


def test_text_direction_tells_upright_from_upside_down(inputs: ModuleType) -> None:
    """The drawn lines are real enough for the model to read most of them."""
    if not (EXAMPLES / "03-text-direction" / "model.onnx").is_file():
        pytest.skip("python examples/get_models.py has not run")
    upside_down = [probabilities[1] > 0.5 for probabilities in inputs.expected_text(inputs.text_images(20, 1))]
    assert sum(found == bool(place % 2) for place, found in enumerate(upside_down)) >= 16


FILES = {
    "empty": (b"", "empty", 1.0),
    "white space": (b"  \n\t ", "txt", 1.0),
    "few bytes": (b"abc", "txt", 1.0),
    "few bytes between white space": (b"   \n\n\n\n abc \n\n\n", "txt", 1.0),
    "few bytes, not text": (b"\xff\xfe\x00", "unknown", 1.0),
    "python": (b"import sys\n\n\ndef main() -> None:\n    print(sys.argv)\n" * 40, "python", 0.9745),
    "json": (
        b'{"name": "infless", "version": [0, 1, 0], "keywords": ["serverless", "inference"]}\n', "json", 0.8439,
    ),
    "doubtful text": (b"deb https://packages.example.org/apt stable main\n", "txt", 0.3472),
    "doubtful binary": (bytes([7, 9, 200, 3, 1, 255, 0, 0, 12, 99, 1, 2]), "unknown", 0.2589),
    "a type with its own threshold": (bytes(range(40)), "unknown", 0.6506),
    "long, white space at both ends": (
        b" " * 4090 + b"SELECT name, count(*) FROM functions GROUP BY name ORDER BY 2 DESC;\n" * 100 + b"\n" * 4000,
        "txt", 1.0,
    ),
}  # fmt: skip
"""Contents, and what `Magika().identify_bytes` of magika 1.0.3 says of them."""


@pytest.mark.parametrize(("content", "label", "score"), FILES.values(), ids=FILES.keys())
def test_file_types_are_those_of_magika(content: bytes, label: str, score: float) -> None:
    """The handler's preprocessing and rules are the package's, to the score."""
    (answer,) = handler_with_model("04-file-type").predict([content])
    assert answer["label"] == label
    assert answer["score"] == pytest.approx(score, abs=2e-3)


def test_file_types_in_a_batch_keep_their_order() -> None:
    """Files that need no model and files that do come back in their places."""
    answers = handler_with_model("04-file-type").predict([content for content, _, _ in FILES.values()])
    assert [answer["label"] for answer in answers] == [label for _, label, _ in FILES.values()]
