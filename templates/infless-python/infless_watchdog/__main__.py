"""`infless-watchdog`: wiring only. Serves a function, tries it (`--check`) or times it (`--curve`)."""

from __future__ import annotations

import argparse
import gc
import logging
import math
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from infless_watchdog.calls import LoadError
from infless_watchdog.settings import Settings, SettingsError, read_settings

if TYPE_CHECKING:
    from infless_watchdog.worker import Service


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="infless-watchdog", description="Serve one function in batches.")
    parser.add_argument(
        "--curve", metavar="B,B,...", type=_sizes, help="time these batch sizes, print JSON lines, and end"
    )
    parser.add_argument(
        "--check",
        metavar="FOLDER",
        nargs="?",
        const="",
        help="try the function with samples, say what was found, and end",
    )
    parser.add_argument("--sample", metavar="FILE", type=Path, action="append", default=[], help="a body for --check")
    parser.add_argument("--json", action="store_true", help="the report of --check as one JSON object")
    parser.add_argument("--budget-s", type=float, default=2.0, help="seconds for --curve and --check (default 2)")
    options = parser.parse_args()
    # From 1.29 on, onnxruntime tells Microsoft of each model it loads, unless this is set before it is imported.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        log_file = os.environ.get("log_file", "").strip()  # noqa: SIM112 - OpenFaaS's way to write them
        serving = options.curve is None and options.check is None
        if log_file and serving:  # before anything can be wrong: its sentence belongs there
            from infless_watchdog.logfile import capture

            capture(Path(log_file))
        settings = read_settings(os.environ)
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
        if serving:
            serve(settings)
            return
        if options.check is not None:
            from infless_watchdog.check import check

            chosen = replace(settings, function_dir=options.check or settings.function_dir)
            raise SystemExit(check(chosen, options.sample, as_json=options.json, budget_s=options.budget_s))
        from infless_watchdog.curve import write_curve

        raise SystemExit(write_curve(settings, options.curve, options.budget_s))
    except (SettingsError, LoadError, OSError) as fault:
        raise SystemExit(f"infless-watchdog: {fault}") from None


def _sizes(text: str) -> list[int]:
    sizes = [int(size) for size in text.split(",")]
    if min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} are not batch sizes such as 1,2,4")
    return sizes


def serve(settings: Settings) -> None:
    """Run under gunicorn: one worker, two listeners (requests, metrics)."""
    gc.disable()  # until the model is loaded: what is imported is no garbage, and to look takes a tenth of the start
    from infless_watchdog.worker import ServiceApplication

    if settings.grpc_port:  # grpcio would share it with whoever has it
        os.close(_bound(settings.grpc_port))
    fds = settings.listen_fds or (_bound(settings.port), _bound(settings.metrics_port))
    grace_s = settings.healthcheck_interval_s + settings.write_timeout_s + 1
    ServiceApplication(
        lambda: _watchdog(settings),
        bind=[f"fd://{fd}" for fd in fds],
        graceful_timeout=math.ceil(grace_s),
        proc_name="infless-watchdog",
    ).run()


def _watchdog(settings: Settings) -> Service:
    # Imported in the worker: what the supervisor does not know, it need not hold in memory.
    from infless_watchdog.app import Watchdog

    return Watchdog(settings)


def _bound(port: int) -> int:
    try:
        return socket.create_server(("0.0.0.0", port), backlog=4096).detach()  # noqa: S104 - a container's port
    except OSError as error:
        raise SystemExit(f"infless-watchdog: port {port} cannot be listened on: {error.strerror}") from None


if __name__ == "__main__":
    main()
