"""Who may ask: basic auth as OpenFaaS has it, with a password that is made on first use; bearer tokens for functions."""

import base64
import stat

import pytest

from infless_core.errors import StateError
from infless_provider.auth import PASSWORD_FILE, USER_FILE, Credentials, bears, ensure_credentials, from_another_site

ADMIN = Credentials(user="admin", password="secret")


def _basic(text):
    return "Basic " + base64.b64encode(text.encode()).decode()


class TestFiles:
    """Where the credentials come from."""

    def test_a_password_is_made_once(self, tmp_path):
        """Only its owner may read it, and the second start finds it."""
        folder = tmp_path / "state"
        made = ensure_credentials(folder)
        assert (made.user, len(made.password) >= 24) == ("admin", True)
        assert stat.S_IMODE((folder / PASSWORD_FILE).stat().st_mode) == 0o600
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert ensure_credentials(folder) == made
        assert [path.name for path in folder.iterdir()] == [PASSWORD_FILE]

    def test_every_password_is_another(self, tmp_path):
        """It is not derived from anything."""
        assert ensure_credentials(tmp_path / "a").password != ensure_credentials(tmp_path / "b").password

    def test_credentials_of_ones_own(self, tmp_path):
        """In the folder that a gateway has; white space around them is trimmed, as OpenFaaS does."""
        (tmp_path / USER_FILE).write_text(" me \n")
        (tmp_path / PASSWORD_FILE).write_text(" secret\n")
        assert ensure_credentials(tmp_path) == Credentials(user="me", password="secret")

    def test_a_user_of_ones_own_gets_a_password(self, tmp_path):
        """It is the password that must not be guessed."""
        (tmp_path / USER_FILE).write_text("me")
        assert ensure_credentials(tmp_path).user == "me"
        assert (tmp_path / PASSWORD_FILE).read_text().strip()

    @pytest.mark.parametrize("name", [USER_FILE, PASSWORD_FILE])
    def test_an_empty_file_lets_nobody_in(self, tmp_path, name):
        """It would else mean: everybody who knows that it is empty."""
        (tmp_path / PASSWORD_FILE).write_text("secret")
        (tmp_path / name).write_text("\n")
        with pytest.raises(StateError, match=f"{name} is empty: write into it, or remove it"):
            ensure_credentials(tmp_path)

    @pytest.mark.parametrize("name", [USER_FILE, PASSWORD_FILE])
    def test_a_file_that_is_no_text(self, tmp_path, name):
        """Named; what is in it is not told."""
        (tmp_path / PASSWORD_FILE).write_text("secret")
        (tmp_path / name).write_bytes(b"\xff\xfe")
        with pytest.raises(StateError, match=f"the credentials file .*{name} cannot be used"):
            ensure_credentials(tmp_path)

    def test_where_no_file_can_be(self, tmp_path):
        """A sentence with the file's name."""
        (tmp_path / "file").write_text("")
        with pytest.raises(StateError, match="the password file .*cannot be written"):
            ensure_credentials(tmp_path / "file" / "p")


class TestBasic:
    """The control plane."""

    def test_the_right_credentials(self):
        """The scheme's case does not matter; only the first colon divides."""
        assert ADMIN.admit(_basic("admin:secret"))
        assert ADMIN.admit(_basic("admin:secret").replace("Basic", "basic"))
        assert Credentials(user="me", password="with:colon").admit(_basic("me:with:colon"))
        assert Credentials(user="mü", password="grüß").admit(_basic("mü:grüß"))

    @pytest.mark.parametrize(
        "header",
        [
            None, "", "Bearer ", "Bearer token", "Basic", "Basic ", "Basic !!!", "Basic gr\u00fc\u00df", "Basic /w==",
            _basic("admin:wrong"), _basic("root:secret"), _basic("admin"), _basic("secret"), _basic("admin:secret "),
            _basic(":secret"), _basic("admin:"), _basic(":"),
        ],
    )  # fmt: skip
    def test_everything_else_is_no_credential(self, header):
        """An empty bearer (a client that never logged in) included; nothing raises."""
        assert not ADMIN.admit(header)

    def test_the_password_is_in_no_text(self):
        """A log that prints them does not give it away."""
        assert "secret" not in f"{ADMIN} {ADMIN!r}"


class TestNames:
    """Whether a header is for the control plane at all."""

    @pytest.mark.parametrize("told", ["admin:secret", "admin:wrong", "admin:", "admin"])
    def test_the_user_is_enough(self, told):
        """The right password and a wrong one look alike, and `basic` may be written in any way."""
        assert ADMIN.names(_basic(told))
        assert ADMIN.names(_basic(told).replace("Basic ", "bASIC   "))

    def test_a_password_that_is_no_text(self):
        """It is a guess like any other."""
        assert ADMIN.names("Basic " + base64.b64encode(b"admin:\xff").decode())

    @pytest.mark.parametrize(
        "header", [None, "", "Basic", "Basic ???", "Bearer YWRtaW46", _basic("me:secret"), _basic("")]
    )
    def test_everything_else_is_somebody_elses(self, header):
        """Another user, another scheme, what is not base64."""
        assert not ADMIN.names(header)


class TestBearer:
    """Functions that want a token."""

    @pytest.mark.parametrize("header", [b"Bearer one", b"bearer two", b"BEARER  two "])
    def test_any_of_the_tokens(self, header):
        """The scheme's case does not matter (RFC 9110, section 11.1)."""
        assert bears(header, (b"one", b"two"))

    @pytest.mark.parametrize(
        "header",
        [None, b"", b"Bearer", b"Bearer ", b"Bearer on", b"Bearer one two", b"one", b"Basic one", b"\xff \xff"],
    )
    def test_everything_else_is_none(self, header):
        """Nothing raises."""
        assert not bears(header, (b"one", b"two"))

    @pytest.mark.parametrize("header", [None, b"", b"Bearer", b"Bearer ", b"Bearer x"])
    def test_without_tokens_nobody_bears_one(self, header):
        """An empty secret must not open a function to an empty token."""
        assert not bears(header, ())


class TestOtherSites:
    """A browser adds its password to whatever a page makes it send."""

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"Host": "infless:8080"},
            {"Sec-Fetch-Site": "same-origin", "Origin": "http://evil"},
            {"Sec-Fetch-Site": "none"},
            {"Origin": "http://infless:8080", "Host": "infless:8080"},
            {"Origin": "https://gateway", "Host": "infless:8080", "X-Forwarded-Host": "gateway"},
        ],
    )
    def test_ours(self, headers):
        """Our own page, what a user typed, and whatever is no browser."""
        assert not from_another_site(headers.get)

    @pytest.mark.parametrize(
        "headers",
        [
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
            {"Sec-Fetch-Site": "cross-site", "Origin": "http://infless:8080", "Host": "infless:8080"},
            {"Sec-Fetch-Site": ""},
            {"Origin": "http://evil", "Host": "infless:8080"},
            {"Origin": "http://infless:8081", "Host": "infless:8080"},
            {"Origin": "http://infless:8080.evil", "Host": "infless:8080"},
            {"Origin": "null", "Host": "infless:8080"},
            {"Origin": "", "Host": ""},
            {"Origin": "http://", "Host": ""},
            {"Origin": "http://evil"},
        ],
    )
    def test_anothers(self, headers):
        """Another port is another site, and so is what hides where it comes from."""
        assert from_another_site(headers.get)
