"""`infless plan` with `--live`: the same command, on what a running provider has to plan now."""

from __future__ import annotations

import json
from pathlib import Path

from infless_provider.client import DEFAULT_GATEWAY, Client, find_credentials
from infless_scheduler.cli import plan_command_with


def _live(gateway: str | None, state_dir: Path | None) -> str:
    return json.dumps(Client(gateway or DEFAULT_GATEWAY, find_credentials(state_dir)).problem())


plan_command = plan_command_with(_live)
