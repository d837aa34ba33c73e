"""A benchmark's result as a record: values with units, the command, the machine, the versions, the commit."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_VERSIONS = ("uvloop", "httptools", "gunicorn", "onnxruntime", "numpy", "flask", "mip")


def write(name: str, command: str, results: dict[str, Any], *, show: bool = True) -> Path:
    """Keep a result in `benchmarks/results/NAME.json`, print it (`show`) and where, and return the path."""
    record = {
        "name": name,
        "command": command,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": _commit(),
        "machine": machine(),
        "results": results,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    if show:
        print(json.dumps(results, indent=1))
    print(f"kept in {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}", file=sys.stderr)
    return path


def machine() -> dict[str, Any]:
    """What a figure depends on, without naming the host."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in _VERSIONS},
    }


def version(package: str, venv: Path) -> str:
    """Of a distribution in a virtual environment where there is one, else in ours; empty when it is in neither."""
    folders = [str(path) for path in venv.glob("lib/python*/site-packages")]
    found = next(iter(importlib.metadata.distributions(name=package, **({"path": folders} if folders else {}))), None)
    return found.version if found else ""


def _commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
