"""Certificates that live as long as a test."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfSigned:
    """A server's certificate and its key, as PEM files; the certificate is the one to trust, too."""

    certificate: Path
    key: Path


def self_signed(folder: Path, name: str = "localhost") -> SelfSigned:
    """Make one with the openssl command; skips the test where there is none.

    Args:
        folder: where the two files go.
        name: of the host that it is for.
    """
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    made = SelfSigned(certificate=folder / "certificate.pem", key=folder / "key.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-keyout", made.key, "-out", made.certificate, "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"],
        check=True, capture_output=True,
    )  # fmt: skip
    return made
