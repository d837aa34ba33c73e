"""The documentation says what the code does: tables are compared with the fields, code blocks are run."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from infless_core import labels
from infless_core.labels import parse_wishes
from infless_watchdog.check import examine
from infless_watchdog.settings import Settings, read_settings, variable_name

ROOT = Path(__file__).parents[2]
SETTINGS = (ROOT / "docs/reference/settings.md").read_text()
HOW_TO = (ROOT / "docs/how-to/write-a-handler.md").read_text()
DOCKERFILE = (ROOT / "templates/infless-python/Dockerfile").read_text()


def table(head: str) -> dict[str, str]:
    """The first two columns of the table that begins so, without the quotes of code."""
    rows = SETTINGS[SETTINGS.index(head) :].partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip(" `") for cell in row.split("|")[1:3]] for row in rows]
    return dict(cells)


def test_every_variable_is_in_the_reference() -> None:
    """In the order of the fields, so that nobody has to search."""
    assert list(table("| variable |")) == [variable_name(spec.name) for spec in fields(Settings)]


def test_the_defaults_in_the_reference_are_the_defaults() -> None:
    """Whoever copies the table into an environment changes nothing; an empty cell is what nobody can write."""
    assert read_settings({name: text for name, text in table("| variable |").items() if text}) == Settings()
    unsaid = {name for name, text in table("| variable |").items() if not text}
    empty = {variable_name(spec.name) for spec in fields(Settings) if spec.default in ("", (), MISSING, float("inf"))}
    assert unsaid == empty


def test_every_label_is_in_the_reference() -> None:
    """Ours and OpenFaaS's, with defaults that are the defaults."""
    known = {value for name, value in vars(labels).items() if name.isupper() and not name.startswith("_")}
    told = table("| label |")
    assert set(told) == known
    assert parse_wishes({name: text for name, text in told.items() if text}) == parse_wishes({})


def test_every_build_argument_is_in_the_reference() -> None:
    """With its default."""
    arguments = dict(re.findall(r'^ARG (\w+)(?:="?([^"\n]*)"?)?$', DOCKERFILE, re.MULTILINE))
    assert table("| argument |") == arguments


HANDLERS = re.findall(r"```python\n(.*?)```", HOW_TO, re.DOTALL)


@pytest.fixture
def function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for a handler; nothing of it stays imported."""
    folder = tmp_path / f"how_to_{tmp_path.name}"
    folder.mkdir()
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield folder
    for name in [name for name in sys.modules if name.startswith(folder.name)]:
        del sys.modules[name]


@pytest.mark.parametrize("code", HANDLERS, ids=range(len(HANDLERS)))
def test_the_handlers_of_the_how_to_pass_the_check(code: str, function: Path) -> None:
    """Each is a whole handler.py, with an example."""
    (function / "handler.py").write_text(code)
    report = examine(Settings(function_dir=str(function), batch_max=4), {}, 0.0)
    assert report.findings == []
    assert report.answers
