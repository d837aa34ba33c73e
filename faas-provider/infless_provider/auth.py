"""Who may ask: basic auth for the control plane as OpenFaaS has it, bearer tokens for functions that want one."""

from __future__ import annotations

import base64
import hmac
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from infless_core.errors import StateError
from infless_provider.whole_file import write_whole

USER = "admin"
"""OpenFaaS's default."""
USER_FILE, PASSWORD_FILE = "basic-auth-user", "basic-auth-password"
"""Named as OpenFaaS names its secrets, so that a gateway can be given the same folder."""
CHALLENGE = 'Basic realm="Restricted"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """One user."""

    user: str
    password: str = field(repr=False)

    def admit(self, header: str | None) -> bool:
        """Whether an Authorization header carries them; compared in constant time.

        Args:
            header: its value; an empty `Bearer ` (a client that never logged in) is no credential and no error.
        """
        user, given = _basic(header)
        right_user = hmac.compare_digest(user, self.user.encode())
        return hmac.compare_digest(given, self.password.encode()) and right_user

    def names(self, header: str | None) -> bool:
        """Whether an Authorization header is `Basic` with this user, whatever the password; compared in constant time.

        Args:
            header: as for `admit`. What that admits is named, too.
        """
        user, _ = _basic(header)
        return hmac.compare_digest(user, self.user.encode())


def _basic(header: str | None) -> tuple[bytes, bytes]:
    """User and password of an Authorization header (RFC 7617); both empty where it has none."""
    scheme, _, encoded = (header or "").partition(" ")
    if scheme.lower() != "basic":
        return b"", b""
    try:
        user, _, given = base64.b64decode(encoded.strip(), validate=True).partition(b":")
    except ValueError:  # not base64, not ASCII
        return b"", b""
    return user, given


def ensure_credentials(folder: Path) -> Credentials:
    """What the two files of a folder hold; a missing password is generated, a missing user is `admin`.

    Raises:
        StateError: when a file cannot be written or read, or is empty.
    """
    path = folder / PASSWORD_FILE
    try:
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_whole(path, f"{secrets.token_urlsafe(24)}\n".encode())
    except OSError as error:
        raise StateError(f"the password file {path} cannot be written: {error}") from error
    user_path = folder / USER_FILE
    return Credentials(user=_read(user_path) if user_path.exists() else USER, password=_read(path))


def _read(path: Path) -> str:
    try:
        text = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StateError(f"the credentials file {path} cannot be used: {error}") from error
    if not text:
        raise StateError(f"the credentials file {path} is empty: write into it, or remove it for a new one")
    return text


def bears(header: bytes | None, tokens: Iterable[bytes]) -> bool:
    """Whether an Authorization header is `Bearer` with one of some tokens (RFC 6750); compared in constant time."""
    scheme, _, given = (header or b"").partition(b" ")
    if scheme.lower() != b"bearer":
        return False
    # All are compared: how long it takes must not tell which one was near.
    return any([hmac.compare_digest(given.strip(), token) for token in tokens])  # noqa: C419


def from_another_site(header: Callable[[str], str | None]) -> bool:
    """Whether a browser says that a page of another site sends this request (W3C Fetch Metadata; RFC 6454, section 7).

    A browser adds the password that it remembers to whatever any page makes it send, and a form needs nobody's leave.
    What is no browser sends neither header.

    Args:
        header: looks one of the request's up, without regard to case. Behind a gateway, `X-Forwarded-Host` is the name
            that the page has.
    """
    site, origin = header("Sec-Fetch-Site"), header("Origin")
    if site is not None:
        return site not in ("same-origin", "none")
    host = (origin or "").partition("://")[2]
    return origin is not None and (not host or host not in (header("Host"), header("X-Forwarded-Host")))
