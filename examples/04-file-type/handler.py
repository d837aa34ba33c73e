"""What kind of file is this? Google's Magika model; the body of a request is the file.

Answer: `{"label": "python", "score": 0.99}`, the same as `Magika().identify_bytes(...)` of the magika package says in
its default mode. The rules for empty, tiny and doubtful files are magika's (Apache-2.0), written anew.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

_HERE = Path(__file__).parent
_BLOCK = 4096
"""White space is stripped within this many bytes of either end."""
_SIDE = 1024
"""Bytes of each end that the model sees."""
_PADDING = 256
"""The value after all bytes: nothing here."""
_FEWEST = 8
"""Fewer bytes than this say nothing about a file."""
_DOUBTFUL = 0.5
"""Below this score only text or not text is answered, unless the type has a threshold of its own."""

_session: Any = None
_rules: dict[str, Any] = {}
_text_labels: frozenset[str] = frozenset()


def load() -> None:
    """Open the model and its table of types; called once, before the instance says it is ready."""
    global _session, _rules, _text_labels  # noqa: PLW0603 - a handler is a module: these are its objects
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("cpu_cores", "1"))  # noqa: SIM112 - as it is set
    options.inter_op_num_threads = 1
    _session = onnxruntime.InferenceSession(str(_HERE / "model.onnx"), options, providers=["CPUExecutionProvider"])
    _rules = json.loads((_HERE / "config.min.json").read_text())
    kinds = json.loads((_HERE / "content_types_kb.min.json").read_text())
    _text_labels = frozenset(label for label, kind in kinds.items() if kind["is_text"])


def predict(batch: list[Any]) -> list[Any]:
    """One answer per file; files that need no model get none of its time."""
    contents = [_content(item) for item in batch]
    answers: list[Any] = [_without_model(content) for content in contents]
    places = [place for place, answer in enumerate(answers) if answer is None]
    if places:
        scores = _session.run(None, {"bytes": np.stack([features(contents[place]) for place in places])})[0]
        for place, row in zip(places, scores, strict=True):
            best = int(row.argmax())
            answers[place] = _answer(_rules["target_labels_space"][best], float(row[best]))
    return answers


def example() -> bytes:
    """A short Python file."""
    return b"import sys\n\n\ndef main() -> None:\n    print(sys.argv)\n" * 40


def features(content: bytes) -> np.ndarray:
    """The model's view of a file: int32[2048], its first and last bytes without the white space around them."""
    first = content[:_BLOCK].lstrip()[:_SIDE]
    last = content[-_BLOCK:].rstrip()[-_SIDE:]
    view = np.full(2 * _SIDE, _PADDING, np.int32)
    view[: len(first)] = np.frombuffer(first, np.uint8)
    view[2 * _SIDE - len(last) :] = np.frombuffer(last, np.uint8)
    return view


def _content(item: Any) -> bytes:
    """The file as bytes, also when its content type made the watchdog read it as text or JSON."""
    if isinstance(item, bytes):
        return item
    return item.encode() if isinstance(item, str) else json.dumps(item).encode()


def _without_model(content: bytes) -> dict[str, Any] | None:
    if not content:
        return {"label": "empty", "score": 1.0}
    if len(content) >= _FEWEST and len(content[:_BLOCK].lstrip()) >= _FEWEST:
        return None
    try:
        content[:_BLOCK].decode()
    except UnicodeDecodeError:
        return {"label": "unknown", "score": 1.0}
    return {"label": "txt", "score": 1.0}


def _answer(found: str, score: float) -> dict[str, Any]:
    label = _rules["overwrite_map"].get(found, found)
    if score < _rules["thresholds"].get(found, _DOUBTFUL):
        label = "txt" if label in _text_labels else "unknown"
    return {"label": label, "score": round(score, 4)}
