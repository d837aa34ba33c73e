"""`infless build`: the layout of `faas-cli build --shrinkwrap`, whole or not at all."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from infless_core.errors import BackendError, InvalidInput
from infless_provider import build
from infless_provider.stackfile import StackFunction


@pytest.fixture
def make(tmp_path):
    """Build a handler's folder."""
    handler = tmp_path / "hello"
    handler.mkdir()
    (handler / "handler.py").write_text("def predict(batch): return batch\n")

    def make(lang="infless-python", requirements="", name="hello", said=lambda _: None):
        (handler / "requirements.txt").write_text(requirements)
        function = StackFunction(name=name, lang=lang, handler=handler, image="repo/hello:1")
        return build.build_function(function, tmp_path / "build", said, tmp_path / "template")

    (tmp_path / "build").mkdir()
    make.handler = handler
    return make


def test_the_layout(make):
    """Template, watchdog, handler, and the image it stands for."""
    folder = make()
    assert (folder / "infless_watchdog" / "app.py").is_file()
    assert (folder / "Dockerfile").is_file()
    assert (folder / "function" / "handler.py").read_text().startswith("def predict")
    assert json.loads((folder / "bundle.json").read_text()) == {"image": "repo/hello:1"}
    assert [path.name for path in folder.parent.iterdir()] == ["hello"]


def test_a_second_build_replaces_the_first(make):
    """What was removed from the handler is gone from the bundle."""
    (make.handler / "old.py").touch()
    make()
    (make.handler / "old.py").unlink()
    assert not (make() / "function" / "old.py").exists()


def test_what_is_left_out(make):
    """Caches everywhere; `build` and `template` at the top only, as faas-cli does."""
    for folder in ("__pycache__", "build", "template", "lib/build", "lib/template", "lib/__pycache__"):
        (make.handler / folder).mkdir(parents=True)
    built = make() / "function"
    assert sorted(path.name for path in built.iterdir() if path.is_dir()) == ["lib"]
    assert sorted(path.name for path in (built / "lib").iterdir()) == ["build", "template"]


def test_a_pulled_template_is_used(make, tmp_path):
    """`faas-cli template pull` leaves it in ./template; ours fills in the watchdog."""
    (tmp_path / "template" / "other").mkdir(parents=True)
    (tmp_path / "template" / "other" / "template.yml").write_text("language: other\n")
    folder = make(lang="other")
    assert (folder / "template.yml").read_text() == "language: other\n"
    assert (folder / "infless_watchdog").is_dir()


def test_an_unknown_template(make):
    """The sentence names where it was looked for."""
    with pytest.raises(
        InvalidInput, match="lang 'cobol': no template in .*template; INFless itself has infless-python"
    ):
        make(lang="cobol")


def test_a_missing_handler(tmp_path):
    """The stack file's key is named."""
    function = StackFunction(name="f", lang="infless-python", handler=tmp_path / "none", image="i")
    with pytest.raises(InvalidInput, match=r"functions.f.handler: .*none is not a folder"):
        build.build_function(function, tmp_path, print)


def pip(monkeypatch, returncode=0, stderr=""):
    """A pip that only writes down what it was asked for."""
    asked = []

    def run(command, **_):
        asked.append(Path(command[-1]).read_text().split("\n"))
        return SimpleNamespace(returncode=returncode, stderr=stderr)

    monkeypatch.setattr(subprocess, "run", run)
    return asked


def test_only_missing_packages_are_installed(make, monkeypatch):
    """Comments are none, and what this environment has is not fetched again."""
    asked, said = pip(monkeypatch), []
    make(requirements="# mine\nnumpy\n\nno-such-package-of-anybody  # why\n--pre\n", said=said.append)
    assert asked == [["no-such-package-of-anybody  # why", "--pre", ""]]
    assert said == ["installing no-such-package-of-anybody  # why, --pre"]


def test_nothing_missing_asks_nobody(make, monkeypatch):
    """Not even pip."""
    asked = pip(monkeypatch)
    folder = make(requirements="numpy\n")
    assert asked == []
    assert not (folder / "packages").exists()


def test_a_failing_pip_leaves_the_old_bundle(make, monkeypatch):
    """With pip's own words."""
    folder = make()
    pip(monkeypatch, 1, "no matching distribution")
    with pytest.raises(BackendError, match="pip could not install it:\nno matching distribution"):
        make(requirements="no-such-package-of-anybody\n")
    assert (folder / "function" / "handler.py").is_file()
