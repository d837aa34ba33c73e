"""The `infless profile` command: times of models from their operators, of functions whole, and the database of both."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from infless_core.errors import InvalidInput
from infless_core.units import parse_duration_s
from infless_provider import profile_text
from infless_provider.settings import default_state_dir, usable_cores

_STATE = click.option(
    "--state-dir", type=click.Path(path_type=Path), envvar="INFLESS_STATE", help="Default ~/.infless."
)  # fmt: skip
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_GPU = click.option("--gpu", is_flag=True, help="Profiles of the GPU, not of the processor.")
_MODEL_FILES = (".onnx", ".pt2")


class _Profile(click.Group):
    """`infless profile MODEL` and `infless profile -f stack.yml` are commands whose names nobody has to write."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the command's name where it is left out."""
        if not args or (args[0] not in self.commands and args[0] not in ("-h", "--help")):
            stack = not args or any(one in ("-f", "--yaml", "--filter", "--bundles") for one in args)
            model = any(Path(one).suffix.lower() in _MODEL_FILES for one in args) or (args and args[0][0] != "-")
            args = ["functions" if stack or not model else "model", *args]
        return super().parse_args(ctx, args)


@click.group(
    cls=_Profile,
    no_args_is_help=False,
    subcommand_metavar="MODEL | -f STACK | COMMAND ...",
    context_settings={"help_option_names": ["-h", "--help"]},
)
def profile_command() -> None:
    r"""Execution times for every batch size and number of cores: of models, of functions, and what is known.

    \b
    infless profile MODEL          an ONNX file (or a torch program, .pt2): composed from its operators,
                                   of which only those are measured that are not known well enough
    infless profile -f STACK       functions of a stack file, timed whole
    """


@profile_command.command("model")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--batches", metavar="LIST", default="1,2,4,8,16,32", show_default=True, help="Batch sizes.")
@click.option("--cores", metavar="LIST", help="Numbers of cores (default powers of two up to all, and all).")
@click.option("--gpu-percents", metavar="LIST", help="Shares of a GPU (CUDA MPS), such as 10,50,100; default none.")
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    metavar="INPUT=LIST",
    help="Shape of one item where axes are open: x=3,48,192; with b where the batch goes: state=2,b,128.",
)
@click.option("--sample", type=click.Path(path_type=Path), help="An .npz file with one item for each input.")
@click.option(
    "--inter-op-threads",
    "threads",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="Operators that run at the same time and share the cores; instances run one after the other.",
)
@click.option("--anew", is_flag=True, help="Measure this model's operators again: the machine has changed.")
@click.option("--name", help="What it is called in the database (default from the file).")
@click.option("--verify", is_flag=True, help="Measure the whole model as well, and show the errors.")
@click.option(
    "--picture",
    type=click.Path(path_type=Path),
    help="Where --verify draws predicted against measured (default NAME.verify.png; needs matplotlib).",
)
@_STATE
@_JSON
def profile_model(  # noqa: PLR0913, PLR0917 - one for each option
    model: Path, batches: str, cores: str | None, gpu_percents: str | None, shapes: tuple[str, ...],
    sample: Path | None, threads: int, anew: bool, name: str | None, verify: bool, picture: Path | None,
    state_dir: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Predict a model's execution times from its operators (also: infless profile MODEL)."""
    from infless_profiler.cop import Profiler
    from infless_profiler.measure import core_counts
    from infless_profiler.model_file import exported, parse_shapes, read_model, read_samples
    from infless_profiler.prediction import Grid
    from infless_profiler.sessions import check_shares

    if picture is not None and not verify:
        raise InvalidInput("--picture draws what --verify measures; add --verify")
    tables = _tables(state_dir, gpu=gpu_percents is not None)
    shares = _numbers("--gpu-percents", gpu_percents, 100) if gpu_percents else (0,)
    if gpu_percents:
        check_shares(shares)
    machine = len(usable_cores(0))
    grid = Grid(
        batches=_numbers("--batches", batches, 4096),
        cpu_cores=_numbers("--cores", cores, machine) if cores else core_counts(machine),
        gpu_percents=shares,
        inter_op_threads=threads,
    )
    progress, done = _progress()
    try:
        with TemporaryDirectory(prefix="infless-export-") as folder, exported(model, Path(folder)) as path:
            file = read_model(path, parse_shapes(shapes), read_samples(sample) if sample else None, name)
            with Profiler(tables, progress=progress) as profiler:
                profile = profiler.profile(file, grid, anew=anew)
                if verify:
                    profile = profiler.verify(file, profile)
    finally:
        done()
    told = profile_text.to_json(profile)
    click.echo(json.dumps(told, indent=1) if as_json else profile_text.of_profile(told))
    if verify:
        _draw(profile, picture)


def _draw(profile: Any, picture: Path | None) -> None:
    """The picture, where it was asked for or can be made."""
    from infless_profiler.plot import draw

    target = picture or Path(f"{profile.graph.name}.verify.png")
    try:
        draw(profile, target)
    except InvalidInput as error:
        if picture is not None:
            raise
        click.echo(str(error), err=True)
    else:
        click.echo(f"picture: {target}", err=True)


@profile_command.command("functions")
@click.option("-f", "--yaml", "stack_path", type=click.Path(path_type=Path), default=Path("stack.yml"),
              help="Stack file.")  # fmt: skip
@click.option("--bundles", type=click.Path(path_type=Path), default=Path("build"), show_default=True)
@_STATE
@click.option("--batches", help="Batch sizes such as 1,2,4 (default powers of two up to com.infless.batch.max).")
@click.option("--cpu-cores", default=0, type=click.IntRange(0), help="Largest number of cores (default all).")
@_JSON
@click.option("--filter", "pattern", metavar="WILDCARD", help="Only functions whose name matches, as in faas-cli.")
@click.argument("names", nargs=-1)
def profile_functions(
    stack_path: Path, bundles: Path, state_dir: Path | None, batches: str | None, cpu_cores: int, as_json: bool,
    pattern: str | None, names: tuple[str, ...],
) -> None:  # fmt: skip
    """Time functions of a stack file whole, and keep the result for planning (also: infless profile -f STACK)."""
    from infless_provider.profile_stack import profile_functions as measure
    from infless_provider.stackfile import read_stack

    tables = measure(
        read_stack(stack_path, os.environ, names, pattern).functions, bundles, state_dir or default_state_dir(),
        None if batches is None else _numbers("--batches", batches, 4096), cpu_cores,
        lambda told: click.echo(told, err=True),
    )  # fmt: skip
    click.echo(json.dumps(tables, indent=1) if as_json else profile_text.of_functions(tables))


@profile_command.command("list")
@_GPU
@_STATE
@_JSON
def list_models(gpu: bool, state_dir: Path | None, as_json: bool) -> None:
    """Models that were profiled on this machine, and what the tables hold."""
    tables = _tables(state_dir, gpu=gpu)
    models = tables.models()
    rows = tables.operators()
    told = {
        "database": str(tables.path),
        "device": tables.device.name,
        "runtime": tables.device.runtime,
        "operators": len({row.operator.signature for row in rows}),
        "operator_times": len(rows),
        "models": [profile_text.model_head(one) for one in models],
    }
    click.echo(json.dumps(told, indent=1) if as_json else profile_text.of_list(told))


@profile_command.command("show")
@click.argument("name")
@_GPU
@_STATE
@_JSON
def show_model(name: str, gpu: bool, state_dir: Path | None, as_json: bool) -> None:
    """What is known of a profiled model, by name or digest, with the newest correction."""
    tables = _tables(state_dir, gpu=gpu)
    told = profile_text.settled_json(tables.model(name), tables)
    click.echo(json.dumps(told, indent=1) if as_json else profile_text.of_profile(told))


@profile_command.command("export")
@click.argument("target", type=click.Path(path_type=Path))
@_STATE
def export_database(target: Path, state_dir: Path | None) -> None:
    """Write the whole database to a JSON file, for another machine of the same kind or for keeping."""
    from infless_profiler.exchange import export

    counts = export(_database(state_dir), target)
    click.echo(f"{target}: {counts['operator_time']} operator times, {counts['model']} models", err=True)


@profile_command.command("import")
@click.argument("source", type=click.Path(path_type=Path))
@_STATE
def import_database(source: Path, state_dir: Path | None) -> None:
    """Take in an exported file; of two times for the same thing the newer one stays."""
    from infless_profiler.exchange import bring_in

    counts = bring_in(_database(state_dir), source)
    click.echo(f"taken in: {counts['operator_time']} operator times, {counts['model']} models", err=True)


@profile_command.command("prune")
@click.option("--older-than", metavar="DURATION", help="What was measured longer ago than this, such as 720h.")
@click.option("--other-devices", is_flag=True, help="What belongs to other processors, GPUs and runtime versions.")
@click.option("--model", "name", help="Profiles of this name. Operators stay: other models may use them.")
@_STATE
def prune_database(older_than: str | None, other_devices: bool, name: str | None, state_dir: Path | None) -> None:
    """Forget what is no longer wanted."""
    from infless_profiler.sessions import these_devices
    from infless_profiler.tables import prune

    if older_than is None and not other_devices and name is None:
        raise InvalidInput("say what to forget: --older-than, --other-devices or --model")
    gone = prune(
        _database(state_dir),
        measured_before_s=None if older_than is None else time.time() - parse_duration_s(older_than, "--older-than"),
        devices=these_devices() if other_devices else (),
        model=name,
    )
    click.echo(f"forgotten: {gone['operator_time']} operator times, {gone['model']} models", err=True)


@profile_command.command("problem")
@click.argument("functions", nargs=-1, required=True, metavar="NAME=RATE@TARGET...")
@click.option("--servers", default=1, type=click.IntRange(1), show_default=True, help="How many, all alike.")
@click.option("--cpu-cores", default=0, type=click.IntRange(0), help="Cores of each (default this machine's).")
@click.option("--memory", default="", help="Memory of each, such as 64Gi (default this machine's).")
@click.option("--percentile", type=click.FloatRange(50, 99.99), help="Share of requests that must meet the target.")
@_GPU
@_STATE
def write_problem(
    functions: tuple[str, ...], servers: int, cpu_cores: int, memory: str, percentile: float | None, gpu: bool,
    state_dir: Path | None,
) -> None:  # fmt: skip
    """Print a problem for `infless plan --problem`, from profiled models: resnet-50=120@200ms is 120 requests/s."""
    from infless_provider.profile_problem import problem_of
    from infless_scheduler.problem_file import problem_to_json

    problem = problem_of(_tables(state_dir, gpu=gpu), functions, servers, cpu_cores, memory, percentile)
    click.echo(json.dumps(problem_to_json(problem), indent=1))


def _database(state_dir: Path | None) -> Path:
    return (state_dir or default_state_dir()) / "operators.sqlite"


def _tables(state_dir: Path | None, *, gpu: bool = False) -> Any:
    from infless_profiler.sessions import machine, this_device
    from infless_profiler.tables import Tables

    return Tables(_database(state_dir), this_device(gpu), machine())


def _numbers(option: str, text: str, most: int) -> tuple[int, ...]:
    """Whole numbers from `1,2,4`."""
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"[1-9]\d{0,8}", part) and int(part) <= most for part in parts):
        raise InvalidInput(f"{option}: {text!r} is not a list of whole numbers from 1 to {most} such as 1,2,4")
    return tuple(sorted({int(part) for part in parts}))


def _progress() -> tuple[Callable[[str], None], Callable[[], None]]:
    """One line that changes on a terminal; elsewhere a line every few seconds, so that a log shows that it lives."""
    if sys.stderr.isatty():
        return (
            lambda words: click.echo(f"\r\x1b[2K{words[:110]}", nl=False, err=True),
            lambda: click.echo("\r\x1b[2K", nl=False, err=True),
        )
    last_s = [0.0]

    def tell(words: str) -> None:
        if time.monotonic() - last_s[0] >= 5:
            last_s[0] = time.monotonic()
            click.echo(words, err=True)

    return tell, lambda: None
