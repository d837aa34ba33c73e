"""`infless up`: what it may be told."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path

import click

from infless_core.errors import InvalidInput
from infless_core.labels import parse_target_s
from infless_core.units import parse_duration_s, parse_memory_bytes
from infless_provider.backends.choose import BACKENDS
from infless_provider.settings import Settings, default_state_dir

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
LIMITS = {
    "connections": "connections_max",
    "functions": "functions_max",
    "invocations": "streams_max",
    "namespaces": "namespaces_max",
    "secrets": "secrets_max",
    "waiting": "waiting_max",
}
"""Names for `--limit`, and the settings they are; `docs/how-to/secure-the-provider.md` says what each counts."""


def parse_limits(texts: Iterable[str]) -> dict[str, int]:
    """Settings from `NAME=NUMBER`.

    Raises:
        InvalidInput: no such limit, or no number from 1 to 999999999.
    """
    found = {}
    for text in texts:
        name, _, number = text.partition("=")
        if name not in LIMITS:
            raise InvalidInput(f"--limit: {name!r} is unknown; allowed are {', '.join(LIMITS)}, as in functions=5000")
        if not re.fullmatch("[1-9][0-9]{0,8}", number):
            raise InvalidInput(f"--limit: {text!r}: write a whole number from 1 to 999999999, as in {name}=5000")
        found[LIMITS[name]] = int(number)
    return found


def _bytes(text: str, option: str, most_bytes: float = math.inf) -> int:
    found = parse_memory_bytes(text, option)
    if not found:
        raise InvalidInput(f"{option}: 0 would refuse everything; write more")
    if found > most_bytes:
        raise InvalidInput(f"{option}: {text} is more than a function has room for in the queue, {most_bytes} bytes")
    return found


def _seconds(text: str, option: str) -> float:
    found = parse_duration_s(text, option)
    if not found:
        raise InvalidInput(f"{option}: 0 would refuse everything; write more")
    return found


@click.command(name="up")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(1, 65535), help="Port to listen on.")
@click.option("--state-dir", type=click.Path(path_type=Path), envvar="INFLESS_STATE", help="Default ~/.infless.")
@click.option(
    "--backend",
    type=click.Choice(BACKENDS),
    default="process",
    show_default=True,
    help="What instances are: local processes, or containers of a Docker engine.",
)
@click.option(
    "--bundles",
    type=click.Path(path_type=Path),
    default=Path("build"),
    show_default=True,
    help="Where `infless build` and `faas-cli build --shrinkwrap` leave functions (processes).",
)
@click.option("--cluster", type=_FILE, metavar="FILE", help="What the machine has to give (default detected).")
@click.option("--cpu-cores", default=0, type=click.IntRange(0), help="Cores for instances (default all).")
@click.option("--latency-target", default="500ms", show_default=True, help="For functions that state none.")
@click.option("--tls-cert", type=_FILE, metavar="FILE", help="Serve HTTPS with this certificate chain (PEM).")
@click.option("--tls-key", type=_FILE, metavar="FILE", help="Its private key (PEM).")
@click.option(
    "--credentials",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="FOLDER",
    help="Holds basic-auth-user and basic-auth-password (default: the state folder).",
)
@click.option("--no-auth", is_flag=True, help="No password. For a closed machine only.")
@click.option(
    "--callbacks-allow",
    multiple=True,
    metavar="HOST|NETWORK",
    help="Results of queued calls may go there although it is not public; '*' is anywhere. May be repeated.",
)
@click.option("--body-max", default="64Mi", show_default=True, help="Largest body of an invocation.")
@click.option("--queued-body-max", default="1Mi", show_default=True, help="Largest body of a call that is queued.")
@click.option(
    "--limit",
    multiple=True,
    metavar="NAME=NUMBER",
    help=f"The most {', '.join(LIMITS)}. May be repeated.",
)
@click.option("--invoke-timeout", default="60s", show_default=True, help="Longest invocation, cold start included.")
@click.option(
    "--start-timeout", default="120s", show_default=True, help="An instance that is not ready by then has failed."
)
@click.option("--solver", default="auto", show_default=True, help="See `infless plan --help`.")
@click.option("--prometheus", metavar="URL", help="Learn execution times from it (default from the instances).")
def up_command(  # noqa: PLR0913, PLR0917 - one argument for each option
    host: str, port: int, state_dir: Path | None, backend: str, bundles: Path, cluster: Path | None, cpu_cores: int,
    latency_target: str, tls_cert: Path | None, tls_key: Path | None, credentials: Path | None, no_auth: bool,
    callbacks_allow: tuple[str, ...], body_max: str, queued_body_max: str, limit: tuple[str, ...],
    invoke_timeout: str, start_timeout: str, solver: str, prometheus: str | None,
) -> None:  # fmt: skip
    """Run the provider: the OpenFaaS API, invocations, planning. Ctrl-C ends it and its instances.

    SIGTERM ends the provider alone: its instances go on, and the next `infless up` finds them.
    """
    from infless_profiler.prometheus import check_url
    from infless_provider.async_policy import AsyncLimits
    from infless_provider.callback_policy import CallbackPolicy
    from infless_provider.up import run
    from infless_scheduler.planner import SOLVERS

    if solver not in SOLVERS:
        raise InvalidInput(f"--solver: {solver!r} is unknown; allowed are {', '.join(SOLVERS)}")
    if (tls_cert is None) != (tls_key is None):
        raise InvalidInput("--tls-cert and --tls-key: give both or none")
    CallbackPolicy.parse(callbacks_allow)
    queue_bytes = AsyncLimits().bytes_per_function_max
    run(
        Settings(
            state_dir=(state_dir or default_state_dir()).resolve(),
            bundles_dir=bundles.resolve(),
            host=host,
            port=port,
            auth=not no_auth,
            credentials=credentials.resolve() if credentials else None,
            backend=backend,
            cluster_file=cluster,
            cpu_cores=cpu_cores,
            default_target_s=parse_target_s(latency_target, "--latency-target"),
            tls_certificate=tls_cert,
            tls_key=tls_key,
            callbacks_allowed=callbacks_allow,
            body_max_bytes=_bytes(body_max, "--body-max"),
            async_body_max_bytes=_bytes(queued_body_max, "--queued-body-max", queue_bytes),
            invoke_timeout_s=_seconds(invoke_timeout, "--invoke-timeout"),
            start_timeout_s=_seconds(start_timeout, "--start-timeout"),
            solver=solver,
            prometheus_url=check_url(prometheus, "--prometheus") if prometheus else "",
            **parse_limits(limit),
        )
    )
