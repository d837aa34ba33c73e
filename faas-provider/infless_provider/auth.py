"""Basic auth as OpenFaaS has it: one user, a generated password in a file that only its owner reads."""

from __future__ import annotations

import base64
import hmac
import os
import secrets
from pathlib import Path

from infless_core.errors import StateError

USER = "admin"
CHALLENGE = 'Basic realm="Restricted"'


def ensure_password(path: Path) -> str:
    """The password in `path`; generated on first use.

    Raises:
        StateError: when the file cannot be written or read.
    """
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            draft = path.with_name(f".{path.name}.{os.getpid()}")
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_urlsafe(24) + "\n")
            draft.replace(path)
        password = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StateError(f"the password file {path} cannot be used: {error}") from error
    if not password:
        raise StateError(f"the password file {path} is empty: write a password into it, or remove it for a new one")
    return password


def allowed(header: str | None, password: str) -> bool:
    """Whether an Authorization header carries the credentials; compared in constant time.

    Args:
        header: its value; an empty `Bearer ` (a client that never logged in) is no credential and no error.
        password: what is right.
    """
    scheme, _, encoded = (header or "").partition(" ")
    if scheme.lower() != "basic":
        return False
    try:
        user, _, given = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
    except ValueError:  # not base64, not ASCII, not UTF-8
        return False
    right_user = hmac.compare_digest(user.encode(), USER.encode())
    return hmac.compare_digest(given.encode(), password.encode()) and right_user
