"""`infless-watchdog`: wiring only. Serves the function in `function_dir`, or times it with `--curve`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from infless_watchdog.handlers import LoadError
from infless_watchdog.logfile import capture
from infless_watchdog.settings import Settings, SettingsError, read_settings


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="infless-watchdog", description="Serve one function in batches.")
    parser.add_argument("--curve", metavar="B,B,...", help="time these batch sizes, print JSON lines, and end")
    parser.add_argument("--budget-s", type=float, default=2.0, help="seconds for --curve (default 2)")
    options = parser.parse_args()
    try:
        settings = read_settings(os.environ)
        if settings.log_file and options.curve is None:
            capture(Path(settings.log_file))
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
        if options.curve is None:
            serve(settings)
            return
        from infless_watchdog.curve import write_curve

        sizes = [int(size) for size in options.curve.split(",")]
        raise SystemExit(write_curve(settings, sizes, options.budget_s))
    except (SettingsError, LoadError) as fault:
        raise SystemExit(f"infless-watchdog: {fault}") from None


def serve(settings: Settings) -> None:
    """Run under gunicorn: one worker, two listeners (requests, metrics)."""
    from infless_watchdog.app import Watchdog
    from infless_watchdog.worker import ServiceApplication

    binds = [f"fd://{fd}" for fd in settings.listen_fds] or [
        f"0.0.0.0:{settings.port}",
        f"0.0.0.0:{settings.metrics_port}",
    ]
    grace_s = settings.healthcheck_interval_s + settings.write_timeout_s + 1
    ServiceApplication(
        lambda: Watchdog(settings), bind=binds, graceful_timeout=int(grace_s), proc_name="infless-watchdog"
    ).run()


if __name__ == "__main__":
    main()
