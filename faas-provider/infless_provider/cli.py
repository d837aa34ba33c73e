"""The `infless` command. Results on stdout, progress on stderr; exit codes 0 done, 1 failed, 2 usage, 3 infeasible."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from infless_core.errors import Infeasible, InflessError, InvalidInput
from infless_provider.client import DEFAULT_GATEWAY, Client, find_credentials
from infless_provider.settings import default_state_dir
from infless_provider.version import VERSION

_STATE = click.option(
    "--state-dir", type=click.Path(path_type=Path), envvar="INFLESS_STATE", help="Default ~/.infless."
)  # fmt: skip
_STACK = click.option(
    "-f", "--yaml", "stack_path", type=click.Path(path_type=Path), default=Path("stack.yml"), help="Stack file."
)
_GATEWAY = click.option("-g", "--gateway", envvar="OPENFAAS_URL", help=f"Default {DEFAULT_GATEWAY}.")
_FILTER = click.option(
    "--filter", "pattern", metavar="WILDCARD", help="Only functions whose name matches, as in faas-cli."
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_LAZY = {
    "plan": ("infless_provider.plan_cli", "plan_command"),
    "profile": ("infless_provider.profile_cli", "profile_command"),
    "replay": ("infless_provider.replay_cli", "replay_command"),
    "up": ("infless_provider.up_cli", "up_command"),
}
"""Commands whose module (solver, load generator) is imported only when they are used."""


class _Group(click.Group):
    """Turns our errors into one line and an exit code, and imports heavy commands when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, the lazy ones too."""
        return sorted({*super().list_commands(ctx), *_LAZY})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A command by name."""
        if cmd_name in _LAZY:
            module, name = _LAZY[cmd_name]
            command: click.Command = getattr(importlib.import_module(module), name)
            return command
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        """Run; our errors become `infless: sentence`."""
        try:
            return super().invoke(ctx)
        except InflessError as error:
            click.echo(f"infless: {error}", err=True)
            code = 2 if isinstance(error, InvalidInput) else 3 if isinstance(error, Infeasible) else 1
            ctx.exit(code)
        except BrokenPipeError:
            raise  # click ends quietly: who reads has enough
        except OSError as error:
            click.echo(f"infless: {error}", err=True)
            ctx.exit(1)


@click.group(
    cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "INFLESS"}
)  # fmt: skip
@click.version_option(VERSION, prog_name="infless")
def main() -> None:
    """INFless on OpenFaaS: inference functions with latency targets, on as little hardware as possible.

    Every option is an environment variable too: --port of `infless up` is INFLESS_UP_PORT.
    """


@main.command()
@_STATE
@_JSON
def down(state_dir: Path | None, as_json: bool) -> None:
    """End the provider and every instance it left running."""
    from infless_provider.up import down as end

    ended = end((state_dir or default_state_dir()).resolve())
    click.echo(f"stopped; {ended} instance(s) were left running and have been ended", err=True)
    if as_json:
        click.echo(json.dumps({"ended": ended}))


@main.command()
@_STACK
@click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("build"), show_default=True)
@_JSON
@_FILTER
@click.argument("names", nargs=-1)
def build(stack_path: Path, out: Path, as_json: bool, pattern: str | None, names: tuple[str, ...]) -> None:
    """Build functions into bundles, for machines without faas-cli or Docker."""
    from infless_provider.build import build_function
    from infless_provider.stackfile import read_stack

    stack = read_stack(stack_path, os.environ, names, pattern)
    out.mkdir(parents=True, exist_ok=True)
    folders: dict[str, str] = {}
    for function in stack.functions:
        click.echo(f"building {function.name}", err=True)
        folders[function.name] = str(build_function(function, out, lambda told: click.echo(f"  {told}", err=True)))
        if not as_json:
            click.echo(folders[function.name])
    if as_json:
        click.echo(json.dumps(folders, indent=1))


@main.command()
@_STACK
@_GATEWAY
@_STATE
@_JSON
@_FILTER
@click.argument("names", nargs=-1)
def deploy(
    stack_path: Path, gateway: str | None, state_dir: Path | None, as_json: bool, pattern: str | None,
    names: tuple[str, ...],
) -> None:  # fmt: skip
    """Deploy functions of a stack file. A function never seen before is timed first, which takes seconds."""
    from infless_provider.stackfile import read_stack

    stack = read_stack(stack_path, os.environ, names, pattern)
    client = Client(gateway or stack.gateway or DEFAULT_GATEWAY, find_credentials(state_dir))
    done: dict[str, str] = {}
    for function in stack.functions:
        click.echo(f"deploying {function.name}", err=True)
        try:
            done[function.name] = client.deploy(function.deployment)
            if not as_json:
                click.echo(f"{function.name} {done[function.name]}")
        except InflessError as error:  # one refused function must not keep the others away
            done[function.name] = f"refused: {error}"
            click.echo(f"{function.name} refused: {error}", err=True)
    if as_json:
        click.echo(json.dumps(done, indent=1))
    sys.exit(1 if any(word.startswith("refused") for word in done.values()) else 0)


@main.command()
@_GATEWAY
@_STATE
@click.argument("names", nargs=-1, required=True)
def remove(gateway: str | None, state_dir: Path | None, names: tuple[str, ...]) -> None:
    """Remove functions; what their instances are answering is answered."""
    client = Client(gateway or DEFAULT_GATEWAY, find_credentials(state_dir))
    refused = False
    for name in names:
        try:
            client.remove(name)
            click.echo(f"{name} removed")
        except InflessError as error:  # the others go all the same
            refused = True
            click.echo(f"{name} not removed: {error}", err=True)
    sys.exit(1 if refused else 0)


@main.command()
@_GATEWAY
@_STATE
@_JSON
def status(gateway: str | None, state_dir: Path | None, as_json: bool) -> None:
    """Instances, the configuration each one got, and why; functions that have none, and why."""
    from infless_provider.status_text import status_lines

    overview = Client(gateway or DEFAULT_GATEWAY, find_credentials(state_dir)).overview()
    if as_json:
        click.echo(json.dumps(overview, indent=1))
        return
    for line in status_lines(overview):
        click.echo(line)
    if not overview["functions"]:
        click.echo(
            "no function is served; deploy one with `infless deploy`"
            " (if one was deployed before, the provider's log says why it is not served)",
            err=True,
        )


if __name__ == "__main__":
    main()
