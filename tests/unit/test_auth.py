"""Basic auth as OpenFaaS has it, with a password that is made on first use."""

import base64
import stat

import pytest

from infless_core.errors import StateError
from infless_provider.auth import allowed, ensure_password


def _basic(text):
    return "Basic " + base64.b64encode(text.encode()).decode()


def test_a_password_is_made_once(tmp_path):
    """Only its owner may read it, and the second start finds it."""
    file = tmp_path / "state" / "basic-auth-password"
    password = ensure_password(file)
    assert len(password) >= 24
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert ensure_password(file) == password
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_password_of_ones_own(tmp_path):
    """White space around it is trimmed, as OpenFaaS does."""
    (tmp_path / "p").write_text(" secret\n")
    assert ensure_password(tmp_path / "p") == "secret"


def test_an_empty_password_file_lets_nobody_in(tmp_path):
    """It would else mean: everybody who knows that it is empty."""
    (tmp_path / "p").write_text("\n")
    with pytest.raises(StateError, match="is empty: write a password into it, or remove it"):
        ensure_password(tmp_path / "p")


def test_where_no_file_can_be(tmp_path):
    """A sentence with the file's name."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="the password file .*cannot be used"):
        ensure_password(tmp_path / "file" / "p")


def test_the_right_credentials():
    """The scheme's case does not matter."""
    assert allowed(_basic("admin:secret"), "secret")
    assert allowed(_basic("admin:secret").replace("Basic", "basic"), "secret")
    assert allowed(_basic("admin:with:colon"), "with:colon")


@pytest.mark.parametrize(
    "header",
    [
        None, "", "Bearer ", "Bearer token", "Basic", "Basic ", "Basic !!!", "Basic gr\u00fc\u00df", "Basic /w==",
        _basic("admin:wrong"), _basic("root:secret"), _basic("admin"), _basic("secret"), _basic("admin:secret "),
    ],
)  # fmt: skip
def test_everything_else_is_no_credential(header):
    """An empty bearer (a client that never logged in) included; nothing raises."""
    assert not allowed(header, "secret")
