"""The threat note and the page on limits say what is there; how credentials are compared; who is another site."""

from __future__ import annotations

import ast
import base64
import hmac
import inspect
import re
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from infless_provider import auth, log_hub, service, up_cli, wire, wsgi
from infless_provider.async_policy import AsyncLimits
from infless_provider.settings import Settings
from infless_watchdog.http import Limits

ROOT = Path(__file__).parents[2]
NOTE = (ROOT / "docs/explanation/threats.md").read_text()
HOW_TO = (ROOT / "docs/how-to/secure-the-provider.md").read_text()
_CELL = re.compile(r"(?<!\\)\|")


def rows(text: str, head: str) -> list[list[str]]:
    """The cells of all tables that begin so."""
    found, inside = [], False
    for line in text.splitlines():
        inside = line.startswith(head) or (inside and line.startswith("|"))
        if inside and not line.startswith((head, "| ---")):
            found.append([cell.strip() for cell in _CELL.split(line)[1:-1]])
    return found


THREATS = rows(NOTE, "| who could do what |")
NAMED = re.findall(r"`([a-z]+/test_\w+\.py::[\w:]+)`", NOTE)


@cache
def names_in(path: Path) -> frozenset[str]:
    """Names of the tests of a file, `Class::test` for those of a class."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        scope, inner = (f"{node.name}::", node.body) if isinstance(node, ast.ClassDef) else ("", [node])
        for one in inner:
            if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef) and one.name.startswith("test_"):
                found.add(scope + one.name)
    return frozenset(found)


class TestTheNote:
    """`docs/explanation/threats.md`."""

    def test_every_line_has_all_it_needs(self) -> None:
        """Who could do what, what stops it, and only tests in the last cell: one at least."""
        assert len(THREATS) > 40
        for row in THREATS:
            assert len(row) == 3, row
            assert all(len(cell) > 10 for cell in row), row
            assert re.fullmatch(r"(`[a-z]+/test_\w+\.py::[\w:]+` ?)+", row[2]), row

    @pytest.mark.parametrize("name", sorted(set(NAMED)))
    def test_every_named_test_exists(self, name: str) -> None:
        """In the file and the class that the note names."""
        path, _, test = name.partition("::")
        assert test in names_in(ROOT / "tests" / path)

    def test_no_line_names_a_test_twice(self) -> None:
        """A copy of a line that was not finished."""
        for row in THREATS:
            told = row[2].split()
            assert len(told) == len(set(told)), row

    def test_the_tests_of_threats_are_in_the_note(self) -> None:
        """So that each of them stands for a promise; those of the note itself aside."""
        there = {
            f"{path.relative_to(ROOT / 'tests')}::{test}"
            for path in (ROOT / "tests").glob("*/test_threat*.py")
            for test in names_in(path)
        }
        about_pages = {
            name for name in there if name.startswith("unit/") and re.search("TestTheNote|TestTheHowTo", name)
        }
        assert len(there) > 40
        assert there - set(NAMED) == about_pages


PLACES = {
    "Settings": Settings(state_dir=Path(), bundles_dir=Path()), "Limits": Limits(), "AsyncLimits": AsyncLimits(),
    "service": service, "wire": wire, "log_hub": log_hub, "wsgi": wsgi,
}  # fmt: skip
"""Where numbers are, as the page names it."""
LIMITS = rows(HOW_TO, "| what | most |")


class TestTheHowTo:
    """`docs/how-to/secure-the-provider.md`."""

    @pytest.mark.parametrize("row", LIMITS, ids=lambda row: row[0])
    def test_the_numbers_are_those_of_the_code(self, row: list[str]) -> None:
        """Whoever changes a default changes the page."""
        place, _, name = re.findall(r"`([\w.]+)`", row[3])[0].partition(".")
        assert getattr(PLACES[place], name) == float(row[1].split()[0])
        assert re.search(r"\b(4\d\d|50[34])$", row[2])

    def test_no_limit_of_the_settings_is_missing(self) -> None:
        """Every number that a caller can reach ends in `_max` or says it is the most."""
        told = {re.findall(r"`Settings\.(\w+)`", row[3])[0] for row in LIMITS if "`Settings." in row[3]}
        assert {one.name for one in fields(Settings) if "_max" in one.name} <= told

    def test_the_options_are_those_of_the_command(self) -> None:
        """Whoever runs into a limit finds on the page how to move it."""
        told = dict(re.findall(r"`Settings\.(\w+)` \(`--limit (\w+)=N`\)", HOW_TO))
        assert {name: setting for setting, name in told.items()} == up_cli.LIMITS


class TestComparing:
    """Nobody learns from the time that an answer takes how near a guess came."""

    @pytest.fixture
    def compared(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
        """What is compared by `hmac.compare_digest`."""
        found: list[tuple[Any, Any]] = []
        real = hmac.compare_digest

        def compare(given: Any, right: Any) -> bool:
            found.append((given, right))
            return real(given, right)

        monkeypatch.setattr(hmac, "compare_digest", compare)
        return found

    @pytest.mark.parametrize(
        "told", ["me:secret", "me:wrong", "you:secret", "you:wrong", ":", "me:secre", "me:secrets"]
    )
    def test_user_and_password_are_always_both_compared(self, compared: list[tuple[Any, Any]], told: str) -> None:
        """In full, and the password also where the user was wrong."""
        header = "Basic " + base64.b64encode(told.encode()).decode()
        credentials = auth.Credentials(user="me", password="secret")
        assert credentials.admit(header) == (told == "me:secret")
        user, _, password = told.encode().partition(b":")
        assert sorted(compared) == sorted([(user, b"me"), (password, b"secret")])

    @pytest.mark.parametrize("given", [b"one", b"two", b"three", b"wrong", b"", b"on"])
    def test_all_tokens_are_always_compared(self, compared: list[tuple[Any, Any]], given: bytes) -> None:
        """Also behind the one that was right."""
        tokens = (b"one", b"two", b"three")
        assert auth.bears(b"Bearer " + given, tokens) == (given in tokens)
        assert compared == [(given, token) for token in tokens]

    @pytest.mark.parametrize("function", [auth.Credentials.admit, auth.Credentials.names, auth.bears])
    def test_nothing_else_compares_credentials(self, function: Any) -> None:
        """No `==`, `in`, `startswith`: of what came, only the scheme is compared in another way."""
        tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(function)))
        others = [ast.unparse(node.left) for node in ast.walk(tree) if isinstance(node, ast.Compare)]
        assert set(others) <= {"scheme.lower()"}
        called = {
            node.func.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        }
        assert "compare_digest" in called
        assert not called & {"startswith", "endswith", "find", "index", "match", "fullmatch", "__eq__"}


@pytest.mark.parametrize(
    ("headers", "elsewhere"),
    [
        ({}, False),
        ({"Host": "p:8080"}, False),
        ({"Host": "p:8080", "Origin": "http://p:8080"}, False),
        ({"Host": "p:8080", "Origin": "https://p:8080"}, False),
        ({"Host": "p:8081", "X-Forwarded-Host": "gateway", "Origin": "https://gateway"}, False),
        ({"Host": "p:8080", "Origin": "http://p"}, True),
        ({"Host": "p:8080", "Origin": "http://p:8081"}, True),
        ({"Host": "p:8080", "Origin": "http://evil.example"}, True),
        ({"Host": "p:8080", "Origin": "http://p:8080.evil.example"}, True),
        ({"Host": "p:8080", "Origin": "null"}, True),
        ({"Host": "p:8080", "Origin": ""}, True),
        ({"Host": "", "Origin": "null"}, True),
        ({"Origin": "http://p:8080"}, True),
        ({"Host": "p", "Sec-Fetch-Site": "same-origin"}, False),
        ({"Host": "p", "Sec-Fetch-Site": "none"}, False),
        ({"Host": "p", "Sec-Fetch-Site": "same-site"}, True),
        ({"Host": "p", "Sec-Fetch-Site": "cross-site"}, True),
        ({"Host": "p", "Sec-Fetch-Site": "what comes next"}, True),
        ({"Host": "p", "Sec-Fetch-Site": "cross-site", "Origin": "http://p"}, True),
    ],
)
def test_pages_of_other_sites_are_known(headers: dict[str, str], elsewhere: bool) -> None:
    """By what no page can write itself; other clients say neither, and are not meant."""
    assert auth.from_another_site(headers.get) == elsewhere
