"""`infless build`: template and handler into `build/NAME`, laid out as `faas-cli build --shrinkwrap` does."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import infless_watchdog
from infless_core.errors import BackendError, InvalidInput
from infless_provider.bundles import write_manifest
from infless_provider.stackfile import StackFunction

_NOT_COPIED = ("__pycache__", ".git", ".venv")
_NOT_AT_THE_TOP = ("build", "template")
"""What faas-cli leaves out of a handler's folder; deeper down these are the user's own names."""


def build_function(
    function: StackFunction, out_dir: Path, progress: Callable[[str], None], templates_dir: Path = Path("template")
) -> Path:  # fmt: skip
    """Make one bundle; an older one of the same name is replaced.

    Args:
        function: from the stack file.
        out_dir: the bundle becomes `out_dir/NAME`.
        progress: told what is being done.
        templates_dir: where `faas-cli template pull` leaves templates; ours also travels with the package.

    Returns:
        The bundle's folder.

    Raises:
        InvalidInput: the template or the handler's folder does not exist.
        BackendError: the requirements could not be installed.
    """
    if not function.handler.is_dir():
        raise InvalidInput(f"functions.{function.name}.handler: {function.handler} is not a folder")
    template = _template(function.lang, templates_dir)
    target, draft = out_dir / function.name, out_dir / f".{function.name}.new"
    shutil.rmtree(draft, ignore_errors=True)
    _copy(template, draft)
    if not (draft / "infless_watchdog").is_dir():
        _copy(Path(infless_watchdog.__file__).parent, draft / "infless_watchdog")
    shutil.rmtree(draft / "function", ignore_errors=True)
    _copy(function.handler, draft / "function")
    _install(draft / "function" / "requirements.txt", draft / "packages", progress)
    write_manifest(draft, function.image)
    shutil.rmtree(target, ignore_errors=True)
    draft.rename(target)
    return target


def _copy(source: Path, target: Path) -> None:
    def ignored(folder: str, names: list[str]) -> set[str]:
        left_out = (*_NOT_COPIED, *_NOT_AT_THE_TOP) if Path(folder) == source else _NOT_COPIED
        return {name for name in names if name in left_out}

    shutil.copytree(source, target, ignore=ignored)


def _template(lang: str, templates_dir: Path) -> Path:
    if (templates_dir / lang / "template.yml").is_file():
        return templates_dir / lang
    ours = Path(infless_watchdog.__file__).parent.parent  # a source tree: templates/infless-python
    for folder in (ours, Path(__file__).parent / "template" / "infless-python"):
        if lang == "infless-python" and (folder / "template.yml").is_file():
            return folder
    raise InvalidInput(f"lang {lang!r}: no template in {templates_dir.resolve()}; INFless itself has infless-python")


def _install(requirements: Path, packages: Path, progress: Callable[[str], None]) -> None:
    """Install what the function asks for and this environment lacks, for this function alone."""
    lines = requirements.read_text().splitlines() if requirements.is_file() else []
    wanted = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    missing = [line for line in wanted if not _installed(line)]
    if not missing:
        return
    progress(f"installing {', '.join(missing)}")
    # A file again, beside the first one: lines may hold options, comments, and paths relative to it.
    rest = requirements.with_name(".missing.txt")
    rest.write_text("\n".join(missing) + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(packages), "-r", str(rest)],
        capture_output=True,
        text=True,
        check=False,
    )
    rest.unlink()
    if done.returncode != 0:
        raise BackendError(f"{requirements}: pip could not install it:\n{done.stderr.strip()}")


def _installed(requirement: str) -> bool:
    """Whether a bare name is there already; anything with a version or option is left to pip."""
    try:
        importlib.metadata.version(requirement)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return False
    return True
