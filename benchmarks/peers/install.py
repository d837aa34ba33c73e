"""Installs peers, each into an environment of its own: `python -m benchmarks.peers.install [NAME...]`."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import click

_REQUIREMENTS = Path(__file__).parent / "requirements"
NAMES = tuple(sorted(path.stem for path in _REQUIREMENTS.glob("*.txt")))
FOLDER = Path(os.environ.get("INFLESS_PEERS", "build/peers"))
"""Where the environments are."""


def install(name: str, folder: Path) -> str:
    """Make a peer's environment, unless it is there and as its requirements say; '' or why it cannot be had."""
    place = folder / name
    wanted, stamp = (_REQUIREMENTS / f"{name}.txt").read_text(), place / "installed.txt"
    if stamp.is_file() and stamp.read_text() == wanted:
        return ""
    venv.create(place, with_pip=True, clear=True)
    done = subprocess.run(
        [place / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r",
         _REQUIREMENTS / f"{name}.txt"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        return done.stderr.strip()[-500:] or f"pip ended with {done.returncode}"
    stamp.write_text(wanted)
    return ""


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(NAMES))
@click.option("--folder", default=FOLDER, show_default=True, type=click.Path(path_type=Path), help="Environments.")
def main(names: tuple[str, ...], folder: Path) -> None:
    """Install the peers named, or all."""
    faults = 0
    for name in names or NAMES:
        fault = install(name, folder)
        faults += bool(fault)
        click.echo(f"{name}: {fault or 'installed'}", err=bool(fault))
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
