"""Which INFless this is."""

from __future__ import annotations

import importlib.metadata
import os

try:
    VERSION = importlib.metadata.version("infless")
except importlib.metadata.PackageNotFoundError:  # run from a source tree that was never installed
    VERSION = "0.0.0"


def commit() -> str:
    """The commit it was built from, when the build said so."""
    return os.environ.get("INFLESS_COMMIT", "unknown")
